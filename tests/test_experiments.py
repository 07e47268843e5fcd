"""The experiments: their own arithmetic against an oracle, and each from flags to numbers on a tiny set."""

import dataclasses
import json

import keras
import numpy as np
import pytest

import aae_deterministic
from common.run import RunError
from experiments import update_order

if keras.backend.backend() != "tensorflow":
    pytest.skip("the in-turn loop needs a gradient tape", allow_module_level=True)

SMALL = aae_deterministic.Config(hidden_units=(8,), batch_size=10, adversarial_weight=0.0, seed=3)


def weights_after(order, config, images, start=None):
    """Each network's weights after one update on `images`, from the weights of seed or those in `start`."""
    model = aae_deterministic.build(config, images.shape[1:])
    for name, weights in (start or {}).items():
        model.networks[name].set_weights(weights)
    order(model, config)(images)
    return {name: network.get_weights() for name, network in model.networks.items()}


def distance(first, second):
    return max(np.abs(a - b).max() for a, b in zip(first, second, strict=True))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((10, 4, 3), dtype="float32")


# Adam moves a weight by at most its rate, 1e-3 (the discriminator's by 3e-3): differences of rounding lie at 1e-7.
def test_in_turn_the_discriminator_sees_the_codes_of_an_encoder_that_has_stepped(images):
    """With no weight on the opponents, two steps at once with a fresh discriminator in the second are one in turn."""
    turn = weights_after(update_order.in_turn, SMALL, images)
    first = weights_after(update_order.at_once, SMALL, images)
    stepped = {name: first[name] for name in ("encoder", "decoder")}
    second = weights_after(update_order.at_once, SMALL, images, start=stepped)
    assert distance(turn["encoder"], first["encoder"]) < 1e-5
    assert distance(turn["decoder"], first["decoder"]) < 1e-5
    assert distance(turn["discriminator"], second["discriminator"]) < 1e-5
    assert distance(turn["discriminator"], first["discriminator"]) > 1e-4


def test_in_turn_the_encoder_steps_once_for_each_of_its_terms(images):
    config = dataclasses.replace(SMALL, adversarial_weight=40.0)
    turn = weights_after(update_order.in_turn, config, images)
    once = weights_after(update_order.at_once, config, images)
    start = aae_deterministic.build(config, images.shape[1:]).encoder.get_weights()
    assert distance(turn["decoder"], once["decoder"]) < 1e-5  # the opponents' step does not touch it
    assert distance(once["encoder"], start) < 1.01e-3
    assert distance(turn["encoder"], start) > 1.5e-3


def test_in_turn_adam_divides_the_adversarial_weight_out(images):
    """What README says of the comparison; gradients near Adam's epsilon of 1e-7 are not divided quite."""
    order = update_order.in_turn
    light, heavy = (
        weights_after(order, dataclasses.replace(SMALL, adversarial_weight=weight), images) for weight in (4.0, 40.0)
    )
    assert distance(light["encoder"], heavy["encoder"]) < 2e-5


def test_update_order_compares_both_for_every_seed(tmp_path):
    random = np.random.default_rng(0)
    np.savez(tmp_path / "tiny.npz", x=random.integers(0, 256, (200, 4, 3), dtype=np.uint8))
    config = update_order.Config(
        data=str(tmp_path / "tiny.npz"), epochs=1, seeds=(0, 1), results=str(tmp_path), name="r"
    )
    update_order.main(config)
    metrics = json.loads((tmp_path / "update_order" / "r" / "metrics.json").read_text())
    for order in ("at_once", "in_turn"):
        for key in update_order.KEYS:
            seeds = [metrics[f"{order}_seed_{seed}_{key}"] for seed in (0, 1)]
            assert metrics[f"{order}_mean_{key}"] == pytest.approx(np.mean(seeds))
            assert metrics[f"{order}_sd_{key}"] == pytest.approx(np.std(seeds, ddof=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"epochs": 0}, "--epochs"), ({"seeds": ()}, "--seeds"), ({"seeds": (-1,)}, "--seeds"), ({}, "100 or more")],
)
def test_update_order_refuses_what_it_cannot_run_before_any_work(tmp_path, changes, message):
    np.savez(tmp_path / "few.npz", x=np.full((90, 2, 2), 7, np.uint8))
    config = update_order.Config(data=str(tmp_path / "few.npz"), results=str(tmp_path / "results"))
    with pytest.raises(RunError, match=message):
        update_order.main(dataclasses.replace(config, **changes))
    assert not (tmp_path / "results").exists()
