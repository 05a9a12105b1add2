"""Private steps in custom training loops."""

import contextlib
from collections.abc import Iterator

import keras
import tensorflow as tf

from tf_dpfp import arguments
from tf_dpfp import mechanisms
from tf_dpfp import optimizers
from tf_dpfp import replicas
from tf_dpfp import sampling as sampling_lib
from tf_dpfp.distribute import replicas as replica
from tf_dpfp.mechanisms import dealt
from tf_dpfp.mechanisms import train_step


@tf.autograph.experimental.do_not_convert
def clipped_gradients(
    model: keras.Model,
    x,
    y,
    sample_weight=None,
    *,
    persons: bool = False,
    views: bool = False,
) -> optimizers.ClippedGradients:
    """Computes clipped gradients of one batch, for a custom training loop.

    Example:

    ```python
    @tf.function
    def step(x, y):
        optimizer.apply(tf_dpfp.loops.clipped_gradients(model, x, y))
    ```

    Steps of a custom loop are counted without amplification by sampling,
    unless the loop runs inside `tf_dpfp.loops.sampled_steps(model, batches)`.

    Args:
        model: A private model, compiled with a private optimizer and a loss.
        x: Inputs of the batch. Each row is of one example alone: what was done
            to the batch before can't be checked.
        y: Labels.
        sample_weight: Sample weights, or `None`.
        persons: Boolean. True for batches of `poisson_batches(users=...)`,
            with persons in the first axis and their examples in the second:
            the gradients of persons are clipped.
        views: Boolean. True for batches of `poisson_batches(multiplicity=...)`,
            with examples in the first axis and their views in the second: the
            mean gradients of the views are clipped.

    Returns:
        `ClippedGradients` to pass to `model.optimizer.apply`. The numbers in
        it are private until then.

    Raises:
        NotPrivateError: If the model or its optimizer is not private, or
            several replicas step together here.
    """
    mechanism = mechanisms.gradients_of(model)
    # Before replicas wait for each other, as they do in the ledger.
    optimizers.check_dealt(1)
    mechanism.state.has_released = True
    batch = _batch(x, y, sample_weight, persons, views)
    _check_kind(mechanism, batch)
    return train_step.clipped_gradients(mechanism, batch)


def _check_kind(mechanism: mechanisms.Gradients, batch: tuple) -> None:
    """Refuses batches of others than are claimed, before shapes are met."""
    kind = sampling_lib.kind_of(batch)
    if kind is not None:
        mechanism.check_joined(kind)
    mechanism.optimizer.check_claimed(kind)


def _batch(x, y, sample_weight, persons: bool, views: bool) -> tuple:
    """Packs the components of a batch, of examples, persons or views."""
    if arguments.boolean("views", views):
        if persons:
            raise ValueError(
                "A batch is one of persons or of views. Received: "
                "persons=True, views=True"
            )
        return sampling_lib.ViewBatch(x, y, sample_weight)
    if not arguments.boolean("persons", persons):
        return x, y, sample_weight
    if sample_weight is None:
        raise ValueError(
            "A batch of persons needs the sample weights that came with it: "
            "they are zero where a person has fewer examples. Received: "
            "persons=True, sample_weight=None"
        )
    return sampling_lib.PersonBatch(x, y, sample_weight)


@tf.autograph.experimental.do_not_convert
def distributed_step(
    model: keras.Model,
    x,
    y,
    sample_weight=None,
    *,
    persons: bool = False,
    views: bool = False,
) -> None:
    """Takes one private step of a custom training loop, on all replicas.

    Takes a whole batch, deals it to the replicas of the strategy that the model
    was made under, each example to exactly one, and updates the weights; on one
    replica it is `optimizer.apply(clipped_gradients(...))`. Steps are counted
    as those of that.

    Example:

    ```python
    @tf.function
    def step(x, y):
        tf_dpfp.loops.distributed_step(model, x, y)
    ```

    Args:
        model: A private model, compiled with a private optimizer and a loss,
            and built under its strategy.
        x: Inputs of the whole batch.
        y: Labels.
        sample_weight: Sample weights, or `None`.
        persons: Boolean, true for batches of `poisson_batches(users=...)`.
        views: Boolean, true for batches of `poisson_batches(multiplicity=...)`.

    Raises:
        NotPrivateError: If the model or its optimizer is not private.
        ValueError: If it is called on one replica, for a batch that was
            distributed already, or under a strategy of several workers or TPUs.
    """
    mechanism = mechanisms.gradients_of(model)
    mechanism.state.has_released = True
    optimizer = mechanism.optimizer
    strategy = mechanism.strategy()
    if strategy is None or not replicas.deals(strategy):
        optimizer.apply(
            clipped_gradients(
                model, x, y, sample_weight, persons=persons, views=views
            )
        )
        return
    given = _batch(x, y, sample_weight, persons, views)
    _check_kind(mechanism, given)
    batch = replicas.whole_batch(strategy, given)
    count = strategy.num_replicas_in_sync
    plan = dealt.build(mechanism, strategy, batch)

    stamp = optimizer.stamp(plan.kind)  # Replicas may be threads of their own.

    def of_replica():
        piece = sampling_lib.piece_of(batch, replica.index(), count)
        optimizer.apply(
            train_step.clipped_gradients(
                mechanism, piece, count, stamp=stamp.copy()
            )
        )

    strategy.run(of_replica)


@contextlib.contextmanager
def sampled_steps(
    model: keras.Model, batches: tf.data.Dataset
) -> Iterator[None]:
    """Counts the steps of a custom loop as drawn from `batches`.

    The claim is the caller's, for the thread that enters: inside, each of its
    steps must use the next batch of `batches`, whole and unchanged, once. Steps
    of other threads, those of `train_on_batch` with a private optimizer, and
    those that callbacks of a `fit` inside take, claim nothing. With a
    `DPRepresentationClip` in the model, the `fit` of another model that holds
    the layer may be inside: every batch must be one forward pass in training.

    Args:
        model: A private model, compiled with a private optimizer; or one with
            a `DPRepresentationClip`, compiled or not.
        batches: A data set made by `poisson_batches`; for a model with a
            `DPRepresentationClip`, by `representations.stratified_batches`.

    Raises:
        NotPrivateError: If the model is not private.
        ValueError: If nothing is known of how `batches` was drawn.
    """
    with mechanisms.mechanism_of(model).sampled_steps(batches):
        yield
