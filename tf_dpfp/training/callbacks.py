"""Callbacks that keep a training within its privacy budget."""

import dataclasses
import math
import sys
from collections.abc import Collection, Sequence
from typing import Any

import keras

from tf_dpfp import accounting
from tf_dpfp import evaluation
from tf_dpfp import mechanisms
from tf_dpfp.keras_private import distribution as keras_distribution
from tf_dpfp.keras_private import trainer as keras_trainer


@keras.saving.register_keras_serializable(package="tf_dpfp")
class PrivacyBudget(keras.callbacks.Callback):
    """Shows epsilon while a model trains, and stops before it is exceeded.

    Epsilon appears in the progress bar, in `History` and in the logs that
    other callbacks get, under the name `epsilon`, wherever they stand in the
    list. Training stops before the first step after which it would exceed the
    budget, earlier sessions included. Steps that another callback takes count
    as what they are; they are not held back, but no step of `fit` follows them
    that would exceed the budget. A training that has reached its budget and is
    started again ends at once, with a sentence and without a step.

    An optimizer with `noise_multiplier="calibrate"` gets its noise multiplier
    from this budget.

    Args:
        epsilon: Budget. `None` or infinity shows epsilon and never stops.
        delta: Probability with which the guarantee may fail, in (0, 1).
        accountant: `"rdp"` or `"pld"`. With `"pld"`, which takes seconds to
            compute, epsilon is updated once per epoch.

    Raises:
        ValueError: If an argument is out of its range; at the start of the
            training, if the budget is exceeded already or does not allow one
            step of this kind, or `delta` is not below one over the number of
            examples.

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
        # True if another callback starts this one, after all others.
        self._starts_last = False
        # Batches after which an epoch ends, whatever a call would take.
        self._in_epoch: int | None = None
        # What one evaluation of each callback adds, which is kept back.
        self._kept_back: list[accounting.LedgerEntry] = []
        self._is_done = False
        self._begins_at: int | None = None

    @property
    def is_finite(self) -> bool:
        """True if there is an epsilon at which training stops."""
        return math.isfinite(self.epsilon)

    def epsilon_of(self, entries: Sequence[accounting.LedgerEntry]) -> float:
        """Computes epsilon of ledger entries, by this budget's accountant."""
        return accounting.compute_epsilon(entries, self.delta, self.accountant)

    def check_delta(self, populations: Collection[int]) -> None:
        """Refuses a delta that would allow giving away an example.

        Args:
            populations: Numbers of examples of all data so far.

        Raises:
            ValueError: If delta is not below one over the greatest of them.
        """
        population = max(populations, default=None)
        if population is not None and self.delta >= 1.0 / population:
            raise ValueError(
                f"delta={self.delta:g} is not below one over the number of "
                f"examples ({population}): it would allow giving away one "
                "example whole. Choose a smaller delta."
            )

    def done(self, epsilon: float) -> str:
        """Says that training has reached the budget."""
        return (
            f"The training has reached its budget: epsilon is {epsilon:.4f} of "
            f"{self.epsilon:g} at delta {self.delta:g}, and no further step "
            "fits. Nothing was trained now. Raise the budget to go on."
        )

    def arrange(
        self,
        starts_last: bool,
        in_epoch: int | None,
        kept_back: Sequence[accounting.LedgerEntry] = (),
    ) -> None:
        """Tells how `fit` runs this callback.

        Args:
            starts_last: True if `start` is called after all callbacks began.
            in_epoch: Batches after which an epoch ends; `None`: unknown.
            kept_back: What must be left after every step, for evaluations.
        """
        self._starts_last, self._in_epoch = starts_last, in_epoch
        self._kept_back = list(kept_back)

    def on_train_begin(self, logs=None):  # noqa: ARG002
        state = mechanisms.mechanism_of(self.model).state
        self.check_delta(state.populations)
        if not self._starts_last:
            self.start()

    def on_train_batch_begin(self, batch, logs=None):  # noqa: ARG002
        # A callback after this one may have restored a checkpoint.
        if not self._started:
            if (
                mechanisms.mechanism_of(self.model).committed()
                != self._spent_before
            ):
                self.start()
            self._started = True
        if self._is_done:
            raise ValueError(self.done(self._compute(0)))
        # One may have stepped by itself, or another thread.
        self.count_others()
        if self._taken + self._steps_in_call(batch) > self._allowed:
            raise ValueError(
                "Steps of another callback or thread have used up the budget "
                f"epsilon={self.epsilon:g} at delta={self.delta:g}: "
                f"{self._compute(self._taken):.4g} is spent, and no further "
                "step fits."
            )

    def start(self) -> None:
        """Counts how many steps the budget allows from here on.

        Raises:
            ValueError: If it allows none, and the training did not reach it by
                steps of this kind.
        """
        self._spent_before = mechanisms.mechanism_of(self.model).committed()
        self._next = mechanisms.mechanism_of(self.model).next_entries()
        if not self._next:
            raise ValueError(
                f"Model '{self.model.name}' is not built, and what a step "
                "releases is not known. Call it on a batch, or "
                "`model.build(input_shape)`, first."
            )
        self._started = False
        self._taken = 0
        self._allowed = self._max_steps()
        self._is_done = False
        if self._allowed < self._steps_in_call(0):
            self._end()

    def count_others(self) -> None:
        """Counts anew if steps ran that are not those of this `fit`.

        Another callback may train on batches of its own, which are counted
        as what they are.
        """
        released = mechanisms.mechanism_of(self.model).committed()
        if _kinds(released) == _kinds(self._entries_after(self._count())):
            return
        self._spent_before, self._taken = released, 0
        self._allowed = self._max_steps()

    def stop_if_spent(self, begun: int) -> None:
        """Stops the training if no further call fits in the budget.

        Args:
            begun: Number of batches of this epoch that were taken.
        """
        self.count_others()
        if self._taken + self._steps_in_call(begun) > self._allowed:
            self.model.stop_training = True

    def _max_steps(self) -> float:
        if not self.is_finite:
            return math.inf
        return accounting.max_steps(
            [*self._spent_before, *self._kept_back],
            self._next,
            self.epsilon,
            self.delta,
            self.accountant,
        )

    def _end(self) -> None:
        """Lets a training that reached its budget end; refuses another."""
        # Without what a step that is not taken would begin.
        spent = self.epsilon_of(mechanisms.mechanism_of(self.model).entries())
        in_call = self._steps_in_call(0)
        ran = {dataclasses.replace(e, steps=0) for e in self._spent_before}
        known = {dataclasses.replace(e, steps=0) for e in self._next} <= ran
        if spent > self.epsilon or not known:
            accounting.refuse_mixed(
                [*self._spent_before, *self._kept_back, *self._next]
            )
            raise ValueError(
                f"The budget epsilon={self.epsilon:g} at delta="
                f"{self.delta:g} does not allow the next {in_call} step(s): "
                f"{spent:.4g} is spent. {self._way_out()}"
            )
        print(self.done(spent), flush=True)
        self._is_done = True
        # No epoch is left then: Keras ends the training without a step.
        self._begins_at = keras_distribution.initial_epoch(self.model)
        keras_trainer.start_at(self.model, sys.maxsize)

    def _way_out(self) -> str:
        unknown = accounting.UnknownSampling
        if any(isinstance(e.sampling, unknown) for e in self._next):
            return (
                "Nothing is known of how these batches are drawn, so no "
                "amplification by sampling is counted: pass the data set of "
                "tf_dpfp.poisson_batches itself, raise the noise multiplier, "
                "or raise the budget."
            )
        return (
            "Raise the noise multiplier, lower the sampling rate, or raise "
            "the budget."
        )

    def on_train_end(self, logs=None):  # noqa: ARG002
        if self._is_done:
            keras_trainer.start_at(self.model, self._begins_at)
            self._is_done = False

    def on_train_batch_end(self, batch, logs=None):
        # Counted from the ledger: a call runs one step or several.
        self.count_others()
        self._taken = self._count()
        if self.accountant == "rdp":
            self._shown = self._compute(self._taken)
        if logs is not None:
            logs["epsilon"] = self._shown
        if self._taken + self._steps_in_call(batch + 1) > self._allowed:
            self.model.stop_training = True

    def on_epoch_end(self, epoch, logs=None):  # noqa: ARG002
        self.count_others()  # An evaluation, say.
        self._shown = self._compute(self._taken)
        if logs is not None:
            logs["epsilon"] = self._shown

    def _steps_in_call(self, begun: int) -> int:
        """Counts the steps of the next call, at most.

        Args:
            begun: Number of batches of this epoch that were taken.
        """
        in_call = int(self.model.steps_per_execution)
        if self._in_epoch is None:
            return in_call
        left = self._in_epoch - begun
        return min(in_call, left if left > 0 else self._in_epoch)

    def _count(self) -> int:
        """Steps taken since this training began."""
        released = mechanisms.mechanism_of(self.model).committed()
        total = sum(entry.steps for entry in released)
        new = total - sum(entry.steps for entry in self._spent_before)
        return math.ceil(new / sum(entry.steps for entry in self._next))

    def _compute(self, taken: int) -> float:
        return self.epsilon_of(self._entries_after(taken))

    def _entries_after(self, taken: int) -> list[accounting.LedgerEntry]:
        """Lists what is released after a number of steps of this `fit`."""
        further = [
            dataclasses.replace(entry, steps=taken * entry.steps)
            for entry in self._next
        ]
        return [*self._spent_before, *further]

    def get_config(self):
        """Returns the arguments."""
        return {
            "epsilon": self.epsilon,
            "delta": self.delta,
            "accountant": self.accountant,
        }


def _kinds(
    entries: Sequence[accounting.LedgerEntry],
) -> set[accounting.LedgerEntry]:
    return {entry for entry in accounting.merge(entries) if entry.steps}


class _StartLast(keras.callbacks.Callback):
    """Looks after all other callbacks: one may restore a ledger, or step.

    Args:
        budgets: The budgets.
    """

    def __init__(self, budgets: Sequence[PrivacyBudget]):
        super().__init__()
        self._budgets = budgets

    def on_train_begin(self, logs=None):  # noqa: ARG002
        for budget in self._budgets:
            budget.start()

    def on_train_batch_end(self, batch, logs=None):  # noqa: ARG002
        for budget in self._budgets:
            budget.stop_if_spent(batch + 1)

    def on_epoch_end(self, epoch, logs=None):  # noqa: ARG002
        for budget in self._budgets:
            budget.stop_if_spent(0)


def budgets_of(callbacks: Any) -> list[PrivacyBudget]:
    """Lists the budgets among the callbacks of `fit`.

    Args:
        callbacks: What `fit` was given.
    """
    return [
        each for each in _flat(callbacks) if isinstance(each, PrivacyBudget)
    ]


def _flat(callbacks: Any) -> list[Any]:
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = callbacks.callbacks
    return keras.tree.flatten(callbacks) if callbacks else []


def arranged(callbacks: Any, in_epoch: int | None) -> Any:
    """Puts evaluations and budgets before the others, and starts budgets last.

    So what was evaluated, and epsilon, are in the logs that all others get, and
    what others restore is counted as spent.

    Args:
        callbacks: What `fit` was given.
        in_epoch: Batches after which an epoch ends; `None`: unknown.

    Returns:
        What to give to Keras. A `CallbackList` stays as it is.
    """
    budgets = budgets_of(callbacks)
    evaluations = evaluation.evaluations_of(callbacks)
    listed = isinstance(callbacks, keras.callbacks.CallbackList)
    for budget in budgets:
        budget.arrange(
            starts_last=not listed,
            in_epoch=in_epoch,
            kept_back=[each.next_entry for each in evaluations],
        )
    for each in evaluations:
        each.respect(budgets)
    if listed or not (budgets or evaluations):
        return callbacks
    first = {id(each) for each in (*budgets, *evaluations)}
    others = [each for each in _flat(callbacks) if id(each) not in first]
    return [*evaluations, *budgets, *others, _StartLast(budgets)]


def empty_history(model: keras.Model) -> keras.callbacks.History:
    """Returns the history of a `fit` that had nothing to do.

    Args:
        model: The model.
    """
    history = keras.callbacks.History()
    history.set_model(model)
    history.on_train_begin()
    return history
