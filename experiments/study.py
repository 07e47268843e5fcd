"""The frame of every experiment: trains and measures each case with each seed, then makes a table and figures.

The module of an experiment defines `Config`, `STUDY` and `main`; `run` does the rest. It raises an error for impossible
parameters before any work. It locks the folder results/<group>_<experiment>/<name>/, and makes the parts: a part is one
case with one seed. Each part's numbers go into runs.json at once. So a stopped experiment resumes with the part in
progress, at its last checkpoint. At the end, `run` writes metrics.json (mean and standard deviation over the seeds),
table.md and the figures.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import NamedTuple

from common import checkpoint, plots
from common.command import run_main
from common.config import Seed, check, flag
from common.data import Dataset, load_data
from common.files import RunError, hold, release, whole, write_json
from common.metrics import Metric
from common.numbers import flat, markdown, over_seeds, row_title
from common.run import (
    NO_CHOICES,
    changed_environment,
    complete_metrics,
    description,
    load_config,
    one_line_errors,
    require_same,
    require_test_images,
    results_name,
    resumed_config,
    saved_run,
)
from common.training import Outcome, StopOnInterrupt, adam_per_network, epochs_for, fit, image_batches

import keras
import numpy as np

SHARED = ("data", "binarisation", "latent_dim", "hidden_units", "networks", "updates")  # the same in every Config


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """The parameters that every experiment has beside its own."""

    seeds: tuple[Seed, ...] = (0, 1, 2)  # random seeds of weights, noise, order and binarisation
    quick: bool = False  # small defaults where no other flag sets a value: minutes, not hours
    results: str = "results"  # the folder of all runs
    name: str = ""  # the folder below results/<group>_<experiment>/; chosen by the experiment if empty
    resume: str = ""  # the folder of a stopped experiment, which resumes with its own parameters


@dataclass(frozen=True, kw_only=True)
class ImageStudyConfig(StudyConfig):
    """The parameters that every experiment on images has beside its own."""

    data: str = "auto"  # auto, mnist, fashion_mnist, sample, or the path of an .npz or .npy file


@dataclass
class Part:
    """One case with one seed: the argument of a case's function."""

    config: StudyConfig
    dataset: Dataset | None
    seed: int
    folder: Path  # this part's folder for history.csv, checkpoints and pictures; `train` and `keep` create it
    first: bool  # whether this is the first seed, whose pictures the figures show
    made: dict = field(default_factory=dict)  # the training's updates, epochs, images, seconds and stopped_by

    def train(self, model, config, batches=None, validation=None, **options) -> Outcome:
        """Train a model by the Config of its script on the data set, or on `batches` with `validation`.

        `options` go to the function `train`. The training's `made` numbers join those of the part.
        """
        if batches is None:
            batches, validation = image_batches(self.dataset, config)
        outcome = train(model, batches, validation, config, self.folder, **options)
        self.made = outcome.made()
        return outcome

    def run_script(self, script, folder: Path | None = None, **own) -> Path:
        """The folder of a complete run of a script, with this part's Config and seed; see `complete_run`.

        It is <parent of `folder`>/<script>/<name of `folder`>. Without `folder`, this part's own stands for it.
        """
        config, folder = script_config(script, self.config, self.seed, **own), folder or self.folder
        config = replace(config, results=str(folder.parent), name=folder.name)
        run, self.made = complete_run(script, config, self.dataset)
        return run

    def keep(self, **arrays: np.ndarray):
        """Save arrays for the figures, if this is the first seed."""
        if self.first:
            self.folder.mkdir(exist_ok=True)
            with whole(self.folder / "pictures.npz") as path:
                np.savez_compressed(path, **arrays)


class Results(NamedTuple):
    """The input of tables and figures."""

    config: StudyConfig
    dataset: Dataset | None
    folder: Path
    runs: dict[str, dict]  # "<case>, seed <seed>" -> numbers

    def of(self, case: str) -> list[dict]:
        """The numbers of a case, one dict per seed."""
        return [self.runs[part_name(case, seed)] for seed in self.config.seeds]

    def means(self, case: str, keys) -> dict:
        """`over_seeds` for the numbers of a case."""
        return over_seeds(self.of(case), keys)

    def pictures(self, case: str) -> dict[str, np.ndarray]:
        """The arrays that `Part.keep` saved for a case. Raises RunError if they are missing."""
        name = case if case in self.runs else part_name(case, self.config.seeds[0])  # a case of `once` has no seed
        path = part_folder(self.folder, name) / "pictures.npz"
        with one_line_errors(self.folder), np.load(path) as arrays:
            return dict(arrays)

    def updates(self, *cases: str, key: str = "updates") -> str:
        """The number of updates of some cases' trainings, as text for a figure: "8,250 updates"."""
        made = [run[key] for case in cases for run in self.of(case) if run.get(key) is not None]
        low, high = min(made, default=0), max(made, default=0)
        return f"{low:,} updates" if low == high else f"{low:,} to {high:,} updates"


def rows_of_cases(study: "Study", results: Results) -> dict[str, dict]:
    """One row per case: mean and standard deviation over the seeds of every column."""
    cases = study.cases(results.config, results.dataset)
    rows = {case: results.means(case, (*study.columns, "updates")) for case in cases}
    return rows | {name: results.runs[name] for name in study.once(results.config, results.dataset)}


def one_table(study: "Study", results: Results, rows: dict) -> dict[str, str]:
    """table.md: one row per case, one column per metric."""
    return {"table.md": table(rows, study.columns)}


def no_requirements(config, dataset):
    """The requirements of an experiment that works with every data set."""


def no_cases(config, dataset) -> dict:
    """The cases without a seed, for an experiment that has none."""
    return {}


def no_presets(config) -> dict:
    """The presets of an experiment whose flags change no default of another flag."""
    return {}


class Study(NamedTuple):
    """An experiment. In its functions, `config` is its Config, and `dataset` the data set of the Config, or None."""

    name: str  # <group>.<experiment>, as in `python -m experiments.<group>.<experiment>`
    cases: Callable  # (config, dataset) -> {case: function of a Part -> numbers}
    columns: Mapping[str, Metric]  # columns of the table, by key
    figures: Callable  # (Results, rows) -> {file name without .png: Figure}
    quick: dict  # the defaults of --quick
    requires: Callable = no_requirements  # (config, dataset): raises RunError or DataError before any work
    once: Callable = no_cases  # like `cases`, for cases that do not depend on the seed
    rows: Callable = rows_of_cases  # (Study, Results) -> {row: means}, the content of metrics.json
    tables: Callable = one_table  # (Study, Results, rows) -> {file name: text}
    presets: Callable = no_presets  # config -> defaults that flags other than --quick set; --quick overrides them


def run(study: Study, config: StudyConfig) -> dict:
    """Train and measure all parts that are not saved yet, then write the results; returns metrics.json's content."""
    config = check(config)
    dataset, folder = begin(study, config)
    return finish(study, Results(config, dataset, folder, make_parts(study, config, dataset, folder)))


def begin(study: Study, config: StudyConfig) -> tuple[Dataset | None, Path]:
    """The data set and the folder of an experiment. Raises RunError or DataError if the experiment cannot run."""
    config = check(config)
    dataset = load_data(config.data, likelihood="bernoulli") if hasattr(config, "data") else None
    if dataset:
        require_test_images(dataset)
    study.requires(config, dataset)
    module = f"experiments.{study.name}"
    name = config.name or ("quick" if config.quick else "default")
    folder = Path(config.resume or Path(config.results) / results_name(module) / name)
    claim_folder(folder, description(config, module, dataset))
    return dataset, folder


def make_parts(study: Study, config: StudyConfig, dataset: Dataset | None, folder: Path) -> dict[str, dict]:
    """The numbers of all parts by name: every case with every seed, and every case without a seed."""
    cases, once = study.cases(config, dataset), study.once(config, dataset)
    functions = {part_name(case, seed): (cases[case], seed) for seed in config.seeds for case in cases}
    functions |= {case: (function, config.seeds[0]) for case, function in once.items()}

    def make(name: str) -> dict:
        function, seed = functions[name]
        part = Part(config, dataset, seed, part_folder(folder, name), first=seed == config.seeds[0])
        numbers = flat(function(part)) | part.made
        keras.utils.clear_session()
        return numbers

    return each_once(folder, list(functions), make)


def each_once(folder: Path, names: Sequence[str], make: Callable[[str], dict]) -> dict[str, dict]:
    """`make(name)` for every name: read from runs.json in `folder`, or made now and written there at once.

    Prints how many minutes are left. Raises RunError if runs.json is damaged.
    """
    path, runs = folder / "runs.json", {}
    if path.is_file():
        with one_line_errors(folder):
            runs = dict(json.loads(path.read_text()))
    missing = [name for name in names if name not in runs]
    if not missing:
        print(f"{folder}: all {len(names)} parts are saved", flush=True)
    start = time.perf_counter()
    for number, name in enumerate(missing):
        print(name, flush=True)
        runs[name] = make(name)
        write_json(path, runs)
        for trained in folder.glob("**/"):
            checkpoint.discard(trained)
        parts_left = len(missing) - number - 1
        seconds_left = (time.perf_counter() - start) / (number + 1) * parts_left
        print(f"{name}: done; parts left: {parts_left}, minutes left: {seconds_left / 60:.0f}", flush=True)
    return {name: runs[name] for name in names}


def finish(study: Study, results: Results) -> dict:
    """Write metrics.json, tables and figures into the folder; returns the content of metrics.json."""
    rows = study.rows(study, results)
    write_json(results.folder / "metrics.json", rows)
    for name, text in study.tables(study, results, rows).items():
        with whole(results.folder / name) as path:
            path.write_text(text)
        if name.endswith(".md"):
            print(text)
    for name, figure in study.figures(results, rows).items():
        plots.save(figure, results.folder / f"{name}.png")
    print(results.folder)
    return rows


def run_study(study: Study, config_class):
    """`run` from the command line. --quick sets the study's small defaults where no flag sets a value."""
    run_main(lambda config: run(study, config), config_class, lambda config: presets(study, config))


def presets(study: Study, config: StudyConfig) -> dict:
    """The defaults that flags such as --quick set."""
    return study.presets(config) | (study.quick if config.quick else {})


# Names and tables


def part_name(case: str, seed: int) -> str:
    """The name of a part in runs.json and in records."""
    return f"{case}, seed {seed}"


def part_folder(folder: Path, name: str) -> Path:
    """The folder of a part: its name in lower case, with hyphens for all signs other than . and +."""
    letters = [letter if letter.isalnum() or letter in ".+" else "-" for letter in name.lower()]
    return folder / "-".join(filter(None, "".join(letters).split("-")))


def table(
    rows: Mapping[str, Mapping], columns: Mapping[str, Metric], first: Mapping[str, Mapping] | None = None
) -> str:
    """One row per name, with `mean ± standard deviation` in each column.

    `first` holds columns of text that come before: heading -> row -> text.
    """
    first = first or {}
    header = ["", *first, *(metric.heading for metric in columns.values())]
    lines = [
        [
            row_title(name, means),
            *(texts.get(name, "−") for texts in first.values()),
            *(metric.cell(means, key) for key, metric in columns.items()),
        ]
        for name, means in rows.items()
    ]
    return markdown(header, lines)


def reported(numbers: Mapping, dataset: Dataset) -> Mapping:
    """`numbers` that a paper reports for MNIST; empty for other data, to which they do not apply."""
    return numbers if dataset.is_mnist else {}


# Folders and trainings


def claim_folder(folder: Path, requested: dict):
    """Create a folder with config.json. If it exists with the same parameters and data, the experiment resumes in it.

    Raises RunError if the folder has other parameters or data, or if it cannot be written.
    """
    try:
        if (folder / "config.json").is_file():
            with one_line_errors(folder):
                saved, _ = saved_run(folder)
                require_same(folder, saved, requested)
                changed = changed_environment(saved, requested)
            hold(folder)
            if changed:
                parameters = {"parameters": saved["parameters"]}  # names and paths stay as they were at the start
                write_json(folder / "config.json", resumed_config(folder, saved, requested) | parameters)
            return
        folder.mkdir(parents=True, exist_ok=True)
        hold(folder)
        write_json(folder / "config.json", requested)
    except OSError as error:
        raise RunError(f"cannot write to {folder} ({error.strerror}); choose another --results") from None


def train(
    model, batches, validation, config, folder: Path, epochs=None, measures=(), optimizer=adam_per_network
) -> Outcome:
    """`fit` for an experiment: for `epochs`, or for the whole passes that are nearest to `config.updates`.

    Raises KeyboardInterrupt if the training was interrupted, so that the experiment ends. If the training stops for
    another reason, this is printed and the experiment continues.
    """
    folder.mkdir(exist_ok=True)
    epochs = epochs or max(1, round(config.updates / len(batches)))
    outcome = fit(model, batches, validation, config, epochs, folder, measures, optimizer)
    if outcome.stopped_by == StopOnInterrupt.message:
        raise KeyboardInterrupt
    if outcome.stopped_by:
        print(f"training stopped: {outcome.stopped_by}; the trained weights are measured", flush=True)
    return outcome


def script_config(script, config: StudyConfig, seed: int, **own):
    """The Config of a script: the SHARED parameters of an experiment's Config, the seed, and the script's `own`.

    AVB's discriminator has the same hidden units as the other networks, unless `own` sets others.
    """
    names = {each.name for each in fields(script.Config)}
    shared = {name: getattr(config, name) for name in SHARED if name in names and hasattr(config, name)}
    if "discriminator_units" in names and hasattr(config, "hidden_units"):
        shared["discriminator_units"] = config.hidden_units
    return script.Config(**shared | {"seed": seed} | own)


def complete_run(script, config, dataset: Dataset) -> tuple[Path, dict]:
    """Complete the run of `script`, a module, with `config`; returns its folder and its training's `made` numbers.

    Without `epochs` it makes the whole passes nearest to `updates`, like every training of an experiment. A stopped run
    is resumed. Raises RunError if the folder holds a run with other parameters.
    """
    if config.epochs is None:
        config = replace(config, epochs=epochs_for(config.updates, len(dataset.x_train), config.batch_size))
    folder = Path(config.results) / script.__name__ / config.name
    metrics = None
    if (folder / "config.json").is_file():
        saved, config = load_config(folder), replace(config, resume=str(folder))
        for key, value in vars(config).items():
            if key not in NO_CHOICES and value != getattr(saved, key):
                raise RunError(f"{folder} was trained with another {flag(key)}; choose another --name")
        metrics = complete_metrics(folder, config.epochs * (len(dataset.x_train) // config.batch_size))
    if not metrics:
        metrics = script.main(config)
        if metrics["stopped_by"] == StopOnInterrupt.message:
            raise KeyboardInterrupt
        checkpoint.discard(folder)
        release(folder)  # other experiments may measure a complete run
        keras.utils.clear_session()
    made = {key: metrics[key] for key in ("updates", "stopped_by")} | {"seconds": metrics["train_seconds"]}
    epochs = metrics["updates"] // (len(dataset.x_train) // config.batch_size)
    return folder, made | {"epochs": epochs, "images": metrics["updates"] * config.batch_size}


# Requirements for the data


def require_batch(dataset: Dataset, batch_size: int):
    """Raises RunError if there are fewer training images than a batch has."""
    if len(dataset.x_train) < batch_size:
        raise RunError(f"{dataset.name} has {len(dataset.x_train)} training images; give {batch_size} or more")


def require_in_memory(dataset: Dataset):
    """Raises RunError if the training images stay in their file: the experiment computes with all at once."""
    if not isinstance(dataset.x_train, np.ndarray):
        raise RunError(f"{dataset.name} stays in its .npy, but this needs all images at once; give it as an .npz")


def require_labels(dataset: Dataset):
    """Raises RunError if the images have no labels."""
    if dataset.y_train is None:
        raise RunError(f"{dataset.name} has no labels; give a file with y_train and y_test, or with y")


def require_classes(dataset: Dataset):
    """Raises RunError unless there are labels, and training images of every class from 0 to the highest."""
    require_labels(dataset)
    missing = np.setdiff1d(np.arange(dataset.classes), dataset.y_train)
    if len(missing):
        raise RunError(
            f"{dataset.name} has labels up to {dataset.classes - 1}, but no training image of class {missing[0]}; "
            "number the classes from 0, and give images of each"
        )
