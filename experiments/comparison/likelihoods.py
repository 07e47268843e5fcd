"""Do the ways to estimate log p(x) agree, and can Parzen windows rank models at all?

The importance-weighted bound, annealed importance sampling with its gap, and the Parzen window of the AAE paper's
table 1, on the same decoders: a VAE at two lengths of training, AVB and an AAE. In the Parzen column two "models" that
need no training stand beside them: real training digits, and k-means centroids of them (Theis et al., arXiv
1511.01844). Everything is measured on the same test images; what is there already is not made again.

Run: python -m experiments.likelihoods --data mnist.npz (--help lists every flag).
Leaves in results/likelihoods/<name>/: runs, each with an annealing.png, and table.md, metrics.json, likelihoods.png.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import aae_gaussian
import avb
import vae_baseline
from common import plots
from common.command import run_main
from common.config import AtLeast, PositiveCount, Seed, check
from common.data import Dataset, load_mnist
from common.files import whole, write_json
from common.measure_likelihood import WINDOW_IMAGES, WINDOWS, LikelihoodSettings, measure_likelihood, parzen
from common.numbers import flat, markdown, plus_minus
from common.progress import TimeLeft
from common.run import load_run
from common.training import planned_updates
from experiments import figures
from experiments.study import claim_folder, complete_run, require_images, require_in_memory
from tools.evaluate import annealing_figure

import numpy as np
from sklearn.cluster import KMeans

COLUMNS = {  # key in metrics.json: how the table calls it, digits after the point
    "elbo_binarised_nats": ("ELBO", 1),
    "importance_weighted_bound_nats": ("importance-weighted bound", 1),
    "carried_log_likelihood_nats": ("annealed, carried to all", 1),
    "annealed_gap_nats": ("gap between its directions", 2),
    "annealed_minus_weighted_nats": ("annealed − weighted, same images", 2),
    "parzen_log_likelihood_nats": ("Parzen, grey digits", 0),
}


@dataclass(frozen=True)
class Config:
    """What the decoders share, and what is spent on each."""

    data: str = "auto"  # auto, mnist, fashion_mnist, sample, or the path of an .npz or .npy file
    latent_dim: PositiveCount = 8  # dimensions of z
    hidden_units: tuple[PositiveCount, ...] = (300, 300)  # ReLU units a layer, all networks
    updates: PositiveCount = 8250  # steps of the optimiser: 15 passes over MNIST
    few_updates: PositiveCount = 1100  # of the VAE that is trained for less: 2 passes
    seed: Seed = 0  # of weights, noise, order and binarisation
    annealed_images: Annotated[int, AtLeast(2)] = 50  # test images whose log p(x) is annealed
    chains: Annotated[int, AtLeast(2)] = 8  # for each of them
    temperatures: tuple[PositiveCount, ...] = (100, 300, 1000)  # between prior and posterior; the most count
    weighted_images: Annotated[int, AtLeast(2)] = 1000  # test images of the importance-weighted bound
    weighted_samples: PositiveCount = 5000  # draws for each of them
    window_samples: Annotated[int, AtLeast(2)] = 10_000  # digits, or centroids of them, that Parzen windows stand on
    results: str = "results"  # the folder of all runs
    name: str = "default"  # the folder below results/likelihoods/
    resume: str = ""  # the folder of a run that was stopped: go on with it, and with its parameters


def decoders(config: Config, folder: Path, dataset: Dataset) -> dict:
    """Name: script and Config of every decoder."""
    shared = {
        "data": config.data,
        "binarisation": "dynamic",
        "hidden_units": config.hidden_units,
        "latent_dim": config.latent_dim,
        "seed": config.seed,
        "results": str(folder),
    }
    long = shared | {"updates": config.updates, "name": f"seed-{config.seed}"}
    short = shared | {"updates": config.few_updates, "name": f"short-seed-{config.seed}"}
    vaes = [vae_baseline.Config(**parameters) for parameters in (short, long)]
    named = {f"VAE, {planned_updates(one, len(dataset.x_train)):,} updates": (vae_baseline, one) for one in vaes}
    return named | {
        "AVB": (avb, avb.Config(**long, discriminator_units=config.hidden_units)),
        "Gaussian AAE": (aae_gaussian, aae_gaussian.Config(**long)),
    }


def main(config: Config = Config()) -> dict:
    """Train and measure what is not there yet; returns what metrics.json holds."""
    check(config)
    dataset = load_mnist(config.data)
    require_in_memory(dataset)
    require_images(dataset, vae_baseline.Config().batch_size)
    folder = Path(config.results) / "likelihoods" / config.name
    claim_folder(folder, "likelihoods", config, dataset, config.updates)
    metrics = json.loads((folder / "metrics.json").read_text()) if (folder / "metrics.json").is_file() else {}
    settings = LikelihoodSettings.of(config)
    for name, (script, wanted) in decoders(config, folder, dataset).items():
        run, _ = complete_run(script, wanted)
        if name not in metrics:
            print(f"{name}: log p(x)", flush=True)
            metrics[name] = carried(measure_likelihood(load_run(run), dataset, settings, TimeLeft()))
            write_json(folder / "metrics.json", metrics)
        if len(metrics[name].get("annealed_curve", [])) > 1:
            picture = annealing_figure(metrics[name], f"{name} · {dataset.name}", dataset.name)
            plots.save(picture, run / "annealing.png")
    for name, images in windows(config, dataset, metrics):
        metrics[name] = flat(parzen(images, dataset))
        write_json(folder / "metrics.json", metrics)
    with whole(folder / "table.md") as unfinished:
        unfinished.write_text(table(metrics))
    plots.save(figure(metrics, config, dataset), folder / "likelihoods.png")
    print(table(metrics))
    print(folder)
    return metrics


def carried(found: dict) -> dict:
    """With the annealed log p(x) of all images of the bound, though only some were annealed.

    The bound's mean over all, plus the mean of what it lacks on those annealed (a control variate): the two means would
    not compare, since another hundred images move log p(x) by more than the estimators differ.
    """
    parts = ("importance_weighted_bound_nats", "annealed_minus_weighted_nats")
    error = float(np.hypot(*(found[f"{part}_standard_error"] for part in parts)))
    value = sum(found[part] for part in parts)
    return found | {"carried_log_likelihood_nats": value, "carried_log_likelihood_nats_standard_error": error}


def windows(config: Config, dataset: Dataset, metrics: dict):
    """Real digits and centroids of them, where they are not measured yet: pairs of name and grey images."""
    count = min(config.window_samples, len(dataset.x_train))
    name = f"{count:,} real training digits"
    if name not in metrics:
        yield name, np.random.default_rng(config.seed).permutation(dataset.x_train)[:count]
    count = min(config.window_samples, len(dataset.x_train) // 4)
    name = f"{count:,} k-means centroids"
    if name not in metrics:
        print(f"{name}: clustering", flush=True)
        flat_images = dataset.x_train.reshape(len(dataset.x_train), -1)
        # From random digits, a few rounds: how well they have converged is not what is asked.
        means = KMeans(count, init="random", n_init=1, max_iter=5, random_state=config.seed).fit(flat_images)
        yield name, means.cluster_centers_.reshape(-1, *dataset.image_shape)


def table(metrics: dict) -> str:
    """A row a decoder, mean ± standard error over test images, a dash where there is none."""
    rows = []
    for name, found in metrics.items():
        cells = [
            plus_minus(found.get(key), found.get(f"{key}_standard_error"), digits)
            for key, (_, digits) in COLUMNS.items()
        ]
        rows.append([name, *cells, plus_minus(found.get("parzen_sigma"), None, 3)])
    return markdown(["", *(title for title, _ in COLUMNS.values()), "σ"], rows)


def figure(metrics: dict, config: Config, dataset: Dataset):
    """Estimates of log p(x) on the left, Parzen's on the right, a row a model."""

    def series(key):
        return {
            name: (found[key], found[f"{key}_standard_error"])
            for name, found in metrics.items()
            if found.get(key) is not None
        }

    keys = ("elbo_binarised_nats", "importance_weighted_bound_nats", "carried_log_likelihood_nats")
    left = {COLUMNS[key][0]: series(key) for key in keys}
    right = {"Parzen window": series("parzen_log_likelihood_nats")}
    return figures.dots(
        {"log p(x), nats per binarised image": left, "log density, nats per grey image": right},
        list(metrics),
        f"Three estimates of log p(x) on {dataset.name}",
        f"Mean over test images, standard error as bar. Left: {config.weighted_images:,} images, "
        f"{config.weighted_samples:,} draws; {config.annealed_images} of the images annealed, {config.chains} chains, "
        f"{max(config.temperatures):,} temperatures, the difference carried to all. "
        f"Right: {min(WINDOW_IMAGES, len(dataset.x_test)):,} images, windows on {WINDOWS:,} samples of each decoder, "
        "on digits, or on centroids; σ chosen on validation images",
    )


if __name__ == "__main__":
    run_main(main, Config)
