"""Checkpoints of a training: all that it needs to resume, each with a checksum of its own.

A checkpoint is one file. Its first line is the SHA-256 of the rest, and its second line is JSON. Then follow the bytes
of every variable of the model (weights, the state of its random numbers) and of its optimiser, in their order. No part
of the file is ever executed.

The order of the images and their binarisation depend on (seed, epoch) alone, as in `Batches`. So a resumed training
ends with the same bits as a training that was never stopped.
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
KEPT = 2  # the latest checkpoint, and the one before it in case the latest is damaged
LEAST_WORK = 20  # the training runs this many times as long as it took to write a checkpoint, then writes the next


def variables_of(model: keras.Model) -> list[keras.Variable]:
    """Every variable of a compiled model and of its optimiser, except metrics, which start again in each epoch."""
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    metrics = {id(variable) for variable in model.metrics_variables}
    return [v for v in [*model.variables, *model.optimizer.variables] if id(v) not in metrics]


def saved_files(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the latest first."""
    numbered = [path for path in Path(folder).glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdecimal()]
    return sorted(numbered, key=lambda path: int(path.name.removeprefix(PREFIX)), reverse=True)


def discard(folder: Path, keep: int = 0):
    """Delete the checkpoints in a folder, except the latest `keep`."""
    for path in saved_files(folder)[keep:]:
        path.unlink(missing_ok=True)


def save(folder: Path, model: keras.Model, epochs: int, content: dict):
    """Write the checkpoint after `epochs` epochs: the variables, and `content`, which JSON must be able to hold.

    It writes one variable after the other, so that memory never holds a second copy of all variables.
    """
    variables = variables_of(model)
    kinds = [[np.dtype(variable.dtype).name, list(variable.shape)] for variable in variables]
    header = json.dumps({"epochs": epochs, "content": content, "variables": kinds}, allow_nan=False)
    digest = hashlib.sha256()
    with whole(Path(folder) / f"{PREFIX}{epochs}") as partial, partial.open("wb") as file:
        file.write(bytes(DIGEST_LENGTH) + b"\n")  # a placeholder for the digest
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

    Raises ValueError if the file is damaged.
    """
    if not path.stat().st_size:  # an empty file cannot be mapped
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
        raise ValueError("it is not a checkpoint") from error
    if sum(sizes) != len(values) or not isinstance(saved.get("epochs"), int) or "content" not in saved:
        raise ValueError("it is not a checkpoint")
    return saved, values


def restore(folder: Path, model: keras.Model) -> tuple[int, dict]:
    """Restore a compiled model from the latest intact checkpoint in `folder`; returns its epochs and its content.

    A damaged checkpoint is reported in one line and skipped. Without a checkpoint, it returns (0, {}). Raises RunError
    if the checkpoint is of another model.
    """
    for path in saved_files(folder):
        try:
            saved, values = read(path)
        except ValueError as error:
            print(f"{path} is damaged ({error}); the checkpoint before it is used if there is one", flush=True)
            path.unlink()  # else it would count among the latest, and `discard` would delete newer checkpoints
            continue
        variables = variables_of(model)
        if saved["variables"] != [[v.dtype, list(v.shape)] for v in variables]:
            raise RunError(f"{path} is of another model than this code builds; resume with the code that wrote it")
        start = 0
        for variable in variables:
            kind, count = np.dtype(variable.dtype), math.prod(variable.shape)
            # A copy: a backend may keep the array, and the file may be deleted.
            variable.assign(np.frombuffer(values, kind, count, start).reshape(variable.shape).copy())
            start += kind.itemsize * count
        return saved["epochs"], saved["content"]
    return 0, {}


class Checkpoints(keras.callbacks.Callback):
    """Writes checkpoints at the end of the first epoch, of the last, and as often between as costs 5 % of the time.

    Each holds `content()` as well. A training that is interrupted within an epoch writes none: from there it could not
    end with the same bits. This callback must be the last one.
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
