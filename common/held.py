"""Arrays that come from Python, by the names that arrays have in a file."""

import math
import os
from collections.abc import Mapping
from functools import partial

from common.arrays import DataError, HeldArray, memory_available
from common.preprocessing import role_of, roles

import numpy as np
import scipy.sparse


def arrays_of(data) -> dict[str, HeldArray]:
    """Arrays by name, of images, a pair, pairs for training and test, or a dict; see `common.data.as_dataset`.

    Arrays that are not needed are not looked at. Raises DataError for other data.
    """
    if isinstance(data, str | os.PathLike):
        raise DataError("is a path; give arrays, or give the path as Config(data=...)")
    if isinstance(data, Mapping):
        named = {str(key): partial(data.__getitem__, key) for key in data}
        needed = set(roles(named).values())
        return {name: held(read, name) if name in needed else HeldArray(None) for name, read in named.items()}
    if isinstance(data, list) and len(data) == 2:  # a pair (x, y), not two images
        data = tuple(data)
    if isinstance(data, tuple) and len(data) == 2 and all(map(is_pair, data)):
        if not all(len(part) == 2 for part in data):
            raise DataError("give ((x_train, y_train), (x_test, y_test))")
        named = dict(zip(("x_train", "y_train", "x_test", "y_test"), (*data[0], *data[1]), strict=True))
    elif isinstance(data, tuple):
        if not 1 <= len(data) <= 2:
            raise DataError(f"give (x, y), not {len(data)} arrays; or a dict with their names")
        named = dict(zip("xy", data, strict=False))
    else:
        named = {"x": data}
    given = {name: array for name, array in named.items() if array is not None or name.startswith("x")}
    return {name: held(lambda array=array: array, name) for name, array in given.items()}


def is_pair(part):
    """Whether `part` is a pair of arrays rather than an array: a tuple, or a list of two."""
    return isinstance(part, tuple) or (isinstance(part, list) and len(part) == 2)


def dense(matrix, name) -> np.ndarray:
    """A sparse matrix as an array. Raises DataError if that does not fit into memory."""
    needed, available = math.prod(matrix.shape) * matrix.dtype.itemsize, memory_available()
    if needed > available:
        raise DataError(
            f"{name} needs {needed / 1e9:,.1f} GB as an array, but {available / 1e9:,.1f} GB are available; give fewer "
            "rows or columns"
        )
    return matrix.toarray()


def held(read, name) -> HeldArray:
    """The array that `read()` gives, which may be a sparse matrix."""
    try:
        given = read()
        array = dense(given, name) if scipy.sparse.issparse(given) else np.asarray(given)
    except DataError:
        raise
    except Exception as error:  # rows of different lengths, tensors of a GPU, ... raise a dozen kinds of errors
        raise DataError(f"{name} is not an array ({error}); give a NumPy array") from error
    stored = HeldArray(plain_array(given, array, name))
    stored.sparse = scipy.sparse.issparse(given)
    return stored


def plain_array(given, array, name) -> np.ndarray:
    """`array`, which NumPy made of `given`, without objects. Words in memory are objects too, but safe ones."""
    if np.ma.is_masked(given):
        is_label = (role_of(name)[0] or "x").startswith("y")
        remedy = "leave those images out" if is_label else f"give {name}.filled(0)"
        raise DataError(f"{name} has masked values; {remedy}")
    if array.dtype.names:
        raise DataError(f"{name} has named or nested fields; give a plain array of numbers")
    if not array.dtype.hasobject:
        return array
    if array.ndim and all(isinstance(each, str) for each in array.flat):
        return array.astype(str)
    remedy = f"of words by {name}.astype(str)" if name.startswith("y") else f"by {name}.astype(float)"
    raise DataError(f"{name} holds objects; give an array of numbers, such as {remedy}")
