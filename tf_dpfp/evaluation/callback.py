"""Private evaluation at the end of epochs, for other callbacks to look at."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Protocol

import keras

from tf_dpfp import accounting
from tf_dpfp import arguments as arguments_lib
from tf_dpfp import mechanisms
from tf_dpfp.evaluation import data as data_lib
from tf_dpfp.evaluation import evaluate as evaluate_lib
from tf_dpfp.evaluation import results
from tf_dpfp.evaluation import settings as settings_lib
from tf_dpfp.mechanisms import state as state_lib


class Budget(Protocol):
    """Budget of a training; see `PrivacyBudget`."""

    epsilon: float

    def epsilon_of(self, entries: Sequence[accounting.LedgerEntry]) -> float:
        """Computes epsilon of ledger entries."""


class PrivateEvaluation(keras.callbacks.Callback):
    """Evaluates a model privately at the end of epochs, within its budget.

    The logs, `History` and all other callbacks get `private_accuracy` and
    `private_loss`, wherever they stand in the list: early stopping, or keeping
    the best epoch, by one of them is post-processing of what was counted.

    Every evaluation is counted in the model's ledger; see
    `evaluate_privately`. A `PrivacyBudget` of the same `fit` keeps back what
    the next evaluation costs, and training stops where it would not be left.
    An optimizer with `noise_multiplier="calibrate"` gets the noise that leaves
    room for the evaluations of all epochs.

    Example:

    ```python
    model.fit(
        batches,
        epochs=20,
        callbacks=[
            tf_dpfp.PrivateEvaluation((x_val, y_val), noise_multiplier=30.0),
            keras.callbacks.EarlyStopping(
                "private_accuracy", mode="max", patience=3,
                restore_best_weights=True,
            ),
        ],
    )
    ```

    Args:
        data: See `evaluate_privately`.
        noise_multiplier: See there.
        every: Number of epochs from one evaluation to the next; in the epochs
            between them the logs have no such entries.
        **kwargs: The other arguments of `evaluate_privately`.

    Attributes:
        released: What the evaluations released, in their order.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        data: Any,
        noise_multiplier: float,
        every: int = 1,
        **kwargs: Any,
    ):
        super().__init__()
        groups, users = kwargs.pop("groups", None), kwargs.pop("users", None)
        self.settings = settings_lib.checked(
            noise_multiplier=noise_multiplier, **kwargs
        )
        self.every = arguments_lib.positive_integer("every", every)
        self._data = data_lib.read(data, groups, users, self.settings)
        self._budgets: Sequence[Budget] = ()
        self.released: list[results.Evaluation] = []

    @property
    def next_entry(self) -> accounting.LedgerEntry:
        """Entry that the next evaluation adds to the ledger."""
        by_person = self._data.users is not None
        return settings_lib.next_entry(self.settings, by_person)

    def respect(self, budgets: Sequence[Budget]) -> None:
        """Tells the budgets of the training.

        Args:
            budgets: The budgets.
        """
        self._budgets = budgets

    def is_due(self, epoch: int) -> bool:
        """Tells if an epoch ends with an evaluation.

        Args:
            epoch: Number of the epoch, from 0 on.
        """
        return (epoch + 1) % self.every == 0

    def evaluate(self, model: keras.Model) -> results.Evaluation:
        """Evaluates a model once, whatever is left of a budget.

        Args:
            model: A private, compiled model.

        Returns:
            What was released, with noise.
        """
        return evaluate_lib.evaluate(model, self._data, self.settings)

    def on_epoch_end(self, epoch, logs=None):
        if not self.is_due(epoch):
            return
        if not self._fits():
            self.model.stop_training = True
            return
        with state_lib.averaged(self.model):
            found = self.evaluate(self.model)
        self.released.append(found)
        for name in ("accuracy", "loss"):
            estimate = getattr(found, name)
            if estimate is not None and logs is not None:
                logs[f"private_{name}"] = estimate.value

    def _fits(self) -> bool:
        spent = mechanisms.mechanism_of(self.model).entries()
        after = [*spent, self.next_entry]
        return all(
            budget.epsilon_of(after) <= budget.epsilon
            for budget in self._budgets
            if math.isfinite(budget.epsilon)
        )


def evaluations_of(callbacks: Any) -> list[PrivateEvaluation]:
    """Lists the private evaluations among the callbacks of `fit`.

    Args:
        callbacks: What `fit` was given.
    """
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = callbacks.callbacks
    flat = keras.tree.flatten(callbacks) if callbacks else []
    return [each for each in flat if isinstance(each, PrivateEvaluation)]


def planned(
    callbacks: Any, arguments: dict[str, Any]
) -> list[accounting.LedgerEntry]:
    """Lists what the evaluations of a whole `fit` add to the ledger.

    Args:
        callbacks: What `fit` was given.
        arguments: Its bound arguments.
    """
    epochs = range(arguments["initial_epoch"] or 0, arguments["epochs"])
    return [
        dataclasses.replace(
            each.next_entry, steps=sum(map(each.is_due, epochs))
        )
        for each in evaluations_of(callbacks)
    ]
