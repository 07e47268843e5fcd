"""A run: its folder, config.json, training, report and resumption; and loading its trained model."""

import contextlib
import dataclasses
import importlib
import importlib.metadata
import itertools
import json
import math
import os
import platform
import shutil
import subprocess
import time
import zipfile
from pathlib import Path

from common import checkpoint
from common.arrays import DataError, memory_available
from common.config import check, flag, require_usual_keras
from common.data import FEWEST_TEST_IMAGES, IN_MEMORY, WORDS, Dataset, as_dataset, load_data
from common.files import PARTIAL, RunError, hold, release, whole, write_json
from common.likelihoods import LIKELIHOODS
from common.measure import memory_needed
from common.networks import is_plane
from common.report import TRAINING_FILE, cost, report
from common.scripts import RENAMED, SCRIPTS
from common.training import StopOnInterrupt, fit, image_batches, planned_epochs, require_warm_up
from common.transforms import as_record, likelihood_of, starting_likelihood, transform_of

import keras

ENVIRONMENT = ("versions", "device", "machine", "git_commit")  # fields of config.json on software and hardware
NO_CHOICES = ("data", "results", "name", "resume", "tensorboard")  # parameters that change no number
ROOT = Path(__file__).resolve().parent.parent


def create_folder(results: str, script: str, name: str) -> Path:
    """A new folder results/script/name; without a name, the date and time.

    Raises RunError if it exists and holds more than the files of a process that ended before its first epoch.
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
            if name and is_unused(chosen):
                return chosen
            if name:
                raise RunError(f"{chosen} exists and stays unchanged; choose another --name") from None
            attempt += 1
            chosen = chosen.with_name(f"{chosen.name.split('+')[0]}+{attempt}")
        except OSError as error:
            raise RunError(f"cannot write to {parent} ({error.strerror}); choose another --results") from None


def results_name(script: str) -> str:
    """The folder for runs of a script or an experiment below results/: `avb_toy` for `experiments.avb.toy`."""
    return script.removeprefix("experiments.").replace(".", "_")


def is_unused(folder: Path) -> bool:
    """Whether a folder holds only the files of a process that ended before its first epoch did."""
    return all(map(is_begun, folder.iterdir()))


def is_begun(path: Path) -> bool:
    """Whether a file is from a run that has not trained an epoch, and not a user's own file of the same name."""
    if path.name == "config.json":
        with contextlib.suppress(OSError, ValueError, RecursionError):
            saved = json.loads(path.read_text())
            return isinstance(saved, dict) and saved.keys() >= {"script", "parameters", "versions"}
        return False
    if path.name == "history.csv":
        return not path.stat().st_size
    if path.name == "tensorboard":
        return all(file.is_dir() or file.name.startswith("events.out.tfevents") for file in path.rglob("*"))
    return path.name.startswith((".lock", PARTIAL))


@contextlib.contextmanager
def removed_if_unused(folder: Path):
    """Removes the folder of a new run if an error ends its training before the end of the first epoch."""
    try:
        yield
    except OSError:  # such as a full disk: no file is touched, and the name can still be used
        raise
    except Exception:
        with contextlib.suppress(OSError):
            if is_unused(folder):
                release(folder)
                shutil.rmtree(folder)
        raise


def train_and_report(config, build, script: str, data=None) -> dict:
    """The frame of the five scripts: data, model, training, numbers and figures, all in a new folder.

    `build(config, likelihood)` makes the untrained model. `data`, arrays or a Dataset, replaces `config.data`: see
    `common.data.as_dataset`. Returns the content of metrics.json. Raises RunError or DataError before any work if the
    parameters, the folder or the data cannot be used.
    """
    if data is not None:
        if config.data not in ("auto", IN_MEMORY):
            raise RunError(f"two data sets are given, data={config.data!r} in the Config and arrays; leave one out")
        if config.resize:
            raise RunError("--resize is for pictures in a folder: leave it out where arrays are given")
        config = dataclasses.replace(config, data=IN_MEMORY)
    config = check(config)
    dataset = run_dataset(config) if data is None else as_dataset(data, config.likelihood, config.label_column)
    config = fitted(config, dataset)
    updates = config.epochs * (len(dataset.x_train) // config.batch_size)
    requested = description(config, script, dataset) | {"updates": updates}
    if config.resume:
        folder = Path(config.resume)
        if metrics := prepare_resume(folder, requested):
            return metrics
        return train_in(folder, build, config, dataset)
    folder = create_folder(config.results, script, config.name)
    hold(folder)
    if not is_unused(folder):  # another process was quicker
        raise RunError(f"{folder} exists and stays unchanged; choose another --name")
    with removed_if_unused(folder):
        write_json(folder / "config.json", requested)
        return train_in(folder, build, config, dataset)


def run_dataset(config) -> Dataset:
    """The data set that the Config names. For a resumed run, it is split as it was when the run began."""
    shuffled = True
    if config.resume:
        folder = Path(config.resume)
        with one_line_errors(folder):
            saved, _ = saved_run(folder)
            shuffled = drew_validation(saved)
    return load_data(config.data, shuffled, config.likelihood, config.label_column, config.resize)


def drew_validation(saved: dict) -> bool:
    """Whether a run, by its config.json, is new enough to have drawn validation images from a user's x_train."""
    return "white" in saved["data"]


def fitted(config, dataset: Dataset):
    """The Config with its number of epochs. Raises RunError or DataError if Config and data do not suit each other."""
    require_test_images(dataset)
    rows, noun = len(dataset.x_train), dataset.transform.noun
    if config.batch_size > rows:
        raise RunError(f"--batch-size {config.batch_size} is above the {rows} training {noun}s; set a smaller one")
    if getattr(config, "networks", "dense") == "conv" and not is_plane(dataset.image_shape):
        if noun == "row":
            raise RunError("--networks conv needs images, and these data are rows of numbers; leave it out")
        raise RunError(f"--networks conv needs images of (height, width), not {dataset.image_shape}")
    require_memory(config, dataset)
    for split, held_out in {"validation": dataset.x_val, "test": dataset.x_test}.items():
        if getattr(config, "adaptive_contrast", False) and len(held_out) == 1 and not config.resume:
            remedy = "give more, or --no-adaptive-contrast"
            raise DataError(f"{dataset.name} has 1 {split} {noun}; adaptive contrast needs 2: {remedy}")
    epochs = planned_epochs(config, len(dataset.x_train))
    require_warm_up(config, epochs)
    return dataclasses.replace(config, epochs=epochs, binarisation=fitting_binarisation(config, dataset))


def fitting_binarisation(config, dataset: Dataset) -> str:
    """The Config's binarisation or, for another likelihood than Bernoulli, "none". Raises RunError if it was chosen."""
    default = next(field.default for field in dataclasses.fields(config) if field.name == "binarisation")
    if dataset.likelihood == "bernoulli" or config.binarisation == "none":
        return config.binarisation
    if config.binarisation != default:
        raise RunError(
            f"--binarisation {config.binarisation} is for black and white pixels, and the likelihood is "
            f"{dataset.likelihood}; leave it out, or choose --likelihood bernoulli"
        )
    return "none"


def train_in(folder: Path, build, config, dataset: Dataset) -> dict:
    """Train a model in its folder and report on it; returns the content of metrics.json.

    Networks, history and TRAINING_FILE are on disk before any measurement.
    """
    model = build(config, starting_likelihood(dataset))
    model.transform = dataset.transform
    announce(model, config, dataset)
    batches, x_val = image_batches(dataset, config)
    outcome = fit(model, batches, x_val, config, config.epochs, folder)
    if outcome.stopped_by:
        print(f"training stopped: {outcome.stopped_by}; the trained weights are kept", flush=True)
    (folder / "metrics.json").unlink(missing_ok=True)  # from a shorter training
    save_networks(model, folder)
    write_json(folder / TRAINING_FILE, cost(outcome))
    try:
        metrics = report(model, dataset, config, outcome, folder)
    except BaseException:
        print(f"the trained networks are in {folder}; python -m tools.evaluate {folder} measures and draws", flush=True)
        raise
    checkpoint.discard(folder, keep=1)
    print(folder)
    return metrics


# Resuming a run


def prepare_resume(folder: Path, requested: dict) -> dict | None:
    """Prepare the run in `folder` to be resumed as `requested`, a `description`; returns its metrics if it is complete.

    Raises RunError if the run has other parameters or data, or if another process uses it.
    """
    with one_line_errors(folder):
        saved, _ = saved_run(folder)
        require_same(folder, saved, requested, prolong=True)
    hold(folder)
    if metrics := complete_metrics(folder, requested["updates"]):
        again = f"it stopped early ({metrics['stopped_by']}) and would do so again"
        again = again if metrics["stopped_by"] else "nothing is left to do; --epochs can prolong it"
        print(f"{folder} is finished, {metrics['updates']:,} updates: {again}")
        return metrics
    if not checkpoint.saved_files(folder):
        print(f"{folder} has no checkpoint: it is trained from the start", flush=True)
    elif saved["updates"] < requested["updates"] and not prolongs_evenly(saved["parameters"]):
        print("rates and weights now follow the longer training: the result differs from one training of that length")
    write_json(folder / "config.json", resumed_config(folder, saved, requested))
    return None


def complete_metrics(folder: Path, updates: int) -> dict | None:
    """The run's metrics if it is complete (all `updates` made, or stopped by NaN); None if it can be resumed."""
    if not (folder / "metrics.json").is_file():
        return None
    with one_line_errors(folder):
        metrics = json.loads((folder / "metrics.json").read_text())
        made, stopped_by = metrics["updates"], metrics["stopped_by"]
    return metrics if stopped_by != StopOnInterrupt.message and (made == updates or stopped_by) else None


def prolongs_evenly(parameters: dict) -> bool:
    """Whether a prolonged training of these parameters equals a training of that length from the start."""
    return parameters.get("final_rate_factor", 1.0) == 1.0 and not parameters.get("warm_up", 0.0)


def changed_environment(saved: dict, requested: dict) -> list[str]:
    """Names of the ENVIRONMENT fields that have changed since the run's last start; `saved` is its config.json."""
    last = [saved, *saved.get("resumed", [])][-1]
    return [key for key in ENVIRONMENT if last[key] != requested[key]]


def resumed_config(folder: Path, saved: dict, requested: dict) -> dict:
    """config.json of a resumed run: the requested parameters, and the environment appended to "resumed".

    Prints what changed in the environment. Raises RunError if `saved` is damaged.
    """
    with one_line_errors(folder):
        if changed := changed_environment(saved, requested):
            print(f"{', '.join(changed)} changed since {folder} began: its end may differ in the last bits", flush=True)
        now = {key: requested[key] for key in ENVIRONMENT} | {"updates_before": saved.get("updates")}
        kept = {key: requested[key] for key in ("parameters", "updates") if key in requested}
        return saved | kept | {"resumed": [*saved.get("resumed", []), now]}


def require_same(folder: Path, saved: dict, requested: dict, prolong: bool = False):
    """Raises RunError unless config.json, `saved`, is the same as `requested`; `prolong` allows more epochs."""
    saved, requested = (json.loads(json.dumps(each)) for each in (saved, requested))  # tuples become lists
    now, before = requested["parameters"], saved["parameters"]
    if saved["script"] != requested["script"]:
        raise RunError(f"{folder} is a run of {saved['script']}, not of {requested['script']}")
    longer = {"epochs"} if prolong and now.get("epochs", 0) >= before.get("epochs", 0) else set()
    if differing := [key for key in now if key not in {*NO_CHOICES} | longer and now[key] != before.get(key)]:
        ways = "only --epochs can be raised, or choose another --name" if prolong else "choose another --name"
        raise RunError(f"{folder} was made with another {flag(differing[0])}, {before.get(differing[0])}; {ways}")
    if (saved["data"] and saved["data"]["sha256"]) != (requested["data"] and requested["data"]["sha256"]):
        raise RunError(f"{folder} was made with other data; pass its own with --data, or choose another --name")
    if saved["backend"] != requested["backend"]:
        raise RunError(f"{folder} was made on {saved['backend']}; set KERAS_BACKEND={saved['backend']}")


# Before and after the training


def save_networks(model, folder: Path):
    """Save each network of the model as <name>.keras."""
    for name, network in model.networks.items():
        with whole(folder / f"{name}.keras") as path:
            network.save(path)


def require_memory(config, dataset: Dataset):
    """Raises RunError if the Config's networks do not fit into memory, in the training or in the measurements.

    A weight takes 24 bytes. Four bytes each are for itself, its gradient, Adam's two moments, and its values after the
    last two good epochs.
    """
    if not (hasattr(config, "hidden_units") and hasattr(config, "latent_dim")):
        return
    pixels, heads = math.prod(dataset.image_shape), LIKELIHOODS[dataset.likelihood].heads
    widths = [[numbers, *config.hidden_units, config.latent_dim] for numbers in (pixels, heads * pixels)]
    if hasattr(config, "discriminator_units"):  # AVB's discriminator takes the image as well
        widths.append([pixels + config.latent_dim, *config.discriminator_units])
    weights = sum(before * after for network in widths for before, after in itertools.pairwise(network))
    counts = config.latent_dim, len(dataset.x_train), len(dataset.x_test), config.binarisation != "none"
    needed = max(24 * weights, 16 * weights + memory_needed((heads, *dataset.image_shape), *counts))
    if needed > (available := memory_available()):
        names = [name for name in ("hidden_units", "discriminator_units") if hasattr(config, name)]
        chosen = [f"{flag(name)} {' '.join(map(str, getattr(config, name)))}" for name in names]
        raise RunError(
            f"{', '.join(chosen)} and --latent-dim {config.latent_dim} take "
            f"{needed // 10**9:,} GB of memory with {dataset.transform.noun}s of "
            f"{' x '.join(map(str, dataset.image_shape))}, but {available / 1e9:,.1f} GB are available. "
            "Set smaller numbers"
        )


def require_test_images(dataset: Dataset):
    """Raises DataError if there are too few test images for numbers and figures."""
    noun = f"{dataset.transform.noun}s"
    if len(dataset.x_test) < FEWEST_TEST_IMAGES:
        raise DataError(
            f"{dataset.name} has {len(dataset.x_test)} test {noun}; numbers and figures need {FEWEST_TEST_IMAGES}: "
            f"give {10 * FEWEST_TEST_IMAGES} unsplit {noun}, or {FEWEST_TEST_IMAGES} in x_test"
        )


def announce(model, config, dataset: Dataset):
    """Print one line on the training, with the effective weights: the weight of each term, where all terms are sums."""
    names = [field.name for field in dataclasses.fields(config)]
    weights = [
        f"effective {name.replace('_', ' ')} {getattr(config, name):g}"
        for name in names
        if name == "beta" or name.endswith("_weight")
    ]
    print(
        f"{model.title} on {dataset.name}, {config.epochs} epochs: {', '.join(weights) or 'effective beta 1'}, "
        f"against a reconstruction summed over {model.likelihood.terms} {model.likelihood.noun}; nats per "
        f"{dataset.transform.noun}; likelihood {dataset.likelihood}",
        flush=True,
    )


def description(config, script: str, dataset: Dataset | None) -> dict:
    """The content of config.json: all that is needed to understand and to repeat a run. `dataset` can be None."""
    return {
        "script": script,
        "parameters": {name: value for name, value in dataclasses.asdict(config).items() if name != "resume"}
        | ({"data": absolute(config.data)} if hasattr(config, "data") else {}),
        "data": dataset
        and {
            "name": dataset.name,
            "images": dataset.sizes,
            "image_shape": dataset.image_shape,
            "classes": dataset.class_names,
            "white": dataset.white,
            "sha256": dataset.checksum,
        }
        | transform_record(dataset),
        "backend": keras.backend.backend(),
        "device": str(keras.ops.zeros(()).device),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": versions(),
        "git_commit": git_commit(),
    }


def transform_record(dataset: Dataset) -> dict:
    """The part of config.json on likelihood and transform, where they are not those of grey pixels."""
    if dataset.likelihood == "bernoulli":
        return {}
    return {"likelihood": dataset.likelihood, "transform": as_record(dataset.transform)}


def absolute(data: str) -> str:
    """The absolute path of data, since the run may be resumed in another folder; a word stays unchanged."""
    return data if data in (*WORDS, IN_MEMORY) else os.path.abspath(os.path.expanduser(data))


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a run's numbers depend on."""
    packages = ("keras", "numpy", "scipy", "scikit-learn", keras.backend.backend())
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def git_commit() -> str | None:
    """The commit of this code, with "+changes" if files differ from the commit; None outside a checkout."""
    try:
        git = ["git", "-C", str(ROOT)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


# Loading a trained model


def load_run(folder):
    """The trained model of a run, ready to `encode`, `decode` and `sample`.

    Raises RunError if the folder holds no complete run.
    """
    folder = Path(folder).expanduser()
    require_usual_keras()
    with one_line_errors(folder):
        saved, module = saved_run(folder)
        transform = transform_of(saved["data"])
        likelihood = likelihood_of(saved["data"].get("likelihood", "bernoulli"), transform)
        model = module.build(load_config(folder), likelihood)
        model.transform = transform
        for name, network in model.networks.items():
            require_same_layers(network, folder / f"{name}.keras")
            network.load_weights(folder / f"{name}.keras")
    return model


def require_same_layers(network: keras.Model, path: Path):
    """Raises ValueError if the file holds a network with other layers, whose weights might fit this network.

    The file is only read: nothing in it is executed.
    """
    with zipfile.ZipFile(path) as archive:
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise ValueError(f"{path.name} is packed, but Keras packs no file")  # it could unpack to any size
        saved = [layer["class_name"] for layer in json.loads(archive.read("config.json"))["config"]["layers"]]
    built = [type(operation).__name__ for operation in network.operations]
    if saved != built:
        raise ValueError(f"{path.name} has the layers {' '.join(saved)}, not {' '.join(built)}")


def load_config(folder, config_class=None):
    """The Config that resumes a run, of the script's own class unless another is given.

    Raises RunError if the folder holds no run, or a run of a script with other parameters.
    """
    folder = Path(folder).expanduser()
    with one_line_errors(folder):
        saved, module = saved_run(folder)
        parameters = saved["parameters"].items()
        parameters = {key: tuple(value) if isinstance(value, list) else value for key, value in parameters}
        path = folder if len(folder.parts) > 2 else folder.resolve()
        parameters |= {"results": str(path.parent.parent), "name": path.name}
        if config_class is None:
            config_class, parameters["tensorboard"] = module.Config, False
        fields = {field.name for field in dataclasses.fields(config_class)}
        if unknown := parameters.keys() - fields - {"tensorboard"}:
            raise RunError(f"{folder} is a run of {saved['script']}, which has other parameters: {min(unknown)}")
        config = check(config_class(**{name: value for name, value in parameters.items() if name in fields}))
    return config


def saved_run(folder: Path):
    """The content of config.json, and the module of the script or experiment that wrote it.

    An older run's script and parameters are returned under today's names. For that, a renamed module may define
    `upgraded`, a function from the old parameters to the new ones. Parameters that did not exist have their defaults.
    """
    saved = json.loads((folder / "config.json").read_text())
    script = saved["script"]
    if isinstance(script, str):
        name = RENAMED.get(script, script)
        parts = name.split(".")
        experiment = parts[0] == "experiments" and len(parts) == 3 and all(map(str.isidentifier, parts))
        if name in SCRIPTS or (experiment and ROOT.joinpath(*parts).with_suffix(".py").is_file()):
            module = importlib.import_module(name)
            parameters = saved["parameters"]
            if script in RENAMED:
                parameters = getattr(module, "upgraded", dict)(parameters)
            defaults = {each.name: each.default for each in dataclasses.fields(module.Config)}
            saved["parameters"] = {key: defaults[key] for key in defaults if key != "resume"} | parameters
            return saved | {"script": name}, module
    raise RunError(f"{folder / 'config.json'} names no script of this project: {script!r}")


@contextlib.contextmanager
def one_line_errors(folder: Path):
    """Turns every error with the files in a folder into a RunError of one line."""
    try:
        yield
    except Exception as error:  # JSON, zip, HDF5, Keras and its backends raise a dozen kinds of errors
        if isinstance(error, RunError) and str(error).startswith(str(folder)):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise RunError(f"{folder} holds no complete run ({reason})") from None
