"""Sizes of padded batches, and how probably a draw exceeds them."""

from tf_dpfp import arguments
from tf_dpfp.late_imports import stats

# Probability per step that a padded batch cannot hold its draw, by default.
_OVERFLOW = 1e-15
_MULTIPLE = 8


def overflow_probability(population: int, rate: float, capacity: int) -> float:
    """Bounds the probability that a draw exceeds `capacity`.

    The bound is for one example more than `population`: the accountant needs
    it to hold on the neighbouring data set as well.

    Args:
        population: Number of examples.
        rate: Probability of each example.
        capacity: Size of a padded batch.

    Returns:
        The tail probability of the binomial distribution, per batch.
    """
    return float(stats.binom.sf(capacity, population + 1, rate))


def default_capacity(population: int, rate: float) -> int:
    """Computes the least multiple of 8 that 1 in 1e15 draws exceeds.

    Args:
        population: Number of examples.
        rate: Probability of each example.

    Returns:
        The size of a padded batch.
    """
    low, high = 0, -(-(population + 1) // _MULTIPLE)
    while high - low > 1:
        middle = (low + high) // 2
        capacity = middle * _MULTIPLE
        if overflow_probability(population, rate, capacity) <= _OVERFLOW:
            high = middle
        else:
            low = middle
    return high * _MULTIPLE


def checked(padded: str | None, capacity: int | None) -> int | None:
    """Checks the size of padded batches together with `padded`.

    Args:
        padded: The argument of `poisson_batches`.
        capacity: The argument of `poisson_batches`.

    Returns:
        The capacity; `None` for the default, or if nothing is padded.

    Raises:
        ValueError: If the arguments are out of range or contradict each other.
    """
    arguments.one_of("padded", padded, [None, "static"])
    if capacity is None:
        return None
    if padded is None:
        raise ValueError(
            "`capacity` is for padded='static'. "
            f"Received: capacity={capacity!r}, padded=None"
        )
    return arguments.positive_integer("capacity", capacity)
