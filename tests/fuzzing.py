"""What the fuzzers share: damage to bytes, bounds of time and memory, counts by outcome, and what a data set promises.

The fuzzers are test_bad_input.py (arrays and flags), test_bad_files.py (files and folders) and test_bad_runs.py
(folders of runs).
"""

import collections
import contextlib
import io
import os
import resource
import signal
import tempfile
import time
import zipfile
from pathlib import Path
from unittest import mock

from common.arrays import DataError, MappedImages
from common.data import load_data
from common.transforms import CountTransform, PixelTransform, TableTransform, likelihood_of

import numpy as np
import pyarrow as pa
from hypothesis import HealthCheck, settings
from keras import ops

pa.set_memory_pool(pa.system_memory_pool())  # its own reserves 1 GiB of addresses at once, more than `bounded` allows

SECONDS = 30  # that one input may take
MEMORY = 2**30  # bytes that all inputs may take on top of what the process has
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)
SHARE = 16  # of so many data sets that are taken, one has its likelihood computed, which takes longer than the loading


class Hangs(BaseException):
    """Not an Exception, which the code under test may catch."""


def hangs(number, frame):
    raise Hangs(f"no outcome after {SECONDS} s")


@contextlib.contextmanager
def bounded():
    """Time for one input, and memory: a process that reaches for more gets a MemoryError, which is then refused.

    The code is told of a quarter of it, as if the machine had no more.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    earlier = signal.signal(signal.SIGALRM, hangs)
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, hard))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    pages = {"SC_PHYS_PAGES": MEMORY // 4, "SC_PAGE_SIZE": 1}
    try:
        with mock.patch("os.sysconf", pages.__getitem__):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, earlier)


def outcome(attempt, refusal, valid) -> str:
    """ "taken" if `attempt()` gives what passes `valid`, "refused" if it raises `refusal`; else an assertion fails."""
    try:
        with bounded():
            result = attempt()
    except refusal as error:
        message = str(error)
        assert message and len(message.splitlines()) == 1, repr(message)
        assert "Traceback" not in message
        return "refused"
    valid(result)
    return "taken"


# Damage


def cut(random, content):
    return content[: random.randrange(len(content) + 1)]


def flip(random, content):
    place = random.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << random.randrange(8)]) + content[place + 1 :]


def insert(random, content):
    place = random.randrange(len(content) + 1)
    return content[:place] + random.randbytes(random.choice([1, 2, 8, 100])) + content[place:]


def delete(random, content):
    place = random.randrange(len(content))
    return content[:place] + content[place + random.choice([1, 2, 8, 100]) :]


def splice(random, content):
    """A part of it over another part."""
    source, target, length = random.randrange(len(content)), random.randrange(len(content)), random.choice([4, 16, 64])
    return content[:target] + content[source : source + length] + content[target + length :]


def odd_number(random, content):
    place, number = random.randrange(len(content)), random.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1])
    width, order = random.choice([1, 2, 4, 8]), random.choice(["little", "big"])
    return content[:place] + (number % 256**width).to_bytes(width, order) + content[place + width :]


def digits(random, content):
    """Another number for one that stands there as text, as in the header of an array."""
    places = [place for place, byte in enumerate(content) if 48 <= byte < 58] or [0]
    place = random.choice(places)
    return content[:place] + random.choice([b"0", b"-1", b"9", b"9" * 30, b"1e9", b"nan"]) + content[place + 1 :]


DAMAGE = [cut, flip, insert, delete, splice, odd_number, digits]


def damaged(random, content: bytes) -> tuple[str, bytes]:
    """Content with one to three kinds of damage, and the name of the first."""
    kinds = random.choices(DAMAGE, k=random.choice([1, 1, 2, 3]))
    for kind in kinds:
        content = kind(random, content) if content else content
    return kinds[0].__name__, content


class Tried:
    """How many inputs of each kind were taken and refused, the slowest of them, and the memory that they took."""

    def __init__(self):
        self.counts = collections.Counter()
        self.start = self.last = time.perf_counter()
        self.slowest, self.seconds, self.held = (0.0, ""), 0.0, peak()

    def add(self, kind, result):
        self.counts[kind, result] += 1
        now = time.perf_counter()
        self.slowest, self.last = max(self.slowest, (now - self.last, kind)), now
        self.seconds = now - self.start

    @property
    def results(self) -> set[str]:
        """The outcomes that occurred."""
        return {result for _, result in self.counts}

    def __str__(self):
        kinds = sorted({kind for kind, _ in self.counts})
        lines = [
            f"{kind}: {self.counts[kind, 'taken']} taken, {self.counts[kind, 'refused']} refused" for kind in kinds
        ]
        total = f"{self.counts.total():,} inputs in {self.seconds:.0f} s, of which the slowest took "
        memory = f"; {(peak() - self.held) / 2**20:.0f} MiB on top of {self.held / 2**20:.0f} MiB"
        return "\n".join([*lines, f"{total}{self.slowest[0]:.1f} s ({self.slowest[1]}){memory}"])


def peak() -> int:
    """The most memory, in bytes, that the process has had so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# Data sets


def is_dataset(dataset):
    """Whether all that `Dataset` promises is so."""
    shape, splits = dataset.image_shape, (dataset.x_train, dataset.x_val, dataset.x_test)
    assert len(shape) in (1, 2, 3) and min(shape) > 0 and (len(shape) < 3 or shape[2] == 3)
    likelihood = likelihood_of(dataset.likelihood, dataset.transform)
    assert likelihood.row_shape == shape
    labels = [dataset.y_train, dataset.y_val, dataset.y_test]
    assert len({y is None for y in labels}) == 1
    for x, y in zip(splits, labels, strict=True):
        assert isinstance(x, np.ndarray | MappedImages) and len(x) > 0
        rows = x[:]
        assert rows.dtype == x.dtype == np.float32 and rows.shape == x.shape == (len(x), *shape)
        assert np.isfinite(rows).all()
        are_rows(rows, dataset.transform)
        assert y is None or (y.dtype == np.int64 and y.shape == (len(x),) and 0 <= y.min() <= y.max() < dataset.classes)
    assert (dataset.class_names is None) == (dataset.class_values is None) == (dataset.y_train is None)
    if dataset.class_names is not None:
        assert len(set(dataset.class_names)) == len(dataset.class_values) == dataset.classes
        assert all(type(name) is str for name in dataset.class_names)
        assert dataset.class_values.dtype.kind == "U" or dataset.class_values.dtype == np.int64
    assert dataset.white in (1, 255)
    assert dataset.name.isprintable()
    assert len(dataset.checksum) == 64
    if int(dataset.checksum, 16) % SHARE == 0:
        x = ops.convert_to_tensor(dataset.x_train[:5])
        parameters = ops.convert_to_tensor(np.stack([likelihood.constant(dataset.x_train)] * len(x)))
        log_prob = ops.convert_to_numpy(likelihood.log_prob(x, parameters))
        assert log_prob.shape == (len(x),) and np.isfinite(log_prob).all()


def are_rows(rows: np.ndarray, transform):
    """Whether rows are what a transform gives."""
    if isinstance(transform, PixelTransform):
        assert rows.min() >= 0 and rows.max() <= 1
    elif isinstance(transform, CountTransform):
        counts, totals = rows[:, :-1], np.exp(rows[:, -1].astype("float64")) * transform.total
        assert (counts == np.rint(counts)).all() and counts.min() >= 0
        assert np.allclose(totals, np.maximum(counts.sum(axis=1, dtype="float64"), 1), rtol=1e-4)  # rounding of a log
    elif isinstance(transform, TableTransform):
        start = transform.numbers
        for length in transform.categories:
            block = rows[:, start : start + length]
            assert np.isin(block, (0, 1)).all() and (block.sum(axis=1) == 1).all()
            start += length
        assert start == rows.shape[1] == transform.width


def quietly(load):
    """What `load` gives. What it prints is one line at most, of letters that can be printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        dataset = load()
    line, end, rest = printed.getvalue().partition("\n")
    assert not rest and bool(line) == bool(end) and line.isprintable()
    return dataset


class Trap:
    """An object whose pickle, once it is loaded, leaves a file behind."""

    sprung = Path(tempfile.gettempdir(), f"sprung-{os.getpid()}")

    def __reduce__(self):
        return Path.touch, (self.sprung,)


def contents(path: Path) -> dict[Path, bytes]:
    """What is in a file, or in all files of a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {file: file.read_bytes() for file in files}


def tried_path(path: Path, **options) -> str:
    """The outcome of a path; its files stay as they are."""
    before = contents(path)
    result = outcome(lambda: quietly(lambda: load_data(str(path), **options)), DataError, is_dataset)
    assert contents(path) == before
    return result


def npy(array, **more) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **more)
    return file.getvalue()


def npz(pack=np.savez, **arrays) -> bytes:
    file = io.BytesIO()
    pack(file, **arrays)
    return file.getvalue()


def zipped(members: dict[str, bytes], compression=zipfile.ZIP_STORED) -> bytes:
    """A zip of members by their names; in an .npz they may no longer be arrays."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def images(shape=(24, 3, 2), kind=np.uint8):
    x = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return x if kind == np.uint8 else (x / 255).astype(kind)


def numbers(chance, shape, low: float, high: float) -> np.ndarray:
    """Uniform numbers, float64, drawn by an instance of random.Random."""
    return np.random.default_rng(chance.getrandbits(32)).random(shape) * (high - low) + low
