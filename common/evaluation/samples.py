"""How far are samples from real images? A classifier's features, Fréchet distance, nearest training images."""

import math
from pathlib import Path

from common.arrays import DataError, chunks
from common.data import Dataset
from common.evaluation.probes import MOST_CLASSES, nothing_to_tell
from common.files import whole
from common.model import BATCH_NUMBERS, in_batches, to_numpy
from common.networks import CONVOLUTION, LAST, row_input, seeded
from common.numbers import Absent, Estimate, share_of
from common.transforms import likelihood_of

import keras
import numpy as np
from keras import layers, ops
from sklearn import config_context
from sklearn.neighbors import NearestNeighbors

FEATURES = 64  # numbers per image, in the classifier's last hidden layer
CLASSIFIER_EPOCHS = 4
SEARCH_NUMBERS = 2**22  # pixels that scikit-learn's search takes at a time, in float64; at most 256 images
NOT_FINITE = "some images are infinite or not a number"


class Classifier:
    """A small classifier for the data in use: it gives features (n, 64) and classes (n,) of images.

    It is convolutional if images have height and width, else fully connected. It is trained once on the training rows
    of the `Dataset`, for a few epochs, and saved in `folder` under the data's checksum. `accuracy` is measured on test
    images. Raises DataError without training labels of 2 to MOST_CLASSES classes.
    """

    def __init__(self, dataset: Dataset, folder: Path, progress=None):
        if reason := nothing_to_tell(dataset.y_train):
            raise DataError(f"{reason}; a classifier needs 2 to {MOST_CLASSES:,}")
        self.dataset = dataset
        inputs, seen = row_input(likelihood_of(dataset.likelihood, dataset.transform))
        random = np.random.default_rng(0)
        features = layers.Dense(FEATURES, activation="relu", kernel_initializer=seeded(random))(
            hidden_features(seen, random)
        )
        self.labels, self.targets = np.unique(dataset.y_train, return_inverse=True)
        logits = layers.Dense(len(self.labels), kernel_initializer=seeded(random))(features)
        self.network = keras.Model(inputs, [features, logits])
        path = Path(folder) / f"{dataset.checksum[:16]}.weights.h5"
        try:
            self.network.load_weights(path)
        except (OSError, ValueError, KeyError) as error:
            if path.exists():
                print(f"{path} cannot be used ({' '.join(str(error).split())}): it is trained again", flush=True)
            self.train(progress or (lambda text, done, total: None))
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole(path) as unfinished:
                self.network.save_weights(unfinished)
        self.accuracy = share_of(self.classes(dataset.x_test) == dataset.y_test)

    def train(self, progress):
        """Train for a few epochs; calls `progress(text, done, total)` after every update."""
        network = keras.Model(self.network.input, self.network.outputs[1])
        images = self.dataset.x_train
        batch = min(len(images), 128, max(1, BATCH_NUMBERS // math.prod(self.dataset.image_shape)))
        updates = len(images) // batch
        rate = keras.optimizers.schedules.CosineDecay(2e-3, CLASSIFIER_EPOCHS * updates)
        network.compile(keras.optimizers.Adam(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        for epoch in range(CLASSIFIER_EPOCHS):
            order = np.random.default_rng([0, epoch]).permutation(len(images))
            for index in range(updates):
                chosen = order[index * batch : (index + 1) * batch]
                network.train_on_batch(images[chosen], self.targets[chosen])
                progress("classifier", epoch * updates + index + 1, CLASSIFIER_EPOCHS * updates)

    def features(self, images) -> np.ndarray:
        """The last hidden layer, (n, 64), for rows as the model takes them, or their means: (n, *image_shape)."""
        return np.concatenate([to_numpy(self.network(batch)[0]) for batch in in_batches(images)])

    def classes(self, images) -> np.ndarray:
        """The likeliest class of each image: (n,)."""
        likeliest = [to_numpy(ops.argmax(self.network(batch)[1], axis=1)) for batch in in_batches(images)]
        return self.labels[np.concatenate(likeliest)]


def hidden_features(x, random: np.random.Generator):
    """Two strided convolutions, or one dense layer for images that are rows of numbers: (batch, n)."""
    if len(x.shape) < 3:
        return layers.Dense(256, activation="relu", kernel_initializer=seeded(random))(x)
    x = x if len(x.shape) == 4 else layers.Reshape((*x.shape[1:], 1))(x)
    for filters in (16, 32):
        kernel = seeded(random)
        x = layers.Conv2D(filters, 5, strides=2, kernel_initializer=kernel, **CONVOLUTION)(x)
    return layers.Flatten(data_format=LAST)(x)


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of the means and covariances of two sets of features, (n, d).

    Dowson & Landau, 1982; on a classifier's features, Heusel et al., arXiv 1706.08500. They use the Inception network.
    This project uses its `Classifier`, so numbers can only be compared within one data set. Between two samples of n
    rows from one distribution, the value is too large by about d^2 / 2n times the variance of a feature.
    """
    means = [features.mean(axis=0, dtype="float64") for features in (first, second)]
    covariances = [np.cov(features, rowvar=False, dtype="float64") for features in (first, second)]
    # The product is similar to a positive semi-definite matrix: its eigenvalues are real and not negative.
    roots = np.sqrt(np.maximum(np.linalg.eigvals(covariances[0] @ covariances[1]).real, 0.0))
    return float(((means[0] - means[1]) ** 2).sum() + sum(map(np.trace, covariances)) - 2.0 * roots.sum())


def frechet_estimate(first: np.ndarray, second: np.ndarray, resamples: int = 20, seed: int = 0) -> Estimate | Absent:
    """`frechet_distance`, with the spread over resampled rows of both (bootstrap) as its standard error.

    The error is right for sets that differ. Between samples of one distribution it is up to twice too large. `Absent`
    if features are not finite.
    """
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return Absent(NOT_FINITE)
    random = np.random.default_rng(seed)

    def resampled(features):
        return features[random.integers(len(features), size=len(features))]

    distances = [frechet_distance(resampled(first), resampled(second)) for _ in range(resamples)]
    return Estimate(frechet_distance(first, second), float(np.std(distances, ddof=1)))


def nearest_images(images: np.ndarray, train_images) -> tuple[np.ndarray, np.ndarray]:
    """Index of the training image nearest to each image, and the Euclidean distance over pixels: two of (n,).

    Training images, (m, *image_shape), may be mapped from a file. If several are equally near, it returns any of them.
    """
    flat = images.reshape(len(images), -1)
    indices, distances, start = np.zeros(len(images), int), np.full(len(images), np.inf), 0
    at_once = int(np.clip(SEARCH_NUMBERS // flat.shape[1], 20, 256))  # images of both sets in each thread
    for chunk in chunks(train_images):
        search = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(chunk.reshape(len(chunk), -1))
        with config_context(pairwise_dist_chunk_size=at_once):
            chunk_distances, chunk_indices = (column[:, 0] for column in search.kneighbors(flat))
        nearer = chunk_distances < distances
        distances[nearer], indices[nearer] = chunk_distances[nearer], start + chunk_indices[nearer]
        start += len(chunk)
    return indices, distances
