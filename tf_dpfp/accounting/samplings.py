"""Kinds of sampling: how the examples of a step were chosen.

A kind is `by_position` if the step of an example may depend on how many
examples come before it. To add or remove one example then moves others from
one step to the next.
"""

import dataclasses
from typing import ClassVar

from tf_dpfp import arguments


@dataclasses.dataclass(frozen=True)
class PoissonSampling:
    """Poisson sampling: each example joins each step independently.

    Args:
        sampling_rate: Probability with which an example is in a step, in
            (0, 1].
        overflow_probability: Upper bound, for any neighbouring data set, on
            the probability that one step drew more examples than its
            statically padded batch holds, so that surplus examples were
            dropped. 0 if batches have as many examples as were drawn.

    Raises:
        ValueError: If a probability is outside its range.
    """

    by_position: ClassVar[bool] = False

    sampling_rate: float
    overflow_probability: float = 0.0

    def __post_init__(self):
        rate = arguments.number(
            "sampling_rate",
            self.sampling_rate,
            above=0.0,
            most=1.0,
            hint="It is the expected batch size over the number of examples.",
        )
        overflow = arguments.number(
            "overflow_probability",
            self.overflow_probability,
            least=0.0,
            most=1.0,
        )
        object.__setattr__(self, "sampling_rate", rate)
        object.__setattr__(self, "overflow_probability", overflow)

    @property
    def proved_rate(self) -> float:
        """Sampling rate that the accountant may rely on."""
        return self.sampling_rate


@dataclasses.dataclass(frozen=True)
class CyclicPoissonSampling(PoissonSampling):
    """Poisson sampling from one part of the examples after the other.

    Each example belongs to one of `parts` parts, by a coin of its own, and
    step t draws from part t mod `parts` alone. So an example is in steps that
    are a multiple of `parts` apart, and of T steps in a row in at most
    ceil(T / `parts`).

    An entry counts steps, and `parts - 1` more for each time that the cycle
    began anew: a whole number of parts then is at least the sum of the
    ceilings (`LedgerEntry.rounds`).

    Args:
        sampling_rate: Probability with which an example of the part is in a
            step, in (0, 1].
        overflow_probability: See `PoissonSampling`; of one step.
        parts: Number of parts, at least 2.

    Raises:
        ValueError: If an argument is outside its range.
    """

    # The default is never right; a field after others must have one.
    parts: int = 0

    def __post_init__(self):
        super().__post_init__()
        parts = arguments.integer("parts", self.parts, least=2)
        object.__setattr__(self, "parts", parts)


@dataclasses.dataclass(frozen=True)
class UnknownSampling:
    """Batches of an ordinary pipeline, about which nothing is proved.

    The accountant assumes every example in every step, at most once per step,
    and that an example added or removed moves all others by one place.
    The two sizes change no guarantee; the privacy statement uses them for the
    figures that would hold under further conditions.

    Args:
        population: Number of examples, if known.
        batch_size: Number of examples of a step, if known.

    Raises:
        ValueError: If a size is not a positive integer.
    """

    by_position: ClassVar[bool] = True

    population: int | None = None
    batch_size: int | None = None

    def __post_init__(self):
        for name in ("population", "batch_size"):
            value = getattr(self, name)
            if value is not None:
                size = arguments.positive_integer(name, value)
                object.__setattr__(self, name, size)

    @property
    def proved_rate(self) -> float:
        """Sampling rate that the accountant may rely on: 1."""
        return 1.0


@dataclasses.dataclass(frozen=True)
class WithoutReplacement:
    """Draws of a fixed number of examples of one label, without replacement.

    Each draw takes `sample_size` of the `population` examples of a label. All
    subsets are equally likely, their order is random, and draws are
    independent of each other. Labels are drawn from separately; the entry
    describes the label whose examples are drawn most often.

    Args:
        population: Number of examples of the label.
        sample_size: Number of them in a draw.

    Raises:
        ValueError: If a number is not a positive integer, or `sample_size` is
            above `population`.

    Example:

    >>> WithoutReplacement(population=200, sample_size=5).sampling_rate
    0.025
    """

    by_position: ClassVar[bool] = False

    population: int
    sample_size: int

    def __post_init__(self):
        for name in ("population", "sample_size"):
            count = arguments.positive_integer(name, getattr(self, name))
            object.__setattr__(self, name, count)
        if self.sample_size > self.population:
            raise ValueError(
                "`sample_size` must not be above `population`: a draw without "
                "replacement takes an example at most once. Received: "
                f"sample_size={self.sample_size}, population={self.population}"
            )

    @property
    def sampling_rate(self) -> float:
        """Probability with which an example is in a draw."""
        return self.sample_size / self.population

    @property
    def proved_rate(self) -> float:
        """Sampling rate that the accountant may rely on."""
        return self.sampling_rate


@dataclasses.dataclass(frozen=True)
class EveryLabel:
    """One pass over all labels of a data set, to randomise each once.

    Args:
        num_classes: Number of classes.
        identity: Number that is unique to this randomisation. Several
            trainings on the same randomised labels then cost their epsilon
            once.

    Raises:
        ValueError: If there are fewer than two classes, or a number is not an
            integer.
    """

    by_position: ClassVar[bool] = False

    num_classes: int
    identity: int

    def __post_init__(self):
        for name, least in (("num_classes", 2), ("identity", 0)):
            count = arguments.integer(name, getattr(self, name), least=least)
            object.__setattr__(self, name, count)

    @property
    def proved_rate(self) -> float:
        """Sampling rate that the accountant may rely on: 1."""
        return 1.0


@dataclasses.dataclass(frozen=True)
class EveryExample:
    """One pass over all examples, each of them once: no sampling."""

    by_position: ClassVar[bool] = False

    @property
    def proved_rate(self) -> float:
        """Sampling rate that the accountant may rely on: 1."""
        return 1.0


Sampling = (
    PoissonSampling
    | UnknownSampling
    | WithoutReplacement
    | EveryLabel
    | EveryExample
)
