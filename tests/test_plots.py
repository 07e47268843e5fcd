"""Figures hold what they say: masses, places, limits and labels, whatever the numbers are."""

import subprocess
import sys
from pathlib import Path

from common import plots
from experiments import figures

import numpy as np
import pytest
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from scipy.stats import chi2

RANDOM = np.random.default_rng(0)
CODES = RANDOM.normal(size=(300, 2))
LABELS = np.arange(300) % 10
PRIOR = RANDOM.normal(size=(500, 2))
IMAGES = RANDOM.random((7, 4, 4))
HISTORY = {"epoch": [1, 2, 3], "loss": [9.0, 7.0, 6.0], "val_loss": [9.5, 7.5, 6.5]}
SPECTRUM = figures.Spectrum(np.array([2.0, 1.0, 0.0]), IMAGES, "KL 3.0 nats")
LONG = "A Gaussian adversarial autoencoder on MNIST, adversarial weight 100, learning rate 0.0002 · " * 3

CURVE = [
    {"temperatures": count, "test": (-90, 2), "simulated_lower": (-91 - 9 / count, 2), "simulated_upper": (-90, 2)}
    for count in (10, 100)
]

FIGURES = {
    "latent scatter": lambda title: plots.latent_scatter(CODES, LABELS, title, PRIOR, standard_log_prob),
    "prior samples": lambda title: plots.latent_scatter(CODES, None, title, PRIOR),
    "projection": lambda title: plots.projection_scatter(CODES, LABELS, title, LONG, ("PC 1", "PC 2"), PRIOR),
    "image grid": lambda title: plots.image_grid(IMAGES, title, LONG, columns=3),
    "reconstructions": lambda title: plots.image_pairs(IMAGES, IMAGES, ("a", "b"), title, LONG, columns=3),
    "manifold": lambda title: plots.manifold(np.zeros((3, 3, 8, 8)), np.array([5, 50, 95]), title, LONG),
    "interpolations": lambda title: plots.interpolations(np.zeros((2, 3, 8, 8)), title, LONG),
    "named tiles": lambda title: figures.named_tiles(
        np.zeros((2, 3, 8, 8)), ["z of a\ntest image", ""], "abc", "label", title, LONG, together=1
    ),
    "codes and walks": lambda title: figures.codes_and_walks(
        CODES, LABELS, PRIOR, np.zeros((10, 4, 8, 8)), ("outwards", "mode"), title, LONG
    ),
    "curves": lambda title: plots.training_curves(HISTORY, title, {"loss": [(6.2, "a name"), (900.0, "far away")]}),
    "annealing": lambda title: plots.annealing_curves(CURVE, title, LONG, "MNIST"),
    "dots": lambda title: figures.dots(
        {"nats": {"bound": {"a": (1, 0.1)}}, "more": {"b": {"c": (2, 1)}}}, "abc", title, LONG
    ),
    "bands": lambda title: figures.bands(
        {"error, %": {"a": figures.Curve(np.arange(3), np.array([[9.0, 3.0, 1.0]]))}},
        "updates",
        title,
        LONG,
        y_scale="log",
    ),
    "spectra": lambda title: figures.spectra(
        {"and sums, the same β\nβ = 6.13": SPECTRUM}, IMAGES, title, LONG, "dimension", "nats"
    ),
    "maps": lambda title: figures.maps(
        [
            figures.Map("a map", CODES, ("z₁", "z₂"), CODES[:3]),
            figures.Map("another", PRIOR[:300], ("t-SNE 1", "t-SNE 2")),
        ],
        LABELS,
        title,
        LONG,
        marks="heads of the clusters",
    ),
    "untrained": lambda title: plots.training_curves({"epoch": []}, title),
}
UNLABELLED = {"image grid", "reconstructions"}  # tiles in reading order have no axes
ONE_AXIS = {"interpolations", "dots", "named tiles"}


def standard_log_prob(z):
    return -0.5 * np.sum(z**2, axis=1) - np.log(2 * np.pi)


def texts(figure: Figure) -> str:
    return " | ".join(text.get_text() for axes in figure.axes for text in axes.texts)


def tile_values(figure: Figure, rows: int, columns: int) -> np.ndarray:
    """The value in the middle of each tile, (rows, columns), top row first."""
    canvas = figure.axes[0].images[0].get_array().filled(np.nan)
    down, right = (
        ((np.arange(count) + 0.5) / count * size).astype(int)
        for count, size in zip((rows, columns), canvas.shape, strict=True)
    )
    return canvas[np.ix_(down, right)]


@pytest.mark.parametrize("name", FIGURES)
def test_title_and_axes_are_named_and_nothing_is_cut_off(name):
    figure = FIGURES[name](LONG)
    figure.draw_without_rendering()
    title, description = figure.texts
    assert title.get_text().split() == LONG.split() and description.get_text()
    assert bool(figure.axes[0].get_xlabel()) == (name not in UNLABELLED)
    assert bool(figure.axes[0].get_ylabel()) == (name not in UNLABELLED | ONE_AXIS)
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert drawn.x0 >= 0 and drawn.y0 >= 0 and drawn.x1 <= width and drawn.y1 <= height
    below = max(axes.get_tightbbox().y1 for axes in figure.axes)
    assert title.get_window_extent().y0 >= description.get_window_extent().y1
    assert description.get_window_extent().y0 >= below


@pytest.mark.parametrize("labels", [LABELS, None])
def test_models_side_by_side_have_their_names_and_numbers_and_nothing_is_cut_off(labels):
    columns = [figures.Column(f"model {n}", CODES + n, PRIOR, IMAGES, {"log p(x)": f"−9{n}.0 ± 0.1"}) for n in range(3)]
    figure = figures.side_by_side(
        columns, labels, ("first principal component", "second principal component"), LONG, LONG
    )
    figure.draw_without_rendering()
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert drawn.x0 >= 0 and drawn.y0 >= 0 and drawn.x1 <= width and drawn.y1 <= height
    boxes = [text.get_window_extent() for text in figure.texts[1:]]
    assert not any(a.overlaps(b) for number, a in enumerate(boxes) for b in boxes[:number])
    assert [axes.get_title() for axes in figure.axes[::2]] == ["model 0", "model 1", "model 2"]
    for scatter, samples in zip(figure.axes[::2], figure.axes[1::2], strict=True):
        label = scatter.xaxis.label.get_window_extent()
        assert label.y0 > samples.get_window_extent().y1 and label.width < scatter.get_window_extent().width
    shown = {text.get_text() for text in figure.texts}
    assert {"log p(x)", "−90.0 ± 0.1", "−91.0 ± 0.1", "−92.0 ± 0.1"} <= shown
    for axes, column in zip(figure.axes[::2], columns, strict=True):
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        inside = (column.codes > (left, bottom)).all(axis=1) & (column.codes < (right, top)).all(axis=1)
        assert inside.mean() > 0.99


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
    levels = plots.contour_levels(np.full(100, -1.4), [0.5, 0.9])
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
    limits = plots.view(*clouds)
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
    places = plots.spread(np.zeros((10, 2)), distance=1.0)
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
    result = plots.as_images(images)
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


def test_named_tiles_lie_under_the_names_of_their_rows_and_columns():
    values = np.array([[0.1, 0.2, np.nan], [0.4, 0.5, 0.6]])
    figure = figures.named_tiles(values[:, :, None, None] * np.ones((4, 4)), "ab", "xyz", "label", "t", "d")
    np.testing.assert_array_equal(tile_values(figure, 2, 3), values)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["x", "y", "z"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert axes.get_yticks()[0] < axes.get_yticks()[1]  # images grow downwards


def test_a_spectrum_stands_beside_its_images_and_below_the_originals():
    figure = figures.spectra({"a": SPECTRUM, "b": SPECTRUM}, 1.0 - IMAGES, "title", "description", "dimension", "nats")
    bars = [axes for axes in figure.axes if axes.patches]
    heights = [[bar.get_height() for bar in axes.patches] for axes in bars]
    assert heights == [[2.0, 1.0, 0.0]] * 2
    strips = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title("left") for axes in strips] == ["KL 3.0 nats", "KL 3.0 nats", ""]
    tops = [axes.get_position().y1 for axes in (*strips, *bars)]
    assert max(tops) == tops[2] and strips[2].get_ylabel() == "originals"


@pytest.mark.filterwarnings("error")
def test_a_spectrum_of_nothing_has_axes_that_grow_upwards():
    nothing = SPECTRUM._replace(values=np.zeros(3))
    figure = figures.spectra({"a": nothing}, IMAGES, "title", "description", "dimension", "nats")
    low, high = figure.axes[0].get_ylim()
    assert 0 < low < high


@pytest.mark.parametrize("shape", [(28, 28), (3, 4), (50,)])
def test_codes_stand_beside_the_walks_through_the_modes_of_their_colours(shape):
    values = np.arange(30).reshape(10, 3) / 30
    images = values.reshape(10, 3, *(1 for _ in shape)) * np.ones(shape)
    figure = figures.codes_and_walks(CODES, LABELS, PRIOR, images, ("outwards", "mode"), "t", "d")
    figure.draw_without_rendering()
    scatter, walks = figure.axes
    canvas = walks.images[0].get_array()
    assert [canvas.filled(np.nan)[int(y), 3] for y in walks.get_yticks()] == pytest.approx(list(values[:, 0]))
    assert [tuple(name.get_color()) for name in walks.get_yticklabels()] == [tuple(colour) for colour in plots.COLOURS]
    assert scatter.get_tightbbox().x1 < walks.get_tightbbox().x0
    np.testing.assert_allclose(walks.get_window_extent().size, canvas.shape[::-1])  # pixel for pixel


def test_a_run_that_stopped_early_goes_on_as_nothing():
    runs = [{"updates": [10, 20], "error": [0.5, 0.25]}, {"updates": [10], "error": [0.75]}]
    curve = figures.curve_of(runs, "error", 100.0)
    np.testing.assert_array_equal(curve.x, [10, 20])
    np.testing.assert_array_equal(curve.values, [[50, 25], [75, np.nan]])


def test_an_empty_history_says_untrained():
    for history in ({}, {"epoch": [], "loss": []}):
        assert "untrained" in texts(plots.training_curves(history, "t"))


def test_curves_of_one_epoch_are_dots():
    lines = plots.training_curves({"epoch": [1], "loss": [3.0], "val_loss": [4.0]}, "t").axes[0].lines
    assert [line.get_ydata().tolist() for line in lines] == [[3.0], [4.0]]
    assert all(line.get_marker() not in ("None", None) for line in lines)


def test_a_panel_may_have_its_own_vertical_scale():
    curve = {"a": figures.Curve(np.arange(1, 4), np.array([[1.0, 30.0, 900.0]]))}
    figure = figures.bands({"nats": curve, "error, %": curve}, "updates", "t", "", y_scale={"nats": "log"})
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear"]


def test_an_axis_that_holds_nought_is_linear():
    curves = {"a": figures.Curve(np.arange(1, 4), np.array([[0.0, 30.0, 900.0]]))}
    assert figures.bands({"nats": curves}, "updates", "t", "", y_scale="log").axes[0].get_yscale() == "linear"


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
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(plots.__file__).parents[1])
