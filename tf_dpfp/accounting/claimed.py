"""The figure that is claimed for end-to-end training, and not proved."""

import math

from scipy import optimize
from scipy import special

from tf_dpfp.accounting import epsilon as epsilon_lib


def claimed_epsilon(
    noise_multiplier: float, sampling_rate: float, draws: int, delta: float
) -> float:
    """Computes the central-limit figure of noised representations.

    The Gaussian-DP central limit theorem for Poisson-sampled sums, with a
    draw in the place of a step:

        mu = sampling_rate * sqrt(draws * (exp(1 / noise_multiplier^2) - 1)).

    **It proves nothing about a training of this package.** Rows are not sums,
    the theorem is a limit that can lie below the truth, and end to end the
    gradients and the labels are not covered by the noise at all. It is there
    for comparison with published figures; see `privacy_statement` for what is
    proved.

    Args:
        noise_multiplier: Standard deviation of the noise over the clip norm,
            above 0.
        sampling_rate: Probability with which an example is in a draw, in
            (0, 1].
        draws: Number of draws: steps times micro-batches.
        delta: Probability with which the guarantee may fail, in (0, 1).

    Returns:
        The epsilon that is claimed; infinity if it exceeds every number.

    Raises:
        ValueError: If an argument is out of its range.

    Reference:
        - [Deep learning with Gaussian differential
          privacy](https://arxiv.org/abs/1911.11607)
    """
    epsilon_lib.check_delta(delta, "rdp")
    for name, value, most in (
        ("noise_multiplier", noise_multiplier, math.inf),
        ("sampling_rate", sampling_rate, 1.0),
        ("draws", draws, math.inf),
    ):
        if not 0.0 < value <= most or math.isinf(value):
            raise ValueError(
                f"{name} must be finite, above 0 and at most {most:g}. "
                f"Received: {value}."
            )
    try:
        spread = math.expm1(1.0 / noise_multiplier**2)
    except OverflowError:
        return math.inf
    mu = sampling_rate * math.sqrt(draws * spread)

    def surplus(epsilon: float) -> float:
        tail = epsilon + special.log_ndtr(-epsilon / mu - mu / 2.0)
        return special.ndtr(-epsilon / mu + mu / 2.0) - math.exp(tail) - delta

    if surplus(0.0) <= 0.0:
        return 0.0
    # Beyond this the first term alone is below delta.
    most = mu * (mu / 2.0 - special.ndtri(delta)) + 1.0
    return float(optimize.brentq(surplus, 0.0, max(most, 1.0)))
