"""README's table of claims: made of the records, and of nothing else."""

import csv
import json
import re
import shutil

import avb
from common.files import RunError, write_json
from common.run import ROOT
from experiments.avb import toy
from tools import claims
from tools.claims import Config

import numpy as np
import pytest

GALLERY = ROOT / "results" / "gallery"
RECORDS = sorted((GALLERY / "records").glob("*.json"))
VERSIONS = {"python": "3.11.7", "keras": "3.15.1", "numpy": "2.4.6", "jax": "0.10.2"}


def reading(record):
    return json.loads((GALLERY / "records" / f"{record}.json").read_text())


# The table


@pytest.fixture
def copy(tmp_path):
    """README and gallery, to be changed: the flags that name them."""
    shutil.copytree(GALLERY / "records", tmp_path / "gallery" / "records")
    shutil.copy(GALLERY / "claims.md", tmp_path / "gallery")
    shutil.copy(ROOT / "README.md", tmp_path)
    return {"readme": str(tmp_path / "README.md"), "gallery": str(tmp_path / "gallery")}


def test_readme_says_what_the_records_give():
    claims.main(Config(check=True, readme=str(ROOT / "README.md"), gallery=str(GALLERY)))


def test_a_changed_record_is_found_and_mended(copy, tmp_path):
    path = tmp_path / "gallery" / "records" / "aae_supervised.json"
    record = json.loads(path.read_text())
    record["runs"]["no label, seed 0"]["code_mlp_accuracy"] -= 0.3
    write_json(path, record)
    before = (tmp_path / "README.md").read_text()
    with pytest.raises(SystemExit, match=r"README\.md, with the label in .* 92\.3 ± 0\.2 .* should be .* 82\.3 ± 17\."):
        claims.main(Config(check=True, **copy))
    assert (tmp_path / "README.md").read_text() == before
    claims.main(Config(**copy))
    claims.main(Config(check=True, **copy))
    changed = (tmp_path / "README.md").read_text()
    lines = [line for line, old in zip(changed.splitlines(), before.splitlines(), strict=True) if line != old]
    assert len(lines) == 1 and "82.3 ± 17." in lines[0]


@pytest.mark.parametrize(
    "old, new",
    [("92.3 ± 0.2 %", "92.4 ± 0.2 %"), ("| pictures | class that", "| pictures | a class that"), ("reproduced |", "|")],
)
def test_a_changed_readme_is_found_and_mended(copy, tmp_path, old, new):
    text = (tmp_path / "README.md").read_text()
    assert old in text
    (tmp_path / "README.md").write_text(text.replace(old, new, 1))
    with pytest.raises(SystemExit, match=r"README\.md, .* should be "):
        claims.main(Config(check=True, **copy))
    claims.main(Config(**copy))
    assert (tmp_path / "README.md").read_text() == text


def test_a_missing_row_is_found(copy, tmp_path):
    lines = (tmp_path / "README.md").read_text().splitlines(keepends=True)
    (tmp_path / "README.md").write_text("".join(line for line in lines if not line.startswith("| AAE's log-")))
    with pytest.raises(SystemExit, match=r"README\.md, AAE's log-likelihood .*: '' should be "):
        claims.main(Config(check=True, **copy))


def test_a_readme_without_its_comments_is_left_alone(copy, tmp_path):
    text = (tmp_path / "README.md").read_text().replace("<!-- end of the claims", "<!-- end")
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(RunError, match="lacks the comments"):
        claims.main(Config(**copy))
    assert (tmp_path / "README.md").read_text() == text


# References

RUNS = {
    "plain, seed 0": {"loss": 1.0, "share": 0.125, "none": None, "deep": {"course": [{"loss": 4.0}, {"loss": 8.0}]}},
    "plain, seed 1": {"loss": 2.0, "share": 0.25, "none": 1.0, "deep": {"course": [{"loss": 4.0}, {"loss": 6.0}]}},
    "plain, wide, draw 0": {"loss": -5.0, "share": 0.5},
    "plain, wide, draw 1": {"loss": -5.5, "share": 0.75},
    "alone": {"loss": 0.25},
    "short, seed 0": {"loss": 0.0},
}


def said(reference, folder):
    write_json(folder / "records" / "small.json", {"runs": RUNS})
    (folder / "claims.md").write_text(f"Text, {{not; read; at; all}}.\n| {{{reference}}} |\n")
    return claims.table(folder)[2:-3]


@pytest.fixture
def small(tmp_path):
    (tmp_path / "records").mkdir()
    return lambda reference: said(reference, tmp_path)


@pytest.mark.parametrize(
    "reference, text",
    [
        ("small; plain; loss; mean 2", "1.50"),
        ("small; plain; loss; spread 2", f"1.50 ± {np.std([1, 2], ddof=1):.2f}"),
        ("small; plain; loss; deviation 1", "0.7"),
        ("small; plain; share; spread 1 %", f"18.8 ± {100 * np.std([0.125, 0.25], ddof=1):.1f}"),
        ("small; plain; loss; each 1", "1.0, 2.0"),
        ("small; plain*; loss; range 1", "−5.5 to 2.0"),
        ("small; plain*; loss; means 2", "−5.25 to 1.50"),
        ("small; plain*; loss; least 1", "−5.5"),
        ("small; plain, seed 1; loss; mean 0", "2"),
        ("small; plain, seed 1 & alone; loss; each 2", "2.00, 0.25"),
        ("small; plain; loss & share; means 3", "0.188 to 1.500"),
        ("small; alone; loss; mean 2", "0.25"),
        ("small; plain; deep.course.-1.loss; mean 1", "7.0"),
        ("small; plain - plain, wide; loss; each 1", "6.0, 7.5"),
        ("small; plain; deep.course.-1.loss - deep.course.0.loss / 2 - share; each 4", "2.1333, 1.1429"),
    ],
)
def test_a_reference_is_a_number_of_the_runs(small, reference, text):
    assert small(reference) == text


@pytest.mark.parametrize(
    "reference, reason",
    [
        ("large; plain; loss; mean 1", "there is no record large"),
        ("small; odd; loss; mean 1", "the record has no row odd"),
        ("small; plain & odd; loss; mean 1", "the record has no row odd"),
        ("small; plain; odd; mean 1", "the row has no number odd"),
        ("small; plain; loss.odd; mean 1", "the row has no number loss.odd"),
        ("small; plain; deep.course.7.loss; mean 1", "the row has no number deep.course.7.loss"),
        ("small; plain; deep.course; mean 1", "the row has no number deep.course"),
        ("small; plain; none; mean 1", "the row has no number none"),
        ("small; plain - short; loss; mean 1", "the rows have different seeds"),
        ("small; plain; loss; odd 1", "there is no format odd 1"),
        ("small; plain; loss; mean", "there is no format mean"),
        ("small; plain; loss", "a reference has four parts"),
    ],
)
def test_an_unknown_reference_is_refused_by_name(small, reference, reason):
    with pytest.raises(RunError, match=re.escape(f"claims.md, {{{reference}}}: {reason}")):
        small(reference)


# The records


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_says_where_its_numbers_are_from(path):
    record = json.loads(path.read_text())
    required = {"command", "commits", "data", "seeds", "backend", "versions", "runs"}
    assert required <= record.keys() <= required | {"note"}
    command = r"python (-m experiments(\.\w+)?\.)?\w+"  # records keep the commands of their commits
    assert record["command"] and all(re.match(command, line) for line in record["command"])
    assert not any("/" in line for line in record["command"])
    commit = "[0-9a-f]{7,40}"
    assert record["commits"] and all(re.fullmatch(f"{commit}( to {commit})?", text) for text in record["commits"])
    if record["data"] is None:
        assert "data" in record["note"]
    else:
        assert record["data"].keys() == {"name", "sha256"} and re.fullmatch("[0-9a-f]{64}", record["data"]["sha256"])
    assert record["backend"] in record["versions"].keys() >= {"python", "keras", "numpy"}
    assert all(re.fullmatch(r"(~=)?\d+(\.\d+)+", version) for version in record["versions"].values())
    assert record["runs"] and all(isinstance(run, dict) for run in record["runs"].values())
    seeds = {int(seed) for seed in re.findall(r", (?:seed|draw) (\d+)$", "\n".join(record["runs"]), re.MULTILINE)}
    assert record["seeds"] == sorted(seeds or {0, 1, 2})
    assert seeds or "single seeds were not kept" in record["note"]


@pytest.mark.parametrize("name", ["comparison_2d", "comparison_8d"])
def test_the_record_of_a_comparison_is_its_table(name):
    runs = reading(name)["runs"]
    with (GALLERY / f"{name}.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(run) for run in runs.values()) / 2
    for row in rows:
        for column, key in (("mean", row["quantity"]), ("standard deviation", f"{row['quantity']}_sd")):
            assert runs[row["model"]][key] == (float(row[column]) if row[column] else None)


# A record of one's own


def run_of(folder, module, files, **parameters):
    """A folder like that of a run, with `files` of JSON, and the default parameters but for those given."""
    folder.mkdir(parents=True)
    config = vars(module.Config()) | {"results": str(folder.parents[1]), "name": folder.name} | parameters
    saved = {
        "script": module.__name__,
        "parameters": {name: value for name, value in config.items() if name != "resume"},
        "data": {"name": "MNIST", "images": {"train": 55000}, "image_shape": [28, 28], "sha256": "f" * 64},
        "backend": "jax",
        "versions": VERSIONS,
        "git_commit": "a" * 40,
    }
    for name, content in ({"config.json": saved} | files).items():
        write_json(folder / name, content)
    return str(folder)


def recorded(tmp_path, *folders, **flags):
    (tmp_path / "records").mkdir(exist_ok=True)
    record = claims.main(Config(record=folders, gallery=str(tmp_path), **flags))
    (path,) = (tmp_path / "records").glob("*.json")
    assert json.loads(path.read_text()) == record
    return path.stem, record


def test_a_record_of_an_experiments_runs(tmp_path):
    folders = [
        run_of(
            tmp_path / "avb_toy" / name,
            toy,
            {"runs.json": {f"4 points, seed {seed}": {"vae": {"kl_nats": seed}}}, "metrics.json": {}},
            seeds=(seed,),
            points=(4,),
        )
        for seed, name in enumerate(["first", "second"])
    ]
    name, record = recorded(tmp_path, *folders)
    assert name == "avb_toy"
    assert record == {
        "command": [f"python -m experiments.avb.toy --seeds {seed}" for seed in (0, 1)],
        "commits": ["a" * 40],
        "data": {"name": "MNIST", "sha256": "f" * 64},
        "backend": "jax",
        "versions": VERSIONS,
        "seeds": [0, 1],
        "runs": {f"4 points, seed {seed}": {"vae": {"kl_nats": seed}} for seed in (0, 1)},
    }


def test_a_record_of_quick_runs_names_what_differs_from_their_own_defaults(tmp_path):
    """A parameter at its usual default has to be named if --quick would make it smaller."""
    quick = {"quick": True} | toy.QUICK | {"updates": toy.Config().updates, "batch_size": 100}
    folder = run_of(tmp_path / "avb_toy" / "quick", toy, {"runs.json": {"4 points, seed 0": {}}}, **quick)
    (command,) = recorded(tmp_path, folder)[1]["command"]
    words = {part.split()[0]: part.split()[1:] for part in command.split(" --")}
    assert words.keys() == {"python", "quick", "updates", "batch-size"}
    assert words["updates"] == [str(toy.Config().updates)] and words["batch-size"] == ["100"]


def test_a_record_of_an_older_run_has_the_modules_new_name(tmp_path):
    folder = run_of(tmp_path / "avb_toy" / "old", toy, {"runs.json": {"4 points, seed 0": {}}})
    path = tmp_path / "avb_toy" / "old" / "config.json"
    write_json(path, json.loads(path.read_text()) | {"script": "avb_toy"})
    assert recorded(tmp_path, folder)[1]["command"] == ["python -m experiments.avb.toy"]


def test_a_record_of_a_scripts_runs(tmp_path):
    """What is as by default, the epochs that follow from the updates too, is not in the command."""
    chosen = {"epochs": 15, "adaptive_contrast": False, "hidden_units": (20, 10), "data": "/somewhere/mnist.npz"}
    folders = [
        run_of(tmp_path / "avb" / f"run-{seed}", avb, {"metrics.json": {"kl_nats": 1.0 + seed}}, seed=seed, **chosen)
        for seed in (0, 1)
    ]
    name, record = recorded(tmp_path, *folders, name="mine")
    flags = "--no-adaptive-contrast --hidden-units 20 10"
    assert name == "mine"
    assert record["command"] == [
        f"python avb.py --data mnist.npz {flags}",
        f"python avb.py --data mnist.npz {flags} --seed 1",
    ]
    assert record["runs"] == {f"avb.py {flags}, seed {seed}": {"kl_nats": 1.0 + seed} for seed in (0, 1)}
    assert record["seeds"] == [0, 1]


def test_runs_that_do_not_belong_together_are_refused(tmp_path):
    first, other = (
        run_of(tmp_path / "avb" / name, avb, {"metrics.json": {"kl_nats": 1.0}}, epochs=15) for name in ("a", "b")
    )
    with pytest.raises(RunError, match=r"b has a run that another folder has: avb.py, seed 0"):
        recorded(tmp_path, first, other)
    saved = json.loads((tmp_path / "avb" / "b" / "config.json").read_text())
    write_json(tmp_path / "avb" / "b" / "config.json", saved | {"backend": "torch"})
    with pytest.raises(RunError, match=r"b has other backend than .*a: give it a record of its own"):
        recorded(tmp_path, first, other)
    with pytest.raises(RunError, match="holds no complete run"):
        recorded(tmp_path, str(tmp_path / "nowhere"))
    assert not list((tmp_path / "records").glob("*"))
