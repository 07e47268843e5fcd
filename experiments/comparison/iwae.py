"""Importance weighted autoencoder: the networks of vae_baseline.py, trained on a tighter bound of several draws.

Burda, Grosse and Salakhutdinov, "Importance Weighted Autoencoders", arXiv 1509.00519; q(z|x) = N(mu(x), sigma(x)^2).

Encoder and decoder minimise, in nats per image, with k draws z_i ~ q(z|x) (eq. 8),

    E_x E [ -log 1/k sum_i w_i ],  log w_i = log p(x|z_i) + beta (log p(z_i) - log q(z_i|x))

With beta = 1, this is a bound on -log p(x) that falls with k. With k = 1, it is the VAE's loss in expectation.

`python -m experiments.comparison.inference_gap` trains it. A run is loaded and resumed like that of a script.
"""

import math
from dataclasses import dataclass

import vae_baseline
from common.config import PositiveCount
from common.run import train_and_report

from keras import ops

MODULE = "experiments.comparison.iwae"  # in the config.json of a run


@dataclass(frozen=True)
class Config(vae_baseline.Config):
    """All other parameters are those of vae_baseline.py."""

    samples: PositiveCount = 5  # draws of z for each image and update


class IWAE(vae_baseline.VAE):
    """The VAE with the bound of `samples` draws as its loss."""

    title = "IWAE"
    terms = ("negative_bound",)

    def __init__(self, samples: int, **kwargs):
        super().__init__(**kwargs)
        self.samples = samples

    def objective(self, x, outputs):
        log_weights = self.log_weights(x, outputs)
        bound = ops.logsumexp(log_weights, axis=0) - math.log(self.samples)
        return {"negative_bound": -ops.mean(bound)}

    def log_weights(self, x, outputs):
        """log w in nats, (samples, batch). The first draw is that of `outputs`, and the others are new."""
        first = self.log_weight(x, outputs["z"], outputs["parameters"], outputs["mean"], outputs["log_var"])[None]
        more = self.samples - 1
        if not more:
            return first
        shape = ops.shape(outputs["mean"])
        x, mean, log_var = (
            ops.tile(rows, [more, *[1] * (len(rows.shape) - 1)]) for rows in (x, outputs["mean"], outputs["log_var"])
        )  # (more * batch, ...) each
        z = mean + ops.exp(0.5 * log_var) * self.noise((more * shape[0], shape[1]))
        others = self.log_weight(x, z, self.decoder(z), mean, log_var)
        return ops.concatenate([first, ops.reshape(others, (more, -1))], axis=0)

    def log_weight(self, x, z, parameters, mean, log_var):
        """log w for one draw of each row, in nats: (rows,)."""
        log_q = -0.5 * (ops.square(z - mean) * ops.exp(-log_var) + log_var + math.log(2.0 * math.pi))
        log_ratio = self.prior.log_prob(z) - ops.sum(log_q, axis=-1)
        return self.likelihood.log_prob(x, parameters) + self.beta * self.warm_up_weight * log_ratio


def build(config: Config, likelihood) -> IWAE:
    """The untrained model for rows of this likelihood; it has the weights of the VAE of the same config."""
    vae = vae_baseline.build(config, likelihood)
    return IWAE(
        samples=config.samples,
        beta=config.beta,
        prior=vae.prior,
        seed=config.seed,
        likelihood=vae.likelihood,
        **vae.networks,
    )


def main(config: Config = Config(), data=None) -> dict:
    """Train, evaluate and plot by `config`; returns the content of metrics.json. `data`: (x, y) instead of a file."""
    return train_and_report(config, build, MODULE, data)
