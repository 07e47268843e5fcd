"""`encode` and `decode` of a finished run for other programs: as ONNX files and as TensorFlow SavedModels.

Run: python -m tools.export results/vae_baseline/first [--output folder] [--format onnx]
It writes a folder, results/vae_baseline/first/export unless --output names another:

    encode.onnx, decode.onnx    for onnxruntime
    encode/, decode/            for tf.saved_model.load; signature "serving_default"
    export.json                 names, shapes and meaning of all inputs and outputs, and the columns of a table

Rows are in the units of the training's data. Before the folder appears, its functions are run and compared with the
model.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import shlex
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from common.columns import TableTransform, positions
from common.command import run_main
from common.config import check
from common.files import RunError, write_json
from common.model import LatentModel, to_numpy
from common.run import git_commit, load_run, one_line_errors, saved_run
from common.transforms import CountTransform, PixelTransform, RealTransform

import keras
import numpy as np
import tyro
from keras import ops

ROWS_CHECKED = 16
# Libraries add float32 numbers in different orders. In tests that changed up to 1e-6 of the largest number. A wrong
# weight or a wrong unit changes more than a hundredth.
TOLERANCE = 1e-4
MOST_BYTES = 2 * 10**9  # of an ONNX file: protobuf ends at 2 GiB


@dataclass(frozen=True)
class Config:
    """Writes `encode` and `decode` of a finished run as ONNX files and TensorFlow SavedModels."""

    run: tyro.conf.Positional[str]  # the folder of a run, results/<script>/<name>
    output: str = ""  # the new folder; without it, `export` in the run's folder
    format: Literal["onnx", "saved_model", "both"] = "both"  # onnx, saved_model (TensorFlow) or both


class Array(NamedTuple):
    """An input or output: the shape of a row, the type of its numbers, and what they are."""

    shape: tuple[int, ...]
    dtype: str
    meaning: str


class Function(NamedTuple):
    """A function of tensors (n, *shape), the inputs in order, which gives the outputs by name."""

    call: Callable[..., dict]
    variables: list
    inputs: dict[str, Array]
    outputs: dict[str, Array]


# Rows in the user's units, as tensors


def user_array(transform) -> Array:
    """A row as the exported `encode` takes it."""
    if isinstance(transform, TableTransform):
        meaning = "columns of the table in its order and units; for a category, the position of its value in `values`"
        return Array((len(transform.columns),), "float64", meaning)  # as float32, 101325 +- 0.01 would lose its digits
    if isinstance(transform, CountTransform):
        return Array(transform.shape, "float32", "counts, whole numbers from 0")
    if isinstance(transform, RealTransform):
        return Array(transform.shape, "float32", "images in the units of the training's data")
    return Array(transform.shape, "float32", f"pixels in [0, 1]; divide integers by {transform.white}")


def mean_array(transform) -> Array:
    """A row as the exported `decode` gives it."""
    if isinstance(transform, TableTransform):
        meaning = "means of columns in the table's order and units; for a category, the position of the likeliest value"
    elif isinstance(transform, CountTransform):
        meaning = f"mean counts of a row with the median total, {transform.total:g}"
    elif isinstance(transform, RealTransform):
        meaning = "means of pixels in the units of the training's data"
    else:
        meaning = "means of pixels in [0, 1]"
    return user_array(transform)._replace(meaning=f"E[x|z]: {meaning}")


def model_rows(transform, x):
    """What `transform.rows` does, for tensors as `user_array` describes them: the model's rows, float32."""
    if isinstance(transform, PixelTransform):
        return x
    x = ops.cast(x, "float64")
    if isinstance(transform, RealTransform):
        return ops.cast((x - transform.mean) / transform.deviation, "float32")
    if isinstance(transform, CountTransform):
        counts = ops.reshape(x, (-1, int(np.prod(transform.shape))))
        sizes = ops.maximum(ops.sum(counts, axis=1, keepdims=True), 1.0) / transform.total
        return ops.cast(ops.concatenate([counts, ops.log(sizes)], axis=1), "float32")
    columns, order = transform.ordered, model_order(transform)
    x = ops.take(x, order, axis=1)
    mean, scale = moments(transform)
    parts = [(x[:, : transform.numbers] - mean) / scale]
    for number in range(transform.numbers, len(columns)):
        places = np.arange(len(columns[number].values), dtype="float64")
        parts.append(ops.cast(ops.equal(ops.round(x[:, number : number + 1]), places), "float64"))
    return ops.cast(ops.concatenate(parts, axis=1), "float32")


def user_rows(transform, values):
    """What `transform.undo` does, for tensors: the model's rows as `mean_array` describes them."""
    if isinstance(transform, PixelTransform):
        return values
    if isinstance(transform, CountTransform):
        return ops.reshape(values[:, :-1], (-1, *transform.shape))
    if isinstance(transform, RealTransform):
        return ops.cast(ops.cast(values, "float64") * transform.deviation + transform.mean, "float32")
    import tensorflow as tf

    mean, scale = moments(transform)
    parts = [ops.cast(values[:, : transform.numbers], "float64") * scale + mean]
    places = dict(transform.fields())
    for column in transform.ordered[transform.numbers :]:
        likeliest = tf.argmax(values[:, places[column.name]], axis=1)  # that of Keras 3.15 is no ONNX
        parts.append(ops.cast(likeliest, "float64")[:, None])
    return ops.take(ops.concatenate(parts, axis=1), np.argsort(model_order(transform)), axis=1)


def model_order(transform: TableTransform) -> np.ndarray:
    """Where each column of the model's row is in the table."""
    return np.array([transform.names.index(column.name) for column in transform.ordered])


def moments(transform: TableTransform) -> tuple[np.ndarray, np.ndarray]:
    """Means and deviations of the columns of numbers, in the order of the model's row."""
    numbers = transform.ordered[: transform.numbers]
    return np.array([column.mean for column in numbers]), np.array([column.scale for column in numbers])


def as_user_array(transform, rows) -> np.ndarray:
    """Rows as `transform.undo` gives them, perhaps a DataFrame, as the array that the exported functions take."""
    if isinstance(transform, TableTransform) and not transform.array:
        columns = [
            rows[column.name] if column.values is None else positions(rows[column.name], column.values)
            for column in transform.columns
        ]
        return np.stack([np.asarray(column, "float64") for column in columns], axis=1)
    return np.asarray(rows, user_array(transform).dtype)


# The two functions


def functions_of(model: LatentModel) -> dict[str, Function]:
    """`encode` and `decode` of a model. To call `encode` changes the model's `noise`."""
    row, noise = user_array(model.transform), noise_array(model)
    code = Array((model.prior.latent_dim,), "float32", "code")
    meaning = "a draw z ~ q(z|x), a function of x and the noise" if noise else "the code of x"
    outputs = {"z": code._replace(meaning=meaning)}
    if model.posterior == "gaussian":
        outputs = {
            "mean": code._replace(meaning="mean of q(z|x), a Gaussian"),
            "deviation": code._replace(meaning="standard deviation of q(z|x), a Gaussian without correlations"),
        }

    def encode(x, *noise):
        return inferred(model, model_rows(model.transform, x), outputs, *noise)

    def decode(z):
        return {"x": user_rows(model.transform, model.likelihood.mean(model.decoder(z)))}

    prior = f"code; the prior p(z) is {type(model.prior).__name__} of scale {model.prior.scale:g}"
    return {
        "encode": Function(encode, model.encoder.variables, {"x": row} | noise, outputs),
        "decode": Function(
            decode, model.decoder.variables, {"z": code._replace(meaning=prior)}, {"x": mean_array(model.transform)}
        ),
    }


def noise_array(model: LatentModel) -> dict[str, Array]:
    """The noise that the code of an implicit posterior is a function of; empty for another posterior."""
    if model.posterior != "implicit":
        return {}
    shapes = []

    def noise(shape):
        shapes.append(tuple(shape[1:]))
        return ops.zeros(shape)

    model.noise = noise
    model.infer(ops.zeros((1, *model.image_shape)))
    return {"noise": Array(shapes[0], "float32", "standard normal numbers, new ones for each draw of z")}


def inferred(model: LatentModel, rows, names, *noise) -> dict:
    """Those of "z", "mean" and "deviation" that `names` has, for rows as the model takes them and this noise."""
    model.noise = lambda shape: noise[0] if noise else ops.zeros(shape)
    found = model.infer(rows)
    if "deviation" in names:
        found["deviation"] = ops.exp(0.5 * found["log_var"])
    return {name: found[name] for name in names}


# Files


def traced(name: str, function: Function):
    """A tf.Module whose method `name` is the function, for any number of rows; and the specifications of its inputs."""
    import tensorflow as tf

    inputs = function.inputs.items()
    specifications = [tf.TensorSpec((None, *array.shape), array.dtype, name=name) for name, array in inputs]
    module = tf.Module()
    module.network = function.variables
    setattr(module, name, tf.function(function.call, input_signature=specifications))
    return module, specifications


def save_onnx(name: str, function: Function, path: Path):
    """Write the function as an ONNX file. Raises RunError if tf2onnx cannot convert it."""
    import onnx
    import tf2onnx

    module, specifications = traced(name, function)
    handlers = {"Log1p": (log1p, [])}  # which tf2onnx lacks; the likelihoods of counts use it
    content, _ = tf2onnx.convert.from_function(getattr(module, name), specifications, custom_op_handlers=handlers)
    for value in (*content.graph.input, *content.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "rows"
    try:
        onnx.checker.check_model(content)
    except onnx.checker.ValidationError as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"tf2onnx cannot convert {name} of this run ({reason}); choose --format saved_model") from None
    path.write_bytes(content.SerializeToString())


def log1p(graph, node, name, arguments):
    """tf2onnx's handler of log(1 + x). Below 1e-7, where a sum in float32 is 1, the logarithm is 0."""
    one = graph.make_const(f"{name}_one", np.ones((), "float32"))
    total = graph.make_node("Add", [node.input[0], one.output[0]])
    node.type = "Log"
    graph.replace_inputs(node, [total.output[0]])


def save_saved_model(name: str, function: Function, path: Path):
    """Write the function as a SavedModel, a folder."""
    import tensorflow as tf

    module, _ = traced(name, function)
    tf.saved_model.save(module, str(path), signatures={"serving_default": getattr(module, name)})


def run_onnx(path: Path, inputs: dict) -> dict:
    """The outputs of an ONNX file, by name."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def run_saved_model(path: Path, inputs: dict) -> dict:
    """The outputs of a SavedModel, by name."""
    import tensorflow as tf

    tensors = {name: tf.constant(value) for name, value in inputs.items()}
    outputs = tf.saved_model.load(str(path)).signatures["serving_default"](**tensors)
    return {name: to_numpy(value) for name, value in outputs.items()}


class Format(NamedTuple):
    """How a format is written and run, and what its files are called after the function's name."""

    title: str
    ending: str
    save: Callable
    run: Callable


FORMATS = {
    "onnx": Format("ONNX", ".onnx", save_onnx, run_onnx),
    "saved_model": Format("SavedModel", "", save_saved_model, run_saved_model),
}


def description(folder: Path, functions: dict[str, Function], transform) -> dict:
    """The content of export.json."""
    saved, _ = saved_run(folder)
    packages = [name for name in ("tensorflow", "keras", "tf2onnx") if importlib.util.find_spec(name)]
    content = {
        "run": {"script": saved["script"], "name": folder.resolve().name, "data": saved["data"]["name"]},
        "git_commit": git_commit(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "notes": "any number of rows; no input is checked",
    }
    for name, function in functions.items():
        content[name] = {
            side: {
                each: {"shape": ["rows", *array.shape], "dtype": array.dtype, "meaning": array.meaning}
                for each, array in getattr(function, side).items()
            }
            for side in ("inputs", "outputs")
        }
    if isinstance(transform, TableTransform):
        columns = [{"name": column.name, "values": column.values} for column in transform.columns]
        content["columns"] = [{key: value for key, value in each.items() if value is not None} for each in columns]
    elif names := getattr(transform, "names", None):
        content["columns"] = [{"name": name} for name in names]
    return content


# The check of what was written


class Case(NamedTuple):
    """Inputs of a function, what the model makes of them, and the unit of each output's differences."""

    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    units: dict[str, np.ndarray]


def cases_of(model: LatentModel, functions: dict[str, Function]) -> dict[str, Case]:
    """A case for each function, of rows and codes that are drawn from the model, by the model's own methods."""
    random, transform = np.random.default_rng(0), model.transform
    codes = model.prior_codes(ROWS_CHECKED)
    means = as_user_array(transform, model.decode(codes))
    parameters = np.concatenate([to_numpy(batch) for batch in model.parameters_of(codes)])
    draws = model.likelihood.sample(parameters, random)
    rows = transform.undo(np.clip(draws, 0.0, 1.0) if isinstance(transform, PixelTransform) else draws)
    inputs = {"x": as_user_array(transform, rows)}
    for name, array in list(functions["encode"].inputs.items())[1:]:
        inputs[name] = random.standard_normal((len(codes), *array.shape), dtype="float32")
    tensors = map(ops.convert_to_tensor, [transform.rows(rows)[:], *list(inputs.values())[1:]])
    found = inferred(model, next(tensors), functions["encode"].outputs, *tensors)
    outputs = {name: to_numpy(value) for name, value in found.items()}
    units = {name: np.abs(array).max() for name, array in outputs.items()}
    unit = units_of_table(model, codes) if isinstance(transform, TableTransform) else np.abs(means).max()
    return {"encode": Case(inputs, outputs, units), "decode": Case({"z": codes}, {"x": means}, {"x": unit})}


def units_of_table(model: LatentModel, codes) -> np.ndarray:
    """The deviation of each column, for each code: (n, d). It is infinite where the likeliest value is a close call."""
    units, means = np.ones((len(codes), len(model.transform.columns))), model.means(codes)
    for at, (column, (_, place)) in enumerate(zip(model.transform.columns, model.transform.fields(), strict=True)):
        shares = np.sort(means[:, place], axis=1)
        close = shares[:, -1] - shares[:, :-1].max(axis=1, initial=-1.0) < TOLERANCE
        units[:, at] = column.scale if column.values is None else np.where(close, np.inf, 1.0)
    return units


def largest_difference(case: Case, outputs: dict[str, np.ndarray]) -> float:
    """Between the case's outputs and these, in the case's units; infinite if names, shapes or NaN differ."""
    if outputs.keys() != case.outputs.keys():
        return np.inf
    differences = [0.0]
    for name, expected in case.outputs.items():
        if outputs[name].shape != expected.shape:
            return np.inf
        difference = np.abs(outputs[name].astype("float64") - expected) / np.maximum(case.units[name], 1e-30)
        differences.append(float(np.nan_to_num(difference, nan=np.inf).max()))
    return max(differences)


@contextlib.contextmanager
def full_float32():
    """Matrix products in float32 on every GPU: TensorFlow's default there, TensorFloat-32, keeps ten bits."""
    import tensorflow as tf

    settings = tf.config.experimental
    before = settings.tensor_float_32_execution_enabled()
    settings.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        settings.enable_tensor_float_32_execution(before)


@full_float32()
def checked(model: LatentModel, functions: dict[str, Function], formats: list[str], folder: Path) -> str:
    """Compares the files in a folder with the model; returns what was found. Raises RunError if they differ."""
    cases, found = cases_of(model, functions), []
    for kind in (FORMATS[name] for name in formats):
        if kind.run is run_onnx and not importlib.util.find_spec("onnxruntime"):
            found.append("ONNX not checked: pip install onnxruntime")
            continue
        largest = 0.0
        for name, case in cases.items():
            path = folder / f"{name}{kind.ending}"
            difference = largest_difference(case, kind.run(path, case.inputs))
            if difference > TOLERANCE:
                raise RunError(
                    f"nothing is written: {path.name} differs from the model by {difference:.1g}, relative to the "
                    f"largest number, more than {TOLERANCE:g}; requirements-dev.txt names versions that were tried"
                )
            largest = max(largest, difference)
        found.append(f"{kind.title} {largest:.1g}")
    return f"checked on {ROWS_CHECKED} rows; largest relative difference from the model: {', '.join(found)}"


# The command


def require_packages(config: Config):
    """Raises RunError if the backend is not TensorFlow, or if a package is missing."""
    if keras.backend.backend() != "tensorflow":
        command = f"KERAS_BACKEND=tensorflow python -m tools.export {shlex.quote(config.run)}"
        raise RunError(f"export needs TensorFlow: {command}")
    if config.format != "saved_model" and not importlib.util.find_spec("tf2onnx"):
        raise RunError(
            "ONNX needs the package tf2onnx: pip install tf2onnx onnxruntime, or choose --format saved_model"
        )


def require_new(output: Path):
    """Makes the folder above `output`. Raises RunError if that cannot be written to, or if `output` is not new."""
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise RunError(f"{output} exists and stays unchanged; choose another --output, or delete it")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write {output} ({error.strerror}); choose another --output") from None
    if not os.access(output.parent, os.W_OK):
        raise RunError(f"cannot write to {output.parent}; choose another --output")


def main(config: Config) -> dict:
    """Write the folder; returns no numbers.

    Raises RunError if the backend is not TensorFlow, if a package is missing, if the run is not complete, if the folder
    exists or cannot be written, or if an exported function differs from the model. No file is left then.
    """
    config = check(config)
    require_packages(config)
    folder = Path(config.run)
    model = load_run(folder)
    output = Path(config.output).expanduser() if config.output else folder / "export"
    require_new(output)
    functions = functions_of(model)
    formats = list(FORMATS) if config.format == "both" else [config.format]
    if "onnx" in formats and max(4 * network.count_params() for network in (model.encoder, model.decoder)) > MOST_BYTES:
        raise RunError(f"{folder} has networks above 2 GB, too large for an ONNX file; choose --format saved_model")
    with one_line_errors(folder):
        content = description(folder, functions, model.transform)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=output.parent) as temporary:
        made = Path(temporary) / "export"
        made.mkdir()
        for kind in (FORMATS[name] for name in formats):
            for name, function in functions.items():
                kind.save(name, function, made / f"{name}{kind.ending}")
        write_json(made / "export.json", content)
        print(checked(model, functions, formats, made), flush=True)
        try:
            if output.is_dir():
                output.rmdir()
            made.rename(output)
        except OSError:  # another process was quicker
            raise RunError(f"{output} exists and stays unchanged; choose another --output") from None
    print(output)
    return {}


if __name__ == "__main__":
    run_main(main, Config)
