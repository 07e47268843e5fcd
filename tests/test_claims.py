"""The generated parts of README.md and of the pages: made of the records, and of nothing else."""

import csv
import json
import re
import shutil
from pathlib import Path

import avb
from common.files import RunError, write_json
from common.numbers import mean_and_deviation
from common.run import ROOT
from experiments.avb import toy
from tools import claims
from tools.claims import Config
from tools.records import FIELDS, Records

import numpy as np
import pytest

GALLERY = ROOT / "results" / "gallery"
RECORDS = Records(GALLERY)
VERSIONS = {"python": "3.11.7", "keras": "3.15.1", "numpy": "2.4.6", "jax": "0.10.2"}
PAGES = [path.relative_to(ROOT) for path in claims.Gallery(ROOT).pages()]


# The pages


@pytest.fixture
def copy(tmp_path) -> Path:
    """README, pages and gallery, to be changed."""
    for page in PAGES:
        (tmp_path / page).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / page, tmp_path / page)
    shutil.copytree(GALLERY, tmp_path / "results" / "gallery", dirs_exist_ok=True)
    return tmp_path


def changed_lines(old: str, new: str) -> list[str]:
    return [line for line, before in zip(new.splitlines(), old.splitlines(), strict=True) if line != before]


def test_the_pages_say_what_the_records_give():
    claims.main(Config(check=True))


def test_every_page_has_its_parts():
    assert [str(page) for page in PAGES] == sorted(
        ["README.md", "results/gallery/README.md"]
        + [f"docs/{name}.md" for name in ("data", "development", "metrics", "usage", "your_own_data")]
        + [f"experiments/{group}/README.md" for group in ("aae", "avb", "comparison", "pitfalls")]
    )
    named = {match["kind"] for page in PAGES for match in claims.PART.finditer((ROOT / page).read_text())}
    assert named == {"claims", "section", "table", "file", "index"}


def test_every_claim_stands_on_its_page():
    gallery = claims.Gallery(ROOT)
    sections = {
        (page.parts[1], match["name"])
        for page in PAGES
        for match in claims.PART.finditer((ROOT / page).read_text())
        if match["kind"] == "section"
    }
    assert {(claim["page"], claim["section"]) for claim in gallery.claims} == sections


def test_a_changed_record_is_found_and_mended(copy):
    path = copy / "results" / "gallery" / "aae" / "style" / "record.json"
    record = json.loads(path.read_text())
    record["runs"]["label into the decoder, seed 0"]["code_mlp_accuracy"] -= 0.3
    write_json(path, record)
    before = (copy / "README.md").read_text()
    with pytest.raises(SystemExit, match=r"README\.md, .*60\.3 ± 1\.8 .* should be .* 50\.\d ± "):
        claims.main(Config(check=True, root=str(copy)))
    assert (copy / "README.md").read_text() == before
    claims.main(Config(root=str(copy)))
    claims.main(Config(check=True, root=str(copy)))
    (line,) = changed_lines(before, (copy / "README.md").read_text())
    assert re.search(r"50\.\d ± ", line)
    page = Path("experiments/aae/README.md")
    assert changed_lines((ROOT / page).read_text(), (copy / page).read_text())


@pytest.mark.parametrize(
    "page, old, new",
    [
        ("README.md", "60.3 ± 1.8 %", "60.4 ± 1.8 %"),
        ("README.md", "| reproduced |", "| not |"),
        ("experiments/aae/README.md", "60.3 ± 1.8 %", "60.4 ± 1.8 %"),
        ("experiments/comparison/README.md", "Verdict: **partly reproduced**", "Verdict: **reproduced**"),
        ("results/gallery/README.md", "seeds: 0, 1, 2", "seeds: 0, 1"),
    ],
)
def test_a_changed_page_is_found_and_mended(copy, page, old, new):
    text = (copy / page).read_text()
    assert old in text
    (copy / page).write_text(text.replace(old, new, 1))
    with pytest.raises(SystemExit, match=rf"{re.escape(page)}, .* should be "):
        claims.main(Config(check=True, root=str(copy)))
    claims.main(Config(root=str(copy)))
    assert (copy / page).read_text() == text


def test_what_is_not_generated_is_left_alone(copy):
    text = "Text {braces; are; not; read}.\n" + (copy / "README.md").read_text() + "More <!-- a comment -->.\n"
    (copy / "README.md").write_text(text)
    claims.main(Config(root=str(copy)))
    assert (copy / "README.md").read_text() == text


@pytest.mark.parametrize(
    "part, reason",
    [
        ("odd", "there is no generated part odd"),
        ("section odd", "claims.toml has no claim of the page .* in the section odd"),
        ("table odd", "claims.toml has no table odd"),
        ("file aae/odd.md", "cannot read .*odd.md"),
        ("file ../../README.md", "is no .md in"),
        ("file aae/style/both.png", "is no .md in"),
        ("table", "section, table and file need a name"),
        ("claims odd", "section, table and file need a name"),
    ],
)
def test_an_unknown_part_is_refused_before_anything_is_written(copy, part, reason):
    page = copy / "results" / "gallery" / "README.md"
    (copy / "README.md").write_text((copy / "README.md").read_text().replace("| reproduced |", "| not |"))
    page.write_text(page.read_text() + f"\n<!-- generated: {part} -->\n<!-- end -->\n")
    before = {path: path.read_text() for path in copy.rglob("README.md")}
    with pytest.raises(RunError, match=reason):
        claims.main(Config(root=str(copy)))
    assert {path: path.read_text() for path in copy.rglob("README.md")} == before


@pytest.mark.parametrize(
    "old, new, reason",
    [
        ('verdict = "not"', 'verdict = "perhaps"', "the verdict is none of reproduced, partly, not"),
        ('verdict = "not"\n', "", "lacks or has needlessly verdict"),
        ('verdict = "not"\n', 'verdict = ["not"]\n', "verdict must be text"),
        ('\nhead = ["', '\nhead = ["one more", "', "needs a head and rows of as many texts"),
        ('\nhead = ["', '\nheads = ["', "needs a head and rows of as many texts"),
        ('says = "', 'says = "' + "word " * 16, "more than 15 words"),
        ("\n[[claim]]", "\n[[claim]", "claims.toml: "),
    ],
)
def test_odd_words_are_refused(copy, old, new, reason):
    path = copy / "results" / "gallery" / "claims.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(RunError, match=reason):
        claims.main(Config(root=str(copy)))


@pytest.mark.parametrize("text", ["", "[claim]\nsays = 'alone'\n"])
def test_words_without_claims_are_refused(copy, text):
    (copy / "results" / "gallery" / "claims.toml").write_text(text)
    with pytest.raises(RunError, match=r"needs \[\[claim\]\] blocks"):
        claims.main(Config(root=str(copy)))


@pytest.mark.parametrize(
    "old, new",
    [
        ("<!-- end -->", ""),
        ("<!-- end -->", "<!-- end"),
        ("<!-- generated: claims -->", "<!--generated: claims -->"),
        ("<!-- generated: claims -->", "<!-- generated: claims -->\n<!-- generated: claims -->"),
        ("## What we found", "<!-- end -->\n## What we found"),
    ],
)
def test_comments_that_do_not_pair_up_are_refused(copy, old, new):
    """Else what stands between two parts would be replaced, or a part would never be compared."""
    text = (copy / "README.md").read_text()
    (copy / "README.md").write_text(text.replace(old, new, 1))
    for check in (False, True):
        with pytest.raises(RunError, match=r"README\.md: the comments around generated parts do not pair up"):
            claims.main(Config(check=check, root=str(copy)))
    assert (copy / "README.md").read_text() == text.replace(old, new, 1)


def test_a_missing_page_is_refused(copy):
    (copy / "README.md").unlink()
    with pytest.raises(RunError, match=r"cannot read .*README\.md"):
        claims.main(Config(check=True, root=str(copy)))


def test_every_table_is_shown():
    named = {match["name"] for page in PAGES for match in claims.PART.finditer((ROOT / page).read_text())}
    assert claims.Gallery(ROOT).tables.keys() <= named


def test_hidden_files_are_no_part_of_the_gallery(copy):
    (copy / "results" / "gallery" / "aae" / "style" / ".DS_Store").touch()
    claims.main(Config(check=True, root=str(copy)))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"runs": {"a": 1}}', '{"runs": {"a": {}}}'])
def test_a_damaged_record_is_named(copy, text):
    (copy / "results" / "gallery" / "aae" / "style" / "record.json").write_text(text)
    with pytest.raises(RunError, match=r"style.record\.json is damaged"):
        claims.main(Config(root=str(copy)))


@pytest.mark.parametrize(
    "heading, name",
    [
        ("Four points", "four-points"),
        ("How wrong is T?", "how-wrong-is-t"),
        ("AVB and a VAE, 8-D", "avb-and-a-vae-8-d"),
        ("avb/toy_8_16", "avbtoy_8_16"),
    ],
)
def test_anchors_are_those_of_a_rendered_page(heading, name):
    assert claims.anchor(heading) == name


# References

RUNS = {
    "plain, seed 0": {"loss": 1.0, "share": 0.125, "none": None, "deep": {"course": [{"loss": 4.0}, {"loss": 8.0}]}},
    "plain, seed 1": {"loss": 2.0, "share": 0.25, "none": 1.0, "deep": {"course": [{"loss": 4.0}, {"loss": 6.0}]}},
    "plain, wide, draw 0": {"loss": -5.0, "share": 0.5},
    "plain, wide, draw 1": {"loss": -5.5, "share": 0.75},
    "alone": {"loss": 0.25},
    "short, seed 0": {"loss": 0.0},
}


@pytest.fixture
def small(tmp_path):
    (tmp_path / "group" / "small").mkdir(parents=True)
    record = {key: [] for key in FIELDS} | {"runs": RUNS}
    write_json(tmp_path / "group" / "small" / "record.json", record)
    return lambda reference: Records(tmp_path).fill(f"{{{reference}}}")


@pytest.mark.parametrize(
    "reference, text",
    [
        ("group/small; plain; loss; mean 2", "1.50"),
        ("group/small; plain; loss; spread 2", f"1.50 ± {np.std([1, 2], ddof=1):.2f}"),
        ("group/small; plain; loss; deviation 1", "0.7"),
        ("group/small; plain; share; spread 1 %", f"18.8 ± {100 * np.std([0.125, 0.25], ddof=1):.1f}"),
        ("group/small; plain; loss; each 1", "1.0, 2.0"),
        ("group/small; plain*; loss; range 1", "−5.5 to 2.0"),
        ("group/small; plain*; loss; means 2", "−5.25 to 1.50"),
        ("group/small; plain*; loss; least 1", "−5.5"),
        ("group/small; plain, seed 1; loss; mean 0", "2"),
        ("group/small; plain, seed 1 & alone; loss; each 2", "2.00, 0.25"),
        ("group/small; plain; loss & share; means 3", "0.188 to 1.500"),
        ("group/small; alone; loss; mean 2", "0.25"),
        ("group/small; plain; deep.course.-1.loss; mean 1", "7.0"),
        ("group/small; plain - plain, wide; loss; each 1", "6.0, 7.5"),
        ("group/small; plain; deep.course.-1.loss - deep.course.0.loss / 2 - share; each 4", "2.1333, 1.1429"),
    ],
)
def test_a_reference_is_a_number_of_the_runs(small, reference, text):
    assert small(reference) == text


@pytest.mark.parametrize(
    "reference, reason",
    [
        ("group/large; plain; loss; mean 1", "there is no record group/large"),
        ("group/small; odd; loss; mean 1", "the record has no row odd"),
        ("group/small; plain & odd; loss; mean 1", "the record has no row odd"),
        ("group/small; plain; odd; mean 1", "the row has no number odd"),
        ("group/small; plain; loss.odd; mean 1", "the row has no number loss.odd"),
        ("group/small; plain; deep.course.7.loss; mean 1", "the row has no number deep.course.7.loss"),
        ("group/small; plain; deep.course; mean 1", "the row has no number deep.course"),
        ("group/small; plain; none; mean 1", "the row has no number none"),
        ("group/small; plain - short; loss; mean 1", "the rows have different seeds"),
        ("group/small; plain; loss; odd 1", "there is no format odd 1"),
        ("group/small; plain; loss; mean", "there is no format mean"),
        ("group/small; plain; loss / 0; mean 1", "loss / 0 divides by 0"),
        ("group/small; alone; loss; spread 1", "one run has no standard deviation, which spread shows"),
        ("../group/small; alone; loss; mean 1", "there is no record ../group/small"),
        ("group/small; plain; loss", "a reference has four parts"),
    ],
)
def test_an_unknown_reference_is_refused_by_name(small, reference, reason):
    with pytest.raises(RunError, match=re.escape(f"claims.toml, {{{reference}}}: {reason}")):
        small(reference)


# The records


@pytest.mark.parametrize("name", RECORDS.names())
def test_a_record_says_where_its_numbers_are_from(name):
    record = RECORDS.read(name)
    required = {"command", "commits", "data", "seeds", "backend", "versions", "runs"}
    assert required <= record.keys() <= required | {"note"}
    command = r"python (-m experiments(\.\w+)?\.|benchmarks/)?\w+[^/]*"  # records keep the commands of their commits
    assert record["command"] and all(re.fullmatch(command, line) for line in record["command"])
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
    if "benchmarks" in record["command"][0]:  # its random numbers do not depend on a seed that one could choose
        assert record["seeds"] == []
    else:
        assert record["seeds"] == sorted(seeds or {0, 1, 2})
        assert seeds or "single seeds were not kept" in record["note"]


@pytest.mark.parametrize("name", ["comparison/compare_2d", "comparison/compare_8d"])
def test_the_record_of_a_comparison_is_its_table(name):
    record = RECORDS.read(name)
    runs, seeds = record["runs"], record["seeds"]
    with (GALLERY / name / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 20 * 6  # quantities and models
    for row in rows:
        model, key = row["model"], row["quantity"]
        if model in runs:  # an older record has means only
            means = runs[model]
        elif key in runs.get(f"{model}, all seeds", {}):
            means = runs[f"{model}, all seeds"]
        else:
            means = mean_and_deviation(key, [runs[f"{model}, seed {seed}"].get(key) for seed in seeds])
        for column, each in (("mean", key), ("standard deviation", f"{key}_sd")):
            assert means[each] == (float(row[column]) if row[column] else None)


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
    record = claims.main(Config(record=folders, root=str(tmp_path), **flags))
    (name,) = Records(tmp_path / "results" / "gallery").names()
    assert Records(tmp_path / "results" / "gallery").read(name) == record
    return name, record


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
    assert name == "avb/toy"
    assert record == {
        "command": [f"python -m experiments.avb.toy --seeds {seed}" for seed in (0, 1)],
        "commits": ["a" * 40],
        "data": {"name": "MNIST", "sha256": "f" * 64},
        "backend": "jax",
        "versions": VERSIONS,
        "seeds": [0, 1],
        "runs": {f"4 points, seed {seed}": {"vae": {"kl_nats": seed}} for seed in (0, 1)},
    }


def test_a_record_has_what_an_experiment_computes_from_all_its_seeds(tmp_path):
    runs = {f"AVB, seed {seed}": {"kl_nats": seed} for seed in (0, 1)}
    means = {"stopped": 0, "kl_nats": 0.5, "kl_nats_sd": 0.7, "difference": 2.0, "difference_sd": 0.1, "lost": None}
    rows = {"AVB": means, "their mean": {"kl_nats": 0.25}}
    folder = run_of(tmp_path / "avb_toy" / "both", toy, {"runs.json": runs, "metrics.json": rows})
    _, record = recorded(tmp_path, folder)
    assert record["runs"] == runs | {
        "AVB, all seeds": {"difference": 2.0, "difference_sd": 0.1},
        "their mean, all seeds": {"kl_nats": 0.25},
    }
    text = "{avb/toy; AVB; kl_nats; spread 1}; {avb/toy; AVB, all seeds; difference; mean 1}"
    assert Records(tmp_path / "results" / "gallery").fill(text) == "0.5 ± 0.7; 2.0"


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
    assert name == "scripts/mine"
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
    toys = run_of(tmp_path / "avb_toy" / "a", toy, {"runs.json": {"4 points, seed 0": {}}})
    with pytest.raises(RunError, match=r"is a run of experiments\.avb\.toy, not of avb"):
        recorded(tmp_path, first, toys)
    with pytest.raises(RunError, match="leave out one of them"):
        recorded(tmp_path, first, check=True)
    for name, changes, reason in (
        ("changed", {"git_commit": "a" * 40 + "+changes"}, "made by code that is not committed"),
        ("nowhere", {"git_commit": None}, "made by code that is not committed"),
        ("arrays", {"parameters": saved["parameters"] | {"data": "in memory"}}, "arrays, which no command line names"),
    ):
        folder = run_of(tmp_path / "avb" / name, avb, {"metrics.json": {"kl_nats": 1.0}}, epochs=15)
        config = json.loads((Path(folder) / "config.json").read_text())
        write_json(Path(folder) / "config.json", config | changes)
        with pytest.raises(RunError, match=reason):
            recorded(tmp_path, folder)
    assert not Records(tmp_path / "results" / "gallery").names()


def test_a_record_that_is_made_again_keeps_its_note(tmp_path, capsys):
    folder = run_of(tmp_path / "avb" / "a", avb, {"metrics.json": {"kl_nats": 1.0}}, epochs=15, data="my digits.npz")
    name, record = recorded(tmp_path, folder)
    assert record["command"] == ["python avb.py --data 'my digits.npz'"]
    path = tmp_path / "results" / "gallery" / name / "record.json"
    write_json(path, record | {"note": "One core."})
    again = recorded(tmp_path, folder)[1]
    assert again["note"] == "One core." and {key: again[key] for key in record} == record
    assert "its note stays" in capsys.readouterr().out
