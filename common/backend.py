"""What Keras leaves to its backends: a gradient, compilation, and how a process keeps its memory."""

import ctypes
import platform

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


def keep_freed_memory():
    """Let this process keep the memory that it frees for what it allocates next, where its C library is glibc.

    TensorFlow's data sets from generators, which feed `model.fit`, have glibc return freed memory at once
    (M_TRIM_THRESHOLD = 128 KiB); as a side effect every array above 128 KiB is mapped anew, zeroed page by page.
    Undone here, since it took a third of a VAE's training and half of AVB's.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    m_top_pad, m_mmap_threshold = -2, -3  # malloc.h
    set_option = ctypes.CDLL(None).mallopt
    set_option(m_top_pad, 256 * 2**20)
    # Before 2.35, glibc takes no more than 32 MiB, and says so by 0.
    set_option(m_mmap_threshold, 2**30) or set_option(m_mmap_threshold, 32 * 2**20)
