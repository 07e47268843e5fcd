"""common/measure.py: what becomes of estimates, of numbers that do not exist, and which images are measured."""

import dataclasses
import json
from pathlib import Path

import aae_gaussian
import avb
import vae_baseline
from common import measure, metrics
from common.data import Dataset
from common.evaluation import samples
from common.evaluation.latent import Discrepancy
from common.measure import encoded, information
from common.measure_likelihood import (
    LikelihoodSettings,
    annealed,
    likelihood_images,
    measure_likelihood,
    paired_difference,
    parzen,
)
from common.model import to_numpy
from common.numbers import Absent, Estimate, flat, merge
from common.priors import GaussianPrior
from common.progress import TimeLeft

import numpy as np
import pytest


def test_estimates_have_twins_and_what_does_not_exist_a_reason():
    found = flat(
        {
            "a": Estimate(1.5, 0.1),
            "b": Absent("there is none"),
            "c": Discrepancy(0.2, 0.3, 0.4),
            "d": np.array([1.0, 2.0]),
            "e": 7,
            "f": float("nan"),
            "g": Estimate(float("-inf"), float("inf")),
            "h": np.array([1.0, float("nan")]),
            "i": [{"j": [2.0, float("inf")]}],
        }
    )
    reasons = found.pop("null_because")
    assert found == {
        "a": 1.5,
        "a_standard_error": 0.1,
        "b": None,
        "c": 0.2,
        "c_standard_error": 0.3,
        "c_p_value": 0.4,
        "d": [1.0, 2.0],
        "e": 7,
        "f": None,
        "g": None,
        "g_standard_error": None,
        "h": None,
        "i": None,
    }
    assert reasons.keys() == {"b", "f", "g", "g_standard_error", "h", "i"} and reasons["b"] == "there is none"
    json.dumps(found, allow_nan=False)


def test_later_numbers_replace_earlier_ones_and_their_reasons():
    first = flat({"a": Absent("not yet"), "b": 1, "c": Absent("never")})
    second = flat({"a": 2, "b": Absent("lost")})
    assert merge(first, second) == {"a": 2, "b": None, "c": None, "null_because": {"b": "lost", "c": "never"}}
    assert merge({"old": 3}, second)["old"] == 3


def digits(count=60, seed=0):
    images = np.random.default_rng(seed).random((3 * count, 4, 3), dtype="float32")
    return Dataset(images[:count], None, images[count : 2 * count], None, images[2 * count :], None, "digits")


def test_every_likelihood_is_of_the_same_binary_images():
    dataset = digits()
    few, more = likelihood_images(dataset, 5), likelihood_images(dataset, 20)
    np.testing.assert_array_equal(few, more[:5])
    assert set(np.unique(more)) == {0.0, 1.0} and more.shape == (20, 4, 3)


def annealed_images(estimates, disagreement):
    flagged = [False] * len(estimates)
    of_images = {"log_likelihood_nats": estimates, "disagreement_nats": disagreement, "flagged": flagged}
    return {"annealed_of_images": of_images}


def test_two_models_are_compared_image_by_image():
    """Images differ by 100 nats, the models by 1 and 2: only the latter has an error."""
    one, other = annealed_images([-50.0, -150.0], [0.3, 0.3]), annealed_images([-51.0, -152.0], [0.0, 0.8])
    found = paired_difference(one, other)
    assert found.value == pytest.approx(1.5) and found.standard_error == pytest.approx(0.5)  # sd / sqrt(2) of 1 and 2
    assert found.annealing_error == pytest.approx(np.hypot(0.3, np.hypot(0.4, 0.4)))
    back = paired_difference(other, one)
    assert back.value == pytest.approx(-1.5) and back[1:] == found[1:]
    assert flat({"a": found}).keys() == {"a", "a_standard_error", "a_annealing_error", "null_because"}
    assert isinstance(paired_difference(one, {}), Absent)
    with pytest.raises(ValueError, match="2 and 3 images"):
        paired_difference(one, annealed_images([1.0, 2.0, 3.0], [0.1, 0.1, 0.1]))


def test_the_numbers_of_annealing_are_those_of_its_images():
    dataset = digits()
    model = vae_baseline.build(vae_baseline.Config(hidden_units=(8,)), dataset.image_shape)
    numbers, estimates = annealed(model, dataset, LikelihoodSettings(4, 2, (3, 5), 4, 5), TimeLeft())
    of_images = numbers["annealed_of_images"]
    assert of_images["log_likelihood_nats"] == estimates.round(4).tolist() and len(estimates) == 4
    assert numbers["annealed_log_likelihood_nats"].value == pytest.approx(np.mean(estimates))
    disagreement = np.abs(of_images["disagreement_nats"]).mean()  # of numbers with four digits
    assert numbers["annealed_disagreement_nats"] == pytest.approx(disagreement, abs=1e-4)
    assert numbers["annealed_flagged_images"] == sum(of_images["flagged"])
    assert numbers["annealed_temperatures"] == 5 and numbers["annealed_most_temperatures"] in (5, 10, 20)
    assert 1 <= numbers["annealed_least_effective_chains"] <= numbers["annealed_effective_chains"]
    plain = numbers["annealed_curve"][-1]["test"][0]  # of the chains alone
    assert numbers["annealed_log_likelihood_nats"].value == pytest.approx(plain, abs=0.5)  # an untrained decoder
    same = paired_difference(numbers, flat(numbers))  # as metrics.json has them
    assert same.value == 0.0 and same.standard_error == 0.0
    assert same.annealing_error == pytest.approx(2**0.5 * numbers["annealed_error_nats"], abs=1e-4)
    json.dumps(flat(numbers), allow_nan=False)


def test_a_window_estimate_without_a_best_width_is_null_with_the_reason():
    dataset = digits()
    found = flat(parzen(dataset.x_val, dataset))  # windows on the validation images themselves
    assert found["parzen_log_likelihood_nats"] is None and "edge" in found["null_because"]["parzen_sigma"]
    other = flat(parzen(dataset.x_train, dataset))
    assert other["parzen_log_likelihood_nats"] == pytest.approx(0, abs=50) and other["parzen_sigma"] > 0.05


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize(("log_var", "known"), [(-8.0, True), (-60.0, False)])
def test_a_code_too_narrow_for_single_precision_has_no_neighbour_estimate(log_var, known, monkeypatch):
    """e^-30 beside means near 1 is rounded away: all draws coincide. The closed form knows better."""
    monkeypatch.setattr(measure, "NEIGHBOUR_DRAWS", 200)
    x_test = digits().x_test
    model = vae_baseline.build(vae_baseline.Config(hidden_units=(32,)), x_test.shape[1:])
    kernel, bias = model.encoder.layers[-1].get_weights()
    kernel[:, 2:], bias[:] = 0.0, (1.0, 1.0, log_var, log_var)
    model.encoder.layers[-1].set_weights([kernel, bias])
    found = flat(information(model, x_test, model.encode(x_test)))
    for key in ("kl_neighbour_nats", "mutual_information_neighbour_nats"):
        assert (found[key] is not None) == known
        assert known or "narrow" in found["null_because"][key]
    if known:  # from 200 draws in 2-D 0.05 too high, with a spread of 0.08 an image (2,000 simulated), 0.01 over 60
        assert found["kl_neighbour_nats"] == pytest.approx(sum(found["kl_per_dimension_nats"]), abs=0.05 + 4 * 0.01)
    assert np.isfinite(found["marginal_kl_neighbour_nats"])


class Enigma(GaussianPrior):
    """A prior with samples and without a density, for a reason of its own."""

    log_prob = property()  # which `hasattr` does not find
    no_density = "nobody knows its normaliser"


def test_a_prior_without_a_density_gives_its_own_reason(monkeypatch):
    monkeypatch.setattr(measure, "NEIGHBOUR_DRAWS", 20)
    dataset = digits()
    config = aae_gaussian.Config(hidden_units=(8,), binarisation="dynamic")
    model = aae_gaussian.build(config, dataset.image_shape)
    model.prior = Enigma(config.latent_dim)
    test = encoded(model, measure.test_images(dataset, config))
    numbers = measure.measure(model, dataset, config, test)
    for key in ("marginal_kl_nats", "kl_neighbour_nats", "marginal_kl_neighbour_nats"):
        assert numbers[key] is None and numbers["null_because"][key] == Enigma.no_density
    settings = LikelihoodSettings(4, 2, (3,), 4, 5)
    numbers = measure_likelihood(model, dataset, settings, TimeLeft())
    assert numbers["null_because"]["annealed_log_likelihood_nats"] == Enigma.no_density
    assert numbers["null_because"]["importance_weighted_bound_nats"] == Enigma.no_density


def test_every_probe_sees_the_codes_of_the_same_pixels(monkeypatch):
    """Those of one binarisation of each image, whichever instrument asks."""
    monkeypatch.setattr(measure, "NEIGHBOUR_DRAWS", 20)
    dataset = dataclasses.replace(digits(), **{f"y_{part}": np.arange(60) % 3 for part in ("train", "val", "test")})
    config = vae_baseline.Config(hidden_units=(8,), binarisation="dynamic", seed=5)
    model = vae_baseline.build(config, dataset.image_shape)
    seen, labels = {}, {}
    infer_batches, probe_accuracy = model.infer_batches, measure.probes.probe_accuracy

    def inferring(batches, keys=()):
        batches = list(batches)
        found = infer_batches(batches, keys)
        seen[found["z"].tobytes()] = np.concatenate(batches)
        return found

    def probing(probe, known, known_labels, codes, asked_labels, seed):
        labels[probe] = seen[known.tobytes()], known_labels, seen[codes.tobytes()], asked_labels
        return probe_accuracy(probe, known, known_labels, codes, asked_labels, seed)

    monkeypatch.setattr(model, "infer_batches", inferring)
    monkeypatch.setattr(measure.probes, "probe_accuracy", probing)

    class Classifier:
        accuracy = Estimate(0.5, 0.1)

        def features(self, images):
            return images[: len(images)].reshape(len(images), -1)  # which are picked or decoded only then

    monkeypatch.setattr(samples, "nearest_images", lambda images, train: (None, np.zeros(len(images))))
    measure.measure(model, dataset, config, encoded(model, measure.test_images(dataset, config)))
    measure.measure_samples(model, dataset, config, Classifier())
    assert labels.keys() == {"knn", "logistic", "mlp"}
    for found in labels.values():
        for images, others in zip(found, labels["knn"], strict=True):
            np.testing.assert_array_equal(images, others)
    assert set(np.unique(labels["mlp"][2])) == {0.0, 1.0}  # not the grey images


# What metrics.json holds: tests/test_comparison.py finds every key of a run in METRICS.


def test_the_page_of_the_metrics_is_made_from_their_list():
    page = Path(__file__).parent.parent / "docs" / "metrics.md"
    assert page.read_text() == metrics.page(), "python -m common.metrics > docs/metrics.md"
    assert all(f"| `{key}` |" in metrics.page() for key in metrics.METRICS)


def test_the_stated_kl_of_the_neighbours_images_leaves_the_random_numbers_as_they_are(monkeypatch):
    model = avb.build(avb.Config(hidden_units=(8,), discriminator_units=(8,)), (4, 4))
    images = np.random.default_rng(0).random((6, 4, 4), dtype="float32")
    before = to_numpy(model.seed_generator.state)
    found = measure.stated_kl(model, images)[measure.STATED_KL]
    assert (to_numpy(model.seed_generator.state) == before).all()
    monkeypatch.setattr(type(model), "divergences", lambda self, x, outputs: {"kl_estimated_nats": 3.0 * x[:, 0, 0]})
    exact = measure.stated_kl(model, images)[measure.STATED_KL]
    assert exact == pytest.approx(measure.mean_of(3.0 * images[:, 0, 0]), rel=1e-6)  # float32
    assert np.isfinite(found).all() and found != exact
    vae = vae_baseline.build(vae_baseline.Config(hidden_units=(8,)), (4, 4))
    closed = to_numpy(vae.divergences(images, vae.infer(images))["kl_nats"])
    assert measure.stated_kl(vae, images)[measure.STATED_KL] == pytest.approx(measure.mean_of(closed), rel=1e-5)


def test_neighbours_and_the_model_are_compared_on_the_same_images(monkeypatch):
    seen, images = [], np.random.default_rng(0).random((40, 4, 4), dtype="float32")
    monkeypatch.setattr(measure, "NEIGHBOUR_IMAGES", 11)
    monkeypatch.setattr(measure, "NEIGHBOUR_DRAWS", 20)
    draws, stated = measure.posterior_draws, measure.stated_kl
    monkeypatch.setattr(measure, "posterior_draws", lambda model, x, count: seen.append(x) or draws(model, x, count))
    monkeypatch.setattr(measure, "stated_kl", lambda model, x: seen.append(x) or stated(model, x))
    model = vae_baseline.build(vae_baseline.Config(hidden_units=(8,)), (4, 4))
    measure.information(model, images, model.draw_codes(images))
    assert len(seen) == 2 and len(seen[0]) == 11
    np.testing.assert_array_equal(*seen)
