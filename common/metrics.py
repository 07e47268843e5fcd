"""Every metric, said once: tables, figures and docs/metrics.md take titles, units and digits from here.

`python -m common.metrics` prints docs/metrics.md.
"""

from collections.abc import Mapping
from typing import NamedTuple

from common.numbers import markdown, plus_minus


class Metric(NamedTuple):
    """How a number is shown: `factor` times it, with `digits` after the point, under `title`."""

    title: str  # of a table's column or a figure's axis, without the unit
    unit: str  # nats, %, or nothing
    digits: int
    better: str | float  # "higher", "lower", a number that is perfect, or nothing
    meaning: str
    factor: float = 1.0

    @property
    def heading(self) -> str:
        """Title and unit: `reconstruction, nats`."""
        return ", ".join(filter(None, (self.title, self.unit)))

    def cell(self, means: Mapping, key: str) -> str:
        """`mean ± standard deviation` of a key of `over_seeds`, as a table shows it; a dash for null."""
        numbers = (means.get(name) for name in (key, f"{key}_sd"))
        return plus_minus(*(None if number is None else self.factor * number for number in numbers), self.digits)


SCRIPT = {  # key: at the end of every run
    "test_reconstruction_nats": Metric(
        "reconstruction", "nats", 1, "lower", "−log p(x|z), summed over pixels, mean of test images, one z an image"
    ),
    "kl_nats": Metric("KL, closed form", "nats", 1, "", "mean KL(q(z|x) ‖ p(z)) by its formula"),
    "kl_estimated_nats": Metric("KL by T", "nats", 1, "", "the same by AVB's discriminator, which can err"),
    "kl_neighbour_nats": Metric(
        "KL by neighbours",
        "nats",
        1,
        "",
        "the same by nearest neighbours, 1,000 draws for each of 200 images, for any q(z|x) with a density",
    ),
    "negative_elbo_nats": Metric("−ELBO", "nats", 1, "lower", "reconstruction plus KL; at least −log p(x)"),
    "negative_elbo_estimated_nats": Metric(
        "−ELBO by T", "nats", 1, "lower", "reconstruction plus the KL by T; no bound, since T can err"
    ),
    "kl_per_dimension_nats": Metric("KL of each dimension", "nats", 2, "", "the KL in closed form, by dimension"),
    "mutual_information_nats": Metric(
        "I(x; z), ELBO surgery",
        "nats",
        1,
        "",
        "information of the code about the image; at most log N for N test images (Hoffman & Johnson, 2016)",
    ),
    "mutual_information_images": Metric("images of the ELBO surgery", "", 0, "", "N of the line above"),
    "marginal_kl_nats": Metric(
        "KL(q(z) ‖ p(z)), ELBO surgery",
        "nats",
        2,
        0,
        "KL of the aggregated posterior to the prior: the KL less I(x; z)",
    ),
    "mutual_information_neighbour_nats": Metric(
        "I(x; z) by neighbours", "nats", 1, "", "the information by nearest neighbours, without the bound log N"
    ),
    "marginal_kl_neighbour_nats": Metric(
        "KL(q(z) ‖ p(z)) by neighbours", "nats", 2, 0, "KL of the aggregated posterior to the prior, by neighbours"
    ),
    "code_mean_norm": Metric("norm of the mean code", "", 2, 0, "norm of the mean of all test codes"),
    "code_std_min": Metric("smallest standard deviation of the code", "", 2, 1, "of a dimension, over test codes"),
    "code_std_max": Metric("largest standard deviation of the code", "", 2, 1, "of a dimension, over test codes"),
    "code_ks": Metric("KS distance of each dimension", "", 3, 0, "Kolmogorov-Smirnov distance of codes to the prior"),
    "code_ks_max": Metric("largest KS distance", "", 3, 0, "the largest of these distances"),
    "code_ks_critical": Metric("critical KS distance", "", 3, "", "what chance alone exceeds in 5 % of cases"),
    "code_c2st_accuracy": Metric(
        "C2ST to prior", "", 3, 0.5, "share of test codes and prior samples that a new classifier tells apart"
    ),
    "code_mmd_imq": Metric(
        "MMD² to prior (IMQ), × 1000",
        "",
        2,
        0,
        "squared maximum mean discrepancy to the prior, unbiased, inverse multiquadric kernel",
        1000.0,
    ),
    "code_mmd_rbf": Metric("MMD² to prior (RBF), × 1000", "", 2, 0, "the same with a Gaussian kernel", 1000.0),
    "code_mmd_imq_p_value": Metric("p value, IMQ", "", 3, "", "share of relabellings with as large an MMD²"),
    "code_mmd_rbf_p_value": Metric("p value, RBF", "", 3, "", "share of relabellings with as large an MMD²"),
    "code_hole_fraction": Metric(
        "holes", "", 3, 0.01, "share of prior samples where q(z) is thinner than at 99 % of the test codes"
    ),
    "active_units": Metric(
        "active units", "", 1, "", "dimensions with Var_x(E[z|x]) > 0.01, z in units of the prior's scale"
    ),
    "code_participation_ratio": Metric(
        "participation ratio", "", 1, "", "dimensions in use by the codes' covariance (Gao et al.)"
    ),
    "code_knn_accuracy": Metric(
        "class by 15 nearest codes", "", 3, "higher", "accuracy by the nearest codes of up to 20,000 training images"
    ),
    "code_logistic_accuracy": Metric("class by a logistic probe", "", 3, "higher", "accuracy by a linear classifier"),
    "updates": Metric("updates", "", 0, "", "steps of the optimiser that were made"),
    "train_seconds": Metric("training time", "s", 0, "lower", "with compilation and validation"),
    "samples_per_second": Metric("images a second", "", 0, "higher", "training images over the training time"),
    "peak_memory_mib": Metric("memory", "MiB", 0, "lower", "the most that the process held, of all it did so far"),
    "stopped_by": Metric("stopped by", "", 0, "", "null, or why the training stopped early"),
    "null_because": Metric("null because", "", 0, "", "the reason of each number that is null"),
}
EVALUATION = {  # key: by `python -m tools.evaluate`
    "code_mlp_accuracy": Metric("class by an MLP probe", "", 3, "higher", "accuracy by a small network on the codes"),
    "sample_frechet_distance": Metric(
        "Fréchet distance, samples",
        "",
        1,
        "lower",
        "of decoded prior samples to test images, on features of a classifier of these data; compare within one set",
    ),
    "train_frechet_distance": Metric("Fréchet distance, training images", "", 1, "lower", "the best there is"),
    "sample_c2st_accuracy": Metric(
        "C2ST, samples to images", "", 3, 0.5, "share of samples and test images that a new classifier tells apart"
    ),
    "classifier_accuracy": Metric(
        "classifier", "", 3, "higher", "accuracy on test images of the one with the features"
    ),
    "sample_nearest_distance": Metric(
        "distance of a sample to the nearest training image", "", 2, "", "Euclidean, over pixels, mean of 1,000"
    ),
    "test_nearest_distance": Metric(
        "distance of a test image to the nearest training image", "", 2, "", "the same for test images"
    ),
}
LIKELIHOOD = {  # key: by `python -m tools.evaluate --likelihood`
    "elbo_binarised_nats": Metric(
        "ELBO, binarised", "nats", 1, "higher", "lower bound on log p(x) of test images binarised at random"
    ),
    "importance_weighted_bound_nats": Metric(
        "log p(x), importance-weighted bound", "nats", 1, "higher", "a tighter bound, from `weighted_samples` draws"
    ),
    "weighted_images": Metric("images of the bound", "", 0, "", "the same for every model"),
    "weighted_samples": Metric("draws of the bound", "", 0, "", "for each image"),
    "weighted_effective_samples": Metric("effective draws", "", 1, "higher", "how many of the draws count, median"),
    "annealed_log_likelihood_nats": Metric(
        "log p(x), annealed", "nats", 1, "higher", "of the first `annealed_images`, by annealed importance sampling"
    ),
    "annealed_gap_nats": Metric(
        "annealing gap",
        "nats",
        2,
        "lower",
        "upper less lower bound on images of the model itself (bidirectional Monte Carlo)",
    ),
    "annealed_curve": Metric("annealed estimates", "nats", 1, "", "both against the number of temperatures"),
    "annealed_images": Metric("annealed images", "", 0, "", "how many images were annealed"),
    "annealed_chains": Metric("chains", "", 0, "", "of annealing, for each image"),
    "annealed_temperatures": Metric("temperatures", "", 0, "", "between prior and posterior"),
    "annealed_acceptance": Metric("acceptance", "", 2, "", "share of Hamiltonian moves that were accepted"),
    "annealed_effective_chains": Metric("effective chains", "", 1, "higher", "how many chains count, median"),
    "annealed_minus_weighted_nats": Metric(
        "annealed less weighted, same images", "nats", 2, "", "what the weighted bound lacks"
    ),
    "parzen_log_likelihood_nats": Metric(
        "Parzen window",
        "nats",
        0,
        "higher",
        "log density of grey test images under windows on 10,000 samples; does not rank models",
    ),
    "parzen_sigma": Metric("Parzen σ", "", 3, "", "width of the windows, chosen on validation images"),
}
TRAINING = {  # key: of every part of an experiment, beside "updates" and "stopped_by"
    "epochs": Metric("epochs", "", 0, "", "passes over the training images that were made"),
    "images": Metric("images", "", 0, "", "training images seen, each time counted"),
    "seconds": SCRIPT["train_seconds"],
}
METRICS = SCRIPT | EVALUATION | LIKELIHOOD | TRAINING
PARTS = {
    "At the end of every run": SCRIPT,
    "Added by `python -m tools.evaluate`": EVALUATION,
    "Added by `python -m tools.evaluate --likelihood`": LIKELIHOOD,
    "Of every part of an experiment, in `runs.json`": TRAINING,
}


def page() -> str:
    """docs/metrics.md: a table a part of METRICS."""
    text = (
        "<!-- made by `python -m common.metrics > docs/metrics.md` -->\n# The metrics of a run\n\n"
        "`metrics.json` holds these numbers, of test images unless the last column says otherwise.\n"
        "A number with a sampling error has a twin,\n"
        "`<key>_standard_error`. A number that does not exist for a model is null; `null_because` gives the reason.\n"
    )
    for title, metrics in PARTS.items():
        rows = [
            [f"`{key}`", metric.title, metric.unit, str(metric.better), metric.meaning]
            for key, metric in metrics.items()
        ]
        text += f"\n## {title}\n\n{markdown(['key', 'title', 'unit', 'better', 'meaning'], rows)}"
    return text


if __name__ == "__main__":
    print(page(), end="")
