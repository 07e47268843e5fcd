"""How do the five models, and AVB without adaptive contrast, compare on the same networks, data and updates?

The models are those of `experiments.comparison.models`. `tools.evaluate` measures each with every instrument.

Run: python -m experiments.comparison.compare --data mnist.npz [--latent-dim 2] (--help lists every flag). --quick is a
short run on the sample. Resumes if interrupted. Results in results/comparison_compare/<name>/:

    metrics.json, table.md      mean and standard deviation over the seeds; table.csv has the same numbers
    runs.json                   numbers of every seed
    comparison.png              codes, samples and numbers of all models
    a folder per model          its pictures
"""

import csv
import functools
import io
from dataclasses import dataclass
from typing import Annotated

from common.config import AtLeast, PositiveCount
from common.data import Dataset
from common.files import hold, release
from common.measure import encoded, test_images
from common.measure_likelihood import LikelihoodSettings
from common.metrics import METRICS
from common.numbers import markdown, of_seeds, row_title
from common.run import git_commit, load_config, load_run, saved_run
from experiments import figures, paired, study
from experiments.comparison.models import VAE, classifier_of, models, require_batch, trained
from experiments.study import ImageStudyConfig, Part, Results, Study, run_study
from tools.evaluate import evaluate, read_metrics

from sklearn.decomposition import PCA

QUANTITIES = (  # the rows of the table
    "test_reconstruction_nats",
    "kl_nats",
    "kl_estimated_nats",
    "kl_neighbour_nats",
    "elbo_binarised_nats",
    "importance_weighted_bound_nats",
    "annealed_log_likelihood_nats",
    "annealed_gap_nats",
    *paired.COLUMNS,
    "code_c2st_accuracy",
    "code_mmd_imq",
    "code_ks_max",
    "code_hole_mass",
    "code_coverage",
    "active_units",
    "mutual_information_neighbour_nats",
    "marginal_kl_neighbour_nats",
    "mutual_information_nats",
    "marginal_kl_nats",
    "code_participation_ratio",
    "code_knn_accuracy",
    "code_logistic_accuracy",
    "code_mlp_accuracy",
    "sample_frechet_distance",
    "sample_c2st_accuracy",
    "sample_nearest_distance",
    "parzen_log_likelihood_nats",
)
COLUMNS = {key: (METRICS | paired.COLUMNS)[key] for key in QUANTITIES}
SHOWN = {  # below each model in the figure
    "annealed_log_likelihood_nats": "log p(x), nats",
    "code_c2st_accuracy": "C2ST to prior",
    "code_hole_mass": "holes",
    "code_knn_accuracy": "class by codes",
    "sample_frechet_distance": "Fréchet distance",
}
SAMPLES = 36  # samples per model in the figure
QUICK = {
    "data": "sample",
    "seeds": (0,),
    "updates": 800,
    "annealed_images": 20,
    "weighted_images": 20,
    "weighted_samples": 500,
    "temperatures": (100,),
}


@dataclass(frozen=True)
class Config(ImageStudyConfig):
    """Parameters that all models share. All other parameters are as in their scripts."""

    latent_dim: Annotated[int, AtLeast(2)] = 8  # dimensions of z
    hidden_units: tuple[PositiveCount, ...] = (300, 300)  # ReLU units per layer, all networks
    updates: PositiveCount = 8250  # optimiser steps: 15 passes over MNIST
    annealed_images: Annotated[int, AtLeast(2)] = 50  # test images for annealed importance sampling of log p(x)
    chains: Annotated[int, AtLeast(2)] = 4  # annealed chains per image
    temperatures: tuple[PositiveCount, ...] = (1000,)  # numbers of temperatures; the largest gives the estimate
    weighted_images: Annotated[int, AtLeast(2)] = 50  # test images for the importance-weighted bound, the same ones
    weighted_samples: PositiveCount = 1000  # draws per image for the importance-weighted bound
    name: str = ""  # the folder below results/comparison_compare/; if empty: the size of the code, and "quick" if set


def case(script, own: dict, part: Part) -> dict:
    """Train and evaluate a model; returns the content of its metrics.json."""
    run = trained(part, script, part.config.latent_dim, **own)
    settings, evaluation = LikelihoodSettings.of(part.config), read_metrics(run).get("evaluation", {})
    if (evaluation.get("likelihood"), evaluation.get("git_commit")) != (settings.as_json(), git_commit()):
        # A run without an evaluation has its script's numbers. If this code measured them, they need not be new.
        measured = not evaluation and saved_run(run)[0]["git_commit"] == git_commit()
        hold(run)
        evaluate(run, part.dataset, classifier_of(part.dataset, part.config.results), settings, measured)
        release(run)
    if part.first:
        model = load_run(run)
        test = encoded(model, test_images(part.dataset, load_config(run)))
        part.keep(codes=test.codes, prior_codes=test.prior_codes, samples=model.sample(SAMPLES))
    return read_metrics(run)


def cases(config: Config, dataset: Dataset) -> dict:
    """A case for each model."""
    return {title: functools.partial(case, script, own) for title, (script, own) in models().items()}


def requires(config: Config, dataset: Dataset):
    """Raises RunError if there are too few training images for a batch of a script."""
    require_batch(dataset)


def rows(declared: Study, results: Results) -> dict[str, dict]:
    """A row per model; each has the difference of its log p(x) from the VAE's, image by image."""
    named = models()
    vaes = {title: VAE for title in named if VAE in named and title != VAE}
    return study.rows_of_cases(declared, paired.with_differences(results, vaes))


def tables(declared: Study, results: Results, rows: dict) -> dict[str, str]:
    """table.md to read, table.csv to work with: one column per model, one row per quantity that any model has."""
    shown = {key: metric for key, metric in COLUMNS.items() if any(means[key] is not None for means in rows.values())}
    cells = [[metric.heading, *(metric.cell(means, key) for means in rows.values())] for key, metric in shown.items()]
    header = ["", *(row_title(title, means) for title, means in rows.items())]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["quantity", "model", "mean", "standard deviation"])
    for key in shown:
        writer.writerows([key, title, means[key], means[f"{key}_sd"]] for title, means in rows.items())
    return {"table.md": markdown(header, cells), "table.csv": text.getvalue()}


def comparison(results: Results, rows: dict):
    """One column per model: test codes and samples of the first seed, and the main numbers of all seeds."""
    config, dataset = results.config, results.dataset
    columns = []
    for title, means in rows.items():
        pictures = results.pictures(title)
        codes, prior_codes = pictures["codes"], pictures["prior_codes"]
        if config.latent_dim > 2:
            plane = PCA(2).fit(codes)
            codes, prior_codes = plane.transform(codes), plane.transform(prior_codes)
        numbers = {name: COLUMNS[key].cell(means, key) for key, name in SHOWN.items()}
        columns.append(figures.Column(title, codes, prior_codes, pictures["samples"], numbers))
    axis_names = ("first principal component", "second principal component") if config.latent_dim > 2 else ("z₁", "z₂")
    seeds = of_seeds("mean ± standard deviation", config.seeds)
    return figures.side_by_side(
        columns,
        dataset.y_test,
        axis_names,
        f"{len(rows)} models on {dataset.name}, {results.updates(*rows)} each, the same networks and prior",
        f"Top: {config.latent_dim}-D codes of {len(dataset.x_test):,} test images by class, prior samples in "
        f"black. Middle: decoder's pixel means for z ~ p(z). Pictures: seed {config.seeds[0]}. Numbers: {seeds}. "
        f"log p(x): annealed importance sampling of {config.annealed_images} binarised test images",
    )


def presets(config: Config) -> dict:
    """The default name of the folder, which contains the size of the code."""
    return {"name": f"latent-{config.latent_dim}{'-quick' * config.quick}"}


STUDY = Study(
    "comparison.compare",
    cases,
    COLUMNS,
    lambda results, rows: {"comparison": comparison(results, rows)},
    QUICK,
    requires,
    rows=rows,
    tables=tables,
    presets=presets,
)


def main(config: Config = Config()) -> dict:
    """Run the experiment; returns the content of metrics.json."""
    return study.run(STUDY, config)


if __name__ == "__main__":
    run_study(STUDY, Config)
