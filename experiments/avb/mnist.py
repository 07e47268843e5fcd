"""Is AVB better than a VAE with the same decoder on MNIST, and is its stated ELBO a bound on log p(x)?

This is the MNIST experiment of the AVB paper, arXiv 1701.04722: dynamically binarised digits, and codes of 8 and of 32
dimensions. VAE, AVB and AVB with adaptive contrast have the same decoder, data and number of updates of encoder and
decoder.

log p(x) of test images is estimated in two ways. One is the importance-weighted bound. The other is annealing, with the
gap between its two directions. The results also have each model's stated ELBO. AVB's stated ELBO comes from T, which
can be wrong: a stated ELBO above log p(x) is not a bound.

All numbers but the neighbours' KL are of the same binarised test images: stated ELBO, KL, reconstruction and bound. The
first of these images are annealed. Whatever is subtracted is subtracted image by image, on the annealed images.

Each model has its own settings, CHOSEN and CHOSEN_BEYOND_8. They come from --search, which uses validation images. It
trains every candidate with one seed, and then the best candidates of each model with all seeds of the search.

Run: python -m experiments.avb.mnist --data mnist.npz (--help lists every flag). The flag --quick is a short run on the
sample, and --search searches for the settings again. With --networks conv, networks are convolutional. Resumes if
interrupted. Results in results/avb_mnist/<name>/:

    metrics.json, table.md      mean and standard deviation over the seeds; after a search, candidates by rank
    runs.json                   numbers of every seed, and the annealed log p(x) of each image
    log_likelihood.png          stated ELBO, weighted bound and log p(x); not after a search
    training.png                the stated ELBO during the training; not after a search
    a folder per training       the run
"""

import csv
import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import avb
import vae_baseline
from common.binarisation import binarise
from common.command import run_main
from common.config import AtLeast, Networks, PositiveCount
from common.data import Dataset
from common.evaluation import likelihood
from common.files import RunError
from common.measure import STATED_KL, stated_terms
from common.measure_likelihood import OF_IMAGES, LikelihoodSettings, annealed, importance_weighted, likelihood_images
from common.metrics import METRICS, Metric
from common.model import LatentModel
from common.numbers import mean_of, of_seeds, over_seeds
from common.progress import TimeLeft
from common.run import load_run, require_memory
from experiments import figures, paired, study
from experiments.avb.mnist_settings import CANDIDATES, CHOSEN, CHOSEN_BEYOND_8, NOISE_BEYOND_8, candidate_name
from experiments.study import ImageStudyConfig, Part, Results, Study, script_config

import numpy as np

VAE = "VAE"
MODELS = {
    VAE: (vae_baseline, {}),
    "AVB": (avb, {"adaptive_contrast": False}),
    "AVB, adaptive contrast": (avb, {"adaptive_contrast": True}),
}
SEARCH_IMAGES, SEARCH_CHAINS, SEARCH_TEMPERATURES = 500, 2, 100  # validation images of the search, and their annealing
SEARCH_SEEDS, FINALISTS = (100, 101, 102), 4  # the best candidates at the first seed are trained with all seeds
SEARCH_COLUMNS = {
    "validation_log_likelihood_nats": Metric(
        "log p(x) of validation images, annealed", "nats", 2, "higher", "what the candidates are ranked by"
    ),
    "stated_elbo_nats": Metric("stated ELBO", "nats", 2, "", "of validation images, by the model's own KL"),
}
COLUMNS = {
    "importance_weighted_bound_nats": METRICS["importance_weighted_bound_nats"],
    "annealed_log_likelihood_nats": Metric(
        "log p(x), annealed, carried to all",
        "nats",
        1,
        "higher",
        "the stated ELBO of all images, plus the mean difference on the annealed images",
    ),
    "annealed_log_likelihood_nats_standard_error": Metric(
        "standard error of this over images", "nats", 1, "", "common to all models, which see the same images"
    ),
    "annealed_gap_nats": METRICS["annealed_gap_nats"],
    **paired.COLUMNS,
    "stated_elbo_nats": Metric("ELBO as the model states it", "nats", 1, "", "by its own KL, AVB's by T"),
    "violation_nats": Metric(
        "stated ELBO − log p(x), same images", "nats", 1, "", "above 0, the stated ELBO is not a bound"
    ),
    "violation_nats_standard_error": Metric(
        "standard error of this over images", "nats", 2, "", "of the differences image by image"
    ),
    "stated_kl_nats": Metric("KL as stated", "nats", 1, "", "in closed form, AVB's by T"),
    "kl_neighbour_nats": METRICS["kl_neighbour_nats"],
    "stated_kl_of_neighbour_images_nats": Metric(
        "KL as stated, the neighbours' images", "nats", 1, "", "of the very images whose KL the neighbours estimate"
    ),
    "stated_reconstruction_nats": Metric("reconstruction", "nats", 1, "lower", "the other part of the stated ELBO"),
}
QUICK = {
    "data": "sample",
    "latent_dims": (8,),
    "seeds": (0,),
    "updates": 200,
    "search_updates": 200,
    "annealed_images": 10,
    "weighted_images": 50,
    "weighted_samples": 500,
    "temperatures": (50,),
}


@dataclass(frozen=True)
class Config(ImageStudyConfig):
    """Parameters that all models share. Each model's own settings are in experiments/avb/mnist_settings.py."""

    latent_dims: tuple[PositiveCount, ...] = (8, 32)  # dimensions of z
    hidden_units: tuple[PositiveCount, ...] = (300, 300)  # ReLU units per layer, all networks
    networks: Networks = "dense"  # dense, or conv: three convolutions and one dense layer (paper: convolutional)
    updates: PositiveCount = 11_000  # updates of encoder and decoder: 20 passes over MNIST
    search: bool = False  # only train the candidates, and rank them on validation images
    search_updates: PositiveCount = 5500  # updates of encoder and decoder for every candidate
    annealed_images: Annotated[int, AtLeast(2)] = 100  # test images for annealed importance sampling of log p(x)
    chains: Annotated[int, AtLeast(2)] = 8  # annealed chains per image
    temperatures: tuple[PositiveCount, ...] = (1000,)  # numbers of temperatures; the largest gives the estimate
    weighted_images: Annotated[int, AtLeast(2)] = 1000  # test images for the weighted bound and the stated ELBO
    weighted_samples: PositiveCount = 5000  # draws per image for the importance-weighted bound
    name: str = ""  # the folder below results/avb_mnist/; if empty: the networks, then "search" and "quick" if set


# Trainings


def trainings(config: Config) -> dict[str, tuple[str, int, dict]]:
    """Model, dimensions of the code and settings of every training, by the name of its case.

    A name is "VAE, 8-D". In a search, the cases are candidates: "VAE, 8-D: learning rate 0.003, beta 1 0.5".
    """
    if config.search:
        return {
            f"{case_name(model, latent_dim)}: {candidate_name(settings)}": (model, latent_dim, settings)
            for latent_dim in config.latent_dims
            for model in CANDIDATES
            for settings in CANDIDATES[model]
        }
    return {
        case_name(model, latent_dim): (model, latent_dim, (CHOSEN_BEYOND_8 if latent_dim > 8 else CHOSEN)[model])
        for latent_dim in config.latent_dims
        for model in MODELS
    }


def case_name(model: str, latent_dim: int) -> str:
    """The name of a case: a model and the size of its code."""
    return f"{model}, {latent_dim}-D"


def own_parameters(config: Config, model: str, latent_dim: int, settings: dict) -> dict:
    """The parameters of a model's script that the Config does not have.

    The script's `updates` are optimiser steps: one update of encoder and decoder takes `discriminator_steps` of them.
    """
    script, own = MODELS[model]
    own = own | (NOISE_BEYOND_8 if script is avb and latent_dim > 8 else {}) | settings
    updates = config.search_updates if config.search else config.updates
    own["updates"] = own.get("discriminator_steps", 1) * updates
    return own | {"latent_dim": latent_dim, "binarisation": "dynamic"}


def cases(config: Config, dataset: Dataset) -> dict:
    """Every model with every size of the code, or every candidate."""
    function = candidate if config.search else case
    return {name: partial(function, *training) for name, training in trainings(config).items()}


def requires(config: Config, dataset: Dataset):
    """Raises RunError if images for a batch, memory or the shape of the images do not suffice for a training."""
    requested = [
        script_config(MODELS[model][0], config, 0, **own_parameters(config, model, latent_dim, settings))
        for model, latent_dim, settings in trainings(config).values()
    ]
    study.require_batch(dataset, max(each.batch_size for each in requested))
    if config.networks == "conv" and len(dataset.image_shape) != 2:
        raise RunError(f"--networks conv needs images of (height, width), not {dataset.image_shape}")
    for each in requested:
        require_memory(each, dataset)


# The comparison


def case(model: str, latent_dim: int, settings: dict, part: Part) -> dict:
    """Train a model by its script, and estimate log p(x) of test images; returns also the model's stated numbers.

    `encoder_updates` counts updates of encoder and decoder, which wait for `discriminator_steps` of T. "course" has
    the stated ELBO and T's loss of validation images against these updates, one number per epoch.
    """
    script = MODELS[model][0]
    run = part.run_script(script, **own_parameters(part.config, model, latent_dim, settings))
    trained, steps = load_run(run), settings.get("discriminator_steps", 1)
    saved = json.loads((run / "metrics.json").read_text())
    return log_likelihoods(trained, part.dataset, LikelihoodSettings.of(part.config)) | {
        "kl_neighbour_nats": saved["kl_neighbour_nats"],
        STATED_KL: saved.get(STATED_KL),  # which older runs do not have
        "encoder_updates": part.made["updates"] // steps,
        "course": course(run, steps),
    }


def log_likelihoods(model: LatentModel, dataset: Dataset, settings: LikelihoodSettings) -> dict:
    """Estimates of log p(x) and the stated ELBO in nats, of the same test images; see `paired.carried`.

    Annealing is expensive. So the mean difference between its estimate and the stated ELBO on the annealed images is
    added to the stated ELBO of all images. If that is not finite, the weighted bound takes its place.
    """
    weighted, bounds = importance_weighted(model, dataset, settings, TimeLeft())
    numbers, estimates = annealed(model, dataset, settings, TimeLeft())
    terms = stated_terms(model, likelihood_images(dataset, settings.weighted_images))
    stated = {key: values.mean(axis=0, dtype="float64") for key, values in terms.items()}
    elbo = -stated["reconstruction"] - stated["kl"]
    count = min(len(elbo), len(estimates))  # both begin with the same images
    return {
        "importance_weighted_bound_nats": weighted["importance_weighted_bound_nats"],
        "annealed_log_likelihood_nats": paired.carried(elbo if np.isfinite(elbo).all() else bounds, estimates),
        "annealed_error_nats": numbers["annealed_error_nats"],
        "annealed_gap_nats": numbers["annealed_gap_nats"],
        "stated_elbo_nats": mean_of(elbo),
        "violation_nats": mean_of(elbo[:count] - estimates[:count]),
        "stated_kl_nats": mean_of(stated["kl"]),
        "stated_reconstruction_nats": mean_of(stated["reconstruction"]),
        OF_IMAGES: numbers[OF_IMAGES],
    }


def rows(declared: Study, results: Results) -> dict[str, dict]:
    """A row per case; each has the difference of its log p(x) from that of the VAE with the same size of code."""
    cases = [(model, latent_dim) for model, latent_dim, _ in trainings(results.config).values() if model != VAE]
    vaes = {case_name(model, latent_dim): case_name(VAE, latent_dim) for model, latent_dim in cases}
    return study.rows_of_cases(declared, paired.with_differences(results, vaes))


def course(run: Path, steps: int) -> dict:
    """By epoch: updates of the encoder, the stated ELBO of validation images, and T's loss on them, if there is a T.

    A number that is not finite is null.
    """
    with (run / "history.csv").open() as file:
        history = list(csv.DictReader(file))
    columns = {
        "updates": [float(row["updates"]) / steps for row in history],
        "elbo": [-float(row["val_reconstruction"]) - float(row["val_kl"]) for row in history],
        "discriminator": [float(row["val_discriminator"]) for row in history if "val_discriminator" in row],
    }
    return {name: [value if np.isfinite(value) else None for value in column] for name, column in columns.items()}


def all_figures(results: Results, rows: dict) -> dict:
    """The stated ELBOs against log p(x), and the stated ELBO over training."""
    return {"log_likelihood": stated_and_true(results, rows), "training": training(results)}


def stated_and_true(results: Results, rows: dict):
    """Each model's stated ELBO, weighted bound and log p(x), one panel per size of the code."""
    config, dataset = results.config, results.dataset
    titles = {
        "stated_elbo_nats": "ELBO as stated",
        "importance_weighted_bound_nats": "weighted bound",
        "annealed_log_likelihood_nats": "log p(x), annealed",
    }
    panels = {}
    for latent_dim in config.latent_dims:
        means = {model: rows[case_name(model, latent_dim)] for model in MODELS}
        panels[f"nats per binarised image, {latent_dim}-D code"] = {
            title: {
                model: (each[key], each[f"{key}_sd"] or 0.0) for model, each in means.items() if each[key] is not None
            }
            for key, title in titles.items()
        }
    weighted, few = (min(count, len(dataset.x_test)) for count in (config.weighted_images, config.annealed_images))
    return figures.dots(
        panels,
        list(MODELS),
        f"AVB and a VAE with the same decoder on {dataset.name}: stated ELBO, and log p(x)",
        f"{encoder_updates(results)}, {of_seeds('mean and standard deviation', config.seeds)}. Bound: {weighted:,} "
        f"test images, {config.weighted_samples:,} draws. Annealing: {few} of these images; its difference from the "
        "stated ELBO is carried to all. A stated ELBO to the right of log p(x) is not a bound",
    )


def encoder_updates(results: Results) -> str:
    """The number of updates of encoder and decoder, as text for a figure."""
    return f"{results.updates(*trainings(results.config), key='encoder_updates')} of encoder and decoder"


def training(results: Results):
    """The stated ELBO of validation images over training."""
    config = results.config
    panels = {
        f"stated ELBO, nats, {latent_dim}-D": {
            model: figures.curve_of([run["course"] for run in results.of(case_name(model, latent_dim))], "elbo")
            for model in MODELS
        }
        for latent_dim in config.latent_dims
    }
    return figures.bands(
        panels,
        "updates of encoder and decoder",
        "The stated ELBO of each model, over training",
        f"Validation images of {results.dataset.name}, binarised; {of_seeds('mean and range', config.seeds)}",
        skipped=0.2,
    )


# The search


def candidate(model: str, latent_dim: int, settings: dict, part: Part) -> dict:
    """Train a candidate, and anneal log p(x) of validation images. All candidates get the same binarised pixels.

    The importance-weighted bound would not do: it is tens of nats too low for an AVB without contrast.
    """
    script = MODELS[model][0]
    config = script_config(script, part.config, part.seed, **own_parameters(part.config, model, latent_dim, settings))
    trained = script.build(config, part.dataset.image_shape)
    outcome = part.train(trained, config)
    images = binarise(part.dataset.x_val, "dynamic", np.random.default_rng(1))[:SEARCH_IMAGES]
    chains = likelihood.AnnealedImportanceSampling(
        likelihood.of_decoder(trained.decoder), trained.prior, images, SEARCH_CHAINS
    )
    log_likelihood = chains.forward(SEARCH_TEMPERATURES).lower()
    stated_elbo = None  # after an early stop, the last epoch's ELBO is not that of the final weights
    if not outcome.stopped_by:
        stated_elbo = -outcome.history["val_reconstruction"][-1] - outcome.history["val_kl"][-1]
    return {"validation_log_likelihood_nats": float(log_likelihood.mean()), "stated_elbo_nats": stated_elbo}


def search(config: Config) -> dict:
    """Train every candidate with one seed, the best of each model with all seeds; returns metrics.json's content."""
    dataset, folder = study.begin(STUDY, config)
    functions, groups = cases(config, dataset), {}
    for name, (model, latent_dim, _) in trainings(config).items():
        groups.setdefault((model, latent_dim), []).append(name)

    def make(names, seeds) -> dict[str, dict]:
        some = STUDY._replace(cases=lambda *_: {name: functions[name] for name in names})
        return study.make_parts(some, replace(config, seeds=seeds), dataset, folder)

    runs, seeds = make(functions, SEARCH_SEEDS[:1]), dict.fromkeys(functions, SEARCH_SEEDS[:1])
    for names in groups.values():
        first = {name: runs[study.part_name(name, SEARCH_SEEDS[0])] for name in names}
        seeds |= dict.fromkeys(sorted(names, key=lambda name: -score(first[name]))[:FINALISTS], SEARCH_SEEDS)
    runs |= make([name for name in functions if seeds[name] == SEARCH_SEEDS], SEARCH_SEEDS)
    rows = ranking(groups.values(), seeds, runs)
    counts = {name: str(len(means["seeds"])) for name, means in rows.items()}
    ranked = STUDY._replace(
        rows=lambda *_: rows,
        tables=lambda *_: {"table.md": study.table(rows, SEARCH_COLUMNS, {"seeds": counts})},
        figures=lambda *_: {},
    )
    return study.finish(ranked, Results(config, dataset, folder, runs))


def score(numbers: dict) -> float:
    """The score of a candidate, log p(x) of validation images; a candidate without it comes last."""
    value = numbers["validation_log_likelihood_nats"]
    return -np.inf if value is None else value


def ranking(groups, seeds: dict[str, tuple], runs: dict[str, dict]) -> dict[str, dict]:
    """The candidates' seeds and means, model by model; candidates with all seeds first, then by log p(x)."""
    rows = {}
    for names in groups:
        means = {
            name: {"seeds": list(seeds[name])}
            | over_seeds([runs[study.part_name(name, seed)] for seed in seeds[name]], SEARCH_COLUMNS)
            for name in names
        }
        order = sorted(names, key=lambda name: (-len(means[name]["seeds"]), -score(means[name])))
        rows |= {name: means[name] for name in order}
    return rows


STUDY = Study("avb.mnist", cases, COLUMNS, all_figures, QUICK, requires, rows=rows)


def main(config: Config = Config()) -> dict:
    """Run the comparison or the search; returns the content of metrics.json."""
    if not config.name:
        config = replace(config, name=f"{config.networks}{'-search' * config.search}{'-quick' * config.quick}")
    return search(config) if config.search else study.run(STUDY, config)


if __name__ == "__main__":
    run_main(main, Config, partial(study.presets, STUDY))
