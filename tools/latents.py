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
from common.plots.strip import Plane, latent_strip
from common.report import density_of
from common.run import load_config, load_run
from tools.evaluate import run_data

import tyro


@dataclass(frozen=True)
class Config:
    """The runs, and where the figure goes."""

    runs: tyro.conf.Positional[tuple[str, ...]]  # the folders of runs, results/<script>/<name>
    output: str = "results/latents.png"  # the figure
    data: str = ""  # the path of the runs' data, if the file has moved


def main(config: Config) -> dict:
    """Draw the figure. Raises RunError if a run has no 2-D code, or other data than the first."""
    config = check(config)
    output = Path(config.output)
    if output.is_dir() or not os.access(existing(output.parent), os.W_OK):
        raise RunError(f"cannot write {output}; choose another --output, the path of a .png")
    folders = [Path(run) for run in config.runs]
    if not folders:
        raise RunError("name the folders of one or more runs, results/<script>/<name>")
    models = [load_run(folder) for folder in folders]
    for folder, model in zip(folders, models, strict=True):
        if model.prior.latent_dim != 2:
            raise RunError(f"{folder} has a {model.prior.latent_dim}-D code; this figure needs 2-D codes")
    dataset = run_data(folders[0], config.data)
    planes = []
    for folder, model in zip(folders, models, strict=True):
        if run_data(folder, config.data).checksum != dataset.checksum:
            raise RunError(f"{folder} was trained on other data than {folders[0]}")
        test = encoded(model, test_images(dataset, load_config(folder)))
        titles = [other.title for other in models]
        name = model.title if titles.count(model.title) == 1 else f"{model.title}, {folder.name}"
        planes.append(Plane(name, test.codes, test.prior_codes, density_of(model.prior)))
    description = f"Codes of {len(dataset.x_test):,} test images of {dataset.name} over the prior p(z)"
    figure = latent_strip(planes, dataset.y_test, "The latent space", description, dataset.class_names)
    output.parent.mkdir(parents=True, exist_ok=True)
    plots.save(figure, output)
    print(output)
    return {}


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


if __name__ == "__main__":
    run_main(main, Config)
