"""Training speed of every script, beside the usual Keras way and the bare work, in one run.

Run: python benchmarks/step_time.py [--rounds 5] [--updates 100] [--record results/gallery/scripts/speed/record.json]

Prints a table: images per second of each script's training (the step that its `model.fit` runs, default sizes,
MNIST-shaped images, after warm-up), of the usual way to train the deterministic AAE in Keras (compiled
sub-models and three `train_on_batch` calls a batch, as Keras compiles them and with XLA), and of the
bare work of each script: only its matrix products and its optimiser's memory traffic. The contestants take turns,
so that a disturbance hits all of them. Each number is the median over the rounds. Ratios within one table can be
compared, numbers of two tables cannot. With --record, the numbers are also written as a record of the gallery.
"""

import re
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common.files import write_json
from common.run import git_commit
from common.scripts import SCRIPTS, load_script
from common.training import Batches, compile_model
from tools.records import benchmark_record

import keras
import numpy as np
import tyro

IMAGE_SHAPE = (28, 28)
BATCH = 100


@dataclass(frozen=True)
class Config:
    """How long to measure."""

    rounds: int = 5  # turns of each contestant
    updates: int = 100  # updates in a turn
    record: str = ""  # the path of a record.json to write; it needs code that is committed


def build(script: str):
    """A script's model at its defaults, and its Config."""
    module = load_script(script)
    return module.build(module.Config(), IMAGE_SHAPE), module.Config()


def script_turn(script: str, images):
    """A function that trains the script's model for one epoch of `images`, with the script's own step."""
    model, config = build(script)
    compile_model(model, config)
    batches = Batches(images, BATCH, config.binarisation, seed=0)

    def turn():
        # Not `fit`: each call of it compiles the step anew under TensorFlow, which a run of a script does once.
        for index in range(len(batches)):
            model.train_on_batch(*batches[index])

    return turn


def usual_turn(images, jit_compile):
    """The same networks and updates in the usual Keras way: three compiled models that share their layers."""
    model, config = build("aae_deterministic")
    encoder, decoder, discriminator = model.encoder, model.decoder, model.discriminator
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    settings = {"loss": loss, "jit_compile": jit_compile}
    discriminator.compile(keras.optimizers.Adam(config.learning_rate, config.beta_1), **settings)
    pixels = keras.Input(IMAGE_SHAPE)
    autoencoder = keras.Model(pixels, decoder(encoder(pixels)))
    autoencoder.compile(keras.optimizers.Adam(config.learning_rate, config.beta_1), **settings)
    discriminator.trainable = False
    generator = keras.Model(pixels, discriminator(encoder(pixels)))
    generator.compile(keras.optimizers.Adam(config.learning_rate, config.beta_1), **settings)
    random = np.random.default_rng(0)
    labels = np.repeat([[1.0], [0.0]], BATCH, axis=0)

    def turn():
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            autoencoder.train_on_batch(batch, batch)
            codes = encoder.predict_on_batch(batch)
            prior = random.standard_normal(codes.shape, dtype="float32")
            discriminator.trainable = True
            discriminator.train_on_batch(np.concatenate([prior, codes]), labels)
            discriminator.trainable = False
            generator.train_on_batch(batch, np.ones((BATCH, 1)))

    return turn


def passes(name: str, network) -> tuple[int, int, int]:
    """How often an update sends a batch through a network: forwards, gradients of its weights, gradients of its input.

    The discriminator sees the codes once for both players, and once their opposites. A network that starts with the
    pixels needs no gradient of its input.
    """
    times = 2 if name == "discriminator" else 1
    sees_pixels = any(tuple(tensor.shape[1:]) == IMAGE_SHAPE for tensor in network.inputs)
    return times, times, 0 if sees_pixels else 1


def kernels(network) -> list[tuple[int, int, int]]:
    """The matrices of a network as (count, inputs, outputs)."""
    shapes = [weight.shape for weight in network.trainable_weights if len(weight.shape) > 1]
    return [(1, *shape) if len(shape) == 2 else tuple(shape) for shape in shapes]


def bare_turn(script: str, updates: int):
    """Only an update's matrix products, by NumPy's BLAS into existing arrays, and the bytes that Adam has to move."""
    model, _ = build(script)
    random, products = np.random.default_rng(0), []
    for name, network in model.networks.items():
        forwards, weight_gradients, input_gradients = passes(name, network)
        for layer, (count, inputs, outputs) in enumerate(kernels(network)):
            x, w, g = (
                random.standard_normal((count, *shape), dtype="float32")
                for shape in ((BATCH, inputs), (inputs, outputs), (BATCH, outputs))
            )
            pairs = [((x, w), forwards), ((x.mT, g), weight_gradients)]
            pairs.append(((g, w.mT), input_gradients if layer == 0 else weight_gradients))
            for pair, times in pairs:
                products += [(*pair, np.matmul(*pair))] * times
    # Adam reads a weight, its gradient and two moments, and writes three of them: 7 floats, as 3.5 copies.
    halves = [
        np.ones(int(1.75 * sum(network.count_params() for network in model.networks.values())), "float32")
        for _ in range(4)
    ]

    def turn():
        with ThreadPoolExecutor(2) as pool:
            for _ in range(updates):
                for left, right, out in products:
                    np.matmul(left, right, out=out)
                list(pool.map(np.copyto, halves[:2], halves[2:]))

    return turn


def main(config: Config):
    """Measure all contestants in turns and print the table."""
    commit = git_commit() or ""
    if config.record and not re.fullmatch("[0-9a-f]{40}", commit):
        raise SystemExit("a record names the commit that made it; commit your changes, and run again")
    images = np.random.default_rng(0).random((config.updates * BATCH, *IMAGE_SHAPE), dtype="float32")
    usual, usual_xla = "aae_deterministic, the usual way", "aae_deterministic, the usual way with XLA"
    turns = {script: script_turn(script, images) for script in SCRIPTS}
    turns |= {usual: usual_turn(images, "auto"), usual_xla: usual_turn(images, True)}
    turns |= {f"{script}, bare work": bare_turn(script, config.updates) for script in SCRIPTS}
    seconds = {name: [] for name in turns}
    for turn in turns.values():
        turn()
    for number in range(config.rounds):
        for name, turn in turns.items():
            start = time.perf_counter()
            turn()
            seconds[name].append(time.perf_counter() - start)
        print(f"round {number + 1} of {config.rounds}", file=sys.stderr, flush=True)
    rows = measured(seconds, len(images), usual)
    print_table(rows)
    if config.record:
        Path(config.record).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(config.record), record(rows, config, commit))


def measured(seconds: dict[str, list[float]], images: int, usual: str) -> dict[str, dict]:
    """By contestant: images per second, slowest over fastest round, and the two ratios where they make sense."""
    speeds = {name: images / statistics.median(times) for name, times in seconds.items()}
    rows = {}
    for name, speed in speeds.items():
        rows[name] = {"images_per_second": speed, "slowest_over_fastest": max(seconds[name]) / min(seconds[name])}
        if name.startswith("aae_deterministic"):
            rows[name]["times_the_usual_way"] = speed / speeds[usual]
        if name in SCRIPTS:
            rows[name]["times_the_bare_work"] = speed / speeds[f"{name}, bare work"]
    return rows


def record(rows: dict[str, dict], config: Config, commit: str) -> dict:
    """What `tools.records` reads, for the pages. There are no data, and the seeds of weights and images are fixed."""
    command = f"python benchmarks/step_time.py --rounds {config.rounds} --updates {config.updates}"
    return benchmark_record(command, commit, "There are no data: the images are random numbers.", rows)


def print_table(rows: dict[str, dict]):
    """Markdown: images per second, its spread, and the two ratios."""
    print(f"Backend {keras.backend.backend()}, Keras {keras.__version__}, batches of {BATCH}, default sizes.\n")
    print("| | images/s | slowest/fastest round | times the usual way | times the bare work |")
    print("|---|---|---|---|---|")
    for name, row in rows.items():
        ratio = f"{row['times_the_usual_way']:.2f}" if "times_the_usual_way" in row else ""
        share = f"{row['times_the_bare_work']:.2f}" if "times_the_bare_work" in row else ""
        print(f"| {name} | {row['images_per_second']:,.0f} | {row['slowest_over_fastest']:.2f} | {ratio} | {share} |")


if __name__ == "__main__":
    main(tyro.cli(Config))
