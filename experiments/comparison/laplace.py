"""A lower bound on log p(x) of any decoder and prior, from a proposal around the modes of the posterior.

It needs no encoder. The proposal is a mixture of Student t distributions. Their centres are maxima of log p(x|z) +
log p(z), which Newton's method finds from several starts. Their shapes are those of Laplace's approximation. With an
8-D code, a thousand draws for each image suffice, where annealing needs hundreds of temperatures. If no start leads to
some mode of the posterior, the mass of this mode is missing and the bound is too low.
"""

from common.backend import compiled, value_and_gradient
from common.binarisation import tagged_stream
from common.evaluation.annealing import log_weights_of, student_log_density, student_noise
from common.model import LatentModel, to_numpy

import numpy as np
from keras import ops
from scipy.special import expit, logsumexp, softmax

NEWTON_STEPS = 10
LENGTHS = np.array([0.0, 0.03, 0.1, 0.3, 1.0])  # of a Newton step: the best of these is taken
DIFFERENCE = 0.02  # of central differences, in units of the prior's scale
PRIOR_DRAWS = 5000  # for the prior's covariance
FREEDOM = 5  # degrees of freedom of the Student t, whose wide tails keep the weights bounded
DEFENCE = 0.1  # share of the draws that go to all modes in equal parts
SEED = 3501  # of the draws for the prior's covariance, and of the chains that check the bound


def log_weights(model: LatentModel, images, starts, samples: int) -> np.ndarray:
    """log p(x|z) + log p(z) - log r(z|x) in nats for `samples` draws of the proposal r: (n, samples).

    `images` are binary, (n, *image_shape), and `starts`, (n, modes, latent_dim), are codes near the maxima. The decoder
    gives logits of Bernoulli pixels. `common.evaluation.likelihood.importance_weighted_bound` turns the result into the
    bound. Costs n * samples passes of the decoder, and 2 latent_dim + 6 for each start and each of NEWTON_STEPS.
    """
    random = tagged_stream("laplace")
    joint = compiled(lambda x, z: model.likelihood.log_prob(x, model.decoder(z)) + model.prior.log_prob(z))
    of_images = zip(np.asarray(images, "float32"), *proposals(model, images, starts), strict=True)
    return np.stack([log_weights_of(joint, image, *draw(*each, samples, random)) for image, *each in of_images])


def draw(log_shares, centres, roots, count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`count` draws of a mixture of Student t distributions, (count, d), and the log density of each, (count,).

    `log_shares` are (modes,), `centres` (modes, d), and `roots` of the shapes (modes, d, d), lower triangular. Draws
    are rounded to float32, as the decoder sees them.
    """
    chosen = random.choice(len(centres), count, p=np.exp(log_shares))
    noise = student_noise(count, centres.shape[1], FREEDOM, random)
    draws = centres[chosen] + (roots[chosen] @ noise[..., None])[..., 0]
    draws = draws.astype("float32").astype("float64")
    modes = zip(centres, roots, strict=True)
    log_t = [student_log_density(draws, centre[None], root, FREEDOM)[:, 0] for centre, root in modes]
    return draws, logsumexp(log_shares[:, None] + log_t, axis=0)


def log_determinants(roots: np.ndarray) -> np.ndarray:
    """log |root| of triangular matrices: (..., d, d) -> (...)."""
    return np.log(np.diagonal(roots, axis1=-2, axis2=-1)).sum(axis=-1)


def proposals(model: LatentModel, images, starts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log shares (n, modes), maxima (n, modes, latent_dim) and roots (n, modes, latent_dim, latent_dim) of each image.

    The curvature is that of Gauss and Newton: J' diag(p (1 - p)) J of the decoder, plus the inverse covariance of the
    whole prior. J comes from central differences. The share of a mode is Laplace's estimate of its mass, but DEFENCE of
    all draws go to the modes in equal parts.
    """
    count, modes, dimensions = starts.shape
    flat = np.repeat(np.asarray(images, "float64").reshape(count, -1), modes, axis=0)
    draws = to_numpy(model.prior.sample(PRIOR_DRAWS, SEED)).astype("float64")
    precision = np.linalg.inv(np.atleast_2d(np.cov(draws, rowvar=False)))
    z = np.asarray(starts, "float64").reshape(-1, dimensions)
    for _ in range(NEWTON_STEPS):
        gradient, curvature = derivatives(model, flat, z, precision)
        step = np.linalg.solve(curvature, gradient[..., None])[..., 0]
        trials = z + LENGTHS[:, None, None] * step
        values = np.array([log_joint(model, flat, trial) for trial in trials])
        z = trials[np.argmax(values, axis=0), np.arange(len(z))]
    _, curvature = derivatives(model, flat, z, precision)
    roots = np.linalg.cholesky(np.linalg.inv(curvature)).reshape(count, modes, dimensions, dimensions)
    log_masses = log_joint(model, flat, z).reshape(count, modes) + log_determinants(roots)
    shares = (1.0 - DEFENCE) * softmax(log_masses, axis=1) + DEFENCE / modes
    return np.log(shares), z.reshape(starts.shape), roots


def derivatives(model: LatentModel, flat: np.ndarray, z: np.ndarray, precision: np.ndarray):
    """Gradient (n, latent_dim) and negative curvature (n, latent_dim, latent_dim) of log p(x|z) + log p(z) at `z`."""
    step = DIFFERENCE * model.prior.scale
    moves = step * np.eye(z.shape[1])
    slopes = np.stack([(logits(model, z + move) - logits(model, z - move)) / (2.0 * step) for move in moves], axis=1)
    means = expit(logits(model, z))
    _, prior_gradient = value_and_gradient(model.prior.log_prob, ops.convert_to_tensor(z, "float32"))
    gradient = np.einsum("ndp,np->nd", slopes, flat - means) + to_numpy(prior_gradient)
    return gradient, (slopes * (means * (1.0 - means))[:, None]) @ slopes.swapaxes(1, 2) + precision


def log_joint(model: LatentModel, flat: np.ndarray, z: np.ndarray) -> np.ndarray:
    """log p(x|z) + log p(z) in nats: (n,)."""
    values = logits(model, z)
    log_prior = to_numpy(model.prior.log_prob(ops.convert_to_tensor(z, "float32")))
    return (flat * values - np.logaddexp(0.0, values)).sum(axis=1) + log_prior


def logits(model: LatentModel, z: np.ndarray) -> np.ndarray:
    """The decoder's logits in double precision, (n, pixels)."""
    parts = [to_numpy(part).reshape(-1, np.prod(model.image_shape)) for part in model.parameters_of(z)]
    return np.concatenate(parts).astype("float64")
