"""Reference values for a reconstruction in nats: the optimum of all models, and what a model without a code reaches."""

from common.arrays import chunks
from common.likelihoods import Likelihood

import numpy as np
from keras import ops
from scipy.special import xlogy


def cross_entropy_floor(images: np.ndarray) -> float:
    """The lowest possible Bernoulli cross-entropy of the images, in nats: summed over pixels, averaged over images.

    It is the entropy of the pixels themselves: 0 for binary images, 45.5 nats for greyscale MNIST.
    """
    entropy = 0.0
    for chunk in chunks(images):
        entropy += (-xlogy(chunk, chunk) - xlogy(1.0 - chunk, 1.0 - chunk)).sum(dtype="float64")
    return float(entropy / len(images))


def mean_image_cross_entropy(train_images, images: np.ndarray) -> float:
    """Cross-entropy of `images` under independent pixels with the training images' means, in nats.

    It is summed over pixels and averaged over images. Training images may be mapped from a file. A model that ignores
    its code ends at this value, which is 205.8 nats on MNIST.
    """
    total = np.zeros(train_images.shape[1:])
    for chunk in chunks(train_images):  # image by image, in the order of a sum over the whole array
        total = np.concatenate([total[None], chunk]).sum(axis=0)
    # One more image with pixels of 0.5: else a pixel that is always 0 in training makes any other value impossible.
    pixel_means = (total + 0.5) / (len(train_images) + 1)
    image_means = images.mean(axis=0, dtype="float64")
    return float(-(xlogy(image_means, pixel_means) + xlogy(1.0 - image_means, 1.0 - pixel_means)).sum())


def constant_model(likelihood: Likelihood, train_rows, rows: np.ndarray) -> float:
    """Mean -log p(x) of rows, in nats, under the parameters that suit the training rows best without a code.

    Means are those of the training rows. Deviations, shares and rates are the likeliest ones. A logistic scale and a
    dispersion are the likeliest ones of a grid, in steps of 19 and 67 %. Training rows may be read in parts.
    """
    parameters = likelihood.constant(train_rows)[None]
    total = 0.0
    for chunk in chunks(rows):
        repeated = ops.convert_to_tensor(np.repeat(parameters, len(chunk), axis=0))
        log_prob = likelihood.log_prob(ops.convert_to_tensor(chunk, "float32"), repeated)
        total -= ops.convert_to_numpy(log_prob).sum(dtype="float64")
    return float(total / len(rows))
