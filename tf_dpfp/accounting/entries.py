"""What ran, in the words the accountant needs.

A `LedgerEntry` says that some number of steps released a Gaussian-noised sum
of clipped contributions, or noised rows of clipped representations, and how
the examples of each step were chosen. It holds no state of its own: optimizers
and layers count, these describe.
"""

import dataclasses
import enum
import math
import operator
from collections.abc import Iterable

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


@dataclasses.dataclass(frozen=True)
class WithoutReplacement:
    """A fixed number of rows of one stratum, drawn without replacement.

    A stratum is the examples of one label. Each draw takes `sample_size` of
    its `population` examples, all subsets being equally likely, in random
    order, independently of all other draws. Of the strata of a data set this
    is the one in which an example is drawn most often.

    Args:
        population: Number of examples of the stratum.
        sample_size: Number of them in a draw.

    Raises:
        ValueError: If more are drawn than there are, or none.
    """

    population: int
    sample_size: int

    def __post_init__(self):
        for name in ("population", "sample_size"):
            count = _checked_count(name, getattr(self, name), 1)
            object.__setattr__(self, name, count)
        if self.sample_size > self.population:
            raise ValueError(
                "sample_size must not be above population: a draw without "
                "replacement takes an example at most once. Received: "
                f"{self.sample_size} of {self.population}."
            )

    @property
    def sampling_rate(self) -> float:
        """Probability with which an example is in a draw."""
        return self.sample_size / self.population


@dataclasses.dataclass(frozen=True)
class EveryLabel:
    """All labels of a data set, each randomised once.

    Args:
        num_classes: Number of classes.
        identity: A number of its own for each randomisation, so that the use
            of one in several trainings is told from several.

    Raises:
        ValueError: If there are fewer than two classes.
    """

    num_classes: int
    identity: int

    def __post_init__(self):
        for name, minimum in (("num_classes", 2), ("identity", 0)):
            count = _checked_count(name, getattr(self, name), minimum)
            object.__setattr__(self, name, count)


Sampling = PoissonSampling | UnknownSampling | WithoutReplacement | EveryLabel


class Release(enum.IntEnum):
    """What a step releases. The numbers are part of saved models."""

    # Clipped contributions, added up, plus noise.
    SUMS = 0
    # Clipped representations, one row for each example, plus noise. Labels
    # are declared public, randomised before, or neither.
    ROWS_LABELS_PUBLIC = 1
    ROWS_LABELS_RANDOMIZED = 2
    ROWS_LABELS_UNDECLARED = 3
    # Such rows, and gradients that went past their noise.
    ROWS_END_TO_END = 4
    # Labels, by randomised response.
    LABELS = 5
    # Rows, and of the same examples clipped contributions to the gradient of
    # what makes the rows, added up, plus noise.
    ROWS_AND_SUMS_LABELS_PUBLIC = 6
    ROWS_AND_SUMS_LABELS_RANDOMIZED = 7
    ROWS_AND_SUMS_LABELS_UNDECLARED = 8

    @property
    def is_rows(self) -> bool:
        """Whether it is of rows, alone or with sums."""
        alone = Release.ROWS_LABELS_PUBLIC <= self <= Release.ROWS_END_TO_END
        return alone or self.is_rows_and_sums

    @property
    def is_rows_and_sums(self) -> bool:
        """Whether it is of rows and sums of the same examples."""
        return self >= Release.ROWS_AND_SUMS_LABELS_PUBLIC

    @property
    def with_sums(self) -> "Release":
        """What rows are with sums of the same examples beside them.

        Raises:
            KeyError: If it is not a release of rows with a noised gradient.
        """
        return {
            Release.ROWS_LABELS_PUBLIC: Release.ROWS_AND_SUMS_LABELS_PUBLIC,
            Release.ROWS_LABELS_RANDOMIZED: (
                Release.ROWS_AND_SUMS_LABELS_RANDOMIZED
            ),
            Release.ROWS_LABELS_UNDECLARED: (
                Release.ROWS_AND_SUMS_LABELS_UNDECLARED
            ),
        }[self]


@dataclasses.dataclass(frozen=True)
class LedgerEntry:
    """`steps` releases of one sampled mechanism.

    Args:
        sampling: How the examples of each step were chosen.
        noise_multiplier: Standard deviation of the noise over the clip bound.
            Of rows and sums together, `joint_noise_multiplier` of the two. Of
            randomised labels, one over their epsilon. 0 means that no noise
            was added.
        steps: Number of releases: optimizer updates, not micro-batches; of
            rows, the number of draws.
        seeded: Whether the noise or the choice of examples came from a seed
            that the user chose. It changes no epsilon and is told in the
            privacy statement.
        release: What was released.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is outside its range.
    """

    sampling: Sampling
    noise_multiplier: float
    steps: int
    seeded: bool = False
    release: Release = Release.SUMS

    def __post_init__(self):
        if not isinstance(self.sampling, Sampling):
            raise TypeError(
                "sampling must be a PoissonSampling, an UnknownSampling, a "
                "WithoutReplacement or an EveryLabel. Received: "
                f"{self.sampling!r}."
            )
        object.__setattr__(self, "release", Release(self.release))
        self._check_release()
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

    def _check_release(self) -> None:
        """Raises where no proof covers a release of what was so sampled."""
        kinds = {
            PoissonSampling: self.release is Release.SUMS,
            WithoutReplacement: self.release.is_rows,
            EveryLabel: self.release is Release.LABELS,
            UnknownSampling: self.release is not Release.LABELS,
        }
        if not kinds[type(self.sampling)]:
            raise ValueError(
                f"A release of kind {self.release.name} can't be accounted "
                f"for with {self.sampling!r}. Use UnknownSampling, which "
                "claims nothing."
            )

    @property
    def is_bare(self) -> bool:
        """Whether it protects nothing: epsilon is infinite."""
        return self.noise_multiplier == 0.0 or self.release in (
            Release.ROWS_LABELS_UNDECLARED,
            Release.ROWS_AND_SUMS_LABELS_UNDECLARED,
            Release.ROWS_END_TO_END,
        )


def replaces_one(entries: Iterable[LedgerEntry]) -> bool:
    """Whether the entries are accounted for by replace-one adjacency.

    Rows and labels are: one of each is there for every example, so no example
    can be left out unseen. With them, everything is; adjacencies do not mix.

    Args:
        entries: What ran.

    Returns:
        Whether any of it is not a release of sums.
    """
    return any(
        entry.release is not Release.SUMS for entry in entries if entry.steps
    )
