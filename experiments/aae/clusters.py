"""Are clusters classes? Names for clusters, the error that they make, and agreement without names. NumPy in."""

from common.numbers import Estimate, share_of

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.special import logsumexp
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

NAMELESS = -1  # a cluster that no image was there to name: wrong for every image


def names_by_confidence(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A cluster takes the label of the image that is most surely its own: (n, clusters), (n,) -> (clusters,).

    The AAE paper's rule (section 5): of the validation image that maximises q(y_i|x). `logits` are those of q(y|x),
    two or more, and what is compared is log q(y_i|x) / (1 - q(y_i|x)), which orders images as q does: many q are so
    near 1 that rounding to float32 would choose among them.
    """
    logits = logits.astype(float)
    others = [logsumexp(np.delete(logits, cluster, axis=1), axis=1) for cluster in range(logits.shape[1])]
    return labels[np.argmax(logits - np.stack(others, axis=1), axis=0)]


def names_by_majority(assigned: np.ndarray, labels: np.ndarray, clusters: int) -> np.ndarray:
    """A cluster takes the commonest label of its images, the smallest of equally common ones: (clusters,).

    `assigned` and `labels` are (n,); NAMELESS where a cluster has no image.
    """
    table = counts(assigned, labels, clusters)
    return np.where(table.sum(axis=1) > 0, np.argmax(table, axis=1), NAMELESS)


def error_of_names(names: np.ndarray, assigned: np.ndarray, labels: np.ndarray) -> Estimate:
    """Fraction of images whose cluster's name, names (clusters,), is not their label; `assigned` and `labels` (n,)."""
    return share_of(names[assigned] != labels)


def matched_error(assigned: np.ndarray, labels: np.ndarray, clusters: int) -> Estimate:
    """Error where no two clusters may share a class, at the one-to-one matching that is best for these very labels.

    Found by the Hungarian method (Kuhn, 1955).
    With more clusters than classes the images of those left over all count as wrong, and the other way round.
    """
    table = counts(assigned, labels, clusters)
    rows, columns = linear_sum_assignment(table, maximize=True)
    names = np.full(clusters, NAMELESS)
    names[rows] = columns
    return error_of_names(names, assigned, labels)


def agreement(assigned: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Normalised mutual information (by the arithmetic mean of the entropies) and the adjusted Rand index.

    1 for the classes under other names; the index is 0 on average for assignments by chance.
    """
    return {
        "nmi": float(normalized_mutual_info_score(labels, assigned)),
        "ari": float(adjusted_rand_score(labels, assigned)),
    }


def counts(assigned: np.ndarray, labels: np.ndarray, clusters: int) -> np.ndarray:
    """How many images of each class a cluster has: (clusters, classes)."""
    table = np.zeros((clusters, int(labels.max()) + 1), int)
    np.add.at(table, (assigned, labels), 1)
    return table
