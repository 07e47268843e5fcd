"""What several test files use."""

import json

from common import checkpoint
from common.model import LatentModel, to_numpy

import keras
from keras import ops

BACKEND = keras.backend.backend()


def gradients(loss, variables):
    """d loss() / d variable for each variable, as arrays, on the backend in use; zero where none flows."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value = loss()
        found = tape.gradient(value, [variable.value for variable in variables], unconnected_gradients="zero")
    elif BACKEND == "jax":
        import jax

        def loss_of(values):
            with keras.StatelessScope(state_mapping=zip(variables, values, strict=True)):
                return loss()

        found = jax.jit(jax.grad(loss_of))([variable.value for variable in variables])
    else:
        import torch

        values = [variable.value for variable in variables]
        found = torch.autograd.grad(loss(), values, allow_unused=True)
        found = [ops.zeros_like(v) if g is None else g for g, v in zip(found, values, strict=True)]
    return [to_numpy(gradient) for gradient in found]


def compile_nothing(patch):
    """Models run eagerly while `patch`, a monkeypatch, lasts: compiling takes longer than a few updates.

    Not on JAX, where eager updates take minutes.
    """
    if BACKEND != "jax":
        patch.setattr(LatentModel, "compile", lambda self, adam, **_: keras.Model.compile(self, adam, run_eagerly=True))


class Killed(BaseException):
    """As a signal that no one handles, but for this one process."""


def kill_after_checkpoint(patch, epochs: int):
    """While `patch`, a monkeypatch, lasts, a training is killed where it would write the checkpoint after the next."""
    save = checkpoint.save

    def killed(path, model, number, content):
        if number > epochs:
            raise Killed
        save(path, model, number, content)

    patch.setattr(checkpoint, "save", killed)


def runs_in(folder) -> dict:
    """runs.json of an experiment's folder, without the seconds."""
    runs = json.loads((folder / "runs.json").read_text())
    return {name: {key: value for key, value in run.items() if key != "seconds"} for name, run in runs.items()}
