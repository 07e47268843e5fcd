"""What did a trained model learn? Measures a finished run with all instruments of common/evaluation.

Run: python -m tools.evaluate results/avb/first [--likelihood] (--help lists every flag).
It writes into the run's folder:

    metrics.json     more numbers, added to those of the script
    nearest.png      samples, each with the nearest training image
    annealing.png    with --likelihood: the estimate of log p(x) against the number of temperatures

The first use trains a classifier on the run's data, and keeps it in results/classifier/.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from common import display, plots
from common.command import run_main
from common.config import AtLeast, PositiveCount, check
from common.data import Dataset, load_data
from common.evaluation.probes import nothing_to_tell
from common.evaluation.samples import Classifier, nearest_images
from common.failures import STRICT, Failures, Strict
from common.files import RunError, hold
from common.likelihoods import Counts
from common.measure import MEASURED, encoded, measure, measure_samples, test_images
from common.measure_likelihood import LikelihoodSettings, measure_likelihood
from common.numbers import flat, merge, plus_minus
from common.progress import TimeLeft
from common.report import TRAINING_FILE, complete, draw, figures
from common.run import drew_validation, git_commit, load_config, load_run, one_line_errors, saved_run
from common.training import read_history
from common.transforms import RealTransform

import numpy as np
import tyro

PAIRS_SHOWN = 20


@dataclass(frozen=True)
class Config:
    """Measures a finished run with all instruments, and adds the numbers to its metrics.json."""

    run: tyro.conf.Positional[str]  # the folder of a run, results/<script>/<name>
    likelihood: bool = False  # log p(x) too: importance weighting, annealed importance sampling, Parzen windows
    data: str = ""  # the path of the run's data, if the file has another path now
    annealed_images: Annotated[int, AtLeast(2)] = 100  # test images for annealed importance sampling of log p(x)
    chains: Annotated[int, AtLeast(2)] = 16  # annealed chains per image
    # numbers of temperatures; the largest gives the estimate, and doubtful images get up to four times as many
    temperatures: tuple[PositiveCount, ...] = (100, 300, 1000)
    weighted_images: Annotated[int, AtLeast(2)] = 1000  # test images for the importance-weighted bound
    weighted_samples: PositiveCount = 5000  # draws per image for the importance-weighted bound


def run_data(folder: Path, path: str = "") -> Dataset:
    """The data that a run was trained on. Raises RunError if the path now holds other data."""
    with one_line_errors(folder):
        saved, _ = saved_run(folder)
        parameters, checksum, shuffled = saved["parameters"], saved["data"]["sha256"], drew_validation(saved)
        options = {name: parameters[name] for name in ("label_column", "resize") if name in parameters}
        options["likelihood"] = saved["data"].get("likelihood", "bernoulli")
        source = path or parameters["data"]
    dataset = load_data(source, shuffled, **options)
    if dataset.checksum != checksum:
        raise RunError(f"{folder} was trained on other data than {dataset.name}; pass its own data with --data")
    return dataset


def evaluate(
    folder: Path,
    dataset: Dataset,
    classifier: Classifier | None,
    settings: LikelihoodSettings | None,
    measured: bool = False,
    failures: Failures | Strict = STRICT,
) -> dict:
    """Measure the run in `folder`; write its metrics.json and its figures. Returns the content of metrics.json.

    The script's own numbers are measured again, unless this code has `measured` them already. The script's missing
    figures are drawn. Without `settings` there is no log p(x). `failures` handles errors.
    """
    model, config, saved = load_run(folder), load_config(folder), read_metrics(folder)
    parts, drawings = [], {}
    if not measured:
        history = saved_history(folder)
        codes = failures.numbers(MEASURED, lambda: {"test": encoded(model, test_images(dataset, config))})
        test = codes.get("test")
        parts.append(measure(model, dataset, config, test, failures) if test else flat(codes))
        drawings = figures(model, dataset, history, saved["updates"], test)
        drawings = {name: drawn for name, drawn in drawings.items() if name not in drawn_figures(folder)}
    parts.append(measure_samples(model, dataset, config, classifier, failures))
    title = f"{model.title} · {dataset.name} · run {folder.name}"
    if not isinstance(model.likelihood, Counts):  # whose samples have no totals of their own
        drawings["nearest"] = lambda: nearest_figure(model.means(model.prior_codes(PAIRS_SHOWN)), dataset, title)
    if settings:
        numbers = measure_likelihood(model, dataset, settings, TimeLeft(), failures)
        parts.append(numbers)
        if len(numbers.get("annealed_curve") or []) > 1:
            drawings["annealing"] = lambda: annealing_figure(numbers, title, dataset)
    parts = [without_lost(part, failures.lost, saved) for part in parts]
    metrics = merge(saved, *parts) | {"evaluation": evaluation_record(saved, settings, measured)}
    draw(drawings, folder, failures)
    if failures.failed:
        metrics["failed"] = failures.failed
    complete(folder, metrics)
    return metrics


def saved_history(folder: Path) -> dict[str, list[float]]:
    """The columns of a run's history.csv; no columns without that file. Raises RunError if it is damaged."""
    with one_line_errors(folder):
        path = folder / "history.csv"
        return read_history(path) if path.exists() else {}


def drawn_figures(folder: Path) -> set[str]:
    """The names of figures that need not be drawn: the run's own, unless they are from a shorter training."""
    if (folder / TRAINING_FILE).exists():
        return set()
    curves = {"training"} if not (folder / "history.csv").exists() else set()
    return curves | {picture.stem for picture in folder.glob("*.png")}


def without_lost(part: dict, lost, saved: dict) -> dict:
    """`part` without the numbers that failed now but are in `saved`, so that the saved ones are kept."""
    kept = {key for key in lost if saved.get(key) is not None}
    reasons = {key: reason for key, reason in part["null_because"].items() if key not in kept}
    return {key: value for key, value in part.items() if key not in kept} | {"null_because": reasons}


def evaluation_record(saved: dict, settings: LikelihoodSettings | None, measured: bool) -> dict:
    """The record of an evaluation in metrics.json: commits, settings, and whether the script's numbers are new."""
    record = saved.get("evaluation", {}) | {"git_commit": git_commit()}
    if not measured:
        record["measured_again"] = True
    if settings:
        record |= {"likelihood": settings.as_json(), "likelihood_git_commit": record["git_commit"]}
    return record


def read_metrics(folder: Path) -> dict:
    """The content of a run's metrics.json or, if the run ended before its measurements, of TRAINING_FILE.

    Raises RunError if both are missing, or damaged.
    """
    names = [name for name in (TRAINING_FILE, "metrics.json") if (folder / name).exists()]
    if not names:
        raise RunError(f"{folder} holds no complete run: its training has not ended; its script can --resume it")
    with one_line_errors(folder):
        metrics = dict(json.loads((folder / names[0]).read_text()))
    return {key: value for key, value in metrics.items() if key != "failed"}


def nearest_figure(samples: np.ndarray, dataset: Dataset, title: str):
    """Samples, (n, *image_shape), each with the nearest training row: a memorised image is above its original."""
    indices, distances = nearest_images(samples, dataset.x_train)
    held_out = nearest_images(dataset.x_test[:1000], dataset.x_train)[1]
    nearest, shown = dataset.x_train[indices], display.shown_as(dataset)
    noun, space = dataset.transform.noun, "pixels" if shown else "standardised columns"
    space = "standardised pixels" if isinstance(dataset.transform, RealTransform) else space
    description = (
        f"Decoder's {shown.means if shown else 'means'} for z ~ p(z), each {'above' if shown else 'with'} the nearest "
        f"of {len(dataset.x_train):,} training {noun}s. Euclidean distance over {space}: {distances.min():.1f} to "
        f"{distances.max():.1f} for samples, {held_out.mean():.1f} on average for test {noun}s"
    )
    if shown is None:
        return display.profiles(dataset, samples, nearest, title, description, series=("sample", "nearest row"))
    pairs = shown.pictures(samples), shown.pictures(nearest)
    return plots.image_pairs(*pairs, ("sample", "nearest"), title, description, **shown.scale)


def annealing_figure(numbers: dict, title: str, dataset: Dataset):
    """Estimates against the number of temperatures, on test images and, from both sides, on images of the model."""
    noun, binarised = dataset.transform.noun, "binarised " * (dataset.likelihood == "bernoulli")
    description = (
        f"log p(x) by annealed importance sampling: mean of {numbers['annealed_images']} {binarised}{noun}s, "
        f"{numbers['annealed_chains']} chains for each. Bars: standard error of the difference from the best "
        f"estimate, {noun} by {noun}. Best: on the left the last point, on the right the middle of the last two. The "
        f"gap on the right bounds the error on the model's own {noun}s only"
    )
    if numbers.get("annealed_error_nats") is not None:
        best = plus_minus(numbers["annealed_log_likelihood_nats"], numbers["annealed_error_nats"], 2)
        description += (
            f". Left, with more annealing where it was needed: {best} nats (error of annealing), with "
            f"{numbers['annealed_flagged_images']} {noun}s flagged"
        )
    return plots.annealing_curves(numbers["annealed_curve"], title, description, dataset.name, f"{noun}s")


def main(config: Config) -> dict:
    """Evaluate the run; returns the new content of its metrics.json."""
    config = check(config)
    folder = Path(config.run).resolve()
    with one_line_errors(folder):
        saved_run(folder)  # raises an error if the folder holds no run; the next line, if the run has not ended
    read_metrics(folder)
    load_run(folder)  # raises an error for an incomplete run before any work
    hold(folder)
    dataset = run_data(folder, config.data)
    failures = Failures(folder)
    classifier, settings = None, LikelihoodSettings.of(config) if config.likelihood else None
    if not nothing_to_tell(dataset.y_train):
        make = lambda: {"classifier": Classifier(dataset, folder.parents[1] / "classifier", TimeLeft())}  # noqa: E731
        classifier = failures.numbers(["classifier_accuracy"], make).get("classifier")
    metrics = evaluate(folder, dataset, classifier, settings, failures=failures)
    print(Path(config.run) / "metrics.json")
    return metrics


if __name__ == "__main__":
    run_main(main, Config)
