r"""The vector of an evaluation: what an example adds, and what it tells.

**Mechanism.** Of example i are known K numbers in [0, 1]: whether it is
answered correctly, and its loss over the bound of the loss. It adds one vector
to a sum over all examples, and the sum is released with Gaussian noise:

    v_i = (u_i / sqrt(2), u_i / sqrt(2) in the block of the group of i)
    u_i = (a, b (f_1 - 1/2), ..., b (f_K - 1/2))

Without groups `v_i = u_i`; of an example in no group the second part is zero.
If the number of examples is private, `a^2 = 1/2` and `b^2 = 2 / K`. If it is
public and there are no groups, whose numbers are private, there is no first
entry and `b^2 = 4 / K`.

**Adjacency.** One example added or removed. **Sensitivity.** The sum moves by
`v_i`, and as `|f - 1/2| <= 1/2`,

    |u_i|^2 <= a^2 + K b^2 / 4 = 1,    |v_i|^2 <= 1/2 + 1/2 = 1,

with equality where all f are 0 or 1. Groups are disjoint, so they share one
sensitivity, however many there are. A person adds the mean of the vectors of
all examples of the person, whose norm is at most that of the longest.

The share `a^2 = 1/2` is the best for accuracies near 0 or 1: it makes of
(number, correct) the pair (correct, wrong), of which an example adds to one.

**Intervals.** A mean is `1/2 + S / N` of two independent normals around the
true sum and the true number. By Fieller's theorem, the values r with

    |S - r N| <= z sqrt(var S + r^2 var N)

hold the true ratio with the probability of z, exactly.

Reference:
    Fieller, 1954, "Some problems in interval estimation".
"""

import dataclasses
import math

import numpy as np

from tf_dpfp.evaluation import results
from tf_dpfp.late_imports import stats


@dataclasses.dataclass(frozen=True)
class Layout:
    """Places and lengths of the entries of the vector.

    Attributes:
        fractions: K, the numbers in [0, 1] of an example.
        groups: Number of groups; 0 without groups.
        num_examples: Number of examples, if it is public.
    """

    fractions: int
    groups: int = 0
    num_examples: int | None = None

    @property
    def is_counted(self) -> bool:
        """True if the number of examples is private, and released."""
        return self.num_examples is None

    @property
    def width(self) -> int:
        """Number of entries of a block."""
        return self.fractions + self.has_number

    @property
    def has_number(self) -> bool:
        """True if a block has the number of its examples."""
        # That of the examples of a group is private in any case.
        return self.is_counted or self.groups > 0

    @property
    def number_weight(self) -> float:
        """Length a of the entry that counts examples."""
        return math.sqrt(0.5) if self.has_number else 0.0

    @property
    def fraction_weight(self) -> float:
        """Length b of an entry of a number between -1/2 and 1/2."""
        squared = 1.0 - self.number_weight**2
        return math.sqrt(4.0 * squared / self.fractions)

    @property
    def share(self) -> float:
        """Factor of a block: one of the whole, or that and one of a group."""
        return math.sqrt(0.5) if self.groups else 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the released sum: blocks, the whole first."""
        return 1 + self.groups, self.width

    def vectors(self, fractions: np.ndarray) -> np.ndarray:
        """Computes the part u of the vector of each example.

        Args:
            fractions: float64 of shape `(examples, K)`, in [0, 1].

        Returns:
            float64 of shape `(examples, width)`.
        """
        centred = self.fraction_weight * (fractions - 0.5)
        if not self.has_number:
            return centred
        number = np.full((len(centred), 1), self.number_weight)
        return np.concatenate([number, centred], axis=1)

    def sums(self, vectors: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """Adds up the vectors v of examples.

        Args:
            vectors: Result of `vectors`.
            groups: Number of the group of each example; -1: in none.

        Returns:
            float64 of `shape`; private.
        """
        found = np.zeros(self.shape, np.float64)
        found[0] = vectors.sum(axis=0)
        for group in range(self.groups):
            found[1 + group] = vectors[groups == group].sum(axis=0)
        return self.share * found

    def estimates(
        self, released: np.ndarray, deviation: float, confidence: float
    ) -> list[list[results.Estimate]]:
        """Computes what a released sum tells; that is post-processing.

        Args:
            released: The sum with noise, of `shape`.
            deviation: Standard deviation of the noise.
            confidence: Probability with which an interval holds the truth.

        Returns:
            For each block the number of its examples and its K means.
        """
        z = float(stats.norm.ppf(0.5 + confidence / 2.0))
        return [
            self._of_block(entries / self.share, deviation / self.share, z, i)
            for i, entries in enumerate(released)
        ]

    def _of_block(
        self, entries: np.ndarray, deviation: float, z: float, block: int
    ) -> list[results.Estimate]:
        sums = entries[-self.fractions :] / self.fraction_weight
        of_sum = deviation / self.fraction_weight
        if self.num_examples is not None and not block:
            number, of_number = float(self.num_examples), 0.0
        else:
            number = float(entries[0]) / self.number_weight
            of_number = deviation / self.number_weight
        count = results.Estimate(
            max(number, 0.0),
            max(number - z * of_number, 0.0),
            max(number + z * of_number, 0.0),
        )
        return [
            count,
            *[_mean(float(s), of_sum, number, of_number, z) for s in sums],
        ]


def _mean(
    total: float, of_total: float, number: float, of_number: float, z: float
) -> results.Estimate:
    """Estimates `1/2 + total / number`, within [0, 1]."""
    low, high = _ratio(total, z * of_total, number, z * of_number)
    # No example of a sum below one is likely; one over nothing says nothing.
    value = total / max(number, 1.0)
    low, value, high = (min(max(0.5 + r, 0.0), 1.0) for r in (low, value, high))
    return results.Estimate(value, min(low, value), max(high, value))


def _ratio(
    total: float, of_total: float, number: float, of_number: float
) -> tuple[float, float]:
    """Solves `|total - r number| <= sqrt(of_total^2 + r^2 of_number^2)`.

    Returns:
        The least and the greatest r, which is what an interval is. Where the
        number can't be told from 0, all of [-1/2, 1/2].
    """
    leading = number**2 - of_number**2
    if leading <= 0.0 or number <= 0.0:
        return -0.5, 0.5
    middle = total * number / leading
    # At the middle the parabola is lowest; its roots are real, for a ratio of
    # total over number is between them.
    under = middle**2 - (total**2 - of_total**2) / leading
    half = math.sqrt(max(under, 0.0))
    return middle - half, middle + half
