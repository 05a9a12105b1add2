"""Every example goes to one replica, whatever batches come from."""

import numpy as np
import pytest
import tensorflow as tf

import tf_dpfp
from tests.replicas import common


def test_an_ordinary_data_set_is_dealt_too():
    models = [common.private(n, expected_batch_size=5) for n in (1, 2)]
    data = tf.data.Dataset.from_tensor_slices(common.data()).batch(5)
    logs = [common.fit(m, data).history["loss"] for m in models]
    common.assert_equal_weights(*models)
    np.testing.assert_allclose(*logs, rtol=1e-4)
    (entry,) = tf_dpfp.ledger(models[1])
    assert entry.steps == 26
    assert tf_dpfp.ledger(models[0]) == [entry]


def test_arrays_are_dealt_too():
    x, y = common.data()
    weights = np.linspace(0.0, 2.0, common.EXAMPLES)  # Of float64.
    arguments = {"sample_weight": weights, "batch_size": 9, "shuffle": False}
    models = [common.private(n) for n in (1, 2)]
    logs = [common.fit(m, x, y=y, **arguments).history["loss"] for m in models]
    common.assert_moved(models[1])
    common.assert_equal_weights(*models)
    np.testing.assert_allclose(*logs, rtol=1e-4)
    (entry,) = tf_dpfp.ledger(models[1])
    assert entry.steps == 14
    assert tf_dpfp.ledger(models[0]) == [entry]


def test_single_batches_are_dealt_too():
    models = [common.private(n, expected_batch_size=6) for n in (1, 2)]
    x, y = common.data()
    for first, last in ((0, 7), (7, 8), (8, 16)):
        rows = slice(first, last)
        logs = [
            m.train_on_batch(x[rows], y[rows], return_dict=True) for m in models
        ]
        np.testing.assert_allclose(*[log["loss"] for log in logs], rtol=1e-4)
    # What was traced there and what `fit` runs must be one step.
    for model in models:
        common.fit(model, tf.data.Dataset.from_tensor_slices((x, y)).batch(8))
    common.assert_moved(models[1])
    common.assert_equal_weights(*models)
    assert tf_dpfp.ledger(models[0]) == tf_dpfp.ledger(models[1])


@pytest.mark.parametrize(
    "compiled, settings",
    [
        (True, {"clipping": common.adaptive(), "microbatch_size": 2}),
        (False, {"marks": {"rank": 2}}),
    ],
    ids=["compiled", "eager"],
)
def test_steps_of_a_loop_are_dealt_too(compiled, settings):
    models = [common.private(n, **settings) for n in (1, 2)]
    for model in models:
        batches = common.batches(steps_per_epoch=3)

        def step(x, y, model=model):
            tf_dpfp.loops.distributed_step(model, x, y)

        if compiled:
            step = tf.function(step, reduce_retracing=True)
        with tf_dpfp.loops.sampled_steps(model, batches):
            for batch in batches:
                step(*batch)
    common.assert_moved(models[1])
    common.assert_equal_weights(*models)
    (entry,) = tf_dpfp.ledger(models[1])
    assert entry.steps == 3
    assert entry.sampling.sampling_rate == common.EXPECTED / common.EXAMPLES
    assert tf_dpfp.ledger(models[0]) == [entry]
    common.assert_equal_thresholds(*models)
