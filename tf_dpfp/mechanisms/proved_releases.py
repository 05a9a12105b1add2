"""Proofs of steps with noised representations."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tf_dpfp import compilation
from tf_dpfp import layers as layers_lib
from tf_dpfp import step as step_lib
from tf_dpfp.independence import inputs
from tf_dpfp.independence import release_proof
from tf_dpfp.independence import step_proof
from tf_dpfp.independence.findings import Finding
from tf_dpfp.keras_private import distribution as keras_distribution
from tf_dpfp.keras_private import layers as keras_layers
from tf_dpfp.mechanisms import proved
from tf_dpfp.mechanisms import state as state_lib


def train_step(
    model: keras.Model, data: Any, step: Callable[[Any], Any]
) -> Any:
    """Takes a step, and proves it: the graph of it, if one is traced.

    Args:
        model: A private model with a `DPRepresentationClip`.
        data: A batch: `x`, `(x, y)` or `(x, y, sample_weight)`.
        step: Takes the step on such a batch.

    Returns:
        What the step returns.

    Raises:
        ValueError: If examples meet below the noise, or data leave without
            it.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    several = tf.distribute.get_strategy().num_replicas_in_sync > 1
    if tf.executing_eagerly() or not is_plain((x, y, sample_weight)):
        if several:
            raise ValueError(
                "On several replicas representations are released in compiled "
                "steps, of dense tensors. Make the batches dense, and compile "
                "with run_eagerly=False."
            )
        # Ragged or sparse: nothing is known of where the examples are.
        check(model, x)
        return step(data)
    before = step_lib.count_operations()
    batch = step_lib.as_examples((x, y, sample_weight))
    sizes: list[tf.Tensor] = []
    of_piece: contextlib.AbstractContextManager[None]
    of_piece = contextlib.nullcontext()
    if several:
        sizes = [tf.shape(_tensors(batch[0])[0])[0]]
        share = tf.math.divide_no_nan(
            tf.cast(sizes[0], tf.float32),
            tf.cast(layers_lib.total(sizes[0]), tf.float32),
        )
        of_piece = keras_distribution.mean_of_pieces(share)
    with layers_lib.watched() as releases, of_piece:
        results = step(keras.utils.pack_x_y_sample_weight(*batch))
    sizes += [r.size for r in releases if tf.is_tensor(r.size)]
    traced = release_proof.TracedRelease(
        tf.compat.v1.get_default_graph(),
        before,
        _tensors(batch[0]),
        _tensors(batch[1:]),
        releases,
        _tensors(results),
        sizes,
    )
    found = release_proof.findings_of(model, _of_all_replicas(model, traced))
    step_proof.raise_unless_proved(model, found)
    return results


def _of_all_replicas(
    model: keras.Model, traced: release_proof.TracedRelease
) -> list[release_proof.TracedRelease]:
    """Gathers the steps of the replicas, which are traced in one graph.

    Args:
        model: The model.
        traced: The step of this replica.

    Returns:
        The steps of all, for the last one that is done; `[]` for the others.
    """
    count = tf.distribute.get_strategy().num_replicas_in_sync
    state = state_lib.state_of(model)
    done = [t for t in state.traced_releases if t.graph is traced.graph]
    state.traced_releases = [*done, traced]
    if len(state.traced_releases) < count:
        return []
    found, state.traced_releases = state.traced_releases, []
    return found


def check(model: keras.Model, x: Any) -> None:
    """Proves the forward pass of steps on batches of any size, once.

    It is traced in a graph that never runs.

    Args:
        model: A private model with a `DPRepresentationClip`.
        x: Inputs, or their specifications.

    Raises:
        ValueError: If examples meet below the noise, or data leave without
            it.
    """
    state = state_lib.state_of(model)
    specs = proved.specs_of(x)
    kind = ("forward", proved.settings(model), str(specs))
    if kind not in state.traces:
        try:
            found = inputs.outside_of_graphs(_trace, model, specs)
        except Exception as error:  # Of any code in a layer.
            found = (proved.not_traced(error),)
        state.traces[kind] = found
    step_proof.raise_unless_proved(model, state.traces[kind])


def _trace(model: keras.Model, specs: Any) -> tuple[Finding, ...]:
    found: list[Finding] = []

    def traced(*tensors):
        x = tree.pack_sequence_as(specs, list(tensors))
        with layers_lib.watched() as releases:
            outputs = step_lib.call_model(model, x)
        graph = tf.compat.v1.get_default_graph()
        found.extend(
            release_proof.findings_of(
                model,
                [
                    release_proof.TracedRelease(
                        graph,
                        0,
                        tensors,
                        (),
                        releases,
                        list(_results(model, outputs)),
                    )
                ],
            )
        )

    with compilation.tracing_for(compilation.Target.KERNELS):
        function = tf.function(traced, autograph=False)
        function.get_concrete_function(*tree.flatten(specs))
    return tuple(found)


def _results(model: keras.Model, outputs: Any) -> Iterator[tf.Tensor]:
    """Lists what losses and metrics read of a forward pass."""
    for tensor in _tensors(outputs):
        yield tensor
        mask = keras_layers.mask_of(tensor)
        if mask is not None:
            yield mask
    yield from _tensors(model.losses)


def _tensors(nested: Any) -> list[tf.Tensor]:
    # The result of a metric may be one of its variables.
    return [
        tf.convert_to_tensor(leaf)
        for leaf in tree.flatten(nested)
        if tf.is_tensor(leaf)
    ]


def is_plain(batch: Any) -> bool:
    """Tells a batch of ordinary tensors from a ragged or sparse one.

    Args:
        batch: The batch, nested.
    """
    return all(
        leaf is None or isinstance(leaf, (tf.Tensor, np.ndarray))
        for leaf in tree.flatten(batch)
    )
