"""Training on replicas that would not be private, or would not agree."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tests.replicas import common
from tf_dpfp.distribute import agreement


def test_a_scope_that_is_entered_too_late_is_refused():
    outside = common.private(1)
    with common.strategy(2).scope():
        common.refuses(outside, "was made outside of it")
    keras.utils.set_random_seed(5)
    with common.strategy(2).scope():
        model = tf_dpfp.make_private(common.mlp())
    model.compile(tf_dpfp.DPSGD(0.1, noise_multiplier=1.0), loss=common.loss())
    common.refuses(model, "was made outside of the scope")
    model = tf_dpfp.make_private(common.mlp())
    with common.strategy(2).scope():
        model.compile(
            tf_dpfp.DPSGD(0.1, noise_multiplier=1.0), loss=common.loss()
        )
    common.refuses(model, "outside of it")


class Loader:
    """Something that Keras might know."""


def test_batches_that_may_miss_a_replica_are_refused():
    x, y = common.data()
    model = common.private(2, expected_batch_size=8)
    common.refuses(model, "`validation_split`", x, y=y, validation_split=0.5)
    common.refuses(model, "A Loader can't be dealt", Loader())
    common.refuses(model, "steps_per_epoch=", ((x, y) for _ in range(2)))
    distributed = common.strategy(2).experimental_distribute_dataset(
        tf.data.Dataset.from_tensors((x, y))
    )
    common.refuses(model, "exactly one replica can't be told", distributed)
    weighed = tf.data.Dataset.from_tensors((x, y, np.ones(len(x))))
    takes = "`class_weight` takes batches"
    common.refuses(model, takes, weighed, class_weight={0: 2.0})
    common.refuses(model, takes, common.batches(8), class_weight={"a": 1.0})
    with pytest.raises(ValueError, match="An example has one weight"):
        model.train_on_batch(x, y, np.ones(len(x)), class_weight={0: 2.0})
    unknown = tf.data.Dataset.from_generator(
        lambda: [(x, y)],
        output_signature=(
            tf.TensorSpec([None, common.FEATURES]),
            tf.TensorSpec([None], tf.int64),
        ),
    )
    common.refuses(model, "steps_per_epoch=", unknown)
    common.fit(model, unknown, steps_per_epoch=2, epochs=1)


def test_a_loop_that_gives_every_replica_the_same_batch_is_refused():
    model = common.private(2, expected_batch_size=8)
    x, y = common.data()
    clipped = tf_dpfp.loops.clipped_gradients(model, x[:8], y[:8])
    with pytest.raises(
        tf_dpfp.errors.NotPrivateError, match="each example 2 times"
    ):
        with common.strategy(2).scope():
            model.optimizer.apply(clipped)

    # Of a new model, whose ledger would wait for the other replica.
    model = common.private(2, expected_batch_size=8)

    def step(x, y):
        model.optimizer.apply(tf_dpfp.loops.clipped_gradients(model, x, y))

    with pytest.raises(
        tf_dpfp.errors.NotPrivateError, match="each example 2 times"
    ):
        common.strategy(2).run(step, args=(x[:8], y[:8]))
    assert tf_dpfp.ledger(model) == []


def test_a_step_that_can_not_deal_is_refused():
    model = common.private(2, expected_batch_size=8)
    x, y = (part[:8] for part in common.data())

    def step():
        tf_dpfp.loops.distributed_step(model, x, y)

    with pytest.raises(ValueError, match="outside of `strategy.run`"):
        common.strategy(2).run(step)
    pieces = common.strategy(2).experimental_distribute_values_from_function(
        lambda context: tf.constant(x)
    )
    with pytest.raises(ValueError, match="exactly one replica can't be told"):
        tf_dpfp.loops.distributed_step(model, pieces, y)
    with pytest.raises(ValueError, match="no first axis over examples"):
        tf_dpfp.loops.distributed_step(model, x, y, sample_weight=1.0)
    assert tf_dpfp.ledger(model) == []


def test_what_is_not_done_on_replicas_is_refused():
    common.refuses(
        common.private(2, compiled={"steps_per_execution": 3}),
        "steps_per_execution=1",
    )
    switched = common.private(2)
    switched.jit_compile = True
    common.refuses(switched, "XLA compiles on several replicas under")
    common.refuses(
        common.private(2, use_ema=True, ema_overwrite_frequency=2),
        "`ema_overwrite_frequency`",
    )


def test_asynchronous_strategies_are_refused():
    with tf.distribute.experimental.CentralStorageStrategy(
        ["CPU:0", "CPU:1"]
    ).scope():
        model = tf_dpfp.make_private(common.mlp())
        model.compile(
            tf_dpfp.DPSGD(0.1, noise_multiplier=1.0), loss=common.loss()
        )
    common.refuses(model, "does not run under CentralStorageStrategy")


def test_replicas_that_went_apart_are_found():
    model = common.private(2, noise_multiplier=1.0)

    class Disturb(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            kernel = model.trainable_variables[0].value
            copy = common.local_results(2, kernel)[1]
            copy.assign_add(1e-7 * tf.ones_like(copy))

    with pytest.raises(
        agreement.ReplicasDifferError, match="different numbers for"
    ):
        common.fit(model, epochs=1, callbacks=[Disturb()])


class _ByReplica(layers.Layer):
    """Does something else on each replica."""

    def call(self, x):
        context = tf.distribute.get_replica_context()
        number = 0 if context is None else context.replica_id_in_sync_group
        return x * (1.0 + tf.cast(number, x.dtype))

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_layers_that_read_the_number_of_the_replica_are_refused(run_eagerly):
    def make():
        return keras.Sequential(
            [keras.Input((common.FEATURES,)), _ByReplica(), common.mlp()]
        )

    compiled = {"run_eagerly": run_eagerly}
    model = common.private(2, make=make, compiled=compiled)
    common.refuses(model, "number of the replica")


def test_on_one_replica_its_number_is_the_same_for_all():
    model = common.private(
        1,
        make=lambda: keras.Sequential(
            [keras.Input((common.FEATURES,)), _ByReplica(), common.mlp()]
        ),
    )
    common.fit(model)
    assert tf_dpfp.ledger(model)
