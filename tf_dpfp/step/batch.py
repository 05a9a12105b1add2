"""Clipped sums of a batch of any size, one micro-batch after the other."""

import dataclasses
from collections.abc import Callable

import keras
import tensorflow as tf
from keras import tree

from tf_dpfp import clipping as clipping_lib
from tf_dpfp import sampling as sampling_lib
from tf_dpfp.keras_private import addition as keras_addition
from tf_dpfp.keras_private import distribution as keras_distribution
from tf_dpfp.keras_private import lookups as keras_lookups
from tf_dpfp.optimizers import ClippedGradients
from tf_dpfp.optimizers import JointGradients
from tf_dpfp.step.microbatch import BatchSums
from tf_dpfp.step.microbatch import MicrobatchResult
from tf_dpfp.step.microbatch import backward
from tf_dpfp.step.microbatch import clipped_microbatch
from tf_dpfp.step.plan import Plan


def regularization_gradients(
    plan: Plan,
) -> tuple[tf.Tensor | None, list[tf.Tensor | None]]:
    """Returns gradients of weight regularisers, which read no data.

    Args:
        plan: Plan of the step.

    Returns:
        The total penalty (`None` without regularisers), and its gradient for
        each variable, those above released representations last.
    """
    penalties = []
    with tf.GradientTape() as tape:
        for group in plan.groups:
            with clipping_lib.on_device(group.device):
                for index in group.members:
                    variable = plan.variables[index]
                    if variable.regularizer is not None:
                        penalties.append(variable.regularizer(variable))
        for variable in plan.above:
            if variable.regularizer is not None:
                penalties.append(variable.regularizer(variable))
        total = tf.add_n(penalties) if penalties else None
    values = [v.value for v in (*plan.variables, *plan.above)]
    if total is None:
        return None, [None] * len(values)
    return total, backward(tape, total, values, plan)


@keras_lookups.guarded()
@keras_addition.as_rows()
@keras_distribution.whole_losses()
def clipped_batch(
    model: keras.Model,
    plan: Plan,
    x,
    y,
    sample_weight,
    microbatch_size: int | None,
    after_microbatch,
) -> BatchSums:
    """Clipped sums of a batch of any size.

    Args:
        model: A built model.
        plan: Its plan.
        x: Inputs; with `plan.kind`, of persons in the first axis and of
            their examples in the second, like the others; or of examples and
            of their views.
        y: Labels.
        sample_weight: Sample weights, or `None`.
        microbatch_size: Physical batch, or `None` for the whole at once.
        after_microbatch: Called for every micro-batch with
            `(x, y, sample_weight, is_example, result)`: metrics.

    Returns:
        The clipped sum for each variable, the counts, and the gradients
        above released representations; private.
    """
    data = (x, y, sample_weight)
    data, is_example = sampling_lib.pad_to_multiple(data, microbatch_size or 1)

    def clipped(data, is_example, index=0):
        if plan.kind is not None:
            data = sampling_lib.flat(data)
            is_example = tf.repeat(is_example, plan.joined)
        result = _run(model, plan, (*data, is_example), index)
        after_microbatch(*data, is_example, result)
        return result.sums

    if microbatch_size is None:
        return clipped(data, is_example)
    plan = dataclasses.replace(plan, in_pieces=True)
    pieces = sampling_lib.split_microbatches(
        (data, is_example), microbatch_size
    )
    count = tf.shape(pieces[1])[0]

    def at(index):
        return tree.map_structure(
            lambda t: None if t is None else t[index], pieces
        )

    def run(index):
        piece, piece_is_example = at(index)
        return clipped(piece, piece_is_example, index)

    # Piece 0 outside the loop: it shows which variables get a sum, and builds
    # whatever Keras builds on first use.
    first = run(0)
    totals, of_rows = _tensors(first), _of_rows(first)
    if pieces[1].shape[0] != 1:
        totals = _with_further_pieces(
            totals, of_rows, lambda index: _tensors(run(index)), count
        )
    return tree.pack_sequence_as(first, _with_none(first, totals))


def _with_further_pieces(
    totals: list[tf.Tensor],
    of_rows: list[bool],
    run: Callable[[tf.Tensor], list[tf.Tensor]],
    count: tf.Tensor,
) -> list[tf.Tensor]:
    """Adds the sums of pieces 1 to `count - 1`, one piece after the other."""

    def body(index, *totals):
        more = run(index)
        return (
            index + 1,
            *[
                tf.concat([a, b], axis=0) if is_row else a + b
                for a, b, is_row in zip(totals, more, of_rows, strict=True)
            ],
        )

    # A loop begins with whatever is there: without this, piece 1 would run
    # beside piece 0 and both be in memory.
    with tf.control_dependencies(totals):
        second = tf.identity(tf.constant(1))
    _, *totals = tf.while_loop(
        lambda index, *_: index < count,
        body,
        (second, *totals),
        shape_invariants=(
            tf.TensorShape([]),
            *[
                t.shape[:0].concatenate([None, *t.shape[1:]])
                if is_row
                else t.shape
                for t, is_row in zip(totals, of_rows, strict=True)
            ],
        ),
        parallel_iterations=1,
    )
    return totals


def _run(model, plan: Plan, batch: tuple, piece) -> MicrobatchResult:
    if plan.eager_pass is not None and (
        tf.executing_eagerly() or plan.compiles
    ):
        return plan.eager_pass(plan, batch, piece)
    x, y, sample_weight, is_example = batch
    return clipped_microbatch(
        model, plan, x, y, sample_weight, is_example, piece
    )


def _tensors(sums: BatchSums) -> list[tf.Tensor]:
    return [t for t in tree.flatten(sums) if t is not None]


def _of_rows(sums: BatchSums) -> list[bool]:
    """Tells of each tensor if it is of rows, which are laid end to end."""
    marked = tree.map_structure(lambda t: None if t is None else False, sums)
    for index, total in enumerate(sums.clipped.sums):
        if isinstance(total, clipping_lib.RowSums):
            marked.clipped.sums[index] = clipping_lib.RowSums(*[True] * 3)
    return _tensors(marked)


def _with_none(sums: BatchSums, tensors) -> list:
    """Puts `None` among tensors where `sums` has it."""
    tensors = iter(tensors)
    return [None if t is None else next(tensors) for t in tree.flatten(sums)]


def as_clipped_gradients(
    plan: Plan,
    sums: BatchSums,
    regularization,
    batch_size: tf.Tensor | int,
    replicas: int = 1,
) -> ClippedGradients:
    """Packs clipped sums for the optimizer.

    Args:
        plan: Plan of the step.
        sums: Clipped sums of this replica.
        regularization: Gradients of the regularisers.
        batch_size: Number of examples of the batch.
        replicas: Over how many replicas the batch was dealt.

    Returns:
        `ClippedGradients`.
    """
    below = len(plan.variables)
    joint = None
    if plan.representations is not None:
        joint = JointGradients(
            representations=plan.representations,
            variables=tuple(plan.above),
            sums=tuple(sums.above),
            regularization=tuple(regularization[below:]),
            batch_size=batch_size,
        )
    return ClippedGradients(
        sums=tuple(sums.clipped.sums),
        counts=sums.clipped.counts,
        variables=tuple(plan.variables),
        groups=tuple(plan.groups),
        carriers=tuple(plan.carriers),
        kind=plan.kind,
        regularization=tuple(regularization[:below]),
        replicas=replicas,
        joint=joint,
    )
