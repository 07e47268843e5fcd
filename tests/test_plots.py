"""Figures of every run hold what they say: masses, places, limits and labels, whatever the numbers are."""

import subprocess
import sys
from pathlib import Path

from common import plots
from common.plots.figure import spread
from common.plots.scatter import contour_levels, view
from common.plots.tiles import as_images

import numpy as np
import pytest
from figure_helpers import CODES, IMAGES, LABELS, LONG, PRIOR, require_readable, tile_values
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from scipy.stats import chi2

HISTORY = {"epoch": [1, 2, 3], "loss": [9.0, 7.0, 6.0], "val_loss": [9.5, 7.5, 6.5]}
CURVE = [
    {"temperatures": count, "test": (-90, 2), "simulated_lower": (-91 - 9 / count, 2), "simulated_upper": (-90, 2)}
    for count in (10, 100)
]
FIGURES = {
    "latent scatter": lambda: plots.latent_scatter(CODES, LABELS, LONG, PRIOR, standard_log_prob),
    "prior samples": lambda: plots.latent_scatter(CODES, None, LONG, PRIOR),
    "projection": lambda: plots.projection_scatter(CODES, LABELS, LONG, LONG, ("PC 1", "PC 2"), PRIOR),
    "image grid": lambda: plots.image_grid(IMAGES, LONG, LONG, columns=3),
    "reconstructions": lambda: plots.image_pairs(IMAGES, IMAGES, ("a", "b"), LONG, LONG, columns=3),
    "manifold": lambda: plots.manifold(np.zeros((3, 3, 8, 8)), np.array([5, 50, 95]), LONG, LONG),
    "interpolations": lambda: plots.interpolations(np.zeros((2, 3, 8, 8)), LONG, LONG),
    "curves": lambda: plots.training_curves(HISTORY, LONG, {"loss": [(6.2, "a name"), (900.0, "far away")]}),
    "annealing": lambda: plots.annealing_curves(CURVE, LONG, LONG, "MNIST"),
    "untrained": lambda: plots.training_curves({"epoch": []}, LONG),
}
UNLABELLED = {"image grid", "reconstructions"}  # tiles in reading order have no axes


def standard_log_prob(z):
    return -0.5 * np.sum(z**2, axis=1) - np.log(2 * np.pi)


def texts(figure: Figure) -> str:
    return " | ".join(text.get_text() for axes in figure.axes for text in axes.texts)


@pytest.mark.parametrize("name", FIGURES)
def test_title_and_axes_are_named_and_nothing_is_cut_off(name):
    require_readable(FIGURES[name](), name not in UNLABELLED, name not in UNLABELLED | {"interpolations"})


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
    assert "training not finite from updates 1,650" in texts(figure)
    assert "validation not finite from updates 550" in texts(figure)
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
