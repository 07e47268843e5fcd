"""CIFAR by Keras' own loader, from archives made here: used offline, never unpickled where it was changed."""

import hashlib
import io
import pickle
import sys
import tarfile
import threading
from pathlib import Path

from common.arrays import DataError
from common.data import load_data
from common.keras_data import KERAS_NAMES, keras_arrays

import keras
import numpy as np
import pytest

X = np.random.default_rng(0).integers(0, 256, (30, 3, 32, 32), np.uint8)
FINE = np.arange(30) % 7
FOLDER = "cifar-100-python-target"


class Trap:
    """Unpickled, it is a call that touches a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def batch(x, fine, **more):
    return pickle.dumps({b"data": x.reshape(len(x), -1), b"fine_labels": fine.tolist()} | more)


def archive(**files):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"cifar-100-python/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A function that puts an archive into Keras' cache as the right one, or as one that differs from it."""
    module = sys.modules[keras.datasets.cifar100.load_data.__module__]
    get_file = module.get_file

    def put(content, right=True):
        (tmp_path / "datasets").mkdir(exist_ok=True)
        (tmp_path / "datasets" / f"{FOLDER}_archive").write_bytes(content)
        changes = {"cache_dir": str(tmp_path), "origin": (tmp_path / "nowhere").as_uri()}
        changes["file_hash"] = hashlib.sha256(content if right else b"").hexdigest()
        monkeypatch.setattr(module, "get_file", lambda **given: get_file(**given | changes))
        return tmp_path / "datasets" / FOLDER / "cifar-100-python"

    return put


def test_the_cache_is_used_offline(cached, capsys):
    cached(archive(train=batch(X, FINE), test=batch(X[:12], FINE[:12])))
    arrays = keras_arrays("cifar100", 20)
    np.testing.assert_array_equal(arrays["x_train"], X.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(arrays["y_train"], FINE[:, None])
    np.testing.assert_array_equal(arrays["x_test"], arrays["x_train"][:12])
    dataset = load_data("cifar100")
    assert (dataset.name, dataset.image_shape, dataset.classes) == ("CIFAR-100", (32, 32, 3), 7)
    np.testing.assert_array_equal(dataset.y_val, FINE[27:])  # in the original order


def test_files_changed_in_the_cache_are_not_unpickled(cached, tmp_path):
    """Keras unpacks the archive at every load. Half of a file is mended in the same way."""
    folder = cached(archive(train=batch(X, FINE), test=batch(X[:12], FINE[:12])))
    keras_arrays("cifar100", 20)
    for content in (pickle.dumps(Trap(tmp_path / "touched")), (folder / "train").read_bytes()[:5000]):
        (folder / "train").write_bytes(content)
        np.testing.assert_array_equal(keras_arrays("cifar100", 20)["x_train"], X.transpose(0, 2, 3, 1))
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("right", [True, False])
def test_nothing_in_an_archive_is_run(right, cached, tmp_path):
    """An archive with another checksum would be downloaded anew. From the right one, only arrays are made."""
    trapped = batch(X, FINE, more=Trap(tmp_path / "touched"))
    cached(archive(train=trapped, test=trapped), right)
    reason = "Refusing to deserialize" if right else "URL fetch failure"
    with pytest.raises(DataError, match=rf"CIFAR-100 could not be loaded \({reason}"):
        keras_arrays("cifar100", 20)
    assert not (tmp_path / "touched").exists()
    pickle.loads(trapped)
    assert (tmp_path / "touched").exists()  # so it was a trap


@pytest.mark.parametrize("word", ["cifar10", "cifar100"])
def test_a_download_has_a_time_limit(word, monkeypatch):
    released = threading.Event()
    monkeypatch.setattr(getattr(keras.datasets, word), "load_data", lambda: released.wait(30))
    with pytest.raises(DataError, match=rf"{KERAS_NAMES[word]} could not be loaded \(the download was not complete"):
        keras_arrays(word, 0.2)
    released.set()
