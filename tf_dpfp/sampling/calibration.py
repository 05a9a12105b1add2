"""The noise that a privacy budget asks for, of batches that are known."""

from __future__ import annotations

import math
from typing import Any

from tf_dpfp.accounting import LedgerEntry
from tf_dpfp.accounting import Representations
from tf_dpfp.accounting import WithoutReplacement
from tf_dpfp.accounting import least_noise
from tf_dpfp.accounting import other_noise_multiplier
from tf_dpfp.sampling import info as info_lib


def calibrate_representation(
    batches: Any,
    *,
    epsilon: float,
    delta: float,
    epochs: float,
    gradient_noise_multiplier: float | None = None,
    tolerance: float = 1e-4,
) -> float:
    """Computes the least noise of a `DPRepresentationClip` within a budget.

    Epsilon is for replacing one example, as all figures of that layer; those
    of `calibrate` are for adding or removing one.

    Args:
        batches: What `microbatch_sampler` returned. What randomised labels
            cost is part of the budget.
        epsilon: The budget, above 0.
        delta: Probability with which the guarantee may fail, in (0, 1).
        epochs: Number of iterations over `batches`.
        gradient_noise_multiplier: Where what is below the layer is trained by
            DP-SGD, the noise multiplier of the private optimizer: the two
            share the budget.
        tolerance: How far above the least sufficient noise multiplier the
            result may be.

    Returns:
        A noise multiplier with which epsilon is at most `epsilon`, never
        above.

    Raises:
        ValueError: If an argument is outside its range, or no noise multiplier
            meets the budget, of which the gradient may leave nothing.

    Example:
    ```python
    batches = microbatch_sampler(x, y, microbatch_size=64, microbatches=4,
                                 labels="public")
    calibrate_representation(batches, epsilon=3.0, delta=1e-5, epochs=10)
    ```
    """
    info = info_lib.sampling_of(batches)
    if info is None or not isinstance(info.sampling, WithoutReplacement):
        raise ValueError(
            "`batches` must be the data set that tf_dpfp.microbatch_sampler "
            f"returned, itself. Received: {type(batches).__name__}."
        )
    if not 0.0 < epochs < math.inf:
        raise ValueError(f"`epochs` must be above 0. Received: {epochs}.")
    # Rounding of the product must not add a step to a whole number of them.
    steps = math.ceil(epochs * info.steps_per_epoch * (1.0 - 1e-12))
    labels = [] if info.labels is None else [info.labels]

    def released(noise_multiplier: float) -> list[LedgerEntry]:
        rows = LedgerEntry(
            info.sampling,
            noise_multiplier,
            steps * info.draws,
            release=Representations("public"),
        )
        return [rows, *labels]

    joint = least_noise(released, epsilon, delta, "rdp", tolerance)
    if gradient_noise_multiplier is None:
        return joint
    return other_noise_multiplier(joint, gradient_noise_multiplier)
