"""How wrong is T? Compares the estimate of AVB's discriminator with known Kullback-Leibler divergences.

In the first part, q(z|x) is constructed. Only T is trained, by the objective of avb.py, both against the prior and with
adaptive contrast. One training has one q for each of several KLs, and x tells which. The experiment compares T's
estimate with the true KL over training, dimensions, families of q and sizes of T.

In the second part, q(z|x) is learned: AVB with a Gaussian encoder on images, whose KL has a closed form.

Run: python -m experiments.avb.kl_calibration --data mnist.npz (--help lists every flag). --quick is a short run.
Resumes if interrupted. Results in results/avb_kl_calibration/<name>/:

    metrics.json, table.md      means and standard deviations over the seeds
    runs.json                   numbers of every seed, with the estimates during the training
    calibration.png             estimate over true KL, by dimension
    training.png                the same during the training
    size.png                    the same for several sizes of T
    mnist.png                   both KLs of the models trained on images
    a folder per training       history.csv
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

from avb import AVB
from common import networks
from common.binarisation import binarise
from common.config import AtLeast, Factor, Fraction, Positive, PositiveCount, Seed
from common.data import Dataset
from common.measure import test_terms
from common.metrics import METRICS, Metric
from common.model import gaussian_kl, to_numpy
from common.numbers import of_seeds
from common.priors import GaussianPrior
from common.training import Batches, Outcome, epochs_for
from experiments import figures, study
from experiments.avb.course import UPDATES_A_RECORD, Course, Repeated, epochs_of
from experiments.avb.known_kl import FAMILIES, KnownKL
from experiments.study import ImageStudyConfig, Part, Results, Study, run_study

import keras
import numpy as np
from keras import ops

DRAWS = 10_000  # draws from each q for an estimate
MNIST_BATCH = 100  # images per update of the model on images
STEP = 5  # epochs of UPDATES_A_RECORD updates between two estimates
CONTRASTS = ((False, "without contrast", "dashed"), (True, "with contrast", "solid"))
IMAGE_COLUMNS = {key: METRICS[key] for key in ("kl_nats", "kl_estimated_nats", "test_reconstruction_nats")}
QUICK = {
    "data": "sample",
    "dimensions": (8,),
    "updates": 400,
    "mnist_updates": 300,
    "seeds": (0,),
    "sizes": (32,),
}


@dataclass(frozen=True)
class Config(ImageStudyConfig):
    """No parameter was tuned: learning rates are as in avb.py."""

    divergences: tuple[Positive, ...] = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0)  # true KL(q || p) in nats
    dimensions: tuple[PositiveCount, ...] = (2, 8, 32)  # dimensions of z
    discriminator_units: tuple[PositiveCount, ...] = (256, 256)  # ReLU units per layer of T
    sizes: tuple[PositiveCount, ...] = (32, 128, 512)  # units in each of T's two layers, for the sweep over T's size
    size_dimension: PositiveCount = 8  # dimensions of z in the sweep over T's size
    draws: PositiveCount = 64  # codes from each q per update
    updates: Annotated[int, AtLeast(UPDATES_A_RECORD)] = 5000  # updates of T, rounded down to whole hundreds
    learning_rate: Positive = 1e-3  # Adam's rate at the start
    final_rate_factor: Factor = 0.05  # the rate falls along a cosine to this factor times learning_rate
    beta_1: Fraction = 0.5  # Adam's decay of the mean gradient
    discriminator_rate_factor: Factor = 2.0  # factor on learning_rate for the discriminator
    seeds: tuple[Seed, ...] = (0, 1, 2)  # random seeds of weights and noise
    mnist_latent_dim: PositiveCount = 8  # dimensions of the code of the model on images
    mnist_units: tuple[PositiveCount, ...] = (300, 300)  # ReLU units per layer of the model on images
    mnist_updates: PositiveCount = 8250  # optimiser steps of the model on images: 15 passes over MNIST
    encoder_rate_factor: Factor = 1.0  # factor on learning_rate for the encoder of the model on images
    decoder_rate_factor: Factor = 1.0  # factor on learning_rate for the decoder of the model on images


# Known divergences


def estimates(model: AVB, count: int) -> dict[str, list[float]]:
    """The mean of T + log r - log p over new draws from q, in nats: "estimates" for each of `count` posteriors."""
    means = []
    for row in np.eye(count, dtype="float32"):
        x = ops.convert_to_tensor(np.tile(row, (DRAWS, 1)))
        means.append(float(to_numpy(ops.mean(model.divergences(x, model.infer(x))["kl_estimated_nats"]))))
    return {"estimates": means}


def calibrated(family: str, dimensions: int, units, contrast: bool, part: Part) -> dict:
    """Train T, with `units` per layer, on one q per divergence; returns last estimates over true KLs, and "course"."""
    config, epochs, count = part.config, epochs_of(part.config), len(part.config.divergences)
    model = KnownKL(
        np.array([FAMILIES[family](divergence, dimensions) for divergence in config.divergences]),
        adaptive_contrast=contrast,
        prior=GaussianPrior(dimensions),
        seed=part.seed,
        discriminator=networks.pair_discriminator((count,), dimensions, units, np.random.default_rng(part.seed)),
    )
    course = Course(part.folder, epochs, STEP, partial(estimates, count=count))
    batch = Repeated(np.tile(np.eye(count, dtype="float32"), (config.draws, 1)))
    part.train(model, config, batch, epochs=epochs, measures=[course])
    last = course.points[-1]["estimates"] if course.points else [np.nan] * count
    ratios = np.array(last) / config.divergences
    return dict(zip(ratio_columns(config), ratios.tolist(), strict=True)) | {"course": course.columns()}


def ratio_columns(config: Config) -> dict[str, Metric]:
    """One column per divergence."""
    return {
        f"ratio_{divergence}": Metric(f"estimate / KL of {divergence:g} nats", "", 2, 1, "T's estimate over the truth")
        for divergence in config.divergences
    }


# Learned divergences


class GaussianAVB(AVB):
    """AVB whose loss has T's KL, although q(z|x) is a Gaussian with a known KL."""

    title = "AVB, Gaussian encoder"
    posterior = "gaussian"

    def __init__(self, **kwargs):
        super().__init__(noise_basis=0, noise_dim=0, **kwargs)

    def infer(self, x):
        mean, log_var = ops.split(self.encoder(x), 2, axis=-1)  # (batch, latent_dim) each
        variance = ops.exp(log_var)
        z = mean + ops.sqrt(variance) * self.noise(ops.shape(mean))
        return {"z": z, "mean": mean, "log_var": log_var, "variance": variance}

    def divergences(self, x, outputs):
        return super().divergences(x, outputs) | {"kl_nats": gaussian_kl(outputs["mean"], outputs["log_var"])}


class Divergences(keras.callbacks.Callback):
    """Writes the IMAGE_COLUMNS for images (n, *image_shape) into the logs of every epoch."""

    def __init__(self, images: np.ndarray):
        super().__init__()
        self.images = images

    def on_epoch_end(self, epoch, logs=None):
        terms = test_terms(self.model, self.images)
        logs.update({key: terms[key].value for key in IMAGE_COLUMNS})


def learned(contrast: bool, part: Part) -> dict:
    """Train the Gaussian encoder on T's KL; returns both KLs of test images at the end, and, as "course", per epoch."""
    config, dataset, random = part.config, part.dataset, np.random.default_rng(part.seed)
    shape, dimensions, units = dataset.image_shape, config.mnist_latent_dim, config.mnist_units
    model = GaussianAVB(
        adaptive_contrast=contrast,
        prior=GaussianPrior(dimensions),
        seed=part.seed,
        encoder=networks.encoder(shape, 2 * dimensions, units, random),
        decoder=networks.decoder(dimensions, shape, units, random),
        discriminator=networks.pair_discriminator(shape, dimensions, units, random),
    )
    outcome = part.train(
        model,
        config,
        Batches(dataset.x_train, MNIST_BATCH, "dynamic", part.seed),
        epochs=epochs_for(config.mnist_updates, len(dataset.x_train), MNIST_BATCH),
        measures=[Divergences(binarise(dataset.x_test, "dynamic", np.random.default_rng(part.seed)))],
    )
    course = finite_epochs(outcome)
    return {key: course[key][-1] for key in IMAGE_COLUMNS if course} | {"course": course}


def finite_epochs(outcome: Outcome) -> dict[str, list[float]]:
    """The IMAGE_COLUMNS of each epoch; without the last epoch if the training stopped in it. It can be empty."""
    count = len(outcome.history["updates"]) - (outcome.stopped_by is not None)
    return {key: outcome.history[key][:count] for key in ("updates", *IMAGE_COLUMNS) if count}


# The experiment


def trainings(config: Config) -> dict[str, tuple]:
    """Family, dimensions and T's units of every training of T alone, by its name."""
    by_family = {
        f"{family}, {dimensions}-D": (family, dimensions, config.discriminator_units)
        for family in FAMILIES
        for dimensions in config.dimensions
    }
    return by_family | {
        name_of_size(config, size): ("mixture of two", config.size_dimension, (size, size)) for size in config.sizes
    }


def name_of_size(config: Config, size: int) -> str:
    """The name of a training with another size of T."""
    return f"mixture of two, {config.size_dimension}-D, T of {size} units"


def cases(config: Config, dataset: Dataset) -> dict:
    """Every training of T alone and the training on images, each without and with contrast."""
    functions = {}
    for contrast, words, _ in CONTRASTS:
        for name, settings in trainings(config).items():
            functions[f"{name}, {words}"] = partial(calibrated, *settings, contrast)
        functions[f"trained on images, {words}"] = partial(learned, contrast)
    return functions


def requires(config: Config, dataset: Dataset):
    """Raises RunError if there are too few training images for a batch."""
    study.require_batch(dataset, MNIST_BATCH)


def rows_of_cases(declared: Study, results: Results) -> dict[str, dict]:
    """One row per case: mean and standard deviation over the seeds."""
    keys = (*ratio_columns(results.config), "updates")
    means = {}
    for case in cases(results.config, results.dataset):
        on_images = case.startswith("trained on images")
        means[case] = results.means(case, (*IMAGE_COLUMNS, "updates") if on_images else keys)
    return means


def tables(declared: Study, results: Results, rows: dict) -> dict[str, str]:
    """T's estimate over the true KL, one column per divergence; below, both KLs of the models trained on images."""
    on_images = {case: means for case, means in rows.items() if case.startswith("trained on images")}
    known = {case: means for case, means in rows.items() if case not in on_images}
    parts = (study.table(known, ratio_columns(results.config)), study.table(on_images, IMAGE_COLUMNS))
    return {"table.md": "\n".join(parts)}


def all_figures(results: Results, rows: dict) -> dict:
    """Estimate over true KL by divergence, by update and by T's size; and both KLs of the models on images."""
    shown = {
        "calibration": calibration_figure(results),
        "training": training_figure(results),
        "size": size_figure(results),
        "mnist": mnist_figure(results),
    }
    return {name: figure for name, figure in shown.items() if figure}


def last_ratios(results: Results, case: str, line: str = "solid") -> figures.Curve:
    """The last estimate over the true KL, against the true KL."""
    keys = ratio_columns(results.config)
    values = np.array([[run[key] for key in keys] for run in results.of(case)], float)  # NaN for null
    return figures.Curve(np.array(results.config.divergences), values, line)


def calibration_figure(results: Results):
    """Estimate over true KL, against the true KL, one panel per dimension."""
    config = results.config
    panels = {
        f"T's estimate / true KL, {dimensions}-D": {
            f"{family}: {words}": last_ratios(results, f"{family}, {dimensions}-D, {words}", line)
            for family in FAMILIES
            for _, words, line in CONTRASTS
        }
        for dimensions in config.dimensions
    }
    names = [f"{family}, {dimensions}-D" for family in FAMILIES for dimensions in config.dimensions]
    updates = results.updates(*(f"{name}, {words}" for name in names for _, words, _ in CONTRASTS))
    return figures.bands(
        panels,
        "true KL(q ‖ p), nats",
        "How far T can be trusted: its estimate over the true KL",
        f"p = N(0, I). One T of {' × '.join(map(str, config.discriminator_units))} units for all divergences, "
        f"{updates}. Estimates from {DRAWS:,} new codes each; {of_seeds('mean and range', config.seeds)}",
        {label: [(1.0, "exact")] for label in panels},
        x_scale="log",
        shared=True,
    )


def courses_of(results: Results, case: str) -> list[dict]:
    """The measurements during each seed's training, without trainings that stopped before the first measurement."""
    return [run["course"] for run in results.of(case) if run["course"]]


def training_figure(results: Results):
    """Estimate over true KL against the updates, one panel with and one without contrast."""
    config, panels = results.config, {}
    dimensions = config.size_dimension if config.size_dimension in config.dimensions else config.dimensions[0]
    for _, words, _ in CONTRASTS:
        courses = courses_of(results, f"mixture of two, {dimensions}-D, {words}")
        for number, divergence in enumerate(config.divergences):
            ratios = [
                {"updates": course["updates"], "ratio": np.array(course["estimates"])[:, number] / divergence}
                for course in courses
            ]
            if ratios:
                curves = panels.setdefault(f"T's estimate / true KL, {words}", {})
                curves[f"{divergence:g} nats"] = figures.curve_of(ratios, "ratio")
    return panels and figures.bands(
        panels,
        "updates",
        "Does more training make T right?",
        f"q: a mixture of two Gaussians in {dimensions} dimensions; p = N(0, I). One colour per true KL; "
        f"{of_seeds('mean and range', config.seeds)}",
        {label: [(1.0, "exact")] for label in panels},
        shared=True,
    )


def size_figure(results: Results):
    """Estimate over true KL for several sizes of T."""
    config = results.config
    panels = {
        f"T's estimate / true KL, {words}": {
            f"2 × {size} units": last_ratios(results, f"{name_of_size(config, size)}, {words}") for size in config.sizes
        }
        for _, words, _ in CONTRASTS
    }
    updates = results.updates(
        *(f"{name_of_size(config, size)}, {words}" for size in config.sizes for _, words, _ in CONTRASTS)
    )
    return figures.bands(
        panels,
        "true KL(q ‖ p), nats",
        "Does a larger T make it right?",
        f"q: a mixture of two Gaussians in {config.size_dimension} dimensions; p = N(0, I). {updates}; "
        f"{of_seeds('mean and range', config.seeds)}",
        {label: [(1.0, "exact")] for label in panels},
        x_scale="log",
        shared=True,
    )


def mnist_figure(results: Results):
    """Both KLs of the models on images, over training."""
    config, dataset, panels = results.config, results.dataset, {}
    for _, words, _ in CONTRASTS:
        if courses := courses_of(results, f"trained on images, {words}"):
            panels[f"KL(q(z|x) ‖ p(z)), nats, {words}"] = {
                "true, in closed form": figures.curve_of(courses, "kl_nats"),
                "T's estimate": figures.curve_of(courses, "kl_estimated_nats")._replace(line="dashed"),
            }
    return panels and figures.bands(
        panels,
        "updates",
        "A Gaussian encoder trained on T's estimate, and its true KL",
        f"{config.mnist_latent_dim}-D codes of {len(dataset.x_test):,} dynamically binarised test images of "
        f"{dataset.name}; {of_seeds('mean and range', config.seeds)}",
        skipped=0.1,
    )


STUDY = Study(
    "avb.kl_calibration", cases, IMAGE_COLUMNS, all_figures, QUICK, requires, rows=rows_of_cases, tables=tables
)


def main(config: Config = Config()) -> dict:
    """Run the experiment; returns the content of metrics.json."""
    return study.run(STUDY, config)


if __name__ == "__main__":
    run_study(STUDY, Config)
