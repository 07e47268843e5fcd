"""The experiments: their own arithmetic against an oracle, and each from flags to numbers on a tiny set."""

import dataclasses
import json

import aae_deterministic
import avb
import vae_baseline
from common import measure, report
from common.evaluation import likelihood
from common.files import RunError, write_json
from common.model import LatentModel
from common.run import load_run
from experiments.avb import mnist
from experiments.comparison import compare, likelihoods
from experiments.study import complete_run
from tools import evaluate

import keras
import numpy as np
import pytest

BACKEND = keras.backend.backend()

# Evaluations, on 200 tiny images of three classes

FEW = {"annealed_images": 6, "chains": 4, "temperatures": (3, 6), "weighted_images": 8, "weighted_samples": 5}
TINY = {"hidden_units": (8,), "updates": 6, "batch_size": 20, "binarisation": "dynamic"}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The path of 200 images around three centres, with labels."""
    random = np.random.default_rng(0)
    y = np.arange(200) % 3
    x = np.clip(random.integers(0, 256, (3, 8, 6))[y] + random.normal(0, 20, (200, 8, 6)), 0, 255)
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(path, x=x.astype(np.uint8), y=y)
    return str(path)


@pytest.fixture
def quick(monkeypatch):
    """Nothing is compiled, which takes longer than it runs; pilots are as short, and runs leave no pictures."""
    for figures in ("code_figures", "image_figures"):
        monkeypatch.setattr(report, figures, lambda *_: {})
    monkeypatch.setattr(measure, "BANK_DRAWS", 20)
    if BACKEND != "jax":  # which only compiled takes less than minutes
        monkeypatch.setattr(
            LatentModel, "compile", lambda model, adam, **_: keras.Model.compile(model, adam, run_eagerly=True)
        )
    if BACKEND == "tensorflow":
        monkeypatch.setattr(likelihood, "compiled", lambda function: function)
    monkeypatch.setattr(likelihood, "PILOT_TEMPERATURES", 4)
    monkeypatch.setattr(likelihood, "LEAPFROG_STEPS", 2)


def tiny_run(script, digits, folder, **changes):
    config = script.Config(data=digits, results=str(folder), name="run", **TINY | changes)
    return complete_run(script, config)[0]


@pytest.mark.parametrize("script", [aae_deterministic, vae_baseline, avb])
def test_evaluate_adds_every_number_to_those_of_the_run(quick, digits, tmp_path, script):
    run = tiny_run(script, digits, tmp_path, **({"discriminator_units": (8,)} if script is avb else {}))
    before = json.loads((run / "metrics.json").read_text())
    write_json(run / "metrics.json", before | {"code_ks_max": -1.0})
    metrics = evaluate.main(evaluate.Config(str(run), likelihood=True, **FEW))
    assert metrics == json.loads((run / "metrics.json").read_text())
    assert before.keys() < metrics.keys() and metrics["code_ks_max"] > 0  # measured again
    assert all(metrics[key] == before[key] for key in ("updates", "train_seconds", "stopped_by"))
    assert {"nearest.png", "annealing.png"} <= {file.name for file in run.iterdir()}
    for key in ("sample_frechet_distance", "code_mlp_accuracy", "annealed_log_likelihood_nats", "annealed_gap_nats"):
        assert np.isfinite([metrics[key], metrics[f"{key}_standard_error"]]).all()
    assert [point["temperatures"] for point in metrics["annealed_curve"]] == [3, 6] and metrics["annealed_images"] == 6
    assert metrics["annealed_curve"][-1]["test"] == [metrics["annealed_log_likelihood_nats"], 0.0]  # the best itself
    posterior = load_run(run).posterior
    for key, exists in {
        "elbo_binarised_nats": posterior == "gaussian",
        "importance_weighted_bound_nats": posterior != "point",
    }.items():
        assert (metrics[key] is not None) == exists and (key in metrics["null_because"]) != exists
    if posterior == "gaussian":
        assert metrics["elbo_binarised_nats"] <= metrics["importance_weighted_bound_nats"]  # Jensen, on the same draws
    assert (tmp_path / "classifier").is_dir()

    again = evaluate.main(evaluate.Config(str(run)))  # without log p(x): what was known of it stays, and how
    assert again["annealed_log_likelihood_nats"] == metrics["annealed_log_likelihood_nats"]
    assert again["evaluation"] == metrics["evaluation"]
    assert again["evaluation"]["likelihood"] == FEW | {"temperatures": [3, 6]}


def test_evaluate_takes_a_folder_by_a_name_without_parents(quick, digits, tmp_path, monkeypatch):
    run = tiny_run(vae_baseline, digits, tmp_path)
    monkeypatch.chdir(run.parent)
    assert evaluate.main(evaluate.Config(run.name))["sample_nearest_distance"] > 0


def test_evaluate_without_labels_says_so(quick, digits, tmp_path):
    np.savez(tmp_path / "unlabelled.npz", x=np.load(digits)["x"])
    run = tiny_run(vae_baseline, str(tmp_path / "unlabelled.npz"), tmp_path)
    metrics = evaluate.main(evaluate.Config(str(run)))
    assert metrics["sample_frechet_distance"] is None and "labels" in metrics["null_because"]["sample_frechet_distance"]
    assert metrics["sample_nearest_distance"] > 0 and "annealed_log_likelihood_nats" not in metrics


def test_evaluate_refuses_other_data_and_folders_that_hold_no_run(quick, digits, tmp_path):
    with pytest.raises(RunError, match="no complete run"):
        evaluate.main(evaluate.Config(str(tmp_path)))
    run = tiny_run(vae_baseline, digits, tmp_path)
    np.savez(tmp_path / "other.npz", x=np.load(digits)["x"][::-1], y=np.load(digits)["y"])
    with pytest.raises(RunError, match="other data"):
        evaluate.main(evaluate.Config(str(run), data=str(tmp_path / "other.npz")))
    with pytest.raises(RunError, match="--chains"):
        evaluate.main(evaluate.Config(str(run), chains=1))


def test_compare_tabulates_models_and_goes_on_where_it_stopped(quick, digits, tmp_path, monkeypatch):
    few = FEW | {"temperatures": (3,), "weighted_images": 4}
    shared = {"data": digits, "latent_dim": 2, "hidden_units": (8,), "updates": 1, "results": str(tmp_path), **few}
    three = ("VAE", "deterministic AAE", "AVB without contrast")
    monkeypatch.setattr(compare, "MODELS", {model: compare.MODELS[model] for model in three})
    config = compare.Config(seeds=(0, 1), name="both", **shared)
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "measure", None)  # the scripts' ends have measured their runs
        first = compare.main(config)
    folder = tmp_path / "compare" / "both"
    for model, numbers in first.items():
        script, _, prefix = compare.MODELS[model]
        runs = folder.glob(f"{script.__name__}/{prefix}seed-*/metrics.json")
        values = [json.loads(path.read_text())["code_c2st_accuracy"] for path in runs]
        assert numbers["code_c2st_accuracy"] == pytest.approx(np.mean(values))
        assert numbers["code_c2st_accuracy_sd"] == pytest.approx(np.std(values, ddof=1))
    assert first["deterministic AAE"]["importance_weighted_bound_nats"] is None
    assert all(np.isfinite(numbers["annealed_log_likelihood_nats"]) for numbers in first.values())
    lines = (folder / "table.md").read_text().splitlines()
    assert all(line.count("|") - line.count("\\|") == 5 for line in lines)
    assert (folder / "table.csv").read_text().count("\n") == 1 + 3 * (len(lines) - 2)
    assert (folder / "comparison.png").is_file()

    stopped = folder / "vae_baseline" / "seed-0" / "metrics.json"  # as if killed between training and evaluation
    evaluated = json.loads(stopped.read_text())
    trained = evaluated | {"evaluation": {}, "code_mlp_accuracy": -1.0}
    write_json(stopped, trained)
    compare.main(config)
    assert json.loads(stopped.read_text()) == evaluated  # from the same draws
    first = json.loads((folder / "metrics.json").read_text())

    monkeypatch.setattr(compare, "evaluate", None)  # nothing is left to do
    assert compare.main(config) == first
    with pytest.raises(RunError, match="made with another --updates"):
        compare.main(dataclasses.replace(config, updates=99))


def test_likelihoods_measures_decoders_and_windows(quick, digits, tmp_path, monkeypatch):
    config = likelihoods.Config(
        data=digits,
        latent_dim=2,
        hidden_units=(8,),
        updates=2,
        few_updates=1,
        window_samples=50,
        results=str(tmp_path),
        **FEW,
    )
    metrics = likelihoods.main(config)
    folder = tmp_path / "likelihoods" / "default"
    assert list(metrics) == [
        "VAE, 1 updates",
        "VAE, 2 updates",
        "AVB",
        "Gaussian AAE",
        "50 real training digits",
        "40 k-means centroids",
    ]
    for found in list(metrics.values())[:4]:
        parts = "importance_weighted_bound_nats", "annealed_minus_weighted_nats"
        assert found["carried_log_likelihood_nats"] == pytest.approx(sum(found[part] for part in parts))
        errors = [found[f"{part}_standard_error"] for part in parts]
        assert found["carried_log_likelihood_nats_standard_error"] == pytest.approx(np.linalg.norm(errors))
    assert (folder / "table.md").read_text().count("\n") == 8 and (folder / "likelihoods.png").is_file()
    monkeypatch.setattr(likelihoods, "measure_likelihood", None)
    monkeypatch.setattr(likelihoods, "parzen", None)
    assert likelihoods.main(config) == metrics


def test_avb_mnist_sets_what_is_stated_beside_log_p(quick, digits, tmp_path):
    np.savez(tmp_path / "twice.npz", x=np.tile(np.load(digits)["x"], (2, 1, 1)))  # the VAE's batches are of 200
    config = mnist.Config(
        data=str(tmp_path / "twice.npz"),
        latent_dims=(2,),
        hidden_units=(8,),
        networks="conv",
        updates=2,
        seeds=(0,),
        results=str(tmp_path),
        **FEW | {"temperatures": (3,)},
    )
    with pytest.raises(RunError, match="200 or more"):
        mnist.main(dataclasses.replace(config, data=digits))
    metrics = mnist.main(config)
    folder = tmp_path / "avb_mnist" / "conv"
    assert list(metrics) == [f"{model}, 2-D" for model in mnist.MODELS]
    for model, found in metrics.items():
        difference = found["stated_elbo_nats"] - found["annealed_log_likelihood_nats"]
        assert found["violation_nats"] == pytest.approx(difference)
        elbo = -found["test_reconstruction_nats"] - found["stated_kl_nats"]
        assert found["stated_elbo_nats"] == pytest.approx(elbo, rel=1e-4), model  # each a mean in float32
    courses = [run["course"]["updates"][-1] for run in json.loads((folder / "runs.json").read_text()).values()]
    # Whole passes, of batches of 200, 100 and 100; the last model's T has two for each of the encoder.
    assert courses == [2, 3, 1.5]
    runs = [load_run(path.parent) for path in folder.glob("*/*/metrics.json")]
    assert sorted((run.title, getattr(run, "adaptive_contrast", None)) for run in runs) == [
        ("AVB", False),
        ("AVB", True),
        ("VAE", None),
    ]
    assert len({run.decoder.count_params() for run in runs}) == 1  # the same decoder
    assert all((folder / name).is_file() for name in ("table.md", "log_likelihood.png", "training.png"))


@pytest.mark.parametrize(
    ("latent_dim", "noise", "rate_factors"), [(8, (16, 32), (1.0, 3.0)), (9, (32, 64), (0.1, 4.0))]
)
def test_avb_mnist_takes_the_settings_of_its_code_size(latent_dim, noise, rate_factors, monkeypatch, tmp_path):
    """The official code's noise for 8 and for 32 dimensions; the encoder makes as many updates as any other's."""
    asked = []

    def complete_run(script, config):
        asked.append(config)
        raise InterruptedError

    monkeypatch.setattr(mnist, "complete_run", complete_run)
    with pytest.raises(InterruptedError):
        mnist.measured(mnist.Config(), None, "AVB, adaptive contrast", latent_dim, 0, tmp_path)
    (config,) = asked
    assert (config.noise_basis, config.noise_dim) == noise
    assert (config.encoder_rate_factor, config.decoder_rate_factor) == rate_factors
    assert config.updates == config.discriminator_steps * mnist.Config().updates


def test_the_search_ranks_candidates_by_validation_images_alone(quick, digits, tmp_path, monkeypatch):
    few = {
        "VAE": {"still": {"learning_rate": 1e-12}, "warm-up": {"warm_up": 0.5, "learning_rate": 0.03}},
        "AVB": {"two updates of T": {"discriminator_steps": 2}},
    }
    monkeypatch.setattr(mnist, "CANDIDATES", few)
    monkeypatch.setattr(mnist, "MODELS", {model: mnist.MODELS[model] for model in few})
    monkeypatch.setattr(mnist, "SEARCH_IMAGES", 10)
    monkeypatch.setattr(mnist, "SEARCH_TEMPERATURES", 3)
    monkeypatch.setattr(mnist, "SEARCH_SEEDS", (100, 101))
    monkeypatch.setattr(mnist, "FINALISTS", 1)
    x, blank = np.load(digits)["x"], np.zeros((20, 8, 6), np.uint8)
    paths = [str(tmp_path / name) for name in ("seen.npz", "blank.npz")]
    for path, x_test in zip(paths, (x[180:], blank), strict=True):
        np.savez(path, x_train=x[:180], y_train=np.arange(180) % 3, x_test=x_test, y_test=np.arange(20) % 3)
    config = mnist.Config(search=True, latent_dims=(2,), hidden_units=(8,), search_updates=2, results=str(tmp_path))
    found = [
        mnist.main(dataclasses.replace(config, data=path, name=name))
        for path, name in zip(paths, ("seen", "blank"), strict=True)
    ]
    # The candidate that learns is the one that is trained with the second seed too, and stands first.
    seeds = {"VAE, 2-D: warm-up": [100, 101], "VAE, 2-D: still": [100], "AVB, 2-D: two updates of T": [100, 101]}
    assert {name: run["seeds"] for name, run in found[0].items()} == seeds
    assert list(found[0]) == list(seeds)
    assert (tmp_path / "avb_mnist" / "seen" / "table.md").read_text().count("±") == 4
    values = [[run["validation_log_likelihood_nats"] for run in runs.values()] for runs in found]
    assert np.isfinite(values).all()
    assert values[0] == pytest.approx(values[1])  # the test images, blank in the second, count for nothing
