"""Training a `LatentModel` with `model.fit`: batches, optimiser, history, and causes of an early stop."""

import csv
import itertools
import math
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from common import checkpoint
from common.backend import keep_freed_memory
from common.binarisation import binarise, targets
from common.data import Dataset
from common.files import RunError, append_line, whole
from common.model import even_batch_size
from common.progress import Progress

import keras
import numpy as np

MOST_EPOCHS = 40  # of a script's training, unless --epochs sets more


class Batches(keras.utils.PyDataset):
    """Training images in an order and a binarisation that depend on (seed, epoch) alone, on any backend.

    Every batch has `batch_size` images. The few images that are left over differ from epoch to epoch.
    """

    def __init__(self, images, batch_size: int, binarisation: str, seed: int):
        super().__init__()
        self.images, self.batch_size, self.binarisation, self.seed = images, batch_size, binarisation, seed
        self.shuffle(epoch=0)

    def shuffle(self, epoch: int):
        self.epoch = epoch
        self.order = np.random.default_rng([self.seed, epoch]).permutation(len(self.images))

    def __len__(self):
        return len(self.images) // self.batch_size

    def chosen(self, index) -> np.ndarray:
        """Which images are in a batch: (batch_size,)."""
        return self.order[index * self.batch_size : (index + 1) * self.batch_size]

    def __getitem__(self, index):
        random = np.random.default_rng([self.seed, self.epoch, index])
        return (binarise(self.images[self.chosen(index)], self.binarisation, random),)


def epochs_for(updates: int, images: int, batch_size: int) -> int:
    """The number of passes over `images` images whose steps are nearest to `updates`; at least one pass."""
    return max(1, round(updates / (images // batch_size)))


def planned_epochs(config, images: int) -> int:
    """The length of a script's training: `config.epochs` or, if it is None, `epochs_for` its updates.

    The default is at most MOST_EPOCHS, so that a small data set is not overfitted. An experiment calls `epochs_for`
    itself, without this limit.
    """
    if config.epochs is not None:
        return config.epochs
    return min(MOST_EPOCHS, epochs_for(config.updates, images, config.batch_size))


def require_warm_up(config, epochs: int):
    """Raises RunError if a new run of `epochs` epochs asks for a `WarmUp` that would be none.

    It would be none at warm_up * epochs <= 1. A resumed run may be an older one that began so.
    """
    share = getattr(config, "warm_up", 0.0)
    if config.resume or not 0.0 < share * epochs <= 1.0:
        return
    longer = next(count for count in itertools.count(int(1.0 / share)) if share * count > 1.0)
    larger = f", or --warm-up {(100 // epochs + 1) / 100:g} or more" if epochs > 1 else ""
    raise RunError(
        f"--warm-up {share:g} of {epochs} epoch{'s' * (epochs > 1)} is none: the KL would have its whole weight from "
        f"the start; set --epochs {longer} or more{larger}, or leave --warm-up out"
    )


def per_network(model, optimizers: dict[str, keras.optimizers.Optimizer]) -> keras.optimizers.Optimizer:
    """One optimiser, already built, that updates each network of the model by the optimiser of the same name."""
    network_of = {id(v): name for name, network in model.networks.items() for v in network.trainable_variables}
    optimizer = keras.optimizers.MultiOptimizer(lambda variable: optimizers[network_of[id(variable)]])
    optimizer.build(model.trainable_variables)
    return optimizer


def adam_per_network(model, config, updates: int | None = None) -> keras.optimizers.Optimizer:
    """Adam (arXiv 1412.6980) for each network; its rate is `learning_rate` times the network's own factor.

    With `updates`, the rates fall along half a cosine (arXiv 1608.03983) within that many steps, to `final_rate_factor`
    times their start. Without it, they stay constant. If the config has `discriminator_steps` = k above 1, the other
    networks step once in k steps, by the mean of their gradients.
    """
    adams, steps = {}, getattr(config, "discriminator_steps", 1)
    for name in model.networks:
        every = 1 if name == "discriminator" else steps
        rate = config.learning_rate * getattr(config, f"{name}_rate_factor", 1.0)
        if updates:
            # The length is in updates of T: Keras also counts steps in which gradients are only accumulated.
            rate = keras.optimizers.schedules.CosineDecay(rate, updates, alpha=config.final_rate_factor)
        accumulated = every if every > 1 else None  # 1 is an error in Keras
        adams[name] = keras.optimizers.Adam(rate, beta_1=config.beta_1, gradient_accumulation_steps=accumulated)
    return per_network(model, adams)


def compile_model(model, config, updates: int | None = None, optimizer=adam_per_network):
    """Compile the model with its optimiser, and with XLA where that is faster; let the process keep freed memory."""
    keep_freed_memory()
    # Keras does not use XLA on a CPU under TensorFlow, where it speeds up all models except AVB. PyTorch has no XLA.
    xla = model.faster_with_xla and keras.backend.backend() != "torch"
    model.compile(optimizer(model, config, updates), jit_compile=xla or "auto")


@dataclass
class Outcome:
    """The result of a training. `history` has a list of numbers, one per epoch, for each term, also with `val_`."""

    history: dict[str, list[float]]
    updates: int
    seconds: float
    images: int
    stopped_by: str | None = None

    def made(self) -> dict:
        """The real updates, epochs, images and seconds, and the reason of early stopping, or None."""
        return {
            "updates": self.updates,
            "epochs": len(self.history.get("updates", [])),
            "images": self.images,
            "seconds": round(self.seconds, 1),
            "stopped_by": self.stopped_by,
        }


class History(keras.callbacks.Callback):
    """Keeps every epoch's logs, a dict of numbers, and appends them to a CSV file, one line per epoch.

    `rows` holds the logs of earlier epochs, in a resumed training.
    """

    def __init__(self, path: Path, rows: list[dict[str, float]]):
        super().__init__()
        self.path, self.rows = path, rows
        with whole(path) as partial:
            partial.write_text("".join(f"{line}\n" for line in self.lines()))

    def lines(self) -> list[str]:
        """The header and one line per row; no line if there are no rows."""
        names = [",".join(["epoch", *sorted(row)]) for row in self.rows[:1]]
        return names + [self.line(epoch) for epoch in range(len(self.rows))]

    def line(self, epoch: int) -> str:
        return ",".join(map(str, [epoch, *(self.rows[epoch][name] for name in sorted(self.rows[epoch]))]))

    def on_epoch_end(self, epoch, logs=None):
        self.rows.append({name: float(value) if name != "updates" else value for name, value in logs.items()})
        for line in self.lines() if epoch == 0 else [self.line(epoch)]:
            append_line(self.path, line)

    def columns(self) -> dict[str, list[float]]:
        """A list of numbers, one per epoch, for each name in the logs."""
        return {name: [row[name] for row in self.rows] for name in (self.rows[0] if self.rows else ())}


def read_history(path: Path) -> dict[str, list[float]]:
    """The columns of a history.csv, without "epoch": a list of numbers, one per epoch, for each name in the logs."""
    names, *rows = csv.reader(path.read_text().splitlines()) if path.stat().st_size else [[]]
    columns = zip(*([float(value) for value in row] for row in rows), strict=True)
    return {name: list(column) for name, column in zip(names, columns, strict=False) if name != "epoch"}


class WarmUp(keras.callbacks.Callback):
    """Raises the model's `warm_up_weight` to 1 over a share of the epochs; the weight is constant within each.

    It starts at 1 / (share * epochs), not at 0, and rises by as much each epoch. It is 1 throughout, no warm-up, if
    share * epochs <= 1; `require_warm_up` refuses that.
    """

    def __init__(self, share: float, epochs: int):
        super().__init__()
        self.length = max(1.0, share * epochs)

    def on_epoch_begin(self, epoch, logs=None):
        self.model.warm_up_weight.assign(min(1.0, (epoch + 1.0) / self.length))


class StopOnNonFinite(keras.callbacks.Callback):
    """Stops at the first update whose terms are not finite, and restores the weights of the last good epoch."""

    reason = None

    def __init__(self, updates_before: int = 0):
        super().__init__()
        self.updates = updates_before

    def on_train_begin(self, logs=None):
        self.good_weights = self.model.get_weights()

    def on_train_batch_end(self, batch, logs=None):
        self.updates += 1
        broken = [term for term in self.model.terms if not np.isfinite(float(logs[term]))]
        if broken and not self.reason:
            self.reason = f"the {broken[0]} term was not finite at update {self.updates}"
            self.model.stop_training = True

    def on_epoch_end(self, epoch, logs=None):
        if self.reason:
            return
        weights = self.model.get_weights()
        broken = [name for name, value in logs.items() if not np.isfinite(value)]
        if broken or not all(np.isfinite(weight).all() for weight in weights):
            self.reason = f"{broken[0] if broken else 'a weight'} was not finite after update {self.updates}"
            self.model.stop_training = True
        else:
            self.good_weights = weights

    def on_train_end(self, logs=None):
        if self.reason:
            self.model.set_weights(self.good_weights)


class StopOnInterrupt(keras.callbacks.Callback):
    """Ends the training after the update at which Ctrl-C was pressed; a second Ctrl-C ends the process.

    It sets a flag. An exception could leave the model between two states.
    """

    message = "it was interrupted"
    reason = None

    def on_train_begin(self, logs=None):
        self.in_main_thread = threading.current_thread() is threading.main_thread()  # other threads get no signals
        if self.in_main_thread:
            self.earlier_handler = signal.signal(signal.SIGINT, self.interrupt)

    def interrupt(self, number, frame):
        self.reason = self.message
        signal.signal(signal.SIGINT, self.earlier_handler)

    def on_train_batch_end(self, batch, logs=None):
        if self.reason:
            self.model.stop_training = True

    def on_train_end(self, logs=None):
        if self.in_main_thread:
            signal.signal(signal.SIGINT, self.earlier_handler)


def image_batches(dataset: Dataset, config) -> tuple[Batches, np.ndarray]:
    """The training images in batches, and the validation images, both in the config's binarisation."""
    batches = Batches(dataset.x_train, config.batch_size, config.binarisation, config.seed)
    return batches, targets(dataset.x_val, config, "validation")


def fit(
    model, batches, validation, config, epochs: int, folder: Path, measures=(), optimizer=adam_per_network
) -> Outcome:
    """Train `model` on `batches` for `epochs`; history.csv, one line per epoch, and checkpoints go into `folder`.

    If the folder has a checkpoint, the training resumes from it. It ends with the same bits as an uninterrupted one.

    Args:
        batches: `Batches`, or another PyDataset with `shuffle(epoch)` and `batch_size`.
        validation: the validation images in the form of a batch; None for no validation.
        config: has batch_size, learning_rate, final_rate_factor and beta_1, and may have a rate factor for each
            network, warm_up and tensorboard.
        measures: callbacks that add numbers to an epoch's logs, and so to the history.
        optimizer: a function that makes the optimiser from model, config and the number of updates.
    """
    compile_model(model, config, epochs * len(batches), optimizer)
    begun, content = checkpoint.restore(folder, model)
    if begun:
        print(f"resumes after epoch {begun} of {epochs}", flush=True)
    history = History(folder / "history.csv", content.get("history", []))
    before = history.rows[-1]["seconds"] if begun else 0.0
    progress, interrupt = Progress(epochs, len(batches), begun, before), StopOnInterrupt()
    finite = StopOnNonFinite(progress.updates)
    # This is not in Batches.on_epoch_end, since Keras also calls that before a new model's first epoch.
    order = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: batches.shuffle(epoch))
    callbacks = [order, progress, *measures, finite, interrupt, history, *optional_callbacks(config, epochs, folder)]
    callbacks.append(checkpoint.Checkpoints(folder, epochs, lambda: {"history": history.rows}))
    start = time.perf_counter()
    model.fit(
        batches,
        initial_epoch=begun,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
        **validation_arguments(validation),
    )
    return Outcome(
        history=history.columns(),
        updates=progress.updates,
        seconds=before + time.perf_counter() - start,
        images=progress.updates * batches.batch_size,
        stopped_by=finite.reason or interrupt.reason,
    )


def optional_callbacks(config, epochs: int, folder: Path) -> list[keras.callbacks.Callback]:
    """The callbacks for `warm_up` and `tensorboard`, if the Config has these parameters."""
    callbacks = []
    if getattr(config, "warm_up", 0.0):
        callbacks.append(WarmUp(config.warm_up, epochs))
    if getattr(config, "tensorboard", False):
        callbacks.append(keras.callbacks.TensorBoard(folder / "tensorboard"))
    return callbacks


def validation_arguments(validation) -> dict:
    """The arguments of `model.fit` for the validation images, in batches without a small last one."""
    if validation is None:
        return {}
    count, *shape = keras.tree.flatten(validation)[0].shape
    return {
        "validation_data": (validation,),
        "validation_batch_size": even_batch_size(count, numbers=math.prod(shape)),
    }
