"""Private steps in training loops of one's own."""

import contextlib

import keras
import tensorflow as tf

from tf_dpfp import accounting
from tf_dpfp import optimizers
from tf_dpfp import replicas
from tf_dpfp import sampling as sampling_lib
from tf_dpfp.distribute import replicas as replicas_lib
from tf_dpfp.sampling import pipelines
from tf_dpfp.training import dealt_training
from tf_dpfp.training import preparation
from tf_dpfp.training import representations
from tf_dpfp.training import state as state_lib
from tf_dpfp.training import steps


@tf.autograph.experimental.do_not_convert
def clipped_gradients(
    model: keras.Model, x, y, sample_weight=None
) -> optimizers.ClippedGradients:
    """Clipped gradients of one batch, for a custom training loop.

    Example:

    ```python
    @tf.function
    def step(x, y):
        optimizer.apply(tf_dpfp.clipped_gradients(model, x, y))
    ```

    Steps of a custom loop are counted without amplification by sampling,
    unless the loop runs inside `tf_dpfp.sampled_steps(model, batches)`.

    Args:
        model: A private model, compiled with a private optimizer and a loss.
        x: Inputs of the batch.
        y: Labels.
        sample_weight: Sample weights, or `None`.

    Returns:
        `ClippedGradients` to pass to `model.optimizer.apply`. The numbers in
        it are private until then.

    Raises:
        NotPrivateError: If the model or its optimizer is not private.
    """
    state_lib.state_of(model)
    state_lib.require_private_optimizer(model)
    return steps.clipped_piece(model, (x, y, sample_weight), replicas=1)


@tf.autograph.experimental.do_not_convert
def dealt_step(model: keras.Model, x, y, sample_weight=None) -> None:
    """One private step of a custom training loop, on all replicas.

    Takes a whole batch, deals it to the replicas of the strategy that the model
    was made under, each example to exactly one, and updates the weights; on one
    replica it is `optimizer.apply(clipped_gradients(...))`. Steps are counted
    as those of that.

    Example:

    ```python
    @tf.function
    def step(x, y):
        tf_dpfp.dealt_step(model, x, y)
    ```

    Args:
        model: A private model, compiled with a private optimizer and a loss,
            and built under its strategy.
        x: Inputs of the whole batch.
        y: Labels.
        sample_weight: Sample weights, or `None`.

    Raises:
        NotPrivateError: If the model or its optimizer is not private.
        ValueError: If it is called on one replica, for a batch that was
            distributed already, or under a strategy of several workers or TPUs.
    """
    state_lib.state_of(model)
    optimizer = state_lib.require_private_optimizer(model)
    strategy = preparation.strategy_of(model, optimizer)
    if not replicas.deals(strategy):
        optimizer.apply(clipped_gradients(model, x, y, sample_weight))
        return
    batch = replicas.whole_batch(strategy, (x, y, sample_weight))
    count = strategy.num_replicas_in_sync
    dealt_training.build(model, strategy, batch)

    def of_replica():
        piece = sampling_lib.piece_of(batch, replicas_lib.index(), count)
        optimizer.apply(steps.clipped_piece(model, piece, count))

    strategy.run(of_replica)


@contextlib.contextmanager
def sampled_steps(model: keras.Model, batches: tf.data.Dataset):
    """Says that the steps inside draw their batches from `batches`.

    For custom loops. The claim is the caller's: inside, every step must use
    the next batch of `batches`, whole and unchanged, once.

    With a `DPRepresentationClip` in the model, private or not, `fit` may be
    inside: every batch must be one forward pass in training.

    Args:
        model: A private model, compiled with a private optimizer; or a model
            with a `DPRepresentationClip`.
        batches: A data set made by `poisson_batches`; for such a model, by
            `stratified_batches`.

    Raises:
        ValueError: If nothing is known of how `batches` was drawn.
    """
    if representations.alone(model):
        with _sampled_rows(model, batches):
            yield
        return
    state = state_lib.state_of(model)
    optimizer = state_lib.require_private_optimizer(model)
    beside = representations.beside_sums(model)
    pipeline = pipelines.describe(
        {"x": batches}, need_batch_size=False, joint=beside
    )
    if isinstance(pipeline.sampling, accounting.UnknownSampling):
        maker = "stratified_batches" if beside else "poisson_batches"
        raise ValueError(
            f"`sampled_steps` takes the data set that tf_dpfp.{maker} "
            "returned, itself: another proves nothing."
        )
    if beside:
        representations.announce(model)
        preparation.try_representations(model, batches.element_spec[0])
    optimizer.set_expected_batch_size(
        pipeline.expected_batch_size, pipeline.name
    )
    state.populations.add(pipeline.population)
    with preparation.sampled(model, pipeline):
        yield


@contextlib.contextmanager
def _sampled_rows(model: keras.Model, batches: tf.data.Dataset):
    info = representations.drawn_rows(batches)
    if info is None:
        raise ValueError(
            "`sampled_steps` takes the data set that tf_dpfp."
            "stratified_batches returned, itself, for a model with a "
            "DPRepresentationClip: another proves nothing."
        )
    found = representations.raise_if_unprotected(model, batches.element_spec[0])
    representations.check_trained(model, found)
    representations.check_sampled(found)
    if state_lib.is_private(model):
        state_lib.state_of(model).populations.add(info.population)
    with representations.sampled(model, info):
        yield
