"""tools/score.py: scores of all rows of a file, their splits, and ROC areas on held-out rows."""

import csv
import hashlib
import json
from types import SimpleNamespace

import aae_deterministic
import avb
import vae_baseline
from common.arrays import DataError
from common.data import load_data
from common.evaluation import anomalies
from common.files import RunError
from common.model import to_numpy
from common.plots.roc import Curve, roc_curves
from tools import score

import keras
import numpy as np
import pandas as pd
import pytest
from figure_helpers import require_legible
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.special import ndtr
from sklearn.metrics import roc_auc_score

SMALL = {"hidden_units": (8,), "epochs": 2, "batch_size": 20}


# Areas


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=4))
def test_the_area_is_that_of_scikit_learn_with_ties(rows):
    scores, anomalous = (np.array(each) for each in zip(*rows, strict=True))
    if 2 <= anomalous.sum() <= len(rows) - 2:
        area = anomalies.roc_area(scores.astype(float), anomalous)
        assert area.value == pytest.approx(roc_auc_score(anomalous, scores), abs=1e-12)
        shares = anomalies.roc_curve(scores.astype(float), anomalous)
        assert np.trapezoid(shares[1], shares[0]) == pytest.approx(area.value, abs=1e-12)


def test_the_standard_error_is_that_of_delongs_formula():
    """From the kernel of all pairs, as in the paper's section 3."""
    random = np.random.default_rng(0)
    high, low = random.integers(2, 9, 30).astype(float), random.integers(0, 7, 20).astype(float)
    kernel = (high[:, None] > low) + 0.5 * (high[:, None] == low)
    variance = kernel.mean(axis=1).var(ddof=1) / 30 + kernel.mean(axis=0).var(ddof=1) / 20
    area = anomalies.roc_area(np.concatenate([high, low]), np.arange(50) < 30)
    assert area.standard_error == pytest.approx(variance**0.5, rel=1e-12)


def test_two_standard_errors_cover_the_true_area():
    """Normal scores N(0, 1) and N(1, 1): the area is Phi(1 / sqrt 2)."""
    random, anomalous, hits = np.random.default_rng(1), np.arange(100) < 40, 0
    for _ in range(2000):
        area = anomalies.roc_area(random.normal(size=100) + anomalous, anomalous)
        hits += abs(area.value - ndtr(0.5**0.5)) < 2 * area.standard_error
    # 95.4 % of a normal distribution; the sd of this share is 0.5 %. DeLong's intervals are a little short of it.
    assert 0.93 < hits / 2000 < 0.97


def test_infinite_scores_and_nan_are_the_highest():
    anomalous = np.array([True, True, False, False, False])
    area = anomalies.roc_area(np.array([np.nan, np.inf, 1.0, 2.0, -np.inf]), anomalous)
    assert area == (1.0, 0.0)
    assert anomalies.roc_area(np.array([np.nan, 0.0, np.inf, 2.0, 1.0]), anomalous).value == pytest.approx(2.5 / 6)


def test_the_error_of_pca_is_the_distance_from_a_plane():
    random = np.random.default_rng(0)
    training = random.normal(size=(500, 2)) @ random.normal(size=(2, 5)) * [1, 10, 100, 1, 1] + 3
    error = anomalies.pca_error(training, 2, seed=0)
    np.testing.assert_allclose(error(training), 0, atol=1e-18)
    assert (error(training + random.normal(size=(500, 5))) > 1e-4).all()


def test_the_isolation_forest_finds_what_is_far_away():
    training = np.random.default_rng(0).normal(size=(300, 4))
    found = anomalies.isolation_forest(training, seed=3)
    assert found(np.full((1, 4), 8.0)) > found(training).max()
    np.testing.assert_array_equal(found(training), anomalies.isolation_forest(training, seed=3)(training))


# The figure


@pytest.mark.parametrize("far", [0.0, 3.0, 1e6])
def test_the_figure_is_legible(far):
    random, anomalous = np.random.default_rng(0), np.arange(300) < 100
    scores = random.normal(size=300) + far * anomalous
    scores[:2] = np.inf
    area, shares = anomalies.roc_area(scores, anomalous), anomalies.roc_curve(scores, anomalous)
    curves = [Curve(f"{name} $ {number}", *shares, area) for number, name in enumerate(score.NAMES.values())]
    description = "300 rows, of which 200 are normal. ROC areas with their standard errors by DeLong" * 2
    figure = roc_curves(scores, anomalous, curves, "Anomaly scores · VAE", description, "score: −log p(x|z), nats")
    require_legible(figure)
    shares = [bars.get_data().values.sum() for bars in figure.axes[0].patches]
    assert shares == pytest.approx([1.0, 1.0])  # every row is in a bar


@pytest.mark.parametrize("scores", [np.zeros(6), np.full(6, np.inf)])
def test_the_figure_of_equal_scores(scores):
    anomalous = np.arange(6) < 3
    curve = Curve("score", *anomalies.roc_curve(scores, anomalous), anomalies.roc_area(scores, anomalous))
    require_legible(roc_curves(scores, anomalous, [curve], "title", "description", "score"))


# Runs


def table(count: int, seed: int, shift: float = 0.0) -> pd.DataFrame:
    """Three correlated columns of numbers and one category."""
    random = np.random.default_rng(seed)
    z = random.normal(size=(count, 1))
    x = 10 * z + random.normal(size=(count, 3)) * [1, 2, 3] + shift
    return pd.DataFrame(x, columns=list("abc")).assign(kind=random.choice(["left", "right"], count))


@pytest.fixture(scope="module")
def runs(quick_module, tmp_path_factory):
    """Runs of three models on normal rows of a table, of one on images, and one on counts; and files to score."""
    folder = tmp_path_factory.mktemp("score")
    random = np.random.default_rng(0)
    normal, odd = table(300, 0), table(60, 1, shift=40.0)
    normal.to_csv(folder / "normal.csv", index=False)
    mixed = pd.concat([normal.assign(label="normal"), odd.assign(label="odd")])
    mixed = mixed.sample(frac=1, random_state=0)[["label", "c", "kind", "b", "a"]]
    mixed.to_csv(folder / "mixed.csv", index=False)
    images = random.integers(0, 256, (300, 8, 6), np.uint8)
    np.savez(folder / "images.npz", x=images, y=np.arange(300) % 3)
    counts = random.poisson(5, (300, 4))
    np.savez(folder / "counts.npz", x=counts + 300 * (random.random((300, 1)) < 0.1))
    results = str(folder / "results")
    for script, name, data, more in (
        (vae_baseline, "table", "normal.csv", {}),
        (aae_deterministic, "table", "normal.csv", {}),
        (avb, "table", "normal.csv", {"discriminator_units": (8,)}),
        (vae_baseline, "images", "images.npz", {"binarisation": "dynamic"}),
        (vae_baseline, "counts", "counts.npz", {"likelihood": "poisson"}),
    ):
        script.main(script.Config(data=str(folder / data), results=results, name=name, **SMALL | more))
    return folder


def scored(runs, tmp_path, run="vae_baseline/table", data="mixed.csv", name="scores.csv", **more):
    """The content of the JSON file, and the CSV as a frame."""
    config = score.Config(str(runs / "results" / run), str(runs / data), output=str(tmp_path / name), **more)
    content = score.main(config)
    assert json.loads((tmp_path / name).with_suffix(".json").read_text()) == content
    return content, pd.read_csv(tmp_path / name)


def test_every_row_is_in_its_place_with_its_split(runs, tmp_path, capsys):
    content, frame = scored(runs, tmp_path, normal=("normal",))
    mixed = pd.read_csv(runs / "mixed.csv")
    assert frame.row.tolist() == list(range(360)) and (frame.label == mixed.label).all()
    dataset = load_data(str(runs / "normal.csv"))
    of_row = {}
    for split, x in (("training", dataset.x_train), ("validation", dataset.x_val), ("test", dataset.x_test)):
        of_row |= dict.fromkeys(dataset.transform.undo(x).a.round(3), split)
    assert frame.split.tolist() == [of_row.get(a, "new") for a in mixed.a.round(3)]
    assert content["splits"] == {"training": 240, "validation": 30, "test": 30, "new": 60}
    assert content["labels"] == {"normal": 300, "odd": 60} and content["rows"] == 360
    assert content["held_out"] == {"normal": 30, "anomalous": 60}
    assert "reconstruction" in capsys.readouterr().out


def test_a_row_of_several_splits_counts_for_the_training():
    rows = np.arange(10, dtype="float32").reshape(5, 2)
    dataset = SimpleNamespace(x_train=rows[:2], x_val=rows[1:3], x_test=rows[1:4])
    found, checksum = score.splits_and_checksum([rows[3:], rows[:3]], (2,), dataset)
    assert found.tolist() == ["test", "new", "training", "training", "validation"]
    assert checksum == hashlib.sha256(np.concatenate([rows[3:], rows[:3]]).tobytes()).hexdigest()
    assert set(score.splits_and_checksum([rows], (2,), None)[0]) == {"new"}


def test_the_numbers_are_those_of_the_model(runs, tmp_path):
    """The KL is exact; ten draws give the reconstruction, and a hundred the bound, which is above the ELBO."""
    content, frame = scored(runs, tmp_path)
    model = score.load_run(runs / "results" / "vae_baseline" / "table")
    rows = model.transform.rows(pd.read_csv(runs / "mixed.csv"))
    inferred = model.inferred_rows(rows)
    kl = 0.5 * (inferred["mean"] ** 2 + np.exp(inferred["log_var"]) - 1 - inferred["log_var"]).sum(axis=1)
    np.testing.assert_allclose(frame.kl_nats, kl, rtol=1e-4, atol=1e-6)  # rounding of float32
    many = []
    for _ in range(50):
        parameters = model.decoder(keras.ops.convert_to_tensor(model.draw_codes(rows)))
        many.append(-to_numpy(model.likelihood.log_prob(keras.ops.convert_to_tensor(rows), parameters)))
    error = np.std(many, axis=0) * (1 / 50 + 1 / score.anomalies.RECONSTRUCTIONS) ** 0.5
    assert (np.abs(frame.reconstruction_nats - np.mean(many, axis=0)) < 5 * error + 1e-3).all()  # 360 rows
    elbo = -(np.mean(many, axis=0) + kl)
    assert (frame.weighted_bound_nats > elbo - 5 * error - 1e-3).all()
    np.testing.assert_array_equal(frame.score, -frame.weighted_bound_nats)
    assert content["score"] == "weighted_bound_nats" and content["settings"]["reconstruction_draws"] == 10


def test_areas_are_those_of_held_out_rows(runs, tmp_path):
    content, frame = scored(runs, tmp_path, normal=("normal",))
    held_out = frame[frame.split.isin(["test", "new"])]
    signs = {"weighted_bound_nats": -1, "reconstruction_nats": 1, "kl_nats": 1}
    assert list(content["roc_areas"]) == [*signs, "isolation_forest", "pca"]
    for name, sign in signs.items():
        expected = roc_auc_score(held_out.label == "odd", sign * held_out[name])
        assert content["roc_areas"][name]["area"] == pytest.approx(expected, abs=1e-9)
    assert content["roc_areas"]["isolation_forest"]["area"] > 0.9 and not content["null_because"]
    written = (tmp_path / "scores.png").read_bytes()
    for text in ("90 rows of mixed.csv", "30 normal rows", "60 anomalous rows", "IsolationForest", "PCA, 2 components"):
        assert text.encode() in written


def test_the_same_scores_again_and_in_small_batches(runs, tmp_path, monkeypatch):
    scored(runs, tmp_path, normal=("normal",))
    scored(runs, tmp_path, normal=("normal",), name="again.csv")
    for suffix in (".csv", ".json", ".png"):
        assert (tmp_path / f"scores{suffix}").read_bytes() == (tmp_path / f"again{suffix}").read_bytes()
    monkeypatch.setattr(score, "CHUNK", 70 * 100)  # six batches
    content, frame = scored(runs, tmp_path, name="small.csv")
    whole = pd.read_csv(tmp_path / "scores.csv")
    assert content["rows_sha256"] == json.loads((tmp_path / "scores.json").read_text())["rows_sha256"]
    np.testing.assert_allclose(frame.kl_nats, whole.kl_nats, rtol=1e-4, atol=1e-6)
    assert np.corrcoef(frame.score, whole.score)[0, 1] > 0.99  # other draws


def test_without_normal_the_tool_says_how_to_ask(runs, tmp_path, capsys):
    content, _ = scored(runs, tmp_path)
    assert "such as --normal normal\n" in capsys.readouterr().out
    assert "roc_areas" not in content and not (tmp_path / "scores.png").exists()


def test_a_point_has_no_bound(runs, tmp_path):
    content, frame = scored(runs, tmp_path, "aae_deterministic/table", normal=("normal",))
    assert frame.kl_nats.isna().all() and frame.weighted_bound_nats.isna().all()
    np.testing.assert_array_equal(frame.score, frame.reconstruction_nats)
    assert content["score"] == "reconstruction_nats" and content["settings"]["reconstruction_draws"] == 1
    assert list(content["roc_areas"]) == ["reconstruction_nats", "isolation_forest", "pca"]


def test_the_kl_of_avb_is_an_estimate(runs, tmp_path):
    content, frame = scored(runs, tmp_path, "avb/table", normal=("normal",))
    assert np.isfinite(frame.kl_estimated_nats).all() and np.isfinite(frame.weighted_bound_nats).all()
    assert "kl_estimated_nats" in content["roc_areas"]
    table(1, 5).to_csv(tmp_path / "one.csv", index=False)
    _, one = scored(runs, tmp_path, "avb/table", tmp_path / "one.csv", "one-scores.csv")
    assert len(one) == 1 and np.isfinite(one.kl_estimated_nats).all() and "label" not in one


def test_images(runs, tmp_path):
    content, frame = scored(runs, tmp_path, "vae_baseline/images", "images.npz", normal=("0", "2"))
    assert content["settings"]["binarisation"] == "dynamic" and content["labels"] == {"0": 100, "1": 100, "2": 100}
    assert content["splits"] == {"training": 240, "validation": 30, "test": 30, "new": 0}
    assert (frame.label == np.arange(300) % 3).all() and np.isfinite(frame.score).all()


def test_split_arrays_are_scored_in_turn(runs, tmp_path):
    x = np.load(runs / "images.npz")["x"]
    np.savez(tmp_path / "split.npz", x_test=x[:20], x_train=x[20:], y_test=["a"] * 20, y_train=["b"] * 280)
    _, frame = scored(runs, tmp_path, "vae_baseline/images", tmp_path / "split.npz")
    assert frame.label.tolist() == ["b"] * 280 + ["a"] * 20
    _, whole = scored(runs, tmp_path, "vae_baseline/images", "images.npz", "whole.csv")
    assert frame.split.tolist() == whole.split[20:].tolist() + whole.split[:20].tolist()


def test_a_folder_of_pictures_and_files_that_stay_on_disk(runs, tmp_path, monkeypatch):
    x = np.load(runs / "images.npz")["x"][:12]
    for number, picture in enumerate(x):
        path = tmp_path / "pictures" / ("even", "odd")[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    np.save(tmp_path / "some.npy", x[[0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11]])
    found, of_pictures = scored(runs, tmp_path, "vae_baseline/images", tmp_path / "pictures", "pictures.csv")
    assert of_pictures.label.tolist() == ["even"] * 6 + ["odd"] * 6 and found["splits"]["new"] == 0
    monkeypatch.setattr("common.pictures.IN_MEMORY", 100)
    for name, source in (("lazy.csv", "pictures"), ("npy.csv", "some.npy")):
        content, frame = scored(runs, tmp_path, "vae_baseline/images", tmp_path / source, name)
        assert content["rows_sha256"] == found["rows_sha256"]
        np.testing.assert_array_equal(frame.score, of_pictures.score)


def test_counts(runs, tmp_path):
    content, frame = scored(runs, tmp_path, "vae_baseline/counts", "counts.npz")
    assert content["splits"]["new"] == 0 and np.isfinite(frame.score).all()
    model = score.load_run(runs / "results" / "vae_baseline" / "counts")
    counts = np.load(runs / "counts.npz")["x"]
    sizes = counts.sum(axis=1, keepdims=True) / model.transform.total
    features = score.features_of(model, model.transform.rows(counts))
    np.testing.assert_allclose(features[:, :-1], np.log1p(counts / sizes), rtol=1e-5)


def test_pca_is_left_out_where_it_leaves_no_error(runs):
    model = score.load_run(runs / "results" / "vae_baseline" / "table")
    dataset = SimpleNamespace(x_train=np.random.default_rng(0).normal(size=(50, 5)).astype("float32"))
    assert list(score.fitted_baselines(model, dataset, 0)[0]) == ["isolation_forest", "pca"]
    model.prior = SimpleNamespace(latent_dim=5)
    baselines, reasons = score.fitted_baselines(model, dataset, 0)
    assert list(baselines) == ["isolation_forest"] and "no error in 5 dimensions" in reasons["pca"]


def test_rows_beyond_single_precision_are_refused(runs, tmp_path):
    odd = table(20, 7)
    odd.loc[[3, 5], "b"] = 1e32
    odd.to_csv(tmp_path / "far.csv", index=False)
    with pytest.raises(DataError, match=r"column b has a number more than 1e\+15 deviations from the training mean"):
        scored(runs, tmp_path, data=tmp_path / "far.csv")


def test_data_that_are_lost(runs, tmp_path, capsys):
    moved = tmp_path / "moved.csv"
    (runs / "normal.csv").rename(moved)
    try:
        content, frame = scored(runs, tmp_path, normal=("normal",))
        printed = capsys.readouterr().out
        assert "own data are missing" in printed and "may include training rows" in printed
        assert set(frame.split) == {"new"} and "no such file" in content["run_data_missing"]
        assert "training rows are missing" in content["null_because"]["pca"]
        assert b"perhaps training rows" in (tmp_path / "scores.png").read_bytes()
        found, _ = scored(runs, tmp_path, name="found.csv", normal=("normal",), run_data=str(moved))
        assert found["splits"]["training"] == 240 and found["run_data_missing"] is None
        with pytest.raises(RunError, match="was trained on other data"):
            scored(runs, tmp_path, name="other.csv", run_data=str(runs / "images.npz"))
    finally:
        moved.rename(runs / "normal.csv")


def test_the_usual_place_is_the_runs_folder(runs):
    assert score.stem_of("a/all.csv.gz") == "all" and score.stem_of("pictures/") == "pictures"
    folder = runs / "results" / "vae_baseline" / "table"
    config = score.Config(str(folder), str(runs / "mixed.csv"))
    score.main(config)
    with (folder / "scores-mixed.csv").open() as file:
        assert len(list(csv.reader(file))) == 361
    with pytest.raises(RunError, match=r"scores-mixed\.csv exists and stays unchanged"):
        score.main(config)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"run": "nowhere"}, "holds no complete run"),
        ({"data": "nowhere.csv"}, "no such file"),
        ({"data": "images.npz"}, "is no table; give"),
        ({"data": "other.csv"}, "has no column kind"),
        ({"data": "missing.csv"}, "has missing numbers"),
        ({"run": "vae_baseline/images", "data": "counts.npz"}, "this model takes"),
        ({"normal": ("healthy",)}, "--normal healthy is no label of these rows; they have normal, odd"),
        ({"data": "normal.csv", "normal": ("normal",)}, "--normal needs labels"),
        ({"normal": ("normal", "odd")}, "0 of the held-out rows are anomalous"),
        ({"data": "few.csv", "normal": ("normal",)}, "1 of the held-out rows is normal"),
        ({"normal": ()}, "--normal needs at least one"),
        ({"label_column": "colour"}, "has no column colour for labels"),
        ({"data": "images.npz", "label_column": "y"}, "is no table, so that --label-column"),
        ({"draws": 0}, "--draws must be"),
        ({"output": "scores.txt"}, "cannot write"),
        ({"output": "mixed.csv"}, "exists and stays unchanged"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_any_work(runs, tmp_path, monkeypatch, changed, reason):
    mixed = pd.read_csv(runs / "mixed.csv")
    mixed.drop(columns="kind").to_csv(runs / "other.csv", index=False)
    mixed.assign(b=mixed.b.where(mixed.b > 0)).to_csv(runs / "missing.csv", index=False)
    new = pd.concat([table(1, 8).assign(label="normal"), table(9, 9).assign(label="odd")])
    new.to_csv(runs / "few.csv", index=False)
    monkeypatch.setattr(score, "scored", None)
    given = {"run": "vae_baseline/table", "data": "mixed.csv", "output": "scores.csv"} | changed
    given |= {"run": str(runs / "results" / given["run"]), "data": str(runs / given["data"])}
    given["output"] = str((runs if given["output"] == "mixed.csv" else tmp_path) / given["output"])
    with pytest.raises((RunError, DataError), match=reason) as raised:
        score.main(score.Config(**given))
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())
