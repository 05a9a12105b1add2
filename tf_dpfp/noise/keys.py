"""Keys of noise, fresh for every step, tensor and replica.

A key is the base key of its source, of 64 bits from the operating system, plus
a counter of steps, tensors and replicas, so no two draws of one process share a
stream. The counter is read and moved on by one operation, so that steps in
several threads differ, too. The base key and the counter live in a variable
that no checkpoint sees: a restored run draws new noise, and noise that was
released can't be regenerated from a checkpoint. A process that is forked takes
a key of its own: at its next eager step, and when a ledger is opened for data.
A step that was compiled before the fork and runs in no `fit`, `train_on_batch`
or `sampled_steps` can't.
"""

import hashlib
import os
import threading

import tensorflow as tf

from tf_dpfp.keras_private import variables as keras_variables

_PHILOX = 1
_TENSOR_BITS, _REPLICA_BITS = 20, 12
# The steps in which TensorFlow moves a generator's counter.
_STRIDE = 256


class SecureKey:
    """Stands for a key: noise is drawn from a cryptographic stream."""


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
