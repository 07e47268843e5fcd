"""The frame of every experiment: each case trained with each seed and measured once, then a table and figures.

The module of an experiment defines `Config`, `STUDY` and `main`; `run` does the rest. It refuses what is impossible
before any work, holds the folder results/<group>_<experiment>/<name>/, and makes the parts, a part being a case with a
seed. Each part's numbers go into runs.json at once, so that a stopped experiment resumes with the part in progress, at
its last checkpoint. At the end it writes metrics.json (mean and standard deviation over the seeds), table.md and the
figures.
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
from common.data import Dataset, load_mnist
from common.files import RunError, hold, whole, write_json
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

SHARED = ("data", "binarisation", "latent_dim", "hidden_units", "networks", "updates")  # mean the same in every Config


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What every experiment's Config has beside its own parameters."""

    seeds: tuple[Seed, ...] = (0, 1, 2)  # of weights, noise, order and binarisation
    quick: bool = False  # small defaults for all that no other flag sets: minutes, not hours
    results: str = "results"  # the folder of all runs
    name: str = ""  # the folder below results/<group>_<experiment>/; the experiment chooses if empty
    resume: str = ""  # the folder of a stopped run: resume it, with its own parameters


@dataclass(frozen=True, kw_only=True)
class ImageStudyConfig(StudyConfig):
    """The same for an experiment on images."""

    data: str = "auto"  # auto, mnist, fashion_mnist, sample, or the path of an .npz or .npy file


@dataclass
class Part:
    """A case with a seed: what the function of a case is given."""

    config: StudyConfig
    dataset: Dataset | None
    seed: int
    folder: Path  # of this part: history.csv, checkpoints, pictures; made by `train` and `keep`
    first: bool  # whether this is the first seed, whose pictures the figures show
    made: dict = field(default_factory=dict)  # updates, epochs, images, seconds, stopped_by of the training

    def train(self, model, config, batches=None, validation=None, **options) -> Outcome:
        """Train a model by the Config of its script on the data set, or on `batches` with `validation`.

        `options` are those of `train`. What was made joins the part's numbers.
        """
        if batches is None:
            batches, validation = image_batches(self.dataset, config)
        outcome = train(model, batches, validation, config, self.folder, **options)
        self.made = outcome.made()
        return outcome

    def run_script(self, script, **own) -> Path:
        """The folder of a complete run of a script, with this part's Config and seed; see `complete_run`."""
        config = script_config(script, self.config, self.seed, **own)
        config = replace(config, results=str(self.folder.parent), name=self.folder.name)
        run, self.made = complete_run(script, config, self.dataset)
        return run

    def keep(self, **arrays: np.ndarray):
        """Save arrays for the figures, if this is the first seed."""
        if self.first:
            self.folder.mkdir(exist_ok=True)
            with whole(self.folder / "pictures.npz") as path:
                np.savez_compressed(path, **arrays)


class Results(NamedTuple):
    """All that tables and figures are made of."""

    config: StudyConfig
    dataset: Dataset | None
    folder: Path
    runs: dict[str, dict]  # "<case>, seed <seed>" -> numbers

    def of(self, case: str) -> list[dict]:
        """The numbers of a case, one dict a seed."""
        return [self.runs[part_name(case, seed)] for seed in self.config.seeds]

    def means(self, case: str, keys) -> dict:
        """`over_seeds` of a case."""
        return over_seeds(self.of(case), keys)

    def pictures(self, case: str) -> dict[str, np.ndarray]:
        """What `Part.keep` saved for a case. Raises RunError if it is not there."""
        name = case if case in self.runs else part_name(case, self.config.seeds[0])  # a case of `once` has no seed
        path = part_folder(self.folder, name) / "pictures.npz"
        with one_line_errors(self.folder), np.load(path) as arrays:
            return dict(arrays)

    def updates(self, *cases: str, key: str = "updates") -> str:
        """How many updates the trainings of some cases made, for a figure: "8,250 updates"."""
        made = [run[key] for case in cases for run in self.of(case) if run.get(key) is not None]
        low, high = min(made, default=0), max(made, default=0)
        return f"{low:,} updates" if low == high else f"{low:,} to {high:,} updates"


def rows_of_cases(study: "Study", results: Results) -> dict[str, dict]:
    """A row a case: mean and standard deviation over the seeds of every column."""
    cases = study.cases(results.config, results.dataset)
    rows = {case: results.means(case, (*study.columns, "updates")) for case in cases}
    return rows | {name: results.runs[name] for name in study.once(results.config, results.dataset)}


def one_table(study: "Study", results: Results, rows: dict) -> dict[str, str]:
    """table.md: a row a case, a column a metric."""
    return {"table.md": table(rows, study.columns)}


def no_requirements(config, dataset):
    """For an experiment that every data set suits."""


def no_cases(config, dataset) -> dict:
    """For an experiment whose cases all have a seed."""
    return {}


def no_presets(config) -> dict:
    """For an experiment whose flags change no default of another flag."""
    return {}


class Study(NamedTuple):
    """An experiment. `config` is its Config, `dataset` the data it names, or None."""

    name: str  # <group>.<experiment>, as in `python -m experiments.<group>.<experiment>`
    cases: Callable  # (config, dataset) -> {case: function of a Part -> numbers}
    columns: Mapping[str, Metric]  # of the table, by key
    figures: Callable  # (Results, rows) -> {file name without .png: Figure}
    quick: dict  # the defaults of --quick
    requires: Callable = no_requirements  # (config, dataset): raises RunError or DataError before any work
    once: Callable = no_cases  # the same as `cases`, for cases that no seed changes
    rows: Callable = rows_of_cases  # (Study, Results) -> {row: means}, which metrics.json holds
    tables: Callable = one_table  # (Study, Results, rows) -> {file name: text}
    presets: Callable = no_presets  # config -> defaults that its flags beside --quick set, which --quick overrides


def run(study: Study, config: StudyConfig) -> dict:
    """Train and measure what is not saved yet, then write tables and figures; returns what metrics.json holds."""
    config = check(config)
    dataset, folder = begin(study, config)
    return finish(study, Results(config, dataset, folder, make_parts(study, config, dataset, folder)))


def begin(study: Study, config: StudyConfig) -> tuple[Dataset | None, Path]:
    """The data set and the folder of an experiment. Raises RunError or DataError if it cannot be done."""
    config = check(config)
    dataset = load_mnist(config.data) if hasattr(config, "data") else None
    if dataset:
        require_test_images(dataset)
    study.requires(config, dataset)
    module = f"experiments.{study.name}"
    name = config.name or ("quick" if config.quick else "default")
    folder = Path(config.resume or Path(config.results) / results_name(module) / name)
    claim_folder(folder, description(config, module, dataset))
    return dataset, folder


def make_parts(study: Study, config: StudyConfig, dataset: Dataset | None, folder: Path) -> dict[str, dict]:
    """The numbers of every case with every seed, and of every case without one, by the part's name."""
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
    """`make(name)` for every name: what runs.json in `folder` holds, and what is missing there, written at once.

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
        to_go = len(missing) - number - 1
        left = (time.perf_counter() - start) / (number + 1) * to_go
        print(f"{name}: done; {to_go} to go, {left / 60:.0f} minutes left", flush=True)
    return {name: runs[name] for name in names}


def finish(study: Study, results: Results) -> dict:
    """Write metrics.json, tables and figures into the folder; returns what metrics.json holds."""
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
    """`run` from the command line: --quick gives the study's small defaults to all that no flag sets."""
    run_main(lambda config: run(study, config), config_class, lambda config: presets(study, config))


def presets(study: Study, config: StudyConfig) -> dict:
    """The defaults that flags such as --quick set."""
    return study.presets(config) | (study.quick if config.quick else {})


# Names, tables


def part_name(case: str, seed: int) -> str:
    """The name of a part in runs.json and in records."""
    return f"{case}, seed {seed}"


def part_folder(folder: Path, name: str) -> Path:
    """The folder of a part: its name in lower case, signs other than . and + as hyphens."""
    letters = [letter if letter.isalnum() or letter in ".+" else "-" for letter in name.lower()]
    return folder / "-".join(filter(None, "".join(letters).split("-")))


def table(
    rows: Mapping[str, Mapping], columns: Mapping[str, Metric], first: Mapping[str, Mapping] | None = None
) -> str:
    """A row a name, `mean ± standard deviation` of each column; `first` are columns of text: heading -> row -> text."""
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
    """`numbers` that a paper reports for MNIST, or none: they say nothing about other data."""
    return numbers if dataset.is_mnist else {}


# Folders and trainings


def claim_folder(folder: Path, requested: dict):
    """A new folder with config.json, or one whose config.json asks for the same: there the experiment resumes.

    Raises RunError if other parameters or data made it, or if it cannot be written.
    """
    try:
        if (folder / "config.json").is_file():
            with one_line_errors(folder):
                saved, _ = saved_run(folder)
                require_same(folder, saved, requested)
                changed = changed_environment(saved, requested)
            hold(folder)
            if changed:
                parameters = {"parameters": saved["parameters"]}  # names and paths stay those of the beginning
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
    """`fit` as one of an experiment's trainings: for `epochs`, or the whole passes nearest to `config.updates`.

    Raises KeyboardInterrupt if the training was interrupted, so that the experiment ends. A training that stopped for
    another reason prints it, and the experiment continues.
    """
    folder.mkdir(exist_ok=True)
    epochs = epochs or max(1, round(config.updates / len(batches)))
    outcome = fit(model, batches, validation, config, epochs, folder, measures, optimizer)
    if outcome.stopped_by == StopOnInterrupt.message:
        raise KeyboardInterrupt
    if outcome.stopped_by:
        print(f"training stopped: {outcome.stopped_by}; what was learned is measured", flush=True)
    return outcome


def script_config(script, config: StudyConfig, seed: int, **own):
    """The Config of a script: the SHARED parameters of an experiment's Config, the seed, and the script's `own`.

    AVB's discriminator has the hidden units of the other networks unless `own` says otherwise.
    """
    names = {each.name for each in fields(script.Config)}
    shared = {name: getattr(config, name) for name in SHARED if name in names and hasattr(config, name)}
    if "discriminator_units" in names and hasattr(config, "hidden_units"):
        shared["discriminator_units"] = config.hidden_units
    return script.Config(**shared | {"seed": seed} | own)


def complete_run(script, config, dataset: Dataset) -> tuple[Path, dict]:
    """The folder of the complete run of `script`, a module, that `config` asks for, and what its training made.

    Without `epochs` it makes the whole passes nearest to `updates`, as every training of an experiment does. A stopped
    run is resumed. Raises RunError if the folder holds a run of other parameters.
    """
    if config.epochs is None:
        config = replace(config, epochs=epochs_for(config.updates, len(dataset.x_train), config.batch_size))
    folder = Path(config.results) / script.__name__ / config.name
    metrics = None
    if (folder / "config.json").is_file():
        hold(folder)
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
        keras.utils.clear_session()
    made = {key: metrics[key] for key in ("updates", "stopped_by")} | {"seconds": metrics["train_seconds"]}
    epochs = metrics["updates"] // (len(dataset.x_train) // config.batch_size)
    return folder, made | {"epochs": epochs, "images": metrics["updates"] * config.batch_size}


# Requirements on the data


def require_batch(dataset: Dataset, batch_size: int):
    """Raises RunError if the training images do not fill a batch."""
    if len(dataset.x_train) < batch_size:
        raise RunError(f"{dataset.name} has {len(dataset.x_train)} training images; give {batch_size} or more")


def require_in_memory(dataset: Dataset):
    """Raises RunError if the training images stay in their file, and an experiment computes with all at once."""
    if not isinstance(dataset.x_train, np.ndarray):
        raise RunError(f"{dataset.name} stays in its .npy, and this needs all images at once; give it as an .npz")


def require_labels(dataset: Dataset):
    """Raises RunError if the images have no labels, which an experiment needs."""
    if dataset.y_train is None:
        raise RunError(f"{dataset.name} has no labels; give a file with y_train and y_test, or with y")


def require_classes(dataset: Dataset):
    """Raises RunError unless there are labels, and training images of every class from 0 to the highest."""
    require_labels(dataset)
    missing = np.setdiff1d(np.arange(dataset.classes), dataset.y_train)
    if len(missing):
        raise RunError(
            f"{dataset.name} has labels to {dataset.classes - 1} and no training image of class {missing[0]}; "
            "number the classes from 0, and give images of each"
        )
