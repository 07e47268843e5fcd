"""Figures of the experiments hold what they say: places, limits and labels, whatever the numbers are."""

from common.plots.figure import COLOURS
from experiments import figures

import numpy as np
import pytest
from figure_helpers import CODES, IMAGES, LABELS, LONG, PRIOR, require_readable, require_whole, tile_values

SPECTRUM = figures.Spectrum(np.array([2.0, 1.0, 0.0]), IMAGES, "KL 3.0 nats")
FIGURES = {
    "named tiles": lambda: figures.named_tiles(
        np.zeros((2, 3, 8, 8)), ["z of a\ntest image", ""], "abc", "label", LONG, LONG, together=1
    ),
    "codes and walks": lambda: figures.codes_and_walks(
        CODES, LABELS, PRIOR, np.zeros((10, 4, 8, 8)), ("outwards", "mode"), LONG, LONG
    ),
    "dots": lambda: figures.dots({"nats": {"bound": {"a": (1, 0.1)}}, "more": {"b": {"c": (2, 1)}}}, "abc", LONG, LONG),
    "bands": lambda: figures.bands(
        {"error, %": {"a": figures.Curve(np.arange(3), np.array([[9.0, 3.0, 1.0]]))}},
        "updates",
        LONG,
        LONG,
        y_scale="log",
    ),
    "spectra": lambda: figures.spectra(
        {"and sums, the same β\nβ = 6.13": SPECTRUM}, IMAGES, LONG, LONG, "dimension", "nats"
    ),
    "maps": lambda: figures.maps(
        [
            figures.Map("a map", CODES, ("z₁", "z₂"), CODES[:3]),
            figures.Map("another", PRIOR[:300], ("t-SNE 1", "t-SNE 2")),
        ],
        LABELS,
        LONG,
        LONG,
        marks="heads of the clusters",
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_title_and_axes_are_named_and_nothing_is_cut_off(name):
    require_readable(FIGURES[name](), y_label=name not in {"dots", "named tiles"})


@pytest.mark.parametrize("labels", [LABELS, None])
def test_models_side_by_side_have_their_names_and_numbers_and_nothing_is_cut_off(labels):
    columns = [figures.Column(f"model {n}", CODES + n, PRIOR, IMAGES, {"log p(x)": f"−9{n}.0 ± 0.1"}) for n in range(3)]
    figure = figures.side_by_side(
        columns, labels, ("first principal component", "second principal component"), LONG, LONG
    )
    figure.draw_without_rendering()
    require_whole(figure)
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


def test_samples_beside_one_another_keep_their_proportions():
    columns = [figures.Column("model", CODES, PRIOR, np.ones((count, 14, 28)), {}) for count in (5, 13)]
    figure = figures.side_by_side(columns, None, "ab", "t", "d")
    figure.draw_without_rendering()
    for axes, tiles in zip(figure.axes[1::2], ((1, 5), (3, 6)), strict=True):
        (up, across), box = axes.images[0].get_array().shape, axes.get_window_extent()
        assert box.height / box.width == pytest.approx(up / across)
        assert up // 14 >= tiles[0] and across // 28 >= tiles[1]


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
    assert [tuple(name.get_color()) for name in walks.get_yticklabels()] == [tuple(colour) for colour in COLOURS]
    assert scatter.get_tightbbox().x1 < walks.get_tightbbox().x0
    np.testing.assert_allclose(walks.get_window_extent().size, canvas.shape[::-1])  # pixel for pixel


def test_a_run_that_stopped_early_goes_on_as_nothing():
    runs = [{"updates": [10, 20], "error": [0.5, 0.25]}, {"updates": [10], "error": [0.75]}]
    curve = figures.curve_of(runs, "error", 100.0)
    np.testing.assert_array_equal(curve.x, [10, 20])
    np.testing.assert_array_equal(curve.values, [[50, 25], [75, np.nan]])


def test_a_panel_may_have_its_own_vertical_scale():
    curve = {"a": figures.Curve(np.arange(1, 4), np.array([[1.0, 30.0, 900.0]]))}
    figure = figures.bands({"nats": curve, "error, %": curve}, "updates", "t", "", y_scale={"nats": "log"})
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear"]


def test_an_axis_that_holds_nought_is_linear():
    curves = {"a": figures.Curve(np.arange(1, 4), np.array([[0.0, 30.0, 900.0]]))}
    assert figures.bands({"nats": curves}, "updates", "t", "", y_scale="log").axes[0].get_yscale() == "linear"
