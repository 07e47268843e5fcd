"""A run: flags from a script's Config, a folder of its own under results/, and the trained model back from it."""

import contextlib
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import io
import itertools
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

from common import checkpoint
from common.arrays import memory_available
from common.data import DataError, Dataset, load_mnist
from common.files import PARTIAL, RunError, hold, whole, write_json
from common.priors import PRIORS
from common.report import report
from common.training import StopOnInterrupt, planned_epochs, planned_updates, train

PLACES = ("versions", "device", "machine", "git_commit")  # of config.json: where a run was made, and by what
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
Scale = Annotated[float, Range(0, 1e6)]  # of a code: in float32, its squares stay far from overflow
Seed = Annotated[int, Range(0, 2**32, inclusive=True)]
Decay = Annotated[float, Range(0, 1, inclusive=True)]
Share = Annotated[float, Range(0, 1, inclusive=True)]
Targets = Literal["none", "dynamic", "threshold"]
Networks = Literal["dense", "conv"]
Prior = Literal["gaussian", "mixture", "swiss_roll"]


def main_of(main, config_class):
    """Call `main` with the Config that the command line gives, with --resume that of the run to go on with.

    The user's mistakes end in one line and exit code 2; a training that was stopped early, in exit code 1.
    """
    try:
        config = parse(config_class)
        if getattr(config, "resume", ""):
            there = config_of(config.resume, config_class)
            config = parse(config_class, default=there)
            if (config.results, config.name) != (there.results, there.name):
                raise RunError("--resume says where the run is: leave out --results and --name")
        metrics = main(config)
    except (DataError, RunError) as error:
        sys.exit(refusal(str(error)))
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        named = {field.name for field in dataclasses.fields(config_class)}
        remedy = ", then go on with --resume and the run's folder" * ("resume" in named)
        sys.exit(refusal(f"{error}; what was written before is whole: mend what it says{remedy}"))
    except MemoryError as error:
        sys.exit(refusal(f"{str(error) or 'out of memory'}; make the networks, the batches or the data smaller"))
    if metrics.get("stopped_by"):
        sys.exit(1)


def refusal(message: str) -> int:
    """Say why nothing is done; the exit code for it."""
    print(f"error: {message}", file=sys.stderr)
    return 2


class Printed(io.StringIO):
    encoding = "utf-8"  # without it tyro rules its box with hyphens, like a flag's


def parse(config_class, arguments=None, default=None):
    """The Config with the flags of the command line; tyro's boxed complaint is put into one line.

    What no flag sets is as in `default`, a Config, if there is one.
    """
    printed = Printed()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            return tyro.cli(config_class, args=arguments, default=default)
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
    kind, limits = get_args(hint)[:2] if get_origin(hint) is Annotated else (hint, None)
    if isinstance(kind, type) and not isinstance(value, (int, float) if kind is float else kind):
        raise RunError(f"{flag(name)} must be {kind.__name__}, not {value!r}")
    if isinstance(limits, Range) and not limits.allows(value):
        raise RunError(f"{flag(name)} must be {limits}, not {value}")


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def create_folder(results: str, script: str, name: str) -> Path:
    """A new folder results/script/name; without a name, the date and time.

    Raises RunError if it exists and holds more than what a process leaves that is killed before it does anything.
    """
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
            if name and all(path.name.startswith((".lock", PARTIAL)) for path in chosen.iterdir()):
                return chosen
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
    require_memory(config, dataset)
    updates = planned_updates(config, len(dataset.x_train))
    about = description(config, script, dataset, updates)
    if config.resume:
        folder = Path(config.resume)
        if metrics := taken_up(folder, about):
            return metrics
    else:
        folder = create_folder(config.results, script, config.name)
        hold(folder)
        if (folder / "config.json").exists():  # another process was quicker
            raise RunError(f"{folder} exists and is left as it is; choose another --name")
        write_json(folder / "config.json", about)

    model = build(config, dataset.image_shape)
    announce(model, config, dataset)
    outcome = train(model, dataset, config, folder)
    if outcome.stopped_by:
        print(f"training stopped: {outcome.stopped_by}; what it had learnt is kept", flush=True)
    save_networks(model, folder)
    metrics = report(model, dataset, config, outcome, folder)
    checkpoint.discard(folder, keep=1)
    print(folder)
    return metrics


def taken_up(folder: Path, about: dict) -> dict | None:
    """Get the run in `folder` ready to go on as `about`, a `description`, asks; its metrics if nothing is left to do.

    Raises RunError if the run was made otherwise, or is in use.
    """
    with explained(folder):
        there = json.loads((folder / "config.json").read_text())
        require_same(folder, there, about, prolong=True)
    hold(folder)
    if metrics := finished(folder, about["updates"]):
        left = f"it stopped since {metrics['stopped_by']}, and would again"
        left = left if metrics["stopped_by"] else "nothing is left to do; --epochs can prolong it"
        print(f"{folder} is finished, {metrics['updates']:,} updates: {left}")
        return metrics
    if not checkpoint.found(folder):
        print(f"{folder} has no checkpoint: it is trained from the start", flush=True)
    elif there["updates"] < about["updates"] and not prolongs_evenly(there["parameters"]):
        print("only from here on do rates and weights change as in the longer training: it is not the same")
    write_json(folder / "config.json", gone_on(folder, there, about))
    return None


def finished(folder: Path, updates: int) -> dict | None:
    """What metrics.json holds if the run in `folder` has made all its `updates`, or would stop again; else None."""
    if not (folder / "metrics.json").is_file():
        return None
    with explained(folder):
        metrics = json.loads((folder / "metrics.json").read_text())
        made, stopped_by = metrics["updates"], metrics["stopped_by"]
    return metrics if stopped_by != StopOnInterrupt.message and (made == updates or stopped_by) else None


def prolongs_evenly(parameters: dict) -> bool:
    """Whether a training of these parameters that is prolonged is the same as one that was as long from the start."""
    return parameters.get("final_rate_factor", 1.0) == 1.0 and not parameters.get("warm_up", 0.0)


def moved(there: dict, about: dict) -> list[str]:
    """Which of the PLACES of config.json, `there`, are not as they were when the run last began."""
    last = [there, *there.get("resumed", [])][-1]
    return [key for key in PLACES if last[key] != about[key]]


def gone_on(folder: Path, there: dict, about: dict) -> dict:
    """config.json of a run, `there`, as it goes on: with the parameters of `about` and, under "resumed", where.

    Says what is not as it was.
    """
    with explained(folder):
        before = there.get("resumed", [])
        if changed := moved(there, about):
            print(f"{', '.join(changed)} changed since {folder} began: its end may differ in the last bits", flush=True)
        now = {key: about[key] for key in PLACES} | {"updates_before": there["updates"]}
        return there | {"parameters": about["parameters"], "updates": about["updates"], "resumed": [*before, now]}


def require_same(folder: Path, there: dict, about: dict, prolong: bool = False):
    """Raises RunError unless config.json of `folder`, `there`, asks for the same as `about`; or for fewer epochs."""
    about = json.loads(json.dumps(about))
    asked, made = about["parameters"], there["parameters"]
    if there["script"] != about["script"]:
        raise RunError(f"{folder} is a run of {there['script']}, not of {about['script']}")
    places = {"data", "results", "name", "resume", "tensorboard"}
    longer = {"epochs"} if prolong and asked.get("epochs", 0) >= made.get("epochs", 0) else set()
    if differing := [key for key in asked if key not in places | longer and asked[key] != made.get(key)]:
        ways = "only --epochs can be raised; or choose another --name" if prolong else "choose another --name"
        raise RunError(f"{folder} was made with another {flag(differing[0])}, {made.get(differing[0])}; {ways}")
    if (there["data"] and there["data"]["sha256"]) != (about["data"] and about["data"]["sha256"]):
        raise RunError(f"{folder} was made with other data; pass its own with --data, or choose another --name")
    if there["backend"] != about["backend"]:
        raise RunError(f"{folder} was made on {there['backend']}; set KERAS_BACKEND={there['backend']}")


def save_networks(model, folder: Path):
    """Each network of the model as <name>.keras."""
    for name, network in model.networks.items():
        with whole(folder / f"{name}.keras") as path:
            network.save(path)


def require_memory(config, dataset: Dataset):
    """Raises RunError if the weights of an encoder and a decoder, gradient and two moments of each, do not fit."""
    widths = [math.prod(dataset.image_shape), *config.hidden_units, config.latent_dim]
    needed = 2 * 16 * sum(before * after for before, after in itertools.pairwise(widths))
    if needed > (available := memory_available()):
        raise RunError(
            f"--hidden-units {' '.join(map(str, config.hidden_units))} and --latent-dim {config.latent_dim} take "
            f"{needed / 1e9:,.0f} GB of memory, and there are {available / 1e9:,.1f}; set smaller ones"
        )


def require_in_memory(dataset: Dataset):
    """Raises RunError if the training images stay in their file, and an experiment computes with all at once."""
    if not isinstance(dataset.x_train, np.ndarray):
        raise RunError(f"{dataset.name} stays in its .npy, and this needs all images at once; give it as an .npz")


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
    about = description(config, script, dataset, updates)
    try:
        if config.resume and folder.resolve() != Path(config.resume).resolve():
            raise RunError(f"{config.resume} is no folder of a run of {script}: those are <results>/{script}/<name>")
        if (folder / "config.json").is_file():
            with explained(folder):
                there = json.loads((folder / "config.json").read_text())
                require_same(folder, there, about)
                anew = moved(there, about)
            hold(folder)
            if anew:
                parameters = {"parameters": there["parameters"]}  # names and paths stay those of the beginning
                write_json(folder / "config.json", gone_on(folder, there, about) | parameters)
            return
        folder.mkdir(parents=True, exist_ok=True)
        hold(folder)
        write_json(folder / "config.json", about)
    except OSError as error:
        raise RunError(f"cannot write to {folder} ({error.strerror}); choose another --results") from None


def each_once(folder: Path, parts: dict) -> dict:
    """The results of an experiment's parts, by name: what runs.json in `folder` holds, and what is called for.

    `parts` maps each name to a function without arguments, whose result, as JSON takes it, is written at once: a
    killed experiment goes on with the part in progress, from its last checkpoint. Says how many minutes are left.
    """
    path = folder / "runs.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    missing = [name for name in parts if name not in found]
    if not missing:
        print(f"{folder}: all {len(parts)} parts are there", flush=True)
    start = time.perf_counter()
    for number, name in enumerate(missing):
        found[name] = parts[name]()
        write_json(path, found)
        for trained in folder.glob("*/"):
            checkpoint.discard(trained)
        left = (time.perf_counter() - start) / (number + 1) * (len(missing) - number - 1)
        print(f"{name}: done; {len(missing) - number - 1} to go, {left / 60:.0f} minutes left", flush=True)
    return {name: found[name] for name in parts}


def complete_run(script, config) -> tuple[Path, bool]:
    """The folder of the run of `script`, a module, that `config` asks for, and whether it had to be trained for it.

    A run that was killed or interrupted goes on. Raises RunError if the folder holds a run of other parameters.
    """
    folder = Path(config.results) / script.__name__ / config.name
    if (folder / "config.json").is_file():
        hold(folder)
        there = config_of(folder)
        asked = dataclasses.replace(config, epochs=there.epochs, resume=str(folder))
        places = ("data", "results", "resume")
        if differing := [
            key for key, value in vars(asked).items() if key not in places and value != getattr(there, key)
        ]:
            raise RunError(f"{folder} was trained with another {flag(differing[0])}; choose another --name")
        saved = json.loads((folder / "config.json").read_text())
        if planned_epochs(config, saved["data"]["images"]["train"]) != there.epochs:
            raise RunError(f"{folder} was trained for {there.epochs} epochs; choose another --name")
        if finished(folder, saved["updates"]):
            return folder, False
        print(f"{folder} is not complete", flush=True)
        config = asked
    elif folder.is_dir():
        shutil.rmtree(folder)
    if script.main(config)["stopped_by"] == StopOnInterrupt.message:
        raise KeyboardInterrupt
    checkpoint.discard(folder)
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
    return {
        "script": script,
        "parameters": {name: value for name, value in dataclasses.asdict(config).items() if name != "resume"},
        "data": dataset
        and {
            "name": dataset.name,
            "images": dataset.sizes,
            "image_shape": dataset.image_shape,
            "sha256": dataset.checksum,
        },
        "updates": updates,
        "backend": keras.backend.backend(),
        "device": str(keras.ops.zeros(()).device),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": versions(),
        "git_commit": git_commit(),
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that a run's numbers depend on."""
    packages = ("keras", "numpy", "scipy", "scikit-learn", keras.backend.backend())
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


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
            require_same_layers(network, folder / f"{name}.keras")
            network.load_weights(folder / f"{name}.keras")
    return model


def require_same_layers(network: keras.Model, path: Path):
    """Raises ValueError if the file is of a network with other layers, whose weights could pass for this one's.

    The file is only looked at: nothing in it is run.
    """
    with zipfile.ZipFile(path) as archive:
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise ValueError(f"{path.name} is packed, as Keras packs none")  # it could unpack to any size
        there = [layer["class_name"] for layer in json.loads(archive.read("config.json"))["config"]["layers"]]
    here = [type(operation).__name__ for operation in network.operations]
    if there != here:
        raise ValueError(f"{path.name} has the layers {' '.join(there)}, not {' '.join(here)}")


def config_of(folder, config_class=None):
    """The Config of a run, of its script's own class unless another is given, that would go on with it.

    Raises RunError if the folder holds no run, or one of a script with other parameters.
    """
    folder = Path(folder)
    with explained(folder):
        saved, module = saved_run(folder)
        parameters = saved["parameters"].items()
        parameters = {name: tuple(value) if isinstance(value, list) else value for name, value in parameters}
        place = folder if len(folder.parts) > 2 else folder.resolve()
        parameters |= {"results": str(place.parent.parent), "name": place.name}
        if config_class is None:
            config_class, parameters["tensorboard"] = module.Config, False
        fields = {field.name for field in dataclasses.fields(config_class)}
        if unknown := parameters.keys() - fields - {"tensorboard"}:
            raise RunError(f"{folder} is a run of {saved['script']}, which has other parameters: {min(unknown)}")
        config = config_class(**{name: value for name, value in parameters.items() if name in fields})
        check(config)
    return config


def saved_run(folder: Path):
    """What config.json holds, and the module of the script that wrote it."""
    saved = json.loads((folder / "config.json").read_text())
    script = saved["script"]
    if isinstance(script, str) and script.isidentifier():
        for package, place in (("", ROOT), ("experiments.", ROOT / "experiments")):
            if (place / f"{script}.py").is_file():
                return saved, importlib.import_module(f"{package}{script}")
    raise RunError(f"{folder / 'config.json'} names no script of this project: {script!r}")


@contextlib.contextmanager
def explained(folder: Path):
    """Whatever goes wrong with what the folder holds, as a RunError of one line."""
    try:
        yield
    except Exception as error:  # of a dozen kinds: JSON, zip, HDF5, Keras and its backends have their own
        if isinstance(error, RunError) and str(error).startswith(str(folder)):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise RunError(f"{folder} holds no complete run ({reason})") from None
