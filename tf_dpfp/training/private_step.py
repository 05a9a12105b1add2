"""One private training step, from a batch to an update.

    physical micro-batches -> forward pass, calls recorded -> one loss per
    example -> one backward pass to the recorded tensors -> per-example norms
    -> clip factors -> clipped sums, added over micro-batches -> optimizer
    (noise, division by the expected batch size, ledger, update)

This module strings the rooms together and decides nothing about any of them.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras import tree

from tf_dpfp import clipping as clipping_lib
from tf_dpfp import compilation
from tf_dpfp import counting
from tf_dpfp import layers as layers_lib
from tf_dpfp import low_rank
from tf_dpfp import per_example
from tf_dpfp import sampling as sampling_lib
from tf_dpfp.optimizers import ClippedGradients
from tf_dpfp.optimizers import JointGradients
from tf_dpfp.per_example import keras_layers
from tf_dpfp.training import keras_trainer
from tf_dpfp.training import losses as losses_lib

# Half precision underflows without scaling; a power of two costs no accuracy.
# It is fixed: a scale that follows the data would tell about the data.
_FLOAT16_LOSS_SCALE = 2.0**10


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a step needs to know of a built model.

    Attributes:
        units: The layers whose calls are recorded.
        variables: The trainable variables; of a model that releases
            representations, those below them.
        groups: Which of them are clipped together.
        carriers: For each of them, the carriers of a reparametrised kernel,
            or `None`.
        loss: Maps `(y, y_pred, sample_weight)` to one loss per example.
        loss_scale: The loss is multiplied by this in the backward pass.
        above: The trainable variables above released representations.
        rows: The representations; `None` if the model releases none.
    """

    units: Sequence[per_example.Unit]
    variables: Sequence[keras.Variable]
    groups: Sequence[clipping_lib.Group]
    carriers: Sequence[low_rank.Carriers | None]
    loss: Any
    loss_scale: float
    above: Sequence[keras.Variable] = ()
    rows: counting.GaussianRelease | None = None

    def step(self, noise: bool = True) -> contextlib.AbstractContextManager:
        """What the forward pass runs in, for representations to know of it.

        Args:
            noise: Whether representations get noise: not in a trial.
        """
        if self.rows is None:
            return contextlib.nullcontext()
        return layers_lib.joint_step(noise)


class RowsBelow(NamedTuple):
    """Representations that a model releases, and what is trained below them.

    Attributes:
        rows: The representations.
        positions: Which of the trainable variables are below.
    """

    rows: counting.GaussianRelease
    positions: Sequence[int]


def make_plan(
    model: keras.Model, optimizer, loss, released: RowsBelow | None = None
) -> Plan:
    """Cuts a built model into units and groups.

    Args:
        model: A built model.
        optimizer: A private optimizer.
        loss: What `losses.per_example` and Keras made of the compiled loss.
        released: The representations that the model releases, if any.

    Returns:
        The `Plan`.

    Raises:
        ValueError: If nothing is trainable, or XLA is asked to compile for
            several devices.
    """
    owned = owned_variables(model)
    above = []
    if released is not None:
        below = set(released.positions)
        above = [o.variable for i, o in enumerate(owned) if i not in below]
        owned = [o for i, o in enumerate(owned) if i in below]
    if not owned:
        raise ValueError(
            f"Model '{model.name}' has no trainable weights: nothing to train."
        )
    _check_unmarked(above)
    variables = [o.variable for o in owned]
    groups = optimizer.groups(owned)
    _check_placement(groups)
    units = per_example.find_units(model)
    if above:
        units = _owning(units, variables)
    half = any(u.layer.compute_dtype == "float16" for u in units)
    scale = optimizer.fixed_loss_scale or (_FLOAT16_LOSS_SCALE if half else 1.0)
    return Plan(
        units=units,
        variables=variables,
        groups=groups,
        carriers=optimizer.carriers(variables),
        loss=loss,
        loss_scale=scale,
        above=above,
        rows=None if released is None else released.rows,
    )


def _owning(
    units: Sequence[per_example.Unit], variables: Sequence[keras.Variable]
) -> list[per_example.Unit]:
    """The units that hold some of the variables."""
    mine = {id(v) for v in variables}
    return [
        unit
        for unit in units
        if any(id(v) in mine for v in unit.layer.trainable_variables)
    ]


def _check_unmarked(above: Sequence[keras.Variable]) -> None:
    marked = [v.path for v in above if low_rank.mark_of(v) is not None]
    if marked:
        raise ValueError(
            f"{marked} are reparametrised, and above a DPRepresentationClip, "
            "where gradients get no noise and need no carriers. Take the marks "
            "off with `tf_dpfp.low_rank.remove_carriers(layer)`."
        )


def _check_placement(groups: Sequence[clipping_lib.Group]) -> None:
    devices = sorted({group.device for group in groups if group.device})
    xla = compilation.target() is compilation.Target.XLA
    if xla and len(devices) > 1:
        raise ValueError(
            "XLA compiles a step for one device, and the model's weights are "
            f"on {devices}. Compile the model with jit_compile=False."
        )


def owned_variables(
    model: keras.Model,
) -> list[clipping_lib.OwnedVariable]:
    """Every trainable variable with the layer that owns it."""
    owners: dict[int, keras.layers.Layer] = {}
    for layer in keras_layers.all_layers(model):
        for variable in keras_layers.own_variables(layer):
            owners.setdefault(id(variable), layer)
    return [
        clipping_lib.OwnedVariable(v, owners[id(v)], low_rank.released_size(v))
        for v in model.trainable_variables
    ]


class BatchSums(NamedTuple):
    """What is added up over micro-batches.

    Attributes:
        clipped: Clipped sums and counts; private.
        above: The gradient of each variable above released representations;
            `None` where there is none.
    """

    clipped: clipping_lib.ClippedSums
    above: list[tf.Tensor | None]


@dataclasses.dataclass(frozen=True)
class MicrobatchResult:
    """What one micro-batch gives.

    Attributes:
        sums: What is added up; private.
        losses: One loss per example, `(batch,)`.
        y_pred: Predictions.
    """

    sums: BatchSums
    losses: tf.Tensor
    y_pred: Any


def forward(model: keras.Model, x):
    """Calls the model in training mode, each layer once."""
    arguments = {}
    if keras_trainer.takes_training(model):
        arguments["training"] = True
    layers = keras_layers.all_layers(model)
    with keras_layers.without_rematerialization(layers):
        return model(x, **arguments)


def clipped_microbatch(
    model: keras.Model, plan: Plan, x, y, sample_weight, rows: tf.Tensor
) -> MicrobatchResult:
    """Clipped sums of one physical batch.

    Args:
        model: The model.
        plan: Its plan.
        x: Inputs.
        y: Labels.
        sample_weight: Sample weights, or `None`.
        rows: Boolean, `(batch,)`: false for padding.

    Returns:
        A `MicrobatchResult`.

    Raises:
        ValueError: If the loss depends on a trainable variable through a call
            that was not recorded.
    """
    with tf.GradientTape() as tape:
        with per_example.record_calls(plan.units) as calls, plan.step():
            y_pred = forward(model, x)
        losses = plan.loss(y, y_pred, sample_weight)
        losses = _one_per_row(losses, rows)
        total = tf.reduce_sum(tf.where(rows, losses, tf.zeros_like(losses)))
        total *= tf.cast(plan.loss_scale, total.dtype)
    _check_no_added_losses(model)
    sources = [call.sources for call in calls]
    recorded = {id(v) for call in calls for v in _variables_of(call)}
    unseen = [v for v in plan.variables if id(v) not in recorded]
    source_gradients, unseen_gradients, above = _backward(
        tape,
        total,
        [sources, [v.value for v in unseen], [v.value for v in plan.above]],
        plan,
    )
    _check_unseen(unseen, unseen_gradients)
    present = (
        rows
        & losses_lib.nonzero_rows(sample_weight, tf.shape(rows)[0])
        & tf.math.is_finite(losses)
    )
    gradients = clipping_lib.gather_gradients(
        calls,
        _unscale(source_gradients, plan.loss_scale),
        plan.variables,
        plan.groups,
    )
    gradients = low_rank.project_all(gradients, plan.carriers, plan.variables)
    clipped = clipping_lib.clip_and_sum(gradients, plan.groups, present)
    sums = BatchSums(clipped, _unscale([above], plan.loss_scale)[0])
    return MicrobatchResult(sums, losses, y_pred)


def _backward(tape, total: tf.Tensor, sources, plan: Plan):
    """Gradients of the sources, each layer's where its forward pass ran."""
    on_devices = any(group.device is not None for group in plan.groups)
    if tf.executing_eagerly() or not on_devices:
        return tape.gradient(total, sources)
    # A tape leaves the placement of its operations to TensorFlow, which puts
    # the whole backward pass on the first device.
    found = tf.compat.v1.gradients(
        total, tree.flatten(sources), colocate_gradients_with_ops=True
    )
    return tree.pack_sequence_as(sources, found)


def _variables_of(call: per_example.LayerCall) -> list[keras.Variable]:
    return call.rule.variables(call.layer)


def _unscale(source_gradients, scale: float):
    def unscale(gradient):
        if gradient is None:
            return None
        if isinstance(gradient, tf.IndexedSlices):
            gradient = tf.convert_to_tensor(gradient)
        if gradient.dtype == tf.float16:
            gradient = tf.cast(gradient, tf.float32)
        return gradient if scale == 1.0 else gradient / scale

    return [[unscale(g) for g in group] for group in source_gradients]


def _one_per_row(losses: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    if losses.shape.rank != 1 or not losses.shape.is_compatible_with(
        rows.shape
    ):
        raise ValueError(
            "The loss did not reduce to one number per example: its shape is "
            f"{tuple(losses.shape)} for a batch of {rows.shape[0]}."
        )
    # Fails where the sizes are known only now, instead of broadcasting.
    return tf.reshape(losses, tf.shape(rows))


def _check_no_added_losses(model: keras.Model) -> None:
    expected = sum(v.regularizer is not None for v in model.trainable_variables)
    if len(model.losses) > expected:
        raise ValueError(
            "A layer added a loss of its own (`add_loss` or an "
            "`activity_regularizer`): one number for the whole batch, which "
            "can't be clipped per example. Remove it, or move it into the "
            "`loss` of `compile`."
        )


def _check_unseen(variables, gradients) -> None:
    for variable, gradient in zip(variables, gradients, strict=True):
        if gradient is not None:
            raise ValueError(
                f"The loss depends on '{variable.path}', but not through a "
                "call of the layer that owns it: its per-example gradients "
                "are out of reach. Call the layer instead of reading its "
                "weights, or set `layer.trainable = False`."
            )


def regularization_gradients(
    plan: Plan,
) -> tuple[tf.Tensor | None, list[tf.Tensor | None]]:
    """The weight regularisers: they read no data and need no noise.

    Args:
        plan: What is trained.

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
    return total, _backward(tape, total, values, plan)


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
        model: The model.
        plan: Its plan.
        x: Inputs.
        y: Labels.
        sample_weight: Sample weights, or `None`.
        microbatch_size: Physical batch, or `None` for the whole at once.
        after_microbatch: Called for every micro-batch with
            `(x, y, sample_weight, rows, result)`: metrics.

    Returns:
        The clipped sum for each variable, the counts, and the gradients
        above released representations; private.
    """
    data = (x, y, sample_weight)
    data, rows = sampling_lib.pad_to_multiple(data, microbatch_size or 1)
    if microbatch_size is None:
        result = clipped_microbatch(model, plan, *data, rows)
        after_microbatch(*data, rows, result)
        return result.sums
    pieces = sampling_lib.split_microbatches((data, rows), microbatch_size)
    count = tf.shape(pieces[1])[0]

    def at(index):
        return tree.map_structure(
            lambda t: None if t is None else t[index], pieces
        )

    def run(index):
        piece, piece_rows = at(index)
        result = clipped_microbatch(model, plan, *piece, piece_rows)
        after_microbatch(*piece, piece_rows, result)
        return result.sums

    # Piece 0 outside the loop: it shows which variables get a sum, and builds
    # whatever Keras builds on first use.
    first = run(0)
    totals = _tensors(first)
    if pieces[1].shape[0] != 1:

        def body(index, *totals):
            more = _tensors(run(index))
            return (
                index + 1,
                *[a + b for a, b in zip(totals, more, strict=True)],
            )

        # A loop begins with whatever is there: without this, piece 1 would
        # run beside piece 0 and both be in memory.
        with tf.control_dependencies(totals):
            second = tf.identity(tf.constant(1))
        _, *totals = tf.while_loop(
            lambda index, *_: index < count,
            body,
            (second, *totals),
            shape_invariants=(
                tf.TensorShape([]),
                *[t.shape for t in totals],
            ),
            parallel_iterations=1,
        )
    return tree.pack_sequence_as(first, _with_none(first, totals))


def _tensors(sums: BatchSums) -> list[tf.Tensor]:
    return [t for t in tree.flatten(sums) if t is not None]


def _with_none(sums: BatchSums, tensors) -> list:
    """The tensors, with `None` where `sums` has it."""
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
        plan: The plan of the step.
        sums: The clipped sums of this replica.
        regularization: The gradients of the regularisers.
        batch_size: Number of examples of the batch.
        replicas: Over how many replicas the batch was dealt.

    Returns:
        `ClippedGradients`.
    """
    below = len(plan.variables)
    joint = None
    if plan.rows is not None:
        joint = JointGradients(
            representations=plan.rows,
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
        regularization=tuple(regularization[:below]),
        replicas=replicas,
        joint=joint,
    )
