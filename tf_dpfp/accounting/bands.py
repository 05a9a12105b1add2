"""Number of bands of correlated noise: what each gains at equal epsilon.

More bands cancel more of the noise in prefix sums, and leave examples in fewer
parts, each drawn at a higher rate: there is less amplification. What is best
depends on the steps, the rate and the budget, and is often 1 where there are
many passes over the data.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from tf_dpfp import arguments
from tf_dpfp.accounting import banded
from tf_dpfp.accounting import calibration
from tf_dpfp.accounting import entries as entries_lib
from tf_dpfp.accounting import releases
from tf_dpfp.accounting import samplings

# More take more memory, and gained nothing in the trainings compared.
MOST_BANDS = 64
# Of the noise multiplier; errors are compared more coarsely.
_TOLERANCE = 1e-3
# The error is no accuracy: a smaller gain is not worth the memory.
_LEAST_GAIN = 0.05
_ABOUT_EQUAL = 0.01


@dataclasses.dataclass(frozen=True)
class BandsChoice:
    """What a number of bands gives, at the same epsilon as all others.

    Attributes:
        bands: The number; 1 is independent noise.
        noise_multiplier: Noise multiplier that meets the budget.
        relative_error: Error of prefix sums over that of independent noise:
            below 1 is a gain.
    """

    bands: int
    noise_multiplier: float
    relative_error: float


def sampled_entry(
    bands: int,
    noise_multiplier: float,
    steps: int,
    population: int,
    expected_batch_size: float,
) -> entries_lib.LedgerEntry:
    """Returns the entry of a training without interruption.

    Args:
        bands: Number of bands, and of the parts of the data.
        noise_multiplier: Standard deviation of the noise over the clip norm.
        steps: Number of steps.
        population: Number of examples.
        expected_batch_size: Mean number of examples in a batch.
    """
    rate = expected_batch_size * bands / population
    if bands == 1:
        return entries_lib.LedgerEntry(
            samplings.PoissonSampling(rate), noise_multiplier, steps
        )
    return entries_lib.LedgerEntry(
        samplings.CyclicPoissonSampling(rate, parts=bands),
        noise_multiplier,
        steps + bands - 1,
        release=releases.BandedSums(bands),
    )


def compare_bands(
    epsilon: float,
    delta: float,
    population: int,
    expected_batch_size: float,
    steps: int,
    bands: Iterable[int] | None = None,
) -> list[BandsChoice]:
    """Compares numbers of bands of correlated noise at equal epsilon.

    The error is that of the sums of the noise of the first t steps, in root
    mean square over t. It is no accuracy: it shows how much less noise weights
    hold that plain SGD made.

    Args:
        epsilon: Budget, above 0.
        delta: Probability with which the guarantee may fail, in (0, 1).
        population: Number of examples.
        expected_batch_size: Mean number of examples in a batch.
        steps: Number of steps.
        bands: Numbers to compare; by default powers of two for as long as the
            error falls.

    Returns:
        What each gives, in order.

    Raises:
        ValueError: If an argument is out of range, or no noise meets the
            budget.

    Example:

    >>> found = compare_bands(
    ...     3.0, 1e-5, 100_000, 1024, steps=293, bands=[1, 4]
    ... )
    >>> [round(each.relative_error, 2) for each in found]
    [1.0, 0.69]
    """
    population = arguments.positive_integer("population", population)
    steps = arguments.positive_integer("steps", steps)
    size = arguments.number(
        "expected_batch_size", expected_batch_size, above=0, most=population
    )

    def released(count: int, noise: float) -> Sequence[entries_lib.LedgerEntry]:
        return [sampled_entry(count, noise, steps, population, size)]

    most = min(int(population / size), steps)
    chosen = powers(most) if bands is None else list(bands)
    for count in chosen:
        arguments.integer("bands", count, least=1, most=most)
    return compare(released, epsilon, delta, steps, chosen, bands is None)


def compare(
    released: Callable[[int, float], Sequence[entries_lib.LedgerEntry]],
    epsilon: float,
    delta: float,
    steps: int,
    candidates: Iterable[int],
    while_it_falls: bool = True,
) -> list[BandsChoice]:
    """Compares numbers of bands of any training.

    Args:
        released: Function from a number of bands and a noise multiplier to the
            ledger entries of the training.
        epsilon: Budget, above 0.
        delta: Probability with which the guarantee may fail, in (0, 1).
        steps: Number of steps that follow.
        candidates: Numbers to compare.
        while_it_falls: End where the error has risen twice.

    Returns:
        What each gives.
    """
    found: list[BandsChoice] = []
    alone = _error(released, 1, epsilon, delta, steps)[1]
    for bands in candidates:
        noise, error = _error(released, bands, epsilon, delta, steps)
        found.append(BandsChoice(bands, noise, error / alone))
        last = [each.relative_error for each in found[-3:]]
        if while_it_falls and len(last) == 3 and last == sorted(last):
            break
    return found


def best(found: Sequence[BandsChoice]) -> BandsChoice:
    """Returns the fewest bands of about the least error.

    That is 1 where no other gains 5 %.

    Args:
        found: Result of `compare`, beginning with 1.
    """
    least = min(each.relative_error for each in found)
    if least > 1.0 - _LEAST_GAIN:
        return found[0]
    return next(e for e in found if e.relative_error <= least + _ABOUT_EQUAL)


def powers(most: int) -> list[int]:
    """Returns numbers of bands to compare: powers of two, beginning with 1.

    Args:
        most: Greatest number of bands that can be.
    """
    found = [1]
    while 2 * found[-1] <= min(most, MOST_BANDS):
        found.append(2 * found[-1])
    return found


def _error(
    released: Callable[[int, float], Sequence[entries_lib.LedgerEntry]],
    bands: int,
    epsilon: float,
    delta: float,
    steps: int,
) -> tuple[float, float]:
    noise = calibration.least_noise(
        lambda multiplier: released(bands, multiplier),
        epsilon,
        delta,
        tolerance=_TOLERANCE,
    )
    strategy = np.asarray(banded.coefficients(bands, steps))
    return noise, noise * banded.relative_error(strategy, steps)
