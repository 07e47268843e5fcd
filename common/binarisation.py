"""Binarised images, and the random streams of a run beside its training."""

import numpy as np

STREAMS = {  # random streams of a run, beside its training: the second number of the generator's seed
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
    """The random generator of one of the STREAMS of a run. Two streams of one seed are independent."""
    return np.random.default_rng([seed, STREAMS[stream]])


def targets(images: np.ndarray, config, stream: str) -> np.ndarray:
    """`images` in the Config's binarisation, drawn from one of the STREAMS of its seed."""
    return binarise(images, config.binarisation, random_stream(config.seed, stream))
