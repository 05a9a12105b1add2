"""Callbacks that keep a training within its privacy budget."""

import dataclasses
import math

import keras

from tf_dpfp import accounting
from tf_dpfp import mechanisms


@keras.saving.register_keras_serializable(package="tf_dpfp")
class PrivacyBudget(keras.callbacks.Callback):
    """Shows epsilon while a model trains, and stops before it is exceeded.

    Epsilon appears in the progress bar, in `History` and in the logs that
    other callbacks get, under the name `epsilon`. Training stops before the
    first step after which it would exceed the budget, earlier sessions
    included.

    Args:
        epsilon: Budget. `None` or infinity shows epsilon and never stops.
        delta: Probability with which the guarantee may fail, in (0, 1).
        accountant: `"rdp"` or `"pld"`. With `"pld"`, which takes seconds to
            compute, epsilon is updated once per epoch.

    Raises:
        ValueError: If an argument is out of its range; at the start of the
            training, if the budget does not allow one step, or `delta` is not
            below one over the number of examples.

    Example:

    ```python
    model.fit(batches, epochs=10,
              callbacks=[tf_dpfp.PrivacyBudget(epsilon=3.0, delta=1e-5)])
    ```
    """

    def __init__(
        self,
        epsilon: float | None,
        delta: float,
        accountant: str = "rdp",
    ):
        super().__init__()
        if epsilon is None or epsilon == math.inf:
            self.epsilon = math.inf
        else:
            self.epsilon = accounting.check_epsilon(epsilon)
        self.delta = accounting.check_delta(delta, accountant)
        self.accountant = accountant
        self._spent_before: list[accounting.LedgerEntry] = []
        self._started = False
        self._allowed: float = math.inf
        self._taken = 0
        self._shown = 0.0

    def on_train_begin(self, logs=None):  # noqa: ARG002
        state = mechanisms.mechanism_of(self.model).state
        population = max(state.populations, default=None)
        if population is not None and self.delta >= 1.0 / population:
            raise ValueError(
                f"delta={self.delta:g} is not below one over the number of "
                f"examples ({population}): it would allow giving away one "
                "example whole. Choose a smaller delta."
            )
        self._start()

    def on_train_batch_begin(self, batch, logs=None):  # noqa: ARG002
        # A callback after this one may have restored a checkpoint.
        if not self._started:
            if (
                mechanisms.mechanism_of(self.model).entries()
                != self._spent_before
            ):
                self._start()
            self._started = True

    def _start(self) -> None:
        self._spent_before = mechanisms.mechanism_of(self.model).entries()
        self._next = mechanisms.mechanism_of(self.model).next_entries()
        if not self._next:
            raise ValueError(
                f"Model '{self.model.name}' is not built, and what a step "
                "releases is not known. Call it on a batch, or "
                "`model.build(input_shape)`, first."
            )
        self._started = False
        self._taken = 0
        self._allowed = math.inf
        if math.isfinite(self.epsilon):
            self._allowed = accounting.max_steps(
                self._spent_before,
                self._next,
                self.epsilon,
                self.delta,
                self.accountant,
            )
        self._steps_per_call = int(self.model.steps_per_execution)
        if self._allowed < self._steps_per_call:
            spent = self._compute(0)
            raise ValueError(
                f"The budget epsilon={self.epsilon:g} at delta="
                f"{self.delta:g} does not allow the next "
                f"{self._steps_per_call} step(s): {spent:.4g} is spent. Raise "
                "the noise multiplier, lower the sampling rate, or raise the "
                "budget."
            )

    def on_train_batch_end(self, batch, logs=None):  # noqa: ARG002
        # Counted from the ledger: a call runs one step or several.
        self._taken = self._count()
        if self.accountant == "rdp":
            self._shown = self._compute(self._taken)
        if logs is not None:
            logs["epsilon"] = self._shown
        if self._taken + self._steps_per_call > self._allowed:
            self.model.stop_training = True

    def on_epoch_end(self, epoch, logs=None):  # noqa: ARG002
        self._shown = self._compute(self._taken)
        if logs is not None:
            logs["epsilon"] = self._shown

    def _count(self) -> int:
        """Steps taken since this training began."""
        released = mechanisms.mechanism_of(self.model).entries()
        total = sum(entry.steps for entry in released)
        new = total - sum(entry.steps for entry in self._spent_before)
        return math.ceil(new / sum(entry.steps for entry in self._next))

    def _compute(self, taken: int) -> float:
        entries = [
            *self._spent_before,
            *(
                dataclasses.replace(entry, steps=taken * entry.steps)
                for entry in self._next
            ),
        ]
        return accounting.compute_epsilon(entries, self.delta, self.accountant)

    def get_config(self):
        """Returns the arguments."""
        return {
            "epsilon": self.epsilon,
            "delta": self.delta,
            "accountant": self.accountant,
        }
