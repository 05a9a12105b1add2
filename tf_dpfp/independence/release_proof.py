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
        begin: Number of operations that the graph had before the step.
        examples: Tensors of the inputs, one row for each example.
        labels: Tensors that the noise does not cover.
        releases: What the layers release.
        results: Tensors that must be free of data.
        sizes: Numbers of rows, which leave a replica.
    """

    graph: tf.Graph
    begin: int
    examples: Sequence[tf.Tensor]
    labels: Sequence[tf.Tensor]
    releases: Sequence[layers_lib.Release]
    results: Sequence[tf.Tensor] = ()
    sizes: Sequence[tf.Tensor] = ()


def findings_of(
    model: keras.Model, pieces: Sequence[TracedRelease]
) -> tuple[Finding, ...]:
    """Lists what is not proved of a step with noised representations.

    The graph of several replicas is followed once for each. The inputs of the
    others are then data of which nothing is known: they may reach neither what
    this replica releases nor what the graph writes. What any replica releases
    is public, and so are labels, and numbers of rows: that of what is released
    is proved to be that of the replica's examples.

    Args:
        model: The model.
        pieces: The step, on each replica; all in one graph.

    Returns:
        The findings.
    """
    if not pieces:
        return ()
    names = {layer.name for layer in keras_layers.all_layers(model)}
    graph, begin = pieces[0].graph, min(piece.begin for piece in pieces)
    public = [t for p in pieces for t in (*p.labels, *p.sizes)]
    public += [r.output for piece in pieces for r in piece.releases]
    results = [
        Released(result, "a result of the step", may_be_examples=False)
        for piece in pieces
        for result in piece.results
    ]
    found: list[Finding] = []
    for piece in pieces:
        clipped = [Released(r.clipped, RELEASED, False) for r in piece.releases]
        proof = proof_lib.prove(
            graph,
            piece.examples,
            [*clipped, *results],
            graph.get_operations()[begin:],
            names,
            given=Given(public=[*public, *_shapes_of_others(piece, pieces)]),
            follows_data=True,
        )
        found += proof.refusals(step_proof.ALLOWED)
    return tuple(found)


def _shapes_of_others(
    mine: TracedRelease, pieces: Sequence[TracedRelease]
) -> list[tf.Tensor]:
    """Lists the shapes of the inputs of other replicas: they are no secret."""
    return [
        op.outputs[0]
        for piece in pieces
        if piece is not mine
        for tensor in piece.examples
        for op in tensor.consumers()
        if op.type in ("Shape", "Size")
    ]
