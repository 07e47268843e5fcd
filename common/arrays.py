"""Arrays in files: their headers are checked before anything is unpacked, and large ones are read by rows."""

import contextlib
import hashlib
import math
import os
import re
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

CHUNK = 2**23  # numbers of an array that are read at once: the whole array may not fit into memory
PLAIN = (1, 0)  # the version of the .npy format that is read; headers of later versions can be 4 GB long


class DataError(ValueError):
    """Data that cannot be used; the message is one line: what is wrong and what to do."""

    def __init__(self, message):
        super().__init__(one_line(message))


def one_line(message) -> str:
    """Text that can be printed: names and words in a file may hold lines or a terminal's control characters."""
    line = " ".join(str(message).split())
    return "".join(letter if letter.isprintable() else "?" for letter in line)


def visible(word) -> str:
    """A name as it is printed: in quotes if it begins or ends with a space, "(empty)" if it has no letters."""
    text = str(word)
    return (text if text == text.strip() else f'"{text}"') or "(empty)"


class Header(NamedTuple):
    """Shape and type of an array that is not read yet."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        """How many numbers, as Python counts: without overflow."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class StoredArray:
    """An array in a file: `open()` gives its `size` bytes, header first; `path` is the .npy file, or None in an .npz.

    Every method raises DataError if the array cannot be read. Pickles are never loaded.
    """

    key: str
    open: Callable
    size: int
    path: Path | None = None
    sparse = False
    notes = ()  # what was converted, as texts to print

    @cached_property
    def header(self) -> Header:
        """Its shape and type, checked against its size in bytes."""
        with readable(self.key), self.open() as file:
            version = np.lib.format.read_magic(file)
            if version != PLAIN:
                raise DataError(f"{self.key} is in an unknown .npy format ({version}); save it with numpy.save")
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            start = file.tell()
        if dtype.hasobject:
            raise DataError(
                f"{self.key} holds pickled objects, which are never loaded; save numbers, or words as "
                f"{self.key}.astype(str)"
            )
        if dtype.names or dtype.subdtype:
            raise DataError(f"{self.key} has named or nested fields; save a plain array of numbers")
        if not all(type(length) is int and 0 <= length < 2**63 for length in shape):
            raise DataError(f"{self.key} has an impossible shape; copy or save the file again")
        header = Header(shape, dtype)
        if start + header.size * dtype.itemsize != self.size:
            raise DataError(f"{self.key} is not as long as its shape {shape} says (cut short?); copy it again")
        return header

    def read(self) -> np.ndarray:
        """The whole array, in memory."""
        with readable(self.key), self.open() as file:
            return np.lib.format.read_array(file, allow_pickle=False)

    def mapped(self) -> np.memmap:
        """The array of an .npy, mapped from the file, for reading."""
        with readable(self.key):
            return np.lib.format.open_memmap(self.path, mode="r")


@dataclass
class HeldArray:
    """An array in memory, with the attributes of a `StoredArray`."""

    array: np.ndarray | None
    path = None
    sparse = False
    notes = ()

    @property
    def header(self) -> Header:
        """Its shape and type."""
        return Header(self.array.shape, self.array.dtype)

    def read(self) -> np.ndarray:
        """The array. No reference to it stays here, so that its bytes are freed once it is converted."""
        array, self.array = self.array, None
        return array


@contextlib.contextmanager
def readable(what: str):
    """Turns every error that a broken file raises into a DataError."""
    try:
        with warnings.catch_warnings(action="ignore"):  # NumPy warns about headers that an older Python wrote
            yield
    except DataError:
        raise
    except Exception as error:  # zip, zlib, NumPy's header parser and its types raise a dozen kinds of errors
        reason = error if str(error) else type(error).__name__
        raise DataError(f"{what} cannot be read ({str(reason)[:200]}); copy or save the file again") from error


def in_npy(path: Path, key: str) -> StoredArray:
    """An .npy file's array."""
    return StoredArray(key, partial(path.open, "rb"), path.stat().st_size, path)


def opened_zip(path: Path) -> zipfile.ZipFile:
    """The open archive. Raises DataError if the file is not an archive."""
    try:
        return zipfile.ZipFile(path)
    except Exception as error:  # as in `readable`
        raise DataError(
            "is not a readable .npz file (cut short?); save it with numpy.savez_compressed or copy it again"
        ) from error


def in_zip(archive: zipfile.ZipFile) -> dict[str, StoredArray]:
    """The arrays of an .npz by name. Raises DataError if a name occurs twice: tools differ in which array they read."""
    arrays = {}
    for info in archive.infolist():
        key = info.filename.removesuffix(".npy")
        if key in arrays:
            raise DataError(f"holds {key} twice; save the file again")
        arrays[key] = StoredArray(key, partial(open_member, archive, info), info.file_size)
    return arrays


def open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo):
    """The unpacked bytes of an archive's member, as a file. Raises DataError if it cannot be unpacked."""
    if info.flag_bits & 1:
        raise DataError(f"{info.filename} is encrypted; save it without a password")
    # Python unpacks other formats without a limit: 4 kB of bzip2 can become 4 GB at once.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{info.filename} is packed in a way NumPy does not use; save it with numpy.savez_compressed")
    return archive.open(info)


def memory_available() -> float:
    """Bytes of memory that this process can still get, or infinity if the system does not tell."""
    limits = [math.inf]
    with contextlib.suppress(AttributeError, OSError, ValueError):  # Windows has no sysconf
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(OSError):
        free = re.search(r"MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text())
        limits += [1024 * int(free[1])] if free else []
    groups = [""]  # control groups; a container's own group is at the top
    with contextlib.suppress(OSError):
        groups += [line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines()]
    for group in groups:
        for limit in (f"{group}/memory.max", f"memory/{group}/memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
                limits.append(int(Path(f"/sys/fs/cgroup/{limit}").read_text()))
    return min(limit for limit in limits if limit > 0)


def as_floats(images: np.ndarray, white: int = 255) -> np.ndarray:
    """Images as float32 in [0, 1], in C order; without a copy if they are float32 in [0, 1] already.

    They are integers from 0 to `white`, or floats in [0, 1] up to rounding.
    """
    if images.dtype.kind in "bui":
        return np.divide(images, white, dtype=np.float32, order="C")
    floats = images.astype(np.float32, order="C", copy=False)
    outside = floats.size and (floats.min() < 0 or floats.max() > 1)
    return np.clip(floats, 0, 1) if outside else floats


class MappedImages:
    """Some images of a mapped .npy: an index, a slice or an array of indices reads them as float32 in [0, 1].

    It stands for `stored[rows]`, but is never in memory as a whole; `chunks` iterates over it. `white` is the integer
    that is white. `convert`, if given, makes the model's rows of a batch of other numbers than pixels.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, stored, rows, white: int = 255, convert: Callable | None = None):
        self.stored, self.rows, self.white, self.convert = stored, np.arange(len(stored))[rows], white, convert
        self.row_shape = self.convert(self.stored[:1]).shape[1:] if convert else self.stored.shape[1:]

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, height, width), (n, height, width, 3) or (n, d), like that of an array."""
        return len(self.rows), *self.row_shape

    @property
    def ndim(self) -> int:
        """2, 3 or 4, like that of an array."""
        return len(self.shape)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, which):
        rows = self.stored[self.rows[which]]
        if self.convert is None:
            return np.asarray(as_floats(rows, self.white))
        return self.convert(rows[None])[0] if rows.ndim < self.stored.ndim else self.convert(rows)

    def __array__(self, dtype=None, copy=None):
        raise DataError("this needs all training images in memory at once; save them, or fewer of them, as an .npz")


def chunks(rows):
    """Consecutive slices of an array or of MappedImages, each with at most CHUNK numbers, or with one row."""
    size = max(1, CHUNK // math.prod(rows.shape[1:]))
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def sha256(parts) -> str:
    """SHA-256 (hex) over pairs of a text and an array's bytes, in C order."""
    digest = hashlib.sha256()
    for text, array in parts:
        digest.update(text.encode())
        for chunk in chunks(array):
            digest.update(np.ascontiguousarray(chunk))
    return digest.hexdigest()
