"""docs/your_own_data.md: its Python makes the files, and its commands take them, with fewer rows and one epoch."""

import dataclasses
import io
import json
import re
import shlex

from common.command import parse
from common.run import ROOT, load_run
from common.scripts import SCRIPTS, load_script
from tools import score

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images
from small_runs import quicken

PAGE = (ROOT / "docs" / "your_own_data.md").read_text(encoding="utf-8")
SECTIONS = {part.splitlines()[0]: part for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]}
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLES = {title.split(":")[0]: part for title, part in SECTIONS.items() if "```bash" in part}
FEW = 240  # rows of a split in an .npz; enough for every number and figure


def blocks(part: str, language: str) -> list[str]:
    return [text for name, text in FENCE.findall(part) if name == language]


def shorten(folder):
    """Keep the first rows of every .npz: the page's commands then take seconds."""
    for path in folder.glob("*.npz"):
        with np.load(path) as arrays:
            kept = {name: arrays[name][:FEW] for name in arrays}
        np.savez(path, **kept)


def run(command: str) -> dict:
    """Run a command of the page as its command line does, with one epoch."""
    words = shlex.split(command)
    assert words[0] == "python"
    if words[1] == "-m":
        assert words[2] == "tools.score"
        return score.main(parse(score.Config, words[3:]))
    script = load_script(words[1].removesuffix(".py"))
    return script.main(dataclasses.replace(parse(script.Config, words[2:]), epochs=1, hidden_units=(8,)))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of each example, after its Python and its commands, and what the commands returned."""
    folders = {}
    for title, part in EXAMPLES.items():
        folder = tmp_path_factory.mktemp("own_data")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            quicken(patch)
            for text in blocks(part, "python"):
                exec(compile(text, title, "exec"), {})
            shorten(folder)
            folders[title] = folder, [run(line) for text in blocks(part, "bash") for line in text.splitlines()]
    return folders


def test_the_page_has_three_examples():
    assert list(EXAMPLES) == ["Colour images", "A table", "Counts"]
    assert {command.split()[1] for part in EXAMPLES.values() for command in blocks(part, "bash")} <= {
        f"{script}.py" for script in SCRIPTS
    }


@pytest.mark.parametrize(
    ("title", "likelihood", "figures"),
    [
        ("Colour images", "logistic", {"reconstructions", "samples", "interpolations"}),
        ("A table", "gaussian", {"reconstructions", "samples", "columns"}),
        ("Counts", "negative_binomial", {"reconstructions", "samples", "latent", "manifold"}),
    ],
)
def test_an_example_runs_and_leaves_its_figures(made, title, likelihood, figures):
    folder, returned = made[title]
    first = sorted((folder / "results" / "vae_baseline").iterdir())[0]
    saved = json.loads((first / "config.json").read_text())
    assert saved["data"]["likelihood"] == likelihood
    assert figures <= {path.stem for path in first.glob("*.png")}
    assert not any("failed" in metrics for metrics in returned)
    assert np.isfinite(returned[0]["negative_elbo_nats"]) and np.isfinite(returned[0]["constant_model_nats"])


def test_colour_has_bits_that_are_those_of_its_nats(made):
    _, (metrics,) = made["Colour images"]
    assert 4 < metrics["negative_elbo_bits_per_dimension"] < 12  # an epoch from 8 bits of equal shares
    nats = metrics["negative_elbo_bits_per_dimension"] * 32 * 32 * 3 * np.log(2)
    np.testing.assert_allclose(nats, metrics["negative_elbo_nats"], rtol=1e-6)


def test_no_pixel_of_the_photographs_is_in_two_splits():
    """The page's patches, cut from numbered pixels instead of colours."""
    text = next(text for text in blocks(EXAMPLES["Colour images"], "python") if "def patches" in text)
    names = {}
    exec(compile(text.split("np.savez")[0], "page", "exec"), names)
    numbered = np.arange(2 * 427 * 640 * 3).reshape(2, 427, 640, 3)
    names["load_sample_images"] = lambda: type("Photographs", (), {"images": list(numbered)})
    calls = re.findall(r"x_(\w+)=patches\((\d+), (\d+)\)", text)
    pixels = [set(names["patches"](int(left), int(right)).ravel().tolist()) for _, left, right in calls]
    assert [name for name, *_ in calls] == ["train", "val", "test"]
    assert not (pixels[0] & pixels[1] or pixels[0] & pixels[2] or pixels[1] & pixels[2])


def test_png_is_as_long_as_the_page_says():
    bits = 0
    for photograph in load_sample_images().images:
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(photograph[:, 544:])).save(file, "PNG", optimize=True)
        bits += 8 * len(file.getvalue())
    line = next(line for line in PAGE.splitlines() if line.startswith("| PNG"))
    assert f"| {bits / (2 * 427 * 96 * 3):.2f} |" in line


def test_the_table_has_areas_and_its_model_takes_and_gives_frames(made):
    folder, (_, scores) = made["A table"]
    assert {"weighted_bound_nats", "reconstruction_nats", "kl_nats", "isolation_forest", "pca"} <= scores[
        "roc_areas"
    ].keys()
    model = load_run(folder / "results" / "vae_baseline" / "benign")
    rows = pd.read_csv(folder / "all.csv")
    codes = model.encode(rows)
    assert codes.shape == (569, 4)
    assert list(model.decode(codes).columns) == list(rows.columns[:-1])
