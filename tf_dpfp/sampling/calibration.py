"""Calibrates the noise of `DPRepresentationClip` to a budget and a sampler."""

import math
from typing import Any

from tf_dpfp import arguments
from tf_dpfp.accounting import LedgerEntry
from tf_dpfp.accounting import Representations
from tf_dpfp.accounting import WithoutReplacement
from tf_dpfp.accounting import least_noise
from tf_dpfp.accounting import other_noise_multiplier
from tf_dpfp.sampling import registry


def calibrate_representation(
    batches: Any,
    *,
    epsilon: float,
    delta: float,
    epochs: float,
    gradient_noise_multiplier: float | None = None,
    tolerance: float = 1e-4,
) -> float:
    """Computes the least noise multiplier of `DPRepresentationClip`.

    Epsilon is for replacing one example, like all figures of that layer; the
    figures of `calibrate_noise_multiplier` are for adding or removing one.

    Args:
        batches: A data set made by `stratified_batches`. The cost of
            randomised labels is part of the budget.
        epsilon: The budget, above 0.
        delta: Probability with which the guarantee may fail, in (0, 1).
        epochs: Number of iterations over `batches`.
        gradient_noise_multiplier: Noise multiplier of the private optimizer
            that trains the layers below, if one does: the two share the
            budget.
        tolerance: Greatest distance of the result from the least sufficient
            noise multiplier, in (0, 1).

    Returns:
        A noise multiplier with which epsilon is at most `epsilon`, never
        above.

    Raises:
        ValueError: If an argument is outside its range, or no noise multiplier
            meets the budget, or the gradient spends all of it.

    Example:
    ```python
    batches = stratified_batches(x, y, draw_size=64, draws=4, labels="public")
    calibrate_representation(batches, epsilon=3.0, delta=1e-5, epochs=10)
    ```
    """
    info = registry.sampling_of(batches)
    if info is None or not isinstance(info.sampling, WithoutReplacement):
        raise ValueError(
            "`batches` must be the data set that "
            "tf_dpfp.representations.stratified_batches returned, itself. "
            f"Received: {type(batches).__name__}."
        )
    epochs = arguments.number("epochs", epochs, above=0)
    if gradient_noise_multiplier is not None:
        gradient_noise_multiplier = arguments.number(
            "gradient_noise_multiplier", gradient_noise_multiplier, above=0
        )
    # Rounding of the product must not add a step to a whole number of them.
    steps = math.ceil(epochs * info.steps_per_epoch * (1.0 - 1e-12))
    labels = [] if info.labels is None else [info.labels]

    def released(noise_multiplier: float) -> list[LedgerEntry]:
        representations = LedgerEntry(
            info.sampling,
            noise_multiplier,
            steps * info.draws,
            release=Representations("public"),
        )
        return [representations, *labels]

    joint = least_noise(released, epsilon, delta, "rdp", tolerance)
    if gradient_noise_multiplier is None:
        return joint
    return other_noise_multiplier(joint, gradient_noise_multiplier)
