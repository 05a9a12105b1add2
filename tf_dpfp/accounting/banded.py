"""Banded strategies: coefficients of correlated noise, and what it gains.

Noise w with C w = z, z independent and C lower-triangular, Toeplitz, with b
bands: `w_t = (z_t - sum_j c_j w_(t-j)) / c_0`. What one step adds, later ones
take back in part, so that prefix sums, which weights are made of, hold less
noise.

**Sensitivity.** A column of C is `(c_0, ..., c_(b-1))`, cut off at the end of
the training. Its norm is at most 1, so an example that is in one of b steps in
a row moves `C x` by at most one clip norm, in all rows together (see
`releases.BandedSums`).

**Error.** The prefix sums of the noise are those of `C^-1 z`. With r for the
running sums of the power series of `1 / c(x)`, the noise in the sum of the
first t steps has variance `sum_(i<t) r_i^2`; the error is the root of its mean
over t.

Reference:
    - [(Amplified) banded matrix factorization: a unified approach to private
      training](https://arxiv.org/abs/2306.08153)
    - [Banded square root matrix factorization for differentially private model
      training](https://arxiv.org/abs/2405.13763)
"""

import functools
import math

import numpy as np

from tf_dpfp import arguments
from tf_dpfp.late_imports import optimize
from tf_dpfp.late_imports import signal

# Room for the rounding of coefficients and noise to float32.
_SLACK = 2.0**-20
# Longer trainings have the coefficients of one this long.
_LONGEST = 2**17
_OVERFLOW = 1e4


def square_root(bands: int) -> np.ndarray:
    """Returns the first coefficients of (1 - x)^(-1/2), of norm 1.

    With as many bands as steps they are optimal for one participation, in
    maximum error.

    Args:
        bands: Number of coefficients.
    """
    k = np.arange(1, bands)
    found = np.cumprod(np.concatenate([[1.0], (2 * k - 1) / (2 * k)]))
    return _normed(found)


def _normed(coefficients: np.ndarray) -> np.ndarray:
    return coefficients / math.sqrt(math.fsum(coefficients**2))


@functools.lru_cache(maxsize=256)
def coefficients(bands: int, steps: int) -> tuple[float, ...]:
    """Returns the coefficients of least error for a number of steps.

    Args:
        bands: Number of bands; 1 gives independent noise.
        steps: Number of steps.

    Returns:
        `bands` numbers, of norm below 1 by 2^-20.

    Raises:
        ValueError: If a number is not a positive integer.
    """
    bands = arguments.positive_integer("bands", bands)
    steps = min(arguments.positive_integer("steps", steps), _LONGEST)
    if bands == 1:
        return (1.0,)
    if steps < bands:
        # No step has so many before it.
        few = (1.0 - _SLACK,) if steps == 1 else coefficients(steps, steps)
        return few + (0.0,) * (bands - steps)
    begin = square_root(bands)
    # Trials of its line search may overflow, which only ends them.
    with np.errstate(all="ignore"):
        found = optimize.minimize(
            _log_squared_error,
            begin,
            args=(steps,),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 500, "ftol": 1e-13},
        ).x
    found = _normed(found)
    better = relative_error(found, steps) < relative_error(begin, steps)
    chosen = found if better and _decays(found) else begin
    return tuple((chosen * (1.0 - _SLACK)).tolist())


def relative_error(coefficients: np.ndarray, steps: int) -> float:
    """Computes the error of prefix sums, of noise of deviation 1.

    Args:
        coefficients: Coefficients of C.
        steps: Number of steps.

    Returns:
        The root of the mean variance of the noise in the sums of the first t
        steps, over t from 1 to `steps`.
    """
    sums = np.cumsum(_inverse(np.asarray(coefficients, np.float64), steps))
    return math.sqrt(float(np.sum(_weights(steps) * sums**2)))


def _log_squared_error(
    found: np.ndarray, steps: int
) -> tuple[float, np.ndarray]:
    """Returns the logarithm of error times norm, squared; its gradient."""
    norm = float(found @ found)
    inverse = _inverse(found, steps)
    sums, weights = np.cumsum(inverse), _weights(steps)
    error = float(np.sum(weights * sums**2))
    if not math.isfinite(error):
        return _OVERFLOW, np.zeros_like(found)
    # d sums / d c_k are the sums over c once more, k places later.
    twice = signal.lfilter([1.0], found, sums)
    weighed = -2.0 * weights * sums
    gradient = np.array(
        [weighed[k:] @ twice[: steps - k] for k in range(len(found))]
    )
    return (
        math.log(error) + math.log(norm),
        gradient / error + 2.0 * found / norm,
    )


def _inverse(coefficients: np.ndarray, steps: int) -> np.ndarray:
    """Returns the power series of one over a polynomial."""
    impulse = np.zeros(steps)
    impulse[0] = 1.0
    return signal.lfilter([1.0], coefficients, impulse)


def _weights(steps: int) -> np.ndarray:
    """Returns in how many prefix sums each place is, over their number."""
    return np.arange(steps, 0, -1) / steps


def _decays(coefficients: np.ndarray) -> bool:
    """Tells if rounding in noise that goes back on itself dies out."""
    roots = np.roots(coefficients / coefficients[0])
    return bool(np.all(np.abs(roots) < 1.0 - 1e-9))
