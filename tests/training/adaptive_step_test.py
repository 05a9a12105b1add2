"""Whole steps with adaptive thresholds against a float64 loop."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tests import helpers
from tests.oracles import reference

pytestmark = pytest.mark.usefixtures("without_trial")

BATCH, EXPECTED, CLIP, LEARNING_RATE = 6, 7.0, 0.9, 0.3


@keras.saving.register_keras_serializable("adaptive_step_test")
class Gain(layers.Layer):
    """A user's layer, with a user's rule."""

    def build(self, shape):
        self.gain = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return x * self.gain


@tf_dpfp.gradient_rules.register_gradient_rule(Gain)
class GainRule(tf_dpfp.gradient_rules.GradientRule):
    def gradients(self, call, output_gradients):
        (inputs,) = keras.tree.flatten(call.inputs)
        gradient = tf.cast(inputs * output_gradients[0], tf.float32)
        return [
            (call.layer.gain, tf_dpfp.gradient_rules.PerExampleTensor(gradient))
        ]


def _small():
    return keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(6, "tanh", name="first"),
            layers.Dense(2, name="second"),
        ]
    )


def _zoo():
    """Shared, frozen, user-made, and without a path to the loss."""
    x = keras.Input((5,))
    frozen = layers.Dense(5, name="frozen")
    frozen.trainable = False
    shared = layers.Dense(5, "tanh", name="shared")
    h = shared(shared(frozen(x)))
    h = Gain(name="gain")(h)
    return keras.Model(
        x,
        {
            "used": layers.Dense(2, name="used")(h),
            "idle": layers.Dense(3, name="idle")(h),
        },
    )


def _mse():
    return {"loss": "mse"}


def _zoo_loss():
    return {"loss": {"used": "mse", "idle": None}}


CASES = {"small": (_small, _mse), "zoo": (_zoo, _zoo_loss)}


def _data(count=4 * BATCH, seed=0):
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.normal(size=(count, 1)))
    x = rng.normal(size=(count, 5)).astype(np.float32)
    y = (rng.normal(size=(count, 2)) * sizes).astype(np.float32)
    return x, y


def _labels(name, y):
    return y if name == "small" else {"used": y}


def _model(name, clipping, microbatch_size=None, optimizer=None, **arguments):
    keras.utils.set_random_seed(4)
    build, compile_arguments = CASES[name]
    model = tf_dpfp.make_private(build())
    for v in model.trainable_variables:
        v.assign_add(keras.random.normal(v.shape, stddev=0.2, seed=5))
    model.compile(
        optimizer=optimizer
        or tf_dpfp.DPSGD(
            LEARNING_RATE,
            l2_norm_clip=CLIP,
            noise_multiplier=0.0,
            clipping=clipping,
            expected_batch_size=EXPECTED,
            microbatch_size=microbatch_size,
        ),
        **compile_arguments(),
        **arguments,
    )
    return model


def _loop(name, model, setting):
    build, compile_arguments = CASES[name]
    return reference.AdaptiveReference(
        SETTINGS[setting],
        _initial(setting, model),
        build,
        model,
        lambda: keras.optimizers.SGD(LEARNING_RATE),
        reference.layer_groups,
        CLIP,
        EXPECTED,
        compile_arguments,
    )


def _train(model, name, x, y, weights=None):
    """Batch by batch; the estimates after each."""
    found = []
    for start in range(0, len(x), BATCH):
        rows = slice(start, start + BATCH)
        model.train_on_batch(
            x[rows],
            _labels(name, y[rows]),
            sample_weight=None if weights is None else weights[rows],
        )
        found.append(reference.estimates_of(model.optimizer))
    return np.array(found)


QUICK = dict(learning_rate=0.9, target_quantile=0.6)
SETTINGS = {
    "rescaled": tf_dpfp.clipping.Adaptive(**QUICK),
    "free": tf_dpfp.clipping.Adaptive(rescale=False, initial=0.5, **QUICK),
    "shared": tf_dpfp.clipping.Adaptive(rescale=False, shared=True, **QUICK),
    "by_dimension": tf_dpfp.clipping.Adaptive(initial="by_dimension", **QUICK),
}


def _initial(setting, model):
    adaptive = SETTINGS[setting]
    groups = reference.layer_groups(model)
    names = [str(i) for i in range(len(groups))]
    sizes = [
        sum(math.prod(model.trainable_variables[i].shape) for i in group)
        for group in groups
    ]
    return adaptive.initial_estimates(CLIP, names, sizes)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("zoo", "rescaled"),
        ("zoo", "shared"),
        ("small", "free"),
        ("small", "by_dimension"),
    ],
)
def test_steps_equal_the_loop_over_examples(name, setting):
    adaptive = SETTINGS[setting]
    x, y = _data()
    model = _model(name, tf_dpfp.PerLayer(thresholds=adaptive))
    loop = _loop(name, model, setting)
    found = _train(model, name, x, y)
    for step, start in enumerate(range(0, len(x), BATCH)):
        rows = slice(start, start + BATCH)
        loop.step(x[rows], _labels(name, y[rows]))
        np.testing.assert_allclose(
            found[step], loop.of_each_variable(), rtol=1e-5
        )
    loop.assert_weights_equal(model)
    # It did adapt.
    assert np.ptp(np.log(found[:, 0])) > 0.05


@pytest.mark.parametrize("microbatch_size", [None, 4])
def test_who_takes_no_part_is_in_no_count(microbatch_size):
    adaptive = SETTINGS["free"]
    x, y = _data()
    weights = np.ones(len(x), np.float32)
    weights[::5] = 0.0
    y[3], y[7], x[13] = np.nan, np.inf, np.nan
    # The last batch is short, and the loss of one of its rows overflows.
    x, y, weights = x[:-2], y[:-2], weights[:-2]
    model = _model(
        "zoo", tf_dpfp.PerLayer(thresholds=adaptive), microbatch_size
    )
    loop = _loop("zoo", model, "free")
    found = _train(model, "zoo", x, y, weights)
    for step, start in enumerate(range(0, len(x), BATCH)):
        rows = slice(start, start + BATCH)
        loop.step(x[rows], {"used": y[rows]}, weights[rows])
        np.testing.assert_allclose(
            found[step], loop.of_each_variable(), rtol=1e-5
        )
    loop.assert_weights_equal(model)


def test_padding_is_in_no_count():
    """Or one example more, in the place of padding, would move it by two."""
    x, y = np.ones((5, 3), np.float32), np.zeros((5, 1), np.float32)
    clipping = tf_dpfp.PerLayer(
        thresholds=tf_dpfp.clipping.Adaptive(rescale=False)
    )
    counts = []
    for microbatch_size in (None, 4):
        keras.utils.set_random_seed(0)
        model = helpers.private_line(
            tf_dpfp.DPSGD(
                noise_multiplier=1.0,
                clipping=clipping,
                expected_batch_size=5,
                microbatch_size=microbatch_size,
            )
        )
        found = tf_dpfp.loops.clipped_gradients(model, x, y)
        counts.append(found.counts.numpy())
    np.testing.assert_array_equal(*counts)
    assert np.all(counts[0] != 0.0)


def _run(**arguments):
    x, y = _data()
    clipping = tf_dpfp.PerLayer(thresholds=SETTINGS["rescaled"])
    model = _model("zoo", clipping, **arguments)
    model.fit(x, {"used": y}, batch_size=BATCH, shuffle=False, verbose=0)
    return reference.estimates_of(model.optimizer), model.get_weights()


@pytest.fixture(scope="module")
def plain_run():
    return _run()


@pytest.mark.parametrize(
    "arguments",
    [
        {"microbatch_size": 1},
        {"jit_compile": True, "microbatch_size": 4},
        {"run_eagerly": True},
        {"steps_per_execution": 2},
    ],
    ids=str,
)
def test_how_the_step_runs_changes_no_estimate(plain_run, arguments):
    expected, weights = plain_run
    found, others = _run(**arguments)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for a, b in zip(weights, others, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("graph", [True, False])
def test_a_custom_loop_adapts_the_same(graph):
    clipping = tf_dpfp.PerLayer(thresholds=SETTINGS["rescaled"])
    x, y = _data()
    fitted, looped = _model("small", clipping), _model("small", clipping, 4)
    expected = _train(fitted, "small", x, y)

    def step(x, y):
        looped.optimizer.apply(tf_dpfp.loops.clipped_gradients(looped, x, y))

    step = tf.function(step) if graph else step
    for number, start in enumerate(range(0, len(x), BATCH)):
        rows = slice(start, start + BATCH)
        step(tf.constant(x[rows]), tf.constant(y[rows]))
        found = reference.estimates_of(looped.optimizer)
        np.testing.assert_allclose(found, expected[number], rtol=1e-5)


def _norms_model(adaptive, count, expected=None, policy="float32", **kwargs):
    """The norm of an example's gradient is its input, and nothing else."""
    keras.config.set_dtype_policy(policy)
    inputs = [keras.Input((1,)) for _ in range(count)]
    dense = [
        layers.Dense(1, use_bias=False, name=f"dense_{i}")(x)
        for i, x in enumerate(inputs)
    ]
    outputs = layers.Add()(dense) if count > 1 else dense[0]
    model = tf_dpfp.make_private(keras.Model(inputs, outputs))
    grouping = tf_dpfp.PerLayer if count > 1 else tf_dpfp.Flat
    model.compile(
        tf_dpfp.DPSGD(
            1e-3,
            noise_multiplier=kwargs.pop("noise_multiplier", 0.0),
            clipping=grouping(thresholds=adaptive),
            expected_batch_size=expected,
            **kwargs,
        ),
        loss=lambda y_true, y_pred: tf.reduce_sum(y_pred),
        # Other tests run graphs; tracing one for each of these takes long.
        run_eagerly=True,
    )
    keras.config.set_dtype_policy("float32")
    return model


def _norms_trajectory(model, columns, steps, weights=None):
    found = []
    columns = [np.asarray(c, np.float32)[:, None] for c in columns]
    for _ in range(steps):
        model.train_on_batch(
            columns, np.zeros_like(columns[0]), sample_weight=weights
        )
        found.append(reference.estimates_of(model.optimizer))
    return np.array(found)


@pytest.mark.parametrize(
    "policy", ["float32", "mixed_float16", "mixed_bfloat16", "float64"]
)
def test_golden_trajectories(policy):
    for target, initial, norms, expected in [
        (1e-9, 16.0, [5.0, 2.5], [8.0, 4.0, 4.0 / 2**0.5, 2.0, 2.0]),
        (1 - 1e-9, 0.5, [1.5, 3.0], [1.0, 2.0, 2.0 * 2**0.5, 4.0, 4.0]),
    ]:
        adaptive = tf_dpfp.clipping.Adaptive(
            target_quantile=target,
            learning_rate=math.log(2.0),
            initial=initial,
            rescale=False,
        )
        model = _norms_model(adaptive, 1, 2.0, policy)
        found = _norms_trajectory(model, [norms], 5)
        np.testing.assert_allclose(found[:, 0], expected, rtol=1e-5)


def test_each_group_finds_its_own_median():
    # From below and from above.
    adaptive = tf_dpfp.clipping.Adaptive(
        learning_rate=1.0,
        initial={"dense_0": 1.0, "dense_1": 1000.0},
        rescale=False,
    )
    norms = np.linspace(0.0, 10.0, 21)
    model = _norms_model(adaptive, 2, 21.0)
    model.run_eagerly = False  # Of so many steps, that takes longer.
    found = _norms_trajectory(model, [norms, 100.0 * norms[::-1]], 40)
    assert abs(found[-1, 0] - 5.0) < 0.25
    assert abs(found[-1, 1] - 500.0) < 25.0


def test_a_shared_count_is_the_mean_over_the_groups():
    adaptive = tf_dpfp.clipping.Adaptive(
        learning_rate=1.0,
        initial={"dense_0": 1.0, "dense_1": 10.0},
        rescale=False,
        shared=True,
    )
    model = _norms_model(adaptive, 2, 4.0)
    # Below: all four of the first, one of the second.
    found = _norms_trajectory(
        model, [[0.1, 0.2, 0.3, 0.4], [9.0, 11.0, 12.0, 13.0]], 1
    )
    factor = math.exp(-(5 / 8 - 0.5))
    np.testing.assert_allclose(found[0], [factor, 10.0 * factor], rtol=1e-6)


@pytest.mark.parametrize(
    ("actual", "microbatch_size"),
    [(0, None), (3, None), (16, None), (0, 4), (1, 4), (3, 2), (8, 2)],
)
def test_the_fraction_divides_by_the_expected_batch_size(
    actual, microbatch_size
):
    adaptive = tf_dpfp.clipping.Adaptive(
        learning_rate=0.5, target_quantile=0.3, initial=1.0, rescale=False
    )
    model = _norms_model(adaptive, 1, 16.0, microbatch_size=microbatch_size)
    found = _norms_trajectory(model, [[0.5] * actual], 1)
    fraction = 0.5 * actual / 16.0 + 0.5
    assert found[0, 0] == pytest.approx(
        math.exp(-0.5 * (fraction - 0.3)), rel=1e-6
    )


def test_norms_that_are_exactly_known():
    adaptive = tf_dpfp.clipping.Adaptive(
        learning_rate=1.0, initial=2.0, rescale=False
    )
    rows = [0.0, 1.0, 3.0, np.nan, np.inf, 1e30, 1.0, 1.0, 3e-38]
    weights = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 3.0, 1.0], "float32")
    # +, +, -, no loss, no loss, no norm, no weight, -, +.
    for microbatch_size in (None, 4):
        model = _norms_model(adaptive, 1, 8.0, microbatch_size=microbatch_size)
        found = _norms_trajectory(model, [rows], 1, weights)
        assert found[0, 0] == pytest.approx(
            2.0 * math.exp(-0.5 / 8.0), rel=1e-6
        )


def test_thresholds_are_those_before_the_step():
    # One long gradient: what moves the weight is the threshold.
    adaptive = tf_dpfp.clipping.Adaptive(
        learning_rate=1.0, initial=2.0, rescale=False
    )
    model = _norms_model(adaptive, 1, 1.0)
    (kernel,) = model.trainable_variables
    estimate = 2.0
    for _ in range(4):
        before = float(kernel.numpy()[0, 0])
        _norms_trajectory(model, [[1e6]], 1)
        moved = before - float(kernel.numpy()[0, 0])
        assert moved == pytest.approx(1e-3 * estimate, rel=2e-3)
        estimate *= math.exp(0.5)
        found = reference.estimates_of(model.optimizer)
        np.testing.assert_allclose(found, estimate, rtol=1e-5)


_LEDGER_CLIPPINGS = [
    "per_layer",
    tf_dpfp.PerLayer(
        thresholds=tf_dpfp.clipping.Adaptive(budget_share=0.7),
        noise_allocation="equal_budget",
    ),
    tf_dpfp.PerLayer(
        thresholds=tf_dpfp.clipping.Adaptive(shared=True, rescale=False)
    ),
    tf_dpfp.Flat(thresholds="automatic"),
]


@pytest.mark.parametrize("noise_multiplier", [0.0, 1.3])
def test_the_ledger_sees_the_users_noise_multiplier_only(noise_multiplier):
    x, y = _data()
    ledgers, epsilons = [], []
    for clipping in _LEDGER_CLIPPINGS:
        model = tf_dpfp.make_private(
            keras.Sequential([keras.Input((5,)), layers.Dense(2)])
        )
        optimizer = tf_dpfp.DPSGD(
            0.1, noise_multiplier=noise_multiplier, clipping=clipping
        )
        model.compile(optimizer, loss="mse", run_eagerly=True)
        model.fit(
            tf_dpfp.poisson_batches(
                x, y, expected_batch_size=6, steps_per_epoch=3
            ),
            verbose=0,
        )
        model.train_on_batch(x[:6], y[:6])
        ledgers.append(tf_dpfp.ledger(model))
        epsilons.append(tf_dpfp.compute_epsilon(model, 1e-3))
        assert optimizer.next_entry.noise_multiplier == noise_multiplier
    assert [e.steps for e in ledgers[0]] == [3, 1]
    assert {e.noise_multiplier for e in ledgers[0]} == {noise_multiplier}
    assert all(ledger == ledgers[0] for ledger in ledgers)
    assert len(set(epsilons)) == 1
    assert math.isinf(epsilons[0]) == (noise_multiplier == 0.0)
