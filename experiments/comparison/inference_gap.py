"""How much could a better posterior gain? Gaps between log p(x) and the ELBO, for each model of the comparison.

For trained decoders and test images (Cremer, Li and Duvenaud, arXiv 1801.03558):

    approximation gap    log p(x) less the ELBO of the best Gaussian for each image, found by optimisation
    amortisation gap     that ELBO less the ELBO of the encoder's q(z|x)

log p(x) is the better of two estimates that check each other (`common.evaluation.annealing`): annealed chains, and
importance weighting with the best full Gaussian.

Importance weighted autoencoders (Burda et al., arXiv 1509.00519) on the same networks show what a better posterior in
training gives the decoder. The other models are those of `experiments.comparison.models`.

Run: python -m experiments.comparison.inference_gap --data mnist.npz (--help lists every flag). --quick is a short run
on the sample. Resumes if interrupted. Results in results/comparison_inference_gap/<name>/:

    metrics.json, table.md      mean and standard deviation over the seeds
    runs.json                   numbers of every seed, with those of every image
    gaps.png                    log p(x) less the VAE's, and both gaps of every model
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

from common.config import AtLeast, PositiveCount
from common.data import Dataset
from common.evaluation import annealing, likelihood
from common.evaluation.posterior_gap import Gaussians, PosteriorGaussians
from common.measure import NO_DENSITY, active_units, test_images
from common.measure_likelihood import likelihood_images, proposal
from common.metrics import METRICS, Metric
from common.model import LatentModel
from common.numbers import Absent, mean_of, of_seeds
from common.progress import TimeLeft
from common.run import load_config, load_run
from experiments import figures, paired, study
from experiments.comparison import iwae
from experiments.comparison.models import VAE, WITHOUT_CONTRAST, models, require_batch, trained
from experiments.study import ImageStudyConfig, Part, Results, Study, run_study

import numpy as np

START_DEVIATION = 0.1  # of the first Gaussian around a chain's end, in units of the prior's scale
OF_IMAGES = "nats_of_images"  # of a run: the numbers of each image
LOG_LIKELIHOOD, DIFFERENCE = "annealed_log_likelihood_nats", "annealed_minus_vae_nats"
FULL_GAP, APPROXIMATION_GAP = "full_approximation_gap_nats", "approximation_gap_nats"
AMORTISATION_GAP, INFERENCE_GAP = "amortisation_gap_nats", "inference_gap_nats"
COLUMNS = {
    LOG_LIKELIHOOD: Metric("log p(x)", "nats", 2, "higher", "annealed importance sampling, checked image by image"),
    "annealed_error_nats": Metric("annealing's error in this", "nats", 2, "lower", "error of the mean of these images"),
    DIFFERENCE: Metric("log p(x) less the VAE's", "nats", 2, "higher", "paired by image"),
    FULL_GAP: Metric("approximation gap, full covariance", "nats", 2, "lower", "log p(x) − best ELBO"),
    APPROXIMATION_GAP: Metric("approximation gap, diagonal", "nats", 2, "lower", "log p(x) − best ELBO"),
    AMORTISATION_GAP: Metric("amortisation gap", "nats", 2, "lower", "best diagonal ELBO − ELBO of the encoder"),
    INFERENCE_GAP: Metric("inference gap", "nats", 2, "lower", "log p(x) − ELBO of the encoder"),
    "more_steps_nats": Metric("gain of twice the steps", "nats", 3, 0, "rise of either best ELBO by a second fit"),
    "draws_error_nats": Metric("error of the ELBOs by draws", "nats", 3, 0, "the largest of the three"),
    "annealed_minus_weighted_nats": Metric("annealed less weighted", "nats", 2, 0, "the two estimates of log p(x)"),
    "active_units": METRICS["active_units"],
}
QUICK = {
    "data": "sample",
    "seeds": (0,),
    "updates": 300,
    "iwae_samples": (5,),
    "images": 10,
    "chains": 2,
    "temperatures": 50,
    "steps": 100,
    "samples": 200,
}


@dataclass(frozen=True)
class Config(ImageStudyConfig):
    """Parameters that all models share, and the effort for the gaps. All other parameters are as in the scripts."""

    latent_dim: PositiveCount = 8  # dimensions of z
    hidden_units: tuple[PositiveCount, ...] = (300, 300)  # ReLU units per layer, all networks
    updates: PositiveCount = 8250  # optimiser steps: 15 passes over MNIST
    iwae_samples: tuple[Annotated[int, AtLeast(2)], ...] = (5, 50)  # draws of z per image in the training of an IWAE
    images: Annotated[int, AtLeast(2)] = 100  # test images
    chains: Annotated[int, AtLeast(2)] = 4  # annealed chains per image for log p(x)
    temperatures: PositiveCount = 1000  # of annealing; images that need more get up to four times as many
    steps: PositiveCount = 400  # of a fit of Gaussians; each family is fitted twice, to see what more steps gain
    samples: Annotated[int, AtLeast(2)] = 1000  # draws per image for the ELBO of a Gaussian
    name: str = ""  # the folder below results/comparison_inference_gap/; if empty: latent-<latent_dim>, and "quick"


def case(script, own: dict, part: Part) -> dict:
    """Train a model if need be; returns its gaps, and the numbers of each image."""
    run = trained(part, script, part.config.latent_dim, **own)
    model = load_run(run)
    units = active_units(model, test_images(part.dataset, load_config(run)))
    return gaps(model, part.dataset, part.config, part.seed) | {"active_units": units}


def gaps(model: LatentModel, dataset: Dataset, config: Config, seed: int) -> dict:
    """log p(x) and all gaps of a model in nats, as means over test images that are the same for every model."""
    images, progress = likelihood_images(dataset, config.images), TimeLeft()
    of_decoder = likelihood.of_decoder(model.decoder, model.likelihood)
    sampling = likelihood.AnnealedImportanceSampling(of_decoder, model.prior, images, config.chains, seed, progress)
    found = sampling.forward(config.temperatures)
    checked = annealing.checked(sampling, found, config.temperatures, seed)
    fitting = PosteriorGaussians(of_decoder, model.prior, images, seed, progress)
    log_weights, more_steps = best_log_weights(fitting, first_gaussians(found, model.prior.scale), config)
    if model.posterior == "gaussian":
        log_weights["amortised"] = fitting.log_weights(Gaussians.diagonal(*proposal(model, images)), config.samples)
    checked = with_proposal(checked, log_weights["full"])
    of_images = {"log_likelihood": checked.estimates} | {key: each.mean(axis=1) for key, each in log_weights.items()}
    return differences(of_images, Absent(NO_DENSITY[model.posterior])) | {
        "annealed_error_nats": checked.error_of_mean(),
        "annealed_flagged_images": int(checked.flagged.sum()),
        "annealed_minus_weighted_nats": mean_of(checked.disagreement),
        "more_steps_nats": more_steps,
        "draws_error_nats": max(map(error_of_draws, log_weights.values())),
        OF_IMAGES: {key: np.round(values, 3).tolist() for key, values in of_images.items()},
    }


def first_gaussians(found: likelihood.Annealed, scale: float) -> Gaussians:
    """Where the fits start: at the end of each image's heaviest chain, a draw from about the posterior."""
    heaviest = found.log_weights.argmax(axis=1)
    ends = np.take_along_axis(found.codes, heaviest[:, None, None], axis=1)[:, 0]
    return Gaussians.diagonal(ends, np.full(ends.shape, START_DEVIATION * scale))


def with_proposal(checked: annealing.Checked, log_weights: np.ndarray) -> annealing.Checked:
    """`checked` with the draws of the best full Gaussians, (images, draws), where these have the smaller variance."""
    variance = 1.0 / likelihood.effective_sample_size(log_weights) - 1.0 / log_weights.shape[1]
    effective = np.maximum(1.0 / (variance + 1.0 / annealing.DRAWS), checked.effective_draws)
    weighted = likelihood.importance_weighted_bound(log_weights)
    weighted = np.where(effective > checked.effective_draws, weighted, checked.weighted)
    return replace(checked, weighted=weighted, effective_draws=effective)


def best_log_weights(fitting: PosteriorGaussians, start: Gaussians, config: Config) -> tuple[dict, float]:
    """log p(x, z) - log q(z|x), (images, samples), of the best "full" and the best "diagonal" Gaussian of each image.

    And the larger of the rises in both mean ELBOs by a second fit. A diagonal fit starts from the full one, whose best
    diagonal approximation is known.
    """
    log_weights, rises = {}, []
    for name in ("full", "diagonal"):
        first = fitting.fit(start, name == "full", config.steps)
        second = fitting.fit(first, name == "full", config.steps)
        elbos = [fitting.log_weights(each, config.samples) for each in (first, second)]
        rises.append(float((elbos[1] - elbos[0]).mean()))
        log_weights[name], start = elbos[1], second.independent()
    return log_weights, max(rises, key=abs)


def differences(of_images: dict[str, np.ndarray], reason: Absent) -> dict:
    """Means over images and their errors, of log p(x), of the ELBOs, and of all gaps, image by image.

    Without an "amortised" ELBO, what depends on it is absent for this `reason`.
    """
    exact, full, diagonal = (of_images[key] for key in ("log_likelihood", "full", "diagonal"))
    numbers = {
        LOG_LIKELIHOOD: exact,
        "full_elbo_nats": full,
        "diagonal_elbo_nats": diagonal,
        FULL_GAP: exact - full,
        APPROXIMATION_GAP: exact - diagonal,
    }
    amortised = dict.fromkeys(("amortised_elbo_nats", AMORTISATION_GAP, INFERENCE_GAP), reason)
    if "amortised" in of_images:
        values = of_images["amortised"]
        numbers |= dict(zip(amortised, (values, diagonal - values, exact - values), strict=True))
    return amortised | {key: mean_of(values) for key, values in numbers.items()}


def error_of_draws(log_weights: np.ndarray) -> float:
    """The standard error of the ELBO's mean over these images by its draws, (images, draws)."""
    images, draws = log_weights.shape
    return float(np.sqrt(log_weights.var(axis=1, ddof=1).sum() / draws) / images)


def cases(config: Config, dataset: Dataset) -> dict:
    """A case for each script's model, and for each IWAE."""
    chosen = {title: model for title, model in models().items() if title != WITHOUT_CONTRAST}
    chosen |= {f"IWAE, {samples} draws": (iwae, {"samples": samples}) for samples in config.iwae_samples}
    return {title: partial(case, script, own) for title, (script, own) in chosen.items()}


def requires(config: Config, dataset: Dataset):
    """Raises RunError if there are too few training images for a batch of a script."""
    require_batch(dataset)


def rows(declared: Study, results: Results) -> dict[str, dict]:
    """One row per case: means over the seeds, standard deviations over the seeds, and mean errors over images."""
    found, vaes = {}, results.of(VAE)
    for title in cases(results.config, results.dataset):
        runs = results.of(title)
        if title != VAE:
            runs = [run | less(run, vae) for run, vae in zip(runs, vaes, strict=True)]
        found[title] = paired.averaged(runs, COLUMNS) | results.means(title, ["updates"])
    return found


def less(run: dict, vae: dict) -> dict:
    """log p(x) of a run less the VAE's, image by image."""
    return paired.difference(DIFFERENCE, *(each[OF_IMAGES]["log_likelihood"] for each in (run, vae)))


def gaps_figure(results: Results, rows: dict):
    """Left: log p(x) less the VAE's. Middle: approximation gaps. Right: amortisation gaps. One row per model."""
    config, dataset = results.config, results.dataset

    def points(key):
        return {
            title: (means[key], means[f"{key}_standard_error"])
            for title, means in rows.items()
            if means[key] is not None
        }

    panels = {
        "log p(x) less the VAE's, nats": {"decoder": points(DIFFERENCE)},
        "approximation gap, nats": {
            "best full Gaussian": points(FULL_GAP),
            "best diagonal Gaussian": points(APPROXIMATION_GAP),
        },
        "amortisation gap, nats": {"encoder's q(z|x)": points(AMORTISATION_GAP)},
    }
    return figures.dots(
        panels,
        list(rows),
        f"What a better posterior could gain, on {dataset.name}",
        f"{config.latent_dim}-D codes, {results.updates(*rows)}. Left: log p(x) by annealing, higher is better. "
        "Approximation gap: log p(x) less the ELBO of the best Gaussian for each image. Amortisation gap: ELBO of the "
        "best diagonal Gaussian less that of the encoder, where q(z|x) is a Gaussian. Paired over the same "
        f"{min(config.images, len(dataset.x_test))} test images, "
        f"with standard errors over images as bars; {of_seeds('mean', config.seeds)}",
    )


def presets(config: Config) -> dict:
    """The default name of the folder, which contains the size of the code."""
    return {"name": f"latent-{config.latent_dim}{'-quick' * config.quick}"}


STUDY = Study(
    "comparison.inference_gap",
    cases,
    COLUMNS,
    lambda results, rows: {"gaps": gaps_figure(results, rows)},
    QUICK,
    requires,
    rows=rows,
    presets=presets,
)


def main(config: Config = Config()) -> dict:
    """Run the experiment; returns the content of metrics.json."""
    return study.run(STUDY, config)


if __name__ == "__main__":
    run_study(STUDY, Config)
