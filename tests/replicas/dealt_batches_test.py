"""Every example goes to one replica, whatever batches come from."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_dpfp
from tests.replicas import common
from tf_dpfp import accounting


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


CLASS_WEIGHT = {0: 0.3, 1: 2.0, 2: 0.0}


class _Pieces(keras.utils.PyDataset):
    """Batches of one example and more, with weights unless by class."""

    def __init__(self, weights=None, **kwargs):
        super().__init__(**kwargs)
        self.weights = weights

    def __len__(self):
        return 6

    def __getitem__(self, index):
        rows = slice(index * (index + 1) // 2, (index + 1) * (index + 2) // 2)
        columns = [*common.data(), self.weights]
        return tuple(c[rows] for c in columns if c is not None)


def _by_class(y):
    return np.array([CLASS_WEIGHT[int(label)] for label in y], np.float32)


def _generated(batches):
    yield from (batches[i % len(batches)] for i in range(9))


# What several replicas are given, and what one is, which counts the same.
LINEAR = np.linspace(0.0, 2.0, common.EXAMPLES)
WAYS = {
    "PyDataset": (
        lambda: {"x": _Pieces(workers=2), "class_weight": CLASS_WEIGHT},
        lambda: {"x": _Pieces(_by_class(common.data()[1]))},
    ),
    "generator": (
        lambda: {"x": _generated(_Pieces(LINEAR)), "steps_per_epoch": 4},
        lambda: {"x": _generated(_Pieces(LINEAR)), "steps_per_epoch": 4},
    ),
    "data set": (
        lambda: {"x": common.batches(), "class_weight": CLASS_WEIGHT},
        lambda: {
            "x": tf_dpfp.poisson_batches(
                *common.data(),
                _by_class(common.data()[1]),
                expected_batch_size=common.EXPECTED,
                seed=4,
            )
        },
    ),
    "arrays": (
        lambda: dict(
            zip("xy", common.data(), strict=True),
            batch_size=9,
            class_weight=CLASS_WEIGHT,
        ),
        lambda: dict(
            zip("xy", common.data(), strict=True),
            batch_size=9,
            sample_weight=_by_class(common.data()[1]),
        ),
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_weights_of_what_keras_takes_come_before_the_clip(way):
    settings = {"expected_batch_size": common.EXPECTED, "l2_norm_clip": 0.6}
    models = [common.private(n, tf_dpfp.DPSGD, **settings) for n in (2, 1)]
    for model, given in zip(models, WAYS[way], strict=True):
        model.fit(**given(), shuffle=False, epochs=2, verbose=0)
    common.assert_equal_weights(*models, atol=1e-6)
    (entry,) = tf_dpfp.ledger(models[0])
    assert tf_dpfp.ledger(models[1]) == [entry]
    sampled = isinstance(entry.sampling, accounting.PoissonSampling)
    assert sampled == (way == "data set"), entry


def test_a_generator_that_ends_ends_the_training():
    models = [common.private(n, expected_batch_size=5) for n in (1, 2)]
    for model in models:
        with pytest.warns(UserWarning, match="ran out of data"):
            x = _generated(_Pieces())
            model.fit(x, steps_per_epoch=6, epochs=2, verbose=0)
    common.assert_equal_weights(*models)
    (entry,) = tf_dpfp.ledger(models[1])
    assert entry.steps == 9


class _Failing(_Pieces):
    def __getitem__(self, index):
        if index == 2:
            raise KeyError("no such batch")
        return super().__getitem__(index)


def test_batches_that_fail_leave_no_step_half_done():
    model = common.private(2, expected_batch_size=5)
    seen = []
    note = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(model.get_weights())
    )
    with pytest.raises(tf.errors.OpError, match="no such batch") as failed:
        model.fit(_Failing(), shuffle=False, callbacks=[note], verbose=0)
    assert "Graph execution error" not in str(failed.value)
    for mine, theirs in zip(seen[-1], model.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    (entry,) = tf_dpfp.ledger(model)
    assert entry.steps == len(seen) == 2


def test_single_batches_are_dealt_too():
    models = [common.private(n, expected_batch_size=6) for n in (1, 2)]
    x, y = common.data()
    for labels, weights in (
        (None, {0: 1.0}),
        (y[:4], {"a": 1.0}),
        ([y[:4]], {0: 1.0}),
    ):
        with pytest.raises(ValueError, match="one label for each example"):
            models[1].train_on_batch(x[:4], labels, class_weight=weights)
    assert tf_dpfp.ledger(models[1]) == []
    for first, last, weights in (
        (0, 7, None),
        (7, 8, CLASS_WEIGHT),
        (8, 16, CLASS_WEIGHT),
        # Of no class that there is.
        (16, 20, {}),
        (20, 24, {-1: 3.0}),
    ):
        rows = slice(first, last)
        logs = [
            m.train_on_batch(
                x[rows], y[rows], class_weight=weights, return_dict=True
            )
            for m in models
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
