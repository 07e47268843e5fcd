"""Checkpoints of a training: all that it needs to resume, each with a checksum of its own.

A checkpoint is one file: a line with the SHA-256 of all that follows, a line of JSON, and the bytes of every variable
of the model (weights, the state of its random numbers) and of its optimiser, in their order. Nothing in it can be run.
The order of the images and their binarisation depend on (seed, epoch) alone, as in `Batches`. So a resumed training
ends with the same bits as one that was never stopped.
"""

import hashlib
import itertools
import json
import math
import mmap
import time
from pathlib import Path

from common.files import RunError, whole

import keras
import numpy as np

PREFIX = "checkpoint-"
DIGEST_LENGTH = 64  # hexadecimal digits
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
    """Write the checkpoint after `epochs` epochs: the variables, and `content` as JSON takes it.

    One variable after the other, so that no second copy of them all is in memory.
    """
    variables = variables_of(model)
    kinds = [[np.dtype(variable.dtype).name, list(variable.shape)] for variable in variables]
    header = json.dumps({"epochs": epochs, "content": content, "variables": kinds}, allow_nan=False)
    digest = hashlib.sha256()
    with whole(Path(folder) / f"{PREFIX}{epochs}") as partial, partial.open("wb") as file:
        file.write(bytes(DIGEST_LENGTH) + b"\n")  # its place
        for part in itertools.chain([f"{header}\n".encode()], map(values_of, variables)):
            digest.update(part)
            file.write(part)
        file.seek(0)
        file.write(digest.hexdigest().encode())
    discard(folder, KEPT)


def values_of(variable: keras.Variable) -> memoryview:
    """The bytes of a variable, in C order."""
    return np.ascontiguousarray(keras.ops.convert_to_numpy(variable.value)).reshape(-1).view(np.uint8).data


def read(path: Path) -> tuple[dict, memoryview]:
    """The JSON of a checkpoint, and the bytes of its variables, which stay in the file until they are used.

    Raises ValueError if they are not what was written.
    """
    if not path.stat().st_size:  # which cannot be mapped
        raise ValueError("its checksum is wrong")
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    start = content.find(b"\n") + 1
    if hashlib.sha256(memoryview(content)[start:]).hexdigest().encode() != content[: max(0, start - 1)]:
        raise ValueError("its checksum is wrong")
    end = content.find(b"\n", start) + 1
    values = memoryview(content)[end:]
    try:
        saved = json.loads(content[start:end])
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
            # A copy: a backend may keep the array that it is given, and the file does not stay.
            variable.assign(np.frombuffer(values, kind, count, start).reshape(variable.shape).copy())
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
