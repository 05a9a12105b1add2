"""Proofs of steps, of every graph that is traced."""

import dataclasses
from collections.abc import Hashable
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from tf_dpfp import compilation
from tf_dpfp import step as step_lib
from tf_dpfp.independence import inputs
from tf_dpfp.independence import step_proof
from tf_dpfp.independence.findings import Category
from tf_dpfp.independence.findings import Finding
from tf_dpfp.independence.first_axes import FirstAxes
from tf_dpfp.keras_private import layers as keras_layers
from tf_dpfp.mechanisms import state as state_lib

# Set by Keras as it trains.
_OF_KERAS = frozenset(
    ("built", "stop_training", "stop_evaluating", "stop_predicting")
)


def settings(model: keras.Model) -> tuple[Hashable, ...]:
    """Returns what a trial and an eager proof hold for.

    Args:
        model: A built model.

    Returns:
        Its trainable weights and its layers, with their public attributes
        that are numbers or words: a switch that is turned is seen.
    """
    found: list[Hashable] = [id(v) for v in model.trainable_variables]
    for layer in keras_layers.all_layers(model):
        found.append((id(layer), layer.trainable))
        found += sorted(
            (name, value)
            for name, value in vars(layer).items()
            if isinstance(value, (bool, int, float, str))
            and not name.startswith("_")
            and name not in _OF_KERAS
        )
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class _Judge:
    """Judges every micro-batch that is traced.

    Args:
        model: A private model.
    """

    model: keras.Model

    def __call__(self, traced: step_lib.Traced) -> None:
        """Raises for what is not proved; see `raise_unless_proved`."""
        found = step_proof.findings_of(self.model, traced)
        step_proof.raise_unless_proved(self.model, found)


def with_proof(model: keras.Model, plan: step_lib.Plan) -> step_lib.Plan:
    """Returns a plan whose steps are proved while they are traced.

    Args:
        model: A private model.
        plan: The plan of a step.
    """
    return dataclasses.replace(
        plan, on_traced=_Judge(model), first_axes=FirstAxes
    )


def trace(
    model: keras.Model, plan: step_lib.Plan, specs: Any
) -> tuple[Finding, ...]:
    """Proves a step that does not run in a graph.

    The same forward and backward pass is traced in a graph that never runs,
    once for the model as it is.

    Args:
        model: A private model.
        plan: The plan of the step.
        specs: Specifications of `(x, y, sample_weight)`.

    Returns:
        What is not proved.
    """
    state = state_lib.state_of(model)
    target = compilation.target()
    kind = (settings(model), target, str(tree.map_structure(repr, specs)))
    if kind not in state.traces:
        try:
            found = inputs.outside_of_graphs(_trace, model, plan, specs, target)
        except Exception as error:  # Of any code in a layer or a loss.
            found = (not_traced(error),)
        state.traces[kind] = found
    return state.traces[kind]


def fresh_trace(
    model: keras.Model, plan: step_lib.Plan, specs: Any
) -> tuple[Finding, ...]:
    """Proves a step like `trace`, whatever was traced before.

    Args:
        model: A private model.
        plan: The plan of the step.
        specs: Specifications of `(x, y, sample_weight)`.

    Returns:
        What is not proved.
    """
    target = compilation.Target.KERNELS
    return inputs.outside_of_graphs(_trace, model, plan, specs, target)


def not_traced(error: Exception) -> Finding:
    """Describes a step that does not run on batches of unknown size.

    Args:
        error: The reason.
    """
    return Finding(
        Category.MIXED,
        layer="",
        operation="trace",
        name="trace",
        reason="A step for batches of any size can't be traced "
        f"({type(error).__name__}: {error}).",
        way_out="Read sizes by `ops.shape(x)`, not by `x.shape`.",
        subject="the step",
        is_definite=False,
    )


def _trace(
    model: keras.Model,
    plan: step_lib.Plan,
    specs: Any,
    target: compilation.Target,
) -> tuple[Finding, ...]:
    found: list[Finding] = []
    plan = dataclasses.replace(
        plan,
        on_traced=lambda t: found.extend(step_proof.findings_of(model, t)),
        first_axes=plan.first_axes or FirstAxes,
    )

    def traced(*tensors):
        remaining = iter(tensors)
        x, y, sample_weight = tree.map_structure(
            lambda s: None if s is None else next(remaining), specs
        )
        step_lib.clipped_batch(
            model, plan, x, y, sample_weight, None, lambda *_: None
        )

    flat = [s for s in tree.flatten(specs) if s is not None]
    with compilation.tracing_for(target):
        tf.function(traced, autograph=False).get_concrete_function(*flat)
    return tuple(found)


def specs_of(batch: Any) -> Any:
    """Describes the tensors of a batch, of any number of examples."""
    return tree.map_structure(_spec, batch)


def _spec(leaf: Any) -> tf.TensorSpec | None:
    if leaf is None:
        return None
    if not tf.is_tensor(leaf) and not isinstance(leaf, tf.TensorSpec):
        leaf = tf.convert_to_tensor(leaf)
    return tf.TensorSpec([None, *leaf.shape[1:]], leaf.dtype)
