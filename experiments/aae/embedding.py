"""Can an adversarial autoencoder draw a map of the digits, with and without labels?

Makhzani et al., arXiv 1511.05644, section 6 and Fig. 11. The encoder has two heads: q(y|x) over some categories, and
the style z. The decoder sees only the representation W_C y + z, which has few numbers. The rows of W_C are the cluster
heads, and z ~ N(0, I) spreads around them. Every network minimises its own terms, in nats per image, all in one step:

    encoder, decoder            E_x [ -log p(x|W_C y + z) ]             reconstruction, summed over the pixels
    W_C, in the decoder         heads_weight sum_pairs [ head_distance - |w_i - w_j| ]+
    encoder                     category_weight E_x [ -log D(y) ] + style_weight E_x [ -log D(z) ]
                                supervised_weight E_labelled [ -log q(y|x) ]            where there are labels
                                consistency_weight E_x KL(q(y|x) || q(y|x augmented))   as in semisupervised.py
    category_discriminator      E_Cat(y) [ -log D(y) ] + E_x [ -log(1 - D(y)) ]
    style_discriminator         E_p(z) [ -log D(z) ] + E_x [ -log(1 - D(z)) ]

With labels, equally many of each class, there is one category per class. An image in another category than its class is
an error. Without labels there are 20 categories, and validation images name them as in clustering.py. The weight of
D(y) is then cluster_weight. The baseline for the 2-D maps is t-SNE of the same test images. It can map these images,
but no new image.

The ratios of the weights are those of semisupervised.py and, without labels, of clustering.py, with two changes. With
labels, the cross-entropy weighs ten times as much, and the warm-up is shorter. The reason: in two dimensions, the
reconstruction competes with the labels for y. With a tenth of the weight and a warm-up of nine epochs, one of the draws
of 100 labels lost its classes for good.

Run: python -m experiments.aae.embedding --data mnist.npz (--help lists every flag). --quick is a short run on the
sample. Resumes if interrupted. Results in results/aae_embedding/<name>/:

    metrics.json, table.md      test error: mean and standard deviation over the seeds
    runs.json                   errors of every seed
    map.png                     the maps of the first seed
    error.png                   errors over training
    a folder per training       history.csv and, for the first seed, the networks
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, NamedTuple

from common.config import AtLeast, Count, Factor, Fraction, Positive, PositiveCount, Seed
from common.data import Dataset
from common.metrics import Metric
from common.model import to_numpy
from common.numbers import of_seeds, share_of
from common.run import save_networks
from common.training import Batches
from experiments import figures, study
from experiments.aae import clusters
from experiments.aae.categorical import (
    CategoricalAAE,
    CategoricalPrior,
    ErrorCurve,
    PartlyLabelledBatches,
    all_labelled,
    balanced_draw,
    error_curve,
    networks_of,
    require_augmentable,
)
from experiments.study import ImageStudyConfig, Part, Results, Study, run_study

import numpy as np
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors

NEIGHBOURS = 15
REPORTED = {(2, 0): "13.18", (2, 100): "6.08", (2, 1000): "4.20", (10, 100): "3.90"}  # test error in per cent
COLUMNS = {
    "test_error": Metric("test error", "%", 2, "lower", "images in another category than their class", 100.0),
    "majority_error": Metric("error by majority", "%", 2, "lower", "categories named by most images", 100.0),
    "neighbour_error": Metric(
        "error by 15 nearest", "%", 2, "lower", "class against the commonest of the nearest points of the map", 100.0
    ),
}
BASELINE = "t-SNE"
QUICK = {"data": "sample", "labels": (0, 100), "larger_labels": None, "seeds": (0,), "updates": 400}
QUICK |= {"hidden_units": (300, 300), "map_images": 500}


@dataclass(frozen=True)
class Config(ImageStudyConfig):
    """The paper's values where the text says so. All others were chosen on validation images."""

    labels: tuple[Count, ...] = (0, 100, 1000)  # numbers of labelled images, for the maps of two dimensions (Fig. 11)
    larger_labels: tuple[Count, ...] | None = (100,)  # the same for the larger representation; None leaves it out
    larger_dim: Annotated[int, AtLeast(3)] = 10  # dimensions of the larger representation (as in the paper)
    seeds: tuple[Seed, ...] = (0, 1, 2, 3, 4)  # random seeds of weights, noise, order and the choice of labelled images
    clusters: Annotated[int, AtLeast(2)] = 20  # number of categories without labels (as in the paper)
    hidden_units: tuple[PositiveCount, ...] = (500, 500)  # ReLU units per layer of encoder and decoder
    discriminator_units: tuple[PositiveCount, ...] = (250, 250)  # ReLU units per layer
    normalised: bool = True  # batch normalisation in encoder and decoder; never in a discriminator
    input_noise: Factor = 0.1  # standard deviation of the noise on the pixels, only in training
    style_weight: Factor = 10.0  # factor on the loss of z's generator
    category_weight: Factor = 10.0  # factor on the loss of y's generator, with labels
    cluster_weight: Factor = 30.0  # factor on the loss of y's generator, without labels
    supervised_weight: Factor = 1000.0  # factor on the cross-entropy
    consistency_weight: Factor = 300.0  # factor on the KL of q(y|x) to q(y|x augmented)
    distortion: Factor = 0.1  # augmentation: standard deviation of the noise on each entry of a 2 x 2 unit matrix
    shift: Factor = 1.0  # augmentation: standard deviation of vertical and horizontal shifts, in pixels
    warm_up: Fraction = 0.2  # with labels: share of the epochs in which the weights of D(y) and consistency rise from 0
    heads_weight: Factor = 10.0  # factor on the term that keeps cluster heads apart
    head_distance: Positive = 6.0  # distance that cluster heads keep, in standard deviations of z
    updates: PositiveCount = 5500  # optimiser steps: 10 passes over MNIST
    batch_size: PositiveCount = 100  # images per update
    labelled_batch_size: PositiveCount = 100  # labelled images per update, drawn with replacement
    learning_rate: Positive = 1e-3  # Adam's rate at the start
    final_rate_factor: Factor = 0.01  # the rate falls along a cosine to this factor times learning_rate
    beta_1: Fraction = 0.5  # Adam's decay of the mean gradient
    map_images: PositiveCount = 5000  # test images in the figure


class Case(NamedTuple):
    """The dimensions of a representation, and the number of labels."""

    dimensions: int
    labels: int

    def __str__(self):
        return f"{self.dimensions}-D, {self.labels or 'no'} labels"


def cases_of(config: Config) -> list[Case]:
    """The cases of a Config: the maps, then the larger representations."""
    larger = [Case(config.larger_dim, labels) for labels in config.larger_labels or ()]
    return [Case(2, labels) for labels in config.labels] + larger


def build(config: Config, case: Case, image_shape, classes: int, seed: int) -> CategoricalAAE:
    """The untrained model of a case."""
    prior = CategoricalPrior(classes if case.labels else config.clusters, case.dimensions)
    weights = {
        "category_generator": config.category_weight if case.labels else config.cluster_weight,
        "style_generator": config.style_weight,
        "cross_entropy": config.supervised_weight if case.labels else 0.0,
        "consistency": config.consistency_weight,
        "heads": config.heads_weight,
    }
    return CategoricalAAE(
        weights,
        input_noise=config.input_noise,
        distortion=config.distortion,
        shift=config.shift,
        prior=prior,
        seed=seed,
        **networks_of(prior, image_shape, config, seed, balanced=not case.labels, head_distance=config.head_distance),
    )


def errors(model: CategoricalAAE, case: Case, naming, images, labels) -> dict:
    """Errors on images (n, *image_shape) with labels (n,). `naming` holds the images and labels that name categories.

    With labels the categories are the classes, so that both rules of naming give the same error.
    """
    assigned = model.category_logits(images).argmax(axis=1)
    if case.labels:
        error = share_of(assigned != labels)
        return {"test_error": error, "majority_error": error}
    logits, number = model.category_logits(naming[0]), model.prior.categories
    majority = clusters.names_by_majority(logits.argmax(axis=1), naming[1], number)
    return {
        "test_error": clusters.error_of_names(clusters.names_by_confidence(logits, naming[1]), assigned, labels),
        "majority_error": clusters.error_of_names(majority, assigned, labels),
    }


def neighbour_error(points: np.ndarray, labels: np.ndarray) -> float:
    """Share of points (n, d) whose class is not the most common one among their 15 nearest other points."""
    near = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(points) - 1)).fit(points).kneighbors()[1]
    votes = np.apply_along_axis(np.bincount, 1, labels[near], minlength=int(labels.max()) + 1)
    return float(np.mean(votes.argmax(axis=1) != labels))


def training_data(config: Config, dataset: Dataset, case: Case, seed: int) -> tuple:
    """The batches of a case and its validation images, with labels where the case has some."""
    if not case.labels:
        return Batches(dataset.x_train, config.batch_size, "none", seed), dataset.x_val
    known = balanced_draw(dataset.y_train, case.labels, seed)
    batches = PartlyLabelledBatches(dataset, known, config.labelled_batch_size, config.batch_size, seed)
    return batches, all_labelled(dataset.x_val, dataset.y_val)


def train_map(case: Case, part: Part) -> dict:
    """Train the model of a case; returns its errors on the test images."""
    config, dataset, naming = part.config, part.dataset, (part.dataset.x_val, part.dataset.y_val)
    model = build(config, case, dataset.image_shape, dataset.classes, part.seed)
    batches, validation = training_data(config, dataset, case, part.seed)
    curve = ErrorCurve(lambda model: errors(model, case, naming, *naming)["majority_error"].value)
    outcome = part.train(model, config, batches, validation, measures=[curve])
    points = model.represent(dataset.x_test)
    if part.first:
        save_networks(model, part.folder)
        part.keep(points=points[: config.map_images], heads=to_numpy(model.heads()))
    numbers = errors(model, case, naming, dataset.x_test, dataset.y_test) | error_curve(outcome)
    return numbers | {"neighbour_error": neighbour_error(points, dataset.y_test)}


def baseline(part: Part) -> dict:
    """t-SNE (van der Maaten & Hinton, 2008) of the test images, and the error by its nearest points."""
    dataset = part.dataset
    images = dataset.x_test.reshape(len(dataset.x_test), -1)
    points = TSNE(random_state=0, perplexity=min(30, (len(images) - 1) / 3), init="pca").fit_transform(images)
    part.keep(points=points[: part.config.map_images])
    return {"neighbour_error": neighbour_error(points, dataset.y_test)}


def cases(config: Config, dataset: Dataset) -> dict:
    """A case for each representation and number of labels."""
    return {str(case): partial(train_map, case) for case in cases_of(config)}


def once(config: Config, dataset: Dataset) -> dict:
    """The baseline, which does not depend on the seed."""
    return {BASELINE: baseline}


def requires(config: Config, dataset: Dataset):
    """Raises RunError or DataError unless there are classes, batches, enough labels, and images to augment."""
    study.require_batch(dataset, config.batch_size)
    study.require_classes(dataset)
    require_augmentable(dataset, config)
    for case in cases_of(config):
        if case.labels:
            balanced_draw(dataset.y_train, case.labels, max(config.seeds))


def tables(declared: Study, results: Results, rows: dict) -> dict[str, str]:
    """One row per case, with the paper's error first, and one for the baseline."""
    reported = study.reported(REPORTED, results.dataset)
    paper = {str(case): reported[case] for case in cases_of(results.config) if case in reported}
    return {"table.md": study.table(rows, COLUMNS, {"reported, %": paper})}


def all_figures(results: Results, rows: dict) -> dict:
    """Errors over training, and the maps."""
    return {"error": curves(results), "map": maps(results)}


def curves(results: Results):
    """Validation error against updates, one series per case."""
    config, dataset = results.config, results.dataset
    series = {
        str(case): figures.curve_of([run["curve"] for run in results.of(str(case))], "error", 100.0)
        for case in cases_of(config)
    }
    return figures.bands(
        {"validation error, %": series},
        "updates",
        f"Maps of {dataset.name} by adversarial autoencoders",
        f"Share of {len(dataset.x_val):,} validation images in the wrong category (without labels: named by majority), "
        f"{config.batch_size} images per update: {of_seeds('mean and range', config.seeds)}",
        y_scale="log",
    )


def maps(results: Results):
    """The first seed's 2-D maps, and t-SNE of the same test images."""
    config, dataset = results.config, results.dataset
    flat_cases = [case for case in cases_of(config) if case.dimensions == 2]
    panels = []
    for case in flat_cases:
        pictures = results.pictures(str(case))
        axis_names = ("W_C y + z, first", "second")
        panels.append(figures.Map(f"AAE, {case}", pictures["points"], axis_names, pictures["heads"]))
    points = results.pictures(BASELINE)["points"]
    panels.append(figures.Map(f"{BASELINE}, no labels", points, ("t-SNE 1", "t-SNE 2")))
    return figures.maps(
        panels,
        dataset.y_test[: len(points)],
        f"{dataset.name} on a map: adversarial autoencoders and t-SNE",
        f"The same {len(points):,} test images in all panels, coloured by class. AAEs: "
        f"{results.updates(*map(str, flat_cases))}, seed {config.seeds[0]}. Titles give the number of labels among "
        f"{len(dataset.x_train):,} training images",
        marks="cluster heads, rows of W_C",
    )


STUDY = Study("aae.embedding", cases, COLUMNS, all_figures, QUICK, requires, once, tables=tables)


def main(config: Config = Config()) -> dict:
    """Run the experiment; returns the content of metrics.json."""
    return study.run(STUDY, config)


if __name__ == "__main__":
    run_study(STUDY, Config)
