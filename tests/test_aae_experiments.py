"""The three experiments with categories on tiny sets: folders, refusals, errors, draws of labels and recipes."""

import csv
import dataclasses
import json

from common.arrays import DataError
from common.command import parse
from common.config import check, flag
from common.data import load_data
from common.files import RunError
from common.model import LatentModel
from common.run import load_config, results_name
from common.training import Outcome
from experiments import study
from experiments.aae import clustering, embedding, semisupervised
from experiments.aae.categorical import (
    CategoricalPrior,
    PartlyLabelledBatches,
    all_labelled,
    balanced_draw,
    error_curve,
)

import keras
import numpy as np
import pytest

EAGERLY = keras.backend.backend() != "jax"  # few updates take longer to compile, and minutes on JAX without it
SHAPE = (4, 3)
RANDOM = np.random.default_rng(0)


# Data


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """300 images of three classes, each brighter than the one before."""
    y = np.tile(np.arange(3), 100)
    x = np.clip(RANDOM.normal(60 + 60 * y[:, None, None], 30, (300, *SHAPE)), 0, 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("tiny") / "tiny.npz"
    np.savez(path, x=x, y=y)
    return str(path)


def test_batches_pair_labelled_images_with_their_labels(tiny):
    dataset = load_data(tiny)
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
    assert encoder(load_data(tiny).x_test[:2]).shape[1] == decoder.input_shape[1]


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
    module.STUDY.requires(dataclasses.replace(config, distortion=0.0, shift=0.0), load_data(config.data))


@pytest.mark.parametrize("module", [semisupervised, embedding])
def test_classes_without_training_images_are_refused(module, tmp_path):
    x, y = RANDOM.random((300, *SHAPE)), 1 + np.arange(300) % 3  # labels from 1 are classes from 0
    np.savez(tmp_path / "rare.npz", x_train=x, y_train=y, x_test=x, y_test=y - 1)
    config = module.Config(data=str(tmp_path / "rare.npz"), results=str(tmp_path), **COMMON | EXPERIMENTS[module])
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
    config, dataset = semisupervised.Config(), load_data(tiny)
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
    config, dataset = embedding.Config(batch_size=60), load_data(tiny)
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
    dataset, sizes = load_data(tiny), {"hidden_units": (8,), "discriminator_units": (8,)}
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
