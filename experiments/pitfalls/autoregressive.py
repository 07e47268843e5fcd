"""A decoder that does not need a code: autoregressive over the pixels, in a VAE and in a Gaussian AAE."""

from collections.abc import Callable

import aae_gaussian
import vae_baseline
from common import networks
from common.backend import compiled
from common.binarisation import random_stream
from common.evaluation import likelihood
from common.likelihoods import bernoulli_log_likelihood
from common.model import LatentModel, gaussian_kl, to_numpy
from common.networks import seeded

import keras
import numpy as np
from keras import layers, ops
from scipy.special import expit


class MaskedDense(layers.Dense):
    """A dense layer with a `mask` of zeros and ones, (inputs, units), which lets outputs see only some inputs."""

    def __init__(self, mask: np.ndarray, **kwargs):
        super().__init__(mask.shape[1], **kwargs)
        self.mask = mask.astype("float32")

    def call(self, inputs):
        return ops.matmul(inputs, self.kernel * self.mask) + self.bias


def autoregressive_decoder(latent_dim: int, image_shape, recurrent_units: int, row_units: int, random):
    """Logits of p(x_i | x_<i, z), pixels in reading order: (batch, h, w), (batch, latent_dim) -> (batch, h, w).

    A recurrent layer reads the rows above. Its state at the first row is a function of the code, as in the sentence
    decoder of Bowman et al. (arXiv 1511.06349). Within a row, masked layers see the pixels to the left (MADE; Germain
    et al., arXiv 1502.03509). All information from the code passes through the recurrent state. Raises ValueError if
    images are not (height, width).
    """
    networks.require_plane_images(image_shape)
    images, z = layers.Input(image_shape, name="images"), layers.Input((latent_dim,), name="code")
    above = layers.ZeroPadding1D((1, 0))(images[:, :-1])  # (batch, h, w): row i is the image's row i - 1
    state = layers.Dense(recurrent_units, activation="tanh", kernel_initializer=seeded(random))(z)
    orthogonal = keras.initializers.Orthogonal(seed=int(random.integers(2**31)))
    recurrent = layers.GRU(
        recurrent_units, return_sequences=True, kernel_initializer=seeded(random), recurrent_initializer=orthogonal
    )
    context = layers.Concatenate()([recurrent(above, initial_state=state), above])
    columns = np.arange(image_shape[1])
    # A hidden unit of degree m sees columns below m; column c sees units of a degree of at most c.
    degrees = np.arange(row_units) * len(columns) // row_units
    row = images
    for sees in (degrees > columns[:, None], degrees >= degrees[:, None]):
        masked = MaskedDense(sees, kernel_initializer=seeded(random))(row)
        row = layers.Activation("relu")(masked + layers.Dense(row_units, kernel_initializer=seeded(random))(context))
    logits = MaskedDense(columns >= degrees[:, None], kernel_initializer=seeded(random), name="logits")(row)
    return keras.Model([images, z], logits, name="decoder")


class Autoregressive:
    """A mix-in for a script's model whose decoder sees both the image and the code."""

    def call(self, x, training=False):
        inferred = self.infer(x)
        return inferred | {"parameters": self.decoder([x, inferred["z"]])}

    def decode(self, codes) -> np.ndarray:
        """One image x ~ p(x|z) for each code, pixel by pixel: (n, latent_dim) -> (n, h, w).

        Other models return pixel means, but the pixel means of this p(x|z) are unknown.
        """
        logits_of = compiled(lambda images, z: self.decoder([images, z]))
        z = ops.convert_to_tensor(codes, "float32")
        images = np.zeros((len(codes), *self.decoder.output.shape[1:]), "float32")
        noise = to_numpy(keras.random.uniform(images.shape, seed=self.seed_generator))
        for row, column in np.ndindex(images.shape[1:]):
            logits = to_numpy(logits_of(ops.convert_to_tensor(images), z))[:, row, column]
            images[:, row, column] = noise[:, row, column] < expit(logits)
        return images


class AutoregressiveVAE(Autoregressive, vae_baseline.VAE):
    """The VAE with an autoregressive decoder and free bits (Kingma et al., arXiv 1606.04934).

    In each dimension, the first `free_bits` nats of the mean KL over a batch have no cost.
    """

    def __init__(self, free_bits: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.free_bits = free_bits

    def objective(self, x, outputs):
        mean, log_var = (ops.expand_dims(outputs[name], -1) for name in ("mean", "log_var"))
        each = ops.mean(gaussian_kl(mean, log_var, self.prior.scale), axis=0)  # (latent_dim,)
        kl = self.beta * self.warm_up_weight * ops.sum(ops.maximum(each, self.free_bits))
        return super().objective(x, outputs) | {"kl": kl}


class AutoregressiveAAE(Autoregressive, aae_gaussian.GaussianAAE):
    """The Gaussian AAE with an autoregressive decoder."""


def build_vae(units: tuple[int, int], own: vae_baseline.Config, image_shape, free_bits=0.0) -> AutoregressiveVAE:
    """The untrained VAE of the Config `own`, with the autoregressive decoder.

    units: of the decoder's recurrent layer, and of each of its two layers within a row.
    """
    shared = exchanged(vae_baseline.build(own, image_shape), units, own, image_shape)
    return AutoregressiveVAE(free_bits=free_bits, beta=own.beta, **shared)


def build_aae(units: tuple[int, int], own: aae_gaussian.Config, image_shape) -> AutoregressiveAAE:
    """The untrained Gaussian AAE of the Config `own`, with the autoregressive decoder."""
    shared = exchanged(aae_gaussian.build(own, image_shape), units, own, image_shape)
    return AutoregressiveAAE(adversarial_weight=own.adversarial_weight, **shared)


def exchanged(model: LatentModel, units: tuple[int, int], own, image_shape) -> dict:
    """Prior, seed and networks of a script's model, with the autoregressive decoder in place of its own."""
    random = random_stream(own.seed, "recurrent decoder")
    decoder = autoregressive_decoder(own.latent_dim, image_shape, *units, random)
    return {"prior": model.prior, "seed": own.seed} | model.networks | {"decoder": decoder}


def log_likelihood_of(model: LatentModel) -> Callable:
    """A function for log p(x|z), from images and codes to (n,) nats, for `common.evaluation.likelihood`."""
    if isinstance(model, Autoregressive):
        return lambda images, codes: bernoulli_log_likelihood(images, model.decoder([images, codes]))
    return likelihood.of_decoder(model.decoder)
