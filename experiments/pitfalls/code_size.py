"""The question `code_size` of posterior_collapse: how many dimensions of its code does each script's model use?"""

from collections.abc import Callable
from functools import partial
from operator import itemgetter

from common.evaluation import latent
from common.measure import active_units, encoded, test_images, test_terms
from common.metrics import METRICS, Metric
from common.numbers import of_seeds
from common.scripts import SCRIPTS, load_script, title_of
from experiments import figures, study
from experiments.study import Part, Results

import numpy as np

LONGER = 3  # factor on the updates: a useless dimension becomes inactive only slowly
LEAST_KL = 0.1  # nats; a dimension with a higher KL is counted
KL_AXIS = "KL, nats (AVB: by T)"
COLUMNS = {
    "active_units": METRICS["active_units"],
    "kl_dimensions": Metric(f"dimensions with KL > {LEAST_KL:g} nats", "", 1, "", "by the KL in closed form"),
    "kl_nats": METRICS["kl_nats"],
    "kl_estimated_nats": METRICS["kl_estimated_nats"],
    "code_participation_ratio": METRICS["code_participation_ratio"],
    "test_reconstruction_nats": METRICS["test_reconstruction_nats"],
    "code_c2st_accuracy": METRICS["code_c2st_accuracy"],
}


def own_config(script, config, seed: int, **own):
    """The Config of a script for posterior_collapse: binarised images, one adversarial weight for all AAEs."""
    shared = {"binarisation": "dynamic"}
    if "adversarial_weight" in script.Config.__dataclass_fields__:
        shared["adversarial_weight"] = config.adversarial_weight
    return study.script_config(script, config, seed, **shared | own)


def models() -> dict:
    """The scripts by the titles of their models."""
    return {title_of(script): script for script in map(load_script, SCRIPTS)}


def case(script, size: int, part: Part) -> dict:
    """Train and measure a script's model with a code of `size` dimensions."""
    config = part.config
    own = own_config(script, config, part.seed, latent_dim=size, updates=LONGER * config.updates)
    model = script.build(own, part.dataset.image_shape)
    part.train(model, own)
    test = encoded(model, test_images(part.dataset, own))
    numbers = test_terms(model, test.images) | {"active_units": active_units(model, test.images)}
    numbers["code_participation_ratio"] = latent.participation_ratio(test.codes)
    numbers["code_c2st_accuracy"] = latent.c2st_accuracy(test.codes, test.prior_codes, part.seed)
    numbers["kl_dimensions"] = numbers["kl_nats"]  # `Absent` for the same reason, unless q(z|x) is Gaussian
    if model.posterior == "gaussian":
        inferred = model.inferred(test.images)
        each = latent.kl_per_dimension(inferred["mean"], inferred["log_var"], model.prior.scale)
        numbers |= {"kl_per_dimension_nats": each, "kl_dimensions": int((each > LEAST_KL).sum())}
    return numbers


def sized(title: str, size: int) -> str:
    """The name of a case: "VAE, 8-D"."""
    return f"{title}, {size}-D"


def cases(config) -> dict[str, Callable]:
    """A case for each size of the code and each script."""
    return {
        sized(title, size): partial(case, script, size)
        for size in config.code_sizes
        for title, script in models().items()
    }


def curves(results: Results, number: Callable, line: str = "solid", suffix: str = "") -> dict[str, figures.Curve]:
    """A curve over the code's size for each model that has a number; `number` is a function of a run's numbers."""
    sizes, made = sorted(results.config.code_sizes), {}
    for title in models():
        values = np.array([[number(run) for run in results.of(sized(title, size))] for size in sizes], float).T
        if not np.isnan(values[0, 0]):
            made[title + suffix] = figures.Curve(np.array(sizes), values, line)
    return made


def figure(results: Results):
    """Numbers against the size of the code, one line per model."""
    config, dataset = results.config, results.dataset
    counted = curves(results, itemgetter("kl_dimensions"), "dashed", f": {COLUMNS['kl_dimensions'].title}")
    active = COLUMNS["active_units"].heading
    panels = {
        active: curves(results, itemgetter("active_units")) | counted,
        KL_AXIS: curves(results, closed_or_estimated_kl),
    }
    for key in ("test_reconstruction_nats", "code_c2st_accuracy"):
        panels[COLUMNS[key].heading] = curves(results, itemgetter(key))
    return figures.bands(
        panels,
        "dimensions of the code",
        f"How much of the code does each model use? On {dataset.name}",
        f"{results.updates(*cases(config))}, networks of {' + '.join(map(str, config.hidden_units))} units, "
        f"{len(dataset.x_test):,} binarised test images; {of_seeds('mean and range', config.seeds)}. A dimension is "
        "active if the variance of E[z|x] over images is above 0.01. A deterministic q(z|x) has no KL. For an implicit "
        f"q(z|x), only AVB's T estimates the KL. Adversarial weight {config.adversarial_weight:g} for every size",
        x_scale="log",
        y_scale={KL_AXIS: "log", active: "log"},
    )


def closed_or_estimated_kl(run: dict) -> float | None:
    """The KL in closed form or, if there is none, by the model's T."""
    return run.get("kl_nats") if run.get("kl_nats") is not None else run.get("kl_estimated_nats")
