"""What ran, in the words the accountant needs.

A `LedgerEntry` says that some number of steps released a Gaussian-noised sum
of clipped contributions, and how the examples of each step were chosen. It
holds no state of its own: the optimizer counts, these describe.
"""

import dataclasses
import math
import operator

# Counts beyond this are not exact in float64, in which the ledger keeps them.
MAX_COUNT = 2**53


def _checked_float(name: str, value: float) -> float:
    """Returns `value` as a finite Python float, or raises."""
    if isinstance(value, (bool, str)):
        raise TypeError(f"{name} must be a number. Received: {value!r}.")
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name} must be a number. Received: {value!r}."
        ) from error
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite. Received: {value!r}.")
    return number


def _checked_count(name: str, value: int, minimum: int) -> int:
    """Returns `value` as a Python int of at least `minimum`, or raises."""
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an integer. Received: {value!r}.")
    try:
        count = operator.index(value)
    except TypeError as error:
        raise TypeError(
            f"{name} must be an integer. Received: {value!r} of type "
            f"{type(value).__name__}."
        ) from error
    if not minimum <= count <= MAX_COUNT:
        raise ValueError(
            f"{name} must be between {minimum} and 2**53. Received: {count}."
        )
    return count


@dataclasses.dataclass(frozen=True)
class PoissonSampling:
    """Each example joins each step independently with the same probability.

    Args:
        sampling_rate: Probability with which an example is in a step, in
            (0, 1].
        overflow_probability: Upper bound, for any neighbouring data set, on
            the probability that one step drew more examples than its
            statically padded batch holds, so that surplus examples were
            dropped. 0 when batches have as many examples as were drawn.

    Raises:
        ValueError: If a probability is outside its range.
    """

    sampling_rate: float
    overflow_probability: float = 0.0

    def __post_init__(self):
        rate = _checked_float("sampling_rate", self.sampling_rate)
        if not 0.0 < rate <= 1.0:
            raise ValueError(
                "sampling_rate must be in (0, 1]: it is the expected batch "
                f"size over the number of examples. Received: {rate}."
            )
        overflow = _checked_float(
            "overflow_probability", self.overflow_probability
        )
        if not 0.0 <= overflow <= 1.0:
            raise ValueError(
                f"overflow_probability must be in [0, 1]. Received: {overflow}."
            )
        object.__setattr__(self, "sampling_rate", rate)
        object.__setattr__(self, "overflow_probability", overflow)


@dataclasses.dataclass(frozen=True)
class UnknownSampling:
    """An ordinary pipeline: nothing is proved about who is in which step.

    The accountant takes every example to be in every step, at most once per
    step. The two sizes change no guarantee; they only let the privacy
    statement say what would hold under further conditions.

    Args:
        population: Number of examples, if known.
        batch_size: Number of examples of a step, if known.

    Raises:
        ValueError: If a size is not positive.
    """

    population: int | None = None
    batch_size: int | None = None

    def __post_init__(self):
        for name in ("population", "batch_size"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _checked_count(name, value, 1))


Sampling = PoissonSampling | UnknownSampling


@dataclasses.dataclass(frozen=True)
class LedgerEntry:
    """`steps` releases of one sampled Gaussian mechanism.

    Args:
        sampling: How the examples of each step were chosen.
        noise_multiplier: Standard deviation of the noise over the L2
            sensitivity of the released sum. Two data sets are neighbours when
            one has one example more than the other, so the sensitivity is
            the clip bound. 0 means that no noise was added.
        steps: Number of releases: optimizer updates, not micro-batches.
        seeded: Whether the noise or the choice of examples came from a seed
            that the user chose. It changes no epsilon and is told in the
            privacy statement.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is outside its range.
    """

    sampling: Sampling
    noise_multiplier: float
    steps: int
    seeded: bool = False

    def __post_init__(self):
        if not isinstance(self.sampling, Sampling):
            raise TypeError(
                "sampling must be a PoissonSampling or an UnknownSampling. "
                f"Received: {self.sampling!r}."
            )
        noise = _checked_float("noise_multiplier", self.noise_multiplier)
        if noise < 0.0:
            raise ValueError(
                "noise_multiplier must not be negative; 0 trains without "
                f"privacy. Received: {noise}."
            )
        # `+ 0.0` turns -0.0 into 0.0, so that equal entries are written alike.
        object.__setattr__(self, "noise_multiplier", noise + 0.0)
        object.__setattr__(
            self, "steps", _checked_count("steps", self.steps, 0)
        )
