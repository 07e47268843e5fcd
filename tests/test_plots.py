"""Figures of every run hold what they say: masses, places, limits and labels, whatever the numbers are."""

import subprocess
import sys
from pathlib import Path

from common import plots
from common.plots.classes import MOST_CLASSES, looks
from common.plots.figure import COLOURS, DPI, literal, spread
from common.plots.scatter import contour_levels, view
from common.plots.tiles import as_images

import matplotlib
import numpy as np
import pytest
from figure_helpers import (
    CODES,
    IMAGES,
    LABELS,
    LONG,
    PRIOR,
    pixels,
    require_legible,
    require_readable,
    tile_values,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy.stats import chi2

pytestmark = pytest.mark.filterwarnings("error")

HISTORY = {"epoch": [1, 2, 3], "loss": [9.0, 7.0, 6.0], "val_loss": [9.5, 7.5, 6.5]}
CURVE = [
    {"temperatures": count, "test": (-90, 2), "simulated_lower": (-91 - 9 / count, 2), "simulated_upper": (-90, 2)}
    for count in (10, 100)
]
COLOURED = np.random.default_rng(1).random((7, 4, 4, 3))
CODES_3 = np.hstack([CODES, CODES[::-1, :1]])
WORDS = (
    "A",
    "ankle boot",
    "Schmetterling_16",
    "n02085620-Chihuahua",
    "$a_b$",
    "_hidden",
    "数据 data",
    "W" * 255,
    "a\nb",
)
FIGURES = {
    "latent scatter": lambda: plots.latent_scatter(CODES, LABELS, LONG, PRIOR, standard_log_prob),
    "prior samples": lambda: plots.latent_scatter(CODES, None, LONG, PRIOR),
    "latent histogram": lambda: plots.latent_histogram(CODES[:, :1], LABELS, LONG, PRIOR[:, :1], standard_log_prob),
    "latent planes": lambda: plots.latent_planes(CODES_3, LABELS, LONG, CODES_3),
    "projection": lambda: plots.projection_scatter(CODES, LABELS, LONG, LONG, ("PC 1", "PC 2"), PRIOR),
    "image grid": lambda: plots.image_grid(IMAGES, LONG, LONG, columns=3),
    "reconstructions": lambda: plots.image_pairs(IMAGES, IMAGES, ("a", "b"), LONG, LONG, columns=3),
    "manifold": lambda: plots.manifold(np.zeros((3, 3, 8, 8)), np.array([5, 50, 95]), LONG, LONG),
    "interpolations": lambda: plots.interpolations(np.zeros((2, 3, 8, 8)), LONG, LONG),
    "colour grid": lambda: plots.image_grid(COLOURED, LONG, LONG, columns=3, limits=(-1, 1), value_name=LONG),
    "colour pairs": lambda: plots.image_pairs(COLOURED, COLOURED, ("a", "b"), LONG, LONG, 3, (0, 300), "count"),
    "colour manifold": lambda: plots.manifold(np.zeros((3, 3, 8, 8, 3)), np.array([5, 50, 95]), LONG, LONG, (0, 16)),
    "colour interpolations": lambda: plots.interpolations(np.zeros((2, 3, 8, 8, 3)), LONG, LONG, (-3.2, 4.1), "mV"),
    "curves": lambda: plots.training_curves(HISTORY, LONG, {"loss": [(6.2, "a name"), (900.0, "far away")]}),
    "annealing": lambda: plots.annealing_curves(CURVE, LONG, LONG, "MNIST"),
    "untrained": lambda: plots.training_curves({"epoch": []}, LONG),
}
UNLABELLED = {"image grid", "reconstructions", "colour grid", "colour pairs"}  # tiles in reading order have no axes


def standard_log_prob(z):
    return -0.5 * np.sum(z**2, axis=1) - z.shape[1] / 2 * np.log(2 * np.pi)


def texts(figure: Figure) -> str:
    return " | ".join(text.get_text() for axes in figure.axes for text in axes.texts)


@pytest.mark.parametrize("name", FIGURES)
def test_title_and_axes_are_named_and_nothing_is_cut_off(name):
    x_label = name not in UNLABELLED | {"latent histogram"}  # whose lower axes have it
    require_readable(FIGURES[name](), x_label, name not in UNLABELLED | {"interpolations", "colour interpolations"})


def test_the_bounds_of_both_directions_are_drawn_apart():
    figure = plots.annealing_curves(CURVE, "t", "d", "MNIST")
    _, right = figure.axes
    names = [container.get_label() for container in right.containers]
    assert names == ["reverse: above the truth", "forward: below the truth"]
    figure.draw_without_rendering()
    legend, inside = right.get_legend().get_window_extent(), right.get_window_extent()
    assert inside.x0 <= legend.x0 and legend.x1 <= inside.x1
    ends = [container.lines[0].get_ydata() for container in right.containers]
    np.testing.assert_allclose(ends, [[-90, -90], [-91.9, -91.09]])


def test_contours_enclose_the_stated_mass_of_a_gaussian():
    mean, deviations = np.array([5.0, -2.0]), np.array([1.0, 3.0])
    samples = mean + np.random.default_rng(1).normal(size=(20_000, 2)) * deviations
    figure = plots.latent_scatter(CODES, LABELS, "t", samples, lambda z: standard_log_prob((z - mean) / deviations))
    contours = [drawn for drawn in figure.axes[0].collections if isinstance(drawn, ContourSet)]
    for contour, mass in zip(contours, (0.5, 0.9, 0.99), strict=True):
        outline = contour.get_paths()[0].vertices
        assert len(outline) > 100
        squared = np.sum(((outline - mean) / deviations) ** 2, axis=1)
        # half of it is exponential, the standard error of whose quantile is sqrt(m / (1 - m) / n)
        sampling = 2 * 4 * np.sqrt(mass / (1 - mass) / len(samples))
        interpolation = 0.01  # in a grid of 300 x 300
        np.testing.assert_allclose(squared, chi2.ppf(mass, df=2), atol=sampling + interpolation)


def test_a_flat_prior_has_one_contour_that_encloses_everything():
    levels = contour_levels(np.full(100, -1.4), [0.5, 0.9])
    assert len(levels) == 1 and levels[0] < -1.4

    square = np.random.default_rng(2).uniform(-1, 1, size=(1000, 2))
    figure = plots.latent_scatter(
        CODES, None, "t", square, lambda z: np.where(np.abs(z).max(axis=1) <= 1, -np.log(4), -np.inf)
    )
    (contour,) = (drawn for drawn in figure.axes[0].collections if isinstance(drawn, ContourSet))
    spacing = 2.2 / 299
    outline = contour.get_paths()[0].vertices
    assert len(outline) > 100
    np.testing.assert_allclose(np.abs(outline).max(axis=1), 1, atol=spacing)


@pytest.mark.parametrize("count", [50, 5000])
def test_one_outlier_does_not_widen_the_axes_and_is_counted(count):
    codes = np.random.default_rng(3).normal(size=(count, 2))
    codes[7], codes[8] = (1e6, 0), (np.nan, 0)
    figure = plots.latent_scatter(codes, np.arange(count) % 10, "t", PRIOR, description="")
    assert np.ptp(figure.axes[0].get_xlim()) < 12
    said = " ".join(figure.texts[1].get_text().split())
    assert f"1 of {count:,} codes not finite" in said
    assert f"of {count:,} codes outside the axes" in said


def test_axes_hold_999_in_1000_of_every_cloud():
    random = np.random.default_rng(4)
    clouds = 0.1 * random.standard_t(2, size=(5000, 2)), 5 + random.standard_t(2, size=(3000, 2))
    limits = view(*clouds)
    assert np.ptp(limits[0]) == pytest.approx(np.ptp(limits[1]))
    for cloud in clouds:
        assert np.mean(((cloud >= limits[:, 0]) & (cloud <= limits[:, 1])).all(axis=1)) >= 0.999


def test_codes_that_are_all_nan_still_give_a_figure():
    figure = plots.latent_scatter(np.full((30, 2), np.nan), LABELS[:30], "t", PRIOR, standard_log_prob)
    assert "30 of 30 codes not finite" in figure.texts[1].get_text()


def test_every_class_has_its_own_look_and_its_name_at_its_median():
    labels = np.arange(300) % 25
    codes = np.stack([labels % 5, labels // 5], axis=1) + 0.1 * CODES
    axes = plots.latent_scatter(codes, labels, "t", PRIOR).axes[0]
    looks = {(tuple(dot.get_color()), dot.get_marker()) for dot in axes.get_legend().legend_handles}
    assert len(looks) == 25
    for text in axes.texts:
        label = int(text.get_text())
        np.testing.assert_allclose(text.get_position(), (label % 5, label // 5), atol=0.15)  # 5 standard errors
    assert len(axes.texts) == 25


def test_classes_in_one_place_are_written_apart():
    places = spread(np.zeros((10, 2)), distance=1.0)
    gaps = np.linalg.norm(places[:, None] - places, axis=-1)[~np.eye(10, dtype=bool)]
    assert gaps.min() > 0.8


def test_without_labels_all_codes_share_one_colour_and_no_class_is_named():
    axes = plots.latent_scatter(CODES, None, "t", PRIOR, standard_log_prob).axes[0]
    assert len(np.unique(axes.collections[0].get_facecolor(), axis=0)) == 1
    assert not axes.texts


def test_histograms_are_densities_on_a_common_scale():
    figure = plots.latent_scatter(CODES, LABELS, "t", PRIOR, standard_log_prob)
    for axes in figure.axes[1:]:
        for steps, cloud in zip(axes.patches, (CODES, PRIOR), strict=True):
            values, edges, _ = steps.get_data()
            inside = np.sum(values * np.diff(edges)) * len(cloud)
            assert len(cloud) - 2 <= round(inside) <= len(cloud)  # the farthest point or two may lie outside


# Classes


def names_of(count: int) -> list[str]:
    return [f"{WORDS[number % len(WORDS)]} {number}" for number in range(count)]


def scattered(classes: int, dimensions: int = 2, count: int = 600):
    """Codes (count, dimensions) of classes that lie apart, and their labels."""
    random = np.random.default_rng(classes)
    labels = np.arange(count) % classes
    return 2 * random.normal(size=(classes, dimensions))[labels] + 0.2 * random.normal(size=(count, dimensions)), labels


@pytest.mark.parametrize(
    ("classes", "named"), [(1, True), (10, False), (16, False), (47, True), (60, True), (300, False)]
)
def test_any_number_of_classes_is_legible(classes, named):
    names = names_of(classes) if named else None
    codes, labels = scattered(classes)
    figure = plots.latent_scatter(codes, labels, "t", PRIOR, standard_log_prob, class_names=names)
    require_legible(figure)
    require_legible(plots.projection_scatter(codes, labels, "t", "d", ("a", "b"), PRIOR, class_names=names))
    require_legible(plots.latent_histogram(codes[:, :1], labels, "t", PRIOR[:, :1], class_names=names))
    codes, labels = scattered(classes, 3)
    require_legible(plots.latent_planes(codes, labels, "t", CODES_3, class_names=names))
    entries = figure.axes[0].get_legend().get_texts()
    assert len(entries) == min(classes, MOST_CLASSES) + (classes > MOST_CLASSES)
    legend = figure.axes[0].get_legend().get_window_extent()
    assert not any(legend.overlaps(axes.get_window_extent()) for axes in figure.axes)
    assert not legend.overlaps(figure.legends[0].get_window_extent())


@given(
    labels=st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=MOST_CLASSES, unique=True),
    repeats=st.integers(1, 4),
)
@settings(max_examples=50, deadline=None)
def test_looks_go_by_rank_and_differ(labels, repeats):
    found = looks(np.repeat(labels, repeats))
    assert [look.label for look in found] == sorted(labels)
    assert len({(tuple(look.colour), look.marker) for look in found}) == len(labels)
    assert [look.name for look in found] == [str(label) for label in sorted(labels)]
    for rank, look in enumerate(found[:10]):
        np.testing.assert_array_equal(look.colour, COLOURS[rank])


def test_beyond_sixty_classes_the_largest_are_told_apart_and_the_rest_counted():
    counts = np.where(np.arange(62) < 2, 1, 3)
    labels = np.repeat(np.arange(62) * 10**11, counts)
    codes = np.random.default_rng(0).normal(size=(len(labels), 2))
    assert [look.label for look in looks(labels)] == [label * 10**11 for label in range(2, 62)]
    figure = plots.latent_scatter(codes, labels, "t", PRIOR)
    entries = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert entries[-1] == "2 other classes" and len(entries) == 61
    assert "the 60 largest of 62 classes" in figure.texts[1].get_text()
    grey = [points for points in figure.axes[0].collections if np.allclose(points.get_facecolor()[0, :3], 0.7)]
    assert len(grey) == 1 and len(grey[0].get_offsets()) == 2


def test_points_have_the_colour_of_their_class_whatever_its_number():
    labels = np.array([-7, 10**12, 3])[np.arange(300) % 3]
    codes = np.stack([np.sign(labels), 0 * labels], axis=1) * (1.0 + (labels > 3)[:, None])  # -1, 1 and 2
    points = plots.latent_scatter(codes, labels, "t", PRIOR).axes[0].collections[0]
    for place, rank in ((-1, 0), (1, 1), (2, 2)):
        chosen = points.get_offsets()[:, 0] == place
        colours = points.get_facecolor()[chosen, :3]
        np.testing.assert_allclose(colours, np.tile(COLOURS[rank], (100, 1)))


def test_names_stand_for_numbers_that_have_one():
    figure = plots.projection_scatter(CODES[:20], LABELS[:20] - 1, "t", "d", "ab", class_names=["zero", "one"])
    entries = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert entries == ["-1", "zero", "one", "2", "3", "4", "5", "6", "7", "8"]


def test_names_are_not_written_on_lone_points_or_in_a_crowd():
    few = plots.latent_scatter(CODES[:30], LABELS[:30], "t", PRIOR).axes[0]
    crowd = plots.latent_scatter(*scattered(47), "t", PRIOR).axes[0]
    assert not few.texts and not crowd.texts


def test_short_names_stand_apart_and_inside_the_axes():
    names = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
    codes = 0.01 * CODES + np.stack([0 * LABELS, 0.5 * LABELS], axis=1) - 9.0  # along the left edge
    figure = plots.latent_scatter(codes, LABELS, "t", PRIOR, class_names=names)
    assert [text.get_text() for text in figure.axes[0].texts] == names
    require_legible(figure)
    inside = figure.axes[0].get_window_extent()
    for text in figure.axes[0].texts:
        box = text.get_window_extent()
        assert inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1


ODD_CODES = {
    "all alike": (np.ones((30, 3)), LABELS[:30]),
    "all alike and large": (np.full((30, 3), 1e30), LABELS[:30]),
    "wide": (1e5 * CODES_3, LABELS),
    "narrow": (1e-6 * CODES_3 + 1e-3, None),
    "one": (CODES_3[:1], LABELS[:1]),
    "none": (CODES_3[:0], LABELS[:0]),
    "none finite": (np.full((30, 3), np.nan), LABELS[:30]),
    "some not finite": (np.where(CODES_3 > 2, np.inf, CODES_3), LABELS),
    "no labels": (CODES_3, None),
}


@pytest.mark.parametrize("kind", ODD_CODES)
def test_odd_codes_have_figures(kind):
    codes, labels = ODD_CODES[kind]
    for figure in (
        plots.latent_histogram(codes[:, :1], labels, "t", PRIOR[:, :1], standard_log_prob),
        plots.latent_histogram(codes[:, :1], labels, "t", np.tile(PRIOR[:, :1], (200, 1))),
        plots.latent_scatter(codes[:, :2], labels, "t", PRIOR, standard_log_prob),
        plots.latent_planes(codes, labels, "t", CODES_3),
    ):
        require_legible(figure)
        lost = (~np.isfinite(codes[:, : 1 if "z" in [axes.get_xlabel() for axes in figure.axes] else None])).any(axis=1)
        assert not lost.any() or "codes not finite" in " ".join(figure.texts[1].get_text().split())


def test_bars_of_a_histogram_and_its_prior_are_densities():
    figure = plots.latent_histogram(CODES[:, :1], LABELS, "t", PRIOR[:, :1], standard_log_prob)
    above, rows = figure.axes
    values, edges, _ = above.patches[0].get_data()
    assert np.sum(values * np.diff(edges)) == pytest.approx(1, abs=0.01)
    z, density = above.lines[0].get_data()
    np.testing.assert_allclose(density, np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi))
    names = [text.get_text() for text in rows.get_yticklabels()]
    for number, steps in enumerate(rows.patches):
        tops, _, bottom = steps.get_data()
        assert bottom == 9 - number and rows.get_yticks()[number] == pytest.approx(bottom + 0.4)
        assert names[number] == str(number)
        expected = np.histogram(CODES[number == LABELS, 0], edges)[0]
        np.testing.assert_allclose(tops - bottom, 0.85 * expected / expected.max(), atol=1e-12)


def test_planes_hold_the_three_pairs_of_coordinates():
    figure = plots.latent_planes(CODES_3, None, "t", CODES_3)
    labels = [(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes]
    assert labels == [("z₁", "z₂"), ("z₁", "z₃"), ("z₂", "z₃")]
    for axes, plane in zip(figure.axes, ([0, 1], [0, 2], [1, 2]), strict=True):
        drawn = np.asarray(axes.collections[0].get_offsets())
        np.testing.assert_array_equal(np.sort(drawn, axis=0), np.sort(CODES_3[:, plane], axis=0))


def test_an_axis_of_large_numbers_is_labelled_with_their_power_of_ten():
    figure = plots.latent_scatter(1e5 * CODES, LABELS, "t", PRIOR)
    assert [axes.get_xlabel() for axes in figure.axes] == ["z₁ (×1e5)", "", "density (×1e−5)"]
    figure.draw_without_rendering()
    names = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    shown = [float(name.replace("−", "-")) for name in names]
    np.testing.assert_allclose(1e5 * np.array(shown), figure.axes[0].get_xticks())


# Contours


def mixture_log_prob(z):
    """Ten narrow modes on a circle, as common.priors.MixturePrior has them."""
    angles = 2 * np.pi / 10 * np.arange(10)
    along = z @ np.stack([np.cos(angles), np.sin(angles)])
    across = z @ np.stack([-np.sin(angles), np.cos(angles)])
    modes = -0.5 * ((along - 1.4) / 0.5) ** 2 - 0.5 * (across / 0.1) ** 2
    return np.log(np.mean(np.exp(modes), axis=1) / (2 * np.pi * 0.05) + 1e-300)


def mixture_samples(count, random):
    angle = 2 * np.pi / 10 * random.integers(0, 10, count)
    along, across = 1.4 + 0.5 * random.normal(size=count), 0.1 * random.normal(size=count)
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.stack([along * cosine - across * sine, along * sine + across * cosine], axis=1)


PRIORS = {
    "Gaussian": (standard_log_prob, lambda count, random: random.normal(size=(count, 2))),
    "mixture": (mixture_log_prob, mixture_samples),
}


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("count", [2, 20, 1000])
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_contours_are_closed_and_inside_the_axes(prior, count, scale):
    log_prob, sample = PRIORS[prior]
    samples = scale * sample(count, np.random.default_rng(count))
    axes = plots.latent_scatter(scale * 0.1 * CODES, None, "t", samples, lambda z: log_prob(z / scale)).axes[0]
    contours = [drawn for drawn in axes.collections if isinstance(drawn, ContourSet)]
    assert contours
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    for contour in contours:
        for outline in contour.get_paths()[0].to_polygons(closed_only=False):
            np.testing.assert_array_equal(outline[0], outline[-1])
            assert (outline >= [left, bottom]).all() and (outline <= [right, top]).all()


def test_a_prior_without_an_end_still_has_a_figure():
    axes = plots.latent_scatter(CODES, None, "t", PRIOR, lambda z: np.zeros(len(z))).axes[0]
    assert np.ptp(axes.get_xlim()) < 12


# Tiles of any shape

SHAPES = st.one_of(
    st.tuples(st.integers(1, 5000)),
    st.tuples(st.integers(1, 600), st.integers(1, 40)),
    st.tuples(st.integers(1, 40), st.integers(1, 600)),
    st.sampled_from([(512, 512), (1, 20000), (20000, 1), (4, 20000), (20000, 4), (20000,), (3,), (1,), (1, 1)]),
)


@given(shape=SHAPES, count=st.integers(1, 12), columns=st.integers(1, 10))
@settings(max_examples=15, deadline=None)
def test_tiles_of_any_shape_stay_below_3000_pixels(shape, count, columns):
    images = np.zeros((count, *shape), np.float32)
    require_legible(plots.image_grid(images, "t", "d", columns))
    require_legible(plots.image_pairs(images, images, ("reconstruction", "original"), "t", "d", columns))
    require_legible(plots.interpolations(np.broadcast_to(images[0], (2, 11, *shape)), "t", "d"))


@pytest.mark.parametrize("shape", [(300,), (1, 20000), (4, 20000), (20000, 4), (100, 1), (1,), (3,), (64, 64)])
def test_manifolds_of_any_shape_stay_below_3000_pixels(shape):
    images = np.broadcast_to(np.float32(0.5), (19, 19, *shape))
    require_legible(plots.manifold(images, np.linspace(5, 95, 19), "t", "d"))


@given(shape=SHAPES, columns=st.integers(1, 20), rows=st.integers(1, 20))
@settings(max_examples=100, deadline=None)
def test_thumbnails_of_thumbnails_are_the_same(shape, columns, rows):
    images = np.random.default_rng(0).random((2, *shape), dtype=np.float32)
    once = plots.thumbnails(images, columns, rows)
    assert once.dtype == np.float32 and once.ndim == 3
    assert (np.array(once.shape[1:]) * [rows, columns] <= 2000).all()
    assert plots.tile_note(once.shape[1:], columns, rows) == ""
    np.testing.assert_array_equal(plots.thumbnails(once, columns, rows), once)
    empty = plots.thumbnails(images[:0], columns, rows)
    assert empty.shape == (0, *once.shape[1:])


def test_thumbnails_in_batches_give_the_figure_of_all_images():
    images = np.random.default_rng(0).random((9, 400, 400), dtype=np.float32)
    batches = np.concatenate([plots.thumbnails(part, 9, 2) for part in (images[:4], images[4:])])
    whole, parts = (
        plots.image_pairs(given, given, ("a", "b"), "t", "d", columns=9).axes[0].images[0].get_array()
        for given in (images, batches)
    )
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(whole, parts)


def test_a_large_image_is_reduced_to_means_of_blocks_and_the_figure_says_so():
    images = np.random.default_rng(0).random((10, 512, 512))
    small = plots.thumbnails(images, 10)
    expected = images[:, :510, :510].reshape(10, 170, 3, 170, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(small[:, :-1, :-1], expected)
    np.testing.assert_allclose(small[:, -1, -1], images[:, 510:, 510:].mean(axis=(1, 2)))  # what is left over
    said = plots.image_grid(images, "t", "d").texts[1].get_text()
    assert said == "d · each pixel shown is the mean of 3 × 3" == "d" + plots.tile_note((512, 512), 10)


@pytest.mark.parametrize(
    ("shape", "note"),
    [
        ((28, 28), ""),
        ((784,), ""),
        ((100,), ""),
        ((110,), " · rows of 110 numbers in lines of 11"),
        ((2000,), " · rows of 2,000 numbers in lines of 45"),
        ((20000, 1), " · rows of 20,000 numbers in lines of 142"),
    ],
)
def test_rows_are_wrapped_beyond_a_strip_and_the_figure_says_so(shape, note):
    images = np.random.default_rng(0).random((4, *shape))
    assert plots.tile_note(shape, 4) == note
    assert plots.image_grid(images, "t", "d").texts[1].get_text() == "d" + note
    shown = as_images(images).reshape(4, -1)
    numbers = int(np.prod(shape))
    np.testing.assert_array_equal(shown[:, :numbers], images.reshape(4, -1))
    assert np.isnan(shown[:, numbers:]).all()


# Tiles in colour

SIDES = st.one_of(
    st.tuples(st.integers(1, 200), st.integers(1, 40)),
    st.sampled_from([(32, 32), (427, 640), (1, 5000), (5000, 1), (1, 1), (4, 5000)]),
)


def shown_bytes(figure: Figure) -> np.ndarray:
    """The picture of a figure as bytes, (h, w, 3), without what lies around the tiles."""
    return np.asarray(figure.axes[0].images[0].get_array())


def saved_pixels(figure: Figure, path: Path) -> np.ndarray:
    """The pixels of the tiles in the saved PNG, (h, w, 3) bytes."""
    plots.save(figure, path)
    whole = np.rint(255 * matplotlib.image.imread(path)[..., :3]).astype(np.uint8)
    box = figure.axes[0].get_position()
    (width, height), (high, wide) = pixels(figure), whole.shape[:2]
    assert (width, height) == (wide, high)
    left, right = round(box.x0 * width), round(box.x1 * width)
    top, bottom = round((1 - box.y1) * height), round((1 - box.y0) * height)
    return whole[top:bottom, left:right]


def test_the_saved_picture_has_exactly_the_colours_of_the_images(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (6, 5, 7, 3))
    values[0], values[1] = (255, 0, 0), (0, 0, 255)
    figure = plots.image_grid((values / 255).astype(np.float32), "t", "d", columns=3)
    saved = saved_pixels(figure, tmp_path / "a.png")
    high, wide = (saved.shape[0] - 1) // 2, (saved.shape[1] - 2) // 3
    tile = {k: saved[(k // 3) * (high + 1) :, (k % 3) * (wide + 1) :][:high, :wide] for k in range(6)}
    assert (tile[0] == (255, 0, 0)).all() and (tile[1] == (0, 0, 255)).all()
    for number, shown in tile.items():
        np.testing.assert_array_equal(shown, values[number].repeat(high // 5, axis=0).repeat(wide // 7, axis=1))
    assert (saved[high] == 255).all() and (saved[:, wide] == 255).all()  # hairlines


def test_colour_images_are_where_grey_ones_are():
    """Each function puts an image with three equal channels where it puts the grey image."""
    grey = np.random.default_rng(0).integers(0, 256, (12, 6, 9)) / 255
    colour = np.repeat(grey[..., None], 3, axis=-1)
    drawings = (
        lambda x: plots.image_grid(x, "t", "d", columns=5),
        lambda x: plots.image_pairs(x, x[::-1], ("a", "b"), "t", "d", columns=5),
        lambda x: plots.manifold(x[:9].reshape(3, 3, *x.shape[1:]), np.array([5, 50, 95]), "t", "d"),
        lambda x: plots.interpolations(x.reshape(3, 4, *x.shape[1:]), "t", "d"),
    )
    for draw in drawings:
        expected = np.ma.filled(draw(grey).axes[0].images[0].get_array(), 1.0)
        shown = shown_bytes(draw(colour))
        np.testing.assert_array_equal(shown, np.repeat(np.rint(255 * expected)[..., None], 3, axis=-1))


def test_values_that_are_not_finite_are_white_in_colour():
    images = np.zeros((3, 4, 4, 3))
    images[0, ..., 1], images[1, ..., 2] = np.nan, np.inf
    shown = shown_bytes(plots.image_grid(images, "t", "d", columns=2))
    (high, wide), middle = shown.shape[:2], shown[shown.shape[0] // 4]
    assert (middle[[wide // 4, 3 * wide // 4]] == 255).all()
    assert (shown[3 * high // 4, wide // 4] == 0).all() and (shown[3 * high // 4, 3 * wide // 4] == 255).all()


@given(sides=SIDES, count=st.integers(1, 8), columns=st.integers(1, 8))
@settings(max_examples=10, deadline=None)
def test_colour_tiles_of_any_shape_stay_below_3000_pixels(sides, count, columns):
    images = np.zeros((count, *sides, 3), np.float32)
    require_legible(plots.image_grid(images, "t", "d", columns, (0, 255), "count"))
    require_legible(plots.interpolations(np.broadcast_to(images[0], (2, 11, *sides, 3)), "t", "d", (-1, 1)))
    small = plots.thumbnails(images, columns, 3)
    assert small.shape[0] == count and small.shape[3] == 3 and (np.array(small.shape[1:3]) * [3, columns] <= 2000).all()
    np.testing.assert_array_equal(plots.thumbnails(small, columns, 3), small)


def test_channels_of_a_large_image_are_reduced_each_on_its_own():
    images = np.random.default_rng(0).random((2, 512, 300, 3))
    small = plots.thumbnails(images, 10)
    for channel in range(3):
        np.testing.assert_array_equal(small[..., channel], plots.thumbnails(images[..., channel], 10))
    assert plots.tile_note((512, 300, 3), 10) == plots.tile_note((512, 300), 10) != ""
    assert plots.tile_note((32, 32, 3), 10) == ""
    assert plots.tile_note((5000, 1, 3), 10) == " · rows of 5,000 pixels in lines of 71"


# The scale of values


def test_limits_are_black_and_white_and_written_beside_a_bar(tmp_path):
    counts = np.array([0, 8, 16, 40])[:, None, None] * np.ones((4, 5, 5))
    figure = plots.image_grid(counts, "t", "d", columns=4, limits=(0, 16), value_name="$ count")
    saved = saved_pixels(figure, tmp_path / "a.png")
    centres = saved[saved.shape[0] // 2, [(2 * k + 1) * saved.shape[1] // 8 for k in range(4)]]
    assert centres[:, 0].tolist() == [0, 128, 255, 255]
    assert [text.get_text() for text in figure.axes[1].texts] == ["0", r"16  \$ count"]
    assert len(plots.image_grid(counts, "t", "d").axes) == 1  # no bar for values in [0, 1]


def test_the_limits_of_colours_hold_for_every_channel():
    images = np.array([-2.0, -1.0, 0.0, 1.0])[:, None, None, None] * np.ones((4, 5, 5, 3))
    shown = shown_bytes(plots.image_grid(images, "t", "d", columns=4, limits=(-1, 1)))
    centres = shown[shown.shape[0] // 2, [(2 * k + 1) * shown.shape[1] // 8 for k in range(4)]]
    assert centres.tolist() == [[0] * 3, [0] * 3, [128] * 3, [255] * 3]


@pytest.mark.parametrize("limits", [(3, 3), (-1e30, 1e30), (np.nan, np.nan), (0, np.float32(1e-8)), (2000, 1234567)])
@pytest.mark.parametrize("name", ["", "数" * 90, "W" * 255, "a$_$b"])
def test_odd_limits_and_names_have_a_figure(limits, name):
    for images in (np.full((3, 5, 5), 3.0), np.full((3, 5, 5, 3), 3.0), np.full((3, 50), np.nan)):
        require_legible(plots.image_grid(images, "t", "d", limits=limits, value_name=name))


# Text as it is written

CHARACTERS = st.characters(exclude_categories=()) | st.sampled_from("$\\_^{}\n\t\x00ñд数\udce9\u202e\u0301")


@given(st.text(CHARACTERS, max_size=60) | st.text("$\\_ab ", max_size=12))
@settings(max_examples=40, deadline=None)
def test_any_text_is_drawn_and_never_as_mathematics(text):
    figure = plots.projection_scatter(CODES[:20], LABELS[:20] // 5, text, text, (text, text), class_names=[text, text])
    for drawn in figure.findobj(Text):
        assert drawn._preprocess_math(drawn.get_text())[1] is False  # what matplotlib asks before it draws
    figure.draw_without_rendering()
    require_whole_heading(figure)


def require_whole_heading(figure: Figure):
    width = pixels(figure)[0] * figure.dpi / DPI
    assert all(text.get_window_extent().x1 <= width for text in figure.texts)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a$_$b", "a$_$b"),
        ("a\\$b$", "a\\$b$"),
        ("данные 数据 ñ", "данные ?? ñ"),
        ("n\u0303", "ñ"),
        ("caf\udce9\n\x1bx", "caf?  x"),
        ("a\u202eb", "ab"),
        ("_x^{2}", "_x^{2}"),
    ],
)
def test_text_is_drawn_as_it_is_written(text, shown):
    drawn = Text(text=literal(text))._preprocess_math(literal(text))
    assert drawn == (shown, False)


def test_names_whose_ends_cannot_be_seen_are_shown():
    found = looks(np.arange(4), ["", "  ", "a ", "a"])
    assert [look.name for look in found] == ["(empty)", '"  "', '"a "', "a"]


def test_a_long_name_keeps_both_ends():
    assert literal("a" * 100 + "b" * 100, 1.0).startswith("aaaa") and literal("a" * 100 + "b" * 100, 1.0).endswith(
        "bbb"
    )
    assert literal("short", 1.0) == "short"


@pytest.mark.parametrize("names", [["W" * 255], ["i" * 255, "W" * 255, "数" * 85], ["x y " * 60, "$" * 255, "i" * 255]])
def test_long_names_wrap_inside_the_figure(names):
    require_legible(plots.latent_scatter(CODES, LABELS, " · ".join(names), PRIOR, description=" ".join(names)))
    require_legible(plots.image_grid(IMAGES, " · ".join(names), " ".join(names)))
    require_legible(plots.annealing_curves(CURVE, "t", "d", names[0]))


# A reader's own settings


@pytest.mark.filterwarnings("default")
def test_a_readers_settings_change_no_figure_and_are_left_alone(tmp_path):
    settings_of_a_reader = {
        "text.usetex": True,
        "font.family": "serif",
        "font.size": 30,
        "figure.dpi": 50,
        "axes.facecolor": "black",
        "savefig.bbox": "tight",
        "savefig.facecolor": "black",
        "image.origin": "lower",
        "legend.frameon": True,
        "axes.spines.left": False,
    }

    def images(name):
        made = []
        for kind in ("latent scatter", "latent histogram", "projection", "manifold", "curves", "annealing"):
            plots.save(FIGURES[kind](), tmp_path / f"{name}.png")
            made.append((tmp_path / f"{name}.png").read_bytes())
        return made

    expected = images("own")
    with matplotlib.rc_context(settings_of_a_reader):
        before = dict(matplotlib.rcParams.copy())
        assert images("other") == expected
        assert dict(matplotlib.rcParams.copy()) == before


@pytest.mark.parametrize(
    ("shape", "expected"), [((3, 784), (3, 28, 28)), ((3, 50), (3, 1, 50)), ((3, 5, 7), (3, 5, 7))]
)
def test_as_images(shape, expected):
    images = np.arange(np.prod(shape)).reshape(shape)
    result = as_images(images)
    assert result.shape == expected
    np.testing.assert_array_equal(result.ravel(), images.ravel())


def test_image_k_is_in_row_k_over_columns():
    values = np.arange(7) / 7
    figure = plots.image_grid(np.repeat(values[:, None], 16, axis=1), "t", "d", columns=3)
    expected = [*values, np.nan, np.nan]
    np.testing.assert_array_equal(tile_values(figure, 3, 3).ravel(), expected)


def test_tiles_keep_their_pixels():
    image = np.arange(6.0).reshape(1, 2, 3) / 6
    canvas = plots.image_grid(image, "t", "d").axes[0].images[0].get_array()
    across, down = canvas.shape[1] // 3, canvas.shape[0] // 2
    np.testing.assert_array_equal(canvas, image[0].repeat(down, axis=0).repeat(across, axis=1))


def test_the_first_of_each_pair_is_above_the_second():
    original = np.arange(4)[:, None, None] / 10 * np.ones((4, 6, 6))
    figure = plots.image_pairs(original + 0.5, original, ("reconstruction", "original"), "t", "d", columns=2)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["reconstruction", "original"] * 2
    expected = [[0.5, 0.6], [0.0, 0.1], [0.7, 0.8], [0.2, 0.3]]
    np.testing.assert_allclose(tile_values(figure, 4, 2), expected)


def test_manifold_grows_to_the_right_and_upwards():
    first, second = np.meshgrid([0.1, 0.2, 0.3], [0.0, 0.3, 0.6])
    images = (first + second)[:, :, None, None] * np.ones((4, 4))
    figure = plots.manifold(images, np.array([5, 50, 95]), "t", "d")
    np.testing.assert_allclose(tile_values(figure, 3, 3), (first + second)[::-1])
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["5", "50", "95"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["95", "50", "5"]  # top row first


def test_interpolations_are_labelled_from_0_to_1():
    axes = plots.interpolations(np.zeros((2, 5, 4, 4)), "t", "d").axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "0.25", "0.5", "0.75", "1"]


def test_an_empty_history_says_untrained():
    for history in ({}, {"epoch": [], "loss": []}):
        assert "untrained" in texts(plots.training_curves(history, "t"))


def test_curves_of_one_epoch_are_dots():
    lines = plots.training_curves({"epoch": [1], "loss": [3.0], "val_loss": [4.0]}, "t").axes[0].lines
    assert [line.get_ydata().tolist() for line in lines] == [[3.0], [4.0]]
    assert all(line.get_marker() not in ("None", None) for line in lines)


def test_the_finite_part_of_a_curve_is_drawn_and_its_end_is_told():
    history = {"updates": [550, 1100, 1650], "loss": [2.0, 1.0, np.nan], "val_loss": [np.inf] * 3}
    figure = plots.training_curves(history, "t")
    assert figure.axes[0].lines[0].get_xdata().tolist() == [550, 1100]
    assert "training is not finite from updates 1,650" in texts(figure)
    assert "validation is not finite from updates 550" in texts(figure)
    assert np.isfinite(figure.axes[0].get_ylim()).all()


def test_each_term_has_a_panel_with_its_validation_twin():
    history = HISTORY | {"val_generator": [0.7, 0.7, 0.7], "updates": [5, 10, 15]}
    panels = {axes.get_title(loc="left"): axes for axes in plots.training_curves(history, "t").axes}
    assert panels.keys() == {"loss", "generator"}
    assert [line.get_linestyle() for line in panels["loss"].lines] == ["-", "--"]
    np.testing.assert_array_equal(panels["loss"].lines[1].get_ydata(), HISTORY["val_loss"])


def test_a_near_reference_is_drawn_and_a_far_one_only_told():
    figure = plots.training_curves(HISTORY, "t", {"loss": [(5.0, "floor"), (205.8, "mean"), (-90, "low")]})
    axes = figure.axes[0]
    low, high = axes.get_ylim()
    assert 0 < low < 5.0 and high < 12
    assert [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == ":"] == [5.0]
    assert "floor\n= 5" in texts(figure) and "off the axis: mean = 205.8, low = -90" in texts(figure)


def test_a_spike_does_not_squash_the_curve():
    loss = np.linspace(200, 100, 30)
    loss[12] = 1e6
    figure = plots.training_curves({"epoch": range(1, 31), "loss": loss}, "t")
    low, high = figure.axes[0].get_ylim()
    assert low < 100 and 200 < high < 1000
    assert "off the axis: 1 of 30 values, as far as 1e+06" in texts(figure)


def test_save_replaces_a_file_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "figure.png"
    plots.save(plots.image_grid(IMAGES, "t", "d"), path)
    before = path.read_bytes()
    assert before.startswith(b"\x89PNG") and list(tmp_path.iterdir()) == [path]

    def fail_half_way(figure, target, **options):
        Path(target).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(Figure, "savefig", fail_half_way)
    with pytest.raises(OSError, match="no space"):
        plots.save(plots.image_grid(IMAGES, "t", "d"), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_no_backend_is_chosen():
    code = "import sys, common.plots; assert not {'matplotlib.pyplot', 'keras'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(plots.__file__).parents[2])
