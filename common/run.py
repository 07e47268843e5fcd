"""A run: flags from a script's Config, a folder of its own under results/, and the trained model back from it."""

import contextlib
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import io
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import UnionType
from typing import Annotated, Literal, Union, get_args, get_origin, get_type_hints

import keras
import numpy as np
import tyro

from common.data import DataError, Dataset, load_mnist
from common.files import whole, write_json
from common.priors import PRIORS
from common.report import report
from common.training import StopOnInterrupt, planned_epochs, planned_updates, train

FEWEST_TEST_IMAGES = 20  # the figures show as many
ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Range:
    """The values that a parameter may take: from `low`, itself included if `inclusive`, to below `high`."""

    low: float
    high: float = math.inf
    inclusive: bool = False

    def allows(self, value) -> bool:
        return self.low < value < self.high or (self.inclusive and value == self.low)

    def __str__(self):
        bounds = [f"{'at least' if self.inclusive else 'above'} {self.low:g}"]
        return " and ".join(bounds + ([f"below {self.high:.10g}"] if self.high < math.inf else []))


Count = Annotated[int, Range(0, inclusive=True)]
PositiveCount = Annotated[int, Range(0)]
Factor = Annotated[float, Range(0, inclusive=True)]
Positive = Annotated[float, Range(0)]
Seed = Annotated[int, Range(0, 2**32, inclusive=True)]
Decay = Annotated[float, Range(0, 1, inclusive=True)]
Share = Annotated[float, Range(0, 1, inclusive=True)]
Targets = Literal["none", "dynamic", "threshold"]
Networks = Literal["dense", "conv"]
Prior = Literal["gaussian", "mixture", "swiss_roll"]


class RunError(ValueError):
    """A mistake of the user's that one line can explain: an impossible parameter, a folder that cannot be used."""


def main_of(main, config_class):
    """Call `main` with the Config that the command line gives.

    The user's mistakes end in one line and exit code 2; a training that was stopped early, in exit code 1.
    """
    try:
        metrics = main(parse(config_class))
    except (DataError, RunError) as error:
        sys.exit(refusal(str(error)))
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        sys.exit(refusal(f"{error}; what was written before is whole. Make room, or choose another --results"))
    if metrics.get("stopped_by"):
        sys.exit(1)


def refusal(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


class Printed(io.StringIO):
    encoding = "utf-8"  # without it tyro rules its box with hyphens, like a flag's


def parse(config_class, arguments=None):
    """The Config with the flags of the command line; tyro's boxed complaint is put into one line."""
    printed = Printed()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            return tyro.cli(config_class, args=arguments)
    except SystemExit as stop:
        if not stop.code:
            print(printed.getvalue())
            raise
        lines = [line.strip("│ ") for line in printed.getvalue().splitlines()[1:-1]]
        rule = next((number for number, line in enumerate(lines) if line.startswith("──")), len(lines))
        complaint = " ".join(lines[:rule]).split("  Got errors")[0].rstrip(".")
        meant = re.findall(r"^--[\w-]+", "\n".join(lines[rule:]), flags=re.MULTILINE)
        hint = f"; did you mean {meant[0]}?" if meant and "nrecognized" in complaint else ""
        raise RunError(f"{complaint}{hint} (--help lists the flags)") from None


def check(config):
    """Raises RunError, naming the flag, if a parameter of the Config is impossible whatever the data."""
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, name)
        if type(None) in get_args(hint):
            hint = next(option for option in get_args(hint) if option is not type(None))
            if value is None:
                continue
        if get_origin(hint) is tuple:
            if not value:
                raise RunError(f"{flag(name)} needs at least one number")
            if len(set(value)) < len(value) and not name.endswith("units"):
                raise RunError(f"{flag(name)} names one thing twice: {' '.join(map(str, value))}")
            for element in value:
                check_value(name, element, get_args(hint)[0])
        else:
            check_value(name, value, hint)
    if getattr(config, "name", "") != re.sub(r"[^\w.+-]|^\.", "", getattr(config, "name", "")):
        raise RunError(f"--name {config.name!r} must be letters, digits and any of _ . + -: it names one folder")
    if getattr(config, "tensorboard", False) and not importlib.util.find_spec("tensorboard"):
        raise RunError("--tensorboard needs the package tensorboard: pip install tensorboard")
    if hasattr(config, "prior"):
        try:
            PRIORS[config.prior](config.latent_dim)
        except ValueError as error:
            raise RunError(f"{error}; set --latent-dim or --prior") from None


def check_value(name: str, value, hint):
    """Raises RunError if `value` is not one that the annotation `hint` of the parameter `name` allows.

    Of alternatives, such as a number or a word, it is enough that one allows it.
    """
    if get_origin(hint) in (Union, UnionType):
        kind = Literal if isinstance(value, str) else Annotated
        hint = next(option for option in get_args(hint) if get_origin(option) is kind)
    if get_origin(hint) is Literal and value not in get_args(hint):
        raise RunError(f"{flag(name)} must be one of {', '.join(get_args(hint))}, not {value!r}")
    limits = get_args(hint)[1] if get_origin(hint) is Annotated else None
    if isinstance(limits, Range) and not limits.allows(value):
        raise RunError(f"{flag(name)} must be {limits}, not {value}")


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def create_folder(results: str, script: str, name: str) -> Path:
    """A new folder results/script/name; without a name, the date and time. Raises RunError if it exists."""
    parent = Path(results) / script
    chosen = parent / (name or time.strftime("%Y-%m-%d_%H-%M-%S"))
    attempt = 1
    while True:
        try:
            chosen.mkdir(parents=True)
            return chosen
        except FileExistsError as error:
            if not (chosen.is_dir() and parent.is_dir()):
                raise RunError(f"{error.filename} is a file, not a folder; choose another --results") from None
            if name:
                raise RunError(f"{chosen} exists and is left as it is; choose another --name") from None
            attempt += 1
            chosen = chosen.with_name(f"{chosen.name.split('+')[0]}+{attempt}")
        except OSError as error:
            raise RunError(f"cannot write to {parent} ({error.strerror}); choose another --results") from None


def train_and_report(config, build, script: str) -> dict:
    """The frame of the five scripts: data, model, training, numbers and figures, all in a folder of its own.

    `build(config, image_shape)` makes the untrained model. Returns what metrics.json holds. Raises RunError
    and DataError before any work if the parameters, the folder or the data cannot be used.
    """
    check(config)
    dataset = load_mnist(config.data)
    if config.batch_size > len(dataset.x_train):
        raise RunError(f"--batch-size {config.batch_size} is above the {len(dataset.x_train)} training images")
    if getattr(config, "networks", "dense") == "conv" and len(dataset.image_shape) != 2:
        raise RunError(f"--networks conv needs images of (height, width), not {dataset.image_shape}")
    config = dataclasses.replace(config, epochs=planned_epochs(config, len(dataset.x_train)))
    require_test_images(dataset)
    folder = create_folder(config.results, script, config.name)
    updates = planned_updates(config, len(dataset.x_train))
    write_json(folder / "config.json", description(config, script, dataset, updates))

    model = build(config, dataset.image_shape)
    announce(model, config, dataset)
    outcome = train(model, dataset, config, folder)
    if outcome.stopped_by:
        print(f"training stopped: {outcome.stopped_by}; what it had learnt is kept", flush=True)
    save_networks(model, folder)
    metrics = report(model, dataset, config, outcome, folder)
    print(folder)
    return metrics


def save_networks(model, folder: Path):
    """Each network of the model as <name>.keras."""
    for name, network in model.networks.items():
        with whole(folder / f"{name}.keras") as path:
            network.save(path)


def require_images(dataset: Dataset, batch_size: int):
    """Raises RunError if the training images do not fill a batch of an experiment's fixed size.

    Raises DataError if there are too few test images.
    """
    if len(dataset.x_train) < batch_size:
        raise RunError(f"{dataset.name} has {len(dataset.x_train)} training images; give {batch_size} or more")
    require_test_images(dataset)


def require_test_images(dataset: Dataset):
    """Raises DataError if there are too few test images for numbers and figures."""
    if len(dataset.x_test) < FEWEST_TEST_IMAGES:
        raise DataError(
            f"{dataset.name} has {len(dataset.x_test)} test images; numbers and figures need {FEWEST_TEST_IMAGES}"
        )


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


def require_moves(dataset: Dataset, config):
    """Raises RunError if the config wants images moved that have no height and width."""
    if (config.distortion or config.shift) and len(dataset.image_shape) != 2:
        raise RunError(
            f"{dataset.name} has images {dataset.image_shape}, and only those of (height, width) can be moved; "
            "set --distortion 0 --shift 0"
        )


def quickened(config, small: dict):
    """`config` with the values of `small` wherever it has its default: whatever is not asked for is small."""
    default = type(config)()
    kept = {key: value for key, value in small.items() if getattr(config, key) == getattr(default, key)}
    return dataclasses.replace(config, **kept)


def claim_folder(folder: Path, script: str, config, dataset: Dataset | None, updates: int):
    """A new folder with config.json, or one whose config.json asks for the same: where an experiment goes on.

    Raises RunError if other parameters or data made it, or if it cannot be written.
    """
    about = json.loads(json.dumps(description(config, script, dataset, updates)))
    try:
        if (folder / "config.json").is_file():
            there = json.loads((folder / "config.json").read_text())
            parameters = [part["parameters"] | {"data": "", "results": "", "name": ""} for part in (there, about)]
            checksums = [part["data"] and part["data"]["sha256"] for part in (there, about)]
            if parameters[0] != parameters[1] or checksums[0] != checksums[1]:
                raise RunError(f"{folder} was made with other parameters or data; choose another --name")
            return
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", about)
    except OSError as error:
        raise RunError(f"cannot write to {folder} ({error.strerror}); choose another --results") from None


def each_once(folder: Path, parts: dict) -> dict:
    """The results of an experiment's parts, by name: what runs.json in `folder` holds, and what is called for.

    `parts` maps each name to a function without arguments, whose result, as JSON takes it, is written at once: a
    killed experiment loses the part in progress alone. Says how many minutes are left.
    """
    path = folder / "runs.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    missing = [name for name in parts if name not in found]
    start = time.perf_counter()
    for number, name in enumerate(missing):
        found[name] = parts[name]()
        write_json(path, found)
        left = (time.perf_counter() - start) / (number + 1) * (len(missing) - number - 1)
        print(f"{name}: done; {len(missing) - number - 1} to go, {left / 60:.0f} minutes left", flush=True)
    return {name: found[name] for name in parts}


def complete_run(script, config) -> tuple[Path, bool]:
    """The folder of the run of `script`, a module, that `config` asks for, and whether it had to be trained for it.

    A run that was killed or interrupted is begun anew. Raises RunError if the folder holds a run of other parameters.
    """
    folder = Path(config.results) / script.__name__ / config.name
    if (folder / "metrics.json").is_file():
        asked = dataclasses.asdict(dataclasses.replace(config, epochs=None))
        there = dataclasses.asdict(dataclasses.replace(config_of(folder), epochs=None))
        differing = [key for key in asked if key not in ("data", "results") and asked[key] != there[key]]
        if differing:
            raise RunError(f"{folder} was trained with another {flag(differing[0])}; choose another --name")
        if json.loads((folder / "metrics.json").read_text())["stopped_by"] != StopOnInterrupt.message:
            return folder, False
    if folder.is_dir():
        print(f"{folder} is not complete: begun anew", flush=True)
        shutil.rmtree(folder)
    if script.main(config)["stopped_by"] == StopOnInterrupt.message:
        raise KeyboardInterrupt
    keras.utils.clear_session()
    return folder, True


class TimeLeft:
    """Prints how far a long computation is and how long it will yet take: a line in ten seconds, not more."""

    def __init__(self):
        self.text, self.begun, self.printed = None, 0.0, 0.0

    def __call__(self, text: str, done: int, total: int):
        now = time.perf_counter()
        if text != self.text or done == 1:
            self.text, self.begun, self.printed = text, now, now
        if now - self.printed > 10.0:
            self.printed = now
            left = (now - self.begun) * (total - done) / max(done - 1, 1)
            print(f"{text}: {done:,} of {total:,}; {left:.0f} s left", flush=True)


def announce(model, config, dataset: Dataset):
    """One line on what is trained, with the effective weights: what each term weighs, all terms being sums."""
    names = {"beta": "effective beta", "adversarial_weight": "effective adversarial weight"}
    weights = [f"{words} {getattr(config, name):g}" for name, words in names.items() if hasattr(config, name)]
    print(
        f"{model.title} on {dataset.name}, {config.epochs} epochs: {', '.join(weights) or 'effective beta 1'}, "
        f"against a reconstruction summed over {math.prod(dataset.image_shape)} pixels; nats per image",
        flush=True,
    )


def description(config, script: str, dataset: Dataset | None, updates: int) -> dict:
    """All that it takes to understand a run, and to repeat it; no data set where a formula gives the data."""
    backend = keras.backend.backend()
    packages = ["keras", "numpy", backend]
    return {
        "script": script,
        "parameters": dataclasses.asdict(config),
        "data": dataset
        and {
            "name": dataset.name,
            "images": dataset.sizes,
            "image_shape": dataset.image_shape,
            "sha256": dataset.checksum,
        },
        "updates": updates,
        "backend": backend,
        "device": str(keras.ops.zeros(()).device),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in packages},
        "git_commit": git_commit(),
    }


def git_commit() -> str | None:
    """The commit of the code that runs, with "+changes" if files differ from it; None outside a checkout."""
    try:
        git = ["git", "-C", str(ROOT)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


def load_run(folder):
    """The trained model of a run, ready to `encode`, `decode` and `sample`.

    Raises RunError if the folder holds no complete run.
    """
    folder = Path(folder)
    with explained(folder):
        saved, module = saved_run(folder)
        model = module.build(config_of(folder), tuple(saved["data"]["image_shape"]))
        for name, network in model.networks.items():
            network.load_weights(folder / f"{name}.keras")
    return model


def config_of(folder):
    """The Config of a run, with its script's own class. Raises RunError if the folder holds no run."""
    folder = Path(folder)
    with explained(folder):
        saved, module = saved_run(folder)
        parameters = saved["parameters"].items()
        parameters = {name: tuple(value) if isinstance(value, list) else value for name, value in parameters}
        config = module.Config(**parameters | {"tensorboard": False})
        check(config)
    return config


def saved_run(folder: Path):
    """What config.json holds, and the module of the script that wrote it."""
    saved = json.loads((folder / "config.json").read_text())
    script = saved["script"]
    if not script.isidentifier() or not (ROOT / f"{script}.py").is_file():
        raise RunError(f"{folder / 'config.json'} names no script of this project: {script!r}")
    return saved, importlib.import_module(script)


@contextlib.contextmanager
def explained(folder: Path):
    """Whatever goes wrong with what the folder holds, as a RunError of one line."""
    try:
        yield
    except (OSError, KeyError, TypeError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        if isinstance(error, RunError) and str(error).startswith(str(folder)):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise RunError(f"{folder} holds no complete run ({reason})") from None
