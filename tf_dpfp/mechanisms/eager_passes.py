"""Micro-batches of steps that run eagerly, each in a graph of its own.

Python code that runs anew in every step can do another thing in each: branch on
the number of examples, or on a number of one of them. So the pass of an eager
step runs in a graph, too, traced and proved once for each kind of batch.
"""

import dataclasses
from collections.abc import Callable, Hashable, MutableMapping
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from tf_dpfp import compilation
from tf_dpfp import step as step_lib
from tf_dpfp.independence import step_proof
from tf_dpfp.mechanisms import proved
from tf_dpfp.mechanisms import state as state_lib


@dataclasses.dataclass(frozen=True)
class EagerPasses:
    """Runs the passes of eager steps.

    Args:
        model: A private model.
        functions: What was traced before for the model as it is, by the kinds
            of the batch and of the plan.
    """

    model: keras.Model
    functions: MutableMapping[Hashable, Callable]

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
        values = (batch, tf.cast(piece, tf.int32), _values_of(plan))
        tensors = [
            tf.convert_to_tensor(v)
            for v in tree.flatten(values)
            if v is not None
        ]
        kind = (str(tree.map_structure(repr, specs)), _constants_of(plan))
        function = self.functions.get(kind)
        if function is None:
            function = self._function(plan, (specs, *values[1:]))
        with compilation.tracing_for(compilation.Target.KERNELS):
            sums, losses, y_pred = function(*tensors)
        # Only what was traced to its end.
        self.functions[kind] = function
        return step_lib.MicrobatchResult(sums, losses, y_pred)

    def _function(self, plan: step_lib.Plan, values: Any) -> Callable:
        def traced(*tensors):
            remaining = iter(tensors)
            (x, y, sample_weight, is_example), piece, of_plan = (
                tree.map_structure(
                    lambda v: None if v is None else next(remaining), values
                )
            )
            result = self._traced(
                _with_values(plan, of_plan),
                (x, y, sample_weight, is_example, piece),
            )
            return result.sums, result.losses, result.y_pred

        signature = [
            v
            if isinstance(v, tf.TensorSpec)
            else tf.TensorSpec(v.shape, v.dtype)
            for v in tree.flatten(values)
            if v is not None
        ]
        return tf.function(traced, autograph=False, input_signature=signature)

    def _traced(
        self, plan: step_lib.Plan, arguments: tuple
    ) -> step_lib.MicrobatchResult:
        try:
            return step_lib.clipped_microbatch(self.model, plan, *arguments)
        except ValueError:
            raise
        except Exception as error:  # Of any code in a layer or a loss.
            found = [proved.not_traced(error)]
            step_proof.raise_unless_proved(self.model, found)
            raise


def of_model(model: keras.Model) -> EagerPasses:
    """Returns the passes of a model as it is now.

    Args:
        model: A private model.
    """
    return EagerPasses(model, _functions_of(model))


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
    tensors = [
        tf.convert_to_tensor(t) for t in tree.flatten(data) if t is not None
    ]
    kind = (str(tree.map_structure(repr, specs)), model.optimizer)
    function = functions.get(kind)
    if function is None:

        def traced(*tensors):
            remaining = iter(tensors)
            return step(
                tree.map_structure(
                    lambda s: None if s is None else next(remaining), specs
                )
            )

        signature = [s for s in tree.flatten(specs) if s is not None]
        function = tf.function(
            traced, autograph=False, input_signature=signature
        )
    with compilation.tracing_for(compilation.Target.KERNELS):
        results = function(*tensors)
    functions[kind] = function
    return results


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
    )


def _tensor_or_none(value: Any) -> tf.Tensor | None:
    return value if tf.is_tensor(value) else None


def _number_or_kind(value: Any) -> Any:
    return tf.TensorSpec.from_tensor(value) if tf.is_tensor(value) else value
