"""Mistakes that change a result without an error message, each beside the right version.

So far one story: AVB as an earlier Keras notebook had it, whose user concluded that it does not work. Its
discriminator ended in a sigmoid and its encoder got that one's reversed gradient, in place of T; its cross-entropy was
a mean over the pixels; its encoder's noise was uniform in training and normal in tests. Here these are mended one
after the other, the rest being equal, until it is AVB (arXiv 1701.04722). The wrong versions live in this file alone.

Run: python -m experiments.known_mistakes --data mnist.npz (--help lists every flag); --quick on the sample.
Leaves in results/known_mistakes/<name>/: metrics.json and table.md (means and standard deviations over the seeds),
runs.json (every seed), the first seed's codes and samples as <version>.npz, and mistakes.png. What is there already is
not made again.
"""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import keras
import numpy as np
from keras import ops

import avb
import vae_baseline
from common import plots
from common.adversarial import frozen
from common.data import Dataset, load_mnist
from common.evaluation import code
from common.files import whole, write_json
from common.measure import LikelihoodSettings, flat, importance_weighted, information, test_images, test_terms
from common.model import gaussian_kl, to_numpy
from common.run import (
    PositiveCount,
    Range,
    Seed,
    TimeLeft,
    check,
    claim_folder,
    each_once,
    main_of,
    quickened,
    require_images,
)
from common.tables import markdown, of_seeds, over_seeds, plus_minus, titled
from common.training import planned_updates, train_part

EARLIER = {"uniform_noise": True, "pixel_mean": True, "reversed_gradient": True}
VERSIONS = {  # name: the mistakes that are left, adaptive contrast
    "the earlier AVB": (EARLIER, False),
    "noise as in tests": (EARLIER | {"uniform_noise": False}, False),
    "and pixels summed": ({"reversed_gradient": True}, False),
    "and the mean of T: AVB": ({}, False),
    "and adaptive contrast": ({}, True),
}
COLUMNS = {  # key: how table and figure call it, digits
    "test_reconstruction_nats": ("reconstruction, nats", 1),
    "kl_estimated_nats": ("KL by T, nats", 1),
    "kl_neighbour_nats": ("KL by neighbours, nats", 1),
    "importance_weighted_bound_nats": ("log p(x), bound, nats", 1),
    "code_c2st_accuracy": ("C2ST to prior", 3),
}
WEIGHTED_SAMPLES = 2000
QUICK = {"data": "sample", "updates": 200, "seeds": (0,), "weighted_images": 50}


@dataclass(frozen=True)
class Config:
    """The same networks, data, updates and seeds for all; 2-D codes and rates are those of avb.py."""

    data: str = "auto"  # auto, mnist, fashion_mnist, sample, or the path of an .npz file
    hidden_units: tuple[PositiveCount, ...] = (300, 300)  # ReLU units a layer, all networks
    updates: PositiveCount = 5500  # steps of the optimiser: 10 passes over MNIST
    seeds: tuple[Seed, ...] = (0, 1, 2)  # of weights, noise, order and binarisation
    weighted_images: Annotated[int, Range(1)] = 500  # test images of the importance-weighted bound
    quick: bool = False  # whatever is not asked for is small: the sample, one seed, 200 updates
    results: str = "results"  # the folder of all runs
    name: str = ""  # the folder below results/known_mistakes/; "default" or "quick" if empty


class MistakenVAE(vae_baseline.VAE):
    """The VAE with those of the mistakes that it is told to make.

    Means for the sum over pixels, and for that over the dimensions of the code; and `two_readings` of s, the encoder's
    second output: log sigma where z is drawn, log sigma^2 in the KL. "log_var" among what it infers is that of the z
    which it draws, so that every instrument measures those; `kl_stated_nats` is the KL as its loss has it, summed.
    """

    def __init__(self, pixel_mean=False, code_mean=False, two_readings=False, **kwargs):
        super().__init__(**kwargs)
        self.pixel_mean, self.code_mean, self.two_readings = pixel_mean, code_mean, two_readings

    def infer(self, x):
        mean, s = ops.split(self.encoder(x), 2, axis=-1)
        log_var = 2.0 * s if self.two_readings else s
        return {"z": mean + ops.exp(0.5 * log_var) * self.noise(ops.shape(mean)), "mean": mean, "log_var": log_var}

    def objective(self, x, outputs):
        kl = ops.mean(self.divergences(x, outputs)["kl_stated_nats"])
        terms = super().objective(x, outputs) | {"kl": self.beta * self.warm_up_weight * kl}
        if self.pixel_mean:
            terms["reconstruction"] = terms["reconstruction"] / math.prod(x.shape[1:])
        if self.code_mean:
            terms["kl"] = terms["kl"] / self.prior.latent_dim
        return terms

    def divergences(self, x, outputs):
        stated = 0.5 * outputs["log_var"] if self.two_readings else outputs["log_var"]
        kl = gaussian_kl(outputs["mean"], stated, self.prior.scale)
        return super().divergences(x, outputs) | {"kl_stated_nats": kl}


def mistaken_vae(config: vae_baseline.Config, mistakes: dict, image_shape) -> MistakenVAE:
    """vae_baseline.py's networks in a VAE that makes mistakes, or none."""
    right = vae_baseline.build(config, image_shape)
    return MistakenVAE(**mistakes, beta=config.beta, prior=right.prior, seed=config.seed, **right.networks)


class MistakenAVB(avb.AVB):
    """AVB without adaptive contrast, with those of the mistakes that it is told to make."""

    def __init__(self, uniform_noise=False, pixel_mean=False, reversed_gradient=False, **kwargs):
        super().__init__(**kwargs)
        self.uniform_noise, self.pixel_mean, self.reversed_gradient = uniform_noise, pixel_mean, reversed_gradient
        self.trains = False

    def noise(self, shape):
        """Uniform on [0, 1), Keras' default, in training if that mistake is made; normal otherwise."""
        if self.uniform_noise and self.trains:
            return keras.random.uniform(shape, seed=self.seed_generator)
        return super().noise(shape)

    def call(self, x, training=False):
        self.trains = bool(training)
        try:
            return super().call(x)
        finally:
            self.trains = False

    def objective(self, x, outputs):
        terms = super().objective(x, outputs)
        if self.pixel_mean:
            terms["reconstruction"] = terms["reconstruction"] / math.prod(x.shape[1:])
        if self.reversed_gradient:  # of the discriminator's loss on codes, -log sigma(T), where AVB has T
            t = self.log_odds(frozen(self.discriminator), x, outputs["z"])
            terms["kl"] = -ops.mean(ops.softplus(-t))
        return terms


def configured(config: Config, version: str, seed: int) -> avb.Config:
    """avb.py's own parameters for a version."""
    return avb.Config(
        data=config.data,
        binarisation="dynamic",
        latent_dim=2,
        adaptive_contrast=VERSIONS[version][1],
        hidden_units=config.hidden_units,
        discriminator_units=config.hidden_units,
        updates=config.updates,
        seed=seed,
    )


def build(config: avb.Config, mistakes: dict, image_shape) -> avb.AVB:
    """avb.py's model, or one of the same networks that makes mistakes."""
    right = avb.build(config, image_shape)
    if not mistakes:
        return right
    shape = {"noise_basis": config.noise_basis, "noise_dim": config.noise_dim}
    rest = {"adaptive_contrast": False, "prior": right.prior, "seed": config.seed} | shape
    return MistakenAVB(**mistakes, **rest, **right.networks)


def trained_and_measured(config: Config, dataset: Dataset, version: str, seed: int, folder: Path) -> dict:
    """Train a version and measure it on test images; the first seed's codes and samples go into `folder`."""
    print(f"{version}, seed {seed}", flush=True)
    asked = configured(config, version, seed)
    model = build(asked, VERSIONS[version][0], dataset.image_shape)
    outcome = train_part(model, dataset, asked, folder / slug(version))
    x_test = test_images(dataset, asked)
    codes, prior = model.encode(x_test), to_numpy(model.prior.sample(len(x_test), model.seed_generator))
    settings = LikelihoodSettings(0, 0, (), config.weighted_images, WEIGHTED_SAMPLES)
    found = test_terms(model, x_test) | information(model, x_test, codes)
    found |= {"code_c2st_accuracy": code.c2st_accuracy(codes, prior, seed)}
    found |= importance_weighted(model, dataset, settings, TimeLeft())[0]
    if seed == config.seeds[0]:
        with whole(folder / f"{slug(version)}.npz") as unfinished:
            np.savez_compressed(unfinished, codes=codes, prior=prior, samples=model.sample(36))
    keras.utils.clear_session()
    return {key: value for key, value in flat(found).items() if key in COLUMNS} | {"stopped_by": outcome.stopped_by}


def slug(version: str) -> str:
    """A name for a version's files."""
    return version.lower().replace(":", "").replace(" ", "-")


def main(config: Config = Config()) -> dict:
    """Train and measure what is not there yet; returns what metrics.json holds."""
    check(config)
    if config.quick:
        config = quickened(config, QUICK)
    dataset = load_mnist(config.data)
    require_images(dataset, avb.Config().batch_size)
    folder = Path(config.results) / "known_mistakes" / (config.name or ("quick" if config.quick else "default"))
    updates = planned_updates(avb.Config(updates=config.updates), len(dataset.x_train))
    claim_folder(folder, "known_mistakes", config, dataset, updates)
    parts = {
        f"{version}, seed {seed}": partial(trained_and_measured, config, dataset, version, seed, folder)
        for seed in config.seeds
        for version in VERSIONS
    }
    runs = each_once(folder, parts)
    metrics = {}
    for version in VERSIONS:
        metrics[version] = over_seeds([runs[f"{version}, seed {seed}"] for seed in config.seeds], COLUMNS)
    with whole(folder / "table.md") as unfinished:
        unfinished.write_text(table(metrics))
    write_json(folder / "metrics.json", metrics)
    plots.save(figure(metrics, config, dataset, folder, updates), folder / "mistakes.png")
    print(table(metrics))
    print(folder)
    return metrics


def cell(found: dict, key: str) -> str:
    return plus_minus(found[key], found[f"{key}_sd"], COLUMNS[key][1])


def table(metrics: dict) -> str:
    """A row a version, mean ± standard deviation over the seeds."""
    rows = [[titled(version, found), *(cell(found, key) for key in COLUMNS)] for version, found in metrics.items()]
    return markdown(["", *(title for title, _ in COLUMNS.values())], rows)


def figure(metrics: dict, config: Config, dataset: Dataset, folder: Path, updates: int):
    """Codes, samples and numbers of every version."""
    columns = []
    for version, found in metrics.items():
        with np.load(folder / f"{slug(version)}.npz") as arrays:
            pictures = [arrays[key] for key in ("codes", "prior", "samples")]
        numbers = {title.replace(", nats", ""): cell(found, key) for key, (title, _) in COLUMNS.items()}
        columns.append(plots.Column(version, *pictures, numbers))
    seeds = of_seeds("mean ± standard deviation", config.seeds)
    return plots.side_by_side(
        columns,
        dataset.y_test,
        ("z₁", "z₂"),
        f"An AVB that is none, mended one mistake at a time, on {dataset.name}",
        f"Top: codes of {len(dataset.x_test):,} binarised test images by class, with normal noise; prior samples in "
        f"black. Middle: the decoder's pixel means for z ~ p(z). Pictures of seed {config.seeds[0]}; numbers, in nats "
        f"but for C2ST: {seeds}. {updates:,} updates each, the same networks; the bound: {config.weighted_images:,} "
        f"images, {WEIGHTED_SAMPLES:,} draws. −: some draws of a q(z|x) coincide, so narrow is it",
    )


if __name__ == "__main__":
    main_of(main, Config)
