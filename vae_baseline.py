"""Variational autoencoder on the networks of the AAEs: the yardstick for the other four models.

Kingma & Welling, "Auto-Encoding Variational Bayes", arXiv 1312.6114; q(z|x) = N(mu(x), sigma(x)^2).

Encoder and decoder minimise, in nats per image,

    E_x E_q(z|x) [ -log p(x|z) ] + beta E_x KL(q(z|x) || p(z))

with the reconstruction summed over the pixels and the KL summed over the dimensions of the code, so that
beta = 1 is the negative evidence lower bound (beta from Higgins et al., ICLR 2017).

Run: python vae_baseline.py (--help lists every flag). What to expect: README.md, "What each script gives".
"""

from dataclasses import dataclass

from common import networks
from common.command import run_main
from common.config import Count, Factor, Fraction, Networks, Positive, PositiveCount, RunConfig, Scale, Targets
from common.model import LatentModel, binary_cross_entropy, gaussian_kl
from common.priors import GaussianPrior
from common.run import train_and_report

import numpy as np
from keras import ops


@dataclass(frozen=True)
class Config(RunConfig):
    """The networks and data of the AAE scripts; the rest was chosen on validation images."""

    binarisation: Targets = "none"  # none, dynamic (pixels drawn anew each epoch), threshold (at 0.5)
    latent_dim: PositiveCount = 2  # dimensions of z
    hidden_units: tuple[PositiveCount, ...] = (1000, 1000)  # ReLU units a layer, both networks
    networks: Networks = "dense"  # dense, or conv: three convolutions and one of those layers
    prior_scale: Scale = 1.0  # standard deviation of the Gaussian prior
    beta: Factor = 1.0  # on the KL, both terms being sums; 1 is the evidence lower bound
    warm_up: Fraction = 0.0  # share of the epochs in which the KL's weight rises from 0 to beta
    epochs: Count | None = None  # passes over the training images; None: as `updates` take, at most 40
    updates: PositiveCount = 8250  # steps of the optimiser if epochs is None: 15 passes over MNIST
    batch_size: PositiveCount = 100  # images an update
    learning_rate: Positive = 1e-3  # of Adam, at the start
    final_rate_factor: Factor = 0.05  # times learning_rate: where a cosine takes it by the last update
    beta_1: Fraction = 0.9  # Adam's decay of the mean gradient
    encoder_rate_factor: Factor = 1.0  # times learning_rate
    decoder_rate_factor: Factor = 1.0  # times learning_rate


class VAE(LatentModel):
    """z = mu(x) + sigma(x) epsilon, held to p(z) image by image by the KL."""

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
            "reconstruction": binary_cross_entropy(x, outputs["logits"]),
            "kl": self.beta * self.warm_up_weight * ops.mean(self.divergences(x, outputs)["kl_nats"]),
        }

    def divergences(self, x, outputs):
        return {"kl_nats": gaussian_kl(outputs["mean"], outputs["log_var"], self.prior.scale)}


def build(config: Config, image_shape) -> VAE:
    """The untrained model for images of this shape; same config, same weights."""
    random = np.random.default_rng(config.seed)
    return VAE(
        beta=config.beta,
        prior=GaussianPrior(config.latent_dim, config.prior_scale),
        seed=config.seed,
        encoder=networks.encoder(image_shape, 2 * config.latent_dim, config.hidden_units, random, kind=config.networks),
        decoder=networks.decoder(config.latent_dim, image_shape, config.hidden_units, random, config.networks),
    )


def main(config: Config = Config(), data=None) -> dict:
    """Train, evaluate and plot as `config` says; returns what metrics.json holds. `data`: (x, y) instead of a file."""
    return train_and_report(config, build, "vae_baseline", data)


if __name__ == "__main__":
    run_main(main, Config)
