"""Do the categories of an adversarial autoencoder without labels come out as the digits?

Makhzani et al., arXiv 1511.05644, section 5 and Table 3: the encoder's two heads, q(y|x) over more categories than
there are classes and the style z, each held to its prior by a discriminator, no label anywhere. Every network minimises
its own terms, in nats per image, all in one step:

    encoder, decoder            E_x [ -log p(x|y, z) ]                  reconstruction, summed over the pixels
    encoder                     category_weight E_x [ -log D(y) ] + style_weight E_x [ -log D(z) ]
                                consistency_weight E_x KL(q(y|x) || q(y|x moved))   not the paper's, see below
    category_discriminator      E_Cat(y) [ -log D(y) ] + E_x [ -log(1 - D(y)) ]
    style_discriminator         the same for z and N(0, I)

The last of the encoder's keeps an image and its like in one category: moved images are turned, sheared, scaled and
shifted by a little, at random. That is knowledge about images which the paper's networks do not have. With
--consistency-weight 0 --no-balanced the objective and the encoder are the paper's.

Afterwards a category gets the label of one validation image, the one that it is surest of (the paper's rule), or that
of most of its validation images; test images whose category has another label are errors. The paper says "validation
examples"; here they are the 5,000 of which no training has seen anything. Hyperparameters were chosen by the error of
the same images under the majority's names, so it takes their labels, which the paper's rule does too.

Run: python -m experiments.aae_clustering --data mnist.npz (--help lists every flag); --quick on the sample.
Leaves in results/aae_clustering/<name>/: metrics.json and table.md (errors, mean and standard deviation over the
seeds), runs.json (every seed), error.png, clusters-<number>.png of the first seed, and for each training a folder with
history.csv and, of the first seed, its networks. What is there already is not made again.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import keras
import numpy as np

from common import plots
from common.categorical import CategoricalAAE, ErrorCurve, course, networks_of
from common.data import Dataset, load_mnist
from common.evaluation import clusters
from common.files import whole, write_json
from common.measure import flat
from common.priors import CategoricalPrior
from common.run import (
    Decay,
    Factor,
    Positive,
    PositiveCount,
    Range,
    Seed,
    Share,
    check,
    claim_folder,
    each_once,
    main_of,
    quickened,
    require_images,
    require_labels,
    require_moves,
    save_networks,
)
from common.tables import markdown, of_seeds, over_seeds, per_cent, plus_minus, reported, titled
from common.training import Batches, fit_part, part_updates

REPORTED = {16: "9.55 ± 2.05", 30: "4.10 ± 1.13"}  # test error in per cent (Table 3)
ERRORS = {  # key: what the table calls it
    "confident_error": "error by the surest image, %",
    "majority_error": "error by majority, %",
    "matched_error": "error one to one, %",
}
AGREEMENT = {"nmi": "NMI", "ari": "adjusted Rand index"}
MEMBERS = 16  # images shown of a cluster
QUICK = {"data": "sample", "clusters": (16,), "seeds": (0,), "updates": 800, "hidden_units": (300, 300)}


@dataclass(frozen=True)
class Config:
    """The paper's values where a comment says so; the others were chosen on validation images."""

    data: str = "auto"  # auto, mnist, fashion_mnist, sample, or the path of an .npz or .npy file
    clusters: tuple[Annotated[int, Range(1)], ...] = (16, 30)  # categories of y (the paper's)
    seeds: tuple[Seed, ...] = (0, 1, 2, 3, 4)  # of weights, noise and order
    style_dim: PositiveCount = 5  # dimensions of z (the paper's)
    hidden_units: tuple[PositiveCount, ...] = (1000, 1000)  # ReLU units a layer of encoder and decoder (paper: 3000)
    discriminator_units: tuple[PositiveCount, ...] = (250, 250)  # ReLU units a layer of each (paper: 3000)
    normalised: bool = True  # batch normalisation in encoder and decoder; never in a discriminator
    balanced: bool = True  # batch normalisation of the logits of y: no category starts without images
    input_noise: Factor = 0.1  # standard deviation of the noise on the pixels, in training alone
    input_dropout: Share = 0.0  # share of pixels that are dropped out, in training alone (paper: 0.2)
    category_weight: Factor = 30.0  # on the nats of y's generator
    style_weight: Factor = 3.0  # on the nats of z's generator
    consistency_weight: Factor = 300.0  # on the nats between q(y|x) and q(y|x moved)
    distortion: Factor = 0.1  # standard deviation of what moves add to each entry of a 2 x 2 unit matrix
    shift: Factor = 1.0  # standard deviation of how far they go up and sideways, in pixels
    updates: PositiveCount = 5500  # steps of the optimiser: 10 passes over MNIST (paper: 1500)
    batch_size: PositiveCount = 100  # images an update (the paper's)
    learning_rate: Positive = 1e-3  # of Adam, at the start
    final_rate_factor: Factor = 0.01  # times learning_rate: where a cosine takes it by the last update
    beta_1: Decay = 0.5  # Adam's decay of the mean gradient
    quick: bool = False  # whatever is not asked for is small: the sample, 16 clusters, one seed, 800 updates
    results: str = "results"  # the folder of all runs
    name: str = ""  # the folder below results/aae_clustering/; "default" or "quick" if empty
    resume: str = ""  # the folder of a run that was stopped: go on with it, and with its parameters


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


def judged(model: CategoricalAAE, naming, images, labels) -> dict:
    """Errors on images (n, *image_shape) with labels (n,); `naming`, such images and labels, names the clusters."""
    number, logits = model.prior.categories, model.category_logits(naming[0])
    assigned = model.category_logits(images).argmax(axis=1)
    names = {
        "confident_error": clusters.names_by_confidence(logits, naming[1]),
        "majority_error": clusters.names_by_majority(logits.argmax(axis=1), naming[1], number),
    }
    found = {key: clusters.error_of_names(given, assigned, labels) for key, given in names.items()}
    found["matched_error"] = clusters.matched_error(assigned, labels, number)
    return found | clusters.agreement(assigned, labels) | {"clusters_in_use": len(np.unique(assigned))}


def trained_and_measured(config: Config, dataset: Dataset, number: int, seed: int, folder: Path) -> dict:
    """Train with `number` categories and name them on validation images; errors of the test images."""
    print(f"{number} clusters, seed {seed}", flush=True)
    part, naming = folder / f"{number}-{seed}", (dataset.x_val, dataset.y_val)
    model = build(config, number, dataset.image_shape, seed)
    outcome = fit_part(
        model,
        Batches(dataset.x_train, config.batch_size, "none", seed),
        dataset.x_val,
        config,
        part,
        measures=[ErrorCurve(lambda model: judged(model, naming, *naming)["majority_error"].value)],
    )
    found = flat(judged(model, naming, dataset.x_test, dataset.y_test)) | course(outcome)
    if seed == config.seeds[0]:
        save_networks(model, part)
        heads_and_members(model, dataset, part / "clusters.npz")
    keras.utils.clear_session()
    return found


def heads_and_members(model: CategoricalAAE, dataset: Dataset, path: Path):
    """Of every cluster its head, decoded with z = 0, the first test images that it holds, and its names."""
    number, assigned = model.prior.categories, model.category_logits(dataset.x_test).argmax(axis=1)
    heads = model.decode(np.eye(number, model.prior.latent_dim))
    members = np.full((number, MEMBERS, *dataset.image_shape), np.nan, "float32")
    for cluster in range(number):
        held = np.flatnonzero(assigned == cluster)[:MEMBERS]
        members[cluster, : len(held)] = dataset.x_test[held]
    names = clusters.names_by_confidence(model.category_logits(dataset.x_val), dataset.y_val)
    with whole(path) as unfinished:
        np.savez_compressed(unfinished, images=np.concatenate([heads[:, None], members], axis=1), names=names)


def main(config: Config = Config()) -> dict:
    """Train and measure what is not there yet; returns what metrics.json holds."""
    check(config)
    if config.quick:
        config = quickened(config, QUICK)
    dataset = load_mnist(config.data)
    require_images(dataset, config.batch_size)
    require_labels(dataset)
    require_moves(dataset, config)
    folder = Path(config.results) / "aae_clustering" / (config.name or ("quick" if config.quick else "default"))
    claim_folder(folder, "aae_clustering", config, dataset, part_updates(config, len(dataset.x_train)))
    parts = {
        f"{number} clusters, seed {seed}": partial(trained_and_measured, config, dataset, number, seed, folder)
        for seed in config.seeds
        for number in config.clusters
    }
    runs = each_once(folder, parts)
    keys = (*ERRORS, *AGREEMENT, "clusters_in_use", "validation_error")
    metrics = {
        f"{number} clusters": over_seeds([runs[f"{number} clusters, seed {seed}"] for seed in config.seeds], keys)
        for number in config.clusters
    }
    with whole(folder / "table.md") as unfinished:
        unfinished.write_text(table(metrics, dataset))
    write_json(folder / "metrics.json", metrics)
    plots.save(curves(runs, config, dataset), folder / "error.png")
    for number in config.clusters:
        plots.save(figure(config, dataset, number, folder), folder / f"clusters-{number}.png")
    print(table(metrics, dataset))
    print(folder)
    return metrics


def table(metrics: dict, dataset: Dataset) -> str:
    """A row a number of clusters, mean ± standard deviation over the seeds."""
    rows = []
    for number, found in metrics.items():
        errors = [per_cent(found, key) for key in ERRORS]
        numbers = [plus_minus(found[key], found[f"{key}_sd"], 3) for key in AGREEMENT]
        used = plus_minus(found["clusters_in_use"], found["clusters_in_use_sd"], 1)
        paper = reported(REPORTED, dataset).get(int(number.split()[0]), "−")
        rows.append([titled(number, found), paper, *errors, *numbers, used])
    return markdown(["", "reported, %", *ERRORS.values(), *AGREEMENT.values(), "clusters in use"], rows)


def curves(runs: dict, config: Config, dataset: Dataset):
    """Validation error by the majority's names against updates."""
    series = {
        f"{number} clusters": plots.curve_of(
            [runs[f"{number} clusters, seed {seed}"]["curve"] for seed in config.seeds], "error", 100.0
        )
        for number in config.clusters
    }
    return plots.bands(
        {"validation error by majority, %": series},
        "updates",
        f"Clustering {dataset.name} with adversarial autoencoders",
        f"Share of {len(dataset.x_val):,} validation images that are not of their cluster's commonest class, "
        f"{config.batch_size} images an update: {of_seeds('mean and range', config.seeds)}",
        y_scale="log",
    )


def figure(config: Config, dataset: Dataset, number: int, folder: Path):
    """Cluster heads and members of the first seed, as the paper's Fig. 9 has them; empty clusters are left out."""
    with np.load(folder / f"{number}-{config.seeds[0]}" / "clusters.npz") as arrays:
        order = np.argsort(arrays["names"], kind="stable")
        order = order[np.isfinite(arrays["images"][order, 1].reshape(number, -1)).all(axis=1)]
        images, names = arrays["images"][order], arrays["names"][order]
    return plots.named_tiles(
        images,
        [f"{name}" for name in names],
        ["head", *(str(member + 1) for member in range(MEMBERS))],
        "head, decoded with z = 0, and the first test images of the cluster",
        f"{number} clusters of {dataset.name} that an adversarial autoencoder found",
        f"A cluster a row, named by the validation image that it is surest of; those without test images "
        f"({number - len(order)}) are left out. {part_updates(config, len(dataset.x_train)):,} updates without labels, "
        f"seed {config.seeds[0]}",
    )


if __name__ == "__main__":
    main_of(main, Config)
