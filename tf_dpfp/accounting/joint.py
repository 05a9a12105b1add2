"""One release of two Gaussian mechanisms that see the same examples."""

import math


def joint_noise_multiplier(first: float, second: float) -> float:
    """The noise multiplier of two Gaussian releases taken as one.

    Each over its own standard deviation, one example moves the first by at
    most `1 / first` and the second by at most `1 / second`, so the two beside
    each other by at most the root of the sum of squares. That stays true if
    the second is chosen by what the first gave: Gaussian shifts compose by
    their squares, adaptively.

    Args:
        first: Standard deviation of the noise over the sensitivity, of one.
        second: Of the other.

    Returns:
        The multiplier of both together; 0 if one has no noise.

    Reference:
        Dong, Roth and Su, 2022, [Gaussian differential
        privacy](https://arxiv.org/abs/1905.02383), corollary 3.3.
    """
    if not first or not second:
        return 0.0
    # Neither squares nor their sum overflow.
    return 1.0 / math.hypot(1.0 / first, 1.0 / second)


def other_noise_multiplier(joint: float, first: float) -> float:
    """The noise multiplier that a release must have beside another.

    Args:
        joint: What both together must have at least.
        first: That of the other.

    Returns:
        The least that gives `joint` together with `first`.

    Raises:
        ValueError: If `first` is not above `joint`: nothing is left then.
    """
    if not first > joint:
        raise ValueError(
            f"A noise multiplier of {first:g} spends the whole budget, which "
            f"asks for {joint:g} of both releases together. Raise it."
        )
    # The margin is for rounding, of which the difference has most.
    part = math.sqrt((1.0 / joint - 1.0 / first) * (1.0 / joint + 1.0 / first))
    return (1.0 + 1e-9) / part
