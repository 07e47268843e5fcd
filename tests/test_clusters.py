"""Labels and clusters: draws of labelled images, names for clusters and their errors, on cases made by hand."""

import itertools

from common.arrays import DataError
from experiments.aae import clusters
from experiments.aae.categorical import balanced_draw

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.metrics import adjusted_rand_score

ASSIGNED = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2])
LABELS = np.array([5, 5, 1, 1, 1, 5, 1, 1, 0])


def test_a_cluster_takes_the_label_of_the_image_it_is_surest_of():
    probabilities = np.array([[0.5, 0.5, 0.0], [0.9, 0.0, 0.1], [0.6, 0.0, 0.4], [0.0, 0.7, 0.3]])
    logits = np.log(probabilities + 1e-12)
    names = clusters.names_by_confidence(logits, np.array([4, 3, 7, 8]))
    np.testing.assert_array_equal(names, [3, 8, 7])  # the third cluster's surest image is another cluster's


def test_confidence_orders_images_whose_q_rounds_to_1_in_float32():
    """Of two images with q = 1 - 1e-9 and 1 - 2e-9, neither of which is below 1 in float32."""
    logits = np.log(np.array([[1 - 2e-9, 2e-9], [1 - 1e-9, 1e-9], [0.1, 0.9]])).astype("float32")
    assert (softmax(logits, axis=1)[:2, 0] == 1).all()
    np.testing.assert_array_equal(clusters.names_by_confidence(logits, np.array([4, 3, 7])), [3, 7])


def test_a_cluster_takes_the_commonest_label_and_none_without_images():
    names = clusters.names_by_majority(ASSIGNED, LABELS, 4)
    np.testing.assert_array_equal(names, [5, 1, 1, clusters.NAMELESS])
    error = clusters.error_of_names(names, ASSIGNED, LABELS)
    assert error.value == pytest.approx(3 / 9) and error.standard_error == pytest.approx((1 / 3 * 2 / 3 / 9) ** 0.5)
    assert clusters.error_of_names(names, np.array([3, 0]), np.array([0, 5])).value == 0.5  # nameless is wrong


def test_one_to_one_two_clusters_cannot_share_a_class():
    """Of clusters 1 and 2, both mostly ones, only one may be: 2 and 1 give 2 + 2 + 1 hits, any other way fewer."""
    assert clusters.matched_error(ASSIGNED, LABELS, 3).value == pytest.approx(1 - 5 / 9)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_matching_is_the_best_of_all_permutations(pairs):
    assigned, labels = np.array(pairs).T
    best = min(np.mean(np.array(order)[assigned] != labels) for order in itertools.permutations(range(4)))
    assert clusters.matched_error(assigned, labels, 4).value == pytest.approx(best)


@given(st.permutations(range(4)), st.lists(st.integers(0, 3), min_size=2, max_size=40))
def test_classes_under_other_names_are_no_error_and_agree(names, labels):
    labels = np.array(labels)
    assigned = np.array(names)[labels]
    assert clusters.matched_error(assigned, labels, 4).value == 0.0
    assert clusters.error_of_names(clusters.names_by_majority(assigned, labels, 4), assigned, labels).value == 0.0
    assert clusters.agreement(assigned, labels) == pytest.approx({"nmi": 1.0, "ari": 1.0})


def test_agreement_of_chance_is_near_zero_and_symmetric():
    random = np.random.default_rng(0)
    chance = clusters.agreement(random.integers(5, size=20_000), random.integers(5, size=20_000))
    assert abs(chance["ari"]) < 0.001 and 0 <= chance["nmi"] < 0.001  # of the order of 16 / 2n
    assert clusters.agreement(ASSIGNED, LABELS)["ari"] == pytest.approx(adjusted_rand_score(ASSIGNED, LABELS))


# Draws of labelled images


@pytest.fixture(scope="module")
def labels():
    return np.random.default_rng(0).integers(0, 5, 500)


def test_draws_are_balanced_seeded_and_share_no_image(labels):
    draws = [balanced_draw(labels, 50, draw) for draw in range(5)]
    for draw in draws:
        np.testing.assert_array_equal(np.bincount(labels[draw]), [10] * 5)
    assert len(np.unique(np.concatenate(draws))) == 250
    np.testing.assert_array_equal(draws[3], balanced_draw(labels, 50, 3))


def test_a_larger_draw_of_number_0_holds_the_smaller(labels):
    """So that 1000 labels are never worse chosen than 100."""
    assert set(balanced_draw(labels, 50, 0)) < set(balanced_draw(labels, 100, 0))


@pytest.mark.parametrize(("count", "draw", "message"), [(51, 0, "multiple"), (3, 0, "multiple"), (100, 4, "there are")])
def test_what_cannot_be_drawn_is_refused(labels, count, draw, message):
    with pytest.raises(DataError, match=message):
        balanced_draw(labels, count, draw)
