"""Figures from NumPy arrays: codes, samples, reconstructions and training.

Every function returns a `Figure` built without pyplot, so that no backend is chosen and no figure stays open. Each
figure has a title and, below it, a description with the number of images. All text is shown as it is written, so
callers need not escape anything. A reader's matplotlibrc changes no figure.
"""

from common.plots.curves import annealing_curves, training_curves
from common.plots.figure import save
from common.plots.histogram import latent_histogram
from common.plots.scatter import CLOUD_POINTS, latent_planes, latent_scatter, projection_scatter
from common.plots.tiles import image_grid, image_pairs, interpolations, manifold, thumbnails, tile_note

__all__ = [
    "CLOUD_POINTS",
    "annealing_curves",
    "image_grid",
    "image_pairs",
    "interpolations",
    "latent_histogram",
    "latent_planes",
    "latent_scatter",
    "manifold",
    "projection_scatter",
    "save",
    "thumbnails",
    "tile_note",
    "training_curves",
]
