"""Several replicas train what one trains."""

import math
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tests.oracles import reference
from tests.replicas import common
from tf_dpfp.independence import gradients as trial_lib

pytestmark = pytest.mark.usefixtures("without_trial")

WAYS = {
    "flat": (2, {"microbatch_size": 2}),
    "adaptive": (
        4,
        {
            "cls": tf_dpfp.DPAdamW,
            "weight_decay": 0.1,
            "clipping": common.adaptive(rescale=False),
        },
    ),
    "carriers of the history": (
        2,
        {
            "marks": {"rank": 2, "warmup_steps": 2},
            "clipping": tf_dpfp.PerLayer(
                thresholds=tf_dpfp.clipping.Automatic()
            ),
        },
    ),
    "random carriers": (
        2,
        {
            "marks": {"rank": 2, "carrier_source": "random"},
            "use_ema": True,
            "clipping": "per_layer",
        },
    ),
    "eager": (2, {"compiled": {"run_eagerly": True}}),
}


@pytest.mark.parametrize("way", WAYS)
def test_several_train_as_one(way):
    count, kwargs = WAYS[way]
    one, several = (common.private(n, **kwargs) for n in (1, count))
    # Batches smaller than the replicas are many, and empty; some are not.
    for model in (one, several):
        common.fit(model, common.batches(expected=2.5), epochs=1)
    common.assert_moved(several)
    common.assert_equal_weights(one, several)
    assert tf_dpfp.ledger(one) == tf_dpfp.ledger(several)
    common.assert_equal_thresholds(one, several)


def test_padded_batches_train_as_on_one():
    compiled = {"weighted_metrics": ["accuracy"]}
    models = [common.private(n, compiled=compiled) for n in (1, 2)]
    # A capacity that two replicas can't share equally.
    logs = [
        common.fit(m, common.batches(padded="static", capacity=23)).history
        for m in models
    ]
    common.assert_equal_weights(*models)
    for name in logs[0]:
        np.testing.assert_allclose(logs[0][name], logs[1][name], rtol=1e-4)
    (entry,) = tf_dpfp.ledger(models[1])
    assert entry.sampling.overflow_probability > 0.0
    assert tf_dpfp.ledger(models[0]) == [entry]


def test_several_replicas_train_as_the_loop_over_examples():
    model = common.private(2, cls=tf_dpfp.DPSGD)
    loop = reference.Reference(
        common.mlp,
        model,
        lambda: keras.optimizers.SGD(0.05),
        reference.flat_group,
        common.CLIP,
        common.EXPECTED,
        lambda: {"loss": common.loss()},
    )
    batches = list(common.batches(steps_per_epoch=4))
    common.fit(model, common.batches(steps_per_epoch=4), epochs=1)
    for x, y in batches:
        loop.step(x, y)
    loop.assert_weights_equal(model, atol=1e-5)
    # Clipping must have mattered.
    sums, _ = loop.clipped_sum(*batches[0])
    length = math.sqrt(sum(np.sum(s**2) for s in sums))
    assert length > 0.5 * common.CLIP


def test_a_strategy_of_one_replica_trains_as_none():
    arguments = {"noise_multiplier": 0.0, "l2_norm_clip": common.CLIP}
    models = [common.private(1)]
    keras.utils.set_random_seed(5)
    with tf.distribute.MirroredStrategy(["CPU:1"]).scope():
        models.append(tf_dpfp.make_private(common.mlp()))
        models[1].compile(tf_dpfp.DPAdam(0.05, **arguments), loss=common.loss())
    # Of seeded batches Keras would look at the first ones to build the model.
    data = tf.data.Dataset.from_tensor_slices(common.data()).batch(8)
    for model in models:
        common.fit(model, data, epochs=1)
        model.train_on_batch(*common.data())
    common.assert_equal_weights(*models)
    assert tf_dpfp.ledger(models[0]) == tf_dpfp.ledger(models[1])


def _in_a_loop(model):
    step = tf.function(lambda x, y: tf_dpfp.loops.distributed_step(model, x, y))
    step(*common.data())


@pytest.mark.usefixtures("with_trial")
@pytest.mark.parametrize("train", [_in_a_loop, common.fit])
def test_a_model_that_is_not_built_is_built_before_the_first_step(train):
    def unbuilt():
        return keras.Sequential(
            [layers.Dense(5, "tanh"), layers.Dense(common.CLASSES)]
        )

    model = common.private(
        2,
        make=unbuilt,
        noise_multiplier=1.0,
        expected_batch_size=common.EXPECTED,
    )
    train(model)
    assert all(
        isinstance(v.value, tf.distribute.DistributedValues)
        for v in [*model.variables, *model.optimizer.variables]
    )
    assert math.isfinite(model.evaluate(*common.data(), verbose=0))


def test_the_trial_runs_once_and_refuses(without_trial):
    class Mixing(layers.Layer):
        def call(self, x):
            return x - keras.ops.mean(x, axis=0)

    def mixing():
        return keras.Sequential(
            [keras.Input((common.FEATURES,)), layers.Dense(3), Mixing()]
        )

    good, bad = common.private(2), common.private(2, make=mixing)
    with mock.patch.object(
        trial_lib, "check", side_effect=without_trial
    ) as trial:
        common.fit(good, epochs=1)
        common.fit(good, epochs=1)
        assert trial.call_count == 1
        common.refuses(bad, "depends on the other")


def test_the_budget_stops_several_replicas_where_it_stops_one():
    models = [common.private(n, noise_multiplier=1.1) for n in (1, 2)]
    for model in models:
        budget = tf_dpfp.PrivacyBudget(epsilon=3.0, delta=1e-3)
        history = common.fit(model, epochs=50, callbacks=[budget]).history
        assert len(history["epsilon"]) < 50
    (entry,) = tf_dpfp.ledger(models[1])
    assert tf_dpfp.ledger(models[0]) == [entry]
    assert entry.steps > 2 * len(common.batches())
    epsilons = [tf_dpfp.compute_epsilon(m, 1e-3) for m in models]
    assert 2.0 < epsilons[0] == epsilons[1] <= 3.0


def test_the_noise_that_fit_finds_is_that_of_one(capsys):
    one, two = (common.private(n, noise_multiplier="calibrate") for n in (1, 2))
    for model in (one, two):
        budget = tf_dpfp.PrivacyBudget(2.0, 1e-3)
        common.fit(model, common.batches(), epochs=2, callbacks=[budget])
        assert 1.998 <= tf_dpfp.compute_epsilon(model, 1e-3) <= 2.0
    assert one.optimizer.noise_multiplier == two.optimizer.noise_multiplier
    assert tf_dpfp.ledger(one) == tf_dpfp.ledger(two)
    weights = two.get_weights()
    common.fit(two, common.batches(), epochs=1, callbacks=[budget])
    assert "reached its budget" in capsys.readouterr().out
    for mine, theirs in zip(weights, two.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
