"""Probes: how well does the latent code tell the class?"""

import warnings

from common.numbers import Estimate, share_of

from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def probe_accuracy(probe: str, train_codes, train_labels, test_codes, test_labels, seed: int = 0) -> Estimate:
    """Accuracy on test codes, (m, latent_dim), of a new classifier trained on the training codes, (n, latent_dim).

    Probes: "knn", the majority of the 15 nearest (Euclidean); "logistic", linear; "mlp", one layer of 100 ReLU units.
    Raises ValueError if there is no such probe.
    """
    if probe == "knn":
        classifier = KNeighborsClassifier(min(15, len(train_codes)))
    elif probe == "logistic":
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
    elif probe == "mlp":
        network = MLPClassifier((100,), max_iter=30, random_state=seed)
        classifier = make_pipeline(StandardScaler(), network)
    else:
        raise ValueError(f"probe must be knn, logistic or mlp, not {probe!r}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of passes is part of the probe
        classifier.fit(train_codes, train_labels)
    return share_of(classifier.predict(test_codes) == test_labels)
