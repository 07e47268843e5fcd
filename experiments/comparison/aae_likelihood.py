"""Is the AAE the likelier model? Table 1 of its paper, by the paper's measure and by one that can rank decoders.

Makhzani et al., "Adversarial Autoencoders", arXiv 1511.05644, section 3: the deterministic AAE with an 8-D code and the
prior N(0, 5^2 I). Beside it a VAE, N(0, I), on the same networks, data and updates. Both are measured twice:

    Parzen    log density of grey test images under Gaussian windows on 10,000 samples of the model, its pixel means;
              their width sigma is chosen on validation images. The paper's measure, of which it reports 340 nats.
    annealed  log p(x), the log probability that prior and decoder give to test images binarised at random, by annealed
              importance sampling; "gap" is what its two directions leave open on images of the model itself.

The one is a density and the other a probability: each ranks models within its own column alone. In the first stand two
sets of windows that are no models as well, real training digits and k-means centroids of them (Theis et al., arXiv
1511.01844).

Both models are trained on grey images, as in the paper, and annealing still judges what they were trained for: the
cross-entropy is linear in the pixels, so that of a grey image is the mean of -log p(b|z) over its binarisations b, and
so is the reconstruction here, of test images whose encoder sees them grey. No encoder takes part in the two measures.
With --binarisation dynamic both models are trained on binarised images instead.

Run: python -m experiments.aae_likelihood --data mnist.npz (--help lists every flag); --quick on the sample.
Leaves in results/aae_likelihood/<name>/: metrics.json and table.md (means over the seeds), runs.json (every seed), the
course of every training, the first seed's samples as <script>.npz, and the figures likelihoods.png and samples.png.
What is there already is not made again.
"""

from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import aae_deterministic
import vae_baseline
from common import plots
from common.command import run_main
from common.config import AtLeast, Factor, Positive, PositiveCount, Seed, check
from common.data import Dataset, load_mnist
from common.evaluation import latent
from common.files import whole, write_json
from common.measure import test_images, test_terms
from common.measure_likelihood import WINDOW_IMAGES, WINDOWS, LikelihoodSettings, annealed, parzen
from common.model import to_numpy
from common.numbers import flat, markdown, mean_of, of_seeds, over_seeds, plus_minus
from common.progress import TimeLeft
from common.training import planned_updates
from experiments import figures
from experiments.comparison import likelihoods
from experiments.study import claim_folder, each_once, quickened, reported, require_images, train_part

import keras
import numpy as np

AAE, VAE = "deterministic AAE", "VAE"
MODELS = {AAE: aae_deterministic, VAE: vae_baseline}
REFERENCES = ("real training digits", "k-means centroids")  # in the order of `likelihoods.windows`
DIFFERENCE = "annealed_minus_vae_nats"
COLUMNS = {  # key: how the table calls it, digits
    "parzen_log_likelihood_nats": ("Parzen, nats (density of grey pixels)", 0),
    "parzen_sigma": ("σ", 3),
    "annealed_log_likelihood_nats": ("log p(x), annealed, nats (probability of binarised pixels)", 1),
    DIFFERENCE: ("log p(x) less the VAE's, same images", 1),
    "annealed_gap_nats": ("gap between its directions", 2),
    "test_reconstruction_nats": ("reconstruction, nats", 1),
    "code_c2st_accuracy": ("C2ST, code to prior", 3),
}
REPORTED = {AAE: (340.0, 2.0), "GMMN + AE": (282.0, None), "GAN": (225.0, None), "DBN": (138.0, None)}  # Parzen, MNIST
SHOWN, ACROSS = 24, 12  # images of each kind in samples.png, in rows of so many
QUICK = {
    "data": "sample",
    "updates": 200,
    "seeds": (0,),
    "annealed_images": 10,
    "chains": 4,
    "temperatures": (20, 60),
}


@dataclass(frozen=True)
class Config:
    """Code, prior and networks are the paper's; rates are those of the two scripts."""

    data: str = "auto"  # auto, mnist, fashion_mnist, sample, or the path of an .npz or .npy file
    binarisation: Literal["none", "dynamic"] = "none"  # of what the models are trained on: none (the paper), dynamic
    latent_dim: PositiveCount = 8  # dimensions of z (section 3)
    prior_scale: Positive = 5.0  # standard deviation of the AAE's prior (section 3); the VAE's is 1
    hidden_units: tuple[PositiveCount, ...] = (1000, 1000)  # ReLU units a layer, all networks (appendix A.1)
    # At the script's own 40, chosen for a 2-D code, the first updates in 8-D teach little. Of 40, 16, 8, 4 and 2 the
    # best by Parzen and C2ST on validation images of MNIST: 2 x 300 units, 1,100 updates, seed 0.
    adversarial_weight: Factor = 8.0  # on the generator's nats, against nats summed over all pixels
    updates: PositiveCount = 8250  # steps of the optimiser: 15 passes over MNIST
    seeds: tuple[Seed, ...] = (0, 1, 2)  # of weights, noise, order, and of which digits are windows
    annealed_images: Annotated[int, AtLeast(2)] = 100  # test images whose log p(x) is annealed
    chains: Annotated[int, AtLeast(2)] = 4  # for each of them
    temperatures: tuple[PositiveCount, ...] = (100, 400)  # between prior and posterior; the most count
    quick: bool = False  # whatever is not asked for is small: the sample, one seed, 200 updates
    results: str = "results"  # the folder of all runs
    name: str = ""  # the folder below results/aae_likelihood/; "default" or "quick" if empty
    resume: str = ""  # the folder of a run that was stopped: go on with it, and with its parameters


def configured(config: Config, model: str, seed: int):
    """The Config of a model's own script."""
    of_aae = {"prior_scale": config.prior_scale, "adversarial_weight": config.adversarial_weight}
    return MODELS[model].Config(
        data=config.data,
        binarisation=config.binarisation,
        latent_dim=config.latent_dim,
        hidden_units=config.hidden_units,
        updates=config.updates,
        seed=seed,
        **(of_aae if model == AAE else {}),
    )


def trained_and_measured(config: Config, dataset: Dataset, model: str, seed: int, folder: Path) -> dict:
    """Train a model and measure it on test images; the first seed's samples go into `folder`."""
    print(f"{model}, seed {seed}", flush=True)
    script, asked = MODELS[model], configured(config, model, seed)
    built = script.build(asked, dataset.image_shape)
    outcome = train_part(built, dataset, asked, folder / f"{script.__name__}-seed-{seed}")
    x_test = test_images(dataset, asked)
    codes, prior = built.encode(x_test), to_numpy(built.prior.sample(len(x_test), built.seed_generator))
    samples = built.sample(WINDOWS)
    settings = LikelihoodSettings(config.annealed_images, config.chains, config.temperatures, 0, 0)
    found, estimates = annealed(built, dataset, settings, TimeLeft())
    found |= test_terms(built, x_test) | parzen(samples, dataset)
    found |= {"code_c2st_accuracy": latent.c2st_accuracy(codes, prior, seed), "annealed_nats_of_images": estimates}
    if seed == config.seeds[0]:
        with whole(folder / f"{script.__name__}.npz") as unfinished:
            np.savez_compressed(unfinished, samples=samples[:SHOWN])
    keras.utils.clear_session()
    return flat(found) | {"stopped_by": outcome.stopped_by}


def reference_measured(dataset: Dataset, reference: str, seed: int) -> dict:
    """Parzen's log-likelihood from windows on digits, or on centroids of them, and how many they are."""
    settings = likelihoods.Config(window_samples=WINDOWS, seed=seed)
    number = REFERENCES.index(reference)
    # One after the other, and the digits before any clustering.
    _, images = next(islice(likelihoods.windows(settings, dataset, {}), number, None))
    return flat(parzen(images, dataset)) | {"windows": len(images)}


def main(config: Config = Config()) -> dict:
    """Train and measure what is not there yet; returns what metrics.json holds."""
    check(config)
    if config.quick:
        config = quickened(config, QUICK)
    dataset = load_mnist(config.data)
    asked = configured(config, AAE, config.seeds[0])
    require_images(dataset, asked.batch_size)
    folder = Path(config.results) / "aae_likelihood" / (config.name or ("quick" if config.quick else "default"))
    updates = planned_updates(asked, len(dataset.x_train))
    claim_folder(folder, "aae_likelihood", config, dataset, updates)
    parts = {}
    for seed in config.seeds:
        for model in MODELS:
            parts[f"{model}, seed {seed}"] = partial(trained_and_measured, config, dataset, model, seed, folder)
        for name in REFERENCES:
            parts[f"{name}, seed {seed}"] = partial(reference_measured, dataset, name, seed)
    metrics = summary(each_once(folder, parts), config.seeds)
    with whole(folder / "table.md") as unfinished:
        unfinished.write_text(table(metrics, dataset))
    write_json(folder / "metrics.json", metrics)
    plots.save(figure(metrics, config, dataset, updates), folder / "likelihoods.png")
    plots.save(samples_figure(config, dataset, folder, updates), folder / "samples.png")
    print(table(metrics, dataset))
    print(folder)
    return metrics


def summary(runs: dict, seeds) -> dict:
    """Means and standard deviations over the seeds, a dict a row of the table, and mean standard errors over images.

    The images are the same for every seed: more seeds make the standard error no smaller.
    """
    metrics = {}
    for name in (*MODELS, *REFERENCES):
        of_name = [runs[f"{name}, seed {seed}"] for seed in seeds]
        if name == AAE:
            of_name = [
                run | difference(run, runs[f"{VAE}, seed {seed}"]) for run, seed in zip(of_name, seeds, strict=True)
            ]
        errors = over_seeds(of_name, [f"{key}_standard_error" for key in COLUMNS])
        errors = {key: value for key, value in errors.items() if not key.endswith("_sd")}
        title = f"{of_name[0]['windows']:,} {name}" if name in REFERENCES else name
        metrics[title] = over_seeds(of_name, COLUMNS) | errors
    return metrics


def difference(run: dict, other: dict) -> dict:
    """Mean log p(x) of a run less that of another, image by image, and its standard error.

    Images differ by tens of nats, so that the two means' own errors would hide by how much the models differ.
    """
    estimates = [np.array(found["annealed_nats_of_images"]) for found in (run, other)]
    return flat({DIFFERENCE: mean_of(estimates[0] - estimates[1])})


def cell(found: dict, key: str) -> str:
    """Mean ± standard error over images, and in brackets the standard deviation over seeds."""
    digits = COLUMNS[key][1]
    text, spread = plus_minus(found[key], found[f"{key}_standard_error"], digits), found[f"{key}_sd"]
    return text if spread is None else f"{text} ({plus_minus(spread, None, digits)})"


def table(metrics: dict, dataset: Dataset) -> str:
    """A row a model: mean ± standard error over test images (standard deviation over seeds), a dash for none."""
    rows = [[row_title(name, found), *(cell(found, key) for key in COLUMNS)] for name, found in metrics.items()]
    for name, (value, error) in reported(REPORTED, dataset).items():
        rows.append([f"{name}, reported", plus_minus(value, error, 0), *["−"] * (len(COLUMNS) - 1)])
    return markdown(["", *(title for title, _ in COLUMNS.values())], rows)


def figure(metrics: dict, config: Config, dataset: Dataset, updates: int):
    """Parzen's ranking on the left, that by log p(x) on the right, a row a model."""

    def series(key):
        return {
            name: (found[key], found[f"{key}_standard_error"])
            for name, found in metrics.items()
            if found[key] is not None
        }

    windows = {"measured here": series("parzen_log_likelihood_nats")}
    there = {name: (value, error or 0.0) for name, (value, error) in reported(REPORTED, dataset).items()}
    if there:
        windows["reported for MNIST (AAE paper, table 1)"] = there
    apart, images = metrics[AAE], min(config.annealed_images, len(dataset.x_test))
    less = plus_minus(apart[DIFFERENCE], apart[f"{DIFFERENCE}_standard_error"], 1)
    trained = {"none": "grey", "dynamic": "binarised"}[config.binarisation]
    return figures.dots(
        {
            "log density, nats per grey image": windows,
            "log p(x), nats per binarised image": {
                "annealed importance sampling": series("annealed_log_likelihood_nats")
            },
        },
        list(dict.fromkeys((*metrics, *there))),
        f"An AAE and a VAE by Parzen windows and by log p(x), on {dataset.name}",
        f"Higher is better, within a panel. Mean over test images, standard error over them as bar; "
        f"{of_seeds('mean', config.seeds)}, {updates:,} updates on {trained} images. Left: "
        f"{min(WINDOW_IMAGES, len(dataset.x_test)):,} images, windows on {WINDOWS:,} samples of each model, on digits, "
        f"or on centroids; σ chosen on validation images. Right: {images} images, {config.chains} chains, "
        f"{max(config.temperatures):,} temperatures; image by image the AAE's log p(x) less the VAE's is {less} nats",
    )


def samples_figure(config: Config, dataset: Dataset, folder: Path, updates: int):
    """Real digits, and samples of the two models, in groups of rows."""
    count = min(SHOWN, len(dataset.x_test))
    groups = {"test images": dataset.x_test[:count]}
    for model, script in MODELS.items():
        with np.load(folder / f"{script.__name__}.npz") as arrays:
            groups[model] = arrays["samples"][:count]
    rows = [plots.in_rows(plots.as_images(images), ACROSS) for images in groups.values()]
    figure, axes, _, y = plots.draw_tiles(
        np.concatenate(rows),
        f"Samples of an AAE and a VAE, on {dataset.name}",
        f"Above, grey test images; below, the decoders' pixel means for z ~ p(z), {config.latent_dim}-D, not chosen. "
        f"{updates:,} updates, seed {config.seeds[0]}",
        together=len(rows[0]),
        left=1.35,
    )
    axes.set_yticks(y.reshape(len(groups), -1).mean(axis=1), list(groups))
    return figure


if __name__ == "__main__":
    run_main(main, Config)
