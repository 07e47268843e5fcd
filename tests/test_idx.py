"""IDX files: what is written comes back; files that are cut, padded or changed are refused."""

import contextlib
import gzip
import struct
import tracemalloc

from common.arrays import DataError
from common.data import load_data
from common.formats import IDX_TYPES
from common.sources import arrays_in

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

random = np.random.default_rng(0)
X = random.integers(0, 256, (20, 4, 5), np.uint8)
Y = (np.arange(20) % 3).astype(np.uint8)
FOUR = {
    "train-images-idx3-ubyte": X,
    "train-labels-idx1-ubyte": Y,
    "t10k-images-idx3-ubyte": X[:12],
    "t10k-labels-idx1-ubyte": Y[:12],
}
CODES = {np.dtype(name): code for code, name in IDX_TYPES.items()}
PACKERS = {"": bytes, ".gz": gzip.compress}


def idx(array):
    code = CODES[array.dtype.newbyteorder(">")]
    array = array.astype(array.dtype.newbyteorder(">"))
    return struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape) + array.tobytes()


def read(path):
    """Every array of a path, read and, where that is possible, mapped."""
    with arrays_in(path) as arrays:
        mapped = {name: np.array(array.mapped()) for name, array in arrays.items() if array.path}
        headers = {name: array.header for name, array in arrays.items()}
        held = {name: array.read() for name, array in arrays.items()}
    for name, array in held.items():
        assert headers[name] == (array.shape, array.dtype)
    for name, array in mapped.items():
        np.testing.assert_array_equal(array, held[name])
    return held


def write(folder, arrays, end=""):
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        (folder / f"{name}{end}").write_bytes(PACKERS[end](idx(array)))
    return folder


SHAPES = hnp.array_shapes(min_dims=2, max_dims=4, max_side=6)


@given(
    hnp.arrays(st.sampled_from(["u1", "i1", ">i2", "<i2", ">i4", "<f4", ">f8"]), SHAPES),
    st.sampled_from(list(PACKERS)),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_what_is_written_comes_back(tmp_path_factory, array, end):
    path = tmp_path_factory.getbasetemp() / f"file{end}"
    path.write_bytes(PACKERS[end](idx(array)))
    (name, found), *others = read(path).items()
    assert name == "x" and not others
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("end", PACKERS)
def test_labels_beside_images_are_taken(end, tmp_path):
    write(tmp_path, FOUR, end)
    found = read(tmp_path / f"train-images-idx3-ubyte{end}")
    np.testing.assert_array_equal(found["x"], X)
    np.testing.assert_array_equal(found["y"], Y)
    write(tmp_path, {"train-labels-idx1-ubyte": Y[:9]}, end)
    assert read(tmp_path / f"train-images-idx3-ubyte{end}").keys() == {"x"}
    with pytest.raises(
        DataError, match=r"is an IDX file of 12 labels, without images.*; give the IDX file of the images"
    ):
        read(tmp_path / f"t10k-labels-idx1-ubyte{end}")


@pytest.mark.parametrize("end", PACKERS)
@pytest.mark.parametrize("rename", [str, lambda name: name.replace("t10k", "test").replace("-idx", ".idx")])
def test_a_folder_of_the_four_files(end, rename, tmp_path):
    found = read(write(tmp_path, {rename(name): array for name, array in FOUR.items()}, end))
    assert len(found) == 4
    for role, array in zip(("x_train", "y_train", "x_test", "y_test"), FOUR.values(), strict=True):
        np.testing.assert_array_equal(found[role], array)


def test_only_images_are_enough_and_a_plain_file_counts_before_a_packed_one(tmp_path):
    write(tmp_path, {name: array for name, array in FOUR.items() if "images" in name})
    write(tmp_path, {"train-images-idx3-ubyte": 255 - X}, ".gz")
    found = read(tmp_path)
    assert found.keys() == {"x_train", "x_test"}
    np.testing.assert_array_equal(found["x_train"], X)


def test_the_folder_makes_the_same_data_set_as_an_npz(tmp_path, capsys):
    np.savez(
        tmp_path / "four.npz",
        **dict(zip(("x_train", "y_train", "x_test", "y_test"), FOUR.values(), strict=True)),
    )
    expected = load_data(str(tmp_path / "four.npz"))
    for number, end in enumerate(PACKERS):
        assert load_data(str(write(tmp_path / f"{number}", FOUR, end))).checksum == expected.checksum


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["train-images-idx3-ubyte"], "has IDX files, but no t10k-images-idx3-ubyte; add it, or give the file"),
        (["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"], "has IDX files, but no train-images-idx3-ubyte; add"),
        (["a-train-images-idx3-ubyte", "b-t10k-images-idx3-ubyte"], "holds several sets of IDX files, a-, b-; give a"),
    ],
)
def test_folders_that_are_refused(files, words, tmp_path):
    write(tmp_path, dict.fromkeys(files, X))
    with pytest.raises(DataError, match=words):
        read(tmp_path)


def test_a_file_named_so_that_is_none_is_refused(tmp_path):
    write(tmp_path, FOUR)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte is not an IDX file \(damaged\?\); copy or download"):
        read(tmp_path)


@pytest.mark.parametrize("change", [lambda content: content[:-1], lambda content: content + b"\0"])
@pytest.mark.parametrize("end", PACKERS)
def test_another_length_is_refused(change, end, tmp_path):
    path = tmp_path / f"file{end}"
    path.write_bytes(PACKERS[end](change(idx(X))))
    with (
        arrays_in(path) as arrays,
        pytest.raises(DataError, match=rf"file{end} is not as long as its shape \(20, 4, 5\)"),
    ):
        _ = arrays["x"].read() if end else arrays["x"].header


def test_a_packed_file_that_ends_early_is_refused(tmp_path):
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(idx(random.integers(0, 256, (300, 90, 90), np.uint8)))[:-5000])
    with arrays_in(path) as arrays, pytest.raises(DataError, match=r"file.gz cannot be read .*end-of-stream"):
        arrays["x"].read()


def test_no_more_is_unpacked_than_the_header_says(tmp_path):
    """100 MB behind 400 bytes of images, in a file of 100 kB; and a header of 4 GB that so few bytes cannot fill."""
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(idx(X) + bytes(10**8)))
    tracemalloc.start()
    with arrays_in(path) as arrays, pytest.raises(DataError, match="is not as long as its shape"):
        arrays["x"].read()
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()
    path.write_bytes(gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 2**16, 2**8, 2**8)))
    with arrays_in(path) as arrays, pytest.raises(DataError, match="is not as long as its shape"):
        _ = arrays["x"].header


CONTENTS = [idx(X), gzip.compress(idx(X)), idx(X.astype(">f4"))]


@given(st.sampled_from(CONTENTS), st.integers(0, 2000), st.binary(max_size=3), st.sampled_from([0, 1, 3, 10**6]))
@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_damaged_files_give_arrays_or_are_refused(tmp_path_factory, content, at, new, cut):
    path = tmp_path_factory.getbasetemp() / "damaged_idx"
    path.write_bytes(content[:at] + new + content[at + cut :])
    with contextlib.suppress(DataError):
        assert "x" in read(path)
