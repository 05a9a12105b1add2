"""Rule of operations that replace diagonals of matrices."""

from collections.abc import Sequence

import tensorflow as tf

from tf_dpfp.independence import findings
from tf_dpfp.independence import reduction_rules
from tf_dpfp.independence import registry
from tf_dpfp.independence import sizes as sizes_lib
from tf_dpfp.independence import values as values_lib
from tf_dpfp.independence.registry import Walk
from tf_dpfp.independence.values import Kind
from tf_dpfp.independence.values import Value


@registry.rule("MatrixSetDiag", "MatrixSetDiagV2", "MatrixSetDiagV3")
def set_diagonal(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> Value:
    """Replaces diagonals, which have the same axes in front as the matrices."""
    matrices, diagonals, *numbers = values
    if any(v.is_examples for v in numbers):
        raise findings.Refusal("The data decide how it works.")
    owners = [v for v in (matrices, diagonals) if v.is_examples]
    front = matrices.rank - 2
    if not owners:
        hangs = any(
            v.hangs_on_batch or sizes_lib.hang_on_batch(v.shape) for v in values
        )
        return values_lib.free(walk.static(op.outputs[0]), None, hangs)
    own = owners[0].example_layout
    if any(v.example_layout != own for v in owners):
        raise findings.Refusal("Its operands hold the examples differently.")
    if own.axis >= front:
        raise findings.Refusal(reduction_rules.OVER)
    for value in (matrices, diagonals):
        rest = [s for i, s in enumerate(value.shape) if i != own.axis]
        if sizes_lib.hang_on_batch(rest):
            raise findings.Refusal(
                "The batch size is the size of another axis than that of the "
                "examples.",
                findings.BATCH_SIZE,
            )
        if not value.is_examples and value.kind is not Kind.UNIFORM:
            raise findings.Refusal(
                "Only one of its operands has the axis of the examples."
            )
        if value.shape[own.axis] != owners[0].shape[own.axis]:
            raise findings.Refusal(
                "Its operands hold the examples differently."
            )
    return values_lib.examples(matrices.shape, own)
