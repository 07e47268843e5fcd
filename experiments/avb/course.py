"""Trainings on a single batch that is repeated, and measurements during a training."""

import json
from collections.abc import Callable
from pathlib import Path

from common.files import write_json
from common.model import LatentModel
from common.run import one_line_errors

import keras
import numpy as np

UPDATES_A_RECORD = 100  # updates per epoch


class Repeated(keras.utils.PyDataset):
    """The same batch in all UPDATES_A_RECORD updates of an epoch: only the model's noise is random."""

    def __init__(self, batch: np.ndarray):
        super().__init__()
        self.batch, self.batch_size = batch, len(batch)

    def shuffle(self, epoch: int):
        """Do nothing, since a single batch has one order."""

    def __len__(self):
        return UPDATES_A_RECORD

    def __getitem__(self, index):
        return (self.batch,)


def epochs_of(config) -> int:
    """The number of epochs of `Repeated`: whole hundreds of updates."""
    return config.updates // UPDATES_A_RECORD


class Course(keras.callbacks.Callback):
    """Measures a training by `Repeated` after every `step` epochs, and after the last epoch.

    `measure(model)` returns a dict of finite numbers, or of lists of them. They go into course.json in `folder` at
    once, so that a resumed training has the earlier measurements. Raises RunError if that file is damaged.
    """

    def __init__(self, folder: Path, epochs: int, step: int, measure: Callable[[LatentModel], dict]):
        super().__init__()
        self.path, self.epochs, self.step, self.measure = folder / "course.json", epochs, step, measure
        self.points = []
        if self.path.is_file():
            with one_line_errors(folder):
                self.points = [
                    point | {"updates": int(point["updates"])} for point in json.loads(self.path.read_text())
                ]

    def on_epoch_begin(self, epoch, logs=None):
        # A resumed training repeats the measurements after its checkpoint.
        self.points = [point for point in self.points if point["updates"] <= UPDATES_A_RECORD * epoch]

    def on_epoch_end(self, epoch, logs=None):
        due = (epoch + 1) % self.step == 0 or epoch + 1 == self.epochs
        if not due or self.model.stop_training:
            return
        numbers = self.measure(self.model)
        if all(np.isfinite(number).all() for number in numbers.values()):
            self.points.append({"updates": UPDATES_A_RECORD * (epoch + 1)} | numbers)
            write_json(self.path, self.points)

    def columns(self) -> dict[str, list]:
        """A list for each number, with one entry per measurement; empty without measurements."""
        return {key: [point[key] for point in self.points] for key in (self.points[0] if self.points else ())}
