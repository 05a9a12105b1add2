"""Groups: variables whose gradients share one clip factor per example."""

import dataclasses
import math
from collections.abc import Sequence

import keras
import tensorflow as tf

from tf_dpfp.clipping import adaptive as adaptive_lib


@dataclasses.dataclass(frozen=True)
class OwnedVariable:
    """A trainable variable and the layer whose weight it is.

    Attributes:
        variable: The variable.
        layer: The layer that owns it; the first, if several share it.
        released: Numbers that a step releases of it; `None` for one of each
            parameter.
    """

    variable: keras.Variable
    layer: keras.layers.Layer
    released: int | None = None

    @property
    def dimension(self) -> int:
        """Numbers that a step releases of the variable."""
        if self.released is None:
            return math.prod(self.variable.shape)
        return self.released


@dataclasses.dataclass(frozen=True)
class Group:
    """Variables that are clipped together.

    Attributes:
        name: For messages, and to give clip norms by.
        members: Positions in the list of trainable variables.
        clip_norm: The clip norm C_k; a scalar tensor while it adapts.
        dimension: Numbers d_k that are released of the variables.
        stability: Addend of the norms in automatic clipping; 0 for clipping.
        estimate: Norm that norms are compared with to be counted, a scalar
            tensor; `None` where nothing adapts.
        device: Device of norms, factors, sums and noise; `None` leaves that
            to TensorFlow.
    """

    name: str
    members: tuple[int, ...]
    clip_norm: float | tf.Tensor
    dimension: int
    stability: float = 0.0
    estimate: float | tf.Tensor | None = None
    device: str | None = None


def with_estimates(
    groups: Sequence[Group],
    estimates: Sequence[float | tf.Tensor],
    l2_norm_clip: float,
    rescale: bool,
) -> tuple[Group, ...]:
    """Gives groups the clip norms that follow from estimates.

    Args:
        groups: The groups.
        estimates: The estimate of each.
        l2_norm_clip: The bound of the whole release.
        rescale: True if the clip norms must keep to that bound.

    Returns:
        The groups, otherwise as they were.
    """
    values = adaptive_lib.clip_norms_of(estimates, l2_norm_clip, rescale)
    return tuple(
        dataclasses.replace(group, clip_norm=value, estimate=estimate)
        for group, value, estimate in zip(
            groups, values, estimates, strict=True
        )
    )
