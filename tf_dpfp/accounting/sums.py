"""Renyi divergences of noised sums of clipped gradients.

Neighbours differ by one example added or removed. The divergences themselves
are dp_accounting's; here they are rounded up, and completed where its series
fail.

Reference:
    - [Renyi differential privacy of the sampled Gaussian
      mechanism](https://arxiv.org/abs/1908.10530)
"""

import contextlib
import functools
import logging as std_logging
from collections.abc import Iterator

import numpy as np
from absl import logging

from tf_dpfp.late_imports import dp_accounting
from tf_dpfp.late_imports import rdp
from tf_dpfp.late_imports import special

# Rounding of the logarithm of the RDP moment, measured below 3e-13 against
# 40-digit quadrature. Added, so that rounding never lowers epsilon: with tiny
# sampling rates the moment itself is that small.
_MOMENT_ROUNDING = 1e-12

# Greater noise is accounted for as this much, which never gives less epsilon:
# squares of larger values overflow.
_MAX_NOISE_MULTIPLIER = 1e9

# With less noise than this no amplification is claimed: dp_accounting's series
# would meet infinities, and might then never end.
_MIN_SAMPLED_NOISE_MULTIPLIER = 1e-6


@functools.cache
def orders() -> np.ndarray:
    """Returns the orders at which Renyi divergences are computed."""
    return rdp.RdpAccountant().orders


@functools.lru_cache(maxsize=1024)
def sampled_rdp(sampling_rate: float, noise_multiplier: float) -> np.ndarray:
    """Computes the RDP of one Poisson-sampled step.

    A Poisson-sampled Gaussian is never less private than the Gaussian itself,
    and its moment is below the chord of the integer orders around. So these
    bounds stand in for orders at which the numerical RDP fails or is greater
    (extreme parameters; newer versions of dp_accounting also drop fractional
    orders whose series converges slowly, as at rates above 0.3, and round the
    others up).

    Args:
        sampling_rate: Probability with which an example is in the step, in
            (0, 1].
        noise_multiplier: Standard deviation of the noise over the sensitivity.

    Returns:
        An upper bound at each of `orders()`.
    """
    noise_multiplier = min(noise_multiplier, _MAX_NOISE_MULTIPLIER)
    with np.errstate(all="ignore"):
        vector = orders() / 2.0 / noise_multiplier / noise_multiplier
        if (
            sampling_rate < 1.0
            and noise_multiplier >= _MIN_SAMPLED_NOISE_MULTIPLIER
        ):
            sampled = _series_rdp(sampling_rate, noise_multiplier, orders())
            # fmin takes the other value where one is NaN.
            vector = np.fmin(sampled, vector)
            quick = quick_sampled_rdp(sampling_rate, noise_multiplier)
            vector = np.fmin(vector, quick)
    # The cache hands out this very array.
    vector.setflags(write=False)
    return vector


@functools.lru_cache(maxsize=65536)
def sampled_rdp_at(
    sampling_rate: float, noise_multiplier: float, order: float
) -> float:
    """Computes `sampled_rdp` at one of `orders()` alone.

    Args:
        sampling_rate: Probability with which an example is in the step, in
            (0, 1].
        noise_multiplier: Standard deviation of the noise over the sensitivity.
        order: The order.

    Returns:
        An upper bound; that of `sampled_rdp`.
    """
    noise_multiplier = min(noise_multiplier, _MAX_NOISE_MULTIPLIER)
    with np.errstate(all="ignore"):
        found = order / 2.0 / noise_multiplier / noise_multiplier
        if (
            sampling_rate < 1.0
            and noise_multiplier >= _MIN_SAMPLED_NOISE_MULTIPLIER
        ):
            at = np.array([order])
            (sampled,) = _series_rdp(sampling_rate, noise_multiplier, at)
            quick = quick_sampled_rdp(sampling_rate, noise_multiplier)
            by_chord = quick[np.searchsorted(orders(), order)]
            found = np.fmin(np.fmin(sampled, found), by_chord)
    return float(found)


@functools.lru_cache(maxsize=2048)
def least_sampled_rdp(
    sampling_rate: float, noise_multiplier: float
) -> np.ndarray:
    """Bounds the RDP of one Poisson-sampled step from below, quickly.

    The logarithm of the moment is convex in the order: between two integers it
    is above the chords of their neighbours, drawn on. And by Pinsker's
    inequality no order has less than twice the square of the total variation.
    This tells at which orders the RDP itself is worth its time; it is no figure
    of privacy.

    Args:
        sampling_rate: Probability with which an example is in the step, in
            (0, 1].
        noise_multiplier: Standard deviation of the noise over the sensitivity.

    Returns:
        A lower bound at each of `orders()`, for a rate below 1.
    """
    at = orders()
    noise_multiplier = min(noise_multiplier, _MAX_NOISE_MULTIPLIER)
    variation = sampling_rate * special.erf(8.0**-0.5 / noise_multiplier)
    by_variation = np.full_like(at, 2.0 * variation * variation)
    if noise_multiplier < _MIN_SAMPLED_NOISE_MULTIPLIER:
        return by_variation
    # At orders 0 and 1 the moment is 1.
    anchors = np.concatenate([[0.0, 1.0], _integer_orders()])
    moments = np.concatenate(
        [[0.0, 0.0], _integer_moments(sampling_rate, noise_multiplier)]
    )
    slopes = np.diff(moments) / np.diff(anchors)
    after = np.searchsorted(anchors, at)
    from_below = moments[after - 1] + slopes[after - 2] * (
        at - anchors[after - 1]
    )
    beyond = np.minimum(after, len(slopes) - 1)
    from_above = moments[after] - slopes[beyond] * (anchors[after] - at)
    drawn_on = np.maximum(from_below, from_above) / (at - 1.0)
    known = np.isin(at, anchors)
    bound = np.where(known, moments[after] / (at - 1.0), drawn_on)
    bound = np.maximum(bound - 1e-11 / (at - 1.0), by_variation)
    return bound * (1.0 - 1e-9)


@functools.lru_cache(maxsize=2048)
def quick_sampled_rdp(
    sampling_rate: float, noise_multiplier: float
) -> np.ndarray:
    """Bounds the RDP of one Poisson-sampled step in about a millisecond.

    At integer orders it is the RDP itself. Between them the logarithm of the
    moment, which is convex in the order, is below its chord.

    Args:
        sampling_rate: Probability with which an example is in the step, in
            (0, 1].
        noise_multiplier: Standard deviation of the noise over the sensitivity.

    Returns:
        An upper bound at each of `orders()`.
    """
    noise_multiplier = min(noise_multiplier, _MAX_NOISE_MULTIPLIER)
    with np.errstate(all="ignore"):
        vector = orders() / 2.0 / noise_multiplier / noise_multiplier
        if (
            sampling_rate < 1.0
            and noise_multiplier >= _MIN_SAMPLED_NOISE_MULTIPLIER
        ):
            anchors = _integer_orders()
            moments = _integer_moments(sampling_rate, noise_multiplier)
            at = along_chords(anchors, moments, orders())
            rounding = _MOMENT_ROUNDING * (1.0 / (orders() - 1.0) + at)
            vector = np.fmin(at + rounding, vector)
    vector.setflags(write=False)
    return vector


def along_chords(
    anchors: np.ndarray, moments: np.ndarray, at: np.ndarray
) -> np.ndarray:
    """Bounds RDP between orders at which it is known.

    Args:
        anchors: Orders above 1, rising.
        moments: Logarithms of the moments there: `order - 1` times the RDP.
        at: Orders, none of them above the greatest anchor.

    Returns:
        An upper bound of the RDP at each order.

    Raises:
        ValueError: If an order is above all anchors.
    """
    if at.max() > anchors.max():
        raise ValueError(
            "Nothing is known above the greatest order. Received: "
            f"at={at.max()}, anchors={anchors.max()}"
        )
    anchors = np.concatenate([[1.0], anchors])
    moments = np.concatenate([[0.0], np.maximum(moments, 0.0)])
    return np.interp(at, anchors, moments) / (at - 1.0)


@functools.cache
def _integer_orders() -> np.ndarray:
    return np.array([o for o in orders() if float(o).is_integer()])


@functools.cache
def _log_binomials() -> np.ndarray:
    """Logarithms of k out of each integer order; -inf beyond it."""
    order = _integer_orders()[:, None]
    k = np.arange(order.max() + 1.0)[None, :]
    with np.errstate(all="ignore"):
        found = (
            special.gammaln(order + 1.0)
            - special.gammaln(k + 1.0)
            - special.gammaln(order - k + 1.0)
        )
    return np.where(k <= order, found, -np.inf)


def _integer_moments(rate: float, noise_multiplier: float) -> np.ndarray:
    """Computes logarithms of moments by the binomial sum of positive terms."""
    order = _integer_orders()[:, None]
    k = np.arange(order.max() + 1.0)[None, :]
    terms = (
        _log_binomials()
        + np.maximum(order - k, 0.0) * np.log1p(-rate)
        + k * np.log(rate)
        + k * (k - 1.0) / 2.0 / noise_multiplier / noise_multiplier
    )
    return special.logsumexp(terms, axis=1)


def _series_rdp(
    sampling_rate: float, noise_multiplier: float, at: np.ndarray
) -> np.ndarray:
    """Computes dp_accounting's RDP, rounded up; infinity where it fails."""
    event = dp_accounting.PoissonSampledDpEvent(
        sampling_rate, dp_accounting.GaussianDpEvent(noise_multiplier)
    )
    try:
        with _silence_dropped_orders():
            vector = rdp.RdpAccountant(at).compose(event).rdp
    except (ArithmeticError, ValueError):
        return np.full_like(at, np.inf)
    vector = np.maximum(vector, 0.0)
    return vector + _MOMENT_ROUNDING * (1.0 / (at - 1.0) + vector)


@contextlib.contextmanager
def _silence_dropped_orders() -> Iterator[None]:
    """Hides dp_accounting's warning about each order it drops.

    Leaving out an order can only raise epsilon, and `sampled_rdp` fills the
    gap with a bound that holds; the user has nothing to do about it.
    """

    def keep(record: std_logging.LogRecord) -> bool:
        return "failed to converge" not in str(record.msg)

    logger = logging.get_absl_logger()
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
