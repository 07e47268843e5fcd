"""Can an adversarial autoencoder draw a map of the digits, with and without labels?

Makhzani et al., arXiv 1511.05644, section 6 and Fig. 11: the encoder's two heads, q(y|x) over some categories and z,
are added up to a representation W_C y + z of a few numbers, all that the decoder sees. The rows of W_C are cluster
heads, z ~ N(0, I) is spread around them. Every network minimises its own terms, in nats per image, all in one step:

    encoder, decoder            E_x [ -log p(x|W_C y + z) ]             reconstruction, summed over the pixels
    W_C, in the decoder         heads_weight sum over pairs of [ head_distance - |w_i - w_j| ]+
    encoder                     category_weight E_x [ -log D(y) ] + style_weight E_x [ -log D(z) ]
                                supervised_weight E_labelled [ -log q(y|x) ]        where there are labels
                                consistency_weight E_x KL(q(y|x) || q(y|x moved))   as in aae_semisupervised
    category_discriminator      E_Cat(y) [ -log D(y) ] + E_x [ -log(1 - D(y)) ]
    style_discriminator         the same for z and N(0, I)

With labels, as many of each class, there are as many categories as classes, and an image in another category than its
class is an error. Without, there are 20, named by validation images as in aae_clustering; the weight of D(y) is then
cluster_weight. Beside the 2-D maps stands t-SNE of the same test images, which has a map for them and none for any
other image. Weights stand to one another as in aae_semisupervised and, without labels, aae_clustering, with two changes
where there are labels: in two dimensions the pixels want y for themselves, and at a tenth of the cross-entropy's weight
and with a warm-up of nine passes, one of the draws of 100 labels lost its classes to them for good.

Run: python -m experiments.aae_embedding --data mnist.npz (--help lists every flag); --quick on the sample.
Leaves in results/aae_embedding/<name>/: metrics.json and table.md (test error, mean and standard deviation over the
seeds), runs.json (every seed), map.png and error.png, and for each training a folder with history.csv and, of the first
seed, its networks and map.npz. What is there already is not made again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

from common import plots
from common.command import run_main
from common.config import AtLeast, Count, Factor, Fraction, Positive, PositiveCount, Seed, check
from common.data import Dataset, load_mnist
from common.files import whole, write_json
from common.model import to_numpy
from common.numbers import flat, markdown, of_seeds, over_seeds, per_cent, share_of
from common.priors import CategoricalPrior
from common.run import save_networks
from common.training import Batches, part_updates
from experiments import figures
from experiments.aae import clusters
from experiments.aae.categorical import (
    CategoricalAAE,
    ErrorCurve,
    PartlyLabelledBatches,
    all_labelled,
    balanced_draw,
    course,
    networks_of,
    require_augmentable,
)
from experiments.study import claim_folder, each_once, fit_part, quickened, reported, require_classes, require_images

import keras
import numpy as np
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors

REPORTED = {(2, 0): "13.18", (2, 100): "6.08", (2, 1000): "4.20", (10, 100): "3.90"}  # test error in per cent
ERRORS = {"test_error": "test error, %", "majority_error": "by majority, %", "neighbour_error": "15 nearest, %"}
NEIGHBOURS = 15
QUICK = {"data": "sample", "labels": (0, 100), "larger_labels": None, "seeds": (0,), "updates": 400}
QUICK |= {"hidden_units": (300, 300), "map_images": 500}


@dataclass(frozen=True)
class Config:
    """The paper's values where a comment says so; what was searched of the others stands above."""

    data: str = "auto"  # auto, mnist, fashion_mnist, sample, or the path of an .npz or .npy file
    labels: tuple[Count, ...] = (0, 100, 1000)  # images whose class is known, for the maps of two dimensions (Fig. 11)
    larger_labels: tuple[Count, ...] | None = (100,)  # the same for the larger representation; None for none of it
    larger_dim: Annotated[int, AtLeast(3)] = 10  # its dimensions (the paper's)
    seeds: tuple[Seed, ...] = (0, 1, 2, 3, 4)  # of weights, noise and order; the draws of the labelled images
    clusters: Annotated[int, AtLeast(2)] = 20  # categories where there are no labels (the paper's)
    hidden_units: tuple[PositiveCount, ...] = (500, 500)  # ReLU units a layer of encoder and decoder
    discriminator_units: tuple[PositiveCount, ...] = (250, 250)  # ReLU units a layer of each
    normalised: bool = True  # batch normalisation in encoder and decoder; never in a discriminator
    input_noise: Factor = 0.1  # standard deviation of the noise on the pixels, in training alone
    style_weight: Factor = 10.0  # on the nats of z's generator
    category_weight: Factor = 10.0  # on those of y's, with labels
    cluster_weight: Factor = 30.0  # the same without
    supervised_weight: Factor = 1000.0  # on the cross-entropy's nats
    consistency_weight: Factor = 300.0  # on the nats between q(y|x) and q(y|x moved)
    distortion: Factor = 0.1  # standard deviation of what moves add to each entry of a 2 x 2 unit matrix
    shift: Factor = 1.0  # standard deviation of how far they go up and sideways, in pixels
    warm_up: Fraction = 0.2  # with labels: of the passes, over which the weights of D(y) and of consistency rise from 0
    heads_weight: Factor = 10.0  # on what cluster heads lack to their distance
    head_distance: Positive = 6.0  # that cluster heads keep, in standard deviations of z
    updates: PositiveCount = 5500  # steps of the optimiser: 10 passes over MNIST
    batch_size: PositiveCount = 100  # images an update
    labelled_batch_size: PositiveCount = 100  # labelled images an update, drawn with replacement
    learning_rate: Positive = 1e-3  # of Adam, at the start
    final_rate_factor: Factor = 0.01  # times learning_rate: where a cosine takes it by the last update
    beta_1: Fraction = 0.5  # Adam's decay of the mean gradient
    map_images: PositiveCount = 5000  # test images in the figure
    quick: bool = False  # whatever is not asked for is small: the sample, one seed, 400 updates, no larger maps
    results: str = "results"  # the folder of all runs
    name: str = ""  # the folder below results/aae_embedding/; "default" or "quick" if empty
    resume: str = ""  # the folder of a run that was stopped: go on with it, and with its parameters


class Case(NamedTuple):
    """The size of a representation, and how many labels there are."""

    dimensions: int
    labels: int

    def __str__(self):
        return f"{self.dimensions}-D, {self.labels or 'no'} labels"


def cases_of(config: Config) -> list[Case]:
    """All that is asked for."""
    return [Case(2, labels) for labels in config.labels] + [
        Case(config.larger_dim, labels) for labels in config.larger_labels or ()
    ]


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
    """Errors on images (n, *image_shape) with labels (n,); `naming`, such images and labels, names the categories.

    With labels the categories are the classes: both rules of naming then give their error.
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
    """Fraction of points (n, d) whose class is not the commonest among their 15 nearest, themselves left out."""
    near = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(points) - 1)).fit(points).kneighbors()[1]
    votes = np.apply_along_axis(np.bincount, 1, labels[near], minlength=int(labels.max()) + 1)
    return float(np.mean(votes.argmax(axis=1) != labels))


def trained_and_measured(config: Config, dataset: Dataset, case: Case, seed: int, folder: Path) -> dict:
    """Train a case; its errors on test images and, of the first seed, its networks and map."""
    print(f"{case}, seed {seed}", flush=True)
    part, naming = folder / f"{case.dimensions}-{case.labels}-{seed}", (dataset.x_val, dataset.y_val)
    model = build(config, case, dataset.image_shape, dataset.classes, seed)
    batches, validation = Batches(dataset.x_train, config.batch_size, "none", seed), dataset.x_val
    if case.labels:
        known = balanced_draw(dataset.y_train, case.labels, seed)
        batches = PartlyLabelledBatches(dataset, known, config.labelled_batch_size, config.batch_size, seed)
        validation = all_labelled(dataset.x_val, dataset.y_val)
    curve = ErrorCurve(lambda model: errors(model, case, naming, *naming)["majority_error"].value)
    outcome = fit_part(model, batches, validation, config, part, measures=[curve])
    points = model.represent(dataset.x_test)
    found = flat(errors(model, case, naming, dataset.x_test, dataset.y_test)) | course(outcome)
    found["neighbour_error"] = neighbour_error(points, dataset.y_test)
    if seed == config.seeds[0]:
        save_networks(model, part)
        with whole(part / "map.npz") as path:
            np.savez_compressed(path, points=points[: config.map_images], heads=to_numpy(model.heads()))
    keras.utils.clear_session()
    return found


def neighbour_map(config: Config, dataset: Dataset, folder: Path) -> dict:
    """t-SNE (van der Maaten & Hinton, 2008) of the test images, in `folder` for the figure; the neighbours' error."""
    print("t-SNE of the test images", flush=True)
    images = dataset.x_test.reshape(len(dataset.x_test), -1)
    points = TSNE(random_state=0, perplexity=min(30, (len(images) - 1) / 3), init="pca").fit_transform(images)
    with whole(folder / "t-sne.npz") as path:
        np.savez_compressed(path, points=points[: config.map_images])
    return {"neighbour_error": neighbour_error(points, dataset.y_test)}


def main(config: Config = Config()) -> dict:
    """Train and measure what is not there yet; returns what metrics.json holds."""
    check(config)
    if config.quick:
        config = quickened(config, QUICK)
    dataset = load_mnist(config.data)
    require_images(dataset, config.batch_size)
    require_classes(dataset)
    require_augmentable(dataset, config)
    cases = cases_of(config)
    for case in cases:
        if case.labels:
            balanced_draw(dataset.y_train, case.labels, max(config.seeds))  # refuses what cannot be drawn
    folder = Path(config.results) / "aae_embedding" / (config.name or ("quick" if config.quick else "default"))
    claim_folder(folder, "aae_embedding", config, dataset, part_updates(config, len(dataset.x_train)))
    parts = {
        f"{case}, seed {seed}": partial(trained_and_measured, config, dataset, case, seed, folder)
        for seed in config.seeds
        for case in cases
    }
    runs = each_once(folder, parts | {"t-SNE": partial(neighbour_map, config, dataset, folder)})
    metrics = {
        str(case): over_seeds([runs[f"{case}, seed {seed}"] for seed in config.seeds], (*ERRORS, "validation_error"))
        for case in cases
    } | {"t-SNE": runs["t-SNE"]}
    with whole(folder / "table.md") as unfinished:
        unfinished.write_text(table(metrics, cases, dataset))
    write_json(folder / "metrics.json", metrics)
    plots.save(curves(runs, config, dataset, cases), folder / "error.png")
    plots.save(figure(runs, config, dataset, cases, folder), folder / "map.png")
    print(table(metrics, cases, dataset))
    print(folder)
    return metrics


def table(metrics: Mapping, cases: list[Case], dataset: Dataset) -> str:
    """A row a case, errors in per cent, mean ± standard deviation over the seeds."""
    rows = []
    for case in cases:
        found, paper = metrics[str(case)], reported(REPORTED, dataset).get(case, "−")
        rows.append([row_title(str(case), found), paper, *(per_cent(found, key) for key in ERRORS)])
    rows.append(["t-SNE of the test images", *["−"] * len(ERRORS), f"{100 * metrics['t-SNE']['neighbour_error']:.2f}"])
    return markdown(["", "reported, %", *ERRORS.values()], rows)


def curves(runs: dict, config: Config, dataset: Dataset, cases: list[Case]):
    """Validation error against updates, a series a case."""
    series = {
        str(case): figures.curve_of([runs[f"{case}, seed {seed}"]["curve"] for seed in config.seeds], "error", 100.0)
        for case in cases
    }
    return figures.bands(
        {"validation error, %": series},
        "updates",
        f"Maps of {dataset.name} by adversarial autoencoders",
        f"Fraction of {len(dataset.x_val):,} validation images in the wrong category (without labels: by the name of the "
        f"majority), {config.batch_size} images an update: {of_seeds('mean and range', config.seeds)}",
        y_scale="log",
    )


def figure(runs: dict, config: Config, dataset: Dataset, cases: list[Case], folder: Path):
    """The first seed's 2-D maps beside t-SNE of the same test images."""
    panels, names, shown = [], ("W_C y + z, first", "second"), min(config.map_images, len(dataset.x_test))
    for case in cases:
        if case.dimensions == 2:
            with np.load(folder / f"2-{case.labels}-{config.seeds[0]}" / "map.npz") as arrays:
                panels.append(figures.Map(f"AAE, {case}", arrays["points"], names, arrays["heads"]))
    with np.load(folder / "t-sne.npz") as arrays:
        panels.append(figures.Map("t-SNE, no labels", arrays["points"], ("t-SNE 1", "t-SNE 2")))
    return figures.maps(
        panels,
        dataset.y_test[:shown],
        f"{dataset.name} on a map: adversarial autoencoders and t-SNE",
        f"The same {shown:,} test images in all panels, by class; AAEs after "
        f"{part_updates(config, len(dataset.x_train)):,} updates, seed {config.seeds[0]}, the number of labels among "
        f"{len(dataset.x_train):,} training images above each",
        marks="cluster heads, rows of W_C",
    )


if __name__ == "__main__":
    run_main(main, Config)
