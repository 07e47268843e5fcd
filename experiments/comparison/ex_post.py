"""Does one need the discriminator? Each model with its own prior, and with a density fitted to its codes afterwards.

Ghosh et al., "From Variational to Deterministic Autoencoders", arXiv 1903.12436, train an autoencoder without a prior,
and then fit a Gaussian mixture to its codes. Dai and Wipf, "Diagnosing and Enhancing VAE Models", arXiv 1903.05789,
train a second model on the codes of a VAE. Here every model of `experiments.comparison.models`, and an autoencoder
without any prior, samples from four densities:

    own prior           N(0, I), which the training used; the autoencoder's training did not
    one Gaussian        with the mean and covariance of training codes
    Gaussian mixture    full covariances, fitted to training codes; validation codes choose the number of components
    training codes      these codes themselves, each drawn once: what a density that fits them perfectly would reach

The autoencoder is the deterministic AAE whose generator has the weight 0. Training codes are one draw z ~ q(z|x) for
each of 20,000 images. Everything else is measured on test images.

Run: python -m experiments.comparison.ex_post --data mnist.npz [--latent-dim 2] (--help lists every flag). --quick is a
short run on the sample. Resumes if interrupted. Results in results/comparison_ex_post/<name>/:

    metrics.json                mean and standard deviation over the seeds, one row per model and density
    table.md, likelihood.md     the same of codes and samples, and of log p(x)
    runs.json                   numbers of every seed, by density; log p(x) of every image
    densities.png               the main numbers of all models and densities
    samples.png                 samples of every model from its own prior and from the mixture
"""

import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import aae_deterministic
from common.binarisation import tagged_stream, targets
from common.config import AtLeast, PositiveCount
from common.data import Dataset
from common.evaluation import coverage, latent, likelihood, samples
from common.evaluation.probes import nothing_to_tell
from common.files import RunError
from common.measure import TRAINING_CODES, log_density, nearest_distance, test_images, training_inferred
from common.measure_likelihood import likelihood_images
from common.metrics import METRICS, Metric
from common.model import Decoded, LatentModel
from common.numbers import Absent, flat, mean_of, of_seeds
from common.plots.figure import COLOURS, MARKERS, TEXT_SIZE, new_figure, own_style
from common.priors import FittedMixture
from common.progress import TimeLeft
from common.run import load_config, load_run
from experiments import figures, paired, study
from experiments.comparison import laplace
from experiments.comparison.models import VAE, WITHOUT_CONTRAST, classifier_of, models, require_batch, trained
from experiments.study import ImageStudyConfig, Part, Results, Study, run_study

import keras
import numpy as np
from keras import ops
from matplotlib.axes import Axes
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

AUTOENCODER = "Autoencoder"
TITLES = {  # of the densities, by their names in runs.json
    "own": "own prior",
    "gaussian": "one Gaussian",
    "mixture": "Gaussian mixture",
    "codes": "training codes",
}
IMAGES = "training images"  # the row without a model
DENSITY, DENSITY_GAIN = "code_log_density_nats", "code_log_density_gain_nats"
BOUND, BOUND_GAIN, TO_VAE = "weighted_bound_nats", "weighted_bound_gain_nats", "weighted_bound_minus_vae_nats"
FRECHET = "sample_frechet_distance"
CHECK, OF_IMAGES = "annealed_minus_weighted_nats", "weighted_bound_nats_of_images"
OF_CODES = {
    "components": Metric("components", "", 0, "", "Gaussians of the fitted density"),
    DENSITY: Metric("log density of test codes", "nats", 2, "higher", "mean of log p(z) over one code per test image"),
    DENSITY_GAIN: Metric(
        "log density of test codes, gain on the own prior",
        "nats",
        2,
        "higher",
        "paired by code; it is the gain of the evidence lower bound, where q(z|x) has a density",
    ),
    "code_c2st_accuracy": METRICS["code_c2st_accuracy"],
    "code_coverage": METRICS["code_coverage"],
    "code_hole_mass": METRICS["code_hole_mass"],
    FRECHET: METRICS[FRECHET],
    "sample_c2st_accuracy": METRICS["sample_c2st_accuracy"],
    "sample_nearest_distance": METRICS["sample_nearest_distance"],
}
OF_LIKELIHOOD = {
    BOUND: Metric("log p(x), lower bound", "nats", 1, "higher", "importance weighting around each posterior's mode"),
    BOUND_GAIN: Metric("log p(x), gain on the own prior", "nats", 2, "higher", "paired by image"),
    TO_VAE: Metric("log p(x), less the VAE's with its own prior", "nats", 2, "higher", "paired by image"),
    f"{TO_VAE}_standard_error": Metric("standard error of this over images", "nats", 2, "", "of paired differences"),
    CHECK: Metric("annealed log p(x) less the bound", "nats", 2, 0, "on the annealed images, paired by image"),
    "weighted_effective_samples": METRICS["weighted_effective_samples"],
}
COLUMNS = OF_CODES | OF_LIKELIHOOD
MODES, STARTS = 4, 5000  # starts of the search for each posterior's modes, and the codes that they are chosen from
SHOWN, NEAREST = 18, 200  # samples in the figure; samples whose nearest training images are searched
POINTS = {  # the panels of the figure
    "code_c2st_accuracy": "C2ST of codes to density, 0.5: no difference",
    FRECHET: "Fréchet distance of samples",
    BOUND: "log p(x), lower bound, nats",
}
QUICK = {
    "data": "sample",
    "seeds": (0,),
    "updates": 400,
    "components": (1, 3, 10),
    "weighted_images": 10,
    "weighted_samples": 200,
    "annealed_images": 4,
    "temperatures": 50,
}


@dataclass(frozen=True)
class Config(ImageStudyConfig):
    """Parameters that all models share. All other parameters are as in their scripts."""

    latent_dim: PositiveCount = 8  # dimensions of z
    hidden_units: tuple[PositiveCount, ...] = (300, 300)  # ReLU units per layer, all networks
    updates: PositiveCount = 8250  # optimiser steps: 15 passes over MNIST
    components: tuple[PositiveCount, ...] = (1, 3, 10, 30, 100)  # numbers of Gaussians, of which one is chosen
    weighted_images: Annotated[int, AtLeast(2)] = 100  # test images for the bound on log p(x)
    weighted_samples: PositiveCount = 1000  # draws per image for the bound
    annealed_images: Annotated[int, AtLeast(2)] = 10  # the first of these images, for annealing, which checks the bound
    chains: Annotated[int, AtLeast(2)] = 4  # annealed chains per image
    temperatures: PositiveCount = 1000  # of annealing
    name: str = ""  # the folder below results/comparison_ex_post/; if empty: the size of the code, and "quick" if set


# Densities


class CodesPrior:
    """Some codes, (n, latent_dim), themselves in place of a density."""

    no_density = "single codes have no density"
    modes = 0

    def __init__(self, codes: np.ndarray):
        self.codes, self.latent_dim, self.scale = codes, codes.shape[1], float(codes.var(axis=0).mean() ** 0.5)

    def sample(self, count, seed, labels=None):
        """`count` of the codes in random order, (count, latent_dim): each once, or as evenly as possible."""
        rounds = -(-count // len(self.codes))
        orders = [keras.random.shuffle(ops.arange(len(self.codes)), seed=seed) for _ in range(rounds)]
        return ops.take(self.codes, ops.concatenate(orders)[:count], axis=0)


def fitted(codes: np.ndarray, validation_codes: np.ndarray, sizes, seed: int) -> FittedMixture:
    """The mixture of `sizes` Gaussians that makes the validation codes likeliest; fitted to codes (n, latent_dim)."""
    fits = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the validation codes choose
        for size in sizes:
            mixture = GaussianMixture(size, covariance_type="full", random_state=seed)
            fits.append(mixture.fit(np.asarray(codes, "float64")))
    best = max(fits, key=lambda mixture: mixture.score(np.asarray(validation_codes, "float64")))
    return FittedMixture(best.weights_, best.means_, best.covariances_)


def densities(prior, codes: np.ndarray, validation_codes: np.ndarray, sizes, seed: int) -> dict:
    """By their names in TITLES: the own prior, and what is made of training and validation codes."""
    return {
        "own": prior,
        "gaussian": fitted(codes, validation_codes, (1,), seed),
        "mixture": fitted(codes, validation_codes, sizes, seed),
        "codes": CodesPrior(codes),
    }


# Cases


class Found(NamedTuple):
    """log p(z) of each test code and a lower bound on log p(x) of each image, in nats; None if there is no density."""

    of_codes: np.ndarray | None
    of_images: np.ndarray | None


def case(script, own: dict, part: Part) -> dict:
    """Train a model and measure it with every density; the numbers of each density are in a dict of their own."""
    config, dataset = part.config, part.dataset
    run = trained(part, script, config.latent_dim, **own)
    model, saved = load_run(run), load_config(run)
    known, held, codes = codes_of(model, dataset, saved)
    if not all(np.isfinite(some).all() for some in (known, held, codes)):
        raise RunError(f"{run} has codes that are infinite or not a number; train the model with another --seeds")
    images = likelihood_images(dataset, config.weighted_images)
    starts, real = starts_of(model, images, known), features_of(part, dataset.x_test)
    numbers, own_found, pictures = {}, None, {}
    for name, prior in densities(model.prior, known, held, config.components, part.seed).items():
        model.prior = prior  # the decoder with another density is a model like any other
        density = log_density(prior)
        estimates, of_images = likelihood_numbers(model, images, starts, config)
        found = Found(density(codes) if density else None, of_images)
        own_found = own_found or found
        numbers[name] = flat(
            {"components": getattr(prior, "components", None), OF_IMAGES: of_images}
            | gains(found, own_found)
            | code_numbers(model, known, codes, part.seed)
            | sample_numbers(part, real, Decoded(model, model.prior_codes(len(codes))))
            | estimates
        )
        pictures[name] = model.sample(SHOWN)
    part.keep(**pictures)
    return numbers


def codes_of(model: LatentModel, dataset: Dataset, saved) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One draw z ~ q(z|x) for each of some training images, and for all validation and all test images."""
    known = training_inferred(model, dataset, saved)[0]["z"]
    held = model.draw_codes(targets(dataset.x_val, saved, "validation"))
    return known, held, model.draw_codes(test_images(dataset, saved))


def starts_of(model: LatentModel, images, known: np.ndarray) -> np.ndarray:
    """Codes near the modes of each image's posterior, (n, MODES, latent_dim).

    One is a draw z ~ q(z|x). The others are, of some training codes, those with the highest log p(x|z).
    """
    some, flat = known[:STARTS], np.asarray(images, "float64").reshape(len(images), -1)
    logits = laplace.logits(model, some)
    fits = flat @ logits.T - np.logaddexp(0.0, logits).sum(axis=1)  # (n, STARTS)
    best = np.argsort(-fits, axis=1)[:, : MODES - 1]
    return np.concatenate([model.draw_codes(images)[:, None], some[best]], axis=1)


def gains(found: Found, own: Found) -> dict:
    """Means over codes and images, and their mean differences from those of the own prior."""
    if found.of_codes is None:
        return {key: Absent(CodesPrior.no_density) for key in (DENSITY, DENSITY_GAIN, BOUND, BOUND_GAIN)}
    return {
        DENSITY: mean_of(found.of_codes),
        DENSITY_GAIN: mean_of(found.of_codes - own.of_codes),
        BOUND: mean_of(found.of_images),
        BOUND_GAIN: mean_of(found.of_images - own.of_images),
    }


def code_numbers(model: LatentModel, known: np.ndarray, codes: np.ndarray, seed: int) -> dict:
    """How the density in place of the prior differs from the test codes."""
    draws, more = model.prior_codes(len(codes)), model.prior_codes(len(known))
    return {
        "code_c2st_accuracy": latent.c2st_accuracy(codes, draws, seed),
        "code_coverage": coverage.coverage(codes, draws),
        "code_hole_mass": coverage.hole_mass(known, more, codes, draws, seed),
    }


def features_of(part: Part, images) -> np.ndarray | None:
    """The features of images, (n, 64), by the classifier that all parts share; None if there is no classifier."""
    classifier = classifier_of(part.dataset, part.config.results)
    return classifier.features(images) if classifier else None


def sample_numbers(part: Part, real: np.ndarray | None, images) -> dict:
    """How `images`, such as decoded samples, differ from test images, whose features are `real`."""
    numbers = {"sample_nearest_distance": nearest_distance(images[:NEAREST], part.dataset.x_train)}
    if real is None:
        absent = Absent(nothing_to_tell(part.dataset.y_train))
        return numbers | {FRECHET: absent, "sample_c2st_accuracy": absent}
    features = features_of(part, images)
    return numbers | {
        FRECHET: samples.frechet_estimate(features, real),
        "sample_c2st_accuracy": latent.c2st_accuracy(features, real, part.seed),
    }


def likelihood_numbers(model: LatentModel, images, starts, config: Config) -> tuple[dict, np.ndarray | None]:
    """The effective draws of the bound and its check by annealing, and the bound for each image, (n,)."""
    if log_density(model.prior) is None:
        return {key: Absent(model.prior.no_density) for key in (CHECK, "weighted_effective_samples")}, None
    weights = laplace.log_weights(model, images, starts, config.weighted_samples)
    bounds, few = likelihood.importance_weighted_bound(weights), min(config.annealed_images, len(images))
    of_decoder = likelihood.of_decoder(model.decoder, model.likelihood)
    chains = likelihood.AnnealedImportanceSampling(
        of_decoder, model.prior, images[:few], config.chains, laplace.SEED, TimeLeft()
    )
    return {
        CHECK: mean_of(chains.forward(config.temperatures).lower() - bounds[:few]),
        "weighted_effective_samples": float(np.median(likelihood.effective_sample_size(weights))),
    }, bounds


def images_case(part: Part) -> dict:
    """Training images in place of samples: what a perfect model would reach."""
    dataset, random = part.dataset, tagged_stream("ex post", part.seed)
    count = min(len(dataset.x_train), len(dataset.x_test))
    chosen = np.sort(random.permutation(len(dataset.x_train))[:count])
    numbers = sample_numbers(part, features_of(part, dataset.x_test), dataset.x_train[chosen])
    some = dataset.x_test[np.sort(random.permutation(len(dataset.x_test))[:NEAREST])]
    return numbers | {"sample_nearest_distance": nearest_distance(some, dataset.x_train)}


def cases(config: Config, dataset: Dataset) -> dict:
    """A case for each model, first the autoencoder without a prior."""
    named = {AUTOENCODER: (aae_deterministic, {"adversarial_weight": 0.0})}
    named |= {title: model for title, model in models().items() if title != WITHOUT_CONTRAST}
    return {title: functools.partial(case, script, own) for title, (script, own) in named.items()}


def once(config: Config, dataset: Dataset) -> dict:
    """The training images in place of samples."""
    return {IMAGES: images_case}


def requires(config: Config, dataset: Dataset):
    """Raises RunError if there are too few training images for a batch, or for the components."""
    require_batch(dataset)
    few, most = min(TRAINING_CODES, len(dataset.x_train)), max(config.components)
    if most > few:
        raise RunError(f"--components {most} needs as many training codes, and there are {few:,}; give fewer")


# Rows and figures


def rows(declared: Study, results: Results) -> dict[str, dict]:
    """A row for each model and density: mean and deviation over the seeds, and mean standard errors over images."""
    found, vaes = {}, results.of(VAE)
    for title in cases(results.config, results.dataset):
        for name, text in TITLES.items():
            runs = [run[name] | {"stopped_by": run.get("stopped_by")} for run in results.of(title)]
            runs = [run | less(run, vae["own"]) for run, vae in zip(runs, vaes, strict=True)]
            found[f"{title}, {text}"] = paired.averaged(runs, COLUMNS)
    return found | {IMAGES: results.runs[IMAGES]}


def less(run: dict, vae: dict) -> dict:
    """The bound of a run less that of the VAE with its own prior, on the same images."""
    return paired.difference(TO_VAE, run[OF_IMAGES], vae[OF_IMAGES])


def tables(declared: Study, results: Results, rows: dict) -> dict[str, str]:
    """table.md on codes and samples, likelihood.md on log p(x) under each density."""
    parts = {"table.md": OF_CODES, "likelihood.md": OF_LIKELIHOOD}
    known = {name: means for name, means in rows.items() if means.get(BOUND) is not None}
    return {name: study.table(rows if name == "table.md" else known, columns) for name, columns in parts.items()}


@own_style()
def densities_figure(results: Results, rows: dict):
    """The main numbers in panels: one row per model, one series per density."""
    config, dataset = results.config, results.dataset
    titles, few = list(cases(config, dataset)), min(config.weighted_images, len(dataset.x_test))
    figure = new_figure(
        10.5,
        5.2,
        f"{len(titles)} models with their own prior and with a density fitted to their codes, on {dataset.name}",
        f"{config.latent_dim}-D codes, {results.updates(*titles)}. Densities are fitted to training codes, and "
        f"compared with {len(dataset.x_test):,} test images; log p(x): {few} binarised ones. "
        f"{of_seeds('Mean, and standard deviation as bars,', config.seeds)}. The autoencoder has no prior of its own",
        layout="constrained",
    )
    all_axes = figure.subplots(1, len(POINTS), sharey=True)
    for axes, (key, label) in zip(all_axes, POINTS.items(), strict=True):
        for number, text in enumerate(TITLES.values()):
            draw_points(axes, {title: rows[f"{title}, {text}"] for title in titles}, key, text, number)
        axes.set_xlabel(label, size=TEXT_SIZE)
        axes.grid(axis="y", color="0.9")
        axes.tick_params(labelsize=TEXT_SIZE)
    all_axes[0].set_yticks(range(len(titles)), titles)
    all_axes[0].set_ylim(len(titles) - 0.5, -0.5)
    figures.legend_below(figure)
    return figure


def draw_points(axes: Axes, means: Mapping[str, Mapping], key: str, text: str, number: int):
    """Draw the density `text`, the one of this number: a point for each model that has this key, by its means."""
    points = {
        row: (of[key], of[f"{key}_sd"] or 0.0)
        for row, (title, of) in enumerate(means.items())
        if of[key] is not None and (title, text) != (AUTOENCODER, TITLES["own"])
    }
    heights = np.array(list(points)) + 0.18 * (number - 0.5 * (len(TITLES) - 1))
    values, errors = np.array(list(points.values())).reshape(-1, 2).T
    style = {"color": COLOURS[number], "marker": MARKERS[number], "markersize": 5, "linestyle": "none", "capsize": 2}
    axes.errorbar(values, heights, xerr=errors, label=text, **style)


def samples_figure(results: Results, rows: dict):
    """Samples of every model of the first seed, from its own prior and from the mixture."""
    config, images, names = results.config, [], []
    titles = list(cases(config, results.dataset))
    for title in titles:
        pictures = results.pictures(title)
        for name in ("own", "mixture"):
            images.append(pictures[name])
            distance = COLUMNS[FRECHET].cell(rows[f"{title}, {TITLES[name]}"], FRECHET)
            names.append(f"{title}, {TITLES[name]}\nFréchet distance {distance}")
    return figures.named_tiles(
        np.array(images),
        names,
        [""] * SHOWN,
        "",
        f"Samples of {len(titles)} models from two densities, on {results.dataset.name}",
        f"Decoders' pixel means for z ~ N(0, I) above and z ~ mixture below, {config.latent_dim}-D, not selected, "
        f"{results.updates(*titles)}, seed {config.seeds[0]}. {of_seeds('Numbers: mean ± deviation', config.seeds)}",
        together=2,
        left=2.3,
    )


def all_figures(results: Results, rows: dict) -> dict:
    """Both figures."""
    return {"densities": densities_figure(results, rows), "samples": samples_figure(results, rows)}


def presets(config: Config) -> dict:
    """The default name of the folder, which contains the size of the code."""
    return {"name": f"latent-{config.latent_dim}{'-quick' * config.quick}"}


STUDY = Study(
    "comparison.ex_post",
    cases,
    COLUMNS,
    all_figures,
    QUICK,
    requires,
    once=once,
    rows=rows,
    tables=tables,
    presets=presets,
)


def main(config: Config = Config()) -> dict:
    """Run the experiment; returns the content of metrics.json."""
    return study.run(STUDY, config)


if __name__ == "__main__":
    run_study(STUDY, Config)
