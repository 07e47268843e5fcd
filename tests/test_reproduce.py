"""A run that is repeated from its config.json: the same numbers, or a line that says which are not."""

import json
import math
import shutil
from pathlib import Path

import vae_baseline
from common.files import RunError, write_json
from experiments import study
from experiments.aae import clustering
from tools import evaluate, reproduce

import pytest
import small_runs

RUN = Path("results/vae_baseline/r")


def read(file: str) -> dict:
    """What the run's config or metrics say."""
    return json.loads((RUN / f"{file}.json").read_text())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a small run."""
    folder = tmp_path_factory.mktemp("made")
    small_runs.tiny_images(folder / "tiny.npz")
    small = {"hidden_units": (8,), "batch_size": 20, "epochs": 2, "binarisation": "dynamic"}
    with pytest.MonkeyPatch.context() as patch:
        small_runs.quicken(patch)
        patch.chdir(folder)
        vae_baseline.main(vae_baseline.Config(data="tiny.npz", results="results", name="r", **small))
    return folder


@pytest.fixture(autouse=True)
def here(made, quick, monkeypatch):
    monkeypatch.chdir(made)


def changed(name: str, **changes) -> str:
    """A copy of the run whose files `config` or `metrics` say something else."""
    folder = RUN.with_name(name)
    folder.mkdir(exist_ok=True)
    for file in ("config", "metrics"):
        write_json(folder / f"{file}.json", read(file) | changes.get(file, {}))
    return str(folder)


def test_a_run_is_repeated_to_the_last_digit(capsys):
    reproduce.reproduce(reproduce.Config(str(RUN)))
    printed = capsys.readouterr().out
    assert "every metric is within 0 of the recorded number" in printed
    compared = [line.split(":")[0] for line in printed.splitlines() if "relative difference 0" in line]
    assert {key for key, value in read("metrics").items() if isinstance(value, float)} - {*reproduce.COSTS} <= {
        *compared
    }


def test_a_metric_that_differs_ends_in_exit_code_1(capsys, monkeypatch):
    folder = changed("other", metrics={"kl_nats": 1.001 * read("metrics")["kl_nats"]})
    repeated = read("metrics")
    monkeypatch.setattr(vae_baseline, "main", lambda config: repeated)  # as the test before found
    with pytest.raises(SystemExit) as stop:
        reproduce.reproduce(reproduce.Config(folder))
    assert stop.value.code == 1
    expected = "1 metrics differ by more than 0; the largest difference is that of kl_nats, 0.000999"
    assert expected in capsys.readouterr().out
    reproduce.reproduce(reproduce.Config(folder, tolerance=0.002))


def test_a_run_that_was_evaluated_is_evaluated_again(capsys, monkeypatch):
    """`tools.evaluate` draws codes and samples of its own: the script's numbers alone would differ."""
    folder = changed("evaluated")
    for path in RUN.glob("*.keras"):
        shutil.copy(path, folder)
    evaluate.main(evaluate.Config(folder))
    kept = json.loads((Path(folder) / "metrics.json").read_text())
    assert kept["negative_elbo_nats"] != read("metrics")["negative_elbo_nats"]
    reproduce.reproduce(reproduce.Config(folder, results="evaluated-again"))
    printed = capsys.readouterr().out
    assert f"sample_nearest_distance: recorded {kept['sample_nearest_distance']}, now" in printed


@pytest.mark.parametrize("script", ["experiments.aae.clustering", "aae_clustering"])
def test_an_experiment_is_repeated_in_the_folder_of_its_new_name(tmp_path, monkeypatch, capsys, script):
    """Also one that earlier code made, whose config.json has the earlier name."""
    data = small_runs.tiny_images(tmp_path / "labelled.npz", y=[number % 3 for number in range(300)])
    cases = {"3 clusters": lambda part: dict.fromkeys(clustering.COLUMNS, 0.25)}
    declared = clustering.STUDY._replace(cases=lambda config, dataset: cases, figures=lambda results, rows: {})
    monkeypatch.setattr(clustering, "main", lambda config: study.run(declared, config))
    clustering.main(clustering.Config(data=data, clusters=(3,), seeds=(0, 1), batch_size=20, results=str(tmp_path)))
    folder = tmp_path / "aae_clustering" / "default"
    saved = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", saved | {"script": script})
    reproduce.reproduce(reproduce.Config(str(folder), results=str(tmp_path / "again")))
    assert "3 clusters: nmi: recorded 0.25, now 0.25; relative difference 0" in capsys.readouterr().out
    (config,) = (tmp_path / "again").rglob("config.json")
    assert config.parent.parent == tmp_path / "again" / "aae_clustering"
    repeated = json.loads(config.read_text())
    assert repeated["script"] == "experiments.aae.clustering"
    own = ("clusters", "seeds", "batch_size", "data")
    assert [repeated["parameters"][name] for name in own] == [saved["parameters"][name] for name in own]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": {"stopped_by": "it was interrupted"}}, "was interrupted"),
        ({"config": {"resumed": [{"updates_before": 5}]}}, "was prolonged"),
        ({"config": {"backend": "abacus"}}, "set KERAS_BACKEND=abacus"),
        ({"config": {"script": "os"}}, "names no script of this project"),
        ({"config": {"data": {"sha256": "0"}}}, "trained on other data"),
    ],
)
def test_what_cannot_be_repeated_is_refused(changes, message):
    with pytest.raises(RunError, match=message):
        reproduce.main(reproduce.Config(changed("odd", **changes)))


@pytest.mark.parametrize("folder", ["nowhere", "results"])
def test_a_folder_without_a_run_is_refused(folder):
    with pytest.raises(RunError, match="holds no complete run"):
        reproduce.main(reproduce.Config(folder))


@pytest.mark.parametrize(
    ("recorded", "repeated", "by"),
    [(2.0, 2.0, 0.0), (2.0, 1.0, 0.5), (-2.0, 2.0, 2.0), (None, None, 0.0), (None, 1.0, math.inf), (0, 1e-9, math.inf)],
)
def test_a_difference_is_relative_to_what_was_recorded(recorded, repeated, by):
    assert reproduce.difference(recorded, repeated) == by


def test_metrics_are_compared_one_by_one_except_costs():
    nested = {"a": {"b": [1, {"seconds": 2.0, "c": "d"}]}, "train_seconds": 3, "e": None}
    assert reproduce.flat_metrics(nested) == {"a: b: 0": 1, "a: b: 1: c": "d", "e": None}
