"""Thousands of damaged, lying and odd inputs: each is taken for what it is or refused in one line, soon.

Four doors: the path of `load_data`, arrays of any kind in memory or in files, the flags of the five scripts, and the
folder of a run. The seeded fuzzer tries a few hundred inputs at each, and under `pytest -m long` some thousands, of
which it prints how many were taken. Nothing in an input is executed, and no input is changed.
"""

import bz2
import collections
import contextlib
import dataclasses
import gzip
import io
import json
import lzma
import math
import os
import pickle
import random
import re
import resource
import shutil
import signal
import struct
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

import vae_baseline
from common.arrays import DataError, MappedImages
from common.command import parse
from common.config import check, flag
from common.data import as_dataset, load_data
from common.files import RunError, write_json
from common.run import description, load_config, load_run, save_networks
from common.scripts import SCRIPTS, load_script

import h5py
import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

MODULES = [load_script(name) for name in SCRIPTS]
SECONDS = 30  # that one input may take
MEMORY = 2**30  # bytes that all inputs may take on top of what the process has
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)


class Hangs(BaseException):
    """Not an Exception, which the code under test may catch."""


def hangs(number, frame):
    raise Hangs(f"no outcome after {SECONDS} s")


@contextlib.contextmanager
def bounded():
    """Time for one input and memory: a process that reaches for more gets a MemoryError, which is then refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    earlier = signal.signal(signal.SIGALRM, hangs)
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, hard))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
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
    width = random.choice([1, 2, 4, 8])
    return content[:place] + (number % 256**width).to_bytes(width, "little") + content[place + width :]


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
    """How many inputs of each kind were taken and refused."""

    def __init__(self):
        self.counts = collections.Counter()
        self.start, self.seconds = time.perf_counter(), 0.0

    def add(self, kind, result):
        self.counts[kind, result] += 1
        self.seconds = time.perf_counter() - self.start

    def __str__(self):
        kinds = sorted({kind for kind, _ in self.counts})
        lines = [
            f"{kind}: {self.counts[kind, 'taken']} taken, {self.counts[kind, 'refused']} refused" for kind in kinds
        ]
        total = f"{self.counts.total():,} inputs in {self.seconds:.0f} s"
        return "\n".join([*lines, total])


# Images


def is_dataset(dataset):
    """Whether all that `Dataset` promises is so."""
    shape = dataset.image_shape
    assert len(shape) in (1, 2) and min(shape) > 0
    labels = [dataset.y_train, dataset.y_val, dataset.y_test]
    assert len({y is None for y in labels}) == 1
    for images, y in zip((dataset.x_train, dataset.x_val, dataset.x_test), labels, strict=True):
        assert isinstance(images, np.ndarray | MappedImages) and len(images) > 0
        pixels = images[:]
        assert pixels.dtype == images.dtype == np.float32 and pixels.shape == images.shape == (len(images), *shape)
        assert pixels.min() >= 0 and pixels.max() <= 1  # false of NaN
        assert y is None or (y.dtype == np.int64 and y.shape == (len(images),) and 0 <= y.min() <= y.max())
        assert y is None or y.max() < dataset.classes
    assert (dataset.class_names is None) == (dataset.class_values is None) == (dataset.y_train is None)
    if dataset.class_names is not None:
        assert len(set(dataset.class_names)) == len(dataset.class_values) == dataset.classes
        assert all(type(name) is str for name in dataset.class_names)
        assert dataset.class_values.dtype.kind == "U" or dataset.class_values.dtype == np.int64
    assert dataset.white in (1, 255)
    assert dataset.name.isprintable()
    assert len(dataset.checksum) == 64


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


@pytest.fixture(autouse=True)
def nothing_is_executed():
    yield
    assert not Trap.sprung.exists()


def contents(path: Path) -> dict[Path, bytes]:
    """What is in a file, or in all files of a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {file: file.read_bytes() for file in files}


def tried_path(path: Path) -> str:
    """The outcome of a path; its files stay as they are."""
    before = contents(path)
    result = outcome(lambda: quietly(lambda: load_data(str(path))), DataError, is_dataset)
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


FOUR = {"x_train": images(), "y_train": np.arange(24) % 3, "x_test": images((9, 3, 2)), "y_test": np.arange(9) % 3}
ONE = {"x": images((24, 5), np.float64), "y": np.arange(24, dtype=np.uint8) % 2}
KEPT = {"train_images": images((24, 3, 2, 1), np.int64), "train_labels": np.eye(3)[np.arange(24) % 3]}
KEPT |= {"test_images": images((9, 3, 2, 1), np.int64), "test_labels": np.eye(3, dtype=bool)[np.arange(9) % 3]}
KEPT |= {"X_val": images((9, 3, 2, 1), np.int64), "Y_val": np.arange(9)[:, None] % 3}
WORDS = {"images": images((24, 1, 3, 2)) > 99, "labels": np.array(["cat", "dog", "ñandú"])[np.arange(24) % 3]}


def made_by(write) -> bytes:
    """What `write` leaves in a file."""
    with tempfile.TemporaryDirectory() as folder:
        write(str(Path(folder, "file")))
        return Path(folder, "file").read_bytes()


def in_hdf5(path):
    with h5py.File(path, "w") as file:
        file["x"], file["y"] = ONE["x"], ONE["y"]


def idx(array) -> bytes:
    sides = b"".join(struct.pack(">I", side) for side in array.shape)
    return struct.pack(">HBB", 0, 8, array.ndim) + sides + array.tobytes()


def csv(end="\n") -> bytes:
    rows = [["label", "pixel 1", "pixel 2"], *([row % 3, row, 2 * row] for row in range(24))]
    return end.join(",".join(map(str, row)) for row in rows).encode()


WHOLE_FILES = {
    "npz": npz(**FOUR),
    "npz, deflated": npz(np.savez_compressed, **ONE),
    "npz, conversions": npz(**KEPT),
    "npz, words": npz(**WORDS),
    "npz, objects": npz(x=images(), y=np.array([Trap()] * 24)),
    "npy": npy(images()),
    "npy of floats": npy(np.asfortranarray(images(kind=np.float32))),
    "npy of objects": npy(np.array([Trap()] * 24)),
}
OTHER_FILES = {
    "csv": csv(),
    "csv, Windows": csv("\r\n"),
    "hdf5": made_by(in_hdf5),
    "matlab": made_by(lambda path: scipy.io.savemat(path, {"x": ONE["x"], "y": ONE["y"]}, appendmat=False)),
    "idx": idx(images()),
    "idx, gzip": gzip.compress(idx(images())),
    "idx, bz2": bz2.compress(idx(images())),
    "csv, xz": lzma.compress(csv()),
    "pickle": pickle.dumps({"data": images(), "labels": [Trap()]}),
    "pickle, old": pickle.dumps({"data": [1, 2], "labels": [Trap()]}, protocol=0),
    "zip of a pickle": zipped({"data.pkl": pickle.dumps(Trap())}),
    "zip of pictures": zipped({"cat/1.png": b"\x89PNG\r\n\x1a\n", "dog/2.png": b"\x89PNG\r\n\x1a\n"}),
    "png": made_by(lambda path: plt.imsave(path, images()[0], format="png")),
    "pgm": b"P5\n4 3\n255\n" + bytes(12),
    "json": json.dumps({"x": images().tolist()}).encode(),
    "a web page": b"<!DOCTYPE html><html><body>404</body></html>",
}


def try_files(count: int, path: Path) -> Tried:
    """Damage to whole files of several formats, and to arrays within an .npz whose checksums agree."""
    tried, chance = Tried(), random.Random(count)
    for number in range(count):
        kind, content = chance.choice(list(WHOLE_FILES.items()))
        if number % 3 == 0:
            kind, arrays = "npz, inside", dict(chance.choice([FOUR, ONE, KEPT, WORDS]))
            members = {f"{key}.npy": npy(array) for key, array in arrays.items()}
            key = chance.choice(list(members))
            damage, members[key] = damaged(chance, members[key])
            content = zipped(members, chance.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
        elif number % 3 == 1:
            kind, content = "another format", chance.choice(list(OTHER_FILES.values()))
            damage, content = damaged(chance, content)
        else:
            damage, content = damaged(chance, content)
        path.write_bytes(content)
        tried.add(f"{kind}, {damage}", tried_path(path))
    return tried


def test_damaged_files(tmp_path):
    tried = try_files(300, tmp_path / "mine.npz")
    assert {result for _, result in tried.counts} == {"taken", "refused"}


@pytest.mark.parametrize("kind", OTHER_FILES)
def test_whole_files_of_other_formats_are_refused(tmp_path, kind):
    (tmp_path / "mine.npz").write_bytes(OTHER_FILES[kind])
    assert tried_path(tmp_path / "mine.npz") == "refused"


# Arrays of any kind, in memory and in files

KINDS = ["?", "i1", "u1", "u1", "u1", "<i2", ">i4", "i8", "u8", "e", "f4", "f4", ">f8", "f8", "g"]
KINDS += ["F", "D", "S1", "S5", "U1", ">U4", "M8[s]", "m8[ns]", "V3", "O"]
RANGES = [(0, 1), (0, 1), (0, 1), (0, 255), (0, 255), (-1, 1), (0, 16), (-5, 5), (0, 65535), (0, 0)]
SOME_WORDS = [["a", "b\n", "\x1b"], ["1", "01", "-2"], ["x" * 99, "", "\ud800"], ["7", "8", "9"]]
USUAL_KINDS = ["u1", "u1", "f4", "f8", "?", "i8"]
LABEL_KINDS = ["i1", "u1", ">i4", "u8", "f2", "f4", ">f8", "?", "S3", "U3", "O", "M8[s]"]
NAMES = [["x"], ["x", "y"], ["data", "target", "images"], ["X", "labels"], ["arr_0", "arr_1"], ["arr_0"], ["faces"]]
NAMES += [[f"{kind}_{split}" for kind in "xy" for split in splits] for splits in (["train", "test"], ["train"])]
NAMES += [["x_train", "y_train", "x_val", "y_val", "x_test", "y_test"], ["train", "val", "test"]]
NAMES += [["train_images", "train_labels", "test_images", "test_labels"], ["X_TRAIN", "Y_TRAIN", "X_TEST", "Y_TEST"]]
ODD_NAMES = ["", "x\n", "\x1b[2J", "ñ", "数据", "x y", "../x", "a" * 90, "y", "x_val", "labels", "DESCR"]


def odd_values(chance, dtype: np.dtype, shape) -> np.ndarray:
    """Any values, many of them like pixels or labels."""
    random = np.random.default_rng(chance.getrandbits(32))
    if dtype.kind == "O":
        return np.full(shape, chance.choice([Trap(), None, "a", 3, 0.5]), object)
    if dtype.kind in "SUV" or chance.random() < 0.1:
        return np.frombuffer(random.bytes(math.prod(shape) * dtype.itemsize), np.uint8).view(dtype).reshape(shape)
    low, high = chance.choice(
        [(0, 1), (0, 1), (0, 1), (0, 255), (0, 255), (-1, 1), (0, 16), (-5, 5), (0, 65535), (0, 0)]
    )
    values = random.random(shape) * (high - low) + low
    values = values if dtype.kind in "fcMm" and high <= 1 else np.rint(values)
    if chance.random() < 0.1 and values.size:
        values.flat[random.integers(values.size)] = chance.choice([np.nan, np.inf, -1e300, 1e-300, 1 + 1e-6, -1e-7])
    with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
        return values.astype(dtype)


def odd_images(chance, count: int, shape) -> np.ndarray:
    axes = [count, *shape]
    if chance.random() < 0.3:
        axes.insert(chance.choice([1, len(axes)]), chance.choice([1, 1, 3, 3, 2, 4]))
    if chance.random() < 0.05:
        axes[chance.randrange(len(axes))] = chance.choice([0, 1, 2])
    x = odd_values(chance, np.dtype(chance.choice(KINDS if chance.random() < 0.5 else USUAL_KINDS)), axes)
    if x.ndim == 4 and chance.random() < 0.5:
        x = np.repeat(x[..., :1], x.shape[3], 3) if x.shape[3] in (1, 3) else np.repeat(x[:, :1], x.shape[1], 1)
    return chance.choice([np.asfortranarray, np.ascontiguousarray, lambda x: x[::-1]])(x)


def odd_labels(chance, count: int) -> np.ndarray:
    random = np.random.default_rng(chance.getrandbits(32))
    classes = chance.choice([1, 2, 3, 10, 100])
    y = random.integers(0, classes, count) if chance.random() < 0.8 else np.sort(random.integers(0, classes, count))
    words = np.array(
        chance.choice([["a", "b\n", "\x1b"], ["1", "01", "-2"], ["x" * 99, "", "\ud800"], ["7", "8", "9"]])
    )
    return chance.choice(
        [
            lambda: y,
            lambda: y.astype(
                chance.choice(["i1", "u1", ">i4", "u8", "f2", "f4", ">f8", "?", "S3", "U3", "O", "M8[s]"])
            ),
            lambda: y + chance.choice([1, -1, 10**12, -(2**62)]),
            lambda: y * chance.choice([3, 10**9]),
            lambda: y.astype(np.uint64) + np.uint64(chance.choice([0, 2**62, 2**63])),
            lambda: words[y % 3],
            lambda: words[y % 3].astype(object),
            lambda: y[:, None],
            lambda: np.eye(classes, dtype=chance.choice(["f4", "f8", "u1", "?", "i8"]))[y],
            lambda: random.random((count, classes)),
            lambda: np.where(y == 0, np.nan, y),
            lambda: odd_values(chance, np.dtype(chance.choice(KINDS)), chance.choice([(count,), (count, 2), ()])),
            lambda: y[: chance.randrange(count + 1)],
        ]
    )()


def odd_arrays(chance) -> dict[str, np.ndarray]:
    """A set of arrays, with some of its names or sizes wrong."""
    shape = chance.choice([(3, 2), (3, 2), (6,), (1,), (4, 4), (3, 3)])
    arrays, counts, one_type = {}, {}, chance.random() < 0.7
    state = chance.getrandbits(32)
    for name in chance.choice(NAMES):
        split = re.sub("x|y|images|labels|_", "", name.lower())
        count = counts.setdefault(split, chance.choice([12, 20, 20, 33]) if chance.random() < 0.95 else 9)
        is_label = re.search("y|label|target|arr_1", name.lower())
        drawn = random.Random(state) if one_type else chance
        arrays[name] = odd_labels(drawn, count) if is_label else odd_images(drawn, count, shape)
    if chance.random() < 0.2:
        arrays.pop(chance.choice(list(arrays)))
    if chance.random() < 0.3:
        arrays[chance.choice(ODD_NAMES)] = chance.choice([odd_labels(chance, 20), odd_images(chance, 20, shape)])
    return {name: np.asarray(array) for name, array in arrays.items()}


def in_memory(chance, arrays):
    """Arrays in one of the forms that Python has for them."""
    if arrays.keys() == {"x", "y"} and chance.random() < 0.5:
        return arrays["x"], arrays["y"]
    if arrays.keys() == {"x_train", "y_train", "x_test", "y_test"} and chance.random() < 0.5:
        return (arrays["x_train"], arrays["y_train"]), (arrays["x_test"], arrays["y_test"])
    return next(iter(arrays.values())) if len(arrays) == 1 and chance.random() < 0.5 else arrays


def tried_memory(chance, arrays) -> str:
    """The outcome of arrays in memory, which stay as they are; some cannot be written to."""
    before = {name: (array.dtype, array.shape, array.tobytes()) for name, array in arrays.items()}
    for array in arrays.values():
        array.flags.writeable = array.flags.writeable and chance.random() < 0.5
    given_data = in_memory(chance, arrays)
    result = outcome(lambda: quietly(lambda: as_dataset(given_data)), DataError, is_dataset)
    assert before == {name: (array.dtype, array.shape, array.tobytes()) for name, array in arrays.items()}
    return result


def in_files(path: Path, arrays, form: str):
    """Write arrays in a form that has room for any name; objects become pickles."""
    if form == "folder":
        path.mkdir()
        for name, array in arrays.items():
            (path / f"{os.path.basename(name)}.npy").write_bytes(npy(array))
    elif form == "npy":
        path.write_bytes(npy(next(iter(arrays.values()), np.zeros(0))))
    else:
        members = {f"{name}.npy": npy(array) for name, array in arrays.items()}
        path.write_bytes(zipped(members, zipfile.ZIP_STORED if form == "npz" else zipfile.ZIP_DEFLATED))


def try_arrays(count: int, folder: Path) -> Tried:
    """Arrays of any kind under any names, in memory and in files."""
    tried, chance = Tried(), random.Random(count)
    for number in range(count):
        arrays = odd_arrays(chance)
        form = chance.choice(["memory", "memory", "npz", "deflated", "folder", "npy"])
        if form == "memory":
            result = tried_memory(chance, arrays)
        else:
            path = folder / f"{number}"
            in_files(path, arrays, form)
            result = tried_path(path)
            shutil.rmtree(path) if form == "folder" else path.unlink()
        tried.add(f"arrays, {form}", result)
    return tried


def test_odd_arrays(tmp_path):
    tried = try_arrays(400, tmp_path)
    assert {result for _, result in tried.counts} == {"taken", "refused"}
    assert len(tried.counts) == 10


KEYS = st.sampled_from(["x", "y", "x_train", "y_train", "x_test", "y_test", "other", "", "../x"])
SHAPES = st.tuples(st.integers(8, 14)) | st.tuples(st.integers(8, 14), st.integers(0, 3))
SHAPES |= st.tuples(st.integers(8, 14), st.integers(1, 3), st.integers(1, 3)) | hnp.array_shapes(min_dims=0, max_dims=4)
DTYPES = st.sampled_from([np.uint8, np.float32]) | hnp.scalar_dtypes() | hnp.array_dtypes(max_size=2)
ARRAYS = hnp.arrays(DTYPES, SHAPES) | hnp.arrays(np.float64, SHAPES, elements=st.floats(0, 1))


@given(st.dictionaries(KEYS, ARRAYS, max_size=5), st.sampled_from(["npz", "deflated", "folder", "npy"]))
@FEW
def test_arrays_of_any_kind(tmp_path_factory, named, form):
    """Any types and shapes, NaN, infinities and pickles among them, under any names, in all forms of a file."""
    path = tmp_path_factory.mktemp("any") / "mine"
    in_files(path, named, form)
    tried_path(path)
    shutil.rmtree(path.parent)


PLAIN = st.none() | st.booleans() | st.integers(-3, 40) | st.floats() | st.text(max_size=9)
PLAIN |= st.sampled_from([10**12, 10**30, 10**400, -(2**63), 1e308, "nan", "os", "../x", "conv", "\0", "\ud800"])
ROWS = st.lists(st.lists(st.integers(0, 255) | st.floats(0, 1), min_size=3, max_size=3), min_size=9, max_size=12)
GIVEN = st.recursive(
    PLAIN | ARRAYS | ROWS,
    lambda part: (
        st.lists(part, max_size=3)
        | st.tuples(part, part)
        | st.dictionaries(KEYS | st.integers() | st.none(), part, max_size=4)
    ),
    max_leaves=6,
)


@given(GIVEN)
@FEW
def test_any_value_as_data(given_data):
    outcome(lambda: quietly(lambda: as_dataset(given_data)), DataError, is_dataset)


ODD_DESCRIPTIONS = [
    "|u1",
    "<f4",
    ">f8",
    "|O",
    "<U9",
    "f99",
    "",
    "u1,u1",
    "(2,2)f4",
    "V0",
    "S0",
    "<M8[s]",
    None,
    7,
    "|b1",
]
ODD_DESCRIPTIONS += [[("a", "<f4")], [("a", "|O")], ("<f4", (2,)), [("a", "<f4", (2,))], [()], [("", "")], {}, ["|u1"]]
ODD_LENGTHS = st.sampled_from([0, 1, 3, 24, -1, True, 2**31, 2**63, 10**30, 2.0, None, "3"])
HEADERS = st.fixed_dictionaries(
    {
        "descr": st.sampled_from(ODD_DESCRIPTIONS),
        "fortran_order": st.sampled_from([True, False, 0, None]),
        "shape": st.just((24, 3)) | st.lists(ODD_LENGTHS, max_size=5).map(tuple) | st.none() | st.integers(),
    }
).map(repr) | st.text(max_size=40)


@given(HEADERS, st.sampled_from([1, 2, 3, 0]), st.integers(0, 300), st.booleans())
@FEW
def test_headers_that_lie(tmp_path_factory, text, version, length, in_zip):
    header = text.encode("latin1", "replace") + b"\n"
    size = len(header).to_bytes(2 if version == 1 else 4, "little")
    content = b"\x93NUMPY" + bytes([version, 0]) + size + header + bytes(length)
    path = tmp_path_factory.getbasetemp() / "lies"
    path.write_bytes(zipped({"x.npy": content}) if in_zip else content)
    tried_path(path)


@given(
    st.text(max_size=300)
    | st.sampled_from(["", "/", "~", "~nobody/x", "~\0", "\0", "a" * 5000, "/dev/zero", "/proc/self"])
)
@FEW
def test_paths_of_any_text(path):
    with contextlib.chdir("/proc/self/fdinfo"):  # a folder without anything that a short text could name
        outcome(lambda: load_data(path) if path not in ("auto", "mnist") else None, DataError, lambda dataset: None)


# Flags

FLAGS = sorted({field.name for script in MODULES for field in dataclasses.fields(script.Config)})
ODD_VALUES = [
    "",
    " ",
    "0",
    "1",
    "2",
    "-1",
    "3.5",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "1e-400",
    "9" * 30,
    "9" * 5000,
    "0x10",
]
ODD_VALUES += [
    "None",
    "True",
    "none",
    "dynamic",
    "conv",
    "swiss_roll",
    "mixture",
    "a\nb",
    "a\x1b[2Jb",
    "é",
    "٣",
    "\ud800",
]
ODD_VALUES += [
    "'",
    '"',
    "'\"'\"'",
    "--",
    "-",
    "-h",
    "--help",
    "x" * 10_000,
    "a b",
    "$(false)",
    "../..",
    "1,2",
    "[1, 2]",
]
ODD_VALUES += ["{}", "%s%n", "\0", "--latent-dim", "--no-tensorboard", "1_0", "１", "+5", "1e3", "\u2028", "│", "╭──╮"]


def odd_arguments(chance) -> list[str]:
    """A few flags, some misspelt, with values of which some are right."""
    arguments = []
    for _ in range(chance.choice([1, 1, 2, 3, 5])):
        name = flag(chance.choice(FLAGS))
        if chance.random() < 0.2:
            name = damaged(chance, name.encode())[1].decode("utf-8", "surrogateescape")
        value = chance.choice(ODD_VALUES) if chance.random() < 0.7 else str(chance.choice([1, 2, 0.5, "none", "dense"]))
        form = chance.random()
        if form < 0.7:
            arguments += [name, value]
        elif form < 0.85:
            arguments += [f"{name}={value}"]
        else:
            arguments += [chance.choice([name, value])]
    return arguments


def try_flags(count: int) -> Tried:
    tried, chance = Tried(), random.Random(count)

    def checked(script, arguments):
        try:
            config = parse(script.Config, arguments)
        except SystemExit as stop:
            assert not stop.code  # --help
            return None
        check(config)
        return config

    def is_config(config):
        assert config is None or dataclasses.replace(config) == config

    for _ in range(count):
        script, arguments = chance.choice(MODULES), odd_arguments(chance)
        with contextlib.redirect_stdout(io.StringIO()):
            result = outcome(lambda script=script, arguments=arguments: checked(script, arguments), RunError, is_config)
        tried.add(f"flags of {script.__name__}", result)
    return tried


def test_odd_flags():
    tried = try_flags(250)
    assert {result for _, result in tried.counts} == {"taken", "refused"}


# The folder of a run

SMALL = {"hidden_units": (5, 4), "latent_dim": 2}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders with what `load_run` needs of a run of each script."""
    dataset = load_data(save(tmp_path_factory.mktemp("data") / "mine.npz", WHOLE_FILES["npz"]))
    folders = {}
    for script in MODULES:
        config = script.Config(**SMALL, epochs=1, name="small")
        folders[script] = folder = tmp_path_factory.mktemp("runs") / "results" / script.__name__ / "small"
        folder.mkdir(parents=True)
        write_json(folder / "config.json", description(config, script.__name__, dataset) | {"updates": 1})
        save_networks(script.build(config, dataset.image_shape), folder)
        load_run(folder)
    return folders


def save(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def is_model(model):
    """Whether it takes images and gives codes; a damaged file may have given it other sizes."""
    codes = model.encode(np.zeros((2, *model.encoder.inputs[0].shape[1:]), "float32"))
    assert codes.shape == (2, model.prior.latent_dim)


@contextlib.contextmanager
def instead(path: Path, content: bytes):
    """Other content in a file for a while."""
    earlier = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(earlier)


def odd_weights(chance, content: bytes) -> tuple[str, bytes]:
    """A network's file with damage to its weights, which the checksums of the zip do not tell."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as whole, zipfile.ZipFile(file, "w") as archive:
        for name in whole.namelist():
            member = whole.read(name)
            if name.endswith(".h5"):
                damage, member = damaged(chance, member)
            archive.writestr(name, member)
    return damage, file.getvalue()


def try_folders(count: int, runs) -> Tried:
    """Damage to config.json, to a network's file, and to the weights within one."""
    tried, chance = Tried(), random.Random(count)
    for number in range(count):
        folder = runs[chance.choice(MODULES)]
        kind = ("config.json", "a .keras", "a .keras, inside")[number % 3]
        path = folder / "config.json" if number % 3 == 0 else chance.choice(sorted(folder.glob("*.keras")))
        damage, content = (odd_weights if kind.endswith("inside") else damaged)(chance, path.read_bytes())
        with instead(path, content):
            result = outcome(lambda folder=folder: load_run(folder), RunError, is_model)
        if number % 50 == 49:
            keras.utils.clear_session()  # some time each, and memory that runs full without
        tried.add(f"{kind}, {damage}", result)
    return tried


def test_damaged_folders(runs):
    tried = try_folders(21, runs)
    assert {result for _, result in tried.counts} == {"taken", "refused"}


def places(value, path=()):
    """The way to every part of a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


JSON = st.recursive(
    PLAIN, lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=5), part), max_leaves=5
)


@given(st.data())
@FEW
def test_odd_values_in_config_json(runs, data):
    path = runs[vae_baseline] / "config.json"
    content = json.loads(path.read_text())
    *way, last = data.draw(st.sampled_from(places(content)[1:]))
    inner = content
    for key in way:
        inner = inner[key]
    inner[last] = data.draw(JSON)
    with instead(path, json.dumps(content).encode()):
        outcome(lambda: load_run(path.parent), RunError, is_model)
        outcome(lambda: load_config(path.parent, vae_baseline.Config), RunError, lambda config: None)


ODD_TEXTS = {
    "empty": "",
    "not a dict": "[3]",
    "nothing": "null",
    "deep lists": "[" * 100_000,
    "deep dicts": '{"script":' * 100_000,
    "a long number": f'{{"script": {"9" * 5000}}}',
    "a mark of byte order": "\ufeff{}",
}


@pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS)
def test_odd_texts_in_config_json(runs, text):
    path = runs[vae_baseline] / "config.json"
    with instead(path, text.encode()):
        assert outcome(lambda: load_run(path.parent), RunError, is_model) == "refused"


@pytest.mark.parametrize(
    "script",
    ["trap", "os", "../trap", "trap.py", "common.run", "tests", "", "trap\0", "ｖae_baseline", None, 3, ["trap"], {}],
)
def test_only_scripts_of_this_project_are_imported(runs, tmp_path, monkeypatch, script):
    (tmp_path / "trap.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'sprung')!r}).touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = runs[vae_baseline] / "config.json"
    content = json.dumps(json.loads(path.read_text()) | {"script": script})
    with instead(path, content.encode()), pytest.raises(RunError, match="names no script of this project"):
        load_run(path.parent)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("in_a_model_of_its_own", [True, False])
def test_a_network_with_code_of_its_own_is_refused_and_not_run(runs, tmp_path, in_a_model_of_its_own):
    path, sprung = runs[vae_baseline] / "encoder.keras", tmp_path / "sprung"
    encoder = keras.models.load_model(path)

    def trap(x):
        sprung.touch()
        return x

    x = images = keras.Input((3, 2), name="images")
    for layer in [encoder] if in_a_model_of_its_own else encoder.layers[1:]:
        x = layer(x)
    network = keras.Model(images, keras.layers.Lambda(trap)(x), name="encoder")
    network.save(tmp_path / "trap.keras")
    network(np.zeros((1, 3, 2)))
    assert sprung.exists()
    sprung.unlink()
    with instead(path, (tmp_path / "trap.keras").read_bytes()):
        assert outcome(lambda: load_run(path.parent), RunError, is_model) == "refused"
    assert not sprung.exists()


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_twenty_thousand_inputs(runs, tmp_path, capsys):
    tried = [try_files(9000, tmp_path / "mine.npz"), try_arrays(7500, tmp_path)]
    tried += [try_flags(2500), try_folders(1200, runs)]
    with capsys.disabled():
        print("", *tried, sep="\n\n")
    assert sum(each.counts.total() for each in tried) >= 20_200
