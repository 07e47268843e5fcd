"""Distributions q whose KL to N(0, I) is known exactly, and an AVB with these as its posterior."""

from avb import AVB

import numpy as np
from keras import ops
from scipy.integrate import quad
from scipy.optimize import brentq


def narrowed(divergence: float, dimensions: int) -> float:
    """The scale s below 1 for which KL(N(0, s^2 I) || N(0, I)) is `divergence` nats."""
    kl = divergence / dimensions
    log_variance = brentq(lambda v: 0.5 * (np.exp(v) - 1.0 - v) - kl, -2.0 * kl - 2.0, 0.0)
    return float(np.exp(0.5 * log_variance))


def mixture_kl(shift: float, scale: float, dimensions: int) -> float:
    """KL of two equal Gaussians of deviation `scale` at +-`shift` on the first axis to N(0, I), by quadrature."""
    ratio = shift / scale

    def entropy_part(u):
        log_q = np.logaddexp(-0.5 * (u - ratio) ** 2, -0.5 * (u + ratio) ** 2) - 0.5 * np.log(8.0 * np.pi)
        return -np.exp(log_q) * log_q

    entropy = 2.0 * quad(entropy_part, max(0.0, ratio - 12.0), ratio + 12.0, limit=200)[0] + np.log(scale)
    first = 0.5 * (np.log(2.0 * np.pi) + shift**2 + scale**2) - entropy
    return first + (dimensions - 1) * 0.5 * (scale**2 - 1.0 - 2.0 * np.log(scale))


def shifted(divergence: float, dimensions: int) -> tuple[float, float, int]:
    """N(shift e_1, I): shift, scale and number of modes."""
    return float(np.sqrt(2.0 * divergence)), 1.0, 1


def shifted_and_narrowed(divergence: float, dimensions: int) -> tuple[float, float, int]:
    """N(shift e_1, scale^2 I): shift and scale give half of the KL each."""
    return float(np.sqrt(divergence)), narrowed(0.5 * divergence, dimensions), 1


def mixture(divergence: float, dimensions: int) -> tuple[float, float, int]:
    """Two equal Gaussians at +-shift e_1; their width gives half of the KL."""
    scale = narrowed(0.5 * divergence, dimensions)
    shift = brentq(lambda a: mixture_kl(a, scale, dimensions) - divergence, 1e-6, 2.0 * np.sqrt(divergence) + 4.0)
    return float(shift), scale, 2


FAMILIES = {"shifted": shifted, "shifted and narrowed": shifted_and_narrowed, "mixture of two": mixture}


class KnownKL(AVB):
    """T alone, for a fixed q(z|x): a one-hot row x selects the shift, scale and modes along the first axis."""

    terms = ("discriminator",)

    def __init__(self, family: np.ndarray, **kwargs):
        super().__init__(noise_basis=0, noise_dim=0, likelihood=(len(family),), **kwargs)
        self.shift, self.scale, self.modes = (ops.convert_to_tensor(column, "float32") for column in family.T)

    def call(self, x, training=False):
        return self.infer(x)

    def infer(self, x):
        shift, scale, modes = (ops.matmul(x, column[:, None]) for column in (self.shift, self.scale, self.modes))
        noise = self.noise((ops.shape(x)[0], self.prior.latent_dim))
        sign = ops.where(modes > 1.5, ops.sign(self.noise(ops.shape(shift))), 1.0)
        first = ops.one_hot(ops.zeros_like(shift[:, 0], dtype="int32"), self.prior.latent_dim)
        mean = ops.where(modes > 1.5, 0.0, shift) * first
        variance = ops.square(scale) + ops.where(modes > 1.5, ops.square(shift), 0.0) * first
        return {"z": sign * shift * first + scale * noise, "mean": mean, "variance": variance}

    def objective(self, x, outputs):
        return {"discriminator": self.adversarial_terms(x, outputs)["discriminator"]}
