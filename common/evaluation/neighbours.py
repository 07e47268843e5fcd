"""Entropy, KL and mutual information from nearest neighbours, with an error that includes the bias."""

import warnings
from functools import cache
from typing import NamedTuple

from common.binarisation import tagged_stream
from common.numbers import Absent, Estimate, mean_of

import numpy as np
from scipy.linalg import solve_triangular
from scipy.special import digamma, gammaln, polygamma
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors

NEIGHBOURS = 5
LEAST_POINTS = 10  # points for each dimension
MIXTURE_IMAGES, FIRST_IMAGES = 24, 6  # images of a set to whose draws a mixture is fitted; that show whether it helps
TIED, FULL = (2, 4, 8, 12), (2, 4)  # numbers of Gaussians that are tried: of one covariance, and of one each
STARTING_POINTS = 2000  # at most, for the clusters where EM starts
ROUNDS = 6  # of the whitening by neighbours
NOT_FINITE = "some codes are infinite or not a number"
COINCIDE = "draws coincide, or lie in fewer dimensions: single precision cannot tell how narrow q(z|x) is"
FEW = f"there are too few codes: neighbours need at least {LEAST_POINTS} for each dimension"
DISAGREE = "the estimates by a fitted density, by neighbours and by moments disagree too much"


class Entropies(NamedTuple):
    """Entropies of several distributions in nats, and what has to be added to their mean, with its standard error."""

    values: np.ndarray  # (images,), right for Gaussians
    correction: Estimate  # its error is that of the correction and of the remaining bias, and not of the images


class Control(NamedTuple):
    """A density fitted to whitened points, and how the instruments fare on its own draws."""

    log_density: np.ndarray  # of the points, (n,)
    value: float  # their entropy from neighbours, less the estimator's bias on the density's own draws
    doubts: tuple[float, float, float]  # nats: see `doubt_of`


def neighbour_entropy(points: np.ndarray) -> Estimate | Absent:
    """Differential entropy of a sample in nats from its nearest neighbours, without the estimator's bias: (n, d).

    The estimator of Kozachenko and Leonenko (`kozachenko_leonenko`) is biased in many dimensions. The same estimator is
    applied to draws from a density of known entropy, and the difference is subtracted. This density is a Gaussian or,
    if it fits better, a mixture of Gaussians. The standard error is that of n points and of the remaining bias, whose
    parts `doubt_of` has. `Absent` if points coincide or are not finite, if there are fewer than 10 points for each
    dimension, or if the error of the bias exceeds both half a nat and a tenth of a nat for each dimension.
    """
    if reason := lacking(points):
        return Absent(reason)
    white, log_det = whitened(points)
    if white is None or not (own := kozachenko_leonenko(white)) > -np.inf:
        return Absent(COINCIDE)
    control = control_of(points, white, own, 0)
    doubt = doubt_of(control.doubts, points.shape[1])
    if isinstance(doubt, Absent):
        return doubt
    # Three times the variance of log r: distances depend on each other, and two controls have it too.
    variance = control.log_density.var() + 3.0 * polygamma(1, NEIGHBOURS)
    return joined(control.value + log_det, (variance / len(points)) ** 0.5, doubt)


def neighbour_entropies(draws: np.ndarray) -> Entropies | Absent:
    """The entropy of q(z|x) of each image in nats, from draws (n, images, d), each as in `neighbour_entropy`.

    Every image has a Gaussian control. 24 images, spread evenly, may have a mixture instead. What they change is
    averaged into one correction for all. If six of them need no mixture, none is fitted to the others. `Absent` as in
    `neighbour_entropy`, and if only one image has no density.
    """
    count, images, dimensions = draws.shape
    if reason := lacking(draws.reshape(-1, dimensions), count):
        return Absent(reason)
    values, whites = [], {}
    chosen = np.linspace(0, images - 1, min(images, MIXTURE_IMAGES)).astype(int).tolist()
    bias, common = gaussian_bias(count, dimensions)
    for image in range(images):
        white, log_det = whitened(draws[:, image])
        if white is None or not (own := kozachenko_leonenko(white)) > -np.inf:
            return Absent(COINCIDE)
        values.append(own - bias + log_det)
        if image in chosen:
            whites[image] = white, own
    controls = {}
    for image in sorted(chosen, key=lambda each: chosen.index(each) % (MIXTURE_IMAGES // FIRST_IMAGES)):
        gaussian = len(controls) >= FIRST_IMAGES and not any(one.doubts[2] for one in controls.values())
        controls[image] = control_of(draws[:, image], *whites[image], image, gaussian)
    doubt = doubt_of(np.mean([one.doubts for one in controls.values()], axis=0), dimensions)
    if isinstance(doubt, Absent):
        return doubt
    changes = [one.value - whites[image][1] + bias for image, one in controls.items()]
    change = mean_of(changes) if images > 1 else Estimate(changes[0], 0.0)
    return Entropies(np.array(values), joined(change.value, change.standard_error, common, doubt))


def neighbour_kl(entropy: Estimate | Entropies | Absent, log_prior: np.ndarray) -> Estimate | Absent:
    """KL to the prior in nats, -h - E log p, from an entropy of some codes and log p(z) of each, (n,).

    Or its mean over images, from `neighbour_entropies` of draws and log p(z) of each draw, (n, images).
    """
    if isinstance(entropy, Absent):
        return entropy
    if isinstance(entropy, Entropies):
        value, error = mean_of(-entropy.values - log_prior.mean(axis=0, dtype="float64"))
        return joined(value - entropy.correction.value, error, entropy.correction.standard_error)
    cross = mean_of(log_prior)
    return joined(-entropy.value - cross.value, entropy.standard_error, cross.standard_error)


def neighbour_information(entropy: Estimate | Absent, entropies: Entropies | Absent) -> Estimate | Absent:
    """Mutual information between image and code in nats, h(z) - mean h(z|x), for any q(z|x) with a density.

    `entropy` is from one draw for each of many images. `entropies` are from many draws for each of some images. The
    estimate is for the whole distribution of images, so log N does not bound it.
    """
    for part in (entropies, entropy):
        if isinstance(part, Absent):
            return part
    noise, (more, error) = mean_of(entropies.values), entropies.correction
    return joined(entropy.value - noise.value - more, entropy.standard_error, noise.standard_error, error)


def joined(value: float, *errors: float) -> Estimate:
    """A value with several independent errors."""
    return Estimate(float(value), float(np.sqrt(np.sum(np.square(errors)))))


def lacking(points: np.ndarray, count: int | None = None) -> str:
    """Why points, (n, d), in samples of `count`, cannot be measured, or nothing."""
    if not np.isfinite(points).all():
        return NOT_FINITE
    return FEW if (count or len(points)) < LEAST_POINTS * points.shape[1] else ""


def doubt_of(parts, dimensions: int) -> float | Absent:
    """The standard error that stands for the remaining bias, in nats, from `Control.doubts` or their mean over images.

    - The entropy of the fitted density, -E log q plus half its parameters over n (Akaike), less the entropy found.
    - A third of the distance between points and density in third and fourth moments (`moment_distance`), if positive.
    - A quarter of half the parameters over n, for a mixture: EM fits more than these parameters.

    The two fractions were chosen in simulations, such that errors cover the truth (`tests/test_neighbours.py`).
    """
    difference, moments, fitted_parameters = parts
    doubt = float(np.linalg.norm([difference, max(moments, 0.0) / 3.0, fitted_parameters / 4.0]))
    return doubt if doubt <= max(0.5, 0.1 * dimensions) else Absent(DISAGREE)


def whitened(points: np.ndarray) -> tuple[np.ndarray | None, float]:
    """Points with mean 0 and covariance 1, and what this takes from their entropy; None if they lie in a plane."""
    points = np.asarray(points, "float64")
    points = points - points.mean(axis=0)
    try:
        root = np.linalg.cholesky(np.atleast_2d(np.cov(points, rowvar=False)))
    except np.linalg.LinAlgError:
        return None, 0.0
    return solve_triangular(root, points.T, lower=True).T, float(np.log(np.diag(root)).sum())


def nearest(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances and indices of the five nearest other points of each point: (n, d) -> two (n, 5)."""
    way = "brute" if points.shape[1] > 12 else "auto"  # a tree takes longer in many dimensions
    return NearestNeighbors(n_neighbors=NEIGHBOURS, algorithm=way).fit(points).kneighbors()


def kozachenko_leonenko(points: np.ndarray) -> float:
    """Differential entropy in nats, with its bias: psi(n) - psi(5) + log V_d + d mean log r, r to the fifth neighbour.

    Kozachenko & Leonenko, 1987; Kraskov et al., arXiv cond-mat/0305641, eq. 20. Points are (n, d). Minus infinity if
    more than five points coincide.
    """
    (count, dimensions), radii = points.shape, nearest(points)[0][:, -1]
    if not radii.all():
        return -np.inf
    log_volume = 0.5 * dimensions * np.log(np.pi) - gammaln(0.5 * dimensions + 1.0)
    return float(digamma(count) - digamma(NEIGHBOURS) + log_volume + dimensions * np.log(radii).mean())


@cache
def gaussian_bias(count: int, dimensions: int) -> Estimate:
    """Bias of the whitened estimator for `count` draws of any Gaussian, which depends on nothing else."""
    differences = []
    for repeat in range(8 if count <= 2000 else 3):
        points = tagged_stream("neighbours of a Gaussian", count, dimensions, repeat).standard_normal(
            (count, dimensions)
        )
        white, log_det = whitened(points)
        exact = 0.5 * (dimensions * np.log(2.0 * np.pi) + (points**2).sum(axis=1).mean())  # of these very draws
        differences.append(kozachenko_leonenko(white) + log_det - exact)
    return mean_of(differences)


def moment_distance(first: np.ndarray, second: np.ndarray | None = None) -> float:
    """Second-order KL between two samples, (n, d) and (m, d), by their third and fourth Hermite moments; unbiased.

    The sum over these polynomials of (difference of means)^2 / 2 alpha!, from Mehler's kernel. With one sample, from a
    standard Gaussian: the negentropy of Comon, Signal Processing 36 (1994), |k3|^2 / 12 + |k4|^2 / 48.
    """

    def mean(x, y):
        dimensions, squares = x.shape[1], (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)
        products = x @ y.T
        third = products * (products**2 / 6.0 - squares / 2.0 + 1.0 + dimensions / 2.0)
        fourth = products**4 / 24.0 - products**2 * squares / 4.0 + squares**2 / 8.0 + products**2 - squares / 2.0
        kernel = third + fourth + dimensions / 4.0 * (products**2 - squares + dimensions / 2.0 + 1.0)
        same = x is y
        return (kernel.sum() - same * np.trace(kernel)) / (kernel.size - same * len(x))

    if second is None:
        return float(0.5 * mean(first, first))
    return float(0.5 * (mean(first, first) + mean(second, second) - 2.0 * mean(first, second)))


def thinned(points: np.ndarray) -> np.ndarray:
    """At most 2,000 of the points, for sums over pairs."""
    return points[:: -(-len(points) // 2000)]


def control_of(points, white: np.ndarray, own: float, stream: int, gaussian: bool = False) -> Control:
    """The Gaussian or mixture that suits `white` points best, (n, d), whose entropy by neighbours is `own`.

    `points` are the same before whitening. If `gaussian`, no mixture is tried.
    """
    count, dimensions = white.shape
    log_density = -0.5 * (dimensions * np.log(2.0 * np.pi) + (white**2).sum(axis=1))
    mixture = None if gaussian else best_mixture(points, white, log_density.mean())
    if mixture is None:
        value = own - gaussian_bias(count, dimensions).value
        akaike = 0.5 / count * parameters("tied", 1, dimensions) - log_density.mean()
        return Control(log_density, value, (akaike - value, moment_distance(thinned(white)), 0.0))
    shares, covariance, log_density = mixture.weights_, mixture.covariances_, mixture.score_samples(white)
    within = covariance if mixture.covariance_type == "tied" else np.tensordot(shares, covariance, 1)
    root = np.linalg.cholesky(within)

    def measured(some):
        scaled = solve_triangular(root, some.T, lower=True).T
        return kozachenko_leonenko(scaled) + np.log(np.diag(root)).sum()

    biases = []
    for repeat in range(2):
        draws = drawn(mixture, count, tagged_stream("neighbours of a mixture", count, dimensions, stream, repeat))
        biases.append(measured(draws) + mixture.score(draws))  # against the entropy of these very draws
    value = measured(white) - np.mean(biases)
    half = 0.5 / count * parameters(mixture.covariance_type, len(shares), dimensions)
    moments = moment_distance(thinned(white), thinned(draws))
    return Control(log_density, value, (half - log_density.mean() - value, moments, half))


def drawn(mixture: GaussianMixture, count: int, random: np.random.Generator) -> np.ndarray:
    """`count` draws from a fitted mixture, (count, d), of which each Gaussian has its share, up to rounding."""
    size, dimensions = mixture.means_.shape
    ends = np.round(np.cumsum(mixture.weights_) * count).astype(int)
    roots = np.linalg.cholesky(np.broadcast_to(mixture.covariances_, (size, dimensions, dimensions)))
    noise = random.standard_normal((count, dimensions))
    for start, end, mean, root in zip([0, *ends], ends, mixture.means_, roots, strict=False):
        noise[start:end] = mean + noise[start:end] @ root.T
    return noise


def parameters(kind: str, size: int, dimensions: int) -> int:
    """The number of parameters of a mixture of `size` Gaussians, with one covariance ("tied") or one each ("full")."""
    return size - 1 + size * dimensions + (size if kind == "full" else 1) * dimensions * (dimensions + 1) // 2


def best_mixture(points: np.ndarray, white: np.ndarray, log_likelihood: float) -> GaussianMixture | None:
    """The mixture of `white` points with the best BIC, or None if one Gaussian is better, whose mean log p is given.

    EM starts at clusters of the points, and of those whitened by neighbours: clusters are round there, and far apart.
    """
    count, dimensions = white.shape
    thin = slice(None, None, -(-count // STARTING_POINTS))
    best, chosen = log_likelihood - penalty("tied", 1, count, dimensions), None
    spaces = [whitened_by_neighbours(white[thin]), points[thin]]
    pairs = [fitted(white, white[thin], space, "tied", 2) for space in spaces]
    space, pair = max(zip(spaces, pairs, strict=True), key=lambda each: score(each[1], white))
    for kind, sizes in (("tied", TIED), ("full", FULL)):
        last = -np.inf
        for size in sizes:
            if count < 2 * size * dimensions:
                break
            first = (kind, size) == ("tied", 2)
            mixture = pair if first else fitted(white, white[thin], space, kind, size)
            found = score(mixture, white) - penalty(kind, size, count, dimensions)
            if found > best:
                best, chosen = found, mixture
            if found < last:
                break
            last = found
    return chosen


def score(mixture: GaussianMixture | None, points: np.ndarray) -> float:
    """Mean log density in nats; minus infinity without a mixture."""
    return -np.inf if mixture is None else mixture.score(points)


def penalty(kind: str, size: int, count: int, dimensions: int) -> float:
    """Half of BIC's price of a mixture, in nats a point."""
    return 0.5 * np.log(count) / count * parameters(kind, size, dimensions)


def whitened_by_neighbours(points: np.ndarray) -> np.ndarray:
    """Points in which the differences of neighbours have the same variance in all directions: (n, d)."""
    for _ in range(ROUNDS):
        differences = (points[:, None] - points[nearest(points)[1]]).reshape(-1, points.shape[1])
        try:
            root = np.linalg.cholesky(differences.T @ differences / len(differences))
        except np.linalg.LinAlgError:
            return points
        points = solve_triangular(root, points.T, lower=True).T
    return points


def fitted(white, some, space, kind: str, size: int) -> GaussianMixture | None:
    """A mixture fitted to white points by EM; None if EM fails.

    It starts at k-means of `space`, which are `some` of the points in other coordinates.
    """
    try:
        labels = KMeans(size, n_init=1, random_state=0).fit_predict(space)
        means = np.stack([some[labels == one].mean(axis=0) for one in range(size)])
        within = some - means[labels]
        precision = np.linalg.inv(np.atleast_2d(within.T @ within) / len(some))
        mixture = GaussianMixture(
            size,
            covariance_type=kind,
            means_init=means,
            weights_init=np.bincount(labels, minlength=size) / len(some),
            precisions_init=precision if kind == "tied" else np.stack([precision] * size),
            reg_covar=1e-9,
            max_iter=50,
            init_params="random_from_data",
            random_state=0,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return mixture.fit(white)
    except (ValueError, np.linalg.LinAlgError):
        return None
