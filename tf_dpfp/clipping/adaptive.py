"""Clip norms that follow a quantile of the gradients' norms.

Each group keeps an estimate of the norm below which a given fraction of the
examples lies. Every step counts the examples at or below the estimate, and
moves it geometrically. The counts leave only with noise (see
`accounting.joint`), so the estimates are private, and so is everything computed
from them.

An example adds +1/2 to the count of a group if its norm is at most the
estimate, -1/2 if it is above, and nothing if it takes no part in the step. A
plain count would have twice the sensitivity; the fraction is recovered by
dividing by the expected batch size, which is public, and adding 1/2.

Reference:
    Andrew et al., 2021, arXiv 1905.03871 (the estimate, the centred count); He
    et al., 2022, arXiv 2212.01539 (one estimate for every group).
"""

import dataclasses
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_dpfp import arguments
from tf_dpfp.clipping import thresholds as thresholds_lib

# Far beyond any gradient, and their squares are normal numbers in float32.
_LEAST, _GREATEST = 1e-10, 1e10


@keras.saving.register_keras_serializable(package="tf_dpfp")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Adaptive:
    """Clip norms in proportion to a quantile of each group's norms.

    Example:

    ```python
    tf_dpfp.DPAdam(
        1e-3,
        l2_norm_clip=1.0,
        noise_multiplier=1.1,
        clipping=tf_dpfp.PerLayer(
            thresholds=tf_dpfp.clipping.Adaptive(target_quantile=0.5)
        ),
    )
    ```

    Args:
        target_quantile: The fraction of examples whose norm is to lie at or
            below the estimate.
        learning_rate: Each step multiplies an estimate by
            `exp(-learning_rate * (fraction - target_quantile))`.
        initial: The first estimates, chosen without looking at the data:
            `"equal"` (`C / sqrt(K)` each), `"by_dimension"` (in proportion to
            the root of the number of parameters), a number for every group,
            or a dict from group name to number.
        budget_share: Share of the counts in the privacy budget: of the K
            counts, each gets noise of standard deviation
            `noise_multiplier * sqrt(K) / (2 * sqrt(budget_share))`, and the
            gradients get `noise_multiplier / sqrt(1 - budget_share)`. Epsilon
            is that of `noise_multiplier`, whatever the share.
        shared: One count for all groups, the mean of theirs: all estimates
            move by the same factor and keep the proportions of `initial`.
        rescale: True: the clip norms are the estimates scaled so that their
            squares add up to that of `l2_norm_clip`: the estimates then decide
            how the bound is split. With `False` the clip norms are the
            estimates themselves, and `l2_norm_clip` only the first bound.

    Raises:
        ValueError: If an argument is out of its range, or `shared` and
            `rescale` are both true: nothing would adapt.
    """

    target_quantile: float = 0.5
    learning_rate: float = 0.2
    initial: str | float | Mapping[str, float] = "equal"
    budget_share: float = 0.01
    shared: bool = False
    rescale: bool = True

    def __post_init__(self):
        checked = {
            "initial": _as_initial(self.initial),
            "learning_rate": arguments.number(
                "learning_rate", self.learning_rate, above=0.0
            ),
        }
        for name in ("target_quantile", "budget_share"):
            checked[name] = arguments.number(
                name, getattr(self, name), above=0.0, below=1.0
            )
        for name in ("shared", "rescale"):
            checked[name] = arguments.boolean(name, getattr(self, name))
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.shared and self.rescale:
            raise ValueError(
                "With `shared=True` the estimates keep their proportions, so "
                "`rescale=True` would keep the clip norms as they are. Set one "
                "of the two to False."
            )

    def initial_estimates(
        self,
        l2_norm_clip: float,
        names: Sequence[str],
        dimensions: Sequence[int],
    ) -> tuple[float, ...]:
        """Returns the estimates before the first step.

        Args:
            l2_norm_clip: The bound C.
            names: Names of the groups.
            dimensions: Number of parameters of each.

        Returns:
            The estimate of each group.

        Raises:
            ValueError: If given estimates do not fit the groups.
        """
        if isinstance(self.initial, float):
            return (self.initial,) * len(names)
        if isinstance(self.initial, tuple):
            return thresholds_lib.by_name("initial", names, dict(self.initial))
        return thresholds_lib.split_bound(
            self.initial, l2_norm_clip, names, dimensions
        )

    def get_config(self) -> dict:
        """Returns the fields, for Keras serialization."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: dict) -> "Adaptive":
        """Makes the object from its fields; inverse of `get_config`."""
        return cls(**config)


def _as_initial(initial: Any) -> thresholds_lib.Split | float:
    """Checks the `initial` of `Adaptive` and makes it hashable."""
    if isinstance(initial, numbers.Real):
        return _estimate(initial)
    if isinstance(initial, Mapping):
        initial = {group: _estimate(v) for group, v in initial.items()}
    try:
        split = thresholds_lib.as_split("initial", initial)
    except ValueError as error:
        raise ValueError(
            "`initial` must be 'equal', 'by_dimension', a number, or a dict "
            f"from group name to number. Received: initial={initial!r}"
        ) from error
    if isinstance(split, str):
        return split
    return tuple((group, _estimate(number)) for group, number in split)


def _estimate(value: Any) -> float:
    return arguments.number("initial", value, above=_LEAST, below=_GREATEST)


def updated(
    estimates: tf.Tensor,
    noised_counts: tf.Tensor,
    expected_batch_size: tf.Tensor,
    adaptive: Adaptive,
) -> tf.Tensor:
    """Moves the estimates by the counts of a step.

    Args:
        estimates: The estimate of each group, `(K,)`.
        noised_counts: Centred counts with their noise, `(K,)`, or `(1,)` if
            they are shared.
        expected_batch_size: Public; never the size of the batch.
        adaptive: The settings.

    Returns:
        The new estimates, `(K,)`.
    """
    fractions = noised_counts / expected_batch_size + 0.5
    # No fraction lies outside, so what does is noise.
    fractions = tf.clip_by_value(fractions, 0.0, 1.0)
    factors = tf.exp(
        -adaptive.learning_rate * (fractions - adaptive.target_quantile)
    )
    return bounded(estimates * factors)


def bounded(estimates: tf.Tensor) -> tf.Tensor:
    """Brings estimates into the range of those that steps find.

    Args:
        estimates: Estimates, also such as files bring. Noise in proportion to
            one of 1e-20 would be zero, for its variance is below all float32
            numbers.

    Returns:
        The estimates that are used.
    """
    return tf.clip_by_value(estimates, _LEAST, _GREATEST)


def clip_norms_of(
    estimates: Sequence[tf.Tensor], l2_norm_clip: float, rescale: bool
) -> list[tf.Tensor]:
    """Computes the clip norms that follow from the estimates.

    Args:
        estimates: The estimate of each group.
        l2_norm_clip: The bound C of the whole release.
        rescale: True to scale them to `sum_k C_k^2 = C^2`.

    Returns:
        The clip norms. None is too small for the norms that are compared with
        it, so where the estimates lie extremely far apart their squares add
        up to a little more.
    """
    if not rescale:
        return list(estimates)
    # By the greatest first: the squares of all might be too small.
    greatest = tf.reduce_max(tf.stack(estimates))
    shares = [estimate / greatest for estimate in estimates]
    total = tf.sqrt(tf.add_n([tf.square(share) for share in shares]))
    return [
        tf.maximum(share * (l2_norm_clip / total), thresholds_lib.LEAST)
        for share in shares
    ]
