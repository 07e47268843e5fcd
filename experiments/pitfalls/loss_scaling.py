"""Why was the KL near zero, the code like noise, and the digits good all the same? An earlier VAE, mended step by step.

An earlier Keras notebook, 784-256-256-128 units, took the mean of the cross-entropy over 784 pixels and of the KL over
128 dimensions, reported a KL of 0.028 and called its code useless. On sums, of which a bound on log p(x) is made, its
objective is

    E_x E_q(z|x) [ -log p(x|z) ] + beta E_x KL(q(z|x) || p(z)),   beta = 784 / 128 = 6.1

but that it read s, the encoder's second output, as log sigma where it drew z and as log sigma^2 in the KL, so that beta
weighed the KL of a q(z|x) wider than the one that was drawn from. Here it becomes the evidence lower bound (Kingma &
Welling, arXiv 1312.6114) in three steps: s is read in one way; sums take the place of means, with the same beta, since
gradients 784 times smaller are another training under RMSprop; beta is 1. Next to that are a mean over pixels beside a
sum over the code, beta = 784, and other weights on sums (beta-VAE; Higgins et al., ICLR 2017). Every KL but the one "as
reported", that of the loss, is of the q(z|x) from which z is drawn.

A dimension u of the code is live if Var_x(E[z_u|x]) > 0.01 (an active unit; Burda et al., arXiv 1509.00519), else dead.
A resampled dimension is drawn from the prior instead of q(z|x): a decoder that does not use it does not notice.

Run: python -m experiments.loss_scaling --data mnist.npz (--help lists every flag); --quick on the sample.
Leaves in results/loss_scaling/<name>/: metrics.json and table.md (means and standard deviations over the seeds),
runs.json (every seed), the course of every training, the first seed's pictures as <setting>.npz, and the figures
dimensions.png, resampled.png and beta.png. What is there already is not made again.
"""

import math
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import vae_baseline
from common import plots
from common.command import run_main
from common.config import AtLeast, Positive, PositiveCount, Seed, check
from common.data import Dataset, load_mnist
from common.evaluation import latent, probes, reconstruction
from common.files import whole, write_json
from common.measure import TRAINING_CODES, log_density, test_terms
from common.measure_likelihood import LikelihoodSettings, importance_weighted
from common.model import bernoulli_log_likelihood, in_batches, to_numpy
from common.numbers import Estimate, flat, markdown, mean_of, of_seeds, over_seeds, plus_minus
from common.progress import TimeLeft
from common.training import Batches, fit
from experiments import figures
from experiments.pitfalls.known_mistakes import MistakenVAE, mistaken_vae
from experiments.study import claim_folder, completed, each_once, quickened, require_images, require_labels

import keras
import numpy as np


class Setting(NamedTuple):
    """An objective: the mistakes of `MistakenVAE` that it makes, and the weight of its KL."""

    mistakes: dict[str, bool]
    beta: float = 1.0


EARLIER, ONE_READING, SUMS, ELBO = "as it was", "s read in one way", "and sums, the same β", "and β = 1: the ELBO"
PIXEL_MEAN = "mean over pixels alone"
MEANS = {"pixel_mean": True, "code_mean": True}
COLUMNS = {  # key: how the table calls it, digits
    "kl_reported_nats": ("KL as reported: mean over dimensions, nats", 3),
    "kl_nats": ("KL, sum over dimensions, nats", 1),
    "active_units": ("active units", 1),
    "kl_of_live_nats": ("KL of the live dimensions, nats", 1),
    "mutual_information_nats": ("I(x; z), nats", 1),
    "test_reconstruction_nats": ("reconstruction, nats", 1),
    "dead_resampled_nats": ("the same, dead dimensions resampled", 1),
    "live_resampled_nats": ("the same, live dimensions resampled", 1),
    "mean_knn_accuracy": ("class by the mean code", 3),
    "code_knn_accuracy": ("class by the drawn code", 3),
    "elbo_binarised_nats": ("ELBO, binarised, nats", 1),
    "importance_weighted_bound_nats": ("log p(x), bound, binarised, nats", 1),
}
WEIGHTED_SAMPLES = 1000
SHOWN = 12  # images in the figures
QUICK = {"data": "sample", "epochs": 8, "seeds": (0,), "weighted_images": 50}


@dataclass(frozen=True)
class Config:
    """The earlier notebook's set-up, which all settings share."""

    data: str = "auto"  # auto, mnist, fashion_mnist, sample, or the path of an .npz or .npy file
    latent_dim: PositiveCount = 128  # dimensions of z
    hidden_units: tuple[PositiveCount, ...] = (256, 256)  # ReLU units a layer, both networks
    epochs: PositiveCount = 32  # passes over the training images
    batch_size: PositiveCount = 32  # images an update
    learning_rate: Positive = 1e-3  # of RMSprop, constant
    betas: tuple[Positive, ...] = (0.1, 2.5, 25.0, 784.0)  # further weights of the KL, both terms being sums
    seeds: tuple[Seed, ...] = (0, 1, 2)  # of weights, noise and order
    weighted_images: Annotated[int, AtLeast(2)] = 500  # test images of the importance-weighted bound
    quick: bool = False  # whatever is not asked for is small: the sample, 8 passes, one seed
    results: str = "results"  # the folder of all runs
    name: str = ""  # the folder below results/loss_scaling/; "default" or "quick" if empty
    resume: str = ""  # the folder of a run that was stopped: go on with it, and with its parameters


def settings(config: Config, pixels: int) -> dict[str, Setting]:
    """The steps from the notebook to the ELBO, a mean over pixels beside a sum over the code, and further betas."""
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

    The KL is the one in the loss, `two_readings` or not. A mean over n is 1 / n of the sum. What both terms are
    multiplied by changes no optimum, but an optimiser may notice: RMSprop divides by sqrt(E[g^2] + 1e-7), which bounds
    the step where gradients g are below 3e-4.
    """
    of_pixels = 1.0 / pixels if setting.mistakes.get("pixel_mean") else 1.0
    of_code = 1.0 / latent_dim if setting.mistakes.get("code_mean") else 1.0
    return setting.beta * of_code / of_pixels


def rmsprop(model, config: Config, updates: int) -> keras.optimizers.Optimizer:
    """The earlier notebook's optimiser."""
    return keras.optimizers.RMSprop(config.learning_rate)


def build(config: Config, setting: Setting, seed: int, image_shape) -> MistakenVAE:
    """The untrained model: the same networks and initial weights for every setting of a seed."""
    own = vae_baseline.Config(
        latent_dim=config.latent_dim, hidden_units=config.hidden_units, beta=setting.beta, seed=seed
    )
    model = mistaken_vae(own, setting.mistakes, image_shape)
    model.faster_with_xla = False  # batches are small: a pass takes TensorFlow 7 s without and 13 s with it, one core
    return model


def trained_and_measured(config: Config, dataset: Dataset, name: str, seed: int, folder: Path) -> dict:
    """Train with a setting and measure on test images; the first seed's pictures go into `folder`."""
    print(f"{name}, seed {seed}", flush=True)
    model = build(config, settings(config, math.prod(dataset.image_shape))[name], seed, dataset.image_shape)
    own = folder / f"{slug(name)}-seed-{seed}"
    own.mkdir(exist_ok=True)
    batches = Batches(dataset.x_train, config.batch_size, "none", seed)
    outcome = completed(fit(model, batches, dataset.x_val, config, config.epochs, own, optimizer=rmsprop))
    found, pictures = measured(model, dataset, config, seed)
    if seed == config.seeds[0]:
        with whole(folder / f"{slug(name)}.npz") as unfinished:
            np.savez_compressed(unfinished, **pictures)
    keras.utils.clear_session()
    return flat(found) | {"stopped_by": outcome.stopped_by}


def measured(model: MistakenVAE, dataset: Dataset, config: Config, seed: int) -> tuple[dict, dict]:
    """The numbers of a trained model on test images, and what the figures show of it."""
    x_test = dataset.x_test
    inferred = model.inferred(x_test)
    means, codes = inferred["mean"], inferred["z"]
    kls = latent.kl_per_dimension(means, inferred["log_var"])
    live = latent.active_dimensions(means)
    prior = to_numpy(model.prior.sample(len(codes), model.seed_generator))
    versions = {
        "": codes,
        "dead_resampled": resampled(codes, ~live, prior),
        "live_resampled": resampled(codes, live, prior),
    }
    found = test_terms(model, x_test)
    found["kl_reported_nats"] = Estimate(*(number / config.latent_dim for number in found["kl_stated_nats"]))
    found |= {"active_units": int(live.sum()), "kl_of_live_nats": float(kls[live].sum()), "kl_per_dimension_nats": kls}
    found |= {f"{name}_nats": reconstruction_of(model, x_test, version) for name, version in versions.items() if name}
    found |= latent.elbo_surgery(means, inferred["log_var"], codes, log_density(model.prior)(codes))
    found |= probes(model, dataset, inferred, seed)
    weighted = LikelihoodSettings(0, 0, (), config.weighted_images, WEIGHTED_SAMPLES)
    found |= importance_weighted(model, dataset, weighted, TimeLeft())[0]
    pictures = {f"images_{name}".rstrip("_"): model.decode(version[:SHOWN]) for name, version in versions.items()}
    return found, pictures | {"originals": x_test[:SHOWN], "kls": np.sort(kls)[::-1], "live": live.sum()}


def resampled(codes: np.ndarray, dimensions: np.ndarray, prior_draws: np.ndarray) -> np.ndarray:
    """`codes` with the `dimensions`, (latent_dim,) of truth values, of prior draws: (n, latent_dim), all three."""
    return np.where(dimensions, prior_draws, codes)


def reconstruction_of(model: MistakenVAE, images: np.ndarray, codes: np.ndarray) -> Estimate:
    """-log p(x|z) in nats, summed over pixels, of images (n, *image_shape) from codes (n, latent_dim)."""
    pairs = zip(in_batches(images), in_batches(codes), strict=True)
    return mean_of(np.concatenate([to_numpy(-bernoulli_log_likelihood(x, model.decoder(z))) for x, z in pairs]))


def probes(model: MistakenVAE, dataset: Dataset, inferred: dict, seed: int) -> dict:
    """Class of a test image by the training images whose codes are nearest: mean codes E[z|x], and drawn ones."""
    near = np.random.default_rng([seed, 2]).permutation(len(dataset.x_train))[:TRAINING_CODES]
    known = model.inferred(dataset.x_train[near])
    labels = dataset.y_train[near], dataset.y_test
    return {
        f"{key}_knn_accuracy": probes.probe_accuracy("knn", known[of], labels[0], inferred[of], labels[1])
        for key, of in (("mean", "mean"), ("code", "z"))
    }


def main(config: Config = Config()) -> dict:
    """Train and measure what is not there yet; returns what metrics.json holds."""
    check(config)
    if config.quick:
        config = quickened(config, QUICK)
    dataset = load_mnist(config.data)
    require_labels(dataset)
    require_images(dataset, config.batch_size)
    folder = Path(config.results) / "loss_scaling" / (config.name or ("quick" if config.quick else "default"))
    updates = config.epochs * (len(dataset.x_train) // config.batch_size)
    claim_folder(folder, "loss_scaling", config, dataset, updates)
    wanted = settings(config, math.prod(dataset.image_shape))
    parts = {
        f"{name}, seed {seed}": partial(trained_and_measured, config, dataset, name, seed, folder)
        for seed in config.seeds
        for name in wanted
    }
    runs = each_once(folder, parts)
    metrics = {}
    for name, setting in wanted.items():
        metrics[name] = over_seeds([runs[f"{name}, seed {seed}"] for seed in config.seeds], COLUMNS)
        metrics[name]["effective_beta"] = effective_beta(setting, math.prod(dataset.image_shape), config.latent_dim)
    with whole(folder / "table.md") as unfinished:
        unfinished.write_text(table(metrics) + notes(config, dataset))
    write_json(folder / "metrics.json", metrics)
    figures = {
        "dimensions": dimensions_figure(metrics, config, dataset, folder, updates),
        "resampled": resampled_figure(metrics, config, dataset, folder, updates),
        "beta": beta_figure(metrics, runs, config, dataset, updates),
    }
    for name, figure in figures.items():
        plots.save(figure, folder / f"{name}.png")
    print(table(metrics) + notes(config, dataset))
    print(folder)
    return metrics


def cell(found: dict, key: str) -> str:
    return plus_minus(found[key], found[f"{key}_sd"], COLUMNS[key][1])


def table(metrics: dict) -> str:
    """A row a setting, mean ± standard deviation over the seeds."""
    rows = [
        [row_title(name, found), f"{found['effective_beta']:.3g}", *(cell(found, key) for key in COLUMNS)]
        for name, found in metrics.items()
    ]
    return markdown(["", "β on sums", *(title for title, _ in COLUMNS.values())], rows)


def notes(config: Config, dataset: Dataset) -> str:
    """What the columns of the table rest on."""
    images, few = len(dataset.x_test), min(config.weighted_images, len(dataset.x_test))
    return (
        f"\nOf {images:,} grey test images; ELBO and bound of {few:,}, binarised, {WEIGHTED_SAMPLES:,} draws each. "
        f"I(x; z) by ELBO surgery, at most log {images:,} = {math.log(images):.1f} nats. As it was, β weighed the KL "
        "that was reported, times the dimensions, and not that of the z that are drawn.\n"
    )


def slug(name: str) -> str:
    """A name for a setting's files."""
    return re.sub(r"[^a-z0-9.+]+", "-", name.lower()).strip("-")


def shown_name(name: str) -> str:
    """A setting's name where it does not stand below the one before it."""
    return name.removeprefix("and ")


def by_beta(metrics: dict) -> dict:
    """`metrics` from the smallest effective beta to the largest."""
    return dict(sorted(metrics.items(), key=lambda item: item[1]["effective_beta"]))


def pictures(folder: Path, name: str) -> dict[str, np.ndarray]:
    with np.load(folder / f"{slug(name)}.npz") as arrays:
        return dict(arrays)


def dimensions_figure(metrics: dict, config: Config, dataset: Dataset, folder: Path, updates: int):
    """A row a setting: the KL of each dimension, largest first, and what the decoder makes of test images."""
    rows = {}
    for name, found in by_beta(metrics).items():
        shown = pictures(folder, name)
        title = shown_name(name) if "β =" in name else f"{shown_name(name)}\nβ = {found['effective_beta']:.3g}"
        numbers = (
            f"KL {cell(found, 'kl_nats')}, {cell(found, 'active_units')} live, "
            f"reconstruction {cell(found, 'test_reconstruction_nats')} nats"
        )
        rows[title] = figures.Spectrum(shown["kls"], shown["images"], numbers)
    seeds = of_seeds("mean ± standard deviation", config.seeds)
    return figures.spectra(
        rows,
        dataset.x_test[:SHOWN],
        f"A KL that is small on average, on {dataset.name}: {config.latent_dim} dimensions, dimension by dimension",
        f"Left: KL of each dimension of q(z|x) to the prior, averaged over {len(dataset.x_test):,} grey test images, "
        f"largest first. Right: the first of those images, above all, and the decoder's pixel means, z ~ q(z|x). "
        f"Pictures of seed {config.seeds[0]}; numbers: {seeds}. {updates:,} updates each, the same networks. A "
        f"dimension is live if the variance of E[z|x] over images is above 0.01",
        "dimension of the code, by its KL",
        "KL, nats",
    )


def resampled_figure(metrics: dict, config: Config, dataset: Dataset, folder: Path, updates: int):
    """What the decoder makes of codes whose dead, or live, dimensions are drawn from the prior."""
    rows, names = [], []
    for name in (EARLIER, ELBO):
        shown = pictures(folder, name)
        live = int(shown["live"])
        rows += [shown[key] for key in ("originals", "images", "images_dead_resampled", "images_live_resampled")]
        names += ["original", "z ~ q(z|x)", f"{config.latent_dim - live} dead\nresampled", f"{live} live\nresampled"]
    texts = [
        f"{shown_name(name)}: {cell(found, 'test_reconstruction_nats')}, {cell(found, 'dead_resampled_nats')} with the "
        f"dead and {cell(found, 'live_resampled_nats')} with the live resampled"
        for name, found in metrics.items()
        if name in (EARLIER, ELBO)
    ]
    return figures.named_tiles(
        np.stack(rows),
        names,
        [str(number) for number in range(1, len(rows[0]) + 1)],
        "test image",
        f"Which dimensions does the decoder listen to? On {dataset.name}",
        f"Decoder's pixel means, upper four rows {EARLIER}, lower four the ELBO; resampled dimensions are drawn from "
        f"the prior. Reconstruction of {len(dataset.x_test):,} grey test images, nats: {'; '.join(texts)}; the mean "
        f"image: {reconstruction.mean_image_cross_entropy(dataset.x_train, dataset.x_test):.1f}. Pictures of seed "
        f"{config.seeds[0]}, {updates:,} updates; numbers: {of_seeds('mean ± standard deviation', config.seeds)}",
        together=4,
    )


def beta_figure(metrics: dict, runs: dict, config: Config, dataset: Dataset, updates: int):
    """Numbers against the effective beta: sums as a line, means over pixels, whose gradients are smaller, as points.

    Without the notebook as it was, whose beta weighs another KL than that of the z that are drawn.
    """
    betas = {name: found["effective_beta"] for name, found in by_beta(metrics).items()}
    means = [name for name in betas if name in (ONE_READING, PIXEL_MEAN)]
    series = {
        "both terms sums": ([name for name in betas if name not in (EARLIER, *means)], "solid"),
        "a mean over the pixels": (means, "none"),
    }
    panels = {}
    for key in ("kl_nats", "active_units", "mutual_information_nats", "test_reconstruction_nats"):
        panels[COLUMNS[key][0]] = {
            title: figures.Curve(
                np.array([betas[name] for name in names]),
                np.array([[runs[f"{name}, seed {seed}"][key] for name in names] for seed in config.seeds]),
                line,
            )
            for title, (names, line) in series.items()
        }
    mean_image = reconstruction.mean_image_cross_entropy(dataset.x_train, dataset.x_test)
    return figures.bands(
        panels,
        "β on sums",
        f"What the weight of the KL does, on {dataset.name}",
        f"{config.latent_dim}-D code, {updates:,} updates, {len(dataset.x_test):,} grey test images; "
        f"{of_seeds('mean and range', config.seeds)}. I(x; z) is at most log {len(dataset.x_test):,} = "
        f"{math.log(len(dataset.x_test)):.1f} nats by ELBO surgery. Means over pixels and code make "
        f"β = {betas[ONE_READING]:.3g}, a mean over pixels beside a sum over the code {betas[PIXEL_MEAN]:.3g}, "
        "both with s read in one way",
        references={COLUMNS["test_reconstruction_nats"][0]: [(mean_image, "the mean image")]},
        x_scale="log",
    )


if __name__ == "__main__":
    run_main(main, Config)
