"""The models of the comparison. Each is trained once; every experiment of this group measures the same runs.

All share the networks, the size of the code, the prior N(0, I), the dynamic binarisation and the seeds. Each has the
optimiser settings of its script. A new script in the list of `common.scripts` joins them. The runs are in
results/comparison_models/<script>/.
"""

import functools
from pathlib import Path

from common import scripts
from common.data import Dataset
from common.evaluation.probes import nothing_to_tell
from common.evaluation.samples import Classifier
from common.progress import TimeLeft
from experiments import study
from experiments.study import Part

RUNS = "comparison_models"  # the folder of all runs, below `results`
VAE, WITHOUT_CONTRAST = "VAE", "AVB without contrast"  # titles; the VAE is what the others are compared with


def models() -> dict[str, tuple]:
    """By the title of each model: its script, a module, and parameters that differ from the script's."""
    listed = [scripts.load_script(name) for name in scripts.SCRIPTS]
    without = (scripts.load_script("avb"), {"adaptive_contrast": False})
    return {scripts.title_of(script): (script, {}) for script in listed} | {WITHOUT_CONTRAST: without}


def trained(part: Part, script, latent_dim: int, **own) -> Path:
    """The folder of a complete run of `script`, with the part's networks, updates and seed; it is made if missing.

    `own`: further parameters of the script. Raises RunError as `study.complete_run` does.
    """
    config = part.config
    words = [part.dataset.checksum[:8], f"{latent_dim}d", *map(str, config.hidden_units), f"{config.updates}-updates"]
    words += [f"{name.replace('_', '-')}-{value}".lower() for name, value in sorted(own.items())]
    folder = Path(config.results) / RUNS / "-".join([*words, f"seed-{part.seed}"])
    return part.run_script(script, folder, binarisation="dynamic", latent_dim=latent_dim, **own)


@functools.cache
def classifier_of(dataset: Dataset, results: str) -> Classifier | None:
    """The classifier for the samples of all models, trained once; None if the labels do not suit a classifier."""
    folder = Path(results) / RUNS / "classifier"
    return None if nothing_to_tell(dataset.y_train) else Classifier(dataset, folder, TimeLeft())


def require_batch(dataset: Dataset):
    """Raises RunError if there are too few training images for a batch of a script."""
    study.require_batch(dataset, max(script.Config().batch_size for script, _ in models().values()))
