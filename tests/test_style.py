"""Labels into the decoder: what they change, what they leave alone, and the numbers of style and content."""

import dataclasses
import json

import aae_deterministic
from common.files import RunError
from common.likelihoods import binary_cross_entropy
from common.model import to_numpy
from experiments import study
from experiments.aae import style

import keras
import numpy as np
import pytest
from helpers import compile_nothing
from keras import ops

SHAPE = (4, 3)
CONFIG = aae_deterministic.Config(latent_dim=5, hidden_units=(8,))
LABELS = np.array([0, 1, 2, 2])
DECODER, BOTH, NEITHER = style.VERSIONS


def batch(labels=LABELS):
    images = np.random.default_rng(1).random((len(labels), *SHAPE), dtype="float32")
    return {"images": ops.convert_to_tensor(images), "labels": ops.convert_to_tensor(labels)}


def test_the_decoder_takes_the_one_hot_label_beside_the_code():
    built = style.build(CONFIG, 3, DECODER, SHAPE)
    outputs = built(batch())
    z = to_numpy(outputs["z"])
    expected = to_numpy(built.decoder(ops.convert_to_tensor(np.concatenate([z, np.eye(3)[LABELS]], axis=1), "float32")))
    np.testing.assert_allclose(to_numpy(outputs["parameters"]), expected, rtol=1e-5, atol=1e-6)
    means = built.decode_as(z, LABELS)
    np.testing.assert_allclose(means, 1.0 / (1.0 + np.exp(-expected)), rtol=1e-5)
    assert np.abs(built.decode_as(z, LABELS[::-1]) - means).max() > 1e-3
    np.testing.assert_array_equal(built.decode(np.concatenate([z, np.eye(3)[LABELS]], axis=1)), means)


@pytest.mark.parametrize("version", style.VERSIONS)
def test_a_version_samples_and_decodes_as_every_model_does(version):
    """Every label in turn, with prior draws of the model's own seed; without a label, what the base class does."""
    built, same, other = (style.build(dataclasses.replace(CONFIG, seed=seed), 3, version, SHAPE) for seed in (0, 0, 1))
    samples, codes = built.sample(36), same.prior_codes(36)
    assert samples.shape == (36, *SHAPE) and samples.min() >= 0.0 and samples.max() <= 1.0
    taken = np.concatenate([codes, np.eye(3)[np.arange(36) % 3]], axis=1) if style.VERSIONS[version][0] else codes
    np.testing.assert_array_equal(built.decode(taken), samples)
    assert not np.array_equal(other.sample(36), samples)


def test_the_encoder_and_the_discriminator_never_see_a_label():
    built = style.build(CONFIG, 3, DECODER, SHAPE)
    drawn = built.prior_like(built(batch())["z"])
    built.prior_like = lambda z: drawn
    first, second = (
        (outputs, built.objective(x, outputs))
        for x, outputs in ((x, built(x, training=True)) for x in (batch(), batch(LABELS[::-1])))
    )
    np.testing.assert_array_equal(to_numpy(first[0]["z"]), to_numpy(second[0]["z"]))
    for term in ("generator", "discriminator"):
        assert float(to_numpy(first[1][term])) == float(to_numpy(second[1][term]))
    assert np.abs(to_numpy(first[0]["parameters"]) - to_numpy(second[0]["parameters"])).max() > 1e-3


def test_a_discriminator_that_sees_labels_compares_codes_and_prior_draws_of_the_same_label():
    """2 log 2 where its logit is 0; with a logit that is the label's own, the two halves of the loss share labels."""
    built = style.build(CONFIG, 3, BOTH, SHAPE)
    x = batch()
    outputs = built(x)
    before = {name: float(to_numpy(term)) for name, term in built.objective(x, outputs).items()}
    *first, last = [weights * 0 for weights in built.discriminator.get_weights()]
    first[0][CONFIG.latent_dim + 2, 0] = first[-1][0, 0] = 1.0  # the logit of label 2 is 1, any other's 0
    built.discriminator.set_weights([*first, last])
    found = {name: float(to_numpy(term)) for name, term in built.objective(x, outputs).items()}
    zero, one, minus = np.log(2), np.log1p(np.exp(1)), np.log1p(np.exp(-1))
    assert found["discriminator"] == pytest.approx(
        np.mean([zero, zero, minus, minus]) + np.mean([zero, zero, one, one])
    )
    assert found["generator"] == pytest.approx(CONFIG.adversarial_weight * np.mean([zero, zero, minus, minus]))
    assert found["reconstruction"] == before["reconstruction"] and found["generator"] != before["generator"]


def test_without_the_label_it_is_the_deterministic_autoencoder_with_the_same_encoder():
    plain = aae_deterministic.build(CONFIG, SHAPE)
    without, labelled = (style.build(CONFIG, 3, version, SHAPE) for version in (NEITHER, DECODER))
    for network in plain.networks:
        for a, b in zip(plain.networks[network].get_weights(), without.networks[network].get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
    for a, b in zip(plain.encoder.get_weights(), labelled.encoder.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    x = batch()
    made = plain(x["images"]), without(x), without(batch(LABELS[::-1]))
    logits = [to_numpy(outputs["parameters"]) for outputs in made]
    np.testing.assert_array_equal(logits[0], logits[1])
    np.testing.assert_array_equal(logits[1], logits[2])


def test_reconstruction_is_the_term_of_the_objective_image_by_image():
    built = style.build(CONFIG, 3, DECODER, SHAPE)
    labels = np.arange(7) % 3
    x = batch(labels)
    found = style.reconstruction(built, to_numpy(x["images"]), labels)
    assert found.shape == (7,)
    expected = float(to_numpy(binary_cross_entropy(x["images"], built(x)["parameters"])))
    assert found.mean() == pytest.approx(expected, rel=1e-5)


class Told:
    """A decoder that draws its label, but for label 2, and a classifier that reads it."""

    labels = np.array([0, 1, 2])

    def decode_as(self, codes, labels):
        return np.where(labels == 2, 0, labels)

    def classes(self, images):
        return images


def test_consistency_counts_the_digits_that_are_their_label():
    found = style.consistency(Told(), np.zeros((300, 5)), Told())
    assert found.value == pytest.approx(2 / 3)  # every label in turn, so each as often


def test_versions_are_tabulated_and_not_made_again(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (260, *SHAPE), dtype=np.uint8), random.integers(0, 3, 260)
    np.savez(tmp_path / "tiny.npz", x=x, y=y)
    compile_nothing(monkeypatch)
    config = style.Config(data=str(tmp_path / "tiny.npz"), hidden_units=(8,), updates=2, seeds=(3, 4))
    config = dataclasses.replace(config, latent_dim=3, results=str(tmp_path), name="r")
    metrics = style.main(config)
    folder = tmp_path / "aae_style" / "r"
    runs = json.loads((folder / "runs.json").read_text())
    assert list(metrics) == list(style.VERSIONS)
    for version, means in metrics.items():
        both = [runs[f"{version}, seed {seed}"]["code_mlp_accuracy"] for seed in (3, 4)]
        assert means["code_mlp_accuracy"] == pytest.approx(np.mean(both)) and means["updates"] == 2
        assert (means["prior_consistency"] is None) != style.VERSIONS[version][0]
    for version in (DECODER, BOTH):
        with np.load(study.part_folder(folder, f"{version}, seed 3") / "pictures.npz") as arrays:
            assert arrays["images"].shape == (2 * style.STYLES, 3, *SHAPE)
        assert (folder / f"{version.replace(' ', '_')}.png").stat().st_size
    assert len(list((tmp_path / "aae_style" / "classifier").iterdir())) == 1
    monkeypatch.setattr(study, "fit", None)  # nothing is left to do
    assert style.main(config) == metrics
    with pytest.raises(RunError, match="made with another --"):
        style.main(dataclasses.replace(config, latent_dim=4))
    keras.utils.clear_session()


def test_data_without_labels_are_refused(tmp_path):
    np.savez(tmp_path / "bare.npz", x=np.random.default_rng(0).random((200, *SHAPE)))
    with pytest.raises(RunError, match="no labels"):
        style.main(style.Config(data=str(tmp_path / "bare.npz"), results=str(tmp_path / "results")))
    assert not (tmp_path / "results").exists()
