"""The names of the scripts, in one place: tools, experiments, benchmarks and tests read them here."""

import importlib

from common.model import LatentModel

SCRIPTS = ("aae_deterministic", "aae_gaussian", "aae_universal", "avb", "vae_baseline")
RENAMED = {  # script in the config.json of an older run: today's module
    "compare": "experiments.comparison.compare",
    "likelihoods": "experiments.comparison.likelihoods",
    "aae_likelihood": "experiments.comparison.likelihoods",
    "aae_clustering": "experiments.aae.clustering",
    "aae_embedding": "experiments.aae.embedding",
    "aae_label_prior": "experiments.aae.label_prior",
    "aae_semisupervised": "experiments.aae.semisupervised",
    "aae_supervised": "experiments.aae.style",
    "update_order": "experiments.aae.update_order",
    "avb_mnist": "experiments.avb.mnist",
    "avb_toy": "experiments.avb.toy",
    "eight_schools": "experiments.avb.eight_schools",
    "kl_calibration": "experiments.avb.kl_calibration",
    "known_mistakes": "experiments.pitfalls.known_mistakes",
    "loss_scaling": "experiments.pitfalls.loss_scaling",
    "posterior_collapse": "experiments.pitfalls.posterior_collapse",
}


def load_script(name: str):
    """The module of a script, with its `Config`, `build` and `main`."""
    return importlib.import_module(name)


def title_of(script) -> str:
    """The title of a script's model, which is the last `LatentModel` that its module defines."""
    own = (kind for kind in vars(script).values() if getattr(kind, "__module__", None) == script.__name__)
    return [kind for kind in own if isinstance(kind, type) and issubclass(kind, LatentModel)][-1].title
