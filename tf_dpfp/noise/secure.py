"""Gaussian noise from a cryptographic stream, against attacks on its bits.

Bits are the key stream of AES-256 in counter mode, by the `cryptography`
package, with a key and a first counter from the operating system for every
draw: no state is kept, so none can be forked, copied, restored or read
afterwards. They become normals as other noise does, by the Box-Muller transform
in float32, but each number is the sum of four, halved. One float32 normal may
betray its bits; a sum of four has too many ways to come about to be searched.

Python draws the bits, on the CPU: XLA can't compile such a step.

Reference:
    Holohan and Braghin, 2021, arXiv 2107.10138.
"""

import functools
import math
import os
from typing import Any

import numpy as np
import tensorflow as tf

from tf_dpfp import compilation
from tf_dpfp.noise import box_muller

# Normals in each number. Their sum has twice the deviation of one.
_SUMMED = 4
_PIECE = 2**16
_KEY_BYTES, _BLOCK_BYTES = 32, 16


def check_installed() -> None:
    """Checks that the `cryptography` package is there.

    Raises:
        ImportError: If it is not.
    """
    _cipher()


@functools.cache
def _cipher() -> Any:
    try:
        from cryptography.hazmat.primitives import ciphers
        from cryptography.hazmat.primitives.ciphers import algorithms
        from cryptography.hazmat.primitives.ciphers import modes
    except ImportError as error:
        raise ImportError(
            "`secure=True` draws noise from a cryptographic generator of the "
            "`cryptography` package, which is not installed. Install it: "
            "`pip install tf_dpfp[secure]`."
        ) from error
    return lambda key, start: ciphers.Cipher(
        algorithms.AES(key), modes.CTR(start)
    )


def random_words(count: int) -> np.ndarray:
    """Draws int32 words, each pattern of bits equally likely.

    Args:
        count: Number of words.

    Returns:
        An array of shape `(count,)`.
    """
    cipher = _cipher()(os.urandom(_KEY_BYTES), os.urandom(_BLOCK_BYTES))
    stream = cipher.encryptor().update(bytes(4 * int(count)))
    return np.frombuffer(stream, np.int32)


def gaussian(
    shape: tf.TensorShape | list[int], standard_deviation: float | tf.Tensor
) -> tf.Tensor:
    """Draws independent normals of mean zero.

    Args:
        shape: Static shape of the result.
        standard_deviation: Standard deviation of every number.

    Returns:
        float32 tensor of the given shape.

    Raises:
        ValueError: If XLA compiles the step.
    """
    _refuse_xla()
    shape = tf.TensorShape(shape).as_list()
    size = math.prod(shape)
    deviation = tf.cast(standard_deviation, tf.float32)
    # Pieces of one size: one compilation serves them all.
    pieces = [
        _compiled_normals(_bits(_PIECE // 2), deviation)
        for _ in range(size // _PIECE)
    ]
    rest = size % _PIECE
    if rest or not pieces:
        bits = _bits((rest + 1) // 2)
        pieces.append(_summed(box_muller.by_kernels(bits, deviation))[:rest])
    normals = pieces[0] if len(pieces) == 1 else tf.concat(pieces, axis=0)
    return tf.reshape(normals, shape)


def gaussian_like(
    tensor: tf.Tensor, standard_deviation: float | tf.Tensor
) -> tf.Tensor:
    """Draws independent normals in the shape of a tensor, known or not.

    Args:
        tensor: A tensor, of which only the shape is read.
        standard_deviation: Standard deviation of every number.

    Returns:
        float32 tensor of that shape.

    Raises:
        ValueError: If XLA compiles the step.
    """
    _refuse_xla()
    shape = tf.shape(tensor)
    size = tf.reduce_prod(shape)
    deviation = tf.cast(standard_deviation, tf.float32)
    bits = _bits((size + 1) // 2)
    normals = _summed(box_muller.by_kernels(bits, deviation))[:size]
    return tf.ensure_shape(tf.reshape(normals, shape), tensor.shape)


def _refuse_xla() -> None:
    if compilation.target() is compilation.Target.XLA:
        raise ValueError(
            "With `secure=True` Python draws the bits of the noise, and XLA "
            "can't compile that. Compile the model with jit_compile=False; on "
            "a TPU leave `secure` out."
        )


def words(count: int | tf.Tensor, shape: list[Any]) -> tf.Tensor:
    """Draws int32 words, each pattern of bits equally likely.

    Args:
        count: Number of words.
        shape: Shape of the result, of so many.
    """
    found = tf.numpy_function(random_words, [count], tf.int32, stateful=True)
    return tf.reshape(found, shape)


def _bits(half: int | tf.Tensor) -> tf.Tensor:
    """Draws int32 bits of shape `(2, 4 * half)`."""
    return words(2 * _SUMMED * half, [2, _SUMMED * half])


def _summed(pairs: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
    """Adds four by four: the first numbers of the pairs, and the second.

    The two numbers of a pair are never in one sum. Sums are put side by side
    and not what they are of: XLA would take a step of the sum for each number
    and ask each which side it is on, in four times the time.
    """
    sums = [
        tf.reduce_sum(tf.reshape(numbers, [_SUMMED, -1]), axis=0)
        for numbers in pairs
    ]
    return tf.concat(sums, axis=0) * _SUMMED**-0.5


@functools.partial(tf.function, jit_compile=True, autograph=False)
def _compiled_normals(bits: tf.Tensor, deviation: tf.Tensor) -> tf.Tensor:
    return _summed(box_muller.by_polynomials(bits, deviation))
