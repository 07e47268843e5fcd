"""Priors p(z) for the code: distributions that can be sampled, by label if they have modes.

The AAE paper gives no parameters for its figures. These priors have parameters in common use: see each class. `scale`
multiplies the samples of every prior.
"""

import math
from typing import Protocol

import keras
import numpy as np
from keras import ops

MODES = 10  # one for each digit
STEPS = 200  # points on each tenth of the roll; a code belongs to the tenth of the nearest point


class Prior(Protocol):
    """The attributes of every prior. `PRIORS` names those that `--prior` can choose, each made of (latent_dim, scale).

    A prior has either `log_prob(z)`, the log density in nats, (count, latent_dim) -> (count,), or `no_density`, the
    reason why it has no density. A prior with modes also has `mode_of(z)`, the mode of each code. The priors of
    experiments.aae.label_prior have `walk(steps)` as well: points along each mode, (modes, steps, latent_dim).
    """

    latent_dim: int
    scale: float  # factor on all samples
    modes: int  # parts that a label can choose; 0 if there are none

    def sample(self, count, seed, labels=None):
        """`count` codes, (count, latent_dim), from the modes named by `labels`, (count,), or from the whole prior."""


class GaussianPrior:
    """N(0, scale^2 I) in `latent_dim` dimensions. It has no modes, so it cannot be sampled by label."""

    modes = 0

    def __init__(self, latent_dim: int = 2, scale: float = 1.0):
        self.latent_dim = latent_dim
        self.scale = scale

    def sample(self, count, seed, labels=None):
        """`count` codes, (count, latent_dim). `seed` is a `SeedGenerator` or an integer.

        Raises ValueError if labels are given, since no part of a Gaussian belongs to a label.
        """
        if labels is not None:
            raise ValueError("a Gaussian prior has no modes: it cannot be sampled with labels")
        return self.scale * keras.random.normal((count, self.latent_dim), seed=seed)

    def log_prob(self, z):
        """Log density in nats: (count, latent_dim) -> (count,)."""
        return ops.sum(normal_log_prob(z, 0.0, self.scale), axis=-1)


class MixturePrior:
    """Ten Gaussians in the plane, mode k at angle 2 pi k / 10, its long axis pointing away from the origin.

    Centres at radius 1.4, standard deviation 0.5 along the radius and 0.1 across it (AAE paper, Fig. 2 and 4).
    """

    modes = MODES
    latent_dim = 2
    radius, radial_deviation, tangential_deviation = 1.4, 0.5, 0.1

    def __init__(self, latent_dim: int = 2, scale: float = 1.0):
        require_plane("mixture", latent_dim)
        self.scale = scale

    def sample(self, count, seed, labels=None):
        """`count` codes, (count, 2), from the modes named by `labels`, (count,) integers, or from modes at random.

        `seed` is a `SeedGenerator` or an integer.
        """
        noise_seed, label_seed = separate(seed)
        if labels is None:
            labels = keras.random.randint((count,), 0, self.modes, seed=label_seed)
        noise = keras.random.normal((count, 2), seed=noise_seed)
        along = self.radius + self.radial_deviation * noise[:, 0]
        return self.scale * from_polar_frame(along, self.tangential_deviation * noise[:, 1], self.angles(labels))

    def log_prob(self, z):
        """Log density of the whole mixture in nats: (count, 2) -> (count,)."""
        return ops.logsumexp(self.mode_log_prob(z), axis=-1) - math.log(self.modes)

    def mode_log_prob(self, z):
        """Log density of each mode in nats: (count, 2) -> (count, modes)."""
        z, angle = z[:, None, :] / self.scale, self.angles(ops.arange(self.modes))[None, :]  # (count, modes)
        along = z[..., 0] * ops.cos(angle) + z[..., 1] * ops.sin(angle)
        across = z[..., 1] * ops.cos(angle) - z[..., 0] * ops.sin(angle)
        return (
            normal_log_prob(along, self.radius, self.radial_deviation)
            + normal_log_prob(across, 0.0, self.tangential_deviation)
            - 2.0 * math.log(self.scale)
        )

    def mode_of(self, z):
        """The mode that is densest at each code: (count, 2) -> (count,) integers."""
        return ops.argmax(self.mode_log_prob(z), axis=-1)

    def walk(self, steps: int):
        """Points on the long axis of each mode, from two deviations inside of its centre to two outside.

        (modes, steps, 2).
        """
        along = self.radius + self.radial_deviation * ops.linspace(-2.0, 2.0, steps)[None, :]
        return self.scale * from_polar_frame(along, 0.0 * along, self.angles(ops.arange(self.modes))[:, None])

    def angles(self, labels):
        """Angle of each label's mode in radians."""
        return 2.0 * math.pi / self.modes * ops.cast(labels, "float32")


class SwissRollPrior:
    """A spiral in the plane, whose k-th tenth belongs to label k (AAE paper, Fig. 4).

    u = (U(0, 1) + k) / 10, radius 3 sqrt(u), angle 4 pi sqrt(u). The roll is a curve, so it has no density in
    the plane and no `log_prob`.
    """

    no_density = "the prior is a curve: it has no density"
    modes = MODES
    latent_dim = 2

    def __init__(self, latent_dim: int = 2, scale: float = 1.0):
        require_plane("swiss_roll", latent_dim)
        self.scale = scale

    def sample(self, count, seed, labels=None):
        """`count` codes, (count, 2), from the parts named by `labels`, (count,) integers, or from the whole roll.

        `seed` is a `SeedGenerator` or an integer.
        """
        uniform_seed, label_seed = separate(seed)
        if labels is None:
            labels = keras.random.randint((count,), 0, self.modes, seed=label_seed)
        u = (keras.random.uniform((count,), seed=uniform_seed) + ops.cast(labels, "float32")) / self.modes
        return self.at(u)

    def mode_of(self, z):
        """The label of the nearest point of the roll: (count, 2) -> (count,) integers."""
        points = ops.reshape(self.walk(STEPS), (-1, 2))
        squared = ops.sum(points**2, axis=1) - 2.0 * z @ ops.transpose(points)  # without |z|^2: (count, points)
        return ops.argmin(squared, axis=1) // STEPS

    def walk(self, steps: int):
        """Points along each label's part of the roll, from its inner to its outer end: (modes, steps, 2)."""
        u = (ops.arange(self.modes * steps, dtype="float32") + 0.5) / (self.modes * steps)
        return ops.reshape(self.at(u), (self.modes, steps, 2))

    def at(self, u):
        """Points of the roll for u from 0 at its inner end to 1 at its outer end: (count,) -> (count, 2)."""
        return self.scale * from_polar_frame(3.0 * ops.sqrt(u), 0.0 * u, 4.0 * math.pi * ops.sqrt(u))


class FittedMixture:
    """A mixture of Gaussians with full covariances, as a fit to codes gives it: sum_k w_k N(mean_k, covariance_k).

    Arguments, in float64: `weights` (k,), which sum to 1; `means` (k, latent_dim); `covariances` (k, latent_dim,
    latent_dim). Raises numpy.linalg.LinAlgError unless all covariances are positive definite. `scale` is the root of
    the mean variance of a dimension. A component belongs to no label, so the mixture cannot be sampled by label.
    """

    modes = 0

    def __init__(self, weights, means, covariances):
        self.components, self.latent_dim = means.shape
        centre = weights @ means
        variances = np.diagonal(covariances, axis1=1, axis2=2) + (means - centre) ** 2
        self.scale = float((weights @ variances).mean() ** 0.5)
        roots, log_weights = np.linalg.cholesky(covariances), np.log(weights)
        whitening = np.linalg.inv(roots)  # of z - mean_k, by components
        log_roots = np.log(np.diagonal(roots, axis1=1, axis2=2)).sum(axis=1)
        self.centre, self.means, self.roots, self.log_weights = map(single, (centre, means, roots, log_weights))
        self.shifts = single(np.einsum("kij,kj->ki", whitening, means - centre))
        self.whitening = single(whitening.transpose(2, 0, 1).reshape(self.latent_dim, -1))
        self.constants = single(log_weights - log_roots - 0.5 * self.latent_dim * np.log(2.0 * np.pi))

    def sample(self, count, seed, labels=None):
        """`count` codes, (count, latent_dim). `seed` is a `SeedGenerator` or an integer.

        Raises ValueError if labels are given.
        """
        if labels is not None:
            raise ValueError("no component of a fitted mixture belongs to a label: it cannot be sampled with labels")
        noise_seed, component_seed = separate(seed)
        components = keras.random.categorical(self.log_weights[None], count, seed=component_seed)[0]
        noise = keras.random.normal((count, self.latent_dim, 1), seed=noise_seed)
        spread = ops.matmul(ops.take(self.roots, components, axis=0), noise)[..., 0]
        return ops.take(self.means, components, axis=0) + spread

    def log_prob(self, z):
        """Log density in nats: (count, latent_dim) -> (count,). Costs count k latent_dim^2 multiplications."""
        white = ops.reshape(ops.matmul(z - self.centre, self.whitening), (-1, self.components, self.latent_dim))
        squares = ops.sum(ops.square(white - self.shifts), axis=-1)  # (count, k)
        return ops.logsumexp(self.constants - 0.5 * squares, axis=-1)


PRIORS = {"gaussian": GaussianPrior, "mixture": MixturePrior, "swiss_roll": SwissRollPrior}


def normal_log_prob(z, mean, deviation):
    """Log density of N(mean, deviation^2) in nats, elementwise."""
    return -0.5 * ((z - mean) / deviation) ** 2 - math.log(deviation) - 0.5 * math.log(2.0 * math.pi)


def from_polar_frame(along, across, angle):
    """Points from their coordinates along and across the direction `angle`: three (count,) -> (count, 2).

    The three can have any common shape; the result is then (..., 2).
    """
    cos, sin = ops.cos(angle), ops.sin(angle)
    return ops.stack([along * cos - across * sin, along * sin + across * cos], axis=-1)


def single(array: np.ndarray):
    """An array as a float32 tensor."""
    return ops.convert_to_tensor(array, "float32")


def separate(seed):
    """Two seeds from one: an integer used twice would tie the two draws together."""
    return (seed, seed) if isinstance(seed, keras.random.SeedGenerator) else (seed, seed + 1)


def require_plane(prior: str, latent_dim: int):
    """Raises ValueError unless the code is two-dimensional."""
    if latent_dim != 2:
        raise ValueError(f"the {prior} prior lies in the plane: it needs latent_dim 2, not {latent_dim}")
