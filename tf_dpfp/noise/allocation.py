"""Noise allocation: the standard deviation of each group's noise.

The released vector is the concatenation of the clipped sums of all groups.
Adding or removing one example moves group k by at most C_k, so the whole by
at most `sqrt(sum_k C_k^2)`: that is the sensitivity under add-or-remove
adjacency, and noise of `noise_multiplier` times it on every coordinate is one
Gaussian mechanism with that multiplier. Groups may be weighted against each
other at the same privacy.
"""

import math
from collections.abc import Sequence
from typing import TypeAlias

import tensorflow as tf

from tf_dpfp import arguments

# Adapted clip norms are tensors; the arithmetic below is the same for both.
Number: TypeAlias = float | tf.Tensor


def sensitivity(clip_norms: Sequence[Number]) -> Number:
    """Computes the L2 sensitivity of all groups, for add-or-remove adjacency.

    Args:
        clip_norms: The clip norm of every group.

    Returns:
        `sqrt(sum_k C_k^2)`.
    """
    return sum(c * c for c in clip_norms) ** 0.5


ALLOCATIONS = ("global", "equal_budget", "by_dimension")


def standard_deviations(
    clip_norms: Sequence[Number],
    dimensions: Sequence[int],
    noise_multiplier: float,
    allocation: str = "global",
) -> tuple[Number, ...]:
    """Computes the standard deviation of the noise of each group.

    With weights g_k, group k gets `noise_multiplier * g_k * S`, where
    `S = sqrt(sum_j C_j^2 / g_j^2)`. Dividing group k by g_k shows one Gaussian
    mechanism of sensitivity S, so the privacy is that of `noise_multiplier`
    whatever the weights: `sum_k (C_k / std_k)^2 = 1 / noise_multiplier^2`.

    Args:
        clip_norms: The clip norm C_k of every group; numbers, or scalar
            tensors where they are adapted.
        dimensions: The number of parameters d_k of every group.
        noise_multiplier: Standard deviation over sensitivity.
        allocation: `"global"` (g_k = 1: the same deviation everywhere),
            `"equal_budget"` (g_k = C_k: deviation `sigma sqrt(K) C_k`) or
            `"by_dimension"` (g_k = C_k / sqrt(d_k): the same ratio of noise
            norm to clip norm in each group).

    Returns:
        The standard deviation for each group.

    Raises:
        ValueError: If `allocation` is none of these.

    Reference:
        He et al., 2022, arXiv 2212.01539.
    """
    arguments.one_of("allocation", allocation, ALLOCATIONS)
    if allocation == "global":
        weights = [1.0] * len(clip_norms)
    elif allocation == "equal_budget":
        weights = list(clip_norms)
    else:
        weights = [
            c / math.sqrt(d)
            for c, d in zip(clip_norms, dimensions, strict=True)
        ]
    scaled = sensitivity(
        [c / g for c, g in zip(clip_norms, weights, strict=True)]
    )
    return tuple(noise_multiplier * g * scaled for g in weights)
