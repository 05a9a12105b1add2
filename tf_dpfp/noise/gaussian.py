"""Gaussian noise, fresh for every step, tensor and replica.

Random bits keyed with 64 bits from the operating system, turned into normals
by the Box-Muller transform. Large tensors are drawn by a small function of
its own that XLA compiles, ThreeFry bits and all: on CPU that takes less than
half the time of TensorFlow's sampler. Small ones are drawn by TensorFlow's
kernels from Philox bits, which need no compilation.

Every draw has a key of its own: the base key plus a counter of steps, tensors
and replicas, so no two draws of one process share a stream. The counter is read
and moved on by one operation, so that steps in several threads differ, too. The
base key and the counter live in a variable that no checkpoint sees: a restored
run draws new noise, and noise that was released can't be regenerated from a
checkpoint. A process that is forked takes a key of its own: at its next eager
step, and when a ledger is opened for data. A step that was compiled before
the fork and runs in no `fit`, `train_on_batch` or `sampled_steps` can't.

Neither generator is cryptographic, and float32 normals are rounded normals:
attacks on floating-point noise (Mironov, 2012) are outside the guarantee. For
noise against both, see `noise.secure`.

Reference:
    Box and Muller, 1958; Salmon et al., 2011 (Philox, ThreeFry).
"""

import hashlib
import math
import os
import threading
from collections.abc import Sequence

import tensorflow as tf

from tf_dpfp import compilation
from tf_dpfp.keras_private import variables as keras_variables
from tf_dpfp.noise import box_muller
from tf_dpfp.noise import secure

_PHILOX, _THREEFRY = 1, 2
_TENSOR_BITS, _REPLICA_BITS = 20, 12


class SecureKey:
    """Stands for a key: noise is drawn from a cryptographic stream."""


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
        normals = _fused_normals((size + 1) // 2, deviation, key, 0)
        return tf.reshape(normals[:size], shape)
    if compilation.has_accelerator():
        # One launch, for cores without such a cache.
        half = (size + 1) // 2
        normals = _compiled_normals(half, deviation, key, tf.constant(0))
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


def _fused_normals(half: int, deviation, key, piece) -> tf.Tensor:
    """Draws normals for XLA.

    Each piece of a tensor counts from a multiple of 2^32, far beyond where
    the piece before it ends.
    """
    start = tf.cast(piece, tf.int64) * 2**32
    counter = tf.bitcast(tf.reshape(start, [1]), tf.uint64)
    bits = _bits(half, key, _THREEFRY, counter)
    return tf.concat(box_muller.by_polynomials(bits, deviation), axis=0)


_compiled_normals = tf.function(
    _fused_normals, jit_compile=True, autograph=False
)

_PIECE = 2**16
# The steps in which TensorFlow moves a generator's counter.
_STRIDE = 256


def _read_and_skip(
    state: tf.Variable, least: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns a number and the key; moves the counter on, as one operation.

    `assign_add` and a read are two, and of two threads both may read the later
    count: two steps with the same noise.

    Args:
        state: int64 of shape `(3,)`: two words of a counter, and a key.
        least: The number that is wanted; `None`: the next one.

    Returns:
        A number that no other call returns: the one that is wanted unless it,
        or a greater one, was returned before. And the key.
    """
    copies = getattr(state, "values", None)
    if copies is not None and tf.distribute.in_cross_replica_context():
        if len(copies) > 1:
            raise RuntimeError(
                "Noise belongs to one replica. Draw it inside of "
                f"`strategy.run`. Received: {len(copies)} replicas."
            )
        (state,) = copies
    skipped = tf.constant(1, tf.int64)
    if least is not None:
        # Another thread may move the counter on meanwhile. All numbers that
        # are skipped are of this call, which takes the last of them.
        skipped = tf.maximum(skipped, least + 1 - state[0] // _STRIDE)
    before = tf.raw_ops.RngReadAndSkip(
        resource=state.handle, alg=_PHILOX, delta=tf.cast(skipped, tf.uint64)
    )
    return before[0] // _STRIDE + skipped - 1, before[2]


class _Process:
    """This process, told from the one that it was forked from."""

    token = object()

    @classmethod
    def begin(cls) -> None:
        cls.token = object()


def this_process() -> object:
    """Returns what tells this process from those that it was forked from."""
    return _Process.token


if hasattr(os, "register_at_fork"):  # Not on Windows, which does not fork.
    os.register_at_fork(after_in_child=_Process.begin)


class NoiseSource:
    """Hands out a fresh key for every tensor of every step.

    A plain Python object, so that neither Keras nor `tf.train.Checkpoint`
    tracks the key or the counter.

    Args:
        seed: `None` draws the key from the operating system. An integer makes
            the noise reproducible, and worthless to anyone who must be kept
            from subtracting it: for reproducing a run only.
        may_repeat: With a seed, whether steps that say the same number of steps
            before are one: masks, and no noise.
    """

    def __init__(self, seed: int | None = None, may_repeat: bool = False):
        self.seed = seed
        self._may_repeat = may_repeat
        # None until it is built: two words of a counter, and the key.
        self._state: tf.Variable = None
        self._process: object = None
        self._lock = threading.Lock()

    @property
    def _key(self) -> tf.Tensor:
        return self._state[2]

    def build(self) -> None:
        """Makes the variable; not in the second trace of a function.

        Under a `tf.distribute` strategy, not from inside of a replica either.
        All replicas then have the same key and count, so that each must draw
        with a `replica` of its own in `key_of`.
        """
        with self._lock, keras_variables.made_eagerly():
            if self._state is not None:
                return
            self._process = _Process.token
            # int64, for uint64 variables lack kernels on some devices.
            self._state = tf.Variable(
                [0, 0, self._new_key()],
                dtype=tf.int64,
                trainable=False,
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            )

    def handles(self) -> list[tf.Tensor]:
        """Returns the handles of the variable's copies, one per replica."""
        if self._state is None:
            return []
        return [v.handle for v in getattr(self._state, "values", [self._state])]

    def renew_after_fork(self) -> None:
        """Takes another key in a process that was forked.

        It has a copy of the key and of the counter, and would draw what the
        process draws that it comes from. With a seed nothing changes: its noise
        can be repeated anyway.
        """
        if self._state is None or self._process is _Process.token:
            return
        with self._lock, tf.init_scope():
            if self.seed is None and self._process is not _Process.token:
                self._state.assign([0, 0, self._new_key()])
            self._process = _Process.token

    def _new_key(self) -> int:
        # Hashed, so that seeds next to each other share no keys.
        raw = (
            os.urandom(8)
            if self.seed is None
            else hashlib.sha256(str(self.seed).encode()).digest()[:8]
        )
        return int.from_bytes(raw, "little", signed=True)

    def next_step(self, steps_before: tf.Tensor | None = None) -> tf.Tensor:
        """Returns the base key of one logical step; call it once per step.

        Args:
            steps_before: With a seed, number of steps released before:
                the noise of step `n` is then the same in a resumed run, and
                never that of another step: of two that run at the same time,
                and say the same number, one gets a greater one. Without a
                seed it is ignored, for a restored count would repeat keys.

        Returns:
            int64 scalar to pass to `key_of`.
        """
        self.build()
        self.renew_after_fork()
        if self.seed is None or steps_before is None:
            step, key = _read_and_skip(self._state)
        else:
            step, key = tf.cast(steps_before, tf.int64), self._key
            if not self._may_repeat:
                step, key = _read_and_skip(self._state, step)
        return key + step * 2 ** (_TENSOR_BITS + _REPLICA_BITS)

    @staticmethod
    def key_of(
        step_key: tf.Tensor, tensor: int, replica: tf.Tensor | int = 0
    ) -> tf.Tensor:
        """Returns the key of one tensor's noise on one replica.

        Args:
            step_key: Result of `next_step`.
            tensor: Number of the tensor in the step, below 2^20.
            replica: Number of the replica, below 2^12.

        Returns:
            uint64 scalar.
        """
        if not 0 <= tensor < 2**_TENSOR_BITS:
            raise ValueError(
                f"A step draws noise for at most {2**_TENSOR_BITS} tensors. "
                f"Received: tensor={tensor}"
            )
        offset = tf.cast(replica, tf.int64) * 2**_TENSOR_BITS + tensor
        return tf.bitcast(step_key + offset, tf.uint64)
