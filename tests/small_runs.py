"""What makes a run quick in a test that is not about it: networks, images, figures and instruments of little cost."""

from common import measure
from common.evaluation import annealing, coverage, likelihood
from common.model import LatentModel

import keras
import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text
from sklearn.manifold import TSNE

PNG, END_OF_PNG = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


def tiny_images(path, **more) -> str:
    """An .npz of 300 images, of which 240 are for training: 12 updates an epoch in batches of 20; its path."""
    x = np.random.default_rng(0).integers(0, 256, (300, 8, 6), np.uint8)
    np.savez(path, x=x, **more)
    return str(path)


def without_xla(patch):
    """On TensorFlow, XLA compiles for longer than a test trains. JAX knows nothing else."""
    patch.setattr(LatentModel, "faster_with_xla", False)


def uncompiled(patch):
    """Nothing is compiled, for trainings of a few updates. JAX takes minutes without."""
    if keras.backend.backend() != "jax":
        patch.setattr(
            LatentModel, "compile", lambda model, adam, **_: keras.Model.compile(model, adam, run_eagerly=True)
        )


def short_annealing(patch):
    """Few steps of annealed importance sampling, not compiled on TensorFlow; the estimate stays unbiased."""
    if keras.backend.backend() == "tensorflow":
        patch.setattr(likelihood, "compiled", lambda function: function)
    patch.setattr(likelihood, "PILOT_TEMPERATURES", 4)
    patch.setattr(likelihood, "LEAPFROG_STEPS", 2)
    for name, few in {"MOVES": 4, "DISCARDED": 1, "ROUNDS": 1, "DRAWS": 50}.items():
        patch.setattr(annealing, name, few)


def cheap_instruments(patch):
    """Instruments that draw few codes: their numbers are coarse, and take the same way into metrics.json."""
    patch.setattr(measure, "NEIGHBOUR_DRAWS", 60)
    patch.setattr(measure, "NEIGHBOUR_IMAGES", 20)
    patch.setattr(coverage, "EPOCHS", (1, 3))
    patch.setattr(measure, "CODES_FOR_ACTIVE_UNITS", 240)
    patch.setattr(TSNE, "fit_transform", lambda tsne, codes: np.asarray(codes)[:, :2])


def texts_for_figures(patch):
    """Every figure is composed, and then written as its texts alone, in a file that has the size of a picture."""

    def write(figure, path, **options):
        texts = repr([text.get_text() for text in figure.findobj(Text)])
        path.write_bytes(PNG + texts.encode() + bytes(20_000) + END_OF_PNG)

    patch.setattr(Figure, "savefig", write)


def quicken(patch):
    """All of it."""
    without_xla(patch)
    cheap_instruments(patch)
    texts_for_figures(patch)
