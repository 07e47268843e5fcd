"""What did a trained model learn? Every instrument of common/evaluation, turned on a run that is there already.

Run: python -m experiments.evaluate results/avb/first [--likelihood] (--help lists every flag).
Writes into the run's folder: the numbers into metrics.json, beside those that are there; `nearest.png`, samples with
the training images nearest to them; and, with --likelihood, `annealing.png`, the estimate of log p(x) against the
number of temperatures. A classifier of the run's data is trained on the first use and kept in results/classifier/.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from common import plots
from common.command import run_main
from common.config import AtLeast, PositiveCount, check
from common.data import Dataset, load_mnist
from common.evaluation.samples import Classifier, nearest_images
from common.files import RunError, hold, write_json
from common.measure import measure, measure_use, test_images
from common.measure_likelihood import LikelihoodSettings, measure_likelihood
from common.model import to_numpy
from common.numbers import merge
from common.progress import TimeLeft
from common.run import git_commit, load_config, load_run

import numpy as np
import tyro

PAIRS_SHOWN = 20


@dataclass(frozen=True)
class Config:
    """The run, and what is spent on log p(x)."""

    run: tyro.conf.Positional[str]  # the folder of a run, results/<script>/<name>
    likelihood: bool = False  # log p(x) too: importance weighting, annealed importance sampling, Parzen windows
    data: str = ""  # where the run's data are now, if not where they were: the same file under another path
    annealed_images: Annotated[int, AtLeast(2)] = 100  # test images whose log p(x) is annealed
    chains: Annotated[int, AtLeast(2)] = 16  # for each of them
    temperatures: tuple[PositiveCount, ...] = (100, 300, 1000)  # between prior and posterior; the most count
    weighted_images: Annotated[int, AtLeast(2)] = 1000  # test images of the importance-weighted bound
    weighted_samples: PositiveCount = 5000  # k, for each of them


def run_data(folder: Path, path: str = "") -> Dataset:
    """The data that a run was trained on. Raises RunError if what is there now is something else."""
    saved = json.loads((folder / "config.json").read_text())
    dataset = load_mnist(path or saved["parameters"]["data"])
    if dataset.checksum != saved["data"]["sha256"]:
        raise RunError(f"{folder} was trained on other data than {dataset.name}; pass its own with --data")
    return dataset


def evaluate(
    folder: Path,
    dataset: Dataset,
    classifier: Classifier | None,
    settings: LikelihoodSettings | None,
    measured: bool = False,
) -> dict:
    """All numbers of the run in `folder`, written into its metrics.json with the figures beside it.

    Those of the script's end are measured again, unless that has `measured` them just now.
    """
    model, config = load_run(folder), load_config(folder)
    parts = []
    if not measured:
        x_test = test_images(dataset, config)
        codes = model.encode(x_test)
        prior_samples = to_numpy(model.prior.sample(len(codes), model.seed_generator))
        parts.append(measure(model, dataset, config, x_test, codes, prior_samples))
    parts.append(measure_use(model, dataset, config, classifier))
    title = f"{model.title} · {dataset.name} · run {folder.name}"
    figures = {"nearest": nearest_figure(model.sample(PAIRS_SHOWN), dataset, title)}
    if settings:
        parts.append(measure_likelihood(model, dataset, settings, TimeLeft()))
        if len(parts[-1].get("annealed_curve", [])) > 1:
            figures["annealing"] = annealing_figure(parts[-1], title, dataset.name)
    there, commit = read_metrics(folder), git_commit()
    spent = {"likelihood": settings.as_json(), "likelihood_git_commit": commit} if settings else {}
    again = {"measured_again": True} if not measured else {}
    about = there.get("evaluation", {}) | {"git_commit": commit} | again | spent
    metrics = merge(there, *parts) | {"evaluation": about}
    write_json(folder / "metrics.json", metrics)
    for name, figure in figures.items():
        plots.save(figure, folder / f"{name}.png")
    return metrics


def read_metrics(folder: Path) -> dict:
    try:
        return json.loads((folder / "metrics.json").read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{folder} holds no complete run ({error})") from None


def nearest_figure(samples: np.ndarray, dataset: Dataset, title: str):
    """Samples above the training images nearest to them: a model that memorises shows pairs of twins."""
    indices, distances = nearest_images(samples, dataset.x_train)
    held_out = nearest_images(dataset.x_test[:1000], dataset.x_train)[1]
    return plots.image_pairs(
        samples,
        dataset.x_train[indices],
        ("sample", "nearest"),
        title,
        f"Decoder's pixel means for z ~ p(z), above the nearest of {len(dataset.x_train):,} training images; Euclidean "
        f"distance over pixels {distances.min():.1f} to {distances.max():.1f}, of test images {held_out.mean():.1f} on "
        "average",
    )


def annealing_figure(found: dict, title: str, images: str):
    """The estimates against the number of temperatures, on test images and, from both sides, on the model's own."""
    description = (
        f"log p(x) by annealed importance sampling, {found['annealed_chains']} chains an image, mean of "
        f"{found['annealed_images']} binarised images; bars: standard error of the difference, image by image, from "
        "the best, the last point on the left and the middle of the last two on the right"
    )
    return plots.annealing_curves(found["annealed_curve"], title, description, images)


def main(config: Config) -> dict:
    """Evaluate the run; returns what its metrics.json then holds."""
    check(config)
    folder = Path(config.run).resolve()
    load_run(folder)  # refuses what is no complete run before any work
    hold(folder)
    read_metrics(folder)
    dataset = run_data(folder, config.data)
    classifier = (
        Classifier(dataset, folder.parents[1] / "classifier", TimeLeft()) if dataset.y_test is not None else None
    )
    metrics = evaluate(folder, dataset, classifier, LikelihoodSettings.of(config) if config.likelihood else None)
    print(Path(config.run) / "metrics.json")
    return metrics


if __name__ == "__main__":
    run_main(main, Config)
