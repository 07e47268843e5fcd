"""Four points in the plane, everything exact: does AVB find the posterior that a VAE cannot represent?

The toy example of the AVB paper (arXiv 1701.04722, "Synthetic Example"): the data are n one-hot vectors, the code has
two dimensions, so that log p(x), the posterior p(z|x), q(z|x) and the KL that T estimates can be had on a grid. No
model exceeds a log-likelihood of -log n. AVB's encoder is a black box: any function of x and noise, with the prior as
contrast, as in the paper, and with adaptive contrast beside it.

Run: python -m experiments.avb_toy (--help lists every flag); --quick for a first look, --points 8 16 for more.
Leaves in results/avb_toy/<name>/: metrics.json and table.md (means and standard deviations over the seeds), runs.json
(every seed, and the course of its training), and for each number of points posteriors-<n>.png, training-<n>.png and
codes-<n>.gif, AVB's codes as they train. What is there already is not made again.
"""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from avb import AVB
from common import networks, plots
from common.command import run_main
from common.config import AtLeast, Factor, Fraction, Positive, PositiveCount, Seed, check
from common.files import whole, write_json
from common.model import LatentModel, bernoulli_log_likelihood, even_batch_size, to_numpy
from common.numbers import markdown, mean_and_deviation, of_seeds, plus_minus
from common.priors import GaussianPrior
from common.progress import TimeLeft
from common.training import StopOnNonFinite, compile_model
from experiments import figures
from experiments.avb.plane import Plane
from experiments.study import claim_folder, each_once, quickened
from vae_baseline import VAE

import keras
import numpy as np
from keras import ops

PLANE = Plane((-5.0, -5.0), (5.0, 5.0), 1000)
KERNEL = 1.0  # cells, 0.01: a kernel of 0.025 does not see the ridges that q can have, and takes 0.1 nats from the KL
RECORDS = 8  # measurements on the way
ROWS = 20_000  # codes that go through a network at a time
UPDATES_A_RECORD = 100
QUANTITIES = {  # key: how the table calls it
    "log_likelihood_nats": "log p(x)",
    "elbo_nats": "ELBO",
    "reconstruction_nats": "reconstruction",
    "kl_true_nats": "KL(q(z\\|x) ‖ p(z))",
    "kl_estimated_nats": "the same, by T",
    "marginal_kl_nats": "KL(q(z) ‖ p(z))",
}
REPORTED = ((-1.568, "VAE, reported"), (-1.403, "AVB, reported"))  # for four points (AVB paper)
QUICK = {"seeds": (0,), "updates": 1000, "final_draws": 200_000, "course_draws": 40_000}


@dataclass(frozen=True)
class Config:
    """The same encoder and decoder sizes, rates and updates for all; chosen on four points and seed 100."""

    points: tuple[Annotated[int, AtLeast(2)], ...] = (4,)  # how many one-hot vectors, one number after the other
    hidden_units: tuple[PositiveCount, ...] = (64, 64, 64)  # ReLU units a layer, encoder and decoder
    discriminator_units: tuple[PositiveCount, ...] = (128, 128, 128)  # ReLU units a layer of T
    noise_dim: PositiveCount = 16  # normal numbers beside x in AVB's encoder
    batch_size: PositiveCount = 512  # codes an update, shared among the points
    updates: Annotated[int, AtLeast(UPDATES_A_RECORD)] = 8000  # steps of the optimiser
    learning_rate: Positive = 1e-3  # of Adam, at the start
    final_rate_factor: Factor = 0.05  # times learning_rate: where a cosine takes it by the last update
    beta_1: Fraction = 0.5  # Adam's decay of the mean gradient (official code)
    encoder_rate_factor: Factor = 1.0  # times learning_rate
    decoder_rate_factor: Factor = 1.0  # times learning_rate
    discriminator_rate_factor: Factor = 2.0  # times learning_rate (official code: 2)
    seeds: tuple[Seed, ...] = (0, 1, 2, 3, 4)  # of weights and noise
    final_draws: Annotated[int, AtLeast(100)] = 2_000_000  # of q(z|x) for each x, at the end
    course_draws: Annotated[int, AtLeast(100)] = 400_000  # the same on the way; noise adds 0.01 nats
    quick: bool = False  # whatever is not asked for is small: one seed, 1,000 updates
    results: str = "results"  # the folder of all runs
    name: str = ""  # the folder below results/avb_toy/; "default" or "quick" if empty
    resume: str = ""  # the folder of a run that was stopped: go on with it, and with its parameters


class BlackBoxAVB(AVB):
    """AVB whose encoder is any function of x and noise (AVB paper, figure 2).

    The rows of x are one-hot; the moments of q(z|x) are those of the batch's codes of the same x.
    """

    def __init__(self, adaptive_contrast: bool, noise_dim: int, **kwargs):
        super().__init__(adaptive_contrast, noise_basis=0, noise_dim=noise_dim, **kwargs)

    def infer(self, x):
        z = self.encoder([x, self.noise((ops.shape(x)[0], self.noise_dim))])
        of_each = ops.transpose(x / ops.maximum(ops.sum(x, axis=0), 1.0))  # (n, batch)
        mean = ops.matmul(x, ops.matmul(of_each, z))
        variance = ops.matmul(x, ops.matmul(of_each, ops.square(z - mean)))
        return {"z": z, "mean": mean, "variance": variance}


def vae(config: Config, points: int, seed: int) -> VAE:
    """Gaussian q(z|x); the same encoder but for the noise, the same decoder."""
    random = np.random.default_rng(seed)
    return VAE(
        beta=1.0,
        prior=GaussianPrior(2),
        seed=seed,
        encoder=networks.encoder((points,), 4, config.hidden_units, random),
        decoder=networks.decoder(2, (points,), config.hidden_units, random),
    )


def avb(config: Config, points: int, seed: int, adaptive_contrast: bool = False) -> BlackBoxAVB:
    """q(z|x) of any shape."""
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
    """The same, with adaptive contrast."""
    return avb(config, points, seed, adaptive_contrast=True)


MODELS = {"vae": ("VAE", vae), "avb": ("AVB", avb), "avb_contrast": ("AVB, adaptive contrast", contrasted)}


class Record(keras.callbacks.Callback):
    """Says how far a training is, keeps codes for the animation, and measures RECORDS times on the way."""

    def __init__(self, name: str, config: Config, points: np.ndarray):
        super().__init__()
        self.name, self.points, self.draws, self.progress = name, points, config.course_draws, TimeLeft()
        self.epochs = config.updates // UPDATES_A_RECORD
        self.codes, self.course = [], []

    def on_epoch_end(self, epoch, logs=None):
        self.progress(self.name, UPDATES_A_RECORD * (epoch + 1), UPDATES_A_RECORD * self.epochs)
        self.codes.append(self.model.encode(np.repeat(self.points, 2000 // len(self.points), axis=0)))
        if (epoch + 1) % -(-self.epochs // RECORDS) == 0:
            found, _ = on_the_plane(self.model, self.points, PLANE, self.draws)
            self.course.append({"updates": UPDATES_A_RECORD * (epoch + 1)} | found)


def fit(model: LatentModel, config, batch: np.ndarray, callbacks) -> str | None:
    """`config.updates` steps, to whole hundreds, all on the same `batch`: all that is random is the noise.

    Returns why it stopped early, with the weights of the last hundred that were finite, or None.
    """
    finite = StopOnNonFinite()
    compile_model(model, config, config.updates)
    model.fit(
        np.tile(batch, (UPDATES_A_RECORD, *(1 for _ in batch.shape[1:]))),
        batch_size=len(batch),
        epochs=config.updates // UPDATES_A_RECORD,
        shuffle=False,
        verbose=0,
        callbacks=[finite, *callbacks],
    )
    if finite.reason:
        print(f"training stopped: {finite.reason}", flush=True)
    return finite.reason


def on_the_plane(model: LatentModel, points: np.ndarray, plane: Plane, draws: int) -> tuple[dict, list[figures.Panel]]:
    """Every quantity in nats, means over the points, and q(z|x) beside log p(z|x) of each.

    log p(x) is the integral of p(x|z) p(z) on the grid. q(z|x) is the histogram of `draws` codes, smoothed by KERNEL
    cells; reconstruction and T are averages over the same codes.
    """
    square = (plane.cells, plane.cells)
    centres = [ops.convert_to_tensor(part, "float32") for part in np.array_split(plane.centres.reshape(-1, 2), 20)]
    log_prior = np.concatenate([to_numpy(model.prior.log_prob(z)) for z in centres]).reshape(square).astype("float64")
    logits = [model.decoder(z) for z in centres]
    found, panels = [], []
    for x in points:
        image = ops.convert_to_tensor(x[None])
        log_likelihood = np.concatenate([to_numpy(bernoulli_log_likelihood(image, each)) for each in logits])
        log_joint = log_likelihood.reshape(square).astype("float64") + log_prior
        codes, sums = [], {}
        rows = ops.convert_to_tensor(np.tile(x, (even_batch_size(draws, ROWS), 1)))
        for _ in range(0, draws, len(rows)):
            outputs = model(rows)
            codes.append(to_numpy(outputs["z"]))
            terms = {"reconstruction_nats": -bernoulli_log_likelihood(rows, outputs["logits"])}
            for key, value in (terms | model.divergences(rows, outputs)).items():
                sums.setdefault(key, []).append(float(to_numpy(ops.mean(value))))
        q = plane.density_of(np.concatenate(codes), KERNEL)
        log_evidence = plane.log_integral(log_joint)
        of_x = {key: float(np.mean(values)) for key, values in sums.items()}
        found.append({"log_likelihood_nats": log_evidence, "kl_true_nats": plane.kl(q, log_prior)} | of_x)
        panels.append(figures.Panel(q, log_joint - log_evidence))
    means = {key: float(np.mean([of_x[key] for of_x in found])) for key in found[0]}
    means["elbo_nats"] = -means["reconstruction_nats"] - means["kl_true_nats"]
    means["marginal_kl_nats"] = plane.kl(np.mean([panel.density for panel in panels], axis=0), log_prior)
    return means, panels


def one_seed(config: Config, count: int, seed: int, folder: Path) -> dict:
    """All models of one seed on `count` points, measured: {model: {quantity: ..., "course": [...]}}.

    The first seed's pictures go into `folder`.
    """
    points = np.eye(count, dtype="float32")
    batch = np.tile(points, (max(1, config.batch_size // count), 1))
    found, panels = {}, {}
    for key, (name, build) in MODELS.items():
        start = time.perf_counter()
        model = build(config, count, seed)
        record = Record(f"{name}, {count} points, seed {seed}", config, points)
        stopped_by = fit(model, config, batch, [record])
        seconds = time.perf_counter() - start
        measured, panels[key] = on_the_plane(model, points, PLANE, config.final_draws)
        found[key] = measured | {"seconds": round(seconds, 1), "stopped_by": stopped_by, "course": record.course}
        if key == "avb" and seed == config.seeds[0]:
            figures.save_animation(animation(record.codes, count, config, seed), folder / f"codes-{count}.gif")
        keras.utils.clear_session()
    if seed == config.seeds[0]:
        plots.save(posteriors(found, panels, config, seed), folder / f"posteriors-{count}.png")
    return found


def main(config: Config = Config()) -> dict:
    """Train and measure what is not there yet; returns what metrics.json holds."""
    check(config)
    if config.quick:
        config = quickened(config, QUICK)
    folder = Path(config.results) / "avb_toy" / (config.name or ("quick" if config.quick else "default"))
    claim_folder(folder, "avb_toy", config, None, config.updates)
    parts = {
        f"{count} points, seed {seed}": partial(one_seed, config, count, seed, folder)
        for count in config.points
        for seed in config.seeds
    }
    runs = each_once(folder, parts)
    metrics = {}
    for count in config.points:
        of_count = [runs[f"{count} points, seed {seed}"] for seed in config.seeds]
        metrics[f"{count} points"] = summary(of_count)
        plots.save(training(of_count, count, config), folder / f"training-{count}.png")
    metrics = metrics[f"{config.points[0]} points"] | metrics
    with whole(folder / "table.md") as unfinished:
        unfinished.write_text(table(metrics, config))
    write_json(folder / "metrics.json", metrics)
    print((folder / "table.md").read_text())
    print(folder)
    return metrics


def summary(runs: list[dict]) -> dict:
    """Mean and standard deviation of every quantity of every model; how many seeds stopped early."""
    found = {}
    for model in MODELS:
        for key in [key for key in runs[0][model] if key not in ("course", "stopped_by")]:
            found |= mean_and_deviation(f"{model}_{key}", [run[model][key] for run in runs])
        found[f"{model}_stopped"] = sum(run[model]["stopped_by"] is not None for run in runs)
    return found


def table(metrics: dict, config: Config) -> str:
    """A row a model and number of points, mean ± standard deviation over the seeds, nats."""
    rows = []
    for count in config.points:
        found = metrics[f"{count} points"]
        rows.append([f"best for {count} points", f"−{np.log(count):.3f}", *[""] * (len(QUANTITIES) - 1)])
        for model, (name, _) in MODELS.items():
            keys = [f"{model}_{key}" for key in QUANTITIES]
            cells = [plus_minus(found.get(key), found.get(f"{key}_sd"), 3) for key in keys]
            rows.append([f"{name}, {count} points", *cells])
    return markdown(["", *QUANTITIES.values()], rows)


def posteriors(found: dict, panels: dict, config: Config, seed: int):
    """q(z|x) of every model and point, at most four points, over the exact p(z|x) of the same decoder."""
    count = len(panels["vae"])
    rows = {}
    for key, (name, _) in MODELS.items():
        gap = found[key]["log_likelihood_nats"] - found[key]["elbo_nats"]
        rows[f"{name}\nlog p {found[key]['log_likelihood_nats']:.3f}, gap {gap:.3f}".replace("-", "−")] = {
            f"x = {number + 1} of {count}": panel for number, panel in enumerate(panels[key][:4])
        }
    return figures.densities(
        rows,
        [PLANE] * len(rows),
        ("z₁", "z₂"),
        f"Posteriors of {count} points: each model's q(z|x) over its exact p(z|x)",
        f"{count} one-hot vectors, 2-D code, {config.updates:,} updates, seed {seed}. Shades: q(z|x) from "
        f"{config.final_draws:,} codes; lines: the exact posterior on a grid. log p: mean log-likelihood in nats, at "
        f"most −{np.log(count):.3f}; gap: what the ELBO lacks of it, KL(q(z|x) ‖ p(z|x))",
    )


def animation(codes: list, count: int, config: Config, seed: int):
    """AVB's codes, fifty frames."""
    frames = np.unique(np.linspace(0, len(codes) - 1, 50).astype(int))
    return figures.codes_in_motion(
        np.stack([codes[frame] for frame in frames]),
        np.repeat(np.arange(count), 2000 // count),
        [f"{UPDATES_A_RECORD * (frame + 1):,} updates" for frame in frames],
        4.0,
        f"AVB finds the posteriors of {count} points",
        f"Codes z ~ q(z|x), a colour for each of {count} one-hot x, seed {seed}. Circles: 50 and 95 % of the prior",
    )


def training(runs: list[dict], count: int, config: Config):
    """The exact log-likelihood over training, and T's estimate of the KL beside the true value."""
    panels = {"exact log p(x), nats": {}, "exact ELBO, nats": {}, "AVB's KL(q(z|x) ‖ p(z)), nats": {}}

    def curve(model, key, line="solid"):
        x = [point["updates"] for point in runs[0][model]["course"]]
        return figures.Curve(np.array(x), [[point[key] for point in run[model]["course"]] for run in runs], line)

    for model, (name, _) in MODELS.items():
        panels["exact log p(x), nats"][name] = curve(model, "log_likelihood_nats")
        panels["exact ELBO, nats"][name] = curve(model, "elbo_nats")
    last = panels["AVB's KL(q(z|x) ‖ p(z)), nats"]
    for model in ("avb", "avb_contrast"):
        name = MODELS[model][0]
        last[name] = curve(model, "kl_true_nats")
        last[f"{name}: by T"] = curve(model, "kl_estimated_nats", "dashed")
    references = {label: [(-np.log(count), "best possible")] for label in list(panels)[:2]}
    if count == 4:
        references["exact log p(x), nats"] += REPORTED
    seeds = of_seeds("mean and range", config.seeds)
    return figures.bands(
        panels,
        "updates",
        f"{count} points, everything exact: what the models gain, and what T believes",
        f"{count} one-hot vectors, 2-D code, {seeds}; KL by a grid of {PLANE.cells} × {PLANE.cells} cells from "
        f"{config.course_draws:,} codes of each point",
        references,
        skipped=0.2,
    )


if __name__ == "__main__":
    run_main(main, Config)
