"""Four points in the plane, where all is exact: does AVB find the posterior that a VAE cannot represent?

This is the toy example of the AVB paper (arXiv 1701.04722, "Synthetic Example"). The data are n one-hot vectors, and
the code has two dimensions. So a grid gives log p(x), the posterior p(z|x), q(z|x) and the KL that T estimates. No
model can exceed a log-likelihood of -log n. AVB's encoder is a black box, any function of x and noise. It is trained
with the prior as contrast, as in the paper, and with adaptive contrast.

Run: python -m experiments.avb.toy (--help lists every flag). --quick is a short run. --points 8 16 takes more points.
Resumes if interrupted. Results in results/avb_toy/<name>/:

    metrics.json, table.md      means and standard deviations over the seeds
    runs.json                   numbers of every seed, with measurements during the training
    posteriors-<n>.png          q(z|x) and the exact posterior for n points
    training-<n>.png            measurements during the training
    codes-<n>.gif               AVB's codes during the training
    a folder per training       history.csv
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from avb import AVB
from common import networks
from common.config import AtLeast, Factor, Fraction, Positive, PositiveCount, Seed
from common.files import whole
from common.likelihoods import bernoulli_log_likelihood
from common.metrics import METRICS, Metric
from common.model import LatentModel, even_batch_size, to_numpy
from common.numbers import of_seeds
from common.priors import GaussianPrior
from common.run import one_line_errors
from experiments import figures, study
from experiments.avb.course import UPDATES_A_RECORD, Course, Repeated, epochs_of
from experiments.avb.plane import Plane
from experiments.study import Part, Results, Study, StudyConfig, run_study
from vae_baseline import VAE

import keras
import numpy as np
from keras import ops

PLANE = Plane((-5.0, -5.0), (5.0, 5.0), 1000)
KERNEL = 1.0  # cells of 0.01; a kernel of 0.025 smooths ridges of q away, and lowers the KL by 0.1 nats
RECORDS = 8  # measurements during a training
FRAMES = 50  # frames of the animation
CODES = 2000  # codes in a frame
ROWS = 20_000  # codes that go through a network at a time
COLUMNS = {
    "log_likelihood_nats": Metric("log p(x)", "nats", 3, "higher", "exact, by a grid, mean of the points"),
    "elbo_nats": Metric("ELBO", "nats", 3, "higher", "log p(x) − KL(q(z|x) ‖ p(z|x))"),
    "reconstruction_nats": Metric("reconstruction", "nats", 3, "lower", "−log p(x|z) under q(z|x)"),
    "kl_true_nats": Metric("KL(q(z|x) ‖ p(z))", "nats", 3, "", "by a grid, mean of the points"),
    "kl_estimated_nats": METRICS["kl_estimated_nats"]._replace(digits=3),
    "marginal_kl_nats": Metric("KL(q(z) ‖ p(z))", "nats", 3, 0, "by a grid, of the aggregated posterior"),
}
PANELS = ("exact log p(x), nats", "exact ELBO, nats", "AVB's KL(q(z|x) ‖ p(z)), nats")
SHOWN = 4  # points in the figure of posteriors
REPORTED = ((-1.568, "VAE, reported"), (-1.403, "AVB, reported"))  # for four points (AVB paper)
QUICK = {"seeds": (0,), "updates": 1000, "final_draws": 200_000, "course_draws": 40_000}


@dataclass(frozen=True)
class Config(StudyConfig):
    """All models have these sizes, rates and updates, which were chosen on four points and seed 100."""

    points: tuple[Annotated[int, AtLeast(2)], ...] = (4,)  # numbers of one-hot vectors, one experiment for each
    hidden_units: tuple[PositiveCount, ...] = (64, 64, 64)  # ReLU units per layer, encoder and decoder
    discriminator_units: tuple[PositiveCount, ...] = (128, 128, 128)  # ReLU units per layer of T
    noise_dim: PositiveCount = 16  # normal numbers that AVB's encoder takes with x
    batch_size: PositiveCount = 512  # codes per update, shared among the points
    updates: Annotated[int, AtLeast(UPDATES_A_RECORD)] = 8000  # optimiser steps, rounded down to whole hundreds
    learning_rate: Positive = 1e-3  # Adam's rate at the start
    final_rate_factor: Factor = 0.05  # the rate falls along a cosine to this factor times learning_rate
    beta_1: Fraction = 0.5  # Adam's decay of the mean gradient (official code)
    encoder_rate_factor: Factor = 1.0  # factor on learning_rate for the encoder
    decoder_rate_factor: Factor = 1.0  # factor on learning_rate for the decoder
    discriminator_rate_factor: Factor = 2.0  # factor on learning_rate for the discriminator (official code: 2)
    seeds: tuple[Seed, ...] = (0, 1, 2, 3, 4)  # random seeds of weights and noise
    final_draws: Annotated[int, AtLeast(100)] = 2_000_000  # draws from q(z|x) for each x, after the training
    course_draws: Annotated[int, AtLeast(100)] = 400_000  # the same during the training, where noise adds 0.01 nats


class BlackBoxAVB(AVB):
    """AVB whose encoder is any function of x and noise (AVB paper, figure 2).

    The rows of x are one-hot. The moments of q(z|x) are those of all codes in the batch with the same x.
    """

    def __init__(self, adaptive_contrast: bool, noise_dim: int, **kwargs):
        super().__init__(adaptive_contrast, noise_basis=0, noise_dim=noise_dim, **kwargs)

    def infer(self, x):
        z = self.encoder([x, self.noise((ops.shape(x)[0], self.noise_dim))])
        averaging = ops.transpose(x / ops.maximum(ops.sum(x, axis=0), 1.0))  # (n, batch)
        mean = ops.matmul(x, ops.matmul(averaging, z))
        variance = ops.matmul(x, ops.matmul(averaging, ops.square(z - mean)))
        return {"z": z, "mean": mean, "variance": variance}


def vae(config: Config, points: int, seed: int) -> VAE:
    """A VAE, with Gaussian q(z|x), and the same encoder, without noise, and decoder as AVB."""
    random = np.random.default_rng(seed)
    return VAE(
        beta=1.0,
        prior=GaussianPrior(2),
        seed=seed,
        encoder=networks.encoder((points,), 4, config.hidden_units, random),
        decoder=networks.decoder(2, (points,), config.hidden_units, random),
    )


def avb(config: Config, points: int, seed: int, adaptive_contrast: bool = False) -> BlackBoxAVB:
    """An AVB, with q(z|x) of any shape."""
    random = np.random.default_rng(seed)
    return BlackBoxAVB(
        adaptive_contrast=adaptive_contrast,
        noise_dim=config.noise_dim,
        prior=GaussianPrior(2),
        seed=seed,
        encoder=networks.encoder((points,), 2, config.hidden_units, random, config.noise_dim),
        decoder=networks.decoder(2, (points,), config.hidden_units, random),
        discriminator=networks.pair_discriminator((points,), 2, config.discriminator_units, random),
    )


def contrasted(config: Config, points: int, seed: int) -> BlackBoxAVB:
    """The AVB with adaptive contrast."""
    return avb(config, points, seed, adaptive_contrast=True)


MODELS = {"vae": ("VAE", vae), "avb": ("AVB", avb), "avb_contrast": ("AVB, adaptive contrast", contrasted)}


def on_the_plane(model: LatentModel, points: np.ndarray, plane: Plane, draws: int) -> tuple[dict, list[figures.Panel]]:
    """Every quantity in nats as a mean over the points, and q(z|x) with log p(z|x) for each point.

    log p(x) is the integral of p(x|z) p(z) on the grid. q(z|x) is the histogram of `draws` codes, smoothed by KERNEL
    cells. Reconstruction and T are averages over the same codes.
    """
    square = (plane.cells, plane.cells)
    centres = [ops.convert_to_tensor(part, "float32") for part in np.array_split(plane.centres.reshape(-1, 2), 20)]
    log_prior = np.concatenate([to_numpy(model.prior.log_prob(z)) for z in centres]).reshape(square).astype("float64")
    logits = [model.decoder(z) for z in centres]
    numbers, panels = [], []
    for x in points:
        image = ops.convert_to_tensor(x[None])
        log_likelihood = np.concatenate([to_numpy(bernoulli_log_likelihood(image, each)) for each in logits])
        log_joint = log_likelihood.reshape(square).astype("float64") + log_prior
        codes, sums = [], {}
        rows = ops.convert_to_tensor(np.tile(x, (even_batch_size(draws, ROWS), 1)))
        for _ in range(0, draws, len(rows)):
            outputs = model(rows)
            codes.append(to_numpy(outputs["z"]))
            terms = {"reconstruction_nats": -bernoulli_log_likelihood(rows, outputs["parameters"])}
            for key, value in (terms | model.divergences(rows, outputs)).items():
                sums.setdefault(key, []).append(float(to_numpy(ops.mean(value))))
        q = plane.density_of(np.concatenate(codes), KERNEL)
        log_evidence = plane.log_integral(log_joint)
        averages = {key: float(np.mean(values)) for key, values in sums.items()}
        numbers.append({"log_likelihood_nats": log_evidence, "kl_true_nats": plane.kl(q, log_prior)} | averages)
        panels.append(figures.Panel(q, log_joint - log_evidence))
    means = {key: float(np.mean([point[key] for point in numbers])) for key in numbers[0]}
    means["elbo_nats"] = -means["reconstruction_nats"] - means["kl_true_nats"]
    means["marginal_kl_nats"] = plane.kl(np.mean([panel.density for panel in panels], axis=0), log_prior)
    return means, panels


# Training


class Frames(keras.callbacks.Callback):
    """Draws CODES codes of the points after every epoch, and keeps those of FRAMES epochs in the file `path`.

    Without a path it draws too, but keeps nothing: keeping codes must not change the noise of the training.
    """

    def __init__(self, points: np.ndarray, epochs: int, path: Path | None):
        super().__init__()
        self.labels = np.repeat(np.arange(len(points)), max(1, CODES // len(points)))
        self.points, self.path, self.kept = points[self.labels], path, {}
        self.chosen = set(np.linspace(0, epochs - 1, FRAMES).astype(int).tolist())
        if path and path.is_file():
            with one_line_errors(path.parent), np.load(path) as codes:
                self.kept = {int(name): codes[name] for name in codes.files}

    def on_epoch_begin(self, epoch, logs=None):
        self.kept = {number: codes for number, codes in self.kept.items() if number < epoch}

    def on_epoch_end(self, epoch, logs=None):
        codes = self.model.encode(self.points)
        if self.path and epoch in self.chosen and np.isfinite(codes).all():
            self.kept[epoch] = codes
            with whole(self.path) as partial_path:
                np.savez(partial_path, **{str(number): codes for number, codes in self.kept.items()})


def case(key: str, count: int, part: Part) -> dict:
    """Train one of the MODELS on `count` points; returns every quantity at the end, and "course" during training."""
    config, points, epochs = part.config, np.eye(count, dtype="float32"), epochs_of(part.config)
    model = MODELS[key][1](config, count, part.seed)
    frames = Frames(points, epochs, part.folder / "codes.npz" if part.first and key == "avb" else None)
    course = Course(
        part.folder,
        epochs,
        -(-epochs // RECORDS),
        lambda model: on_the_plane(model, points, PLANE, config.course_draws)[0],
    )
    batch = Repeated(np.tile(points, (max(1, config.batch_size // count), 1)))
    part.train(model, config, batch, epochs=epochs, measures=[frames, course])
    numbers, panels = on_the_plane(model, points, PLANE, config.final_draws)
    if frames.kept:
        figures.save_animation(animation(frames, count, part.seed), part.folder.parent / f"codes-{count}.gif")
    if part.first:
        shown = [np.array([panel[axis] for panel in panels[:SHOWN]], "float32") for axis in (0, 1)]
        part.keep(density=shown[0], log_exact=shown[1])
    return numbers | {"course": course.columns()}


def animation(frames: Frames, count: int, seed: int):
    """An animation of AVB's codes, with one frame per epoch that was kept."""
    return figures.codes_in_motion(
        np.stack(list(frames.kept.values())),
        frames.labels,
        [f"{UPDATES_A_RECORD * (epoch + 1):,} updates" for epoch in frames.kept],
        4.0,
        f"AVB finds the posteriors of {count} points",
        f"Codes z ~ q(z|x), one colour for each of {count} one-hot x, seed {seed}. Circles: 50 and 95 % of the prior",
    )


# The experiment


def name_of(key: str, count: int) -> str:
    """The name of a case."""
    return f"{MODELS[key][0]}, {count} points"


def cases(config: Config, dataset: None) -> dict:
    """A case for each number of points and model."""
    return {name_of(key, count): partial(case, key, count) for count in config.points for key in MODELS}


def tables(declared: Study, results: Results, rows: dict) -> dict[str, str]:
    """One row per number of points and model, below the highest possible log p(x)."""
    shown = {}
    for count in results.config.points:
        shown[f"best for {count} points"] = {"log_likelihood_nats": -np.log(count)}
        shown |= {name_of(key, count): rows[name_of(key, count)] for key in MODELS}
    return {"table.md": study.table(shown, COLUMNS)}


def all_figures(results: Results, rows: dict) -> dict:
    """Posteriors and measurements during the training for each number of points."""
    shown = {f"posteriors-{count}": posteriors(results, count) for count in results.config.points}
    shown |= {f"training-{count}": training(results, count) for count in results.config.points}
    return {name: figure for name, figure in shown.items() if figure}


def posteriors(results: Results, count: int):
    """q(z|x) of every model for at most SHOWN points, under the exact p(z|x) of the same decoder."""
    config, rows = results.config, {}
    for key, (name, _) in MODELS.items():
        numbers, pictures = results.of(name_of(key, count))[0], results.pictures(name_of(key, count))
        gap = numbers["log_likelihood_nats"] - numbers["elbo_nats"]
        rows[f"{name}\nlog p {numbers['log_likelihood_nats']:.3f}, gap {gap:.3f}".replace("-", "−")] = {
            f"x = {number + 1} of {count}": figures.Panel(density.astype("float64"), log_exact.astype("float64"))
            for number, (density, log_exact) in enumerate(zip(pictures["density"], pictures["log_exact"], strict=True))
        }
    updates = results.updates(*(name_of(key, count) for key in MODELS))
    return figures.densities(
        rows,
        [PLANE] * len(rows),
        ("z₁", "z₂"),
        f"Posteriors of {count} points: each model's q(z|x) over its exact p(z|x)",
        f"{count} one-hot vectors, 2-D code, {updates}, seed {config.seeds[0]}. Shades: q(z|x) from "
        f"{config.final_draws:,} codes. Lines: the exact posterior on a grid. log p: mean log-likelihood in nats, at "
        f"most −{np.log(count):.3f}. Gap: its difference from the ELBO, KL(q(z|x) ‖ p(z|x))",
    )


def training(results: Results, count: int):
    """The exact log-likelihood over training, and T's estimate of the KL beside the true value.

    A model that stopped before its first measurement has no curve. If no model has a curve, there is no figure.
    """
    config, (likelihood, elbo, kl) = results.config, PANELS
    panels = {label: {} for label in PANELS}
    for key, (name, _) in MODELS.items():
        courses = [run["course"] for run in results.of(name_of(key, count)) if run["course"]]
        if not courses:
            continue
        panels[likelihood][name] = figures.curve_of(courses, "log_likelihood_nats")
        panels[elbo][name] = figures.curve_of(courses, "elbo_nats")
        if key != "vae":
            panels[kl][name] = figures.curve_of(courses, "kl_true_nats")
            panels[kl][f"{name}: by T"] = figures.curve_of(courses, "kl_estimated_nats")._replace(line="dashed")
    panels = {label: series for label, series in panels.items() if series}
    references = {label: [(-np.log(count), "best possible")] for label in (likelihood, elbo)}
    if count == 4:
        references[likelihood] += REPORTED
    seeds = of_seeds("mean and range", config.seeds)
    return panels and figures.bands(
        panels,
        "updates",
        f"{count} points, all exact: the models' log-likelihood, and T's estimate of the KL",
        f"{count} one-hot vectors, 2-D code, {seeds}. KL: by a grid of {PLANE.cells} × {PLANE.cells} cells, from "
        f"{config.course_draws:,} codes per point",
        references,
        skipped=0.2,
    )


STUDY = Study("avb.toy", cases, COLUMNS, all_figures, QUICK, tables=tables)


def main(config: Config = Config()) -> dict:
    """Run the experiment; returns the content of metrics.json."""
    return study.run(STUDY, config)


if __name__ == "__main__":
    run_study(STUDY, Config)
