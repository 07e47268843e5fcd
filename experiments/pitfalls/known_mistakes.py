"""Which mistakes change a result without an error message? Trains each next to the right version, with the same seed.

For each mistake: two pictures, two rows of numbers, and how to notice it.

    pixel_mean                 VAE: the reconstruction is a mean over the pixels, the KL a sum
    two_readings               VAE: the encoder's s is log sigma where z is drawn, log sigma^2 in the KL
    reversed_gradient          AVB: the discriminator's reversed gradient in place of the mean of T
    image_unseen               AVB: T sees z alone and not (x, z)
    uniform_noise              AVB: the encoder's noise is uniform in training, normal in tests
    image_moments              AVB: adaptive contrast by the moments over the images instead of over the noise
    normalised_discriminator   AAE: batch normalisation in the discriminator, prior draws and codes apart
    labels_unseen              AAE: labels choose the prior's mode and never reach the discriminator
    earlier_avb                an implementation that is not AVB, fixed one mistake at a time

The last mistake is an earlier Keras notebook, whose user concluded that AVB does not work. Its discriminator ended in a
sigmoid, and its encoder received the discriminator's reversed gradient. Its cross-entropy was a mean over the pixels.
Its noise in tests differed from its noise in training. The wrong models are in experiments/pitfalls/mistakes.py, and
the right models in the scripts. Each right model is trained once per seed, for all mistakes that it is compared with.
Papers: arXiv 1701.04722 (AVB), 1511.05644 (AAE), 1312.6114 (VAE).

Run: python -m experiments.pitfalls.known_mistakes --data mnist.npz (--help lists every flag). --quick is a short run on
the sample. --mistakes pixel_mean labels_unseen selects two mistakes. Resumes if interrupted. Results in
results/pitfalls_known_mistakes/<name>/:

    metrics.json, table.md      means and standard deviations over the seeds
    runs.json                   numbers of every seed
    <mistake>.png               codes, samples and numbers of the right and the wrong version
    a folder per training       history.csv and, for the first seed, codes and samples
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal, NamedTuple

import aae_deterministic
import aae_gaussian
import avb
import vae_baseline
from common.config import AtLeast, PositiveCount
from common.data import Dataset
from common.evaluation import latent
from common.measure import Encoded, active_units, encoded, information, test_images, test_terms
from common.measure_likelihood import LikelihoodSettings, importance_weighted
from common.metrics import METRICS, Metric
from common.model import LatentModel
from common.numbers import flat, of_seeds
from common.progress import TimeLeft
from common.training import image_batches
from experiments import figures, study
from experiments.aae import label_prior
from experiments.pitfalls.mistakes import mistaken_aae, mistaken_avb, mistaken_labels, mistaken_vae
from experiments.study import ImageStudyConfig, Part, Results, Study, run_study

COLUMNS = {
    "test_reconstruction_nats": METRICS["test_reconstruction_nats"],
    "kl_nats": METRICS["kl_nats"],
    "kl_stated_nats": Metric("KL in the loss", "nats", 1, "", "the KL that the loss has, summed over dimensions"),
    "kl_estimated_nats": METRICS["kl_estimated_nats"],
    "kl_neighbour_nats": METRICS["kl_neighbour_nats"],
    "importance_weighted_bound_nats": METRICS["importance_weighted_bound_nats"]._replace(title="log p(x), bound"),
    "code_c2st_accuracy": METRICS["code_c2st_accuracy"],
    "active_units": METRICS["active_units"],
    "own_mode_share": Metric("in own mode", "", 3, "higher", "share of test codes in the mode of their label"),
    "discriminator_nats": Metric("discriminator", "nats", 3, "", "its loss on training images, mean of the last pass"),
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
    """A version to train: a right model, with mistakes or without."""

    right: str
    mistakes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return ", ".join((self.right, *self.mistakes)).replace("_", " ")


class Mistake(NamedTuple):
    """A table and a figure of the experiment."""

    title: str
    versions: dict[str, Version]  # by the name of the table's row
    numbers: tuple[str, ...]  # keys of COLUMNS, at most five: the figure has room for no more
    notice: str  # how to notice the mistake


def right_and_wrong(right: str, mistake: str) -> dict[str, Version]:
    """The two rows of a mistake: the right version and the wrong one."""
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
        "A reconstruction that is a mean over the pixels, a KL that is a sum",
        right_and_wrong(VAE, "pixel_mean"),
        (*FIT, "kl_nats", "active_units"),
        "The logged reconstruction is below 1 nat, while a right one is a hundred nats and more. The KL falls to 0, "
        "and every z decodes to the same image.",
    ),
    "two_readings": Mistake(
        "The encoder's s read as log σ where z is drawn and as log σ² in the KL",
        right_and_wrong(VAE, "two_readings"),
        (*FIT, "kl_nats", "kl_stated_nats"),
        "Draw many z for one image: their standard deviation is not the one in the KL. The KL of the z that are drawn "
        "is not the one in the loss.",
    ),
    "reversed_gradient": Mistake(
        "A reversed gradient in place of the mean of T",
        right_and_wrong(AVB, "reversed_gradient"),
        OF_AVB,
        "The encoder's term is below 0 from the first update to the last, but a KL is never below 0. The final loss is "
        "not a bound on log p(x).",
    ),
    "image_unseen": Mistake(
        "A T that sees z alone, not (x, z)",
        right_and_wrong(AVB, "image_unseen"),
        OF_AVB,
        "Give T another image with the same z: its value does not change. Its KL is that of the aggregated posterior, "
        "far below the KL of q(z|x) by neighbours.",
    ),
    "uniform_noise": Mistake(
        "Encoder noise that is uniform in training and normal in tests",
        right_and_wrong(AVB, "uniform_noise"),
        OF_AVB,
        "Reconstruct training images as in tests: the loss is far above the logged training loss.",
    ),
    "image_moments": Mistake(
        "Adaptive contrast by the moments over the images instead of over the noise",
        right_and_wrong(CONTRAST, "image_moments"),
        OF_AVB,
        "Print the mean and the deviation that normalise z: they are the same for every image. T's KL is below the KL "
        "by neighbours, as without contrast.",
    ),
    "normalised_discriminator": Mistake(
        "Batch normalisation in the discriminator",
        right_and_wrong(AAE, "normalised_discriminator"),
        (*FIT, "kl_nats", "discriminator_nats"),
        "Shift and scale a batch of codes: the discriminator's output does not change. Its loss stays near 2 log 2, "
        "while a new classifier tells codes from prior draws.",
    ),
    "labels_unseen": Mistake(
        "Labels that choose the prior's mode and never reach the discriminator",
        right_and_wrong(LABELS, "labels_unseen"),
        ("test_reconstruction_nats", "code_c2st_accuracy", "own_mode_share", "discriminator_nats"),
        "Give the discriminator another label with the same z: its output does not change. Few codes are in the mode "
        "of their class.",
    ),
    "earlier_avb": Mistake(
        "An implementation that is not AVB, fixed one mistake at a time",
        EARLIER_AVB,
        OF_AVB,
        "Three mistakes at once, each with its own symptom: uniform_noise, pixel_mean, reversed_gradient.",
    ),
}
WEIGHTED_SAMPLES = 2000  # draws for each image of the importance-weighted bound
SAMPLES = 36  # images per version in a figure
QUICK = {
    "data": "sample",
    "mistakes": tuple(name for name in MISTAKES if name != "earlier_avb"),
    "updates": 200,
    "seeds": (0,),
    "weighted_images": 20,
}


@dataclass(frozen=True)
class Config(ImageStudyConfig):
    """All versions of a mistake have the same networks, data, updates and seeds, and codes of two dimensions.

    Rates and binarisation are as in the scripts. The versions of `labels_unseen` train on fewer images, as in
    experiments.aae.label_prior, and so for another number of whole passes.
    """

    mistakes: tuple[Literal[*MISTAKES], ...] = tuple(MISTAKES)  # mistakes to train
    hidden_units: tuple[PositiveCount, ...] = (300, 300)  # ReLU units per layer, all networks
    updates: PositiveCount = 5500  # optimiser steps: 10 passes over MNIST
    weighted_images: Annotated[int, AtLeast(2)] = 500  # test images for the importance-weighted bound


RIGHT = {  # name: the function that builds the model, its script, and parameters that differ from the script's
    VAE: (mistaken_vae, vae_baseline, {"binarisation": "dynamic"}),
    AVB: (mistaken_avb, avb, {"adaptive_contrast": False}),
    CONTRAST: (mistaken_avb, avb, {}),
    AAE: (mistaken_aae, aae_gaussian, {"binarisation": "dynamic"}),
    LABELS: (
        mistaken_labels,
        aae_deterministic,
        {"prior": "mixture", "adversarial_weight": label_prior.Config().adversarial_weight},
    ),
}


def build(config: Config, version: Version, seed: int, image_shape):
    """The untrained model of a version, and the Config of its script."""
    builder, script, parameters = RIGHT[version.right]
    own = study.script_config(script, config, seed, **parameters)
    return builder(own, dict.fromkeys(version.mistakes, True), image_shape), own


def case(version: Version, part: Part) -> dict:
    """Train a version and measure it on test images."""
    dataset = part.dataset
    model, own = build(part.config, version, part.seed, dataset.image_shape)
    labelled = version.right == LABELS
    outcome = part.train(
        model,
        own,
        *(label_prior.batches_of(dataset, label_prior.Config(), own) if labelled else image_batches(dataset, own)),
    )
    test = encoded(model, test_images(dataset, own))
    numbers = measured(model, dataset, test, part.config.weighted_images, part.seed)
    numbers["discriminator_nats"] = outcome.history.get("discriminator", [None])[-1]
    if part.first:
        part.keep(codes=test.codes, prior=test.prior_codes, samples=model.sample(SAMPLES))
    return flat({key: numbers[key] for key in COLUMNS if key in numbers})


def measured(model: LatentModel, dataset: Dataset, test: Encoded, weighted_images: int, seed: int) -> dict:
    """The numbers of COLUMNS, without the discriminator's loss, and some more."""
    settings = LikelihoodSettings(0, 0, (), weighted_images, WEIGHTED_SAMPLES)
    numbers = test_terms(model, test.images)
    numbers["code_c2st_accuracy"] = latent.c2st_accuracy(test.codes, test.prior_codes, seed)
    if model.posterior == "implicit":
        numbers |= information(model, test.images, test.codes)  # for the KL, which has no closed form
    numbers |= importance_weighted(model, dataset, settings, TimeLeft())[0]
    numbers["active_units"] = active_units(model, test.images)
    if isinstance(model, label_prior.LabelPriorAAE):
        numbers["own_mode_share"] = label_prior.own_mode_share(model.prior, test.codes, dataset.y_test)
    return numbers


def cases(config: Config, dataset: Dataset) -> dict:
    """A case for each version of the requested mistakes; a version that several mistakes share comes once."""
    requested = (version for name in config.mistakes for version in MISTAKES[name].versions.values())
    return {version.name: partial(case, version) for version in requested}


def requires(config: Config, dataset: Dataset):
    """Raises RunError if there are too few images for a batch or, for labels_unseen, if a label has no mode."""
    study.require_batch(dataset, avb.Config().batch_size)
    if "labels_unseen" in config.mistakes:
        label_prior.requires(label_prior.Config(), dataset)


def tables(declared: Study, results: Results, rows: dict) -> dict[str, str]:
    """One file: for every mistake, how to notice it, and one row per version."""
    sections = []
    for title, versions, keys, notice in (MISTAKES[name] for name in results.config.mistakes):
        means = {row: rows[version.name] for row, version in versions.items()}
        sections.append(f"### {title}\n\n{notice}\n\n{study.table(means, {key: COLUMNS[key] for key in keys})}")
    return {"table.md": "\n".join(sections)}


def all_figures(results: Results, rows: dict) -> dict:
    """A figure for each mistake."""
    return {name: figure(MISTAKES[name], results, rows) for name in results.config.mistakes}


def figure(mistake: Mistake, results: Results, rows: dict):
    """Codes, samples and numbers of the right and the wrong version, and how to notice the mistake."""
    config, dataset = results.config, results.dataset
    columns = []
    for row, version in mistake.versions.items():
        pictures, means = results.pictures(version.name), rows[version.name]
        numbers = {COLUMNS[key].title: COLUMNS[key].cell(means, key) for key in mistake.numbers}
        columns.append(figures.Column(row, pictures["codes"], pictures["prior"], pictures["samples"], numbers))
    updates = results.updates(*(version.name for version in mistake.versions.values()))
    by_class = "" if dataset.y_test is None else " by class"
    return figures.side_by_side(
        columns,
        dataset.y_test,
        ("z₁", "z₂"),
        f"{mistake.title}, on {dataset.name}",
        f"{mistake.notice} Top: codes of {len(dataset.x_test):,} test images{by_class}, drawn as in tests; prior "
        f"samples in black. Middle: the decoder's pixel means for z ~ p(z). Pictures: seed {config.seeds[0]}. "
        f"Numbers: {of_seeds('mean ± standard deviation', config.seeds)}, in nats except C2ST, units and modes. "
        f"{updates} each.{notes(mistake, results, rows)}",
    )


def notes(mistake: Mistake, results: Results, rows: dict) -> str:
    """Notes for the figure on some numbers, if it shows them."""
    images = min(results.config.weighted_images, len(results.dataset.x_test))
    bound = f" Bound: {images:,} binarised images, {WEIGHTED_SAMPLES:,} draws each."
    absent = " −: some q(z|x) are so narrow that draws from them coincide."
    lacks = any(rows[version.name]["kl_neighbour_nats"] is None for version in mistake.versions.values())
    texts = {"importance_weighted_bound_nats": bound, "kl_neighbour_nats": absent if lacks else ""}
    return "".join(text for key, text in texts.items() if key in mistake.numbers)


STUDY = Study("pitfalls.known_mistakes", cases, COLUMNS, all_figures, QUICK, requires, tables=tables)


def main(config: Config = Config()) -> dict:
    """Run the experiment; returns the content of metrics.json."""
    return study.run(STUDY, config)


if __name__ == "__main__":
    run_study(STUDY, Config)
