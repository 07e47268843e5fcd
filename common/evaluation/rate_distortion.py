"""How many nats does a code need so that its decoder comes near an image? The curve of rate against distortion.

A decoder has a prior p(z) and a distortion d(x, z), such as the squared error |x - f(z)|^2. The rate of a channel
q(z|x) is the mean KL(q(z|x) || p(z)). Of all channels with a given mean distortion, q_beta(z|x) = p(z) exp(-beta
d(x, z)) / Z_beta(x) has the least rate. With rising beta it goes along the whole curve:

    distortion    D_beta = E d(x, z)
    rate          R_beta = -beta D_beta - E log Z_beta(x)

Huang, Makhzani, Cao and Grosse (arXiv 2008.06653): one run of annealed importance sampling passes every beta, so it
estimates the whole curve. Its estimates of log Z_beta are too low on average, so the rates are too high: upper bounds.
The decoder may be deterministic: a density p(x|z) is not needed. With d = -log p(x|z), beta = 1 gives log p(x) = log Z.
"""

import copy
from dataclasses import dataclass

from common.arrays import DataError
from common.evaluation.likelihood import AnnealedImportanceSampling, effective_sample_size, importance_weighted_bound
from common.likelihoods import Likelihood
from common.model import to_numpy
from common.priors import GaussianPrior

import numpy as np
from keras import ops
from scipy.special import logsumexp
from sklearn.decomposition import PCA


def squared_error(decoder, rows: Likelihood):
    """The distortion |x - E[x|z]|^2 of a decoder, summed over an image: a function of images and codes, (n,)."""

    def distortion(images, codes):
        errors = ops.square(images - rows.mean(decoder(codes)))
        return ops.sum(ops.reshape(errors, (ops.shape(errors)[0], -1)), axis=1)

    return distortion


@dataclass(frozen=True)
class Curve:
    """Points of a rate-distortion curve for each of n images; `betas` rise from 0.

    `log_partitions`: log Z_beta(x) in nats, on average too low; `distortions`: E d(x, z) under q_beta(z|x). Both are
    (betas, n). `effective`: the effective number of chains, the median over images, (betas,).
    """

    betas: np.ndarray
    log_partitions: np.ndarray
    distortions: np.ndarray
    effective: np.ndarray

    @property
    def rates(self) -> np.ndarray:
        """KL(q_beta(z|x) || p(z)) in nats, on average too high: (betas, n)."""
        return -self.betas[:, None] * self.distortions - self.log_partitions

    def rate_at(self, distortion: float) -> np.ndarray:
        """Parts of each image in the least rate with this mean distortion, (n,); the rate is their mean.

        R(D) is the largest -beta D - E log Z_beta over beta. So it needs no estimate of a distortion, and remains an
        upper bound. The parts of two decoders on the same images can be subtracted for a paired error. It is too low
        if the curve ends before this distortion: see `reaches`.
        """
        parts = -self.betas[:, None] * distortion - self.log_partitions
        return parts[np.argmax(parts.mean(axis=1))]

    def reaches(self, distortion: float) -> bool:
        """Whether the largest beta has at most this mean distortion."""
        return bool(self.distortions[-1].mean() <= distortion)

    def at(self, beta: float) -> int:
        """The number of the point whose beta is nearest to `beta`."""
        return int(np.argmin(abs(self.betas - beta)))


def with_noise(curve: Curve, noise: Curve, share: float) -> Curve:
    """The curve of a decoder whose prior is (1 - share) p(z) + share n(z), from its curves with the priors p and n.

    Exact, since Z_beta is linear in the prior. The rate rises by -log(1 - share) at most.
    """
    parts = np.stack([np.log1p(-share) + curve.log_partitions, np.log(share) + noise.log_partitions])
    log_partitions = logsumexp(parts, axis=0)
    weights = np.exp(parts - log_partitions)
    distortions = weights[0] * curve.distortions + weights[1] * noise.distortions
    return Curve(curve.betas, log_partitions, distortions, np.minimum(curve.effective, noise.effective))


class RateDistortion(AnnealedImportanceSampling):
    """Annealed chains through p(z) exp(-beta d(x, z)) for each image, with beta from 0 to `largest`.

    Chains move at `positions` from 0 to 1, on which log(beta + `knee`) is linear. The reason: once beta is large, the
    variance of d under q_beta is near latent_dim / (2 beta^2), so equal steps of log beta are equally hard. Below
    the knee, where q_beta is near the prior, the steps of beta are equal. 1 / `knee` should be near the standard
    deviation of d under the prior. The pilot run for the step sizes passes the same betas.
    """

    def __init__(self, distortion, prior, images, largest: float, knee: float, chains=4, seed=0, progress=None):
        super().__init__(lambda x, z: -distortion(x, z), prior, images, chains, seed, progress)
        self.largest, self.knee = largest, knee

    def of(self, images, largest: float) -> "RateDistortion":
        """The same for as many other images, with beta up to another end; nothing is compiled again."""
        other = copy.copy(self)
        other.rows = ops.convert_to_tensor(np.repeat(np.asarray(images, "float32"), self.chains, axis=0))
        other.largest = largest
        other.__dict__.pop("log_steps", None)  # where `cached_property` keeps them
        return other

    def beta(self, position):
        """beta at a position from 0 to 1, or at an array of them."""
        return self.knee * np.expm1(position * np.log1p(self.largest / self.knee))

    def position(self, beta: float) -> float:
        """The position of `beta`; more than 1 if it is larger than `largest`."""
        return float(np.log1p(beta / self.knee) / np.log1p(self.largest / self.knee))

    def curve(self, temperatures: int, through: float | None = None) -> Curve:
        """The curve at `temperatures` values of beta above 0; one of them is moved to `through`, if it is given.

        Costs images * chains * temperatures * 10 passes through the decoder and back, beside the pilot run.
        """
        positions = np.linspace(0.0, 1.0, temperatures + 1)
        if through is not None:
            positions[1 + np.argmin(abs(positions[1:] - self.position(through)))] = self.position(through)
        log_weights, distortions = self.anneal(self.prior_draws(), positions, "curve")
        weights = np.exp(log_weights - logsumexp(log_weights, axis=2, keepdims=True))
        return Curve(
            self.beta(positions),
            np.stack([importance_weighted_bound(each) for each in log_weights]),
            (weights * distortions).sum(axis=2),
            np.array([np.median(effective_sample_size(each)) for each in log_weights]),
        )

    def gap(self, temperatures: int, codes) -> np.ndarray:
        """Upper minus lower bound on log Z at the largest beta in nats, for each image: (images,).

        `codes`, (images, latent_dim), must be exact draws from q_beta(z|x) at this beta: bidirectional Monte Carlo. See
        `simulated`.
        """
        positions = np.linspace(0.0, 1.0, temperatures + 1)
        forward, _ = self.anneal(self.prior_draws(), positions, "forward")
        reverse, _ = self.anneal(np.repeat(codes, self.chains, axis=0), positions[::-1], "reverse")
        return -importance_weighted_bound(-reverse[-1]) - importance_weighted_bound(forward[-1])

    def anneal(self, codes, positions, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The log weights so far, and the distortion, of every chain at each position: (positions, images, chains)."""
        z = ops.convert_to_tensor(codes, "float32")
        state, betas = (z, *self.start(self.rows, z)), self.beta(positions)
        log_steps = self.log_steps  # makes the pilot run the first time
        fits, log_weights = [to_numpy(state[1]).astype("float64")], [np.zeros(len(self.rows))]
        for t in range(1, len(positions)):
            log_weights.append(log_weights[-1] + abs(betas[t] - betas[t - 1]) * fits[-1])
            state, _ = self.move_chains(state, positions[t], np.exp(log_steps(positions[t])))
            fits.append(to_numpy(state[1]).astype("float64"))
            self.report(f"rate and distortion, {name}", t, len(positions) - 1)
        shape = len(positions), self.count, self.chains
        return np.reshape(log_weights, shape), -np.reshape(fits, shape)

    def move_chains(self, state, beta, steps):
        """As in the parent, but `beta` is a position: so the parent's pilot run, from 0 to 1, passes all betas."""
        return super().move_chains(state, self.beta(beta), steps)


def simulated(means: np.ndarray, beta: float, random: np.random.Generator) -> np.ndarray:
    """Images x ~ N(means, 1 / (2 beta)), for which exp(-beta |x - means|^2) is the likelihood, up to a constant.

    If means[i] = f(z_i) with z_i ~ p(z), then z_i is an exact draw from q_beta(z|x_i). Raises DataError if beta is 0.
    """
    if beta <= 0.0:
        raise DataError(f"images can be simulated for beta above 0, not for {beta}")
    return means + random.standard_normal(means.shape) / np.sqrt(2.0 * beta)


class LinearDecoder:
    """x = mean + W z with z ~ N(0, I), where W holds principal components times their standard deviations.

    The components are those of `images`. The curve of this decoder is known exactly, so it checks the instrument.
    """

    def __init__(self, images: np.ndarray, latent_dim: int):
        rows = images.reshape(len(images), -1)
        components = PCA(latent_dim, svd_solver="randomized", random_state=0).fit(rows)
        self.shape, self.mean, self.prior = images.shape[1:], components.mean_, GaussianPrior(latent_dim)
        self.gains = np.sqrt(components.explained_variance_)  # lengths of the orthogonal columns of W
        self.weights = components.components_ * self.gains[:, None]  # (latent_dim, pixels)

    def means(self, codes) -> np.ndarray:
        """f(z): (n, *image_shape)."""
        return (self.mean + codes @ self.weights).reshape(-1, *self.shape)

    def distortion(self, images, codes):
        """|x - f(z)|^2: (n,)."""
        weights, mean = (ops.convert_to_tensor(each.astype("float32")) for each in (self.weights, self.mean))
        errors = ops.reshape(images, (ops.shape(images)[0], -1)) - mean - ops.matmul(codes, weights)
        return ops.sum(ops.square(errors), axis=1)

    def exact(self, images, betas) -> tuple[np.ndarray, np.ndarray]:
        """The exact D_beta and log Z_beta of each image: two (betas, n).

        q_beta(z|x) is a Gaussian without correlations, since W has orthogonal columns.
        """
        centred = images.reshape(len(images), -1) - self.mean
        along = centred @ self.weights.T / self.gains  # coordinates on the components, (n, latent_dim)
        outside = (centred**2).sum(axis=1) - (along**2).sum(axis=1)
        distortions, log_partitions = [], []
        for beta in betas:
            stretch = 1.0 + 2.0 * beta * self.gains**2  # precision of q_beta
            distortions.append(outside + ((along / stretch) ** 2 + self.gains**2 / stretch).sum(axis=1))
            log_partitions.append(-beta * outside - (beta * along**2 / stretch + 0.5 * np.log(stretch)).sum(axis=1))
        return np.array(distortions), np.array(log_partitions)
