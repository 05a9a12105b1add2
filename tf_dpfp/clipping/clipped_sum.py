"""Clipped sums, from recorded calls and their output gradients."""

from collections.abc import Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from tf_dpfp import per_example
from tf_dpfp.clipping import contributions
from tf_dpfp.clipping import factors as factors_lib
from tf_dpfp.clipping import groups as groups_lib
from tf_dpfp.clipping import placement

# In the names of operations: whatever is of single examples, and the sums.
EXAMPLES_SCOPE = "clip_examples"
SUM_SCOPE = "clipped_sum"


def gather_gradients(
    calls: Sequence[per_example.LayerCall],
    source_gradients: Sequence[Sequence[tf.Tensor | None]],
    variables: Sequence[keras.Variable],
    groups: Sequence[groups_lib.Group] = (),
) -> list[per_example.PerExampleGradient | None]:
    """Adds up the per-example gradients of all uses of each variable.

    Args:
        calls: The recorded calls.
        source_gradients: For each call, the gradients of its sources; `None`
            for a source that the loss does not depend on.
        variables: The trainable variables.
        groups: Their groups, which may say on which devices they are.

    Returns:
        One entry per variable; `None` where no call read the variable.
    """
    uses: dict[int, list[per_example.PerExampleGradient]] = {
        id(v): [] for v in variables
    }
    devices = {
        id(variables[index]): group.device
        for group in groups
        for index in group.members
    }
    for call, output_gradients in zip(calls, source_gradients, strict=True):
        if all(g is None for g in output_gradients):
            continue
        covered = call.rule.variables(call.layer)
        owned = [devices.get(id(v)) for v in covered]
        with placement.on(next((d for d in owned if d is not None), None)):
            found = call.of_examples(tuple(output_gradients))
        for variable, gradient in found:
            if id(variable) in uses:
                uses[id(variable)].append(gradient)
    gradients = []
    for variable in variables:
        with placement.on(devices.get(id(variable))):
            mine = uses[id(variable)]
            gradients.append(per_example.add(mine) if mine else None)
    return gradients


class ClippedSums(NamedTuple):
    """Sums and counts of a batch. Not private until noise is added.

    Attributes:
        sums: The clipped sum for each variable; `None` where there is no
            gradient, `RowSums` of a sparse table.
        counts: The centred count of each group, float32 of shape `(K,)`;
            `None` where no clip norm adapts.
    """

    sums: list[tf.Tensor | contributions.RowSums | None]
    counts: tf.Tensor | None


def clip_and_sum(
    gradients: Sequence[per_example.PerExampleGradient | None],
    groups: Sequence[groups_lib.Group],
    present: tf.Tensor,
    tables: contributions.SparseTables | None = None,
) -> ClippedSums:
    """Clips every example's gradient group by group and sums over examples.

    Adding or removing one example moves the sums of group k, together, by at
    most its clip norm C_k, and its centred count by at most 1/2. What it does
    to the contributions of sparse tables: see `contributions`.

    Args:
        gradients: Per-example gradients, one entry per variable.
        groups: The groups, with members that index `gradients`.
        present: Boolean, `(batch,)`: true for examples that take part.
        tables: Tables that are summed row by row, or `None`.

    Returns:
        The `ClippedSums`.
    """
    sums: list = [None] * len(gradients)
    counts = []
    sparse: dict[int, contributions.ClippedTable] = {}
    for group in groups:
        members = [
            (index, gradient)
            for index in group.members
            if (gradient := gradients[index]) is not None
        ]
        with placement.on(group.device):
            with tf.name_scope(EXAMPLES_SCOPE):
                squared_norms = _squared_norms(
                    [gradient for _, gradient in members], present
                )
                factors = factors_lib.clip_factors(
                    squared_norms, group.clip_norm, present, group.stability
                )
            with tf.name_scope(SUM_SCOPE):
                for index, gradient in members:
                    if tables is not None and index in tables.positions:
                        sparse[index] = contributions.ClippedTable(
                            gradient, factors, tables.name_of(index)
                        )
                        continue
                    sums[index] = gradient.weighted_sum(factors)
                if group.estimate is not None:
                    counts.append(
                        factors_lib.centred_count(
                            squared_norms, group.estimate, present
                        )
                    )
    if tables is not None and sparse:
        with tf.name_scope(SUM_SCOPE):
            of_tables = contributions.row_sums(
                list(sparse.values()), tables.contribution_clip
            )
        for index, rows in zip(sparse, of_tables, strict=True):
            sums[index] = rows
    return ClippedSums(sums, tf.stack(counts) if counts else None)


def _squared_norms(
    gradients: Sequence[per_example.PerExampleGradient], present: tf.Tensor
) -> tf.Tensor:
    """Adds up the squared norms of a whole group, `(batch,)`."""
    if not gradients:  # The loss does not depend on the group.
        return tf.zeros(tf.shape(present))
    norms = [gradient.squared_norms() for gradient in gradients]
    # Reshaped, for a layer whose rows are not the examples must fail: with
    # one example in the batch it would broadcast, and clip row by row.
    return tf.add_n(
        [
            tf.reshape(tf.cast(n, norms[0].dtype), tf.shape(present))
            for n in norms
        ]
    )
