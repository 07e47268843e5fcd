"""benchmarks/step_time.py: the printed table and the record of a page come from the same numbers."""

import json

from benchmarks import error_bars, step_time
from common.numbers import Absent, Estimate
from common.scripts import SCRIPTS
from tools.records import Records

import pytest

USUAL = "aae_deterministic, the usual way"


def test_the_record_has_the_ratios_of_one_run_and_a_page_can_refer_to_it(tmp_path, capsys):
    seconds = {script: [2.0, 1.0, 4.0] for script in SCRIPTS} | {
        f"{script}, bare work": [1.0] * 3 for script in SCRIPTS
    }
    rows = step_time.measured(seconds | {USUAL: [3.0, 3.0, 3.0]}, 600, USUAL)
    assert rows["avb"] == {"images_per_second": 300.0, "slowest_over_fastest": 4.0, "times_the_bare_work": 0.5}
    assert rows["aae_deterministic"]["times_the_usual_way"] == pytest.approx(1.5)

    path = tmp_path / "scripts" / "speed" / "record.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(step_time.record(rows, step_time.Config(rounds=3), "0" * 40)))
    text = "{scripts/speed; avb; images_per_second; mean 0}, {scripts/speed; avb; times_the_bare_work; mean 1}"
    assert Records(tmp_path).fill(text) == "300, 0.5"
    step_time.print_table(rows)
    assert "| avb | 300 | 4.00 |  | 0.50 |" in capsys.readouterr().out


def test_changes_that_are_not_committed_make_no_record(monkeypatch):
    monkeypatch.setattr(step_time, "git_commit", lambda: "0" * 40 + "+changes")
    with pytest.raises(SystemExit, match="commit your changes"):
        step_time.main(step_time.Config(record="record.json"))


@pytest.mark.parametrize(("stated", "answer", "covered"), [(1.0, 2.0, 0.95), (0.5, 2.0, 0.673), (1.0, None, 0.95)])
def test_the_share_of_error_bars_that_cover_the_truth(stated, answer, covered):
    """Estimates with a deviation of 1: errors of a half cover in 67 %, whether the answer is known or not."""

    def simulate(stream):
        return Estimate(2.0 + stream.standard_normal(), stated), answer

    numbers = error_bars.simulated("a problem", error_bars.Problem(simulate, 2), 4000)
    assert numbers["made"] == numbers["known"] == 2000
    assert numbers["covered"] == pytest.approx(covered, abs=4 * (0.25 / 2000) ** 0.5)
    assert numbers["deviation"] == pytest.approx(1.0, abs=0.1) and abs(numbers["bias"]) < 0.1
    assert numbers["stated_error"] == stated


def test_estimates_that_are_absent_do_not_count_as_covered():
    problem = error_bars.Problem(lambda stream: (Absent("none") if stream.random() < 0.5 else Estimate(0.0, 1.0), 0.0))
    rows = {f"entropy, {size}, {shape}": error_bars.simulated(shape, problem, 40) for size in "ab" for shape in "cd"}
    for row in rows.values():
        assert row["made"] == 40 > row["known"] > 0 and row["covered"] == 1.0
    both = rows["entropy, a, c"]["known"] + rows["entropy, a, d"]["known"]
    assert error_bars.pooled(rows)["entropy, a"] == {"made": 80, "known": both, "covered": 1.0}
