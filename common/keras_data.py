"""MNIST, Fashion-MNIST and CIFAR as Keras downloads them: with a time limit, and without deleting files in its cache.

CIFAR's files are pickles. Keras compares the archive's SHA-256 at every load, and unpacks it again: a file that was
changed in the cache is not read. Keras' unpickler makes only NumPy arrays.
"""

import gzip
import os
import threading
import zlib
from concurrent.futures import Future
from pathlib import Path

from common.arrays import DataError, sha256
from common.sources import arrays_in

import keras
import numpy as np

KERAS_NAMES = {
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
}
FILES = {  # in Keras' folder of data sets
    "mnist": ["mnist.npz"],
    "fashion_mnist": [
        f"fashion-mnist/{part}-ubyte.gz"
        for part in ("train-labels-idx1", "train-images-idx3", "t10k-labels-idx1", "t10k-images-idx3")
    ],
}
OTHER_HOME = "/tmp/.keras"
FOUR = ("x_train", "y_train", "x_test", "y_test")
SHAPE = (60000, 28, 28)  # of the training images of both data sets
SHAPES = (SHAPE, SHAPE[:1], (10000, 28, 28), (10000,))  # of the FOUR arrays
# SHA-256 of MNIST's bytes, uint8, in the order of the original files: of x_train alone, and of all FOUR arrays in turn.
MNIST_SHA256 = "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757"
MNIST_FOUR_SHA256 = "06b0d1f124c4e5fa796686ade41a9b778edacc8622f2195a352ef479ad44fc16"
FASHION_LABELS = (9, 0, 0, 3, 0, 2, 7, 2, 5, 5)  # the first of Fashion-MNIST's training labels


def keras_arrays(source: str, seconds: float) -> dict[str, np.ndarray]:
    """The four arrays of Keras' data set `source`, from its cache or downloaded within `seconds`.

    CIFAR's images are uint8, (n, 32, 32, 3), and its labels (n, 1); CIFAR-100 has its 100 fine classes.

    Raises DataError if they cannot be loaded. No file in the cache is deleted. If the process ends during a download,
    the next process names the incomplete file in its message, or renames it.
    """
    if source == "mnist" and (cached := existing_files(source)):
        return from_cache(cached[0])
    future = in_background(getattr(keras.datasets, source).load_data)
    try:
        (x_train, y_train), (x_test, y_test) = future.result(timeout=seconds)
    except Exception as error:  # Keras raises bare Exceptions
        if future.done():
            done = set_aside_fashion(error) if source == "fashion_mnist" else ""
            reason = f"{error}{done}"
        else:
            reason = f"the download was not complete after {seconds} s"
        raise DataError(f"{KERAS_NAMES[source]} could not be loaded ({reason})") from error
    return dict(zip(FOUR, (x_train, y_train, x_test, y_test), strict=True))


def from_cache(path: Path) -> dict[str, np.ndarray]:
    """The four arrays of a cached mnist.npz in any packing. Keras would delete a file with another checksum."""
    try:
        with arrays_in(path) as stored:
            if missing := [name for name in FOUR if name not in stored]:
                raise DataError(f"has no {missing[0]}")
            if [stored[name].header for name in FOUR] != [(shape, np.uint8) for shape in SHAPES]:
                raise DataError("its arrays differ")  # and may be too large to read
            arrays = {name: stored[name].read() for name in FOUR}
        if sha256(("", array) for array in arrays.values()) != MNIST_FOUR_SHA256:
            raise DataError("its arrays differ")
        return arrays
    except DataError as error:
        raise DataError(
            f"{path}, in Keras' cache, is not MNIST ({error}); move it elsewhere, so that MNIST is downloaded"
        ) from error


def is_mnist(x_train) -> bool:
    """Whether stored training images are those of MNIST, in the original order."""
    return x_train.shape == SHAPE and x_train.dtype == np.uint8 and sha256([("", x_train)]) == MNIST_SHA256


def is_fashion(arrays: dict, labels: dict) -> bool:
    """Whether `x_train` has Fashion-MNIST's shape, and `y_train` begins with its first labels."""
    first = tuple(labels["y_train"][: len(FASHION_LABELS)]) if "y_train" in labels else ()
    return "x_train" in arrays and arrays["x_train"].shape == SHAPE and first == FASHION_LABELS


def in_background(load) -> Future:
    """The future result of `load()`, which runs in a thread: Keras' downloads have no time limit."""
    future = Future()

    def work():
        keras.config.disable_interactive_logging()  # no progress bar from this thread, even after the time limit
        try:
            future.set_result(load())
        except Exception as error:
            future.set_exception(error)

    # A pool's threads would be joined at exit, and a hanging download would keep the process alive.
    threading.Thread(target=work, daemon=True).start()
    return future


def cache_folders() -> list[Path]:
    """The folders that can hold Keras' data sets. Keras uses the second if it cannot write to the first."""
    home = os.path.expanduser(os.environ.get("KERAS_HOME", "~/.keras"))
    homes = [home] if os.access(home, os.W_OK) else [home, OTHER_HOME]
    return [Path(each, "datasets") for each in homes]


def existing_files(source: str) -> list[Path]:
    """The files of `source` in Keras' cache."""
    paths = [folder / name for folder in cache_folders() for name in FILES[source]]
    return [path for path in paths if os.path.isfile(path)]


def set_aside_fashion(error: Exception) -> str:
    """Rename cached files of Fashion-MNIST that are incomplete: Keras does not check them, and would use them again.

    Returns text for the message that says what was done. It is empty if the error has another cause than the files.
    """
    folder = cache_folders()[-1]  # where Keras writes
    files = [path for path in existing_files("fashion_mnist") if path.is_relative_to(folder)]
    if not isinstance(error, (EOFError, ValueError, zlib.error, gzip.BadGzipFile)) or not files:
        return ""
    broken = [path for path in files if not is_whole(path)]
    if not broken:
        return f"; the files in {files[0].parent} are not Fashion-MNIST's: move them elsewhere"
    try:
        renamed = [path.rename(unused_name(path)) for path in broken]
    except OSError:
        return f"; the files in {files[0].parent} cannot be read: move them elsewhere"
    return f"; damaged files in Keras' cache were renamed to {', '.join(map(str, renamed))}"


def is_whole(path: Path) -> bool:
    """Whether a .gz is complete."""
    try:
        return bool(gzip.decompress(path.read_bytes()))
    except (EOFError, OSError, zlib.error):
        return False


def unused_name(path: Path) -> Path:
    """The path with .broken-1 appended, or with the next unused number."""
    number = 1
    while (aside := path.with_name(f"{path.name}.broken-{number}")).exists():
        number += 1
    return aside
