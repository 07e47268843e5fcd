"""The two things that Keras leaves to its backends and that an evaluation needs: a gradient, and compilation."""

import keras
from keras import ops


def compiled(function):
    """`function` of tensors, compiled as the backend in use compiles: traced once for each set of shapes."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=True)
    if backend == "jax":
        import jax

        return jax.jit(function)
    return function


def value_and_gradient(function, z):
    """`function(z)`, (n,), and the gradient of each entry with respect to its own row of `z`, (n, d).

    Row i of the result must depend on row i of `z` alone: the gradient taken is that of the sum.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(z)
            value = function(z)
        return value, tape.gradient(value, z)
    if backend == "jax":
        import jax

        value, pull_back = jax.vjp(function, z)
        return value, pull_back(ops.ones_like(value))[0]
    import torch

    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = function(z)
        (gradient,) = torch.autograd.grad(value.sum(), z)
    return value.detach(), gradient
