"""The noise that a privacy budget asks for."""

from collections.abc import Callable

from tf_dpfp.accounting import entries as entries_lib
from tf_dpfp.accounting import epsilon as epsilon_lib

# A budget that this much noise does not meet is not met by noise at all.
_MAX_NOISE_MULTIPLIER = 1e8


def calibrate(
    epsilon: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    accountant: str = "rdp",
    overflow_probability: float = 0.0,
    tolerance: float = 1e-4,
) -> float:
    """Computes the least noise multiplier that keeps within a budget.

    Args:
        epsilon: The budget, above 0.
        delta: Probability with which the guarantee may fail, in (0, 1).
        sampling_rate: Rate of the Poisson sampling, in (0, 1]. 1 for training
            in which nothing is proved about the sampling.
        steps: Number of optimizer updates, at least 1.
        accountant: `"rdp"`, or `"pld"` for less noise at the same budget.
        overflow_probability: As in `PoissonSampling`.
        tolerance: How far above the least sufficient noise multiplier the
            result may be.

    Returns:
        A noise multiplier with which epsilon is at most `epsilon`, never
        above.

    Raises:
        ValueError: If an argument is outside its range, or no noise multiplier
            meets the budget.

    Example:
    ```python
    calibrate(epsilon=8.0, delta=1e-5, sampling_rate=0.04, steps=2000)
    # 1.3563
    ```
    """
    sampling = entries_lib.PoissonSampling(sampling_rate, overflow_probability)
    # Raises on a bad count before the search begins.
    steps = entries_lib.LedgerEntry(sampling, 1.0, steps).steps
    if steps < 1:
        raise ValueError(f"steps must be at least 1. Received: {steps}.")

    def released(noise_multiplier: float) -> list[entries_lib.LedgerEntry]:
        return [entries_lib.LedgerEntry(sampling, noise_multiplier, steps)]

    return least_noise(released, epsilon, delta, accountant, tolerance)


def least_noise(
    released: Callable[[float], list[entries_lib.LedgerEntry]],
    epsilon: float,
    delta: float,
    accountant: str = "rdp",
    tolerance: float = 1e-4,
) -> float:
    """Computes the least noise multiplier that keeps a training in a budget.

    Args:
        released: From a noise multiplier to what the training releases.
        epsilon: The budget, above 0.
        delta: Probability with which the guarantee may fail, in (0, 1).
        accountant: `"rdp"` or `"pld"`.
        tolerance: How far above the least sufficient noise multiplier the
            result may be.

    Returns:
        A noise multiplier with which epsilon is at most `epsilon`, never
        above.

    Raises:
        ValueError: If an argument is outside its range, or no noise multiplier
            meets the budget.
    """
    epsilon_lib.check_epsilon(epsilon)
    epsilon_lib.check_delta(delta, accountant)
    if not 0.0 < tolerance < 1.0:
        raise ValueError(
            f"tolerance must be between 0 and 1. Received: {tolerance}."
        )

    def within_budget(noise_multiplier: float, accountant: str) -> bool:
        entries = released(noise_multiplier)
        return epsilon_lib.compute_epsilon(entries, delta, accountant) <= (
            epsilon
        )

    low, high = 0.0, 1.0
    while not within_budget(high, "rdp"):
        if high >= _MAX_NOISE_MULTIPLIER:
            described = ", ".join(
                f"{entry.steps} steps with {entry.sampling}"
                for entry in released(high)
            )
            raise ValueError(
                f"No noise multiplier up to {_MAX_NOISE_MULTIPLIER:g} reaches "
                f"epsilon {epsilon} at delta {delta} in {described}. Allow a "
                "larger epsilon or delta, fewer steps, or a padded batch that "
                "overflows less often."
            )
        low, high = high, 2.0 * high
    high = _least(
        lambda noise: within_budget(noise, "rdp"), low, high, tolerance
    )
    if accountant == "rdp":
        return high
    # PLD needs somewhat less noise than RDP, never more.
    low = 0.9 * high
    while within_budget(low, accountant):
        low, high = 0.9 * low, low
    return _least(
        lambda noise: within_budget(noise, accountant), low, high, tolerance
    )


def _least(
    sufficient: Callable[[float], bool],
    low: float,
    high: float,
    tolerance: float,
) -> float:
    """Bisects between an insufficient and a sufficient noise multiplier.

    Returns:
        The last value that was found sufficient, within `tolerance` of one
        that was not.
    """
    while high - low > tolerance:
        middle = 0.5 * (low + high)
        # Large noise multipliers lie further apart than the tolerance.
        if not low < middle < high:
            break
        if sufficient(middle):
            high = middle
        else:
            low = middle
    return high
