"""What several test files use."""

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
