"""How few labels does an adversarial autoencoder need to classify digits?

Makhzani et al., arXiv 1511.05644, section 4 and Table 2. The encoder has two heads: q(y|x) over the classes, and the
style z. Each has a discriminator. The class of some images is known. Every network minimises its own terms, in nats per
image, all in one step:

    encoder, decoder            E_x [ -log p(x|y, z) ]                      reconstruction, summed over the pixels
    encoder                     adversarial_weight E_x [ -log D(y) - log D(z) ]
                                supervised_weight E_labelled [ -log q(y|x) ]
                                consistency_weight E_x KL(q(y|x) || q(y|x augmented))   not in the paper, see below
    category_discriminator      E_Cat(y) [ -log D(y) ] + E_x [ -log(1 - D(y)) ]
    style_discriminator         E_p(z) [ -log D(z) ] + E_x [ -log(1 - D(z)) ]

The recipes train on the same labelled images:

    ours                  All of the above, with Adam, and batch normalisation in encoder and decoder. Augmentation,
                          of labelled images too: small random rotations, shears, scalings and shifts. The paper's
                          networks have no such prior knowledge about images. D(y) and consistency have a warm-up. At
                          first they would only preserve the categories, before the labels have named them.
    without_consistency   The paper's objective, without augmentation. Its weights and noise come from a separate
                          search.
    paper                 The paper's objective and optimiser, without batch normalisation. The optimiser is SGD, whose
                          rates fall to a tenth after 50 epochs and again after 1000. The 31 epochs here do not reach
                          that. The paper makes three steps per update, and this code one. `paper_optimizer` explains
                          the step lengths.
    labels_augmented      A baseline: the encoder alone, trained only on the labelled images, augmented as in ours.
    labels_only           The same without augmentation: the plain network that the paper compares with.

Labelled images are drawn from the training images, equally many of each class. Every seed draws other images.
Hyperparameters were chosen by the error on 5,000 labelled validation images. The numbers of labels do not include
these. The test images are used once, at the end.

Run: python -m experiments.aae.semisupervised --data mnist.npz (--help lists every flag). --quick is a short run on the
sample. Resumes if interrupted. Results in results/aae_semisupervised/<name>/:

    metrics.json, table.md      test error: mean and standard deviation over the seeds
    runs.json                   errors of every seed
    error.png                   errors over training
    digits-<labels>.png         digits by style and category, of the first seed
    a folder per training       history.csv and, for the first seed, the networks
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from common.config import Factor, Fraction, Positive, PositiveCount, Seed
from common.data import Dataset
from common.metrics import Metric
from common.numbers import of_seeds, share_of
from common.run import save_networks
from common.training import adam_per_network, per_network
from experiments import figures, study
from experiments.aae.categorical import (
    CategoricalAAE,
    CategoricalPrior,
    ErrorCurve,
    PartlyLabelledBatches,
    all_labelled,
    balanced_draw,
    cross_entropy,
    encoder,
    error_curve,
    networks_of,
    require_augmentable,
)
from experiments.study import ImageStudyConfig, Part, Results, Study, run_study

import keras
import numpy as np

Recipe = Literal["ours", "without_consistency", "paper", "labels_augmented", "labels_only"]
PLAIN = ("labels_augmented", "labels_only")  # recipes of the encoder alone
OURS = {
    "normalised": True,
    "input_noise": 0.0,
    "reconstruction_weight": 0.1,
    "adversarial_weight": 1.0,
    "supervised_weight": 10.0,
    "consistency_weight": 30.0,
    "distortion": 0.2,
    "shift": 2.0,
    "warm_up": 0.9,
    "learning_rate": 1e-3,
}
UNAUGMENTED = OURS | {"consistency_weight": 0.0, "distortion": 0.0, "shift": 0.0, "input_noise": 0.3}  # paper's noise
RECIPES = {  # the parameters of each recipe, unless a flag sets them
    "ours": OURS,
    "without_consistency": UNAUGMENTED | {"warm_up": 0.0, "reconstruction_weight": 1.0, "adversarial_weight": 3.0},
    "paper": UNAUGMENTED
    | {
        "warm_up": 0.0,
        "normalised": False,
        "reconstruction_weight": 0.03,  # factor on the sum over the pixels: see `paper_optimizer`
        "adversarial_weight": 0.111,
        "supervised_weight": 1.0,
        "learning_rate": 0.1,
    },
    "labels_augmented": OURS,
    "labels_only": UNAUGMENTED,
}
REPORTED = {  # labels: test error in per cent, of the AAE and of a plain network (Table 2)
    100: ("1.90 ± 0.10", "25.80"),
    1000: ("1.60 ± 0.08", "8.73"),
    "all": ("0.85 ± 0.02", "1.25"),
}
COLUMNS = {
    "test_error": Metric("test error", "%", 2, "lower", "test images in another category than their class", 100.0),
    "validation_error": Metric("validation error", "%", 2, "lower", "the same of validation images", 100.0),
}
STYLES = 10  # rows of a figure of digits
QUICK = {"data": "sample", "labels": (100,), "seeds": (0,), "updates": 400, "hidden_units": (300, 300)}


@dataclass(frozen=True)
class Config(ImageStudyConfig):
    """The paper's values where the text says so. A value other than None holds for every recipe."""

    labels: tuple[PositiveCount | Literal["all"], ...] = (100, 1000, "all")  # numbers of labelled images (Table 2)
    seeds: tuple[Seed, ...] = (0, 1, 2, 3, 4)  # random seeds of weights, noise, order and the choice of labelled images
    # recipes to train: ours, the paper's objective alone or with its optimiser, and two baselines on labels alone
    recipes: tuple[Recipe, ...] = ("ours", "without_consistency", "paper", "labels_augmented", "labels_only")
    style_dim: PositiveCount = 10  # dimensions of z (as in the paper)
    hidden_units: tuple[PositiveCount, ...] = (500, 500)  # ReLU units per layer of encoder and decoder (paper: 1000)
    discriminator_units: tuple[PositiveCount, ...] = (250, 250)  # ReLU units per layer (paper: 1000)
    # batch normalisation in encoder and decoder, never in a discriminator; None: as in the recipe
    normalised: bool | None = None
    # standard deviation of the noise on the pixels, only in training (paper: 0.3); None: as in the recipe
    input_noise: Factor | None = None
    reconstruction_weight: Positive | None = None  # factor on the sum over the pixels; None: as in the recipe
    adversarial_weight: Factor | None = None  # factor on the losses of both generators; None: as in the recipe
    supervised_weight: Factor | None = None  # factor on the cross-entropy; None: as in the recipe
    consistency_weight: Factor | None = None  # factor on the KL of q(y|x) to q(y|x augmented); None: as in the recipe
    # augmentation: standard deviation of the noise on each entry of a 2 x 2 unit matrix; None: as in the recipe
    distortion: Factor | None = None
    # augmentation: standard deviation of vertical and horizontal shifts, in pixels; None: as in the recipe
    shift: Factor | None = None
    # share of the epochs in which the weights of D(y) and consistency rise from 0; None: as in the recipe
    warm_up: Fraction | None = None
    updates: PositiveCount = 17_000  # optimiser steps: 31 passes over MNIST
    batch_size: PositiveCount = 100  # images per update (as in the paper)
    labelled_batch_size: PositiveCount = 100  # labelled images per update, drawn with replacement
    learning_rate: Positive | None = None  # the optimiser's rate at the start; None: as in the recipe
    final_rate_factor: Factor = 0.01  # Adam's rate falls along a cosine to this factor times learning_rate
    beta_1: Fraction = 0.5  # Adam's decay of the mean gradient


def upgraded(parameters: dict) -> dict:
    """The parameters from the config.json of an older run, under the names of this Config.

    In older runs, a value equal to the default of "ours" stood for the recipe's own, and the seeds were called `draws`.
    """
    renamed = parameters | {"seeds": parameters["draws"]}
    renamed["recipes"] = [name.replace("labels_moved", "labels_augmented") for name in parameters["recipes"]]
    del renamed["draws"]
    return renamed | {name: None for name, value in OURS.items() if parameters[name] == value}


def recipe_config(config: Config, recipe: Recipe) -> Config:
    """The Config with the recipe's value in place of each None."""
    return replace(config, **{name: value for name, value in RECIPES[recipe].items() if getattr(config, name) is None})


class PlainNetwork(CategoricalAAE):
    """The encoder with its head for y alone, trained only on labelled images."""

    title = "plain network"
    required_terms = ()

    def call(self, x, training=False):
        images = x["labelled_images"]
        inferred = self.infer(self.augmented(images) if training else images, training)
        return inferred | {"labelled_category_logits": inferred["category_logits"]}

    def objective(self, x, outputs):
        return {"cross_entropy": cross_entropy(x["labels"], outputs["labelled_category_logits"])}


def build(config: Config, recipe: Recipe, image_shape, classes: int, seed: int) -> CategoricalAAE:
    """The untrained model of a recipe; `config` comes from `recipe_config`."""
    augmentation = {"distortion": config.distortion, "shift": config.shift}
    options = augmentation | {"input_noise": config.input_noise, "seed": seed}
    if recipe in PLAIN:
        prior = CategoricalPrior(classes, 0)
        random = np.random.default_rng(seed)
        network = encoder(prior, image_shape, config.hidden_units, random, config.normalised, balanced=False)
        return PlainNetwork({"cross_entropy": 1.0}, prior=prior, encoder=network, **options)
    prior = CategoricalPrior(classes, config.style_dim)
    weights = {
        "reconstruction": config.reconstruction_weight,
        "category_generator": config.adversarial_weight,
        "style_generator": config.adversarial_weight,
        "cross_entropy": config.supervised_weight,
        "consistency": config.consistency_weight,
    }
    networks = networks_of(prior, image_shape, config, seed)
    return CategoricalAAE(weights, prior=prior, **options, **networks)


def paper_optimizer(updates_an_epoch: int, model, config: Config, updates: int):
    """SGD with momentum, as in the paper, for one step instead of three.

    The paper's rates and momenta are 0.01 and 0.9 (reconstruction), 0.1 and 0.9 (supervised), 0.1 and 0.1
    (adversarial). A constant gradient changes weights by rate / (1 - momentum) per update: 0.1, 1 and 0.111. At a rate
    of 0.1 and a momentum of 0.9, the recipe's weights give the encoder's last two terms these step lengths.

    The weight of the reconstruction is 0.03. At 0.05, the training with a cross-entropy summed over the pixels
    diverges. With the mean over the pixels, 0.1 / 784, the decoder learns only the mean image.
    """

    def descent(momentum):
        rates = [config.learning_rate * factor for factor in (1.0, 0.1, 0.01)]
        boundaries = [50 * updates_an_epoch, 1000 * updates_an_epoch]
        rate = keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, rates)
        return keras.optimizers.SGD(rate, momentum)

    return per_network(
        model, {name: descent(0.1 if name.endswith("discriminator") else 0.9) for name in model.networks}
    )


def labelled_images(dataset: Dataset, labels: int | str, seed: int) -> np.ndarray:
    """Indices of the labelled training images, (n,). Raises DataError if they cannot be drawn."""
    return np.arange(len(dataset.x_train)) if labels == "all" else balanced_draw(dataset.y_train, labels, seed)


def wrong(model: CategoricalAAE, images, labels) -> np.ndarray:
    """Whether each image's most probable category is not its class: (n,) truth values."""
    return model.category_logits(images).argmax(axis=1) != labels


def train_recipe(recipe: Recipe, labels: int | str, part: Part) -> dict:
    """Train a recipe on a draw of labels; returns the test error, and the validation error after each epoch."""
    config, dataset = recipe_config(part.config, recipe), part.dataset
    model = build(config, recipe, dataset.image_shape, dataset.classes, part.seed)
    known = labelled_images(dataset, labels, part.seed)
    batches = PartlyLabelledBatches(dataset, known, config.labelled_batch_size, config.batch_size, part.seed)
    outcome = part.train(
        model,
        config,
        batches,
        all_labelled(dataset.x_val, dataset.y_val),
        measures=[ErrorCurve(lambda model: np.mean(wrong(model, dataset.x_val, dataset.y_val)))],
        optimizer=partial(paper_optimizer, len(batches)) if recipe == "paper" else adam_per_network,
    )
    if part.first:
        save_networks(model, part.folder)
    if part.first and "decoder" in model.networks:
        digits = model.decode(styles_by_category(model, STYLES))
        part.keep(digits=digits.reshape(STYLES, -1, *digits.shape[1:]))
    return {"test_error": share_of(wrong(model, dataset.x_test, dataset.y_test))} | error_curve(outcome)


def styles_by_category(model: CategoricalAAE, rows: int) -> np.ndarray:
    """Codes (y, z), every z ~ N(0, I) with every y: (rows * categories, latent_dim)."""
    count = model.prior.categories
    styles = np.random.default_rng(0).normal(size=(rows, model.prior.style_dim))
    return np.concatenate([np.tile(np.eye(count), (rows, 1)), np.repeat(styles, count, axis=0)], axis=1)


def name_of(recipe: Recipe, labels: int | str) -> str:
    """The name of a case."""
    return f"{recipe}, {labels} labels"


def cases(config: Config, dataset: Dataset) -> dict:
    """A case for each number of labels and recipe."""
    return {
        name_of(recipe, labels): partial(train_recipe, recipe, labels)
        for labels in config.labels
        for recipe in config.recipes
    }


def requires(config: Config, dataset: Dataset):
    """Raises RunError or DataError if classes, images for a batch, labels or images to augment are missing."""
    study.require_batch(dataset, config.batch_size)
    study.require_classes(dataset)
    for recipe in config.recipes:
        require_augmentable(dataset, recipe_config(config, recipe))
    for labels in config.labels:
        labelled_images(dataset, labels, max(config.seeds))


def tables(declared: Study, results: Results, rows: dict) -> dict[str, str]:
    """One row per number of labels and recipe, with the paper's error first."""
    paper = {}
    for labels, (aae, plain) in study.reported(REPORTED, results.dataset).items():
        texts = dict.fromkeys(RECIPES, aae) | {"labels_augmented": "−", "labels_only": plain}
        paper |= {name_of(recipe, labels): text for recipe, text in texts.items()}
    return {"table.md": study.table(rows, COLUMNS, {"reported, %": paper})}


def all_figures(results: Results, rows: dict) -> dict:
    """Errors over training and, if a recipe has a decoder, a figure of digits for each number of labels."""
    recipe = next((recipe for recipe in results.config.recipes if recipe not in PLAIN), None)
    shown = results.config.labels if recipe else ()
    return {"error": curves(results)} | {f"digits-{labels}": digits(results, recipe, labels) for labels in shown}


def curves(results: Results):
    """Validation error against updates, one panel per number of labels."""
    config, dataset = results.config, results.dataset
    panels = {
        f"validation error, %, {labels} labels": {
            recipe.replace("_", " "): figures.curve_of(
                [run["curve"] for run in results.of(name_of(recipe, labels))], "error", 100.0
            )
            for recipe in config.recipes
        }
        for labels in config.labels
    }
    return figures.bands(
        panels,
        "updates",
        f"Classifying {dataset.name} with few labels: adversarial autoencoders",
        f"Share of {len(dataset.x_val):,} validation images in the wrong category: "
        f"{of_seeds('mean and range', config.seeds)}, which also choose the labelled images. An update takes "
        f"{config.batch_size} images and {config.labelled_batch_size} labelled images",
        y_scale="log",
    )


def digits(results: Results, recipe: Recipe, labels: int | str):
    """Digits by a recipe's decoder with the first seed: one style per row, one category per column."""
    case = name_of(recipe, labels)
    images = results.pictures(case)["digits"]
    return figures.named_tiles(
        images,
        [str(row + 1) for row in range(len(images))],
        [str(category) for category in range(images.shape[1])],
        "category y",
        f"Digits by style and category: semi-supervised AAE, {labels} labels of {results.dataset.name}",
        f"Decoder's pixel means: one draw z ~ N(0, I) per row, one class per column. Recipe: "
        f"{recipe.replace('_', ' ')}, {results.updates(case)}, seed {results.config.seeds[0]}",
    )


STUDY = Study("aae.semisupervised", cases, COLUMNS, all_figures, QUICK, requires, tables=tables)


def main(config: Config = Config()) -> dict:
    """Run the experiment; returns the content of metrics.json."""
    return study.run(STUDY, config)


if __name__ == "__main__":
    run_study(STUDY, Config)
