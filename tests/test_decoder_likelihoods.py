"""common/likelihoods.py against SciPy: densities and their gradients, means, draws, and the best constant parameters.

Runs on the backend in use: KERAS_BACKEND=jax pytest tests/test_decoder_likelihoods.py. The parameters are rounded to
float32 before SciPy sees them in float64. `EXPECTED` gives, beside SciPy's number, the error that float32 allows.
"five standard errors": a false alarm has a chance of 6e-7 for each number, and the seeds are fixed.
"""

import importlib.util
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

from common import arrays as common_arrays
from common import networks
from common.backend import compiled, value_and_gradient
from common.likelihoods import (
    LEVELS,
    SMALLEST_DEVIATION,
    SMALLEST_RATE,
    SMALLEST_SCALE,
    Bernoulli,
    Gaussian,
    Likelihood,
    Logistic,
    NegativeBinomial,
    Poisson,
)
from common.model import to_numpy

import numpy as np
import pytest
from helpers import BACKEND, gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from keras import ops
from scipy import stats
from scipy.special import digamma, expit, softmax

EPSILON = 2.0**-23  # of float32: one rounding errs by half of it
WIDTH = 5  # values of a row
ALL_LEVELS = np.arange(256)
many = settings(deadline=None, max_examples=150, derandomize=True)


def random(seed=0):
    return np.random.default_rng(seed)


def tensor(array):
    return ops.convert_to_tensor(np.asarray(array, "float32"))


def values(low, high, shape=(2, WIDTH)):
    """Arrays of float32 numbers between two limits."""
    return arrays("float32", shape, elements=st.floats(np.float32(low).item(), np.float32(high).item(), width=32))


def joined(*parts):
    """Parameters with two numbers for each value."""
    return np.stack(parts, axis=-1).astype("float32")


def log_prob(likelihood: Likelihood, rows, parameters) -> np.ndarray:
    """log p(x|z) in float64, of float32: (n,)."""
    return to_numpy(likelihood.log_prob(tensor(rows), tensor(parameters))).astype("float64")


def slope(likelihood: Likelihood, rows, parameters):
    """log p(x|z), (n,), and its gradient with respect to the parameters."""
    shape = np.shape(parameters)

    def of_flat(flat):
        return likelihood.log_prob(tensor(rows), ops.reshape(flat, shape))

    value, gradient = value_and_gradient(of_flat, tensor(np.reshape(parameters, (shape[0], -1))))
    return to_numpy(value).astype("float64"), to_numpy(gradient).astype("float64").reshape(shape)


# What SciPy gives for each value, its gradient, and the errors that float32 allows


def expected_bernoulli(likelihood, rows, parameters):
    logits, rows = np.float64(parameters), np.float64(rows)
    # The smaller of the two probabilities has all its digits. A grey pixel is a mean of the two log densities.
    rarer = expit(-np.abs(logits))
    one, none = (stats.bernoulli.logpmf(np.where(logits < 0, pixel, 1 - pixel), rarer) for pixel in (1, 0))
    wanted = rows * one + (1 - rows) * none
    return wanted, EPSILON * (2 * np.abs(logits) + 2), rows - expit(logits), 4 * EPSILON


def expected_gaussian(likelihood, rows, parameters):
    rows, mean, log_deviation = np.float64(rows), np.float64(parameters[..., 0]), np.float64(parameters[..., 1])
    floored = log_deviation < math.log(SMALLEST_DEVIATION)
    deviation = np.where(floored, SMALLEST_DEVIATION, np.exp(log_deviation))
    squares = ((rows - mean) / deviation) ** 2
    wanted = stats.norm.logpdf(rows, mean, deviation)
    # The rounding of log deviation, up to 7 at its floor, is a relative error of the deviation.
    relative = EPSILON * (4 + 8 * floored)
    gradient = joined_float64((rows - mean) / deviation**2, np.where(floored, 0.0, squares - 1))
    slack = joined_float64(2 * relative * np.abs(rows - mean) / deviation**2, relative * (squares + 1))
    return wanted, relative * squares + EPSILON * (np.abs(log_deviation) + 4), gradient, slack


def joined_float64(*parts):
    return np.stack(np.broadcast_arrays(*parts), axis=-1)


def expected_logistic(likelihood, rows, parameters):
    mean, log_scale = np.float64(parameters[..., 0]), np.float64(parameters[..., 1])
    levels = np.rint(np.float64(rows) * LEVELS)
    floored = log_scale < math.log(SMALLEST_SCALE)
    scale = np.where(floored, SMALLEST_SCALE, np.exp(log_scale))
    upper, lower = (((levels + half) / LEVELS - mean) / scale for half in (0.5, -0.5))
    # c(u) - c(l) = c(-l) - c(-u): in the lower tail the difference of the two keeps its digits.
    mirrored = upper + lower > 0
    high, low = np.where(mirrored, -lower, upper), np.where(mirrored, -upper, lower)
    log_high = stats.logistic.logcdf(high)
    wanted = log_high + np.log(-np.expm1(stats.logistic.logcdf(low) - log_high))
    wanted = np.where(levels == 0, stats.logistic.logcdf(upper), wanted)
    wanted = np.where(levels == LEVELS, stats.logistic.logsf(lower), wanted)
    # log(c(u) - c(l)) = log c(u) + log c(-l) + log(1 - exp(l - u)); a term is missing where the bin has no end.
    black, white = levels == 0, levels == LEVELS
    between = np.where(black | white, 0.0, 1 / np.expm1(upper - lower))
    of_upper = np.where(white, 0.0, expit(-upper)) + between
    of_lower = -np.where(black, 0.0, expit(lower)) - between
    of_scale = np.where(floored, 0.0, -(of_upper * upper + of_lower * lower))
    # The bin's ends are rounded, and so is the scale. Both move u and l, and log p changes by no more than they do.
    moved = EPSILON * (np.abs(rows) + np.abs(mean) + 0.01 + (4 + 8 * floored) * np.abs(rows - mean)) / scale
    slack = moved + EPSILON * (np.abs(wanted) + np.abs(log_scale) + 4)
    largest = 1 + np.maximum(np.abs(upper), np.abs(lower))
    gradient_slack = joined_float64((moved + 8 * EPSILON) / scale, (moved + 8 * EPSILON) * largest)
    return wanted, slack, joined_float64(-(of_upper + of_lower) / scale, of_scale), gradient_slack


def expected_poisson(likelihood, rows, parameters):
    counts, log_size, log_rates = (np.float64(a) for a in (rows[:, :-1], rows[:, -1:], parameters))
    rates = np.exp(log_rates + log_size)
    wanted = stats.poisson.logpmf(counts, rates)
    # log rate + log size factor - log x is rounded, so the rate has this relative error; d log p / d log rate = x - mu.
    relative = EPSILON * (np.abs(log_rates) + np.abs(log_size) + np.log(np.maximum(counts, 1)) + 2)
    slack = relative * np.abs(counts - rates) + EPSILON * (np.abs(wanted) + 8)
    return wanted, slack, counts - rates, relative * rates + EPSILON * (counts + 4)


def expected_negative_binomial(likelihood, rows, parameters):
    counts, log_size, log_rates, log_r = (
        np.float64(a) for a in (rows[:, :-1], rows[:, -1:], parameters[..., 0], parameters[..., 1])
    )
    rates, r = np.exp(log_rates + log_size), np.exp(log_r)
    wanted = stats.nbinom.logpmf(counts, r, r / (r + rates))
    relative = EPSILON * (np.abs(log_rates) + np.abs(log_size) + np.log(np.maximum(counts, 1)) + np.abs(log_r) + 2)
    of_rate = r * (counts - rates) / (r + rates)
    of_r = r * (digamma(counts + r) - digamma(r) - np.log1p(rates / r) + (rates - counts) / (r + rates))
    slack = relative * np.abs(of_rate) + EPSILON * (np.abs(wanted) + np.abs(log_r) + 4)
    # Terms of this size cancel in the gradients.
    largest = relative * r * np.maximum(counts, rates) / (r + rates) + EPSILON * (counts + 4)
    gradient_slack = joined_float64(2 * largest, 8 * EPSILON * (r * np.log1p(rates / r) + counts + 8))
    return wanted, 2 * slack, joined_float64(of_rate, of_r), gradient_slack


EXPECTED = {
    "bernoulli": expected_bernoulli,
    "gaussian": expected_gaussian,
    "logistic": expected_logistic,
    "poisson": expected_poisson,
    "negative_binomial": expected_negative_binomial,
}


def within(errors, slack):
    """No error is above its slack, or NaN. Errors below 1e-30 are those of numbers too small for float32."""
    broken = ~(np.abs(errors) <= slack + 1e-30)
    assert not broken.any(), f"{errors[broken][:5]} where {np.broadcast_to(slack, errors.shape)[broken][:5]} is allowed"


def require_scipy(likelihood, rows, parameters, found=None):
    """log p(x|z) and its gradient, those of `slope` if `found` is None, are SciPy's up to the rounding of float32."""
    wanted, slack, gradient, gradient_slack = EXPECTED[likelihood.name](likelihood, rows, parameters)
    axes = tuple(range(1, wanted.ndim))
    wanted, slack = wanted.sum(axis=axes), (slack + 0.5 * EPSILON * wanted.shape[-1] * np.abs(wanted)).sum(axis=axes)
    value, own = found or slope(likelihood, rows, parameters)
    within(value - wanted, slack)
    within(own - gradient, gradient_slack)


@many
@given(values(-40, 40), values(0, 1), st.booleans())
def test_bernoulli_pixels(logits, pixels, black_or_white):
    pixels = np.rint(pixels) if black_or_white else pixels
    require_scipy(Bernoulli((WIDTH,)), pixels, logits)


@many
@given(values(-5, 5), values(-100, 100), values(-12, 5), values(-6, 6), st.booleans())
def test_gaussian_values(rows, means, log_deviations, standard, near):
    deviations = np.exp(np.maximum(log_deviations, math.log(SMALLEST_DEVIATION)))
    means = np.float32(rows + deviations * standard) if near else means
    require_scipy(Gaussian((WIDTH,)), rows, joined(means, log_deviations))


levels = arrays("int64", (2, WIDTH), elements=st.one_of(st.integers(0, 255), st.sampled_from([0, 1, 254, 255])))


@many
@given(levels, values(-1, 2), values(-12, 5), values(-8, 8), st.booleans())
def test_logistic_pixels(levels, means, log_scales, standard, near):
    rows = np.float32(levels / LEVELS)
    scales = np.exp(np.maximum(log_scales, math.log(SMALLEST_SCALE)))
    means = np.float32(rows + scales * standard) if near else means
    require_scipy(Logistic((WIDTH,)), rows, joined(means, log_scales))


counted = st.tuples(
    values(-1, 6),  # log10 of the counts
    values(-9, 15),  # log rates far from the counts
    arrays("float64", (2, WIDTH), elements=st.sampled_from([0.0, 0.9, 0.99, 0.999, 0.99999, 1.0])),  # how near they are
    values(-3, 3, (2, 1)),  # log size factors
)


def counts_and_rates(log_counts, log_rates, near, log_sizes):
    """Rows of counts from 0 to a million with size factors, and log rates at a size factor of 1."""
    counts = np.rint(10.0**log_counts)
    log_rates = near * np.log(np.maximum(counts, 0.5)) + (1 - near) * log_rates
    return np.concatenate([counts, log_sizes], axis=1).astype("float32"), np.float32(log_rates - log_sizes)


@many
@given(counted)
def test_poisson_counts(drawn):
    require_scipy(Poisson((WIDTH,)), *counts_and_rates(*drawn))


@many
@given(counted, values(math.log(1e-3), math.log(1e5)))
def test_negative_binomial_counts(drawn, log_r):
    rows, log_rates = counts_and_rates(*drawn)
    require_scipy(NegativeBinomial((WIDTH,)), rows, joined(log_rates, log_r))


@pytest.mark.parametrize("count", [0, 1, 7, 1000])
def test_with_a_large_dispersion_the_negative_binomial_is_a_poisson(count):
    rows, log_rates = np.float32([[count, 0.2]]), np.float32([[math.log(count + 0.5)]])
    rate = math.exp(np.float64(log_rates[0, 0]) + np.float32(0.2))
    found = log_prob(NegativeBinomial((1,)), rows, joined(log_rates, np.float32([[18.0]])))
    # log NB - log Poisson = ((x - mu)^2 - x) / 2r + O(1 / r^2), at most 3e-4 here, and the rounding of log rate
    expected = stats.poisson.logpmf(count, rate) + ((count - rate) ** 2 - count) / (2 * math.exp(18.0))
    np.testing.assert_allclose(found, expected, atol=EPSILON * (10 * abs(count - rate) + 20) + 1e-5)


# Two categories of three values and one of two, after two columns of numbers; blocks of one size are neighbours.
TABLE = Gaussian((10,), table=True, categories=(2, 3, 3))
BLOCKS = (slice(2, 4), slice(4, 7), slice(7, 10))


@many
@given(values(-20, 20, (4, 10)), values(-3, 3, (4, 10)), st.integers(0, 2**32 - 1))
def test_columns_of_categories_have_a_softmax(means, log_deviations, seed):
    rows, wanted, slack = random(seed).standard_normal((4, 10)).astype("float32"), 0.0, 0.0
    for block in BLOCKS:
        rows[:, block] = random(seed).permuted(np.tile(np.eye(block.stop - block.start)[0], (4, 1)), axis=1)
        shares = softmax(np.float64(means[:, block]), axis=1)
        wanted = wanted + stats.multinomial.logpmf(rows[:, block], 1, shares)
        slack = slack + 4 * EPSILON * (np.ptp(means[:, block], axis=1) + 2)
    numbers = expected_gaussian(TABLE, rows[:, :2], joined(means, log_deviations)[:, :2])
    wanted, slack = wanted + numbers[0].sum(axis=1), slack + numbers[1].sum(axis=1)
    slack = slack + 4 * EPSILON * np.abs(wanted)
    found, gradient = slope(TABLE, rows, joined(means, log_deviations))
    within(found - wanted, slack)
    assert (gradient[:, 2:, 1] == 0.0).all()  # one-hot columns have no deviation
    for block in BLOCKS:
        shares = softmax(np.float64(means[:, block]), axis=1)
        np.testing.assert_allclose(gradient[:, block, 0], rows[:, block] - shares, atol=8 * EPSILON)


@pytest.mark.parametrize("mean", [-0.3, 0.0, 0.5003, 0.77, 1.0, 1.2])
@pytest.mark.parametrize("log_scale", [-9.0, -6.0, -3.0, 0.0, 3.0])
def test_the_256_levels_of_a_pixel_have_a_probability_of_1_together(mean, log_scale):
    parameters = np.tile(joined([[mean]], [[log_scale]]), (256, 1, 1))
    rows = ALL_LEVELS[:, None] / LEVELS
    probabilities = np.exp(log_prob(Logistic((1,)), rows, parameters))
    slack = expected_logistic(None, rows, parameters)[1][:, 0]
    assert abs(probabilities.sum() - 1.0) < (probabilities * slack).sum()
    assert (probabilities * slack).sum() < 2e-3  # of the smallest scale, a thousandth: |x - m| / scale has four digits


def test_a_black_pixel_has_all_that_is_below_and_a_white_one_all_that_is_above():
    parameters = np.tile(joined([[0.5]], [[math.log(0.3)]]), (2, 1, 1))
    found = np.exp(log_prob(Logistic((1,)), [[0.0], [1.0]], parameters))
    ends = (np.float64([0.5, 254.5]) / LEVELS - 0.5) / 0.3
    np.testing.assert_allclose(found, [stats.logistic.cdf(ends[0]), stats.logistic.sf(ends[1])], rtol=1e-6)


EXTREMES = (-80.0, -60.0, -20.0, math.log(1e-3), 0.0, 20.0, 60.0, 80.0)
CASES = [
    Bernoulli((1,)),
    Gaussian((1,)),
    Gaussian((3,), table=True, categories=(3,)),
    Logistic((1,)),
    Poisson((1,)),
    NegativeBinomial((1,)),
]


@pytest.mark.parametrize("likelihood", CASES, ids=lambda likelihood: likelihood.name)
def test_extreme_parameters_have_finite_values_and_gradients(likelihood):
    if likelihood.name in ("poisson", "negative_binomial"):
        rows = np.float32([[count, size] for count in (0, 1, 5, 1e3, 1e6) for size in (-5, 0, 5)])
    elif likelihood.shape == (3,):
        rows = np.eye(3, dtype="float32")
    else:
        rows = np.float32([[0.0], [1.0], [128 / LEVELS], [1 / LEVELS]])
    shape = (*likelihood.shape, *([2] if likelihood.heads == 2 else []))
    chosen = EXTREMES if math.prod(shape) < 3 else EXTREMES[::3]
    parameters = np.float32(list(itertools.product(chosen, repeat=math.prod(shape)))).reshape(-1, *shape)
    pairs = np.repeat(rows, len(parameters), axis=0), np.tile(parameters, (len(rows), *[1] * len(shape)))
    value, gradient = slope(likelihood, *pairs)
    assert np.isfinite(value).all()
    broken = ~np.isfinite(gradient).reshape(len(gradient), -1).all(axis=1)
    assert not broken.any(), f"{broken.sum()} of {len(broken)} gradients, such as of {pairs[1][broken][0]}"


# Means and draws


def moments_of(likelihood, parameters, log_size=0.0):
    """Mean, variance and fourth central moment of each value by SciPy; parameters without a batch axis."""
    first = np.float64(parameters[..., 0] if likelihood.heads == 2 else parameters)
    second = np.exp(np.float64(parameters[..., 1])) if likelihood.heads == 2 else None
    rates = np.exp(first + log_size)
    if likelihood.name == "logistic":
        rows, every = np.tile(ALL_LEVELS[:, None] / LEVELS, (1, len(first))), np.tile(parameters, (256, 1, 1))
        chances = np.exp(expected_logistic(likelihood, rows, every)[0])
        mean = (chances * rows).sum(axis=0)
        return mean, *((chances * (rows - mean) ** power).sum(axis=0) for power in (2, 4))
    frozen = {
        "bernoulli": lambda: stats.bernoulli(expit(first)),
        "gaussian": lambda: stats.norm(first, second),
        "poisson": lambda: stats.poisson(rates),
        "negative_binomial": lambda: stats.nbinom(second, second / (second + rates)),
    }[likelihood.name]()
    mean, variance, kurtosis = frozen.stats("mvk")
    return mean, variance, (kurtosis + 3) * variance**2


def require_moments(draws, mean, variance, fourth):
    """Mean and variance of draws, (n, d), within five standard errors."""
    within(draws.mean(axis=0) - mean, 5 * np.sqrt(variance / len(draws)))
    errors = np.sqrt((fourth - variance**2) / len(draws))
    within(draws.var(axis=0, ddof=1) - variance, 5 * errors + 1e-6 * variance)


DRAWS = 20_000
EXAMPLES = {  # parameters of a row
    Bernoulli: np.float32([-3.0, -0.5, 0.4, 1.0, 4.0]),
    Gaussian: joined([-2.0, 0.1, 0.5, 0.9, 30.0], [-6.0, -1.0, 0.0, 1.0, 3.0]),
    Logistic: joined([-0.1, 0.3, 0.5, 0.7, 1.0], [-2.0, -4.0, -7.0, -5.0, 0.0]),
    Poisson: np.float32([-3.0, 0.0, 1.0, 4.0, 11.0]),
    NegativeBinomial: joined([-2.0, 0.0, 1.0, 4.0, 9.0], [0.0, -1.0, 1.0, 5.0, 9.0]),
}


def sized_rows(likelihood, log_size):
    """Rows whose size factors are used for counts; zeros for others."""
    rows = np.zeros((DRAWS, *likelihood.row_shape), "float32")
    rows[:, -1] = log_size
    return rows


SIZED = [(kind, None) for kind in EXAMPLES]
SIZED += [(kind, log_size) for kind in (Poisson, NegativeBinomial) for log_size in (0.0, 1.3)]


@pytest.mark.parametrize(("kind", "log_size"), SIZED, ids=lambda each: getattr(each, "name", str(each)))
def test_draws_have_the_moments_of_the_distribution(kind, log_size):
    likelihood = kind((WIDTH,))
    counts = likelihood.row_shape != likelihood.shape
    parameters = np.tile(EXAMPLES[kind], (DRAWS, *[1] * EXAMPLES[kind].ndim))
    like = None if log_size is None else sized_rows(likelihood, log_size)
    draws = likelihood.sample(parameters, random(7), like)
    assert draws.dtype == np.float32 and draws.shape == (DRAWS, *likelihood.row_shape)
    if counts:
        assert (draws[:, -1] == np.float32(log_size or 0.0)).all()  # a row carries its own size factor
        draws = draws[:, :-1]
        assert (draws == np.rint(draws)).all() and (draws >= 0).all()
    moments = moments_of(likelihood, EXAMPLES[kind], np.float32(log_size or 0.0))
    require_moments(draws.astype("float64"), *moments)

    means = to_numpy(likelihood.mean(tensor(parameters[:1]), None if like is None else like[:1]))
    assert means.shape == (1, *likelihood.row_shape)
    if counts:
        assert means[0, -1] == np.float32(log_size or 0.0)
        means = means[:, :-1]
    if kind is not Logistic:
        np.testing.assert_allclose(means[0], moments[0], rtol=4 * EPSILON * 12)  # the rounding of a log rate of 11


def test_draws_of_logistic_pixels_are_of_8_bits_and_have_their_chances():
    likelihood = Logistic((WIDTH,))
    draws = likelihood.sample(np.tile(EXAMPLES[Logistic], (DRAWS, 1, 1)), random(1))
    drawn = np.rint(draws * LEVELS).astype("int64")
    np.testing.assert_array_equal(draws, np.float32(drawn / LEVELS))
    assert drawn.min() == 0 and drawn.max() == LEVELS
    rows, every = np.tile(ALL_LEVELS[:, None] / LEVELS, (1, WIDTH)), np.tile(EXAMPLES[Logistic], (256, 1, 1))
    expected = DRAWS * np.exp(expected_logistic(likelihood, rows, every)[0])
    for column in range(WIDTH):
        found, wanted = np.bincount(drawn[:, column], minlength=256), expected[:, column]
        common = wanted > 10
        found, wanted = ([*n[common], n[~common].sum()] for n in (found, wanted))
        keep = len(wanted) if wanted[-1] > 10 else -1
        statistic = sum((f - w) ** 2 / w for f, w in zip(found[:keep], wanted[:keep], strict=True))
        degrees = sum(common)
        assert stats.chi2.sf(statistic, degrees) > 1e-6  # the chance of a false alarm, for each of five columns


def test_the_mean_of_logistic_pixels_inside_the_range():
    """A distribution whose tails do not reach 0 and 1: beyond them, `mean` is that of the pixels before rounding."""
    parameters = joined([[0.3, 0.5, 0.7003]], [[-4.0, -5.0, -4.0]])
    expected, *_ = moments_of(Logistic((3,)), parameters[0])
    np.testing.assert_allclose(to_numpy(Logistic((3,)).mean(tensor(parameters)))[0], expected, atol=1e-6)
    outside = to_numpy(Logistic((2,)).mean(tensor(joined([[-0.5, 1.5]], [[-4.0, -4.0]]))))
    np.testing.assert_allclose(outside, [[0.0, 1.0]], atol=1e-10)  # what the tail leaves inside


def test_means_of_gaussian_pixels_stay_pixels_and_those_of_other_images_do_not():
    parameters = tensor(joined([[-0.5, 0.25, 1.5]], [[0.0, 0.0, 0.0]]))
    np.testing.assert_array_equal(to_numpy(Gaussian((3,), pixels=True).mean(parameters)), [[0.0, 0.25, 1.0]])
    np.testing.assert_array_equal(to_numpy(Gaussian((3,)).mean(parameters)), [[-0.5, 0.25, 1.5]])


def test_categories_are_drawn_one_hot_with_the_shares_of_their_softmax():
    parameters = joined(random(3).standard_normal(10), np.full(10, -1.0))
    draws = TABLE.sample(np.tile(parameters, (DRAWS, 1, 1)), random(4))
    shares = np.float64(parameters[:, 0])
    for block in BLOCKS:
        assert (np.sort(draws[:, block], axis=1) == np.eye(block.stop - block.start)[-1]).all()
        shares[block] = softmax(shares[block])
    variance, deviation = shares * (1 - shares), math.exp(-1.0)
    fourth = variance * (1 - 3 * variance)  # of a Bernoulli number
    variance[:2], fourth[:2] = deviation**2, 3 * deviation**4
    require_moments(draws.astype("float64"), shares, variance, fourth)
    np.testing.assert_allclose(to_numpy(TABLE.mean(tensor(parameters[None])))[0], shares, rtol=1e-6)
    # Two columns of categories are independent: a correlation within five standard errors of none.
    correlation = np.corrcoef(draws[:, [4, 7]].T)[0, 1]
    assert abs(correlation) < 5 / math.sqrt(DRAWS)


# The best parameters without a code


def training_rows(likelihood, count=400):
    """Rows of many kinds: each column has another distribution."""
    draws = random(11)
    if likelihood.name == "bernoulli":
        return np.float32(draws.random((count, WIDTH)) < [0.0, 0.1, 0.5, 0.9, 1.0])
    if likelihood.name == "gaussian":
        return np.float32(draws.standard_normal((count, WIDTH)) * [1e-2, 0.5, 1, 2, 20] + np.arange(WIDTH))
    if likelihood.name == "logistic":
        smooth = draws.logistic(size=(count, WIDTH)) * [0.005, 0.02, 0.05, 0.02, 0.01] + [0.2, 0.4, 0.5, 0.6, 0.8]
        return np.float32(np.rint(np.clip(smooth, 0, 1) * LEVELS) / LEVELS)
    sizes = np.exp(0.7 * draws.standard_normal((count, 1)))
    rates = sizes * [0.05, 1.0, 5.0, 50.0, 1e4]
    if likelihood.name == "negative_binomial":
        r = np.array([0.5, 0.3, 2.0, 10.0, 3.0])
        rates = rates * draws.gamma(r, size=(count, WIDTH)) / r
    return np.concatenate([draws.poisson(rates), np.log(sizes)], axis=1).astype("float32")


def total(likelihood, rows, parameters):
    """log p(x) of all rows together in float64, by SciPy."""
    every = np.broadcast_to(parameters, (len(rows), *parameters.shape))
    return EXPECTED[likelihood.name](likelihood, rows, every)[0].sum()


@pytest.mark.parametrize("likelihood", [Gaussian((WIDTH,), table=True), Gaussian((WIDTH,)), Poisson((WIDTH,))])
def test_no_other_constant_makes_the_training_rows_likelier(likelihood):
    rows = training_rows(likelihood)
    best = likelihood.constant(rows)
    assert best.dtype == np.float32 and best.shape == ((WIDTH, 2) if likelihood.heads == 2 else (WIDTH,))
    reached = total(likelihood, rows, np.float64(best))
    directions = list(np.eye(best.size).reshape(-1, *best.shape))
    if likelihood.name == "gaussian" and not likelihood.table:  # one deviation for all pixels
        assert len(set(best[:, 1])) == 1
        same = np.zeros_like(best)
        same[:, 1] = 1.0
        directions = [*directions[::2], same]
    for direction, step in itertools.product(directions, (-0.1, -0.01, 0.01, 0.1)):
        assert total(likelihood, rows, np.float64(best) + step * direction) < reached


def test_constant_bernoulli_pixels_are_the_shares_with_one_grey_image_more():
    rows = training_rows(Bernoulli((WIDTH,)))
    shares = expit(np.float64(Bernoulli((WIDTH,)).constant(rows)))
    np.testing.assert_allclose(shares, (rows.sum(axis=0) + 0.5) / (len(rows) + 1), rtol=1e-5)
    assert shares[0] > 0 and shares[-1] < 1  # pixels that never change keep a finite logit


def test_constant_logistic_pixels_have_the_mean_of_the_rows_and_the_likeliest_scale_of_the_grid():
    likelihood, rows = Logistic((WIDTH,)), training_rows(Logistic((WIDTH,)))
    best = likelihood.constant(rows)
    np.testing.assert_allclose(best[:, 0], rows.mean(axis=0, dtype="float64"), rtol=1e-6)

    def fit(change):
        parameters = np.broadcast_to(best + np.float32([0.0, change]), (len(rows), *best.shape))
        return to_numpy(likelihood.value_log_prob(tensor(rows), tensor(parameters))).sum(axis=0, dtype="float64")

    step = math.log(8.0) / 12  # of the grid: from half the scale by moments to four times that
    for neighbour in (-step, step):
        assert (fit(0.0) >= fit(neighbour) - 1e-3).all()  # rounding of sums of float32


def test_constant_negative_binomial_counts_have_the_dispersions_of_the_rows():
    rows = training_rows(NegativeBinomial((WIDTH,)), 20_000)
    log_rates, log_r = np.float64(NegativeBinomial((WIDTH,)).constant(rows)).T
    np.testing.assert_array_equal(np.float32(log_rates), Poisson((WIDTH,)).constant(rows))
    np.testing.assert_allclose(np.exp(log_rates), [0.05, 1.0, 5.0, 50.0, 1e4], rtol=0.1)
    # The grid has steps of a factor of 1.67, and 2,000 rows tell a dispersion to about a third.
    assert (np.abs(log_r[1:] - np.log([0.3, 2.0, 10.0, 3.0])) < math.log(1.67)).all()


def test_a_training_starts_with_the_moments_of_the_rows():
    rows = training_rows(Logistic((WIDTH,)))
    mean, log_scale = np.float64(Logistic((WIDTH,)).by_moments(rows)).T
    frozen = stats.logistic(mean, np.exp(log_scale))
    np.testing.assert_allclose(frozen.mean(), rows.mean(axis=0, dtype="float64"), rtol=1e-6)
    np.testing.assert_allclose(frozen.std(), rows.std(axis=0, dtype="float64"), rtol=1e-5)
    rows = training_rows(NegativeBinomial((WIDTH,)), 20_000)
    _, log_r = np.float64(NegativeBinomial((WIDTH,)).by_moments(rows)).T
    np.testing.assert_allclose(np.exp(log_r), [0.5, 0.3, 2.0, 10.0, 3.0], rtol=0.35)  # moments of 20,000 rows


def test_constant_shares_of_categories_count_half_a_row_more():
    rows = TABLE.sample(np.tile(joined(np.zeros(10), np.zeros(10)), (50, 1, 1)), random(5))
    rows[:, 9] = 0.0  # a category that no training row has keeps a finite logit
    rows[:, 7] = 1.0 - rows[:, 8]
    means = np.float64(TABLE.constant(rows)[:, 0])
    for block in BLOCKS:
        counts = rows[:, block].sum(axis=0) + 0.5
        np.testing.assert_allclose(softmax(means[block]), counts / counts.sum(), rtol=1e-5)
    np.testing.assert_allclose(means[:2], rows[:, :2].mean(axis=0), rtol=1e-5)


def test_columns_that_never_change_start_with_finite_parameters():
    same = np.full((30, WIDTH), 0.25, "float32")
    for likelihood, smallest in (
        (Gaussian((WIDTH,), table=True), SMALLEST_DEVIATION),
        (Logistic((WIDTH,)), SMALLEST_SCALE),
    ):
        constant = likelihood.constant(same)
        np.testing.assert_allclose(constant[:, 0], 0.25, rtol=1e-6)
        assert (constant[:, 1] <= math.log(smallest) + 1e-6).all()
    empty = np.zeros((30, WIDTH + 1), "float32")
    np.testing.assert_allclose(Poisson((WIDTH,)).constant(empty), math.log(SMALLEST_RATE), rtol=1e-6)
    assert np.isfinite(NegativeBinomial((WIDTH,)).constant(empty)).all()


ALL_KINDS = [
    Bernoulli((WIDTH,)),
    Gaussian((WIDTH,)),
    Gaussian((WIDTH,), table=True),
    Logistic((WIDTH,)),
    Poisson((WIDTH,)),
    NegativeBinomial((WIDTH,)),
]


@pytest.mark.parametrize("likelihood", ALL_KINDS, ids=lambda likelihood: likelihood.name)
def test_rows_that_are_read_in_parts_give_the_same_constant(likelihood, monkeypatch):
    rows = training_rows(likelihood)
    whole = likelihood.constant(rows)
    monkeypatch.setattr(common_arrays, "CHUNK", 7 * rows.shape[1] + 3)  # seven rows at a time
    np.testing.assert_allclose(likelihood.constant(rows), whole, rtol=1e-6, atol=1e-7)


# The decoder of a new model


def flat_start(likelihood):
    """The parameters that a dense decoder has for a code of zeros: (*shape,) or (*shape, 2)."""
    rows = random(2).random((60, *likelihood.row_shape), dtype="float32")
    rows = np.rint(20 * rows) if likelihood.row_shape != likelihood.shape else rows
    likelihood.start = likelihood.constant(rows)
    return likelihood.start


IMAGES = [
    Bernoulli((4, 6)),
    Gaussian((4, 6)),
    Gaussian((4, 6, 3), pixels=True),
    Logistic((4, 6)),
    Logistic((4, 6, 3)),
]
COLUMNS = [
    Gaussian((WIDTH,), table=True),
    Gaussian((7,), table=True, categories=(2, 3)),
    Poisson((WIDTH,)),
    NegativeBinomial((WIDTH,)),
]


@pytest.mark.parametrize(
    ("likelihood", "kind"),
    [(each, kind) for kind in ("dense", "conv") for each in [*IMAGES, *(COLUMNS if kind == "dense" else [])]],
    ids=lambda each: each if isinstance(each, str) else f"{each.name}-{each.shape}",
)
def test_a_new_decoder_starts_at_the_best_constant_for_any_code(likelihood, kind):
    start = flat_start(likelihood)
    decoder = networks.decoder(3, likelihood, (16,), random(0), kind)
    if kind == "conv":  # one bias for each channel: the mean over the pixels
        start = np.broadcast_to(start.mean(axis=(0, 1)), start.shape)
    zero, *others = to_numpy(decoder(tensor(np.concatenate([np.zeros((1, 3)), random(1).standard_normal((20, 3))]))))
    assert zero.shape == start.shape
    np.testing.assert_allclose(zero, start, rtol=1e-5, atol=1e-6)  # no layer before the last has a bias
    others = np.array(others)
    # Kernels of 1e-3 times the features, of lengths up to some ten: far below the deviation between rows.
    np.testing.assert_allclose(others, np.broadcast_to(start, others.shape), atol=0.1)
    assert np.ptp(others if likelihood.heads == 1 else others[..., 0], axis=0).max() > 0
    if likelihood.learned:
        assert (np.ptp(others[..., 1], axis=0) == 0).all()  # the same for all codes
        if likelihood.learned_shape != likelihood.shape:
            assert np.ptp(others[..., 1]) == 0  # and for all pixels


def test_what_a_likelihood_learns_is_a_weight_of_its_decoder_with_the_gradient_of_the_density():
    likelihood = Gaussian((2, 3))
    decoder = networks.decoder(2, likelihood, (4,), random(0))
    layer = decoder.get_layer("log_deviation")
    layer.bias.assign(np.float32([0.4]))
    rows, codes = tensor(random(1).standard_normal((7, 2, 3))), tensor(random(2).standard_normal((7, 2)))
    parameters = to_numpy(decoder(codes))
    assert (parameters[..., 1] == np.float32(0.4)).all()
    found = gradients(lambda: ops.sum(likelihood.log_prob(rows, decoder(codes))), [layer.bias])[0]
    squares = ((to_numpy(rows).astype("float64") - parameters[..., 0]) / math.exp(np.float32(0.4))) ** 2
    np.testing.assert_allclose(found, [(squares - 1).sum()], rtol=1e-4)


# Bits per dimension


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3), (5,)])
def test_a_uniform_code_for_8_bit_pixels_has_8_bits(shape):
    nats = math.prod(shape) * math.log(256)
    assert Logistic(shape).bits_per_dimension(nats) == pytest.approx(8.0)
    # As a density, pixels from 0 to 255 spread evenly over [0, 1] have 0 nats each, and 1 / 255 for each step.
    assert Gaussian(shape, pixels=True).bits_per_dimension(0.0) == pytest.approx(math.log2(255))


def bits_of_levels(mean, log_scale):
    """-log2 p of each of the 256 levels by the code under test."""
    likelihood = Logistic((1,))
    nats = -log_prob(likelihood, ALL_LEVELS[:, None] / LEVELS, np.tile(joined([[mean]], [[log_scale]]), (256, 1, 1)))
    return np.array([likelihood.bits_per_dimension(each) for each in nats])


def test_a_very_wide_logistic_has_one_bit_for_black_and_white_and_none_left_for_the_rest():
    bits = bits_of_levels(0.5, 12.0)
    np.testing.assert_allclose(bits[[0, 255]], 1.0, atol=1e-4)
    np.testing.assert_allclose(bits[1:-1], math.log2(4 * LEVELS) + 12.0 / math.log(2), rtol=1e-5)  # 1 / (4 s) each


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.floats(-1, 2), st.floats(-8, 5))
def test_no_logistic_has_fewer_than_8_bits_for_pixels_that_are_uniform(mean, log_scale):
    assert bits_of_levels(mean, log_scale).mean() > 8.0  # Gibbs' inequality


@pytest.mark.parametrize("deviation", [0.5, 10.0, 60.0])
def test_bits_of_gaussian_pixels_are_those_of_a_density_from_0_to_255(deviation):
    likelihood = Gaussian((2000,), pixels=True)
    rows = np.float32((128 + deviation * random().standard_normal((1, 2000))) / 255)
    parameters = joined(np.full((1, 2000), 128 / 255), np.full((1, 2000), math.log(deviation / 255)))
    found = likelihood.bits_per_dimension(-log_prob(likelihood, rows, parameters)[0])
    expected = -stats.norm.logpdf(255 * np.float64(rows), 128, deviation).mean() / math.log(2)
    assert found == pytest.approx(expected, abs=1e-4)
    entropy = math.log2(deviation * math.sqrt(2 * math.pi * math.e))
    assert abs(found - entropy) < 5 * math.sqrt(0.5 / 2000) / math.log(2)  # half a squared normal number for each pixel


@pytest.mark.parametrize(
    "likelihood",
    [Bernoulli((4,)), Gaussian((4,)), Gaussian((4,), table=True), Poisson((4,)), NegativeBinomial((4,))],
    ids=lambda likelihood: likelihood.name,
)
def test_rows_that_are_not_8_bit_pixels_have_no_bits_per_dimension(likelihood):
    assert likelihood.bits_per_dimension(1.0) is None


# All backends


def fixed_case(likelihood):
    """Rows and parameters in all ranges, the same on every backend."""
    draws, shape = random(17), (40, WIDTH)
    if likelihood.name == "bernoulli":
        return np.float32(draws.random(shape) < 0.5), np.float32(draws.uniform(-30, 30, shape))
    if likelihood.name == "gaussian":
        return np.float32(draws.standard_normal(shape)), joined(
            draws.uniform(-9, 9, shape), draws.uniform(-9, 3, shape)
        )
    if likelihood.name == "logistic":
        drawn = draws.integers(0, 256, shape)
        drawn[:, :2] = 0, 255
        return np.float32(drawn / LEVELS), joined(draws.uniform(-0.5, 1.5, shape), draws.uniform(-9, 3, shape))
    near = draws.choice([0.0, 0.9, 0.999, 1.0], shape)
    case = counts_and_rates(draws.uniform(-1, 6, shape), draws.uniform(-9, 15, shape), near, draws.normal(size=(40, 1)))
    if likelihood.name == "poisson":
        return case
    return case[0], joined(case[1], draws.uniform(math.log(1e-3), math.log(1e5), shape))


BACKEND_CASES = [kind((WIDTH,)) for kind in EXAMPLES]


def value_gradient_and_mean(likelihood, shape):
    """A function of rows and of parameters without their shape."""

    def function(rows, flat):
        value, gradient = value_and_gradient(lambda each: likelihood.log_prob(rows, ops.reshape(each, shape)), flat)
        return value, gradient, likelihood.mean(ops.reshape(flat, shape), rows)

    return function


def numbers() -> dict[str, np.ndarray]:
    """Of every likelihood: log p(x|z), its gradient and the mean, compiled, and the parameters that a decoder gives."""
    found = {}
    for likelihood in BACKEND_CASES:
        rows, parameters = fixed_case(likelihood)
        shape = parameters.shape
        measured = compiled(value_gradient_and_mean(likelihood, shape))
        value, gradient, mean = (to_numpy(each) for each in measured(tensor(rows), tensor(parameters.reshape(40, -1))))
        flat_start(likelihood)
        decoder = networks.decoder(2, likelihood, (4,), random(0))
        for number, variable in enumerate(decoder.trainable_variables):
            variable.assign(np.float32(0.5 * random(number).standard_normal(variable.shape)))
        name = likelihood.name
        found |= {f"{name} value": value, f"{name} gradient": gradient.reshape(shape), f"{name} mean": mean}
        found[f"{name} decoder"] = to_numpy(decoder(tensor(random(1).standard_normal((3, 2)))))
    return found


def write_numbers(path):
    """Called in a process of its own, on another backend."""
    np.savez(path, **numbers())


@pytest.fixture(scope="module")
def own_numbers():
    return numbers()


@pytest.fixture(scope="module", params=[b for b in ("tensorflow", "jax", "torch") if b != BACKEND])
def other_numbers(request, tmp_path_factory):
    """The numbers of another backend."""
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    path, here = tmp_path_factory.mktemp("numbers") / "numbers.npz", Path(__file__).resolve()
    environment = {"KERAS_BACKEND": request.param, "PYTHONPATH": f"{here.parent}{os.pathsep}{here.parent.parent}"}
    command = f"import {here.stem}; {here.stem}.write_numbers({str(path)!r})"
    process = subprocess.run(
        [sys.executable, "-c", command], env=os.environ | environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    return np.load(path)


def require_numbers(found, likelihood):
    rows, parameters = fixed_case(likelihood)
    pair = (found[f"{likelihood.name} {part}"].astype("float64") for part in ("value", "gradient"))
    require_scipy(likelihood, rows, parameters, tuple(pair))


@pytest.mark.parametrize("likelihood", BACKEND_CASES, ids=lambda likelihood: likelihood.name)
def test_compiled_densities_are_scipys(likelihood, own_numbers):
    require_numbers(own_numbers, likelihood)


@pytest.mark.parametrize("likelihood", BACKEND_CASES, ids=lambda likelihood: likelihood.name)
def test_backends_agree(likelihood, own_numbers, other_numbers):
    require_numbers(other_numbers, likelihood)
    for part in ("mean", "decoder"):
        key = f"{likelihood.name} {part}"
        # float32, with exponentials of log rates up to 15 and sums in another order
        np.testing.assert_allclose(own_numbers[key], other_numbers[key], rtol=4e-6, atol=1e-6, err_msg=key)
