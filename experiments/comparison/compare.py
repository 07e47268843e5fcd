"""The five models, and AVB with and without adaptive contrast, on one footing: how do they compare?

Same networks, code, prior, data, binarisation, number of updates and seeds; each model's own optimiser settings, as
its script has them. Every run is trained by its script, then evaluated by experiments.evaluate; runs that are there
already are not made again, so the comparison can be stopped and started.

Run: python -m experiments.compare --data mnist.npz [--latent-dim 2] (--help lists every flag); --quick on the sample.
Leaves in results/compare/<name>/: the runs, table.md, table.csv (mean and standard deviation over the seeds),
metrics.json (the same numbers) and comparison.png.
"""

import csv
import io
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import aae_deterministic
import aae_gaussian
import aae_universal
import avb
import vae_baseline
from common import plots
from common.command import run_main
from common.config import AtLeast, PositiveCount, Seed, check
from common.data import Dataset, load_mnist
from common.evaluation.samples import Classifier
from common.files import whole, write_json
from common.measure import test_images
from common.measure_likelihood import LikelihoodSettings
from common.model import to_numpy
from common.numbers import markdown, of_seeds, over_seeds, plus_minus
from common.progress import TimeLeft
from common.run import load_config, load_run
from common.training import planned_updates
from experiments import figures
from experiments.study import claim_folder, complete_run, quickened, require_images
from tools.evaluate import evaluate

from sklearn.decomposition import PCA

MODELS = {  # name: script, parameters of its own, beginning of the run's name
    "VAE": (vae_baseline, {}, ""),
    "deterministic AAE": (aae_deterministic, {}, ""),
    "Gaussian AAE": (aae_gaussian, {}, ""),
    "universal AAE": (aae_universal, {}, ""),
    "AVB": (avb, {}, ""),
    "AVB without contrast": (avb, {"adaptive_contrast": False}, "without-contrast-"),
}
ROWS = {  # key in metrics.json: how the table calls it, digits after the point
    "test_reconstruction_nats": ("reconstruction, nats", 1),
    "kl_nats": ("KL(q(z\\|x) ‖ p(z)), nats, closed form", 1),
    "kl_estimated_nats": ("the same, by the model's T", 1),
    "kl_neighbour_nats": ("the same, by nearest neighbours", 1),
    "elbo_binarised_nats": ("ELBO, nats", 1),
    "importance_weighted_bound_nats": ("log p(x), importance-weighted bound, nats", 1),
    "annealed_log_likelihood_nats": ("log p(x), annealed, nats", 1),
    "annealed_gap_nats": ("gap between its two directions, nats", 2),
    "code_c2st_accuracy": ("C2ST, code against prior", 3),
    "code_mmd_imq": ("MMD² (IMQ), code against prior, × 1000", 2),
    "code_ks_max": ("largest KS distance of a dimension", 3),
    "code_hole_fraction": ("holes, share of the prior", 3),
    "active_units": ("active units", 1),
    "mutual_information_neighbour_nats": ("mutual information of image and code, by nearest neighbours", 1),
    "marginal_kl_neighbour_nats": ("KL(q(z) ‖ p(z)), by nearest neighbours", 2),
    "mutual_information_nats": ("mutual information, ELBO surgery", 1),
    "marginal_kl_nats": ("KL(q(z) ‖ p(z)), ELBO surgery", 2),
    "code_participation_ratio": ("participation ratio", 1),
    "code_knn_accuracy": ("class by nearest codes", 3),
    "code_logistic_accuracy": ("class by a logistic probe", 3),
    "code_mlp_accuracy": ("class by an MLP probe", 3),
    "sample_frechet_distance": ("Fréchet distance, samples to digits", 1),
    "sample_c2st_accuracy": ("C2ST, samples against digits", 3),
    "sample_nearest_distance": ("distance of a sample to the nearest training digit", 2),
    "parzen_log_likelihood_nats": ("Parzen, nats (a density on grey digits)", 0),
}
IN_THOUSANDTHS = {"code_mmd_imq"}
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
class Config:
    """What the models share; everything else is as in their scripts."""

    data: str = "auto"  # auto, mnist, fashion_mnist, sample, or the path of an .npz or .npy file
    latent_dim: Annotated[int, AtLeast(2)] = 8  # dimensions of z
    hidden_units: tuple[PositiveCount, ...] = (300, 300)  # ReLU units a layer, all networks
    updates: PositiveCount = 8250  # steps of the optimiser: 15 passes over MNIST
    seeds: tuple[Seed, ...] = (0, 1, 2)  # of weights, noise, order and binarisation
    annealed_images: Annotated[int, AtLeast(2)] = 100  # test images whose log p(x) is annealed
    chains: Annotated[int, AtLeast(2)] = 8  # for each of them
    temperatures: tuple[PositiveCount, ...] = (200,)  # between prior and posterior; the most count
    weighted_images: Annotated[int, AtLeast(2)] = 100  # test images of the importance-weighted bound: the same ones
    weighted_samples: PositiveCount = 1000  # draws for each of them
    quick: bool = False  # whatever is not asked for is small: the sample, one seed, 800 updates; minutes, not hours
    results: str = "results"  # the folder of all runs
    name: str = ""  # the folder below results/compare/; the size of the code, and "quick", if empty
    resume: str = ""  # the folder of a run that was stopped: go on with it, and with its parameters


def main(config: Config = Config()) -> dict:
    """Train, evaluate and tabulate what is not there yet; returns what metrics.json holds."""
    check(config)
    if config.quick:
        config = quickened(config, QUICK)
    name = config.name or f"latent-{config.latent_dim}{'-quick' * config.quick}"
    dataset = load_mnist(config.data)
    folder = Path(config.results) / "compare" / name
    claim_folder(folder, "compare", config, dataset, planned(config, dataset))
    classifier = Classifier(dataset, folder / "classifier", TimeLeft()) if dataset.y_test is not None else None
    settings = LikelihoodSettings.of(config)
    wanted = [(model, seed) for seed in config.seeds for model in MODELS]
    found: dict[str, list[dict]] = {model: [] for model in MODELS}
    start, made = time.perf_counter(), 0
    for number, (model, seed) in enumerate(wanted):
        was_there, run = made_and_evaluated(model, seed, config, folder, dataset, classifier, settings)
        found[model].append(json.loads((run / "metrics.json").read_text()))
        made += not was_there
        left = (time.perf_counter() - start) / max(made, 1) * (len(wanted) - number - 1)
        state = "was there" if was_there else f"done, {left / 60:.0f} minutes left"
        print(f"{number + 1} of {len(wanted)}, {model}, seed {seed}: {state}", flush=True)
    metrics = summary(found)
    write_tables(folder, metrics)
    plots.save(figure(folder, config, dataset, metrics), folder / "comparison.png")
    write_json(folder / "metrics.json", metrics)
    print((folder / "table.md").read_text())
    print(folder)
    return metrics


def planned(config: Config, dataset: Dataset) -> int:
    """Updates of every run: as many whole passes over the data, 40 at most, as `updates` take."""
    one = vae_baseline.Config(updates=config.updates)
    require_images(dataset, one.batch_size)
    return planned_updates(one, len(dataset.x_train))


def made_and_evaluated(model, seed, config, folder, dataset, classifier, settings) -> tuple[bool, Path]:
    """Whether the run and its numbers were there already, and the run's folder."""
    script, own, prefix = MODELS[model]
    parameters = {"hidden_units": config.hidden_units, "latent_dim": config.latent_dim, "updates": config.updates}
    if script is avb:
        parameters["discriminator_units"] = config.hidden_units
    wanted = script.Config(
        **parameters | own,
        data=config.data,
        binarisation="dynamic",
        seed=seed,
        results=str(folder),
        name=f"{prefix}seed-{seed}",
    )
    run, trained = complete_run(script, wanted)
    there = json.loads((run / "metrics.json").read_text()).get("evaluation", {})
    if there.get("likelihood") == settings.as_json():
        return True, run
    # A run without any evaluation has been measured by its script alone, now or before this process was killed.
    evaluate(run, dataset, classifier, settings, measured=trained or not there)
    return False, run


def summary(found: dict[str, list[dict]]) -> dict:
    """Mean and standard deviation over the seeds, None where a model has no such number: {model: {key: ...}}."""
    return {model: over_seeds(runs, ROWS) for model, runs in found.items()}


def cell(numbers: dict, key: str) -> str:
    """A number as the table shows it, `mean ± sd`, or a dash."""
    scale = 1000.0 if key in IN_THOUSANDTHS else 1.0
    value, spread = (number and scale * number for number in (numbers[key], numbers[f"{key}_sd"]))
    return plus_minus(value, spread, ROWS[key][1])


def write_tables(folder: Path, metrics: dict):
    """table.md to read, table.csv to work with: models in columns, quantities in rows."""
    rows = [key for key in ROWS if any(numbers[key] is not None for numbers in metrics.values())]
    cells = [[ROWS[key][0], *(cell(numbers, key) for numbers in metrics.values())] for key in rows]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["quantity", "model", "mean", "standard deviation"])
    for key in rows:
        writer.writerows([key, model, numbers[key], numbers[f"{key}_sd"]] for model, numbers in metrics.items())
    for name, content in (("table.md", markdown(["", *metrics], cells)), ("table.csv", text.getvalue())):
        with whole(folder / name) as unfinished:
            unfinished.write_text(content)


def figure(folder: Path, config: Config, dataset: Dataset, metrics: dict):
    """A column a model: codes of test images and samples of the first seed, and the numbers that say most, of all."""
    columns = []
    for model, (script, _, prefix) in MODELS.items():
        run = folder / script.__name__ / f"{prefix}seed-{config.seeds[0]}"
        trained = load_run(run)
        codes = trained.encode(test_images(dataset, load_config(run)))
        prior = to_numpy(trained.prior.sample(len(codes), config.seeds[0]))
        if config.latent_dim > 2:
            plane = PCA(2).fit(codes)
            codes, prior = plane.transform(codes), plane.transform(prior)
        numbers = {
            "log p(x), nats": cell(metrics[model], "annealed_log_likelihood_nats"),
            "C2ST to prior": cell(metrics[model], "code_c2st_accuracy"),
            "holes": cell(metrics[model], "code_hole_fraction"),
            "class by codes": cell(metrics[model], "code_knn_accuracy"),
            "Fréchet distance": cell(metrics[model], "sample_frechet_distance"),
        }
        columns.append(figures.Column(model, codes, prior, trained.sample(36), numbers))
    axis_names = ("first principal component", "second principal component") if config.latent_dim > 2 else ("z₁", "z₂")
    seeds = of_seeds("mean ± standard deviation", config.seeds)
    return figures.side_by_side(
        columns,
        dataset.y_test,
        axis_names,
        f"The five models on {dataset.name}, {planned(config, dataset):,} updates each, the same networks and prior",
        f"Top: {config.latent_dim}-D codes of {len(dataset.x_test):,} test images by class, prior samples in "
        f"black. Middle: decoder's pixel means for z ~ p(z). Pictures of seed {config.seeds[0]}; numbers: {seeds}. "
        f"log p(x): annealed importance sampling of {config.annealed_images} binarised test images",
    )


if __name__ == "__main__":
    run_main(main, Config)
