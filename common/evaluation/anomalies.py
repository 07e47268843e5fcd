"""How anomalous is a row, and how well do scores tell anomalous rows from normal ones?

The numbers that a model gives for each row, ROC curves and their areas, and two usual scores to compare with. A score
is higher for a row that is more anomalous. NaN counts as infinite: it comes from rows so far from the training rows
that single precision ends.
"""

import math
from collections.abc import Callable

from common.evaluation import likelihood
from common.measure_likelihood import proposal
from common.model import CODES_IN_MEMORY, LatentModel, batch_slices, to_numpy
from common.numbers import Estimate

import numpy as np
from keras import ops
from scipy.stats import rankdata
from sklearn import metrics
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.preprocessing import StandardScaler

Score = Callable[[np.ndarray], np.ndarray]  # rows (n, d) -> (n,)
RECONSTRUCTIONS = 10  # draws z ~ q(z|x) for the mean reconstruction


# Numbers of a model for each row


def draws_of(model: LatentModel) -> int:
    """How many reconstructions are averaged: one if q(z|x) is a point."""
    return 1 if model.posterior == "point" else RECONSTRUCTIONS


def terms(model: LatentModel, rows: np.ndarray, progress) -> dict[str, np.ndarray]:
    """-log p(x|z) and, where the model has one, the KL, both (n,) in nats and means over draws of z."""
    draws, values = draws_of(model), {}
    numbers = draws * max(math.prod(rows.shape[1:]), CODES_IN_MEMORY * model.prior.latent_dim)
    for some in batch_slices(len(rows), numbers):
        batch = ops.convert_to_tensor(np.repeat(rows[some], draws, axis=0))
        outputs = model(batch)
        found = {"reconstruction_nats": -model.likelihood.log_prob(batch, outputs["parameters"])}
        for name, value in (found | model.divergences(batch, outputs)).items():
            mean = to_numpy(value).astype("float64").reshape(-1, draws).mean(axis=1)
            values.setdefault(name, []).append(mean)
        progress("reconstructions", some.stop, len(rows))
    return {name: np.concatenate(arrays) for name, arrays in values.items()}


def weighted_bound(model: LatentModel, rows: np.ndarray, draws: int, seed: int, progress) -> dict[str, np.ndarray]:
    """The importance-weighted bound on log p(x), (n,) in nats; empty if q(z|x) is a point, or p(z) has no density."""
    proposed = proposal(model, rows) if hasattr(model.prior, "log_prob") else None
    if proposed is None:
        return {}
    log_likelihood = likelihood.of_decoder(model.decoder, model.likelihood)
    weights = likelihood.importance_log_weights(log_likelihood, model.prior, rows, *proposed, draws, seed, progress)
    return {"weighted_bound_nats": likelihood.importance_weighted_bound(weights)}


# Scores


def unusable_as_infinite(scores: np.ndarray) -> np.ndarray:
    """Scores, (n,), with NaN replaced by infinity."""
    return np.where(np.isnan(scores), np.inf, scores)


def roc_area(scores: np.ndarray, anomalous: np.ndarray) -> Estimate:
    """The share of pairs of an anomalous and a normal row in which the anomalous one has the higher score.

    That is the area below the ROC curve; equal scores count half. The standard error is that of DeLong et al.,
    "Comparing the areas under two or more correlated receiver operating characteristic curves", Biometrics 44, 1988. It
    is computed from ranks (Sun & Xu, IEEE Signal Processing Letters 21, 2014), and 0 if all pairs are in one order.

    Args:
        scores: (n,).
        anomalous: (n,) truth values; two rows or more of either kind.
    """
    scores = unusable_as_infinite(scores)
    high, low = scores[anomalous], scores[~anomalous]
    ranks = rankdata(scores)
    below = (ranks[anomalous] - rankdata(high)) / len(low)  # the share of normal rows below each anomalous one
    above = 1.0 - (ranks[~anomalous] - rankdata(low)) / len(high)  # of anomalous rows above each normal one
    variance = below.var(ddof=1) / len(high) + above.var(ddof=1) / len(low)
    return Estimate(float(below.mean()), float(variance**0.5))


def roc_curve(scores: np.ndarray, anomalous: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The share of normal rows, and of anomalous rows, that are at or above each threshold: both from 0 to 1."""
    ranks = rankdata(unusable_as_infinite(scores))  # finite ones
    normal_share, anomalous_share, _ = metrics.roc_curve(anomalous, ranks)
    return normal_share, anomalous_share


# Scores to compare with


def isolation_forest(training: np.ndarray, seed: int) -> Score:
    """The score of scikit-learn's IsolationForest in its default settings, fitted on training rows, (n, d)."""
    forest = IsolationForest(random_state=seed).fit(training)
    return lambda rows: -forest.score_samples(rows)


def pca_error(training: np.ndarray, components: int, seed: int) -> Score:
    """The squared distance of a standardised row from the plane of the largest variance of the training rows, (n, d).

    The plane has `components` dimensions, fewer than d. Columns are standardised on the training rows.
    """
    scaler = StandardScaler().fit(training)
    standardised = scaler.transform(training)
    plane = PCA(min(components, len(training)), random_state=seed).fit(standardised).components_.astype("float64")

    def score(rows):
        standardised = scaler.transform(rows.astype("float64"))
        return np.square(standardised - standardised @ plane.T @ plane).sum(axis=1)

    return score
