"""The base of the five models: networks, a forward pass, and an objective whose terms add up to the loss."""

from typing import Literal

import keras
import numpy as np
from keras import ops


def bernoulli_log_likelihood(images, logits):
    """log p(x|z) of Bernoulli pixels in nats, summed over the pixels: two (batch, *image_shape) -> (batch,).

    For pixels strictly between 0 and 1 it is minus a cross-entropy with a floor above 0, and no likelihood.
    """
    return ops.sum(images * logits - ops.softplus(logits), axis=tuple(range(1, len(images.shape))))


def binary_cross_entropy(images, logits):
    """-log p(x|z) of Bernoulli pixels in nats: summed over the pixels, averaged over the images; a scalar."""
    return -ops.mean(bernoulli_log_likelihood(images, logits))


def gaussian_kl(mean, log_var, prior_scale=1.0):
    """KL(N(mean, exp(log_var)) || N(0, prior_scale^2)) in nats for each image, summed over dimensions.

    `mean` and `log_var` are (batch, latent_dim); (batch,) comes back. Kingma & Welling, arXiv 1312.6114, appendix B,
    for any scale of the prior.
    """
    log_var_ratio = log_var - 2.0 * np.log(prior_scale)
    kl = 0.5 * ((mean / prior_scale) ** 2 + ops.exp(log_var_ratio) - 1.0 - log_var_ratio)
    return ops.sum(kl, axis=-1)


class LatentModel(keras.Model):
    """An encoder, a decoder and, where two players meet, a discriminator, trained by `model.fit(images)`.

    A subclass has a `title` for figures, names its `terms`, says what its `posterior` q(z|x) is ("gaussian", with
    "mean" and "log_var" among what it infers, "point", or "implicit": no known density), and defines two methods:
    `infer(x)` -> dict with at least "z", a draw from q(z|x), (batch, latent_dim);
    `objective(x, outputs)` -> dict of scalars in nats per image, one for each of `terms`, whose sum is the
    loss; `outputs` is that dict with "logits" of p(x|z), (batch, *image_shape). Every player's gradient is
    selected inside its term (`common.adversarial`), so that one backward pass gives each network its own
    gradient and one step moves them all.
    """

    title: str
    posterior: Literal["gaussian", "point", "implicit"]
    terms: tuple[str, ...]
    faster_with_xla = True

    def __init__(self, prior, seed: int, **networks: keras.Model):
        super().__init__()
        self.prior = prior
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.network_names = tuple(networks)
        for name, network in networks.items():
            setattr(self, name, network)
        self.warm_up_weight = keras.Variable(1.0, trainable=False, dtype="float32", name="warm_up_weight")
        self.term_means = [keras.metrics.Mean(name=term) for term in self.terms]

    @property
    def networks(self) -> dict[str, keras.Model]:
        """The networks by name, in the order in which they were given."""
        return {name: getattr(self, name) for name in self.network_names}

    def noise(self, shape):
        """Standard normal noise from the model's own seed."""
        return keras.random.normal(shape, seed=self.seed_generator)

    def prior_like(self, z):
        """As many draws from the prior as `z` has rows: (batch, latent_dim)."""
        return self.prior.sample(ops.shape(z)[0], self.seed_generator)

    def call(self, x, training=False):
        inferred = self.infer(x)
        return inferred | {"logits": self.decoder(inferred["z"])}

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        terms = self.objective(x, y_pred)
        for mean in self.term_means:
            mean.update_state(terms[mean.name], sample_weight=ops.shape(y_pred["z"])[0])
        return sum(terms[term] for term in self.terms)

    def divergences(self, x, outputs) -> dict:
        """KL(q(z|x) || p(z)) in nats for each image, (batch,), under the key that metrics.json gives it:
        `kl_nats` where it has a closed form, `kl_estimated_nats` where a discriminator estimates it.
        Empty where there is neither.
        """
        return {}

    def inferred(self, images) -> dict[str, np.ndarray]:
        """`infer` on any number of images, as NumPy arrays: {"z": (n, latent_dim), ...}."""
        batches = [self.infer(batch) for batch in in_batches(images)]
        return {key: np.concatenate([to_numpy(batch[key]) for batch in batches]) for key in batches[0]}

    def encode(self, images) -> np.ndarray:
        """One draw z ~ q(z|x) for each image: (n, *image_shape) -> (n, latent_dim)."""
        return self.inferred(images)["z"]

    def decode(self, codes) -> np.ndarray:
        """Pixel means of p(x|z), in [0, 1]: (n, latent_dim) -> (n, *image_shape)."""
        batches = in_batches(codes)
        return np.concatenate([to_numpy(ops.sigmoid(self.decoder(batch))) for batch in batches])

    def prior_codes(self, count: int) -> np.ndarray:
        """`count` draws z ~ p(z), from the model's own seed: (count, latent_dim)."""
        return to_numpy(self.prior.sample(count, self.seed_generator))

    def sample(self, count: int) -> np.ndarray:
        """Pixel means of p(x|z) for `count` draws z ~ p(z): (count, *image_shape), in [0, 1]."""
        return self.decode(self.prior_codes(count))


def to_numpy(tensor) -> np.ndarray:
    """A tensor of any backend as an array, without its gradient's history."""
    return ops.convert_to_numpy(ops.stop_gradient(tensor))


def even_batch_size(count: int, most: int = 500) -> int:
    """The batch size, at most `most`, that leaves no small rest: 251 for 501 rows."""
    return -(-count // -(-count // most))


def in_batches(array):
    """Consecutive slices of about the same number of rows, at most 500, as float32 tensors."""
    size = even_batch_size(len(array))
    for start in range(0, len(array), size):
        yield ops.convert_to_tensor(array[start : start + size], "float32")
