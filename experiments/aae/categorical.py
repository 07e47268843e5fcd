"""The adversarial autoencoder with a categorical head, q(y, z|x), and batches with labels.

Makhzani et al., arXiv 1511.05644, sections 4 to 6: y is the category of an image, and z its style. One discriminator
holds y to Cat(y), one-hot, and another holds z to N(0, I). With labels for some images, a cross-entropy turns the
categories into the classes (section 4). Without labels, the categories are clusters (section 5). With a decoder that
takes W_C y + z, they form a map (section 6).
"""

from collections.abc import Mapping

from common import networks
from common.adversarial import discriminator_loss, frozen, generator_loss
from common.arrays import DataError
from common.data import Dataset
from common.files import RunError
from common.likelihoods import binary_cross_entropy
from common.model import LatentModel, in_batches, to_numpy
from common.priors import separate
from common.splits import SPLIT_SEED
from common.training import Batches, Outcome

import keras
import numpy as np
from keras import layers, ops


class CategoricalPrior:
    """A one-hot y over `categories` equally likely categories, and z ~ N(0, I): codes (y, z) in one vector.

    AAE paper, sections 4 to 6.
    """

    no_density = "a part of the prior is discrete: it has no density"
    modes = 0
    scale = 1.0

    def __init__(self, categories: int, style_dim: int):
        self.categories, self.style_dim = categories, style_dim
        self.latent_dim = categories + style_dim

    def sample(self, count, seed, labels=None):
        """`count` codes, (count, categories + style_dim). `seed` is a `SeedGenerator` or an integer.

        Raises ValueError if labels are given, since no category belongs to a fixed class.
        """
        if labels is not None:
            raise ValueError("categories have no fixed classes: this prior cannot be sampled with labels")
        style_seed, category_seed = separate(seed)
        y = ops.one_hot(keras.random.randint((count,), 0, self.categories, seed=category_seed), self.categories)
        return ops.concatenate([y, keras.random.normal((count, self.style_dim), seed=style_seed)], axis=-1)


class CategoricalAAE(LatentModel):
    """q(y, z|x): a softmax y and a point z on shared hidden layers; a discriminator holds each of them to its prior.

    A batch is images, (batch, *image_shape). If the cross-entropy has a weight, it is {"images", "labelled_images",
    "labels"} instead, with a class number for each labelled image, (labelled,). Codes are (batch, categories +
    style_dim), y before z.

    `weights`: the factor of each term by its name, 1 by default. Three terms are added only if they have a weight.

    - "cross_entropy" of the labels.
    - "consistency": the KL of q(y|x) to q(y|x augmented). Its gradient goes only through q(y|x augmented).
    - "heads": see `crowding`.

    With labels, a `WarmUp` raises the weights of the categories' generator and of consistency. So in the first updates,
    only the labels decide what the categories are.

    Only in training, labelled images are augmented and all images are corrupted. Noise N(0, input_noise^2) is added to
    every pixel. Dropout sets a share `input_dropout` of the pixels to 0, and scales up the others to the same mean.
    """

    title = "AAE with categories"
    posterior = "point"
    required_terms = (
        "reconstruction",
        "category_generator",
        "style_generator",
        "category_discriminator",
        "style_discriminator",
    )
    faster_with_xla = False  # on one core, random numbers and batch normalisation make XLA three times slower

    def __init__(
        self,
        weights: Mapping[str, float],
        input_noise: float = 0.0,
        input_dropout: float = 0.0,
        distortion: float = 0.0,
        shift: float = 0.0,
        **kwargs,
    ):
        optional = tuple(name for name in ("cross_entropy", "consistency", "heads") if weights.get(name))
        self.terms = (*self.required_terms, *optional)
        super().__init__(**kwargs)
        self.weights_of_terms = dict(weights)
        self.input_noise, self.input_dropout = input_noise, input_dropout
        self.distortion, self.shift = distortion, shift

    def corrupted(self, images):
        """`images` as the encoder sees them in training: (batch, *image_shape), some pixels outside [0, 1]."""
        if self.input_dropout:
            images = keras.random.dropout(images, self.input_dropout, seed=self.seed_generator)
        return images + self.input_noise * self.noise(ops.shape(images)) if self.input_noise else images

    def augmented(self, images):
        """Augmentation: `images`, (batch, height, width), each under a random affine map about its middle, bilinear.

        Pixel p shows the value at (I + distortion E) p + shift e, or 0 if that is outside. All entries of E and e are
        N(0, 1), and `shift` is in pixels.
        """
        if not (self.distortion or self.shift):
            return images
        count, height, width = ops.shape(images)
        middle = ops.convert_to_tensor([[[(width - 1) / 2], [(height - 1) / 2]]], images.dtype)
        matrix = ops.eye(2) + self.distortion * self.noise((count, 2, 2))
        offset = middle - ops.matmul(matrix, middle) + self.shift * self.noise((count, 2, 1))
        rows = ops.reshape(ops.concatenate([matrix, offset], axis=-1), (count, 6))
        maps = ops.concatenate([rows, ops.zeros((count, 2))], axis=-1)
        return ops.image.affine_transform(images[..., None], maps, "bilinear", data_format="channels_last")[..., 0]

    def parts(self, codes):
        """y, or its logits, and z: (batch, categories) and (batch, style_dim)."""
        return ops.split(codes, [self.prior.categories], axis=-1)

    def infer(self, x, training=False):
        logits, style = self.parts(self.encoder(self.corrupted(x) if training else x, training=training))
        return {"z": ops.concatenate([ops.softmax(logits), style], axis=-1), "category_logits": logits}

    def call(self, x, training=False):
        images = x["images"] if isinstance(x, dict) else x
        seen = {"": images}
        if isinstance(x, dict):
            seen["labelled_"] = self.augmented(x["labelled_images"]) if training else x["labelled_images"]
        if "consistency" in self.terms:
            seen["augmented_"] = self.augmented(images)
        # All images go through the encoder in one batch, so that batch normalisation treats them alike.
        inferred = self.infer(ops.concatenate(list(seen.values())), training)
        outputs, start = {}, 0
        for name, shown in seen.items():
            end = start + ops.shape(shown)[0]
            outputs[f"{name}category_logits"] = inferred["category_logits"][start:end]
            start = end
        codes = inferred["z"][: ops.shape(images)[0]]
        return outputs | {"z": codes, "parameters": self.decoder(codes, training=training)}

    def objective(self, x, outputs):
        images = x["images"] if isinstance(x, dict) else x
        terms = {"reconstruction": binary_cross_entropy(images, outputs["parameters"])}
        codes, drawn = self.parts(outputs["z"]), self.parts(self.prior_like(outputs["z"]))
        for head, code, prior in zip(("category", "style"), codes, drawn, strict=True):
            judge = self.networks[f"{head}_discriminator"]
            terms[f"{head}_generator"] = generator_loss(frozen(judge)(code))
            terms[f"{head}_discriminator"] = discriminator_loss(judge(prior), judge(ops.stop_gradient(code)))
        if "cross_entropy" in self.terms:
            terms["cross_entropy"] = cross_entropy(x["labels"], outputs["labelled_category_logits"])
        if "consistency" in self.terms:
            log_y, log_augmented = (
                ops.log_softmax(outputs[key]) for key in ("category_logits", "augmented_category_logits")
            )
            terms["consistency"] = ops.mean(categorical_kl(ops.stop_gradient(log_y), log_augmented))
        if "heads" in self.terms:
            terms["heads"] = self.crowding()
        return {name: self.weight(name) * term for name, term in terms.items()}

    def weight(self, term: str):
        """The present factor of a term in the loss; it may rise in the warm-up."""
        warms_up = "cross_entropy" in self.terms and term in ("category_generator", "consistency")
        return self.weights_of_terms.get(term, 1.0) * (self.warm_up_weight if warms_up else 1.0)

    def heads(self):
        """The cluster heads, which are the rows of W_C in a decoder on a map: (categories, style_dim)."""
        return self.decoder.get_layer("head_distance").scale * self.decoder.get_layer("heads").kernel

    def crowding(self):
        """How far the distance of two cluster heads is below `head_distance`, summed over all pairs; a scalar."""
        heads = self.heads()
        squared = ops.sum((heads[:, None] - heads[None]) ** 2, axis=-1)
        lacking = ops.relu(self.decoder.get_layer("head_distance").scale - ops.sqrt(squared + 1e-6))
        return ops.sum(lacking * (1.0 - ops.eye(self.prior.categories))) / 2.0

    def category_logits(self, images) -> np.ndarray:
        """The logits of q(y|x) for any number of images: (n, categories)."""
        return self.inferred(images)["category_logits"]

    def represent(self, images) -> np.ndarray:
        """W_C y + z of any number of images, for a decoder on a map: (n, style_dim)."""
        to_map = keras.Model(self.decoder.input, self.decoder.get_layer("map").output)
        return np.concatenate([to_numpy(to_map(batch)) for batch in in_batches(self.encode(images))])


def cross_entropy(labels, logits):
    """-log q(y|x) of the labels in nats, averaged over the images: (n,), (n, categories) -> a scalar."""
    return ops.mean(keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True))


def categorical_kl(log_first, log_second):
    """KL between categorical distributions given by their log probabilities, in nats: two (n, k) -> (n,)."""
    return ops.sum(ops.exp(log_first) * (log_first - log_second), axis=-1)


# Networks and data


def networks_of(
    prior: CategoricalPrior, image_shape, config, seed: int, balanced: bool = False, head_distance: float = 0.0
) -> dict:
    """The four untrained networks by name, with hidden_units, discriminator_units and normalised from `config`.

    For `balanced` see `encoder`. A `head_distance` makes the decoder one on a map: see `decoder`.
    """
    random = np.random.default_rng(seed)
    judges = {"category": prior.categories, "style": prior.style_dim}
    return {
        "encoder": encoder(prior, image_shape, config.hidden_units, random, config.normalised, balanced),
        "decoder": decoder(prior, image_shape, config.hidden_units, random, config.normalised, head_distance),
    } | {
        f"{head}_discriminator": networks.discriminator(inputs, config.discriminator_units, random)
        for head, inputs in judges.items()
    }


def encoder(
    prior: CategoricalPrior, image_shape, hidden_units, random: np.random.Generator, normalised: bool, balanced: bool
):
    """Images to the logits of y and to z, on shared hidden layers: (batch, *image_shape) -> (batch, latent_dim).

    If `balanced`, every category's logit has mean 0 over a batch, so that no category starts without images. Such a
    category would stay empty: once the softmax is sure of the others, it gets no gradient.
    """
    images = layers.Input(image_shape, name="images")
    hidden = networks.hidden_layers(layers.Flatten()(images), hidden_units, random, normalised=normalised)
    heads = layers.Dense(prior.latent_dim, kernel_initializer=networks.seeded(random), name="heads")(hidden)
    if balanced:
        logits = layers.BatchNormalization(center=False, momentum=0.9)(heads[:, : prior.categories])
        heads = layers.Concatenate()([logits, heads[:, prior.categories :]])
    return keras.Model(images, heads, name="encoder")


def decoder(
    prior: CategoricalPrior,
    image_shape,
    hidden_units,
    random: np.random.Generator,
    normalised: bool,
    head_distance: float,
):
    """Codes (y, z) to the logits of independent Bernoulli pixels: (batch, latent_dim) -> (batch, *image_shape).

    If `head_distance` is not 0, it is a decoder on a map (AAE paper, section 6). Its hidden layers see only W_C y + z,
    which has as many numbers as z. W_C is `head_distance` times the kernel of "heads". Without this factor, Adam's
    steps would be too short to separate the heads. W_C starts at N(0, 1), as wide as z. Heads that start far apart
    would keep their first images for ever.
    """
    code = layers.Input((prior.latent_dim,), name="code")
    seen = code
    if head_distance:
        draw_heads = keras.initializers.RandomNormal(stddev=1.0 / head_distance, seed=int(random.integers(2**31)))
        in_distances = layers.Dense(prior.style_dim, use_bias=False, kernel_initializer=draw_heads, name="heads")
        head = layers.Rescaling(head_distance, name="head_distance")(in_distances(code[:, : prior.categories]))
        seen = layers.Add(name="map")([head, code[:, prior.categories :]])
    hidden = networks.hidden_layers(seen, hidden_units, random, normalised=normalised)
    logits = layers.Dense(int(np.prod(image_shape)), kernel_initializer=networks.seeded(random), name="logits")(hidden)
    return keras.Model(code, layers.Reshape(image_shape)(logits), name="decoder")


class PartlyLabelledBatches(Batches):
    """`Batches` that also have `labelled_batch_size` labelled images, drawn with replacement for every batch.

    `labelled` holds the indices of the labelled training images, (n,).
    """

    def __init__(self, dataset: Dataset, labelled: np.ndarray, labelled_batch_size: int, batch_size: int, seed: int):
        self.x_labelled, self.y_labelled = dataset.x_train[labelled], dataset.y_train[labelled]
        self.labelled_batch_size = labelled_batch_size
        super().__init__(dataset.x_train, batch_size, "none", seed)

    def __getitem__(self, index):
        (images,) = super().__getitem__(index)
        random = np.random.default_rng([self.seed, self.epoch, index, 1])
        chosen = random.integers(len(self.x_labelled), size=self.labelled_batch_size)
        return ({"images": images, "labelled_images": self.x_labelled[chosen], "labels": self.y_labelled[chosen]},)


def all_labelled(images, labels) -> dict:
    """A batch of images that are all labelled, such as validation images, for a model with a cross-entropy."""
    return {"images": images, "labelled_images": images, "labels": labels}


class ErrorCurve(keras.callbacks.Callback):
    """Writes `error_of(model)`, for example on validation images, into the logs of every epoch as "val_error"."""

    def __init__(self, error_of):
        super().__init__()
        self.error_of = error_of

    def on_epoch_end(self, epoch, logs=None):
        logs["val_error"] = float(self.error_of(self.model))


def error_curve(outcome: Outcome) -> dict:
    """The numbers of a part from its `ErrorCurve`: the curve, and the error of the final weights.

    A training that stopped early has the weights of the epoch before. If it stopped in the first epoch, the error is
    None.
    """
    curve = {"updates": outcome.history["updates"], "error": outcome.history["val_error"]}
    kept = curve["error"][:-1] if outcome.stopped_by else curve["error"]
    return {"validation_error": kept[-1] if kept else None, "curve": curve}


def require_augmentable(dataset: Dataset, config):
    """Raises RunError if the Config asks for augmentation and the images have no height and width."""
    if (config.distortion or config.shift) and len(dataset.image_shape) != 2:
        raise RunError(
            f"{dataset.name} has images {dataset.image_shape}, but only images of (height, width) can be augmented; "
            "set --distortion 0 --shift 0"
        )


class LabelledBatches(Batches):
    """`Batches` with the images' labels: {"images": (batch_size, *image_shape), "labels": (batch_size,)}."""

    def __init__(self, images, labels, batch_size: int, binarisation: str, seed: int):
        self.labels = labels
        super().__init__(images, batch_size, binarisation, seed)

    def __getitem__(self, index):
        (images,) = super().__getitem__(index)
        return ({"images": images, "labels": self.labels[self.chosen(index)]},)


def balanced_draw(labels: np.ndarray, count: int, draw: int) -> np.ndarray:
    """Indices of `count` images, with equal numbers of each class, for experiments with few labels: (count,).

    Different draws are disjoint; the same draw always returns the same images. Raises DataError if `count` is not a
    multiple of the number of classes, or if a class has too few images for this draw.
    """
    classes = np.unique(labels)
    each = count // len(classes)
    if each * len(classes) != count or not each:
        raise DataError(f"{count} labels cannot be split equally among {len(classes)} classes; give a multiple of that")
    random = np.random.default_rng(SPLIT_SEED)
    orders = [random.permutation(np.flatnonzero(labels == label)) for label in classes]
    if min(map(len, orders)) < (draw + 1) * each:
        fewest = min(map(len, orders)) // each
        raise DataError(f"there are {fewest} disjoint draws of {count} labels, numbered from 0; {draw} is too high")
    return np.concatenate([order[draw * each : (draw + 1) * each] for order in orders])
