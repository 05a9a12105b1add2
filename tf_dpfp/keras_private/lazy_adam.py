"""Adam that updates the rows of a table that have a gradient, and no others.

It reads slots of Keras's Adam (`_momentums`, `_velocities`, `_velocity_hats`,
`_get_variable_index`).
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf


class LazyAdam(keras.optimizers.Adam):
    """Adam for gradients that some rows of a table have.

    A gradient of type `tf.IndexedSlices` moves its rows alone. Their averages
    count the steps in which a row had a gradient: a row moves as by Adam on
    these steps, and stays as it is in all others. A dense gradient is Adam's.

    The arguments are those of `keras.optimizers.Adam`.

    Reference:
        - [Adam: a method for stochastic optimization](
          https://arxiv.org/abs/1412.6980), algorithm 1
    """

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Creates the slots.

        Args:
            variables: The trainable variables.
        """
        if self.built:
            return
        super().build(variables)
        self._row_steps = [
            self.add_variable(v.shape[:1], dtype="float32", name="row_steps")
            if len(v.shape) == 2
            else None
            for v in variables
        ]

    def update_step(
        self, gradient: Any, variable: Any, learning_rate: Any
    ) -> None:
        """Updates one variable.

        Args:
            gradient: Dense, or the `tf.IndexedSlices` of different rows.
            variable: The variable.
            learning_rate: The learning rate.
        """
        if not isinstance(gradient, tf.IndexedSlices):
            super().update_step(gradient, variable, learning_rate)
            return
        index = self._get_variable_index(variable)
        rows = gradient.indices
        table = _raw(variable)
        values = tf.cast(gradient.values, table.dtype)

        def of_rows(slot: keras.Variable) -> tf.Tensor:
            return tf.gather(_raw(slot), rows)

        def write(slot: keras.Variable, of_slot: tf.Tensor) -> None:
            _raw(slot).scatter_update(tf.IndexedSlices(of_slot, rows))

        age = of_rows(self._row_steps[index]) + 1.0
        mean = of_rows(self._momentums[index])
        mean += (values - mean) * (1.0 - self.beta_1)
        square = of_rows(self._velocities[index])
        square += (tf.square(values) - square) * (1.0 - self.beta_2)
        write(self._row_steps[index], age)
        write(self._momentums[index], mean)
        write(self._velocities[index], square)
        if self.amsgrad:
            square = tf.maximum(of_rows(self._velocity_hats[index]), square)
            write(self._velocity_hats[index], square)
        rate = tf.sqrt(1.0 - self.beta_2**age) / (1.0 - self.beta_1**age)
        rate = tf.cast(rate, table.dtype) * tf.cast(learning_rate, table.dtype)
        moved = rate[:, None] * mean / (tf.sqrt(square) + self.epsilon)
        table.scatter_sub(tf.IndexedSlices(moved, rows))


def _raw(variable: Any) -> tf.Variable:
    """Returns the variable of TensorFlow behind one of Keras."""
    if isinstance(variable, keras.Variable):
        return variable.value
    return variable
