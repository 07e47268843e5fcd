"""Posteriors that are not Gaussian: the eight schools and two densities in the plane, with exact results."""

from collections.abc import Callable
from dataclasses import dataclass

from experiments.avb.plane import Plane

import numpy as np

EFFECTS = np.array([2.8, 0.8, -0.3, 0.7, -0.1, 0.1, 1.8, 1.2], "float32")  # y / 10

RUBIN_ERRORS = np.array([1.5, 1.0, 1.6, 1.1, 0.9, 1.1, 1.0, 1.8], "float32")  # sigma / 10

ALTERED_ERRORS = np.array([0.8, 0.5, 0.8, 0.6, 0.5, 0.6, 0.5, 0.4], "float32")  # sigma in the official notebook


def normal(x, mean, variance, backend):
    """log N(x; mean, variance), elementwise."""
    return -0.5 * (backend.square(backend.subtract(x, mean)) / variance + backend.log(2.0 * np.pi * variance))


@dataclass(frozen=True)
class Schools:
    """y_j ~ N(mu + tau eta_j, sigma_j^2) with mu, tau, eta_j ~ N(0, 1), so tau has either sign; z = (mu, tau, eta)."""

    errors: np.ndarray
    title: str
    dimensions = 10
    axes = ("μ", "τ")
    prior_scale = 1.0  # scale of p(z), which is a part of this model
    plane = Plane((-2.5, -3.5), (3.5, 3.5), 400)

    def log_joint(self, z, backend):
        """log p(y, z) in nats, (n, 10) -> (n,), with the functions of `backend`: keras.ops, numpy or jax.numpy."""
        mu, tau, eta = z[:, :1], z[:, 1:2], z[:, 2:]
        likelihood = normal(EFFECTS, mu + tau * eta, backend.add(self.errors**2, 0.0 * eta), backend)
        return backend.sum(likelihood, axis=1) + backend.sum(normal(z, 0.0, 1.0 + 0.0 * z, backend), axis=1)

    def log_marginal(self, points):
        """log p(y, mu, tau), the effects integrated out: (..., 2) -> (...)."""
        mu, tau = points[..., :1], points[..., 1:]
        likelihood = normal(EFFECTS, mu, self.errors**2 + tau**2, np).sum(axis=-1)
        return likelihood + normal(points, 0.0, np.ones_like(points), np).sum(axis=-1)

    def complete(self, points, random):
        """Exact draws of z from exact draws (n, 2) of (mu, tau)."""
        mu, tau = points[:, :1], points[:, 1:]
        variance = self.errors**2 + tau**2
        mean = tau * (EFFECTS - mu) / variance
        eta = mean + self.errors / np.sqrt(variance) * random.standard_normal(mean.shape)
        return np.concatenate([points, eta], axis=1)


@dataclass(frozen=True)
class InThePlane:
    """A density over z = (z1, z2) itself, unnormalised."""

    log_density: Callable
    title: str
    plane: Plane
    dimensions = 2
    axes = ("z₁", "z₂")
    prior_scale = 3.0  # scale of p(z), which cancels: the likelihood is the density over p(z)

    def log_joint(self, z, backend):
        return self.log_density(z[:, 0], z[:, 1], backend)

    def log_marginal(self, points):
        return self.log_density(points[..., 0], points[..., 1], np)

    def complete(self, points, random):
        return points


def rosenbrock(x, y, backend):
    """A curved valley: x ~ N(1, 1), y ~ N(x^2, 0.1)."""
    return -0.5 * (backend.square(1.0 - x) + 10.0 * backend.square(y - backend.square(x)))


def torus(x, y, backend):
    """A torus seen from above, with radius 2 and deviation 0.2 of the tube."""
    return -0.5 * backend.square((backend.sqrt(backend.square(x) + backend.square(y)) - 2.0) / 0.2)


PROBLEMS = {
    "altered": Schools(ALTERED_ERRORS, "schools, altered errors"),
    "rubin": Schools(RUBIN_ERRORS, "schools, Rubin's errors"),
    "rosenbrock": InThePlane(rosenbrock, "Rosenbrock's valley", Plane((-3.5, -2.5), (5.5, 27.0), 800)),
    "torus": InThePlane(torus, "torus", Plane((-3.5, -3.5), (3.5, 3.5), 400)),
}


def exact_draws(problem, count: int, seed: int) -> np.ndarray:
    """Draws from the posterior itself: (mu, tau) by the grid's cells, all other dimensions in closed form."""
    random, plane = np.random.default_rng(seed), problem.plane
    log_density = plane.normalised(problem.log_marginal(plane.centres))
    chosen = random.choice(plane.cells**2, count, p=(np.exp(log_density) * plane.area).ravel())
    inside = (random.random((count, 2)) - 0.5) * (plane.edges[:, 1] - plane.edges[:, 0])
    return problem.complete(plane.centres.reshape(-1, 2)[chosen] + inside, random)
