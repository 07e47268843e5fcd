"""log p(x) of given images by annealing, with an error for these images.

The gap of bidirectional Monte Carlo bounds the error on images that the model itself made. It says nothing of other
images, such as test images. Here a second estimate checks the first, image by image: importance weighting with a
proposal that is fitted to the ends of the image's own chains. Where the two disagree, the image is annealed again.

Neither can see a mode of the posterior that no chain has reached: then both are too low, and may agree.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, fields

from common.backend import compiled
from common.binarisation import tagged_stream
from common.evaluation.likelihood import (
    ROWS,
    Annealed,
    AnnealedImportanceSampling,
    effective_sample_size,
    importance_weighted_bound,
)
from common.model import even_batch_size, to_numpy

import numpy as np
from keras import ops
from scipy.linalg import solve_triangular
from scipy.spatial.distance import cdist
from scipy.special import gammaln, logsumexp
from sklearn.covariance import ledoit_wolf

TOLERANCE = 0.5  # nats by which two estimates of log p(x) of an image may differ, however small their standard errors
ROUNDS = 2  # the images that disagree are annealed again with 2, then with 4 times as many temperatures
LEAST_ROWS = 8  # images annealed again at once; fewer are repeated, and so get more chains
MOVES, DISCARDED = 40, 10  # moves at beta = 1 from the ends of the chains; those of them before the fit
DRAWS = 1000  # of the fitted proposal, for each image
FREEDOM = 10  # degrees of freedom of its Student t: its tails are wider than those of the Gaussian that was fitted


@dataclass(frozen=True)
class Checked:
    """Two estimates of log p(x) for each image, in nats. Every field is (images,).

    `annealed` is the log of the chains' mean weight. `weighted` is the log of the mean weight of a proposal that was
    fitted to the ends of these chains. Each is on average at most log p(x). `effective` are effective numbers of
    weights, out of `chains` or DRAWS. `temperatures` is the largest number that was needed.
    """

    annealed: np.ndarray
    weighted: np.ndarray
    effective_chains: np.ndarray
    effective_draws: np.ndarray
    chains: np.ndarray
    temperatures: np.ndarray

    @property
    def disagreement(self) -> np.ndarray:
        """Annealed less weighted estimate. Far above 0, the proposal misses mass; far below 0, the chains do."""
        with np.errstate(invalid="ignore"):  # both are −inf for an image that no code explains
            return self.annealed - self.weighted

    @property
    def variances(self) -> np.ndarray:
        """Squared standard errors of both estimates, (2, images), from the spread of their weights (delta method).

        Of m weights with mean 1, n are effective: 1/n - 1/m.
        """
        chains = 1.0 / self.effective_chains - 1.0 / self.chains
        return np.maximum([chains, 1.0 / self.effective_draws - 1.0 / DRAWS], 0.0)

    @property
    def flagged(self) -> np.ndarray:
        """Whether the two still disagree after the last round: by more than TOLERANCE and twice their standard error.

        An image with an estimate that is not finite is flagged too.
        """
        with np.errstate(invalid="ignore"):
            agreed = np.abs(self.disagreement) <= np.maximum(TOLERANCE, 2.0 * np.sqrt(self.variances.sum(axis=0)))
        return ~agreed

    @property
    def estimates(self) -> np.ndarray:
        """The better estimate where the two agree: the one with more effective weights. Else the log of their mean.

        Weights tell how noisy an estimate is, and agreement that neither misses mass which the other sees. The larger
        of two noisy estimates would be too high. The mean of two unbiased estimates of p(x) is unbiased; its log is on
        average at most log p(x), and at most log 2 below the larger one.
        """
        better = np.where(self.effective_chains > self.effective_draws, self.annealed, self.weighted)
        with np.errstate(invalid="ignore"):  # as above
            mean = np.logaddexp(self.annealed, self.weighted) - np.log(2.0)
        return np.where(self.flagged, mean, better)

    @property
    def errors(self) -> np.ndarray:
        """The standard error of each image's estimate in nats: its disagreement, and the spread of its weights.

        The root of the sum of their squares.
        """
        chains, draws = self.variances
        return np.sqrt(self.disagreement**2 + np.where(self.effective_chains > self.effective_draws, chains, draws))

    def error_of_mean(self) -> float:
        """The standard error that annealing adds to the mean estimate over these images, in nats.

        The root of the squared mean disagreement and of its squared standard error. Images with other pixels are not
        its subject: their error is that of `common.numbers.mean_of`.
        """
        return error_of_mean(self.disagreement)

    def replaced(self, rows: np.ndarray, others: "Checked") -> "Checked":
        """The same with `others` at the images `rows`."""
        return Checked(*(put(getattr(self, f.name), rows, getattr(others, f.name)) for f in fields(self)))


def put(values: np.ndarray, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """A copy of `values` with `others` at `rows`."""
    values = values.copy()
    values[rows] = others
    return values


def error_of_mean(disagreement: np.ndarray) -> float:
    """sqrt(mean^2 + sd^2 / n) of disagreements, (n,)."""
    with np.errstate(all="ignore"):  # infinite disagreements give NaN, which `common.numbers.flat` reports
        return float(np.sqrt(np.mean(disagreement) ** 2 + np.var(disagreement, ddof=1) / len(disagreement)))


def of_groups(groups: Sequence[Checked]) -> Checked:
    """The images of several groups as one."""
    return Checked(*(np.concatenate([getattr(group, f.name) for group in groups]) for f in fields(Checked)))


def checked(sampling: AnnealedImportanceSampling, found: Annealed, temperatures: int, seed: int = 0) -> Checked:
    """Check the forward chains that `sampling` has `found`, and anneal images again whose two estimates disagree.

    Their number of temperatures is doubled until the estimates agree, ROUNDS times at most. Few images are repeated to
    fill a batch, and the chains of all whole sets of copies count. No random number of `sampling` is used, so its
    estimates are the same with and without the check.
    """
    joint = compiled(lambda x, z: sampling.log_likelihood(x, z) + sampling.prior.log_prob(z))
    result = compared(
        repeated(sampling, tagged_stream("annealing check", seed, 0)), found, temperatures, sampling.count, joint
    )
    for number in range(1, ROUNDS + 1):
        rows = np.flatnonzero(result.flagged)
        if not len(rows):
            break
        size = max(LEAST_ROWS, min(sampling.count, 2 ** int(np.ceil(np.log2(len(rows))))))  # few sizes to compile
        again = repeated(sampling, tagged_stream("annealing check", seed, number), np.resize(rows, size))
        more = temperatures * 2**number
        result = result.replaced(rows, compared(again, again.forward(more), more, len(rows), joint))
    return result


def repeated(sampling: AnnealedImportanceSampling, random, rows=None) -> AnnealedImportanceSampling:
    """`sampling` of its images `rows`, of which some may repeat, or of all; with random numbers from `random`.

    It has the step sizes and the compiled functions of `sampling`. These are compiled once for each number of rows.
    """
    again = copy.copy(sampling)
    again.random = random
    if rows is not None:
        chains = (rows[:, None] * sampling.chains + np.arange(sampling.chains)).ravel()
        again.count, again.rows = len(rows), ops.take(sampling.rows, chains, axis=0)
        log_steps = sampling.log_steps
        again.__dict__["log_steps"] = lambda beta: log_steps(beta)[rows]  # where `cached_property` looks first
    return again


def compared(sampling, found: Annealed, temperatures: int, images: int, joint) -> Checked:
    """Both estimates of the first `images` images of `sampling`; image i is also image i + `images`, and so on."""
    draws = moved_ends(sampling, found)
    copies = sampling.count // images
    draws, log_weights = (
        array[: copies * images]
        .reshape(copies, images, *array.shape[1:])
        .swapaxes(0, 1)
        .reshape(images, copies * sampling.chains, *array.shape[2:])
        for array in (draws, found.log_weights)
    )
    weighted = np.stack(
        [proposed_log_weights(sampling, joint, image * sampling.chains, each) for image, each in enumerate(draws)]
    )
    return Checked(
        importance_weighted_bound(log_weights),
        importance_weighted_bound(weighted),
        effective_sample_size(log_weights),
        effective_sample_size(weighted),
        np.full(images, log_weights.shape[1]),
        np.full(images, temperatures),
    )


def moved_ends(sampling: AnnealedImportanceSampling, found: Annealed) -> np.ndarray:
    """Codes of further moves at beta = 1: (images, chains, moves, latent_dim).

    They start from the ends of the chains, drawn by their weights, so that a chain in a minor mode does not count as
    much as the others.
    """
    starts = np.take_along_axis(found.codes, resampled(found.log_weights, sampling.random)[..., None], axis=1)
    z = ops.convert_to_tensor(starts.reshape(-1, starts.shape[-1]), "float32")
    state = (z, *sampling.start(sampling.rows, z))
    steps, draws = np.exp(sampling.log_steps(1.0)), []
    for move in range(MOVES):
        state, _ = sampling.move_chains(state, 1.0, steps)
        draws.append(to_numpy(state[0]).reshape(starts.shape))
        sampling.report("annealing, check", move + 1, MOVES)
    return np.stack(draws[DISCARDED:], axis=2)


def resampled(log_weights: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Indices of chains, each drawn as often as its weight says (systematic resampling): (n, m) -> (n, m)."""
    finite = np.where(np.isfinite(log_weights), log_weights, -1e30)
    shares = np.exp(finite - finite.max(axis=1, keepdims=True)).cumsum(axis=1)
    shares, chains = shares / shares[:, -1:], log_weights.shape[1]
    positions = (random.uniform(size=(len(shares), 1)) + np.arange(chains)) / chains
    return np.minimum((positions[:, :, None] > shares[:, None, :]).sum(axis=2), chains - 1)


def proposed_log_weights(sampling, joint, row: int, draws: np.ndarray) -> np.ndarray:
    """log p(x, z) - log r(z) for DRAWS codes z of a proposal fitted to `draws`, (chains, moves, latent_dim): (DRAWS,).

    `row` is that of the image in `sampling.rows`.
    """
    codes, log_density = fitted(draws.astype("float64"), 1e-3 * sampling.prior.scale, DRAWS, sampling.random)
    return log_weights_of(joint, to_numpy(sampling.rows[row]), codes, log_density)


def log_weights_of(joint, image: np.ndarray, codes: np.ndarray, log_density: np.ndarray) -> np.ndarray:
    """log p(x, z) - log r(z) in nats of one image for codes z ~ r, (n, latent_dim), with log r(z), (n,): (n,).

    `joint(x, z)` gives log p(x, z). A code without a likelihood counts as unlikely.
    """
    count, dimensions = codes.shape
    at_once = even_batch_size(count, ROWS, max(image.size, dimensions))
    x, log_joint = ops.convert_to_tensor(np.broadcast_to(image, (at_once, *image.shape))), []
    for start in range(0, count, at_once):
        some = np.resize(codes[start : start + at_once], (at_once, dimensions))
        log_joint.append(to_numpy(joint(x, ops.convert_to_tensor(some, "float32"))).astype("float64"))
    log_weights = np.concatenate(log_joint)[:count] - log_density
    return np.where(np.isnan(log_weights), -np.inf, log_weights)


def fitted(draws: np.ndarray, least: float, count: int, random: np.random.Generator):
    """`count` codes of a proposal fitted to `draws`, (chains, moves, latent_dim), and their log density in nats.

    A mixture of Student t distributions. Half of it has the mean and the covariance of all draws. The other half has a
    component at the mean of each chain, with the covariance within chains: chains can be in different modes.
    """
    chains, _, dimensions = draws.shape
    centres, everything = draws.mean(axis=1), draws.reshape(-1, dimensions)
    mean = everything.mean(axis=0)
    whole = shrunk_factor(everything - mean, least)
    within = shrunk_factor((draws - centres[:, None]).reshape(-1, dimensions), least)
    noise = student_noise(count, dimensions, FREEDOM, random)
    own = random.integers(chains, size=count)
    codes = np.where(random.uniform(size=(count, 1)) < 0.5, mean + noise @ whole.T, centres[own] + noise @ within.T)
    codes = codes.astype("float32").astype("float64")  # as the decoder sees them
    of_chains = logsumexp(student_log_density(codes, centres, within, FREEDOM), axis=1) - np.log(chains)
    of_all = student_log_density(codes, mean[None], whole, FREEDOM)[:, 0]
    return codes, np.logaddexp(of_all, of_chains) - np.log(2.0)


def shrunk_factor(deviations: np.ndarray, least: float) -> np.ndarray:
    """Cholesky factor of the covariance of deviations from a mean, (n, d): (d, d).

    The correlations are shrunk towards 0 (Ledoit and Wolf, 2004), the more the fewer draws, and by a hundredth or more:
    draws of chains that hardly moved lie in a plane. Standard deviations are at least `least`.
    """
    scales = np.maximum(deviations.std(axis=0), least)
    correlation, _ = ledoit_wolf(deviations / scales, assume_centered=True)
    correlation *= 0.99
    np.fill_diagonal(correlation, np.maximum(correlation.diagonal() + 0.01, 1.0))
    return scales[:, None] * np.linalg.cholesky(correlation)


def student_noise(count: int, dimensions: int, freedom: int, random: np.random.Generator) -> np.ndarray:
    """Draws of a standard Student t with `freedom` degrees of freedom: (count, dimensions)."""
    noise = random.standard_normal((count, dimensions))
    return noise * np.sqrt(freedom / random.chisquare(freedom, (count, 1)))


def student_log_density(points: np.ndarray, centres: np.ndarray, factor: np.ndarray, freedom: int) -> np.ndarray:
    """Log density in nats of a Student t at each centre: points (n, d), centres (m, d), factor (d, d) -> (n, m)."""
    white = [solve_triangular(factor, each.T, lower=True).T for each in (points, centres)]
    dimensions = points.shape[1]
    constant = gammaln(0.5 * (freedom + dimensions)) - gammaln(0.5 * freedom) - np.log(factor.diagonal()).sum()
    constant -= 0.5 * dimensions * np.log(np.pi * freedom)
    return constant - 0.5 * (freedom + dimensions) * np.log1p(cdist(*white, "sqeuclidean") / freedom)
