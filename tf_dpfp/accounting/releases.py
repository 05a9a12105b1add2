"""Kinds of release: what leaves a step, and how far one example moves it."""

import dataclasses
import enum
from collections.abc import Mapping
from typing import ClassVar

from tf_dpfp import arguments
from tf_dpfp.accounting.samplings import CyclicPoissonSampling
from tf_dpfp.accounting.samplings import EveryExample
from tf_dpfp.accounting.samplings import EveryLabel
from tf_dpfp.accounting.samplings import PoissonSampling
from tf_dpfp.accounting.samplings import UnknownSampling
from tf_dpfp.accounting.samplings import WithoutReplacement


class Adjacency(enum.Enum):
    """Relation between neighbouring data sets, named as in `dp_accounting`.

    Attributes:
        ADD_OR_REMOVE_ONE: One data set has one example more.
        REPLACE_ONE: One example is replaced by another, in its place.
        ZERO_OUT: One example is replaced by one that contributes nothing, and
            all others keep their places (`REPLACE_SPECIAL`).
    """

    ADD_OR_REMOVE_ONE = "add_or_remove"
    REPLACE_ONE = "replace_one"
    ZERO_OUT = "zero_out"


LABELS_PUBLIC = "public"
LABELS_RANDOMIZED = "randomized"
LABELS_UNDECLARED = "undeclared"
LABEL_KINDS = (LABELS_PUBLIC, LABELS_RANDOMIZED, LABELS_UNDECLARED)


class Release:
    """Base class of what a step releases.

    Attributes:
        adjacency: Adjacency of the guarantee. Sums hide whether an example is
            there; representations and labels exist once for each example, so
            they can only hide what the example is.
        unit: Whom the guarantee protects: one `"example"`, or one `"person"`
            with all examples.
        views: Number of views of an example, whose mean is clipped.
        sensitivities: Greatest distance by which one example moves the
            release, in clip norms, for each adjacency that has a proof, while
            all other examples stay in their steps.
        samplings: Kinds of sampling that a proof covers.
        has_representations: True if noised representations are released.
        is_private: False if a part of the release has no noise.
    """

    adjacency: ClassVar[Adjacency] = Adjacency.REPLACE_ONE
    unit: ClassVar[str] = "example"
    views: int = 1
    sensitivities: ClassVar[Mapping[Adjacency, float]] = {}
    samplings: ClassVar[tuple[type, ...]] = ()
    has_representations: ClassVar[bool] = False

    @property
    def is_private(self) -> bool:
        """False if a part of the release has no noise."""
        return True

    @property
    def joint(self) -> "Joint":
        """Release of the representations jointly with clipped gradient sums.

        Raises:
            ValueError: If the gradient is not noised, or nothing but
                representations can stand beside sums.
        """
        raise ValueError(
            "Only noised representations are released jointly with clipped "
            f"gradient sums. Received: {self!r}"
        )

    def of_persons(self, max_examples: int) -> "Release":
        """Returns what is released of persons in place of examples.

        Args:
            max_examples: Greatest number of examples of a person in a step.

        Raises:
            ValueError: If nothing is proved of it.
        """
        raise ValueError(
            "Only representations of one layer are released of persons. "
            f"Received: {self!r}, max_examples={max_examples}"
        )

    def sensitivity(self, adjacency: Adjacency) -> float:
        """Returns how far one example moves the release of its own step.

        `LedgerEntry.sensitivity` adds the examples that it moves between
        steps.

        Args:
            adjacency: Adjacency of the guarantee.

        Returns:
            The sensitivity in clip norms.

        Raises:
            ValueError: If nothing is proved under this adjacency.
        """
        if adjacency not in self.sensitivities:
            raise ValueError(
                f"Nothing is proved about {self!r} under adjacency "
                f"{adjacency.name}."
            )
        return self.sensitivities[adjacency]


@dataclasses.dataclass(frozen=True)
class Sums(Release):
    """Noised sums of clipped gradients: DP-SGD."""

    adjacency = Adjacency.ADD_OR_REMOVE_ONE
    sensitivities = {
        Adjacency.ADD_OR_REMOVE_ONE: 1.0,
        Adjacency.ZERO_OUT: 1.0,
        Adjacency.REPLACE_ONE: 2.0,
    }
    samplings: ClassVar[tuple[type, ...]] = (PoissonSampling, UnknownSampling)


@dataclasses.dataclass(frozen=True)
class PersonSums(Sums):
    """Noised sums of clipped gradients of persons.

    A person's gradient is the sum over up to `max_examples` examples of the
    person, and is clipped as a whole. Neighbours differ by one person with all
    examples: to add or remove one example of a person may move the clipped
    gradient by twice the clip norm.

    Args:
        max_examples: Greatest number of examples of a person in a step.

    Raises:
        ValueError: If it is not a positive integer.
    """

    max_examples: int

    unit = "person"

    def __post_init__(self):
        count = arguments.positive_integer("max_examples", self.max_examples)
        object.__setattr__(self, "max_examples", count)

    @property
    def rows(self) -> int:
        """Number of rows of a batch that are one person."""
        return self.max_examples


@dataclasses.dataclass(frozen=True)
class ViewSums(Sums):
    """Noised sums of clipped gradients of examples with several views.

    An example's gradient is the mean over `views` augmented views of it, and is
    clipped as a whole. So what an example adds has the norm of a clip norm at
    most, and neighbours differ by one example with all of its views.

    Args:
        views: Number of views of an example in a step.

    Raises:
        ValueError: If it is not a positive integer.
    """

    views: int = dataclasses.field()

    def __post_init__(self):
        count = arguments.positive_integer("views", self.views)
        object.__setattr__(self, "views", count)

    @property
    def rows(self) -> int:
        """Number of rows of a batch that are one example."""
        return self.views


@dataclasses.dataclass(frozen=True)
class Evaluation(Release):
    """Noised counts of an evaluation, of all its examples, as one vector.

    What one example adds has a norm of at most 1; see
    `evaluation.statistics`.
    """

    adjacency = Adjacency.ADD_OR_REMOVE_ONE
    sensitivities = {
        Adjacency.ADD_OR_REMOVE_ONE: 1.0,
        Adjacency.ZERO_OUT: 1.0,
        Adjacency.REPLACE_ONE: 2.0,
    }
    samplings = (EveryExample,)


@dataclasses.dataclass(frozen=True)
class PersonEvaluation(Evaluation):
    """Noised counts of an evaluation to which each person adds a mean.

    The mean of what the examples of the person would add has a norm of at
    most 1, however many they are.
    """

    unit = "person"


@dataclasses.dataclass(frozen=True)
class BandedSums(Sums):
    """Noised sums of clipped gradients, with noise correlated over steps.

    With the sum x_t of step t, x_t + w_t is released, where C w is independent
    noise of the entry's noise multiplier and C is lower-triangular with `bands`
    bands and columns of norm at most 1. So C x plus independent noise is
    released, times the inverse of C. An example in step t moves rows t to t +
    `bands` - 1 of C x, by a clip norm in all at most: if it is in no other of
    them, as with cyclic sampling from at least `bands` parts, each of its steps
    is one Poisson-sampled Gaussian.

    Args:
        bands: Number of bands, at least 2.

    Raises:
        ValueError: If it is not an integer of at least 2.

    Reference:
        - [(Amplified) banded matrix factorization: a unified approach to
          private training](https://arxiv.org/abs/2306.08153)
    """

    bands: int

    samplings = (CyclicPoissonSampling,)

    def __post_init__(self):
        bands = arguments.integer("bands", self.bands, least=2)
        object.__setattr__(self, "bands", bands)


@dataclasses.dataclass(frozen=True)
class BandedPersonSums(BandedSums):
    """Noised sums of clipped gradients of persons, with correlated noise.

    Each person is in one part, and moves a sum by at most one clip norm.

    Args:
        bands: Number of bands, at least 2.
        max_examples: Greatest number of examples of a person in a step.

    Raises:
        ValueError: If a number is out of its range.
    """

    max_examples: int

    unit = "person"

    def __post_init__(self):
        super().__post_init__()
        count = arguments.positive_integer("max_examples", self.max_examples)
        object.__setattr__(self, "max_examples", count)


@dataclasses.dataclass(frozen=True)
class _WithLabels(Release):
    """Base class of releases whose labels are public, randomised or neither.

    Args:
        labels: `"public"`, `"randomized"` or `"undeclared"`.

    Raises:
        ValueError: If `labels` is none of these.
    """

    labels: str

    sensitivities = {Adjacency.REPLACE_ONE: 2.0}
    samplings: ClassVar[tuple[type, ...]] = (
        WithoutReplacement,
        UnknownSampling,
    )
    has_representations = True

    def __post_init__(self):
        arguments.one_of("labels", self.labels, LABEL_KINDS)

    @property
    def is_private(self) -> bool:
        """False if labels are used as they are and not declared public."""
        return self.labels != LABELS_UNDECLARED


@dataclasses.dataclass(frozen=True)
class Representations(_WithLabels):
    """Noised clipped representations, one for each example: DP-FP.

    Args:
        labels: `"public"`, `"randomized"` or `"undeclared"`.

    Raises:
        ValueError: If `labels` is none of these.
    """

    @property
    def joint(self) -> "Joint":
        """Release of the representations jointly with clipped gradient sums."""
        return Joint(self.labels)

    def of_persons(self, max_examples: int) -> "PersonRepresentations":
        """Returns what is released of persons, under the same declaration.

        Args:
            max_examples: Greatest number of examples of a person in a step.

        Raises:
            ValueError: If labels are randomised.
        """
        return PersonRepresentations(self.labels, max_examples)


@dataclasses.dataclass(frozen=True)
class PersonRepresentations(_WithLabels):
    """Noised representations of persons, clipped jointly.

    The rows of a person, one for each of up to `max_examples` examples,
    together are at most a clip norm long, and each gets noise. Neighbours
    differ in what all examples of one person are. Rows show who was drawn, so
    Poisson sampling hides nobody: it says how often a person is drawn.

    Args:
        labels: `"public"` or `"undeclared"`.
        max_examples: Greatest number of examples of a person in a step.

    Raises:
        ValueError: If labels are randomised, or `max_examples` is not a
            positive integer.
    """

    max_examples: int

    unit = "person"
    samplings = (PoissonSampling, UnknownSampling)

    def __post_init__(self):
        super().__post_init__()
        if self.labels == LABELS_RANDOMIZED:
            raise ValueError(
                "A person has several labels, and the epsilon of randomised "
                "labels is that of one. Train by example, or declare labels "
                f"public if they are. Received: labels={self.labels!r}"
            )
        count = arguments.positive_integer("max_examples", self.max_examples)
        object.__setattr__(self, "max_examples", count)


@dataclasses.dataclass(frozen=True)
class Joint(_WithLabels):
    """Joint release of noised representations and noised gradient sums.

    The clipped gradients belong to the layers below the representations, and
    come from the same examples.

    Args:
        labels: `"public"`, `"randomized"` or `"undeclared"`.

    Raises:
        ValueError: If `labels` is none of these.
    """


@dataclasses.dataclass(frozen=True)
class EndToEnd(Release):
    """Noised representations, with gradients that bypass their noise."""

    samplings = (WithoutReplacement, UnknownSampling)
    has_representations = True

    def of_persons(self, max_examples: int) -> "EndToEnd":  # noqa: ARG002
        """Returns itself: it protects persons as little as examples."""
        return self

    @property
    def is_private(self) -> bool:
        """False: gradients and labels have no noise."""
        return False


@dataclasses.dataclass(frozen=True)
class Labels(Release):
    """Labels, each randomised once by randomised response."""

    samplings = (EveryLabel,)
