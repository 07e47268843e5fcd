"""Do the categories of an adversarial autoencoder without labels match the digits?

Makhzani et al., arXiv 1511.05644, section 5 and Table 3. The encoder has two heads: q(y|x), over more categories than
there are classes, and the style z. A discriminator holds each of them to its prior. The training uses no labels. Every
network minimises its own terms, in nats per image, all in one step:

    encoder, decoder            E_x [ -log p(x|y, z) ]                  reconstruction, summed over the pixels
    encoder                     category_weight E_x [ -log D(y) ] + style_weight E_x [ -log D(z) ]
                                consistency_weight E_x KL(q(y|x) || q(y|x augmented))   not in the paper, see below
    category_discriminator      E_Cat(y) [ -log D(y) ] + E_x [ -log(1 - D(y)) ]
    style_discriminator         E_p(z) [ -log D(z) ] + E_x [ -log(1 - D(z)) ]

The encoder's last term keeps an image and its augmented copy in one category. Augmentation: small random rotations,
shears, scalings and shifts. The paper's networks have no such prior knowledge about images. With
--consistency-weight 0 --no-balanced, the objective and the encoder are the paper's.

After the training, validation images name the categories. By the paper's rule, a category gets the label of the image
with the highest q(y|x). By the majority rule, it gets the label of most of its images. A test image whose label differs
from its category's is an error. The paper says "validation examples". Here they are 5,000 images outside the training.
Hyperparameters were chosen by the majority error on the same images. That uses their labels, but so does the paper's
rule.

Run: python -m experiments.aae.clustering --data mnist.npz (--help lists every flag). --quick is a short run on the
sample. Resumes if interrupted. Results in results/aae_clustering/<name>/:

    metrics.json, table.md      errors: mean and standard deviation over the seeds
    runs.json                   errors of every seed
    error.png                   errors over training
    clusters-<number>.png       clusters of the first seed
    a folder per training       history.csv and, for the first seed, the networks
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

from common.config import AtLeast, Factor, Fraction, Positive, PositiveCount, Seed
from common.data import Dataset
from common.metrics import Metric
from common.numbers import of_seeds
from common.run import save_networks
from common.training import Batches
from experiments import figures, study
from experiments.aae import clusters
from experiments.aae.categorical import (
    CategoricalAAE,
    CategoricalPrior,
    ErrorCurve,
    error_curve,
    networks_of,
    require_augmentable,
)
from experiments.study import ImageStudyConfig, Part, Results, Study, run_study

import numpy as np

REPORTED = {16: "9.55 ± 2.05", 30: "4.10 ± 1.13"}  # test error in per cent (Table 3)
COLUMNS = {
    "confident_error": Metric("error by the surest image", "%", 2, "lower", "clusters named by one image", 100.0),
    "majority_error": Metric("error by majority", "%", 2, "lower", "clusters named by most images", 100.0),
    "matched_error": Metric("error one to one", "%", 2, "lower", "clusters matched to classes, one to one", 100.0),
    "nmi": Metric("NMI", "", 3, "higher", "normalised mutual information of clusters and classes"),
    "ari": Metric("adjusted Rand index", "", 3, "higher", "agreement of clusters and classes beyond chance"),
    "clusters_in_use": Metric("clusters in use", "", 1, "", "clusters that have a test image"),
}
MEMBERS = 16  # images per cluster in the figure
QUICK = {"data": "sample", "clusters": (16,), "seeds": (0,), "updates": 800, "hidden_units": (300, 300)}


@dataclass(frozen=True)
class Config(ImageStudyConfig):
    """The paper's values where the text says so. All others were chosen on validation images."""

    clusters: tuple[Annotated[int, AtLeast(2)], ...] = (16, 30)  # numbers of categories of y (as in the paper)
    seeds: tuple[Seed, ...] = (0, 1, 2, 3, 4)  # random seeds of weights, noise and order
    style_dim: PositiveCount = 5  # dimensions of z (as in the paper)
    hidden_units: tuple[PositiveCount, ...] = (1000, 1000)  # ReLU units per layer of encoder and decoder (paper: 3000)
    discriminator_units: tuple[PositiveCount, ...] = (250, 250)  # ReLU units per layer (paper: 3000)
    normalised: bool = True  # batch normalisation in encoder and decoder; never in a discriminator
    balanced: bool = True  # batch normalisation of the logits of y: no category starts without images
    input_noise: Factor = 0.1  # standard deviation of the noise on the pixels, only in training
    input_dropout: Fraction = 0.0  # share of pixels that are dropped out, only in training (paper: 0.2)
    category_weight: Factor = 30.0  # factor on the loss of y's generator
    style_weight: Factor = 3.0  # factor on the loss of z's generator
    consistency_weight: Factor = 300.0  # factor on the KL of q(y|x) to q(y|x augmented)
    distortion: Factor = 0.1  # augmentation: standard deviation of the noise on each entry of a 2 x 2 unit matrix
    shift: Factor = 1.0  # augmentation: standard deviation of vertical and horizontal shifts, in pixels
    updates: PositiveCount = 5500  # optimiser steps: 10 passes over MNIST (paper: 1500)
    batch_size: PositiveCount = 100  # images per update (as in the paper)
    learning_rate: Positive = 1e-3  # Adam's rate at the start
    final_rate_factor: Factor = 0.01  # the rate falls along a cosine to this factor times learning_rate
    beta_1: Fraction = 0.5  # Adam's decay of the mean gradient


def build(config: Config, number: int, image_shape, seed: int) -> CategoricalAAE:
    """The untrained model with `number` categories."""
    prior = CategoricalPrior(number, config.style_dim)
    weights = {
        "category_generator": config.category_weight,
        "style_generator": config.style_weight,
        "consistency": config.consistency_weight,
    }
    return CategoricalAAE(
        weights,
        input_noise=config.input_noise,
        input_dropout=config.input_dropout,
        distortion=config.distortion,
        shift=config.shift,
        prior=prior,
        seed=seed,
        **networks_of(prior, image_shape, config, seed, balanced=config.balanced),
    )


def errors(model: CategoricalAAE, naming, images, labels) -> dict:
    """Errors on images (n, *image_shape) with labels (n,). `naming` holds the images and labels that name clusters."""
    number, logits = model.prior.categories, model.category_logits(naming[0])
    assigned = model.category_logits(images).argmax(axis=1)
    names_by_rule = {
        "confident_error": clusters.names_by_confidence(logits, naming[1]),
        "majority_error": clusters.names_by_majority(logits.argmax(axis=1), naming[1], number),
    }
    numbers = {key: clusters.error_of_names(names, assigned, labels) for key, names in names_by_rule.items()}
    numbers["matched_error"] = clusters.matched_error(assigned, labels, number)
    return numbers | clusters.agreement(assigned, labels) | {"clusters_in_use": len(np.unique(assigned))}


def case(number: int, part: Part) -> dict:
    """Train with `number` categories, and name them by validation images; returns the errors of the test images."""
    config, dataset, naming = part.config, part.dataset, (part.dataset.x_val, part.dataset.y_val)
    model = build(config, number, dataset.image_shape, part.seed)
    outcome = part.train(
        model,
        config,
        Batches(dataset.x_train, config.batch_size, "none", part.seed),
        dataset.x_val,
        measures=[ErrorCurve(lambda model: errors(model, naming, *naming)["majority_error"].value)],
    )
    if part.first:
        save_networks(model, part.folder)
        part.keep(**heads_and_members(model, dataset))
    return errors(model, naming, dataset.x_test, dataset.y_test) | error_curve(outcome)


def heads_and_members(model: CategoricalAAE, dataset: Dataset) -> dict[str, np.ndarray]:
    """For each cluster: its head, decoded with z = 0; its first test images; and its name.

    "images": (clusters, 1 + MEMBERS, *image_shape), NaN where a cluster has fewer; "names": (clusters,).
    """
    number, assigned = model.prior.categories, model.category_logits(dataset.x_test).argmax(axis=1)
    heads = model.decode(np.eye(number, model.prior.latent_dim))
    members = np.full((number, MEMBERS, *dataset.image_shape), np.nan, "float32")
    for cluster in range(number):
        held = np.flatnonzero(assigned == cluster)[:MEMBERS]
        members[cluster, : len(held)] = dataset.x_test[held]
    names = clusters.names_by_confidence(model.category_logits(dataset.x_val), dataset.y_val)
    return {"images": np.concatenate([heads[:, None], members], axis=1), "names": names}


def name_of(number: int) -> str:
    """The name of a case."""
    return f"{number} clusters"


def cases(config: Config, dataset: Dataset) -> dict:
    """A case for each number of clusters."""
    return {name_of(number): partial(case, number) for number in config.clusters}


def requires(config: Config, dataset: Dataset):
    """Raises RunError unless there are labels, enough images for a batch, and images that can be augmented."""
    study.require_batch(dataset, config.batch_size)
    study.require_labels(dataset)
    require_augmentable(dataset, config)


def tables(declared: Study, results: Results, rows: dict) -> dict[str, str]:
    """One row per number of clusters, with the paper's error first."""
    paper = {name_of(number): text for number, text in study.reported(REPORTED, results.dataset).items()}
    return {"table.md": study.table(rows, COLUMNS, {"reported, %": paper})}


def all_figures(results: Results, rows: dict) -> dict:
    """Errors over training, and a figure of the clusters for each number of clusters."""
    return {"error": curves(results)} | {
        f"clusters-{number}": clusters_figure(results, number) for number in results.config.clusters
    }


def curves(results: Results):
    """Validation error under the majority rule against updates."""
    config, dataset = results.config, results.dataset
    series = {
        name_of(number): figures.curve_of([run["curve"] for run in results.of(name_of(number))], "error", 100.0)
        for number in config.clusters
    }
    return figures.bands(
        {"validation error by majority, %": series},
        "updates",
        f"Clustering {dataset.name} with adversarial autoencoders",
        f"Share of {len(dataset.x_val):,} validation images outside their cluster's commonest class, "
        f"{config.batch_size} images per update: {of_seeds('mean and range', config.seeds)}",
        y_scale="log",
    )


def clusters_figure(results: Results, number: int):
    """Cluster heads and members of the first seed, as in the paper's Fig. 9, without empty clusters."""
    pictures, dataset = results.pictures(name_of(number)), results.dataset
    order = np.argsort(pictures["names"], kind="stable")
    order = order[np.isfinite(pictures["images"][order, 1].reshape(number, -1)).all(axis=1)]
    return figures.named_tiles(
        pictures["images"][order],
        [f"{name}" for name in pictures["names"][order]],
        ["head", *(str(member + 1) for member in range(MEMBERS))],
        "head, decoded with z = 0, and the first test images of the cluster",
        f"{number} clusters of {dataset.name} by an adversarial autoencoder",
        f"One cluster per row, named by its validation image with the highest q(y|x). Clusters without test images, "
        f"{number - len(order)}, are left out. {results.updates(name_of(number))} without labels, "
        f"seed {results.config.seeds[0]}",
    )


STUDY = Study("aae.clustering", cases, COLUMNS, all_figures, QUICK, requires, tables=tables)


def main(config: Config = Config()) -> dict:
    """Run the experiment; returns the content of metrics.json."""
    return study.run(STUDY, config)


if __name__ == "__main__":
    run_study(STUDY, Config)
