"""How likely are held-out images under a decoder? log p(x) in nats, bounded and estimated.

p(x) is the integral of p(x|z) p(z). A decoder is given as `log_likelihood(images, codes)`, from tensors (n,
*image_shape) and (n, latent_dim) to (n,) nats. A prior has `sample` and `log_prob`. The evidence lower bound and the
importance-weighted bounds lie below log p(x). Annealed importance sampling bounds it from below and, for images that
the model itself made, from above. `common.evaluation.annealing` has an error for other images.
"""

from dataclasses import dataclass
from functools import cached_property

from common.arrays import chunks
from common.backend import compiled, value_and_gradient
from common.likelihoods import Likelihood, bernoulli_log_likelihood
from common.model import even_batch_size, to_numpy

import numpy as np
from keras import ops
from scipy.interpolate import interp1d
from scipy.ndimage import gaussian_filter1d
from scipy.special import logsumexp

ROWS = 2000  # codes decoded at a time; fewer for large images, so that memory stays below a few 100 MiB
TARGET_ACCEPTANCE = 0.65  # acceptance of Hamiltonian proposals (Neal, arXiv 1206.1901, section 4.4)
LEAPFROG_STEPS = 10
PILOT_TEMPERATURES = 100  # temperatures of the pilot run that sets the step sizes


def of_decoder(decoder, rows: Likelihood | None = None):
    """The `log_likelihood(images, codes)` of a decoder, by the likelihood of its rows; None: Bernoulli pixels."""
    log_prob = rows.log_prob if rows else bernoulli_log_likelihood
    return lambda images, codes: log_prob(images, decoder(codes))


# Bounds from a proposal of the encoder


def importance_log_weights(log_likelihood, prior, images, means, deviations, samples: int, seed: int, progress=None):
    """log p(x|z) + log p(z) - log r(z|x) in nats for `samples` draws z ~ r(z|x) = N(means, deviations^2): (n, samples).

    `means` and `deviations` are (n, latent_dim). They are those of q(z|x) if it is a diagonal Gaussian, else the
    moments of many draws from it. Costs n * samples passes of the decoder.
    """
    random = np.random.default_rng(seed)
    joint = compiled(lambda x, z: log_likelihood(x, z) + prior.log_prob(z))
    images, means, deviations = (np.asarray(array, "float32") for array in (images, means, deviations))
    log_weights = np.empty((len(images), samples))
    at_once = even_batch_size(samples, ROWS, max(images[0].size, means.shape[1]))
    for row, (image, mean, deviation) in enumerate(zip(images, means, deviations, strict=True)):
        x = ops.convert_to_tensor(np.broadcast_to(image, (at_once, *image.shape)))
        for start in range(0, samples, at_once):
            noise = random.standard_normal((at_once, len(mean)), dtype="float32")
            log_joint = to_numpy(joint(x, ops.convert_to_tensor(mean + deviation * noise)))
            log_r = -0.5 * (noise.astype("float64") ** 2 + np.log(2.0 * np.pi)) - np.log(deviation)
            stop = min(samples, start + at_once)
            log_weights[row, start:stop] = (log_joint - log_r.sum(axis=1))[: stop - start]
        if progress:
            progress("importance weighting", row + 1, len(images))
    return log_weights


def importance_weighted_bound(log_weights: np.ndarray, samples: int | None = None) -> np.ndarray:
    """E log 1/k sum_i w_i for each image, in nats: a lower bound on log p(x) that rises with k; (n, m) -> (n,).

    Burda et al., arXiv 1509.00519, eq. 8, with k = `samples` (all m by default). The m draws form m // k groups, and
    the result is the mean over the groups. k = 1 gives the evidence lower bound.
    """
    samples = samples or log_weights.shape[1]
    groups = log_weights.shape[1] // samples
    log_weights = log_weights[:, : groups * samples].reshape(-1, groups, samples)
    with np.errstate(all="ignore"):  # weights of images that no code explains give NaN
        return (logsumexp(log_weights, axis=2) - np.log(samples)).mean(axis=1)


def effective_sample_size(log_weights: np.ndarray) -> np.ndarray:
    """(sum w)^2 / sum w^2 for each row of log weights, between 1 and m: (n, m) -> (n,).

    It measures how even the weights are that were drawn. It cannot see mass that the proposal misses entirely: where no
    draw falls, no weight shows it, and the number is as high as if the mass were not there.
    """
    with np.errstate(all="ignore"):  # as above
        return np.exp(2.0 * logsumexp(log_weights, axis=1) - logsumexp(2.0 * log_weights, axis=1))


# Annealed importance sampling


@dataclass(frozen=True)
class Annealed:
    """The result of annealed chains: log weights in nats, (images, chains), and the share of accepted moves.

    `codes` are the ends of the chains, (images, chains, latent_dim); None after `joined`.
    """

    log_weights: np.ndarray
    acceptance: float
    codes: np.ndarray | None = None

    def lower(self) -> np.ndarray:
        """The lower bound from forward chains: log of the mean weight, on average at most log p(x): (images,)."""
        return importance_weighted_bound(self.log_weights)

    def upper(self) -> np.ndarray:
        """The upper bound from reverse chains: −log of the mean inverse weight, on average at least log p(x)."""
        return -importance_weighted_bound(-self.log_weights)


def joined(parts: list[Annealed]) -> Annealed:
    """The chains of several groups of images as one result."""
    log_weights = np.concatenate([part.log_weights for part in parts])
    shares = [len(part.log_weights) / len(log_weights) for part in parts]
    return Annealed(log_weights, sum(share * part.acceptance for share, part in zip(shares, parts, strict=True)))


class AnnealedImportanceSampling:
    """Chains between the prior and the posterior of each image, through p(z) p(x|z)^beta with beta from 0 to 1.

    Neal, arXiv physics/9803008; for decoders Wu et al., arXiv 1611.04273. Each move is a Hamiltonian trajectory of ten
    leapfrog steps with a full Metropolis test. A pilot run fits the step sizes, one for each image and temperature, to
    an acceptance of 0.65. They stay fixed afterwards, so that the weights are unbiased: E w = p(x). All chains of all
    images move in one batch, and the temperatures lie on a sigmoid.

    Costs images * chains * temperatures * 10 passes through the decoder and back for each direction, and 100
    temperatures for the pilot run. Calls `progress(text, done, total)` after every move.
    """

    def __init__(self, log_likelihood, prior, images, chains: int = 16, seed: int = 0, progress=None):
        self.prior, self.chains, self.random = prior, chains, np.random.default_rng(seed)
        self.count, self.progress, self.log_likelihood = len(images), progress, log_likelihood
        self.rows = ops.convert_to_tensor(np.repeat(np.asarray(images, "float32"), chains, axis=0))
        self.start = compiled(lambda x, z: value_and_gradient(lambda code: log_likelihood(x, code), z))
        self.move = compiled(hamiltonian_move(log_likelihood, prior))

    def forward(self, temperatures: int) -> Annealed:
        """From prior draws to the posterior: unbiased weights for p(x)."""
        return self.anneal(self.prior_draws(), sigmoid_schedule(temperatures), "forward")

    def reverse(self, temperatures: int, codes) -> Annealed:
        """From `codes`, (images, latent_dim), each an exact draw from its image's posterior, back to the prior.

        Such draws exist only for images of the model itself: codes[i] is drawn from the prior, and image i from
        p(x | codes[i]). This is bidirectional Monte Carlo (Grosse et al., arXiv 1511.02543). The gap between the two
        directions bounds the error on such images only. On other images, the error can be many times as large.
        """
        return self.anneal(np.repeat(codes, self.chains, axis=0), sigmoid_schedule(temperatures)[::-1], "reverse")

    def anneal(self, codes, betas, name: str) -> Annealed:
        """Sum of |beta_t - beta_t-1| log p(x|z) along chains that move at every temperature between the two ends."""
        z = ops.convert_to_tensor(codes, "float32")
        state = (z, *self.start(self.rows, z))
        log_steps = self.log_steps  # makes the pilot run the first time
        log_weights, accepted = np.zeros(len(self.rows)), []
        for t in range(1, len(betas)):
            log_weights += abs(betas[t] - betas[t - 1]) * to_numpy(state[1]).astype("float64")
            if t < len(betas) - 1:
                state, probability = self.move_chains(state, betas[t], np.exp(log_steps(betas[t])))
                accepted.append(probability.mean())
            self.report(f"annealing, {name}", t, len(betas) - 1)
        shape, ends = (self.count, self.chains), to_numpy(state[0])
        return Annealed(log_weights.reshape(shape), float(np.mean(accepted or 1.0)), ends.reshape(*shape, -1))

    def move_chains(self, state, beta, steps):
        """Every chain's state after a move at `beta`, and the probability of its acceptance.

        `state` is z, log p(x|z) and its gradient; `steps` is (images,); the probabilities are (images, chains).
        """
        shape = tuple(state[0].shape)
        # Step lengths vary by a fifth: with equal lengths, a trajectory can be periodic and return to its start.
        lengths = np.repeat(steps, self.chains) * self.random.uniform(0.8, 1.2, shape[0])
        momentum, uniform = self.random.standard_normal(shape), self.random.uniform(size=shape[0])
        numbers = (ops.convert_to_tensor(number, "float32") for number in (beta, lengths[:, None], momentum, uniform))
        *state, probability = self.move(self.rows, *state, *numbers)
        return state, to_numpy(probability).reshape(self.count, self.chains)

    @cached_property
    def log_steps(self):
        """A function from beta to the logarithm of the step size of each image, (images,), from a pilot run."""
        betas = sigmoid_schedule(PILOT_TEMPERATURES)
        z = ops.convert_to_tensor(self.prior_draws(), "float32")
        state = (z, *self.start(self.rows, z))
        log_step, log_steps = np.full(self.count, np.log(0.5 * self.prior.scale)), []
        for t, beta in enumerate(betas):
            state, probability = self.move_chains(state, beta, np.exp(log_step))
            log_steps.append(log_step)
            log_step = log_step + probability.mean(axis=1) - TARGET_ACCEPTANCE
            self.report("annealing, step sizes", t + 1, len(betas))
        smooth = gaussian_filter1d(np.array(log_steps), sigma=3.0, axis=0, mode="nearest")
        return interp1d(betas, smooth, axis=0)

    def prior_draws(self) -> np.ndarray:
        """One code for each chain: (images * chains, latent_dim)."""
        return to_numpy(self.prior.sample(len(self.rows), int(self.random.integers(2**31))))

    def report(self, text: str, done: int, total: int):
        if self.progress:
            self.progress(text, done, total)


def sigmoid_schedule(temperatures: int, steepness: float = 4.0) -> np.ndarray:
    """beta_0 = 0 to beta_T = 1, dense at both ends (Wu et al., arXiv 1611.04273): (temperatures + 1,)."""
    sigmoid = 1.0 / (1.0 + np.exp(-steepness * np.linspace(-1.0, 1.0, temperatures + 1)))
    return (sigmoid - sigmoid[0]) / (sigmoid[-1] - sigmoid[0])


def hamiltonian_move(log_likelihood, prior):
    """The Metropolis-tested leapfrog trajectory that leaves p(z) p(x|z)^beta invariant (Neal, arXiv 1206.1901).

    The returned function takes the state: x (n, *image_shape), z (n, latent_dim), log p(x|z) (n,) and its gradient
    (n, latent_dim). Further arguments are beta (), the step (n, 1), a standard normal momentum (n, latent_dim) and a
    uniform number (n,). It returns the next z, log p(x|z) and gradient, and the probability of acceptance (n,).
    """

    def move(x, z, fit, fit_gradient, beta, step, momentum, uniform):
        def total_energy(log_prior, fit, momentum):
            return 0.5 * ops.sum(ops.square(momentum), axis=1) - log_prior - beta * fit

        start = z, fit, fit_gradient
        log_prior, prior_gradient = value_and_gradient(prior.log_prob, z)
        before = total_energy(log_prior, fit, momentum)
        for _ in range(LEAPFROG_STEPS):
            momentum = momentum + 0.5 * step * (prior_gradient + beta * fit_gradient)
            z = z + step * momentum
            log_prior, prior_gradient = value_and_gradient(prior.log_prob, z)
            fit, fit_gradient = value_and_gradient(lambda code: log_likelihood(x, code), z)
            momentum = momentum + 0.5 * step * (prior_gradient + beta * fit_gradient)
        log_ratio = before - total_energy(log_prior, fit, momentum)
        probability = ops.where(ops.isfinite(log_ratio), ops.exp(ops.minimum(log_ratio, 0.0)), 0.0)
        accepted = uniform < probability
        ends = ((z, accepted[:, None]), (fit, accepted), (fit_gradient, accepted[:, None]))
        kept = [ops.where(chosen, new, old) for (new, chosen), old in zip(ends, start, strict=True)]
        return *kept, probability

    return move


# Parzen windows


def parzen_log_likelihood(samples, images, sigma: float) -> np.ndarray:
    """log 1/m sum_j N(x; sample_j, sigma^2 I) for each image in nats, as a density over pixels in [0, 1]: (n,).

    This is the window estimate of Goodfellow et al. (arXiv 1406.2661) and of the AAE paper's table 1. It ranks models
    wrongly (Theis et al., arXiv 1511.01844), and is here to show that. Costs n * m * d multiplications in float64.
    """
    return parzen_of_distances(squared_distances(samples, images), np.prod(np.shape(images)[1:]), sigma)


def parzen_of_distances(distances: np.ndarray, dimensions: int, sigma: float) -> np.ndarray:
    """`parzen_log_likelihood` from the `squared_distances`, (n, m) -> (n,)."""
    nearest = distances.min(axis=1, keepdims=True)
    windows = nearest - distances  # changed in place below: with millions of pairs, memory traffic costs the time
    windows *= 0.5 / sigma**2
    summed = np.log(np.exp(windows, out=windows).mean(axis=1)) - 0.5 * nearest[:, 0] / sigma**2
    return summed - 0.5 * dimensions * np.log(2.0 * np.pi * sigma**2)


def parzen_sigma(samples, validation_images, grid=None) -> float:
    """The sigma of the grid that makes the validation images likeliest.

    Raises ValueError if it lies on the edge of the grid, for example if the samples are the images.
    """
    grid = np.geomspace(0.05, 1.0, 31) if grid is None else np.asarray(grid)
    distances = squared_distances(samples, validation_images)
    dimensions = np.prod(np.shape(validation_images)[1:])
    likelihoods = [parzen_of_distances(distances, dimensions, sigma).mean() for sigma in grid]
    best = int(np.argmax(likelihoods))
    if best in (0, len(grid) - 1):
        raise ValueError(f"sigma {grid[best]:.3g} is the edge of the grid, {grid[0]:.3g} to {grid[-1]:.3g}")
    return float(grid[best])


def squared_distances(samples, images) -> np.ndarray:
    """|x_i - sample_j|^2 in float64: (n, m). Samples may be `common.model.Decoded`, which is read in chunks."""
    images = np.asarray(images, "float64").reshape(len(images), -1)
    own = (images**2).sum(axis=1)[:, None]
    return np.concatenate(
        [distances_to(np.asarray(chunk, "float64"), images, own) for chunk in chunks(samples)], axis=1
    )


def distances_to(samples: np.ndarray, images: np.ndarray, own: np.ndarray) -> np.ndarray:
    """`squared_distances` to samples that are in memory, of images (n, d) with sums of squares `own`, (n, 1)."""
    samples = samples.reshape(len(samples), -1)
    squares = own + (samples**2).sum(axis=1)
    return np.maximum(squares - 2.0 * images @ samples.T, 0.0)
