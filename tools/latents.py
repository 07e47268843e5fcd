"""The 2-D codes of finished runs side by side, in one figure: what did a change of a hyperparameter do to the code?

Run: python -m tools.latents results/avb/first results/vae_baseline/first [--output latents.png]
All runs need a 2-D code and the same data.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from common import plots
from common.command import run_main
from common.config import check
from common.files import RunError
from common.measure import encoded, test_images
from common.model import LatentModel
from common.plots.strip import Plane, latent_strip
from common.report import density_of
from common.run import load_config, load_run, saved_run
from tools.evaluate import run_data

import tyro


@dataclass(frozen=True)
class Config:
    """The runs, and where the figure goes."""

    runs: tyro.conf.Positional[tuple[str, ...]]  # the folders of runs, results/<script>/<name>
    output: str = "results/latents.png"  # the figure
    data: str = ""  # the path of the runs' data, if the file has moved


def main(config: Config) -> dict:
    """Draw the figure; returns no numbers.

    Raises RunError if no run is named, if a run is not complete or has no 2-D code, if the runs have different data,
    or if the figure cannot be written.
    """
    config = check(config)
    output = Path(config.output).expanduser()
    require_writable(output)
    folders = [Path(run).expanduser().resolve() for run in config.runs]
    if not folders:
        raise RunError("name the folders of one or more runs, results/<script>/<name>")
    models = [load_run(folder) for folder in folders]
    for folder, model in zip(folders, models, strict=True):
        if model.prior.latent_dim != 2:
            raise RunError(f"{folder} has a {model.prior.latent_dim}-D code; this figure needs 2-D codes")
        if saved_run(folder)[0]["data"]["sha256"] != saved_run(folders[0])[0]["data"]["sha256"]:
            raise RunError(f"{folder} was trained on other data than {folders[0]}; one figure needs the same data")
    dataset = run_data(folders[0], config.data)
    planes = []
    for folder, model, name in zip(folders, models, names(folders, models), strict=True):
        test = encoded(model, test_images(dataset, load_config(folder)))
        planes.append(Plane(name, test.codes, test.prior_codes, density_of(model.prior)))
    description = (
        f"Codes of {len(dataset.x_test):,} test {dataset.transform.noun}s of {dataset.name} over the prior p(z)"
    )
    figure = latent_strip(planes, dataset.y_test, "The latent space", description, dataset.class_names)
    output.parent.mkdir(parents=True, exist_ok=True)
    plots.save(figure, output)
    print(output)
    return {}


def names(folders: list[Path], models: list[LatentModel]) -> list[str]:
    """The model of each run; where several are alike, with the run's name, and with a number if that is alike too."""
    titles = [model.title for model in models]
    longer = [f"{title}, {folder.name}" for title, folder in zip(titles, folders, strict=True)]
    unique = [name if titles.count(title) > 1 else title for title, name in zip(titles, longer, strict=True)]
    return [
        f"{name} ({unique[: number + 1].count(name)})" if unique.count(name) > 1 else name
        for number, name in enumerate(unique)
    ]


def require_writable(output: Path):
    """Raises RunError unless `output` is a .png in a folder that can be written, or made."""
    nearest = next(path for path in (output.parent, *output.absolute().parents) if path.exists())
    if output.suffix != ".png" or output.is_dir() or not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise RunError(f"cannot write {output}; choose another --output, the path of a .png")


if __name__ == "__main__":
    run_main(main, Config)
