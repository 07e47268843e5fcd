"""Thousands of odd inputs from memory and from the command line: taken for what they are or refused in one line, soon.

Two doors: arrays of any kind, in memory or in files, and the flags of the five scripts. The seeded fuzzers try a few
hundred inputs at each, and under `pytest -m long` some thousands, of which they print how many were taken. Nothing in
an input is executed, and no input is changed. test_bad_files.py has damaged files, test_bad_runs.py folders of runs.
"""

import contextlib
import dataclasses
import io
import math
import os
import random
import re
import shutil
import warnings
import zipfile
from pathlib import Path

from common.arrays import DataError
from common.command import parse
from common.config import check, flag
from common.data import as_dataset, load_data
from common.files import RunError
from common.likelihoods import LIKELIHOODS
from common.scripts import SCRIPTS, load_script

import numpy as np
import pytest
import scipy.sparse
from fuzzing import FEW, Trap, Tried, damaged, is_dataset, npy, outcome, quietly, tried_path, zipped
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

MODULES = [load_script(name) for name in SCRIPTS]


@pytest.fixture(autouse=True)
def nothing_is_executed():
    yield
    assert not Trap.sprung.exists()


# Arrays of any kind, in memory and in files

KINDS = ["?", "i1", "u1", "u1", "u1", "<i2", ">i4", "i8", "u8", "e", "f4", "f4", ">f8", "f8", "g"]
KINDS += ["F", "D", "S1", "S5", "U1", ">U4", "M8[s]", "m8[ns]", "V3", "O"]
RANGES = [(0, 1), (0, 1), (0, 1), (0, 255), (0, 255), (-1, 1), (0, 16), (-5, 5), (0, 65535), (0, 0), (-1e3, 2e3)]
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
    low, high = chance.choice(RANGES)
    values = random.random(shape) * (high - low) + low
    values = values if dtype.kind in "fcMm" and (high <= 1 or low < -5) else np.rint(values)
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
    words = np.array(chance.choice(SOME_WORDS))
    return chance.choice(
        [
            lambda: y,
            lambda: y.astype(chance.choice(LABEL_KINDS)),
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


def odd_likelihood(chance) -> str:
    return "auto" if chance.random() < 0.6 else chance.choice(list(LIKELIHOODS))


def tried_memory(chance, arrays) -> str:
    """The outcome of arrays in memory, which stay as they are; some cannot be written to."""
    before = {name: (array.dtype, array.shape, array.tobytes()) for name, array in arrays.items()}
    for array in arrays.values():
        array.flags.writeable = array.flags.writeable and chance.random() < 0.5
    given_data, likelihood = in_memory(chance, arrays), odd_likelihood(chance)
    result = outcome(lambda: quietly(lambda: as_dataset(given_data, likelihood)), DataError, is_dataset)
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
            result = tried_path(path, likelihood=odd_likelihood(chance))
            shutil.rmtree(path) if form == "folder" else path.unlink()
        tried.add(f"arrays, {form}", result)
    return tried


def test_odd_arrays(tmp_path):
    tried = try_arrays(400, tmp_path)
    assert tried.results == {"taken", "refused"}
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


@given(GIVEN, st.sampled_from(["auto", *LIKELIHOODS]))
@FEW
def test_any_value_as_data(given_data, likelihood):
    outcome(lambda: quietly(lambda: as_dataset(given_data, likelihood)), DataError, is_dataset)


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "bsr", "dia", "lil", "dok"])
@pytest.mark.parametrize("kind", ["array", "matrix"])
def test_sparse_matrices_in_memory(form, kind):
    counts = np.random.default_rng(0).poisson(1.5, (24, 6))
    for x in (counts, counts - 1.0, np.where(counts, np.inf, 0), counts + 1j, counts[:3], counts > 1):
        matrix = getattr(scipy.sparse, f"{form}_{kind}")(x)
        outcome(lambda matrix=matrix: quietly(lambda: as_dataset(matrix)), DataError, is_dataset)


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
    assert tried.results == {"taken", "refused"}


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_ten_thousand_arrays_and_flags(tmp_path, capsys):
    tried = [try_arrays(7500, tmp_path), try_flags(2500)]
    with capsys.disabled():
        print("", *tried, sep="\n\n")
    assert sum(each.counts.total() for each in tried) == 10_000
