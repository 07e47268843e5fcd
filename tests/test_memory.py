"""What follows a training takes little memory, whatever the size of images and codes, and takes any pixels as meant.

Runs on the backend in use. Every way of taking less memory gives the bits of the plain way on small images.
"""

import dataclasses
import json
import tracemalloc
import warnings

import aae_deterministic
import avb
import vae_baseline
from common import measure, measure_likelihood, run
from common.arrays import DataError, MappedImages
from common.binarisation import binarise, random_stream
from common.data import Dataset
from common.evaluation import annealing, likelihood, probes, samples
from common.files import RunError
from common.measure_likelihood import LikelihoodSettings
from common.model import BATCH_NUMBERS, Decoded, batch_slices, even_batch_size, to_numpy
from common.numbers import flat
from common.pixels import Pixels
from common.transforms import PixelTransform

import numpy as np
import pytest
import small_runs
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

SHAPE = (4, 3)
property_test = settings(deadline=None, max_examples=100, derandomize=True)


def built(script=vae_baseline, shape=SHAPE, latent_dim=2, **options):
    if script is avb:
        options = {"discriminator_units": (4,), "noise_units": (4,)} | options
    return script.build(script.Config(hidden_units=(4,), latent_dim=latent_dim, seed=1, **options), shape)


def greys(count, shape=SHAPE, seed=0):
    return np.random.default_rng(seed).random((count, *shape), dtype="float32")


def data(count, shape=SHAPE, classes=3):
    images, labels = greys(3 * count, shape), np.arange(3 * count) % classes
    parts = [(images[start : start + count], labels[start : start + count]) for start in (0, count, 2 * count)]
    return Dataset(*(array for part in parts for array in part), "greys")


def peak(function) -> int:
    """The most bytes that NumPy and Python held at a time during a call."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def noise_of(model) -> np.ndarray:
    return np.array(to_numpy(model.seed_generator.state))


# Batches by size


@property_test
@given(st.integers(0, 5000), st.integers(1, 3000), st.integers(1, 2**26))
def test_batches_are_even_few_and_within_both_limits(count, most, numbers):
    size = even_batch_size(count, most, numbers)
    limit = max(1, min(most, BATCH_NUMBERS // numbers))
    assert size <= limit and -(-count // max(size, 1)) == -(-count // limit)
    assert count == 0 or size == -(-count // -(-count // limit))


@property_test
@given(st.integers(0, 3000), st.integers(1, 2**20))
def test_slices_are_all_rows_once_and_in_order(count, numbers):
    rows = [row for each in batch_slices(count, numbers) for row in range(count)[each]]
    assert rows == list(range(count))


def test_small_images_come_in_batches_of_500_as_ever():
    assert even_batch_size(10_000, numbers=28 * 28) == 500 == even_batch_size(10_000)
    assert even_batch_size(501, numbers=64 * 64 * 3) == 251
    assert even_batch_size(10_000, numbers=512 * 512 * 3) == 21


# Pixels that are passed to a trained model


def as_uint8(x):
    return np.round(255 * x).astype("uint8")


X = as_uint8(greys(7)).astype("float32") / np.float32(255)
TAKEN = {
    "uint8": as_uint8(X),
    "int64": as_uint8(X).astype("int64"),
    "float64": X.astype("float64"),
    "float16": X.astype("float16"),
    "channels last": X[..., None],
    "channels first": X[:, None],
    "three equal channels, last": np.stack([X] * 3, -1),
    "three equal channels, first": np.stack([X] * 3, 1),
    "a list": X.tolist(),
    "a tuple of arrays": tuple(as_uint8(X)),
    "Fortran order": np.asfortranarray(X),
    "rounded up": X * np.float32(1 + 1e-6),
    "rounded down": X - np.float32(1e-6),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_pixels_of_any_kind_are_taken_as_meant(kind):
    pixels = Pixels(TAKEN[kind], SHAPE)
    found = np.concatenate([pixels[:3], pixels[3:]])
    assert found.dtype == "float32" and found.shape == X.shape and found.min() >= 0 and found.max() <= 1
    np.testing.assert_allclose(found, X, atol=1e-3 if kind == "float16" else 2e-6)


def test_tensors_and_mapped_images_are_taken(tmp_path):
    np.save(tmp_path / "x.npy", as_uint8(X))
    mapped = MappedImages(np.load(tmp_path / "x.npy", mmap_mode="r"), slice(2, 6))
    np.testing.assert_array_equal(Pixels(mapped, SHAPE)[:], X[2:6])
    np.testing.assert_array_equal(Pixels(ops.convert_to_tensor(X), SHAPE)[:], X)


def test_truth_values_and_integers_of_a_binary_model_are_0_and_1():
    binary = X > 0.5
    np.testing.assert_array_equal(Pixels(binary, SHAPE)[:], binary)
    np.testing.assert_array_equal(Pixels(binary.astype("uint8"), SHAPE, white=1)[:], binary)
    np.testing.assert_array_equal(Pixels(X, SHAPE, white=1)[:], X)


REFUSED = {
    "0 to 255 as floats": (255 * X / X.max(), "x has pixels from .* to 255.0; divide by 255 so that they lie in"),
    "-1 to 1": (2 * X - 1, r"rescale them to \[0, 1\], such as by x = \(x \+ 1\) / 2, if -1 is black"),
    "NaN": (np.where(X.max() == X, np.nan, X), "NaN or infinite pixels"),
    "infinite": (np.where(X.max() == X, np.inf, X), "NaN or infinite pixels"),
    "negative": (as_uint8(X).astype("int64") - 300, "integers from -.* takes 0 to 255"),
    "16 bits": (257 * as_uint8(X).astype("uint16"), "takes 0 to 255"),
    "0 and 1 as uint8": ((X > 0.5).astype("uint8"), r"goes only from 0 to 1; pass x.astype\('float32'\)"),
    "words": (np.full(X.shape, "a"), "dtype <U1"),
    "complex": (X + 1j, "dtype complex"),
    "ragged": ([[[1.0]], [[1.0], [2.0]]], "x is not an array"),
    "one image": (X[0], r"shape \(4, 3\); this model takes \(n, 4, 3\); for one image pass x\[None\]"),
    "one image with a channel": (X[0][..., None], r"this model takes \(n, 4, 3\); for one image pass x\[None\]"),
    "rows": (X.reshape(7, -1), r"pass x.reshape\(-1, 4, 3\)"),
    "another size": (greys(7, (3, 3)), r"shape \(7, 3, 3\); this model takes \(n, 4, 3\)$"),
    "colour": (greys(7, (4, 3, 3)), r"x holds colour images, .*, such as by x = x.mean\(axis=3\)"),
    "colour, first": (greys(7, (3, 4, 3)), r"x holds colour images, .*, such as by x = x.mean\(axis=1\)"),
    "five channels": (greys(7, (4, 3, 5)), r"this model takes \(n, 4, 3\)$"),
    "0 to 16": (as_uint8(X).astype("int64") // 16, r"goes from 0 to 1\d. If 255 is white, save x.astype\(np.uint8\)"),
    "masked": (np.ma.masked_greater(X, 0.5), r"x has masked values; give x.filled\(0\)"),
    "a number": (0.5, r"shape \(\)"),
    "none, of another size": (greys(0, (3, 3)), r"shape \(0, 3, 3\)"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_meant_is_refused_in_one_line(kind):
    given, message = REFUSED[kind]
    with pytest.raises(DataError, match=message) as refused:
        Pixels(given, SHAPE)
    assert "\n" not in str(refused.value)


def test_integers_beyond_1_are_refused_where_training_had_0_and_1():
    with pytest.raises(DataError, match="integers from 0 to 255; this model takes 0 to 1"):
        Pixels(np.array([[[0, 255]]]), (1, 2), white=1)


def test_the_codes_of_integers_are_those_of_their_floats():
    floats, integers = built(aae_deterministic), built(aae_deterministic)
    np.testing.assert_array_equal(floats.encode(X), integers.encode(as_uint8(X)))
    binary = as_uint8(X) > 127
    integers.transform = PixelTransform(SHAPE, white=1)
    np.testing.assert_array_equal(floats.encode(binary), integers.encode(binary.astype("int32")))
    with pytest.raises(DataError, match="this model takes"):
        integers.encode(as_uint8(X))


# Nothing, and codes of a wrong shape


@pytest.mark.parametrize("script", [vae_baseline, avb], ids=["VAE", "AVB"])
def test_nothing_gives_empty_arrays_and_draws_nothing(script):
    model, same = built(script), built(script)
    assert model.encode([]).shape == (0, 2) == model.encode(X[:0]).shape
    assert {key: array.shape for key, array in model.inferred(X[:0]).items()}["z"] == (0, 2)
    assert model.sample(0).shape == (0, *SHAPE) == model.decode([]).shape == model.decode(np.zeros((0, 2))).shape
    np.testing.assert_array_equal(noise_of(model), noise_of(same))
    np.testing.assert_array_equal(model.encode(X), same.encode(X))


@pytest.mark.parametrize("codes", [np.zeros(2), np.zeros((3, 5)), np.zeros((1, 3, 2)), np.float32(0)])
def test_codes_of_another_shape_are_refused(codes):
    with pytest.raises(DataError, match=r"codes have shape .* this model takes \(n, 2\)") as refused:
        built().decode(codes)
    assert ("z[None]" in str(refused.value)) == (codes.shape == (2,))


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([[1], [2, 3]], "z is not an array"),
        ([["a", "b"]], "z has dtype <U1"),
        (np.ma.masked_equal([[1.0, 2.0]], 2), "z has masked values"),
    ],
)
def test_codes_that_are_no_numbers_are_refused(codes, message):
    with pytest.raises(DataError, match=message) as refused:
        built().decode(codes)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("count", [-1, 1.5, "3", None, np.arange(2)])
def test_what_is_no_number_of_samples_is_refused(count):
    with pytest.raises(DataError, match=r"cannot draw .* codes; give a whole number"):
        built().sample(count)


def test_codes_can_be_lists_and_tensors():
    model, codes = built(), [[0.5, 1.0], [2.0, -1.0]]
    expected = model.decode(np.array(codes))
    np.testing.assert_array_equal(model.decode(codes), expected)
    np.testing.assert_array_equal(model.decode(ops.convert_to_tensor(codes)), expected)


# The plain way, and the one of less memory: the same bits


@pytest.mark.parametrize("script", [vae_baseline, avb], ids=["VAE", "AVB"])
def test_posterior_draws_are_the_codes_of_repeated_images(script):
    model, same, images = built(script), built(script), greys(50)
    expected = same.encode(np.tile(images, (13, 1, 1))).reshape(13, 50, 2)  # 650 rows, two batches
    np.testing.assert_array_equal(measure.posterior_draws(model, images, 13), expected)


@pytest.mark.parametrize("binarisation", ["none", "dynamic", "threshold"])
def test_codes_of_training_images_are_those_of_one_array(binarisation):
    dataset, config = data(1203), vae_baseline.Config(seed=4, binarisation=binarisation)
    random = random_stream(4, "training codes")
    chosen = random.permutation(1203)
    expected = built().inferred(binarise(dataset.x_train[chosen], binarisation, random))
    found, labels = measure.training_inferred(built(), dataset, config, ("z", "mean"))
    assert found.keys() == {"z", "mean"}
    for key, array in found.items():
        np.testing.assert_array_equal(array, expected[key])
    np.testing.assert_array_equal(labels, dataset.y_train[chosen])


def test_images_of_the_likelihood_are_those_of_one_draw(monkeypatch):
    dataset = data(50)
    binary = binarise(dataset.x_test, "dynamic", np.random.default_rng(measure_likelihood.PIXEL_SEED))
    order = np.random.default_rng(measure_likelihood.ORDER_SEED).permutation(50)
    monkeypatch.setattr("common.arrays.CHUNK", 7 * 12)
    np.testing.assert_array_equal(measure_likelihood.likelihood_images(dataset, 20), binary[order[:20]])
    monkeypatch.setattr(measure_likelihood, "MOST_PIXELS", 5 * 12)
    np.testing.assert_array_equal(measure_likelihood.likelihood_images(dataset, 20), binary[order[:5]])


def test_windows_on_images_that_are_decoded_when_needed(monkeypatch):
    model, dataset = built(), data(40)
    codes = model.prior_codes(700)
    expected = measure_likelihood.parzen(model.decode(codes), dataset)
    assert measure_likelihood.parzen(Decoded(model, codes), dataset) == expected
    plain = likelihood.squared_distances(dataset.x_train, dataset.x_test)
    monkeypatch.setattr("common.arrays.CHUNK", 9 * 12)
    np.testing.assert_allclose(likelihood.squared_distances(dataset.x_train, dataset.x_test), plain, atol=1e-12)


def test_chains_by_groups_of_images_are_as_good(monkeypatch):
    """Every group has chains of its own; the numbers of a group alone are those of all images in one."""
    model, dataset, chains = built(), data(40), LikelihoodSettings(6, 3, (2, 4), 4, 5)
    small_runs.short_annealing(monkeypatch)
    monkeypatch.setattr(annealing, "DRAWS", 1000)  # fewer are noisy
    monkeypatch.setattr(annealing, "MOVES", 40)
    monkeypatch.setattr(likelihood, "compiled", lambda function: function)
    numbers, estimates = measure_likelihood.annealed(model, dataset, chains, None)
    monkeypatch.setattr(measure_likelihood, "CHAIN_NUMBERS", 2 * 3 * 12)
    made = []
    sampling = likelihood.AnnealedImportanceSampling
    monkeypatch.setattr(
        likelihood,
        "AnnealedImportanceSampling",
        lambda *given: made.append((len(given[2]), given[4])) or sampling(*given),
    )
    others, found = measure_likelihood.annealed(model, dataset, chains, None)
    assert made == [(2, seed) for seed in (0, 2, 4) for _ in ("test", "simulated")]
    assert found.shape == estimates.shape == (6,) and others.keys() == numbers.keys()
    np.testing.assert_allclose(found, estimates, atol=1.0)  # an untrained decoder: its weights hardly differ
    alone = likelihood.Annealed(np.ones((5, 3)), 0.1 + 0.2)
    assert likelihood.joined([alone]).acceptance == alone.acceptance
    both = likelihood.joined([alone, likelihood.Annealed(np.zeros((15, 3)), 0.7)])
    assert both.log_weights.shape == (20, 3) and both.acceptance == pytest.approx(0.6)


# Memory


LARGE = (512, 512)


@pytest.fixture(scope="module")
def large():
    """A model of large images, and 200 of these, of which only one is in memory."""
    return built(shape=LARGE), np.broadcast_to(greys(1, LARGE)[0], (200, *LARGE))


def test_draws_for_large_images_hold_a_batch_at_a_time(large):
    model, images = large
    most = peak(lambda: measure.posterior_draws(model, images[:100], 8))
    assert most < 300 * 2**20  # it was once 800 MiB of repeated images


def test_large_samples_and_their_features_hold_a_batch_at_a_time(large, monkeypatch):
    model, images = large
    monkeypatch.setattr(measure, "MOST_PIXELS", 2**23)  # 32 images
    numbers = {}

    def work():
        decoded, train = Decoded(model, model.prior_codes(300)), MappedImages(images, np.arange(200))
        some = measure.fitting(1000, 512 * 512, measure.MOST_PIXELS)
        numbers["nearest"] = samples.nearest_images(decoded[:some], train[:40])[1]
        numbers["distances"] = likelihood.squared_distances(decoded, images[:8])

    assert peak(work) < 500 * 2**20
    assert numbers["nearest"].shape == (32,) and numbers["distances"].shape == (8, 300)


@pytest.mark.parametrize(("shape", "latent_dim", "count"), [(SHAPE, 2, 300), ((9, 9), 200, 40)])
def test_memory_of_measuring_is_what_was_said(shape, latent_dim, count, monkeypatch):
    monkeypatch.setattr(measure, "NEIGHBOUR_DRAWS", 50)
    dataset, config = data(count, shape), vae_baseline.Config(binarisation="dynamic")
    model = built(shape=shape, latent_dim=latent_dim)

    def work():
        measure.measure(model, dataset, config, measure.encoded(model, measure.test_images(dataset, config)))

    needed = measure.memory_needed(shape, latent_dim, count, count)
    assert peak(work) < needed < 2**30


def test_what_measuring_large_images_takes_is_bounded():
    for shape in ((28, 28), (512, 512), (512, 512, 3)):
        assert measure.memory_needed(shape, 2, 60_000, 10_000, binarised=False) < 4 * 2**30
    assert measure.memory_needed((28, 28), 2, 55_000, 10_000) < 1.5 * 2**30
    assert measure.memory_needed((28, 28), 100_000, 55_000, 10_000) > 16e9  # four copies of the codes


def test_a_code_of_many_dimensions_is_measured_on_fewer_images(monkeypatch):
    monkeypatch.setattr(measure, "NEIGHBOUR_DRAWS", 20)
    monkeypatch.setattr(measure, "MOST_CODE_NUMBERS", 30 * 25)
    dataset, config, model = data(60), vae_baseline.Config(), built(latent_dim=25)
    numbers = measure.measure(model, dataset, config, measure.encoded(model, dataset.x_test))
    assert numbers["mutual_information_images"] == 30
    assert "dimensions" in numbers["null_because"]["kl_neighbour_nats"]
    assert numbers["test_reconstruction_nats"] > 0 and numbers["code_knn_accuracy"] is not None


# What the data, or a training that went wrong, make impossible


def test_one_class_leaves_nothing_to_a_classifier(tmp_path):
    dataset = data(40, classes=1)
    with pytest.raises(DataError, match="all training labels are of one class; a classifier needs 2 to 1,000"):
        samples.Classifier(dataset, tmp_path)
    numbers = measure.measure_samples(built(), dataset, vae_baseline.Config(), None)
    assert numbers["null_because"]["sample_frechet_distance"] == probes.ONE_CLASS
    assert numbers["sample_nearest_distance"] > 0


def test_more_classes_than_a_classifier_can_have_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(probes, "MOST_CLASSES", 2)
    dataset = data(40, classes=3)
    with pytest.raises(DataError, match="classes take a classifier too much memory; a classifier needs 2 to"):
        samples.Classifier(dataset, tmp_path)
    numbers = measure.measure_samples(built(), dataset, vae_baseline.Config(), None)
    assert numbers["null_because"]["classifier_accuracy"] == probes.MANY_CLASSES


def test_the_discriminator_of_avb_counts_as_a_network_of_images(monkeypatch):
    wide = {"hidden_units": (2,), "latent_dim": 2}
    dataset = data(40, classes=3)
    monkeypatch.setattr(run, "memory_available", lambda: 1e12)
    run.require_memory(avb.Config(**wide), dataset)
    with pytest.raises(
        RunError, match="--hidden-units 2, --discriminator-units 100000 1000000 and --latent-dim 2 take"
    ):
        run.require_memory(avb.Config(**wide, discriminator_units=(10**5, 10**6)), dataset)


def test_too_few_test_images_are_refused_with_what_is_enough():
    with pytest.raises(DataError, match="numbers and figures need 20: give 200 unsplit images, or 20 in x_test"):
        run.require_test_images(dataclasses.replace(data(40), x_test=data(40).x_test[:2]))


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("script", [vae_baseline, avb, aae_deterministic], ids=["VAE", "AVB", "AAE"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30, 0.0])
def test_a_model_of_any_weights_gives_numbers_or_reasons(script, value, monkeypatch):
    monkeypatch.setattr(measure, "NEIGHBOUR_DRAWS", 20)
    dataset, config, model = data(30), script.Config(), built(script)
    for network in (model.encoder, model.decoder):
        network.set_weights([np.full_like(weights, value) for weights in network.get_weights()])

    class Classifier:
        accuracy = measure.mean_of(np.ones(2))

        def features(self, images):
            return images[: len(images)].reshape(len(images), -1)

    test = measure.encoded(model, dataset.x_test)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="keras|jax|torch|tensorflow")
        parts = [measure.measure(model, dataset, config, test)]
        parts.append(measure.measure_samples(model, dataset, config, Classifier()))
    for numbers in parts:
        json.dumps(numbers, allow_nan=False)
        assert numbers["null_because"].keys() >= {key for key, number in numbers.items() if number is None}
    assert flat({}) == {"null_because": {}}
    assert (parts[0]["code_mean_norm"] is None) == (not np.isfinite(test.codes).all())
