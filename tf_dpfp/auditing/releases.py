"""Releases of each training step, read from the weights, and their scores.

The strongest adversary sees the weights after every step. Under plain SGD the
difference of the weights before and after a step, divided by the learning
rate, is the noised mean gradient of the step. The recorder here reads it in
the same way, and nothing that is private.
"""

from typing import Any

import keras
import numpy as np

from tf_dpfp import arguments


class ReleaseRecorder(keras.callbacks.Callback):
    """Callback that records the noised gradient sum of each step.

    Works with `DPSGD` without momentum or other extras. The learning rate is
    read before each step. Records include the gradients of weight
    regularisers. Under ordinary `SGD` the callback records the gradient of the
    batch's loss.

    With `restart_every`, weights and optimizer return to their start after
    that many steps. One `fit` then consists of many short trainings from the
    same state, with their own batches and noise. After `fit`, everything is as
    before except for the ledger: it counts all steps, and so does
    `tf_dpfp.compute_epsilon`. The epsilon of one run is that of `restart_every`
    steps.

    Example:

    ```python
    recorder = auditing.ReleaseRecorder(restart_every=10)
    model.fit(batches, callbacks=[recorder])
    recorder.releases  # (runs, 10, weights)
    ```

    Args:
        restart_every: Number of steps of one run; `None` for one long run.

    Raises:
        ValueError: If `restart_every` is not a positive integer; at the start
            of `fit`, if the optimizer's updates do not show its releases.
    """

    def __init__(self, restart_every: int | None = None):
        super().__init__()
        if restart_every is not None:
            restart_every = arguments.positive_integer(
                "restart_every", restart_every
            )
        self._restart_every = restart_every
        self._start: list[tuple[keras.Variable, Any]] = []
        self._sums: list[np.ndarray] = []
        self._before: np.ndarray | None = None
        self._factor = 0.0

    @property
    def releases(self) -> np.ndarray:
        """Released sums, `(steps, weights)`, or `(runs, steps, weights)`.

        Weights are the concatenation of `model.trainable_variables`. An
        unfinished last run is left out.
        """
        sums = np.stack(self._sums) if self._sums else np.zeros((0, 0))
        if self._restart_every is None:
            return sums
        runs = len(sums) // self._restart_every
        finished = sums[: runs * self._restart_every]
        return finished.reshape(runs, self._restart_every, -1)

    def on_train_begin(self, logs=None):  # noqa: ARG002
        _check_plain(self.model)
        self._sums = []
        # As tensors, which are assigned sooner than arrays, thousands of times.
        self._start = [
            (variable, keras.ops.convert_to_tensor(variable.numpy()))
            for variable in _state_of(self.model)
        ]

    def on_train_batch_begin(self, batch, logs=None):  # noqa: ARG002
        every = self._restart_every
        if every and len(self._sums) % every == 0 and self._sums:
            self._start_over()
        optimizer = self.model.optimizer
        rate = float(keras.ops.convert_to_numpy(optimizer.learning_rate))
        size = getattr(optimizer, "expected_batch_size", 1.0)
        self._factor = size / rate
        self._before = _flat(self.model)

    def on_train_batch_end(self, batch, logs=None):  # noqa: ARG002
        moved = self._before - _flat(self.model)
        self._sums.append(moved * self._factor)

    def on_train_end(self, logs=None):  # noqa: ARG002
        if self._restart_every:
            # The next `fit`, without the canary, must start from here too.
            self._start_over()

    def _start_over(self) -> None:
        for variable, value in self._start:
            variable.assign(value)


def _flat(model: keras.Model) -> np.ndarray:
    return np.concatenate(
        [
            np.asarray(v.numpy(), np.float64).reshape(-1)
            for v in model.trainable_variables
        ]
    )


def _state_of(model: keras.Model) -> list[keras.Variable]:
    """Returns the variables that a restart resets."""
    # A ledger never forgets. States of random generators are no weights:
    # every run has its own dropout masks.
    return [
        variable
        for variable in [*model.weights, *model.optimizer.variables]
        if variable.name != "privacy_ledger"
    ]


def _check_plain(model: keras.Model) -> None:
    optimizer = model.optimizer
    if not isinstance(optimizer, keras.optimizers.SGD):
        raise ValueError(
            "Only the updates of plain SGD show what was released; the model "
            f"is compiled with {type(optimizer).__name__}. Audit with DPSGD: "
            "the release is the same for every optimizer."
        )
    settings = optimizer.get_config()
    changing = (
        "momentum",
        "nesterov",
        "weight_decay",
        "clipnorm",
        "clipvalue",
        "global_clipnorm",
        "use_ema",
    )
    present = [name for name in changing if settings.get(name)]
    if present:
        raise ValueError(
            "With these settings of SGD its updates do not show what was "
            f"released: {present}. Leave them out for the audit."
        )
    if model.steps_per_execution != 1:
        raise ValueError(
            "Several steps of one execution can't be told apart. Compile with "
            "steps_per_execution=1. Received: "
            f"steps_per_execution={model.steps_per_execution}"
        )


def likelihood_scores(
    projections: np.ndarray,
    signal: float,
    standard_deviation: float,
    sampling_rate: float = 1.0,
) -> np.ndarray:
    """Scores runs by the likelihood ratio of their Gaussian releases.

    Each step of a run gives one number: its release projected on the gradient
    of the canary. The number is Gaussian around 0 without the canary, and
    around `signal` in the steps that draw the canary. The score is the
    logarithm of the ratio of both likelihoods, summed over the steps. By the
    Neyman-Pearson lemma no test is better if the noise is as claimed. If it is
    not, bounds from this score hold all the same.

    Args:
        projections: Projected releases, of shape `(runs, steps)` or
            `(runs, steps, ...)`.
        signal: Length of the canary's clipped gradient.
        standard_deviation: Standard deviation of the noise, above 0.
        sampling_rate: Probability with which the canary is in a step, in
            (0, 1].

    Returns:
        Scores of shape `(runs,)` or `(runs, ...)`, greater for runs that seem
        to include the canary.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> likelihood_scores([[0.0, 0.1], [1.0, 0.9]], 1.0, 1.0).round(2)
    array([-0.9,  0.9])
    """
    signal = arguments.number("signal", signal)
    standard_deviation = arguments.number(
        "standard_deviation", standard_deviation, above=0.0
    )
    sampling_rate = arguments.number(
        "sampling_rate", sampling_rate, above=0.0, most=1.0
    )
    projections = np.asarray(projections, np.float64)
    ratios = signal * (projections - signal / 2.0) / standard_deviation**2
    if sampling_rate < 1.0:
        ratios = np.logaddexp(
            np.log1p(-sampling_rate), np.log(sampling_rate) + ratios
        )
    return ratios.sum(axis=1)


def spread_scores(projections: np.ndarray) -> np.ndarray:
    """Scores runs by the spread of their releases, to detect repeated noise.

    If two steps of a run have the same noise, it cancels in their difference.
    The difference then shows a canary that was in one step and not in the
    other. Needs a sampling rate below 1 and at least two steps. With fresh
    noise in every step this test is weaker than `likelihood_scores`.

    Args:
        projections: Releases projected on the gradient of the canary, of shape
            `(runs, steps)` or `(runs, steps, ...)`.

    Returns:
        Greatest minus least release of each run, of shape `(runs,)` or
        `(runs, ...)`.

    Example:

    >>> spread_scores([[3.5, 3.5, 3.5], [3.5, 4.5, 3.5]])
    array([0., 1.])
    """
    projections = np.asarray(projections, np.float64)
    return projections.max(axis=1) - projections.min(axis=1)
