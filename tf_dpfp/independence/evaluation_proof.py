"""Proof of an evaluation: row i of what it computes is of example i alone.

One example less moves others to another batch. So a pass may leave nothing
behind that the next one could read, such as the number of the batch.
"""

import dataclasses
from collections.abc import Sequence

import keras
import tensorflow as tf

from tf_dpfp.independence import proof as proof_lib
from tf_dpfp.independence import step_proof
from tf_dpfp.independence.findings import Finding
from tf_dpfp.independence.proof import Released
from tf_dpfp.keras_private import layers as keras_layers


@dataclasses.dataclass(frozen=True)
class TracedEvaluation:
    """Forward pass of an evaluation, in a graph.

    Attributes:
        graph: The graph; all of it belongs to the pass.
        examples: Tensors of the batch, one row for each example.
        values: What is added up over examples.
        secret_handles: Handles of the variables that secret seeds come from.
        trackers: Variables of Keras's metrics of the loss of each output.
        metrics: Variables in which metrics keep what they saw of the data.
    """

    graph: tf.Graph
    examples: Sequence[tf.Tensor]
    values: tf.Tensor
    secret_handles: Sequence[tf.Tensor]
    trackers: Sequence[tf.Variable]
    metrics: Sequence[tf.Variable]


def findings_of(
    model: keras.Model, traced: TracedEvaluation
) -> tuple[Finding, ...]:
    """Lists what is not proved of an evaluation.

    Args:
        model: The model.
        traced: The pass.

    Returns:
        The findings.
    """
    handles = step_proof.handles(traced.trackers)
    tracked = frozenset(map(id, handles))
    proof = proof_lib.prove(
        traced.graph,
        traced.examples,
        [Released(traced.values, "what is added up", may_be_free=False)],
        [
            op
            for op in traced.graph.get_operations()
            if not step_proof.tracks_a_loss(op, tracked)
        ],
        {layer.name for layer in keras_layers.all_layers(model)},
        secret_handles=traced.secret_handles,
        data_handles=[*step_proof.handles(traced.metrics), *handles],
        # Seeds that are secret may count on.
        kept_handles=[*traced.secret_handles, *handles],
    )
    return (
        *proof.refusals(step_proof.ALLOWED),
        *step_proof.known_draws(proof),
    )
