"""From clipped sums to released ones, and to what Keras's optimizer takes.

`add_noise` is the mechanism; whatever follows it is post-processing.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_dpfp import clipping as clipping_lib
from tf_dpfp import low_rank
from tf_dpfp import noise as noise_lib
from tf_dpfp.optimizers import clipped_gradients as clipped_lib

# Tensors of fewer numbers get their noise in one draw.
_DRAWN_TOGETHER = 2**16
# So many numbers of a step's noise may be drawn ahead of the sums.
_DRAWN_EARLY = 2**22


@dataclasses.dataclass(frozen=True)
class Draws:
    """What one replica adds to the noise of a step.

    Attributes:
        step_key: The key of the step, the same on every replica.
        replica: Which replica this is.
        share: Of the standard deviation of all noise, what this replica adds.
    """

    step_key: tf.Tensor
    replica: tf.Tensor | int
    share: float

    def key(self, tensor: int) -> tf.Tensor:
        """The key of one tensor's noise, of this replica alone."""
        return noise_lib.NoiseSource.key_of(self.step_key, tensor, self.replica)


def add_noise(
    clipped: clipped_lib.ClippedGradients,
    noise_multiplier: float,
    allocation: str,
    draws: Draws,
) -> list[tf.Tensor | None]:
    """The released sums: each clipped sum plus its group's noise.

    Of one replica of several: plus the replica's share of the noise.
    """
    released: list[tf.Tensor | None] = list(clipped.sums)
    if not noise_multiplier:
        return released
    deviations = noise_lib.standard_deviations(
        [group.threshold for group in clipped.groups],
        [group.dimension for group in clipped.groups],
        noise_multiplier,
        allocation,
    )
    deviations = [deviation * draws.share for deviation in deviations]
    together: dict[str | None, list[tuple[int, Any]]] = {}
    drawn = 0
    for group, deviation in zip(clipped.groups, deviations, strict=True):
        for index in group.members:
            total = clipped.sums[index]
            if total is None:
                continue
            if total.shape.num_elements() < _DRAWN_TOGETHER:
                together.setdefault(group.device, []).append((index, deviation))
                continue
            drawn += total.shape.num_elements()
            with clipping_lib.on_device(group.device):
                released[index] = _noised(
                    total,
                    deviation,
                    draws.key(index),
                    early=drawn <= _DRAWN_EARLY,
                )
    for device, small in together.items():
        indices = [index for index, _ in small]
        with clipping_lib.on_device(device):
            noises = noise_lib.gaussian_noises(
                [clipped.sums[index].shape for index in indices],
                [deviation for _, deviation in small],
                # One key for all of them; those of the others are not used.
                draws.key(indices[0]),
            )
            for index, noise in zip(indices, noises, strict=True):
                released[index] = _plus(clipped.sums[index], noise)
    return released


def _noised(
    total: tf.Tensor, deviation, key: tf.Tensor, early: bool
) -> tf.Tensor:
    # Early noise does not wait for the sum: a core that is idle during the
    # backward pass draws it. If all of it were early, a large model would be
    # in memory once more.
    if not early:
        with tf.control_dependencies([total]):
            key = tf.identity(key)
    return _plus(total, noise_lib.gaussian_noise(total.shape, deviation, key))


def _plus(total: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
    return total + tf.cast(noise, total.dtype)


def finished(
    clipped: clipped_lib.ClippedGradients,
    released: Sequence[tf.Tensor | None],
    carriers: Sequence[low_rank.Carriers | None],
    divisor: tf.Tensor,
) -> list[tf.Tensor | None]:
    """What the Keras optimizer takes, each where its variable is."""
    gradients: list[tf.Tensor | None] = [None] * len(clipped.variables)
    for group in clipped.groups:
        with clipping_lib.on_device(group.device):
            for index in group.members:
                variable = clipped.variables[index]
                gradients[index] = finish(
                    _reconstruct(released[index], carriers[index], variable),
                    clipped.regularization[index],
                    divisor,
                    variable,
                )
    return gradients


def _reconstruct(
    total: tf.Tensor | None,
    carriers: low_rank.Carriers | None,
    variable: keras.Variable,
) -> tf.Tensor | None:
    """From released carriers to a released kernel: post-processing."""
    if total is None or carriers is None:
        return total
    return low_rank.reconstruct(
        total, carriers, low_rank.mark_of(variable).view
    )


def finish(total, extra, divisor, variable):
    """Mean of the released sum plus the regularisation's gradient."""
    if total is None and extra is None:
        return None
    dtype = variable.dtype
    mean = None if total is None else total / tf.cast(divisor, total.dtype)
    if mean is None:
        return tf.cast(extra, dtype)
    if extra is not None:
        mean += tf.cast(extra, mean.dtype)
    return tf.cast(mean, dtype)
