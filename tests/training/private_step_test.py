"""A whole private step against a float64 loop over examples."""

import dataclasses
import functools
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tests.oracles import reference

pytestmark = pytest.mark.usefixtures("without_trial")

BATCH = 6
CLIP = 0.7
LEARNING_RATE = 0.5


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and its data; `data(rng, count)` gives (x, y, weights)."""

    build: Callable[[], keras.Model]
    data: Callable
    compile: Callable[[], dict] = lambda: {"loss": "mse"}
    fit: Callable[[], dict] = dict


def _mlp():
    return keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(7, activation="tanh"),
            layers.Dense(3),
        ]
    )


def _mlp_data(rng, count):
    x = rng.normal(size=(count, 5)).astype("float32") * 3
    return x, rng.integers(0, 3, count), None


def _logits():
    return {
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    }


def _cnn():
    return keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(4, 3, strides=2, padding="same", activation="relu"),
            layers.GroupNormalization(groups=2),
            layers.DepthwiseConv2D(3),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )


def _cnn_data(rng, count):
    x = rng.normal(size=(count, 8, 8, 2)).astype("float32")
    return x, rng.integers(0, 3, count), None


def _transformer():
    ids = keras.Input((5,), dtype="int32")
    h = layers.Embedding(11, 8)(ids)
    attended = layers.MultiHeadAttention(2, 4)(h, h, use_causal_mask=True)
    h = layers.LayerNormalization()(layers.Add()([h, attended]))
    h = layers.Dense(8, activation="gelu")(h)
    return keras.Model(ids, layers.Dense(11)(h))


def _token_data(rng, count):
    x = rng.integers(1, 11, (count, 5)).astype("int32")
    return x, rng.integers(0, 11, (count, 5)), None


def _masked_data(rng, count):
    x, y, _ = _token_data(rng, count)
    for i in range(count):
        x[i, 1 + i % 5 :] = 0
    return x, y, rng.uniform(0.5, 2.0, (count, 5)).astype("float32")


def _masked():
    return keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            layers.Embedding(11, 4, mask_zero=True),
            layers.Dense(3, activation="tanh"),
            layers.Dense(11),
        ]
    )


def _masked_lstm():
    return keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            layers.Embedding(11, 4, mask_zero=True),
            layers.LSTM(3, return_sequences=True),
            layers.Dense(11),
        ]
    )


def _two_headed():
    a, b = keras.Input((4,), name="a"), keras.Input((3,), name="b")
    shared = layers.Dense(3, activation="tanh", name="shared")
    frozen = layers.Dense(3, name="frozen")
    frozen.trainable = False
    h = layers.Concatenate()([shared(a), shared(layers.Dense(4)(b)), frozen(b)])
    return keras.Model(
        {"a": a, "b": b},
        {
            "number": layers.Dense(2, name="number")(h),
            "class": layers.Dense(3, name="class")(h),
        },
    )


def _two_headed_data(rng, count):
    x = {
        "a": rng.normal(size=(count, 4)).astype("float32"),
        "b": rng.normal(size=(count, 3)).astype("float32"),
    }
    y = {
        "number": rng.normal(size=(count, 2)).astype("float32"),
        "class": rng.integers(0, 3, count),
    }
    weights = {
        "number": rng.uniform(0.1, 3, count).astype("float32"),
        "class": rng.uniform(0.1, 3, count).astype("float32"),
    }
    return x, y, weights


def _two_headed_compile():
    return {
        "loss": {
            "number": "mae",
            "class": keras.losses.SparseCategoricalCrossentropy(
                from_logits=True
            ),
        },
        "loss_weights": {"number": 0.3, "class": 1.7},
    }


def _regularized():
    return keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(
                4,
                activation="tanh",
                kernel_regularizer=keras.regularizers.L2(0.3),
                # Not L1: in Keras 3.8 its factor is float32 for good.
                bias_regularizer=keras.regularizers.L1L2(l1=0.01),
            ),
            layers.Dense(3, kernel_regularizer="l2"),
        ]
    )


def _weighted_mlp_data(rng, count):
    x, y, _ = _mlp_data(rng, count)
    weights = rng.uniform(0.0, 2.0, count).astype("float32")
    weights[1::4] = 0.0
    return x, y, weights


CASES = {
    "mlp": Case(_mlp, _mlp_data, _logits),
    "cnn": Case(_cnn, _cnn_data, _logits),
    "transformer": Case(_transformer, _token_data, _logits),
    "masked": Case(_masked, _masked_data, _logits),
    "masked_lstm": Case(_masked_lstm, _masked_data, _logits),
    "two_headed": Case(_two_headed, _two_headed_data, _two_headed_compile),
    "regularized": Case(_regularized, _weighted_mlp_data, _logits),
}
CLIPPING = {
    "flat": reference.flat_group,
    "per_layer": reference.layer_groups,
}


def _private(case, clipping="flat", optimizer=None, build=None, **arguments):
    keras.utils.set_random_seed(1)
    model = tf_dpfp.make_private((build or case.build)())
    # Biases start at zero and would hide a wrong gradient.
    for v in model.trainable_variables:
        v.assign_add(keras.random.normal(v.shape, stddev=0.2, seed=5))
    kwargs = dict(
        l2_norm_clip=CLIP,
        noise_multiplier=0.0,
        clipping=clipping,
        expected_batch_size=4.0,
    )
    for name in ("microbatch_size", "expected_batch_size"):
        if name in arguments:
            kwargs[name] = arguments.pop(name)
    optimizer = optimizer or tf_dpfp.DPSGD
    model.compile(
        optimizer=optimizer(LEARNING_RATE, **kwargs),
        **case.compile(),
        **arguments,
    )
    return model


def _fit(model, data, batch_size=BATCH, **kwargs):
    x, y, weights = data
    return model.fit(
        x,
        y,
        sample_weight=weights,
        batch_size=batch_size,
        shuffle=False,
        verbose=0,
        **kwargs,
    )


def _reference(case, model, clipping, optimizer=None):
    return reference.Reference(
        case.build,
        model,
        optimizer or (lambda: keras.optimizers.SGD(LEARNING_RATE)),
        CLIPPING[clipping],
        CLIP,
        4.0,
        case.compile,
    )


def _data(name):
    return CASES[name].data(np.random.default_rng(0), 2 * BATCH)


@functools.cache
def _fitted(name, clipping="flat"):
    """A model after two steps, its reference and weights from before."""
    model = _private(CASES[name], clipping)
    truth = _reference(CASES[name], model, clipping)
    before = [w.numpy() for w in model.weights]
    _fit(model, _data(name))
    return model, truth, before


def _assert_same_weights(name, clipping, found, atol=1e-5):
    expected, _, _ = _fitted(name, clipping)
    for a, b in zip(expected.weights, found.weights, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=atol)


def _length(tensors):
    return np.sqrt(sum(np.sum(t**2) for t in tensors))


# Each with one grouping; both where groups are special: of one layer after
# the other, and of one that is shared, beside one that is frozen.
@pytest.mark.parametrize(
    ("name", "clipping"),
    [
        ("mlp", "flat"),
        ("mlp", "per_layer"),
        ("cnn", "flat"),
        ("transformer", "per_layer"),
        ("masked", "flat"),
        ("masked_lstm", "per_layer"),
        ("two_headed", "flat"),
        ("two_headed", "per_layer"),
        ("regularized", "flat"),
    ],
)
def test_steps_equal_the_loop_over_examples(name, clipping):
    model, truth, before = _fitted(name, clipping)
    data = _data(name)
    if clipping == "flat" and name != "regularized":
        # Equality says little about clipping if nothing is clipped.
        found, _ = truth.gradients(*reference.rows(data, slice(0, BATCH)))
        free, total = (
            _length(reference.clipped_sums(found, truth.groups, bound))
            for bound in ([1e9], truth.thresholds())
        )
        assert free > 1.2 * total
    for start in (0, BATCH):
        truth.step(*reference.rows(data, slice(start, start + BATCH)))
    truth.assert_weights_equal(model)
    frozen = [
        np.array_equal(variable, old)
        for variable, old in zip(model.weights, before, strict=True)
        if variable.path.startswith("frozen")
    ]
    assert frozen == ([True] * 2 if name == "two_headed" else [])


@pytest.mark.parametrize(
    ("private", "plain"),
    [
        (
            lambda lr, **k: tf_dpfp.DPAdam(lr * 0.05, amsgrad=True, **k),
            lambda: keras.optimizers.Adam(LEARNING_RATE * 0.05, amsgrad=True),
        ),
        (
            lambda lr, **k: tf_dpfp.DPSGD(
                keras.optimizers.schedules.ExponentialDecay(lr, 1, 0.5),
                momentum=0.9,
                weight_decay=0.1,
                global_clipnorm=0.2,
                **k,
            ),
            lambda: keras.optimizers.SGD(
                keras.optimizers.schedules.ExponentialDecay(
                    LEARNING_RATE, 1, 0.5
                ),
                momentum=0.9,
                weight_decay=0.1,
                global_clipnorm=0.2,
            ),
        ),
    ],
    ids=["adam", "schedule"],
)
def test_the_update_is_the_keras_optimizers(private, plain):
    case = CASES["mlp"]
    data = case.data(np.random.default_rng(0), 3 * BATCH)
    model = _private(case, optimizer=private)
    truth = _reference(case, model, "flat", plain)
    _fit(model, data)
    for start in range(0, 3 * BATCH, BATCH):
        truth.step(*reference.rows(data, slice(start, start + BATCH)))
    truth.assert_weights_equal(model)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("mlp", {"microbatch_size": 1}),
        ("mlp", {"run_eagerly": True}),
        ("mlp", {"steps_per_execution": 2}),
        # 6 rows in pieces of 4, here and below: the last is half padding.
        ("transformer", {"jit_compile": True, "microbatch_size": 4}),
    ],
    ids=str,
)
def test_how_the_step_runs_changes_no_result(name, arguments):
    found = _private(CASES[name], "per_layer", **arguments)
    _fit(found, _data(name))
    _assert_same_weights(name, "per_layer", found)
    expected, _, _ = _fitted(name, "per_layer")
    assert tf_dpfp.ledger(found) == tf_dpfp.ledger(expected)


@pytest.mark.parametrize("name", ["masked", "two_headed"])
def test_microbatches_with_masks_weights_and_several_outputs(name):
    found = _private(CASES[name], microbatch_size=4)
    _fit(found, _data(name))
    _assert_same_weights(name, "flat", found)


@pytest.mark.parametrize("graph", [True, False])
def test_a_custom_loop_equals_fit(graph):
    looped = _private(CASES["regularized"], microbatch_size=4)

    def step(x, y, weights):
        looped.optimizer.apply(
            tf_dpfp.loops.clipped_gradients(looped, x, y, weights)
        )

    step = tf.function(step) if graph else step
    data = _data("regularized")
    for start in (0, BATCH):
        step(*(tf.constant(d[start : start + BATCH]) for d in data))
    _assert_same_weights("regularized", "flat", looped)
    assert [e.steps for e in tf_dpfp.ledger(looped)] == [2]


def test_class_weight_is_a_weight_of_the_example():
    case = CASES["mlp"]
    x, y, _ = case.data(np.random.default_rng(0), BATCH)
    class_weight = {0: 0.2, 1: 1.0, 2: 3.0}
    by_class, by_example = _private(case), _private(case)
    _fit(by_class, (x, y, None), class_weight=class_weight)
    weights = np.array([class_weight[k] for k in y], "float32")
    _fit(by_example, (x, y, weights))
    for a, b in zip(by_class.weights, by_example.weights, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-6)


def test_an_empty_batch_is_a_step_that_moves_nothing():
    case = CASES["mlp"]
    model = _private(case, microbatch_size=2, expected_batch_size=4.0)
    before = model.get_weights()
    x, y, _ = case.data(np.random.default_rng(0), BATCH)
    model.train_on_batch(x[:0], y[:0])
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    # Nobody was in the batch; the step was released all the same.
    assert [e.steps for e in tf_dpfp.ledger(model)] == [1]


def test_the_second_piece_waits_for_the_first():
    # Both in memory at once would make micro-batches twice as large.
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    tf_dpfp.make_private(model)
    model.compile(
        tf_dpfp.DPSGD(
            1.0,
            noise_multiplier=1.0,
            microbatch_size=2,
            expected_batch_size=4.0,
        ),
        "mse",
    )

    @tf.function
    def sums(x, y):
        return tf_dpfp.loops.clipped_gradients(model, x, y).sums

    graph = sums.get_concrete_function(tf.ones((4, 3)), tf.ones((4, 2))).graph
    (loop,) = [op for op in graph.get_operations() if "While" in op.type]
    # The counter, and what it is made of.
    near = [
        o for t in loop.inputs for o in (t.op, *(i.op for i in t.op.inputs))
    ]
    awaited = {o.name for op in near for o in op.control_inputs}
    summed = {t.op.name for t in loop.inputs if "clipped_sum" in t.op.name}
    assert len(summed) == 2
    assert summed <= awaited
