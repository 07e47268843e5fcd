"""The wrong versions make the mistakes that they are told to make, and no others."""

import dataclasses
import itertools
import json

import keras
import numpy as np
import pytest
from keras import ops

import avb
from common import measure
from common.model import to_numpy
from common.run import RunError
from experiments import known_mistakes

SMALL = {"hidden_units": (8,), "discriminator_units": (8,), "noise_basis": 2, "noise_dim": 3, "noise_units": (4,)}
SHAPE = (4, 3)


def model(mistakes, **changes):
    """A small version whose T differs from zero."""
    config = avb.Config(adaptive_contrast=False, **SMALL | changes)
    built = known_mistakes.build(config, mistakes, SHAPE)
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


def test_without_mistakes_it_is_avb(x):
    right, outputs = terms_of(model({}), x)
    wrong, _ = terms_of(model(dict.fromkeys(known_mistakes.EARLIER, False) | {"uniform_noise": False}), x)
    assert wrong == right and set(outputs) == {"z", "mean", "variance", "logits"}


def test_a_mean_over_pixels_is_the_sum_over_their_number(x):
    right, _ = terms_of(model({}), x)
    wrong, _ = terms_of(model({"pixel_mean": True}), x)
    assert wrong["reconstruction"] == pytest.approx(right["reconstruction"] / 12)
    assert wrong["kl"] == right["kl"] and wrong["discriminator"] == right["discriminator"]


def test_noise_is_uniform_in_training_and_normal_in_tests(x):
    """Whatever sees the noise sees it through `noise`: 6,000 numbers, of which a normal one has half below zero."""
    seen = []

    class Watched(known_mistakes.MistakenAVB):
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


def test_the_ladder_mends_one_mistake_at_a_time():
    steps = [
        ({name for name, made in mistakes.items() if made}, contrast)
        for mistakes, contrast in known_mistakes.VERSIONS.values()
    ]
    assert steps[0][0] == set(known_mistakes.EARLIER) and steps[-1] == (set(), True)
    for (before, earlier), (after, later) in itertools.pairwise(steps):
        assert after <= before and len(before - after) + (later - earlier) == 1


def test_versions_are_tabulated_and_not_made_again(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (260, *SHAPE), dtype=np.uint8), random.integers(0, 3, 260)
    np.savez(tmp_path / "tiny.npz", x=x, y=y)
    monkeypatch.setattr(known_mistakes, "WEIGHTED_SAMPLES", 20)
    for name, few in {"BANK_IMAGES": 4, "BANK_DRAWS": 20, "PROPOSAL_DRAWS": 5}.items():
        monkeypatch.setattr(measure, name, few)
    versions = {"the earlier AVB": known_mistakes.VERSIONS["the earlier AVB"]}
    monkeypatch.setattr(known_mistakes, "VERSIONS", versions)
    config = known_mistakes.Config(
        data=str(tmp_path / "tiny.npz"), hidden_units=(8,), updates=2, seeds=(3, 4), weighted_images=4
    )
    config = dataclasses.replace(config, results=str(tmp_path), name="r")
    metrics = known_mistakes.main(config)
    folder = tmp_path / "known_mistakes" / "r"
    runs = json.loads((folder / "runs.json").read_text())
    both = [runs[f"the earlier AVB, seed {seed}"]["test_reconstruction_nats"] for seed in (3, 4)]
    assert metrics["the earlier AVB"]["test_reconstruction_nats"] == pytest.approx(np.mean(both))
    assert list(metrics) == list(versions) and (folder / "mistakes.png").stat().st_size
    monkeypatch.setattr(known_mistakes, "train_part", None)  # nothing is left to do
    assert known_mistakes.main(config) == metrics
    with pytest.raises(RunError, match="other parameters"):
        known_mistakes.main(dataclasses.replace(config, hidden_units=(9,)))
    keras.utils.clear_session()
