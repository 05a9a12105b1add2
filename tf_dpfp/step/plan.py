"""Plan of a private step: layers, variables and groups of a built model."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras import tree

from tf_dpfp import accounting
from tf_dpfp import clipping as clipping_lib
from tf_dpfp import compilation
from tf_dpfp import counting
from tf_dpfp import layers as layers_lib
from tf_dpfp import low_rank
from tf_dpfp import per_example
from tf_dpfp.keras_private import layers as keras_layers
from tf_dpfp.step import sparse_tables
from tf_dpfp.step.traced import Traced

# Half precision underflows without scaling; a power of two costs no accuracy.
# It is fixed: a scale that follows the data would tell about the data.
_FLOAT16_LOSS_SCALE = 2.0**10


@dataclasses.dataclass(frozen=True)
class Plan:
    """Plan of the steps of a built model.

    Attributes:
        units: Layers whose calls are recorded.
        variables: The trainable variables; of a model that releases
            representations, those below them.
        groups: Groups of them that are clipped together.
        carriers: For each variable, the carriers of a reparametrised kernel,
            or `None`.
        loss: Maps `(y, y_pred, sample_weight)` to one loss per example.
        loss_scale: The loss is multiplied by this in the backward pass.
        above: Trainable variables above released representations.
        representations: Their release; `None` if the model releases none.
        seeds: Returns secret seeds for the random layers of a forward pass,
            given the number of the micro-batch.
        secret_handles: Returns handles of the variables that they come from.
        on_traced: Called for every micro-batch that is traced in a graph,
            before anything is clipped.
        kind: Sums of persons, or of views, of which several rows of a batch
            are one, end to end; `None` if rows are clipped, each by itself.
        first_axes: Given the tensors of a micro-batch, returns a function that
            tells which arguments of layers have the batch in them.
        eager_pass: Given the plan, `(x, y, sample_weight, is_example)` and the
            number of the micro-batch, computes a `MicrobatchResult` in a
            graph, for steps that run eagerly; `None` runs them eagerly.
        compiles: True if steps in graphs take it, too: XLA compiles it.
        of_weights: Tensors of the plan that were made of weights alone, outside
            of the graph.
        tables: Tables that are released where they are touched, or `None`.
        in_pieces: True if a step takes one micro-batch after the other.
    """

    units: Sequence[per_example.Unit]
    variables: Sequence[keras.Variable]
    groups: Sequence[clipping_lib.Group]
    carriers: Sequence[low_rank.Carriers | None]
    loss: Any
    loss_scale: float
    seeds: Callable[[tf.Tensor | int], Callable[[], tf.Tensor]]
    secret_handles: Callable[[], Sequence[tf.Tensor]]
    above: Sequence[keras.Variable] = ()
    representations: counting.GaussianRelease | None = None
    on_traced: Callable[[Traced], None] | None = None
    kind: accounting.PersonSums | accounting.ViewSums | None = None
    first_axes: (
        Callable[[Sequence[tf.Tensor]], per_example.IsBatched] | None
    ) = None
    eager_pass: Callable[..., Any] | None = None
    compiles: bool = False
    of_weights: Sequence[tf.Tensor] = ()
    tables: clipping_lib.SparseTables | None = None
    in_pieces: bool = False

    @property
    def joined(self) -> int:
        """Number of consecutive rows whose gradients are one."""
        return 1 if self.kind is None else self.kind.rows

    @property
    def views(self) -> int:
        """Number of rows that a gradient is the mean of."""
        return 1 if self.kind is None else self.kind.views

    def record(
        self, data: Any
    ) -> contextlib.AbstractContextManager[list[per_example.LayerCall]]:
        """Opens the context that records the calls of layers.

        Args:
            data: A micro-batch, nested.

        Returns:
            A context; it gives the list of the calls.
        """
        if self.first_axes is None:
            return per_example.record_calls(self.units)
        tensors = [t for t in tree.flatten(data) if t is not None]
        size = tensors[0].shape[0]
        return per_example.record_calls(
            self.units,
            self.first_axes(tensors),
            tf.shape(tensors[0])[0] if size is None else size,
        )

    def step(
        self, noise: bool = True
    ) -> contextlib.AbstractContextManager[Sequence[layers_lib.Release]]:
        """Opens the context that the forward pass runs in.

        Args:
            noise: Add noise to representations; not in a trial.

        Returns:
            A context; it gives a list that fills with the representations
            that layers release.
        """
        if self.representations is None:
            return contextlib.nullcontext(())
        return layers_lib.joint_step(noise)


class Below(NamedTuple):
    """Representations that a model releases, and what is trained below them.

    Attributes:
        representations: Their release.
        positions: Indices of the trainable variables below.
    """

    representations: counting.GaussianRelease
    positions: Sequence[int]


def make_plan(
    model: keras.Model, optimizer, loss, below: Below | None = None
) -> Plan:
    """Cuts a built model into units and groups.

    Args:
        model: A built model.
        optimizer: A private optimizer.
        loss: Compiled loss, as a function of each example.
        below: Variables trained below noised representations, if any.

    Returns:
        The `Plan`.

    Raises:
        ValueError: If nothing is trainable, XLA is asked to compile for
            several devices, or a table can't be sparse.
    """
    owned = owned_variables(model)
    above = []
    if below is not None:
        inside = set(below.positions)
        above = [o.variable for i, o in enumerate(owned) if i not in inside]
        owned = [o for i, o in enumerate(owned) if i in inside]
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
        seeds=optimizer.pass_seeds,
        secret_handles=optimizer.secret_handles,
        above=above,
        representations=None if below is None else below.representations,
        tables=sparse_tables.find(model, optimizer.sparse_tables, owned),
    )


def _owning(
    units: Sequence[per_example.Unit], variables: Sequence[keras.Variable]
) -> list[per_example.Unit]:
    """Returns the units that hold some of the variables."""
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
    """Returns every trainable variable with the layer that owns it."""
    owners: dict[int, keras.layers.Layer] = {}
    for layer in keras_layers.all_layers(model):
        for variable in keras_layers.own_variables(layer):
            owners.setdefault(id(variable), layer)
    return [
        clipping_lib.OwnedVariable(v, owners[id(v)], low_rank.released_size(v))
        for v in model.trainable_variables
    ]
