"""Can a run be reproduced? Repeats a run from its config.json, and compares every metric.

Run: python -m tools.reproduce results/<script>/<run> (--help lists every flag). The run may be one of an experiment.
The new run goes into results/again/<script>/<date and time>/. Prints one line per metric: the recorded number, the new
number, and their relative difference. The exit code is 1 if a difference is above --tolerance.

On one machine, with the same backend, versions and number of threads, every digit is the same: the tolerance is 0.
On other machines, sums are rounded in another order. Trainings then diverge, and a metric can differ by as much as
between two seeds.
"""

import dataclasses
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from common.command import run_main
from common.config import Factor, check
from common.files import RunError
from common.run import (
    git_commit,
    load_config,
    one_line_errors,
    prolongs_evenly,
    results_name,
    saved_run,
    versions,
)
from common.training import StopOnInterrupt
from tools import evaluate

import keras
import tyro

COSTS = ("seconds", "seconds_sd", "train_seconds", "samples_per_second", "peak_memory_mib")
NEVER_THE_SAME = (*COSTS, "evaluation")  # "evaluation" holds the commit that evaluated the run


@dataclass(frozen=True)
class Config:
    """Repeats a run from its config.json, and compares every metric with the recorded number."""

    run: tyro.conf.Positional[str]  # the folder of a finished run, results/<script>/<name>
    tolerance: Factor = 0.0  # largest allowed difference of a metric, relative to the recorded number
    data: str = ""  # the path of the run's data, if the file has another path now
    results: str = "results/again"  # the folder of repeated runs


def flat_metrics(metrics, name: str = "") -> dict:
    """Every number, word and null in nested metrics, by its path; without NEVER_THE_SAME."""
    if isinstance(metrics, dict):
        entries = ((key, value) for key, value in metrics.items() if key not in NEVER_THE_SAME)
    elif isinstance(metrics, list):
        entries = ((str(index), value) for index, value in enumerate(metrics))
    else:
        return {name: metrics}
    return {k: v for key, value in entries for k, v in flat_metrics(value, f"{name}: {key}" if name else key).items()}


def difference(recorded, repeated) -> float:
    """The difference relative to the recorded number; infinite if only one is a number, or if words differ."""
    if recorded == repeated:
        return 0.0
    if not all(isinstance(value, (int, float)) for value in (recorded, repeated)):
        return math.inf
    return abs(repeated - recorded) / abs(recorded) if recorded else math.inf


def recorded_metrics(folder: Path, saved: dict) -> dict:
    """The metrics of a run that can be repeated. Raises RunError, with the reason, if the run cannot."""
    with one_line_errors(folder):
        metrics = dict(json.loads((folder / "metrics.json").read_text()))
    if metrics.get("stopped_by") == StopOnInterrupt.message:
        raise RunError(f"{folder} was interrupted, and that cannot be repeated; finish it with --resume first")
    prolonged = any(part["updates_before"] < saved["updates"] for part in saved.get("resumed", []))
    if prolonged and not prolongs_evenly(saved["parameters"]):
        raise RunError(f"{folder} was prolonged: a single training has other rates or weights")
    if saved["backend"] != keras.backend.backend():
        raise RunError(f"{folder} was made on {saved['backend']}; set KERAS_BACKEND={saved['backend']}")
    return metrics


def repeat(config: Config, folder: Path) -> tuple[dict, dict]:
    """The recorded metrics of a run, and those of its repetition, which is evaluated in the same way."""
    with one_line_errors(folder):
        saved, module = saved_run(folder)
    recorded = recorded_metrics(folder, saved)
    own = load_config(folder)
    if saved["data"]:
        evaluate.run_data(folder, config.data)  # raises an error for other data before any work
        own = dataclasses.replace(own, data=config.data or own.data)
    now = versions() | {"commit": git_commit()}
    for name, then in (saved["versions"] | {"commit": saved["git_commit"]}).items():
        if then != now.get(name):
            print(f"{name}: {then} for the recorded run, {now.get(name)} now", flush=True)
    name = time.strftime("%Y-%m-%d_%H-%M-%S")
    metrics = module.main(dataclasses.replace(own, results=config.results, name=name))
    if (evaluation := recorded.get("evaluation", {})).get("measured_again"):
        spent = evaluation.get("likelihood")
        run = str(Path(config.results) / results_name(module.__name__) / name)
        settings = {key: tuple(value) if isinstance(value, list) else value for key, value in (spent or {}).items()}
        metrics = evaluate.main(evaluate.Config(run, likelihood=bool(spent), data=own.data, **settings))
    repeated = flat_metrics(json.loads(json.dumps(metrics)))
    return {key: value for key, value in flat_metrics(recorded).items() if key in repeated}, repeated


def main(config: Config) -> dict[str, float]:
    """The relative difference between every recorded metric of the run and its repetition."""
    config = check(config)
    recorded, repeated = repeat(config, Path(config.run))
    differences = {key: difference(recorded.get(key), value) for key, value in repeated.items()}
    for key, value in repeated.items():
        print(f"{key}: recorded {recorded.get(key)}, now {value}; relative difference {differences[key]:.3g}")
    return differences


def reproduce(config: Config) -> dict:
    """`main` as a command: exit code 1 if a difference is above the tolerance."""
    different = {key: value for key, value in main(config).items() if value > config.tolerance}
    if different:
        worst = max(different, key=different.get)
        print(
            f"{len(different)} metrics differ by more than {config.tolerance:g}; the largest difference is that of "
            f"{worst}, {different[worst]:.3g}"
        )
        sys.exit(1)
    print(f"every metric is within {config.tolerance:g} of the recorded number")
    return {}


if __name__ == "__main__":
    run_main(reproduce, Config)
