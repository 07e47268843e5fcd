"""Does it matter whether the AAE's networks step in turn, as the paper has it, or all at once, as here?

Makhzani et al., arXiv 1511.05644, section 2: on each minibatch a reconstruction update of encoder and decoder,
then an update of the discriminator, then one of the encoder as its opponent, each after the one before. The
scripts of this project take the three gradients at one point and step once. This trains the deterministic AAE
both ways, from the same weights, on the same batches, with the same rates and number of updates, for several
seeds, and evaluates both on the test images.

Run: python -m experiments.update_order [--data mnist.npz] (TensorFlow only: the loop needs a gradient tape).
Leaves metrics.json, a number for each order and seed, in results/update_order/<name>/; what is there is not made again.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import aae_deterministic
from common.adversarial import discriminator_loss, generator_loss
from common.command import run_main
from common.config import PositiveCount, Seed, check
from common.data import Dataset, binarise, load_mnist
from common.evaluation import latent
from common.files import RunError, write_json
from common.measure import test_terms
from common.model import binary_cross_entropy
from common.numbers import flat
from common.training import Batches, compile_model
from experiments.study import claim_folder, each_once, require_images

import keras
import numpy as np

KEYS = ("test_reconstruction_nats", "code_std_min", "code_std_max", "code_mean_norm", "code_c2st_accuracy")


@dataclass(frozen=True)
class Config:
    """Everything else is as in aae_deterministic.py."""

    data: str = "auto"  # auto, mnist, fashion_mnist, sample, or the path of an .npz or .npy file
    epochs: PositiveCount = 5  # passes over the training images
    seeds: tuple[Seed, ...] = (0, 1, 2)  # of weights, order and prior draws
    results: str = "results"  # the folder of all runs
    name: str = ""  # this run's folder below results/update_order/; "default" if empty
    resume: str = ""  # the folder of a run that was stopped: go on with it, and with its parameters


def at_once(model, config):
    """One update as the scripts do it: a single step on the summed loss."""
    compile_model(model, config)
    return model.train_on_batch


def in_turn(model, config):
    """One update as the paper does it: three steps, each of its own Adam, each after the one before."""
    import tensorflow as tf

    def adam(factor=1.0):
        return keras.optimizers.Adam(factor * config.learning_rate, beta_1=config.beta_1)

    encoder, decoder, discriminator = (network.trainable_variables for network in model.networks.values())
    adams = {"autoencoder": adam(), "discriminator": adam(config.discriminator_rate_factor), "generator": adam()}
    adams["autoencoder"].build(encoder + decoder)
    adams["discriminator"].build(discriminator)
    adams["generator"].build(encoder)

    def step(player: str, loss, variables):
        with tf.GradientTape() as tape:
            value = loss()
        adams[player].apply(tape.gradient(value, [variable.value for variable in variables]), variables)

    @tf.function(jit_compile=True)
    def update(x):
        step("autoencoder", lambda: binary_cross_entropy(x, model.decoder(model.encoder(x))), encoder + decoder)
        z = model.encoder(x)
        prior = model.prior_like(z)
        step(
            "discriminator",
            lambda: discriminator_loss(model.discriminator(prior), model.discriminator(z)),
            discriminator,
        )
        step(
            "generator",
            lambda: model.adversarial_weight * generator_loss(model.discriminator(model.encoder(x))),
            encoder,
        )

    return update


def trained_and_measured(order, dataset: Dataset, config) -> dict[str, float]:
    """Train the deterministic AAE with updates of this order; its numbers on the test images."""
    model = aae_deterministic.build(config, dataset.image_shape)
    update = order(model, config)
    batches = Batches(dataset.x_train, config.batch_size, config.binarisation, config.seed)
    for epoch in range(config.epochs):
        batches.shuffle(epoch)
        for index in range(len(batches)):
            update(batches[index][0])
    x_test = binarise(dataset.x_test, config.binarisation, np.random.default_rng(config.seed))
    codes = model.encode(x_test)
    prior_samples = keras.ops.convert_to_numpy(model.prior.sample(len(codes), seed=config.seed))
    accuracy = latent.c2st_accuracy(codes, prior_samples, config.seed)
    return flat(test_terms(model, x_test) | latent.moments(codes) | {"code_c2st_accuracy": accuracy})


def main(config: Config = Config()) -> dict:
    """Train both ways for every seed; returns what metrics.json holds."""
    if keras.backend.backend() != "tensorflow":
        raise RunError("the in-turn loop runs on TensorFlow; set KERAS_BACKEND=tensorflow")
    check(config)
    dataset = load_mnist(config.data)
    settings = aae_deterministic.Config(data=config.data, epochs=config.epochs)
    require_images(dataset, settings.batch_size)
    updates = config.epochs * (len(dataset.x_train) // settings.batch_size)
    folder = Path(config.results) / "update_order" / (config.name or "default")
    claim_folder(folder, "update_order", config, dataset, updates)
    parts = {
        f"{order.__name__}, seed {seed}": partial(
            trained_and_measured, order, dataset, dataclasses.replace(settings, seed=seed)
        )
        for seed in config.seeds
        for order in (at_once, in_turn)
    }
    metrics = {}
    for name, measured in each_once(folder, parts).items():
        metrics |= {f"{name.replace(', seed ', '_seed_')}_{key}": measured[key] for key in KEYS}
    for order in (at_once, in_turn):
        for key in KEYS:
            values = [metrics[f"{order.__name__}_seed_{seed}_{key}"] for seed in config.seeds]
            metrics[f"{order.__name__}_mean_{key}"] = float(np.mean(values))
            metrics[f"{order.__name__}_sd_{key}"] = float(np.std(values, ddof=min(1, len(values) - 1)))
    write_json(folder / "metrics.json", metrics)
    print(folder)
    return metrics


if __name__ == "__main__":
    run_main(main, Config)
