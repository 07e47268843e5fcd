"""Checkpoints of a training: all that it needs to resume, each with a checksum of its own.

A checkpoint is one file: a line with the SHA-256 of all that follows, a line of JSON, and the bytes of every variable
of the model (weights, the state of its random numbers) and of its optimiser, in their order. Nothing in it can be run.
The order of the images and their binarisation depend on (seed, epoch) alone, as in `Batches`. So a resumed training
ends with the same bits as one that was never stopped.
"""

import hashlib
import json
import math
import time
from pathlib import Path

from common.files import RunError, whole

import keras
import numpy as np

PREFIX = "checkpoint-"
KEPT = 2  # the latest, and the one before it in case the latest is damaged
LEAST_WORK = 20  # times as long as a checkpoint took to write, the training runs before the next


def variables_of(model: keras.Model) -> list[keras.Variable]:
    """Every variable of a compiled model and of its optimiser, metrics apart: they begin each epoch anew."""
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    metrics = {id(variable) for variable in model.metrics_variables}
    return [v for v in [*model.variables, *model.optimizer.variables] if id(v) not in metrics]


def saved_files(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the latest first."""
    numbered = [path for path in Path(folder).glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdecimal()]
    return sorted(numbered, key=lambda path: int(path.name.removeprefix(PREFIX)), reverse=True)


def discard(folder: Path, keep: int = 0):
    """Delete the checkpoints in a folder, but for the latest `keep`."""
    for path in saved_files(folder)[keep:]:
        path.unlink(missing_ok=True)


def save(folder: Path, model: keras.Model, epochs: int, content: dict):
    """Write the checkpoint after `epochs` epochs: the variables, and `content` as JSON takes it."""
    arrays = [keras.ops.convert_to_numpy(variable.value) for variable in variables_of(model)]
    kinds = [[array.dtype.name, array.shape] for array in arrays]
    header = json.dumps({"epochs": epochs, "content": content, "variables": kinds}, allow_nan=False)
    parts = [f"{header}\n".encode(), *(np.ascontiguousarray(array).tobytes() for array in arrays)]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    with whole(Path(folder) / f"{PREFIX}{epochs}") as partial, partial.open("wb") as file:
        file.write(f"{digest.hexdigest()}\n".encode())
        file.writelines(parts)
    discard(folder, KEPT)


def read(path: Path) -> tuple[dict, bytes]:
    """The JSON of a checkpoint, and the bytes of its variables. Raises ValueError if they are not what was written."""
    digest, _, rest = path.read_bytes().partition(b"\n")
    if hashlib.sha256(rest).hexdigest().encode() != digest:
        raise ValueError("its checksum is wrong")
    header, _, values = rest.partition(b"\n")
    try:
        saved = json.loads(header)
        sizes = [np.dtype(kind).itemsize * math.prod(shape) for kind, shape in saved["variables"]]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError("it is no checkpoint") from error
    if sum(sizes) != len(values) or not isinstance(saved.get("epochs"), int) or "content" not in saved:
        raise ValueError("it is no checkpoint")
    return saved, values


def restore(folder: Path, model: keras.Model) -> tuple[int, dict]:
    """Give a compiled model the latest whole checkpoint of `folder`; how many epochs it has seen, and the content.

    A damaged one is skipped, in a printed line, for the one before it; (0, {}) if there is none. Raises
    RunError if it is of another model.
    """
    for path in saved_files(folder):
        try:
            saved, values = read(path)
        except ValueError as error:
            print(f"{path} is damaged, {error}: the one before it is used, or none", flush=True)
            path.unlink()  # else it would count among the latest, and new ones would be deleted as older
            continue
        variables = variables_of(model)
        if saved["variables"] != [[v.dtype, list(v.shape)] for v in variables]:
            raise RunError(f"{path} is of another model than this code builds; resume it with the code that wrote it")
        start = 0
        for variable in variables:
            kind, count = np.dtype(variable.dtype), math.prod(variable.shape)
            variable.assign(np.frombuffer(values, kind, count, start).reshape(variable.shape))
            start += kind.itemsize * count
        return saved["epochs"], saved["content"]
    return 0, {}


class Checkpoints(keras.callbacks.Callback):
    """Writes a checkpoint at the end of an epoch: of the first, of the last, and as often as costs 5 % of the time.

    `content()` is kept with it. A training that is interrupted within an epoch writes none: from there it could not end
    with the same bits. To be the last of the callbacks.
    """

    def __init__(self, folder: Path, epochs: int, content):
        super().__init__()
        self.folder, self.epochs, self.content = folder, epochs, content
        self.next = 0.0

    def on_epoch_end(self, epoch, logs=None):
        last, start = epoch + 1 == self.epochs, time.perf_counter()
        if self.model.stop_training or not (last or start >= self.next):
            return
        save(self.folder, self.model, epoch + 1, self.content())
        end = time.perf_counter()
        self.next = end + LEAST_WORK * (end - start)
