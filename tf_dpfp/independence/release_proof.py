"""Proof of a step that releases noised representations.

What a `DPRepresentationClip` releases must be per example before its noise, and
everything else that the step writes, prints or returns must be free of data:
it may come from the released representations and from the labels, which the
noise does not cover. An example is replaced by another one, so the batch size
is no secret.
"""

import dataclasses
from collections.abc import Sequence

import keras
import tensorflow as tf

from tf_dpfp import layers as layers_lib
from tf_dpfp.independence import proof as proof_lib
from tf_dpfp.independence import step_proof
from tf_dpfp.independence.findings import Finding
from tf_dpfp.independence.given import Given
from tf_dpfp.independence.proof import Released
from tf_dpfp.keras_private import layers as keras_layers

# Name of what the layers release, in findings.
RELEASED = "the representations"


@dataclasses.dataclass(frozen=True)
class TracedRelease:
    """Step with noised representations, or its forward pass, in a graph.

    Attributes:
        graph: The graph.
        operations: The operations that the step added to it.
        examples: Tensors of the inputs, one row for each example.
        labels: Tensors that the noise does not cover.
        releases: What the layers release.
        results: Tensors that must be free of data.
    """

    graph: tf.Graph
    operations: Sequence[tf.Operation]
    examples: Sequence[tf.Tensor]
    labels: Sequence[tf.Tensor]
    releases: Sequence[layers_lib.Release]
    results: Sequence[tf.Tensor] = ()


def findings_of(
    model: keras.Model, traced: TracedRelease
) -> tuple[Finding, ...]:
    """Lists what is not proved of a step with noised representations.

    Args:
        model: The model.
        traced: The step.

    Returns:
        The findings.
    """
    names = {layer.name for layer in keras_layers.all_layers(model)}
    outputs = [release.output for release in traced.releases]
    released = [
        Released(release.clipped, RELEASED, False)
        for release in traced.releases
    ]
    released += [
        Released(result, "a result of the step", may_be_examples=False)
        for result in traced.results
    ]
    proof = proof_lib.prove(
        traced.graph,
        traced.examples,
        released,
        traced.operations,
        names,
        given=Given(public=[*traced.labels, *outputs]),
        follows_data=True,
    )
    return proof.refusals(step_proof.ALLOWED)
