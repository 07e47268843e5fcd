"""Updates in turn and at once: what a step sees, what it moves, and that a stopped training in turn resumes exactly."""

import dataclasses
import json

import aae_deterministic
from common import checkpoint
from common.files import RunError
from common.model import LatentModel, to_numpy
from common.training import Batches, compile_model, fit
from experiments.aae import update_order
from experiments.aae.update_order import ORDERS

import keras
import numpy as np
import pytest
from helpers import compile_nothing

SMALL = aae_deterministic.Config(hidden_units=(8,), batch_size=10, adversarial_weight=0.0, seed=3)
AT_ONCE, IN_TURN = ORDERS
on_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="steps in turn need a gradient tape")


@pytest.fixture
def eager(monkeypatch):
    compile_nothing(monkeypatch)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((10, 4, 3), dtype="float32")


def weights_after(order, config, images, start=None):
    """Each network's weights after one update on `images`, from the weights of the seed or those in `start`."""
    model = update_order.build(order, config, images.shape[1:])
    for name, weights in (start or {}).items():
        model.networks[name].set_weights(weights)
    compile_model(model, config, optimizer=ORDERS[order][1])
    model.train_on_batch(images)
    return {name: network.get_weights() for name, network in model.networks.items()}


def distance(first, second):
    return max(np.abs(a - b).max() for a, b in zip(first, second, strict=True))


# Adam moves a weight by at most its rate, 1e-3 (the discriminator's by 3e-3): differences of rounding lie at 1e-7.
@on_tensorflow
def test_in_turn_the_discriminator_sees_the_codes_of_an_encoder_that_has_stepped(eager, images):
    """With no weight on the opponents, two steps at once with a fresh discriminator in the second are one in turn."""
    turn = weights_after(IN_TURN, SMALL, images)
    first = weights_after(AT_ONCE, SMALL, images)
    stepped = {name: first[name] for name in ("encoder", "decoder")}
    second = weights_after(AT_ONCE, SMALL, images, start=stepped)
    assert distance(turn["encoder"], first["encoder"]) < 1e-5
    assert distance(turn["decoder"], first["decoder"]) < 1e-5
    assert distance(turn["discriminator"], second["discriminator"]) < 1e-5
    assert distance(turn["discriminator"], first["discriminator"]) > 1e-4


@on_tensorflow
def test_in_turn_the_encoder_steps_once_for_each_of_its_terms(eager, images):
    config = dataclasses.replace(SMALL, adversarial_weight=40.0)
    turn = weights_after(IN_TURN, config, images)
    once = weights_after(AT_ONCE, config, images)
    start = update_order.build(AT_ONCE, config, images.shape[1:]).encoder.get_weights()
    assert distance(turn["decoder"], once["decoder"]) < 1e-5  # the opponents' step does not touch it
    assert distance(once["encoder"], start) < 1.01e-3
    assert distance(turn["encoder"], start) > 1.5e-3


@on_tensorflow
def test_in_turn_adam_divides_the_adversarial_weight_out(eager, images):
    """What README says of the comparison; gradients near Adam's epsilon of 1e-7 are not divided quite."""
    light, heavy = (
        weights_after(IN_TURN, dataclasses.replace(SMALL, adversarial_weight=weight), images) for weight in (4.0, 40.0)
    )
    assert distance(light["encoder"], heavy["encoder"]) < 2e-5


@on_tensorflow
def test_a_stopped_training_in_turn_resumes_with_the_same_bits(eager, tmp_path):
    """Weights, moments and steps of every Adam, random numbers; and the terms in the history are finite numbers."""
    images = np.random.default_rng(1).random((40, 4, 3), dtype="float32")
    config = dataclasses.replace(SMALL, adversarial_weight=40.0)

    def trained(folder, epochs):
        folder.mkdir(exist_ok=True)
        model = update_order.build(IN_TURN, config, images.shape[1:])
        batches = Batches(images, config.batch_size, "none", config.seed)
        outcome = fit(model, batches, None, config, epochs, folder, optimizer=update_order.InTurn)
        return outcome, [to_numpy(variable.value) for variable in checkpoint.variables_of(model)]

    whole, expected = trained(tmp_path / "whole", 3)
    trained(tmp_path / "stopped", 1)
    resumed, variables = trained(tmp_path / "stopped", 3)
    for first, second in zip(expected, variables, strict=True):
        np.testing.assert_array_equal(first, second)
    assert whole.updates == resumed.updates == 12 and resumed.stopped_by is None
    for term in aae_deterministic.DeterministicAAE.terms:
        assert whole.history[term] == resumed.history[term] and np.isfinite(whole.history[term]).all()


@on_tensorflow
def test_terms_that_are_not_finite_stop_a_training_in_turn(eager, images, tmp_path):
    model = update_order.build(IN_TURN, SMALL, images.shape[1:])
    bias = model.decoder.trainable_variables[-1]
    bias.assign(np.full(bias.shape, np.nan))
    batches = Batches(images, SMALL.batch_size, "none", SMALL.seed)
    outcome = fit(model, batches, None, SMALL, 2, tmp_path, optimizer=update_order.InTurn)
    assert outcome.stopped_by == "the reconstruction term was not finite at update 1"


@on_tensorflow
def test_the_orders_are_tabulated_over_all_seeds(tmp_path, monkeypatch):
    def small(order, config, image_shape, build=update_order.build):
        return build(order, dataclasses.replace(config, hidden_units=(8,)), image_shape)

    monkeypatch.setattr(update_order, "build", small)
    monkeypatch.setattr(LatentModel, "faster_with_xla", False)  # which compiles for longer than four updates take
    random = np.random.default_rng(0)
    np.savez(tmp_path / "tiny.npz", x=random.integers(0, 256, (200, 4, 3), dtype=np.uint8))
    config = update_order.Config(
        data=str(tmp_path / "tiny.npz"), epochs=1, seeds=(0, 1), results=str(tmp_path), name="r"
    )
    metrics = update_order.main(config)
    folder = tmp_path / "aae_update_order" / "r"
    runs = json.loads((folder / "runs.json").read_text())
    assert metrics == json.loads((folder / "metrics.json").read_text()) and list(metrics) == list(ORDERS)
    for order, means in metrics.items():
        for key in update_order.KEYS:
            seeds = [runs[f"{order}, seed {seed}"][key] for seed in (0, 1)]
            assert means[key] == pytest.approx(np.mean(seeds))
            assert means[f"{key}_sd"] == pytest.approx(np.std(seeds, ddof=1))
        assert means["updates"] == 1
    assert (folder / "table.md").read_text().count("\n") == 2 + len(ORDERS)
    assert (folder / "in-turn-seed-1" / "history.csv").is_file()


@pytest.mark.parametrize(
    ("backend", "changes", "message"),
    [
        ("tensorflow", {"epochs": 0}, "--epochs"),
        ("tensorflow", {"seeds": ()}, "--seeds"),
        ("tensorflow", {"seeds": (-1,)}, "--seeds"),
        ("tensorflow", {}, "100 or more"),
        ("jax", {}, "KERAS_BACKEND=tensorflow"),
    ],
)
def test_what_cannot_run_is_refused_before_any_work(tmp_path, monkeypatch, backend, changes, message):
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)
    images = np.full((110, 2, 2), 7, np.uint8)
    np.savez(tmp_path / "few.npz", x_train=images[:90], x_test=images[90:])
    config = update_order.Config(data=str(tmp_path / "few.npz"), results=str(tmp_path / "results"))
    with pytest.raises(RunError, match=message):
        update_order.main(dataclasses.replace(config, **changes))
    assert not (tmp_path / "results").exists()
