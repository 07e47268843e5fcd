"""Figures from NumPy arrays: codes, samples, reconstructions and training.

Every function returns a `Figure` built without pyplot, so that no backend is chosen and no figure stays open.
Each figure carries a title and, below it, a description of what is shown and of how many images.
"""

from common.plots.curves import annealing_curves, training_curves
from common.plots.figure import save
from common.plots.scatter import CLOUD_POINTS, latent_scatter, projection_scatter
from common.plots.tiles import image_grid, image_pairs, interpolations, manifold

__all__ = [
    "CLOUD_POINTS",
    "annealing_curves",
    "image_grid",
    "image_pairs",
    "interpolations",
    "latent_scatter",
    "manifold",
    "projection_scatter",
    "save",
    "training_curves",
]
