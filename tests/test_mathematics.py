"""The models' mathematics, each piece against a formula, SciPy, finite differences or another Keras backend.

Runs on the backend in use: KERAS_BACKEND=jax pytest tests/test_mathematics.py.
"""

import dataclasses
import functools
import importlib.util
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import aae_deterministic
import aae_gaussian
import aae_universal
import avb
import vae_baseline
from common import networks
from common.adversarial import discriminator_loss, frozen, generator_loss
from common.arrays import DataError
from common.binarisation import random_stream, tagged_stream
from common.data import Dataset
from common.files import RunError
from common.likelihoods import binary_cross_entropy
from common.model import gaussian_kl, to_numpy
from common.scripts import SCRIPTS
from common.training import Batches, WarmUp, adam_per_network, fit, image_batches, require_warm_up

import keras
import numpy as np
import pytest
from helpers import gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers, ops
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import bernoulli, kstest, norm

BACKEND = keras.backend.backend()
JIT = BACKEND == "jax"  # TensorFlow compiles a tiny network by XLA for longer than the test runs it
IMAGE_SHAPE = (6, 5)
SCALE = 1.7  # of the prior: a formula that leaves it out must not pass
MODELS = {  # with weights that are not 1, for the same reason
    "aae_deterministic": (aae_deterministic, {"adversarial_weight": 3.0}),
    "aae_gaussian": (aae_gaussian, {"adversarial_weight": 3.0}),
    "aae_universal": (aae_universal, {"adversarial_weight": 3.0, "noise_dim": 3, "noise_scale": 0.8}),
    "vae": (vae_baseline, {"beta": 2.0}),
    "avb": (avb, {"adaptive_contrast": False}),
    "avb_adaptive_contrast": (avb, {"adaptive_contrast": True}),
}
every_model = pytest.mark.parametrize("name", MODELS)
every_adversarial_model = pytest.mark.parametrize("name", [name for name in MODELS if name != "vae"])


def float32(array):
    return np.asarray(array, "float32")


def normal_numbers(*seed, shape):
    return float32(np.random.default_rng(seed).standard_normal(shape))


def tensor(array):
    return ops.convert_to_tensor(float32(array))


def images(count=16):
    return tensor(np.random.default_rng(3).random((count, *IMAGE_SHAPE)))


def tiny_config(name, **changes):
    script, own = MODELS[name]
    small = {"latent_dim": 3, "hidden_units": (12, 8), "prior_scale": SCALE, "learning_rate": 1e-2}
    if script is avb:
        small |= {"discriminator_units": (12, 8), "noise_basis": 4, "noise_dim": 3, "noise_units": (8,)}
    return script.Config(**small | own | changes)


def tiny_model(name, **changes):
    """A model whose weights are random everywhere, zero nowhere, and the same on every backend."""
    model = MODELS[name][0].build(tiny_config(name, **changes), IMAGE_SHAPE)
    for number, variable in enumerate(model.trainable_variables):
        variable.assign(0.4 * normal_numbers(0, number, shape=variable.shape))
    if isinstance(model, avb.AVB):  # the factors a start near exp(-5): bring the noise up to the size of z0
        bias = model.encoder.get_layer("scales").bias
        bias.assign(bias + 5.0)
    return model


def tiny_model_with_fixed_noise(name, **changes):
    """`tiny_model` whose draws are the same arrays in every call and on every backend."""
    model = tiny_model(name, **changes)
    model.noise = lambda shape: tensor(normal_numbers(1, *shape, shape=shape))
    model.prior_like = lambda z: tensor(SCALE * normal_numbers(2, shape=z.shape))
    return model


def combined_loss(model, x):
    """What `model.fit` takes the gradient of."""
    return lambda: model.compute_loss(x=x, y_pred=model(x))


@functools.cache
def combined_gradient(name):
    """The gradient of the combined loss with respect to each network's weights."""
    model = tiny_model_with_fixed_noise(name)
    arrays = iter(gradients(combined_loss(model, images()), model.trainable_variables))
    return {key: [next(arrays) for _ in network.trainable_variables] for key, network in model.networks.items()}


def term(model, x, *names):
    def value():
        terms = model.objective(x, model(x))
        return sum(terms[name] for name in names)

    return value


def largest(arrays):
    return max(np.abs(array).max() for array in arrays)


def test_every_script_is_tested():
    assert {script.__name__ for script, _ in MODELS.values()} == set(SCRIPTS)


# Each network's gradient is that of its own player's loss


def log_normal(z, mean, deviation):
    return ops.sum(-0.5 * ((z - mean) / deviation) ** 2 - ops.log(deviation) - 0.5 * np.log(2 * np.pi), axis=-1)


def own_losses(model, x):
    """What each network minimises, in the papers' formulas and with nothing frozen or stopped.

    Whatever another player would also move enters as an array: the code in the loss of decoder and
    discriminator, the moments in adaptive contrast.
    """
    fixed = {key: tensor(to_numpy(value)) for key, value in model(x).items()}
    z, scale = fixed["z"], tensor([SCALE, SCALE, SCALE])

    def reconstruction(code):
        logits = model.decoder(code)
        log_likelihood = x * ops.log_sigmoid(logits) + (1 - x) * ops.log_sigmoid(-logits)
        return -ops.mean(ops.sum(log_likelihood, axis=(1, 2)))

    def logistic(first, second):
        return -ops.mean(ops.log_sigmoid(first)) - ops.mean(ops.log_sigmoid(-second))

    def aae():
        def encoder():
            code = model(x)["z"]
            return reconstruction(code) - 3.0 * ops.mean(ops.log_sigmoid(model.discriminator(code)))

        def discriminator():
            return logistic(model.discriminator(model.prior_like(z)), model.discriminator(z))

        return {"encoder": encoder, "discriminator": discriminator}

    def vae():
        def encoder():
            outputs = model(x)
            variance = ops.exp(outputs["log_var"])
            ratio = variance / SCALE**2
            kl = 0.5 * ops.sum(ratio + ops.square(outputs["mean"]) / SCALE**2 - 1 - ops.log(ratio), axis=-1)
            return reconstruction(outputs["z"]) + 2.0 * ops.mean(kl)

        return {"encoder": encoder}

    def avb_to_prior():
        def t(code):
            return model.discriminator([x, code])[:, 0] + ops.sum(ops.square(code), axis=-1) / (2 * SCALE**2)

        def encoder():
            code = model(x)["z"]
            return reconstruction(code) + ops.mean(t(code))

        return {"encoder": encoder, "discriminator": lambda: logistic(t(z), t(model.prior_like(z)))}

    def avb_to_own_moments():
        mean, deviation = fixed["mean"], ops.sqrt(fixed["variance"])

        def t(standardised):
            return model.discriminator([x, standardised])[:, 0]

        def encoder():
            code = model(x)["z"]
            log_ratio = log_normal(code, mean, deviation) - log_normal(code, 0.0, scale)
            return reconstruction(code) + ops.mean(t((code - mean) / deviation) + log_ratio)

        opposite = model.noise(z.shape)
        return {"encoder": encoder, "discriminator": lambda: logistic(t((z - mean) / deviation), t(opposite))}

    if isinstance(model, avb.AVB):
        losses = avb_to_own_moments() if model.adaptive_contrast else avb_to_prior()
    else:
        losses = vae() if isinstance(model, vae_baseline.VAE) else aae()
    return {"decoder": lambda: reconstruction(z)} | losses


TERMS_OF = {"decoder": {"reconstruction"}, "encoder": {"reconstruction", "generator", "kl"}}


@every_model
def test_each_networks_terms_have_the_value_of_its_own_loss(name):
    model, x = tiny_model_with_fixed_noise(name), images()
    for network, own_loss in own_losses(model, x).items():
        names = [t for t in model.terms if t in TERMS_OF.get(network, {"discriminator"})]
        # float32 sums of some 30 pixels in another order
        np.testing.assert_allclose(to_numpy(term(model, x, *names)()), to_numpy(own_loss()), rtol=1e-5)


@every_model
def test_each_networks_gradient_is_that_of_its_own_loss_alone(name):
    model, x = tiny_model_with_fixed_noise(name), images()
    own = own_losses(model, x)
    assert set(own) == set(model.networks)
    for network, own_loss in own.items():
        expected = gradients(own_loss, model.networks[network].trainable_variables)
        assert largest(expected) > 1e-2
        for gradient, wanted in zip(combined_gradient(name)[network], expected, strict=True):
            # float32, with sums in another order
            np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-5 * largest(expected))


@every_model
def test_each_networks_gradient_agrees_with_finite_differences_of_its_own_loss(name):
    model, x = tiny_model_with_fixed_noise(name), images()
    for network, own_loss in own_losses(model, x).items():
        variables = model.networks[network].trainable_variables
        start = [to_numpy(variable.value) for variable in variables]
        gradient = combined_gradient(name)[network]
        length = float(np.sqrt(sum(np.sum(g**2) for g in gradient)))
        for seed in range(3):
            direction = [g / length + 0.02 * normal_numbers(seed, shape=g.shape) for g in gradient]
            values = []
            for step in (0.01, -0.01):
                for variable, value, along in zip(variables, start, direction, strict=True):
                    variable.assign(value + step * along)
                values.append(float(to_numpy(own_loss())))
            for variable, value in zip(variables, start, strict=True):
                variable.assign(value)
            expected = sum(np.sum(g * along) for g, along in zip(gradient, direction, strict=True))
            # Rounding is 1e-6 * 30 nats / 0.02 and ReLU's kinks are of the step's size: 2 % covers both.
            assert (values[0] - values[1]) / 0.02 == pytest.approx(expected, abs=0.02 * length)


@every_adversarial_model
def test_no_player_moves_the_others_weights(name):
    model, x = tiny_model_with_fixed_noise(name), images()
    primal = [t for t in model.terms if t != "discriminator"]
    assert largest(gradients(term(model, x, *primal), model.discriminator.trainable_variables)) == 0
    others = model.encoder.trainable_variables + model.decoder.trainable_variables
    assert largest(gradients(term(model, x, "discriminator"), others)) == 0
    assert largest(gradients(term(model, x, primal[1]), model.decoder.trainable_variables)) == 0


@every_adversarial_model
@pytest.mark.parametrize(
    "network, unchanged", [("decoder", {"generator", "kl", "discriminator"}), ("discriminator", {"reconstruction"})]
)
def test_a_networks_weights_change_its_own_terms_only(name, network, unchanged):
    model, x = tiny_model_with_fixed_noise(name), images()
    before = {key: float(to_numpy(value)) for key, value in model.objective(x, model(x)).items()}
    for variable in model.networks[network].trainable_variables:
        variable.assign(variable + 0.1)
    after = {key: float(to_numpy(value)) for key, value in model.objective(x, model(x)).items()}
    assert {key for key in before if before[key] == after[key]} == unchanged & set(model.terms)


def test_the_moments_of_adaptive_contrast_pass_no_gradient():
    model = tiny_model("avb_adaptive_contrast")
    z, mean, variance = (keras.Variable(np.exp(normal_numbers(seed, shape=(5, 3)))) for seed in range(3))

    def everything_that_contrast_gives():
        z_hat, log_ratio = model.contrast({"z": z.value, "mean": mean.value, "variance": variance.value})
        return ops.sum(z_hat**3) + ops.sum(log_ratio)

    of_z, of_mean, of_variance = gradients(everything_that_contrast_gives, [z, mean, variance])
    assert np.all(of_z != 0) and not of_mean.any() and not of_variance.any()


@pytest.mark.parametrize("name", ["aae_gaussian", "vae"])  # AVB's moments are those of a batch
def test_the_logged_terms_are_averages_over_images_whatever_the_batch(name):
    model, x = tiny_model(name), images(count=10)
    model.noise = lambda shape: ops.zeros(shape)  # each image's terms are then its own, in whatever batch
    model.compile(jit_compile=JIT)
    logs = model.evaluate(x, batch_size=4, return_dict=True, verbose=0)  # batches of 4, 4 and 2
    whole = model.objective(x, model(x))
    for key in set(model.terms) - {"discriminator"}:  # which is not the same, for its prior draws
        assert logs[key] == pytest.approx(float(to_numpy(whole[key])), rel=1e-5)
    assert set(logs) == {"loss", *model.terms}


# Losses


FINITE = {"allow_nan": False, "width": 32}


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    st.lists(st.tuples(st.floats(-3, 3, **FINITE), st.floats(-4, 2, **FINITE)), min_size=1, max_size=4),
    st.sampled_from([0.5, 1.0, 5.0]),
)
def test_gaussian_kl_is_the_integral_and_adds_up_over_dimensions(dimensions, scale):
    def integral(mean, log_var):
        q, p = norm(mean, np.exp(0.5 * log_var)), norm(0, scale)
        return quad(lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), *(mean + q.std() * np.array([-12, 12])))[0]

    mean, log_var = float32(dimensions).T
    found = to_numpy(gaussian_kl(tensor(mean[None]), tensor(log_var[None]), scale))
    expected = sum(integral(*dimension) for dimension in dimensions)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)  # float32, with -1 + 1 in it


def test_gaussian_kl_has_a_value_for_each_image():
    mean, log_var = tensor(normal_numbers(0, shape=(4, 3))), tensor(normal_numbers(1, shape=(4, 3)))
    one_by_one = [to_numpy(gaussian_kl(m[None], v[None], 2.0)) for m, v in zip(mean, log_var, strict=True)]
    np.testing.assert_allclose(to_numpy(gaussian_kl(mean, log_var, 2.0)), np.concatenate(one_by_one), rtol=1e-6)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    st.integers(1, 4),
    st.sampled_from([(3,), (2, 3)]),
    st.integers(0, 2**32 - 1),
    st.floats(0.1, 15),
)
def test_binary_cross_entropy_is_bernoullis_log_likelihood(count, shape, seed, spread):
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 2, (count, *shape)).astype("float32")
    logits = random.uniform(-spread, spread, pixels.shape).astype("float32")
    expected = -bernoulli.logpmf(pixels, expit(logits.astype("float64"))).sum() / count
    found = to_numpy(binary_cross_entropy(tensor(pixels), tensor(logits)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)  # float32: logits of 15 leave 6e-7 beside 15


def test_binary_cross_entropy_of_a_grey_pixel_is_the_mean_over_its_binarisations():
    grey, logits = to_numpy(images()), normal_numbers(0, shape=(16, *IMAGE_SHAPE))
    white, black = (bernoulli.logpmf(value, expit(logits.astype("float64"))) for value in (1, 0))
    expected = -(grey * white + (1 - grey) * black)
    found = to_numpy(binary_cross_entropy(tensor(grey), tensor(logits)))
    np.testing.assert_allclose(found, expected.sum(axis=(1, 2)).mean(), rtol=1e-5)


@pytest.mark.parametrize("pixel, logit, nats", [(1, 100, 0), (0, -100, 0), (1, -100, 100), (0, 100, 100)])
def test_binary_cross_entropy_is_exact_where_the_sigmoid_is_not(pixel, logit, nats):
    found = binary_cross_entropy(tensor([[pixel]]), tensor([[logit]]))
    assert float(to_numpy(found)) == pytest.approx(nats, abs=1e-30)


def test_losses_of_a_discriminator_that_sees_nothing():
    zeros = ops.zeros((5, 1))
    assert float(to_numpy(discriminator_loss(zeros, zeros))) == pytest.approx(2 * np.log(2), rel=1e-6)
    assert float(to_numpy(generator_loss(zeros))) == pytest.approx(np.log(2), rel=1e-6)


@pytest.mark.parametrize("first, second, nats", [(100, -100, 0), (-100, 100, 200), (100, 100, 100)])
def test_losses_at_extreme_logits(first, second, nats):
    first, second = (tensor([[logit]]) for logit in (first, second))
    assert float(to_numpy(discriminator_loss(first, second))) == pytest.approx(nats, abs=1e-30)
    assert float(to_numpy(generator_loss(-first))) == pytest.approx(max(0, float(to_numpy(first)[0, 0])), abs=1e-30)


# T(x, z) is a log ratio of densities


def quantiles(distribution, count):
    """`count` points that stand for the distribution without the error of a random sample."""
    return distribution.ppf((np.arange(count) + 0.5) / count)


def kl(q, p):
    return quad(lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), -15, 15, limit=200)[0]


def jensen_shannon(q, p):
    def integrand(z):
        half = np.logaddexp(q.logpdf(z), p.logpdf(z)) - np.log(2)
        return 0.5 * (q.pdf(z) * (q.logpdf(z) - half) + p.pdf(z) * (p.logpdf(z) - half))

    return quad(integrand, -15, 15, limit=200)[0]


def test_the_optimum_of_the_discriminator_loss_is_2_log_2_less_2_jensen_shannon():
    q, p = norm(0.8, 0.6), norm(0, 1.5)

    def log_ratio(z):
        return tensor(q.logpdf(z) - p.logpdf(z))

    loss = discriminator_loss(log_ratio(quantiles(q, 20_000)), log_ratio(quantiles(p, 20_000)))
    # The outermost of the 20,000 points stand for tails in which a softplus stays below 10 nats: 2 * 10 / 20,000.
    assert float(to_numpy(loss)) == pytest.approx(2 * np.log(2) - 2 * jensen_shannon(q, p), abs=1e-3)


def test_avb_trains_t_to_the_log_ratio_of_known_gaussians_image_by_image():
    q_of = [norm(-0.8, 0.6), norm(1.0, 0.9)]  # of a black and of a white image
    p, count = norm(0, SCALE), 128
    x = tensor(np.repeat([np.zeros(IMAGE_SHAPE), np.ones(IMAGE_SHAPE)], count, axis=0))
    z = np.concatenate([quantiles(q, count) for q in q_of])[:, None]
    prior_draws = np.tile(quantiles(p, count), 2)[:, None]
    model = avb.build(tiny_config("avb", latent_dim=1, discriminator_units=(64, 64)), IMAGE_SHAPE)
    model.encoder.trainable = model.decoder.trainable = False
    model.call = lambda x, training=False: {"z": tensor(z), "parameters": ops.zeros_like(x)}
    model.prior_like = lambda z: tensor(prior_draws)
    rate = keras.optimizers.schedules.CosineDecay(1e-2, 500)
    model.compile(keras.optimizers.Adam(rate), jit_compile=JIT)
    for _ in range(500):
        logs = model.train_on_batch(x, return_dict=True)

    # A net of this size came within 0.05 to 0.11 nats in 500 steps from eight starts, of a ratio that ranges over 1.5.
    for q, image in zip(q_of, (x[0], x[-1]), strict=True):
        bulk = np.linspace(*q.ppf([0.05, 0.95]), 41)
        t = model.log_odds(model.discriminator, ops.tile(image[None], (41, 1, 1)), tensor(bulk[:, None]))
        np.testing.assert_allclose(to_numpy(t), q.logpdf(bulk) - p.logpdf(bulk), atol=0.15)
    optimum = 2 * np.log(2) - 2 * np.mean([jensen_shannon(q, p) for q in q_of])
    assert logs["discriminator"] == pytest.approx(optimum, abs=0.01)  # flat there: of second order in T's error
    estimate = float(to_numpy(model.divergences(x, model(x))["kl_estimated_nats"]).mean())
    assert estimate == pytest.approx(np.mean([kl(q, p) for q in q_of]), abs=0.05)


class TwoHumps:
    """0.3 N(-1, 0.4^2) + 0.7 N(1.5, 0.7^2): a q that is no Gaussian."""

    def logpdf(self, z):
        return np.logaddexp(np.log(0.3) + norm.logpdf(z, -1, 0.4), np.log(0.7) + norm.logpdf(z, 1.5, 0.7))

    def pdf(self, z):
        return np.exp(self.logpdf(z))

    def moment(self, order):
        return quad(lambda z: z**order * self.pdf(z), -15, 15)[0]


def test_adaptive_contrast_gives_the_kl_of_a_posterior_that_is_no_gaussian():
    q, p = TwoHumps(), norm(0, SCALE)
    mean, variance = q.moment(1), q.moment(2) - q.moment(1) ** 2
    z = np.linspace(-3, 5, 2001)
    model = tiny_model("avb_adaptive_contrast", latent_dim=1)
    outputs = {"z": z, "mean": np.full_like(z, mean), "variance": np.full_like(z, variance)}
    outputs = {key: tensor(value[:, None]) for key, value in outputs.items()}
    z_hat, log_ratio = map(to_numpy, model.contrast(outputs))
    np.testing.assert_allclose(z_hat[:, 0], (z - mean) / variance**0.5, atol=1e-5)
    np.testing.assert_allclose(log_ratio, norm.logpdf(z, mean, variance**0.5) - p.logpdf(z), atol=1e-4)  # float32

    # T* compares q with N(0, 1) in the standardised coordinate, where q's density is deviation * q(z).
    exact_t = q.logpdf(z) + 0.5 * np.log(variance) - norm.logpdf(z_hat[:, 0])
    integral = np.trapezoid(q.pdf(z) * (exact_t + log_ratio), z)
    assert integral == pytest.approx(kl(q, p), abs=1e-4)  # the tails beyond -3 and 5 hold less than 1e-5


def test_adaptive_contrast_without_a_difference_to_see_gives_the_closed_form_of_gaussians():
    mean, deviation, count = np.array([0.5, -1.0]), np.array([0.3, 1.2]), 20_000
    z = mean + deviation * normal_numbers(4, shape=(count, 2))
    config = tiny_config("avb_adaptive_contrast", latent_dim=2)
    model = avb.build(config, IMAGE_SHAPE)  # T starts at 0, its optimum here
    outputs = {"z": z, "mean": np.tile(mean, (count, 1)), "variance": np.tile(deviation**2, (count, 1))}
    outputs = {key: tensor(value) for key, value in outputs.items()}
    estimate = float(to_numpy(model.divergences(images(count), outputs)["kl_estimated_nats"]).mean())
    expected = sum(kl(norm(m, d), norm(0, SCALE)) for m, d in zip(mean, deviation, strict=True))
    log_ratio = to_numpy(model.contrast(outputs)[1])
    assert estimate == pytest.approx(expected, abs=4 * float(log_ratio.std()) / count**0.5)  # four standard errors


# Codes, given their noise


@pytest.mark.parametrize("name", ["aae_gaussian", "vae"])
def test_gaussian_codes_have_the_encoders_mean_and_log_variance(name):
    model = tiny_model(name)
    x = ops.tile(images(1), (5000, 1, 1))
    outputs = {key: to_numpy(value) for key, value in model(x).items()}
    mean, log_variance = np.split(to_numpy(model.encoder(images(1)))[0], 2)
    np.testing.assert_allclose(outputs["mean"][0], mean, rtol=1e-5)
    np.testing.assert_allclose(outputs["log_var"][0], log_variance, rtol=1e-5)
    assert np.abs(log_variance).min() > 0.1  # or exp would be the same for sigma and its square
    for z, one_mean, one_log_variance in zip(outputs["z"].T, mean, log_variance, strict=True):
        # right in all but one of 10,000 seeds
        assert kstest(z, norm(one_mean, np.sqrt(np.exp(one_log_variance))).cdf).pvalue > 1e-4


@pytest.mark.parametrize("name", ["aae_deterministic", "aae_gaussian", "vae"])
def test_encode_gives_the_exact_mean_and_uses_no_random_numbers(name):
    x = to_numpy(images())
    model, plain = tiny_model(name), tiny_model(name)
    mean = model.encode(x, mean=True)
    exact = to_numpy(model.encoder(tensor(x)))[:, :3]  # the first half of a Gaussian encoder's output
    np.testing.assert_allclose(mean, exact, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model.encode(x, mean=True), mean)
    np.testing.assert_array_equal(model.encode(x), plain.encode(x))  # the draws are those of a model without `mean`
    assert model.encode(x[:0], mean=True).shape == (0, 3)
    assert (np.abs(plain.encode(x) - mean).max() == 0.0) == (name == "aae_deterministic")


@pytest.mark.parametrize("name", ["aae_universal", "avb", "avb_adaptive_contrast"])
def test_a_posterior_without_an_exact_mean_has_none(name):
    model, plain, x = tiny_model(name), tiny_model(name), to_numpy(images())
    with pytest.raises(DataError, match=r"^.*: q\(z\|x\) is known by its draws alone[^\n]*$") as refused:
        model.encode(x, mean=True)
    np.testing.assert_array_equal(model.encode(x), plain.encode(x))
    remedy = re.search(r"such as (.*)$", str(refused.value))[1]
    assert eval(remedy, {"model": model, "x": x}).shape == (16, 3)


def test_universal_codes_are_the_encoders_of_scaled_noise():
    model, x = tiny_model_with_fixed_noise("aae_universal"), images()
    expected = model.encoder([x, 0.8 * model.noise((16, 3))])
    np.testing.assert_allclose(to_numpy(model(x)["z"]), to_numpy(expected), rtol=1e-5)


@every_model
def test_logits_are_the_decoders_of_the_code(name):
    outputs = tiny_model(name)(images())
    expected = tiny_model(name).decoder(outputs["z"])  # same weights
    np.testing.assert_allclose(to_numpy(outputs["parameters"]), to_numpy(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("different", [1, 8])
def test_avbs_moments_are_those_over_the_noise_for_each_image(different):
    draws = 2500
    model = tiny_model("avb_adaptive_contrast")
    x = ops.tile(images(different), (draws, 1, 1))
    z, mean, variance = (
        to_numpy(value).reshape(draws, different, 3) for value in map(model(x).get, ("z", "mean", "variance"))
    )
    assert np.ptp(mean, axis=0).max() < 1e-5 and np.ptp(variance, axis=0).max() < 1e-5  # the image alone decides
    if different > 1:
        assert mean[0].std(axis=0).min() > 0.05  # or moments over the images would pass
    # Five standard errors: deviation / sqrt(draws) of a mean, and at most variance * sqrt(3 / draws) of a variance
    # for the bounded kurtosis (< 4) of a sum of elu networks.
    np.testing.assert_array_less(np.abs(z.mean(axis=0) - mean[0]), 5 * np.sqrt(variance[0] / draws))
    np.testing.assert_array_less(np.abs(z.var(axis=0) / variance[0] - 1), 5 * np.sqrt(3 / draws))


# Two backends against each other


@functools.cache
def trace(name):
    """The gradient, and the terms and weights of three updates, by a key that says where.

    Of networks with one hidden layer: to compile is what takes the time, and a second layer has no other operations.
    """
    small = {"hidden_units": (12,)} | ({"discriminator_units": (12,)} if MODELS[name][0] is avb else {})
    model, x, config = tiny_model_with_fixed_noise(name, **small), images(), tiny_config(name, **small)
    model.compile(adam_per_network(model, config), jit_compile=JIT)
    arrays = {}
    for update in range(3):
        logs = model.train_on_batch(x, return_dict=True)
        arrays |= {f"{name} {key} of update {update}": np.array(value) for key, value in logs.items()}
        if update == 0:  # Adam's first moments are then 1 - beta_1 of the gradient: nothing else has to be compiled
            moments = [to_numpy(v.value) for v in model.optimizer.variables if "momentum" in v.path]
            assert len(moments) == len(model.trainable_variables)
            arrays |= {f"{name} gradient {number}": m / (1 - config.beta_1) for number, m in enumerate(moments)}
    return arrays | {f"{name} weight {number}": to_numpy(v.value) for number, v in enumerate(model.trainable_variables)}


def write_traces(path):
    """Called in a process of its own, on another backend."""
    networks.seeded = lambda random: "zeros"  # `tiny_model` sets all weights, and JAX compiles draws of each shape anew
    np.savez(path, **{key: array for name in MODELS for key, array in trace(name).items()})


@pytest.fixture(scope="module", params=[b for b in ("tensorflow", "jax", "torch") if b != BACKEND])
def other_traces(request, tmp_path_factory):
    """The traces of every model on another backend."""
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    path, here = tmp_path_factory.mktemp("traces") / "traces.npz", Path(__file__).resolve()
    environment = {"KERAS_BACKEND": request.param, "PYTHONPATH": f"{here.parent}{os.pathsep}{here.parent.parent}"}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"  # of its compiler, which takes three times as long with them
    command = f"import test_mathematics; test_mathematics.write_traces({str(path)!r})"
    process = subprocess.run(
        [sys.executable, "-c", command], env=os.environ | environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    return np.load(path)


@every_model
def test_backends_agree(name, other_traces):
    for key, array in trace(name).items():
        # float32, with sums in another order. Adam divides a gradient by its own size, so that 1e-6 of rounding
        # on one of 1e-4 is 1 % of each step of 0.01.
        tolerance = {"atol": 3e-4} if "weight" in key else {"rtol": 1e-4, "atol": 2e-5}
        np.testing.assert_allclose(array, other_traces[key], err_msg=key, **tolerance)


# frozen


def test_a_frozen_network_computes_the_same_and_passes_gradients_to_its_inputs_only():
    network = keras.Sequential([layers.Input((3,)), layers.Dense(8, "tanh"), layers.BatchNormalization()])
    for number, variable in enumerate(network.weights):  # moving mean and variance too, which are not trainable
        variable.assign(np.exp(0.3 * normal_numbers(number, shape=variable.shape)))
    state = [to_numpy(variable.value) for variable in network.non_trainable_variables]
    inputs = keras.Variable(normal_numbers(9, shape=(5, 3)))
    np.testing.assert_array_equal(to_numpy(frozen(network)(inputs.value)), to_numpy(network(inputs.value)))

    def loss(call):
        return lambda: ops.sum(call(inputs.value) ** 2)

    watched = [inputs, *network.trainable_variables]
    of_inputs, *of_weights = gradients(loss(frozen(network)), watched)
    wanted, *of_weights_unfrozen = gradients(loss(network), watched)
    np.testing.assert_allclose(of_inputs, wanted, rtol=1e-5)
    assert largest(of_weights) == 0 and all(gradient.any() for gradient in of_weights_unfrozen)
    for before, variable in zip(state, network.non_trainable_variables, strict=True):
        np.testing.assert_array_equal(before, to_numpy(variable.value))


# The optimiser


def flat(arrays):
    return np.concatenate([np.ravel(array) for array in arrays])


def weights(model):
    return {key: flat(network.get_weights()) for key, network in model.networks.items()}


def movement(steps=1, **changes):
    """How far the optimiser moves each network's weights, given the same gradients in any configuration."""
    model = tiny_model("aae_gaussian")
    before, optimizer = weights(model), adam_per_network(model, tiny_config("aae_gaussian", **changes))
    for step in range(steps):
        optimizer.apply([tensor(normal_numbers(step, shape=v.shape)) for v in model.trainable_variables])
    return {key: after - before[key] for key, after in weights(model).items()}


@pytest.mark.parametrize("still", ["encoder", "decoder", "discriminator"])
def test_a_rate_factor_of_0_stops_one_network(still):
    moved = movement(**{f"{still}_rate_factor": 0.0})
    assert {key for key, change in moved.items() if not change.any()} == {still}


def test_a_rate_factor_of_2_is_twice_the_learning_rate_for_one_network():
    def moved(learning_rate, *factors):
        factors = dict(
            zip(("encoder_rate_factor", "decoder_rate_factor", "discriminator_rate_factor"), factors, strict=True)
        )
        return movement(steps=3, learning_rate=learning_rate, **factors)

    factors, rates = moved(0.01, 1.0, 1.0, 2.0), moved(0.02, 0.5, 0.5, 1.0)
    for key, change in factors.items():
        np.testing.assert_array_equal(change, rates[key])  # powers of two: exact


def test_with_two_steps_of_t_the_others_wait_and_step_by_their_mean_gradient():
    model = tiny_model("avb")
    optimizer = adam_per_network(model, tiny_config("avb", learning_rate=0.01, discriminator_steps=2))
    start, gradients = weights(model), [ops.full(v.shape, 3.0) for v in model.trainable_variables]
    optimizer.apply(gradients)
    first = weights(model)
    assert {key for key in start if (first[key] != start[key]).any()} == {"discriminator"}
    optimizer.apply([-gradient / 3.0 for gradient in gradients])
    for key in ("encoder", "decoder"):  # (3 - 1) / 2 > 0: Adam's first step is its rate against the mean's sign
        np.testing.assert_allclose(start[key] - weights(model)[key], 0.01, atol=1e-6)


def test_the_kl_warms_up_over_a_share_of_the_epochs():
    model = tiny_model("vae")
    warm_up = WarmUp(0.5, 4)
    warm_up.set_model(model)
    weights_of_epochs = []
    for epoch in range(4):
        warm_up.on_epoch_begin(epoch)
        weights_of_epochs.append(float(to_numpy(model.warm_up_weight)))
    assert weights_of_epochs == [0.5, 1.0, 1.0, 1.0]


def first_weight(share, epochs):
    warm_up, model = WarmUp(share, epochs), SimpleNamespace(warm_up_weight=keras.Variable(1.0))
    warm_up.set_model(model)
    warm_up.on_epoch_begin(0)
    return float(to_numpy(model.warm_up_weight))


@pytest.mark.parametrize(("share", "epochs"), [(0.3, 3), (0.5, 2), (0.1, 10), (1 / 3, 3), (0.9, 1), (0.01, 99)])
def test_a_warm_up_that_would_be_none_is_refused_with_what_would_work(share, epochs):
    assert first_weight(share, epochs) == 1.0
    config = vae_baseline.Config(warm_up=share)
    with pytest.raises(RunError, match=rf"^--warm-up \S+ of {epochs} epochs? is none: [^\n]*$") as refused:
        require_warm_up(config, epochs)
    longer = int(re.search(r"--epochs (\d+) or more", str(refused.value))[1])
    assert first_weight(share, longer) < 1.0 == first_weight(share, longer - 1)
    require_warm_up(config, longer)
    larger = re.search(r"--warm-up (\S+) or more", str(refused.value))
    assert bool(larger) == (epochs > 1)
    if larger:
        assert first_weight(float(larger[1]), epochs) < 1.0
        require_warm_up(dataclasses.replace(config, warm_up=float(larger[1])), epochs)


def test_no_warm_up_no_epochs_and_an_older_run_are_not_refused():
    require_warm_up(vae_baseline.Config(warm_up=0.3), 0)
    require_warm_up(vae_baseline.Config(), 3)
    require_warm_up(aae_gaussian.Config(), 3)
    require_warm_up(vae_baseline.Config(warm_up=0.3, resume="an older run"), 3)


@pytest.mark.parametrize("changes", [{"epochs": 3}, {"epochs": None, "updates": 1}])
def test_a_run_whose_warm_up_would_be_none_is_refused_before_any_work(tmp_path, changes):
    config = vae_baseline.Config(data="sample", warm_up=0.3, results=str(tmp_path / "results"), **changes)
    with pytest.raises(RunError, match=r"^--warm-up 0.3 of \d epochs? is none: [^\n]*--epochs 4 or more"):
        vae_baseline.main(config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["vae", "avb", "avb_adaptive_contrast"])
def test_the_warm_up_weighs_the_kl_alone(name):
    model, x = tiny_model_with_fixed_noise(name), images()
    full = model.objective(x, model(x))
    model.warm_up_weight.assign(0.25)
    quarter = model.objective(x, model(x))
    for term in model.terms:
        factor = 0.25 if term == "kl" else 1.0
        np.testing.assert_allclose(to_numpy(quarter[term]), factor * to_numpy(full[term]), rtol=1e-5)


@pytest.mark.parametrize("shape", [(28, 28), (7, 10)])
def test_convolutions_give_images_of_any_size(shape):
    random = np.random.default_rng(0)
    decoder = networks.decoder(3, shape, (5,), random, "conv")
    encoder = networks.encoder(shape, 4, (5,), random, kind="conv")
    assert decoder(tensor(np.zeros((2, 3)))).shape == (2, *shape)
    assert encoder(tensor(np.zeros((2, *shape)))).shape == (2, 4)
    pair = networks.pair_discriminator(shape, 3, (5, 5), random, "conv")
    assert pair([tensor(np.zeros((2, *shape))), tensor(np.zeros((2, 3)))]).shape == (2, 1)
    corner = ops.convert_to_numpy(decoder(tensor(normal_numbers(1, shape=(64, 3)))))[:, -1, -1]
    assert corner.std() > 0  # the last pixel depends on the code: nothing is padded


def test_convolutions_refuse_images_that_are_no_pictures():
    for build in (
        networks.encoder,
        lambda shape, n, units, random, kind: networks.decoder(n, shape, units, random, kind),
    ):
        with pytest.raises(ValueError, match="height, width"):
            build((9,), 2, (4,), np.random.default_rng(0), kind="conv")


def test_the_rates_fall_along_half_a_cosine():
    model, updates = tiny_model("vae"), 8
    config = tiny_config("vae", learning_rate=0.01, final_rate_factor=0.1, encoder_rate_factor=2.0)
    optimizer = adam_per_network(model, config, updates)
    steps = []
    for _ in range(updates + 2):
        before = weights(model)["encoder"]
        optimizer.apply([ops.ones(v.shape) for v in model.trainable_variables])
        steps.append(before - weights(model)["encoder"])
    # Under a constant gradient each step of Adam is its rate.
    done = np.minimum(np.arange(updates + 2) / updates, 1.0)
    rates = 2.0 * 0.01 * (0.1 + 0.9 * (1 + np.cos(np.pi * done)) / 2)
    np.testing.assert_allclose(np.stack(steps), np.tile(rates[:, None], len(steps[0])), atol=1e-6)  # weights near 1


def test_with_two_steps_of_t_the_rates_of_all_fall_together():
    model, updates = tiny_model("avb"), 8
    config = tiny_config("avb", learning_rate=0.01, final_rate_factor=0.1, discriminator_steps=2)
    optimizer = adam_per_network(model, config, updates)
    for step in range(updates):
        before = weights(model)
        optimizer.apply([ops.ones(v.shape) for v in model.trainable_variables])
        done = (1 + np.cos(np.pi * step / updates)) / 2
        for key, factor in {"decoder": step % 2, "discriminator": config.discriminator_rate_factor}.items():
            moved = before[key] - weights(model)[key]
            np.testing.assert_allclose(moved, factor * 0.01 * (0.1 + 0.9 * done), atol=1e-6)  # weights near 1


def test_the_first_step_of_a_training_is_adams():
    factors = {"encoder": 0.0, "decoder": 0.5, "discriminator": 2.0}
    changes = {f"{key}_rate_factor": value for key, value in factors.items()}
    model = tiny_model_with_fixed_noise("aae_gaussian")
    before, gradient = weights(model), combined_gradient("aae_gaussian")
    model.compile(adam_per_network(model, tiny_config("aae_gaussian", learning_rate=0.01, **changes)), jit_compile=JIT)
    model.train_on_batch(images())
    for key, factor in factors.items():
        # arXiv 1412.6980, end of section 2: epsilon 1e-7 is beside the uncorrected root of 0.001 g^2.
        g = flat(gradient[key])
        expected = -0.01 * factor * g / (np.abs(g) + 1e-7 / np.sqrt(0.001))
        # A compiled gradient differs from an eager one by up to 1e-6, and its share of the step with it where it is
        # small; weights of size 1 are rounded to 1e-7.
        np.testing.assert_allclose(weights(model)[key] - before[key], expected, rtol=1e-3, atol=2e-5)


# Batches


def numbered(count):
    return np.arange(count, dtype="float32")[:, None] / count


def one_epoch(batches):
    return np.concatenate([batches[index][0] for index in range(len(batches))])


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000), st.integers(0, 5))
def test_an_epoch_shows_no_image_twice_and_depends_on_seed_and_epoch_alone(count, batch_size, seed, epoch):
    batches, jumped = (Batches(numbered(count), batch_size, "none", seed) for _ in range(2))
    for earlier in range(epoch + 1):
        batches.shuffle(earlier)
    jumped.shuffle(epoch)
    shown = one_epoch(batches) if len(batches) else np.zeros((0, 1))
    assert len(shown) == count // batch_size * batch_size == len(np.unique(shown))
    assert set(shown[:, 0]) <= set(numbered(count)[:, 0])
    if len(batches):
        np.testing.assert_array_equal(shown, one_epoch(jumped))


def test_the_order_differs_between_epochs_and_between_seeds():
    batches, other_seed = (Batches(numbered(40), 10, "none", seed) for seed in (0, 1))
    first = one_epoch(batches)
    assert not np.array_equal(first, one_epoch(other_seed))
    batches.shuffle(1)
    assert not np.array_equal(first, one_epoch(batches))


def state(*seed):
    return np.random.SeedSequence(list(seed)).generate_state(8).tolist()


def test_a_tagged_stream_coincides_with_no_other():
    assert state(5) == state(5, 0) == state(5, 0, 0)  # NumPy pads with zeros: why there are tags
    assert random_stream(5, "validation").random() == np.random.default_rng(5).random()
    numbers = [(), (0,), (0, 0), (1,), (1, 0), (1, 0, 0), (0, 1), (5,), (5, 0), (2**32 - 1,)]
    found = [tagged_stream(tag, *each).random() for tag in ("", "a", "ab", "ex post") for each in numbers]
    old = [(), *itertools.product((0, 1, 5), repeat=1), *itertools.product((0, 1, 5), repeat=3), (5, 0, 0, 1)]
    found += {np.random.default_rng(list(seed)).random() for seed in old}
    assert len(set(found)) == len(found)
    assert tagged_stream("a", np.int64(1), 0).random() == tagged_stream("a", 1, 0).random()
    for wrong in (-1, 2**32):
        with pytest.raises(ValueError, match="from 0 to 4294967295"):
            tagged_stream("a", wrong)


def test_dynamic_binarisation_has_the_right_mean_and_is_new_in_each_epoch():
    grey = np.broadcast_to(float32([0.0, 0.2, 0.7, 1.0]), (4000, 4))
    batches, again, other_seed = (Batches(grey, 1000, "dynamic", seed) for seed in (0, 0, 1))
    first = one_epoch(batches)
    assert set(np.unique(first)) == {0.0, 1.0}
    # five standard errors of a Bernoulli mean, 0 where nothing is random
    assert np.all(np.abs(first.mean(axis=0) - grey[0]) <= 5 * np.sqrt(grey[0] * (1 - grey[0]) / 4000) + 1e-7)
    np.testing.assert_array_equal(first, one_epoch(again))
    assert not np.array_equal(first, one_epoch(other_seed))
    assert not np.array_equal(batches[0][0], batches[1][0])  # the images are alike: the noise is not
    batches.shuffle(1)
    assert not np.array_equal(first, one_epoch(batches))


def test_training_shows_every_batch_of_every_epoch_once_and_in_order(monkeypatch, tmp_path):
    shown, batch_of = [], Batches.__getitem__

    def recorded(batches, index):
        shown.append((batches.epoch, index))
        return batch_of(batches, index)

    monkeypatch.setattr(Batches, "__getitem__", recorded)
    x = to_numpy(images(12))
    config = tiny_config("aae_deterministic", epochs=3, batch_size=4)
    model, dataset = tiny_model("aae_deterministic"), Dataset(x, None, x[:2], None, x[:2], None, "noise")
    model.faster_with_xla = JIT
    fit(model, *image_batches(dataset, config), config, config.epochs, tmp_path)
    # Keras looks at a batch or two before the first epoch.
    assert shown[-9:] == [(epoch, index) for epoch in range(3) for index in range(3)]


# Networks


def noise_basis_encoder(seed=0):
    return networks.noise_basis_encoder(IMAGE_SHAPE, 3, (12,), 4, 5, (8, 8), np.random.default_rng(seed))


def test_each_v_depends_on_its_own_noise_only():
    network, x = noise_basis_encoder(), images(2)
    noise = normal_numbers(0, shape=(2, 4, 5))
    z0, a, v = map(to_numpy, network([x, tensor(noise)]))
    assert z0.shape == (2, 3) and a.shape == v.shape == (2, 4, 3)
    assert a.min() > 0
    for basis in range(4):
        changed = noise.copy()
        changed[:, basis] += 1.0
        z0_after, a_after, v_after = map(to_numpy, network([x, tensor(changed)]))
        np.testing.assert_array_equal(z0, z0_after)
        np.testing.assert_array_equal(a, a_after)
        assert {i for i in range(4) if not np.allclose(v[:, i], v_after[:, i], rtol=1e-5)} == {basis}
    np.testing.assert_allclose(v, to_numpy(network([1 - x, tensor(noise)])[2]), rtol=1e-6)  # nor does v depend on x


def test_the_v_are_networks_of_their_own():
    noise = tensor(np.tile(normal_numbers(0, shape=(1, 1, 5)), (1, 4, 1)))
    v = to_numpy(noise_basis_encoder()([images(1), noise])[2])
    assert len(np.unique(v.round(4), axis=1)[0]) == 4


def test_the_code_of_the_universal_encoder_depends_on_images_and_noise():
    network = networks.encoder(IMAGE_SHAPE, 3, (12,), np.random.default_rng(0), noise_dim=2)
    x, noise = images(4), tensor(normal_numbers(0, shape=(4, 2)))
    code = to_numpy(network([x, noise]))
    assert code.shape == (4, 3)
    assert np.abs(code - to_numpy(network([x, -noise]))).min() > 1e-4
    assert np.abs(code - to_numpy(network([1 - x, noise]))).min() > 1e-4


@every_model
def test_weights_follow_the_seed_and_differ_between_layers(name):
    def kernels(seed):
        model = MODELS[name][0].build(tiny_config(name, hidden_units=(8, 8, 8), seed=seed), IMAGE_SHAPE)
        return [to_numpy(v.value) for v in model.trainable_variables if "kernel" in v.path]

    first, again, other = kernels(0), kernels(0), kernels(1)
    for kernel, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(kernel, same)
    drawn = [kernel for kernel in first if kernel.any()]  # the last of AVB's discriminator starts at zero
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True) if a.any())
    starts = [tuple(np.ravel(kernel)[:4] / kernel.std()) for kernel in drawn]
    assert len({np.round(start, 3).tobytes() for start in starts}) == len(drawn)
