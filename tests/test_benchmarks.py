"""benchmarks/step_time.py: the printed table and the record of a page come from the same numbers."""

import json

from benchmarks import step_time
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
