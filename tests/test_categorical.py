"""The AAE with categories: its objective against NumPy, which terms train which network, its three experiments."""

import csv
import dataclasses
import json
from types import SimpleNamespace

from common.arrays import DataError
from common.command import parse
from common.config import check, flag
from common.data import load_mnist
from common.files import RunError
from common.model import LatentModel, to_numpy
from common.run import load_config, results_name
from common.training import Outcome
from experiments import study
from experiments.aae import clustering, embedding, semisupervised
from experiments.aae.categorical import (
    CategoricalAAE,
    CategoricalPrior,
    PartlyLabelledBatches,
    all_labelled,
    balanced_draw,
    categorical_kl,
    encoder,
    error_curve,
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


# Data

RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """300 images of three classes, each brighter than the one before."""
    y = np.tile(np.arange(3), 100)
    x = np.clip(RANDOM.normal(60 + 60 * y[:, None, None], 30, (300, *SHAPE)), 0, 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("tiny") / "tiny.npz"
    np.savez(path, x=x, y=y)
    return str(path)


def test_batches_pair_labelled_images_with_their_labels(tiny):
    dataset = load_mnist(tiny)
    known = np.array([3, 50, 77, 120])
    batches = PartlyLabelledBatches(dataset, known, 8, 10, seed=2)
    (batch,), (again,) = batches[1], batches[1]
    assert batch["images"].shape == (10, *SHAPE) and batch["labelled_images"].shape == (8, *SHAPE)
    for image, label in zip(batch["labelled_images"], batch["labels"], strict=True):
        assert any((image == dataset.x_train[i]).all() and label == dataset.y_train[i] for i in known)
    np.testing.assert_array_equal(batch["labelled_images"], again["labelled_images"])
    assert (batches[2][0]["labelled_images"] != batch["labelled_images"]).any()
    assert all_labelled(dataset.x_val, dataset.y_val)["labelled_images"] is dataset.x_val


# The experiments

COMMON = {"hidden_units": (8,), "discriminator_units": (8,), "updates": 2, "batch_size": 240, "name": "r"}
EXPERIMENTS = {
    semisupervised: {"labels": (6, "all"), "seeds": (1,), "labelled_batch_size": 10}
    | {"recipes": ("ours", "paper", "labels_only")},
    clustering: {"clusters": (4,), "seeds": (0, 1)},
    embedding: {"labels": (0, 6), "larger_labels": (6,), "larger_dim": 3, "seeds": (1,), "clusters": 4}
    | {"labelled_batch_size": 10, "map_images": 25},
}
FIGURES = {
    semisupervised: ("error.png", "digits-6.png", "digits-all.png"),
    clustering: ("error.png", "clusters-4.png"),
    embedding: ("error.png", "map.png"),
}


@pytest.fixture(scope="module", params=EXPERIMENTS, ids=lambda module: module.__name__.split(".")[-1])
def finished(request, tiny, tmp_path_factory):
    """An experiment, its Config, what it returned, and its folder."""
    module, results = request.param, tmp_path_factory.mktemp("results")
    config = module.Config(data=tiny, results=str(results), **COMMON | EXPERIMENTS[module])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            LatentModel, "compile", lambda model, adam, **_: keras.Model.compile(model, adam, run_eagerly=EAGERLY)
        )
        metrics = module.main(config)
    return module, config, metrics, results / results_name(module.__name__) / "r"


def test_an_experiment_tabulates_the_numbers_of_its_parts(finished):
    module, config, metrics, folder = finished
    runs = json.loads((folder / "runs.json").read_text())
    case, key = {
        semisupervised: ("ours, 6 labels", "test_error"),
        clustering: ("4 clusters", "matched_error"),
        embedding: ("2-D, no labels", "neighbour_error"),
    }[module]
    row, numbers = metrics[case], [runs[f"{case}, seed {seed}"][key] for seed in config.seeds]
    assert row[key] == pytest.approx(np.mean(numbers)) and row["updates"] == 2
    assert row[f"{key}_sd"] == (pytest.approx(np.std(numbers, ddof=1)) if len(numbers) > 1 else None)
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    assert all((folder / figure).stat().st_size for figure in FIGURES[module])
    lines = (folder / "table.md").read_text().splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]] == list(metrics)


def test_an_experiments_history_holds_the_validation_error(finished):
    module, _, _, folder = finished
    names = {semisupervised: "paper-all-labels", clustering: "4-clusters", embedding: "3-d-6-labels"}
    with open(folder / f"{names[module]}-seed-1" / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["updates"]) for row in rows] == [1, 2]  # 240 training images, all in a batch
    assert all(0 <= float(row["val_error"]) <= 1 for row in rows)


def test_an_experiment_does_not_train_again(finished, monkeypatch):
    module, config, metrics, _ = finished
    monkeypatch.setattr(study.Part, "train", None)
    monkeypatch.setattr(embedding, "TSNE", None)
    monkeypatch.setattr(module, "STUDY", module.STUDY._replace(figures=lambda results, rows: {}))
    assert module.main(config) == metrics
    with pytest.raises(RunError, match="made with another --"):
        module.main(dataclasses.replace(config, hidden_units=(9,)))


def test_the_first_seeds_networks_come_back(finished, tiny):
    module, _, _, folder = finished
    part = {semisupervised: "ours-6-labels-seed-1", clustering: "4-clusters-seed-0", embedding: "2-d-6-labels-seed-1"}
    encoder, decoder = (
        keras.saving.load_model(folder / part[module] / f"{network}.keras") for network in ("encoder", "decoder")
    )
    assert encoder(load_mnist(tiny).x_test[:2]).shape[1] == decoder.input_shape[1]


@pytest.mark.parametrize(
    ("module", "changes", "error"),
    [
        (semisupervised, {"labels": (7,)}, "7 labels"),
        (semisupervised, {"labels": (6,), "seeds": (0, 400)}, "there are"),
        (semisupervised, {"labels": ("some",)}, "--labels"),
        (semisupervised, {"labels": (0,)}, "--labels"),
        (semisupervised, {"warm_up": 1.5}, "--warm-up"),
        (semisupervised, {"normalised": 2}, "--normalised"),
        (embedding, {"labels": (7,)}, "7 labels"),
        (clustering, {"clusters": (1,)}, "--clusters"),
        (clustering, {"batch_size": 500}, "training images"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_work(tiny, tmp_path, module, changes, error):
    config = module.Config(data=tiny, results=str(tmp_path / "results"))
    with pytest.raises((RunError, DataError), match=error):
        module.main(dataclasses.replace(config, **({"batch_size": 60} | changes)))
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("module", EXPERIMENTS)
def test_images_without_sides_are_refused_unless_none_is_augmented(module, tmp_path):
    np.savez(tmp_path / "rows.npz", x=RANDOM.random((300, 12)), y=np.arange(300) % 3)
    config = module.Config(data=str(tmp_path / "rows.npz"), results=str(tmp_path), **COMMON | EXPERIMENTS[module])
    with pytest.raises(RunError, match="--distortion 0 --shift 0"):
        module.main(config)
    module.STUDY.requires(dataclasses.replace(config, distortion=0.0, shift=0.0), load_mnist(config.data))


@pytest.mark.parametrize("module", [semisupervised, embedding])
def test_classes_without_training_images_are_refused(module, tmp_path):
    np.savez(tmp_path / "from_1.npz", x=RANDOM.random((300, *SHAPE)), y=1 + np.arange(300) % 3)
    config = module.Config(data=str(tmp_path / "from_1.npz"), results=str(tmp_path), **COMMON | EXPERIMENTS[module])
    with pytest.raises(RunError, match="no training image of class 0"):
        module.main(config)


@pytest.mark.parametrize("module", EXPERIMENTS)
def test_images_without_labels_are_refused(module, tmp_path):
    np.savez(tmp_path / "bare.npz", x=RANDOM.integers(0, 256, (200, *SHAPE), dtype=np.uint8))
    config = module.Config(data=str(tmp_path / "bare.npz"), results=str(tmp_path / "results"))
    with pytest.raises(RunError, match="no labels"):
        module.main(config)
    check(config)


# Errors


class Sorted:
    """Images are numbers: rounded up, their category, and the further below that, the surer it is of them."""

    prior = CategoricalPrior(3, 2)

    def category_logits(self, images):
        sureness = 1.0 + np.ceil(images) - images
        return np.where(np.arange(3) == np.ceil(images)[:, None], 5.0 * sureness[:, None], 0.0)


# Category 0 is named 7 by its surest image and 4 by most, category 1 by all 5; 2 has no image: by those that are least
# sure to be another's it is named 4, by majority nothing.
NAMING = (np.array([0.0, 0.0, -0.5, 0.5, 0.9]), np.array([4, 4, 7, 5, 5]))
TESTED = (np.array([0.0, 0.0, 0.0, 1.0, 2.0]), np.array([7, 4, 4, 5, 5]))


@pytest.mark.parametrize("judged, error", [(NAMING, (2 / 5, 1 / 5)), (TESTED, (3 / 5, 2 / 5))])
def test_validation_images_name_the_clusters_and_test_images_are_judged(judged, error):
    of_clusters = clustering.errors(Sorted(), NAMING, *judged)
    on_map = embedding.errors(Sorted(), embedding.Case(2, 0), NAMING, *judged)
    assert (of_clusters["confident_error"].value, of_clusters["majority_error"].value) == pytest.approx(error)
    assert (on_map["test_error"].value, on_map["majority_error"].value) == pytest.approx(error)


def test_where_the_categories_are_classes_nobody_names_them():
    errors = embedding.errors(Sorted(), embedding.Case(2, 100), None, np.array([0.0, 1.0, 2.0]), np.arange(3) % 2)
    assert errors["test_error"].value == errors["majority_error"].value == pytest.approx(1 / 3)


def test_the_neighbours_error_counts_votes_without_ones_own():
    random = np.random.default_rng(0)
    points, labels = random.normal(size=(40, 2)), random.integers(0, 3, 40)
    wrong = 0
    for i in range(40):
        near = sorted((j for j in range(40) if j != i), key=lambda j: np.linalg.norm(points[i] - points[j]))[:15]
        wrong += np.bincount(labels[near]).argmax() != labels[i]
    assert embedding.neighbour_error(points, labels) == pytest.approx(wrong / 40)


def test_a_stopped_training_has_the_error_of_its_last_good_pass():
    history = {"updates": [10, 20], "val_error": [0.25, 0.9]}
    whole, stopped = (error_curve(Outcome(history, 20, 1.0, 20, reason)) for reason in (None, "not finite"))
    assert (whole["validation_error"], stopped["validation_error"]) == (0.9, 0.25)
    first = Outcome({"updates": [3], "val_error": [0.9]}, 3, 1.0, 3, "not finite")
    assert error_curve(first)["validation_error"] is None


def test_reported_numbers_stand_beside_mnist_alone(tiny):
    config, dataset = semisupervised.Config(), load_mnist(tiny)
    rows = {"ours, 100 labels": {"stopped": 0, "test_error": 0.02, "validation_error": 0.01}}
    on_map = {"2-D, 100 labels": {"stopped": 0, "test_error": 0.02}}
    for is_mnist in (True, False):
        named = dataclasses.replace(dataset, name="MNIST", is_mnist=is_mnist)
        results = study.Results(config, named, None, {})
        table = semisupervised.tables(semisupervised.STUDY, results, rows)["table.md"]
        assert ("| 1.90 ± 0.10 | 2.00 | 1.00 |" in table) == is_mnist
        results = study.Results(embedding.Config(), named, None, {})
        assert ("| 6.08 | 2.00 |" in embedding.tables(embedding.STUDY, results, on_map)["table.md"]) == is_mnist


# Seeds and recipes


def test_a_seed_draws_the_labels_of_a_map(tiny):
    config, dataset = embedding.Config(batch_size=60), load_mnist(tiny)
    batches, validation = embedding.training_data(config, dataset, embedding.Case(2, 6), seed=1)
    require_draw(batches, dataset, seed=1)
    assert validation["labels"] is dataset.y_val
    batches, validation = embedding.training_data(config, dataset, embedding.Case(2, 0), seed=1)
    assert batches.seed == 1 and batches.images is dataset.x_train and validation is dataset.x_val


def require_draw(batches, dataset, seed):
    """Asserts that the labelled images are the seed's own draw of six."""
    drawn = balanced_draw(dataset.y_train, 6, seed)
    np.testing.assert_array_equal(batches.x_labelled, dataset.x_train[drawn])
    np.testing.assert_array_equal(batches.y_labelled, dataset.y_train[drawn])
    assert batches.seed == seed


def begin(config, recipe, dataset):
    """Model, Config, batches and optimiser that a recipe's training on six labels begins with, with seed 1."""
    begun = []

    def train(model, config, batches, validation, measures, optimizer):
        begun.extend((model, config, batches, optimizer(model, config, updates=10)))
        raise KeyboardInterrupt

    part = study.Part(config, dataset, 1, None, first=True)
    part.train = train
    with pytest.raises(KeyboardInterrupt):
        semisupervised.train_recipe(recipe, 6, part)
    return begun


def values(model, config, optimizer):
    """The values of a recipe's parameters in what its training begins with."""
    weights = model.weights_of_terms
    assert weights["category_generator"] == weights["style_generator"]
    return {
        "normalised": any(isinstance(layer, keras.layers.BatchNormalization) for layer in model.encoder.layers),
        "input_noise": model.input_noise,
        "reconstruction_weight": weights["reconstruction"],
        "adversarial_weight": weights["style_generator"],
        "supervised_weight": weights["cross_entropy"],
        "consistency_weight": weights["consistency"],
        "distortion": model.distortion,
        "shift": model.shift,
        "warm_up": config.warm_up,
        "learning_rate": float(optimizer.optimizers[0]._learning_rate(0)),
    }


@pytest.mark.parametrize("recipe", ["ours", "without_consistency", "paper"])
def test_a_flag_holds_for_every_recipe_also_at_the_value_of_another(recipe, tiny):
    """Without flags a recipe has its own values. With them it has theirs, though these are the values of "ours"."""
    dataset, sizes = load_mnist(tiny), {"hidden_units": (8,), "discriminator_units": (8,)}
    model, config, batches, optimizer = begin(semisupervised.Config(**sizes), recipe, dataset)
    assert values(model, config, optimizer) == pytest.approx(semisupervised.RECIPES[recipe])
    require_draw(batches, dataset, seed=1)
    flags = [text for name, value in semisupervised.OURS.items() for text in (flag(name), str(value))]
    config = dataclasses.replace(parse(semisupervised.Config, flags), **sizes)
    check(config)
    model, config, _, optimizer = begin(config, recipe, dataset)
    assert values(model, config, optimizer) == pytest.approx(semisupervised.OURS)


def test_one_flag_leaves_a_recipe_its_other_values():
    config = parse(semisupervised.Config, ["--learning-rate", "1e-3", "--normalised", "True"])
    parameters = vars(semisupervised.recipe_config(config, "paper"))
    expected = semisupervised.RECIPES["paper"] | {"learning_rate": 1e-3, "normalised": True}
    assert {name: parameters[name] for name in expected} == expected


def test_an_older_config_comes_back_under_todays_names(tmp_path):
    """As commit 8c47970 wrote it for --labels 100 all --draws 0 1 --recipes ours labels_moved --supervised-weight 5."""
    folder = tmp_path / "aae_semisupervised" / "older"
    folder.mkdir(parents=True)
    parameters = {
        "data": "sample",
        "labels": [100, "all"],
        "draws": [0, 1],
        "recipes": ["ours", "labels_moved"],
        "style_dim": 10,
        "hidden_units": [500, 500],
        "discriminator_units": [250, 250],
        "normalised": True,
        "input_noise": 0.0,
        "reconstruction_weight": 0.1,
        "adversarial_weight": 1.0,
        "supervised_weight": 5.0,
        "consistency_weight": 30.0,
        "distortion": 0.2,
        "shift": 2.0,
        "warm_up": 0.9,
        "updates": 17000,
        "batch_size": 100,
        "labelled_batch_size": 100,
        "learning_rate": 0.001,
        "final_rate_factor": 0.01,
        "beta_1": 0.5,
        "quick": False,
        "results": "results",
        "name": "",
    }
    (folder / "config.json").write_text(json.dumps({"script": "aae_semisupervised", "parameters": parameters}))
    assert load_config(folder) == semisupervised.Config(
        data="sample",
        labels=(100, "all"),
        seeds=(0, 1),
        recipes=("ours", "labels_augmented"),
        supervised_weight=5.0,
        results=str(tmp_path),
        name="older",
    )


def test_the_papers_step_lengths():
    """Rate over 1 - momentum, times the term's weight: what a constant gradient moves the weights by in the end."""
    config = semisupervised.recipe_config(semisupervised.Config(), "paper")
    model = model_of({"cross_entropy": 1.0})
    optimizer = semisupervised.of_the_paper(10, model, config, updates=5000)
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
