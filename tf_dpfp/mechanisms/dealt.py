"""Training on several replicas: every example of a batch goes to one."""

import contextlib
import dataclasses
import inspect
import numbers
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf
from keras import tree

from tf_dpfp import replicas
from tf_dpfp import sampling as sampling_lib
from tf_dpfp import step as step_lib
from tf_dpfp.keras_private import distribution as keras_distribution
from tf_dpfp.keras_private import trainer as keras_trainer
from tf_dpfp.mechanisms import correlated
from tf_dpfp.mechanisms import fit_batches
from tf_dpfp.mechanisms import fit_steps
from tf_dpfp.mechanisms import state as state_lib
from tf_dpfp.sampling import lengths
from tf_dpfp.sampling import pipelines

if TYPE_CHECKING:
    from tf_dpfp.mechanisms.gradients import Gradients
    from tf_dpfp.mechanisms.representations import Representations


def fit(
    mechanism: "Gradients | Representations",
    strategy: tf.distribute.Strategy,
    pipeline: pipelines.Pipeline,
    arguments: dict[str, Any],
) -> keras.callbacks.History:
    """Runs `fit` on several replicas.

    Args:
        mechanism: The mechanism of the model.
        strategy: The strategy, of several replicas.
        pipeline: Description of the data.
        arguments: The bound arguments of `fit`.

    Returns:
        The history.
    """
    model, optimizer = mechanism.model, mechanism.optimizer
    arguments = dict(arguments)
    x = arguments["x"]
    # Read before a step, what they raise leaves none half done.
    may_end = inspect.isgenerator(x) or isinstance(x, keras.utils.PyDataset)
    batches = replicas.batches_of(arguments, pipeline)
    weigh = fit_batches.weigher(batches, arguments["class_weight"])
    compiles = mechanism.state.compiles_pieces
    if correlated.applies(optimizer, pipeline):
        count = strategy.num_replicas_in_sync
        batches = correlated.batches(
            optimizer, pipeline, arguments, compiles, count
        )
    elif compiles:
        steps = lengths.steps_of(arguments)
        weigh = fit_batches.sizer(optimizer, batches, weigh, steps)
    del arguments["x"]
    if pipeline.batch_size is not None:  # Arrays, all of which are in it.
        arguments |= {"y": None, "sample_weight": None, "batch_size": None}
    arguments["shuffle"] = False  # The data set has its own order.
    arguments["steps_per_epoch"] = replicas.steps_per_epoch(
        batches, arguments["steps_per_epoch"]
    )
    groups = mechanism.build_dealt(strategy, weigh(batches).element_spec)
    replicas.check_workers(strategy, model, groups, pipeline, arguments)
    arguments["class_weight"] = None
    replicas.check_examples(strategy, batches)
    arguments["callbacks"] = replicas.with_check(
        arguments["callbacks"], strategy
    )
    pieces = replicas.dealt(strategy, batches, weigh, mechanism.pads)
    claims = mechanism.claims(pipeline)
    with (
        _dealing(mechanism.state, strategy, 1, may_end),
        fit_steps.announced(mechanism.state, claims, pieces),
        correlated.opened(optimizer, pipeline, arguments, strategy),
        replicas.fitting(strategy, model),
    ):
        return state_lib.ordinary(model, "fit")(pieces, **arguments)


def train_on_batch(
    mechanism: "Gradients | Representations",
    strategy: tf.distribute.Strategy,
    arguments: dict[str, Any],
) -> Any:
    """Runs `train_on_batch` on several replicas.

    Args:
        mechanism: The mechanism of the model.
        strategy: The strategy, of several replicas.
        arguments: The bound arguments of `train_on_batch`.

    Returns:
        The logs, as Keras returns them.
    """
    model = mechanism.model
    x, y, sample_weight = (arguments[n] for n in ("x", "y", "sample_weight"))
    if arguments["class_weight"]:
        sample_weight = _weights(arguments)
    batch = replicas.whole_batch(strategy, (x, y, sample_weight))
    mechanism.build_dealt(strategy, batch)
    with (
        _dealing(mechanism.state, strategy),
        mechanism.state.dealing(keras_trainer.fit_loops(sys._getframe())),
        keras_distribution.without_symbolic_build(model),
    ):
        state_lib.ordinary(model, "train_on_batch")(
            *replicas.pieces_of(strategy, batch)
        )
    return keras_distribution.logs_of_all(model, arguments["return_dict"])


def build(
    mechanism: "Gradients", strategy: tf.distribute.Strategy, batch: Any
) -> step_lib.Plan:
    """Makes the variables and tries the model: no replica can do it.

    Args:
        mechanism: The mechanism of the model.
        strategy: The strategy.
        batch: A batch, or the specification of batches.

    Returns:
        The plan of a step.
    """
    specs, _ = sampling_lib.split_part(specs_of(batch))
    kind = sampling_lib.kind_of(specs)
    if kind is not None:
        specs = tuple(sampling_lib.flat(specs))
    with tf.init_scope():
        data = replicas.build(strategy, mechanism.model, specs)
        mechanism.check_layers()
        plan = dataclasses.replace(mechanism.plan(*data), kind=kind)
        mechanism.optimizer.ensure_ledger_open(plan.kind)
    return plan


def specs_of(batch: Any) -> Any:
    """Describes the tensors of a batch; leaves specifications as they are.

    Args:
        batch: A batch, or the specification of batches.
    """
    return tree.map_structure(
        lambda t: tf.TensorSpec(t.shape, t.dtype) if tf.is_tensor(t) else t,
        batch,
    )


@contextlib.contextmanager
def _dealing(
    state: state_lib.State,
    strategy: tf.distribute.Strategy,
    deeper: int = 0,
    may_end: bool = False,
) -> Iterator[None]:
    """Says that the loop of a `fit` inside is given pieces, and no other.

    Args:
        state: State of the model.
        strategy: The strategy whose replicas are given pieces.
        deeper: 1 for a `fit`, whose loop is about to begin.
        may_end: Boolean, whether the data may end, or fail, at any batch.
    """
    before = state.fit_deals_to, state.fit_deals_in, state.data_may_end
    loops = keras_trainer.fit_loops(sys._getframe()) + deeper
    state.fit_deals_to = strategy.num_replicas_in_sync
    state.fit_deals_in = threading.get_ident(), loops
    state.data_may_end = may_end
    try:
        yield
    finally:
        state.fit_deals_to, state.fit_deals_in, state.data_may_end = before


def _weights(arguments: dict[str, Any]) -> tf.Tensor:
    """Returns the weights of the examples of one batch, by their classes."""
    if arguments["sample_weight"] is not None:
        raise ValueError(
            "An example has one weight: by its class or of its own. Leave "
            "`class_weight` or `sample_weight` out. Received: "
            f"class_weight={arguments['class_weight']}"
        )
    y, class_weight = arguments["y"], arguments["class_weight"]
    has_labels = y is not None and not tree.is_nested(y)
    if not (
        has_labels
        and all(isinstance(c, numbers.Integral) for c in class_weight)
    ):
        raise ValueError(
            "On several replicas `class_weight` takes batches (x, y) with one "
            "label for each example, and classes that are integers. Received: "
            f"class_weight={class_weight}, y of {type(y).__name__}"
        )
    return sampling_lib.weights_of(y, class_weight)
