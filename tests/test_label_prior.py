"""Labels in the prior: who has one, what the discriminator and the encoder make of it, and the numbers of the modes."""

import dataclasses
import json

import aae_deterministic
from common.data import Dataset
from common.files import RunError
from common.model import to_numpy
from common.priors import MODES, PRIORS
from experiments import study
from experiments.aae import label_prior
from experiments.aae.label_prior import UNLABELLED

import keras
import numpy as np
import pytest
from helpers import compile_nothing, gradients
from keras import ops

SHAPE = (4, 3)
LABELS = np.array([0, 3, 9, UNLABELLED])


def model(prior="mixture", seed=0):
    return label_prior.build(aae_deterministic.Config(hidden_units=(8,), prior=prior, seed=seed), SHAPE)


def dataset(count=200, classes=10):
    random = np.random.default_rng(0)
    x, y = random.random((count, *SHAPE), dtype="float32"), np.arange(count) % classes
    return Dataset(x, y, x[:20], y[:20], x[:50], y[:50], "tiny")


def batch(labels):
    images = np.random.default_rng(1).random((len(labels), *SHAPE), dtype="float32")
    return {"images": ops.convert_to_tensor(images), "labels": ops.convert_to_tensor(labels)}


# What the discriminator sees


def test_the_discriminator_sees_eleven_labels_beside_the_code_and_unlabelled_is_the_last():
    z = np.random.default_rng(0).normal(size=(4, 2)).astype("float32")
    seen = to_numpy(model().joined(ops.convert_to_tensor(z), LABELS))
    np.testing.assert_array_equal(seen[:, :2], z)
    np.testing.assert_array_equal(seen[:, 2:], np.eye(11)[[0, 3, 9, 10]])


def gradient(built, x, term, network):
    """That of one term of the objective with respect to a network's weights, as one vector; no draw is random."""
    drawn = built.prior_draws(ops.cast(x["labels"], "int32"))
    built.prior_draws = lambda labels: drawn
    parts = gradients(lambda: built.objective(x, built(x))[term], built.networks[network].trainable_variables)
    return np.concatenate([part.ravel() for part in parts])


def test_a_label_changes_the_discriminators_output_and_the_encoders_gradient():
    built, outputs, slopes = model(), [], []
    for label in (0, 5, UNLABELLED):
        x = batch(np.full(4, label))
        outputs.append(to_numpy(built.discriminator(built.joined(built(x)["z"], x["labels"]))))
        slopes.append(gradient(built, x, "generator", "encoder"))
    for arrays in (outputs, slopes):
        for first, second in ((0, 1), (0, 2), (1, 2)):
            difference = np.abs(arrays[first] - arrays[second]).max()
            assert difference > 0.01 * np.abs(arrays[first]).max()


def test_no_player_moves_the_others_weights():
    built, x = model(), batch(LABELS)
    assert not gradient(built, x, "generator", "discriminator").any()
    assert not gradient(built, x, "discriminator", "encoder").any()
    assert (
        gradient(built, x, "generator", "encoder").any() and gradient(built, x, "discriminator", "discriminator").any()
    )


def test_the_encoder_never_sees_a_label():
    built = model()
    x = batch(LABELS)
    with_labels, other = (
        built(x | {"labels": ops.convert_to_tensor(labels)})["z"] for labels in (LABELS, LABELS[::-1])
    )
    np.testing.assert_array_equal(to_numpy(with_labels), to_numpy(other))
    np.testing.assert_allclose(built.encode(to_numpy(x["images"])), to_numpy(with_labels), rtol=1e-5, atol=1e-6)


# Draws from the prior


@pytest.mark.parametrize("prior", ["mixture", "swiss_roll"])
def test_a_label_draws_from_its_mode_and_unlabelled_from_all(prior):
    built = model(prior)
    labels = np.repeat([3, 8, UNLABELLED], 1000)
    modes = to_numpy(built.prior.mode_of(built.prior_draws(ops.convert_to_tensor(labels, "int32"))))
    assert np.mean(modes[:1000] == 3) > 0.95 and np.mean(modes[1000:2000] == 8) > 0.95
    counts = np.bincount(modes[2000:], minlength=MODES)
    assert (np.abs(counts - 100) < 5 * 100**0.5).all()


def test_draws_are_seeded():
    labels = ops.convert_to_tensor(LABELS, "int32")
    first, same, other = (to_numpy(model(seed=seed).prior_draws(labels)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


# Who has a label


def test_a_fifth_of_the_images_has_its_own_label_and_the_choice_is_seeded():
    data, config = dataset(), label_prior.Config(seeds=(0,))
    images, labels = label_prior.training_images(data, config, 0)
    assert images.shape == (200, *SHAPE) and np.sum(labels != UNLABELLED) == 40
    own = {image.tobytes(): label for image, label in zip(data.x_train, data.y_train, strict=True)}
    assert len({image.tobytes() for image in images}) == 200
    for image, label in zip(images, labels, strict=True):
        assert label in (UNLABELLED, own[image.tobytes()])
    same, other = (label_prior.training_images(data, config, seed) for seed in (0, 1))
    np.testing.assert_array_equal(labels, same[1])
    np.testing.assert_array_equal(images, same[0])
    assert not np.array_equal(images, other[0])


def test_no_more_images_are_taken_than_asked_for():
    config = label_prior.Config(labelled_images=30, unlabelled_images=90)
    images, labels = label_prior.training_images(dataset(), config, 0)
    assert len(images) == 120 and np.sum(labels == UNLABELLED) == 90


def test_classes_that_are_not_named_have_no_labels():
    config = label_prior.Config(labelled_images=100, unlabelled_images=100, classes=(2, 7))
    _, labels = label_prior.training_images(dataset(), config, 0)
    assert set(labels) == {2, 7, UNLABELLED} and 0 < np.sum(labels != UNLABELLED) < 60
    shown = label_prior.shown_labels(np.array([2, 3, 7, 9]), config)
    np.testing.assert_array_equal(shown, [2, UNLABELLED, 7, UNLABELLED])


def test_half_of_every_batch_has_labels_and_the_order_is_seeded():
    data, config = dataset(1000), label_prior.Config()
    images, labels = label_prior.training_images(data, config, 0)
    batches, same, other = (label_prior.MixedBatches(images, labels, 100, "none", seed) for seed in (0, 0, 1))
    assert len(batches) == 10
    for index in range(10):
        (taken,) = batches[index]
        assert np.sum(taken["labels"] == UNLABELLED) == 50
        chosen = batches.chosen(index)
        np.testing.assert_array_equal(taken["labels"], labels[chosen])
        np.testing.assert_array_equal(taken["images"], images[chosen])
    unlabelled = batches.order[labels[batches.order] == UNLABELLED]
    assert len(unlabelled) == 500 == len(set(unlabelled))  # of 800: none comes twice in an epoch
    np.testing.assert_array_equal(batches.order, same.order)
    assert not np.array_equal(batches.order, other.order)
    before = batches.order
    batches.shuffle(1)
    assert not np.array_equal(batches.order, before)


@pytest.mark.parametrize("label", [4, UNLABELLED])
def test_batches_are_full_where_all_or_none_have_labels(label):
    batches = label_prior.MixedBatches(dataset().x_train, np.full(200, label), 100, "none", 0)
    assert sorted(batches.order) == list(range(200))


@pytest.mark.parametrize(
    "change, message", [({"y_train": None}, "no labels"), ({"y_test": np.full(50, 10)}, "label 10")]
)
def test_data_whose_classes_have_no_mode_are_refused(change, message):
    with pytest.raises(RunError, match=message):
        label_prior.requires(label_prior.Config(), dataclasses.replace(dataset(), **change))


def test_too_few_images_and_classes_that_are_not_there_are_refused():
    config = label_prior.Config(labelled_images=10, unlabelled_images=20)
    with pytest.raises(RunError, match="100 or more"):
        label_prior.requires(config, dataset())
    with pytest.raises(RunError, match=r"none of .* would have a label"):
        label_prior.requires(label_prior.Config(labelled_images=10), dataset())
    with pytest.raises(RunError, match="no test image of --classes 8"):
        label_prior.requires(label_prior.Config(classes=(8,)), dataset(classes=3))


# Numbers


def test_codes_in_their_own_mode_are_counted():
    prior = PRIORS["mixture"](2)
    angle = 2 * np.pi * np.arange(10) / 10
    centres = 1.4 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    labels = np.where(np.arange(10) < 7, np.arange(10), 0)
    assert label_prior.own_mode_share(prior, centres, labels).value == pytest.approx(0.7)


def test_a_class_is_compared_with_its_own_mode(monkeypatch):
    """Class 0 lies in its mode, class 1 in another: one classifier guesses, the other knows. Class 2 is too small."""
    monkeypatch.setattr(label_prior, "CLASS_POINTS", 100)
    prior = PRIORS["mixture"](2)
    labels = np.repeat([0, 1, 2], [300, 300, 3])
    codes = to_numpy(prior.sample(603, 0, np.where(labels == 1, 5, labels)))
    own = to_numpy(prior.sample(603, 2, labels))
    found = label_prior.class_numbers(codes, own, labels, seed=0)
    assert found["classes"] == [0, 1]
    near, far = found["class_c2st_accuracy_each"]
    assert abs(near - 0.5) < 0.15 and far > 0.95
    assert found["class_c2st_accuracy"] == pytest.approx((near + far) / 2)
    near, far = found["class_mmd_imq_each"]
    assert abs(near) < 0.1 and far > 1.0


@pytest.mark.parametrize(
    "seeds, own", [((3, 4), {"priors": ("swiss_roll",)}), ((3,), {"priors": ("mixture",), "classes": (0, 2)})]
)
def test_priors_are_tabulated_and_not_made_again(tmp_path, monkeypatch, seeds, own):
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (260, *SHAPE), dtype=np.uint8), random.integers(0, 3, 260)
    np.savez(tmp_path / "tiny.npz", x=x, y=y)
    compile_nothing(monkeypatch)
    config = label_prior.Config(data=str(tmp_path / "tiny.npz"), hidden_units=(8,), updates=2, seeds=seeds)
    config = dataclasses.replace(config, results=str(tmp_path), name="r", **own)
    metrics = label_prior.main(config)
    folder = tmp_path / "aae_label_prior" / "r"
    runs = json.loads((folder / "runs.json").read_text())
    for prior, means in metrics.items():
        runs_of_prior = [runs[f"{prior}, seed {seed}"] for seed in seeds]
        assert means["own_mode_share"] == pytest.approx(np.mean([run["own_mode_share"] for run in runs_of_prior]))
        assert means["prior_own_mode_share"] > 0.8 and means["updates"] == 2
        assert runs_of_prior[0]["classes"] == list(own.get("classes", (0, 1, 2)))
    (prior,) = own["priors"]
    assert all((folder / f"{prior.replace('_', '-')}-seed-{seed}" / "history.csv").is_file() for seed in seeds)
    assert [path.stem for path in folder.glob("*.png")] == list(metrics) == [prior]
    monkeypatch.setattr(study, "fit", None)  # nothing is left to do
    assert label_prior.main(config) == metrics
    with pytest.raises(RunError, match="made with another --"):
        label_prior.main(dataclasses.replace(config, adversarial_weight=9.0))
    keras.utils.clear_session()
