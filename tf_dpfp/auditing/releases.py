"""What a training releases in each step, read from the weights.

The strongest adversary sees every step. What it sees is what the weights say:
under plain SGD the difference of the weights before and after a step, over
the learning rate, is the noised mean of the step, and nothing private has to
be read to know it.
"""

import keras
import numpy as np


class ReleaseRecorder(keras.callbacks.Callback):
    """Records the noised sum that each step of a `fit` releases.

    For `DPSGD` with nothing but a learning rate, which is read before each
    step. Gradients of weight regularisers are in what is recorded. Under
    ordinary `SGD` it is the gradient of the batch's loss.

    With `restart_every`, weights and optimizer start over after so many steps:
    one `fit` is then many short trainings, each from the same state, with
    batches and noise of its own. After it, everything is as it was before, but
    for the ledger: it counts all of them, and so does
    `tf_dpfp.compute_epsilon`. The epsilon of one run is that of so many steps.

    Example:

    ```python
    recorder = auditing.ReleaseRecorder(restart_every=10)
    model.fit(batches, callbacks=[recorder])
    recorder.releases  # (runs, 10, weights)
    ```

    Args:
        restart_every: Steps of one run; `None` for one long run.

    Raises:
        ValueError: If it is not positive; at the start of `fit`, if the
            optimizer's updates do not show what was released.
    """

    def __init__(self, restart_every: int | None = None):
        super().__init__()
        if restart_every is not None and restart_every < 1:
            raise ValueError(
                "`restart_every` is a positive number of steps or None. "
                f"Received: restart_every={restart_every!r}"
            )
        self._restart_every = restart_every
        self._start: list[tuple[keras.Variable, np.ndarray]] = []
        self._sums: list[np.ndarray] = []
        self._before: np.ndarray | None = None
        self._factor = 0.0

    @property
    def releases(self) -> np.ndarray:
        """Released sums, `(steps, weights)`, or `(runs, steps, weights)`.

        Weights are those of `model.trainable_variables`, end to end. A last
        run that was not finished is left out.
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
        self._start = [
            (variable, variable.numpy()) for variable in _state_of(self.model)
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
            # Another `fit`, without the canary, has to start where this did.
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
    """Weights and optimizer: where a run starts."""
    # Of a ledger nothing is ever taken back. States of random generators are
    # no weights: every run has masks of its own.
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
            f"{model.steps_per_execution}"
        )


def likelihood_scores(
    projections: np.ndarray,
    signal: float,
    standard_deviation: float,
    sampling_rate: float = 1.0,
) -> np.ndarray:
    """Scores releases by the best test of Gaussians with and without a canary.

    A step of a run gives one number: what was released, along the direction of
    the canary. It is Gaussian around 0 without the canary. With it, around
    `signal` in steps that draw it. The score is the logarithm of the
    likelihood ratio of the steps together; no other is better if the noise is
    as claimed, and any is fair if it is not.

    Args:
        projections: `(runs, steps)`, or with any further axes.
        signal: Length of the canary's clipped contribution.
        standard_deviation: That of the noise.
        sampling_rate: Probability of the canary to be in a step.

    Returns:
        Scores of the runs, without the axis of the steps.
    """
    projections = np.asarray(projections, np.float64)
    ratios = signal * (projections - signal / 2.0) / standard_deviation**2
    if sampling_rate < 1.0:
        ratios = np.logaddexp(
            np.log1p(-sampling_rate), np.log(sampling_rate) + ratios
        )
    return ratios.sum(axis=1)


def spread_scores(projections: np.ndarray) -> np.ndarray:
    """Scores releases by their spread over steps, which reused noise lacks.

    Noise that is the same in two steps cancels between them, and what is left
    is that a canary was in one and not in the other. For sampling rates below
    1 and at least two steps.

    Args:
        projections: `(runs, steps)`, or with any further axes.

    Returns:
        Greatest less least release of each run.
    """
    projections = np.asarray(projections, np.float64)
    return projections.max(axis=1) - projections.min(axis=1)
