"""Does the latent code fill its prior, and how much does it tell about the images? From NumPy arrays to numbers."""

import warnings
from typing import NamedTuple

from common.model import gaussian_kl, to_numpy
from common.numbers import Absent, Estimate, mean_of, share_of

import numpy as np
from keras import ops
from scipy.spatial.distance import pdist
from scipy.special import logsumexp
from scipy.stats import f as f_distribution
from scipy.stats import ks_2samp
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

IMQ_SCALES = (
    0.1,
    0.2,
    0.5,
    1.0,
    2.0,
    5.0,
    10.0,
)  # scales of the summed kernels, as in the code of Tolstikhin et al.
ROWS = 500  # rows of an (n, n) matrix that are in memory at a time
COINCIDE = "half of the codes and prior samples coincide, or more"
CONSTANT = "all codes are the same"
NOT_FINITE = "some codes or features are infinite or not a number"


def precise(codes: np.ndarray) -> np.ndarray:
    """Codes of any shape, in double precision if their squares go beyond single precision, else unchanged."""
    return codes.astype("float64") if np.abs(codes).max() > 1e15 else codes


# Does the code fill its prior?


def moments(codes: np.ndarray) -> dict[str, float]:
    """Norm of the mean code, and smallest and largest standard deviation of a dimension; codes are (n, latent_dim)."""
    codes = precise(codes)
    deviations = codes.std(axis=0)
    return {
        "code_mean_norm": float(np.linalg.norm(codes.mean(axis=0))),
        "code_std_min": float(deviations.min()),
        "code_std_max": float(deviations.max()),
    }


def kolmogorov_smirnov(codes: np.ndarray, prior_samples: np.ndarray) -> np.ndarray:
    """Largest difference between the distribution functions of codes and prior, for each dimension: (latent_dim,).

    This is the two-sample Kolmogorov-Smirnov distance of (n, latent_dim) and (m, latent_dim), between 0 and 1. It
    compares only the marginals.
    """
    return np.array([ks_2samp(a, b, method="asymp").statistic for a, b in zip(codes.T, prior_samples.T, strict=True)])


def kolmogorov_smirnov_critical(n: int, m: int, dimensions: int = 1, level: float = 0.05) -> float:
    """The distance that the largest of `dimensions` distances exceeds with probability `level`.

    For samples of one distribution, n and m of them, with independent dimensions. Smirnov's formula takes the level of
    one dimension, 1 - (1 - level)^(1 / dimensions) (Sidak, JASA 62, 1967). If a rotation makes dimensions depend on one
    another, the probability is lower.
    """
    return float((-0.5 * np.log(sidak(level, dimensions) / 2.0) * (n + m) / (n * m)) ** 0.5)


def sidak(level: float, tests: int) -> float:
    """The level of each of `tests` independent tests, if one or more reject a true hypothesis in a share `level`."""
    return 1.0 - (1.0 - level) ** (1.0 / tests)


def c2st_accuracy(codes: np.ndarray, prior_samples: np.ndarray, seed: int = 0) -> Estimate | Absent:
    """Accuracy of a new classifier that tells codes from prior samples, on samples held out from its training.

    Classifier two-sample test (Lopez-Paz & Oquab, arXiv 1610.06545): 0.5 is a perfect match. Both arrays are
    (n, latent_dim) with the same n. One half of each trains the classifier, and the other half tests it. So the
    standard error is at most 0.5 / sqrt(n). `Absent` if a value is not finite.
    """
    if not (np.isfinite(codes).all() and np.isfinite(prior_samples).all()):
        return Absent(NOT_FINITE)
    half = len(codes) // 2
    random = np.random.default_rng(seed)
    codes, prior_samples = random.permutation(precise(codes)), random.permutation(precise(prior_samples))
    labels = np.repeat([0, 1], [half, half])
    # No early stopping: it costs accuracy (0.559 instead of 0.593, on codes of a half-trained AAE).
    network = MLPClassifier((64, 64), max_iter=80, tol=0.0, n_iter_no_change=80, random_state=seed)
    network = make_pipeline(StandardScaler(), network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is fixed on purpose
        network.fit(np.concatenate([codes[:half], prior_samples[:half]]), labels)
        hits = network.predict(np.concatenate([codes[-half:], prior_samples[-half:]])) == labels
    return share_of(hits)


class Discrepancy(NamedTuple):
    """A squared maximum mean discrepancy, its standard error, and the share of permutations with one as large."""

    value: float
    standard_error: float
    p_value: float


def mmd(
    codes, prior_samples, kernel: str = "imq", points: int = 2000, permutations: int = 200, seed=0
) -> Discrepancy | Absent:
    """Squared maximum mean discrepancy between codes and prior samples; it is unbiased, so it can be below 0.

    Gretton et al., JMLR 13 (2012), eq. 3: mean k(z, z') + mean k(p, p') - 2 mean k(z, p) over distinct pairs. It takes
    at most `points` rows of each array. The kernels:

    - "imq": the sum of c / (c + |a - b|^2) over c = 2 latent_dim variance scale, for seven scales (Tolstikhin et al.,
      arXiv 1711.01558).
    - "rbf": exp(-|a - b|^2 / 2 h^2), where h is the median distance.

    Both widths come from the pooled samples, so a permutation of the labels does not change them. The standard error
    comes from the variance of the witness function, corrected for its noise. It is at least the spread over the
    permutations. Costs 4 points^2 kernel values, and the same number of products per permutation. `Absent` if a kernel
    would have no width.
    """
    random = np.random.default_rng(seed)
    n = min(points, len(codes), len(prior_samples))
    pooled = np.concatenate([random.permutation(codes)[:n], random.permutation(prior_samples)[:n]]).astype("float64")
    if not kernel_width(pooled, kernel) > 0.0:
        return Absent(COINCIDE)
    k = kernel_matrix(pooled, kernel)
    chosen = np.zeros((2 * n, permutations + 1))
    for column in range(permutations + 1):
        chosen[random.permutation(2 * n)[:n] if column else np.arange(n), column] = 1.0
    rows = k @ chosen  # (2 n, permutations + 1): sums of kernel values with the chosen half
    within, total = (chosen * rows).sum(axis=0), rows.sum(axis=0)
    others = k.sum() - 2.0 * total + within
    values = (within + others) / (n * (n - 1)) - 2.0 * (total - within) / n**2  # the first is of the real labels
    own, other = rows[:, 0], k.sum(axis=1) - rows[:, 0]
    witness = np.concatenate([(own / (n - 1) - other / n)[:n], (other / (n - 1) - own / n)[n:]])
    first_order = 4.0 * (witness[:n].var(ddof=1) + witness[n:].var(ddof=1)) / n
    second_order = values[1:].var(ddof=1)
    error = max(first_order - second_order, second_order) ** 0.5
    as_large = np.sum(~(values[1:] < values[0]))  # NaN counts as large
    return Discrepancy(float(values[0]), float(error), float((1 + as_large) / (permutations + 1)))


def kernel_width(points: np.ndarray, kernel: str) -> float:
    """The squared width of a kernel: 2 latent_dim sigma^2 ("imq"), or h^2 ("rbf").

    Raises ValueError if there is no such kernel.
    """
    if kernel == "imq":
        return 2.0 * points.var(axis=0).sum()
    if kernel == "rbf":
        return np.median(pdist(points[:: max(1, len(points) // 1000)])) ** 2
    raise ValueError(f"kernel must be imq or rbf, not {kernel!r}")


def kernel_matrix(points: np.ndarray, kernel: str) -> np.ndarray:
    """k of all pairs of points, (n, latent_dim) -> (n, n), with zeros on the diagonal.

    Raises ValueError if there is no such kernel.
    """
    width, squares = kernel_width(points, kernel), (points**2).sum(axis=1)
    distances = np.maximum(squares[:, None] + squares - 2.0 * points @ points.T, 0.0)  # squared
    if kernel == "imq":
        k = sum(scale * width / (scale * width + distances) for scale in IMQ_SCALES)
    else:
        k = np.exp(-0.5 * distances / width)
    np.fill_diagonal(k, 0.0)
    return k


# What does the code say about the images?


def active_units(draws: np.ndarray, threshold: float = 0.01) -> int:
    """Number of code dimensions u with Var_x(E[z_u|x]) above `threshold` (Burda et al., arXiv 1509.00519).

    `draws` is (draws, n, latent_dim): at least two z ~ q(z|x) for each of n images. The variance of an average of k
    draws is too large by E_x[Var(z|x)] / k. This excess is estimated from the draws and subtracted.

    With few images the estimate of a dimension without information goes beyond the threshold by chance. So a unit also
    needs a ratio of both variances that is too large for chance, by an F test. If no dimension has information and
    draws are Gaussian, the count is above 0 in at most 5 % of cases, over all dimensions together (Sidak). With 10,000
    images of at least 8 draws, and q(z|x) no wider than the prior, this asks for less than the threshold does.
    """
    draws = precise(draws)
    count, images, dimensions = draws.shape
    between = draws.mean(axis=0).var(axis=0, ddof=1)
    noise = draws.var(axis=0, ddof=1).mean(axis=0) / count
    critical = f_distribution.isf(sidak(0.05, dimensions), images - 1, images * (count - 1))
    return int(np.sum((between - noise > threshold) & (between > critical * noise)))


def active_dimensions(means: np.ndarray, threshold: float = 0.01) -> np.ndarray:
    """Whether dimension u of the code has Var_x(E[z_u|x]) above `threshold`, for each u: (latent_dim,).

    It is `active_units` for known means E[z|x], (n, latent_dim). They have no noise of draws, so a dimension without
    information has variance 0 at any n. With n images, the variance of a dimension errs by a share sqrt(2 / n) of it.
    """
    return means.var(axis=0, ddof=1) > threshold


def participation_ratio(codes: np.ndarray) -> float | Absent:
    """(sum lambda)^2 / sum lambda^2 over the eigenvalues of the codes' covariance: dimensions in use, 1 to latent_dim.

    Gao et al., bioRxiv 214262, eq. 5; codes are (n, latent_dim). It is latent_dim if all directions are equally wide.
    `Absent` if all codes are the same, or some are not finite.
    """
    if not np.isfinite(codes).all():
        return Absent(NOT_FINITE)
    if (codes == codes[0]).all():
        return Absent(CONSTANT)
    if codes.shape[1] <= len(codes):
        covariance = np.atleast_2d(np.cov(codes, rowvar=False))
    else:  # the codes' products take less memory; their eigenvalues are the same up to a factor and zeros
        centred = codes - codes.mean(axis=0, dtype="float64")
        covariance = centred @ centred.T
    return float(np.trace(covariance) ** 2 / (covariance**2).sum())


def kl_per_dimension(means: np.ndarray, log_vars: np.ndarray, prior_scale: float = 1.0) -> np.ndarray:
    """KL(N(mean_u, var_u) || N(0, prior_scale^2)) in nats, averaged over images: two (n, latent_dim) -> (latent_dim,).

    The sum over u is the KL of a diagonal Gaussian q(z|x).
    """
    columns = (ops.convert_to_tensor(array.reshape(-1, 1)) for array in (means, log_vars))
    divergences = to_numpy(gaussian_kl(*columns, prior_scale))
    return divergences.reshape(means.shape).mean(axis=0, dtype="float64")


def elbo_surgery(means, log_vars, codes, log_prior) -> dict[str, Estimate]:
    """Parts of the mean KL(q(z|x) || p(z)), in nats: mutual information of image and code, and KL(q(z) || p(z)).

    Hoffman & Johnson, "ELBO surgery", 2016: q(z) = 1/N sum_j q(z|x_j) over the same N images, so the information is
    at most log N. `means`, `log_vars` and `codes` are (N, latent_dim), with one draw z ~ q(z|x) per image. `log_prior`
    is log p(z), (N,). Costs N^2 latent_dim multiplications in float64.
    """
    means, log_vars, codes = (np.asarray(array, "float64") for array in (means, log_vars, codes))
    with np.errstate(all="ignore"):  # deviations beyond double precision give NaN
        precisions = np.exp(-log_vars)
        constant = -0.5 * (means**2 * precisions + log_vars + np.log(2.0 * np.pi)).sum(axis=1)
        log_aggregated = np.empty(len(codes))
        for start in range(0, len(codes), ROWS):
            z = codes[start : start + ROWS]
            log_q = z @ (means * precisions).T - 0.5 * z**2 @ precisions.T + constant  # (rows, N)
            log_aggregated[start : start + ROWS] = logsumexp(log_q, axis=1) - np.log(len(means))
        log_own = -0.5 * ((codes - means) ** 2 * precisions + log_vars + np.log(2.0 * np.pi)).sum(axis=1)
    return {
        "mutual_information_nats": mean_of(log_own - log_aggregated),
        "marginal_kl_nats": mean_of(log_aggregated - log_prior),
    }
