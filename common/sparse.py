"""Sparse matrices as scipy.sparse.save_npz writes them: checked before SciPy sees them, and given as dense arrays."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from common.arrays import DataError, Header, StoredArray, memory_available, readable

import numpy as np
import scipy.sparse

INDICES = {  # format: the arrays that say where its values are
    "csr": ("indices", "indptr"),
    "csc": ("indices", "indptr"),
    "bsr": ("indices", "indptr"),
    "coo": ("row", "col"),
    "dia": ("offsets",),
}


@dataclass(frozen=True)
class SparseArray:
    """A sparse matrix in an .npz, with the attributes of a `StoredArray`; `stored` are the archive's arrays by name.

    Every method raises DataError if the matrix cannot be read.
    """

    kind: str  # one of INDICES
    stored: Mapping[str, StoredArray]
    sparse = True
    path = None
    notes = ()

    @cached_property
    def header(self) -> Header:
        """The shape and type of the dense array. Of the file, the shape and the headers are read."""
        names = ("data", *INDICES[self.kind])
        if missing := [name for name in names if name not in self.stored]:
            raise DataError(f"is a sparse matrix in the format {self.kind}, but has no {missing[0]}; save it again")
        shape = self.stored["shape"].header
        if shape.shape != (2,) or shape.dtype.kind not in "iu":
            raise DataError("is a sparse array, but not a matrix; save a matrix, (n, d)")
        shape = tuple(self.stored["shape"].read().tolist())
        if min(shape) < 0 or max(shape) >= 2**63:
            raise DataError(f"is a sparse matrix with the impossible shape {shape}; save it again")
        data = self.stored["data"].header
        if data.dtype.kind not in "buif" or len(data.shape) != {"bsr": 3, "dia": 2}.get(self.kind, 1):
            raise DataError(f"is a sparse matrix whose values are {data.dtype} of shape {data.shape}; save it again")
        for name in names[1:]:
            if self.stored[name].header.dtype.kind not in "iu" or len(self.stored[name].header.shape) != 1:
                raise DataError(f"is a sparse matrix whose {name} are no integers, (n,); save it again")
        return Header(shape, data.dtype.newbyteorder("="))

    def read(self) -> np.ndarray:
        """The dense array, in memory. Values at the same place are added."""
        header = self.header
        parts = [self.stored[name].header for name in ("data", *INDICES[self.kind])]
        needed = 2 * sum(each.size * max(8, each.dtype.itemsize) for each in parts)
        needed += header.size * header.dtype.itemsize
        available = memory_available()
        if needed > available:
            raise DataError(
                f"is a sparse matrix of shape {header.shape}, which needs {needed / 1e9:,.1f} GB of memory as a dense "
                f"array, but {available / 1e9:,.1f} GB are available; save fewer rows or columns"
            )
        data = self.stored["data"].read().astype(header.dtype, copy=False)
        with readable("the sparse matrix"):
            return getattr(self, self.kind)(data, header.shape).toarray()

    def csr(self, data, shape):
        """A matrix in compressed rows."""
        return scipy.sparse.csr_array(self.compressed(data, *shape), shape=shape)

    def csc(self, data, shape):
        """A matrix in compressed columns."""
        return scipy.sparse.csc_array(self.compressed(data, *shape[::-1]), shape=shape)

    def bsr(self, data, shape):
        """A matrix of dense blocks in compressed rows."""
        blocks = data.shape[1:]
        if 0 in blocks or any(length % block for length, block in zip(shape, blocks, strict=True)):
            raise DataError(f"is a sparse matrix of shape {shape} with blocks of {blocks}; save it again")
        lengths = (length // block for length, block in zip(shape, blocks, strict=True))
        return scipy.sparse.bsr_array(self.compressed(data, *lengths), shape=shape)

    def coo(self, data, shape):
        """A matrix of values with their rows and columns."""
        places = tuple(self.integers(name, len(data), end) for name, end in zip(("row", "col"), shape, strict=True))
        return scipy.sparse.coo_array((data, places), shape=shape)

    def dia(self, data, shape):
        """A matrix of diagonals."""
        offsets = self.integers("offsets", len(data), shape[1], -shape[0])
        if len(np.unique(offsets)) < len(offsets):
            raise DataError("is a sparse matrix with a diagonal twice; save it again")
        return scipy.sparse.dia_array((data, offsets), shape=shape)

    def compressed(self, data, rows: int, columns: int):
        """(data, indices, indptr) of `rows` rows, or columns, with indices below `columns`."""
        starts = self.integers("indptr", rows + 1, len(data) + 1)
        if starts[0] != 0 or starts[-1] != len(data) or (np.diff(starts) < 0).any():
            raise DataError("is a sparse matrix whose indptr does not go from 0 to the count of values; save it again")
        return data, self.integers("indices", len(data), columns), starts

    def integers(self, name: str, length: int, end: int, low: int = 0) -> np.ndarray:
        """An array of indices, int64, in [low, end). Raises DataError if its length or a number is wrong."""
        array = self.stored[name].read()
        if len(array) != length or (length and not (int(array.min()) >= low and int(array.max()) < end)):
            raise DataError(
                f"is a sparse matrix whose {name} are not {length} integers from {low} to {end - 1} (damaged?); "
                "save it again"
            )
        return array.astype(np.int64, copy=False)


def sparse_in(stored: Mapping[str, StoredArray]) -> SparseArray | None:
    """The sparse matrix of an .npz's arrays; None if they are no sparse matrix. Raises DataError for other formats."""
    if not {"format", "shape", "data"} <= stored.keys():
        return None
    header = stored["format"].header
    if header.shape != () or header.dtype.kind not in "SU" or header.dtype.itemsize > 64:
        return None
    kind = stored["format"].read()[()]
    kind = kind.decode("ascii", "replace") if isinstance(kind, bytes) else str(kind)
    if kind not in INDICES:
        raise DataError(f"is a sparse matrix in the format {kind}; save it by scipy.sparse.save_npz(file, x.tocsr())")
    return SparseArray(kind, stored)
