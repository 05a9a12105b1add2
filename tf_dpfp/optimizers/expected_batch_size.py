"""The expected batch size, as optimizer state: divisor of the noised sums."""

import math
from typing import Any

import keras
import tensorflow as tf

from tf_dpfp import arguments


class ExpectedBatchSize:
    """Keeps the expected batch size, in one optimizer variable.

    It is a public number, given by the user or taken from a pipeline, and
    never the size of a batch that was drawn.

    Args:
        optimizer: The optimizer that owns the variable.
        given: The size that the user gave, or `None`.
    """

    def __init__(self, optimizer: Any, given: float | None):
        self._given = given
        self._is_known = given is not None
        self._variable = optimizer.add_variable(
            shape=(),
            initializer=keras.initializers.Constant(given or 0),
            dtype="float32",
            aggregation="only_first_replica",
            name="expected_batch_size",
        )

    def tensor(self) -> tf.Tensor:
        """Reads the size in a graph, a float32 scalar."""
        return tf.convert_to_tensor(self._variable.value)

    def number(self) -> float | None:
        """Reads the size from the device; `None` while unknown."""
        with tf.init_scope():  # Also while a step is traced.
            value = float(self._variable.numpy())
        return value if value > 0 else None

    def require(self) -> float:
        """Reads the size from the device.

        Raises:
            ValueError: If it is not known.
        """
        size = self.number()
        if size is None:
            raise ValueError(
                "The expected batch size is not known. Give the optimizer "
                "`expected_batch_size=`."
            )
        return size

    def check_known(self) -> None:
        """Raises if the size is not known; reads the device if need be."""
        if not self._is_known:
            self.require()

    def take(self, size: float, source: str) -> None:
        """Takes the size from a pipeline.

        Args:
            size: The size.
            source: Name of the pipeline, for the message.

        Raises:
            ValueError: If the user gave another size.
        """
        size = arguments.number("expected_batch_size", size, above=0.0)
        given = self._given
        if given is not None and not math.isclose(given, size, rel_tol=1e-6):
            raise ValueError(
                f"The optimizer was given expected_batch_size={given:g}, "
                f"but {source} has {size:g}. Leave the argument out, or make "
                "the two agree."
            )
        self._variable.assign(size)
        self._is_known = True

    def keep_given(self) -> None:
        """Undoes a restore where the user gave the size."""
        if self._given is not None:
            self._variable.assign(self._given)
