"""Numbers of a model less the VAE's, image by image, with their errors; and a mean that is carried to more images.

Images differ by tens of nats. So the errors of two means would hide the difference between the models.
"""

from collections.abc import Iterable, Mapping, Sequence

from common.measure_likelihood import paired_difference
from common.metrics import Metric
from common.numbers import Estimate, flat, mean_of, over_seeds
from experiments.study import Results, part_name

import numpy as np

DIFFERENCE = "annealed_minus_vae_nats"
ERROR, ANNEALING = f"{DIFFERENCE}_standard_error", f"{DIFFERENCE}_annealing_error"
COLUMNS = {
    DIFFERENCE: Metric("log p(x), annealed, less the VAE's, same images", "nats", 2, "higher", "paired by image"),
    ERROR: Metric("its standard error over images", "nats", 2, "", "of the differences image by image"),
    ANNEALING: Metric("its error by annealing", "nats", 2, "lower", "of both models, on these very images"),
}


def with_differences(results: Results, vaes: Mapping[str, str]) -> Results:
    """The results, where each run of a case has also the COLUMNS: its difference from the VAE of the same seed.

    `vaes` has the case of the VAE for each case that is compared with it. See `paired_difference`.
    """
    runs = dict(results.runs)
    for case, vae in vaes.items():
        pairs = zip(results.of(case), results.of(vae), strict=True)
        names = [part_name(case, seed) for seed in results.config.seeds]
        for name, (run, other) in zip(names, pairs, strict=True):
            runs[name] = run | flat({DIFFERENCE: paired_difference(run, other)})
    return results._replace(runs=runs)


def difference(key: str, values, others) -> dict:
    """The mean of `values` less `others`, image by image, as `key` with its standard error; nothing if one is null."""
    return {} if values is None or others is None else flat({key: mean_of(np.subtract(values, others))})


def averaged(runs: Sequence[Mapping], keys: Iterable[str]) -> dict:
    """`over_seeds` of every key, and the mean of its standard error over images.

    The images are the same for every seed. So more seeds do not reduce this error.
    """
    keys = list(keys)
    errors = over_seeds(runs, [f"{key}_standard_error" for key in keys])
    return over_seeds(runs, keys) | {key: value for key, value in errors.items() if not key.endswith("_sd")}


def carried(control: np.ndarray, estimates: np.ndarray) -> Estimate:
    """The mean of `estimates`, (n,), carried to more images by a control variate, `control`, (N,).

    Both begin with the same images. It is the mean of `control`, plus the mean difference on the images of both. The
    standard error counts each image once, although the first ones are in both means.
    """
    count, total = min(len(control), len(estimates)), len(control)
    differences = estimates[:count] - control[:count]
    of_first = control[:count] / total + differences / count  # what each of the first images adds
    variance = count * of_first.var(ddof=1) + (total - count) * control.var(ddof=1) / total**2
    return Estimate(float(control.mean() + differences.mean()), float(variance**0.5))
