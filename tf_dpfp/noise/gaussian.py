"""Gaussian noise of a key.

Random bits keyed with 64 bits from the operating system, turned into normals
by the Box-Muller transform. Large tensors are drawn by a small function of
its own that XLA compiles, ThreeFry bits and all: on CPU that takes less than
half the time of TensorFlow's sampler. Small ones are drawn by TensorFlow's
kernels from Philox bits, which need no compilation.

Every draw has a key of its own (`noise/keys.py`).

Neither generator is cryptographic, and float32 normals are rounded normals:
attacks on floating-point noise (Mironov, 2012) are outside the guarantee. For
noise against both, see `noise.secure`.

Reference:
    Box and Muller, 1958; Salmon et al., 2011 (Philox, ThreeFry).
"""

import itertools
import math
from collections.abc import Iterator, Sequence

import tensorflow as tf

from tf_dpfp import compilation
from tf_dpfp.noise import box_muller
from tf_dpfp.noise import secure
from tf_dpfp.noise.keys import SecureKey

_PHILOX, _THREEFRY = 1, 2


def gaussian(
    shape: tf.TensorShape | list[int],
    standard_deviation: float | tf.Tensor,
    key: tf.Tensor | SecureKey,
) -> tf.Tensor:
    """Draws independent normals of mean zero.

    Args:
        shape: Static shape of the result.
        standard_deviation: Standard deviation of every number.
        key: uint64 scalar. Equal keys give equal numbers. Or a `SecureKey`:
            see `noise.secure`.

    Returns:
        float32 tensor of the given shape.
    """
    if isinstance(key, SecureKey):
        return secure.gaussian(shape, standard_deviation)
    shape = tf.TensorShape(shape).as_list()
    size = math.prod(shape)
    deviation = tf.cast(standard_deviation, tf.float32)
    if compilation.target() is compilation.Target.XLA:
        normals = _fused_normals(_half(size), deviation, key, 0)
        return tf.reshape(normals[:size], shape)
    if compilation.has_accelerator():
        # One launch, for cores without such a cache.
        normals = _compiled_normals(_half(size), deviation, key, tf.constant(0))
        return tf.reshape(normals[:size], shape)
    # Pieces of one size: one compilation serves them all, and each stays in
    # the cache of a core.
    pieces = [
        _compiled_normals(_PIECE // 2, deviation, key, tf.constant(piece))
        for piece in range(size // _PIECE)
    ]
    rest = size % _PIECE
    if rest or not pieces:
        pieces.append(_kernel_normals((rest + 1) // 2, deviation, key)[:rest])
    normals = pieces[0] if len(pieces) == 1 else tf.concat(pieces, axis=0)
    return tf.reshape(normals, shape)


def gaussian_like(
    tensor: tf.Tensor,
    standard_deviation: float | tf.Tensor,
    key: tf.Tensor | SecureKey,
) -> tf.Tensor:
    """Draws independent normals in the shape of a tensor, known or not.

    Args:
        tensor: A tensor, of which only the shape is read.
        standard_deviation: Standard deviation of every number.
        key: uint64 scalar. Equal keys give equal numbers. Or a `SecureKey`.

    Returns:
        float32 tensor of that shape.
    """
    if tensor.shape.is_fully_defined():
        return gaussian(tensor.shape, standard_deviation, key)
    if isinstance(key, SecureKey):
        return secure.gaussian_like(tensor, standard_deviation)
    shape = tf.shape(tensor)
    size = tf.reduce_prod(shape)
    deviation = tf.cast(standard_deviation, tf.float32)
    normals = _kernel_normals((size + 1) // 2, deviation, key)[:size]
    return tf.ensure_shape(tf.reshape(normals, shape), tensor.shape)


def noised(total: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
    """Adds noise in its own precision, whatever that of the total.

    Noise is a float32 number: it ends at some digit, and would leave those of
    a float64 total behind it as they are. They tell totals apart that differ in
    one example.

    Args:
        total: What is released; private.
        noise: Noise of the same shape, float32.

    Returns:
        The sum, of the type of the total and with the digits of float32.
    """
    if total.dtype.size > noise.dtype.size:
        # Beyond all float32 numbers it would be infinite, whatever the noise;
        # limits move no two totals further apart.
        total = tf.clip_by_value(total, noise.dtype.min, noise.dtype.max)
    return tf.cast(tf.cast(total, noise.dtype) + noise, total.dtype)


def add_gaussians(
    totals: Sequence[tf.Tensor],
    standard_deviations: Sequence[float | tf.Tensor],
    key: tf.Tensor | SecureKey,
) -> list[tf.Tensor]:
    """Adds independent normals of mean zero to tensors, all of one draw.

    Args:
        totals: What is released; private. Of static shapes.
        standard_deviations: The standard deviation of each one's noise.
        key: As in `gaussian`.

    Returns:
        The sums, as `noised` returns them.
    """
    in_pairs = compilation.target() is compilation.Target.XLA
    if in_pairs and not isinstance(key, SecureKey):
        return list(_added_by_halves(totals, standard_deviations, key))
    shapes = [total.shape for total in totals]
    if len(totals) == 1:
        noises = [gaussian(shapes[0], standard_deviations[0], key)]
    else:
        noises = gaussians(shapes, standard_deviations, key)
    return [noised(*pair) for pair in zip(totals, noises, strict=True)]


def _added_by_halves(
    totals: Sequence[tf.Tensor],
    standard_deviations: Sequence[float | tf.Tensor],
    key: tf.Tensor,
) -> Iterator[tf.Tensor]:
    """Adds to each tensor its numbers of the first or of the second half.

    If both halves were one row of normals, the tensor in which they meet would
    ask for each number which of the two to compute: that takes a CPU four times
    as long.
    """
    lengths = [total.shape.num_elements() for total in totals]
    half = _half(sum(lengths))
    ends = list(itertools.accumulate(lengths))
    firsts = [
        min(length, max(half - end + length, 0))
        for length, end in zip(lengths, ends, strict=True)
    ]
    seconds = [a - b for a, b in zip(lengths, firsts, strict=True)]
    pairs = _fused_pairs(half, 1.0, key, 0)
    parts = zip(
        *(
            # The last part is what nobody needs.
            tf.split(normals, [*sizes, half - sum(sizes)])[:-1]
            for normals, sizes in zip(pairs, (firsts, seconds), strict=True)
        ),
        strict=True,
    )
    for total, length, first, given, (one, other) in zip(
        totals, lengths, firsts, standard_deviations, parts, strict=True
    ):
        deviation = tf.cast(given, tf.float32)
        if first in (0, length):
            noise = (one if first else other) * deviation
            yield noised(total, tf.reshape(noise, total.shape))
            continue
        flat = tf.reshape(total, [length])
        sums = [
            noised(flat[:first], one * deviation),
            noised(flat[first:], other * deviation),
        ]
        yield tf.reshape(tf.concat(sums, axis=0), total.shape)


def gaussians(
    shapes: Sequence[tf.TensorShape | list[int]],
    standard_deviations: Sequence[float | tf.Tensor],
    key: tf.Tensor | SecureKey,
) -> list[tf.Tensor]:
    """Draws independent normals of mean zero for several tensors at once.

    For many small tensors: a draw takes two dozen operations, however few
    numbers it gives.

    Args:
        shapes: Static shape of each result.
        standard_deviations: The standard deviation of each.
        key: As in `gaussian`.

    Returns:
        float32 tensors of the given shapes.
    """
    shapes = [tf.TensorShape(shape).as_list() for shape in shapes]
    sizes = [math.prod(shape) for shape in shapes]
    normals = gaussian([sum(sizes)], 1.0, key)
    return [
        tf.reshape(part * tf.cast(deviation, tf.float32), shape)
        for part, deviation, shape in zip(
            tf.split(normals, sizes), standard_deviations, shapes, strict=True
        )
    ]


def _bits(
    half: int | tf.Tensor, key: tf.Tensor, algorithm: int, counter
) -> tf.Tensor:
    """Draws int32 bits of shape `(2, half)`."""
    return tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=[2, half],
        key=tf.reshape(key, [1]),
        counter=counter,
        alg=algorithm,
        dtype=tf.int32,
    )


def _kernel_normals(half: int | tf.Tensor, deviation, key) -> tf.Tensor:
    bits = _bits(half, key, _PHILOX, tf.zeros([2], tf.uint64))
    return tf.concat(box_muller.by_kernels(bits, deviation), axis=0)


def _half(size: int) -> int:
    """Returns how many pairs of normals XLA draws for so many numbers.

    XLA takes six times as long for rows of odd length.
    """
    pairs = (size + 1) // 2
    return pairs + -pairs % _ROW


def _fused_pairs(
    half: int, deviation, key, piece
) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws pairs of normals for XLA.

    Each piece of a tensor counts from a multiple of 2^32, far beyond where
    the piece before it ends.
    """
    start = tf.cast(piece, tf.int64) * 2**32
    counter = tf.bitcast(tf.reshape(start, [1]), tf.uint64)
    bits = _bits(half, key, _THREEFRY, counter)
    return box_muller.by_polynomials(bits, deviation)


def _fused_normals(half: int, deviation, key, piece) -> tf.Tensor:
    return tf.concat(_fused_pairs(half, deviation, key, piece), axis=0)


_compiled_normals = tf.function(
    _fused_normals, jit_compile=True, autograph=False
)

_PIECE = 2**16
# Rows for XLA are of a multiple of this length.
_ROW = 8
