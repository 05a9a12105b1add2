"""Central-limit figure that is claimed for end-to-end training, unproved."""

import math

from tf_dpfp import arguments
from tf_dpfp.accounting import epsilon as epsilon_lib
from tf_dpfp.late_imports import optimize
from tf_dpfp.late_imports import special


def claimed_epsilon(
    noise_multiplier: float, sampling_rate: float, draws: float, delta: float
) -> float:
    """Computes the central-limit figure of noised representations.

    The Gaussian-DP central limit theorem for Poisson-sampled sums, with a
    draw in the place of a step:

        mu = sampling_rate * sqrt(draws * (exp(1 / noise_multiplier^2) - 1)).

    **It proves nothing about a training of this package.** Representations
    are not sums, the theorem is a limit that can lie below the truth, and
    end to end the noise does not cover gradients and labels at all. Use it to
    compare with published figures, and `privacy_statement` for the proved
    guarantee.

    Args:
        noise_multiplier: Standard deviation of the noise over the clip norm,
            above 0.
        sampling_rate: Probability with which an example is in a draw, in
            (0, 1].
        draws: Number of draws of the whole training.
        delta: Probability with which the guarantee may fail, in (0, 1).

    Returns:
        The claimed epsilon; infinity if it exceeds every float.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> round(claimed_epsilon(0.634, 1024 / 67_349, draws=197, delta=7.4e-6), 2)
    3.0

    Reference:
        - [Deep learning with Gaussian differential
          privacy](https://arxiv.org/abs/1911.11607)
    """
    delta = epsilon_lib.check_delta(delta, "rdp")
    noise_multiplier = arguments.number(
        "noise_multiplier", noise_multiplier, above=0.0
    )
    sampling_rate = arguments.number(
        "sampling_rate", sampling_rate, above=0.0, most=1.0
    )
    # Not an integer: published figures come from fractional epochs.
    draws = arguments.number("draws", draws, above=0.0)
    try:
        spread = math.expm1(1.0 / noise_multiplier**2)
    except ArithmeticError:
        return math.inf
    mu = sampling_rate * math.sqrt(draws * spread)
    if math.isinf(mu):
        return math.inf

    def surplus(epsilon: float) -> float:
        tail = epsilon + special.log_ndtr(-epsilon / mu - mu / 2.0)
        return special.ndtr(-epsilon / mu + mu / 2.0) - math.exp(tail) - delta

    if surplus(0.0) <= 0.0:
        return 0.0
    # Beyond this the first term alone is below delta.
    most = mu * (mu / 2.0 - special.ndtri(delta)) + 1.0
    return float(optimize.brentq(surplus, 0.0, max(most, 1.0)))
