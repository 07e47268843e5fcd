"""What a trained model learned: measuring instruments, one file a kind of question, each proved in tests/."""

from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A number and its standard error, in the same unit."""

    value: float
    standard_error: float


def mean_of(values: np.ndarray) -> Estimate:
    """The mean of independent values, (n,), and its standard error, sd / sqrt(n)."""
    values = np.asarray(values, "float64")
    return Estimate(float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5))


def share_of(hits: np.ndarray) -> Estimate:
    """The share of independent hits, (n,) of truth values, and its standard error, sqrt(p (1 - p) / n)."""
    share = float(np.mean(hits))
    return Estimate(share, float((share * (1.0 - share) / len(hits)) ** 0.5))
