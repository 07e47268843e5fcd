"""experiments/paired.py: differences of log p(x) image by image, their errors, and a mean carried to more images."""

from types import SimpleNamespace

from common.evaluation.annealing import error_of_mean
from common.measure_likelihood import OF_IMAGES
from common.numbers import mean_of
from experiments import paired
from experiments.avb import mnist
from experiments.comparison import compare, likelihoods
from experiments.comparison.models import models
from experiments.paired import ANNEALING, COLUMNS, DIFFERENCE, ERROR
from experiments.study import Results

import numpy as np
import pytest


def run(estimates, disagreement=0.0):
    of_images = {"log_likelihood_nats": list(estimates), "disagreement_nats": [disagreement] * len(estimates)}
    return {OF_IMAGES: of_images | {"flagged": [False] * len(estimates)}}


def found(runs, vaes):
    """The differences of runs by name, of one seed."""
    return paired.with_differences(Results(SimpleNamespace(seeds=(0,)), None, None, runs), vaes).runs


def test_a_difference_has_the_error_of_single_images_and_that_of_annealing():
    """Images differ by 30 nats, models by one: the errors of the two means would hide the difference."""
    random = np.random.default_rng(0)
    images = random.normal(-100, 30, 80)
    better = images + random.normal(1, 0.5, 80)
    numbers = found({"VAE, seed 0": run(images), "AVB, seed 0": run(better, 0.3)}, {"AVB": "VAE"})["AVB, seed 0"]
    assert (numbers[DIFFERENCE], numbers[ERROR]) == pytest.approx(mean_of(better - images))
    assert numbers[ERROR] < 0.1 < 3 < mean_of(better).standard_error
    assert numbers[ANNEALING] == pytest.approx(error_of_mean(np.full(80, 0.3)))
    assert numbers[OF_IMAGES] == run(better, 0.3)[OF_IMAGES]


def test_what_was_not_annealed_has_no_difference_and_a_reason():
    numbers = found({"VAE, seed 0": run([1.0, 2.0]), "AVB, seed 0": {"updates": 3}}, {"AVB": "VAE"})["AVB, seed 0"]
    assert numbers[DIFFERENCE] is None and "annealed" in numbers["null_because"][DIFFERENCE]
    assert numbers["updates"] == 3 and numbers.get(ERROR) is None


def test_every_run_is_compared_with_the_vae_of_its_own_seed_and_case():
    named = {"VAE, 2-D": 0.0, "VAE, 8-D": 10.0, "AVB, 8-D": 11.0}
    runs = {f"{name}, seed {seed}": run([level + 5 * seed, level]) for name, level in named.items() for seed in (0, 1)}
    runs["AVB, 8-D, seed 1"] = run([18.0, 14.0])
    results = Results(SimpleNamespace(seeds=(0, 1)), None, None, runs)
    compared = paired.with_differences(results, {"AVB, 8-D": "VAE, 8-D"})
    assert [each[DIFFERENCE] for each in compared.of("AVB, 8-D")] == [1.0, 3.5]
    assert compared.of("VAE, 8-D") == results.of("VAE, 8-D") and DIFFERENCE not in runs["AVB, 8-D, seed 0"]


def test_compare_has_a_row_for_the_difference_and_one_for_each_error():
    config = SimpleNamespace(seeds=(0, 1))
    random, runs = np.random.default_rng(3), {}
    for title in models():
        runs |= {f"{title}, seed {seed}": run(random.normal(size=6), 0.2) | {"updates": 1} for seed in (0, 1)}
    results = Results(config, None, None, runs)
    metrics = compare.rows(compare.STUDY, results)
    estimates = {name: np.array(each[OF_IMAGES]["log_likelihood_nats"]) for name, each in runs.items()}
    for title, means in metrics.items():
        apart = [estimates[f"{title}, seed {seed}"] - estimates[f"VAE, seed {seed}"] for seed in (0, 1)]
        expected = [None] * 3 if title == "VAE" else [np.mean(apart), np.mean([mean_of(each)[1] for each in apart])]
        for key, value in zip(COLUMNS, expected, strict=False):
            assert means[key] == (None if value is None else pytest.approx(value)), (title, key)
    table = compare.tables(compare.STUDY, results, metrics)["table.md"]
    assert all(metric.heading in table for metric in COLUMNS.values())


@pytest.mark.parametrize(
    "config",
    [mnist.Config(), compare.Config(), likelihoods.Config(), likelihoods.Config(**likelihoods.PRESETS["aae_paper"])],
)
def test_models_are_compared_at_a_thousand_temperatures(config):
    assert max(config.temperatures) >= 1000


@pytest.mark.parametrize("slope", [0.0, 0.5, 1.0])
def test_the_error_of_a_carried_mean_is_its_spread_over_samples_of_images(slope):
    """The control follows the estimate closely, by half, or not at all: then what the first images share counts."""
    random, few, many, repetitions = np.random.default_rng(1), 40, 100, 3000
    estimates = random.normal(size=(repetitions, many)) * 3
    control = slope * estimates + random.normal(size=estimates.shape) - 2
    means = [paired.carried(*pair) for pair in zip(control, estimates[:, :few], strict=True)]
    values, errors = np.array(means).T
    # 3,000 repetitions give the spread within 1.3 % (one standard deviation).
    assert np.mean(values) == pytest.approx(0, abs=4 * values.std() / repetitions**0.5)
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(values.std(), rel=0.05)


def test_a_mean_carried_to_its_own_images_is_their_mean():
    estimates, control = np.random.default_rng(2).normal(size=(2, 30))
    assert paired.carried(control, estimates) == pytest.approx(mean_of(estimates))
    assert paired.carried(control[:20], estimates) == pytest.approx(mean_of(estimates[:20]))
