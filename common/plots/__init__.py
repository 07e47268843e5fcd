"""Figures from NumPy arrays: codes, samples, reconstructions, rows of tables and training.

Every function returns a `Figure` built without pyplot, so that no backend is chosen and no figure stays open. Each
figure has a title and, below it, a description with the number of images or rows. All text is shown as it is written,
so callers need not escape anything. A reader's matplotlibrc changes no figure.
"""

from common.plots.curves import annealing_curves, training_curves
from common.plots.figure import save
from common.plots.histogram import latent_histogram
from common.plots.roc import roc_curves
from common.plots.scatter import CLOUD_POINTS, latent_planes, latent_scatter, projection_scatter
from common.plots.tables import profiles, scatter_matrix
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
    "profiles",
    "projection_scatter",
    "roc_curves",
    "save",
    "scatter_matrix",
    "thumbnails",
    "tile_note",
    "training_curves",
]
