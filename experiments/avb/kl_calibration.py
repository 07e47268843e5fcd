"""How wrong is T? AVB's discriminator beside Kullback-Leibler divergences that are known.

First where q(z|x) is made up: T alone is trained, by avb.py's own objective, against the prior and with adaptive
contrast, on one q for each of several KLs (x says which), and its estimate is compared with the truth over training,
dimensions, families of q and sizes of T. Then where q(z|x) is learned: AVB with a Gaussian encoder on MNIST, whose KL
has a closed form.

Run: python -m experiments.kl_calibration --data mnist.npz (--help lists every flag); --quick for a first look.
Leaves in results/kl_calibration/<name>/: metrics.json, runs.json (the course of every training), and the figures
calibration.png, training.png, size.png and mnist.png. What is there already is not made again.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from avb import AVB
from common import networks, plots
from common.command import run_main
from common.config import Factor, Fraction, Positive, PositiveCount, Seed, check
from common.data import Dataset, binarise, load_mnist
from common.files import write_json
from common.measure import test_terms
from common.model import gaussian_kl, to_numpy
from common.numbers import of_seeds
from common.priors import GaussianPrior
from common.progress import TimeLeft
from common.training import Batches, StopOnNonFinite, compile_model
from experiments import figures
from experiments.avb.toy import UPDATES_A_RECORD, fit
from experiments.study import claim_folder, each_once, quickened, require_images

import keras
import numpy as np
from keras import ops
from scipy.integrate import quad
from scipy.optimize import brentq

DRAWS = 10_000  # of each q, for an estimate
MNIST_BATCH = 100  # images an update of the trained model
STEP = 5  # records of a training that make one point of its curve
QUICK = {
    "data": "sample",
    "dimensions": (8,),
    "updates": 400,
    "mnist_updates": 300,
    "seeds": (0,),
    "sizes": (32,),
}


@dataclass(frozen=True)
class Config:
    """Nothing was tuned: rates are those of avb.py."""

    data: str = "auto"  # auto, mnist, fashion_mnist, sample, or the path of an .npz or .npy file
    divergences: tuple[Positive, ...] = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0)  # true KL(q || p), nats
    dimensions: tuple[PositiveCount, ...] = (2, 8, 32)  # of z
    discriminator_units: tuple[PositiveCount, ...] = (256, 256)  # ReLU units a layer of T
    sizes: tuple[PositiveCount, ...] = (32, 128, 512)  # units of each of T's two layers where the size is varied
    size_dimension: PositiveCount = 8  # of z where T's size is varied
    draws: PositiveCount = 64  # codes of each q in an update
    updates: PositiveCount = 5000  # steps of T
    learning_rate: Positive = 1e-3  # of Adam, at the start
    final_rate_factor: Factor = 0.05  # times learning_rate: where a cosine takes it by the last update
    beta_1: Fraction = 0.5  # Adam's decay of the mean gradient
    discriminator_rate_factor: Factor = 2.0  # times learning_rate
    seeds: tuple[Seed, ...] = (0, 1, 2)  # of weights and noise
    mnist_latent_dim: PositiveCount = 8  # dimensions of the trained model's code
    mnist_units: tuple[PositiveCount, ...] = (300, 300)  # ReLU units a layer of its networks
    mnist_updates: PositiveCount = 8250  # steps of its training: 15 passes over MNIST
    encoder_rate_factor: Factor = 1.0  # times learning_rate, of the trained model
    decoder_rate_factor: Factor = 1.0  # times learning_rate, of the trained model
    quick: bool = False  # whatever is not asked for is small: one dimension, one seed, few updates
    results: str = "results"  # the folder of all runs
    name: str = ""  # the folder below results/kl_calibration/; "default" or "quick" if empty
    resume: str = ""  # the folder of a run that was stopped: go on with it, and with its parameters


# What is known


def narrowed(divergence: float, dimensions: int) -> float:
    """The s below 1 for which KL(N(0, s^2 I) || N(0, I)) is `divergence` nats."""
    kl = divergence / dimensions
    log_variance = brentq(lambda v: 0.5 * (np.exp(v) - 1.0 - v) - kl, -2.0 * kl - 2.0, 0.0)
    return float(np.exp(0.5 * log_variance))


def mixture_kl(shift: float, scale: float, dimensions: int) -> float:
    """KL of two equal Gaussians of deviation `scale` at +-`shift` on the first axis to N(0, I), by quadrature."""
    ratio = shift / scale

    def entropy_part(u):
        log_q = np.logaddexp(-0.5 * (u - ratio) ** 2, -0.5 * (u + ratio) ** 2) - 0.5 * np.log(8.0 * np.pi)
        return -np.exp(log_q) * log_q

    entropy = 2.0 * quad(entropy_part, max(0.0, ratio - 12.0), ratio + 12.0, limit=200)[0] + np.log(scale)
    first = 0.5 * (np.log(2.0 * np.pi) + shift**2 + scale**2) - entropy
    return first + (dimensions - 1) * 0.5 * (scale**2 - 1.0 - 2.0 * np.log(scale))


def shifted(divergence: float, dimensions: int) -> tuple[float, float, int]:
    """N(shift e_1, I): shift, scale and number of modes."""
    return float(np.sqrt(2.0 * divergence)), 1.0, 1


def shifted_and_narrowed(divergence: float, dimensions: int) -> tuple[float, float, int]:
    """N(shift e_1, scale^2 I), half of the KL from each."""
    return float(np.sqrt(divergence)), narrowed(0.5 * divergence, dimensions), 1


def mixture(divergence: float, dimensions: int) -> tuple[float, float, int]:
    """Two equal Gaussians at +-shift e_1: half of the KL is that of their width."""
    scale = narrowed(0.5 * divergence, dimensions)
    shift = brentq(lambda a: mixture_kl(a, scale, dimensions) - divergence, 1e-6, 2.0 * np.sqrt(divergence) + 4.0)
    return float(shift), scale, 2


FAMILIES = {"shifted": shifted, "shifted and narrowed": shifted_and_narrowed, "mixture of two": mixture}


class KnownKL(AVB):
    """T alone: q(z|x) is fixed, row x of one-hot rows names the shift, scale and modes of the first axis."""

    terms = ("discriminator",)

    def __init__(self, family: np.ndarray, **kwargs):
        super().__init__(noise_basis=0, noise_dim=0, **kwargs)
        self.shift, self.scale, self.modes = (ops.convert_to_tensor(column, "float32") for column in family.T)

    def call(self, x, training=False):
        return self.infer(x)

    def infer(self, x):
        shift, scale, modes = (ops.matmul(x, column[:, None]) for column in (self.shift, self.scale, self.modes))
        noise = self.noise((ops.shape(x)[0], self.prior.latent_dim))
        sign = ops.where(modes > 1.5, ops.sign(self.noise(ops.shape(shift))), 1.0)
        first = ops.one_hot(ops.zeros_like(shift[:, 0], dtype="int32"), self.prior.latent_dim)
        mean = ops.where(modes > 1.5, 0.0, shift) * first
        variance = ops.square(scale) + ops.where(modes > 1.5, ops.square(shift), 0.0) * first
        return {"z": sign * shift * first + scale * noise, "mean": mean, "variance": variance}

    def objective(self, x, outputs):
        return {"discriminator": self.adversarial_terms(x, outputs)["discriminator"]}


class Estimates(keras.callbacks.Callback):
    """T's estimate of every KL, in nats, a row every 500 updates."""

    def __init__(self, count: int, name: str, epochs: int):
        super().__init__()
        self.count, self.name, self.epochs, self.progress = count, name, epochs, TimeLeft()
        self.updates, self.rows = [], []

    def on_epoch_end(self, epoch, logs=None):
        self.progress(self.name, UPDATES_A_RECORD * (epoch + 1), UPDATES_A_RECORD * self.epochs)
        if (epoch + 1) % STEP == 0 or epoch + 1 == self.epochs:
            self.updates.append(UPDATES_A_RECORD * (epoch + 1))
            self.rows.append([float(estimate) for estimate in estimates(self.model, self.count)])


def estimates(model: AVB, count: int) -> np.ndarray:
    """E_q of T + log r - log p on fresh draws, for each of `count` posteriors: (count,) nats."""
    means = []
    for row in np.eye(count, dtype="float32"):
        x = ops.convert_to_tensor(np.tile(row, (DRAWS, 1)))
        means.append(float(to_numpy(ops.mean(model.divergences(x, model.infer(x))["kl_estimated_nats"]))))
    return np.array(means)


def calibrated(config: Config, family: str, dimensions: int, units, contrast: bool, seed: int, name: str) -> dict:
    """Train T on one q for each divergence: what it estimates over training."""
    count = len(config.divergences)
    model = KnownKL(
        np.array([FAMILIES[family](divergence, dimensions) for divergence in config.divergences]),
        adaptive_contrast=contrast,
        prior=GaussianPrior(dimensions),
        seed=seed,
        discriminator=networks.pair_discriminator((count,), dimensions, units, np.random.default_rng(seed)),
    )
    record = Estimates(count, name, config.updates // UPDATES_A_RECORD)
    stopped_by = fit(model, config, np.tile(np.eye(count, dtype="float32"), (config.draws, 1)), [record])
    keras.utils.clear_session()
    return {"updates": record.updates, "estimates": record.rows, "stopped_by": stopped_by}


# What is learned


class GaussianAVB(AVB):
    """AVB that pays T's KL though its q(z|x) is a Gaussian, whose true KL is known."""

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


def learned(config: Config, dataset: Dataset, contrast: bool, seed: int, name: str) -> dict:
    """Train the Gaussian encoder on T's word; both KLs on test images over training."""
    random = np.random.default_rng(seed)
    model = GaussianAVB(
        adaptive_contrast=contrast,
        prior=GaussianPrior(config.mnist_latent_dim),
        seed=seed,
        encoder=networks.encoder(dataset.image_shape, 2 * config.mnist_latent_dim, config.mnist_units, random),
        decoder=networks.decoder(config.mnist_latent_dim, dataset.image_shape, config.mnist_units, random),
        discriminator=networks.pair_discriminator(
            dataset.image_shape, config.mnist_latent_dim, config.mnist_units, random
        ),
    )
    batches = Batches(dataset.x_train, MNIST_BATCH, "dynamic", seed)
    epochs = max(1, round(config.mnist_updates / len(batches)))
    compile_model(model, config, epochs * len(batches))
    x_test = binarise(dataset.x_test, "dynamic", np.random.default_rng(seed))
    progress, course, finite = TimeLeft(), [], StopOnNonFinite()

    def measured(epoch, logs):
        progress(name, epoch + 1, epochs)
        terms = test_terms(model, x_test)
        keys = ("kl_nats", "kl_estimated_nats", "test_reconstruction_nats")
        course.append({"updates": (epoch + 1) * len(batches)} | {key: terms[key].value for key in keys})

    callbacks = [
        keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: batches.shuffle(epoch)),
        keras.callbacks.LambdaCallback(on_epoch_end=measured),
        finite,
    ]
    model.fit(batches, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks)
    keras.utils.clear_session()
    return {"course": course, "stopped_by": finite.reason}


# What comes of it


def main(config: Config = Config()) -> dict:
    """Train what is not there yet; returns what metrics.json holds."""
    check(config)
    if config.quick:
        config = quickened(config, QUICK)
    dataset = load_mnist(config.data)
    require_images(dataset, MNIST_BATCH)
    folder = Path(config.results) / "kl_calibration" / (config.name or ("quick" if config.quick else "default"))
    claim_folder(folder, "kl_calibration", config, dataset, config.updates)
    wanted = {}
    for seed in config.seeds:
        for contrast in (False, True):
            kind = f"{'with' if contrast else 'without'} contrast, seed {seed}"
            for family in FAMILIES:
                for dimensions in config.dimensions:
                    name = f"{family}, {dimensions}-D, {kind}"
                    units = config.discriminator_units
                    wanted[name] = partial(calibrated, config, family, dimensions, units, contrast, seed, name)
            for size in config.sizes:
                name = f"mixture of two, {config.size_dimension}-D, T of {size} units, {kind}"
                size_of = partial(calibrated, config, "mixture of two", config.size_dimension, (size, size))
                wanted[name] = partial(size_of, contrast, seed, name)
            name = f"trained on images, {kind}"
            wanted[name] = partial(learned, config, dataset, contrast, seed, name)
    runs = each_once(folder, wanted)
    figures = {
        "calibration": calibration_figure(config, runs),
        "training": training_figure(config, runs),
        "size": size_figure(config, runs),
        "mnist": mnist_figure(config, runs, dataset),
    }
    for name, figure in figures.items():
        plots.save(figure, folder / f"{name}.png")
    metrics = numbers(config, runs)
    write_json(folder / "metrics.json", metrics)
    print(folder)
    return metrics


def ratios(config: Config, runs: dict, prefix: str, contrast: bool) -> np.ndarray:
    """Estimate over truth, (seeds, records, divergences)."""
    kinds = [f"{prefix}, {'with' if contrast else 'without'} contrast, seed {seed}" for seed in config.seeds]
    return np.array([runs[kind]["estimates"] for kind in kinds]) / np.array(config.divergences)


def numbers(config: Config, runs: dict) -> dict:
    """Mean over the seeds of the last estimate over the truth, and what the trained models say."""
    found = {"divergences_nats": list(config.divergences)}
    prefixes = [f"{family}, {dimensions}-D" for family in FAMILIES for dimensions in config.dimensions]
    prefixes += [f"mixture of two, {config.size_dimension}-D, T of {size} units" for size in config.sizes]
    for contrast in (False, True):
        kind = f"{'with' if contrast else 'without'} contrast"
        for prefix in prefixes:
            last = ratios(config, runs, prefix, contrast)[:, -1]
            found[f"{prefix}, {kind}: estimate over truth"] = last.mean(axis=0).tolist()
            if len(last) > 1:
                found[f"{prefix}, {kind}: sd over seeds"] = last.std(axis=0, ddof=1).tolist()
        ends = [runs[f"trained on images, {kind}, seed {seed}"]["course"][-1] for seed in config.seeds]
        for key in ("kl_nats", "kl_estimated_nats", "test_reconstruction_nats"):
            found[f"trained on images, {kind}: {key}"] = float(np.mean([end[key] for end in ends]))
    return found


STYLES = ((False, "without contrast", "dashed"), (True, "with contrast", "solid"))


def calibration_figure(config: Config, runs: dict):
    """Estimate over truth against the truth, a panel a dimension."""
    panels = {
        f"T's estimate / true KL, {dimensions}-D": {
            f"{family}: {words}": figures.Curve(
                np.array(config.divergences), ratios(config, runs, f"{family}, {dimensions}-D", contrast)[:, -1], line
            )
            for family in FAMILIES
            for contrast, words, line in STYLES
        }
        for dimensions in config.dimensions
    }
    return figures.bands(
        panels,
        "true KL(q ‖ p), nats",
        "How far T can be trusted: its estimate over the true KL",
        f"p = N(0, I); T of {' × '.join(map(str, config.discriminator_units))} units after {config.updates:,} updates, "
        f"one T for all divergences; {DRAWS:,} fresh codes each; {of_seeds('mean and range', config.seeds)}",
        {label: [(1.0, "exact")] for label in panels},
        x_scale="log",
        shared=True,
    )


def training_figure(config: Config, runs: dict):
    """Estimate over truth against the updates, a panel with and one without contrast."""
    dimensions = config.size_dimension if config.size_dimension in config.dimensions else config.dimensions[0]
    panels = {}
    for contrast, words, _ in STYLES:
        prefix = f"mixture of two, {dimensions}-D"
        found = ratios(config, runs, prefix, contrast)
        x = np.array(runs[f"{prefix}, {words}, seed {config.seeds[0]}"]["updates"])
        panels[f"T's estimate / true KL, {words}"] = {
            f"{divergence:g} nats": figures.Curve(x, found[:, :, number])
            for number, divergence in enumerate(config.divergences)
        }
    return figures.bands(
        panels,
        "updates",
        "Does more training repair T?",
        f"q: a mixture of two Gaussians in {dimensions} dimensions, p = N(0, I); a colour for each true KL; "
        f"{of_seeds('mean and range', config.seeds)}",
        {label: [(1.0, "exact")] for label in panels},
        shared=True,
    )


def size_figure(config: Config, runs: dict):
    """Estimate over truth for several sizes of T."""
    panels = {}
    for contrast, words, _ in STYLES:
        panels[f"T's estimate / true KL, {words}"] = {
            f"2 × {size} units": figures.Curve(
                np.array(config.divergences),
                ratios(config, runs, f"mixture of two, {config.size_dimension}-D, T of {size} units", contrast)[:, -1],
            )
            for size in config.sizes
        }
    return figures.bands(
        panels,
        "true KL(q ‖ p), nats",
        "Does a larger T repair it?",
        f"q: a mixture of two Gaussians in {config.size_dimension} dimensions, p = N(0, I); {config.updates:,} "
        f"updates; {of_seeds('mean and range', config.seeds)}",
        {label: [(1.0, "exact")] for label in panels},
        x_scale="log",
        shared=True,
    )


def mnist_figure(config: Config, runs: dict, dataset: Dataset):
    """Both KLs of the trained models over training."""
    panels = {}
    for _, words, _ in STYLES:
        courses = [runs[f"trained on images, {words}, seed {seed}"]["course"] for seed in config.seeds]
        x = np.array([point["updates"] for point in courses[0]])

        def curve(key, line, x=x, courses=courses):
            return figures.Curve(x, [[point[key] for point in course] for course in courses], line)

        panels[f"KL(q(z|x) ‖ p(z)), nats, {words}"] = {
            "true, in closed form": curve("kl_nats", "solid"),
            "T's estimate": curve("kl_estimated_nats", "dashed"),
        }
    return figures.bands(
        panels,
        "updates",
        "A Gaussian encoder trained on T's word, and its true KL",
        f"{config.mnist_latent_dim}-D codes of {len(dataset.x_test):,} dynamically binarised test images of "
        f"{dataset.name}; {of_seeds('mean and range', config.seeds)}",
        skipped=0.1,
    )


if __name__ == "__main__":
    run_main(main, Config)
