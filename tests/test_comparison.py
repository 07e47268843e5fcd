"""tools/evaluate.py and experiments/comparison/compare.py: from flags to numbers, on a tiny labelled data set."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import aae_deterministic
import avb
import common.run
import vae_baseline
from common import scripts
from common.data import load_data
from common.files import RunError, write_json
from common.metrics import METRICS
from common.run import load_run
from experiments import study
from experiments.comparison import compare, models
from experiments.study import complete_run
from tools import evaluate

import numpy as np
import pytest
import small_runs

FEW = {"annealed_images": 6, "chains": 4, "temperatures": (3, 6), "weighted_images": 8, "weighted_samples": 5}
TINY = {"hidden_units": (8,), "updates": 6, "batch_size": 20, "binarisation": "dynamic"}


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Little to compile, draw and measure; see `small_runs`."""
    with pytest.MonkeyPatch.context() as patch:
        small_runs.uncompiled(patch)
        small_runs.short_annealing(patch)
        small_runs.cheap_instruments(patch)
        small_runs.texts_for_figures(patch)
        for module in (evaluate, compare, common.run):
            patch.setattr(module, "git_commit", lambda: "a commit")  # another may come between two evaluations
        yield


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The path of 200 images around three centres, with labels."""
    random = np.random.default_rng(0)
    y = np.arange(200) % 3
    x = np.clip(random.integers(0, 256, (3, 8, 6))[y] + random.normal(0, 20, (200, 8, 6)), 0, 255)
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(path, x=x.astype(np.uint8), y=y)
    return str(path)


def tiny_run(script, data, folder, **changes):
    config = script.Config(data=data, results=str(folder), name="run", **TINY | changes)
    return complete_run(script, config, load_data(data))[0]


@pytest.fixture(scope="module")
def vae_run(digits, tmp_path_factory):
    """A run of the VAE that no test changes."""
    return tiny_run(vae_baseline, digits, tmp_path_factory.mktemp("results"))


@pytest.fixture
def vae_copy(vae_run, tmp_path):
    """The same run in a folder of this test."""
    return Path(shutil.copytree(vae_run, tmp_path / "vae_baseline" / "run"))


# Evaluations


@pytest.mark.parametrize("script", [aae_deterministic, vae_baseline, avb])
def test_evaluate_adds_every_number_to_those_of_the_run(digits, vae_copy, tmp_path, script):
    own = {"discriminator_units": (8,)} if script is avb else {}
    run = vae_copy if script is vae_baseline else tiny_run(script, digits, tmp_path, **own)
    before = json.loads((run / "metrics.json").read_text())
    write_json(run / "metrics.json", before | {"code_ks_max": -1.0})
    metrics = evaluate.main(evaluate.Config(str(run), likelihood=True, **FEW))
    assert metrics == json.loads((run / "metrics.json").read_text())
    names = [{key.removesuffix("_standard_error") for key in numbers} for numbers in (before, metrics)]
    assert names[0] < names[1] and metrics["code_ks_max"] > 0  # measured again
    assert {key.removesuffix("_standard_error") for key in metrics} <= METRICS.keys() | {"evaluation"}
    assert all(metrics[key] == before[key] for key in ("updates", "train_seconds", "stopped_by"))
    assert {"nearest.png", "annealing.png"} <= {file.name for file in run.iterdir()}
    for key in ("sample_frechet_distance", "code_mlp_accuracy", "annealed_log_likelihood_nats", "annealed_gap_nats"):
        assert np.isfinite([metrics[key], metrics[f"{key}_standard_error"]]).all()
    assert [point["temperatures"] for point in metrics["annealed_curve"]] == [3, 6] and metrics["annealed_images"] == 6
    plain, error = metrics["annealed_curve"][-1]["test"]  # of the chains alone, before their check
    assert error == 0.0 and plain == pytest.approx(metrics["annealed_log_likelihood_nats"], abs=0.5)
    posterior = load_run(run).posterior
    for key, exists in {
        "elbo_binarised_nats": posterior == "gaussian",
        "importance_weighted_bound_nats": posterior != "point",
    }.items():
        assert (metrics[key] is not None) == exists and (key in metrics["null_because"]) != exists
    if posterior == "gaussian":
        assert metrics["elbo_binarised_nats"] <= metrics["importance_weighted_bound_nats"]  # Jensen, on the same draws
    assert (tmp_path / "classifier").is_dir()

    again = evaluate.main(evaluate.Config(str(run)))  # without log p(x): the numbers of the first time stay
    assert again["annealed_log_likelihood_nats"] == metrics["annealed_log_likelihood_nats"]
    assert again["evaluation"] == metrics["evaluation"]
    assert again["evaluation"]["likelihood"] == FEW | {"temperatures": [3, 6]}


def test_evaluate_takes_a_folder_by_a_name_without_parents(vae_copy, monkeypatch):
    monkeypatch.chdir(vae_copy.parent)
    assert evaluate.main(evaluate.Config(vae_copy.name))["sample_nearest_distance"] > 0


def test_evaluate_without_labels_says_so(digits, tmp_path):
    np.savez(tmp_path / "unlabelled.npz", x=np.load(digits)["x"])
    run = tiny_run(vae_baseline, str(tmp_path / "unlabelled.npz"), tmp_path)
    metrics = evaluate.main(evaluate.Config(str(run)))
    assert metrics["sample_frechet_distance"] is None and "labels" in metrics["null_because"]["sample_frechet_distance"]
    assert metrics["sample_nearest_distance"] > 0 and "annealed_log_likelihood_nats" not in metrics


def test_evaluate_refuses_other_data_and_folders_that_hold_no_run(digits, vae_run, tmp_path):
    with pytest.raises(RunError, match="no complete run"):
        evaluate.main(evaluate.Config(str(tmp_path)))
    np.savez(tmp_path / "other.npz", x=np.load(digits)["x"][::-1], y=np.load(digits)["y"])
    with pytest.raises(RunError, match="other data"):
        evaluate.main(evaluate.Config(str(vae_run), data=str(tmp_path / "other.npz")))
    with pytest.raises(RunError, match="--chains"):
        evaluate.main(evaluate.Config(str(vae_run), chains=1))


@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_evaluate_refuses_damaged_numbers_in_one_line(vae_copy, content):
    (vae_copy / "metrics.json").write_text(content)
    with pytest.raises(RunError, match="no complete run") as refusal:
        evaluate.main(evaluate.Config(str(vae_copy)))
    assert "\n" not in str(refusal.value)


# Runs of scripts within an experiment


def test_a_run_in_an_experiment_makes_the_passes_nearest_to_its_updates(digits, tmp_path):
    """Without the 40 passes at which a script's own default ends."""
    requested = []

    def main(config):
        requested.append(config)
        return {"updates": 8 * config.epochs, "stopped_by": None, "train_seconds": 1.0}

    script, dataset = SimpleNamespace(__name__="stub", main=main), load_data(digits)
    config = vae_baseline.Config(updates=401, batch_size=20, results=str(tmp_path), name="run")
    folder, made = complete_run(script, config, dataset)
    assert folder == tmp_path / "stub" / "run" and requested[0].epochs == 50  # 160 images, 8 batches a pass
    assert made == {"updates": 400, "epochs": 50, "images": 8000, "seconds": 1.0, "stopped_by": None}


def test_a_complete_run_is_used_as_it_is_and_one_of_other_parameters_refused(digits, vae_copy, monkeypatch):
    monkeypatch.setattr(vae_baseline, "main", None)
    assert tiny_run(vae_baseline, digits, vae_copy.parents[1]) == vae_copy
    with pytest.raises(RunError, match="was trained with another --beta"):
        tiny_run(vae_baseline, digits, vae_copy.parents[1], beta=2.0)


# The comparison


def test_compare_has_every_script_and_avb_without_contrast(monkeypatch):
    titles = ["Deterministic AAE", "Gaussian AAE", "Universal AAE", "AVB", "VAE"]
    assert [scripts.title_of(scripts.load_script(name)) for name in scripts.SCRIPTS] == titles
    assert list(models.models()) == [*titles, "AVB without contrast"]
    sixth = ModuleType("sixth")  # a script more, registered by one line
    text = Path(vae_baseline.__file__).read_text().replace('"VAE"', '"Sixth"')
    monkeypatch.setitem(sys.modules, "sixth", sixth)
    exec(compile(text, "sixth.py", "exec"), vars(sixth))
    monkeypatch.setattr(scripts, "SCRIPTS", (*scripts.SCRIPTS, "sixth"))
    assert models.models()["Sixth"] == (sixth, {}) and "Sixth" in compare.cases(compare.Config(), None)


@pytest.fixture(scope="module")
def two_models():
    """The two models that are compared here, in place of all."""
    two = {title: models.models()[title] for title in ("Deterministic AAE", "AVB without contrast")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "models", lambda: two)
        yield


@pytest.fixture(scope="module")
def compared(digits, two_models, tmp_path_factory):
    """A comparison of two seeds: its Config, metrics and folder."""
    results = tmp_path_factory.mktemp("results")
    config = compare.Config(
        data=digits,
        latent_dim=2,
        hidden_units=(8,),
        updates=1,
        seeds=(0, 1),
        results=str(results),
        name="both",
        **FEW | {"temperatures": (3,), "weighted_images": 4},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "measure", None)  # the scripts' ends have measured their runs
        metrics = compare.main(config)
    return config, metrics, results / "comparison_compare" / "both"


def test_compare_tabulates_the_runs_of_its_models(compared):
    _, metrics, folder = compared
    for title, means in metrics.items():
        script = "avb" if title.startswith("AVB") else "aae_deterministic"
        runs = list((folder.parents[1] / "comparison_models" / script).glob("*-2d-8-1-updates*-seed-*/metrics.json"))
        values = [json.loads(path.read_text())["code_c2st_accuracy"] for path in runs]
        assert len(values) == 2
        assert means["code_c2st_accuracy"] == pytest.approx(np.mean(values))
        assert means["code_c2st_accuracy_sd"] == pytest.approx(np.std(values, ddof=1))
        assert means["updates"] == 1
    run = next((folder.parents[1] / "comparison_models" / "avb").glob("*-adaptive-contrast-false-seed-0"))
    assert load_run(run).adaptive_contrast is False
    assert metrics["Deterministic AAE"]["importance_weighted_bound_nats"] is None
    assert all(np.isfinite(means["annealed_log_likelihood_nats"]) for means in metrics.values())
    lines = (folder / "table.md").read_text().splitlines()
    assert all(line.count("|") - line.count("\\|") == 4 for line in lines)
    assert (folder / "table.csv").read_text().count("\n") == 1 + 2 * (len(lines) - 2)
    assert (folder / "comparison.png").is_file()


def test_compare_evaluates_a_run_that_was_trained_before_a_kill(compared, monkeypatch):
    config, metrics, folder = compared
    path = next((folder.parents[1] / "comparison_models" / "aae_deterministic").glob("*-seed-0")) / "metrics.json"
    runs, evaluated = json.loads((folder / "runs.json").read_text()), json.loads(path.read_text())
    missing = {name: run for name, run in runs.items() if name != "Deterministic AAE, seed 0"}
    write_json(folder / "runs.json", missing)
    write_json(path, {key: value for key, value in evaluated.items() if key != "evaluation"} | {"active_units": -1})
    monkeypatch.setattr(aae_deterministic, "main", None)
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "measure", None)  # the script's numbers are not measured again
        again = compare.main(config)
    assert json.loads(path.read_text()) == evaluated | {"active_units": -1}  # from the same draws
    assert again["AVB without contrast"] == metrics["AVB without contrast"]

    write_json(path, evaluated)  # as if killed after the evaluation
    write_json(folder / "runs.json", missing)
    monkeypatch.setattr(compare, "evaluate", None)
    assert compare.main(config) == metrics


def test_compare_makes_nothing_again_and_refuses_other_parameters(compared, monkeypatch):
    config, metrics, _ = compared
    monkeypatch.setattr(compare, "case", lambda *_: pytest.fail("made again"))
    assert compare.main(config) == metrics
    with pytest.raises(RunError, match="made with another --updates"):
        compare.main(dataclasses.replace(config, updates=99))


def test_compare_refuses_too_few_images_before_any_work(tmp_path):
    np.savez(tmp_path / "few.npz", x_train=np.full((90, 2, 2), 7, np.uint8), x_test=np.full((30, 2, 2), 7, np.uint8))
    with pytest.raises(RunError, match="100 or more"):
        compare.main(compare.Config(data=str(tmp_path / "few.npz"), results=str(tmp_path / "results")))
    assert not (tmp_path / "results").exists()


def test_codes_of_every_size_have_a_folder_of_their_own():
    assert study.presets(compare.STUDY, compare.Config(latent_dim=2))["name"] == "latent-2"
    quick = study.presets(compare.STUDY, compare.Config(quick=True))
    assert (quick["name"], quick["updates"]) == ("latent-8-quick", 800)


def test_numbers_for_mnist_stand_beside_mnist_alone(tmp_path):
    """A file whose name begins with MNIST is not MNIST."""
    np.savez(tmp_path / "MNIST_rotated.npz", x=np.full((30, 2, 2), 7, np.uint8))
    other = load_data(str(tmp_path / "MNIST_rotated.npz"))
    assert other.name == "MNIST_rotated" and study.reported({"AAE": 1.0}, other) == {}
    assert study.reported({"AAE": 1.0}, dataclasses.replace(other, is_mnist=True)) == {"AAE": 1.0}
