"""Adversarial variational Bayes: a posterior without a density, its KL estimated by a discriminator T(x, z).

Mescheder, Nowozin and Geiger, "Adversarial Variational Bayes", arXiv 1701.04722, Algorithm 1, with adaptive contrast
unless --no-adaptive-contrast. Every network minimises its own terms, in nats per image, all in one step:

    encoder, decoder    E_x E_eps [ -log p(x|z) + T(x, z) ],  z = z_phi(x, eps)                      (eq. 3.7)
    discriminator       E_x E_q(z|x) [ -log sigma(T(x, z)) ] + E_x E_p(z) [ -log(1 - sigma(T(x, z))) ]  (eq. 3.3)

The discriminator's optimum is T(x, z) = log q(z|x) - log p(z). The first line holds T fixed (proposition 2).

Adaptive contrast replaces the prior by a Gaussian r(z|x) with the mean mu and the deviation sigma of q(z|x) itself.
T then compares z' = (z - mu) / sigma with N(0, I), and these two differ little. The KL is
E[ T(x, z') + log r(z|x) - log p(z) ].

These moments come from the noise draws of the same batch, of n images. So sigma is too small: log r is too high, and
the KL in the loss too, by about 0.043 nats in 8-D and 0.17 in 32-D at n = 100 (3 nats in 8-D at n = 2). The reported
KL is without this bias (`log_variance_bias`). The encoder's gradient hardly has it: see `AVB.contrast`.

Run: python avb.py (--help lists every flag). README.md says what to expect. experiments/avb/README.md lists all
departures from the paper.
"""

import math
from dataclasses import dataclass
from typing import Annotated

from common import networks
from common.adversarial import discriminator_loss, frozen
from common.arrays import DataError
from common.command import run_main
from common.config import (
    AtLeast,
    Count,
    Factor,
    Fraction,
    Networks,
    Positive,
    PositiveCount,
    RunConfig,
    Scale,
    Targets,
    check,
)
from common.files import RunError
from common.model import LatentModel
from common.priors import GaussianPrior
from common.run import train_and_report

import numpy as np
from keras import ops

# At 10 images, z' of a Gaussian q(z|x) with one noise vector is 0.012 nats per dimension from N(0, I). At 4 it is 0.18,
# and at 2, z' is -1 or 1. T learns this difference, which says nothing of q(z|x).
FEWEST_NOISE_DRAWS = 10


@dataclass(frozen=True)
class Config(RunConfig):
    """Brackets give values of the paper and of the official code. All others were chosen on validation images."""

    binarisation: Targets = "dynamic"  # none, dynamic (pixels drawn again in each epoch: the paper), threshold (at 0.5)
    latent_dim: PositiveCount = 2  # dimensions of z (MNIST in the paper: 8 and 32)
    adaptive_contrast: bool = True  # compare q(z|x) with a Gaussian of its own moments instead of the prior
    hidden_units: tuple[PositiveCount, ...] = (512, 512)  # ReLU units per layer, encoder and decoder
    networks: Networks = "dense"  # dense, or conv: three convolutions and one dense layer (paper: convolutional)
    discriminator_units: tuple[PositiveCount, ...] = (512, 512)  # ReLU units per layer; x and z each have a first layer
    noise_basis: PositiveCount = 16  # noise vectors v_i in z = z0 + sum_i a_i v_i (official code: 16 for 8-D)
    noise_dim: PositiveCount = 32  # normal numbers that each v_i takes as input (official code: 32 for 8-D)
    noise_units: tuple[PositiveCount, ...] = (64, 64)  # ELU units per layer of each v_i (official code: 128, 128, 128)
    prior_scale: Scale = 1.0  # standard deviation of the Gaussian prior
    warm_up: Fraction = 0.0  # share s of the epochs in which the KL's weight rises to 1, from 1 / (s x epochs)
    epochs: Count | None = None  # passes over the training images; None: as many as `updates` need, at most 40
    updates: PositiveCount = 8250  # optimiser steps if epochs is None (15 passes over MNIST)
    batch_size: Annotated[int, AtLeast(2)] = 100  # images per update; 10 or more with contrast, which uses their noise
    learning_rate: Positive = 1e-3  # Adam's rate at the start
    final_rate_factor: Factor = 0.05  # the rate falls along a cosine to this factor times learning_rate
    beta_1: Fraction = 0.5  # Adam's decay of the mean gradient (official code)
    encoder_rate_factor: Factor = 1.0  # factor on learning_rate for the encoder
    decoder_rate_factor: Factor = 1.0  # factor on learning_rate for the decoder
    discriminator_rate_factor: Factor = 2.0  # factor on learning_rate for the discriminator (official code: 2)
    discriminator_steps: PositiveCount = 1  # updates of T per update of encoder and decoder (official code: 1)


class AVB(LatentModel):
    """z = z_phi(x, eps); a KL that a discriminator estimates holds q(z|x) to p(z) for each image."""

    title = "AVB"
    posterior = "implicit"
    terms = ("reconstruction", "kl", "discriminator")
    faster_with_xla = False  # 1,650 updates on two cores take 50 and 56 s without XLA, and 92 s with it

    def __init__(self, adaptive_contrast: bool, noise_basis: int, noise_dim: int, **kwargs):
        super().__init__(**kwargs)
        self.adaptive_contrast = adaptive_contrast
        self.noise_basis, self.noise_dim = noise_basis, noise_dim

    def infer(self, x):
        """z, the mean and variance of q(z|x) from the batch's own noise, and the bias of the latter's logarithm.

        All are (batch, latent_dim).
        """
        eps = self.noise((ops.shape(x)[0], self.noise_basis, self.noise_dim))
        z0, a, v = self.encoder([x, eps])  # (batch, latent_dim), twice (batch, noise_basis, latent_dim)
        z = z0 + ops.sum(a * v, axis=1)
        # The v_i do not depend on x: each image of the batch brings a draw of them that counts for all images.
        mean = z0 + ops.sum(a * ops.mean(v, axis=0), axis=1)
        parts = ops.square(a) * ops.var(v, axis=0)
        moments = {"mean": mean, "variance": ops.sum(parts, axis=1)}
        return {"z": z} | moments | {"log_variance_bias": log_variance_bias(parts, ops.shape(x)[0])}

    def objective(self, x, outputs):
        reconstruction = -ops.mean(self.likelihood.log_prob(x, outputs["parameters"]))
        return {"reconstruction": reconstruction} | self.adversarial_terms(x, outputs)

    def adversarial_terms(self, x, outputs):
        """The two terms with T: the encoder's KL, through a frozen T, and T's own loss. Scalars in nats."""
        z_hat, log_ratio = self.contrast(outputs)
        opposite = self.noise(ops.shape(z_hat)) if self.adaptive_contrast else self.prior_like(z_hat)
        return {
            "kl": self.warm_up_weight * ops.mean(self.log_odds(frozen(self.discriminator), x, z_hat) + log_ratio),
            "discriminator": discriminator_loss(
                self.log_odds(self.discriminator, x, ops.stop_gradient(z_hat)),
                self.log_odds(self.discriminator, x, opposite),
            ),
        }

    def contrast(self, outputs):
        """The code as T sees it, (batch, latent_dim), and log r(z|x) - log p(z), (batch,) in nats.

        T compares q(z|x) with r: the prior or, with adaptive contrast, the Gaussian that has the moments of q(z|x).
        No gradient goes through these moments (section "Adaptive Contrast"), whose variance has ddof 0. So, for a
        Gaussian q(z|x) and T = 0, the encoder's mean gradient for the deviation of q(z|x) is that of the exact moments
        at any batch size. Among noise vectors with unequal parts of the variance, small parts get too much of it: one
        of 0.1 beside one of 0.9 gets a factor of 1.17 at 10 images and of 1.015 at 100.
        """
        z = outputs["z"]
        if not self.adaptive_contrast:
            return z, ops.zeros_like(z[:, 0])
        mean, variance = ops.stop_gradient(outputs["mean"]), ops.stop_gradient(outputs["variance"])
        z_hat = (z - mean) / ops.sqrt(variance)
        log_r = -0.5 * ops.sum(ops.square(z_hat) + ops.log(variance) + math.log(2.0 * math.pi), axis=-1)
        return z_hat, log_r - self.prior.log_prob(z)

    def log_odds(self, discriminator, x, z_hat):
        """T(x, z), (batch,): the network's output and, without adaptive contrast, -log p(z) + const added to it.

        That is |z|^2 / (2 scale^2).
        """
        t = ops.squeeze(discriminator([x, z_hat]), axis=-1)
        if self.adaptive_contrast:
            return t
        return t + 0.5 * ops.sum(ops.square(z_hat / self.prior.scale), axis=-1)

    def divergences(self, x, outputs):
        """KL(q(z|x) || p(z)) by T in nats, (batch,), under the key `kl_estimated_nats`.

        With adaptive contrast, the moments come from the noise draws of these images, one for each. Their bias for a
        Gaussian q(z|x) is subtracted. Raises DataError for a single image, which has no such moments.
        """
        z_hat, log_ratio = self.contrast(outputs)
        kl = self.log_odds(self.discriminator, x, z_hat) + log_ratio
        if self.adaptive_contrast and "log_variance_bias" in outputs:
            if x.shape[0] == 1:
                raise DataError("adaptive contrast needs the noise draws of 2 images or more; give more than one image")
            kl = kl + 0.5 * ops.sum(outputs["log_variance_bias"], axis=-1)
        return {"kl_estimated_nats": kl}


def log_variance_bias(parts, draws):
    """How much log s lies above the logarithm of the true variance on average, in nats: (batch, latent_dim), below 0.

    Args:
        parts: (batch, noise_basis, latent_dim), a_i^2 times the variance (ddof 0) of v_i over draws. s is their sum.
        draws: the number n of these draws.

    For Gaussian v_i, n s is a sum of multiples of chi-squared numbers with n - 1 degrees of freedom. It is nearly a
    multiple of one with nu degrees (Satterthwaite, 1946), and exactly if the true parts are equal or there is one. So

        E[log s] - log sigma^2 = log((n - 1) / n) + psi(nu / 2) - log(nu / 2),
        nu = (n - 1) (sum of true parts)^2 / (sum of their squares).

    The same ratio R of the estimated parts gives nu = (n + 1) R - 2, by the means of its numerator and denominator.
    With T = 0, log r has minus half this bias in each dimension. To leave an image's own noise out of its moments is
    no remedy: that bias is as large, with the other sign.
    """
    draws = ops.cast(draws, "float32")
    ratio = ops.square(ops.sum(parts, axis=1)) / ops.sum(ops.square(parts), axis=1)
    half = 0.5 * ((draws + 1.0) * ratio - 2.0)
    more = half + 1.0  # psi(x) = psi(x + 1) - 1 / x; then the asymptotic series, whose error is below 2e-4
    series = -1.0 / (2.0 * more) - 1.0 / (12.0 * more**2) + 1.0 / (120.0 * more**4)
    return ops.log((draws - 1.0) / draws) + ops.log(more / half) - 1.0 / half + series


def build(config: Config, likelihood) -> AVB:
    """The untrained model for rows of this likelihood (a shape: Bernoulli pixels); same config, same weights."""
    random = np.random.default_rng(config.seed)
    return AVB(
        adaptive_contrast=config.adaptive_contrast,
        noise_basis=config.noise_basis,
        noise_dim=config.noise_dim,
        prior=GaussianPrior(config.latent_dim, config.prior_scale),
        seed=config.seed,
        likelihood=likelihood,
        encoder=networks.noise_basis_encoder(
            likelihood,
            config.latent_dim,
            config.hidden_units,
            config.noise_basis,
            config.noise_dim,
            config.noise_units,
            random,
            config.networks,
        ),
        decoder=networks.decoder(config.latent_dim, likelihood, config.hidden_units, random, config.networks),
        discriminator=networks.pair_discriminator(
            likelihood, config.latent_dim, config.discriminator_units, random, config.networks
        ),
    )


def main(config: Config = Config(), data=None) -> dict:
    """Train, evaluate and plot by `config`; returns the content of metrics.json. `data`: (x, y) instead of a file."""
    config = check(config)
    if config.adaptive_contrast and config.batch_size < FEWEST_NOISE_DRAWS and not config.resume:
        raise RunError(
            f"--batch-size {config.batch_size} gives adaptive contrast too few noise draws for the moments of q(z|x); "
            f"set {FEWEST_NOISE_DRAWS} or more, or --no-adaptive-contrast"
        )
    return train_and_report(config, build, "avb", data)


if __name__ == "__main__":
    run_main(main, Config)
