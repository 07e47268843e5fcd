"""Records of the gallery that were made of a table: both say the same."""

from common.numbers import plus_minus
from common.run import ROOT
from experiments.comparison.likelihoods import COLUMNS
from tools.records import Records

import pytest

GALLERY = ROOT / "results" / "gallery"
KEYS = (  # the columns of the table
    "elbo_binarised_nats",
    "importance_weighted_bound_nats",
    "carried_log_likelihood_nats",
    "annealed_gap_nats",
    "annealed_minus_weighted_nats",
    "parzen_log_likelihood_nats",
    "parzen_sigma",
)
RUNS = Records(GALLERY).read("comparison/likelihoods")["runs"]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_has_the_records_rows():
    _, _, *rows = map(cells, (GALLERY / "comparison" / "likelihoods" / "table.md").read_text().splitlines())
    assert [f"{name}, seed 0" for name, *_ in rows] == list(RUNS)


@pytest.mark.parametrize("row", range(len(RUNS)), ids=list(RUNS))
def test_a_row_of_the_table_is_a_run_of_the_record(row):
    lines = (GALLERY / "comparison" / "likelihoods" / "table.md").read_text().splitlines()[2:]
    name, *shown = cells(lines[row])
    run = RUNS[f"{name}, seed 0"]
    assert run.keys() <= {*KEYS, *(f"{key}_standard_error" for key in KEYS)}
    required = [plus_minus(run[key], run.get(f"{key}_standard_error"), COLUMNS[key].digits) for key in KEYS]
    assert shown == required
