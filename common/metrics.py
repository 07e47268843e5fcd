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
        "reconstruction",
        "nats",
        1,
        "lower",
        "mean of −log p(x|z), summed over pixels, with one draw of z for each image",
    ),
    "kl_nats": Metric("KL, closed form", "nats", 1, "", "mean of KL(q(z|x) ‖ p(z)) in closed form"),
    "kl_estimated_nats": Metric(
        "KL by T",
        "nats",
        1,
        "",
        "the same KL, estimated by AVB's discriminator T, without the bias of adaptive contrast's moments for a "
        "Gaussian q(z|x); the estimate can be wrong",
    ),
    "kl_neighbour_nats": Metric(
        "KL by neighbours",
        "nats",
        1,
        "",
        "the same KL, estimated from nearest neighbours among 1,000 draws of z for each of 200 images, less the bias "
        "on a fitted Gaussian or mixture; the error includes what remains of the bias",
    ),
    "stated_kl_of_neighbour_images_nats": Metric(
        "KL as stated, same images",
        "nats",
        1,
        "",
        "the KL in closed form or by T, of the 200 images of the KL by neighbours, to compare both",
    ),
    "negative_elbo_nats": Metric(
        "−ELBO", "nats", 1, "lower", "reconstruction plus KL in closed form; an upper bound on −log p(x)"
    ),
    "negative_elbo_estimated_nats": Metric(
        "−ELBO by T", "nats", 1, "lower", "reconstruction plus KL by T; no bound, since T can be wrong"
    ),
    "constant_model_nats": Metric(
        "reconstruction without a code",
        "nats",
        1,
        "",
        "what a model that ignores its code reaches, with the parameters that suit the training rows best (scales of "
        "`logistic` and dispersions from a grid); not for `bernoulli`",
    ),
    "test_reconstruction_bits_per_dimension": Metric(
        "reconstruction",
        "bits per dimension",
        3,
        "lower",
        "the reconstruction in bits for each value; only for pixels with the likelihood `logistic` or `gaussian`",
    ),
    "negative_elbo_bits_per_dimension": Metric(
        "−ELBO",
        "bits per dimension",
        3,
        "lower",
        "the −ELBO in bits for each value; with `gaussian` it is that of a density over values from 0 to 255, "
        "and no bound on a code length",
    ),
    "kl_per_dimension_nats": Metric("KL of each dimension", "nats", 2, "", "the KL in closed form, by dimension"),
    "mutual_information_nats": Metric(
        "I(x; z), ELBO surgery",
        "nats",
        1,
        "",
        "mutual information of image and code; ELBO surgery splits the mean KL(q(z|x) ‖ p(z)) into I(x; z) and "
        "KL(q(z) ‖ p(z)); this estimate is at most log N for N images (Hoffman & Johnson, 2016)",
    ),
    "mutual_information_images": Metric(
        "images of the ELBO surgery", "", 0, "", "the number N of images in the ELBO surgery"
    ),
    "marginal_kl_nats": Metric(
        "KL(q(z) ‖ p(z)), ELBO surgery",
        "nats",
        2,
        0,
        "KL of the aggregated posterior q(z) to the prior: the mean KL(q(z|x) ‖ p(z)) minus I(x; z)",
    ),
    "mutual_information_neighbour_nats": Metric(
        "I(x; z) by neighbours",
        "nats",
        1,
        "",
        "the same I(x; z), from nearest neighbours, less the bias on a fitted density; log N does not bound it",
    ),
    "marginal_kl_neighbour_nats": Metric(
        "KL(q(z) ‖ p(z)) by neighbours",
        "nats",
        2,
        0,
        "KL of q(z) to the prior, from nearest neighbours, less the bias on a fitted density",
    ),
    "code_mean_norm": Metric("norm of the mean code", "", 2, 0, "Euclidean norm of the mean of all codes"),
    "code_std_min": Metric(
        "smallest standard deviation of the code",
        "",
        2,
        1,
        "standard deviation over images of the dimension that varies least",
    ),
    "code_std_max": Metric(
        "largest standard deviation of the code",
        "",
        2,
        1,
        "standard deviation over images of the dimension that varies most",
    ),
    "code_ks": Metric(
        "KS distance of each dimension", "", 3, 0, "Kolmogorov-Smirnov distance between codes and prior samples"
    ),
    "code_ks_max": Metric("largest KS distance", "", 3, 0, "the largest of these distances"),
    "code_ks_critical": Metric(
        "critical KS distance",
        "",
        3,
        "",
        "what the largest distance exceeds in 5 % of cases, if codes and prior have one distribution (Šidák's level)",
    ),
    "code_c2st_accuracy": Metric(
        "C2ST to prior",
        "",
        3,
        0.5,
        "classifier two-sample test (Lopez-Paz and Oquab, arXiv 1610.06545): accuracy of a new classifier that "
        "separates codes from prior samples; 0.5: it cannot",
    ),
    "code_mmd_imq": Metric(
        "MMD² to prior (IMQ), × 1000",
        "",
        2,
        0,
        "squared maximum mean discrepancy between codes and prior samples, unbiased, inverse multiquadric kernel; "
        "`metrics.json` has it without the factor 1000",
        1000.0,
    ),
    "code_mmd_rbf": Metric("MMD² to prior (RBF), × 1000", "", 2, 0, "the same with a Gaussian kernel", 1000.0),
    "code_mmd_imq_p_value": Metric(
        "p value, IMQ",
        "",
        3,
        "",
        "share of random relabellings of codes and prior samples with an MMD² at least as large",
    ),
    "code_mmd_rbf_p_value": Metric("p value, RBF", "", 3, "", "the same with a Gaussian kernel"),
    "code_hole_mass": Metric(
        "holes, share of the prior",
        "",
        3,
        0,
        "share of the prior where q(z) is less than half of p(z), by the density ratio of two calibrated classifiers; "
        "small holes in many dimensions can be missed",
    ),
    "code_coverage": Metric(
        "coverage of the prior",
        "",
        3,
        0.969,
        "share of prior samples with a code of a test image nearer than their fifth nearest prior sample "
        "(Naeem et al., arXiv 2002.09797); 1 − 2⁻⁵ for a perfect match",
    ),
    "active_units": Metric(
        "active units",
        "",
        1,
        "",
        "number of dimensions with Var_x(E[z|x]) > 0.01, in units of the prior's scale (Burda et al.); with few images "
        "they must be more than chance, at 5 % over all dimensions",
    ),
    "code_participation_ratio": Metric(
        "participation ratio",
        "",
        1,
        "",
        "effective number of dimensions: (Σλ)² / Σλ², λ the eigenvalues of the codes' covariance (Gao et al.)",
    ),
    "code_knn_accuracy": Metric(
        "class by 15 nearest codes",
        "",
        3,
        "higher",
        "accuracy of the majority class among the 15 nearest codes of training images, of up to 20,000",
    ),
    "code_logistic_accuracy": Metric(
        "class by a logistic probe",
        "",
        3,
        "higher",
        "accuracy of a linear classifier trained on the same training codes",
    ),
    "updates": Metric("updates", "", 0, "", "steps of the optimiser that the training made"),
    "train_seconds": Metric("training time", "s", 0, "lower", "training with compilation and validation"),
    "samples_per_second": Metric("images a second", "", 0, "higher", "training images seen, over the training time"),
    "peak_memory_mib": Metric("memory", "MiB", 0, "lower", "most memory that the process has held since it started"),
    "stopped_by": Metric("stopped by", "", 0, "", "why the training stopped early; null if it did not"),
    "null_because": Metric("null because", "", 0, "", "the reason for each number that is null"),
}
EVALUATION = {  # key: by `python -m tools.evaluate`
    "code_mlp_accuracy": Metric(
        "class by an MLP probe",
        "",
        3,
        "higher",
        "accuracy of a network with one hidden layer, trained on the codes of training images",
    ),
    "sample_frechet_distance": Metric(
        "Fréchet distance, samples",
        "",
        1,
        "lower",
        "from decoded prior samples to test images, on features of a classifier of these data; "
        "it compares models of one data set only",
    ),
    "train_frechet_distance": Metric(
        "Fréchet distance, training images",
        "",
        1,
        "lower",
        "the same from training images: what perfect samples would reach",
    ),
    "sample_c2st_accuracy": Metric(
        "C2ST, samples to images",
        "",
        3,
        0.5,
        "accuracy of a new classifier that tells decoded prior samples from test images by the same features",
    ),
    "classifier_accuracy": Metric(
        "classifier", "", 3, "higher", "accuracy on test images of the classifier that gives these features"
    ),
    "sample_nearest_distance": Metric(
        "distance of a sample to the nearest training image", "", 2, "", "Euclidean, over pixels, mean of 1,000 samples"
    ),
    "test_nearest_distance": Metric(
        "distance of a test image to the nearest training image", "", 2, "", "the same for 1,000 test images"
    ),
}
LIKELIHOOD = {  # key: by `python -m tools.evaluate --likelihood`
    "elbo_binarised_nats": Metric(
        "ELBO, binarised", "nats", 1, "higher", "lower bound on log p(x) of test images binarised at random"
    ),
    "importance_weighted_bound_nats": Metric(
        "log p(x), importance-weighted bound",
        "nats",
        1,
        "higher",
        "a tighter lower bound on log p(x) of the same images, from several draws of z for each",
    ),
    "weighted_images": Metric(
        "images of the bound", "", 0, "", "number of these images; they are the same for every model"
    ),
    "weighted_samples": Metric("draws of the bound", "", 0, "", "number of draws of z for each image"),
    "weighted_effective_samples": Metric(
        "effective draws",
        "",
        1,
        "higher",
        "effective number of these draws, median over images; it cannot show mass that the proposal misses entirely",
    ),
    "annealed_log_likelihood_nats": Metric(
        "log p(x), annealed",
        "nats",
        1,
        "higher",
        "log p(x) of the first `annealed_images` of these images, by annealed importance sampling and by importance "
        "weights fitted to the ends of its chains",
    ),
    "annealed_error_nats": Metric(
        "error of annealing",
        "nats",
        2,
        "lower",
        "standard error that annealing adds to this mean on these very images, from the disagreement of two estimates "
        "of each image",
    ),
    "annealed_disagreement_nats": Metric(
        "disagreement",
        "nats",
        2,
        "lower",
        "mean absolute difference between the annealed and the fitted weighted estimate of an image",
    ),
    "annealed_flagged_images": Metric(
        "flagged images",
        "",
        0,
        0,
        "images whose two estimates still disagree after four times as many temperatures",
    ),
    "annealed_gap_nats": Metric(
        "annealing gap",
        "nats",
        2,
        "lower",
        "upper minus lower bound on log p(x) of images that the model itself made (bidirectional Monte Carlo); it "
        "bounds the error on such images only",
    ),
    "annealed_curve": Metric(
        "annealed estimates",
        "nats",
        1,
        "",
        "the estimate for test images, and both bounds for the model's images, against the number of temperatures; "
        "of the chains alone",
    ),
    "annealed_images": Metric("annealed images", "", 0, "", "number of images whose log p(x) was annealed"),
    "annealed_chains": Metric("chains", "", 0, "", "number of annealing chains for each image"),
    "annealed_temperatures": Metric(
        "temperatures", "", 0, "", "temperatures between prior and posterior; images in doubt got more"
    ),
    "annealed_acceptance": Metric("acceptance", "", 2, "", "share of Hamiltonian moves that were accepted"),
    "annealed_effective_chains": Metric(
        "effective chains",
        "",
        1,
        "higher",
        "effective number of chains, median over images, after the last annealing of each",
    ),
    "annealed_least_effective_chains": Metric(
        "least effective chains", "", 1, "higher", "the same of the image with the fewest"
    ),
    "annealed_most_temperatures": Metric(
        "most temperatures", "", 0, "", "largest number of temperatures that an image needed"
    ),
    "annealed_of_images": Metric(
        "annealed, image by image",
        "nats",
        2,
        "",
        "estimate, disagreement and flag of each image, to compare two models on the same images",
    ),
    "annealed_minus_weighted_nats": Metric(
        "annealed less weighted, same images",
        "nats",
        2,
        "",
        "annealed estimate minus importance-weighted bound on the same images: how loose the bound is",
    ),
    "parzen_log_likelihood_nats": Metric(
        "Parzen window",
        "nats",
        0,
        "higher",
        "log density of grey test images under Gaussian windows on 10,000 samples; it cannot rank models",
    ),
    "parzen_sigma": Metric("Parzen σ", "", 3, "", "standard deviation of the windows, chosen on validation images"),
}
TRAINING = {  # key: of every part of an experiment, beside "updates" and "stopped_by"
    "epochs": Metric("epochs", "", 0, "", "passes over the training images that the training made"),
    "images": Metric("images", "", 0, "", "training images seen, each time counted"),
    "seconds": SCRIPT["train_seconds"],
}
METRICS = SCRIPT | EVALUATION | LIKELIHOOD | TRAINING
PARTS = {
    "At the end of every run": SCRIPT,
    "Added by `tools.evaluate`": EVALUATION,
    "Added by `tools.evaluate --likelihood`": LIKELIHOOD,
    "Of every part of an experiment, in `runs.json`": TRAINING,
}


def page() -> str:
    """docs/metrics.md: a table a part of METRICS."""
    text = (
        "<!-- made by `python -m common.metrics > docs/metrics.md` -->\n# The metrics of a run\n\n"
        "`metrics.json` holds these numbers. They are of test images unless the last column says otherwise.\n"
        'The column "better" says whether a higher or a lower number is better, or which number is perfect.\n'
        "A number with a sampling error has a standard error in `<key>_standard_error`.\n"
        "A number that does not exist for a model is null, and `null_because` gives the reason.\n"
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
