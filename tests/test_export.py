"""tools/export.py: the functions that it writes, run by onnxruntime and TensorFlow, against the model of the run."""

import importlib.util
import json
from pathlib import Path

import aae_deterministic
import aae_gaussian
import aae_universal
import avb
import vae_baseline
from common.data import as_dataset
from common.files import RunError, write_json
from common.model import to_numpy
from common.run import description, load_run, save_networks
from common.transforms import starting_likelihood
from tools import export

import keras
import numpy as np
import pandas as pd
import pytest
from keras import ops

ROWS = 200
RANDOM = np.random.default_rng(0)
PRESSURE = 101325 + 0.01 * RANDOM.standard_normal(ROWS)  # float32 has steps of 0.008 there
TABLE = pd.DataFrame(
    {
        "colour": RANDOM.choice(["red", "green", "blue", ""], ROWS),
        "pressure": PRESSURE,
        "few": RANDOM.integers(3, 7, ROWS),
        "yes": RANDOM.random(ROWS) < 0.3,
        "length": 20 * RANDOM.standard_normal(ROWS) - 5,
    }
)
CASES = {  # script, its parameters, data, likelihood
    "grey": (aae_gaussian, {}, RANDOM.integers(0, 256, (ROWS, 8, 6), np.uint8), "bernoulli"),
    "colour": (avb, {"networks": "conv"}, RANDOM.integers(0, 256, (ROWS, 9, 8, 3), np.uint8), "logistic"),
    "floats": (aae_universal, {"noise_scale": 0.5}, RANDOM.random((ROWS, 4, 4, 3), np.float32), "gaussian"),
    "real": (vae_baseline, {}, 1000 + 3 * RANDOM.standard_normal((ROWS, 5, 4)).astype(np.float32), "gaussian"),
    "table": (vae_baseline, {}, TABLE, "gaussian"),
    "words": (aae_deterministic, {}, TABLE[["colour", "yes"]], "gaussian"),
    "numbers": (aae_deterministic, {"prior": "swiss_roll"}, 7 + RANDOM.standard_normal((ROWS, 5)), "gaussian"),
    "counts": (avb, {}, RANDOM.poisson(RANDOM.uniform(0, 200, (ROWS, 1)), (ROWS, 6)), "negative_binomial"),
    "few counts": (vae_baseline, {}, pd.DataFrame(RANDOM.poisson(1.5, (ROWS, 3)), columns=["a", "c", "b"]), "poisson"),
}
SMALL = {"hidden_units": (8, 7), "latent_dim": 2}
# Relative to the largest number. float32 has 7 digits, and sums of 200 numbers in another order keep 5 of them.
CLOSE = 1e-4

needs_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="export needs TensorFlow")
needs_onnx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("tf2onnx", "onnxruntime"))), reason="needs tf2onnx and onnxruntime"
)


def run_of(folder: Path, case: str) -> Path:
    """A run's folder as `load_run` needs it, with networks whose weights are all random."""
    script, own, data, likelihood = CASES[case]
    dataset = as_dataset(data, likelihood)
    config = script.Config(**SMALL | own, epochs=1)
    model = script.build(config, starting_likelihood(dataset))
    random = np.random.default_rng(1)
    for variable in model.encoder.trainable_variables + model.decoder.trainable_variables:
        variable.assign(variable + 0.2 * random.standard_normal(variable.shape))
    folder = folder / script.__name__ / case.replace(" ", "_")
    folder.mkdir(parents=True)
    write_json(folder / "config.json", description(config, script.__name__, dataset) | {"updates": 1})
    save_networks(model, folder)
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of a case's run, which holds an export in every format."""
    runs = {}

    def folder(case: str) -> Path:
        if case not in runs:
            runs[case] = run_of(tmp_path_factory.mktemp("export"), case)
            export.main(export.Config(str(runs[case])))
        return runs[case]

    return folder


@pytest.fixture
def run(tmp_path):
    return run_of(tmp_path, "numbers")


def positions(frame: pd.DataFrame, columns: list[dict]) -> np.ndarray:
    """A table as export.json says: numbers, and for categories the position among `values`; "" stands for none."""
    lists = []
    for column in columns:
        cells = ["" if pd.isna(cell) else cell for cell in frame[column["name"]].tolist()]
        lists.append([column["values"].index(cell) for cell in cells] if "values" in column else cells)
    return np.array(lists, "float64").T


def user_rows(case: str, about: dict, rows=slice(None)) -> np.ndarray:
    """Rows of a case as the exported `encode` takes them."""
    data = CASES[case][2][rows]
    if isinstance(data, pd.DataFrame):
        return positions(data, about["columns"]).astype(about["encode"]["inputs"]["x"]["dtype"])
    return (data / 255 if data.dtype == np.uint8 else data).astype(about["encode"]["inputs"]["x"]["dtype"])


def expected_codes(case: str, model, noise) -> dict:
    """The outputs of `encode` for a case's data, of the model's networks alone."""
    rows = ops.convert_to_tensor(model.transform.rows(CASES[case][2])[:])
    if model.posterior == "gaussian":
        mean, log_var = np.split(to_numpy(model.encoder(rows)), 2, axis=-1)
        return {"mean": mean, "deviation": np.exp(log_var / 2)}
    if model.posterior == "point":
        return {"z": model.encode(CASES[case][2])}
    if case == "floats":
        return {"z": to_numpy(model.encoder([rows, ops.convert_to_tensor(0.5 * noise)]))}
    z0, a, v = map(to_numpy, model.encoder([rows, ops.convert_to_tensor(noise)]))
    return {"z": z0 + (a * v).sum(axis=1)}


def run_onnx(path: Path, inputs: dict) -> dict:
    import onnxruntime

    session = onnxruntime.InferenceSession(f"{path}.onnx", providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == list(inputs)
    assert {each.shape[0] for each in (*session.get_inputs(), *session.get_outputs())} == {"rows"}
    return dict(zip([each.name for each in session.get_outputs()], session.run(None, inputs), strict=True))


def run_saved_model(path: Path, inputs: dict) -> dict:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    tensors = {name: tf.constant(value) for name, value in inputs.items()}
    by_signature = {name: each.numpy() for name, each in loaded.signatures["serving_default"](**tensors).items()}
    by_name = {name: each.numpy() for name, each in getattr(loaded, path.name)(*tensors.values()).items()}
    require_equal(by_name, by_signature)
    return by_signature


both_formats = pytest.mark.parametrize("run_file", [pytest.param(run_onnx, marks=needs_onnx), run_saved_model])


def require_equal(outputs: dict, expected: dict):
    assert outputs.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(outputs[name], array, rtol=0, atol=CLOSE * np.abs(array).max())


def described(outputs: dict, about: dict) -> bool:
    """Whether outputs have the names, shapes and types of export.json."""
    found = {name: (["rows", *array.shape[1:]], array.dtype.name) for name, array in outputs.items()}
    return found == {name: (each["shape"], each["dtype"]) for name, each in about["outputs"].items()}


@needs_tensorflow
@both_formats
@pytest.mark.parametrize("case", CASES)
def test_encode(exported, case, run_file):
    folder = exported(case) / "export"
    about = json.loads((folder / "export.json").read_text())
    inputs = {"x": user_rows(case, about)}
    for name, each in list(about["encode"]["inputs"].items())[1:]:
        inputs[name] = np.random.default_rng(2).standard_normal((ROWS, *each["shape"][1:]), np.float32)
    outputs = run_file(folder / "encode", inputs)
    assert described(outputs, about["encode"])
    expected = expected_codes(case, load_run(folder.parent), inputs.get("noise"))
    assert min(array.std(axis=0).min() for array in expected.values()) > 0  # codes of different rows differ
    require_equal(outputs, expected)
    one = run_file(folder / "encode", {name: array[:1] for name, array in inputs.items()})
    require_equal(one, {name: array[:1] for name, array in outputs.items()})


@needs_tensorflow
@both_formats
@pytest.mark.parametrize("case", CASES)
def test_decode(exported, case, run_file):
    folder = exported(case) / "export"
    about = json.loads((folder / "export.json").read_text())
    codes = np.random.default_rng(3).standard_normal((50, 2), np.float32)
    outputs = run_file(folder / "decode", {"z": codes})
    assert described(outputs, about["decode"])
    expected = load_run(folder.parent).decode(codes)
    if isinstance(expected, pd.DataFrame):
        expected = positions(expected, about["columns"])
    assert (expected.std(axis=0) > 0).any()
    if case == "table":  # with deviations of 0.01 and 20
        scales = np.array([1.0, 0.01, 1.0, 1.0, 20.0])
        np.testing.assert_allclose(outputs["x"] / scales, expected / scales, rtol=0, atol=CLOSE)
    else:
        require_equal(outputs, {"x": expected})
    require_equal(run_file(folder / "decode", {"z": codes[:1]}), {"x": outputs["x"][:1]})


@needs_tensorflow
@needs_onnx
def test_a_decoded_row_can_be_encoded(exported):
    folder = exported("table") / "export"
    rows = run_onnx(folder / "decode", {"z": np.ones((3, 2), np.float32)})["x"]
    assert run_onnx(folder / "encode", {"x": rows})["mean"].shape == (3, 2)


@needs_tensorflow
@needs_onnx
def test_a_trained_run(quick_module, tmp_path, capsys):
    x = CASES["grey"][2]
    settings = {"hidden_units": (8,), "epochs": 1, "batch_size": 20, "results": str(tmp_path), "name": "r"}
    vae_baseline.main(vae_baseline.Config(**settings), data=x)
    output = tmp_path / "new" / "folder"
    capsys.readouterr()
    export.main(export.Config(str(tmp_path / "vae_baseline" / "r"), str(output)))
    printed = capsys.readouterr()
    assert printed.out.startswith("checked on 16 rows") and printed.out.endswith(f"{output}\n") and not printed.err
    assert sorted(path.name for path in output.iterdir()) == [
        "decode", "decode.onnx", "encode", "encode.onnx", "export.json",
    ]  # fmt: skip
    assert [path.name for path in output.parent.iterdir()] == ["folder"]
    model = load_run(tmp_path / "vae_baseline" / "r")
    expected = model.inferred(x, ("mean",))
    found = run_onnx(output / "encode", {"x": (x / 255).astype("float32")})
    require_equal({"mean": found["mean"]}, expected)


@needs_tensorflow
def test_one_format_into_an_empty_folder(run, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", without("tf2onnx", "onnxruntime"))  # not needed
    (tmp_path / "empty").mkdir()
    export.main(export.Config(str(run), str(tmp_path / "empty"), "saved_model"))
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == ["decode", "encode", "export.json"]
    assert (tmp_path / "empty").stat().st_mode == run.stat().st_mode


@needs_tensorflow
@needs_onnx
def test_without_onnxruntime_onnx_is_written_and_not_checked(run, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", without("onnxruntime"))
    export.main(export.Config(str(run), format="onnx"))
    assert "ONNX not checked: pip install onnxruntime" in capsys.readouterr().out
    assert sorted(path.name for path in (run / "export").iterdir()) == ["decode.onnx", "encode.onnx", "export.json"]


def without(*missing):
    """`importlib.util.find_spec` where packages are missing."""
    find = importlib.util.find_spec
    return lambda name, package=None: None if name in missing else find(name, package)


def require_refusal(config, match: str, folder: Path):
    """`export.main` refuses in one line and leaves the folder as it was."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(RunError, match=match) as refusal:
        export.main(config)
    assert "\n" not in str(refusal.value)
    assert sorted(folder.rglob("*")) == before


@needs_tensorflow
def test_an_older_export_stays_unchanged(run, tmp_path):
    (run / "export").mkdir()
    (run / "export" / "notes.txt").touch()
    require_refusal(export.Config(str(run)), "exists and stays unchanged; choose another --output", tmp_path)
    (tmp_path / "file").touch()
    require_refusal(export.Config(str(run), str(tmp_path / "file")), "exists and stays unchanged", tmp_path)
    require_refusal(export.Config(str(run), str(tmp_path / "file" / "x")), "cannot write .*/file/x", tmp_path)


@needs_tensorflow
def test_a_folder_that_appears_meanwhile_stays_unchanged(run, tmp_path, monkeypatch):
    def checked(*arguments):
        (run / "export").mkdir()
        (run / "export" / "notes.txt").touch()
        return ""

    monkeypatch.setattr(export, "checked", checked)
    with pytest.raises(RunError, match="exists and stays unchanged"):
        export.main(export.Config(str(run), format="saved_model"))
    assert sorted(path.name for path in run.rglob("*") if "export" in str(path)) == ["export", "notes.txt"]


@needs_tensorflow
@pytest.mark.parametrize("name", ["encode", "decode"])
def test_another_function_than_the_model_is_not_written(run, tmp_path, monkeypatch, name):
    functions_of = export.functions_of

    def wrong(model):
        """As if a unit were one part in a thousand wrong."""
        functions = functions_of(model)
        call = functions[name].call
        changed = lambda *tensors: {key: 1.001 * value for key, value in call(*tensors).items()}  # noqa: E731
        return functions | {name: functions[name]._replace(call=changed)}

    monkeypatch.setattr(export, "functions_of", wrong)
    require_refusal(export.Config(str(run), format="saved_model"), f"nothing is written: {name} differs", tmp_path)


def test_other_backends_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    message = r"export needs TensorFlow: KERAS_BACKEND=tensorflow python -m tools.export '.*a run'"
    require_refusal(export.Config(str(tmp_path / "a run")), message, tmp_path)


@needs_tensorflow
def test_what_is_missing_is_named(run, tmp_path, monkeypatch):
    require_refusal(export.Config(str(tmp_path / "none")), "holds no complete run", tmp_path)
    require_refusal(export.Config(str(run), format="pickle"), "--format must be one of onnx, saved_model", tmp_path)
    monkeypatch.setattr(export, "MOST_BYTES", 100)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: True)
    require_refusal(export.Config(str(run), format="onnx"), "too large for an ONNX file", tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    require_refusal(export.Config(str(run)), "pip install tf2onnx onnxruntime", tmp_path)
