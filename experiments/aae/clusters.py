"""Are clusters classes? Names for clusters, the error of these names, and agreement without names, in NumPy."""

from common.numbers import Estimate, share_of

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.special import logsumexp
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

NAMELESS = -1  # the name of a cluster without images; it counts as an error for every image


def names_by_confidence(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A cluster takes the label of the image with its highest q(y_i|x): (n, clusters), (n,) -> (clusters,).

    This is the AAE paper's rule (section 5), for validation images. `logits` are those of q(y|x), for two or more
    clusters. The code compares log q(y_i|x) / (1 - q(y_i|x)), which orders images as q does. Many q are so close to 1
    that in float32, rounding would choose among them.
    """
    logits = logits.astype(float)
    others = [logsumexp(np.delete(logits, cluster, axis=1), axis=1) for cluster in range(logits.shape[1])]
    return labels[np.argmax(logits - np.stack(others, axis=1), axis=0)]


def names_by_majority(assigned: np.ndarray, labels: np.ndarray, clusters: int) -> np.ndarray:
    """A cluster takes the most common label of its images; of several, the smallest: (n,), (n,) -> (clusters,).

    A cluster without images is NAMELESS.
    """
    table = counts(assigned, labels, clusters)
    return np.where(table.sum(axis=1) > 0, np.argmax(table, axis=1), NAMELESS)


def error_of_names(names: np.ndarray, assigned: np.ndarray, labels: np.ndarray) -> Estimate:
    """Share of images whose label is not the name of their cluster: (clusters,), (n,), (n,)."""
    return share_of(names[assigned] != labels)


def matched_error(assigned: np.ndarray, labels: np.ndarray, clusters: int) -> Estimate:
    """Error of the best one-to-one matching of clusters and classes, by the Hungarian method (Kuhn, 1955).

    `assigned` and `labels` are (n,). Unmatched clusters and classes count as errors.
    """
    table = counts(assigned, labels, clusters)
    rows, columns = linear_sum_assignment(table, maximize=True)
    names = np.full(clusters, NAMELESS)
    names[rows] = columns
    return error_of_names(names, assigned, labels)


def agreement(assigned: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Normalised mutual information (by the arithmetic mean of the entropies) and the adjusted Rand index.

    Both are 1 if the clusters are the classes under other names. Random clusters have an index of 0 on average.
    """
    return {
        "nmi": float(normalized_mutual_info_score(labels, assigned)),
        "ari": float(adjusted_rand_score(labels, assigned)),
    }


def counts(assigned: np.ndarray, labels: np.ndarray, clusters: int) -> np.ndarray:
    """How many images of each class each cluster has: (n,), (n,) -> (clusters, classes)."""
    table = np.zeros((clusters, int(labels.max()) + 1), int)
    np.add.at(table, (assigned, labels), 1)
    return table
