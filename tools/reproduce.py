"""Are a run's numbers to be had again? The run is made once more from its config.json, and every metric compared.

Run: python -m experiments.reproduce results/<script>/<run> (of an experiment as well; --help lists every flag).
Leaves the new run in results/again/<script>/<date and time>/ and prints a line a metric: recorded, made again, by how
much they differ. Exit code 1 if one differs by more than --tolerance. On one machine, with the same backend, versions
and number of threads, every digit is the same, so that is 0; elsewhere sums are rounded in another order, trainings
part, and a metric may move by as much as between two seeds.
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
from common.run import explained, git_commit, load_config, prolongs_evenly, saved_run, versions
from common.training import StopOnInterrupt
from tools import evaluate

import keras
import tyro

COSTS = ("seconds", "seconds_sd", "train_seconds", "samples_per_second", "peak_memory_mib")
NEVER_THE_SAME = (*COSTS, "evaluation")  # which says at which commit a run was evaluated


@dataclass(frozen=True)
class Config:
    """The run, and how near its numbers have to be."""

    run: tyro.conf.Positional[str]  # the folder of a finished run, results/<script>/<name>
    tolerance: Factor = 0.0  # largest difference of a metric, relative to the recorded one
    data: str = ""  # where the run's data are now, if not where they were: the same file under another path
    results: str = "results/again"  # the folder of runs made again


def flat_metrics(metrics, name: str = "") -> dict:
    """Every number, word and null of nested metrics by its path, but for NEVER_THE_SAME."""
    if isinstance(metrics, dict):
        entries = ((key, value) for key, value in metrics.items() if key not in NEVER_THE_SAME)
    elif isinstance(metrics, list):
        entries = ((str(index), value) for index, value in enumerate(metrics))
    else:
        return {name: metrics}
    return {k: v for key, value in entries for k, v in flat_metrics(value, f"{name}: {key}" if name else key).items()}


def difference(recorded, again) -> float:
    """Relative to the recorded number; infinite where only one is a number, or where words differ."""
    if recorded == again:
        return 0.0
    if not all(isinstance(value, (int, float)) for value in (recorded, again)):
        return math.inf
    return abs(again - recorded) / abs(recorded) if recorded else math.inf


def recorded_metrics(folder: Path, saved: dict) -> dict:
    """The metrics of a run that can be made again. Raises RunError, saying why, of any other."""
    with explained(folder):
        metrics = json.loads((folder / "metrics.json").read_text())
    if metrics.get("stopped_by") == StopOnInterrupt.message:
        raise RunError(f"{folder} was interrupted, at no moment that could be met again; finish it with --resume first")
    prolonged = any(part["updates_before"] < saved["updates"] for part in saved.get("resumed", []))
    if prolonged and not prolongs_evenly(saved["parameters"]):
        raise RunError(f"{folder} was prolonged: its rates or weights are those of no single training")
    if saved["backend"] != keras.backend.backend():
        raise RunError(f"{folder} was made on {saved['backend']}; set KERAS_BACKEND={saved['backend']}")
    return metrics


def made_again(config: Config, folder: Path) -> tuple[dict, dict]:
    """Metrics of the run as recorded, and as they come out now, evaluated again if it was by `experiments.evaluate`."""
    with explained(folder):
        saved, module = saved_run(folder)
    recorded = recorded_metrics(folder, saved)
    asked = load_config(folder)
    if saved["data"]:
        evaluate.run_data(folder, config.data)  # refuses other data before any work
        asked = dataclasses.replace(asked, data=config.data or asked.data)
    now = versions() | {"commit": git_commit()}
    for name, then in (saved["versions"] | {"commit": saved["git_commit"]}).items():
        if then != now.get(name):
            print(f"{name}: then {then}, now {now.get(name)}", flush=True)
    name = time.strftime("%Y-%m-%d_%H-%M-%S")
    again = module.main(dataclasses.replace(asked, results=config.results, name=name))
    if (evaluation := recorded.get("evaluation", {})).get("measured_again"):
        spent = evaluation.get("likelihood")
        run = str(Path(config.results) / saved["script"] / name)
        settings = {key: tuple(value) if isinstance(value, list) else value for key, value in (spent or {}).items()}
        again = evaluate.main(evaluate.Config(run, likelihood=bool(spent), data=asked.data, **settings))
    again = flat_metrics(json.loads(json.dumps(again)))
    return {key: value for key, value in flat_metrics(recorded).items() if key in again}, again


def main(config: Config) -> dict[str, float]:
    """The difference of every metric of the run from the same made again, relative to the recorded one."""
    check(config)
    recorded, again = made_again(config, Path(config.run))
    differences = {key: difference(recorded.get(key), value) for key, value in again.items()}
    for key, value in again.items():
        print(f"{key}: {recorded.get(key)}, again {value}: differs by {differences[key]:.3g}")
    return differences


def reproduce(config: Config) -> dict:
    """`main` as a command: exit code 1 if a metric differs by more than the tolerance."""
    beyond = {key: value for key, value in main(config).items() if value > config.tolerance}
    if beyond:
        worst = max(beyond, key=beyond.get)
        print(f"{len(beyond)} metrics differ by more than {config.tolerance:g}, {worst} by {beyond[worst]:.3g}")
        sys.exit(1)
    print(f"every metric is within {config.tolerance:g} of what was recorded")
    return {}


if __name__ == "__main__":
    run_main(reproduce, Config)
