"""common/evaluation/probes.py and samples.py: probes, distances and the classifier, in cases with a known answer."""

from dataclasses import replace

from common.data import Dataset
from common.evaluation.probes import probe_accuracy
from common.evaluation.samples import FEATURES, Classifier, frechet_distance, frechet_estimate, nearest_images

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

seeds = st.integers(0, 2**32 - 1)
property_test = settings(deadline=None, max_examples=30, derandomize=True)


def random(seed=0):
    return np.random.default_rng(seed)


# Probes


@property_test
@given(st.integers(1, 40), st.integers(1, 10), seeds)
def test_the_knn_probe_by_brute_force(train_count, test_count, seed):
    train_codes = random(seed).standard_normal((train_count, 3))
    test_codes = random(seed + 1).standard_normal((test_count, 3))
    train_labels = random(seed + 2).integers(0, 3, train_count)
    test_labels = random(seed + 3).integers(0, 3, test_count)
    right = 0
    for code, label in zip(test_codes, test_labels, strict=True):
        nearest = np.argsort(((train_codes - code) ** 2).sum(axis=1))[:15]
        right += np.bincount(train_labels[nearest]).argmax() == label
    found = probe_accuracy("knn", train_codes, train_labels, test_codes, test_labels)
    assert found.value == pytest.approx(right / test_count)


def probed(probe, codes, labels, seed=0):
    """Of the second half of rows, by a probe trained on the first."""
    half = len(codes) // 2
    return probe_accuracy(probe, codes[:half], labels[:half], codes[half:], labels[half:], seed)


every_probe = pytest.mark.parametrize("probe", ["knn", "logistic", "mlp"])


@every_probe
def test_probes_of_separated_classes_and_of_chance(probe):
    labels = random(1).choice([3, 8], 2000)  # not 0 and 1
    codes = random().standard_normal((2000, 2))
    chance = probed(probe, codes, labels)
    assert chance.value == pytest.approx(0.5, abs=4 * 0.5 / 1000**0.5)  # four standard errors
    assert chance.standard_error == pytest.approx((chance.value * (1 - chance.value) / 1000) ** 0.5)
    assert probed(probe, codes + 2.0 * labels[:, None], labels) == (1.0, 0.0)  # 14 deviations apart


@pytest.mark.parametrize(("probe", "least", "most"), [("logistic", 0.4, 0.6), ("knn", 0.98, 1.0), ("mlp", 0.98, 1.0)])
def test_only_a_bent_boundary_tells_exclusive_or(probe, least, most):
    corners = random(1).integers(0, 2, (4000, 2))
    codes = 100.0 * (corners + 0.1 * random().standard_normal(corners.shape)) + 1000.0  # in any unit
    # No straight line does better than 3 corners of 4; the likeliest line, on balanced corners, is a coin.
    assert least <= probed(probe, codes, corners[:, 0] ^ corners[:, 1]).value <= most


@every_probe
def test_probes_repeat_with_their_seed_and_keep_their_arguments(probe):
    codes, labels = random().standard_normal((200, 2)), random(1).integers(0, 3, 200)
    before = codes.copy(), labels.copy()
    assert probed(probe, codes, labels, seed=1) == probed(probe, codes, labels, seed=1)
    np.testing.assert_array_equal(codes, before[0])
    np.testing.assert_array_equal(labels, before[1])


def test_an_unknown_probe_is_refused():
    with pytest.raises(ValueError, match="knn, logistic or mlp"):
        probed("linear", np.zeros((4, 2)), np.arange(4))


# Fréchet distance


def frechet_formula(means, covariances):
    root = sqrtm(covariances[0] @ covariances[1]).real
    return np.sum((means[0] - means[1]) ** 2) + np.trace(covariances[0] + covariances[1] - 2 * root)


def mixed(count, dimensions, seed):
    """Gaussian features of a random mean and covariance."""
    mixing = random(seed).standard_normal((dimensions, dimensions))
    return random(seed + 1).standard_normal((count, dimensions)) @ mixing + random(seed + 2).standard_normal(dimensions)


@property_test
@given(st.integers(2, 6), st.integers(20, 50), st.integers(20, 50), seeds)
def test_the_frechet_distance_of_the_sample_moments(dimensions, first_count, second_count, seed):
    first, second = mixed(first_count, dimensions, seed), mixed(second_count, dimensions, seed + 3)
    moments = [[features.mean(axis=0) for features in (first, second)], [np.cov(f.T) for f in (first, second)]]
    # sqrtm is the less exact of the two where the product is nearly singular
    assert frechet_distance(first, second) == pytest.approx(frechet_formula(*moments), rel=1e-5, abs=1e-5)
    assert frechet_distance(second, first) == pytest.approx(frechet_distance(first, second), abs=1e-6)


def test_the_frechet_distance_of_a_set_from_itself_is_zero():
    features = mixed(200, 5, seed=0)
    assert frechet_distance(features, features[::-1]) == pytest.approx(0.0, abs=1e-6)  # a root of rounding errors
    features[:, 3:] = 0.0  # as units of a ReLU layer that are never on
    assert frechet_distance(features, features) == pytest.approx(0.0, abs=1e-6)
    assert frechet_distance(features, features + np.array([3.0, 4.0, 0, 0, 0])) == pytest.approx(25.0, abs=1e-6)


def test_the_frechet_distance_of_two_gaussians_in_closed_form():
    means, deviations = np.array([[0.0, 1.0, 0.0], [0.5, 0.0, 0.0]]), np.array([[1.0, 1.0, 2.0], [1.0, 0.5, 3.0]])
    turn = np.linalg.qr(random(9).standard_normal((3, 3)))[0]  # the second's axes are not the first's
    standard = random().standard_normal((2, 50_000, 3))
    covariances = np.diag(deviations[0] ** 2), turn.T @ np.diag(deviations[1] ** 2) @ turn
    first, second = means[0] + deviations[0] * standard[0], means[1] + (deviations[1] * standard[1]) @ turn
    found = frechet_estimate(first, second)
    assert found.value == pytest.approx(frechet_formula(means, covariances), abs=4 * found.standard_error)
    assert found.standard_error < 0.05 < found.value / 20


@pytest.mark.parametrize(("shift", "least", "most"), [(0.5, 0.8, 1.25), (0.0, 1.0, 2.5)])
def test_the_error_of_a_frechet_distance_is_its_spread(shift, least, most):
    pairs = [random(seed).standard_normal((2, 400, 6)) for seed in range(80)]
    found = np.array([frechet_estimate(first, second + shift) for first, second in pairs])
    # The spread over 80 repeats is known within 8 %. Between equal sets, where all of the distance is its bias,
    # resampling doubles the deviations of the moments' difference, and the error is nearly twice too large.
    assert least < found[:, 1].mean() / found[:, 0].std(ddof=1) < most


def test_a_frechet_estimate_repeats_and_its_value_is_the_distance():
    first, second = mixed(100, 4, seed=0), mixed(80, 4, seed=5)
    before = first.copy(), second.copy()
    found = frechet_estimate(first, second, seed=3)
    assert found == frechet_estimate(first, second, seed=3)
    assert found.value == frechet_distance(first, second)
    np.testing.assert_array_equal(first, before[0])
    np.testing.assert_array_equal(second, before[1])


# Nearest training images


@property_test
@given(st.sampled_from([(6,), (2, 3)]), st.integers(1, 8), st.integers(1, 20), seeds)
def test_nearest_images_by_brute_force(shape, count, train_count, seed):
    images = random(seed).random((count, *shape), dtype="float32")
    train = random(seed + 1).random((train_count, *shape), dtype="float32")
    all_distances = np.array([[np.linalg.norm((a.astype("float64") - b).ravel()) for b in train] for a in images])
    indices, distances = nearest_images(images, train)
    assert indices.shape == distances.shape == (count,)
    np.testing.assert_allclose(distances, all_distances.min(axis=1), atol=1e-6)
    np.testing.assert_allclose(all_distances[np.arange(count), indices], all_distances.min(axis=1), atol=1e-6)


def test_a_memorised_image_is_found():
    train = random().random((300, 28, 28), dtype="float32")
    indices, distances = nearest_images(train[[7, 250]], train)
    np.testing.assert_array_equal(indices, [7, 250])
    np.testing.assert_allclose(distances, 0.0, atol=1e-4)  # a root of rounding errors in squares of 260


# The classifier

LABELS = np.array([2, 5, 9])


def stripes(count, seed, flat=False):
    """Noisy images of 8 x 6 with a bright band at the top, in the middle or at the bottom, and their classes."""
    classes = random(seed).integers(0, 3, count)
    images = 0.4 * random(seed + 1).random((count, 8, 6), dtype="float32")
    for image, band in zip(images, classes, strict=True):
        image[3 * band : 3 * band + 2] += 0.5
    return images.reshape(count, -1) if flat else images, LABELS[classes]


def dataset(flat=False):
    splits = [stripes(count, seed, flat) for count, seed in ((1280, 0), (50, 10), (200, 20))]
    return Dataset(*(array for split in splits for array in split), name="stripes")


@pytest.fixture(scope="module", params=["images", "rows of numbers"])
def trained(request, tmp_path_factory):
    folder, heard = tmp_path_factory.mktemp("classifier"), []
    data = dataset(flat=request.param != "images")
    return data, folder, Classifier(data, folder, lambda *words: heard.append(words)), heard


def no_training(monkeypatch):
    monkeypatch.setattr(Classifier, "train", lambda *arguments: pytest.fail("trained again"))


def test_the_classifier_knows_its_classes(trained):
    data, _, classifier, _ = trained
    assert classifier.accuracy.value > 0.98
    found = classifier.classes(data.x_test)
    assert set(found) == set(LABELS)
    assert np.mean(found == data.y_test) == classifier.accuracy.value
    value, error = classifier.accuracy
    assert error == pytest.approx((value * (1 - value) / len(found)) ** 0.5)


def test_features_are_one_row_an_image_and_tell_the_classes_apart(trained):
    data, _, classifier, _ = trained
    features = classifier.features(data.x_test)
    assert features.shape == (200, FEATURES)
    np.testing.assert_allclose(classifier.features(data.x_test[:3]), features[:3], rtol=1e-4, atol=1e-5)
    halves = [features[data.y_test == label] for label in LABELS]
    apart = frechet_distance(halves[0], halves[1])
    assert apart > 5 * frechet_distance(halves[0][::2], halves[0][1::2])


def test_training_says_how_far_it_is(trained):
    heard = trained[3]
    total = heard[-1][2]
    assert heard == [("classifier", done + 1, total) for done in range(total)]


def test_the_classifier_is_trained_once(trained, monkeypatch):
    data, folder, classifier, _ = trained
    no_training(monkeypatch)
    again = Classifier(data, folder)
    np.testing.assert_array_equal(again.features(data.x_test), classifier.features(data.x_test))
    np.testing.assert_array_equal(again.classes(data.x_test), classifier.classes(data.x_test))
    assert again.accuracy == classifier.accuracy
    assert len(list(folder.iterdir())) == 1  # no unfinished files


def test_training_repeats(trained, tmp_path):
    data, _, classifier, _ = trained
    again = Classifier(data, tmp_path / "new" / "folder")
    # Sums of many threads come in any order.
    np.testing.assert_allclose(again.features(data.x_test), classifier.features(data.x_test), rtol=1e-2, atol=1e-2)


def test_a_damaged_file_is_trained_anew_and_replaced(trained, tmp_path, capsys, monkeypatch):
    data, folder, *_ = trained
    (path,) = folder.iterdir()
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes()[:2000])
    Classifier(data, tmp_path)
    assert "trained again" in capsys.readouterr().out
    no_training(monkeypatch)
    assert Classifier(data, tmp_path).accuracy.value > 0.98


def test_other_data_have_a_classifier_of_their_own(trained, monkeypatch):
    data, folder, _, _ = trained
    monkeypatch.setattr(Classifier, "train", lambda self, progress: (_ for _ in ()).throw(InterruptedError))
    with pytest.raises(InterruptedError):
        Classifier(replace(data, y_train=data.y_train[::-1].copy()), folder)
    assert len(list(folder.iterdir())) == 1  # and nothing of one that was never trained
