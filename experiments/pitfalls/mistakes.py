"""Models with mistakes, for the experiments of this folder: the scripts' models with one or more errors.

A function builds each model from a script's Config, {mistake: True} and the shape of the images. It has the same
initial weights as the right model. Without mistakes, it also has the right objective.
"""

import math

import aae_deterministic
import aae_gaussian
import avb
import vae_baseline
from common import networks
from common.adversarial import frozen
from common.model import gaussian_kl
from experiments.aae import label_prior

import keras
import numpy as np
from keras import layers, ops


class MistakenVAE(vae_baseline.VAE):
    """The VAE with any of three mistakes.

    pixel_mean: the reconstruction is a mean over the pixels, not a sum.
    code_mean: the KL is a mean over the dimensions of the code, not a sum.
    two_readings: s, the encoder's second output, is log sigma where z is drawn and log sigma^2 in the KL.

    `infer` returns the "log_var" of the z that it draws, so every instrument measures that. `kl_stated_nats` is the KL
    in the loss, summed over dimensions.
    """

    def __init__(self, pixel_mean=False, code_mean=False, two_readings=False, **kwargs):
        super().__init__(**kwargs)
        self.pixel_mean, self.code_mean, self.two_readings = pixel_mean, code_mean, two_readings

    def infer(self, x):
        mean, s = ops.split(self.encoder(x), 2, axis=-1)
        log_var = 2.0 * s if self.two_readings else s
        return {"z": mean + ops.exp(0.5 * log_var) * self.noise(ops.shape(mean)), "mean": mean, "log_var": log_var}

    def objective(self, x, outputs):
        kl = ops.mean(self.divergences(x, outputs)["kl_stated_nats"])
        terms = super().objective(x, outputs) | {"kl": self.beta * self.warm_up_weight * kl}
        if self.pixel_mean:
            terms["reconstruction"] = terms["reconstruction"] / math.prod(x.shape[1:])
        if self.code_mean:
            terms["kl"] = terms["kl"] / self.prior.latent_dim
        return terms

    def divergences(self, x, outputs):
        stated = 0.5 * outputs["log_var"] if self.two_readings else outputs["log_var"]
        kl = gaussian_kl(outputs["mean"], stated, self.prior.scale)
        return super().divergences(x, outputs) | {"kl_stated_nats": kl}


def mistaken_vae(config: vae_baseline.Config, mistakes: dict, image_shape) -> MistakenVAE:
    """The VAE of vae_baseline.py with mistakes, or without any."""
    right = vae_baseline.build(config, image_shape)
    return MistakenVAE(**mistakes, beta=config.beta, prior=right.prior, seed=config.seed, **right.networks)


class MistakenAVB(avb.AVB):
    """AVB with any of five mistakes; `image_moments` needs adaptive contrast, and all others are without it.

    uniform_noise: the encoder's noise is uniform in training and normal in tests.
    pixel_mean: the reconstruction is a mean over the pixels, not a sum.
    reversed_gradient: the encoder maximises the discriminator's loss on codes, in place of the mean of T.
    image_unseen: T sees zeros in place of the image.
    image_moments: contrast uses the moments over the images of a batch, not over the noise of one image.
    """

    def __init__(
        self,
        uniform_noise=False,
        pixel_mean=False,
        reversed_gradient=False,
        image_unseen=False,
        image_moments=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.uniform_noise, self.pixel_mean, self.reversed_gradient = uniform_noise, pixel_mean, reversed_gradient
        self.image_unseen, self.image_moments = image_unseen, image_moments
        self.trains = False

    def noise(self, shape):
        """Uniform on [0, 1), Keras' default, in training if `uniform_noise`; normal otherwise."""
        if self.uniform_noise and self.trains:
            return keras.random.uniform(shape, seed=self.seed_generator)
        return super().noise(shape)

    def call(self, x, training=False):
        self.trains = bool(training)
        try:
            return super().call(x)
        finally:
            self.trains = False

    def infer(self, x):
        inferred = super().infer(x)
        if self.image_moments:  # every image gets the moments of all codes in the batch
            z = inferred["z"]
            moments = {"mean": ops.mean(z, axis=0), "variance": ops.var(z, axis=0)}  # (latent_dim,) each
            inferred |= {name: ops.broadcast_to(moment, ops.shape(z)) for name, moment in moments.items()}
            del inferred["log_variance_bias"]  # which is that of the moments over the noise
        return inferred

    def objective(self, x, outputs):
        terms = super().objective(x, outputs)
        if self.pixel_mean:
            terms["reconstruction"] = terms["reconstruction"] / math.prod(x.shape[1:])
        if self.reversed_gradient:  # AVB has T here; the mistake is minus the discriminator's loss, -log sigma(T)
            t = self.log_odds(frozen(self.discriminator), x, outputs["z"])
            terms["kl"] = -ops.mean(ops.softplus(-t))
        return terms

    def log_odds(self, discriminator, x, z_hat):
        return super().log_odds(discriminator, ops.zeros_like(x) if self.image_unseen else x, z_hat)


def mistaken_avb(config: avb.Config, mistakes: dict, image_shape) -> avb.AVB:
    """The AVB of avb.py with mistakes, or without any."""
    right = avb.build(config, image_shape)
    if not mistakes:
        return right
    shape = {"noise_basis": config.noise_basis, "noise_dim": config.noise_dim}
    rest = {"adaptive_contrast": config.adaptive_contrast, "prior": right.prior, "seed": config.seed} | shape
    return MistakenAVB(**mistakes, **rest, **right.networks)


class BatchNormalised(keras.Model):
    """A network that normalises by the statistics of its own batch, in training and in tests."""

    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training=True, mask=mask)


def normalised_discriminator(latent_dim: int, hidden_units, random: np.random.Generator) -> BatchNormalised:
    """`networks.discriminator` with batch normalisation: (batch, latent_dim) -> (batch, 1)."""
    codes = layers.Input((latent_dim,), name="code")
    hidden = networks.hidden_layers(codes, hidden_units, random, normalised=True)
    logit = layers.Dense(1, kernel_initializer=networks.seeded(random), name="logit")(hidden)
    return BatchNormalised(codes, logit, name="discriminator")


def mistaken_aae(config: aae_gaussian.Config, mistakes: dict, image_shape) -> aae_gaussian.GaussianAAE:
    """The AAE of aae_gaussian.py. With the mistake, its discriminator normalises prior draws and codes separately."""
    right = aae_gaussian.build(config, image_shape)
    if not mistakes:
        return right
    normalised = normalised_discriminator(config.latent_dim, config.hidden_units, np.random.default_rng(config.seed))
    rest = {"adversarial_weight": config.adversarial_weight, "prior": right.prior, "seed": config.seed}
    return aae_gaussian.GaussianAAE(**rest, **right.networks | {"discriminator": normalised})


class LabelsUnseenAAE(label_prior.LabelPriorAAE):
    """The AAE with labels in its prior, whose discriminator sees zeros in place of the label."""

    def joined(self, z, labels):
        seen = super().joined(z, labels)
        return ops.concatenate([z, ops.zeros_like(seen[:, z.shape[-1] :])], axis=-1)


def mistaken_labels(config: aae_deterministic.Config, mistakes: dict, image_shape) -> label_prior.LabelPriorAAE:
    """The AAE of experiments.aae.label_prior. With the mistake, its discriminator sees no label."""
    right = label_prior.build(config, image_shape)
    if not mistakes:
        return right
    rest = {"adversarial_weight": config.adversarial_weight, "prior": right.prior, "seed": config.seed}
    return LabelsUnseenAAE(**rest, **right.networks)
