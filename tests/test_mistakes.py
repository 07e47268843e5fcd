"""Every wrong version makes its own mistakes and no others."""

import dataclasses
import itertools
import json
from pathlib import Path

import aae_deterministic
import aae_gaussian
import avb
import vae_baseline
from common import measure, measure_likelihood
from common.adversarial import frozen, generator_loss
from common.data import load_data
from common.files import RunError
from common.model import to_numpy
from experiments import study
from experiments.aae.label_prior import UNLABELLED, LabelPriorAAE
from experiments.pitfalls import known_mistakes, mistakes
from experiments.pitfalls.known_mistakes import EARLIER_AVB, MISTAKES, Version

import keras
import numpy as np
import pytest
import small_runs
from helpers import gradients
from keras import ops

SMALL = {"hidden_units": (8,), "discriminator_units": (8,), "noise_basis": 2, "noise_dim": 3, "noise_units": (4,)}
SHAPE = (4, 3)


def model(made, **changes):
    """A small version whose T differs from zero."""
    config = avb.Config(**{"adaptive_contrast": False} | SMALL | changes)
    built = mistakes.mistaken_avb(config, made, SHAPE)
    *hidden, last, bias = built.discriminator.get_weights()
    built.discriminator.set_weights([*hidden, last + 0.5, bias - 0.3])
    return built


@pytest.fixture(scope="module")
def x():
    return ops.convert_to_tensor(np.random.default_rng(0).integers(0, 2, (6, *SHAPE)), "float32")


def terms_of(built, x):
    """The terms of the objective, as training computes them, and what it inferred."""
    outputs = built(x, training=True)
    return {name: float(to_numpy(term)) for name, term in built.objective(x, outputs).items()}, outputs


# Right beside wrong


@pytest.mark.parametrize("right", known_mistakes.RIGHT)
def test_without_mistakes_the_right_model_is_built(right):
    built, _ = known_mistakes.build(known_mistakes.Config(hidden_units=(8,)), Version(right), 0, SHAPE)
    assert type(built) in (mistakes.MistakenVAE, avb.AVB, aae_gaussian.GaussianAAE, LabelPriorAAE)
    assert not any(network.non_trainable_variables for network in built.networks.values())  # nothing is normalised


@pytest.mark.parametrize("contrast", [True, False])
def test_an_avb_told_to_make_no_mistake_is_avb(x, contrast):
    right, outputs = terms_of(model({}, adaptive_contrast=contrast), x)
    wrong, _ = terms_of(model({"uniform_noise": False, "image_moments": False}, adaptive_contrast=contrast), x)
    assert wrong == right and set(outputs) == {"z", "mean", "variance", "log_variance_bias", "parameters"}


def test_a_vae_told_to_make_no_mistake_is_the_vae(x):
    config = vae_baseline.Config(hidden_units=(8,))
    right, _ = terms_of(vae_baseline.build(config, SHAPE), x)
    assert terms_of(mistakes.mistaken_vae(config, {}, SHAPE), x)[0] == right


@pytest.mark.parametrize("name", MISTAKES)
def test_right_and_wrong_start_from_the_same_weights(name):
    config = known_mistakes.Config(hidden_units=(8,))
    first, *others = (
        known_mistakes.build(config, version, 3, SHAPE)[0].networks for version in MISTAKES[name].versions.values()
    )
    for other in others:
        for network in set(first) - ({"discriminator"} if name == "normalised_discriminator" else set()):
            for weight, same in zip(first[network].get_weights(), other[network].get_weights(), strict=True):
                np.testing.assert_array_equal(weight, same)


def test_every_mistake_has_a_right_version_that_differs_in_it_alone():
    for name, mistake in MISTAKES.items():
        assert len(mistake.numbers) <= 5 and set(mistake.numbers) <= set(known_mistakes.COLUMNS)
        if name != "earlier_avb":
            right, wrong = mistake.versions.values()
            assert right == Version(wrong.right) and wrong.mistakes == (name,)


def test_the_earlier_avb_is_fixed_one_mistake_at_a_time():
    steps = [(set(version.mistakes), version.right == known_mistakes.CONTRAST) for version in EARLIER_AVB.values()]
    assert steps[0][0] == {"uniform_noise", "pixel_mean", "reversed_gradient"} and steps[-1] == (set(), True)
    for (before, earlier), (after, later) in itertools.pairwise(steps):
        assert after <= before and len(before - after) + (later - earlier) == 1


# Each mistake


def test_a_mean_over_pixels_is_the_sum_over_their_number(x):
    right, _ = terms_of(model({}), x)
    wrong, _ = terms_of(model({"pixel_mean": True}), x)
    assert wrong["reconstruction"] == pytest.approx(right["reconstruction"] / 12)
    assert wrong["kl"] == right["kl"] and wrong["discriminator"] == right["discriminator"]


def test_noise_is_uniform_in_training_and_normal_in_tests(x):
    """Whatever sees the noise sees it through `noise`: 6,000 numbers, of which a normal one has half below zero."""
    seen = []

    class Watched(mistakes.MistakenAVB):
        def noise(self, shape):
            seen.append(to_numpy(super().noise(shape)))
            return ops.convert_to_tensor(seen[-1])

    built = model({"uniform_noise": True}, noise_dim=500)
    built.__class__ = Watched
    built(x, training=True)
    built(x)
    built.encode(np.array(x))
    training, test, encoding = seen
    assert training.min() >= 0.0 and training.max() < 1.0 and abs(training.mean() - 0.5) < 0.02  # 5 / sqrt(12 * 6000)
    for normal in (test, encoding):
        assert abs(normal.mean()) < 0.07 and abs(normal.std() - 1.0) < 0.05  # 5 and 5 / sqrt(2) standard errors


def test_a_reversed_gradient_is_that_of_the_discriminators_loss_on_codes(x):
    """kl + discriminator = softplus(T) on prior draws: on codes the two losses are each other's opposite."""
    built = model({"reversed_gradient": True})
    outputs = built(x, training=True)
    drawn = built.prior_like(outputs["z"])
    built.prior_like = lambda z: drawn
    terms = {name: float(to_numpy(term)) for name, term in built.objective(x, outputs).items()}
    on_prior = float(to_numpy(ops.mean(ops.softplus(built.log_odds(built.discriminator, x, drawn)))))
    assert terms["kl"] + terms["discriminator"] == pytest.approx(on_prior, abs=1e-5)
    t = to_numpy(built.log_odds(built.discriminator, x, outputs["z"]))
    assert terms["kl"] == pytest.approx(np.log(1 / (1 + np.exp(-t))).mean(), abs=1e-5)  # E log sigma(T)


def test_a_reversed_gradient_turns_the_encoder_and_leaves_the_discriminator(x):
    built = model({"reversed_gradient": True})
    drawn = ops.convert_to_tensor(np.random.default_rng(3).normal(size=(6, 2)), "float32")
    noise = ops.convert_to_tensor(np.random.default_rng(4).normal(size=(6, 2, 3)), "float32")
    built.prior_like, built.noise = lambda z: drawn, lambda shape: noise

    def reversed_term():
        return built.objective(x, built(x))["kl"]

    def of_discriminator():
        return ops.mean(ops.softplus(-built.log_odds(built.discriminator, x, built(x)["z"])))

    encoder = built.encoder.trainable_variables
    found, expected = gradients(reversed_term, encoder), gradients(of_discriminator, encoder)
    for wrong, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(wrong, -right, rtol=1e-4, atol=1e-7)  # single precision
    assert any(np.abs(gradient).max() > 1e-4 for gradient in found)
    for gradient in gradients(reversed_term, built.discriminator.trainable_variables):
        np.testing.assert_array_equal(gradient, 0)


def test_s_is_log_sigma_in_the_draw_and_log_variance_in_the_loss(x):
    built = mistakes.mistaken_vae(vae_baseline.Config(hidden_units=(8,)), {"two_readings": True}, SHAPE)
    mean, s = np.split(to_numpy(built.encoder(x)).astype("float64"), 2, axis=-1)
    draws = measure.posterior_draws(built, np.array(x), 4000)  # (4000, 6, 2)
    np.testing.assert_allclose(draws.std(axis=0), np.exp(s), rtol=0.06)  # 5 / sqrt(2 * 4000)
    found = built.divergences(x, built(x))
    for key, variance in (("kl_nats", np.exp(2 * s)), ("kl_stated_nats", np.exp(s))):
        kl = 0.5 * (mean**2 + variance - 1 - np.log(variance)).sum(axis=1)
        np.testing.assert_allclose(to_numpy(found[key]), kl, rtol=1e-4)
    terms, _ = terms_of(built, x)
    assert terms["kl"] == pytest.approx(float(to_numpy(ops.mean(found["kl_stated_nats"]))), rel=1e-5)


@pytest.mark.parametrize("unseen", [True, False])
def test_a_t_that_sees_z_only_is_the_same_for_every_image(x, unseen):
    built = model({"image_unseen": unseen})
    z = ops.convert_to_tensor(np.random.default_rng(1).normal(size=(6, 2)), "float32")
    for network in (built.discriminator, frozen(built.discriminator)):
        of_these, of_others = (to_numpy(built.log_odds(network, images, z)) for images in (x, 1.0 - x))
        assert np.array_equal(of_these, of_others) == unseen
        assert np.ptp(of_these) > 0


def test_moments_over_images_are_those_of_the_batch_and_carry_no_gradient(x):
    built = model({"image_moments": True}, adaptive_contrast=True)
    eps = ops.convert_to_tensor(np.random.default_rng(1).normal(size=(6, 2, 3)), "float32")
    built.noise = lambda shape: eps if len(shape) == 3 else ops.zeros((6, 2))
    outputs = built(x)
    z = to_numpy(outputs["z"])
    for key, moment in (("mean", z.mean(axis=0)), ("variance", z.var(axis=0))):
        np.testing.assert_allclose(to_numpy(outputs[key]), np.tile(moment, (6, 1)), rtol=1e-4, atol=1e-6)
    fixed = {key: ops.convert_to_tensor(to_numpy(outputs[key])) for key in ("mean", "variance")}
    found, expected = (
        gradients(
            lambda moments=moments: built.objective(x, built(x) | moments)["kl"], built.encoder.trainable_variables
        )
        for moments in ({}, fixed)
    )
    for gradient, same in zip(found, expected, strict=True):
        np.testing.assert_allclose(gradient, same, rtol=1e-4, atol=1e-6)
    assert any(gradient.any() for gradient in found)


def aae(made):
    return mistakes.mistaken_aae(aae_gaussian.Config(hidden_units=(8, 8)), made, SHAPE)


@pytest.mark.parametrize("made", [{"normalised_discriminator": True}, {}])
def test_a_normalised_discriminator_sees_neither_mean_nor_scale_of_a_batch(made):
    """But for Keras' epsilon of 1e-3 beside a variance: codes are wide here."""
    built = aae(made)
    codes = np.random.default_rng(0).normal(size=(50, 2)).astype("float32") * 30.0
    for network in (built.discriminator, frozen(built.discriminator)):
        seen, shifted = (to_numpy(network(ops.convert_to_tensor(batch))) for batch in (codes, 7.0 * codes + 100.0))
        assert np.ptp(seen) > 0.1
        assert np.allclose(seen, shifted, atol=1e-3) == bool(made)


@pytest.mark.parametrize("made", [{"normalised_discriminator": True}, {}])
def test_no_gradient_of_a_normalised_discriminator_moves_all_codes_together(made):
    built = aae(made)
    codes = ops.convert_to_tensor(np.random.default_rng(0).normal(size=(50, 2)), "float32")
    shift = keras.Variable(np.zeros(2, "float32"))
    weights = built.discriminator.trainable_variables
    towards, *others = gradients(lambda: generator_loss(frozen(built.discriminator)(codes + shift)), [shift, *weights])
    assert (np.abs(towards).max() < 1e-5) == bool(made)
    assert not any(gradient.any() for gradient in others)


def test_a_normalised_discriminator_learns_without_its_running_means(x):
    """Tests normalise over their own batch as training does, whatever the running means have come to."""
    discriminator = aae({"normalised_discriminator": True}).discriminator
    codes = ops.convert_to_tensor(np.random.default_rng(0).normal(size=(50, 2)) + 5.0, "float32")
    first, again, training = (to_numpy(discriminator(codes, training=flag)) for flag in (False, False, True))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, training)
    assert all(
        gradient.any()
        for gradient in gradients(lambda: ops.sum(discriminator(codes) ** 2), discriminator.trainable_variables)
    )


@pytest.mark.parametrize("unseen", [True, False])
def test_labels_choose_the_mode_and_reach_the_discriminator_or_not(unseen):
    config = aae_deterministic.Config(hidden_units=(8,), prior="mixture")
    built = mistakes.mistaken_labels(config, {"labels_unseen": True} if unseen else {}, SHAPE)
    z = np.random.default_rng(0).normal(size=(4, 2)).astype("float32")
    labels = np.array([0, 3, 9, UNLABELLED])
    seen = to_numpy(built.joined(ops.convert_to_tensor(z), labels))
    np.testing.assert_array_equal(seen[:, :2], z)
    np.testing.assert_array_equal(seen[:, 2:], np.zeros((4, 11)) if unseen else np.eye(11)[labels])
    other = to_numpy(built.joined(ops.convert_to_tensor(z), labels[::-1].copy()))
    assert np.array_equal(*(to_numpy(built.discriminator(pair)) for pair in (seen, other))) == unseen
    draws = built.prior_draws(ops.convert_to_tensor(np.repeat(3, 1000), "int32"))
    assert np.mean(to_numpy(built.prior.mode_of(draws)) == 3) > 0.95


# The experiment


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Of a few images and draws; nothing is compiled."""
    folder, random = tmp_path_factory.mktemp("mistakes"), np.random.default_rng(0)
    x, y = random.integers(0, 256, (260, *SHAPE), dtype=np.uint8), random.integers(0, 3, 260)
    np.savez(folder / "tiny.npz", x=x, y=y)
    np.savez(folder / "unlabelled.npz", x=x)
    with pytest.MonkeyPatch.context() as patch:
        small_runs.quicken(patch)
        small_runs.uncompiled(patch)
        patch.setattr(measure, "NEIGHBOUR_IMAGES", 4)
        patch.setattr(measure_likelihood, "PROPOSAL_DRAWS", 5)
        patch.setattr(known_mistakes, "WEIGHTED_SAMPLES", 20)
        shared = {"data": str(folder / "tiny.npz"), "results": str(folder), "name": "r"}
        yield known_mistakes.Config(hidden_units=(8,), updates=2, weighted_images=4, **shared)


def folder_of(config):
    return Path(config.results) / "pitfalls_known_mistakes" / config.name


@pytest.fixture(scope="module")
def unlabelled(config):
    """The Config of a run on images without labels, with two seeds, and the metrics of the run."""
    data = str(Path(config.results) / "unlabelled.npz")
    config = dataclasses.replace(config, data=data, name="unlabelled", seeds=(3, 4), mistakes=("pixel_mean",))
    return config, known_mistakes.main(config)


def test_versions_are_tabulated(unlabelled):
    config, metrics = unlabelled
    folder = folder_of(config)
    runs = json.loads((folder / "runs.json").read_text())
    assert list(metrics) == ["VAE", "VAE, pixel mean"]
    for version, means in metrics.items():
        both = [runs[f"{version}, seed {seed}"]["test_reconstruction_nats"] for seed in (3, 4)]
        assert means["test_reconstruction_nats"] == pytest.approx(np.mean(both))
    assert metrics["VAE"]["kl_nats"] == pytest.approx(metrics["VAE"]["kl_stated_nats"])
    assert (folder / "pixel_mean.png").stat().st_size
    table = (folder / "table.md").read_text()
    assert f"{MISTAKES['pixel_mean'].notice}\n" in table and "\n| pixel mean |" in table and "\n| VAE |" in table


def test_a_finished_experiment_trains_nothing_and_refuses_other_parameters(unlabelled, monkeypatch):
    config, metrics = unlabelled
    monkeypatch.setattr(study, "train", None)
    assert known_mistakes.main(config) == metrics
    with pytest.raises(RunError, match="made with another --"):
        known_mistakes.main(dataclasses.replace(config, hidden_units=(9,)))


def test_a_version_that_two_mistakes_share_is_trained_once(config):
    config = dataclasses.replace(config, mistakes=("pixel_mean", "two_readings"))
    assert list(known_mistakes.cases(config, None)) == ["VAE", "VAE, pixel mean", "VAE, two readings"]
    keys = {key for key in known_mistakes.COLUMNS} | {f"{key}_sd" for key in known_mistakes.COLUMNS}
    rows = {version: dict.fromkeys(keys, 1.0) for version in known_mistakes.cases(config, None)}
    table = known_mistakes.tables(known_mistakes.STUDY, study.Results(config, None, None, {}), rows)["table.md"]
    assert table.count("\n| VAE |") == 2
    for name in config.mistakes:
        assert f"### {MISTAKES[name].title}\n" in table and f"\n| {name.replace('_', ' ')} |" in table


def test_every_number_of_a_mistake_is_measured(config):
    names = ("image_moments", "normalised_discriminator", "labels_unseen")
    metrics = known_mistakes.main(dataclasses.replace(config, seeds=(0,), mistakes=names))
    folder = folder_of(config)
    runs = json.loads((folder / "runs.json").read_text())
    assert len(metrics) == 6
    for name in names:
        assert (folder / f"{name}.png").stat().st_size
        for version in MISTAKES[name].versions.values():
            means, part = metrics[version.name], study.part_name(version.name, 0)
            assert all(means[key] is not None for key in MISTAKES[name].numbers)
            history = (study.part_folder(folder, part) / "history.csv").read_text().splitlines()
            made = dict(zip(history[0].split(","), history[-1].split(","), strict=True))["updates"]
            assert means["updates"] == runs[part]["updates"] == int(float(made)) == 2


def test_images_without_labels_lack_one_mistake_alone(unlabelled):
    config, _ = unlabelled
    known_mistakes.requires(config, load_data(config.data))
    with pytest.raises(RunError, match="no labels"):
        known_mistakes.main(dataclasses.replace(config, mistakes=("pixel_mean", "labels_unseen"), name="refused"))
    assert not folder_of(dataclasses.replace(config, name="refused")).exists()


def test_an_unknown_mistake_is_refused(config):
    with pytest.raises(RunError, match="one of pixel_mean"):
        known_mistakes.main(dataclasses.replace(config, mistakes=("pixels",)))
