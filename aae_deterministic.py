"""Adversarial autoencoder with a deterministic encoder: q(z|x) is one point, z = encoder(x).

Makhzani et al., "Adversarial Autoencoders", arXiv 1511.05644, section 2.

Every network minimises its own terms, in nats per image, all in one step:

    encoder, decoder    E_x [ -log p(x|z) ]                      reconstruction, summed over the pixels
    encoder             adversarial_weight E_x [ -log D(z) ]     generator
    discriminator       E_p(z) [ -log D(z) ] + E_x [ -log(1 - D(z)) ]

Run: python aae_deterministic.py (--help lists every flag). README.md says what to expect.
The main departure from the paper: one step of Adam updates all three networks. The paper makes a reconstruction step, a
discriminator step and a generator step in turn. experiments/aae/README.md lists all departures.
"""

from dataclasses import dataclass

from common import networks
from common.adversarial import discriminator_loss, frozen, generator_loss
from common.command import run_main
from common.config import Count, Factor, Fraction, Positive, PositiveCount, PriorName, RunConfig, Scale, Targets
from common.model import LatentModel
from common.priors import PRIORS
from common.run import train_and_report

import numpy as np
from keras import ops


@dataclass(frozen=True)
class Config(RunConfig):
    """The paper's values where it gives them. All others were chosen on validation images."""

    binarisation: Targets = "none"  # none (the paper), dynamic (pixels drawn again in each epoch), threshold (at 0.5)
    latent_dim: PositiveCount = 2  # dimensions of z (2 in the paper's Fig. 2, 8 in its section 3)
    hidden_units: tuple[PositiveCount, ...] = (1000, 1000)  # ReLU units per layer, all networks (appendix A.1)
    prior: PriorName = "gaussian"  # p(z), one of common/priors.py (Fig. 2: gaussian, mixture; Fig. 4: swiss_roll)
    prior_scale: Scale = 1.0  # factor on the prior's samples; 5 in the paper's likelihood experiment
    adversarial_weight: Factor = 40.0  # factor on the generator's loss; the reconstruction is a sum over all pixels
    epochs: Count | None = None  # passes over the training images; None: as many as `updates` need, at most 40
    updates: PositiveCount = 8250  # optimiser steps if epochs is None (15 passes over MNIST)
    batch_size: PositiveCount = 100  # images per update (appendix A.1)
    learning_rate: Positive = 1e-3  # Adam's rate at the start
    final_rate_factor: Factor = 0.05  # the rate falls along a cosine to this factor times learning_rate
    beta_1: Fraction = 0.5  # Adam's decay of the mean gradient
    encoder_rate_factor: Factor = 1.0  # factor on learning_rate for the encoder
    decoder_rate_factor: Factor = 1.0  # factor on learning_rate for the decoder
    discriminator_rate_factor: Factor = 3.0  # factor on learning_rate for the discriminator


class DeterministicAAE(LatentModel):
    """z = encoder(x), matched to p(z) by a discriminator on z."""

    title = "Deterministic AAE"
    posterior = "point"
    terms = ("reconstruction", "generator", "discriminator")

    def __init__(self, adversarial_weight: float, **kwargs):
        super().__init__(**kwargs)
        self.adversarial_weight = adversarial_weight

    def infer(self, x):
        z = self.encoder(x)  # (batch, latent_dim)
        return {"z": z}

    def objective(self, x, outputs):
        z = outputs["z"]
        return {
            "reconstruction": -ops.mean(self.likelihood.log_prob(x, outputs["parameters"])),
            "generator": self.adversarial_weight * generator_loss(frozen(self.discriminator)(z)),
            "discriminator": discriminator_loss(
                self.discriminator(self.prior_like(z)), self.discriminator(ops.stop_gradient(z))
            ),
        }


def build(config: Config, likelihood) -> DeterministicAAE:
    """The untrained model for rows of this likelihood (a shape: Bernoulli pixels); same config, same weights."""
    random = np.random.default_rng(config.seed)
    return DeterministicAAE(
        adversarial_weight=config.adversarial_weight,
        prior=PRIORS[config.prior](config.latent_dim, config.prior_scale),
        seed=config.seed,
        likelihood=likelihood,
        encoder=networks.encoder(likelihood, config.latent_dim, config.hidden_units, random),
        decoder=networks.decoder(config.latent_dim, likelihood, config.hidden_units, random),
        discriminator=networks.discriminator(config.latent_dim, config.hidden_units, random),
    )


def main(config: Config = Config(), data=None) -> dict:
    """Train, evaluate and plot by `config`; returns the content of metrics.json. `data`: (x, y) instead of a file."""
    return train_and_report(config, build, "aae_deterministic", data)


if __name__ == "__main__":
    run_main(main, Config)
