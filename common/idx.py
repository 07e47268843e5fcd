"""IDX files, the format of the original MNIST, plain or packed by gzip; lengths are checked against headers.

The format: two zero bytes, the type, the number of axes, and each axis's length as a big-endian integer of 32 bits.
"""

import gzip
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from common.arrays import DataError, Header, readable
from common.formats import Opened, idx_header, labels_file, opened

import numpy as np

NAME = re.compile(r"(.*?)(train|t10k|test)[-_.](images|labels)[-_.]idx\d[-_.]ubyte(\.gz)?", re.IGNORECASE)
READ_PACKED = ("", "gzip")  # a file is read as it is, or packed so
STEP = 2**20  # bytes that are unpacked at once
RATIO = 1100  # gzip packs bytes at most 1,032 times smaller


@dataclass(frozen=True)
class IdxArray:
    """The array of an IDX file, with the attributes of a `StoredArray`: rows of a plain file may stay in it.

    Every method raises DataError if the array cannot be read.
    """

    file: Opened
    sparse = False
    notes = ()

    @property
    def name(self) -> str:
        """The file's name, for messages."""
        return self.file.path.name

    @property
    def path(self) -> Path | None:
        """The file, or None if it is packed."""
        return None if self.file.packer else self.file.path

    @cached_property
    def header(self) -> Header:
        """Its shape and type, checked against the file's size."""
        dtype, shape = idx_header(self.file)
        header = Header(shape, np.dtype(dtype))
        needed, size = self.start + header.size * header.dtype.itemsize, self.file.path.stat().st_size
        if needed > RATIO * size if self.file.packer else needed != size:
            raise self.other_length(shape)
        return header

    @property
    def start(self) -> int:
        """How many bytes of the file, unpacked, come before the numbers."""
        return 4 + 4 * len(idx_header(self.file)[1])

    def other_length(self, shape) -> DataError:
        """The error for a file that is too short or too long."""
        return DataError(f"{self.name} is not as long as its shape {shape} says (cut short?); copy it again")

    def read(self) -> np.ndarray:
        """The whole array, in memory. No more is unpacked than its header says."""
        header = self.header
        array = np.empty(header.shape, header.dtype)
        numbers, at = array.reshape(-1).view(np.uint8), 0
        with readable(self.name), (gzip.open if self.file.packer else open)(self.file.path, "rb") as file:
            file.read(self.start)
            while at < len(numbers) and (count := file.readinto(numbers[at : at + STEP])):
                at += count
            if at < len(numbers) or file.read(1):
                raise self.other_length(header.shape)
        return array

    def mapped(self) -> np.memmap:
        """The array of a plain file, mapped from it, for reading."""
        with readable(self.name):
            return np.memmap(self.file.path, self.header.dtype, "r", self.start, self.header.shape)


def idx_in_file(path: Path) -> Mapping[str, IdxArray] | None:
    """The images of an IDX file as x, and labels as y if their file lies beside it.

    None if it is no IDX file, has only one axis, or is packed by something else than gzip.
    """
    file = opened(path)
    header = idx_header(file)
    if header is None or len(header[1]) == 1 or file.packer not in READ_PACKED:
        return None
    labels = labels_file(file, header[1][0])
    return {"x": IdxArray(file)} | ({"y": IdxArray(labels)} if labels and labels.packer in READ_PACKED else {})


def idx_in_folder(folder: Path) -> Mapping[str, IdxArray] | None:
    """The files of a folder that are named as MNIST's four, as x_train, y_train, x_test and y_test; None without any.

    Of a plain file and a packed one, the plain one counts. Raises DataError if the images of a split are missing, or if
    there are several sets.
    """
    found, sets = {}, set()
    for path in sorted(folder.iterdir()):
        if (match := NAME.fullmatch(path.name)) and path.is_file():
            role = "x" if match[3].lower() == "images" else "y"
            found.setdefault(f"{role}_train" if match[2].lower() == "train" else f"{role}_test", path)
            sets.add(match[1])
    if not found:
        return None
    if len(sets) > 1:
        raise DataError(f"holds several sets of IDX files, {', '.join(sorted(sets))[:200]}; give a folder with one")
    for role, other in (("x_train", "train-images-idx3-ubyte"), ("x_test", "t10k-images-idx3-ubyte")):
        if role not in found:
            raise DataError(f"has IDX files, but no {other}; add it, or give the file of the other images")
    arrays = {role: IdxArray(opened(path)) for role, path in found.items()}
    for array in arrays.values():
        if idx_header(array.file) is None or array.file.packer not in READ_PACKED:
            raise DataError(f"{array.name} is not an IDX file (damaged?); copy or download it again")
    return arrays
