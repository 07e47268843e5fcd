"""What a path holds: arrays by name, from an .npz, .npy files, IDX files, a sparse matrix or a folder of pictures."""

import contextlib
from pathlib import Path

from common.arrays import DataError, in_npy, in_zip, opened_zip, readable
from common.formats import remedy
from common.idx import idx_in_file, idx_in_folder
from common.pictures import pictures_in
from common.sparse import sparse_in

import numpy as np


@contextlib.contextmanager
def arrays_in(path, resize: tuple[int, int] | None = None):
    """The arrays of a file or a folder by name; an array that is alone is x. They can be read within the context.

    Each has the attributes of a `StoredArray`. A file is an .npz, an .npy, a sparse matrix by scipy.sparse.save_npz, or
    IDX, perhaps packed by gzip. A folder has .npy files, MNIST's four IDX files, or pictures. Pictures are resized to
    `resize`, (height, width). Raises DataError if the path is none of these.
    """
    path = Path(path)
    if path.is_dir():
        yield in_folder(path, resize)
        return
    if not path.is_file():  # such as a pipe, on which reading could wait for ever
        raise DataError("is neither a file nor a folder; give the path of data that docs/data.md lists")
    if resize:
        raise no_pictures()
    with readable("it"), path.open("rb") as file:
        beginning = file.read(6)
    if beginning == np.lib.format.MAGIC_PREFIX:
        yield {"x": in_npy(path, "x")}
    elif arrays := idx_of(path):
        yield arrays
    elif other := remedy(path):
        raise DataError(other)
    elif not beginning.startswith(b"PK"):
        raise DataError("is neither an .npz nor an .npy file; save its arrays by numpy.savez('mine.npz', x=x, y=y)")
    else:
        with opened_zip(path) as archive:
            stored = in_zip(archive)
            matrix = sparse_in(stored)
            yield {"x": matrix} if matrix else stored


def idx_of(path: Path):
    """`idx_in_file`, whose errors of reading are DataErrors."""
    with readable("it"):
        return idx_in_file(path)


def in_folder(path: Path, resize):
    """The arrays of a folder by name."""
    with readable("the folder"):
        files = [file for file in sorted(path.glob("*.npy")) if file.is_file()]
        arrays = {file.stem: in_npy(file, file.stem) for file in files} or idx_in_folder(path)
    if arrays and resize:
        raise no_pictures()
    arrays = arrays or pictures_in(path, resize)
    if not arrays:
        raise DataError(
            "is a folder without .npy files, pictures or MNIST's IDX files; give one with them, or an .npz file"
        )
    return arrays


def no_pictures() -> DataError:
    """The error for a size that is given for arrays."""
    return DataError("is no folder of pictures, so that there is nothing to resize; leave out --resize")
