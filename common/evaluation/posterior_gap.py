"""How much does a posterior cost? The best Gaussian for each image, against log p(x) and against an encoder's q(z|x).

Cremer, Li and Duvenaud, "Inference Suboptimality in Variational Autoencoders", arXiv 1801.03558, section 3.1:

    log p(x) - ELBO of the best q of a family    approximation gap, what the family cannot express
    the latter ELBO - that of the encoder's q    amortisation gap, what one network for all images costs

A decoder is given as `log_likelihood(images, codes)`; see `common.evaluation.likelihood`.
"""

from typing import NamedTuple

from common.backend import compiled, value_and_gradient
from common.binarisation import tagged_stream
from common.model import to_numpy

import numpy as np
from keras import ops

DRAWS = 8  # draws for each image in a step, in pairs of opposite noise
RATES = 0.7, 0.02  # of a fit at its start and at its end, in deviations of the Gaussian


class Gaussians(NamedTuple):
    """N(mean, factor factor^T) for each image: means (n, latent_dim), lower triangles (n, latent_dim, latent_dim)."""

    means: np.ndarray
    factors: np.ndarray

    @classmethod
    def diagonal(cls, means, deviations) -> "Gaussians":
        """Independent dimensions, from means and deviations, (n, latent_dim) each."""
        deviations = np.asarray(deviations, "float64")
        return cls(np.asarray(means, "float64"), deviations[:, :, None] * np.eye(deviations.shape[1]))

    def independent(self) -> "Gaussians":
        """The Gaussians of independent dimensions with the least KL(q || N(mean, factor factor^T)).

        Their precisions are the diagonal of the precision matrix (Bishop, Pattern Recognition, section 10.1.2).
        """
        inverse = np.linalg.inv(self.factors)
        return Gaussians.diagonal(self.means, 1.0 / np.sqrt((inverse**2).sum(axis=1)))

    def codes(self, noise: np.ndarray) -> np.ndarray:
        """Codes from standard normal noise, both (n, draws, latent_dim)."""
        return self.means[:, None] + np.einsum("nij,nsj->nsi", self.factors, noise)

    def log_prob(self, noise: np.ndarray) -> np.ndarray:
        """Log density in nats of the codes that the noise gives: (n, draws, latent_dim) -> (n, draws)."""
        log_scale = np.log(np.einsum("nii->ni", self.factors)).sum(axis=1)
        return -0.5 * (noise**2 + np.log(2.0 * np.pi)).sum(axis=2) - log_scale[:, None]


class PosteriorGaussians:
    """Fits a Gaussian to the posterior p(z|x) of each image, and weighs its draws.

    All images are in one batch, (n, *image_shape). Each step of a fit costs n * DRAWS passes through the decoder and
    back. Calls `progress(text, done, total)` after every step.
    """

    def __init__(self, log_likelihood, prior, images, seed: int = 0, progress=None):
        self.count, self.seed, self.progress = len(images), seed, progress
        self.rows = ops.convert_to_tensor(np.repeat(np.asarray(images, "float32"), DRAWS, axis=0))

        def log_joint(x, z):
            return log_likelihood(x, z) + prior.log_prob(z)

        self.log_joint = compiled(log_joint)
        self.slope = compiled(lambda x, z: value_and_gradient(lambda codes: log_joint(x, codes), z)[1])

    def fit(self, start: Gaussians, full: bool, steps: int) -> Gaussians:
        """The Gaussians of the largest ELBO, from `start`: with `full` covariances, or with independent dimensions.

        Each step is along the natural gradient of the ELBO, in the frame of the Gaussian so far: z = m + L (a + B e),
        from a = 0 and B = 1. Its length is at most a rate, which falls along a cosine. The gradient leaves out the
        score of q, whose mean is 0. So it has no noise where q is the exact posterior (Roeder, Wu and Duvenaud, arXiv
        1703.09194).
        """
        dimensions = start.means.shape[1]
        diagonal = np.eye(dimensions, dtype=bool)
        shares = np.where(diagonal, 0.5, np.tril(np.ones((dimensions, dimensions))) if full else 0.0)
        random, gaussians = tagged_stream("fitted Gaussians", self.seed, full), start
        for step in range(steps):
            rate = RATES[1] + 0.5 * (RATES[0] - RATES[1]) * (1.0 + np.cos(np.pi * step / steps))
            half = random.standard_normal((self.count, DRAWS // 2, dimensions))
            noise = np.concatenate([half, -half], axis=1)
            slopes = self.slopes(gaussians.codes(noise))
            slopes = np.einsum("nji,nsj->nsi", gaussians.factors, slopes) + noise
            mean = rate * within_unit(slopes.mean(axis=1))
            triangle = rate * within_unit(shares * np.einsum("nsi,nsj->nij", slopes, noise) / DRAWS)
            inner = np.where(diagonal, np.exp(triangle * diagonal), triangle)
            means = gaussians.means + np.einsum("nij,nj->ni", gaussians.factors, mean)
            gaussians = Gaussians(means, gaussians.factors @ inner)
            self.report(f"fitting {'full' if full else 'diagonal'} Gaussians", step + 1, steps)
        return gaussians

    def slopes(self, codes: np.ndarray) -> np.ndarray:
        """The gradient of log p(x, z) at codes, both (n, DRAWS, latent_dim)."""
        z = ops.convert_to_tensor(codes.reshape(-1, codes.shape[2]), "float32")
        return to_numpy(self.slope(self.rows, z)).astype("float64").reshape(codes.shape)

    def log_weights(self, gaussians: Gaussians, samples: int) -> np.ndarray:
        """log p(x, z) - log q(z|x) in nats, (n, samples), for new draws; `samples` rises to a multiple of DRAWS.

        Their mean is the ELBO; `likelihood.importance_weighted_bound` of them is a bound on log p(x). The noise is
        the same for all Gaussians, so that the ELBOs of two differ by little noise.
        """
        random, parts = tagged_stream("ELBO of Gaussians", self.seed), []
        for _ in range(-(-samples // DRAWS)):
            noise = random.standard_normal((self.count, DRAWS, gaussians.means.shape[1]))
            z = ops.convert_to_tensor(gaussians.codes(noise).reshape(-1, noise.shape[2]), "float32")
            log_joint = to_numpy(self.log_joint(self.rows, z)).astype("float64")
            parts.append(log_joint.reshape(self.count, DRAWS) - gaussians.log_prob(noise))
        return np.concatenate(parts, axis=1)

    def report(self, text: str, done: int, total: int):
        if self.progress:
            self.progress(text, done, total)


def within_unit(arrays: np.ndarray) -> np.ndarray:
    """Each of n arrays, (n, ...), divided by its length where that is above 1."""
    lengths = np.sqrt((arrays**2).reshape(len(arrays), -1).sum(axis=1))
    return arrays / np.maximum(lengths, 1.0).reshape(-1, *[1] * (arrays.ndim - 1))
