"""How few labels does an adversarial autoencoder need to classify digits?

Makhzani et al., arXiv 1511.05644, section 4 and Table 2: an encoder with two heads, q(y|x) over the classes and the
style z, a discriminator for each, and some images whose class is known. Every network minimises its own terms, in
nats per image, all in one step:

    encoder, decoder            E_x [ -log p(x|y, z) ]                      reconstruction, summed over the pixels
    encoder                     adversarial_weight E_x [ -log D(y) - log D(z) ]
                                supervised_weight E_labelled [ -log q(y|x) ]
                                consistency_weight E_x KL(q(y|x) || q(y|x moved))   not the paper's, see below
    category_discriminator      E_Cat(y) [ -log D(y) ] + E_x [ -log(1 - D(y)) ]
    style_discriminator         the same for z and N(0, I)

Recipes, side by side on the same labelled images:

    ours                all of the above, Adam, batch normalisation in encoder and decoder. Moved images are turned,
                        sheared, scaled and shifted by a little, at random, and so are labelled images: this tells the
                        network about images what the paper's networks, to which pixels are just numbers, are not told.
                        D(y) and consistency warm up: before the labels have named the categories they would only keep
                        them as they are
    without_consistency the paper's objective: no image is moved. Weights and noise are those of a search without moves
    paper               the paper's objective and its optimiser, without batch normalisation: SGD, whose rates fall to
                        a tenth after 50 passes and again after 1000, which the 31 here do not reach. Its three steps an
                        update are one, of the same step lengths, but for the pixels: see `of_the_paper`
    labels_moved        the same encoder, trained on the labelled images and nothing else, but moved as in ours
    labels_only         the same, not moved: the plain network that the paper compares with

Labelled images are drawn from the training images, as many of each class, another set for each draw, which is the
seed of everything else as well. Hyperparameters were chosen on the error of 5,000 labelled validation images, which
100 labels would not leave anyone: the test images are used once, at the end.

Run: python -m experiments.aae_semisupervised --data mnist.npz (--help lists every flag); --quick on the sample.
Leaves in results/aae_semisupervised/<name>/: metrics.json and table.md (test error, mean and standard deviation over
the draws), runs.json (every draw), error.png, digits-<labels>.png, and for each training a folder with history.csv and,
of the first draw, its networks. What is there already is not made again.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from common import plots
from common.command import run_main
from common.config import Count, Factor, Fraction, Positive, PositiveCount, check
from common.data import Dataset, load_mnist
from common.files import whole, write_json
from common.numbers import flat, markdown, of_seeds, over_seeds, per_cent, share_of
from common.priors import CategoricalPrior
from common.run import save_networks
from common.training import adam_per_network, part_updates, per_network
from experiments import figures
from experiments.aae.categorical import (
    CategoricalAAE,
    ErrorCurve,
    PartlyLabelledBatches,
    all_labelled,
    balanced_draw,
    course,
    cross_entropy,
    encoder,
    networks_of,
    require_augmentable,
)
from experiments.study import claim_folder, each_once, fit_part, quickened, reported, require_classes, require_images

import keras
import numpy as np

Recipe = Literal["ours", "without_consistency", "paper", "labels_moved", "labels_only"]
UNMOVED = {"consistency_weight": 0.0, "distortion": 0.0, "shift": 0.0, "input_noise": 0.3}  # the paper's noise
RECIPES = {  # what differs from the Config's defaults
    "ours": {},
    "without_consistency": UNMOVED | {"warm_up": 0.0, "reconstruction_weight": 1.0, "adversarial_weight": 3.0},
    "paper": UNMOVED
    | {
        "warm_up": 0.0,
        "normalised": False,
        "reconstruction_weight": 0.03,  # on the sum over the pixels: see `of_the_paper`
        "adversarial_weight": 0.111,
        "supervised_weight": 1.0,
        "learning_rate": 0.1,
    },
    "labels_moved": {},
    "labels_only": UNMOVED,
}
REPORTED = {  # labels: test error in per cent, of the AAE and of a plain network (Table 2)
    "100": ("1.90 ± 0.10", "25.80"),
    "1000": ("1.60 ± 0.08", "8.73"),
    "all": ("0.85 ± 0.02", "1.25"),
}
QUICK = {"data": "sample", "labels": (100,), "draws": (0,), "updates": 400, "hidden_units": (300, 300)}


@dataclass(frozen=True)
class Config:
    """Sizes and weights of `ours`; the paper's where a comment says so. What is set otherwise holds for all recipes."""

    data: str = "auto"  # auto, mnist, fashion_mnist, sample, or the path of an .npz or .npy file
    labels: tuple[PositiveCount | Literal["all"], ...] = (100, 1000, "all")  # images whose class is known (Table 2)
    draws: tuple[Count, ...] = (0, 1, 2, 3, 4)  # of the labelled images; seeds of weights, noise and order too
    recipes: tuple[Recipe, ...] = ("ours", "without_consistency", "paper", "labels_moved", "labels_only")
    style_dim: PositiveCount = 10  # dimensions of z (the paper's)
    hidden_units: tuple[PositiveCount, ...] = (500, 500)  # ReLU units a layer of encoder and decoder (paper: 1000)
    discriminator_units: tuple[PositiveCount, ...] = (250, 250)  # ReLU units a layer of each (paper: 1000)
    normalised: bool = True  # batch normalisation in encoder and decoder; never in a discriminator
    input_noise: Factor = 0.0  # standard deviation of the noise on the pixels, in training alone (paper: 0.3)
    reconstruction_weight: Positive = 0.1  # on nats summed over the pixels
    adversarial_weight: Factor = 1.0  # on the nats of both generators
    supervised_weight: Factor = 10.0  # on the cross-entropy's nats
    consistency_weight: Factor = 30.0  # on the nats between q(y|x) and q(y|x moved)
    distortion: Factor = 0.2  # standard deviation of what moves add to each entry of a 2 x 2 unit matrix
    shift: Factor = 2.0  # standard deviation of how far they go up and sideways, in pixels
    warm_up: Fraction = 0.9  # of the passes, over which the weights of D(y) and of consistency rise from 0
    updates: PositiveCount = 17_000  # steps of the optimiser: 31 passes over MNIST
    batch_size: PositiveCount = 100  # images an update (the paper's)
    labelled_batch_size: PositiveCount = 100  # labelled images an update, drawn with replacement
    learning_rate: Positive = 1e-3  # of Adam, at the start, and of the SGD of `paper`
    final_rate_factor: Factor = 0.01  # times learning_rate: where a cosine takes it by the last update
    beta_1: Fraction = 0.5  # Adam's decay of the mean gradient
    quick: bool = False  # whatever is not asked for is small: the sample, 100 labels, one draw, 400 updates
    results: str = "results"  # the folder of all runs
    name: str = ""  # the folder below results/aae_semisupervised/; "default" or "quick" if empty
    resume: str = ""  # the folder of a run that was stopped: go on with it, and with its parameters


class PlainNetwork(CategoricalAAE):
    """The encoder's head for y, trained on labelled images alone."""

    title = "plain network"
    always = ()

    def call(self, x, training=False):
        images = x["labelled_images"]
        inferred = self.infer(self.moved(images) if training else images, training)
        return inferred | {"labelled_category_logits": inferred["category_logits"]}

    def objective(self, x, outputs):
        return {"cross_entropy": cross_entropy(x["labels"], outputs["labelled_category_logits"])}


def build(config: Config, recipe: Recipe, image_shape, classes: int, seed: int) -> CategoricalAAE:
    """The untrained model of a recipe, whose Config this is."""
    moves = {"distortion": config.distortion, "shift": config.shift}
    options = moves | {"input_noise": config.input_noise, "seed": seed}
    if recipe.startswith("labels"):
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


def of_the_paper(updates_a_pass: int, model, config: Config, updates: int):
    """SGD with momentum, as the paper has it, for one step instead of three.

    The paper's rates and momenta are 0.01 and 0.9 (reconstruction), 0.1 and 0.9 (supervised), 0.1 and 0.1
    (adversarial). A constant gradient moves weights by rate / (1 - momentum) an update: 0.1, 1 and 0.111. The recipe's
    weights give the encoder's last two these lengths at a rate of 0.1 and a momentum of 0.9. The first is 0.03: at
    0.05 a cross-entropy summed over the pixels diverges, and with its mean, 0.1 / 784, the decoder learns no more than
    the mean image.
    """

    def descent(momentum):
        rates = [config.learning_rate * factor for factor in (1.0, 0.1, 0.01)]
        boundaries = [50 * updates_a_pass, 1000 * updates_a_pass]
        rate = keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, rates)
        return keras.optimizers.SGD(rate, momentum)

    return per_network(
        model, {name: descent(0.1 if name.endswith("discriminator") else 0.9) for name in model.networks}
    )


def labelled_images(dataset: Dataset, labels: int | str, draw: int) -> np.ndarray:
    """Which training images have labels: (n,) indices."""
    return np.arange(len(dataset.x_train)) if labels == "all" else balanced_draw(dataset.y_train, labels, draw)


def error_of(model: CategoricalAAE, images, labels) -> float:
    """Fraction of images whose likeliest category is not their class."""
    return float(np.mean(model.category_logits(images).argmax(axis=1) != labels))


def trained_and_measured(config: Config, dataset: Dataset, recipe: Recipe, labels, draw: int, folder: Path) -> dict:
    """Train a recipe on a draw of labels; its errors, validation's after each pass, that on test images at the end."""
    print(f"{recipe}, {labels} labels, draw {draw}", flush=True)
    asked, part = quickened(config, RECIPES[recipe]), folder / f"{recipe}-{labels}-{draw}"
    model = build(asked, recipe, dataset.image_shape, dataset.classes, draw)
    known = labelled_images(dataset, labels, draw)
    batches = PartlyLabelledBatches(dataset, known, asked.labelled_batch_size, asked.batch_size, draw)
    outcome = fit_part(
        model,
        batches,
        all_labelled(dataset.x_val, dataset.y_val),
        asked,
        part,
        measures=[ErrorCurve(lambda model: error_of(model, dataset.x_val, dataset.y_val))],
        optimizer=partial(of_the_paper, len(batches)) if recipe == "paper" else adam_per_network,
    )
    wrong = model.category_logits(dataset.x_test).argmax(axis=1) != dataset.y_test
    found = flat({"test_error": share_of(wrong)}) | course(outcome)
    if draw == config.draws[0]:
        keep(model, part)
    keras.utils.clear_session()
    return found


def keep(model: CategoricalAAE, part: Path):
    """The networks of a model and, where there is a decoder, digits: a style a row, a category a column."""
    save_networks(model, part)
    if "decoder" in model.networks:
        digits = model.decode(styles_by_category(model, 10))
        with whole(part / "digits.npy") as path:
            np.save(path, digits.reshape(10, -1, *digits.shape[1:]))


def styles_by_category(model: CategoricalAAE, rows: int) -> np.ndarray:
    """Codes (y, z), every z ~ N(0, I) with every y: (rows * categories, latent_dim)."""
    count = model.prior.categories
    styles = np.random.default_rng(0).normal(size=(rows, model.prior.style_dim))
    return np.concatenate([np.tile(np.eye(count), (rows, 1)), np.repeat(styles, count, axis=0)], axis=1)


def main(config: Config = Config()) -> dict:
    """Train and measure what is not there yet; returns what metrics.json holds."""
    check(config)
    if config.quick:
        config = quickened(config, QUICK)
    dataset = load_mnist(config.data)
    require_images(dataset, config.batch_size)
    require_classes(dataset)
    require_augmentable(dataset, config)
    for labels in config.labels:
        labelled_images(dataset, labels, max(config.draws))  # refuses what cannot be drawn
    folder = Path(config.results) / "aae_semisupervised" / (config.name or ("quick" if config.quick else "default"))
    claim_folder(folder, "aae_semisupervised", config, dataset, part_updates(config, len(dataset.x_train)))
    parts = {
        name_of(recipe, labels, draw): partial(trained_and_measured, config, dataset, recipe, labels, draw, folder)
        for draw in config.draws
        for labels in config.labels
        for recipe in config.recipes
    }
    runs = each_once(folder, parts)
    metrics = {
        f"{labels} labels": {
            recipe: over_seeds(
                [runs[name_of(recipe, labels, draw)] for draw in config.draws], ("test_error", "validation_error")
            )
            for recipe in config.recipes
        }
        for labels in config.labels
    }
    with whole(folder / "table.md") as unfinished:
        unfinished.write_text(table(metrics, dataset))
    write_json(folder / "metrics.json", metrics)
    plots.save(curves(runs, config, dataset), folder / "error.png")
    draw_digits(config, dataset, folder)
    print(table(metrics, dataset))
    print(folder)
    return metrics


def name_of(recipe: Recipe, labels, draw: int) -> str:
    return f"{recipe}, {labels} labels, draw {draw}"


def table(metrics: dict, dataset: Dataset) -> str:
    """A row for each number of labels and recipe: error in per cent, mean ± standard deviation over the draws."""
    rows = []
    for labels, recipes in metrics.items():
        of_aae, of_plain = reported(REPORTED, dataset).get(labels.split()[0], ("−", "−"))
        for recipe, found in recipes.items():
            paper = {"labels_only": of_plain, "labels_moved": "−"}.get(recipe, of_aae)
            errors = [per_cent(found, key) for key in ("test_error", "validation_error")]
            rows.append([labels, row_title(recipe, found), paper, *errors])
    return markdown(["", "recipe", "reported, %", "test error, %", "validation error, %"], rows)


def curves(runs: dict, config: Config, dataset: Dataset):
    """Validation error against updates, a panel for each number of labels."""
    panels = {}
    for labels in config.labels:
        series = {}
        for recipe in config.recipes:
            found = [runs[name_of(recipe, labels, draw)]["curve"] for draw in config.draws]
            series[recipe.replace("_", " ")] = figures.curve_of(found, "error", 100.0)
        panels[f"validation error, %, {labels} labels"] = series
    return figures.bands(
        panels,
        "updates",
        f"Classifying {dataset.name} with few labels: adversarial autoencoders",
        f"Fraction of {len(dataset.x_val):,} validation images in the wrong category, {config.batch_size} images and "
        f"{config.labelled_batch_size} labelled ones an update: "
        f"{of_seeds('mean and range', config.draws)}, which draw the labels too",
        y_scale="log",
    )


def draw_digits(config: Config, dataset: Dataset, folder: Path):
    """Digits of the first draw of the first recipe that has a decoder, at each number of labels."""
    recipe = next((recipe for recipe in config.recipes if not recipe.startswith("labels")), None)
    for labels in config.labels if recipe else ():
        images = np.load(folder / f"{recipe}-{labels}-{config.draws[0]}" / "digits.npy")
        figure = figures.named_tiles(
            images,
            [str(row + 1) for row in range(len(images))],
            [str(category) for category in range(images.shape[1])],
            "category y",
            f"Digits by style and category: semi-supervised AAE, {labels} labels of {dataset.name}",
            f"Decoder's pixel means: a draw z ~ N(0, I) a row, a class a column; {recipe.replace('_', ' ')}, "
            f"{part_updates(config, len(dataset.x_train)):,} updates, draw {config.draws[0]} of the labels",
        )
        plots.save(figure, folder / f"digits-{labels}.png")


if __name__ == "__main__":
    run_main(main, Config)
