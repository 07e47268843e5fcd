"""The AAE with categories: its objective against NumPy, which terms train which network, models of the recipes."""

from types import SimpleNamespace

from common.model import to_numpy
from experiments.aae import semisupervised
from experiments.aae.categorical import (
    CategoricalAAE,
    CategoricalPrior,
    categorical_kl,
    encoder,
    networks_of,
)

import keras
import numpy as np
import pytest
from keras import ops
from scipy import ndimage, stats
from scipy.special import log_softmax, softmax

SHAPE = (4, 3)
WARMED = ("category_generator", "consistency")
EAGERLY = keras.backend.backend() != "jax"  # few updates take longer to compile, and minutes on JAX without it
SIZES = SimpleNamespace(hidden_units=(7,), discriminator_units=(6,), normalised=False)


def model_of(weights=None, head_distance=0.0, sizes=SIZES, **options):
    prior = CategoricalPrior(3, 2)
    networks = networks_of(prior, SHAPE, sizes, seed=1, head_distance=head_distance)
    return CategoricalAAE(weights or {}, prior=prior, seed=1, **options, **networks)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).random((6, *SHAPE), dtype="float32")


@pytest.fixture(scope="module")
def labelled(x):
    return {"images": x, "labelled_images": x[:4] ** 2, "labels": np.array([2, 0, 1, 1])}


def softplus(a):
    return np.logaddexp(0.0, a)


def terms_of(model, x, training=False):
    tensors = keras.tree.map_structure(ops.convert_to_tensor, x)
    outputs = model(tensors, training=training)
    return {name: float(to_numpy(term)) for name, term in model.objective(tensors, outputs).items()}


# The prior


def test_the_prior_is_one_hot_and_even_beside_a_standard_normal():
    codes = to_numpy(CategoricalPrior(4, 2).sample(20_000, seed=0))
    y, z = codes[:, :4], codes[:, 4:]
    assert set(np.unique(y)) == {0.0, 1.0} and (y.sum(axis=1) == 1).all()
    np.testing.assert_allclose(y.mean(axis=0), 0.25, atol=0.015)  # 5 standard errors
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-3
    for category in range(4):  # y and z are independent
        assert abs(z[y[:, category] == 1].mean()) < 0.05


# The objective


def test_every_term_is_its_formula(x, labelled):
    """float32 against float64: 1e-5 of sums over 12 pixels."""
    weights = {"reconstruction": 0.5, "category_generator": 2.0, "style_generator": 4.0, "cross_entropy": 3.0}
    model = model_of(weights)
    drawn = to_numpy(model.prior.sample(6, seed=5))
    model.prior_like = lambda z: ops.convert_to_tensor(drawn)
    terms = terms_of(model, labelled)
    heads = to_numpy(model.encoder(ops.convert_to_tensor(x))).astype("float64")
    y, z = softmax(heads[:, :3], axis=1), heads[:, 3:]
    logits = to_numpy(model.decoder(ops.convert_to_tensor(np.concatenate([y, z], 1), "float32"))).astype("float64")
    expected = {"reconstruction": 0.5 * (softplus(logits) - x * logits).sum(axis=(1, 2)).mean()}
    for name, code, prior in (("category", y, drawn[:, :3]), ("style", z, drawn[:, 3:])):
        weight = weights[f"{name}_generator"]
        judge = model.networks[f"{name}_discriminator"]
        of_code, of_prior = (to_numpy(judge(ops.convert_to_tensor(part, "float32"))) for part in (code, prior))
        expected[f"{name}_generator"] = weight * softplus(-of_code).mean()
        expected[f"{name}_discriminator"] = softplus(-of_prior).mean() + softplus(of_code).mean()
    known = to_numpy(model.encoder(ops.convert_to_tensor(labelled["labelled_images"])))[:, :3]
    expected["cross_entropy"] = -3.0 * log_softmax(known, axis=1)[np.arange(4), labelled["labels"]].mean()
    assert terms == pytest.approx(expected, rel=1e-4)
    assert set(model.terms) == set(terms)


@pytest.mark.parametrize(("cross_entropy", "share"), [(1.0, 0.25), (0.0, 1.0)])
def test_what_keeps_the_categories_warms_up_beside_labels_alone(labelled, cross_entropy, share):
    """At the same weights, codes and draws; float32, so to 1e-5."""
    model = model_of({"cross_entropy": cross_entropy, "consistency": 2.0}, distortion=0.5)
    drawn = model.prior.sample(6, seed=5)
    model.prior_like = lambda z: drawn
    model.noise = lambda shape: ops.ones(shape)
    full = terms_of(model, labelled)
    model.warm_up_weight.assign(0.25)
    expected = {name: term * (share if name in WARMED else 1.0) for name, term in full.items()}
    assert terms_of(model, labelled) == pytest.approx(expected, rel=1e-5) and full["consistency"] > 0


def stepped(weights, x):
    """Each network's weights after one step of gradient descent, from the same start and draws."""
    model = model_of(weights)
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=EAGERLY)
    model.train_on_batch(ops.convert_to_tensor(x))
    return {name: np.concatenate([w.ravel() for w in net.get_weights()]) for name, net in model.networks.items()}


def test_every_network_learns_from_its_own_terms_alone(x):
    start = {name: np.concatenate([w.ravel() for w in n.get_weights()]) for name, n in model_of().networks.items()}
    light, heavy = (stepped({"category_generator": w, "style_generator": w}, x) for w in (1.0, 5.0))
    for name in ("decoder", "category_discriminator", "style_discriminator"):
        np.testing.assert_allclose(light[name], heavy[name], atol=1e-6)
        assert np.abs(light[name] - start[name]).max() > 1e-3
    assert np.abs(light["encoder"] - heavy["encoder"]).max() > 1e-3
    judged_alone = stepped({"reconstruction": 0.0, "category_generator": 0.0, "style_generator": 0.0}, x)
    np.testing.assert_array_equal(judged_alone["encoder"], start["encoder"])  # nothing from the discriminators' terms


def test_images_are_corrupted_in_training_alone(x):
    noisy, thinned = model_of(input_noise=0.5), model_of(input_dropout=0.25)
    many = np.full((500, *SHAPE), 0.6, "float32")
    shown = to_numpy(noisy.corrupted(ops.convert_to_tensor(many)))
    assert abs(shown.mean() - 0.6) < 0.03 and abs(shown.std() - 0.5) < 0.03  # 5 standard errors of 6,000 pixels
    shown = to_numpy(thinned.corrupted(ops.convert_to_tensor(many)))
    assert abs((shown == 0).mean() - 0.25) < 0.03
    np.testing.assert_allclose(shown[shown > 0], 0.6 / 0.75, rtol=1e-6)
    for model in (noisy, thinned):
        np.testing.assert_array_equal(model.encode(x), model.encode(x))
        first, second = (to_numpy(model(ops.convert_to_tensor(x), training=True)["z"]) for _ in range(2))
        assert np.abs(first - second).max() > 1e-3


def test_labelled_images_share_the_batch_normalisation_of_the_others(labelled):
    """The codes of unlabelled images in training change with the labelled ones beside them."""
    sizes = SimpleNamespace(hidden_units=(7,), discriminator_units=(6,), normalised=True)
    model = model_of({"cross_entropy": 1.0}, sizes=sizes)
    tensors = keras.tree.map_structure(ops.convert_to_tensor, labelled)
    codes = to_numpy(model(tensors, training=True)["z"])
    others = to_numpy(model(tensors | {"labelled_images": 0.0 * tensors["labelled_images"]}, training=True)["z"])
    assert codes.shape == (6, 5) and np.abs(codes - others).max() > 1e-3


@pytest.mark.parametrize(("balanced", "used"), [(False, {1}), (True, {0, 1, 2})])
def test_balanced_categories_all_have_images(balanced, used):
    """An encoder that prefers category 1 by far: unless its logits are balanced, no other has any image."""
    built = encoder(CategoricalPrior(3, 2), SHAPE, (), np.random.default_rng(0), normalised=False, balanced=balanced)
    kernel, _, *rest = built.get_weights()
    built.set_weights([kernel, np.array([0.0, 50.0, 0.0, 0.0, 0.0]), *rest])
    images = np.random.default_rng(1).random((100, *SHAPE), dtype="float32")
    logits = to_numpy(built(ops.convert_to_tensor(images), training=True))[:, :3]
    assert set(logits.argmax(axis=1)) == used
    if balanced:
        np.testing.assert_allclose(logits.mean(axis=0), 0.0, atol=1e-3)  # 50 is rounded to 4e-6, deviations are 0.1


# Consistency


def test_the_categorical_kl_is_scipys():
    random = np.random.default_rng(0)
    first, second = random.dirichlet(np.ones(4), size=(2, 5))
    kl = to_numpy(categorical_kl(ops.convert_to_tensor(np.log(first)), ops.convert_to_tensor(np.log(second))))
    np.testing.assert_allclose(kl, stats.entropy(first, second, axis=1), rtol=1e-5)


def test_images_are_augmented_as_scipy_maps_them():
    """The same draws through scipy.ndimage's bilinear map; float32 positions of some 10 pixels, so to 1e-4."""
    images = np.random.default_rng(0).random((5, 9, 6), dtype="float32")
    model = model_of(distortion=0.3, shift=1.5)
    random, drawn = np.random.default_rng(1), []

    def noise(shape):
        drawn.append(random.normal(size=shape).astype("float32"))
        return ops.convert_to_tensor(drawn[-1])

    model.noise = noise
    augmented = to_numpy(model.augmented(ops.convert_to_tensor(images)))
    middle, (matrices, shifts) = np.array([2.5, 4.0]), drawn  # sideways before down
    for image, result, matrix, shift in zip(images, augmented, matrices, shifts, strict=True):
        linear = np.eye(2) + 0.3 * matrix
        offset = middle - linear @ middle + 1.5 * shift[:, 0]
        down_first = ndimage.affine_transform(
            image, linear[::-1, ::-1], offset[::-1], order=1, mode="grid-constant", cval=0.0
        )
        np.testing.assert_allclose(result, down_first, atol=1e-4)


def test_without_augmentation_images_stay_as_they_are(x):
    images = ops.convert_to_tensor(x)
    assert model_of().augmented(images) is images
    shifted = to_numpy(model_of(shift=1.0).augmented(images))
    assert shifted.shape == x.shape and (np.abs(shifted - x).max(axis=(1, 2)) > 1e-3).all()  # each of them


def test_consistency_is_the_kl_to_the_augmented_images(x):
    """A mean over the images, by SciPy, with shifts that put every image out of sight: q(y|0) for all."""
    model = model_of({"consistency": 2.0}, shift=1e6)
    random = np.random.default_rng(3)
    model.encoder.set_weights([random.normal(size=w.shape) for w in model.encoder.get_weights()])
    here, away = (softmax(to_numpy(model.encoder(ops.convert_to_tensor(a)))[:, :3], axis=1) for a in (x, 0.0 * x))
    expected = 2.0 * stats.entropy(here, away, axis=1).mean()
    assert expected > 0.01 and terms_of(model, x)["consistency"] == pytest.approx(expected, rel=1e-4)


def test_consistency_learns_through_the_augmented_images_alone(x):
    """Shifted out of sight they are 0, and so is the gradient of the first layer's kernel, though not of its bias."""
    model = model_of({"consistency": 5.0} | dict.fromkeys(CategoricalAAE.required_terms[:3], 0.0), shift=1e6)
    random = np.random.default_rng(3)
    model.encoder.set_weights([random.normal(size=w.shape) for w in model.encoder.get_weights()])
    kernel, bias, *_ = model.encoder.get_weights()
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=EAGERLY)
    model.train_on_batch(ops.convert_to_tensor(x))
    trained_kernel, trained_bias, *_ = model.encoder.get_weights()
    np.testing.assert_array_equal(trained_kernel, kernel)
    assert np.abs(trained_bias - bias).max() > 1e-4


def test_labelled_images_are_augmented_in_training_alone(labelled):
    model = model_of({"cross_entropy": 1.0}, shift=1e6)
    tensors = keras.tree.map_structure(ops.convert_to_tensor, labelled)
    for training, seen in ((False, labelled["labelled_images"]), (True, 0.0 * labelled["labelled_images"])):
        logits = to_numpy(model(tensors, training=training)["labelled_category_logits"])
        expected = to_numpy(model.encoder(ops.convert_to_tensor(seen)))[:, :3]
        np.testing.assert_allclose(logits, expected, atol=1e-5)


# The map


def test_cluster_heads_that_crowd_cost_what_they_lack():
    model = model_of({"heads": 1.0}, head_distance=5.0)
    heads = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 2.0]])
    model.decoder.get_layer("heads").set_weights([heads / 5.0])
    np.testing.assert_allclose(to_numpy(model.heads()), heads, atol=1e-6)
    lacking = (5 - 5) + (5 - 2) + (5 - 13**0.5)
    assert float(to_numpy(model.crowding())) == pytest.approx(lacking, abs=1e-3)  # a root's guard of 1e-6
    model.decoder.get_layer("heads").set_weights([3.0 * heads / 5.0])  # the nearest two are 6 apart
    assert float(to_numpy(model.crowding())) == 0.0


def test_cluster_heads_start_as_wide_as_the_style():
    networks = networks_of(CategoricalPrior(300, 2), SHAPE, SIZES, seed=0, head_distance=6.0)
    heads = 6.0 * to_numpy(networks["decoder"].get_layer("heads").kernel)
    assert np.std(heads) == pytest.approx(1.0, abs=0.1)  # of 600 draws: three standard errors


def test_a_representation_is_the_head_plus_the_style(x):
    model = model_of({}, head_distance=5.0)
    heads, codes = to_numpy(model.heads()), model.encode(x)
    np.testing.assert_allclose(model.represent(x), codes[:, :3] @ heads + codes[:, 3:], atol=1e-5)
    headless = codes.copy()  # the decoder sees the sum alone: what the head loses, the style gains
    headless[:, :3], headless[:, 3:] = 0.0, model.represent(x)
    np.testing.assert_allclose(model.decode(headless), model.decode(codes), atol=1e-5)


# The recipes of semisupervised


def test_the_papers_step_lengths():
    """Rate over 1 - momentum, times the term's weight: what a constant gradient moves the weights by in the end."""
    config = semisupervised.recipe_config(semisupervised.Config(), "paper")
    model = model_of({"cross_entropy": 1.0})
    optimizer = semisupervised.paper_optimizer(10, model, config, updates=5000)
    by_momentum = {float(inner.momentum): inner for inner in optimizer.optimizers}
    assert set(by_momentum) == {0.1, 0.9} and len(optimizer.optimizers) == 4
    schedule = by_momentum[0.9]._learning_rate
    length = float(schedule(0)) / (1 - 0.9)
    assert config.reconstruction_weight * length == pytest.approx(0.3 * 0.01 / (1 - 0.9), rel=1e-3)  # a sum's, less
    assert config.supervised_weight * length == pytest.approx(0.1 / (1 - 0.9), rel=1e-3)
    assert config.adversarial_weight * length == pytest.approx(0.1 / (1 - 0.1), rel=2e-3)
    rates = [float(schedule(update)) for update in (500, 501, 10_000, 10_001)]
    assert rates == pytest.approx([0.1, 0.01, 0.01, 0.001], rel=1e-3)


def test_a_plain_network_learns_from_labelled_images_alone(labelled):
    config = semisupervised.Config(hidden_units=(7,), discriminator_units=(6,), input_noise=0.0)
    config = semisupervised.recipe_config(config, "labels_only")
    model = semisupervised.build(config, "labels_only", SHAPE, 3, seed=0)
    terms = terms_of(model, labelled | {"images": 0.0 * labelled["images"]})
    assert list(model.networks) == ["encoder"] and terms == pytest.approx(terms_of(model, labelled))
    known = to_numpy(model.encoder(ops.convert_to_tensor(labelled["labelled_images"])))
    exact = -log_softmax(known, axis=1)[np.arange(4), labelled["labels"]].mean()
    assert terms["cross_entropy"] == pytest.approx(exact, rel=1e-5)


def test_two_recipes_augment_images():
    config = semisupervised.Config(hidden_units=(7,), discriminator_units=(6,))
    for recipe in semisupervised.RECIPES:
        model = semisupervised.build(semisupervised.recipe_config(config, recipe), recipe, SHAPE, 3, seed=0)
        augments = recipe in ("ours", "labels_augmented")
        assert (model.distortion > 0, model.shift > 0) == (augments, augments)
        assert ("consistency" in model.terms) == (recipe == "ours")
