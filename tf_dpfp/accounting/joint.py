"""Joins two Gaussian releases of the same examples, and splits one in two.

Each release, divided by the standard deviation of its noise, has unit noise.
One example then moves the first by at most `1 / first` and the second by at
most `1 / second`, so both side by side by at most the root of the sum of
squares:

    1 / joint^2 = 1 / first^2 + 1 / second^2.

That stays true if the second release is chosen by the outcome of the first:
Gaussian shifts compose by their squares, adaptively. The accountant sees the
joint multiplier only.

Three joint releases exist: noised representations with noised gradient sums,
clipped sums with the counts that adaptive thresholds need, and clipped sums
with the counts that say which rows of a table are touched.

**Sums and counts.** Mechanism: one vector of the clipped sums, of sensitivity
S, with noise of standard deviation `sums * S`, and K counts, each with noise of
standard deviation `counts`. releases.Adjacency: one example added or removed.
Sensitivity: each example adds +1/2 or -1/2 to each count (a centred count), so
it moves the K counts by `sqrt(K) / 2` together, and

    1 / noise_multiplier^2 = 1 / sums^2 + K / (4 counts^2).

The counts take the share r of the right-hand side.

**Sums and contributions.** Beside the sums, one count for each row of a table,
with noise of standard deviation `contributions * C_1`. Sensitivity: what an
example adds to all of these counts is clipped to the length C_1, so

    1 / noise_multiplier^2 = 1 / contributions^2 + 1 / rest^2,

where `rest` is the noise multiplier of everything else, which may be split
again. Of all this only a function is released: sums of rows whose noised count
passes a threshold.

Reference:
    - Dong, Roth and Su, 2022, [Gaussian differential
      privacy](https://arxiv.org/abs/1905.02383), corollary 3.3.
    - Andrew et al., 2021, [Differentially private learning with adaptive
      clipping](https://arxiv.org/abs/1905.03871), theorem 1 (for one count).
    - He et al., 2022, [Exploring the limits of differentially private deep
      learning with group-wise clipping](https://arxiv.org/abs/2212.01539)
      (for K counts).
    - Ghazi et al., 2023, [Sparsity-preserving differentially private training
      of large embedding models](https://arxiv.org/abs/2311.08357) (for
      contributions).
"""

import dataclasses
import math

from tf_dpfp import arguments


def joint_noise_multiplier(first: float, second: float) -> float:
    """Computes the noise multiplier of two Gaussian releases taken as one.

    Args:
        first: Noise multiplier of one release: standard deviation of the noise
            over the sensitivity.
        second: Noise multiplier of the other release.

    Returns:
        The joint noise multiplier; 0 if either release has no noise.

    Example:

    >>> round(joint_noise_multiplier(3.0, 4.0), 3)
    2.4
    """
    if not first or not second:
        return 0.0
    # Neither squares nor their sum overflow.
    return 1.0 / math.hypot(1.0 / first, 1.0 / second)


def other_noise_multiplier(joint: float, first: float) -> float:
    """Computes the noise multiplier that a second release must have.

    Args:
        joint: Least joint noise multiplier allowed.
        first: Noise multiplier of the first release.

    Returns:
        The least noise multiplier of the second release with which both
        together have `joint`.

    Raises:
        ValueError: If `first` is not above `joint`: nothing is left then.

    Example:

    >>> round(other_noise_multiplier(2.4, 3.0), 3)
    4.0
    """
    if not first > joint:
        raise ValueError(
            f"A noise multiplier of {first:g} spends the whole budget, which "
            f"asks for {joint:g} of both releases together. Raise it."
        )
    # The margin is for rounding, of which the difference has most.
    part = math.sqrt((1.0 / joint - 1.0 / first) * (1.0 / joint + 1.0 / first))
    return (1.0 + 1e-9) / part


@dataclasses.dataclass(frozen=True)
class BudgetSplit:
    """Noise of clipped sums and of counts that share one noise multiplier.

    Attributes:
        sums: Noise multiplier of the clipped sums: standard deviation over
            their sensitivity.
        counts: Standard deviation of the noise of every centred count, in
            examples.
    """

    sums: float
    counts: float


def split_budget(
    noise_multiplier: float, budget_share: float, num_counts: int
) -> BudgetSplit:
    """Splits a noise multiplier between clipped sums and centred counts.

    Args:
        noise_multiplier: Joint noise multiplier, which the accountant sees.
        budget_share: Share r of the counts, in (0, 1).
        num_counts: Number K of counts.

    Returns:
        `BudgetSplit` with `sums = sigma / sqrt(1 - r)` and
        `counts = sigma sqrt(K) / (2 sqrt(r))`.

    Raises:
        ValueError: If there is no such split.

    Example:

    >>> split = split_budget(1.2, budget_share=0.36, num_counts=1)
    >>> round(split.sums, 3), round(split.counts, 3)
    (1.5, 1.0)
    """
    budget_share = arguments.number(
        "budget_share",
        budget_share,
        above=0.0,
        below=1.0,
        hint=(
            "Counts take this share of the privacy budget: 0 would leave them "
            "without noise, 1 would leave nothing for the gradients; 0.01 is "
            "usual."
        ),
    )
    return BudgetSplit(
        sums=noise_multiplier / math.sqrt(1.0 - budget_share),
        counts=noise_multiplier
        * math.sqrt(num_counts)
        / (2.0 * math.sqrt(budget_share)),
    )


@dataclasses.dataclass(frozen=True)
class ContributionSplit:
    """Noise multipliers of contributions and of what is released beside them.

    Attributes:
        contributions: Noise multiplier of the clipped contributions.
        rest: Noise multiplier of everything else together.
    """

    contributions: float
    rest: float


def split_contributions(
    noise_multiplier: float, contribution_share: float
) -> ContributionSplit:
    """Splits a noise multiplier between contributions and everything else.

    Args:
        noise_multiplier: Joint noise multiplier, which the accountant sees.
        contribution_share: Share a of the contributions, in (0, 1).

    Returns:
        `ContributionSplit` with `contributions = sigma / sqrt(a)` and
        `rest = sigma / sqrt(1 - a)`.

    Example:

    >>> split = split_contributions(1.2, contribution_share=0.36)
    >>> round(split.contributions, 3), round(split.rest, 3)
    (2.0, 1.5)
    """
    return ContributionSplit(
        contributions=noise_multiplier / math.sqrt(contribution_share),
        rest=noise_multiplier / math.sqrt(1.0 - contribution_share),
    )
