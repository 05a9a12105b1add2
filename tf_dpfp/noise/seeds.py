"""Secret seeds of random layers, fresh in every private step.

A dropout mask hangs on the row of its example. Whoever knows the masks sees
that an example left out moves all later rows to other masks, by much more than
the clip norm. So seeds of masks are as secret as the key of the noise, and are
kept where it is kept: in a variable that no file sees.
"""

import hashlib

import tensorflow as tf

from tf_dpfp.noise.keys import NoiseSource

_PHILOX = 1


def mixed(seed: int, name: str) -> int:
    """Makes another seed of a seed, one for each name.

    Args:
        seed: The seed.
        name: Name of the purpose.
    """
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


class PassSeeds:
    """Draws the seeds of one forward pass; call it for the next one.

    Args:
        source: The source of keys.
        steps_before: Number of steps before, if the source has a seed.
        piece: Number of the micro-batch in its step.
    """

    def __init__(
        self,
        source: NoiseSource,
        steps_before: tf.Tensor | None,
        piece: tf.Tensor | int,
    ):
        self._source = source
        self._steps_before = steps_before
        self._piece = piece
        self._graph = _current_graph()
        self._key: tf.Tensor = None
        self._count = 0

    def __call__(self) -> tf.Tensor:
        """Draws a seed, int64 of shape `(2,)`."""
        self._count += 1
        if _current_graph() is not self._graph:
            # In a loop or a function, which may run more than once. With a
            # seed the number of steps would not tell its runs apart.
            return _seed(self._source.next_step(), self._count, -1)
        if self._key is None:
            self._key = self._source.next_step(self._steps_before)
        return _seed(self._key, self._count, self._piece)


def _current_graph() -> tf.Graph | None:
    if tf.executing_eagerly():
        return None
    return tf.compat.v1.get_default_graph()


def _seed(key: tf.Tensor, count: int, piece: tf.Tensor | int) -> tf.Tensor:
    context = tf.distribute.get_replica_context()
    replica = 0 if context is None else context.replica_id_in_sync_group
    if tf.is_tensor(replica):
        # As a number: the tensor says by its name what a model may not use.
        known = tf.get_static_value(replica)
        replica = replica if known is None else int(known)
    words = tf.stack([tf.constant(count, tf.int64), tf.cast(piece, tf.int64)])
    bits = tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=[2],
        key=tf.reshape(NoiseSource.key_of(key, 0, replica), [1]),
        counter=tf.bitcast(words, tf.uint64),
        alg=_PHILOX,
        dtype=tf.int32,
    )
    return tf.cast(bits, tf.int64)


class LayerSeeds:
    """Source of the seeds of a model's random layers.

    Args:
        seed: `None` takes the key from the operating system. An integer makes
            the seeds reproducible, and masks known to whoever knows it.
    """

    def __init__(self, seed: int | None = None):
        self._source = NoiseSource(
            None if seed is None else mixed(seed, "random layers"),
            may_repeat=True,
        )

    def build(self) -> None:
        """Makes the variable, under the strategy of the model."""
        self._source.build()

    def renew_after_fork(self) -> None:
        """Takes another key in a process that was forked."""
        self._source.renew_after_fork()

    def of_pass(
        self,
        piece: tf.Tensor | int = 0,
        steps_before: tf.Tensor | None = None,
    ) -> PassSeeds:
        """Returns the seeds of one forward pass.

        Args:
            piece: Number of the micro-batch in its step.
            steps_before: With a seed, number of steps released before: a
                resumed run then has the masks of one that was never stopped.
        """
        return PassSeeds(self._source, steps_before, piece)

    def handles(self) -> list[tf.Tensor]:
        """Returns the handles of the variable's copies, for a proof."""
        return self._source.handles()
