"""Averages of the weights over steps: post-processing of what was released."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_dpfp import arguments
from tf_dpfp.mechanisms import state as state_lib

_STEPS = "steps"


class WeightAveraging(keras.callbacks.Callback):
    """Averages a model's weights over the steps of its training.

    Noise in the weights of single steps is averaged away. The averages are
    computed of the weights after every step, which a private training releases
    anyway: they cost no privacy. They take the weights' place in validation,
    for callbacks at the end of an epoch that follow this one, in
    `PrivateEvaluation`, and when the training ends. Meanwhile the training
    goes on from weights that are not averaged; so does the next `fit` with the
    same callback.

    Only trainable weights are averaged: no statistics, clip norms or ledger.
    Averages begin anew with another model, other weights or other layers
    frozen, and after a `fit` that broke off within an epoch.

    Beside `use_ema=True` of an optimizer and `keras.callbacks.SwapEMAWeights`,
    it warms up, can take the mean of the last epochs, needs no variables in
    the optimizer, and keeps the weights that the training goes on from.

    Example:

    ```python
    model.fit(batches, epochs=10, validation_data=(x, y),
              callbacks=[tf_dpfp.recipes.WeightAveraging(0.999)])
    ```

    Args:
        decay: Weight of the average before a step, in (0, 1): exponential
            averaging. `None` for the mean of all steps from `start_epoch` on
            (tail averaging).
        warm_up: Boolean. If true, the decay of step t, from 0 on, is at most
            `(1 + t) / (10 + t)`, so that the first weights are forgotten soon.
        start_epoch: Number of the epoch, from 0 on, at whose begin averaging
            starts. Before, the weights stay as they are.

    Raises:
        ValueError: If an argument is out of its range; at the start of the
            training, if the optimizer or another callback averages weights.

    Reference:
        - De et al., 2022, arXiv 2204.13650 (section 3.5).
        - Polyak and Juditsky, 1992, "Acceleration of Stochastic Approximation
            by Averaging".
    """

    def __init__(
        self,
        decay: float | None = 0.999,
        warm_up: bool = True,
        start_epoch: int = 0,
    ):
        super().__init__()
        if decay is not None:
            decay = arguments.number("decay", decay, above=0.0, below=1.0)
        self.decay = decay
        self.warm_up = arguments.boolean("warm_up", warm_up)
        self.start_epoch = arguments.integer(
            "start_epoch", start_epoch, least=0
        )
        self._averages: list[tf.Variable] = []
        # The weights that they are of.
        self._weights: list[keras.Variable] = []
        self._steps = 0
        # While the averages are in the model: the weights of the training.
        self._live: list[np.ndarray] | None = None
        # True while a test has brought them there.
        self._of_test = False
        self._batch = 0
        self._restored: Mapping[str, np.ndarray] | None = None
        self._update: Any = None

    @property
    def steps(self) -> int:
        """Number of steps that the averages are made of."""
        return self._steps

    def on_train_begin(self, logs=None):  # noqa: ARG002
        optimizer = self.model.optimizer
        if getattr(optimizer, "use_ema", False):
            raise ValueError(
                "The optimizer averages the weights itself, and puts its "
                "averages in their place when `fit` ends. Compile the model "
                "with use_ema=False, or leave WeightAveraging out. Received: "
                "use_ema=True"
            )
        if state_lib.is_private(self.model):
            state = state_lib.state_of(self.model)
            if state.averaging not in (None, self):
                raise ValueError(
                    "Two WeightAveraging callbacks would take each other's "
                    "averages for the weights of the training. Keep one of "
                    f"them. Received: decay={state.averaging.decay} and "
                    f"decay={self.decay}"
                )
            state.averaging = self
        self._of_test = False
        if not self._are_in_place():
            # Of another model or of other weights, or a training broke off and
            # nobody knows: what they hold is not counted for this one.
            self.reset()

    def on_epoch_begin(self, epoch, logs=None):  # noqa: ARG002
        self._swap_out()
        self._batch = 0
        if state_lib.is_private(self.model):
            state = state_lib.state_of(self.model)
            self._restored = state.averages or self._restored
            state.averages = None
        if self._restored is not None:
            self._restore(self._restored)
            self._restored = None
        if not _are_same(self._weights, self.model.trainable_variables):
            # Layers were frozen, or are trained again.
            self.reset()
        if epoch >= self.start_epoch and not self._averages:
            self._start()

    def on_train_batch_end(self, batch, logs=None):  # noqa: ARG002
        steps, self._batch = batch + 1 - self._batch, batch + 1
        if not self._averages:
            return
        keep = 1.0
        for _ in range(steps):
            keep *= self._kept()
            self._steps += 1
        self._update(tf.constant(keep, tf.float32))

    def _kept(self) -> float:
        """Returns the weight of the average before the next step."""
        if self.decay is None:
            return self._steps / (self._steps + 1.0)
        if not self.warm_up:
            return self.decay
        return min(self.decay, (1.0 + self._steps) / (10.0 + self._steps))

    def on_epoch_end(self, epoch, logs=None):  # noqa: ARG002
        self._swap_in()

    def on_test_begin(self, logs=None):  # noqa: ARG002
        if self._live is None:
            self._swap_in()
            self._of_test = True

    def on_test_end(self, logs=None):  # noqa: ARG002
        if self._of_test:
            self._swap_out()
            self._of_test = False

    def on_train_end(self, logs=None):  # noqa: ARG002
        self._swap_in()

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Opens a context in which the model has the averaged weights."""
        swapped = self._live is None
        self._swap_in()
        try:
            yield
        finally:
            if swapped:
                self._swap_out()

    @contextlib.contextmanager
    def live(self) -> Iterator[None]:
        """Opens a context in which the model has weights not averaged."""
        swapped = self._live is not None
        self._swap_out()
        try:
            yield
        finally:
            if swapped:
                self._swap_in()

    def reset(self) -> None:
        """Forgets all averages; the model keeps the weights that it has."""
        self._averages, self._weights = [], []
        self._steps, self._live = 0, None

    def get_state(self) -> dict[str, np.ndarray]:
        """Returns the averages, for a checkpoint of your own.

        `tf_dpfp.BackupAndRestore` saves and restores them by itself.

        Returns:
            Arrays by name; only the name of their number before the start.
        """
        found = {_STEPS: np.asarray(self._steps, np.int64)}
        for index, average in enumerate(self._averages):
            found[str(index)] = average.numpy()
        return found

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Restores averages when the next epoch begins.

        Args:
            state: Result of `get_state`.
        """
        self._restored = dict(state)

    def _restore(self, state: Mapping[str, np.ndarray]) -> None:
        arrays = [state[str(index)] for index in range(len(state) - 1)]
        self.reset()
        if not arrays:
            return
        shapes = [tuple(v.shape) for v in self.model.trainable_variables]
        if shapes != [array.shape for array in arrays]:
            raise ValueError(
                "The averages do not fit the trainable weights of model "
                f"'{self.model.name}'. Restore them into the model that they "
                f"were saved for. Received: shapes {[a.shape for a in arrays]}"
            )
        self._start(arrays)
        self._steps = int(state[_STEPS])

    def _start(self, values: Sequence[np.ndarray] | None = None) -> None:
        """Makes the averages, of the weights as they are now."""
        weights = self._weights = list(self.model.trainable_variables)
        if values is None:
            values = [keras.ops.convert_to_numpy(v) for v in weights]
        self._averages = [
            tf.Variable(tf.cast(value, tf.float32), trainable=False)
            for value in values
        ]
        averages = self._averages

        @tf.function
        def update(keep: tf.Tensor) -> None:
            for average, weight in zip(averages, weights, strict=True):
                value = tf.cast(tf.convert_to_tensor(weight), tf.float32)
                average.assign(keep * average + (1.0 - keep) * value)

        self._update = update

    def _swap_in(self) -> None:
        """Puts the averages into the model, if there are any of a step."""
        if self._live is not None or not self._steps:
            return
        self._live = [keras.ops.convert_to_numpy(v) for v in self._weights]
        for weight, average in zip(self._weights, self._averages, strict=True):
            weight.assign(tf.cast(average, weight.dtype))

    def _swap_out(self) -> None:
        if self._live is None:
            return
        for weight, value in zip(self._weights, self._live, strict=True):
            weight.assign(value)
        self._live = None

    def _are_in_place(self) -> bool:
        """Tells if the model has these averages, of its own weights."""
        own = {id(variable) for variable in self.model.variables}
        if self._live is None or not own.issuperset(map(id, self._weights)):
            return False
        return all(
            np.array_equal(
                keras.ops.convert_to_numpy(weight),
                tf.cast(average, weight.dtype).numpy(),
            )
            for weight, average in zip(
                self._weights, self._averages, strict=True
            )
        )


def _are_same(
    some: Sequence[keras.Variable], others: Sequence[keras.Variable]
) -> bool:
    return list(map(id, some)) == list(map(id, others))
