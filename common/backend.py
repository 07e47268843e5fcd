"""Functions that differ between Keras' backends: gradients and compilation; and how a process keeps freed memory."""

import ctypes
import platform

import keras
from keras import ops


def compiled(function):
    """`function` of tensors, compiled by the backend in use; it is traced once for each set of shapes."""
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

    Row i of the result must depend on row i of `z` alone, since this computes the gradient of the sum.
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
    """Make this process keep the memory that it frees and use it again, where its C library is glibc.

    `model.fit` reads from TensorFlow data sets made of generators. They make glibc return freed memory at once
    (M_TRIM_THRESHOLD = 128 KiB). As a side effect, every array above 128 KiB is mapped again and zeroed page by page.
    This took a third of a VAE's training and half of AVB's, so this function undoes it.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    m_top_pad, m_mmap_threshold = -2, -3  # malloc.h
    set_option = ctypes.CDLL(None).mallopt
    set_option(m_top_pad, 256 * 2**20)
    # glibc before 2.35 accepts at most 32 MiB, and returns 0 for a larger number.
    set_option(m_mmap_threshold, 2**30) or set_option(m_mmap_threshold, 32 * 2**20)
