"""AVB against a VAE on MNIST: one length of training for all, what is stated beside log p(x), and the search."""

import dataclasses
import json
from types import SimpleNamespace

import avb
import vae_baseline
from common import measure, report
from common.config import check
from common.data import load_data
from common.files import RunError
from common.measure_likelihood import OF_IMAGES, LikelihoodSettings, likelihood_images
from common.numbers import Estimate, mean_of
from common.run import load_run
from experiments import study
from experiments.avb import mnist
from experiments.avb.mnist_settings import CANDIDATES, candidate_name
from experiments.paired import ANNEALING, DIFFERENCE, ERROR
from experiments.study import Part, Results, script_config

import numpy as np
import pytest
import small_runs

AVB, CONTRAST = "AVB", "AVB, adaptive contrast"
FEW = {"annealed_images": 6, "chains": 4, "temperatures": (3,), "weighted_images": 8, "weighted_samples": 5}


@pytest.fixture(scope="module")
def digits():
    """200 images around three centres."""
    random = np.random.default_rng(0)
    centres = random.integers(0, 256, (3, 8, 6))[np.arange(200) % 3]
    return np.clip(centres + random.normal(0, 20, (200, 8, 6)), 0, 255).astype(np.uint8)


@pytest.fixture
def quick(monkeypatch):
    """Nothing is compiled, which takes longer than it runs; pilots are as short; figures leave their texts alone."""
    for quicken in ("uncompiled", "short_annealing", "cheap_instruments", "texts_for_figures"):
        getattr(small_runs, quicken)(monkeypatch)
    monkeypatch.setattr(report, "code_figures", lambda *_: {})
    monkeypatch.setattr(report, "image_figures", lambda *_: {})


def tiny(tmp_path, **changes) -> mnist.Config:
    return mnist.Config(**{"latent_dims": (2,), "hidden_units": (8,), "results": str(tmp_path)} | changes)


# What is asked of the scripts


class RequestedError(Exception):
    """Carries the Config that a script is called with."""


def requested(model, config, images, tmp_path, monkeypatch):
    """The Config with which the script of a model is called, at `images` training images."""

    def stop(config):
        raise RequestedError(config)

    monkeypatch.setattr(mnist.MODELS[model][0], "main", stop)
    dataset = SimpleNamespace(x_train=np.empty((images, 1, 1)))
    function = mnist.cases(config, dataset)[f"{model}, {config.latent_dims[0]}-D"]
    with pytest.raises(RequestedError) as caught:
        function(Part(config, dataset, 0, tmp_path / "part", first=True))
    return caught.value.args[0]


@pytest.mark.parametrize(("images", "updates"), [(55_000, 22_000), (55_000, 11_000), (4_000, 11_000), (4_000, 825)])
def test_every_model_makes_the_requested_updates_of_encoder_and_decoder(images, updates, tmp_path, monkeypatch):
    """Batches of 200 and 100 and two updates of T change none of it, on few images or many."""
    config = tiny(tmp_path, updates=updates)
    for model in mnist.MODELS:
        asked = requested(model, config, images, tmp_path, monkeypatch)
        steps = getattr(asked, "discriminator_steps", 1)
        of_a_pass = images // asked.batch_size / steps
        assert asked.epochs * of_a_pass == pytest.approx(updates, abs=of_a_pass), model
        assert asked.updates == steps * updates


@pytest.mark.parametrize(
    ("latent_dim", "noise", "rate_factors"), [(8, (16, 32), (1.0, 3.0)), (9, (32, 64), (0.1, 4.0))]
)
def test_settings_and_noise_are_those_of_the_size_of_the_code(latent_dim, noise, rate_factors, tmp_path, monkeypatch):
    """The official code's noise for 8 and for 32 dimensions; networks, data and targets are the same for all."""
    config = tiny(tmp_path, latent_dims=(latent_dim,))
    asked = {model: requested(model, config, 4_000, tmp_path, monkeypatch) for model in mnist.MODELS}
    for each in (asked[AVB], asked[CONTRAST]):
        assert (each.noise_basis, each.noise_dim) == noise
        assert each.discriminator_units == config.hidden_units
    assert (asked[CONTRAST].encoder_rate_factor, asked[CONTRAST].decoder_rate_factor) == rate_factors
    assert [each.adaptive_contrast for each in (asked[AVB], asked[CONTRAST])] == [False, True]
    shared = {(each.latent_dim, each.hidden_units, each.networks, each.binarisation) for each in asked.values()}
    assert shared == {(latent_dim, config.hidden_units, "dense", "dynamic")}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "dense"),
        ({"networks": "conv", "quick": True}, "conv-quick"),
        ({"name": "own", "quick": True}, "own"),
    ],
)
def test_the_folder_has_the_name_of_what_it_holds(changes, name, monkeypatch):
    monkeypatch.setattr(study, "run", lambda declared, config: config.name)
    assert mnist.main(mnist.Config(**changes)) == name


@pytest.mark.parametrize(
    ("shape", "changes", "message"),
    [
        ((250, 4, 3), {}, "200 or more"),
        ((250, 4, 3), {"search": True}, "200 or more"),
        ((250, 12), {"networks": "conv"}, "conv needs images"),
        ((250, 4, 3), {"hidden_units": (10**7, 10**7)}, "GB of memory"),
    ],
)
def test_what_no_training_could_take_is_refused_before_any_work(shape, changes, message, tmp_path):
    x = np.full(shape, 7, np.uint8)
    train = x[:150] if "200" in message else np.concatenate([x, x])
    np.savez(tmp_path / "few.npz", x_train=train, x_test=x)
    config = tiny(tmp_path / "results", data=str(tmp_path / "few.npz"), **changes)
    with pytest.raises(RunError, match=message):
        mnist.main(config)
    assert not (tmp_path / "results").exists()


# The comparison


def test_what_is_stated_stands_beside_log_p(quick, digits, tmp_path):
    np.savez(tmp_path / "twice.npz", x=np.tile(digits, (2, 1, 1)))  # the VAE's batches are of 200
    config = tiny(tmp_path, data=str(tmp_path / "twice.npz"), networks="conv", updates=2, seeds=(0,), **FEW)
    metrics = mnist.main(config)
    folder = tmp_path / "avb_mnist" / "conv"
    assert list(metrics) == [f"{model}, 2-D" for model in mnist.MODELS]
    runs = json.loads((folder / "runs.json").read_text())
    estimates = {name: np.array(run[OF_IMAGES]["log_likelihood_nats"]) for name, run in runs.items()}
    for model, means in metrics.items():
        elbo = -means["stated_reconstruction_nats"] - means["stated_kl_nats"]
        assert means["stated_elbo_nats"] == pytest.approx(elbo, rel=1e-4), model  # each a mean in float32
        # Estimate and stated ELBO of all images differ by the mean difference on the annealed images.
        difference = means["stated_elbo_nats"] - means["annealed_log_likelihood_nats"]
        assert means["violation_nats"] == pytest.approx(difference), model
        apart = estimates[f"{model}, seed 0"] - estimates["VAE, 2-D, seed 0"]
        if model == "VAE, 2-D":
            assert means[DIFFERENCE] is None
        else:
            assert (means[DIFFERENCE], means[ERROR]) == pytest.approx(mean_of(apart))
            assert means[ANNEALING] >= runs[f"{model}, seed 0"]["annealed_error_nats"]
    # Whole passes, of batches of 200, 100 and 100; the last model's T has two for each of the encoder.
    assert [run["course"]["updates"][-1] for run in runs.values()] == [2, 3, 1.5]
    assert [run["updates"] for run in runs.values()] == [2, 3, 3]
    texts = (folder / "log_likelihood.png").read_bytes().replace(b"\\n", b" ")
    assert b"1 to 3 updates of encoder and decoder" in texts
    models = [load_run(path.parent) for path in folder.glob("*/*/metrics.json")]
    assert sorted((model.title, getattr(model, "adaptive_contrast", None)) for model in models) == [
        ("AVB", False),
        ("AVB", True),
        ("VAE", None),
    ]
    assert len({model.decoder.count_params() for model in models}) == 1  # the same decoder
    assert all((folder / name).is_file() for name in ("table.md", "log_likelihood.png", "training.png"))


@pytest.fixture
def data(digits, tmp_path):
    np.savez(tmp_path / "digits.npz", x_train=digits[:140], x_test=digits[140:])
    return load_data(str(tmp_path / "digits.npz"))


def built(script, **own):
    return script.build(script.Config(latent_dim=2, hidden_units=(8,), **own), (8, 6))


def test_what_is_subtracted_is_of_the_same_images_and_pixels(data, monkeypatch):
    """Images differ by far more than an ELBO lies below log p(x): other images would drown the difference."""
    levels, numbers = np.random.default_rng(0).normal(-100, 30, 40), {}
    below = np.random.default_rng(1).normal(5, 1, 40)  # what the stated ELBO lacks

    def stated(model, images):
        numbers["images"] = images
        return {"reconstruction": 20.0 - levels[None], "kl": below[None] - 20.0}

    bounds = {"importance_weighted_bound_nats": Estimate(-1.0, 0.0)}
    monkeypatch.setattr(mnist, "importance_weighted", lambda *_: (bounds, levels - 50))
    of_annealing = dict.fromkeys(("annealed_error_nats", "annealed_gap_nats", OF_IMAGES))
    monkeypatch.setattr(mnist, "annealed", lambda *_: (of_annealing, levels[:10]))
    monkeypatch.setattr(mnist, "stated_terms", stated)
    settings = LikelihoodSettings(10, 2, (3,), 40, 5)
    found = mnist.log_likelihoods(None, data, settings)
    np.testing.assert_array_equal(numbers["images"], likelihood_images(data, 40))
    np.testing.assert_array_equal(numbers["images"][:10], likelihood_images(data, 10))  # those that are annealed
    assert found["violation_nats"] == pytest.approx(mean_of(-below[:10]))
    assert found["stated_elbo_nats"] == pytest.approx(mean_of(levels - below))
    assert found["annealed_log_likelihood_nats"].value == pytest.approx((levels - below).mean() + below[:10].mean())
    # The levels have an error of 30 / sqrt(40) nats, the difference one of 1 / sqrt(10).
    assert found["violation_nats"].standard_error < 0.6 < 3 < found["annealed_log_likelihood_nats"].standard_error

    monkeypatch.setattr(
        mnist, "stated_terms", lambda *_: {"reconstruction": -levels[None], "kl": levels[None] * np.nan}
    )
    lost = mnist.log_likelihoods(None, data, settings)  # T diverged; the bound carries log p(x)
    assert lost["annealed_log_likelihood_nats"].value == pytest.approx(levels.mean())
    assert np.isnan(lost["violation_nats"].value)


def test_stated_terms_are_those_of_the_model_for_each_image(data, monkeypatch):
    images = likelihood_images(data, 7)
    model = built(vae_baseline)
    inferred = model.inferred_rows(images)
    mean, log_var = inferred["mean"].astype("float64"), inferred["log_var"].astype("float64")
    terms = {key: values.mean(axis=0) for key, values in measure.stated_terms(model, images).items()}
    kl = 0.5 * (mean**2 + np.exp(log_var) - 1 - log_var).sum(axis=1)
    np.testing.assert_allclose(terms["kl"], kl, rtol=1e-4, atol=1e-5)
    draws = mean + np.exp(log_var / 2) * np.random.default_rng(0).normal(size=(500, *mean.shape))
    pixels = model.means(draws.reshape(-1, 2).astype("float32")).reshape(500, *images.shape).astype("float64")
    losses = -(images * np.log(pixels) + (1 - images) * np.log(1 - pixels)).sum(axis=(2, 3))
    errors = losses.std(axis=0) * (1 / 500 + 1 / measure.STATED_DRAWS) ** 0.5
    assert (np.abs(terms["reconstruction"] - losses.mean(axis=0)) < 5 * errors).all()

    model = built(avb, discriminator_units=(8,), noise_basis=2, noise_dim=2)
    monkeypatch.setattr(type(model), "divergences", lambda self, x, outputs: {"kl_estimated_nats": x[:, 0, 0] * 3.0})
    np.testing.assert_array_equal(measure.stated_terms(model, images)["kl"], [3.0 * images[:, 0, 0]] * 16)


def test_figures_leave_out_what_does_not_exist(tmp_path):
    """A stated ELBO that is null, and a pass that was not finite."""
    config = tiny(tmp_path, seeds=(0,))
    numbers = dict.fromkeys(mnist.COLUMNS, -1.0) | {"updates": 2, "encoder_updates": 2}
    numbers["course"] = {"updates": [1, 2], "elbo": [-2.0, -1.0]}
    runs = {f"{model}, 2-D, seed 0": dict(numbers) for model in mnist.MODELS}
    runs[f"{AVB}, 2-D, seed 0"] |= {"stated_elbo_nats": None, "course": {"updates": [1, 2], "elbo": [-2.0, None]}}
    dataset = SimpleNamespace(name="tiny", x_test=np.empty((20, 1)))
    results = Results(config, dataset, tmp_path, runs)
    figures = mnist.all_figures(results, study.rows_of_cases(mnist.STUDY, results))
    assert list(figures) == ["log_likelihood", "training"]


# The search


@pytest.mark.parametrize("model", CANDIDATES)
def test_candidates_have_names_of_their_own_and_settings_that_their_script_takes(model):
    names = {candidate_name(settings) for settings in CANDIDATES[model]}
    assert len(names) == len(CANDIDATES[model])
    config = mnist.Config(search=True)
    for settings in CANDIDATES[model]:
        script = mnist.MODELS[model][0]
        check(script_config(script, config, 0, **mnist.own_parameters(config, model, 8, settings)))


def test_a_candidate_is_named_by_its_settings():
    settings = {"learning_rate": 3e-3, "beta_1": 0.5, "discriminator_units": (600, 600)}
    assert candidate_name(settings) == "learning rate 0.003, beta 1 0.5, discriminator units 600 600"
    assert candidate_name({}) == "defaults"


def test_a_search_of_a_wider_t_trains_a_wider_t():
    config = mnist.Config(search=True, search_updates=30)
    settings = {"discriminator_units": (600, 600), "discriminator_steps": 2}
    own = mnist.own_parameters(config, AVB, 8, settings)
    asked = script_config(avb, config, 100, **own)
    assert (asked.discriminator_units, asked.updates, asked.seed) == ((600, 600), 60, 100)


def test_the_search_ranks_candidates_by_validation_images_alone(quick, digits, tmp_path, monkeypatch):
    still, learns = {"learning_rate": 1e-12}, {"warm_up": 0.5, "learning_rate": 0.03}
    few = {"VAE": [still, learns], "AVB": [{"discriminator_steps": 2}]}
    settings = {"CANDIDATES": few, "SEARCH_IMAGES": 10, "SEARCH_TEMPERATURES": 3, "FINALISTS": 1}
    for name, value in (settings | {"SEARCH_SEEDS": (100, 101)}).items():
        monkeypatch.setattr(mnist, name, value)
    config = tiny(tmp_path, search=True, search_updates=2, name="seen", data=str(tmp_path / "seen.npz"))
    np.savez(config.data, x_train=digits[:180], x_test=digits[180:])
    rows = mnist.main(config)
    # The candidate that learns is the one that is trained with the second seed too, and stands first.
    names = [f"VAE, 2-D: {candidate_name(each)}" for each in (learns, still)] + ["AVB, 2-D: discriminator steps 2"]
    assert [(name, row["seeds"]) for name, row in rows.items()] == list(
        zip(names, ([100, 101], [100], [100, 101]), strict=True)
    )
    folder = tmp_path / "avb_mnist" / "seen"
    assert (folder / "table.md").read_text().count("±") == 4
    runs = json.loads((folder / "runs.json").read_text())
    assert all(run["epochs"] == 2 * steps for run, steps in zip(runs.values(), (1, 1, 2, 1, 2), strict=True))

    with monkeypatch.context() as patch:
        patch.setattr(study, "train", None)  # it would be called if anything were left to do
        assert mnist.main(config) == rows

    monkeypatch.setattr(mnist, "SEARCH_SEEDS", (100,))
    monkeypatch.setattr(mnist, "CANDIDATES", {"VAE": [learns]})
    blank = dataclasses.replace(config, name="blank", data=str(tmp_path / "blank.npz"))
    np.savez(blank.data, x_train=digits[:180], x_test=np.zeros((20, 8, 6), np.uint8))
    values = {name: row["validation_log_likelihood_nats"] for name, row in mnist.main(blank).items()}
    seen = {name: runs[f"{name}, seed 100"]["validation_log_likelihood_nats"] for name in values}
    assert len(values) == 1 and np.isfinite(list(values.values())).all()
    assert values == pytest.approx(seen)  # the test images, blank in the second, count for nothing
