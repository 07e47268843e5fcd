"""Which decoder has the highest log p(x), do the estimates of log p(x) agree, and can Parzen windows rank models?

Every decoder is measured on the same test images in three ways:

    bound      The importance-weighted lower bound on log p(x), with x binarised at random (Burda et al., arXiv
               1509.00519).
    annealed   log p(x) of some of these images by annealed importance sampling. "Gap" is the difference of its two
               directions on images of the model itself (bidirectional Monte Carlo; Grosse et al., arXiv 1511.02543).
    Parzen     The log density of grey test images under Gaussian windows on 10,000 samples (pixel means) of the model.
               The width sigma is chosen on validation images. Table 1 of the AAE paper uses this measure.

Parzen windows give a density, and log p(x) is a probability: each ranks models only within its own column. The Parzen
column also has two sets of windows that are not models. One is real training digits, the other is k-means centroids of
such digits (Theis et al., arXiv 1511.01844). By default the decoders are those of a VAE at two lengths of training, of
AVB and of a Gaussian AAE.

With --preset aae_paper: Table 1 of Makhzani et al., arXiv 1511.05644, by its own measure and by annealing. One model is
the deterministic AAE of section 3, with an 8-D code and the prior N(0, 5^2 I). The other is a VAE with the prior N(0,
I) on the same networks, data and updates. Both are trained on grey images, as in the paper. Annealing with binary
images still measures their training objective. The reason: the cross-entropy is linear in the pixels, so for a grey
image it is the mean of -log p(b|z) over its binarisations b. Annealing and Parzen windows use no encoder.

Run: python -m experiments.comparison.likelihoods --data mnist.npz [--preset aae_paper] (--help lists every flag).
--quick is a short run on the sample. Resumes if interrupted. Results in results/comparison_likelihoods/<name>/:

    metrics.json, table.md      means over the seeds
    runs.json                   numbers of every seed
    likelihoods.png             all estimates
    samples.png                 samples of every decoder
    a folder per training       the run of a script, with annealing.png
"""

import functools
from dataclasses import dataclass, fields
from typing import Annotated, Literal

from common import plots, scripts
from common.config import AtLeast, Factor, PositiveCount, Scale, Seed
from common.data import Dataset
from common.files import RunError
from common.measure_likelihood import WINDOW_IMAGES, LikelihoodSettings, parzen, weighted_and_annealed
from common.metrics import METRICS, Metric
from common.numbers import flat, markdown, of_seeds, over_seeds, plus_minus, row_title
from common.plots import tiles
from common.plots.figure import own_style
from common.progress import TimeLeft
from common.run import load_run
from common.training import epochs_for
from experiments import figures, paired, study
from experiments.study import ImageStudyConfig, Part, Results, Study, run_study
from tools.evaluate import annealing_figure, read_metrics

import numpy as np
from sklearn.cluster import KMeans

SHORT, VAE = "vae_short", "vae_baseline"
DIGITS, CENTROIDS = "real training digits", "k-means centroids"
CARRIED = "carried_log_likelihood_nats"
BOUND, LESS_BOUND, PARZEN = (
    "importance_weighted_bound_nats",
    "annealed_minus_weighted_nats",
    "parzen_log_likelihood_nats",
)
ESTIMATES = {  # of log p(x), as the figure calls them
    "elbo_binarised_nats": "ELBO",
    BOUND: "importance-weighted bound",
    CARRIED: "annealed, carried to all",
    "annealed_log_likelihood_nats": "annealed",
}
COLUMNS = {
    "elbo_binarised_nats": METRICS["elbo_binarised_nats"],
    BOUND: METRICS[BOUND],
    CARRIED: Metric(
        "log p(x), annealed, carried to all images",
        "nats",
        1,
        "higher",
        "the bound of all images, plus the mean difference on the annealed images",
    ),
    "annealed_log_likelihood_nats": METRICS["annealed_log_likelihood_nats"],
    **{key: paired.COLUMNS[key] for key in (paired.DIFFERENCE, paired.ANNEALING)},  # a cell has the error over images
    "annealed_gap_nats": METRICS["annealed_gap_nats"],
    LESS_BOUND: METRICS[LESS_BOUND],
    PARZEN: METRICS[PARZEN],
    "parzen_sigma": METRICS["parzen_sigma"],
    "test_reconstruction_nats": METRICS["test_reconstruction_nats"],
    "code_c2st_accuracy": METRICS["code_c2st_accuracy"],
}
OF_RUN = ("test_reconstruction_nats", "code_c2st_accuracy")  # measured by the script
REPORTED = {"Deterministic AAE": (340.0, 2.0), "GMMN + AE": (282.0, None), "GAN": (225.0, None), "DBN": (138.0, None)}
SHOWN, ACROSS = 24, 12  # images of each decoder in samples.png, and images per row
QUICK = {
    "data": "sample",
    "updates": 200,
    "few_updates": 50,
    "seeds": (0,),
    "annealed_images": 10,
    "chains": 4,
    "temperatures": (20, 60),
    "weighted_images": 20,
}
PRESETS = {  # of --preset; Table 1 of the AAE paper has the code, prior and networks of its section 3
    "none": {},
    "aae_paper": {
        "preset": "aae_paper",
        "models": ("aae_deterministic", VAE),
        "binarisation": "none",
        "hidden_units": (1000, 1000),  # appendix A.1
        "prior_scale": 5.0,
        # The script's 40 was chosen for a 2-D code. With it, the first updates in 8-D teach little. Of 40, 16, 8, 4 and
        # 2, this is the best by Parzen and C2ST. They were compared on validation images of MNIST (2 x 300 units, 1,100
        # updates, seed 0).
        "adversarial_weight": 8.0,
        "seeds": (0, 1, 2),
        "annealed_images": 50,
        "chains": 4,
        "temperatures": (100, 1000),
        "weighted_samples": 0,
    },
}


@dataclass(frozen=True)
class Config(ImageStudyConfig):
    """Parameters that all decoders share, and the effort of the estimates. All others are as in their scripts."""

    preset: Literal[*PRESETS] = "none"  # aae_paper sets the defaults of all other flags for Table 1 of the AAE paper
    models: tuple[Literal[SHORT, *scripts.SCRIPTS], ...] = (SHORT, VAE, "avb", "aae_gaussian")  # models to measure
    seeds: tuple[Seed, ...] = (0,)  # random seeds of weights, noise, order, binarisation and the digits for windows
    binarisation: Literal["none", "dynamic"] = "dynamic"  # for training; log p(x) is always that of binary images
    latent_dim: PositiveCount = 8  # dimensions of z
    hidden_units: tuple[PositiveCount, ...] = (300, 300)  # ReLU units per layer, all networks
    prior_scale: Scale | None = None  # factor on the samples of the AAEs' prior; None: as in their scripts
    adversarial_weight: Factor | None = None  # factor on the loss of the AAEs' generator; None: as in their scripts
    updates: PositiveCount = 8250  # optimiser steps: 15 passes over MNIST
    few_updates: PositiveCount = 1100  # optimiser steps of vae_short: 2 passes over MNIST
    annealed_images: Annotated[int, AtLeast(2)] = 50  # test images for annealed importance sampling of log p(x)
    chains: Annotated[int, AtLeast(2)] = 8  # annealed chains per image
    # numbers of temperatures; the largest gives the estimate
    temperatures: tuple[PositiveCount, ...] = (100, 300, 1000)
    weighted_images: Annotated[int, AtLeast(2)] = 1000  # test images for the importance-weighted bound
    weighted_samples: Annotated[int, AtLeast(0)] = 5000  # draws per image for the bound; 0 leaves the bound out
    window_samples: Annotated[int, AtLeast(2)] = 10_000  # Parzen windows: samples of a model, digits or centroids
    name: str = ""  # the folder below results/comparison_likelihoods/; if empty: the preset or "default", and "quick"


def upgraded(parameters: dict) -> dict:
    """The parameters from the config.json of an older run, of `likelihoods` or `aae_likelihood`, for this Config.

    `likelihoods` had a single seed, and `aae_likelihood` is now a preset.
    """
    if "seed" not in parameters:
        return PRESETS["aae_paper"] | parameters
    return {key: value for key, value in parameters.items() if key != "seed"} | {"seeds": (parameters["seed"],)}


def decoders(config: Config, dataset: Dataset) -> dict[str, tuple]:
    """By the name of each row: a script, as a module, and parameters that differ from the script's."""
    named = {}
    for name in config.models:
        script = scripts.load_script(VAE if name == SHORT else name)
        title, updates = scripts.title_of(script), config.few_updates if name == SHORT else config.updates
        if SHORT in config.models and script.__name__ == VAE:
            title += f", {made_updates(script, updates, dataset):,} updates"
        own = {"updates": updates}
        if "adversarial_weight" in {field.name for field in fields(script.Config)}:
            weights = {"prior_scale": config.prior_scale, "adversarial_weight": config.adversarial_weight}
            own |= {key: value for key, value in weights.items() if value is not None}
        named[title] = (script, own)
    return named


def made_updates(script, updates: int, dataset: Dataset) -> int:
    """The number of updates in the whole passes that are nearest to `updates`."""
    images, batch_size = len(dataset.x_train), script.Config().batch_size
    return epochs_for(updates, images, batch_size) * (images // batch_size)


def decoder_case(script, own: dict, part: Part) -> dict:
    """Train a model and measure its decoder; the numbers include the annealed log p(x) of each image."""
    config, dataset = part.config, part.dataset
    run = part.run_script(script, **own)
    model, saved = load_run(run), read_metrics(run)
    numbers, bounds, estimates = weighted_and_annealed(model, dataset, LikelihoodSettings.of(config), TimeLeft())
    if bounds is not None and estimates is not None:
        numbers[CARRIED] = paired.carried(bounds, estimates)
    samples = model.sample(config.window_samples)
    part.keep(samples=samples[:SHOWN])
    numbers = flat(numbers | parzen(samples, dataset))
    if len(numbers.get("annealed_curve", [])) > 1:
        picture = annealing_figure(numbers, f"{model.title}, seed {part.seed} · {dataset.name}", dataset)
        plots.save(picture, run / "annealing.png")
    by_script = {key: saved.get(key) for name in OF_RUN for key in (name, f"{name}_standard_error")}
    return numbers | by_script


def real_digits(dataset: Dataset, count: int, seed: int) -> np.ndarray:
    """`count` training images, or all if there are fewer: (count, *image_shape), in [0, 1]."""
    return np.random.default_rng(seed).permutation(dataset.x_train)[:count]


def centroids(dataset: Dataset, count: int, seed: int) -> np.ndarray:
    """`count` k-means centroids of training images, at most a quarter as many: (count, *image_shape), in [0, 1]."""
    images = dataset.x_train.reshape(len(dataset.x_train), -1)
    # A few rounds from random digits suffice: the question does not need converged centroids.
    clustering = KMeans(min(count, len(images) // 4), init="random", n_init=1, max_iter=5, random_state=seed)
    return clustering.fit(images).cluster_centers_.reshape(-1, *dataset.image_shape)


def window_case(windows, part: Part) -> dict:
    """The log-likelihood by Parzen windows that are not samples of a model, and their number."""
    images = windows(part.dataset, part.config.window_samples, part.seed)
    return flat(parzen(images, part.dataset)) | {"windows": len(images)}


def cases(config: Config, dataset: Dataset) -> dict:
    """A case for each decoder, and for each set of windows without a decoder."""
    named = decoders(config, dataset).items()
    windows = {DIGITS: real_digits, CENTROIDS: centroids}
    return {title: functools.partial(decoder_case, script, own) for title, (script, own) in named} | {
        name: functools.partial(window_case, function) for name, function in windows.items()
    }


def requires(config: Config, dataset: Dataset):
    """Raises RunError unless all training images are in memory, fill a batch, and decoders differ in their names."""
    study.require_in_memory(dataset)
    modules = {scripts.load_script(VAE if name == SHORT else name) for name in config.models}
    study.require_batch(dataset, max(script.Config().batch_size for script in modules))
    if len(decoders(config, dataset)) < len(config.models):
        raise RunError("--few-updates and --updates are the same number of passes over these images; change one")


def rows(declared: Study, results: Results) -> dict[str, dict]:
    """For each row: means and standard deviations over the seeds, and mean standard errors over images.

    The images are the same for every seed, so more seeds do not reduce the standard error.
    """
    rows, vae = {}, vae_name(results.config, results.dataset)
    others = [name for name in decoders(results.config, results.dataset) if vae and name != vae]
    results = paired.with_differences(results, dict.fromkeys(others, vae))
    for name in cases(results.config, results.dataset):
        runs = results.of(name)
        errors = over_seeds(runs, [f"{key}_standard_error" for key in COLUMNS])
        errors = {key: value for key, value in errors.items() if not key.endswith("_sd")}
        title = f"{runs[0]['windows']:,} {name}" if "windows" in runs[0] else name
        rows[title] = over_seeds(runs, COLUMNS) | errors
    return rows


def vae_name(config: Config, dataset: Dataset) -> str | None:
    """The case that others are compared with: the VAE with `updates`; None if it is not among the models."""
    named = decoders(config, dataset).items()
    named = [title for title, (script, own) in named if (script.__name__, own["updates"]) == (VAE, config.updates)]
    return next(iter(named), None)


def cell(means: dict, key: str) -> str:
    """Mean ± standard error over images, and in brackets the standard deviation over seeds."""
    digits = COLUMNS[key].digits
    text, spread = plus_minus(means[key], means[f"{key}_standard_error"], digits), means[f"{key}_sd"]
    return text if spread is None else f"{text} ({plus_minus(spread, None, digits)})"


def reported(results: Results) -> dict[str, tuple]:
    """Log-likelihoods by Parzen windows, with errors, from Table 1 of the AAE paper; empty without preset or MNIST."""
    return dict(study.reported(REPORTED if results.config.preset == "aae_paper" else {}, results.dataset))


def tables(declared: Study, results: Results, rows: dict) -> dict[str, str]:
    """One row per decoder, set of windows and number of the paper; one column per quantity that any row has."""
    shown = {key: metric for key, metric in COLUMNS.items() if any(means[key] is not None for means in rows.values())}
    lines = [[row_title(name, means), *(cell(means, key) for key in shown)] for name, means in rows.items()]
    for name, (value, error) in reported(results).items():
        text = plus_minus(value, error, COLUMNS[PARZEN].digits)
        lines.append([f"{name}, reported", *(text if key == PARZEN else "−" for key in shown)])
    return {"table.md": markdown(["", *(metric.heading for metric in shown.values())], lines)}


def estimates_figure(results: Results, rows: dict):
    """Estimates of log p(x) on the left, Parzen windows on the right, one row per model."""
    config, dataset = results.config, results.dataset

    def series(key):
        return {
            name: (means[key], means[f"{key}_standard_error"]) for name, means in rows.items() if means[key] is not None
        }

    left = {name: points for key, name in ESTIMATES.items() if (points := series(key))}
    right = {"measured here": series(PARZEN)}
    papers = {name: (value, error or 0.0) for name, (value, error) in reported(results).items()}
    if papers:
        right["reported for MNIST (AAE paper, table 1)"] = papers
    return figures.dots(
        {"log p(x), nats per binarised image": left, "log density, nats per grey image": right},
        list(dict.fromkeys((*rows, *papers))),
        f"Log-likelihood of decoders on {dataset.name}, by Parzen windows and by other estimates",
        f"Higher is better within a panel. Mean over test images, with standard errors as bars; "
        f"{of_seeds('mean', config.seeds)}, {results.updates(*decoders(config, dataset))}. Left: {left_text(config)}. "
        f"Right: {min(WINDOW_IMAGES, len(dataset.x_test)):,} images, windows on {config.window_samples:,} samples of "
        "each decoder, on digits, or on centroids. σ was chosen on validation images",
    )


def left_text(config: Config) -> str:
    """Text for the figure on the images and draws of the estimates of log p(x)."""
    annealed = f"{config.chains} chains, {max(config.temperatures):,} temperatures"
    if not config.weighted_samples:
        return f"{config.annealed_images} images, {annealed}"
    return (
        f"{config.weighted_images:,} images, {config.weighted_samples:,} draws. {config.annealed_images} of them are "
        f"annealed ({annealed}); the difference is carried to all"
    )


@own_style()
def samples_figure(results: Results):
    """Test images, and samples of each decoder of the first seed, in groups of rows."""
    config, dataset = results.config, results.dataset
    named = decoders(config, dataset)
    count = min(SHOWN, len(dataset.x_test))
    groups = {"test images": dataset.x_test[:count]}
    groups |= {name: results.pictures(name)["samples"][:count] for name in named}
    images = [tiles.in_rows(tiles.as_images(group), ACROSS) for group in groups.values()]
    figure, axes, _, y = tiles.draw_tiles(
        np.concatenate(images),
        f"Samples of {len(named)} decoders, on {dataset.name}",
        f"Top: grey test images. Below: the decoders' pixel means for z ~ p(z), {config.latent_dim}-D, not selected. "
        f"{results.updates(*named)}, seed {config.seeds[0]}",
        together=len(images[0]),
        left=1.6,
    )
    axes.set_yticks(y.reshape(len(groups), -1).mean(axis=1), list(groups))
    return figure


def all_figures(results: Results, rows: dict) -> dict:
    """Both figures."""
    return {"likelihoods": estimates_figure(results, rows), "samples": samples_figure(results)}


def presets(config: Config) -> dict:
    """The defaults of --preset, and the default name of the folder."""
    words = [config.preset] * (config.preset != "none") + ["quick"] * config.quick
    return PRESETS[config.preset] | {"name": "-".join(words)}


STUDY = Study(
    "comparison.likelihoods", cases, COLUMNS, all_figures, QUICK, requires, rows=rows, tables=tables, presets=presets
)


def main(config: Config = Config()) -> dict:
    """Run the experiment; returns the content of metrics.json."""
    return study.run(STUDY, config)


if __name__ == "__main__":
    run_study(STUDY, Config)
