"""The likelihoods p(x|z): what a decoder's numbers say about images, tables and counts.

A `Likelihood` has a `log_prob` in nats, a `mean` and a `sample`. Its `parameters` are the decoder's output: one number
for each value of a row, (batch, *shape), or two, (batch, *shape, 2). Rows are as in a `Dataset`:

    bernoulli            pixels in [0, 1]; logits
    gaussian             images or standardised columns; mean, and log of a learned deviation, the same for all z.
                         Columns of categories are one-hot, and their means are logits of a softmax
    logistic             8-bit pixels / 255; mean and log scale of a distribution that is integrated over a pixel's bin
    poisson              counts, and in the last column the log of the row's size factor; log rates
    negative_binomial    the same; log rates, and log of a learned dispersion, the same for all z
"""

import math
from typing import ClassVar

from common.arrays import chunks

import numpy as np
from keras import ops

SMALLEST_DEVIATION = 1e-3  # of a standardised column or a pixel: a constant one would have an infinite density
SMALLEST_SCALE = 1e-3  # of a logistic distribution: a quarter of the bin of an 8-bit pixel
LOG_SCALES_OF_MEAN = math.log(1e-3), math.log(100.0)  # a wider distribution has a mean of 0.5 in any case
LEVELS = 255  # steps from a pixel of 0 to a pixel of 1
LARGEST_LOG = 60.0  # of a ratio whose exponential is taken: float32 ends at exp(88)
SMALLEST_RATE = 1e-6  # of a column without a count
LOG_DISPERSIONS = math.log(1e-6), math.log(1e8)  # the limits, within which float32 has gradients
GRID_ROWS = 2000  # rows that choose a scale or a dispersion from a grid
LOG_2_PI = math.log(2.0 * math.pi)


def bernoulli_log_likelihood(images, logits):
    """log p(x|z) of Bernoulli pixels in nats, summed over the pixels: two (batch, *image_shape) -> (batch,).

    For pixels strictly between 0 and 1 it is minus a cross-entropy, whose minimum is above 0, and not a likelihood.
    """
    return ops.sum(images * logits - ops.softplus(logits), axis=tuple(range(1, len(images.shape))))


def binary_cross_entropy(images, logits):
    """-log p(x|z) of Bernoulli pixels in nats: summed over the pixels, averaged over the images; a scalar."""
    return -ops.mean(bernoulli_log_likelihood(images, logits))


def as_likelihood(shape_or_likelihood) -> "Likelihood":
    """A likelihood unchanged; for a shape, Bernoulli pixels of images of this shape."""
    return shape_or_likelihood if isinstance(shape_or_likelihood, Likelihood) else Bernoulli(shape_or_likelihood)


class Likelihood:
    """The distribution p(x|z) of rows x, given the parameters that a decoder makes of z.

    Attributes:
        shape: of the values of a row, (height, width), (height, width, 3) or (d,).
        heads: how many parameters a value has.
        learned: how many of them are the same for all z. These are the last ones.
        start: the parameters where the training starts, by `by_moments`; None: random.
    """

    name: ClassVar[str]
    heads: ClassVar[int] = 1
    learned: ClassVar[int] = 0
    learned_name: ClassVar[str] = ""

    def __init__(self, shape, start: np.ndarray | None = None):
        self.shape, self.start = tuple(shape), start

    @property
    def noun(self) -> str:
        """What a row consists of, for messages."""
        return "pixels" if len(self.shape) < 3 else "colour values"

    @property
    def terms(self) -> int:
        """How many terms the log-likelihood of a row sums."""
        return math.prod(self.shape)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of a row as the model takes it."""
        return self.shape

    @property
    def learned_shape(self) -> tuple[int, ...]:
        """The shape of a parameter that is the same for all z: one number for each value."""
        return self.shape

    def features(self, x):
        """The input of the first layer of networks that see x: rows (batch, *row_shape)."""
        return x

    def log_prob(self, x, parameters):
        """log p(x|z) in nats, summed over the values of a row: (batch, *row_shape) and parameters -> (batch,)."""
        return summed(self.value_log_prob(x, parameters))

    def value_log_prob(self, x, parameters):
        """log p(x|z) of each value in nats: (batch, *shape)."""
        raise NotImplementedError

    def mean(self, parameters, like=None):
        """E[x|z], (batch, *row_shape); of pixels, within [0, 1].

        `like` has rows whose size factors are used; None: a size factor of 1.
        """
        raise NotImplementedError

    def sample(self, parameters: np.ndarray, random: np.random.Generator, like=None) -> np.ndarray:
        """One draw x ~ p(x|z) for each row of parameters: float32 (n, *row_shape). `like`: see `mean`."""
        raise NotImplementedError

    def constant(self, rows) -> np.ndarray:
        """The likeliest parameters of a model without a code, for these rows: (*shape,) or (*shape, 2), float32."""
        raise NotImplementedError

    def by_moments(self, rows) -> np.ndarray:
        """Parameters of a model without a code with the rows' means and variances, where a training starts.

        From the likeliest parameters, which are wider, a training of logistic pixels or of negative binomial counts
        learned less in as many updates.
        """
        return self.constant(rows)

    def likeliest(self, rows, first: np.ndarray, candidates) -> np.ndarray:
        """Both parameters, of which the second is, for each value, the likeliest of its `candidates`: (*shape, 2).

        At most GRID_ROWS of the rows are used, evenly spaced.
        """
        some = rows[np.unique(np.linspace(0, len(rows) - 1, GRID_ROWS).astype(int))]
        best, chosen = np.full(first.shape, -np.inf), np.zeros(first.shape)
        for candidate in candidates:
            parameters = ops.convert_to_tensor(np.stack([first, candidate], axis=-1)[None].astype("float32"))
            fit = 0.0
            for chunk in chunks(some):
                log_prob = self.value_log_prob(ops.convert_to_tensor(chunk, "float32"), parameters)
                fit = fit + ops.convert_to_numpy(log_prob).sum(axis=0, dtype="float64")
            chosen, best = np.where(fit > best, candidate, chosen), np.maximum(best, fit)
        return np.stack([first, chosen], axis=-1).astype("float32")

    def bits_per_dimension(self, nats: float) -> float | None:
        """Nats for a row in bits for each value, scaled to 0 to 255; None if rows are not pixels."""
        return None


class Bernoulli(Likelihood):
    """Independent pixels that are black or white. Grey pixels are taken as probabilities."""

    name = "bernoulli"

    def log_prob(self, x, parameters):
        return bernoulli_log_likelihood(x, parameters)

    def mean(self, parameters, like=None):
        return ops.sigmoid(parameters)

    def sample(self, parameters, random, like=None):
        means = ops.convert_to_numpy(self.mean(ops.convert_to_tensor(parameters, "float32")))
        return (random.random(means.shape, dtype="float32") < means).astype("float32")

    def constant(self, rows):
        means = (moments(rows)[0] * len(rows) + 0.5) / (len(rows) + 1)  # one more image, with pixels of 0.5
        return (np.log(means) - np.log1p(-means)).astype("float32")


class Gaussian(Likelihood):
    """Values with a normal distribution, whose deviation is learned; columns of categories with a softmax.

    The deviation is one number for images (the sigma-VAE of Rybkin et al., arXiv 2006.13202, section 3). A table has
    one for each column. The last columns of a table's row are one-hot: a block for each of the `categories`, which
    gives its number of values.
    """

    name = "gaussian"
    heads, learned, learned_name = 2, 1, "log_deviation"

    def __init__(self, shape, start=None, table: bool = False, categories: tuple[int, ...] = (), pixels: bool = False):
        super().__init__(shape, start)
        self.table, self.categories, self.pixels = table, tuple(categories), pixels

    @property
    def noun(self):
        return "columns" if self.table else super().noun

    @property
    def learned_shape(self):
        return self.shape if self.table else (1,) * len(self.shape)

    @property
    def terms(self):
        return self.numbers + len(self.categories) if self.categories else super().terms

    @property
    def numbers(self) -> int:
        """How many values of a table's row are numbers."""
        return self.shape[0] - sum(self.categories)

    def blocks(self) -> list[tuple[slice, int]]:
        """The one-hot columns of categories: for each number of values in turn, its columns and that number."""
        blocks, start = [], self.numbers if self.categories else 0
        for size in sorted(set(self.categories)):
            stop = start + size * self.categories.count(size)
            blocks.append((slice(start, stop), size))
            start = stop
        return blocks

    def value_log_prob(self, x, parameters):
        mean, log_deviation = parameters[..., 0], ops.maximum(parameters[..., 1], math.log(SMALLEST_DEVIATION))
        return -0.5 * (ops.square((x - mean) * ops.exp(-log_deviation)) + LOG_2_PI) - log_deviation

    def log_prob(self, x, parameters):
        log_density, mean = self.value_log_prob(x, parameters), parameters[..., 0]
        if not self.categories:
            return summed(log_density)
        total = ops.sum(log_density[:, : self.numbers], axis=1)
        for columns, size in self.blocks():
            logits = ops.reshape(mean[:, columns], (-1, (columns.stop - columns.start) // size, size))
            chosen = ops.reshape(x[:, columns], ops.shape(logits))
            total = total + ops.sum(chosen * ops.log_softmax(logits), axis=(1, 2))
        return total

    def mean(self, parameters, like=None):
        mean = parameters[..., 0]
        if not self.categories:
            return ops.clip(mean, 0.0, 1.0) if self.pixels else mean
        parts = [mean[:, : self.numbers]]
        for columns, size in self.blocks():
            blocks = ops.reshape(mean[:, columns], (-1, (columns.stop - columns.start) // size, size))
            parts.append(ops.reshape(ops.softmax(blocks), ops.shape(mean[:, columns])))
        return ops.concatenate(parts, axis=1)

    def sample(self, parameters, random, like=None):
        mean, log_deviation = parameters[..., 0], np.maximum(parameters[..., 1], math.log(SMALLEST_DEVIATION))
        draws = mean + np.exp(log_deviation) * random.standard_normal(mean.shape, dtype="float32")
        for columns, size in self.blocks():
            blocks = mean[:, columns].reshape(len(mean), -1, size)
            likeliest = (blocks + random.gumbel(size=blocks.shape)).argmax(axis=-1)  # a draw from the softmax
            draws[:, columns] = np.eye(size, dtype="float32")[likeliest].reshape(len(mean), -1)
        return draws.astype("float32")

    def constant(self, rows):
        mean, variance = moments(rows)
        if not self.table:
            variance = np.full_like(variance, variance.mean())
        mean, start = np.array(mean), self.numbers if self.table else None
        if start is not None:  # logits of the shares, with half a row more of each category
            mean[start:] = np.log((mean[start:] * len(rows) + 0.5) / (len(rows) + 1))
        deviation = np.maximum(np.sqrt(variance), SMALLEST_DEVIATION)
        return np.stack([mean, np.log(deviation)], axis=-1).astype("float32")

    def bits_per_dimension(self, nats):
        """The density is that of values from 0 to 255. It is no bound on a code length: 8-bit values are a grid."""
        return nats / math.prod(self.shape) / math.log(2.0) + math.log2(LEVELS) if self.pixels else None


class Logistic(Likelihood):
    """8-bit pixels: a logistic distribution, integrated over the bin of each value (Salimans et al., arXiv 1701.05517).

    That is their eq. 2 with one component and without a dependence between channels. The bins of 0 and 255 have no end.
    """

    name = "logistic"
    heads = 2

    def value_log_prob(self, x, parameters):
        mean, log_scale = parameters[..., 0], ops.maximum(parameters[..., 1], math.log(SMALLEST_SCALE))
        inverse = ops.exp(-log_scale)
        upper, lower = ((x - mean + half / LEVELS) * inverse for half in (0.5, -0.5))
        # sigma(u) - sigma(l) = sigma(u) sigma(-l) (1 - exp(l - u)) loses no digits.
        below, above = -ops.softplus(-upper), -ops.softplus(lower)
        below = ops.where(x > 1.0 - 0.25 / LEVELS, 0.0, below)
        above = ops.where(x < 0.25 / LEVELS, 0.0, above)
        inside = ops.logical_and(x > 0.25 / LEVELS, x < 1.0 - 0.25 / LEVELS)
        width = ops.log(-ops.expm1(-inverse / LEVELS))
        return below + above + ops.where(inside, width, 0.0)

    def mean(self, parameters, like=None):
        """The mean of the distribution with all that is beyond 0 and 1 moved there: half a bin from E[x|z] at most."""
        mean, scale = parameters[..., 0], ops.exp(ops.clip(parameters[..., 1], *LOG_SCALES_OF_MEAN))
        low, high = (ops.log1p(ops.exp(-ops.abs(end) / scale)) for end in (mean, mean - 1.0))
        return ops.clip(ops.clip(mean, 0.0, 1.0) + scale * (low - high), 0.0, 1.0)

    def sample(self, parameters, random, like=None):
        scale = np.exp(np.maximum(parameters[..., 1], math.log(SMALLEST_SCALE)))
        draws = parameters[..., 0] + scale * random.logistic(size=scale.shape)
        return (np.rint(np.clip(draws, 0.0, 1.0) * LEVELS) / LEVELS).astype("float32")

    def constant(self, rows):
        mean, log_scale = np.moveaxis(self.by_moments(rows).astype("float64"), -1, 0)
        return self.likeliest(rows, mean, [log_scale + math.log(factor) for factor in np.geomspace(0.5, 4.0, 13)])

    def by_moments(self, rows):
        mean, variance = moments(rows)
        scale = np.sqrt(3.0 * variance) / math.pi  # of the logistic distribution with this variance
        return np.stack([mean, np.log(np.maximum(scale, SMALLEST_SCALE))], axis=-1).astype("float32")

    def bits_per_dimension(self, nats):
        return nats / math.prod(self.shape) / math.log(2.0)


class Counts(Likelihood):
    """The base of likelihoods of counts, with the row's size factor as an offset of the log rates."""

    noun = "columns"

    @property
    def row_shape(self):
        return (self.shape[0] + 1,)

    def features(self, x):
        """log(1 + counts / size factor), and the log size factor."""
        counts, log_size = x[:, :-1], x[:, -1:]
        return ops.concatenate([ops.log1p(counts * ops.exp(-log_size)), log_size], axis=1)

    def log_rates(self, parameters):
        """The log rates at a size factor of 1: (batch, d)."""
        return parameters

    def mean(self, parameters, like=None):
        log_rates = self.log_rates(parameters)
        log_size = ops.zeros_like(log_rates[:, :1]) if like is None else ops.convert_to_tensor(like)[:, -1:]
        return ops.concatenate([ops.exp(ops.minimum(log_rates + log_size, LARGEST_LOG)), log_size], axis=1)

    def sample(self, parameters, random, like=None):
        log_rates = np.asarray(self.log_rates(parameters), "float64")
        log_size = np.zeros((len(log_rates), 1)) if like is None else np.asarray(like)[:, -1:]
        rates = np.exp(np.minimum(log_rates + log_size, math.log(1e15)))  # NumPy's Poisson draws end at 2^63
        return np.concatenate([self.draws(rates, parameters, random), log_size], axis=1).astype("float32")

    def draws(self, rates: np.ndarray, parameters: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Counts with these means: (n, d) -> (n, d)."""
        return random.poisson(rates)


class Poisson(Counts):
    """Counts whose variance is their mean."""

    name = "poisson"

    def value_log_prob(self, x, parameters):
        counts, log_rate = x[:, :-1], parameters + x[:, -1:]
        positive = ops.maximum(counts, 1.0)
        ratio = ops.minimum(log_rate - ops.log(positive), LARGEST_LOG)
        # Stirling's formula leaves no difference of large numbers: x (log(mu / x) - (mu / x - 1)) - log sqrt(2 pi x).
        log_prob = positive * (ratio - ops.expm1(ratio)) - 0.5 * (LOG_2_PI + ops.log(positive)) - stirling(positive)
        return ops.where(counts > 0.0, log_prob, -ops.exp(ops.minimum(log_rate, LARGEST_LOG)))

    def constant(self, rows):
        return np.log(rates_of(rows)).astype("float32")


class NegativeBinomial(Counts):
    """Counts whose variance is mu + mu^2 / r, with a dispersion r for each column."""

    name = "negative_binomial"
    heads, learned, learned_name = 2, 1, "log_dispersion"

    def log_rates(self, parameters):
        return parameters[..., 0]

    def value_log_prob(self, x, parameters):
        counts, log_rate = x[:, :-1], parameters[..., 0] + x[:, -1:]
        log_r = ops.clip(parameters[..., 1], *LOG_DISPERSIONS)
        positive, r = ops.maximum(counts, 1.0), ops.exp(log_r)
        log_x, log_total = ops.log(positive), ops.log(positive + r)
        # With n = x + r, two ratios are left beside Stirling's terms: x log(mu / x) + n log(n / (r + mu)).
        ratio = log_x - log_rate
        near = ops.clip(ratio, -1.0, 1.0)
        x_share, mu_share = ops.exp(log_r - log_total), ops.sigmoid(log_rate - log_r)
        ratios = ops.where(
            ops.abs(ratio) < 1.0,  # differences of logarithms would lose digits
            positive * ops.log1p(x_share * ops.expm1(near)) - r * ops.log1p(mu_share * ops.expm1(near)),
            positive * (ops.softplus(log_r - log_rate) - ops.softplus(log_r - log_x))
            - r * (ops.softplus(log_x - log_r) - ops.softplus(log_rate - log_r)),
        )
        stirlings = stirling(positive + r) - stirling(r) - stirling(positive)
        log_prob = -ratios + 0.5 * (log_r - log_total - LOG_2_PI - log_x) + stirlings
        return ops.where(counts > 0.0, log_prob, -r * ops.softplus(log_rate - log_r))

    def draws(self, rates, parameters, random):
        r = np.exp(np.clip(np.asarray(parameters[..., 1], "float64"), *LOG_DISPERSIONS))
        return random.poisson(np.minimum(rates * random.gamma(r) / r, 1e15))

    def constant(self, rows):
        log_rates = np.log(rates_of(rows))
        grid = np.linspace(math.log(1e-2), math.log(1e4), 28)
        return self.likeliest(rows, log_rates, [np.full(self.shape, log_r) for log_r in grid])

    def by_moments(self, rows):
        rates, excess, squares = rates_of(rows), 0.0, 0.0
        for chunk in chunks(rows):
            counts, means = np.asarray(chunk[:, :-1], "float64"), np.exp(chunk[:, -1:]) * rates
            excess, squares = excess + ((counts - means) ** 2 - means).sum(axis=0), squares + (means**2).sum(axis=0)
        dispersions = np.clip(squares / np.maximum(excess, 1e-12), 1e-2, 1e4)
        return np.stack([np.log(rates), np.log(dispersions)], axis=-1).astype("float32")


LIKELIHOODS = {kind.name: kind for kind in (Bernoulli, Gaussian, Logistic, Poisson, NegativeBinomial)}


def summed(values):
    """The sum over all axes but the first."""
    return ops.sum(values, axis=tuple(range(1, len(values.shape))))


def stirling(x):
    """log Gamma(x) - ((x - 1/2) log x - x + 1/2 log 2 pi) for x > 0, to a few 1e-7 in float32.

    Five steps of the recurrence, then three terms of the series at x + 5.
    """
    total = 0.0
    for step in range(5):
        total = total + (x + (step + 0.5)) * ops.log1p(1.0 / (x + step)) - 1.0
    inverse = 1.0 / (x + 5.0)
    square = inverse * inverse
    return total + inverse * (1.0 / 12.0 - square * (1.0 / 360.0 - square / 1260.0))


def moments(rows) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each value over rows, in float64; rows may be read in parts, once."""
    origin, total, squares = np.asarray(rows[:1], "float64")[0], 0.0, 0.0  # a constant value is 0 beside it, exactly
    for chunk in chunks(rows):
        differences = chunk - origin
        total, squares = total + differences.sum(axis=0), squares + np.square(differences).sum(axis=0)
    mean = total / len(rows)
    return origin + mean, np.maximum(squares / len(rows) - np.square(mean), 0.0)


def rates_of(rows) -> np.ndarray:
    """The likeliest Poisson rates of rows with size factors, (d,): all counts over all size factors."""
    counts, sizes = 0.0, 0.0
    for chunk in chunks(rows):
        counts, sizes = counts + chunk[:, :-1].sum(axis=0, dtype="float64"), sizes + np.exp(chunk[:, -1]).sum()
    return np.maximum(counts / sizes, SMALLEST_RATE)
