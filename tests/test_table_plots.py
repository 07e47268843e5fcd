"""Figures of tables and of counts hold what they say, whatever the numbers and the names of the columns are."""

from common import plots
from common.plots.figure import COLOURS
from common.plots.tables import MOST_COLUMNS, MOST_POINTS

import numpy as np
import pytest
from figure_helpers import LONG, require_legible, require_readable
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.text import Text

pytestmark = pytest.mark.filterwarnings("error")

ODD_NAMES = [
    "",
    " ",
    "$a_b$",
    "x^2 ≤ $",
    "🙂 emoji",
    "数据 data",
    "W" * 255,
    "a\nb",
    "same",
    "same",
    "\\frac{1}{2}",
    "−3",
]


def table(rows: int, columns: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Standardised rows (rows, columns) and reconstructions of them."""
    random = np.random.default_rng(seed)
    values = random.normal(size=(rows, columns))
    return values, 0.7 * values + 0.1 * random.normal(size=values.shape)


def names_of(columns: int) -> list[str]:
    return [ODD_NAMES[k % len(ODD_NAMES)] if k % 3 == 0 else f"column {k}" for k in range(columns)]


def said(figure) -> str:
    return " ".join(figure.texts[1].get_text().split())


def legend_names(figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


# Profiles


def test_the_parts_of_both_figures_are_named_and_nothing_is_cut_off():
    rows, others = table(20, 30)
    require_readable(plots.profiles(rows, others, names_of(30), LONG, LONG, [LONG] * 20, value_name=LONG), False, True)
    figure = plots.scatter_matrix(rows[:, :4], others[:, :4], names_of(4), LONG, LONG, np.arange(20) % 3)
    require_readable(figure, False, False)  # the first panel is a histogram above others


def test_panels_hold_the_rows_and_their_reconstructions():
    rows, others = table(4, 5)
    figure = plots.profiles(rows, others, list("abcde"), "t", "d", ["w", "x", "y", "z"])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["w", "x", "y", "z"]
    assert [text.get_text() for text in figure.axes[-1].get_xticklabels()] == list("abcde")
    assert figure.axes[0].get_ylabel() == "standard deviations from the mean"
    for number, axes in enumerate(figure.axes):
        _, row, other = axes.lines
        np.testing.assert_array_equal([row.get_ydata(), other.get_ydata()], [rows[number], others[number]])
        assert row.get_marker() != other.get_marker()
        np.testing.assert_array_equal(row.get_color(), COLOURS[0])
    assert legend_names(figure) == ["row", "reconstruction"]
    assert len({axes.get_ylim() for axes in figure.axes}) == 1


def test_samples_have_no_reconstructions():
    rows, _ = table(3, 5)
    figure = plots.profiles(rows, None, list("abcde"), "t", "d", series=("sample", ""), deviations=np.ones(5))
    assert all(len(axes.lines) == 2 and not axes.collections for axes in figure.axes)
    assert legend_names(figure) == ["sample"]
    require_legible(figure)


@pytest.mark.parametrize("shape", [(4,), (2, 4)])
def test_the_band_is_one_deviation_wide_on_either_side(shape):
    rows, others = table(2, 4)
    deviations = np.broadcast_to(np.array([0.1, 0.2, 0.3, 0.4]), shape)
    figure = plots.profiles(rows, others, list("abcd"), "t", "d", deviations=deviations)
    for number, axes in enumerate(figure.axes):
        (band,) = axes.collections
        outline = np.concatenate([path.vertices for path in band.get_paths()])
        for column in range(4):
            inside = np.abs(outline[:, 0] - column) < 0.49
            inside |= np.isclose(outline[:, 0], column - 0.5) | np.isclose(outline[:, 0], column + 0.5)
            for sign in (-1, 1):
                edge = others[number, column] + sign * 0.1 * (column + 1)
                assert np.isclose(outline[inside, 1], edge).sum() >= 2  # at both ends of the step
    assert legend_names(figure)[-1] == "± one standard deviation of the decoder"


@pytest.mark.parametrize(("columns", "rows"), [(1, 1), (2, 2), (30, 20), (64, 1), (300, 20), (301, 1), (5000, 20)])
@pytest.mark.parametrize("names", [str, "a rather long name of column {}".format, None])
def test_profiles_are_legible_with_any_number_of_columns(columns, rows, names):
    values, others = table(rows, columns)
    texts = [names(k) for k in range(columns)] if names else names_of(columns)
    figure = plots.profiles(values, others, texts, "t", "d", texts[:1] * rows, np.ones(columns))
    require_legible(figure)
    assert len(figure.axes) == min(rows, 6)
    assert ("the first 6 of 20 rows" in said(figure)) == (rows == 20)
    shown = len(figure.axes[0].lines[1].get_xdata())
    assert shown == min(columns, MOST_COLUMNS)
    assert (f"300 of {columns:,} columns" in said(figure)) == (columns > 300)
    for legend in figure.legends:
        box, panel = legend.get_window_extent(), figure.axes[0].get_window_extent()
        assert box.y0 >= panel.y1 and box.x1 <= figure.bbox.x1


def test_columns_that_are_left_out_are_evenly_spaced_and_names_are_those_of_the_columns():
    rows = np.arange(5000.0)[None] / 100  # a column's value tells which it is
    figure = plots.profiles(rows, rows, [str(k) for k in range(5000)], "t", "d")
    shown = 100 * figure.axes[0].lines[1].get_ydata()
    assert shown[0] == 0 and shown[-1] == pytest.approx(4999)
    assert set(np.diff(shown.round()).astype(int)) <= {16, 17}
    axes = figure.axes[-1]
    names = [int(text.get_text()) for text in axes.get_xticklabels()]
    np.testing.assert_allclose(shown[axes.get_xticks().astype(int)], names)
    assert "one column in" in said(figure)


def test_counts_that_span_decades_have_a_logarithmic_axis_with_their_own_numbers():
    counts = np.array([[0, 1, 10, 1000, 20_000]])
    figure = plots.profiles(counts, counts, list("abcde"), "t", "d", value_name="count")
    axes = figure.axes[0]
    assert said(figure) == "d · logarithmic axis"
    np.testing.assert_allclose(axes.lines[1].get_ydata(), np.log1p(counts[0]))
    numbers = [float(text.get_text().replace(",", "")) for text in axes.get_yticklabels()]
    np.testing.assert_allclose(axes.get_yticks(), np.log1p(numbers))
    assert {0, 1000, 10_000} <= set(numbers) and axes.get_ylabel() == "count"


@pytest.mark.parametrize("low, high", [(200, 300), (-5e6, 3), (0, 1e30), (150, 150), (99_000, 100_000), (-1e7, -1e6)])
def test_a_logarithmic_axis_has_numbers_wherever_it_lies(low, high):
    values = np.linspace(low, high, 12)[None]
    figure = plots.profiles(values, values, [str(k) for k in range(12)], "t", "d")
    require_legible(figure)
    assert len(figure.axes[0].get_yticks()) >= 1
    for place, text in zip(figure.axes[0].get_yticks(), figure.axes[0].get_yticklabels(), strict=True):
        number = float(text.get_text().replace("−", "-").replace(",", ""))
        assert place == pytest.approx(np.sign(number) * np.log1p(abs(number)), rel=1e-4)


ODD_VALUES = {
    "some not finite": np.where(np.arange(40).reshape(4, 10) % 7 == 0, [np.nan, np.inf] * 5, 1.0),
    "none finite": np.full((4, 10), np.nan),
    "all alike": np.full((4, 10), 3.0),
    "nothing but zeros": np.zeros((4, 10)),
    "huge": 1e30 * np.random.default_rng(0).normal(size=(4, 10)),
    "tiny": 1e-9 * np.random.default_rng(0).normal(size=(4, 10)),
    "far from zero": 50 + 1e-4 * np.random.default_rng(0).normal(size=(4, 10)),
    "whole": np.arange(40).reshape(4, 10),
    "no rows": np.zeros((0, 10)),
    "single precision": np.ones((4, 10), np.float32),
}


@pytest.mark.parametrize("kind", ODD_VALUES)
def test_odd_values_have_figures(kind):
    values, names = ODD_VALUES[kind], names_of(10)
    lost = (~np.isfinite(values)).sum()
    for others in (values, np.zeros(values.shape), np.full(values.shape, np.inf)):
        figure = plots.profiles(values, others, names, "t", "d", deviations=np.full(10, np.nan))
        require_legible(figure)
        assert (f"{lost + (~np.isfinite(others)).sum():,} values that are not finite" in said(figure)) == bool(
            lost or (~np.isfinite(others)).any()
        )
        for counts in (False, True):
            require_legible(plots.scatter_matrix(values[:, :2], others[:, :2], names[:2], "t", "d", counts=counts))


TEXTS = st.text(
    st.characters(exclude_categories=()) | st.sampled_from("$\\_^{}\n\t\x00ñd数\udce9\u202e\u0301"), max_size=40
)


@given(texts=st.lists(TEXTS, min_size=4, max_size=4))
@settings(max_examples=8, deadline=None)
def test_any_text_is_drawn_and_never_as_mathematics(texts):
    rows, others = table(4, 4)
    figures = (
        plots.profiles(rows, others, texts, texts[0], texts[1], texts, value_name=texts[2], series=tuple(texts[2:])),
        plots.scatter_matrix(
            rows, others, texts, texts[0], texts[1], np.arange(4), texts, series=("a", texts[2] + "b")
        ),
    )
    for figure in figures:
        for drawn in figure.findobj(Text):
            assert drawn._preprocess_math(drawn.get_text())[1] is False  # what matplotlib asks before it draws
        figure.draw_without_rendering()


# Scatter matrix


def test_panels_below_the_diagonal_hold_both_clouds_and_the_diagonal_their_histograms():
    rows, others = table(50, 3)
    figure = plots.scatter_matrix(rows, others, list("abc"), "t", "d")
    panels = dict(zip([(i, j) for i in range(3) for j in range(i + 1)], figure.axes, strict=True))
    for (down, right), axes in panels.items():
        if down == right:
            assert [patch.get_data().values.max() for patch in axes.patches] == [1, 1]
        else:
            first, second = axes.collections
            np.testing.assert_array_equal(np.sort(first.get_offsets(), axis=0), np.sort(rows[:, [right, down]], axis=0))
            np.testing.assert_array_equal(second.get_offsets(), others[:, [right, down]])
            np.testing.assert_array_equal(first.get_facecolor()[0, :3], COLOURS[0])
            np.testing.assert_array_equal(second.get_facecolor()[0, :3], 0)
        assert axes.get_xlim() == panels[2, right].get_xlim()
        assert right == down or axes.get_ylim() == panels[2, down].get_xlim()
        assert axes.get_xlabel() == ("abc"[right] if down == 2 else "")
        assert axes.get_ylabel() == ("abc"[down] if right == 0 < down else "")
    assert legend_names(figure) == ["50 rows", "50 reconstructions"]


@pytest.mark.parametrize(("columns", "scale"), [(1, 1e-7), (2, 1.0), (3, 1e5), (5, 1.0), (5, 1e-7)])
@pytest.mark.parametrize("classes", [None, 3, 16, 60, 200])
def test_a_scatter_matrix_is_legible(columns, classes, scale):
    rows, others = table(600, columns)
    labels = None if classes is None else np.arange(600) % classes
    named = [f"{ODD_NAMES[k % len(ODD_NAMES)]} {k}" for k in range(classes or 0)]
    figure = plots.scatter_matrix(scale * rows, scale * others[:50], names_of(columns), "t", "d", labels, named)
    require_legible(figure)
    for legend in figure.legends:
        box = legend.get_window_extent()
        assert not any(box.overlaps(axes.get_window_extent()) for axes in figure.axes)
    assert not classes or not figure.legends[0].get_window_extent().overlaps(figure.legends[1].get_window_extent())


def test_many_rows_are_thinned_and_classes_keep_their_colours():
    rows, others = table(5000, 2)
    labels = np.zeros(5000, int)
    labels[:3], labels[3:2500] = 0, 2  # a rare class in between, which thinning may leave out
    labels[2500] = 1
    figure = plots.scatter_matrix(rows, others[:100], ["a", "b"], "t", "d", labels)
    first, second = figure.axes[1].collections
    assert len(first.get_offsets()) == MOST_POINTS and len(second.get_offsets()) == 100
    where = {tuple(row): label for row, label in zip(rows, labels, strict=True)}
    for point, colour in zip(first.get_offsets(), first.get_facecolor(), strict=True):
        np.testing.assert_array_equal(colour[:3], COLOURS[where[tuple(point)]])
    assert "at most 2,000 points of each" in said(figure)
    assert legend_names(figure) == ["5,000 rows", "100 reconstructions", "0", "1", "2"]


def test_points_far_away_are_counted_and_do_not_widen_the_axes():
    rows, others = table(200, 2)
    rows[3], others[5, 1] = 1e6, np.nan
    figure = plots.scatter_matrix(rows, others, ["a", "b"], "t", "d")
    assert np.ptp(figure.axes[1].get_xlim()) < 12
    assert "of 200 rows outside the axes" in said(figure) and "1 of 200 reconstructions not finite" in said(figure)


def test_counts_have_bars_between_whole_numbers_and_a_logarithmic_axis_if_they_span_decades():
    random = np.random.default_rng(0)
    small, large = random.poisson(4, 400), random.poisson(np.exp(random.normal(4, 2, 400)))
    counts = np.stack([small, large], axis=1)
    figure = plots.scatter_matrix(counts, counts + 0.3, ["small", "large"], "t", "d", counts=True)
    heights, edges, _ = figure.axes[0].patches[0].get_data()
    np.testing.assert_allclose(edges % 1, 0.5)
    expected = np.histogram(small, edges)[0]
    np.testing.assert_allclose(heights, expected / expected.max())
    edges = np.expm1(np.abs(figure.axes[2].patches[0].get_data().edges))
    np.testing.assert_allclose(edges % 1, 0.5, atol=1e-6)
    drawn = figure.axes[1].collections[1].get_offsets()
    np.testing.assert_allclose(drawn, np.stack([small + 0.3, np.log1p(large + 0.3)], axis=1))
    numbers = [float(text.get_text().replace(",", "")) for text in figure.axes[1].get_yticklabels()]
    np.testing.assert_allclose(figure.axes[1].get_yticks(), np.log1p(numbers))
