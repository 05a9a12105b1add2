"""One noise multiplier, split between the clipped sums and the counts.

Adaptive thresholds need a second release in every step: for each of K
thresholds, how many examples were not clipped. Sums and counts together are
one Gaussian mechanism, and the accountant sees its multiplier only.

**Mechanism.** One vector: the clipped sums, of sensitivity S, with noise of
standard deviation `sums * S`, and K counts with noise of standard deviation
`counts`. Adjacency: one example added or removed. Sensitivity: each example
adds +1/2 or -1/2 to each count (a centred count), so it moves the K counts by
`sqrt(K) / 2` together. Dividing each part by its standard deviation leaves
unit noise and a sensitivity of at most

    1 / noise_multiplier^2 = 1 / sums^2 + K / (4 counts^2).

The counts take the share r of the right-hand side.

Reference:
    Andrew et al., 2021, arXiv 1905.03871, theorem 1 (for one count); He et
    al., 2022, arXiv 2212.01539 (for K).
"""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class BudgetSplit:
    """The two noises that share one multiplier.

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
        noise_multiplier: Of the joint release; what the accountant sees.
        budget_share: The share r of the counts, in (0, 1).
        num_counts: Number K of counts.

    Returns:
        `BudgetSplit` with `sums = sigma / sqrt(1 - r)` and
        `counts = sigma sqrt(K) / (2 sqrt(r))`.

    Raises:
        ValueError: If there is no such split.
    """
    if not 0.0 < budget_share < 1.0:
        raise ValueError(
            "`budget_share` is what the counts take of the privacy budget, "
            "above 0 (or there is no noise that would hide them) and below 1 "
            "(or nothing is left for the gradients); 0.01 is usual. "
            f"Received: budget_share={budget_share!r}"
        )
    return BudgetSplit(
        sums=noise_multiplier / math.sqrt(1.0 - budget_share),
        counts=noise_multiplier
        * math.sqrt(num_counts)
        / (2.0 * math.sqrt(budget_share)),
    )
