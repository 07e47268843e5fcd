"""Adversarial variational Bayes: a posterior without a density, its KL estimated by a discriminator T(x, z).

Mescheder, Nowozin and Geiger, "Adversarial Variational Bayes", arXiv 1701.04722, Algorithm 1, with adaptive contrast
unless --no-adaptive-contrast. Every network minimises its own terms, in nats per image, all in one step:

    encoder, decoder    E_x E_eps [ -log p(x|z) + T(x, z) ],  z = z_phi(x, eps)                      (eq. 3.7)
    discriminator       E_x E_q(z|x) [ -log sigma(T(x, z)) ] + E_x E_p(z) [ -log(1 - sigma(T(x, z))) ]  (eq. 3.3)

The discriminator's optimum is T(x, z) = log q(z|x) - log p(z). The first line holds T fixed (proposition 2).

Adaptive contrast replaces the prior by a Gaussian r(z|x) with the mean mu and the deviation sigma of q(z|x) itself.
T then compares z' = (z - mu) / sigma with N(0, I), and these two differ little. The KL is
E[ T(x, z') + log r(z|x) - log p(z) ].

Run: python avb.py (--help lists every flag). README.md says what to expect. experiments/avb/README.md lists all
departures from the paper.
"""

import math
from dataclasses import dataclass
from typing import Annotated

from common import networks
from common.adversarial import discriminator_loss, frozen
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
)
from common.model import LatentModel
from common.priors import GaussianPrior
from common.run import train_and_report

import numpy as np
from keras import ops


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
    warm_up: Fraction = 0.0  # share of the epochs in which the KL's weight rises from 0 to 1
    epochs: Count | None = None  # passes over the training images; None: as many as `updates` need, at most 40
    updates: PositiveCount = 8250  # optimiser steps if epochs is None (15 passes over MNIST)
    batch_size: Annotated[int, AtLeast(2)] = 100  # images per update; their noise draws give the moments of q(z|x)
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
        eps = self.noise((ops.shape(x)[0], self.noise_basis, self.noise_dim))
        z0, a, v = self.encoder([x, eps])  # (batch, latent_dim), twice (batch, noise_basis, latent_dim)
        z = z0 + ops.sum(a * v, axis=1)
        # The v_i do not depend on x: each image of the batch brings a draw of them that counts for all images.
        mean = z0 + ops.sum(a * ops.mean(v, axis=0), axis=1)
        variance = ops.sum(ops.square(a) * ops.var(v, axis=0), axis=1)
        return {"z": z, "mean": mean, "variance": variance}

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
        No gradient goes through these moments (section "Adaptive Contrast").
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
        z_hat, log_ratio = self.contrast(outputs)
        return {"kl_estimated_nats": self.log_odds(self.discriminator, x, z_hat) + log_ratio}


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
    return train_and_report(config, build, "avb", data)


if __name__ == "__main__":
    run_main(main, Config)
