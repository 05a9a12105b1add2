"""How much noise each released tensor gets.

The released vector is the concatenation of the clipped sums of all groups.
Adding or removing one example moves group k by at most C_k, so the whole by
at most `sqrt(sum_k C_k^2)`: that is the sensitivity under add-or-remove
adjacency, and noise of `noise_multiplier` times it on every coordinate is one
Gaussian mechanism with that multiplier.
"""

import math
from collections.abc import Sequence


def sensitivity(thresholds: Sequence[float]) -> float:
    """L2 sensitivity of the joint release under add-or-remove adjacency.

    Args:
        thresholds: The clip norm of every group.

    Returns:
        `sqrt(sum_k C_k^2)`.
    """
    return math.sqrt(math.fsum(c * c for c in thresholds))


def global_standard_deviations(
    thresholds: Sequence[float], noise_multiplier: float
) -> tuple[float, ...]:
    """The same standard deviation for every coordinate of every group.

    Args:
        thresholds: The clip norm of every group.
        noise_multiplier: Standard deviation over sensitivity.

    Returns:
        The standard deviation for each group.
    """
    deviation = noise_multiplier * sensitivity(thresholds)
    return (deviation,) * len(thresholds)
