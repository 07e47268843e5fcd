"""The networks of the five models: fully connected for rows and codes of any size, or convolutional for images.

Builders take the likelihood of the rows, which says what networks see of a row and what a decoder gives. In its place,
a shape, `image_shape`, stands for Bernoulli pixels. Every builder also takes a NumPy generator, from which each layer
draws the seed of its initial weights. It returns a functional `keras.Model` that can be saved, loaded and called on its
own.
"""

import math

from common.likelihoods import Likelihood, as_likelihood

import keras
import numpy as np
from keras import layers, ops

CHANNELS = (16, 32, 64)  # channels of the convolutions, first to last; in reverse order in the decoder
LAST = "channels_last"  # for any keras.json: TensorFlow has no other convolutions on a CPU
CONVOLUTION = {"padding": "same", "activation": "relu", "data_format": LAST}


def seeded(random: np.random.Generator) -> keras.initializers.Initializer:
    """He et al.'s normal initialiser with its own seed. The same generator gives the same seed in every run."""
    return keras.initializers.HeNormal(seed=int(random.integers(2**31)))


def hidden_layers(x, hidden_units, random: np.random.Generator, activation="relu", normalised: bool = False):
    """`x` through one dense layer for each entry of `hidden_units`: (batch, n) -> (batch, hidden_units[-1]).

    If `normalised`, each is normalised over the batch before its activation (Ioffe & Szegedy, arXiv 1502.03167).
    """
    for units in hidden_units:
        if normalised:
            x = layers.Dense(units, use_bias=False, kernel_initializer=seeded(random))(x)
            x = layers.Activation(activation)(layers.BatchNormalization(momentum=0.9)(x))
        else:
            x = layers.Dense(units, activation=activation, kernel_initializer=seeded(random))(x)
    return x


def image_features(images, hidden_units, random: np.random.Generator, kind: str = "dense"):
    """Features of images: (batch, *image_shape) -> (batch, hidden_units[-1]).

    "dense": `hidden_layers` on the pixels. "conv": three convolutions of 5 x 5 pixels and stride 2, with 16, 32 and 64
    channels, and the last of the `hidden_layers` on top. Raises ValueError if images for convolutions are not (height,
    width) or (height, width, 3).
    """
    if kind == "dense":
        return hidden_layers(layers.Flatten(data_format=LAST)(images), hidden_units, random)
    require_plane_images(images.shape[1:])
    x = images if len(images.shape) == 4 else layers.Reshape((*images.shape[1:], 1))(images)
    for channels in CHANNELS:
        x = layers.Conv2D(channels, 5, 2, kernel_initializer=seeded(random), **CONVOLUTION)(x)
    return hidden_layers(layers.Flatten(data_format=LAST)(x), hidden_units[-1:], random)


def require_plane_images(image_shape):
    """Raises ValueError unless images are (height, width) or (height, width, 3)."""
    if not is_plane(image_shape):
        raise ValueError(f"this network needs images of (height, width), not {tuple(image_shape)}")


def is_plane(image_shape) -> bool:
    """Whether images are (height, width) or (height, width, 3), for convolutions."""
    return len(image_shape) == 2 or (len(image_shape) == 3 and image_shape[2] == 3)


def row_input(rows: Likelihood | tuple):
    """The input layer of a network that sees rows, and the features of the rows for its first layer."""
    likelihood = as_likelihood(rows)
    images = layers.Input(likelihood.row_shape, name="images")
    return images, likelihood.features(images)


def encoder(image_shape, outputs: int, hidden_units, random: np.random.Generator, noise_dim: int = 0, kind="dense"):
    """From images to `outputs` numbers each: (batch, *image_shape) -> (batch, outputs).

    With `noise_dim` > 0 the network takes a pair (images, noise). The noise, (batch, noise_dim), is concatenated to the
    pixels, so that the code is a function of both. The AAE paper calls this the "universal approximator posterior"
    (section 2). Raises ValueError for noise together with convolutions.
    """
    if noise_dim and kind != "dense":
        raise ValueError("an encoder with a noise input must be fully connected")
    images, features = row_input(image_shape)
    noise = [layers.Input((noise_dim,), name="noise")] if noise_dim else []
    if noise:
        hidden = hidden_layers(
            layers.Concatenate()([layers.Flatten(data_format=LAST)(features), *noise]), hidden_units, random
        )
    else:
        hidden = image_features(features, hidden_units, random, kind)
    code = layers.Dense(outputs, kernel_initializer=seeded(random), name="code")(hidden)
    return keras.Model([images, *noise] if noise else images, code, name="encoder")


def decoder(latent_dim: int, image_shape, hidden_units, random: np.random.Generator, kind: str = "dense"):
    """From codes to the parameters of p(x|z): (batch, latent_dim) -> (batch, *shape) or, for two, (batch, *shape, 2).

    For Bernoulli pixels the parameters are logits. "conv": the first hidden layer, and a second one that fills an
    eighth of the image's height and width. Three transposed convolutions of 5 x 5 pixels and stride 2 follow. Pixels
    beyond the image's size are cut off.
    """
    likelihood = as_likelihood(image_shape)
    code = layers.Input((latent_dim,), name="code")
    heads = likelihood.heads - likelihood.learned
    if kind == "conv":
        x = transposed_convolutions(code, likelihood, hidden_units, random)
    else:
        hidden = hidden_layers(code, hidden_units, random)
        x = layers.Dense(heads * math.prod(likelihood.shape), **last_layer(likelihood, random))(hidden)
    if likelihood.heads == 1:
        return keras.Model(code, layers.Reshape(likelihood.shape)(x), name="decoder")
    x = layers.Reshape((*likelihood.shape, heads))(x)
    if likelihood.learned:
        x = layers.Concatenate()([x, learned_parameter(likelihood, code)])
    return keras.Model(code, x, name="decoder")


def transposed_convolutions(code, likelihood: Likelihood, hidden_units, random: np.random.Generator):
    """The layers of a convolutional `decoder`: (batch, latent_dim) -> (batch, height, width, channels * heads)."""
    require_plane_images(likelihood.shape)
    small = [-(-side // 2 ** len(CHANNELS)) for side in likelihood.shape[:2]]
    hidden = hidden_layers(code, (*hidden_units[:1], CHANNELS[-1] * small[0] * small[1]), random)
    x = layers.Reshape((*small, CHANNELS[-1]))(hidden)
    for channels in CHANNELS[-2::-1]:
        x = layers.Conv2DTranspose(channels, 5, 2, kernel_initializer=seeded(random), **CONVOLUTION)(x)
    linear = CONVOLUTION | {"activation": None} | last_layer(likelihood, random, axes=(0, 1))
    channels = math.prod(likelihood.shape[2:]) * (likelihood.heads - likelihood.learned)
    x = layers.Conv2DTranspose(channels, 5, 2, **linear)(x)
    excess = [(0, side - length) for side, length in zip(x.shape[1:3], likelihood.shape, strict=False)]
    return layers.Cropping2D(excess, data_format=LAST)(x)


def last_layer(likelihood: Likelihood, random: np.random.Generator, axes: tuple[int, ...] = ()) -> dict:
    """Arguments of a decoder's last layer.

    If the likelihood has a `start`, its mean over `axes` is the bias at first, and the kernel is near zero.
    """
    name = "logits" if likelihood.name == "bernoulli" else "parameters"
    if likelihood.start is None:
        return {"kernel_initializer": seeded(random), "name": name}
    start = likelihood.start[..., : likelihood.heads - likelihood.learned] if likelihood.heads > 1 else likelihood.start
    bias = keras.initializers.Constant(start.mean(axis=axes).ravel() if axes else start.ravel())
    near_zero = keras.initializers.RandomNormal(stddev=1e-3, seed=int(random.integers(2**31)))
    return {"kernel_initializer": near_zero, "bias_initializer": bias, "name": name}


def learned_parameter(likelihood: Likelihood, code):
    """The last parameter of a likelihood that learns it as a constant: (batch, *shape, 1), the same for all codes.

    It is the bias of a dense layer that sees only zeros.
    """
    start = likelihood.start
    if start is not None:
        start = np.broadcast_to(start[..., -1], likelihood.shape)[tuple(map(slice, likelihood.learned_shape))]
    layer = layers.Dense(
        math.prod(likelihood.learned_shape),
        kernel_initializer="zeros",
        bias_initializer="zeros" if start is None else keras.initializers.Constant(start.ravel()),
        name=likelihood.learned_name,
    )
    constant = layers.Reshape((*likelihood.learned_shape, 1))(layer(ops.zeros_like(code)))
    repeats = zip(likelihood.shape, likelihood.learned_shape, strict=True)
    return ops.tile(constant, (1, *(length // own for length, own in repeats), 1))


def discriminator(latent_dim: int, hidden_units, random: np.random.Generator):
    """From codes to the logit of "drawn from the prior" (AAE paper, section 2): (batch, latent_dim) -> (batch, 1)."""
    code = layers.Input((latent_dim,), name="code")
    hidden = hidden_layers(code, hidden_units, random)
    logit = layers.Dense(1, kernel_initializer=seeded(random), name="logit")(hidden)
    return keras.Model(code, logit, name="discriminator")


def pair_discriminator(image_shape, latent_dim: int, hidden_units, random: np.random.Generator, kind: str = "dense"):
    """The network inside T(x, z) of the AVB paper: (batch, *image_shape), (batch, latent_dim) -> (batch, 1).

    Image and code have separate first layers, since a few code dimensions would be lost among many pixels. The last
    layer starts at zero, so T starts as the part that the model adds analytically.
    """
    images, features = row_input(image_shape)
    code = layers.Input((latent_dim,), name="code")
    both = [image_features(features, hidden_units[:1], random, kind), hidden_layers(code, hidden_units[:1], random)]
    hidden = hidden_layers(layers.Concatenate()(both), hidden_units[1:], random)
    logit = layers.Dense(1, kernel_initializer="zeros", name="logit")(hidden)
    return keras.Model([images, code], logit, name="discriminator")


def noise_basis_encoder(
    image_shape, latent_dim: int, hidden_units, noise_basis: int, noise_dim: int, noise_units, random, kind="dense"
):
    """The encoder with known moments (AVB paper, "Adaptive Contrast"): z = z0(x) + sum_i a_i(x) v_i(eps_i).

    It takes images (batch, *image_shape) and noise eps (batch, noise_basis, noise_dim). It returns z0, (batch,
    latent_dim), and a and v, both (batch, noise_basis, latent_dim). Each v_i is a separate network. The factor
    a = elu(. - 5) + 1 is positive and starts near exp(-5), and z0 starts near 0.
    """
    images, features = row_input(image_shape)
    hidden = image_features(features, hidden_units, random, kind)
    near_zero = keras.initializers.RandomNormal(stddev=1e-3, seed=int(random.integers(2**31)))
    z0 = layers.Dense(latent_dim, kernel_initializer=near_zero, name="location")(hidden)
    scales = layers.Dense(noise_basis * latent_dim, kernel_initializer=seeded(random), name="scales")(hidden)
    a = ops.elu(layers.Reshape((noise_basis, latent_dim))(scales) - 5.0) + 1.0

    noise = layers.Input((noise_basis, noise_dim), name="noise")
    v = noise
    for units, activation in [*((units, "elu") for units in noise_units), (latent_dim, None)]:
        v = layers.EinsumDense(
            "bin,inm->bim",
            output_shape=(noise_basis, units),
            bias_axes="im",
            activation=activation,
            # Keras' own scaling initialisers would count the noise basis as part of the fan-in.
            kernel_initializer=keras.initializers.RandomNormal(
                stddev=v.shape[-1] ** -0.5, seed=int(random.integers(2**31))
            ),
        )(v)
    return keras.Model([images, noise], [z0, a, v], name="encoder")
