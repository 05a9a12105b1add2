"""A private step by the book: a float64 loop over examples, plain Keras.

Nothing of the package takes part: the loss of an example is what Keras
computes for a batch that holds nothing but that example, the gradient is
automatic differentiation's, clipping and summing are numpy's, and the update
is the plain Keras optimizer's.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf


@contextlib.contextmanager
def double_precision():
    """Everything Keras makes inside computes in float64."""
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        yield
    finally:
        keras.config.set_floatx(before[0])
        keras.config.set_dtype_policy(before[1])


def rows(data: Any, index) -> Any:
    """Rows of a nested batch, floats as float64."""

    def take(leaf):
        if leaf is None:
            return None
        leaf = np.asarray(leaf)[index]
        if leaf.dtype.kind == "f":
            leaf = leaf.astype(np.float64)
        return tf.constant(leaf)

    return keras.tree.map_structure(take, data)


def layer_groups(model: keras.Model) -> list[list[int]]:
    """Trainable variables by the layer whose path is in front of theirs."""
    by_layer: dict[str, list[int]] = {}
    for index, variable in enumerate(model.trainable_variables):
        by_layer.setdefault(variable.path.rsplit("/", 1)[0], []).append(index)
    return list(by_layer.values())


def flat_group(model: keras.Model) -> list[list[int]]:
    return [list(range(len(model.trainable_variables)))]


class Reference:
    """A float64 twin of a model, trained by the loop.

    Args:
        build: Makes the model; called in float64.
        like: The float32 model whose weights the twin starts with.
        optimizer: Makes the plain Keras optimizer.
        groups: The trainable variables that are clipped together.
        l2_norm_clip: The bound, split equally over the groups.
        expected_batch_size: The divisor.
        compile_arguments: Makes what `compile` takes beside the optimizer.
    """

    def __init__(
        self,
        build: Callable[[], keras.Model],
        like: keras.Model,
        optimizer: Callable[[], keras.optimizers.Optimizer],
        groups: Callable[[keras.Model], list[list[int]]],
        l2_norm_clip: float,
        expected_batch_size: float,
        compile_arguments: Callable[[], dict],
    ):
        with double_precision():
            self.model = build()
            self.model.compile(
                optimizer=optimizer(),
                auto_scale_loss=False,
                **compile_arguments(),
            )
        for mine, theirs in zip(
            self.model.variables, like.variables, strict=True
        ):
            mine.assign(theirs.numpy())
        self._groups = groups(self.model)
        self._threshold = l2_norm_clip / np.sqrt(len(self._groups))
        self._expected_batch_size = expected_batch_size
        self._loss_and_gradients = tf.function(
            self._of_one, autograph=False, reduce_retracing=True
        )

    def _of_one(self, x, y, sample_weight):
        values = [v.value for v in self.model.trainable_variables]
        with tf.GradientTape(persistent=True) as tape:
            y_pred = self.model(x, training=True)
            loss = self.model.compute_loss(
                x=x, y=y, y_pred=y_pred, sample_weight=sample_weight
            )
            penalties = [tf.zeros([], tf.float64), *self.model.losses]
            penalty = tf.add_n([tf.cast(p, tf.float64) for p in penalties])
            data_loss = tf.cast(loss, tf.float64) - penalty

        def gradients(target):
            found = tape.gradient(
                target,
                values,
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )
            # An embedding's comes as slices.
            return [tf.convert_to_tensor(g) for g in found]

        return gradients(data_loss), gradients(penalty)

    def clipped_sum(self, x, y, sample_weight=None):
        """The clipped sum of a batch, and the regularisers' gradient."""
        with double_precision():
            shapes = [v.shape for v in self.model.trainable_variables]
            total = [np.zeros(shape) for shape in shapes]
            extra = None
            for i in range(len(keras.tree.flatten(x)[0])):
                one = rows((x, y, sample_weight), slice(i, i + 1))
                gradients, penalties = self._loss_and_gradients(*one)
                gradients = [g.numpy() for g in gradients]
                extra = [g.numpy() for g in penalties]
                for group in self._groups:
                    norm = np.sqrt(
                        sum(np.sum(gradients[k] ** 2) for k in group)
                    )
                    factor = min(1.0, self._threshold / norm) if norm else 1.0
                    for k in group:
                        total[k] += factor * gradients[k]
            return total, extra

    def step(self, x, y, sample_weight=None) -> None:
        """One update."""
        total, extra = self.clipped_sum(x, y, sample_weight)
        gradients = [
            tf.constant(t / self._expected_batch_size + e)
            for t, e in zip(total, extra, strict=True)
        ]
        with double_precision():
            self.model.optimizer.apply(
                gradients, self.model.trainable_variables
            )

    def assert_weights_equal(self, model: keras.Model, atol=2e-5) -> None:
        """Compares the twin's weights with a model's."""
        for mine, theirs in zip(
            self.model.trainable_variables,
            model.trainable_variables,
            strict=True,
        ):
            np.testing.assert_allclose(
                theirs.numpy(),
                mine.numpy(),
                atol=atol,
                rtol=2e-4,
                err_msg=theirs.path,
            )
