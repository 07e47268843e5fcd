"""MNIST, like for like: is AVB ahead of a VAE with the same decoder, and is the ELBO that T claims one?

Dynamically binarised digits, codes of 8 and of 32 dimensions, and for VAE, AVB and AVB with adaptive contrast the same
decoder, data and number of updates (AVB paper, arXiv 1701.04722, MNIST). log p(x) of test images by the
importance-weighted bound and by annealing with the gap between its two directions; beside it the ELBO as each model
states it. The settings of each model are in CHOSEN and CHOSEN_BEYOND_8, by --search on validation images.

Run: python -m experiments.avb_mnist --data mnist.npz (--help lists every flag); --quick on the sample; --search first
if the settings are to be found anew; --networks conv for convolutional networks.
Leaves in results/avb_mnist/<name>/: the runs, table.md, metrics.json, log_likelihood.png and training.png; of a search
table.md and metrics.json in results/avb_mnist/search/. What is there already is not made again.
"""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import avb
import vae_baseline
from common import plots
from common.command import run_main
from common.config import AtLeast, Networks, PositiveCount, Seed, check
from common.data import Dataset, binarise, load_mnist
from common.evaluation import likelihood
from common.files import whole, write_json
from common.measure_likelihood import LikelihoodSettings, annealed, importance_weighted
from common.numbers import flat, markdown, of_seeds, over_seeds, plus_minus
from common.progress import TimeLeft
from common.run import load_run
from common.training import planned_updates
from experiments import figures
from experiments.study import claim_folder, complete_run, each_once, quickened, require_images, train_part

import keras
import numpy as np

CONTRAST, PLAIN = {"adaptive_contrast": True}, {"adaptive_contrast": False}
MODELS = {"VAE": (vae_baseline, {}), "AVB": (avb, PLAIN), "AVB, adaptive contrast": (avb, CONTRAST)}
COMMON_CANDIDATES = {"defaults": {}, "rate 2e-3": {"learning_rate": 2e-3}}
SOFT = {"learning_rate": 3e-3, "beta_1": 0.5}  # the VAE's best of a first round
SOFTER = SOFT | {"decoder_rate_factor": 2.0}  # of a second; in the third also with the 200 images that AVB's have
CANDIDATES = {
    "VAE": COMMON_CANDIDATES
    | {
        "rate 3e-3": {"learning_rate": 3e-3},
        "rate 5e-3": {"learning_rate": 5e-3},
        "rate 8e-3": {"learning_rate": 8e-3},
        "rate 3e-3, warm-up": {"learning_rate": 3e-3, "warm_up": 0.3},
        "rate 3e-3, beta_1 0.5": SOFT,
        "rate 3e-3, encoder's doubled": {"learning_rate": 3e-3, "encoder_rate_factor": 2.0},
        "rate 5e-3, beta_1 0.5": SOFT | {"learning_rate": 5e-3},
        "rate 3e-3, beta_1 0.5, decoder's doubled": SOFTER,
        "rate 3e-3, beta_1 0.5, encoder's halved": SOFT | {"encoder_rate_factor": 0.5},
        "rate 3e-3, beta_1 0.5, warm-up": SOFT | {"warm_up": 0.3},
        "rate 3e-3, beta_1 0.5, decoder's doubled, batches of 200": SOFTER | {"batch_size": 200},
        "rate 3e-3, beta_1 0.5, decoder's quadrupled": SOFT | {"decoder_rate_factor": 4.0},
        "rate 3e-3, beta_1 0.5, decoder's quadrupled, batches of 200": SOFT
        | {"decoder_rate_factor": 4.0, "batch_size": 200},
        "rate 3e-3, beta_1 0.5, decoder's doubled, encoder's halved": SOFTER | {"encoder_rate_factor": 0.5},
    }
}
FAST = {"decoder_rate_factor": 3.0}  # the rate that suits the VAE; AVB's encoder must not outrun T
WIDE = {"discriminator_units": (600, 600)}
FASTER = FAST | {"discriminator_rate_factor": 4.0}  # AVB's best of a first round
FASTEST = {"decoder_rate_factor": 6.0, "discriminator_steps": 2}  # of a second: gradients of 2 x 100 images
SLOW = {"decoder_rate_factor": 4.0, "encoder_rate_factor": 0.1, "discriminator_steps": 2}  # in 32-D T lasts longest
for avb_model in ("AVB, adaptive contrast", "AVB"):
    CANDIDATES[avb_model] = COMMON_CANDIDATES | {
        "decoder's rate tripled": FAST,
        "decoder's rate tripled, encoder's halved": FAST | {"encoder_rate_factor": 0.5},
        "decoder's rate tripled, T's doubled": FASTER,
        "decoder's rate tripled, two updates of T": FAST | {"discriminator_steps": 2},
        "decoder's rate tripled, T twice as wide": FAST | WIDE,
        "decoder's rate tripled, warm-up": FAST | {"warm_up": 0.3},
        "decoder's rate tripled, T's and encoder's doubled": FASTER | {"encoder_rate_factor": 2.0},
        "decoder's rate tripled, T's quadrupled": FAST | {"discriminator_rate_factor": 8.0},
        "decoder's rate six times, T's doubled": FASTER | {"decoder_rate_factor": 6.0},
        "decoder's rate tripled, T's doubled, two updates of T": FASTER | {"discriminator_steps": 2},
    }
CANDIDATES["AVB, adaptive contrast"] |= {
    "decoder's rate six times, two updates of T": FASTEST,
    "decoder's rate six times, encoder's halved, two updates of T": FASTEST | {"encoder_rate_factor": 0.5},
    "decoder's rate six times, encoder's halved, batches of 200": {
        "decoder_rate_factor": 6.0,
        "encoder_rate_factor": 0.5,
        "batch_size": 200,
    },
    "decoder's rate six times, two updates of T twice as wide": FASTEST | WIDE,
    "decoder's rate four times, encoder's a tenth, two updates of T": SLOW,
    "decoder's rate six times, encoder's a fifth, two updates of T": FASTEST | {"encoder_rate_factor": 0.2},
    "rate 2e-3, decoder's four times, encoder's a tenth, two updates of T": SLOW | {"learning_rate": 2e-3},
}
NOISE_BEYOND_8 = {"noise_basis": 32, "noise_dim": 64}  # of AVB's encoder (official code: for 32 dimensions)
CHOSEN = {  # the best at 8-D, by the mean of the search's seeds
    "VAE": SOFTER | {"batch_size": 200},
    "AVB": FASTER | {"encoder_rate_factor": 2.0},
    # FASTEST | WIDE is first, but at seed 0 of the comparison T was lost: its training loss fell to 0.02
    "AVB, adaptive contrast": FAST | {"discriminator_steps": 2},
}
CHOSEN_BEYOND_8 = CHOSEN | {"AVB, adaptive contrast": SLOW}  # best of four at 32-D; with CHOSEN's T is lost at once
SEARCH_IMAGES, SEARCH_CHAINS, SEARCH_TEMPERATURES = 500, 2, 100
SEARCH_SEEDS, FINALISTS = (100, 101, 102), 4  # the best at the first seed are trained with the others too
QUICK = {
    "data": "sample",
    "latent_dims": (8,),
    "seeds": (0,),
    "updates": 200,
    "annealed_images": 10,
    "weighted_images": 50,
    "weighted_samples": 500,
    "temperatures": (50,),
}


@dataclass(frozen=True)
class Config:
    """What the models share; their own settings are in CHOSEN and CHOSEN_BEYOND_8."""

    data: str = "auto"  # auto, mnist, fashion_mnist, sample, or the path of an .npz or .npy file
    latent_dims: tuple[PositiveCount, ...] = (8, 32)  # dimensions of z
    hidden_units: tuple[PositiveCount, ...] = (300, 300)  # ReLU units a layer, all networks
    networks: Networks = "dense"  # dense, or conv: three convolutions and one of those layers (paper: convolutional)
    updates: PositiveCount = 11_000  # of encoder and decoder: 20 passes over MNIST
    seeds: tuple[Seed, ...] = (0, 1, 2)  # of weights, noise, order and binarisation
    search: bool = False  # train the candidates and rank them on validation images, and nothing else
    search_updates: PositiveCount = 5500  # of every candidate, of encoder and decoder
    annealed_images: Annotated[int, AtLeast(2)] = 100  # test images whose log p(x) is annealed
    chains: Annotated[int, AtLeast(2)] = 8  # for each of them
    temperatures: tuple[PositiveCount, ...] = (200,)  # between prior and posterior; the most count
    weighted_images: Annotated[int, AtLeast(2)] = 1000  # test images of the importance-weighted bound
    weighted_samples: PositiveCount = 5000  # draws for each of them
    quick: bool = False  # whatever is not asked for is small: the sample, 8 dimensions, one seed, 200 updates
    results: str = "results"  # the folder of all runs
    name: str = ""  # the folder below results/avb_mnist/; the networks, "search" and "quick" if empty
    resume: str = ""  # the folder of a run that was stopped: go on with it, and with its parameters


def wanted(config: Config, model: str, latent_dim: int, seed: int, folder: Path, name: str, changes: dict):
    """The script of a model and the Config of one of its runs."""
    script, own = MODELS[model]
    if script is avb:
        own = own | {"discriminator_units": config.hidden_units} | (NOISE_BEYOND_8 if latent_dim > 8 else {})
    own = own | changes
    steps = own.get("discriminator_steps", 1)
    return script, script.Config(
        **own,
        data=config.data,
        binarisation="dynamic",
        latent_dim=latent_dim,
        hidden_units=config.hidden_units,
        networks=config.networks,
        updates=steps * (config.search_updates if config.search else config.updates),
        seed=seed,
        results=str(folder),
        name=name,
    )


def stated(model: str, metrics: dict) -> float:
    """The ELBO that a model states of the test images: its own KL, true or estimated by T."""
    return -metrics["negative_elbo_nats" if model == "VAE" else "negative_elbo_estimated_nats"]


def slug(*parts) -> str:
    """A name for a folder."""
    return "-".join(str(part).lower().replace(",", "").replace("'", "").replace(" ", "-") for part in parts)


# The search

SEARCH_COLUMNS = {
    "validation_log_likelihood_nats": "log p(x) of validation images, annealed, nats",
    "stated_elbo_nats": "stated ELBO, nats",
}


def candidate(
    config: Config, dataset: Dataset, model: str, latent_dim: int, name: str, seed: int, folder: Path
) -> dict:
    """Train a candidate with one seed and anneal log p(x) of validation images, binarised at random, the same for all.

    Annealing and not the importance-weighted bound, which is tens of nats too low for an AVB without contrast.
    """
    own = folder / slug(model, latent_dim, name, seed)
    script, asked = wanted(config, model, latent_dim, seed, folder, own.name, CANDIDATES[model][name])
    trained = script.build(asked, dataset.image_shape)
    outcome = train_part(trained, dataset, asked, own)
    images = binarise(dataset.x_val, "dynamic", np.random.default_rng(1))[:SEARCH_IMAGES]
    chains = likelihood.AnnealedImportanceSampling(
        likelihood.of_decoder(trained.decoder), trained.prior, images, SEARCH_CHAINS
    )
    log_likelihood = chains.forward(SEARCH_TEMPERATURES).lower()
    keras.utils.clear_session()
    stated_elbo = None  # of a training that was stopped the last pass is not that of the weights it ends with
    if not outcome.stopped_by:
        stated_elbo = -outcome.history["val_reconstruction"][-1] - outcome.history["val_kl"][-1]
    return {
        "validation_log_likelihood_nats": float(log_likelihood.mean()),
        "stated_elbo_nats": stated_elbo,
        "stopped_by": outcome.stopped_by,
    }


def search(config: Config, dataset: Dataset, folder: Path) -> dict:
    """Every candidate with one seed, the best of each model with all, ranked; returns what metrics.json holds."""
    groups = {
        f"{model}, {latent_dim}-D": (model, latent_dim) for latent_dim in config.latent_dims for model in CANDIDATES
    }

    def parts_of(group: str, names: Iterable[str], seeds: Iterable[int]) -> dict:
        return {
            f"{group}: {name}, seed {seed}": partial(candidate, config, dataset, *groups[group], name, seed, folder)
            for name in names
            for seed in seeds
        }

    parts = {}
    for group, (model, _) in groups.items():
        parts |= parts_of(group, CANDIDATES[model], SEARCH_SEEDS[:1])
    runs, finalists = each_once(folder, parts), {}
    for group, (model, _) in groups.items():
        value = {name: runs[f"{group}: {name}, seed {SEARCH_SEEDS[0]}"] for name in CANDIDATES[model]}
        finalists[group] = sorted(value, key=lambda name: -value[name]["validation_log_likelihood_nats"])[:FINALISTS]
        parts |= parts_of(group, finalists[group], SEARCH_SEEDS)
    runs, metrics = each_once(folder, parts), {}
    for group, (model, _) in groups.items():
        found = {}
        for name in CANDIDATES[model]:
            seeds = SEARCH_SEEDS if name in finalists[group] else SEARCH_SEEDS[:1]
            of_name = [runs[f"{group}: {name}, seed {seed}"] for seed in seeds]
            found[name] = {"seeds": list(seeds)} | over_seeds(of_name, SEARCH_COLUMNS)
        ranked = sorted(
            found, key=lambda name: (-len(found[name]["seeds"]), -found[name]["validation_log_likelihood_nats"])
        )
        metrics |= {f"{group}: {name}": found[name] for name in ranked}
    rows = [
        [name, str(len(found["seeds"])), *(plus_minus(found[key], found[f"{key}_sd"], 2) for key in SEARCH_COLUMNS)]
        for name, found in metrics.items()
    ]
    ranking = markdown(["", "seeds", *SEARCH_COLUMNS.values()], rows)
    with whole(folder / "table.md") as unfinished:
        unfinished.write_text(ranking)
    write_json(folder / "metrics.json", metrics)
    print(ranking)
    print(folder)
    return metrics


# The comparison


def measured(config: Config, dataset: Dataset, model: str, latent_dim: int, seed: int, folder: Path) -> dict:
    """Train a model and estimate log p(x) of test images."""
    name = slug(model, latent_dim, "seed", seed)
    chosen = (CHOSEN_BEYOND_8 if latent_dim > 8 else CHOSEN)[model]
    script, asked = wanted(config, model, latent_dim, seed, folder, name, chosen)
    run, _ = complete_run(script, asked)
    trained, settings = load_run(run), LikelihoodSettings.of(config)
    weighted, bounds = importance_weighted(trained, dataset, settings, TimeLeft())
    found, estimates = annealed(trained, dataset, settings, TimeLeft())
    count = min(len(bounds), len(estimates))
    metrics = json.loads((run / "metrics.json").read_text())
    numbers = flat(weighted | found)
    lacking = float(np.mean(estimates[:count] - bounds[:count]))  # of the bound, on the same images
    carried = numbers["importance_weighted_bound_nats"] + lacking
    history = list(csv.DictReader((run / "history.csv").open()))
    return {
        "importance_weighted_bound_nats": numbers["importance_weighted_bound_nats"],
        "annealed_log_likelihood_nats": carried,
        "annealed_gap_nats": numbers["annealed_gap_nats"],
        "stated_elbo_nats": stated(model, metrics),
        "violation_nats": stated(model, metrics) - carried,
        "kl_neighbour_nats": metrics["kl_neighbour_nats"],
        "stated_kl_nats": metrics["kl_nats" if model == "VAE" else "kl_estimated_nats"],
        "test_reconstruction_nats": metrics["test_reconstruction_nats"],
        "stopped_by": metrics["stopped_by"],
        "course": {
            "updates": [float(row["updates"]) / getattr(asked, "discriminator_steps", 1) for row in history],
            "elbo": [-float(row["val_reconstruction"]) - float(row["val_kl"]) for row in history],
        },
    }


def main(config: Config = Config()) -> dict:
    """Train and measure what is not there yet; returns what metrics.json holds."""
    check(config)
    if config.quick:
        config = quickened(config, QUICK)
    dataset = load_mnist(config.data)
    settings = [own for model in MODELS for own in (CANDIDATES[model].values() if config.search else [CHOSEN[model]])]
    require_images(dataset, max(own.get("batch_size", vae_baseline.Config().batch_size) for own in settings))
    name = config.name or "-".join([config.networks, *["search"] * config.search, *["quick"] * config.quick])
    folder = Path(config.results) / "avb_mnist" / name
    updates = planned_updates(vae_baseline.Config(updates=config.updates), len(dataset.x_train))
    claim_folder(folder, "avb_mnist", config, dataset, updates)
    if config.search:
        return search(config, dataset, folder)
    parts = {
        f"{model}, {latent_dim}-D, seed {seed}": partial(measured, config, dataset, model, latent_dim, seed, folder)
        for seed in config.seeds
        for latent_dim in config.latent_dims
        for model in MODELS
    }
    runs = each_once(folder, parts)
    metrics = {}
    for latent_dim in config.latent_dims:
        for model in MODELS:
            of_model = [runs[f"{model}, {latent_dim}-D, seed {seed}"] for seed in config.seeds]
            keys = [key for key in of_model[0] if key.endswith("_nats")]
            metrics[f"{model}, {latent_dim}-D"] = over_seeds(of_model, keys)
    with whole(folder / "table.md") as unfinished:
        unfinished.write_text(table(metrics))
    write_json(folder / "metrics.json", metrics)
    plots.save(figure(metrics, config, dataset), folder / "log_likelihood.png")
    plots.save(training(runs, config, dataset), folder / "training.png")
    print(table(metrics))
    print(folder)
    return metrics


COLUMNS = {
    "importance_weighted_bound_nats": ("log p(x), importance-weighted bound", 1),
    "annealed_log_likelihood_nats": ("annealed, carried to all", 1),
    "annealed_gap_nats": ("gap between its directions", 2),
    "stated_elbo_nats": ("ELBO as the model states it", 1),
    "violation_nats": ("stated ELBO − log p(x)", 1),
    "stated_kl_nats": ("KL as stated", 1),
    "kl_neighbour_nats": ("KL by nearest neighbours", 1),
    "test_reconstruction_nats": ("reconstruction", 1),
}


def table(metrics: dict) -> str:
    """A row a model and code, mean ± standard deviation over the seeds, nats."""
    rows = []
    for name, found in metrics.items():
        cells = [plus_minus(found[key], found[f"{key}_sd"], digits) for key, (_, digits) in COLUMNS.items()]
        rows.append([row_title(name, found), *cells])
    return markdown(["", *(title for title, _ in COLUMNS.values())], rows)


def figure(metrics: dict, config: Config, dataset: Dataset):
    """What each model states and what is true, a panel a size of the code."""
    panels = {}
    for latent_dim in config.latent_dims:
        panels[f"nats per binarised image, {latent_dim}-D code"] = {
            title: {
                model: (
                    metrics[f"{model}, {latent_dim}-D"][key],
                    metrics[f"{model}, {latent_dim}-D"][f"{key}_sd"] or 0.0,
                )
                for model in MODELS
            }
            for key, title in (
                ("stated_elbo_nats", "ELBO as stated"),
                ("importance_weighted_bound_nats", "weighted bound"),
                ("annealed_log_likelihood_nats", "log p(x), annealed"),
            )
        }
    return figures.dots(
        panels,
        list(MODELS),
        f"AVB and a VAE with the same decoder on {dataset.name}: what they state, and log p(x)",
        f"{config.updates:,} updates, {of_seeds('mean and standard deviation', config.seeds)}. Bound: "
        f"{config.weighted_images:,} test images, {config.weighted_samples:,} draws; {config.annealed_images} of "
        "them annealed, the difference carried to all. A stated ELBO right of log p(x) is no bound",
    )


def training(runs: dict, config: Config, dataset: Dataset):
    """The stated ELBO of validation images over training."""
    panels = {}
    for latent_dim in config.latent_dims:
        series = {}
        for model in MODELS:
            courses = [runs[f"{model}, {latent_dim}-D, seed {seed}"]["course"] for seed in config.seeds]
            shortest = min(len(course["updates"]) for course in courses)
            x = np.array(courses[0]["updates"][:shortest])
            series[model] = figures.Curve(x, [course["elbo"][:shortest] for course in courses])
        panels[f"stated ELBO, nats, {latent_dim}-D"] = series
    return figures.bands(
        panels,
        "updates of encoder and decoder",
        "The ELBO that each model states, over training",
        f"Validation images of {dataset.name}, binarised; {of_seeds('mean and range', config.seeds)}",
        skipped=0.2,
    )


if __name__ == "__main__":
    run_main(main, Config)
