"""tools/latents.py: the codes of finished runs side by side."""

import vae_baseline
from common.files import RunError
from common.plots.strip import Plane, latent_strip
from tools import latents

import numpy as np
import pytest
from figure_helpers import CODES, LABELS, PRIOR, require_legible
from small_runs import tiny_images

SMALL = {"hidden_units": (8,), "epochs": 1, "batch_size": 20}


def density(z):
    return -0.5 * (z**2).sum(axis=1)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("labels", [None, LABELS, np.arange(300)])
def test_the_figure_is_legible(count, labels):
    planes = [Plane(f"model {number}", CODES, PRIOR, density) for number in range(count)]
    require_legible(latent_strip(planes, labels, "The latent space", "Codes of 300 images of a data set"))


def test_names_may_be_long():
    names = [f"a class with the long name {number}" for number in range(10)]
    planes = [Plane("Gaussian AAE, a run with a long name of its own", CODES, PRIOR)] * 3
    require_legible(latent_strip(planes, LABELS, "The latent space", "Codes of 300 images", names))


def test_priors_of_both_kinds_are_in_the_legend():
    planes = [Plane("with a density", CODES, PRIOR, density), Plane("without", CODES, PRIOR)]
    for order in (planes, planes[::-1]):
        figure = latent_strip(order, LABELS, "The latent space", "Codes of 300 images")
        require_legible(figure)
        texts = [text.get_text() for text in figure.legends[0].get_texts()]
        assert len(texts) == 4 and sum("prior samples" in text for text in texts) == 1


def test_all_planes_have_the_same_axes():
    planes = [Plane("narrow", 0.1 * CODES, PRIOR, density), Plane("wide", 3 * CODES, PRIOR, density)]
    narrow, wide = latent_strip(planes, LABELS, "title", "description").axes
    assert narrow.get_xlim() == wide.get_xlim() and narrow.get_ylim() == wide.get_ylim()
    assert wide.get_xlim()[1] > 3 * np.quantile(CODES, 0.95)


@pytest.fixture(scope="module")
def runs(quick_module, tmp_path_factory):
    """Two runs on one data set, one on another, and one with a 3-D code."""
    folder = tmp_path_factory.mktemp("latents")
    data = tiny_images(folder / "tiny.npz", y=np.arange(300) % 3)
    other = tiny_images(folder / "other.npz", y=np.arange(300) % 2)
    results = str(folder / "results")
    for name, parameters in {
        "first": {"data": data},
        "second": {"data": data, "seed": 1},
        "unlabelled": {"data": tiny_images(folder / "unlabelled.npz")},
        "other": {"data": other},
        "deep": {"data": data, "latent_dim": 3},
    }.items():
        vae_baseline.main(vae_baseline.Config(results=results, name=name, **SMALL | parameters))
    return folder / "results" / "vae_baseline"


def test_finished_runs_are_drawn_and_named(runs, tmp_path, capsys):
    output = tmp_path / "new" / "latents.png"
    latents.main(latents.Config((str(runs / "first"), str(runs / "second")), str(output)))
    assert capsys.readouterr().out == f"{output}\n"
    written = output.read_bytes()
    for name in ("VAE, first", "VAE, second", "Codes of 30 test images of tiny"):
        assert name.encode() in written


def test_a_run_that_is_named_twice_and_one_without_labels(runs, tmp_path):
    output = tmp_path / "latents.png"
    latents.main(latents.Config((str(runs / "first"), f"{runs / 'first'}/"), str(output)))
    assert b"VAE, first (1)" in output.read_bytes() and b"VAE, first (2)" in output.read_bytes()
    latents.main(latents.Config((str(runs / "unlabelled"),), str(output)))
    assert b"30 test images of unlabelled" in output.read_bytes()


@pytest.mark.parametrize(
    "names, output, reason",
    [
        ((), "a.png", "name the folders"),
        (("first", "nowhere"), "a.png", "holds no complete run"),
        (("first", "deep"), "a.png", "has a 3-D code; this figure needs 2-D codes"),
        (("first", "other"), "a.png", "was trained on other data than"),
        (("first",), ".", "choose another --output"),
        (("first",), "a.pdf", "choose another --output, the path of a .png"),
        (("first",), "tiny.npz/a.png", "choose another --output"),
    ],
)
def test_what_cannot_be_drawn_is_refused(runs, tmp_path, names, output, reason):
    (tmp_path / "tiny.npz").write_text("a file")
    with pytest.raises(RunError, match=reason):
        latents.main(latents.Config(tuple(str(runs / name) for name in names), str(tmp_path / output)))
    assert len(list(tmp_path.glob("*"))) == 1
