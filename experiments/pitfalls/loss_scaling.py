"""Why was the KL near zero, the code like noise, and the digits good? An earlier VAE, corrected step by step.

An earlier Keras notebook, 784-256-256-128 units, took the mean of the cross-entropy over 784 pixels, and of the KL over
128 dimensions. It reported a KL of 0.028, and called its code useless. A bound on log p(x) has sums in place of these
means. On sums, the notebook's objective is

    E_x E_q(z|x) [ -log p(x|z) ] + beta E_x KL(q(z|x) || p(z)),   beta = 784 / 128 = 6.1

The notebook made one more mistake. It read s, the encoder's second output, as log sigma to draw z, and as log sigma^2
in the KL. So beta weighed the KL of another q(z|x), wider than the one that z was drawn from. This experiment turns the
objective into the evidence lower bound (Kingma & Welling, arXiv 1312.6114) in three steps:

    1  s is read in one way
    2  sums replace means, with the same beta: RMSprop behaves differently when gradients are 784 times smaller
    3  beta is 1

There are further settings. One has a mean over pixels with a sum over the code, so beta = 784. The others have other
weights on sums (beta-VAE; Higgins et al., ICLR 2017). Every KL is that of the q(z|x) from which z is drawn. The one
exception is the KL "as reported", which is the KL in the loss.

A dimension u of the code is live if Var_x(E[z_u|x]) > 0.01 (an active unit; Burda et al., arXiv 1509.00519), else dead.
A resampled dimension is drawn from the prior instead of q(z|x). If the decoder does not use it, its images stay the
same.

Run: python -m experiments.pitfalls.loss_scaling --data mnist.npz (--help lists every flag). --quick is a short run on
the sample. Resumes if interrupted. Results in results/pitfalls_loss_scaling/<name>/:

    metrics.json, table.md      means and standard deviations over the seeds
    runs.json                   numbers of every seed
    dimensions.png              the KL of each dimension, and reconstructions
    resampled.png               images from codes with resampled dimensions
    beta.png                    numbers against beta
    a folder per training       history.csv and, for the first seed, pictures
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated, NamedTuple

import vae_baseline
from common.config import AtLeast, Positive, PositiveCount
from common.data import Dataset
from common.evaluation import latent, probes, reconstruction
from common.likelihoods import bernoulli_log_likelihood
from common.measure import log_density, test_terms, training_inferred
from common.measure_likelihood import LikelihoodSettings, importance_weighted
from common.metrics import METRICS, Metric
from common.model import to_numpy
from common.numbers import Estimate, mean_of, of_seeds
from common.progress import TimeLeft
from common.training import Batches
from experiments import figures, study
from experiments.pitfalls.mistakes import MistakenVAE, mistaken_vae
from experiments.study import ImageStudyConfig, Part, Results, Study, run_study

import keras
import numpy as np
from keras import ops


class Setting(NamedTuple):
    """An objective: its mistakes, which `MistakenVAE` explains, and the weight of its KL."""

    mistakes: dict[str, bool]
    beta: float = 1.0


EARLIER, ONE_READING, SUMS, ELBO = "as it was", "s read in one way", "and sums, the same β", "and β = 1: the ELBO"
PIXEL_MEAN = "mean over pixels alone"
MEANS = {"pixel_mean": True, "code_mean": True}
COLUMNS = {
    "kl_reported_nats": Metric("KL as reported", "nats", 3, "", "the KL in the loss, a mean over dimensions"),
    "kl_nats": METRICS["kl_nats"],
    "active_units": METRICS["active_units"],
    "kl_of_live_nats": Metric("KL of the live dimensions", "nats", 1, "", "the KL's part in the active units"),
    "mutual_information_nats": METRICS["mutual_information_nats"],
    "test_reconstruction_nats": METRICS["test_reconstruction_nats"],
    "dead_resampled_nats": Metric(
        "the same, dead dimensions resampled", "nats", 1, "", "dead ones drawn from the prior"
    ),
    "live_resampled_nats": Metric(
        "the same, live dimensions resampled", "nats", 1, "", "live ones drawn from the prior"
    ),
    "mean_knn_accuracy": METRICS["code_knn_accuracy"]._replace(title="class by 15 nearest mean codes"),
    "code_knn_accuracy": METRICS["code_knn_accuracy"],
    "elbo_binarised_nats": METRICS["elbo_binarised_nats"],
    "importance_weighted_bound_nats": METRICS["importance_weighted_bound_nats"],
}
WEIGHTED_SAMPLES = 1000  # draws for each image of the importance-weighted bound
SHOWN = 12  # images in the figures
QUICK = {"data": "sample", "epochs": 8, "seeds": (0,), "weighted_images": 50}


@dataclass(frozen=True)
class Config(ImageStudyConfig):
    """The earlier notebook's parameters, which all settings share."""

    latent_dim: PositiveCount = 128  # dimensions of z
    hidden_units: tuple[PositiveCount, ...] = (256, 256)  # ReLU units per layer, both networks
    epochs: PositiveCount = 32  # passes over the training images
    batch_size: PositiveCount = 32  # images per update
    learning_rate: Positive = 1e-3  # RMSprop's constant rate
    betas: tuple[Positive, ...] = (0.1, 2.5, 25.0, 784.0)  # further weights of the KL, where both terms are sums
    weighted_images: Annotated[int, AtLeast(2)] = 500  # test images for the importance-weighted bound


def settings(config: Config, pixels: int) -> dict[str, Setting]:
    """The steps from the notebook to the ELBO, a mean over pixels with a sum over the code, and further betas."""
    means = Setting(MEANS)
    steps = {
        EARLIER: Setting(MEANS | {"two_readings": True}),
        ONE_READING: means,
        SUMS: Setting({}, effective_beta(means, pixels, config.latent_dim)),
        ELBO: Setting({}),
        PIXEL_MEAN: Setting({"pixel_mean": True}),
    }
    further = [Setting({}, beta) for beta in config.betas]
    return steps | {f"β = {one.beta:.12g} on sums": one for one in further if one not in steps.values()}


def effective_beta(setting: Setting, pixels: int, latent_dim: int) -> float:
    """The weight of the KL, summed over dimensions, against a reconstruction summed over pixels.

    The KL is the one in the loss, with or without `two_readings`. A mean over n is 1 / n of the sum. A common factor of
    both terms does not change the optimum, but it can change the optimiser's steps. RMSprop divides by
    sqrt(E[g^2] + 1e-7), which makes steps smaller where gradients g are below 3e-4.
    """
    of_pixels = 1.0 / pixels if setting.mistakes.get("pixel_mean") else 1.0
    of_code = 1.0 / latent_dim if setting.mistakes.get("code_mean") else 1.0
    return setting.beta * of_code / of_pixels


def rmsprop(model, config: Config, updates: int) -> keras.optimizers.Optimizer:
    """The earlier notebook's optimiser."""
    return keras.optimizers.RMSprop(config.learning_rate)


def build(own: vae_baseline.Config, setting: Setting, image_shape) -> MistakenVAE:
    """The untrained model: the same networks and initial weights for every setting of a seed."""
    model = mistaken_vae(own, setting.mistakes, image_shape)
    model.faster_with_xla = False  # batches are small: on one core, an epoch takes 7 s without XLA and 13 s with it
    return model


def own_config(config: Config, setting: Setting, seed: int) -> vae_baseline.Config:
    """The Config of vae_baseline.py, on grey images."""
    return study.script_config(vae_baseline, config, seed, beta=setting.beta)


def case(setting: Setting, part: Part) -> dict:
    """Train with a setting, and measure on test images."""
    config, dataset = part.config, part.dataset
    own = own_config(config, setting, part.seed)
    model = build(own, setting, dataset.image_shape)
    batches = Batches(dataset.x_train, config.batch_size, own.binarisation, part.seed)
    part.train(model, config, batches, dataset.x_val, epochs=config.epochs, optimizer=rmsprop)
    inferred = model.inferred(dataset.x_test)
    kls = latent.kl_per_dimension(inferred["mean"], inferred["log_var"])
    live = latent.active_dimensions(inferred["mean"])
    prior = model.prior_codes(len(dataset.x_test))
    versions = {  # three versions of the test images' codes
        "drawn": inferred["z"],
        "dead_resampled": resampled(inferred["z"], ~live, prior),
        "live_resampled": resampled(inferred["z"], live, prior),
    }
    numbers = measured(model, part, own, inferred, versions)
    numbers |= {
        "active_units": int(live.sum()),
        "kl_of_live_nats": float(kls[live].sum()),
        "kl_per_dimension_nats": kls,
    }
    images = {name: model.decode(codes[:SHOWN]) for name, codes in versions.items()}
    part.keep(**images, kls=np.sort(kls)[::-1], live=live.sum())
    return numbers


def measured(model: MistakenVAE, part: Part, own: vae_baseline.Config, inferred: dict, versions: dict) -> dict:
    """Terms, reconstructions from the `versions` of the codes, information, class accuracy and bounds on log p(x)."""
    x_test = part.dataset.x_test
    numbers = test_terms(model, x_test)
    numbers["kl_reported_nats"] = Estimate(*(number / own.latent_dim for number in numbers["kl_stated_nats"]))
    for name in ("dead_resampled", "live_resampled"):
        numbers[f"{name}_nats"] = reconstruction_of(model, x_test, versions[name])
    means, log_vars, codes = (inferred[key] for key in ("mean", "log_var", "z"))
    numbers |= latent.elbo_surgery(means, log_vars, codes, log_density(model.prior)(codes))
    numbers |= class_accuracies(model, part.dataset, own, inferred)
    weighted = LikelihoodSettings(0, 0, (), part.config.weighted_images, WEIGHTED_SAMPLES)
    return numbers | importance_weighted(model, part.dataset, weighted, TimeLeft())[0]


def resampled(codes: np.ndarray, dimensions: np.ndarray, prior_draws: np.ndarray) -> np.ndarray:
    """`codes` with some dimensions replaced by those of `prior_draws`, both (n, latent_dim).

    `dimensions`: (latent_dim,) truth values, true where a dimension is replaced.
    """
    return np.where(dimensions, prior_draws, codes)


def reconstruction_of(model: MistakenVAE, images: np.ndarray, codes: np.ndarray) -> Estimate:
    """-log p(x|z) in nats, summed over pixels, for images (n, *image_shape) from codes (n, latent_dim)."""
    parts = []
    for rows in model.batches(len(images)):
        x, z = (ops.convert_to_tensor(array[rows], "float32") for array in (images, codes))
        parts.append(to_numpy(-bernoulli_log_likelihood(x, model.decoder(z))))
    return mean_of(np.concatenate(parts))


def class_accuracies(model: MistakenVAE, dataset: Dataset, own: vae_baseline.Config, inferred: dict) -> dict:
    """Accuracy of a test image's class by the nearest training codes: of mean codes E[z|x], and of drawn codes."""
    known, labels = training_inferred(model, dataset, own, ("mean", "z"))
    return {
        f"{name}_knn_accuracy": probes.probe_accuracy("knn", known[key], labels, inferred[key], dataset.y_test)
        for name, key in (("mean", "mean"), ("code", "z"))
    }


def pixels_of(dataset: Dataset) -> int:
    """The number of pixels of an image."""
    return math.prod(dataset.image_shape)


def cases(config: Config, dataset: Dataset) -> dict:
    """A case for each setting."""
    return {name: partial(case, setting) for name, setting in settings(config, pixels_of(dataset)).items()}


def requires(config: Config, dataset: Dataset):
    """Raises RunError unless there are labels, and enough images for a batch."""
    study.require_labels(dataset)
    study.require_batch(dataset, config.batch_size)


def rows(declared: Study, results: Results) -> dict[str, dict]:
    """One row per setting, with its effective beta."""
    config, pixels = results.config, pixels_of(results.dataset)
    means = study.rows_of_cases(declared, results)
    for name, setting in settings(config, pixels).items():
        means[name]["effective_beta"] = effective_beta(setting, pixels, config.latent_dim)
    return means


def tables(declared: Study, results: Results, metrics: dict) -> dict[str, str]:
    """One row per setting, with its effective beta first."""
    betas = {name: f"{means['effective_beta']:.3g}" for name, means in metrics.items()}
    return {"table.md": study.table(metrics, COLUMNS, {"β on sums": betas}) + notes(results.config, results.dataset)}


def notes(config: Config, dataset: Dataset) -> str:
    """A note below the table on the images and draws of its columns."""
    images, few = len(dataset.x_test), min(config.weighted_images, len(dataset.x_test))
    return (
        f"\n{images:,} grey test images. ELBO and bound: {few:,} binarised images, {WEIGHTED_SAMPLES:,} draws each. "
        f'I(x; z) by ELBO surgery is at most log {images:,} = {math.log(images):.1f} nats. In the row "{EARLIER}", β '
        "weighs the reported KL times the dimensions, not the KL of the z that are drawn.\n"
    )


def all_figures(results: Results, metrics: dict) -> dict:
    """Spectra of the KL, pictures from resampled codes, and numbers against beta."""
    return {
        "dimensions": dimensions_figure(results, metrics),
        "resampled": resampled_figure(results, metrics),
        "beta": beta_figure(results, metrics),
    }


def shown_name(name: str) -> str:
    """A setting's name in a list that is not in the order of the steps."""
    return name.removeprefix("and ")


def by_beta(metrics: dict) -> dict:
    """`metrics` from the smallest effective beta to the largest."""
    return dict(sorted(metrics.items(), key=lambda item: item[1]["effective_beta"]))


def dimensions_figure(results: Results, metrics: dict):
    """One row per setting: the KL of each dimension, largest first, and reconstructions of test images."""
    config, dataset, spectra = results.config, results.dataset, {}
    for name, means in by_beta(metrics).items():
        pictures = results.pictures(name)
        title = shown_name(name) if "β =" in name else f"{shown_name(name)}\nβ = {means['effective_beta']:.3g}"
        kl, live, error = (
            COLUMNS[key].cell(means, key) for key in ("kl_nats", "active_units", "test_reconstruction_nats")
        )
        text = f"KL {kl}, {live} live, reconstruction {error} nats"
        spectra[title] = figures.Spectrum(pictures["kls"], pictures["drawn"], text)
    return figures.spectra(
        spectra,
        dataset.x_test[:SHOWN],
        f"A KL that is small on average, on {dataset.name}: the KL of each of {config.latent_dim} dimensions",
        f"Left: KL of each dimension of q(z|x) to the prior, averaged over {len(dataset.x_test):,} grey test images, "
        f"largest first. Right: the first of those images at the top, and the decoder's pixel means for z ~ q(z|x). "
        f"Pictures: seed {config.seeds[0]}. Numbers: {of_seeds('mean ± standard deviation', config.seeds)}. "
        f"{results.updates(*metrics)} each, the same networks. A dimension is live if the variance of E[z|x] over "
        "images is above 0.01",
        "dimension of the code, by its KL",
        "KL, nats",
    )


def resampled_figure(results: Results, metrics: dict):
    """Decoded images from codes whose dead, or live, dimensions are drawn from the prior."""
    config, dataset, tiles, names, texts = results.config, results.dataset, [], [], []
    keys = ("test_reconstruction_nats", "dead_resampled_nats", "live_resampled_nats")
    for name in (EARLIER, ELBO):
        pictures = results.pictures(name)
        live = int(pictures["live"])
        tiles += [dataset.x_test[:SHOWN], *(pictures[key] for key in ("drawn", "dead_resampled", "live_resampled"))]
        names += ["original", "z ~ q(z|x)", f"{config.latent_dim - live} dead\nresampled", f"{live} live\nresampled"]
        drawn, dead_resampled, live_resampled = (COLUMNS[key].cell(metrics[name], key) for key in keys)
        texts.append(f"{shown_name(name)}: {drawn}; dead resampled: {dead_resampled}; live resampled: {live_resampled}")
    mean_image = reconstruction.mean_image_cross_entropy(dataset.x_train, dataset.x_test)
    return figures.named_tiles(
        np.stack(tiles),
        names,
        [str(number) for number in range(1, len(tiles[0]) + 1)],
        "test image",
        f"Which dimensions does the decoder use? On {dataset.name}",
        f"Decoder's pixel means. Upper four rows: {EARLIER}. Lower four rows: the ELBO. Resampled dimensions are drawn "
        f"from the prior. Reconstruction of {len(dataset.x_test):,} grey test images, nats. {'. '.join(texts)}. The "
        f"mean image: {mean_image:.1f}. Pictures: seed {config.seeds[0]}, {results.updates(EARLIER, ELBO)}. Numbers: "
        f"{of_seeds('mean ± standard deviation', config.seeds)}",
        together=4,
    )


def beta_figure(results: Results, metrics: dict):
    """Numbers against the effective beta: sums as a line; means over pixels, whose gradients are smaller, as points.

    The notebook as it was is left out, since its beta weighs another KL than that of the z that are drawn.
    """
    config, dataset = results.config, results.dataset
    betas = {name: means["effective_beta"] for name, means in by_beta(metrics).items()}
    means = [name for name in betas if name in (ONE_READING, PIXEL_MEAN)]
    series = {
        "both terms sums": ([name for name in betas if name not in (EARLIER, *means)], "solid"),
        "a mean over the pixels": (means, "none"),
    }
    panels = {
        COLUMNS[key].heading: {
            title: figures.Curve(
                np.array([betas[name] for name in names]),
                np.array([[run[key] for run in results.of(name)] for name in names]).T,
                line,
            )
            for title, (names, line) in series.items()
        }
        for key in ("kl_nats", "active_units", "mutual_information_nats", "test_reconstruction_nats")
    }
    mean_image = reconstruction.mean_image_cross_entropy(dataset.x_train, dataset.x_test)
    return figures.bands(
        panels,
        "β on sums",
        f"The effect of the KL's weight, on {dataset.name}",
        f"{config.latent_dim}-D code, {results.updates(*metrics)}, {len(dataset.x_test):,} grey test images; "
        f"{of_seeds('mean and range', config.seeds)}. I(x; z) is at most log {len(dataset.x_test):,} = "
        f"{math.log(len(dataset.x_test)):.1f} nats by ELBO surgery. Means over pixels and code give "
        f"β = {betas[ONE_READING]:.3g}. A mean over pixels with a sum over the code gives β = {betas[PIXEL_MEAN]:.3g}. "
        "Both read s in one way",
        references={COLUMNS["test_reconstruction_nats"].heading: [(mean_image, "the mean image")]},
        x_scale="log",
    )


STUDY = Study("pitfalls.loss_scaling", cases, COLUMNS, all_figures, QUICK, requires, rows=rows, tables=tables)


def main(config: Config = Config()) -> dict:
    """Run the experiment; returns the content of metrics.json."""
    return study.run(STUDY, config)


if __name__ == "__main__":
    run_study(STUDY, Config)
