"""Does the code fill its prior, and what does it say about the images? NumPy in, numbers out."""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def moments(codes: np.ndarray) -> dict[str, float]:
    """Norm of the mean code, and the smallest and largest standard deviation of its dimensions; (n, latent_dim)."""
    deviations = codes.std(axis=0)
    return {
        "code_mean_norm": float(np.linalg.norm(codes.mean(axis=0))),
        "code_std_min": float(deviations.min()),
        "code_std_max": float(deviations.max()),
    }


def c2st_accuracy(codes: np.ndarray, prior_samples: np.ndarray, seed: int = 0) -> float:
    """Accuracy of a fresh classifier that tells codes from prior samples, on halves that it has not seen.

    Classifier two-sample test (Lopez-Paz & Oquab, arXiv 1610.06545): 0.5 is a perfect match. Both arrays are
    (n, latent_dim) with the same n; half of each trains the classifier, the other half is scored, so the
    standard error is at most 0.5 / sqrt(n).
    """
    half = len(codes) // 2
    order = np.random.default_rng(seed)
    codes, prior_samples = order.permutation(codes), order.permutation(prior_samples)
    labels = np.repeat([0, 1], [half, half])
    # No early stopping: with it the classifier found less (0.559 for 0.593, on codes of a half-trained AAE).
    network = MLPClassifier((64, 64), max_iter=80, tol=0.0, n_iter_no_change=80, random_state=seed)
    network = make_pipeline(StandardScaler(), network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of passes is fixed on purpose
        network.fit(np.concatenate([codes[:half], prior_samples[:half]]), labels)
    return float(network.score(np.concatenate([codes[-half:], prior_samples[-half:]]), labels))


def knn_accuracy(train_codes, train_labels, test_codes, test_labels, neighbours: int = 15) -> float:
    """Share of test codes whose class is that of most of their nearest training codes (Euclidean)."""
    classifier = KNeighborsClassifier(min(neighbours, len(train_codes)))
    return float(classifier.fit(train_codes, train_labels).score(test_codes, test_labels))


def active_units(draws: np.ndarray, threshold: float = 0.01) -> int:
    """Number of code dimensions u with Var_x(E[z_u|x]) above `threshold` (Burda et al., arXiv 1509.00519).

    `draws` is (draws, n, latent_dim): at least two z ~ q(z|x) for each of n images. The variance of an average
    of k draws is too large by E_x[Var(z|x)] / k, which is estimated from the draws and taken off.
    """
    between = draws.mean(axis=0).var(axis=0, ddof=1)
    within = draws.var(axis=0, ddof=1).mean(axis=0)
    return int(np.sum(between - within / len(draws) > threshold))
