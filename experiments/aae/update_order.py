"""Does it matter whether the AAE's networks step in turn, as in the paper, or all at once, as in this project?

Makhzani et al., arXiv 1511.05644, section 2, makes three updates on each minibatch. The first updates encoder and
decoder for the reconstruction, the second the discriminator, the third the encoder as its opponent. Each update starts
from the weights of the one before. The scripts of this project compute all three gradients at the same weights and step
once. This experiment trains the deterministic AAE in both ways. Initial weights, batches, constant rates and the number
of updates are the same.

Run: python -m experiments.aae.update_order --data mnist.npz (--help lists every flag). --quick is a short run on the
sample. It needs TensorFlow: the steps in turn use a gradient tape. Resumes if interrupted. Results in
results/aae_update_order/<name>/:

    metrics.json, table.md      means and standard deviations over the seeds
    runs.json                   numbers of every seed
    a folder per training       history.csv
"""

from dataclasses import dataclass
from functools import partial

import aae_deterministic
from common.adversarial import discriminator_loss, generator_loss
from common.config import PositiveCount, Seed
from common.data import Dataset
from common.evaluation import latent
from common.files import RunError
from common.likelihoods import binary_cross_entropy
from common.measure import test_images, test_terms
from common.metrics import METRICS
from common.model import to_numpy
from common.training import adam_per_network, image_batches
from experiments import study
from experiments.study import ImageStudyConfig, Part, Results, Study, run_study

import keras
from keras import ops

KEYS = ("test_reconstruction_nats", "code_std_min", "code_std_max", "code_mean_norm", "code_c2st_accuracy")
COLUMNS = {key: METRICS[key] for key in KEYS}
QUICK = {"data": "sample", "epochs": 1, "seeds": (0,)}


@dataclass(frozen=True)
class Config(ImageStudyConfig):
    """All other parameters are as in aae_deterministic.py, except that the learning rates stay constant."""

    epochs: PositiveCount = 5  # passes over the training images
    seeds: tuple[Seed, ...] = (0, 1, 2)  # random seeds of weights, order and prior draws


class InTurnAAE(aae_deterministic.DeterministicAAE):
    """The deterministic AAE with three steps per update, each by its own Adam; its optimiser is an `InTurn`.

    The logs have each term's value before its own step.
    """

    title = "Deterministic AAE, updates in turn"

    def train_step(self, data):
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        step = self.optimizer.step
        terms = {"reconstruction": step("reconstruction", lambda: binary_cross_entropy(x, self(x)["parameters"]))}
        z = self.encoder(x)
        prior = self.prior_like(z)
        terms["discriminator"] = step(
            "discriminator", lambda: discriminator_loss(self.discriminator(prior), self.discriminator(z))
        )
        terms["generator"] = step(
            "generator", lambda: self.adversarial_weight * generator_loss(self.discriminator(self.encoder(x)))
        )
        for mean in self.term_means:
            mean.update_state(terms[mean.name], sample_weight=ops.shape(x)[0])
        return self.get_metrics_result()


class InTurn(keras.optimizers.Optimizer):
    """One Adam with a constant rate for each term of an `InTurnAAE`. A checkpoint holds the variables of all three."""

    def __init__(self, model: InTurnAAE, config: aae_deterministic.Config, updates: int | None = None):
        super().__init__(learning_rate=0.0)  # unused: each Adam has its own
        rate, discriminator_rate = config.learning_rate, config.learning_rate * config.discriminator_rate_factor
        self.adams = {
            term: keras.optimizers.Adam(discriminator_rate if term == "discriminator" else rate, beta_1=config.beta_1)
            for term in model.terms
        }
        encoder, decoder, discriminator = (network.trainable_variables for network in model.networks.values())
        self.variables_of = {"reconstruction": encoder + decoder, "generator": encoder, "discriminator": discriminator}
        for term, adam in self.adams.items():
            adam.build(self.variables_of[term])
        self.build(model.trainable_variables)

    @property
    def variables(self):
        return [variable for adam in self.adams.values() for variable in adam.variables]

    def step(self, term: str, loss):
        """Update the variables of a term by the gradient of `loss()`, a scalar; returns its value."""
        import tensorflow as tf

        variables = self.variables_of[term]
        with tf.GradientTape() as tape:
            value = loss()
        self.adams[term].apply(tape.gradient(value, [variable.value for variable in variables]), variables)
        return value


def at_once(model, config: aae_deterministic.Config, updates: int | None = None) -> keras.optimizers.Optimizer:
    """The optimiser of the scripts, with constant rates."""
    return adam_per_network(model, config)


ORDERS = {  # case: the model, and its optimiser
    "at once": (aae_deterministic.DeterministicAAE, at_once),
    "in turn": (InTurnAAE, InTurn),
}


def build(order: str, config: aae_deterministic.Config, image_shape) -> aae_deterministic.DeterministicAAE:
    """The untrained model; every order starts from the same weights."""
    model_class, same = ORDERS[order][0], aae_deterministic.build(config, image_shape)
    return model_class(same.adversarial_weight, prior=same.prior, seed=config.seed, **same.networks)


def case(order: str, part: Part) -> dict:
    """Train with updates in this order; returns numbers of the test images."""
    own = study.script_config(aae_deterministic, part.config, part.seed)
    model = build(order, own, part.dataset.image_shape)
    batches, _ = image_batches(part.dataset, own)
    part.train(model, own, batches, epochs=part.config.epochs, optimizer=ORDERS[order][1])
    images = test_images(part.dataset, own)
    codes = model.encode(images)
    # These draws have their own seed, so that the two orders are compared with the same prior draws.
    prior_codes = to_numpy(model.prior.sample(len(codes), part.seed))
    accuracy = latent.c2st_accuracy(codes, prior_codes, part.seed)
    return test_terms(model, images) | latent.moments(codes) | {"code_c2st_accuracy": accuracy}


def cases(config: Config, dataset: Dataset) -> dict:
    """A case for each order."""
    return {order: partial(case, order) for order in ORDERS}


def requires(config: Config, dataset: Dataset):
    """Raises RunError on other backends than TensorFlow, or if there are too few training images for a batch."""
    if keras.backend.backend() != "tensorflow":
        raise RunError("the steps in turn need TensorFlow; set KERAS_BACKEND=tensorflow")
    study.require_batch(dataset, aae_deterministic.Config().batch_size)


def no_figures(results: Results, rows: dict) -> dict:
    """No figure: the table has all results."""
    return {}


STUDY = Study("aae.update_order", cases, COLUMNS, no_figures, QUICK, requires)


def main(config: Config = Config()) -> dict:
    """Run the experiment; returns the content of metrics.json."""
    return study.run(STUDY, config)


if __name__ == "__main__":
    run_study(STUDY, Config)
