"""Micro-batches of steps that run eagerly, each in a graph of its own.

Python code that runs anew in every step can do another thing in each: branch on
the number of examples, or on a number of one of them. So the pass of an eager
step runs in a graph, too, traced and proved once for each kind of batch.
"""

import dataclasses
from collections.abc import Callable, Hashable, MutableMapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from tf_dpfp import compilation
from tf_dpfp import step as step_lib
from tf_dpfp.independence import step_proof
from tf_dpfp.independence.first_axes import FirstAxes
from tf_dpfp.keras_private import forked
from tf_dpfp.keras_private import layers as keras_layers
from tf_dpfp.mechanisms import proved
from tf_dpfp.mechanisms import state as state_lib


@dataclasses.dataclass(frozen=True)
class EagerPasses:
    """Runs the passes of eager steps.

    Args:
        model: A private model.
        functions: What was traced before for the model as it is, by the kinds
            of the batch and of the plan.
        compiles: True to have XLA compile them. They are then parts of a
            graph, that of a replica.
    """

    model: keras.Model
    functions: MutableMapping[Hashable, Callable]
    compiles: bool = False

    def __call__(
        self, plan: step_lib.Plan, batch: tuple, piece: tf.Tensor | int
    ) -> step_lib.MicrobatchResult:
        """Computes the clipped sums of a micro-batch in a graph.

        Args:
            plan: The plan of the step.
            batch: `(x, y, sample_weight, is_example)`.
            piece: Number of the micro-batch in its step.

        Returns:
            The `MicrobatchResult`.

        Raises:
            ValueError: If it can't be traced, or is not proved.
        """
        specs = proved.specs_of(batch)
        values = (tf.cast(piece, tf.int32), _values_of(plan))
        kind = (forked.is_forked(), *_kind(specs), _constants_of(plan))
        function = self.functions.get(kind)
        if function is None:
            make = self._eagerly if forked.is_forked() else self._function
            function = make(plan, (specs, *values))
            self.functions[kind] = function
        return function(*_tensors((batch, *values)))

    def _eagerly(self, plan: step_lib.Plan, like: Any) -> Callable:
        """Proves a pass that runs eagerly, in a process that was forked."""
        answers: list[bool] = []

        class Noted(FirstAxes):
            def __call__(self, tensor):
                answers.append(super().__call__(tensor))
                return answers[-1]

        noted = dataclasses.replace(plan, first_axes=Noted)
        found = proved.fresh_trace(self.model, noted, like[0][:3])
        step_proof.raise_unless_proved(self.model, found)
        if not all(answers):
            raise ValueError(
                f"Model '{self.model.name}' calls layers on tensors that are "
                "the same for all examples, which an eager step of a process "
                "that was forked can't tell from the batch. Start the process "
                "with multiprocessing.get_context('spawn')."
            )

        def run(*tensors):
            (x, y, sample_weight, is_example), piece, values = _packed(
                tensors, like
            )
            return step_lib.clipped_microbatch(
                self.model,
                dataclasses.replace(
                    _with_values(plan, values), first_axes=None
                ),
                x,
                y,
                sample_weight,
                is_example,
                piece,
            )

        return run

    def _function(self, plan: step_lib.Plan, like: Any) -> Callable:
        metrics: list[keras.Variable] = []

        def traced(*tensors):
            (x, y, sample_weight, is_example), piece, values = _packed(
                tensors, like
            )
            plan_of_step = _with_values(plan, values)
            try:
                result = step_lib.clipped_microbatch(
                    self.model,
                    plan_of_step,
                    x,
                    y,
                    sample_weight,
                    is_example,
                    piece,
                )
            except ValueError:
                raise
            except Exception as error:  # Of any code in a layer or a loss.
                found = [proved.not_traced(error)]
                step_proof.raise_unless_proved(self.model, found)
                raise
            metrics[:] = [variable for variable, _ in result.tracked]
            added = [tensor for _, tensor in result.tracked]
            return result.sums, result.losses, result.y_pred, added

        concrete = _concrete(traced, like, self.compiles)

        def function(*tensors):
            sums, losses, y_pred, added = concrete(*tensors)
            tracked = list(zip(metrics, added, strict=True))
            return step_lib.MicrobatchResult(sums, losses, y_pred, tracked)

        return function


def of_model(model: keras.Model) -> EagerPasses:
    """Returns the passes of a model as it is now.

    Args:
        model: A private model.
    """
    return EagerPasses(model, _functions_of(model))


def compiled(model: keras.Model) -> EagerPasses:
    """Returns passes that XLA compiles, in the graph that is being traced.

    Args:
        model: A private model.
    """
    return EagerPasses(model, {}, compiles=True)


def whole_step(
    model: keras.Model, step: Callable[[Any], Any], data: Any
) -> Any:
    """Takes a step of a model that releases representations in a graph.

    Args:
        model: A private model.
        step: Takes the step on a batch.
        data: The batch, nested; leaves may be `None`.

    Returns:
        What the step returns.
    """
    functions = _functions_of(model)
    specs = proved.specs_of(data)
    kind = (_kind(specs), model.optimizer)
    function = functions.get(kind)
    if function is None:

        def traced(*tensors):
            with keras_layers.root_scope(model):
                return step(_packed(tensors, specs))

        function = functions[kind] = _concrete(traced, specs)
    return function(*_tensors(data))


def _functions_of(model: keras.Model) -> dict[Hashable, Callable]:
    functions = state_lib.state_of(model).eager_passes
    settings = proved.settings(model)
    if settings not in functions:
        # Those of a model that has changed hold on to what it was.
        functions.clear()
        functions[settings] = {}
    return functions[settings]


def _values_of(plan: step_lib.Plan) -> Any:
    """Returns the tensors of a plan, which are others in every step."""
    groups = [
        [_tensor_or_none(g.clip_norm), _tensor_or_none(g.estimate)]
        for g in plan.groups
    ]
    return groups, [c and list(c) for c in plan.carriers]


def _with_values(plan: step_lib.Plan, values: Any) -> step_lib.Plan:
    """Returns a plan with other tensors."""
    groups, carriers = values
    return dataclasses.replace(
        plan,
        groups=tuple(
            dataclasses.replace(
                group,
                clip_norm=group.clip_norm if norm is None else norm,
                estimate=group.estimate if estimate is None else estimate,
            )
            for group, (norm, estimate) in zip(plan.groups, groups, strict=True)
        ),
        carriers=[
            None if old is None else type(old)(*new)
            for old, new in zip(plan.carriers, carriers, strict=True)
        ],
        of_weights=[t for t in tree.flatten(values) if t is not None],
    )


def _constants_of(plan: step_lib.Plan) -> Hashable:
    """Returns everything else of a plan that a graph is made of."""
    groups = tuple(
        dataclasses.replace(
            group,
            clip_norm=_number_or_kind(group.clip_norm),
            estimate=_number_or_kind(group.estimate),
        )
        for group in plan.groups
    )
    return (
        groups,
        tuple(c is None for c in plan.carriers),
        tuple(id(v) for v in (*plan.variables, *plan.above)),
        id(plan.loss),
        plan.loss_scale,
        plan.seeds,
        plan.representations,
        plan.kind,
        plan.tables,
        plan.in_pieces,
    )


def _tensor_or_none(value: Any) -> tf.Tensor | None:
    return value if tf.is_tensor(value) else None


def _number_or_kind(value: Any) -> Any:
    return tf.TensorSpec.from_tensor(value) if tf.is_tensor(value) else value


def _kind(specs: Any) -> tuple[Hashable, ...]:
    # Of replicas, each has variables of its own on its device.
    of_device = tf.zeros([]).device
    return str(tree.map_structure(repr, specs)), of_device


def _concrete(
    function: Callable, like: Any, compiles: bool = False
) -> Callable:
    """Traces a function, which runs in a graph whatever TensorFlow is set to.

    Args:
        function: A function of tensors.
        like: Tensors like its arguments, or their specifications, nested.
        compiles: True to have XLA compile it.
    """
    signature = [
        v if isinstance(v, tf.TensorSpec) else tf.TensorSpec(v.shape, v.dtype)
        for v in tree.flatten(like)
        if v is not None
    ]
    xla, kernels = compilation.Target.XLA, compilation.Target.KERNELS
    with compilation.tracing_for(xla if compiles else kernels):
        return tf.function(
            function,
            autograph=False,
            input_signature=signature,
            # What encloses it decides otherwise.
            jit_compile=True if compiles else None,
        ).get_concrete_function()


def _tensors(nested: Any) -> list[tf.Tensor]:
    return [
        tf.convert_to_tensor(v) for v in tree.flatten(nested) if v is not None
    ]


def _packed(tensors: Sequence[tf.Tensor], like: Any) -> Any:
    """Gives tensors the structure that they were flattened from."""
    remaining = iter(tensors)
    return tree.map_structure(
        lambda v: None if v is None else next(remaining), like
    )
