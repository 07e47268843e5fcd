"""A posterior with two modes: can AVB sample from it where a Gaussian cannot follow?

AVB as a sampler for an unnormalised posterior p(z|y) (AVB paper, arXiv 1701.04722, section 6.2): the decoder is a known
likelihood, and q(z), a black box of noise alone, is held to the prior by T. Problems: the eight schools with a real tau,
whose sign no datum fixes, at the standard errors of the official notebook and at Rubin's own; and two hard densities in
the plane, Rosenbrock's valley and a ring. Beside AVB with and without adaptive contrast: mean-field and full-rank
Gaussian variational inference and a long NUTS run, all three of numpyro, and draws from the exact posterior, which show
what the numbers are when nothing is wrong. The truth is a grid over two dimensions: the effects eta integrate out.

Run: python -m experiments.eight_schools (needs numpyro: pip install numpyro); --quick for a first look.
Leaves in results/eight_schools/<name>/: metrics.json, table.md and a figure for each of schools and plane.
"""

from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

from common import networks
from common.evaluation.plane import Plane
from common.priors import GaussianPrior
from experiments.avb_toy import BlackBoxAVB

EFFECTS = np.array([2.8, 0.8, -0.3, 0.7, -0.1, 0.1, 1.8, 1.2], "float32")  # y / 10
RUBIN_ERRORS = np.array([1.5, 1.0, 1.6, 1.1, 0.9, 1.1, 1.0, 1.8], "float32")  # sigma / 10
ALTERED_ERRORS = np.array([0.8, 0.5, 0.8, 0.6, 0.5, 0.6, 0.5, 0.4], "float32")  # of the official notebook


def normal(x, mean, variance, backend):
    """log N(x; mean, variance), elementwise."""
    return -0.5 * (backend.square(x - mean) / variance + backend.log(2.0 * np.pi * variance))


@dataclass(frozen=True)
class Schools:
    """y_j ~ N(mu + tau eta_j, sigma_j^2); mu, tau and every eta_j ~ N(0, 1), tau of either sign; z = (mu, tau, eta)."""

    errors: np.ndarray
    dimensions = 10
    axes = ("μ", "τ")
    plane = Plane((-2.5, -3.5), (3.5, 3.5), 400)

    def log_joint(self, z, backend):
        """log p(y, z) in nats, (n, 10) -> (n,), with the functions of `backend`: keras.ops, numpy or jax.numpy."""
        mu, tau, eta = z[:, :1], z[:, 1:2], z[:, 2:]
        likelihood = normal(EFFECTS, mu + tau * eta, self.errors**2 + 0.0 * eta, backend)
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
    plane: Plane
    dimensions = 2
    axes = ("z₁", "z₂")

    def log_joint(self, z, backend):
        return self.log_density(z[:, 0], z[:, 1], backend)

    def log_marginal(self, points):
        return self.log_density(points[..., 0], points[..., 1], np)

    def complete(self, points, random):
        return points


def rosenbrock(x, y, backend):
    """A curved valley: x ~ N(1, 1), y ~ N(x^2, 0.1)."""
    return -0.5 * (backend.square(1.0 - x) + 10.0 * backend.square(y - backend.square(x)))


def ring(x, y, backend):
    """A circle of radius 2 and width 0.2 (the plane's cut through a torus)."""
    return -0.5 * backend.square((backend.sqrt(backend.square(x) + backend.square(y)) - 2.0) / 0.2)


PROBLEMS = {
    "eight schools, altered errors": Schools(ALTERED_ERRORS),
    "eight schools, Rubin's errors": Schools(RUBIN_ERRORS),
    "Rosenbrock's valley": InThePlane(rosenbrock, Plane((-3.5, -2.5), (5.5, 27.0), 800)),
    "torus": InThePlane(ring, Plane((-3.5, -3.5), (3.5, 3.5), 400)),
}


import os

SQUARES = bool(os.environ.get("SQ"))


class PosteriorSampler(BlackBoxAVB):
    """q(z), z = z_phi(eps), as near to the posterior p(z|y) as AVB can bring it; x is a column of ones."""

    title = "AVB sampler"

    def __init__(self, log_joint, **kwargs):
        super().__init__(**kwargs)
        self.log_joint = log_joint
        self.likelihood_weight = keras.Variable(1.0, trainable=False, dtype="float32")

    def call(self, x, training=False):
        return self.infer(x)

    def log_odds(self, discriminator, x, z_hat):
        if not SQUARES:
            return super().log_odds(discriminator, x, z_hat)
        t = discriminator([x, ops.concatenate([z_hat, 0.5 * ops.square(z_hat)], axis=-1)])[:, 0]
        return t if self.adaptive_contrast else t + 0.5 * ops.sum(ops.square(z_hat / self.prior.scale), axis=-1)

    def objective(self, x, outputs):
        z = outputs["z"]
        log_likelihood = self.log_joint(z, ops) - self.prior.log_prob(z)
        return {"reconstruction": -self.likelihood_weight * ops.mean(log_likelihood)} | self.adversarial_terms(
            x, outputs
        )


@dataclass(frozen=True)
class Config:
    hidden_units: tuple[int, ...] = (128, 128)
    discriminator_units: tuple[int, ...] = (128, 128)
    noise_dim: int = 32
    prior_scale: float = 1.0
    draws: int = 512
    updates: int = 10000
    learning_rate: float = 1e-3
    final_rate_factor: float = 0.05
    beta_1: float = 0.5
    warm_up: int = 5000
    encoder_rate_factor: float = 1.0
    discriminator_rate_factor: float = 2.0
    seed: int = 0


def build(config, problem, adaptive_contrast):
    random = np.random.default_rng(config.seed)
    return PosteriorSampler(
        log_joint=problem.log_joint,
        adaptive_contrast=adaptive_contrast,
        noise_dim=config.noise_dim,
        prior=GaussianPrior(problem.dimensions, config.prior_scale),
        seed=config.seed,
        encoder=networks.encoder((1,), problem.dimensions, config.hidden_units, random, config.noise_dim),
        discriminator=networks.pair_discriminator(
            (1,), problem.dimensions * (2 if SQUARES else 1), config.discriminator_units, random
        ),
    )


def numpyro_model(problem):
    import jax.numpy as jnp
    import numpyro
    from numpyro import distributions

    def model():
        z = numpyro.sample(
            "z", distributions.ImproperUniform(distributions.constraints.real_vector, (), (problem.dimensions,))
        )
        numpyro.factor("log_joint", problem.log_joint(z[None], jnp)[0])

    return model


def nuts(problem, draws, seed):
    """`draws` draws of four chains of the no-U-turn sampler: (draws, dimensions)."""
    import jax
    import numpyro

    kernel = numpyro.infer.NUTS(numpyro_model(problem), init_strategy=numpyro.infer.init_to_uniform)
    sampler = numpyro.infer.MCMC(
        kernel, num_warmup=2000, num_samples=draws // 4, num_chains=4, chain_method="vectorized", progress_bar=False
    )
    sampler.run(jax.random.key(seed))
    return np.asarray(sampler.get_samples()["z"])


def gaussian(problem, guide_name, draws, seed, steps=20000):
    """Draws from the Gaussian that variational inference finds: (draws, dimensions)."""
    import jax
    import numpyro

    guide = getattr(numpyro.infer.autoguide, guide_name)(numpyro_model(problem))
    svi = numpyro.infer.SVI(
        numpyro_model(problem), guide, numpyro.optim.Adam(2e-3), numpyro.infer.Trace_ELBO(num_particles=16)
    )
    found = svi.run(jax.random.key(seed), steps, progress_bar=False)
    drawn = guide.sample_posterior(jax.random.key(seed + 1), found.params, sample_shape=(draws,))
    return np.asarray(drawn["z"]).reshape(draws, problem.dimensions)
