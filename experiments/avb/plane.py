"""Exact results for a two-dimensional code: integrals, densities and divergences on a grid of cells.

Densities are arrays (cells, cells) over the centres of the cells, the first axis along z1, in float64.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.special import logsumexp, xlogy


@dataclass(frozen=True)
class Plane:
    """The rectangle between the corners `low` and `high`, cut into `cells` x `cells`."""

    low: tuple[float, float] = (-6.0, -6.0)
    high: tuple[float, float] = (6.0, 6.0)
    cells: int = 600

    @property
    def edges(self) -> np.ndarray:
        """The borders of the cells along each axis: (2, cells + 1)."""
        return np.linspace(self.low, self.high, self.cells + 1).T

    @property
    def area(self) -> float:
        """The area of one cell."""
        return float(np.prod(np.subtract(self.high, self.low)) / self.cells**2)

    @property
    def centres(self) -> np.ndarray:
        """The middle of every cell: (cells, cells, 2)."""
        middles = 0.5 * (self.edges[:, 1:] + self.edges[:, :-1])
        return np.stack(np.meshgrid(*middles, indexing="ij"), axis=-1)

    def log_integral(self, log_density: np.ndarray) -> float:
        """log of the integral of exp(log_density) over the rectangle, in nats, by the midpoint rule."""
        return float(logsumexp(log_density) + np.log(self.area))

    def normalised(self, log_density: np.ndarray) -> np.ndarray:
        """`log_density` minus its log integral."""
        return log_density - self.log_integral(log_density)

    def density_of(self, draws: np.ndarray, bandwidth: float = 2.0) -> np.ndarray:
        """The density of `draws`, (n, 2): their histogram, smoothed by a Gaussian kernel.

        `bandwidth` is the kernel's standard deviation in cells. Draws outside the rectangle are lost, but count in n:
        the integral of the result is the share of draws inside.
        """
        counts = np.histogram2d(*np.asarray(draws, "float64").T, bins=list(self.edges))[0]
        return gaussian_filter(counts / (len(draws) * self.area), bandwidth, mode="constant")

    def mean(self, density: np.ndarray, values: np.ndarray) -> float:
        """The integral of `values` under `density`; where the density is 0, so is the product."""
        inside = density > 0
        return float((density[inside] * values[inside]).sum() * self.area)

    def kl(self, density: np.ndarray, log_other: np.ndarray) -> float:
        """KL(density || exp(log_other)) in nats, both normalised."""
        return float(xlogy(density, density).sum() * self.area - self.mean(density, log_other))
