"""Damaged folders of runs, and odd rows for their models: a model that works, or one line; nothing is executed."""

import contextlib
import copy
import io
import json
import pickle
import random
import zipfile
from pathlib import Path

import aae_deterministic
import aae_gaussian
import avb
import vae_baseline
from common.arrays import DataError
from common.config import RunConfig
from common.data import load_data
from common.files import RunError, write_json
from common.run import description, load_config, load_run, save_networks
from common.scripts import SCRIPTS, load_script
from common.transforms import starting_likelihood
from tools.evaluate import run_data

import keras
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse
from fuzzing import FEW, Trap, Tried, damaged, images, is_dataset, npz, outcome, quietly
from hypothesis import given
from hypothesis import strategies as st

MODULES = [load_script(name) for name in SCRIPTS]
SMALL = {"hidden_units": (5, 4), "latent_dim": 2}
ROWS = np.random.default_rng(0)
FRAME = pd.DataFrame(
    {
        "size": ROWS.normal(5, 2, 40),
        "doors": np.arange(40) % 4,
        "colour": np.array(["red", "green", "blé", ""])[np.arange(40) % 4],
        "sold": np.arange(40) % 3 < 1,
    }
)
COUNTS = ROWS.poisson(3, (40, 4))
COLOUR = images((40, 3, 2, 3))
REAL = ROWS.normal(3, 50, (40, 3, 2))
OTHERS = {"table": vae_baseline, "counts": avb, "named counts": vae_baseline, "colour": aae_gaussian}
OTHERS |= {"real": aae_deterministic, "rows": vae_baseline}


@pytest.fixture(autouse=True)
def nothing_is_executed():
    yield
    assert not Trap.sprung.exists()


def sources(folder: Path) -> dict[str, str]:
    """The paths of data of every kind."""
    arrays = {"counts": COUNTS, "colour": COLOUR, "real": REAL, "rows": REAL.reshape(40, 6)}
    for name, array in arrays.items():
        np.savez(folder / f"{name}.npz", x=array)
    FRAME.to_csv(folder / "table.csv", index=False)
    pd.DataFrame(COUNTS[::-1], columns=list("abcd")).to_parquet(folder / "named counts.parquet")
    return {path.stem: str(path) for path in folder.iterdir()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders with what `load_run` needs: a run of each script by its module, and runs of other data by their kind."""
    path = tmp_path_factory.mktemp("data") / "mine.npz"
    x = images()
    path.write_bytes(npz(x_train=x, y_train=np.arange(24) % 3, x_test=x[:9], y_test=np.arange(9) % 3))
    paths, folders = sources(tmp_path_factory.mktemp("others")), {}
    for key, script in [*((script, script) for script in MODULES), *OTHERS.items()]:
        likelihood = "negative_binomial" if key == "named counts" else "auto"
        data = paths.get(key, str(path))
        config = script.Config(**SMALL, epochs=1, name="small", data=data, likelihood=likelihood, binarisation="none")
        dataset = quietly(lambda config=config: load_data(config.data, likelihood=config.likelihood))
        folders[key] = folder = tmp_path_factory.mktemp("runs") / "results" / script.__name__ / "small"
        folder.mkdir(parents=True)
        write_json(folder / "config.json", description(config, script.__name__, dataset) | {"updates": 1})
        save_networks(script.build(config, starting_likelihood(dataset)), folder)
        load_run(folder)
    return folders


def is_model(model):
    """Whether it takes rows and gives codes and rows; a damaged file may have given it other sizes."""
    rows = np.zeros((2, *model.image_shape), "float32")
    assert model.draw_codes(rows).shape == (2, model.prior.latent_dim)
    assert len(model.decode(np.zeros((2, model.prior.latent_dim)))) == 2
    with contextlib.suppress(DataError):  # an odd mean or deviation leaves the range of float32
        assert model.encode(model.transform.undo(rows)).shape == (2, model.prior.latent_dim)


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
        folder = runs[chance.choice(list(runs))]
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
    assert try_folders(30, runs).results == {"taken", "refused"}


# config.json


def places(value, path=()):
    """The way to every part of a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


def with_odd_value(content, way, value):
    """A copy of the content of config.json with another value in a place."""
    content = copy.deepcopy(content)
    inner = content
    for key in way[:-1]:
        inner = inner[key]
    inner[way[-1]] = value
    return content


def opened(folder: Path):
    """The model of a run. Its data are loaded too, as tools.evaluate does it; they may be others."""
    model = load_run(folder)
    with contextlib.suppress(RunError, DataError):
        quietly(lambda: run_data(folder))
    return model


PLAIN = st.none() | st.booleans() | st.integers(-3, 40) | st.floats() | st.text(max_size=9)
PLAIN |= st.sampled_from([10**12, 10**30, 10**400, -(2**63), 1e308, "nan", "os", "../x", "conv", "\0", "\ud800"])
JSON = st.recursive(
    PLAIN, lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=5), part), max_leaves=5
)
KEYS = st.sampled_from([vae_baseline, *OTHERS])
ODD = [None, True, 0, -1, 3, 10**30, 10**400, 1.5, 1e308, 5e-324, float("nan"), float("inf"), "", "x", "\ud800", "size"]
ODD += [[], [0], ["a", "b"], [3, 2], [3, 2, 3], ["a", "a"], [[]], {}, {"kind": "pixels"}, {"kind": "real"}]
ODD += ["bernoulli", "gaussian", "logistic", "poisson", "negative_binomial", "table", "counts", "real", "pixels"]
ODD += [{"name": "a", "values": ["x", "y"]}, {"name": "a", "mean": 0.0, "scale": 1.0}, ["red", "green", 3]]


@given(KEYS, st.data())
@FEW
def test_odd_values_in_config_json(runs, key, data):
    path = runs[key] / "config.json"
    content = json.loads(path.read_text())
    way = data.draw(st.sampled_from(places(content)[1:]) | st.sampled_from(places(content["data"])[1:]).map(in_data))
    content = with_odd_value(content, way, data.draw(JSON | st.sampled_from(ODD)))
    with instead(path, json.dumps(content).encode()):
        outcome(lambda: opened(path.parent), RunError, is_model)
        outcome(lambda: load_config(path.parent, RunConfig), RunError, lambda config: None)


def in_data(way):
    """The way to a part of a run's description of its data."""
    return ("data", *way)


def try_transforms(runs, seed: int, share: float) -> Tried:
    """Every value that says how rows become a model's, replaced by every odd value; or a share of all those pairs."""
    tried, chance = Tried(), random.Random(seed)
    for key in OTHERS:
        path = runs[key] / "config.json"
        content = json.loads(path.read_text())
        ways = [way for way in map(in_data, places(content["data"])[1:]) if way[1] in DESCRIBES]
        for way, value in ((way, value) for way in ways for value in ODD if chance.random() < share):
            with instead(path, json.dumps(with_odd_value(content, way, value)).encode()):
                result = outcome(lambda path=path: load_run(path.parent), RunError, is_model)
            tried.add(f"{key}, {way[1]}", result)
    return tried


DESCRIBES = ("likelihood", "transform", "image_shape", "white")  # the parts of "data" that a model is made of


def test_odd_transforms_in_config_json(runs):
    assert try_transforms(runs, 0, 0.06).results == {"taken", "refused"}


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

    x = inputs = keras.Input((3, 2), name="images")
    for layer in [encoder] if in_a_model_of_its_own else encoder.layers[1:]:
        x = layer(x)
    network = keras.Model(inputs, keras.layers.Lambda(trap)(x), name="encoder")
    network.save(tmp_path / "trap.keras")
    network(np.zeros((1, 3, 2)))
    assert sprung.exists()
    sprung.unlink()
    with instead(path, (tmp_path / "trap.keras").read_bytes()):
        assert outcome(lambda: load_run(path.parent), RunError, is_model) == "refused"
    assert not sprung.exists()


# Data and rows


@pytest.mark.parametrize("key", [vae_baseline, *OTHERS], ids=str)
def test_a_run_finds_its_own_data_and_no_other(runs, key):
    saved = {name: json.loads((folder / "config.json").read_text()) for name, folder in runs.items()}
    own = saved[key]
    assert quietly(lambda: run_data(runs[key])).checksum == own["data"]["sha256"]
    for path in {each["parameters"]["data"] for each in saved.values()} - {own["parameters"]["data"]}:
        given = lambda path=path: quietly(lambda: run_data(runs[key], path))  # noqa: E731
        assert outcome(given, (RunError, DataError), is_dataset) == "refused"


COUNT_FRAME = pd.DataFrame(COUNTS, columns=list("abcd"))
ODD_ROWS = {
    "frame": FRAME,
    "reordered": FRAME[FRAME.columns[::-1]],
    "one column less": FRAME.drop(columns="size"),
    "one column more": FRAME.assign(more=1),
    "renamed": FRAME.rename(columns=str.upper),
    "a name twice": pd.concat([FRAME, FRAME], axis=1),
    "no rows": FRAME[:0],
    "as objects": FRAME.astype(object),
    "as words": FRAME.astype(str),
    "as categories": FRAME.astype("category"),
    "nullable": FRAME.convert_dtypes(),
    "arrow": pa.Table.from_pandas(FRAME),
    "sparse frame": FRAME.assign(size=pd.arrays.SparseArray(FRAME["size"])),
    "big-endian frame": FRAME.assign(size=FRAME["size"].astype(">f8"), doors=FRAME["doors"].astype(">i2")),
    "dict of columns": FRAME.to_dict("list"),
    "structured": FRAME.to_records(),
    "series": FRAME["size"],
    "missing number": FRAME.assign(size=[np.nan, *[1.0] * 39]),
    "missing word": FRAME.assign(colour=[None, *["red"] * 39]),
    "unknown word": FRAME.assign(colour="pink"),
    "numbers as words": FRAME.assign(size="5"),
    "words as numbers": FRAME.assign(colour=5),
    "infinite": FRAME.assign(size=np.inf),
    "huge": FRAME.assign(size=1e300),
    "dates": FRAME.assign(size=pd.NaT),
    "complex": FRAME.assign(size=1j),
    "lists": FRAME.assign(size=[[1]] * 40, colour=[[1]] * 40),
    "traps": FRAME.assign(size=Trap()),
    "counts": COUNT_FRAME,
    "counts, reordered": COUNT_FRAME[list("dcba")],
    "counts, less": COUNT_FRAME[["a"]],
    "counts, nullable": COUNT_FRAME.convert_dtypes(),
    "counts, missing": COUNT_FRAME.astype(float).assign(a=np.nan),
    "counts, none": COUNT_FRAME.convert_dtypes().assign(a=pd.NA),
    "counts, negative": -COUNT_FRAME,
    "counts, words": COUNT_FRAME.astype(str),
    "counts, arrow": pa.Table.from_pandas(COUNT_FRAME),
    "counts, sparse": scipy.sparse.csr_array(COUNTS),
    "counts, old sparse": scipy.sparse.coo_matrix(COUNTS),
    "counts, huge": COUNTS * 2**55,
    "counts, beyond": COUNTS * 1e300,
    "counts, halves": COUNTS + 0.5,
    "counts, big-endian": COUNTS.astype(">i4"),
    "bits": COUNTS > 2,
    "longdouble": COUNTS.astype("g"),
    "masked": np.ma.masked_array(COUNTS, COUNTS > 2),
    "objects": COUNTS.astype(object),
    "words": np.array([["a"] * 4] * 40),
    "colour": COLOUR,
    "channels first": np.moveaxis(COLOUR, 3, 1),
    "grey": COLOUR[..., 0],
    "five axes": np.zeros((2, 3, 2, 3, 1)),
    "real": REAL,
    "real, float16": REAL.astype("f2"),
    "real, big-endian": REAL.astype(">f4"),
    "real, NaN": REAL * np.nan,
    "real, beyond": REAL * 1e300,
    "flat": REAL.reshape(40, 6),
    "flat, list": REAL.reshape(40, 6).tolist(),
    "flat, big-endian": REAL.reshape(40, 6).astype(">f8"),
    "one row": REAL[0],
    "ragged": [[1], [1, 2]],
    "sets": [{1}],
    "an empty list": [],
    "an empty dict": {},
    "bytes": b"rows",
    "a pickle": pickle.dumps(Trap()),
    "a trap": Trap(),
    "text": "size",
    "a number": 3,
    "nothing": None,
    "a function": len,
}
TAKEN = {
    "table": {"frame", "reordered", "one column more", "no rows", "nullable", "arrow", "sparse frame"},
    "counts": {"counts", "counts, reordered", "counts, sparse", "counts, old sparse", "counts, big-endian", "bits"},
    "named counts": {"counts", "counts, reordered", "counts, nullable", "counts, arrow", "counts, sparse", "bits"},
    "colour": {"colour", "channels first"},
    "real": {"real", "real, float16", "real, big-endian", "grey"},
    "rows": {"flat", "flat, list", "flat, big-endian"},
}


@pytest.mark.parametrize("key", OTHERS)
def test_odd_rows_are_encoded_or_refused(runs, key):
    model = load_run(runs[key])

    def are_codes(codes):
        assert codes.dtype == np.float32 and codes.ndim == 2 and codes.shape[1] == 2 and np.isfinite(codes).all()

    taken = set()
    for name, rows in ODD_ROWS.items():
        if outcome(lambda rows=rows: model.encode(rows), DataError, are_codes) == "taken":
            taken.add(name)
    assert TAKEN[key] - taken == set()
    assert not taken & {"missing number", "unknown word", "infinite", "real, NaN", "a trap", "words", "traps"}


@pytest.mark.parametrize("key", OTHERS)
def test_odd_codes_are_decoded_or_refused(runs, key):
    model = load_run(runs[key])
    whole = model.decode(np.zeros((3, 2)))
    zeros = {"codes": np.zeros((3, 2)), "frame of codes": pd.DataFrame(np.zeros((3, 2)))}
    for name, codes in (ODD_ROWS | zeros).items():
        result = outcome(lambda codes=codes: model.decode(codes), DataError, lambda rows: type(rows) is type(whole))
        assert result == "taken" or "codes" not in name


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_thousands_of_damaged_runs(runs, capsys):
    tried = [try_folders(1200, runs), try_transforms(runs, 1, 1)]
    with capsys.disabled():
        print("", *tried, sep="\n\n")
    assert sum(each.counts.total() for each in tried) >= 1200 + 2000
