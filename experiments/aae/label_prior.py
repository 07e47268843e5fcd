"""Labels shape the prior of an adversarial autoencoder: each class fills its own mode (AAE paper, section 2.3, Fig. 4).

Makhzani et al., arXiv 1511.05644. The encoder is deterministic, z = encoder(x), and never sees a label. The prior p(z)
is a mixture of ten Gaussians or a swiss roll. Class y owns the mode p(z|y), the y-th Gaussian or the y-th tenth of the
roll. The discriminator sees the code and a label: a one-hot vector of eleven, whose last entry means "unlabelled". One
fifth of the images has labels. Every network minimises its own terms, in nats per image, all in one step:

    encoder, decoder    E_x [ -log p(x|z) ]                                  reconstruction, summed over the pixels
    encoder             adversarial_weight E_x,y [ -log D(z, y) ]            generator
    discriminator       E_y,p(z|y) [ -log D(z, y) ] + E_x,y [ -log(1 - D(z, y)) ]

Here p(z|unlabelled) is the whole prior. `python -m experiments.pitfalls.known_mistakes --mistakes labels_unseen` shows
the result if the labels choose the prior's mode but never reach the discriminator.

Expected result: at least 93 % of held-out codes lie in their own mode of the mixture. At the adversarial weight of
aae_deterministic.py, 40, classes settle in each other's modes, and the reconstruction keeps them there. The weight was
chosen by the share of validation images in their own mode (2 x 500 units, 3,000 updates, seed 100). It was 0.943 at a
weight of 100, 0.940 at 200, and 0.936 at 400. So 100 is the default.

Half of every batch has labels. At a fifth, their share of the images, few updates do not order the classes of the
sample.

Run: python -m experiments.aae.label_prior --data mnist.npz (--help lists every flag). --quick is a short run on the
sample. `--classes 0 1 2` leaves all other classes without labels. Resumes if interrupted. Results in
results/aae_label_prior/<name>/:

    metrics.json, table.md      means and standard deviations over the seeds
    runs.json                   numbers of every seed
    <prior>.png                 codes and decoded walks of the first seed
    a folder per training       history.csv
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import aae_deterministic
from common import networks, plots
from common.adversarial import discriminator_loss, frozen, generator_loss
from common.binarisation import random_stream
from common.config import Between, Count, Factor, PositiveCount, Seed
from common.data import Dataset
from common.evaluation import latent
from common.files import RunError
from common.likelihoods import binary_cross_entropy
from common.measure import encoded, test_terms
from common.metrics import METRICS, Metric
from common.model import to_numpy
from common.numbers import Estimate, of_seeds, share_of
from common.priors import MODES, PRIORS
from experiments import figures, study
from experiments.aae.categorical import LabelledBatches
from experiments.study import ImageStudyConfig, Part, Results, Study, run_study

import keras
import numpy as np
from keras import ops

UNLABELLED = MODES  # the eleventh label: the image has no class
LABELLED_SHARE = 0.5  # the share of labelled images in a batch
WALK = 10  # images along each mode
CLASS_POINTS = 500  # codes of a class, and the same number of draws from its mode, for the discrepancy
FEWEST_OF_A_CLASS = 4  # a class with fewer test images gets no numbers
AXES = {  # prior: the meaning of a walk's steps, and of a row
    "mixture": ("along the mode's long axis, outwards", "mode"),
    "swiss_roll": ("along the roll, outwards", "tenth of the roll"),
}
COLUMNS = {
    "own_mode_share": Metric("codes in their own mode", "", 3, "higher", "share of test codes in their label's mode"),
    "prior_own_mode_share": Metric(
        "prior draws in their own mode", "", 3, "", "the same for draws from the modes, which overlap: the ceiling"
    ),
    "code_c2st_accuracy": METRICS["code_c2st_accuracy"],
    "code_mmd_imq": METRICS["code_mmd_imq"],
    "class_c2st_accuracy": Metric("C2ST of a class to its mode", "", 3, 0.5, "mean over the classes that have labels"),
    "class_mmd_imq": Metric(
        "MMD² of a class to its mode (IMQ), × 1000", "", 2, 0, "mean over the classes that have labels", 1000.0
    ),
    "test_reconstruction_nats": METRICS["test_reconstruction_nats"],
}
QUICK = {"data": "sample", "hidden_units": (200, 200), "updates": 1000, "seeds": (0,)}


@dataclass(frozen=True)
class Config(ImageStudyConfig):
    """The paper's values where it gives them. All other parameters are as in aae_deterministic.py."""

    data: str = "auto"  # auto, mnist, fashion_mnist, sample, or an .npz file; with labels from 0 to 9
    labelled_images: PositiveCount = 10_000  # labelled training images (section 2.3); the same share of a smaller set
    unlabelled_images: Count = 40_000  # unlabelled training images (section 2.3)
    classes: tuple[Annotated[int, Between(0, MODES)], ...] = tuple(range(MODES))  # classes that have labels
    priors: tuple[Literal["mixture", "swiss_roll"], ...] = ("mixture", "swiss_roll")  # priors to train with (Fig. 4)
    hidden_units: tuple[PositiveCount, ...] = (1000, 1000)  # ReLU units per layer, all networks (appendix A.1)
    adversarial_weight: Factor = 100.0  # factor on the generator's loss; the reconstruction is a sum over all pixels
    updates: PositiveCount = 5000  # optimiser steps; the training sees labelled images 25 times, all others 6 times
    seeds: tuple[Seed, ...] = (0, 1, 2)  # random seeds of weights, prior draws, order and the choice of labelled images


class MixedBatches(LabelledBatches):
    """`LabelledBatches` in which LABELLED_SHARE has labels, so that labelled images come more often than others."""

    def shuffle(self, epoch: int):
        self.epoch, random = epoch, np.random.default_rng([self.seed, epoch])
        labelled = self.labels != UNLABELLED
        count = round(LABELLED_SHARE * self.batch_size) if not labelled.all() else self.batch_size
        count = count if labelled.any() else 0
        parts = [
            np.resize(random.permutation(np.flatnonzero(chosen)), (len(self), size))
            for chosen, size in ((labelled, count), (~labelled, self.batch_size - count))
        ]
        self.order = np.concatenate(parts, axis=1).ravel()


class LabelPriorAAE(aae_deterministic.DeterministicAAE):
    """z = encoder(x), matched to the mode of its label by a discriminator that sees z and the label.

    In training a batch is {"images", "labels"}, with labels from 0 to 9 or UNLABELLED. To encode, images are enough.
    """

    title = "Deterministic AAE, labels in its prior"

    def infer(self, x):
        return super().infer(x["images"] if isinstance(x, dict) else x)

    def prior_draws(self, labels):
        """A draw from each label's mode, or from the whole prior for UNLABELLED: (batch,) -> (batch, latent_dim)."""
        anywhere = keras.random.randint(ops.shape(labels), 0, MODES, seed=self.seed_generator)
        modes = ops.where(labels == UNLABELLED, anywhere, labels)
        return self.prior.sample(ops.shape(labels)[0], self.seed_generator, modes)

    def joined(self, z, labels):
        """The discriminator's input, codes and labels: (batch, latent_dim), (batch,) -> (batch, latent_dim + 11)."""
        return ops.concatenate([z, ops.one_hot(labels, MODES + 1, dtype="float32")], axis=-1)

    def objective(self, x, outputs):
        z, labels = outputs["z"], ops.cast(x["labels"], "int32")
        return {
            "reconstruction": binary_cross_entropy(x["images"], outputs["parameters"]),
            "generator": self.adversarial_weight * generator_loss(frozen(self.discriminator)(self.joined(z, labels))),
            "discriminator": discriminator_loss(
                self.discriminator(self.joined(self.prior_draws(labels), labels)),
                self.discriminator(self.joined(ops.stop_gradient(z), labels)),
            ),
        }


def configured(config: Config, prior: str, seed: int) -> aae_deterministic.Config:
    """The Config of aae_deterministic.py."""
    return study.script_config(
        aae_deterministic, config, seed, prior=prior, adversarial_weight=config.adversarial_weight
    )


def build(config: aae_deterministic.Config, image_shape) -> LabelPriorAAE:
    """The untrained model: as in aae_deterministic.py, except that the discriminator has eleven more inputs."""
    random = np.random.default_rng(config.seed)
    return LabelPriorAAE(
        adversarial_weight=config.adversarial_weight,
        prior=PRIORS[config.prior](config.latent_dim, config.prior_scale),
        seed=config.seed,
        encoder=networks.encoder(image_shape, config.latent_dim, config.hidden_units, random),
        decoder=networks.decoder(config.latent_dim, image_shape, config.hidden_units, random),
        discriminator=networks.discriminator(config.latent_dim + MODES + 1, config.hidden_units, random),
    )


def training_images(dataset: Dataset, config: Config, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The training images of a seed, drawn at random, and their labels, (n,), which can be UNLABELLED.

    The Config gives their number. From a smaller data set it takes all images, and the same share has labels.
    """
    requested = config.labelled_images + config.unlabelled_images
    order = random_stream(seed, "labelled images").permutation(len(dataset.x_train))[:requested]
    labelled = labelled_count(dataset, config)
    labels = np.full(len(order), UNLABELLED)
    labels[:labelled] = shown_labels(dataset.y_train[order[:labelled]], config)
    return dataset.x_train[order], labels


def labelled_count(dataset: Dataset, config: Config) -> int:
    """The number of labelled training images if every class has labels."""
    requested = config.labelled_images + config.unlabelled_images
    return min(requested, len(dataset.x_train)) * config.labelled_images // requested


def shown_labels(labels: np.ndarray, config: Config) -> np.ndarray:
    """Labels (n,) as the discriminator sees them: UNLABELLED for classes without labels."""
    return np.where(np.isin(labels, config.classes), labels, UNLABELLED)


# Numbers


def own_mode_share(prior, codes: np.ndarray, labels: np.ndarray) -> Estimate:
    """Fraction of codes, (n, 2), that lie in the mode of their label, (n,)."""
    return share_of(to_numpy(prior.mode_of(ops.convert_to_tensor(codes, "float32"))) == labels)


def measured(model: LabelPriorAAE, dataset: Dataset, config: Config, seed: int) -> dict:
    """Compares all codes of the test images with the whole prior, and each labelled class with its own mode."""
    labels, test = dataset.y_test, encoded(model, dataset.x_test)
    own = to_numpy(model.prior.sample(len(labels), model.seed_generator, labels))  # a draw from each code's own mode
    counted = np.isin(labels, config.classes)
    numbers = {
        "own_mode_share": own_mode_share(model.prior, test.codes[counted], labels[counted]),
        "prior_own_mode_share": own_mode_share(model.prior, own[counted], labels[counted]),
        "code_c2st_accuracy": latent.c2st_accuracy(test.codes, test.prior_codes, seed),
        "code_mmd_imq": latent.mmd(test.codes, test.prior_codes, seed=seed),
        "test_reconstruction_nats": test_terms(model, test.images)["test_reconstruction_nats"],
    }
    return numbers | class_numbers(test.codes[counted], own[counted], labels[counted], seed)


def class_numbers(codes: np.ndarray, own: np.ndarray, labels: np.ndarray, seed: int) -> dict:
    """Compares each class's codes with draws from its mode, both (n, 2) with labels (n,): all numbers and means."""
    classes, counts = np.unique(labels, return_counts=True)
    classes = classes[counts >= FEWEST_OF_A_CLASS]
    pairs = [(codes[labels == label], own[labels == label]) for label in classes]
    numbers = {
        "class_c2st_accuracy": [latent.c2st_accuracy(*pair, seed).value for pair in pairs],
        "class_mmd_imq": [latent.mmd(*pair, points=CLASS_POINTS, seed=seed).value for pair in pairs],
    }
    means = {key: float(np.mean(values)) if values else None for key, values in numbers.items()}
    each = {f"{key}_each": values for key, values in numbers.items()}
    return means | each | {"classes": classes.tolist()}


# The experiment


def batches_of(
    dataset: Dataset, config: Config, own: aae_deterministic.Config
) -> tuple[MixedBatches, dict[str, np.ndarray]]:
    """The training batches for the seed in `own`, and the validation images with the labels shown in training."""
    images, labels = training_images(dataset, config, own.seed)
    batches = MixedBatches(images, labels, own.batch_size, own.binarisation, own.seed)
    return batches, {"images": dataset.x_val, "labels": shown_labels(dataset.y_val, config)}


def case(prior: str, part: Part) -> dict:
    """Train on a prior and measure on test images."""
    config, dataset = part.config, part.dataset
    own = configured(config, prior, part.seed)
    model = build(own, dataset.image_shape)
    part.train(model, own, *batches_of(dataset, config, own))
    if part.first:
        part.keep(**pictures(model, dataset))
    return measured(model, dataset, config, part.seed)


def pictures(model: LabelPriorAAE, dataset: Dataset) -> dict[str, np.ndarray]:
    """Codes of the test images, (n, 2), prior draws, (1000, 2), and decoded walks, (modes, WALK, *image_shape)."""
    walk = to_numpy(model.prior.walk(WALK))
    images = model.decode(walk.reshape(-1, 2)).reshape(MODES, WALK, *dataset.image_shape)
    prior = model.prior_codes(plots.CLOUD_POINTS)
    return {"codes": model.encode(dataset.x_test), "prior": prior, "walks": images}


def cases(config: Config, dataset: Dataset) -> dict:
    """A case for each prior."""
    return {prior: partial(case, prior) for prior in config.priors}


def requires(config: Config, dataset: Dataset):
    """Raises RunError unless every class has a mode, and there are enough training images for a batch."""
    study.require_labels(dataset)
    if dataset.classes > MODES:
        raise RunError(
            f"{dataset.name} has a label {dataset.classes - 1}, but the priors have {MODES} modes, for labels from 0"
        )
    if not np.isin(dataset.y_test, config.classes).any():
        raise RunError(f"{dataset.name} has no test image of --classes {' '.join(map(str, config.classes))}")
    batch = aae_deterministic.Config().batch_size
    study.require_batch(dataset, batch)
    if config.labelled_images + config.unlabelled_images < batch:
        raise RunError(f"--labelled-images and --unlabelled-images must be {batch} or more together")
    if not labelled_count(dataset, config):
        raise RunError(f"none of {len(dataset.x_train)} training images would have a label; raise --labelled-images")


def tables(declared: Study, results: Results, rows: dict) -> dict[str, str]:
    """One row per prior."""
    return {"table.md": study.table({prior.replace("_", " "): means for prior, means in rows.items()}, COLUMNS)}


def figure(means: dict, prior: str, results: Results):
    """Codes over their prior, and decoded walks through the prior, of the first seed."""
    config, dataset, saved = results.config, results.dataset, results.pictures(prior)
    _, labels = training_images(dataset, config, config.seeds[0])
    own, best = (f"{100 * means[key]:.1f} %" for key in ("own_mode_share", "prior_own_mode_share"))
    return figures.codes_and_walks(
        saved["codes"],
        dataset.y_test,
        saved["prior"],
        saved["walks"],
        AXES[prior],
        f"AAE on {dataset.name}, {prior.replace('_', ' ')} prior, labels seen by the discriminator",
        f"Left: codes of {len(dataset.y_test):,} test images by class, with each class's number at its median; prior "
        f"draws in black. Right: the decoder's pixel means on a walk through each mode. Training: "
        f"{np.sum(labels != UNLABELLED):,} labelled and {np.sum(labels == UNLABELLED):,} unlabelled images, "
        f"{results.updates(prior)}. Pictures: seed {config.seeds[0]}. Codes in their own mode: {own}; draws from the "
        f"prior: {best} ({of_seeds('mean', config.seeds)})",
    )


def all_figures(results: Results, rows: dict) -> dict:
    """A figure for each prior."""
    return {prior: figure(rows[prior], prior, results) for prior in results.config.priors}


STUDY = Study("aae.label_prior", cases, COLUMNS, all_figures, QUICK, requires, tables=tables)


def main(config: Config = Config()) -> dict:
    """Run the experiment; returns the content of metrics.json."""
    return study.run(STUDY, config)


if __name__ == "__main__":
    run_study(STUDY, Config)
