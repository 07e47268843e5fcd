"""The base of the five models: networks, a forward pass, and an objective whose terms add up to the loss."""

import gc
import math
from collections.abc import Collection, Iterable, Iterator
from typing import Literal

from common.arrays import DataError
from common.likelihoods import as_likelihood
from common.pixels import as_array
from common.transforms import PixelTransform

import keras
import numpy as np
from keras import ops

BATCH_ROWS = 500  # images or codes in a batch
BATCH_NUMBERS = 2**24  # pixels in a batch, 64 MiB of float32: 500 images up to 183 x 183, 21 of 512 x 512 x 3
COLLECTED_NUMBERS = 2**22  # pixels of a batch, 16 MiB, above which memory is collected at once
CODES_IN_MEMORY = 16  # numbers per image and dimension of the code: AVB's encoder has 16 noise vectors


def gaussian_kl(mean, log_var, prior_scale=1.0):
    """KL(N(mean, exp(log_var)) || N(0, prior_scale^2)) in nats for each image, summed over dimensions.

    `mean` and `log_var` are (batch, latent_dim), the result is (batch,). Kingma & Welling, arXiv 1312.6114, appendix B,
    for any scale of the prior.
    """
    log_var_ratio = log_var - 2.0 * np.log(prior_scale)
    kl = 0.5 * ((mean / prior_scale) ** 2 + ops.exp(log_var_ratio) - 1.0 - log_var_ratio)
    return ops.sum(kl, axis=-1)


class LatentModel(keras.Model):
    """An encoder, a decoder and, for an adversarial model, a discriminator, trained by `model.fit(images)`.

    A subclass has three attributes and two methods.

    - `title`: for figures.
    - `terms`: the names of its loss terms.
    - `posterior`: "gaussian" (`infer` then gives "mean" and "log_var" too), "point", or "implicit" (no known density).
    - `infer(x)`: a dict with at least "z", a draw from q(z|x), (batch, latent_dim).
    - `objective(x, outputs)`: a dict of scalars in nats per image, one for each of `terms`; the loss is their sum.
      `outputs` is the dict of `infer`, with the "parameters" of p(x|z), the decoder's output, added to it.

    Every player's gradient is selected inside its term (`common.adversarial`). So one backward pass gives each network
    its own gradient, and one step updates all networks.
    """

    title: str
    posterior: Literal["gaussian", "point", "implicit"]
    terms: tuple[str, ...]
    faster_with_xla = True

    def __init__(self, prior, seed: int, likelihood=None, **networks: keras.Model):
        super().__init__()
        self.prior = prior
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.network_names = tuple(networks)
        for name, network in networks.items():
            setattr(self, name, network)
        self.likelihood = as_likelihood(likelihood or self.image_shape)
        self.transform = PixelTransform(self.likelihood.shape)  # between the user's rows and the model's
        self.warm_up_weight = keras.Variable(1.0, trainable=False, dtype="float32", name="warm_up_weight")
        self.term_means = [keras.metrics.Mean(name=term) for term in self.terms]

    @property
    def networks(self) -> dict[str, keras.Model]:
        """The networks by name, in the order of the constructor's arguments."""
        return {name: getattr(self, name) for name in self.network_names}

    def noise(self, shape):
        """Standard normal noise from the model's own seed."""
        return keras.random.normal(shape, seed=self.seed_generator)

    def prior_like(self, z):
        """One draw from the prior for each row of `z`: (batch, latent_dim)."""
        return self.prior.sample(ops.shape(z)[0], self.seed_generator)

    def call(self, x, training=False):
        inferred = self.infer(x)
        return inferred | {"parameters": self.decoder(inferred["z"])}

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        terms = self.objective(x, y_pred)
        for mean in self.term_means:
            mean.update_state(terms[mean.name], sample_weight=ops.shape(y_pred["z"])[0])
        return sum(terms[term] for term in self.terms)

    def divergences(self, x, outputs) -> dict:
        """KL(q(z|x) || p(z)) in nats for each image, (batch,), under its key in metrics.json.

        The key is `kl_nats` for a closed form, `kl_estimated_nats` for a discriminator's estimate. The dict is empty if
        there is neither.
        """
        return {}

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of a row as the model takes it: (height, width), (height, width, 3) or (d,)."""
        return tuple(self.encoder.inputs[0].shape[1:])

    def batches(self, count: int) -> Iterator[slice]:
        """The rows of each batch of `count` images or codes; batches are so small that networks need little memory."""
        numbers = self.likelihood.heads * math.prod(self.image_shape)
        return batch_slices(count, max(numbers, CODES_IN_MEMORY * self.prior.latent_dim))

    def inferred(self, x, keys: Collection[str] = ()) -> dict[str, np.ndarray]:
        """`infer` on any number of rows, as NumPy arrays: {"z": (n, latent_dim), ...}. `keys` selects some of them.

        See `encode` for the rows.
        """
        return self.inferred_rows(self.transform.rows(x), keys)

    def inferred_rows(self, rows, keys: Collection[str] = ()) -> dict[str, np.ndarray]:
        """`inferred` for rows as the model takes them, (n, *image_shape), such as those of a `Dataset`.

        They may be read in parts.
        """
        if len(rows):
            return self.infer_batches((rows[some] for some in self.batches(len(rows))), keys)
        before = to_numpy(self.seed_generator.state)
        one = self.infer_batches([np.zeros((1, *self.image_shape), "float32")], keys)
        self.seed_generator.state.assign(before)  # an empty list uses no random numbers
        return {key: array[:0] for key, array in one.items()}

    def infer_batches(self, batches: Iterable[np.ndarray], keys: Collection[str] = ()) -> dict[str, np.ndarray]:
        """`inferred_rows` for batches of rows, which need not be in memory together."""
        parts: dict[str, list] = {}
        for batch in batches:
            for key, value in self.infer(ops.convert_to_tensor(batch, "float32")).items():
                if not keys or key in keys:
                    parts.setdefault(key, []).append(to_numpy(value))
        return {key: np.concatenate(arrays) for key, arrays in parts.items()}

    def draw_codes(self, rows) -> np.ndarray:
        """One draw z ~ q(z|x) for each row, as the model takes it: (n, *image_shape) -> (n, latent_dim)."""
        return self.inferred_rows(rows, ("z",))["z"]

    def encode(self, x, mean: bool = False) -> np.ndarray:
        """One draw z ~ q(z|x) for each row of x or, with `mean`, the mean of q(z|x): (n, latent_dim).

        The mean is exact and uses no random numbers. A deterministic encoder's code is both. An `implicit` q(z|x) has
        no mean that a network gives: `mean` raises DataError, and averages of draws are the user's own.

        Rows are images, counts or a table in the units of the training's data. Images may also be floats in [0, 1],
        truth values, or integers up to the one that was white. Raises DataError for other rows.
        """
        rows = self.transform.rows(x)
        return self.mean_codes(rows) if mean else self.draw_codes(rows)

    def mean_codes(self, rows) -> np.ndarray:
        """The mean of q(z|x) for each row, as the model takes it: (n, *image_shape) -> (n, latent_dim).

        It uses no random numbers. Raises DataError if q(z|x) is `implicit`.
        """
        if self.posterior == "implicit":
            raise DataError(
                f"{self.title}: q(z|x) is known by its draws alone, and has no exact mean; average draws, "
                "such as sum(model.encode(x) for _ in range(100)) / 100"
            )
        key, before = "mean" if self.posterior == "gaussian" else "z", to_numpy(self.seed_generator.state)
        codes = self.inferred_rows(rows, (key,))[key]
        self.seed_generator.state.assign(before)  # `infer` draws a z, which is not used
        return codes

    def means(self, codes) -> np.ndarray:
        """E[x|z] as the model takes rows: (n, latent_dim) -> (n, *image_shape), such as pixel means in [0, 1].

        Raises DataError if the codes are not an array of numbers, or have another shape.
        """
        rows = [np.zeros((0, *self.image_shape), "float32")]
        for parameters in self.parameters_of(codes):
            rows.append(to_numpy(self.likelihood.mean(parameters)))
        return np.concatenate(rows)

    def parameters_of(self, codes) -> Iterator:
        """The decoder's output for codes, (n, latent_dim), in batches. Raises DataError as `means` does."""
        codes = as_array(codes, "z")
        dimensions = self.decoder.inputs[0].shape[-1]
        if codes.shape not in {(0,), (len(codes) if codes.shape else 0, dimensions)}:
            remedy = "; for one code pass z[None]" if codes.shape == (dimensions,) else ""
            raise DataError(f"codes have shape {codes.shape}; this model takes (n, {dimensions}){remedy}")
        for rows in self.batches(len(codes)):
            yield self.decoder(ops.convert_to_tensor(codes[rows], "float32"))

    def decode(self, codes):
        """E[x|z] in the units of the training's data: (n, latent_dim) -> n rows. Categories are the likeliest ones.

        Images are pixel means in [0, 1]. Counts are those of a row with the median total. A table with names of columns
        is a DataFrame. Raises DataError as `means` does.
        """
        return self.transform.undo(self.means(codes))

    def prior_codes(self, count: int) -> np.ndarray:
        """`count` draws z ~ p(z), from the model's own seed: (count, latent_dim).

        Raises DataError if `count` is not a whole number from 0.
        """
        if not isinstance(count, int | np.integer) or count < 0:
            raise DataError(f"cannot draw {count!r} codes; give a whole number from 0")
        if not count:
            return np.zeros((0, self.prior.latent_dim), "float32")
        return to_numpy(self.prior.sample(count, self.seed_generator))

    def sample(self, count: int):
        """E[x|z] for `count` draws z ~ p(z): `count` rows, as `decode` gives them."""
        return self.decode(self.prior_codes(count))


class Decoded:
    """Stands for `model.means(codes)`, (n, *image_shape), but decodes a slice only when it is read."""

    def __init__(self, model: LatentModel, codes: np.ndarray):
        self.model, self.codes = model, codes

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.codes), *self.model.image_shape

    def __len__(self):
        return len(self.codes)

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self.model.means(self.codes[rows])


def to_numpy(tensor) -> np.ndarray:
    """A tensor of any backend as a NumPy array, without its gradient's history."""
    return ops.convert_to_numpy(ops.stop_gradient(tensor))


def even_batch_size(count: int, most: int = BATCH_ROWS, numbers: int = 1, most_numbers: int = BATCH_NUMBERS) -> int:
    """The batch size that leaves no small last batch: 251 for 501 rows.

    A batch has at most `most` rows and, where each row has `numbers` numbers, at most `most_numbers` numbers. It has at
    least one row.
    """
    most = max(1, min(most, most_numbers // numbers))
    return -(-count // max(1, -(-count // most)))


def batch_slices(count: int, numbers: int) -> Iterator[slice]:
    """Consecutive rows of `count` rows, each of `numbers` numbers, in batches of `even_batch_size`."""
    size = even_batch_size(count, numbers=numbers)
    for start in range(0, count, max(1, size)):
        yield slice(start, min(count, start + size))
        if size * numbers > COLLECTED_NUMBERS:
            # On PyTorch, Keras leaves cycles that hold a batch. Python counts objects, not bytes: ten batches stayed.
            gc.collect(0)


def in_batches(array):
    """Batches of an array's rows as float32 tensors; see `batch_slices`."""
    for rows in batch_slices(len(array), math.prod(array.shape[1:])):
        yield ops.convert_to_tensor(array[rows], "float32")
