"""Variational autoencoder on the networks of the AAEs: the baseline for the other four models.

Kingma & Welling, "Auto-Encoding Variational Bayes", arXiv 1312.6114; q(z|x) = N(mu(x), sigma(x)^2).

Encoder and decoder minimise, in nats per image,

    E_x E_q(z|x) [ -log p(x|z) ] + beta E_x KL(q(z|x) || p(z))

The reconstruction is summed over the pixels, and the KL over the dimensions of the code. So beta = 1 gives the negative
evidence lower bound. The weight beta is that of the beta-VAE (Higgins et al., ICLR 2017).

Run: python vae_baseline.py (--help lists every flag). README.md says what to expect.
"""

from dataclasses import dataclass

from common import networks
from common.command import run_main
from common.config import Count, Factor, Fraction, Networks, Positive, PositiveCount, RunConfig, Scale, Targets
from common.model import LatentModel, gaussian_kl
from common.priors import GaussianPrior
from common.run import train_and_report

import numpy as np
from keras import ops


@dataclass(frozen=True)
class Config(RunConfig):
    """Networks and data are as in the AAE scripts. All other values were chosen on validation images."""

    binarisation: Targets = "none"  # none, dynamic (pixels drawn again in each epoch), threshold (at 0.5)
    latent_dim: PositiveCount = 2  # dimensions of z
    hidden_units: tuple[PositiveCount, ...] = (1000, 1000)  # ReLU units per layer, both networks
    networks: Networks = "dense"  # dense, or conv: three convolutions and one dense layer
    prior_scale: Scale = 1.0  # standard deviation of the Gaussian prior
    beta: Factor = 1.0  # weight of the KL, where both terms are sums; 1 gives the evidence lower bound
    warm_up: Fraction = 0.0  # share s of the epochs in which the KL's weight rises to beta, from beta / (s x epochs)
    epochs: Count | None = None  # passes over the training images; None: as many as `updates` need, at most 40
    updates: PositiveCount = 8250  # optimiser steps if epochs is None (15 passes over MNIST)
    batch_size: PositiveCount = 100  # images per update
    learning_rate: Positive = 1e-3  # Adam's rate at the start
    final_rate_factor: Factor = 0.05  # the rate falls along a cosine to this factor times learning_rate
    beta_1: Fraction = 0.9  # Adam's decay of the mean gradient
    encoder_rate_factor: Factor = 1.0  # factor on learning_rate for the encoder
    decoder_rate_factor: Factor = 1.0  # factor on learning_rate for the decoder


class VAE(LatentModel):
    """z = mu(x) + sigma(x) epsilon (reparameterisation); the KL holds q(z|x) to p(z) for each image."""

    title = "VAE"
    posterior = "gaussian"
    terms = ("reconstruction", "kl")

    def __init__(self, beta: float, **kwargs):
        super().__init__(**kwargs)
        self.beta = beta

    def infer(self, x):
        mean, log_var = ops.split(self.encoder(x), 2, axis=-1)  # (batch, latent_dim) each
        z = mean + ops.exp(0.5 * log_var) * self.noise(ops.shape(mean))
        return {"z": z, "mean": mean, "log_var": log_var}

    def objective(self, x, outputs):
        return {
            "reconstruction": -ops.mean(self.likelihood.log_prob(x, outputs["parameters"])),
            "kl": self.beta * self.warm_up_weight * ops.mean(self.divergences(x, outputs)["kl_nats"]),
        }

    def divergences(self, x, outputs):
        return {"kl_nats": gaussian_kl(outputs["mean"], outputs["log_var"], self.prior.scale)}


def build(config: Config, likelihood) -> VAE:
    """The untrained model for rows of this likelihood (a shape: Bernoulli pixels); same config, same weights."""
    random = np.random.default_rng(config.seed)
    return VAE(
        beta=config.beta,
        prior=GaussianPrior(config.latent_dim, config.prior_scale),
        seed=config.seed,
        likelihood=likelihood,
        encoder=networks.encoder(likelihood, 2 * config.latent_dim, config.hidden_units, random, kind=config.networks),
        decoder=networks.decoder(config.latent_dim, likelihood, config.hidden_units, random, config.networks),
    )


def main(config: Config = Config(), data=None) -> dict:
    """Train, evaluate and plot by `config`; returns the content of metrics.json. `data`: (x, y) instead of a file."""
    return train_and_report(config, build, "vae_baseline", data)


if __name__ == "__main__":
    run_main(main, Config)
