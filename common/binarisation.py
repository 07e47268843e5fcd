"""Binarised images, and the random streams of a run beside its training."""

import hashlib

import numpy as np

# Random streams of a run, beside its training: the second number of the generator's seed. A new use of random numbers
# takes `tagged_stream` instead. NumPy pads seeds with zeros, so [seed], [seed, 0] and [seed, 0, 0] are one stream.
STREAMS = {
    "validation": 0,
    "test": 1,
    "training codes": 2,
    "samples": 4,
    "labelled images": 5,
    "recurrent decoder": 6,
}


def binarise(images: np.ndarray, binarisation: str, random: np.random.Generator) -> np.ndarray:
    """Images as the model sees them, float32 of the same shape.

    Args:
        images: in [0, 1].
        binarisation: how grey pixels become binary.
            - `none`: they stay grey.
            - `dynamic`: each is drawn from a Bernoulli distribution with its grey value as mean (Salakhutdinov &
              Murray, 2008).
            - `threshold`: pixels of at least 0.5 become 1, all others 0.
        random: generator of the dynamic draws.
    """
    if binarisation == "none":
        return images
    if binarisation == "threshold":
        return (images >= 0.5).astype("float32")
    if binarisation == "dynamic":
        return (random.random(images.shape, dtype="float32") < images).astype("float32")
    raise ValueError(f"binarisation must be none, dynamic or threshold, not {binarisation!r}")


def random_stream(seed: int, stream: str) -> np.random.Generator:
    """The random generator of one of the STREAMS of a run. Two streams of one seed are independent.

    "validation" is the order of a training's first epoch, and "test" of its second: `common.training.Batches` uses
    [seed, epoch]. Both are kept for the records.
    """
    return np.random.default_rng([seed, STREAMS[stream]])


def tagged_stream(tag: str, *numbers: int) -> np.random.Generator:
    """The random generator of a new use `tag`, such as "ex post", and numbers from 0, such as seed and epoch.

    Two tags, or two tuples of numbers, give independent streams, also (1,) and (1, 0). None of them is a stream of
    untagged seeds such as [seed, epoch].
    """
    if any(number < 0 or number >= 2**32 for number in numbers):
        raise ValueError(f"the numbers of a random stream must be from 0 to {2**32 - 1}, not {numbers}")
    name = int.from_bytes(hashlib.sha256(tag.encode()).digest()[:16], "little") | 1 << 127  # four words, not zero
    return np.random.default_rng([name, len(numbers), *map(int, numbers)])


def targets(images: np.ndarray, config, stream: str) -> np.ndarray:
    """`images` in the Config's binarisation, drawn from one of the STREAMS of its seed."""
    return binarise(images, config.binarisation, random_stream(config.seed, stream))
