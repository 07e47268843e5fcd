"""Whatever the machine, the notebook and the user's Python bring: it runs, or one line says what to change."""

import dataclasses
import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import common
import vae_baseline
from common import run
from common.arrays import DataError
from common.command import requested, run_main
from common.config import check, flag
from common.data import IN_MEMORY, load_data
from common.files import RunError
from common.run import load_run
from common.scripts import SCRIPTS, load_script
from tools import evaluate

import keras
import numpy as np
import pytest
from helpers import Killed, kill_after_checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_runs import tiny_images

ROOT = Path(__file__).resolve().parent.parent


pytestmark = pytest.mark.usefixtures("quick_module")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_images(tmp_path_factory.mktemp("data") / "mine.npz", y=np.arange(300) % 3)


def small(folder, **changes):
    parameters = {"epochs": 1, "batch_size": 20, "hidden_units": (8,), "results": str(folder), "name": "r", "seed": 3}
    return vae_baseline.Config(**parameters | changes)


# The backend


def python(*arguments, **environment):
    """A process of its own, with KERAS_HOME and other variables as they are given."""
    kept = {name: value for name, value in os.environ.items() if name not in ("KERAS_BACKEND", "MPLBACKEND")}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=kept | environment, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("backend", ["nonsense", "openvino", "TensorFlow"])
@pytest.mark.parametrize("by", ["variable", "keras.json"])
def test_an_unknown_backend_is_one_line(tmp_path, backend, by):
    (tmp_path / "keras.json").write_text(json.dumps({"backend": backend}))
    environment = {"KERAS_BACKEND": backend} if by == "variable" else {"KERAS_HOME": str(tmp_path)}
    ended = python("avb.py", "--help", **environment)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        f"error: Keras' backend is {backend!r}, and must be one of tensorflow, jax, torch; set KERAS_BACKEND to one\n"
    )


@pytest.mark.parametrize("content", ["{", "{}", '{"backend": "jax"}', None])
def test_the_backend_is_the_one_that_keras_would_import(tmp_path, monkeypatch, content):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in common.BACKENDS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    if content is not None:
        (tmp_path / "keras.json").write_text(content)
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    name = "jax" if content and "jax" in content else "tensorflow"
    assert common.complaint().startswith(f"Keras' backend {name} is not installed; pip install {name}, or choose")
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    assert common.complaint().startswith("Keras' backend torch is not installed; pip install torch, or choose")


BROKEN = {
    "[]": "holds no settings; delete it, and Keras writes a new one",
    '{"floatx": "foo"}': "has floatx 'foo', which Keras refuses; mend it, or delete the file",
    '{"epsilon": "a"}': "has epsilon 'a', which Keras refuses; mend it, or delete the file",
    '{"image_data_format": 3}': "has image_data_format 3, which Keras refuses; mend it, or delete the file",
}


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_keras_json_is_one_line(tmp_path, monkeypatch, capsys, content):
    (tmp_path / "keras.json").write_text(content)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(ImportError) as error:
        common.require_keras()
    sys.excepthook(ImportError, error.value, None)  # as Python does at the end of a script
    assert capsys.readouterr().err == f"error: {tmp_path / 'keras.json'} {BROKEN[content]}\n"


def test_settings_that_cut_trainings_short_are_one_line(monkeypatch):
    monkeypatch.setenv("KERAS_MAX_EPOCHS", "1")
    assert common.complaint() == "KERAS_MAX_EPOCHS is set, and Keras would cut trainings short; unset it"
    monkeypatch.setattr(keras.config, "max_epochs", lambda: 1)
    with pytest.raises(RunError, match=r"Keras is set to cut trainings short; undo keras\.config\.set_max_epochs"):
        check(vae_baseline.Config())


@pytest.mark.parametrize("name", ["module://matplotlib_inline.backend_inline", "nonsense", "agg"])
def test_the_matplotlib_backend_of_a_notebook_is_no_error(name):
    shown = "import common, matplotlib, os; print(matplotlib.rcParams._get('backend'), os.environ['MPLBACKEND'])"
    ended = python("-c", shown, MPLBACKEND=name)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split()[-1] == name
    assert name != "agg" or ended.stdout.split()[0] == "agg"


@pytest.fixture
def keras_settings():
    """Keras' own settings, as they were, after the test."""
    before = keras.config.floatx(), keras.config.dtype_policy(), keras.config.image_data_format()
    yield keras.config
    keras.config.set_floatx(before[0])
    keras.config.set_dtype_policy(before[1])
    keras.config.set_image_data_format(before[2])


@pytest.mark.parametrize("precision", ["float16", "float64", "bfloat16", "mixed_float16"])
def test_another_precision_is_refused_in_one_line(keras_settings, tmp_path, precision):
    if precision.startswith("mixed"):
        keras_settings.set_dtype_policy(precision)
    else:
        keras_settings.set_floatx(precision)
    for refused in (lambda: check(vae_baseline.Config()), lambda: load_run(tmp_path)):
        with pytest.raises(RunError, match=f"is {precision}, and this code computes in float32; set it back"):
            refused()


def test_convolutions_are_the_same_with_channels_first_in_keras_json(keras_settings):
    config, images = small("", networks="conv"), np.random.default_rng(0).random((3, 8, 6), dtype="float32")
    models = []
    for order in ("channels_last", "channels_first"):
        keras_settings.set_image_data_format(order)
        models.append(vae_baseline.build(config, (8, 6)))
    means = [model.inferred(images)["mean"] for model in models]
    np.testing.assert_array_equal(*means)
    np.testing.assert_array_equal(*(model.decode(means[0]) for model in models))


def test_letters_that_a_terminal_lacks_do_not_end_a_run(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    monkeypatch.setattr(sys, "argv", ["vae_baseline.py"])
    run_main(lambda config: print("данные \udcff") or {}, vae_baseline.Config)
    sys.stdout.flush()
    assert sys.stdout.buffer.getvalue() == b"\\u0434\\u0430\\u043d\\u043d\\u044b\\u0435 \\udcff\n"


# Paths


def test_a_tilde_is_the_home_folder(tmp_path, data, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    vae_baseline.main(small("~/results", data=data))
    place = "~/results/vae_baseline/r"
    assert load_run(place).encode(np.load(data)["x"][:2]).shape == (2, 2)
    assert evaluate.main(evaluate.Config(place))["updates"] == 12
    monkeypatch.setattr(sys, "argv", ["vae_baseline.py", "--resume", place])
    assert vae_baseline.main(requested(vae_baseline.Config))["updates"] == 12


def test_relative_data_are_found_when_the_run_is_resumed_elsewhere(tmp_path, data, monkeypatch):
    monkeypatch.chdir(Path(data).parent)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after_checkpoint(patch, 1)
        vae_baseline.main(small(tmp_path, data=Path(data).name, epochs=2))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["vae_baseline.py", "--resume", str(tmp_path / "vae_baseline" / "r")])
    assert vae_baseline.main(requested(vae_baseline.Config))["updates"] == 24


def test_a_file_whose_name_is_not_utf8_or_has_dollars(tmp_path, data):
    path = os.fsdecode(os.fsencode(str(tmp_path)) + b"/a$x_\xff$b.npz")
    Path(path).write_bytes(Path(data).read_bytes())
    metrics = vae_baseline.main(small(tmp_path, data=path))
    assert "failed" not in metrics
    folder = tmp_path / "vae_baseline" / "r"
    assert len(list(folder.glob("*.png"))) == 6
    assert evaluate.main(evaluate.Config(str(folder)))["updates"] == 12


# From Python


def test_paths_and_numbers_of_numpy_are_taken(tmp_path, data):
    odd = {"data": Path(data), "results": tmp_path, "epochs": np.int64(1), "batch_size": np.uint8(20)}
    odd |= {"hidden_units": [np.int32(8)], "learning_rate": np.float64(1e-3), "tensorboard": np.bool_(False)}
    plain = {"data": data, "results": str(tmp_path), "epochs": 1, "batch_size": 20}
    plain |= {"hidden_units": (8,), "learning_rate": 1e-3, "tensorboard": False}
    config = check(vae_baseline.Config(**odd))
    assert config == vae_baseline.Config(**plain)
    for name, value in plain.items():
        assert type(getattr(config, name)) is type(value)
    assert vae_baseline.main(vae_baseline.Config(**odd | {"name": "r"}))["updates"] == 12


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3)
VALUES |= st.builds(object) | st.lists(st.integers(-2, 9) | st.text(max_size=2), max_size=3)
VALUES |= st.sampled_from([np.zeros(2), np.float32(2.5), np.int64(-1), Path("x"), (), ((),), {}, 1j, 10**400])


@given(st.sampled_from(SCRIPTS), st.data())
@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_any_value_for_any_parameter_is_taken_or_refused_by_name(script, draws):
    config_class = load_script(script).Config
    field = draws.draw(st.sampled_from(dataclasses.fields(config_class)))
    config = config_class(**{field.name: draws.draw(VALUES)})
    try:
        checked = check(config)
    except RunError as error:
        assert str(error).startswith(flag(field.name)) or f"set {flag(field.name)}" in str(error)
        assert len(str(error).splitlines()) == 1
        return
    assert check(checked) == checked


def test_arrays_from_python_make_the_same_run_as_their_file(tmp_path, data):
    arrays = np.load(data)
    x, y = arrays["x"].copy(), arrays["y"].copy()
    of_file = vae_baseline.main(small(tmp_path / "file", data=data))
    of_arrays = vae_baseline.main(small(tmp_path / "arrays"), data=(x, y))
    seconds = {"train_seconds", "samples_per_second", "peak_memory_mib"}
    assert {key: of_file[key] for key in of_file.keys() - seconds} == {
        key: of_arrays[key] for key in of_arrays.keys() - seconds
    }
    np.testing.assert_array_equal(x, arrays["x"])
    folder = tmp_path / "arrays" / "vae_baseline" / "r"
    saved = json.loads((folder / "config.json").read_text())
    assert saved["parameters"]["data"] == IN_MEMORY and saved["data"]["classes"] == ["0", "1", "2"]
    with pytest.raises(DataError, match=r"came from Python: pass the same arrays as main\(config, data=\.\.\.\)"):
        evaluate.main(evaluate.Config(str(folder)))
    assert evaluate.main(evaluate.Config(str(folder), data=data))["updates"] == 12
    with pytest.raises(RunError, match="two data sets are given"):
        vae_baseline.main(small(tmp_path / "both", data=data), data=(x, y))
    dataset = load_data(data)
    assert vae_baseline.main(small(tmp_path / "set", name="s"), data=dataset)["updates"] == 12


@pytest.mark.parametrize("white", [1, 255])
def test_a_loaded_run_scales_integers_as_its_data_were_scaled(tmp_path, white):
    x = np.random.default_rng(0).integers(0, 2, (300, 4, 4), np.uint8) * np.uint8(white)
    vae_baseline.main(small(tmp_path), data=x)
    model = load_run(tmp_path / "vae_baseline" / "r")
    means = [model.inferred(images[:50])["mean"] for images in (x, x / np.float32(white), x > 0)]
    np.testing.assert_array_equal(means[0], means[1])
    np.testing.assert_array_equal(means[0], means[2])
    assert np.ptp(means[0], axis=0).min() > 0


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_takes_arrays(script, monkeypatch):
    given_data = []
    module = load_script(script)
    monkeypatch.setattr(module, "train_and_report", lambda config, build, name, data: given_data.append(data) or {})
    module.main(module.Config(), data="arrays")
    module.main(module.Config())
    assert given_data == ["arrays", None]


def test_an_older_run_keeps_its_validation_images(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (300, 4, 4), np.uint8), np.arange(300) % 3
    path = str(tmp_path / "mine.npz")
    np.savez(path, x_train=x, y_train=y, x_test=x[:40], y_test=y[:40])
    older = load_data(path, shuffled=False)
    np.testing.assert_array_equal(older.x_val, x[270:] / np.float32(255))
    with monkeypatch.context() as patch:
        patch.setattr(run, "load_data", lambda source, *options: older)
        vae_baseline.main(small(tmp_path, data=path))
    config_json = tmp_path / "vae_baseline" / "r" / "config.json"
    saved = json.loads(config_json.read_text())
    for key in ("white", "classes"):  # which older runs do not have
        del saved["data"][key]
    config_json.write_text(json.dumps(saved))
    assert evaluate.main(evaluate.Config(str(config_json.parent)))["updates"] == 13
    resumed = small(tmp_path, data=path, epochs=2, resume=str(config_json.parent))
    assert vae_baseline.main(resumed)["updates"] == 26
