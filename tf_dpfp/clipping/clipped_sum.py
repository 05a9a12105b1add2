"""From recorded calls and their output gradients to clipped sums."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from tf_dpfp import per_example
from tf_dpfp.clipping import factors as factors_lib
from tf_dpfp.clipping import groupings


def gather_gradients(
    calls: Sequence[per_example.LayerCall],
    source_gradients: Sequence[Sequence[tf.Tensor | None]],
    variables: Sequence[keras.Variable],
) -> list[per_example.PerExampleGradient | None]:
    """Per-example gradients of every variable, all its uses added up.

    Args:
        calls: The recorded calls.
        source_gradients: For each call, the gradients of its sources; `None`
            for a source that the loss does not depend on.
        variables: The trainable variables.

    Returns:
        One entry per variable; `None` where no call read the variable.
    """
    uses: dict[int, list[per_example.PerExampleGradient]] = {
        id(v): [] for v in variables
    }
    for call, output_gradients in zip(calls, source_gradients, strict=True):
        if all(g is None for g in output_gradients):
            continue
        for variable, gradient in call.rule.gradients(
            call, tuple(output_gradients)
        ):
            if id(variable) in uses:
                uses[id(variable)].append(gradient)
    return [
        per_example.add(uses[id(v)]) if uses[id(v)] else None for v in variables
    ]


def clip_and_sum(
    gradients: Sequence[per_example.PerExampleGradient | None],
    groups: Sequence[groupings.Group],
    present: tf.Tensor,
) -> list[tf.Tensor | None]:
    """Clips every example's gradient group by group and sums over examples.

    Adding or removing one example moves the sums of group k, together, by at
    most `threshold_k` in L2 norm.

    Args:
        gradients: Per-example gradients, one entry per variable.
        groups: The groups, with members that index `gradients`.
        present: Boolean, `(batch,)`: which examples take part.

    Returns:
        The clipped sum for each variable; `None` where there is no gradient.
        Private until noise is added.
    """
    sums: list[tf.Tensor | None] = [None] * len(gradients)
    for group in groups:
        members = [i for i in group.members if gradients[i] is not None]
        if not members:
            continue
        norms = [gradients[i].squared_norms() for i in members]
        # Reshaped, for a layer whose rows are not the examples must fail: with
        # one example in the batch it would broadcast, and clip row by row.
        squared_norms = tf.add_n(
            [
                tf.reshape(tf.cast(n, norms[0].dtype), tf.shape(present))
                for n in norms
            ]
        )
        factors = factors_lib.clip_factors(
            squared_norms, group.threshold, present
        )
        for index in members:
            sums[index] = gradients[index].weighted_sum(factors)
    return sums
