"""common/numbers.py: numbers over seeds, as tables show them."""

from common.numbers import markdown, over_seeds, plus_minus, row_title

import pytest


def test_means_and_deviations_over_seeds_are_null_where_a_number_is():
    found = over_seeds([{"a": 1.0, "b": None}, {"a": 3.0, "b": 2.0}], ("a", "b", "c"))
    expected = {"a": 2.0, "a_sd": pytest.approx(2**0.5), "b": None, "b_sd": None, "c": None, "c_sd": None}
    assert found == expected | {"stopped": 0}
    assert over_seeds([{"a": 1.0}], ("a",)) == {"a": 1.0, "a_sd": None, "stopped": 0}


def test_a_row_says_how_many_trainings_ended_early():
    runs = [{"a": 1.0, "stopped_by": None}, {"a": 3.0, "stopped_by": "the kl term was not finite at update 3"}]
    assert row_title("VAE", over_seeds(runs, ("a",))) == "VAE, 1 stopped early"
    assert row_title("VAE", over_seeds(runs[:1], ("a",))) == "VAE"


@pytest.mark.parametrize(
    ("number", "spread", "shown"),
    [(-1.25, 0.5, "−1.2 ± 0.5"), (2.0, None, "2.0"), (None, None, "−"), (-1e-17, 0.0, "0.0 ± 0.0")],
)
def test_numbers_are_shown_with_real_minus_signs(number, spread, shown):
    assert plus_minus(number, spread, 1) == shown


def test_a_table_has_a_line_for_its_header_one_below_it_and_one_a_row():
    assert markdown(["", "x"], [["a", "1"], ["b", "2"]]) == "|  | x |\n| --- | --- |\n| a | 1 |\n| b | 2 |\n"
