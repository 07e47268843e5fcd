"""common/priors.py: densities and samples against SciPy, labels, and sampling inside of a compiled function."""

from common.model import to_numpy
from common.priors import PRIORS, GaussianPrior, MixturePrior, SwissRollPrior

import keras
import numpy as np
import pytest
from keras import ops
from scipy.integrate import quad
from scipy.stats import chisquare, kstest, multivariate_normal

SCALE = 1.7
COUNT = 20_000
BALANCED = np.repeat(np.arange(10), COUNT // 10)
LEAST_P_VALUE = 1e-4  # of fixed seeds: a right sampler fails one seed in 10,000
every_prior = pytest.mark.parametrize("name", PRIORS)
prior_with_modes = pytest.mark.parametrize("prior", [MixturePrior(scale=SCALE), SwissRollPrior(scale=SCALE)])


def tensor(array):
    return ops.convert_to_tensor(np.asarray(array, "float32"))


def samples(prior, count=COUNT, seed=0, labels=None):
    return to_numpy(prior.sample(count, seed, labels)).astype("float64")


def scipy_modes(scale):
    """The ten Gaussians of the mixture, their covariances built from rotation matrices."""
    modes = []
    for angle in 2 * np.pi * np.arange(10) / 10:
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        covariance = rotation @ np.diag([0.5**2, 0.1**2]) @ rotation.T
        modes.append(multivariate_normal(scale * rotation @ [1.4, 0], scale**2 * covariance))
    return modes


def plane(half_width, points):
    """A grid of points over the plane, (points^2, 2), and the area that each stands for."""
    axis = np.linspace(-half_width, half_width, points)
    return np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2), (axis[1] - axis[0]) ** 2


def position_on_the_roll(z, scale=SCALE):
    """u in [0, 1] from the radius."""
    return (np.linalg.norm(z, axis=1) / (3 * scale)) ** 2


def likeliest_mode(prior, z):
    return to_numpy(ops.argmax(prior.mode_log_prob(tensor(z)), axis=-1))


# Densities


@pytest.mark.parametrize("latent_dim", [1, 2, 8])
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_gaussian_log_prob(latent_dim, scale):
    z = 3 * scale * np.random.default_rng(0).standard_normal((50, latent_dim))
    expected = multivariate_normal(np.zeros(latent_dim), scale**2 * np.eye(latent_dim)).logpdf(z)
    found = to_numpy(GaussianPrior(latent_dim, scale).log_prob(tensor(z)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)  # float32


@pytest.mark.parametrize("scale", [1.0, SCALE])
def test_mixture_log_prob(scale):
    z = scale * np.random.default_rng(0).uniform(-2.5, 2.5, (200, 2))
    by_mode = np.stack([mode.logpdf(z) for mode in scipy_modes(scale)], axis=1)
    prior = MixturePrior(scale=scale)
    # float32: up to 40 deviations across a mode, and the square doubles the relative error
    np.testing.assert_allclose(to_numpy(prior.mode_log_prob(tensor(z))), by_mode, rtol=1e-5, atol=1e-3)
    expected = np.logaddexp.reduce(by_mode, axis=1) - np.log(10)
    np.testing.assert_allclose(to_numpy(prior.log_prob(tensor(z))), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("prior", [GaussianPrior(2, SCALE), MixturePrior(scale=SCALE)])
def test_densities_integrate_to_1(prior):
    # From the origin to 5.5 deviations everywhere, at 6 points to the smallest deviation, where sums of a Gaussian are
    # integrals to far below float32.
    z, area = plane(half_width=9.5, points=701)
    assert np.exp(to_numpy(prior.log_prob(tensor(z))).astype("float64")).sum() * area == pytest.approx(1, abs=1e-5)


# Samples


@pytest.mark.parametrize(
    "prior, variance",
    [
        (GaussianPrior(2), 1.0),
        (GaussianPrior(2, SCALE), SCALE**2),
        # ten directions average to half of the mean squared radius for each axis
        (MixturePrior(scale=SCALE), SCALE**2 * (1.4**2 + 0.5**2 + 0.1**2) / 2),
    ],
)
def test_moments_of_samples(prior, variance):
    z = samples(prior)
    assert z.shape == (COUNT, 2)
    # five standard errors; the fourth moments of all are below 3 variance^2
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=5 * np.sqrt(variance / COUNT))
    np.testing.assert_allclose(np.cov(z.T), variance * np.eye(2), atol=5 * variance * np.sqrt(2 / COUNT))


def test_moments_of_the_swiss_roll():
    z = samples(SwissRollPrior(scale=SCALE))

    def mean_over_u(function):
        return quad(lambda u: function(3 * SCALE * np.sqrt(u), 4 * np.pi * np.sqrt(u)), 0, 1)[0]

    mean = [
        mean_over_u(lambda radius, angle: radius * np.cos(angle)),
        mean_over_u(lambda radius, angle: radius * np.sin(angle)),
    ]
    product = mean_over_u(lambda radius, angle: radius**2 * np.cos(angle) * np.sin(angle))
    error = 5 * (3 * SCALE) / np.sqrt(COUNT)  # five standard errors of what is at most one radius, 3 SCALE
    np.testing.assert_allclose(z.mean(axis=0), mean, atol=error)
    np.testing.assert_allclose((z**2).sum(axis=1).mean(), (3 * SCALE) ** 2 / 2, atol=3 * SCALE * error)
    np.testing.assert_allclose((z[:, 0] * z[:, 1]).mean(), product, atol=3 * SCALE * error)


def test_mixture_samples_follow_the_density_along_and_across_their_mode():
    z = samples(MixturePrior(scale=SCALE), labels=BALANCED) / SCALE
    angle = 2 * np.pi * BALANCED / 10
    along = (z * np.stack([np.cos(angle), np.sin(angle)], axis=1)).sum(axis=1)
    across = (z * np.stack([-np.sin(angle), np.cos(angle)], axis=1)).sum(axis=1)
    assert kstest((along - 1.4) / 0.5, "norm").pvalue > LEAST_P_VALUE
    assert kstest(across / 0.1, "norm").pvalue > LEAST_P_VALUE
    assert abs(np.corrcoef(along, across)[0, 1]) < 5 / np.sqrt(COUNT)


def test_a_label_names_the_mixtures_likeliest_mode():
    prior = MixturePrior(scale=SCALE)
    z, area = plane(half_width=9.5, points=701)
    best = np.max([mode.pdf(z) for mode in scipy_modes(SCALE)], axis=0).sum() * area / 10  # of all classifiers
    hits = np.mean(likeliest_mode(prior, samples(prior, labels=BALANCED)) == BALANCED)
    assert best > 0.97  # neighbours meet near the origin, 2.8 deviations inside of the centres
    assert hits == pytest.approx(best, abs=5 * np.sqrt(best * (1 - best) / COUNT))  # five standard errors


def test_a_label_names_a_tenth_of_the_swiss_roll():
    z = samples(SwissRollPrior(scale=SCALE), labels=BALANCED)
    within = 10 * position_on_the_roll(z) - BALANCED
    assert within.min() > -1e-4 and within.max() < 1 + 1e-4  # float32
    assert kstest(within, "uniform").pvalue > LEAST_P_VALUE
    angle = 4 * np.pi * np.sqrt(position_on_the_roll(z))
    off = np.angle(np.exp(1j * angle) / (z @ [1, 1j]))
    np.testing.assert_allclose(off, 0, atol=1e-3)  # angles to 4 pi from float32 radii


@pytest.mark.parametrize("integer", [True, False])
@prior_with_modes
def test_without_labels_every_mode_is_drawn_as_often(prior, integer):
    z = samples(prior, seed=1 if integer else keras.random.SeedGenerator(1))
    if isinstance(prior, SwissRollPrior):
        position = position_on_the_roll(z)
        assert kstest(position, "uniform").pvalue > LEAST_P_VALUE  # would show a part tied to the place in it
        modes = np.minimum(9, 10 * position).astype(int)
    else:
        modes = likeliest_mode(prior, z)
    assert chisquare(np.bincount(modes, minlength=10)).pvalue > LEAST_P_VALUE


def test_a_gaussian_refuses_labels():
    with pytest.raises(ValueError, match="no modes"):
        GaussianPrior(2).sample(3, 0, labels=np.arange(3))
    assert GaussianPrior(2).modes == 0


@pytest.mark.parametrize("name", ["mixture", "swiss_roll"])
@pytest.mark.parametrize("latent_dim", [1, 3])
def test_priors_of_the_plane_refuse_other_dimensions(name, latent_dim):
    with pytest.raises(ValueError, match=f"{name}.*not {latent_dim}"):
        PRIORS[name](latent_dim)


# Modes, and walks through them


def test_the_mode_of_a_code_in_the_mixture_is_the_likeliest_to_scipy():
    z = SCALE * np.random.default_rng(0).uniform(-2.5, 2.5, (500, 2))
    by_mode = np.stack([mode.logpdf(z) for mode in scipy_modes(SCALE)], axis=1)
    np.testing.assert_array_equal(to_numpy(MixturePrior(scale=SCALE).mode_of(tensor(z))), by_mode.argmax(axis=1))


@pytest.mark.parametrize("off", [-0.3, 0.0, 0.3])
def test_the_mode_of_a_code_beside_the_roll_is_the_part_that_it_is_beside(off):
    """Along the roll's normal, which meets it at u; windings are 1.5 apart, so no other point of it is nearer."""
    u = (np.arange(1000) + 0.5) / 1000
    u = u[u > 0.05]  # the roll is too tightly wound inside
    turn = np.sqrt(u)
    point = 3 * turn * np.exp(4j * np.pi * turn)
    tangent = (3 + 3 * turn * 4j * np.pi) * np.exp(4j * np.pi * turn)
    point = SCALE * (point + off * 1j * tangent / np.abs(tangent))
    found = to_numpy(SwissRollPrior(scale=SCALE).mode_of(tensor(np.stack([point.real, point.imag], axis=1))))
    np.testing.assert_array_equal(found, np.floor(10 * u))


@prior_with_modes
def test_the_mode_of_a_draw_is_its_label(prior):
    found = to_numpy(prior.mode_of(tensor(samples(prior, labels=BALANCED))))
    assert np.mean(found == BALANCED) > (0.97 if isinstance(prior, MixturePrior) else 0.999)


@prior_with_modes
def test_a_walk_goes_outwards_through_each_mode_in_turn(prior):
    walk = to_numpy(prior.walk(7))
    assert walk.shape == (10, 7, 2)
    modes = to_numpy(prior.mode_of(tensor(walk.reshape(-1, 2))))
    np.testing.assert_array_equal(modes.reshape(10, 7), np.repeat(np.arange(10)[:, None], 7, axis=1))
    radius = np.linalg.norm(walk, axis=2)
    assert (np.diff(radius, axis=1) > 0).all()
    if isinstance(prior, MixturePrior):
        np.testing.assert_allclose(radius[:, [0, 3, 6]], SCALE * np.array([[0.4, 1.4, 2.4]] * 10), rtol=1e-5)
    else:
        u = (radius.ravel() / (3 * SCALE)) ** 2
        np.testing.assert_allclose(u, (np.arange(70) + 0.5) / 70, rtol=1e-4)


# Seeds, and sampling inside of a compiled function


@every_prior
def test_an_integer_seed_repeats_and_a_generator_goes_on(name):
    prior = PRIORS[name](2)
    np.testing.assert_array_equal(samples(prior, 5, seed=3), samples(prior, 5, seed=3))
    assert not np.array_equal(samples(prior, 5, seed=3), samples(prior, 5, seed=4))
    generator, same = (keras.random.SeedGenerator(3) for _ in range(2))
    first = samples(prior, 5, seed=generator)
    np.testing.assert_array_equal(first, samples(prior, 5, seed=same))
    assert not np.array_equal(first, samples(prior, 5, seed=generator))


@every_prior
def test_scale_multiplies_the_samples(name):
    expected = SCALE * samples(PRIORS[name](2))
    np.testing.assert_allclose(samples(PRIORS[name](2, SCALE)), expected, rtol=1e-6)


class Sampler(keras.Model):
    """A row from the prior for each row of its input, so that Keras compiles the sampling."""

    def __init__(self, prior, with_labels):
        super().__init__()
        self.prior, self.with_labels = prior, with_labels
        self.seed_generator = keras.random.SeedGenerator(0)

    def call(self, labels):
        labels = ops.cast(labels[:, 0], "int32")
        return self.prior.sample(ops.shape(labels)[0], self.seed_generator, labels if self.with_labels else None)


@pytest.mark.parametrize(
    "name, with_labels",
    [("gaussian", False), *((name, w) for name in ("mixture", "swiss_roll") for w in (False, True))],
)
def test_sampling_inside_of_a_compiled_function(name, with_labels):
    prior = PRIORS[name](2, SCALE)
    sampler = Sampler(prior, with_labels)
    sampler.compile()
    labels = np.tile(np.arange(10), 100)
    z = sampler.predict(labels[:, None].astype("float32"), batch_size=300, verbose=0)  # the last batch is shorter
    assert z.shape == (1000, 2)
    assert len(np.unique(z, axis=0)) == 1000  # no batch repeats another's noise
    if with_labels:
        if name == "mixture":
            assert np.mean(likeliest_mode(prior, z) == labels) > 0.95
        else:
            np.testing.assert_array_equal(np.floor(10 * position_on_the_roll(z) + 1e-5).clip(0, 9), labels)
    else:
        theirs = samples(prior)
        for axis in (0, 1):
            assert kstest(z[:, axis], theirs[:, axis]).pvalue > LEAST_P_VALUE
