"""Dirac audit: private steps with a one-hot gradient, the sharpest audit.

The canary has an input feature of its own. Its gradient is zero except for the
weights of that feature, and is as long as the clip norm allows. Sampling,
clipping, noise, division and update run in `fit`, as in every training; only
the model is built for the audit.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_dpfp import accounting
from tf_dpfp import arguments
from tf_dpfp import sampling
from tf_dpfp import training
from tf_dpfp.auditing import audits
from tf_dpfp.auditing import canaries as canaries_lib
from tf_dpfp.auditing import releases as releases_lib

# Examples beside the canary, each with a feature of its own.
_OTHERS = 4
# Gradients this many times as long as the clip norm: clipped in every group.
_LENGTHS = 1e3


def dirac_audit(
    optimizer: keras.optimizers.Optimizer,
    *,
    runs: int = 1000,
    steps: int = 1,
    sampling_rate: float = 1.0,
    layers: int = 1,
    max_examples_per_user: int | None = None,
    delta: float | Sequence[float] = (1e-5, 1e-3, 1e-1),
    confidence: float = 0.95,
    score: Callable[[np.ndarray], np.ndarray] | None = None,
) -> audits.AuditReport:
    """Audits the steps of a private optimizer with a one-hot gradient.

    Trains a linear model with `fit` on Poisson batches, many times for `steps`
    steps, and includes the canary in half of the trainings. The adversary sees
    the release of every step, and applies the best test for the claimed noise.
    The claim is the accountant's epsilon of `steps` steps at the optimizer's
    noise multiplier.

    Example:

    ```python
    optimizer = tf_dpfp.DPSGD(1.0, l2_norm_clip=1.0, noise_multiplier=2.0)
    print(auditing.dirac_audit(optimizer, steps=4, sampling_rate=0.5))
    ```

    Args:
        optimizer: New `DPSGD` with the clipping to be audited. Its learning
            rate does not matter. Do not use it for a training: its ledger
            counts the audit.
        runs: Number of runs with the canary, and of runs without, at least 2.
        steps: Number of steps of one run.
        sampling_rate: Probability with which an example is in a step.
        layers: Number of layers that share the canary's gradient equally.
        max_examples_per_user: Audits training by person: the canary is a
            person with so many examples, all of the same gradient, each of
            which alone is as long as the clip norm allows. `None` audits
            training by example.
        delta: Delta, or several, as in `audit`.
        confidence: Least probability with which all bounds hold together.
        score: Function from releases along the canary, of shape
            `(runs, steps)`, to one score per run. `likelihood_scores` by
            default.

    Returns:
        An `AuditReport` for add-or-remove adjacency; with
        `max_examples_per_user`, of a person with all examples.

    Raises:
        ValueError: If the optimizer was used before, its updates do not show
            its releases, or an argument is out of range.

    Reference:
        Nasr et al., 2023, "Tight auditing of differentially private machine
        learning", arXiv 2302.07956.
    """
    runs = arguments.integer("runs", runs, least=2)
    steps = arguments.positive_integer("steps", steps)
    layers = arguments.positive_integer("layers", layers)
    if max_examples_per_user is not None:
        max_examples_per_user = arguments.positive_integer(
            "max_examples_per_user", max_examples_per_user
        )
    if optimizer.built:
        raise ValueError(
            f"The optimizer '{optimizer.name}' was built for another model. "
            "Pass a new one: it is used up by the audit."
        )
    model = _linear_model(layers)
    training.make_private(model)
    model.compile(optimizer, loss=_linear_loss)
    projections = [
        _projections(
            model,
            _data(model, included, max_examples_per_user, sampling_rate),
            runs,
            steps,
        )
        for included in (True, False)
    ]
    if score is None:
        score = _best_score(optimizer, sampling_rate)
    step = accounting.LedgerEntry(
        accounting.PoissonSampling(sampling_rate),
        optimizer.noise_multiplier,
        steps,
    )
    report = audits.audit_scores(
        np.concatenate([score(values) for values in projections]),
        np.arange(2 * runs) < runs,
        method="many_runs",
        delta=delta,
        claimed_epsilon=lambda d: accounting.compute_epsilon([step], d, "pld"),
        adjacency="add_or_remove",
        confidence=confidence,
    )
    if max_examples_per_user is None:
        return report
    return dataclasses.replace(report, unit="person")


def _best_score(
    optimizer: Any, sampling_rate: float
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the best score for the noise that an optimizer claims."""
    deviation = optimizer.noise_multiplier * optimizer.l2_norm_clip
    return functools.partial(
        releases_lib.likelihood_scores,
        signal=optimizer.l2_norm_clip,
        # Without noise any will do: the order is what counts.
        standard_deviation=deviation or 1.0,
        sampling_rate=sampling_rate,
    )


def _linear_loss(y_true, y_pred):
    """Computes a loss whose gradient does not depend on the weights."""
    return -keras.ops.sum(y_true * y_pred, axis=-1)


def _linear_model(layers: int) -> keras.Model:
    """Builds a sum of linear layers, with own weights for each example."""
    inputs = keras.Input((_OTHERS + 1,))
    outputs = [
        keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")(
            inputs
        )
        for _ in range(layers)
    ]
    return keras.Model(
        inputs, keras.layers.add(outputs) if layers > 1 else outputs[0]
    )


def _data(
    model: keras.Model,
    included: bool,
    max_examples_per_user: int | None,
    sampling_rate: float,
) -> Callable[[int], tf.data.Dataset]:
    """Makes the data, as a function of the number of steps."""
    each = max_examples_per_user or 1
    scale = _LENGTHS * model.optimizer.l2_norm_clip
    others, canary = canaries_lib.unused_features(
        np.eye(_OTHERS, dtype=np.float32) * scale, 1, scale
    )
    x, y, weight = canaries_lib.insert_canaries(
        np.repeat(others, each, axis=0),
        np.ones((_OTHERS * each, 1), np.float32),
        np.repeat(canary, each, axis=0),
        np.ones((each, 1), np.float32),
        np.full(each, included),
    )
    by_person: dict[str, Any] = {}
    if max_examples_per_user is not None:
        by_person = {
            "users": np.repeat(np.arange(_OTHERS + 1), each),
            "max_examples_per_user": each,
        }
    return lambda steps: sampling.poisson_batches(
        x,
        y,
        weight,
        sampling_rate=sampling_rate,
        # The optimizer's own, if it was given one.
        expected_batch_size=model.optimizer.expected_batch_size,
        steps_per_epoch=steps,
        **by_person,
    )


def _projections(
    model: keras.Model,
    data: Callable[[int], tf.data.Dataset],
    runs: int,
    steps: int,
) -> np.ndarray:
    """Trains, and returns releases along the canary, `(runs, steps)`."""
    recorder = releases_lib.ReleaseRecorder(restart_every=steps)
    model.fit(data(runs * steps), callbacks=[recorder], verbose=0)
    # The canary's feature is the last one, in each layer.
    kernels = recorder.releases.reshape(runs, steps, -1, _OTHERS + 1)
    own = -kernels[..., -1]
    return own.sum(axis=-1) / np.sqrt(own.shape[-1])
