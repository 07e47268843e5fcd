"""common/preprocessing.py: names of arrays, each conversion against the plain array, and lines of Python that mend."""

import ast
import contextlib
import io
import itertools
import re

from common.arrays import DataError, MappedImages
from common.data import Dataset, as_dataset, load_data
from common.preprocessing import IMAGES, LABELS, SPLITS, role_of, roles

import keras
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.datasets import load_digits

QUICK = settings(max_examples=60, deadline=None, database=None)
FORMS = ["npz", "folder", "memory"]
FIELDS = ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test")
NEW = []  # numbers of the files that were written


def images(count=60, shape=(4, 5), top=256):
    x = np.random.default_rng(0).integers(0, top, (count, *shape), np.uint8)
    x[:, 0, 0] = top - 1  # the brightest in each image
    return x


def labels(count=60):
    return np.arange(count) % 3


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Load arrays in one of the FORMS: the Dataset and what was printed."""
    folder = tmp_path_factory.mktemp("sets")

    def write_and_load(form, arrays, **options):
        path = folder / str(len(NEW)) / "mine"
        path.parent.mkdir()
        NEW.append(path)
        if form == "folder":
            path.mkdir()
            for name, array in arrays.items():
                np.save(path / f"{name}.npy", array)
        elif form == "npz":
            np.savez(path, **arrays)
            path = path.with_suffix(".npz")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            dataset = as_dataset(arrays, **options) if form == "memory" else load_data(str(path), **options)
        return dataset, printed.getvalue()

    return write_and_load


def same(loaded: Dataset, expected: Dataset):
    """Whether two sets have the same pixels, to the last bit, and classes."""
    assert loaded.sizes == expected.sizes and loaded.image_shape == expected.image_shape
    for field in FIELDS:
        one, other = getattr(loaded, field), getattr(expected, field)
        assert (one is None) == (other is None)
        if one is not None:
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one[:], other[:])


# Names


def spelt(word, split, before, between, capitals):
    words = [split, word] if before else [word, split]
    return capitals(between.join(part for part in words if part))


SPELLINGS = {
    "split": st.sampled_from([*SPLITS, ""]),
    "before": st.booleans(),
    "between": st.sampled_from(["", "_", "-", " ", ".", "__"]),
    "capitals": st.sampled_from([str.lower, str.upper, str.title, str.capitalize]),
}


@given(st.sampled_from([*IMAGES, *LABELS]), st.fixed_dictionaries(SPELLINGS))
@settings(QUICK, max_examples=300)
def test_usual_spellings_of_names(word, spelling):
    assume(word or spelling["split"])
    role, rank = role_of(spelt(word, **spelling))
    assert role == ("y" if word in LABELS else "x") + SPLITS.get(spelling["split"], "")
    assert (LABELS if word in LABELS else IMAGES)[rank] == word


@pytest.mark.parametrize(
    "name",
    [
        "",
        "target_names",
        "feature_names",
        "latest",
        "values",
        "trainer",
        "xy",
        "arr_2",
        "DESCR",
        "frame",
        "данные",
        "7",
    ],
)
def test_other_names_have_no_role(name):
    assert role_of(name) == (None, 0)


ROLES = {
    "scikit-learn's digits": (
        ["data", "target", "frame", "feature_names", "target_names", "images", "DESCR"],
        {"x": "images", "y": "target"},
    ),
    "numpy.savez(file, x)": (["arr_0"], {"x": "arr_0"}),
    "numpy.savez(file, x, y)": (["arr_1", "arr_0"], {"x": "arr_0", "y": "arr_1"}),
    "numpy.savez of four": (["arr_0", "arr_1", "arr_2", "arr_3"], {}),
    "one with any name": (["faces"], {"x": "faces"}),
    "labels alone": (["labels"], {"y": "labels"}),
    "two with any names": (["faces", "ages"], {}),
    "Keras' words": (
        ["train_images", "train_labels", "test_images", "test_labels"],
        {"x_train": "train_images", "y_train": "train_labels", "x_test": "test_images", "y_test": "test_labels"},
    ),
    "splits alone": (["train", "valid", "test"], {"x_train": "train", "x_val": "valid", "x_test": "test"}),
    "x before X": (["X", "x", "images"], {"x": "x"}),
    "x_train before X_TRAIN": (["X_TRAIN", "train", "x_train", "x_test"], {"x_train": "x_train", "x_test": "x_test"}),
    "nothing": ([], {}),
}


@pytest.mark.parametrize(("names", "expected"), ROLES.values(), ids=ROLES)
def test_roles(names, expected):
    for order in itertools.islice(itertools.permutations(names), 24):
        assert roles(order) == expected


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("given_names", "note"),
    [
        (["X_train", "Y_TRAIN", "X_test", "Y_test"], ""),
        (["trainX", "trainY", "testX", "testY"], "trainX is taken as x_train, "),
        (["Xtr", "Ytr", "Xte", "Yte"], "Xtr is taken as x_train, "),
        (["train_images", "train_labels", "test_images", "test_labels"], "train_images is taken as x_train, "),
        (["Images Training", "Class Training", "Images Testing", "Class Testing"], "Images Training is taken as x_tr"),
    ],
)
def test_names_change_no_number(load, form, given_names, note):
    names = ["x_train", "y_train", "x_test", "y_test"]
    plain = dict(zip(names, (images(), labels(), images(20), labels(20)), strict=True))
    expected, nothing = load(form, plain)
    loaded, printed = load(form, dict(zip(given_names, plain.values(), strict=True)))
    same(loaded, expected)
    assert loaded.checksum == expected.checksum
    assert nothing == "" and (f"{loaded.name}: {note}" in printed if note else printed == "")
    assert printed.count("\n") == bool(note)


@pytest.mark.parametrize("form", FORMS)
def test_arrays_that_are_not_used_are_named(load, form):
    loaded, printed = load(form, {"x": images(), "labels": labels(), "ages": np.zeros(7), "data": np.zeros(3)})
    assert printed == f"{loaded.name}: labels is taken as y; ages, data not used\n"
    same(loaded, load(form, {"x": images(), "y": labels()})[0])


# Conversions of images

PLAIN = images()
GREY = {  # what gives the same as PLAIN, with the note
    "int64": (PLAIN.astype(np.int64), "x is int64 from 0 to 255: taken as 8-bit pixels"),
    "int16, other byte order": (PLAIN.astype(">i2"), "x is >i2 from 0 to 255: taken as 8-bit pixels"),
    "uint64": (PLAIN.astype(np.uint64), "x is uint64 from 0 to 255: taken as 8-bit pixels"),
    "one channel, last": (PLAIN[..., None], "x has one channel: (60, 4, 5, 1) is taken as (60, 4, 5)"),
    "one channel, first": (PLAIN[:, None], "x has one channel: (60, 1, 4, 5) is taken as (60, 4, 5)"),
    "three equal channels, last": (np.stack([PLAIN] * 3, -1), "x has three equal channels: one is taken"),
    "three equal channels, first": (np.stack([PLAIN] * 3, 1), "x has three equal channels: one is taken"),
    "Fortran's order": (np.asfortranarray(PLAIN), ""),
    "float32": ((PLAIN / 255).astype(np.float32), ""),
    "float64": (PLAIN / 255, ""),
    "longdouble": (PLAIN / np.longdouble(255), ""),
    "float64, other byte order": ((PLAIN / 255).astype(">f8"), ""),
    "float32, one channel": (
        (PLAIN / np.float32(255))[..., None],
        "x has one channel: (60, 4, 5, 1) is taken as (60, 4, 5)",
    ),
    "int32, one channel": (
        PLAIN[:, None].astype(np.int32),
        "x has one channel: (60, 1, 4, 5) is taken as (60, 4, 5); x is int32 from 0 to 255: taken as 8-bit pixels",
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("array", "note"), GREY.values(), ids=GREY)
def test_images_that_are_converted_give_the_same_pixels(load, form, array, note):
    expected, nothing = load(form, {"x": PLAIN, "y": labels()})
    original = array.copy()
    array.flags.writeable = False
    loaded, printed = load(form, {"x": array, "y": labels()})
    same(loaded, expected)
    assert loaded.checksum == expected.checksum
    assert nothing == "" and printed == (f"{loaded.name}: {note}\n" if note else "")
    assert loaded.white == expected.white == 255
    assert isinstance(loaded.x_train, MappedImages) == (form == "folder")
    np.testing.assert_array_equal(array, original)


TWO_LEVELS = images(top=2)
BINARY = {
    "uint8": (TWO_LEVELS, "x has only 0 and 1: 1 is white", 1),
    "int64": (TWO_LEVELS.astype(np.int64), "x has only 0 and 1: 1 is white", 1),
    "bool": (TWO_LEVELS == 1, "x is bool: True is white", 1),
    "float": (TWO_LEVELS.astype(np.float32), "", 255),
    "bool, three channels": (
        np.stack([TWO_LEVELS == 1] * 3, -1),
        "x has three equal channels: one is taken; x is bool: True is white",
        1,
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("array", "note", "white"), BINARY.values(), ids=BINARY)
def test_two_levels_are_black_and_white(load, form, array, note, white):
    expected, _ = load(form, {"x": TWO_LEVELS * np.uint8(255)})
    loaded, printed = load(form, {"x": array})
    same(loaded, expected)
    assert loaded.checksum == expected.checksum
    assert (loaded.white, printed) == (white, f"{loaded.name}: {note}\n" if note else "")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rounding_is_clipped(load, form, dtype):
    x = images().astype(dtype) / dtype(255)
    x[::2] = np.nextafter(x[::2], dtype(2), dtype=dtype)
    x[1::2, 1, 1] = -np.finfo(dtype).eps
    original = x.copy()
    loaded, printed = load(form, {"x": x})
    np.testing.assert_array_equal(x, original)
    same(loaded, load(form, {"x": np.clip(x, 0, 1)})[0])
    assert re.fullmatch(r"[\w ]+: x goes from -[\de.-]+ to 1(\.\d+)?: rounding, clipped to \[0, 1\]\n", printed)
    assert loaded.x_train[:].min() == 0 and loaded.x_train[:].max() == 1


@pytest.mark.parametrize("high", [1 + 1e-6, 1 + 9e-6, -9e-6])
def test_what_is_rounding_of_float64(load, high):
    x = np.full((10, 4), 0.5)
    x[3, 1] = high
    assert "rounding, clipped" in load("npz", {"x": x})[1]
    x[3, 1] = high + np.sign(high - 0.5) * 1e-5
    with pytest.raises(DataError, match="rescale"):
        load("npz", {"x": x}, likelihood="bernoulli")
    assert load("npz", {"x": x})[0].likelihood == "gaussian"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("train", "test", "white", "note"),
    [
        ("float", "uint8", 255, ""),
        ("uint8", "float", 255, ""),
        ("uint8", "bool", 255, "x_test is bool: True is white"),
        ("bool", "uint8", 255, "x_train is bool: True is white"),
        ("bool", "two levels", 1, "x_test has only 0 and 1: 1 is white; x_train is bool: True is white"),
        ("two levels", "uint8", 255, "x_train: the brightest pixel is 1 of 255"),
        ("int64", "uint8", 255, "x_train is int64 from 0 to 255: taken as 8-bit pixels"),
    ],
)
def test_splits_of_different_types_have_one_scale(load, form, train, test, white, note):
    kinds = {
        "float": PLAIN / 255,
        "uint8": PLAIN,
        "bool": TWO_LEVELS == 1,
        "two levels": TWO_LEVELS,
        "int64": PLAIN.astype(np.int64),
    }
    loaded, printed = load(form, {"x_train": kinds[train], "x_test": kinds[test]})
    whites = [1 if kind == "bool" or (kind == "two levels" and white == 1) else 255 for kind in (train, test)]
    whites = [1 if kind == "float" else number for kind, number in zip((train, test), whites, strict=True)]
    assert loaded.white == white
    assert printed == (f"{loaded.name}: {note}\n" if note else "")
    np.testing.assert_array_equal(loaded.x_test, (kinds[test] / np.float32(whites[1])).astype(np.float32))
    both = np.concatenate([loaded.x_train[:], loaded.x_val])
    assert np.sort(both, None).tolist() == np.sort((kinds[train] / np.float32(whites[0])).astype("f4"), None).tolist()


@pytest.mark.parametrize(
    ("arrays", "note"),
    [
        ({"x": images(top=17)}, "x: the brightest pixel is 16 of 255; if 16 is white, save x / 16"),
        ({"x": images(top=64)}, "x: the brightest pixel is 63 of 255; if 63 is white, save x / 63"),
        ({"x": images(top=65)}, ""),
        (
            {"x": images() / 255**2},
            "x: the brightest pixel is 0.003922 of 1; if 0.00392156863 is white, save x / 0.00392156863",
        ),
        (
            {"x_train": images(top=17), "x_test": images(20, top=16)},
            "x_train: the brightest pixel is 16 of 255; if 16 is white, save x_train / 16; "
            "x_test: the brightest pixel is 15 of 255; if 16 is white, save x_test / 16",
        ),
        ({"x_train": images(), "x_test": images(20, top=17)}, "x_test: the brightest pixel is 16 of 255"),
        ({"x_train": images() / 255, "x_test": images(20) / 255**2}, "x_test: the brightest pixel is 0.003922 of 1"),
        ({"x": np.zeros((20, 4), np.uint8)}, ""),
        ({"x": np.zeros((20, 4))}, ""),
    ],
)
def test_dark_images_are_said(load, arrays, note):
    loaded, printed = load("npz", arrays)
    assert printed == (f"{loaded.name}: {note}\n" if note else "")
    for name in arrays:
        for line in remedies(note, [name]):
            mended, printed = load("npz", arrays | {each: changed(line, name, arrays, each) for each in arrays})
            assert (mended.x_train[:].max(), printed) == (1, "")


# Conversions of labels

WORDS = np.array(["cat", "a dog", "ñandú"])
CLASSES = "3 classes: a dog, cat, ñandú"
Y = labels()
INTEGERS = {
    "from 1": (Y + 1, ["1", "2", "3"], "3 classes: 1, 2, 3"),
    "from -1": (Y - 1, ["-1", "0", "1"], "3 classes: -1, 0, 1"),
    "far apart": (np.array([-(2**63), 7, 10**12])[Y], None, f"3 classes: {-(2**63)}, 7, {10**12}"),
    "uint8": (Y.astype(np.uint8), ["0", "1", "2"], ""),
    "uint64": (Y.astype(np.uint64) + np.uint64(5), ["5", "6", "7"], "3 classes: 5, 6, 7"),
    "other byte order": (Y.astype(">i4"), ["0", "1", "2"], ""),
    "column": (Y[:, None], ["0", "1", "2"], "y has one column: (60, 1) is taken as (60,)"),
    "float32": (Y.astype(np.float32), ["0", "1", "2"], "y is float32 of whole numbers: taken as integers"),
    "column of floats from -1": (
        Y[:, None] - 1.0,
        ["-1", "0", "1"],
        "y has one column: (60, 1) is taken as (60,); y is float64 of whole numbers: taken as integers; "
        "3 classes: -1, 0, 1",
    ),
    "digits as words": (
        Y.astype(str),
        ["0", "1", "2"],
        "labels are numbers written as words: taken as integers",
    ),
    "digits as words, padded": (
        np.array(["08", "09", "10"])[Y],
        ["8", "9", "10"],
        "labels are numbers written as words: taken as integers; 3 classes: 8, 9, 10",
    ),
    "one-hot, float": (np.eye(3)[Y], ["0", "1", "2"], "y is one-hot: 3 classes"),
    "one-hot, bool": (np.eye(3, dtype=bool)[Y], ["0", "1", "2"], "y is one-hot: 3 classes"),
    "one-hot, uint8": (np.eye(3, dtype=np.uint8)[Y], ["0", "1", "2"], "y is one-hot: 3 classes"),
    "one-hot, one class nowhere": (
        np.eye(4)[np.array([0, 2, 3])[Y]],
        ["0", "2", "3"],
        "y is one-hot: 4 classes; 3 classes: 0, 2, 3",
    ),
}
NAMES = {
    "words": (WORDS[Y], CLASSES),
    "bytes": (np.char.encode(WORDS, "utf-8")[Y], CLASSES),
    "column of words": (WORDS[Y, None], f"y has one column: (60, 1) is taken as (60,); {CLASSES}"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("one_piece", [True, False])
@pytest.mark.parametrize(("array", "names", "note"), INTEGERS.values(), ids=INTEGERS)
def test_labels_that_are_integers(load, form, one_piece, array, names, note):
    def loaded_with(y):
        return load(form, {"x": PLAIN, "y": y} if one_piece else dict(zip(FOUR, (PLAIN, y) * 2, strict=True)))

    original = array.copy()
    array.flags.writeable = False
    expected, _ = loaded_with(Y)
    loaded, printed = loaded_with(array)
    same(loaded, expected)
    assert loaded.classes == expected.classes == 3
    assert names is None or loaded.class_names == names
    assert {value.dtype for value in (loaded.y_train, loaded.y_val, loaded.y_test)} == {np.dtype(np.int64)}
    assert loaded.class_values.dtype == np.int64
    np.testing.assert_array_equal(loaded.class_values, np.unique(loaded.class_values))
    if one_piece:
        assert printed == (f"{loaded.name}: {note}\n" if note else "")
    else:
        assert note.replace("y ", "y_test ").split("; ")[-1] in printed and printed.count("\n") == bool(note)
    assert (loaded.checksum == expected.checksum) == (loaded.class_names == expected.class_names)
    np.testing.assert_array_equal(array, original)


FOUR = ("x_train", "y_train", "x_test", "y_test")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("array", "note"), NAMES.values(), ids=NAMES)
def test_labels_that_are_words(load, form, array, note):
    loaded, printed = load(form, {"x": PLAIN, "y": array})
    same(loaded, load(form, {"x": PLAIN, "y": np.array([1, 0, 2])[Y]})[0])
    assert loaded.class_names == ["a dog", "cat", "ñandú"]
    assert printed == f"{loaded.name}: {note}\n"
    assert loaded.checksum == load("memory", {"x": PLAIN, "y": WORDS[Y]})[0].checksum
    others = [{"x": PLAIN, "y": np.array(["cat", "a dog", "emu"])[Y]}, {"x": PLAIN, "y": np.array([1, 0, 2])[Y]}]
    assert len({loaded.checksum, *(load(form, other)[0].checksum for other in others)}) == 3


@pytest.mark.parametrize("form", FORMS)
def test_words_whose_ends_cannot_be_seen_are_said(load, form):
    words = np.array(["", " ", "a", "a "])[np.arange(60) % 4]
    loaded, printed = load("memory" if form == "memory" else "npz", {"x": PLAIN, "y": words})
    assert printed == f'{loaded.name}: 4 classes: (empty), " ", a, "a "\n'
    assert loaded.class_names == ["", " ", "a", "a "]


@pytest.mark.parametrize("form", FORMS)
def test_labels_that_are_truth_values(load, form):
    loaded, printed = load(form, {"x": PLAIN, "y": Y == 1})
    expected, _ = load(form, {"x": PLAIN, "y": (Y == 1).astype(int)})
    same(loaded, expected)
    assert (loaded.checksum, loaded.classes) == (expected.checksum, 2)
    assert printed == f"{loaded.name}: y is bool: False is 0, True is 1\n"


def test_words_that_are_one_number_stay_words(load):
    loaded, printed = load("npz", {"x": PLAIN, "y": np.array(["1", "01", "2"])[Y]})
    assert loaded.class_names == ["01", "1", "2"]
    assert printed == "mine: 3 classes: 01, 1, 2\n"


@pytest.mark.parametrize("form", FORMS)
def test_what_is_printed_is_one_line_whatever_the_words(load, form):
    words = np.array(["two\nlines", "\x1b[2J", "x" * 100, "\ud800"])[np.arange(60) % 4]
    loaded, printed = load(form, {"x": PLAIN, "labels\x1b\n": words})
    assert printed == (f"{loaded.name}: labels? is taken as y; 4 classes: ?[2J, two lines, {'x' * 19}…, ?\n")
    assert loaded.class_names == ["\x1b[2J", "two\nlines", "x" * 100, "\ud800"]
    assert len(loaded.checksum) == 64


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("y_test", "note"),
    [
        (np.full(20, 9), "no training image of class 9"),
        (np.arange(20), "no training image of class 3, 4, 5, 6, 7, ..."),
    ],
)
def test_a_class_without_training_images_is_said(load, form, y_test, note):
    arrays = {"x_train": PLAIN, "y_train": Y, "x_test": images(20), "y_test": y_test}
    loaded, printed = load(form, arrays)
    assert printed.rstrip("\n").split("; ")[-1].removeprefix(f"{loaded.name}: ") == note
    np.testing.assert_array_equal(loaded.class_values[loaded.y_test], y_test)


# What older runs have in config.json

OLD = {  # checksums of the program before conversions (commit bd64f70)
    "from 1": "84f769d3f71d5a47337b48bf4186200fea7abe0a66cd1c81f3eca7a81371e230",
    "from 1, four": "bb81b9bb504460343fcad44b0e0d30a651eb84ece9b7751ae7e4ce70ad92cca3",
    "gaps": "5aae5306ad16674426c58ae28030bc383df45700db8ea62ee7b5bea9a53baf3a",
    "no labels": "99bde85d116cb3784fa2205b8e8ae18ef79b59e7c9b29e88bc343ff0f68cba02",
    "floats": "84f769d3f71d5a47337b48bf4186200fea7abe0a66cd1c81f3eca7a81371e230",
}


def old_arrays(kind):
    x = np.arange(3000, dtype=np.uint32).reshape(100, 5, 6) * 7 % 256
    x = x.astype(np.uint8)
    y = np.arange(100) % 10 + 1
    return {
        "from 1": {"x": x, "y": y},
        "from 1, four": {"x_train": x, "y_train": y, "x_test": x[:20], "y_test": y[:20]},
        "gaps": {"x": x, "y": y * y},
        "no labels": {"x": x},
        "floats": {"x": x / 255, "y": y.astype(np.uint8)},
    }[kind]


@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize("kind", OLD)
def test_checksums_of_older_runs_stay(load, form, kind):
    loaded, _ = load(form, old_arrays(kind), shuffled=False)
    assert loaded.checksum == OLD[kind]


# Lines of Python in refusals


def remedies(message: str, names) -> list[str]:
    """The expressions in a message that make another array of one: each the longest that is Python."""
    found = []
    for start in (place.start() for place in re.finditer(r"(?<![\w.(\[])(\(|np\.|\b)(?=\w)", message)):
        for end in range(len(message), start, -1):
            with contextlib.suppress(SyntaxError, ValueError):
                if is_remedy(ast.parse(message[start:end], mode="eval").body, names):
                    found.append(message[start:end])
                    break
    return found


def is_remedy(tree: ast.expr, names) -> bool:
    """Whether it is about one of the names, and more than a name with a shape behind it."""
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    about_one = len(used & set(names)) == 1 and used <= {*names, "np", "float", "str"}
    called_by_name = isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name)
    return about_one and isinstance(tree, ast.BinOp | ast.Call | ast.Subscript) and not called_by_name


def changed(line, name, arrays, target):
    """`line`, which is about the array `name`, for another of the arrays."""
    return eval(line, {"np": np, name: arrays[target]})


def mended(arrays, load, form, choose=0, likelihood="bernoulli"):
    """The set, the arrays after the lines in all refusals, and these refusals. Fails if a line does not help."""
    messages = []
    while True:
        try:
            return load(form, arrays, likelihood=likelihood)[0], arrays, messages
        except DataError as error:
            messages.append(str(error))
        lines = remedies(messages[-1], arrays)
        assert lines and len(messages) < 5, messages
        line = lines[choose % len(lines)]
        name = next(name for name in sorted(arrays, key=len, reverse=True) if re.search(rf"\b{name}\b", line))
        others = re.search(r", and ([\w, ]+) likewise", messages[-1])
        targets = {name, *(others[1].split(", ") if others else [])}
        arrays = arrays | {target: changed(line, name, arrays, target) for target in targets}


def colour(dtype):
    return np.random.default_rng(0).integers(0, 256, (30, 4, 4, 3)).astype(dtype)


MENDED = {
    "digits of 16": {"x": images(top=17) * 1.0},
    "8 bits as floats": {"x": images() * 1.0},
    "16 bits": {"x": images().astype(np.uint16) * 257},
    "16 bits as floats": {"x": images() * np.float32(257)},
    "float16 beyond its range": {"x": (images() * 460.0 - 58_000).astype(np.float16)},
    "-1 to 1": {"x": images() / 127.5 - 1},
    "standardised": {"x": (images() - 130) / np.float32(70)},
    "int8": {"x": images().view(np.int8)},
    "int16 of both signs": {"x": images().astype(np.int16) * 257 - 30_000},
    "counts": {"x": np.random.default_rng(0).poisson(2.0, (60, 9))},
    "constant below 0": {"x": np.full((20, 4), -3.0)},
    "near a large number below 0": {"x": images() / 7 - 12345678901.25},
    "colour": {"x": colour(np.uint8)},
    "colour, first": {"x": colour(np.uint8).transpose(0, 3, 1, 2)},
    "colour, int64": {"x": colour(np.int64)},
    "colour, int16 to 1000": {"x": colour(np.int16) * 4},
    "colour, float": {"x": colour(np.float32) / 255},
    "colour, bool": {"x": colour(np.uint8) > 127},
    "four channels, first": {"x": np.random.default_rng(0).integers(0, 256, (30, 4, 5, 6), np.uint8)},
    "four channels, float": {"x": np.random.default_rng(0).random((30, 5, 6, 4))},
    "four channels": {"x": np.random.default_rng(0).integers(0, 256, (30, 5, 6, 4), np.uint8)},
    "two channels, first": {"x": np.random.default_rng(0).integers(0, 256, (30, 2, 5, 6), np.uint8)},
    "complex": {"x": (images() / 255).astype(complex)},
    "numbers as text": {"x": (images() / 255).astype(str)},
    "flat test images": {"x_train": images(), "x_test": images().reshape(60, -1)},
    "flat training images": {"x_train": images().reshape(60, -1), "x_test": images()},
    "splits of counts": {"x_train": images(top=51).astype(int), "x_test": images(20, top=41).astype(int)},
    "splits of digits of 16": {"x_train": images(top=17) * 1.0, "x_test": images(20, top=16) * 1.0},
    "splits of 8 bits as floats": {"x_train": images() * 1.0, "x_test": images(20, top=150) * 1.0},
    "splits of more than 8 bits as floats": {"x_train": images() * 1.0, "x_test": images(20) * 2.0},
    "splits, standardised": {"x_train": (images() - 130) / 70, "x_val": (images() - 99) / 70, "x_test": images() - 9.0},
    "splits of -1 to 1": {"x_train": images() / 127.5 - 1, "x_test": images(20) / 150 - 1},
    "NaN": {"x": np.where(images() == 255, np.nan, images() / 255)},
    "infinite, of another scale": {"x": np.where(images() == 255, -np.inf, images() / 2.0)},
    "real labels": {"x": images(), "y": np.arange(60) / 7},
    "labels beyond int64": {"x": images(), "y": Y.astype(np.uint64) + np.uint64(2**63)},
    "rows of probabilities": {"x": images(), "y": np.random.default_rng(0).random((60, 4))},
    "rows of words": {"x": images(), "y": np.stack([WORDS[Y], WORDS[Y]], 1)},
    "a row of labels": {"x": images(), "y": Y[None]},
    "three axes of labels": {"x": images(), "y": Y[:, None, None]},
    "complex labels": {"x": images(), "y": Y.astype(complex)},
    "dates as labels": {"x": images(), "y": np.datetime64("2020-01-01") + Y},
    "words and integers": {"x_train": images(), "y_train": WORDS[Y], "x_test": images(), "y_test": Y},
    "integers and words": {"x_train": images(), "y_train": Y, "x_test": images(), "y_test": WORDS[Y]},
    "integers and digits as words": {"x_train": images(), "y_train": Y, "x_test": images(), "y_test": Y.astype(str)},
}


REFUSALS = {  # with more than one thing to mend
    "colour, int16 to 1000": 2,
    "four channels": 2,
    "four channels, first": 2,
    "four channels, float": 2,
    "infinite, of another scale": 2,
}


@pytest.mark.filterwarnings("ignore:Casting complex")
@pytest.mark.parametrize("choose", [0, -1])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", MENDED)
def test_the_line_of_python_in_a_refusal_mends_it(load, form, kind, choose):
    arrays = MENDED[kind]
    _, after, messages = mended(arrays, load, form, choose)
    assert len(messages) == REFUSALS.get(kind, 1)
    both = [name for name in arrays if name.startswith("x")]
    if len(both) > 1 and all(arrays[name].shape == after[name].shape for name in both):  # one scale for all splits
        before, later = (np.concatenate([each[name].ravel() for name in both]) for each in (arrays, after))
        order = np.argsort(before, kind="stable")
        assert (np.diff(later[order].astype(float)) >= 0).all()


def test_the_grey_of_four_channels_is_the_mean_of_three(load):
    for axis in (1, 3):
        opaque = np.moveaxis(np.stack([PLAIN, PLAIN // 2, PLAIN * 0, PLAIN * 0 + 255], -1), 3, axis)
        _, after, _ = mended({"x": opaque}, load, "memory")
        np.testing.assert_array_equal(after["x"], ((PLAIN.astype(int) + PLAIN // 2) // 3).astype(np.uint8))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ending", ["", "_train"])
@pytest.mark.parametrize("axes", [(60,), (60, 1)])
def test_the_line_of_python_leaves_out_images_without_a_label(load, form, ending, axes):
    x, y = f"x{ending}", f"y{ending}"
    arrays = {x: images(), y: np.where(Y == 1, np.nan, Y).reshape(axes)}
    arrays |= {"x_test": images(20), "y_test": np.arange(20) % 2 * 2} if ending else {}
    with pytest.raises(DataError, match=rf"{y} has no label \(NaN\) for 20 of 60 images") as refusal:
        load(form, arrays)
    names = arrays | {"np": np}
    exec(str(refusal.value).split("images out, by ")[1], names)
    loaded, _ = load(form, {name: names[name] for name in arrays})
    assert sum(loaded.sizes.values()) == 40 + (20 if ending else 0)
    assert loaded.class_names == ["0", "2"]


OBJECTS = {
    "labels": {"x": images(), "y": np.array([1, "a", None] * 20, object)},
    "images": {"x": (images() / 255).astype(object), "y": Y},
}


@pytest.mark.parametrize("arrays", OBJECTS.values(), ids=OBJECTS)
def test_the_line_of_python_mends_objects_in_memory(load, arrays):
    assert len(mended(arrays, load, "memory")[2]) == 1


RANGES = st.tuples(st.floats(-1e9, 1e9, width=32), st.floats(0, 1e6, width=32)).map(lambda pair: (pair[0], sum(pair)))
DTYPES = st.sampled_from(["float16", "float32", "float64", "int8", "int16", "uint16", "int32", "int64", "uint64"]).map(
    np.dtype
)


@given(RANGES, RANGES, DTYPES)
@example((-1e9, 0.0), (5.0, 6.0), np.float32)
@example((-60_000, 60_000), (0, 0), np.float16)
@example((-128, 127), (-100, 3), np.int8)
@QUICK
def test_values_of_any_range_are_taken_or_mended(load, train, test, dtype):
    def values(low, high, count):
        kind = np.finfo(dtype) if np.dtype(dtype).kind == "f" else np.iinfo(dtype)
        x = np.clip(np.linspace(low, high, count * 6), float(kind.min), float(kind.max))
        return np.minimum(x, float(kind.max) * (1 - 1e-9)).astype(dtype).reshape(count, 6)

    loaded, after, _ = mended({"x_train": values(*train, 20), "x_test": values(*test, 9)}, load, "memory")
    assert all(len(array) in (20, 9) for array in after.values())
    assert 0 <= loaded.x_train.min() <= loaded.x_train.max() <= 1
    auto, _ = load("memory", {"x_train": values(*train, 20), "x_test": values(*test, 9)})
    assert np.isfinite(auto.x_train).all()


# Arrays in memory


def test_what_python_has_is_taken_as_arrays(load):
    expected, _ = load("memory", {"x": PLAIN / np.float32(255), "y": Y})
    x = (PLAIN / np.float32(255)).tolist()
    tensor = keras.ops.convert_to_tensor(PLAIN / np.float32(255))
    for given_data in [(x, Y.tolist()), (tensor, Y), {"x": tensor, "y": keras.ops.convert_to_tensor(Y)}]:
        same(as_dataset(given_data), expected)
    same(as_dataset((PLAIN, WORDS[Y].astype(object))), as_dataset((PLAIN, WORDS[Y])))
    same(as_dataset(PLAIN), as_dataset({"x": PLAIN}))
    same(as_dataset((PLAIN,)), as_dataset({"x": PLAIN}))
    four = as_dataset(((PLAIN, Y), (PLAIN[:9], Y[:9])))
    same(four, as_dataset(dict(zip(FOUR, (PLAIN, Y, PLAIN[:9], Y[:9]), strict=True))))
    assert as_dataset(four) is four
    same(as_dataset([(PLAIN, Y), (PLAIN[:9], Y[:9])]), four)
    same(as_dataset(([PLAIN, Y], [PLAIN[:9], Y[:9]])), four)
    same(as_dataset([PLAIN, Y]), as_dataset((PLAIN, Y)))
    same(as_dataset((PLAIN, None)), as_dataset(PLAIN))
    same(as_dataset(((PLAIN, None), (PLAIN[:9], None))), as_dataset({"x_train": PLAIN, "x_test": PLAIN[:9]}))
    same(as_dataset(np.ma.masked_array(PLAIN)), as_dataset(PLAIN))


@pytest.mark.parametrize("values", [None, np.array([-7, 3, 9]), WORDS[[1, 0, 2]]], ids=["numbers", "integers", "words"])
def test_a_dataset_that_is_saved_has_the_same_checksum(load, values):
    given_set = Dataset(*(X, Y, X[:30], Y[:30], X[30:], Y[30:]), name="mine", class_values=values)
    saved = {field: getattr(given_set, field) for field in FIELDS}
    if values is not None:
        saved |= {field: values[saved[field]] for field in FIELDS[1::2]}
    assert load("npz", saved)[0].checksum == given_set.checksum


def test_a_dataset_whose_images_stay_in_their_file_is_taken(load):
    dataset, _ = load("folder", {"x": PLAIN, "y": Y})
    assert as_dataset(dataset) is dataset and isinstance(dataset.x_train, MappedImages)


def test_words_of_letters_that_do_not_exist(load):
    """As a damaged file has them: Python fails on such text in places where nothing else does."""
    for words in (np.full(60, 0x110000, "<u4").view("<U1"), np.full(60, 0x110000, ">u4").view(">U1")):
        with pytest.raises(DataError, match="y has words with letters that do not exist"):
            load("npz", {"x": PLAIN, "y": words})
    assert load("npz", {"x": PLAIN, "y": np.full(60, 0x10FFFF, ">u4").view(">U1")})[0].class_names == ["\U0010ffff"]


def test_an_open_npz_and_its_pickles(tmp_path):
    np.savez(tmp_path / "mine.npz", x=PLAIN, y=Y, more=np.array([None]))
    np.savez(tmp_path / "bad.npz", x=np.array([None]))
    with np.load(tmp_path / "mine.npz") as stored:
        same(as_dataset(stored), as_dataset((PLAIN, Y)))
    with np.load(tmp_path / "bad.npz") as stored, pytest.raises(DataError, match="x is not an array"):
        as_dataset(stored)


def test_what_scikit_learn_loads(capsys):
    digits = load_digits()
    with pytest.raises(
        DataError, match=r"^data: images has .* such as by images = images / 16; --likelihood gaussian "
    ):
        as_dataset(digits, "bernoulli")
    loaded = as_dataset(digits | {"images": digits.images / 16})
    assert (len(digits.images), loaded.image_shape, loaded.classes) == (sum(loaded.sizes.values()), (8, 8), 10)
    printed = (
        "data in memory: images is taken as x, target is taken as y; DESCR, data, feature_names, frame, target_names"
    )
    assert capsys.readouterr().out == f"{printed} not used\n"
    real = as_dataset(digits)
    chosen = "images with values from 0 to 16: the likelihood is gaussian; bernoulli takes grey pixels in [0, 1]"
    assert capsys.readouterr().out == f"{printed} not used; {chosen}\n"
    np.testing.assert_array_equal(real.y_train, loaded.y_train)
    np.testing.assert_allclose(real.transform.undo(real.x_train), 16 * loaded.x_train, atol=1e-5)  # rounding of float32


class Sealed:
    def __array__(self, dtype=None, copy=None):
        raise TypeError("on\nanother device")


NO_DATA = {
    "a path": ("mnist.npz", "data: is a path; give arrays, or give the path as Config(data=...)"),
    "three arrays": ((PLAIN, Y, Y), "data: give (x, y), not 3 arrays"),
    "no arrays": ((), "data: give (x, y), not 0 arrays"),
    "three in a pair": (((PLAIN, Y, Y), (PLAIN, Y)), "data: give ((x_train, y_train), (x_test, y_test))"),
    "rows of different lengths": ([[1, 2], [3], [4]], "data: x is not an array (setting an array element"),
    "nothing": (None, "data: x holds objects; give an array of numbers"),
    "a generator": ((each for each in PLAIN), "data: x holds objects"),
    "a number": (7, "data: x has shape (); give (n, height, width)"),
    "a sealed array": (Sealed(), "data: x is not an array (on another device)"),
    "an empty dict": ({}, "data: holds nothing; needs x_train and x_test"),
    "too few": (PLAIN[:9], "data: x has 9 images"),
    "fields": (np.zeros(20, "u1, u1"), "data: x has named or nested fields; give a plain array"),
    "masked images": (np.ma.masked_equal(PLAIN, 7), "data: x has masked values; give x.filled(0)"),
    "masked labels": ((PLAIN, np.ma.masked_equal(Y, 1)), "data: y has masked values; leave those images out"),
    "no test labels": (((PLAIN, Y), (PLAIN, None)), "data: has only 1 of y_train, y_test; give all or none"),
    "beyond 1e30": (PLAIN * 1e30, "data: x has values beyond 1e+30; rescale them, such as by x = x / 3e+32"),
    "beyond float64": (PLAIN * np.longdouble("1e4000"), "data: x has values beyond 1e+30; rescale them"),
}


@pytest.mark.parametrize(("given_data", "message"), NO_DATA.values(), ids=NO_DATA)
def test_what_is_no_data(given_data, message):
    with pytest.raises(DataError) as refusal:
        as_dataset(given_data)
    assert str(refusal.value).startswith(message)


def test_pixels_beyond_float64():
    with pytest.raises(DataError, match=r"^data: x has pixels beyond the range of float64; rescale"):
        as_dataset(PLAIN * np.longdouble("1e4000"), "bernoulli")


X = (PLAIN / 255).astype(np.float32)
WRONG = {
    "8 bits": ({"x_val": PLAIN}, "x_val is not a float32 array"),
    "beyond 1": ({"x_test": X * 255}, "x_test has pixels from 0.0 to 255.0, not in [0, 1]"),
    "NaN": ({"x_train": X * np.float32(np.nan)}, "x_train has pixels from nan to nan"),
    "another shape": ({"x_test": X[:, 1:]}, "x_test has images (3, 5), x_train (4, 5)"),
    "empty": ({"x_test": X[:0]}, "x_test is not a float32 array"),
    "some labels": ({"y_val": None}, "only some of y_train, y_val and y_test are None"),
    "labels of another type": ({"y_val": Y.astype(np.uint8)}, "y_val does not hold an int64 class"),
    "labels of another length": ({"y_test": Y[1:]}, "y_test does not hold an int64 class"),
    "negative labels": ({"y_train": Y - 1}, "y_train does not hold an int64 class"),
    "labels beyond the classes": ({"y_train": Y + 1, "class_values": WORDS}, "y_train does not hold an int64 class"),
    "words": ({"y_train": WORDS[Y]}, "y_train does not hold an int64 class"),
    "a list of labels": ({"y_val": Y.tolist()}, "y_val does not hold an int64 class"),
    "a list of images": ({"x_val": X.tolist()}, "x_val is not a float32 array"),
    "no pixels": ({"x_train": X[:, :0]}, "x_train is not a float32 array, (n, height, width) or (n, d), without a 0"),
    "masked": ({"x_train": np.ma.masked_equal(X, 1)}, "x_train is not a float32 array"),
    "no test images": ({"x_test": X[:0], "y_test": Y[:0]}, "x_test is not a float32 array"),
    "no test labels": ({"y_test": Y[:0]}, "y_test does not hold an int64 class"),
    "white of 16": ({"white": 16}, "white is 16; give 255, or 1"),
    "white of 0": ({"white": 0}, "white is 0; give"),
    "white of a letter": ({"white": "a"}, "white is 'a'; give"),
    "a list of classes": ({"class_values": ["a", "b", "c"]}, "class_values is not an array of integers or words"),
    "classes that are objects": (
        {"class_values": WORDS.astype(object)},
        "class_values is not an array of integers or words",
    ),
    "rows of classes": ({"class_values": WORDS[None]}, "class_values is not an array of integers or words"),
    "no name": ({"name": None}, "name is None; give text"),
    "a number as name": ({"name": 5}, "name is 5; give text"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_a_dataset_that_is_none(change, message):
    whole = dict(zip(FIELDS, (X, Y) * 3, strict=True))
    assert as_dataset(Dataset(**whole, name="mine")).classes == 3
    with pytest.raises(DataError) as refusal:
        as_dataset(Dataset(**{"name": "mine"} | whole | change))
    assert str(refusal.value).startswith(f"data: {message}")


TABLES = hnp.arrays(st.sampled_from([np.uint8, np.float32, np.bool_]), (20, 3), elements=st.sampled_from([0, 1]))


@given(TABLES, st.lists(st.text(max_size=4), min_size=20, max_size=20), st.sampled_from(FORMS))
@QUICK
def test_labels_of_any_words_come_back(load, x, words, form):
    y = np.array(words)
    loaded, printed = load(form, {"x": x, "y": y})
    assert printed.count("\n") <= 1 and printed.endswith("\n")
    names = np.array(loaded.class_names)
    again = np.concatenate([names[labels] for labels in (loaded.y_train, loaded.y_val, loaded.y_test)])
    if loaded.class_values.dtype.kind == "U":
        assert sorted(again) == sorted(y.tolist())
    else:
        assert sorted(again) == sorted(str(int(word)) for word in y)
