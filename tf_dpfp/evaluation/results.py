"""Result of a private evaluation: estimates with their intervals."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number that was released with noise, and an interval around it.

    Attributes:
        value: The estimate.
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    value: float
    low: float
    high: float

    def __float__(self) -> float:
        return self.value

    def times(self, factor: float) -> "Estimate":
        """Returns the estimate in another unit.

        Args:
            factor: Positive factor.
        """
        return Estimate(
            factor * self.value, factor * self.low, factor * self.high
        )

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a private evaluation released.

    Intervals are for the figures of the data that were evaluated: for what the
    noise hides, not for how other data would differ.

    Attributes:
        num_examples: Number of examples (or persons).
        accuracy: Accuracy, or `None` where none is defined.
        loss: Mean of the clipped losses, or `None` without a bound.
        confidence: Probability with which an interval holds the true figure;
            of each interval by itself.
        groups: The same for each group, by its value.
    """

    num_examples: Estimate
    accuracy: Estimate | None
    loss: Estimate | None
    confidence: float
    groups: Mapping[Any, "Evaluation"] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f"examples {self.num_examples}"]
        for name in ("accuracy", "loss"):
            if getattr(self, name) is not None:
                parts.append(f"{name} {getattr(self, name)}")
        lines = [", ".join(parts)]
        lines += [f"  {value}: {found}" for value, found in self.groups.items()]
        return "\n".join(lines)
