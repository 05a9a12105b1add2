"""Renyi divergences of noised representations and randomised labels.

Neighbours differ in what one example is (replace-one).

**Representations.** A draw takes a fixed number of the examples of one label
without replacement, in random order, and releases the representation of each
with Gaussian noise. If two draws differ in one example, the release is a
mixture, over the order, of Gaussians of which one representation has moved by
at most twice the clip norm. With `P = N(mu, 1)`, `Q = N(0, 1)`, `mu` that
distance over the standard deviation, and `H_a` the hockey-stick divergence, it
is dominated by `(P, Q)`. The same holds for a draw with the replaced example
against a draw with another one in its place. With the probability q that the
example is drawn, the release is then dominated, for neighbouring data sets, by

    H_a((1 - q) Q + q P || Q)  for a >= 1,
    1 - a + a H_{1/a}((1 - q) Q + q P || Q)  for a < 1,

where the second is the first with the data sets exchanged. This is the profile
of one pair of distributions. Let r(x) = 1 - q + q exp(mu x - mu^2 / 2). Losses
`log r(x)` above 0 have the density of x under `(1 - q) Q + q P`, losses below
0 mirror them (at -l, exp(-l) times the density at l), and the rest has loss 0.
Divergences compose as those of this pair, and its Renyi moment is

    1 + int_{mu/2}^inf phi(x) (r^(o-1) - 1) (r - r^(1-o)) dx    (order o).

**Persons** are drawn by coins, and their rows show it. With the coin shown, a
step has the divergence of a mixture whose parts are known: `shown_rdp`.

**Labels.** Randomised response over K classes keeps a label with probability
`exp(e) / (exp(e) + K - 1)`, and replaces it by each of the others with the same
share of the rest.

Reference:
    - [Privacy amplification by subsampling: tight analyses via couplings and
      divergences](https://arxiv.org/abs/1807.01647)
    - [Optimal accounting of differential privacy via characteristic
      function](https://arxiv.org/abs/2106.08567)
"""

import functools
import math

import numpy as np

from tf_dpfp.accounting import sums
from tf_dpfp.late_imports import special

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
# Greater noise is accounted for as this much, which never gives less epsilon.
_MAX_NOISE_MULTIPLIER = 1e9
# Beyond this the moments are astronomical, and no amplification is claimed.
_MAX_EXPONENT = 100.0
# Above the error of the quadrature, measured below 1e-13.
_MARGIN = 1.0 + 1e-9


@functools.lru_cache(maxsize=1024)
def sampled_rdp(
    sampling_rate: float, noise_multiplier: float, orders: tuple[float, ...]
) -> np.ndarray:
    """Computes the RDP of one draw of noised representations.

    Args:
        sampling_rate: Probability with which an example is drawn, in (0, 1].
        noise_multiplier: Standard deviation of the noise over the sensitivity,
            which is twice the clip norm.
        orders: Orders above 1.

    Returns:
        An upper bound at each order.
    """
    # So little noise may have become zero by division.
    if noise_multiplier == 0.0:
        return np.full(len(orders), np.inf)
    shift = 1.0 / min(noise_multiplier, _MAX_NOISE_MULTIPLIER)
    vector = np.array(
        [_sampled_rdp(sampling_rate, shift, order) for order in orders]
    )
    # The cache hands out this very array.
    vector.setflags(write=False)
    return vector


def _sampled_rdp(rate: float, shift: float, order: float) -> float:
    unsampled = 0.5 * order * shift * shift
    if rate == 1.0 or order * shift > _MAX_EXPONENT:
        return unsampled
    end = order * shift + shift + 12.0
    log_excess = _log_excess(rate, shift, order, end)
    sampled = np.logaddexp(0.0, log_excess) / (order - 1.0) * _MARGIN
    return min(float(sampled), unsampled)


def _log_excess(rate: float, shift: float, order: float, end: float) -> float:
    """Computes the logarithm of the Renyi moment less 1, from above.

    Args:
        rate: Sampling rate, below 1.
        shift: The distance mu.
        order: Order of the moment.
        end: End of the quadrature; beyond it an upper bound is added.

    Returns:
        An upper bound, up to the error of the quadrature.
    """
    start = 0.5 * shift
    # Panels in which neither the Gaussian nor the power of r varies much.
    width = min(0.5, 1.0 / (shift * math.sqrt(order)))
    panels = math.ceil((end - start) / width)
    width = (end - start) / panels
    left = start + width * np.arange(panels)
    x = (left[:, None] + 0.5 * width * (_NODES + 1.0)).ravel()
    weights = np.tile(0.5 * width * _WEIGHTS, panels)
    loss = np.log1p(rate * np.expm1(shift * x - 0.5 * shift * shift))
    log_integrand = (
        order * loss
        + np.log(-np.expm1(-(order - 1.0) * loss))
        + np.log(-np.expm1(-order * loss))
        - 0.5 * x * x
        - 0.5 * math.log(2.0 * math.pi)
    )
    inside = special.logsumexp(log_integrand, b=weights)
    # Beyond `end`, r is below (q + (1 - q) r_end^-1) exp(mu x - mu^2 / 2).
    least = shift * end - 0.5 * shift * shift
    beyond = (
        order * math.log(rate + (1.0 - rate) * math.exp(-least))
        + 0.5 * order * (order - 1.0) * shift * shift
        + special.log_ndtr(order * shift - end)
    )
    return float(np.logaddexp(inside, beyond))


def shown_rdp(
    sampling_rate: float, noise_multiplier: float, orders: tuple[float, ...]
) -> np.ndarray:
    """Computes the RDP of a step that shows who is in it.

    Each is in the step by a coin of their own, and the coin is released, too:
    a Gaussian with probability q, and with 1 - q nothing that differs.

    Args:
        sampling_rate: Probability q of being in the step, in (0, 1].
        noise_multiplier: Standard deviation of the noise over the sensitivity.
        orders: Orders above 1.

    Returns:
        An upper bound at each order.
    """
    order = np.array(orders)
    noise_multiplier = min(noise_multiplier, _MAX_NOISE_MULTIPLIER)
    with np.errstate(over="ignore", divide="ignore"):
        unsampled = 0.5 * order / np.square(noise_multiplier)
        exponent = (order - 1.0) * unsampled
        small = np.log1p(sampling_rate * np.expm1(np.minimum(exponent, 1.0)))
        large = np.logaddexp(
            np.log1p(-sampling_rate), math.log(sampling_rate) + exponent
        )
    log_moment = np.where(exponent <= 1.0, small, large)
    return np.minimum(log_moment * _MARGIN / (order - 1.0), unsampled)


# Orders at which many kinds of draws are computed; between them a bound.
_ANCHORS = (1.5, 2.0, 4.0, 8.0, 16.0, 32.0, 63.0)


@functools.lru_cache(maxsize=2048)
def quick_sampled_rdp(
    sampling_rate: float, noise_multiplier: float, orders: tuple[float, ...]
) -> np.ndarray:
    """Bounds the RDP of one draw by that at a few orders.

    Args:
        sampling_rate: Probability with which an example is drawn, in (0, 1].
        noise_multiplier: Standard deviation of the noise over the sensitivity.
        orders: Orders, above 1.

    Returns:
        An upper bound at each of `orders`.
    """
    at = np.array(orders)
    few = (*_ANCHORS, max(64.0, *orders))
    known = sampled_rdp(sampling_rate, noise_multiplier, few)
    anchors = np.array(few)
    with np.errstate(all="ignore"):
        bound = sums.along_chords(anchors, (anchors - 1.0) * known, at)
    # Where a moment is infinite, so is what is between it and the next.
    bound = np.where(np.isnan(bound), np.inf, bound)
    bound.setflags(write=False)
    return bound


@functools.lru_cache(maxsize=64)
def randomized_response_rdp(
    inverse_epsilon: float, num_classes: int, orders: tuple[float, ...]
) -> np.ndarray:
    """Computes the RDP of randomised response on every label.

    Args:
        inverse_epsilon: One over the epsilon of the randomised response.
        num_classes: Number of classes.
        orders: Orders above 1.

    Returns:
        An upper bound at each order, at most epsilon.
    """
    epsilon = _MARGIN / inverse_epsilon
    log_other = -np.logaddexp(epsilon, math.log(num_classes - 1.0))
    order = np.array(orders)
    log_moment = log_other + np.logaddexp(
        np.logaddexp(order * epsilon, (1.0 - order) * epsilon),
        math.log(num_classes - 2.0) if num_classes > 2 else -np.inf,
    )
    vector = np.minimum(_MARGIN * log_moment / (order - 1.0), epsilon)
    vector = np.maximum(vector, 0.0) + 1e-15
    vector.setflags(write=False)
    return vector
