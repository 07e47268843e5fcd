"""Probes: how well can a classifier predict the class from the latent code?"""

import warnings

from common.evaluation.latent import NOT_FINITE, precise
from common.numbers import Absent, Estimate, share_of

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

MOST_CLASSES = 1000  # for classifiers that hold a probability for each training image and class
NO_LABELS = "the data have no labels"
ONE_CLASS = "all training labels are of one class"
MANY_CLASSES = f"more than {MOST_CLASSES:,} classes take a classifier too much memory"


def nothing_to_tell(training_labels: np.ndarray | None) -> str | None:
    """Why a classifier cannot learn from these labels, (n,), or None: it needs 2 to MOST_CLASSES classes."""
    if training_labels is None:
        return NO_LABELS
    classes = len(np.unique(training_labels))
    return ONE_CLASS if classes == 1 else MANY_CLASSES if classes > MOST_CLASSES else None


def probe_accuracy(probe: str, train_codes, train_labels, test_codes, test_labels, seed: int = 0) -> Estimate | Absent:
    """Accuracy on test codes, (m, latent_dim), of a new classifier trained on the training codes, (n, latent_dim).

    Probes: "knn", the majority of the 15 nearest (Euclidean); "logistic", linear; "mlp", one layer of 100 ReLU units.
    `Absent` without labels, or with codes that are not finite. All probes except "knn" need 2 to MOST_CLASSES classes,
    and are `Absent` for other numbers. Raises ValueError if there is no such probe.
    """
    if probe not in ("knn", "logistic", "mlp"):
        raise ValueError(f"probe must be knn, logistic or mlp, not {probe!r}")
    reason = nothing_to_tell(train_labels)
    if reason and (reason == NO_LABELS or probe != "knn"):
        return Absent(reason)
    if not (np.isfinite(train_codes).all() and np.isfinite(test_codes).all()):
        return Absent(NOT_FINITE)
    if probe == "knn":
        classifier = KNeighborsClassifier(min(15, len(train_codes)))
    elif probe == "logistic":
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
    else:
        classifier = make_pipeline(StandardScaler(), MLPClassifier((100,), max_iter=30, random_state=seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is part of the probe
        warnings.filterwarnings("ignore", message="The number of unique classes")  # they are labels, even if many
        classifier.fit(precise(train_codes), train_labels)
    return share_of(classifier.predict(precise(test_codes)) == test_labels)
