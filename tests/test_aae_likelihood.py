"""Table 1 of the AAE paper: what is tabulated is what the instruments say of the models that were asked for."""

import dataclasses
import json

from common import measure
from common.evaluation import likelihood
from common.files import RunError
from common.measure_likelihood import LikelihoodSettings, annealed
from common.model import LatentModel
from common.progress import TimeLeft
from experiments.comparison import aae_likelihood
from experiments.comparison.aae_likelihood import AAE, DIFFERENCE, VAE

import keras
import numpy as np
import pytest
from scipy.special import logsumexp

SHAPE = (4, 3)
SEEDS = (3, 4)
FEW = {"annealed_images": 5, "chains": 2, "temperatures": (3, 6)}


@pytest.fixture
def light(monkeypatch):
    """Few samples and short chains; nothing is compiled that runs without, which takes longer than it runs."""
    monkeypatch.setattr(LatentModel, "faster_with_xla", False)
    if keras.backend.backend() == "tensorflow":
        monkeypatch.setattr(likelihood, "compiled", lambda function: function)
    monkeypatch.setattr(aae_likelihood, "WINDOWS", 50)
    monkeypatch.setattr(likelihood, "PILOT_TEMPERATURES", 4)
    monkeypatch.setattr(likelihood, "LEAPFROG_STEPS", 2)


@pytest.fixture
def config(tmp_path):
    """Of two seeds on 260 images: 208 to train, 26 to validate, 26 to test."""
    random = np.random.default_rng(0)
    np.savez(tmp_path / "tiny.npz", x=random.integers(0, 256, (260, *SHAPE), dtype=np.uint8))
    return aae_likelihood.Config(
        data=str(tmp_path / "tiny.npz"),
        latent_dim=2,
        hidden_units=(8,),
        updates=2,
        seeds=SEEDS,
        results=str(tmp_path),
        name="r",
        **FEW,
    )


@pytest.fixture
def watched(monkeypatch):
    """The models that are trained, by title and seed, and the samples that each Parzen window stood on, in order."""
    models, windows = {}, []
    train, parzen = aae_likelihood.train_part, aae_likelihood.parzen

    def training(model, dataset, asked, folder):
        models[model.title, asked.seed] = model
        return train(model, dataset, asked, folder)

    def measured(samples, dataset):
        windows.append(samples)
        return parzen(samples, dataset)

    monkeypatch.setattr(aae_likelihood, "train_part", training)
    monkeypatch.setattr(aae_likelihood, "parzen", measured)
    return models, windows


def parzen_by_hand(samples, images, sigma):
    """Mean log density of images under a mixture of Gaussians, all of deviation sigma, on the samples."""
    samples, images = (np.asarray(array, "float64").reshape(len(array), -1) for array in (samples, images))
    squares = np.square((images[:, None] - samples[None]) / sigma).sum(axis=2)
    log_normal = -0.5 * squares - images.shape[1] * np.log(sigma * np.sqrt(2 * np.pi))
    return (logsumexp(log_normal, axis=1) - np.log(len(samples))).mean()


def test_the_models_are_those_of_the_paper():
    """Section 3's prior and code for the AAE, the VAE's prior is N(0, I); both are trained on grey images."""
    default = aae_likelihood.Config()
    both = {model: aae_likelihood.configured(default, model, 7) for model in aae_likelihood.MODELS}
    assert both[AAE].prior_scale == 5.0 and both[VAE].prior_scale == 1.0
    for asked in both.values():
        assert (asked.latent_dim, asked.hidden_units, asked.binarisation) == (8, (1000, 1000), "none")
        assert (asked.seed, asked.updates, asked.batch_size) == (7, default.updates, 100)
    built = aae_likelihood.MODELS[AAE].build(dataclasses.replace(both[AAE], hidden_units=(4,)), SHAPE)
    assert built.adversarial_weight == default.adversarial_weight
    assert built.prior.scale == 5.0 and built.prior.latent_dim == 8 and built.posterior == "point"


def test_what_is_tabulated_is_what_the_instruments_say(light, config, watched, tmp_path):
    models, windows = watched
    metrics = aae_likelihood.main(config)
    folder = tmp_path / "aae_likelihood" / "r"
    runs = json.loads((folder / "runs.json").read_text())
    assert list(metrics) == [AAE, VAE, "50 real training digits", "50 k-means centroids"]
    assert list(models) == [(title, seed) for seed in SEEDS for title in ("Deterministic AAE", "VAE")]

    # The annealed column, measured once more: every draw of it has a seed of its own.
    dataset = aae_likelihood.load_mnist(config.data)
    settings = LikelihoodSettings(*FEW.values(), 0, 0)
    estimates = {}
    for model, title in ((AAE, "Deterministic AAE"), (VAE, "VAE")):
        found = [annealed(models[title, seed], dataset, settings, TimeLeft()) for seed in SEEDS]
        estimates[model] = [of_images for _, of_images in found]
        value = np.mean([numbers["annealed_log_likelihood_nats"].value for numbers, _ in found])
        assert metrics[model]["annealed_log_likelihood_nats"] == pytest.approx(value, rel=1e-4)
        gaps = [numbers["annealed_gap_nats"].value for numbers, _ in found]
        assert metrics[model]["annealed_gap_nats_sd"] == pytest.approx(np.std(gaps, ddof=1), rel=1e-2, abs=1e-3)

    # Image by image, the error is that of the differences.
    apart = np.array(estimates[AAE]) - np.array(estimates[VAE])  # (seeds, images)
    assert metrics[AAE][DIFFERENCE] == pytest.approx(apart.mean(), abs=1e-3)
    errors = apart.std(axis=1, ddof=1) / np.sqrt(FEW["annealed_images"])
    assert metrics[AAE][f"{DIFFERENCE}_standard_error"] == pytest.approx(errors.mean(), rel=1e-2, abs=1e-3)
    assert metrics[VAE][DIFFERENCE] is None

    # Parzen's column against a mixture written out; the order is that of the parts.
    assert [len(samples) for samples in windows] == [50, 50, 50, 50] * len(SEEDS)
    for name, samples in zip(runs, windows, strict=True):
        expected = parzen_by_hand(samples, dataset.x_test, runs[name]["parzen_sigma"])
        assert runs[name]["parzen_log_likelihood_nats"] == pytest.approx(expected, rel=1e-6)
        if "digits" in name:
            training = {image.tobytes() for image in dataset.x_train}
            assert {image.tobytes() for image in samples} <= training
    with np.load(folder / "aae_deterministic.npz") as arrays:
        np.testing.assert_array_equal(arrays["samples"], windows[0][: aae_likelihood.SHOWN])  # of the first seed

    rows = (folder / "table.md").read_text().splitlines()[2:]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == list(metrics)  # no reported numbers for other data
    found = metrics[AAE]
    mean, error, spread = (found[f"parzen_log_likelihood_nats{end}"] for end in ("", "_standard_error", "_sd"))
    assert f"{mean:.0f} ± {error:.0f} ({spread:.0f})".replace("-", "−") in rows[0]
    for picture in ("likelihoods.png", "samples.png"):
        assert (folder / picture).stat().st_size
    keras.utils.clear_session()


def test_a_part_that_is_there_is_not_made_again(light, config, tmp_path, monkeypatch):
    config = dataclasses.replace(config, seeds=SEEDS[:1], temperatures=(3,))
    first = aae_likelihood.main(config)
    runs_file = tmp_path / "aae_likelihood" / "r" / "runs.json"
    runs = json.loads(runs_file.read_text())
    assert first[VAE]["parzen_log_likelihood_nats_sd"] is None  # of one seed
    lost = f"real training digits, seed {SEEDS[0]}"  # as if killed before it
    runs_file.write_text(json.dumps({name: run for name, run in runs.items() if name != lost}))
    monkeypatch.setattr(aae_likelihood, "train_part", None)
    monkeypatch.setattr(aae_likelihood, "annealed", None)
    monkeypatch.setattr(aae_likelihood.likelihoods, "KMeans", None)  # digits wait for no clustering
    assert aae_likelihood.main(config) == first
    assert json.loads(runs_file.read_text()) == runs
    monkeypatch.setattr(aae_likelihood, "parzen", None)  # nothing is left to do
    assert aae_likelihood.main(config) == first
    with pytest.raises(RunError, match="made with another --"):
        aae_likelihood.main(dataclasses.replace(config, prior_scale=1.0))
    keras.utils.clear_session()


def test_a_window_without_a_width_is_a_dash_and_has_no_point(config, tmp_path, monkeypatch):
    """Where sigma lies on the edge of its grid there is no number, and the reason is kept."""

    def refused(samples, images):
        raise ValueError("sigma 0.05 is the edge of the grid")

    monkeypatch.setattr(measure.likelihood, "parzen_sigma", refused)
    monkeypatch.setattr(aae_likelihood, "WINDOWS", 50)
    dataset = aae_likelihood.load_mnist(config.data)
    run = aae_likelihood.reference_measured(dataset, "real training digits", 0)
    assert "edge" in run["null_because"]["parzen_sigma"] and run["windows"] == 50
    estimates = {"annealed_nats_of_images": [1.0, 2.0]}
    runs = {f"{name}, seed 0": run | estimates for name in (*aae_likelihood.MODELS, *aae_likelihood.REFERENCES)}
    metrics = aae_likelihood.summary(runs, (0,))
    assert metrics[VAE]["parzen_log_likelihood_nats"] is None
    assert aae_likelihood.table(metrics, dataset).splitlines()[3].count("−") == len(aae_likelihood.COLUMNS)
    assert aae_likelihood.figure(metrics, config, dataset, 1).axes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": ()}, "--seeds"),
        ({"annealed_images": 1}, "--annealed-images"),
        ({"temperatures": (0,)}, "--temperatures"),
        ({"prior_scale": 0.0}, "--prior-scale"),
        ({"binarisation": "threshold"}, "--binarisation"),
        ({"name": "a/b"}, "--name"),
        ({}, "100 or more"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line_before_any_work(tmp_path, changes, message):
    np.savez(tmp_path / "few.npz", x=np.full((90, 2, 2), 7, np.uint8))
    config = aae_likelihood.Config(data=str(tmp_path / "few.npz"), results=str(tmp_path / "results"))
    with pytest.raises(RunError, match=message) as refusal:
        aae_likelihood.main(dataclasses.replace(config, **changes))
    assert "\n" not in str(refusal.value) and not (tmp_path / "results").exists()
