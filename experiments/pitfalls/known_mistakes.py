"""Mistakes that change a result without an error message, each trained beside the right version, with the same seed.

For each: two pictures, two rows of numbers, and one sentence on how to notice it.

    pixel_mean                 VAE: a mean over the pixels beside a KL that is a sum
    two_readings               VAE: the encoder's s is log sigma where z is drawn, log sigma^2 in the KL
    reversed_gradient          AVB: the discriminator's reversed gradient in place of the mean of T
    image_unseen               AVB: T sees z alone and not (x, z)
    uniform_noise              AVB: the encoder's noise is uniform in training, normal in tests
    image_moments              AVB: adaptive contrast by the moments over the images instead of over the noise
    normalised_discriminator   AAE: batch normalisation in the discriminator, prior draws and codes apart
    labels_unseen              AAE: labels choose the prior's mode and never reach the discriminator
    earlier_avb                an AVB whose user concluded that it does not work, mended one mistake at a time

The last is AVB as an earlier Keras notebook had it: its discriminator ended in a sigmoid and its encoder got that one's
reversed gradient, its cross-entropy was a mean over the pixels, and its noise in tests was not that of training. The
wrong versions live in this file alone; the right ones are those of the scripts, each trained once a seed for all that
stand beside it.

Run: python -m experiments.known_mistakes --data mnist.npz (--help lists every flag); --quick on the sample;
--mistakes pixel_mean labels_unseen for these two. Papers: arXiv 1701.04722 (AVB), 1511.05644 (AAE), 1312.6114 (VAE).
Leaves in results/known_mistakes/<name>/: <mistake>.png, table.md and metrics.json (means and standard deviations over
the seeds), runs.json (every seed), and the first seed's codes and samples, <version>.npz. What is there already is not
made again.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import aae_deterministic
import aae_gaussian
import avb
import vae_baseline
from common import networks, plots
from common.adversarial import frozen
from common.command import run_main
from common.config import AtLeast, PositiveCount, Seed, check
from common.data import Dataset, load_mnist
from common.evaluation import latent
from common.files import whole, write_json
from common.measure import active_units, information, test_images, test_terms
from common.measure_likelihood import LikelihoodSettings, importance_weighted
from common.model import LatentModel, gaussian_kl, to_numpy
from common.numbers import flat, markdown, of_seeds, over_seeds, plus_minus
from common.progress import TimeLeft
from common.training import planned_updates
from experiments import figures
from experiments.aae import label_prior
from experiments.study import claim_folder, each_once, quickened, require_images, train_part

import keras
import numpy as np
from keras import layers, ops

COLUMNS = {  # key: how table and figure call it, digits
    "test_reconstruction_nats": ("reconstruction, nats", 1),
    "kl_nats": ("KL, nats", 1),
    "kl_stated_nats": ("KL in the loss, nats", 1),
    "kl_estimated_nats": ("KL by T, nats", 1),
    "kl_neighbour_nats": ("KL by neighbours, nats", 1),
    "importance_weighted_bound_nats": ("log p(x), bound, nats", 1),
    "code_c2st_accuracy": ("C2ST to prior", 3),
    "active_units": ("active units", 1),
    "own_mode_share": ("in own mode", 3),
    "discriminator_nats": ("discriminator, nats", 3),
}
FIT = ("test_reconstruction_nats", "importance_weighted_bound_nats", "code_c2st_accuracy")
OF_AVB = (
    "test_reconstruction_nats",
    "kl_estimated_nats",
    "kl_neighbour_nats",
    "importance_weighted_bound_nats",
    "code_c2st_accuracy",
)


class Version(NamedTuple):
    """What is trained: one of the right models, with mistakes or without."""

    right: str
    mistakes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return ", ".join((self.right, *self.mistakes)).replace("_", " ")

    @property
    def slug(self) -> str:
        """A name for its files."""
        return self.name.lower().replace(", ", "-").replace(" ", "-")


class Mistake(NamedTuple):
    """One part of the experiment."""

    title: str
    versions: dict[str, Version]  # by the names of their rows
    numbers: tuple[str, ...]  # keys of COLUMNS, as many as the figure has room for: five
    notice: str  # one sentence on how to notice it


def beside(right: str, mistake: str) -> dict[str, Version]:
    """The two rows of a mistake: the right version and the one that makes it."""
    return {right: Version(right), mistake.replace("_", " "): Version(right, (mistake,))}


VAE, AVB, CONTRAST, AAE, LABELS = "VAE", "AVB without contrast", "AVB with contrast", "Gaussian AAE", "AAE with labels"
EARLIER_AVB = {
    "the earlier AVB": Version(AVB, ("uniform_noise", "pixel_mean", "reversed_gradient")),
    "noise as in tests": Version(AVB, ("pixel_mean", "reversed_gradient")),
    "and pixels summed": Version(AVB, ("reversed_gradient",)),
    "and the mean of T: AVB": Version(AVB),
    "and adaptive contrast": Version(CONTRAST),
}
MISTAKES = {
    "pixel_mean": Mistake(
        "A mean over the pixels beside a KL that is a sum",
        beside(VAE, "pixel_mean"),
        (*FIT, "kl_nats", "active_units"),
        "The reconstruction in the log is below 1 nat where that of an image is a hundred and more; the KL falls to 0, "
        "and every z decodes to the same image.",
    ),
    "two_readings": Mistake(
        "The encoder's s read as log σ where z is drawn and as log σ² in the KL",
        beside(VAE, "two_readings"),
        (*FIT, "kl_nats", "kl_stated_nats"),
        "Draw many z for one image: their standard deviation is not the one in the KL, and the KL of the z that are "
        "drawn is not the one in the loss.",
    ),
    "reversed_gradient": Mistake(
        "A reversed gradient in place of the mean of T",
        beside(AVB, "reversed_gradient"),
        OF_AVB,
        "The encoder's term is below 0 from the first update to the last, where a KL is never; and the loss at its end "
        "is no bound of log p(x).",
    ),
    "image_unseen": Mistake(
        "A T that sees z alone, not (x, z)",
        beside(AVB, "image_unseen"),
        OF_AVB,
        "Give T another image beside the same z: its value does not change; its KL is then that of all codes together, "
        "far below that of q(z|x) by neighbours.",
    ),
    "uniform_noise": Mistake(
        "Encoder noise that is uniform in training and normal in tests",
        beside(AVB, "uniform_noise"),
        OF_AVB,
        "Reconstruct training images as in tests: the loss is far above the one that training has logged.",
    ),
    "image_moments": Mistake(
        "Adaptive contrast by the moments over the images instead of over the noise",
        beside(CONTRAST, "image_moments"),
        OF_AVB,
        "Print the mean and the deviation that z is normalised by: they are the same for every image; and T's KL falls "
        "short of that by neighbours, as if there were no contrast.",
    ),
    "normalised_discriminator": Mistake(
        "Batch normalisation in the discriminator",
        beside(AAE, "normalised_discriminator"),
        (*FIT, "kl_nats", "discriminator_nats"),
        "Shift and scale a batch of codes: the discriminator's output does not change; its loss stays near 2 log 2 "
        "while a fresh classifier tells codes from prior.",
    ),
    "labels_unseen": Mistake(
        "Labels that choose the prior's mode and never reach the discriminator",
        beside(LABELS, "labels_unseen"),
        ("test_reconstruction_nats", "code_c2st_accuracy", "own_mode_share", "discriminator_nats"),
        "Give the discriminator another label beside the same z: its output does not change; coloured by class, "
        "few codes are in their own mode.",
    ),
    "earlier_avb": Mistake(
        "An AVB that is none, mended one mistake at a time",
        EARLIER_AVB,
        OF_AVB,
        "Three mistakes at once, each to be noticed as it is alone: uniform_noise, pixel_mean, reversed_gradient.",
    ),
}
WEIGHTED_SAMPLES = 2000
QUICK = {
    "data": "sample",
    "mistakes": tuple(name for name in MISTAKES if name != "earlier_avb"),
    "updates": 200,
    "seeds": (0,),
    "weighted_images": 20,
}


@dataclass(frozen=True)
class Config:
    """The same networks, data, updates and seeds in every row of a mistake; codes of two dimensions.

    Rates and whether images are binarised are those of the scripts, and for `labels_unseen` of label_prior, which
    trains on fewer images and hence for another number of whole passes.
    """

    data: str = "auto"  # auto, mnist, fashion_mnist, sample, or the path of an .npz or .npy file
    mistakes: tuple[Literal[*MISTAKES], ...] = tuple(MISTAKES)  # which of those above
    hidden_units: tuple[PositiveCount, ...] = (300, 300)  # ReLU units a layer, all networks
    updates: PositiveCount = 5500  # steps of the optimiser: 10 passes over MNIST
    seeds: tuple[Seed, ...] = (0, 1, 2)  # of weights, noise, order and binarisation
    weighted_images: Annotated[int, AtLeast(2)] = 500  # test images of the importance-weighted bound
    quick: bool = False  # whatever is not asked for is small: the sample, one seed, 200 updates, no earlier_avb
    results: str = "results"  # the folder of all runs
    name: str = ""  # the folder below results/known_mistakes/; "default" or "quick" if empty
    resume: str = ""  # the folder of a run that was stopped: go on with it, and with its parameters


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
    """AVB with those of the mistakes that it is told to make.

    `image_moments` is one of adaptive contrast, the others are made without it.
    """

    def __init__(
        self,
        uniform_noise=False,
        pixel_mean=False,
        reversed_gradient=False,
        image_unseen=False,
        image_moments=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.uniform_noise, self.pixel_mean, self.reversed_gradient = uniform_noise, pixel_mean, reversed_gradient
        self.image_unseen, self.image_moments = image_unseen, image_moments
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

    def infer(self, x):
        inferred = super().infer(x)
        if self.image_moments:  # those of all codes in the batch, for every image
            z = inferred["z"]
            moments = {"mean": ops.mean(z, axis=0), "variance": ops.var(z, axis=0)}  # (latent_dim,) each
            inferred |= {name: ops.broadcast_to(moment, ops.shape(z)) for name, moment in moments.items()}
        return inferred

    def objective(self, x, outputs):
        terms = super().objective(x, outputs)
        if self.pixel_mean:
            terms["reconstruction"] = terms["reconstruction"] / math.prod(x.shape[1:])
        if self.reversed_gradient:  # of the discriminator's loss on codes, -log sigma(T), where AVB has T
            t = self.log_odds(frozen(self.discriminator), x, outputs["z"])
            terms["kl"] = -ops.mean(ops.softplus(-t))
        return terms

    def log_odds(self, discriminator, x, z_hat):
        return super().log_odds(discriminator, ops.zeros_like(x) if self.image_unseen else x, z_hat)


def mistaken_avb(config: avb.Config, mistakes: dict, image_shape) -> avb.AVB:
    """avb.py's model, or one of the same networks that makes mistakes."""
    right = avb.build(config, image_shape)
    if not mistakes:
        return right
    shape = {"noise_basis": config.noise_basis, "noise_dim": config.noise_dim}
    rest = {"adaptive_contrast": config.adaptive_contrast, "prior": right.prior, "seed": config.seed} | shape
    return MistakenAVB(**mistakes, **rest, **right.networks)


class BatchNormalised(keras.Model):
    """A network that normalises by the statistics of whatever batch it is given, in tests as in training."""

    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training=True, mask=mask)


def normalised_discriminator(latent_dim: int, hidden_units, random: np.random.Generator) -> BatchNormalised:
    """`networks.discriminator` with batch normalisation: (batch, latent_dim) -> (batch, 1)."""
    codes = layers.Input((latent_dim,), name="code")
    hidden = networks.hidden_layers(codes, hidden_units, random, normalised=True)
    logit = layers.Dense(1, kernel_initializer=networks.seeded(random), name="logit")(hidden)
    return BatchNormalised(codes, logit, name="discriminator")


def mistaken_aae(config: aae_gaussian.Config, mistakes: dict, image_shape) -> aae_gaussian.GaussianAAE:
    """aae_gaussian.py's model, or with a discriminator that sees prior draws and codes in normalised batches."""
    right = aae_gaussian.build(config, image_shape)
    if not mistakes:
        return right
    normalised = normalised_discriminator(config.latent_dim, config.hidden_units, np.random.default_rng(config.seed))
    rest = {"adversarial_weight": config.adversarial_weight, "prior": right.prior, "seed": config.seed}
    return aae_gaussian.GaussianAAE(**rest, **right.networks | {"discriminator": normalised})


class LabelsUnseenAAE(label_prior.LabelPriorAAE):
    """The AAE with labels in its prior, whose discriminator has zeros in their place."""

    def beside(self, z, labels):
        seen = super().beside(z, labels)
        return ops.concatenate([z, ops.zeros_like(seen[:, z.shape[-1] :])], axis=-1)


def mistaken_labels(config: aae_deterministic.Config, mistakes: dict, image_shape) -> label_prior.LabelPriorAAE:
    """aae_label_prior.py's model, or one of the same networks that keeps the labels from the discriminator."""
    right = label_prior.build(config, image_shape)
    if not mistakes:
        return right
    rest = {"adversarial_weight": config.adversarial_weight, "prior": right.prior, "seed": config.seed}
    return LabelsUnseenAAE(**rest, **right.networks)


RIGHT = {  # name: how it is built, with mistakes or without, and its parameters
    VAE: (mistaken_vae, vae_baseline.Config(binarisation="dynamic")),
    AVB: (mistaken_avb, avb.Config(adaptive_contrast=False)),
    CONTRAST: (mistaken_avb, avb.Config()),
    AAE: (mistaken_aae, aae_gaussian.Config(binarisation="dynamic")),
    LABELS: (mistaken_labels, label_prior.configured(label_prior.Config(), "mixture", 0)),
}


def build(config: Config, version: Version, seed: int, image_shape):
    """The untrained model of a version, and the parameters that it has in its own script."""
    builder, asked = RIGHT[version.right]
    units = {name: config.hidden_units for name in ("hidden_units", "discriminator_units") if hasattr(asked, name)}
    asked = replace(asked, data=config.data, updates=config.updates, seed=seed, **units)
    return builder(asked, dict.fromkeys(version.mistakes, True), image_shape), asked


def trained_and_measured(config: Config, dataset: Dataset, version: Version, seed: int, folder: Path) -> dict:
    """Train a version and measure it on test images; the first seed's codes and samples go into `folder`."""
    print(f"{version.name}, seed {seed}", flush=True)
    model, asked = build(config, version, seed, dataset.image_shape)
    own_folder = folder / f"{version.slug}-{seed}"
    if version.right == LABELS:
        outcome = label_prior.trained(model, dataset, label_prior.Config(), asked, own_folder)
    else:
        outcome = train_part(model, dataset, asked, own_folder)
    x_test = test_images(dataset, asked)
    codes, prior = model.encode(x_test), to_numpy(model.prior.sample(len(x_test), model.seed_generator))
    found = measured(model, dataset, x_test, codes, prior, config.weighted_images, seed)
    found |= {"discriminator_nats": outcome.history.get("discriminator", [None])[-1]}
    if seed == config.seeds[0]:
        with whole(folder / f"{version.slug}.npz") as unfinished:
            np.savez_compressed(unfinished, codes=codes, prior=prior, samples=model.sample(36))
    keras.utils.clear_session()
    numbers = {key: value for key, value in flat(found).items() if key in COLUMNS}
    return numbers | {"updates": outcome.updates, "stopped_by": outcome.stopped_by}


def measured(model: LatentModel, dataset: Dataset, x_test, codes, prior, weighted_images: int, seed: int) -> dict:
    """The numbers of COLUMNS but for the discriminator's loss; codes and prior draws are (n, latent_dim)."""
    settings = LikelihoodSettings(0, 0, (), weighted_images, WEIGHTED_SAMPLES)
    found = test_terms(model, x_test) | {"code_c2st_accuracy": latent.c2st_accuracy(codes, prior, seed)}
    if model.posterior == "implicit":
        found |= information(model, x_test, codes)  # for the KL, which has no closed form
    found |= importance_weighted(model, dataset, settings, TimeLeft())[0]
    found |= {"active_units": active_units(model, x_test)}
    if isinstance(model, label_prior.LabelPriorAAE):
        found |= {"own_mode_share": label_prior.own_mode_share(model.prior, codes, dataset.y_test)}
    return found


def wanted(config: Config) -> list[Version]:
    """Every version of the mistakes asked for, each once."""
    return list(dict.fromkeys(version for name in config.mistakes for version in MISTAKES[name].versions.values()))


def main(config: Config = Config()) -> dict:
    """Train and measure what is not there yet; returns what metrics.json holds."""
    check(config)
    if config.quick:
        config = quickened(config, QUICK)
    dataset = load_mnist(config.data)
    require_images(dataset, avb.Config().batch_size)
    if "labels_unseen" in config.mistakes:
        label_prior.require_modes(dataset, label_prior.Config())
    config = replace(config, updates=planned_updates(avb.Config(updates=config.updates), len(dataset.x_train)))
    folder = Path(config.results) / "known_mistakes" / (config.name or ("quick" if config.quick else "default"))
    claim_folder(folder, "known_mistakes", config, dataset, config.updates)
    parts = {
        f"{version.name}, seed {seed}": partial(trained_and_measured, config, dataset, version, seed, folder)
        for seed in config.seeds
        for version in wanted(config)
    }
    runs = each_once(folder, parts)
    metrics = {
        version.name: over_seeds([runs[f"{version.name}, seed {seed}"] for seed in config.seeds], (*COLUMNS, "updates"))
        for version in wanted(config)
    }
    with whole(folder / "table.md") as unfinished:
        unfinished.write_text(tables(config, metrics))
    write_json(folder / "metrics.json", metrics)
    for name in config.mistakes:
        plots.save(figure(MISTAKES[name], metrics, config, dataset, folder), folder / f"{name}.png")
    print(tables(config, metrics))
    print(folder)
    return metrics


def cell(found: dict, key: str) -> str:
    return plus_minus(found[key], found[f"{key}_sd"], COLUMNS[key][1])


def tables(config: Config, metrics: dict) -> str:
    """For every mistake the sentence, and a row a version, mean ± standard deviation over the seeds."""
    parts = []
    for title, versions, numbers, notice in (MISTAKES[name] for name in config.mistakes):
        found = {row: metrics[version.name] for row, version in versions.items()}
        rows = [[row_title(row, one), *(cell(one, key) for key in numbers)] for row, one in found.items()]
        parts.append(f"### {title}\n\n{notice}\n\n{markdown(['', *(COLUMNS[key][0] for key in numbers)], rows)}")
    return "\n".join(parts)


def figure(mistake: Mistake, metrics: dict, config: Config, dataset: Dataset, folder: Path):
    """Codes, samples and numbers of the right version and the wrong one, and how to notice which it is."""
    columns = []
    for row, version in mistake.versions.items():
        with np.load(folder / f"{version.slug}.npz") as arrays:
            pictures = [arrays[key] for key in ("codes", "prior", "samples")]
        found = metrics[version.name]
        numbers = {COLUMNS[key][0].replace(", nats", ""): cell(found, key) for key in mistake.numbers}
        columns.append(figures.Column(row, *pictures, numbers))
    seeds = of_seeds("mean ± standard deviation", config.seeds)
    updates = metrics[next(iter(mistake.versions.values())).name]["updates"]
    by_class = "" if dataset.y_test is None else " by class"
    return figures.side_by_side(
        columns,
        dataset.y_test,
        ("z₁", "z₂"),
        f"{mistake.title}, on {dataset.name}",
        f"{mistake.notice} Top: codes of {len(dataset.x_test):,} test images{by_class}, drawn as in tests; prior "
        f"samples in black. Middle: the decoder's pixel means for z ~ p(z). Pictures of seed {config.seeds[0]}; "
        f"numbers: {seeds}, in nats but for C2ST, units and modes. {updates:,.0f} updates each."
        f"{notes(mistake, metrics, config, dataset)}",
    )


def notes(mistake: Mistake, metrics: dict, config: Config, dataset: Dataset) -> str:
    """What has to be said of some numbers, where they are shown."""
    images = min(config.weighted_images, len(dataset.x_test))
    bound = f" Bound: {images:,} binarised images, {WEIGHTED_SAMPLES:,} draws each."
    absent = " −: some draws of a q(z|x) coincide, so narrow is it."
    lacks = any(metrics[version.name]["kl_neighbour_nats"] is None for version in mistake.versions.values())
    shown = {"importance_weighted_bound_nats": bound, "kl_neighbour_nats": absent if lacks else ""}
    return "".join(note for key, note in shown.items() if key in mistake.numbers)


if __name__ == "__main__":
    run_main(main, Config)
