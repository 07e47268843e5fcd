"""Adaptive contrast's moments from few noise draws: the bias of the reported KL, the encoder's gradient, and limits.

q(z|x) is a Gaussian here, z = sum_k a_k v_k with normal v_k, and T is 0, its optimum for exact moments. The dimensions
of z are independent, so one call with hundreds of them has hundreds of repetitions.
"""

import dataclasses

import avb
from common.arrays import DataError
from common.config import check
from common.files import RunError
from common.model import to_numpy
from common.priors import GaussianPrior

import keras
import numpy as np
import pytest
from helpers import gradients
from keras import ops
from scipy.integrate import quad
from scipy.special import digamma
from scipy.stats import beta, kstest, norm

WIDE = 1e6  # scale of a prior whose density is flat, so that only log r has a gradient
BASES = {"one": (1.0,), "sixteen equal": (0.25,) * 16, "sixteen unequal": tuple(0.7 ** np.arange(16))}


class WithoutT(avb.AVB):
    """z = sum_k a_k v_k in each of `dimensions` dimensions, with normal v_k from NumPy; T is 0."""

    def __init__(self, a, dimensions, seed=0, scale=1.0):
        networks = {"encoder": None, "discriminator": None}
        super().__init__(
            True, len(a), dimensions, prior=GaussianPrior(dimensions, scale), seed=0, likelihood=(1,), **networks
        )
        self.a = keras.Variable(np.array(a, "float32"))
        self.random = np.random.default_rng(seed)
        self.encoder = self.encoded

    def noise(self, shape):
        return ops.convert_to_tensor(self.random.standard_normal(shape).astype("float32"))

    def encoded(self, inputs):
        x, v = inputs
        return 0.0 * x, ops.broadcast_to(self.a[None, :, None], ops.shape(v)), v

    def log_odds(self, discriminator, x, z_hat):
        return ops.zeros_like(z_hat[:, 0])


def rows(count):
    return ops.zeros((count, 1))


def excess(model, count):
    """The reported KL, and that of log r alone, less log q(z|x) - log p(z) of the same draws: means over the images."""
    outputs = model.infer(rows(count))
    log_q = norm.logpdf(to_numpy(outputs["z"]), scale=np.sqrt(np.sum(np.square(to_numpy(model.a))))).sum(axis=1)
    exact = (log_q - to_numpy(model.prior.log_prob(outputs["z"]))).mean()
    reported = to_numpy(model.divergences(rows(count), outputs)["kl_estimated_nats"])
    return reported.mean() - exact, to_numpy(model.contrast(outputs)[1]).mean() - exact


@pytest.mark.parametrize(
    ("basis", "count"), [("one", 10), ("sixteen equal", 10), ("sixteen unequal", 10), ("sixteen equal", 100)]
)
def test_the_reported_kl_of_a_gaussian_is_unbiased_at_any_number_of_noise_draws(basis, count):
    dimensions, repetitions = 200, 40
    model = WithoutT(BASES[basis], dimensions)
    found = np.array([excess(model, count) for _ in range(repetitions)])
    errors = found.std(axis=0, ddof=1) / repetitions**0.5
    assert abs(found[:, 0].mean()) < 5 * errors[0]
    assert found[:, 1].mean() > 10 * errors[1]  # what the loss states


@pytest.mark.parametrize(("dimensions", "bias"), [(8, 0.043), (32, 0.17)])
def test_the_bias_of_the_loss_is_as_the_docstring_says(dimensions, bias):
    each = log_bias(np.full(16, 1.0 / 16.0), 100)
    assert -0.5 * dimensions * each == pytest.approx(bias, rel=0.05)
    assert -0.5 * 8 * (np.log(1 / 2) + digamma(16 / 2) - np.log(16 / 2)) == pytest.approx(3.0, rel=0.05)  # two images


def log_bias(parts, count):
    """`avb.log_variance_bias` of one image and dimension."""
    return to_numpy(avb.log_variance_bias(ops.convert_to_tensor(parts[None, :, None].astype("float32")), count)).item()


@pytest.mark.parametrize("count", [2, 3, 10, 100, 10_000])
def test_the_bias_of_one_noise_vector_is_that_of_chi_squared_in_closed_form(count):
    half = (count - 1) / 2
    exact = np.log((count - 1) / count) + digamma(half) - np.log(half)
    assert log_bias(np.array([0.37]), count) == pytest.approx(exact, rel=1e-3, abs=1e-6)  # float32, and the series


def entropy_gradient(a, count, dimensions):
    """a_k times the gradient of the KL's term for each a_k, per dimension; with exact moments, minus the k-th share."""
    model = WithoutT(a, dimensions, scale=WIDE)
    drawn = model.noise((count, len(a), dimensions))
    model.noise = lambda shape: drawn

    def kl():
        outputs = model.infer(rows(count))
        return ops.mean(model.contrast(outputs)[1])

    (gradient,) = gradients(kl, [model.a])
    return np.array(a) * gradient / dimensions


@pytest.mark.parametrize("count", [2, 10])
def test_the_gradient_of_one_noise_vector_is_that_of_the_exact_moments_at_any_batch_size(count):
    np.testing.assert_allclose(entropy_gradient((0.3,), count, 50), [-1.0], rtol=1e-4)  # in each batch, not on average


@pytest.mark.parametrize("count", [3, 10])
def test_the_gradient_of_the_deviation_is_right_and_small_parts_get_too_much_of_it(count):
    dimensions, parts = 20_000, np.array([0.9, 0.1])
    found = -entropy_gradient(np.sqrt(parts), count, dimensions)
    # Products of the two noises vary by at most 1 / sqrt(count - 1) a dimension about their mean, 0.
    error = 1 / (dimensions * (count - 1)) ** 0.5
    assert found.sum() == pytest.approx(1.0, abs=5 * error)
    ratio = beta((count - 1) / 2, (count - 1) / 2)  # of the second vector's sum of squares to both vectors'
    share = ratio.expect(lambda b: parts[1] * b / (parts[0] * (1 - b) + parts[1] * b))
    assert found[1] == pytest.approx(share, abs=5 * error)
    assert share / parts[1] == pytest.approx({3: 1.84, 10: 1.17}[count], abs=5e-3)


def law_of_z_hat(count):
    """The distribution of (v_i - mean) / deviation for `count` normal v_i, deviation with ddof 0 (Thompson, 1935)."""
    bound = (count - 1) ** 0.5
    return beta((count - 2) / 2, (count - 2) / 2, loc=-bound, scale=2 * bound)


def test_z_hat_at_the_least_batch_is_near_a_normal_number():
    def divergence(count):
        law, bound = law_of_z_hat(count), (count - 1) ** 0.5
        return quad(lambda u: law.pdf(u) * (law.logpdf(u) - norm.logpdf(u)), -bound, bound)[0]

    assert divergence(avb.FEWEST_NOISE_DRAWS) == pytest.approx(0.012, abs=5e-4)
    assert divergence(4) == pytest.approx(0.18, abs=5e-3)
    model = WithoutT((0.6,), 2000)
    z_hat = to_numpy(model.contrast(model.infer(rows(avb.FEWEST_NOISE_DRAWS)))[0])
    assert kstest(z_hat[0], law_of_z_hat(avb.FEWEST_NOISE_DRAWS).cdf).pvalue > 1e-3
    pair = to_numpy(model.contrast(model.infer(rows(2)))[0])
    np.testing.assert_allclose(np.abs(pair), 1.0, rtol=1e-3)  # all that T could see


def test_the_loss_keeps_the_moments_as_they_are():
    model = WithoutT(BASES["sixteen equal"], 8)
    model.discriminator, model.noise = keras.Sequential(), lambda shape: ops.ones(shape)
    outputs = WithoutT(BASES["sixteen equal"], 8).infer(rows(10))
    terms = model.adversarial_terms(rows(10), outputs)
    assert float(to_numpy(terms["kl"])) == float(to_numpy(ops.mean(model.contrast(outputs)[1])))


def test_exact_moments_and_no_contrast_have_no_bias_to_subtract():
    model = WithoutT(BASES["one"], 4)
    outputs = model.infer(rows(10))
    plain = {key: outputs[key] for key in ("z", "mean", "variance")}
    log_ratio = to_numpy(model.contrast(outputs)[1])
    np.testing.assert_array_equal(to_numpy(model.divergences(rows(10), plain)["kl_estimated_nats"]), log_ratio)
    assert to_numpy(model.divergences(rows(1), {key: value[:1] for key, value in plain.items()})["kl_estimated_nats"])
    model.adaptive_contrast = False
    assert not to_numpy(model.divergences(rows(10), outputs)["kl_estimated_nats"]).any()


# Limits


def test_a_single_image_has_no_moments_and_two_have():
    model = WithoutT(BASES["sixteen equal"], 8)
    with pytest.raises(DataError, match=r"^adaptive contrast needs the noise draws of 2 images or more[^\n]*$"):
        model.divergences(rows(1), model.infer(rows(1)))
    assert np.isfinite(to_numpy(model.divergences(rows(2), model.infer(rows(2)))["kl_estimated_nats"])).all()


def test_a_batch_too_small_for_moments_is_refused_before_any_work(tmp_path, monkeypatch):
    config = avb.Config(data="sample", results=str(tmp_path / "results"), batch_size=9)
    with pytest.raises(RunError, match=r"^--batch-size 9 gives [^\n]* set 10 or more, or --no-adaptive-contrast$"):
        avb.main(config)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(avb, "train_and_report", lambda config, *_: {"batch_size": config.batch_size})
    for taken in ({"batch_size": 10}, {"adaptive_contrast": False}, {"resume": "an older run"}):
        assert avb.main(dataclasses.replace(config, **taken))["batch_size"] == taken.get("batch_size", 9)
    assert check(dataclasses.replace(config, batch_size=2)).batch_size == 2  # an older run still loads
