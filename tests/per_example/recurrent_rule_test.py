"""Recurrent layers against a float64 loop over examples."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.per_example import oracle
from tf_dpfp import per_example
from tf_dpfp.per_example import recurrent

L = keras.layers
SHAPE = (4, 5, 3)
# For many cases: outside of a graph each step of each example takes its time.
SMALL = (3, 4, 2)


def of(layer_type, *args, **kwargs):
    def make(dtype="float32"):
        return layer_type(*args, dtype=dtype, **kwargs)

    return make


def stacked(dtype="float32", **kwargs):
    cells = [
        L.LSTMCell(3, dtype=dtype),
        L.GRUCell(2, dtype=dtype),
        L.SimpleRNNCell(4, dtype=dtype),
    ]
    stack = L.StackedRNNCells(cells, dtype=dtype)
    return L.RNN(stack, dtype=dtype, **kwargs)


def both_ways(dtype="float32", **kwargs):
    inner = L.LSTM(2, dtype=dtype, return_sequences=True)
    return L.Bidirectional(inner, dtype=dtype, **kwargs)


def _case(name, make):
    return pytest.param(make, id=name)


CASES = [
    _case("lstm", of(L.LSTM, 3)),
    _case("lstm-sequences", of(L.LSTM, 3, return_sequences=True)),
    _case("lstm-no-bias", of(L.LSTM, 3, use_bias=False, activation=None)),
    _case("lstm-by-gate", of(L.LSTM, 3, implementation=1, use_cudnn=False)),
    _case("lstm-backwards", of(L.LSTM, 3, go_backwards=True)),
    _case("lstm-unrolled", of(L.LSTM, 3, unroll=True, return_state=True)),
    _case("lstm-wide", of(L.LSTM, 40)),
    _case("gru", of(L.GRU, 3, return_sequences=True)),
    _case("gru-states", of(L.GRU, 3, return_state=True, go_backwards=True)),
    _case("gru-no-bias", of(L.GRU, 3, use_bias=False)),
    _case("gru-reset-before", of(L.GRU, 3, reset_after=False)),
    _case(
        "gru-reset-before-no-bias",
        of(L.GRU, 3, reset_after=False, use_bias=False, unroll=True),
    ),
    _case("simple", of(L.SimpleRNN, 3, return_sequences=True)),
    _case("simple-linear", of(L.SimpleRNN, 3, activation=None)),
    _case("cell", lambda dtype: L.RNN(L.GRUCell(3, dtype=dtype), dtype=dtype)),
    _case("stacked", stacked),
    _case(
        "stacked-backwards",
        lambda dtype: stacked(
            dtype, go_backwards=True, return_sequences=True, return_state=True
        ),
    ),
]
SHORT = [
    c
    for c in CASES
    if c.id in ("lstm", "gru", "gru-reset-before", "simple", "stacked")
]


def _inputs(dtype="float32", shape=SHAPE):
    return tf.constant(np.random.default_rng(1).normal(size=shape), dtype)


def _randomize(layer):
    rng = np.random.default_rng(2)
    for v in layer.trainable_variables:
        v.assign(v + tf.cast(0.3 * rng.normal(size=v.shape), v.dtype))


def _pair(make, dtype="float32", shape=SHAPE):
    """A layer, the same in float64, and inputs."""
    layer, double = make(dtype=dtype), make(dtype="float64")
    inputs = _inputs(layer.compute_dtype, shape)
    layer(inputs)
    double(oracle.as_double(inputs))
    _randomize(layer)
    double.set_weights([w.astype("float64") for w in layer.get_weights()])
    return layer, double, inputs


def _has_own_rule(layer):
    units = per_example.find_units(layer)
    return all(isinstance(u.rule, recurrent.RecurrentRule) for u in units)


@pytest.mark.parametrize("make", CASES)
def test_exact_in_double_precision(make):
    layer, double, inputs = _pair(make, "float64", SMALL)
    assert _has_own_rule(layer)
    oracle.check(layer, inputs, policy="float64", double=double)
    _assert_same_outputs(layer, inputs)


def _assert_same_outputs(layer, inputs):
    """Recording leaves the outputs alone."""
    plain = layer(inputs)
    with per_example.record_calls(per_example.find_units(layer)):
        seen = layer(inputs)
    tf.nest.assert_same_structure(plain, seen)
    for a, b in zip(tf.nest.flatten(plain), tf.nest.flatten(seen), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "modes"),
    [
        pytest.param(SHORT[0].values[0], ["graph", "xla"], id="lstm"),
        # In a graph below, of unknown length, and beside it.
        pytest.param(SHORT[1].values[0], ["xla"], id="gru"),
        pytest.param(SHORT[2].values[0], ["graph"], id="gru-reset-before"),
    ],
)
def test_unknown_batch_size_and_compiled(make, modes):
    layer, double, inputs = _pair(make)
    oracle.check(layer, inputs, modes=modes, double=double)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("make", SHORT[:2])
def test_half_precision(make, policy):
    layer, double, inputs = _pair(make, policy, SMALL)
    oracle.check(layer, inputs, policy=policy, double=double)


MASK = np.array(
    [
        [True, True, True, False, False],
        [False, True, False, True, True],
        [True] * 5,
        [False] * 5,
    ]
)


@pytest.mark.parametrize(
    "make",
    [
        _case("lstm", of(L.LSTM, 3, return_sequences=True)),
        _case(
            "zeros",
            of(L.LSTM, 3, return_sequences=True, zero_output_for_mask=True),
        ),
        _case("gru-backwards", of(L.GRU, 3, go_backwards=True)),
        _case("gru-reset-before", of(L.GRU, 3, reset_after=False)),
        _case("simple-unrolled", of(L.SimpleRNN, 3, unroll=True)),
        _case("stacked", stacked),
        _case("both-ways", both_ways),
    ],
)
def test_masks(make):
    layer, double, inputs = _pair(make, "float64")

    def call(m, both):
        return m(both[0], mask=tf.cast(both[1], "bool"))

    both = inputs, tf.constant(MASK.astype("int32"))
    oracle.check(layer, both, policy="float64", call=call, double=double)
    plain = call(layer, both)
    with per_example.record_calls(per_example.find_units(layer)):
        seen = call(layer, both)
    np.testing.assert_allclose(seen, plain, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "sizes"),
    [
        pytest.param(of(L.LSTM, 3), (3, 3), id="lstm"),
        pytest.param(of(L.GRU, 3), (3,), id="gru"),
        pytest.param(both_ways, (2, 2, 2, 2), id="both-ways"),
    ],
)
def test_initial_states(make, sizes):
    layer, double, inputs = _pair(make, "float64")
    rng = np.random.default_rng(4)
    states = [tf.constant(rng.normal(size=(4, n)), "float64") for n in sizes]

    def call(m, given):
        return m(given[0], initial_state=list(given[1:]))

    given = (inputs, *states)
    oracle.check(layer, given, policy="float64", call=call, double=double)


def test_gradients_reach_the_initial_state_and_the_inputs():
    layer, _, inputs = _pair(of(L.GRU, 3), "float64")
    state = tf.ones([4, 3], "float64")
    found = []
    for units in ([], per_example.find_units(layer)):
        with per_example.record_calls(units), tf.GradientTape() as tape:
            tape.watch((inputs, state))
            loss = tf.reduce_sum(layer(inputs, initial_state=state) ** 2)
        found.append(tape.gradient(loss, (inputs, state)))
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_both_ways_are_recorded_apart():
    layer, double, inputs = _pair(both_ways, "float64")
    units = per_example.find_units(layer)
    assert len(units) == 3
    oracle.check(layer, inputs, policy="float64", double=double)
    _assert_same_outputs(layer, inputs)


def test_both_ways_never_run_as_one_kernel(monkeypatch):
    if not hasattr(L.Bidirectional, "_call_fused_lstm"):
        pytest.skip("this Keras has no such kernel")
    layer, _, inputs = _pair(both_ways)
    tried = []

    def fused(*args, **kwargs):
        tried.append(args)
        raise NotImplementedError

    monkeypatch.setattr(L.Bidirectional, "_call_fused_lstm", fused)
    layer(inputs)
    assert tried
    tried.clear()
    with per_example.record_calls(per_example.find_units(layer)) as calls:
        layer(inputs)
    assert not tried
    assert len(calls) == 3
    assert layer.forward_layer.use_cudnn == "auto"


@pytest.mark.parametrize(
    "make",
    [
        _case(
            "lstm",
            of(L.LSTM, 3, dropout=0.5, use_cudnn=False, implementation=1),
        ),
        _case("lstm-both", of(L.LSTM, 3, dropout=0.4, recurrent_dropout=0.4)),
        _case("gru", of(L.GRU, 3, dropout=0.5, return_sequences=True)),
        _case("gru-both", of(L.GRU, 3, dropout=0.4, recurrent_dropout=0.4)),
        _case(
            "gru-reset-before",
            of(L.GRU, 3, reset_after=False, recurrent_dropout=0.4),
        ),
        _case("simple", of(L.SimpleRNN, 3, dropout=0.4, recurrent_dropout=0.4)),
        _case(
            "stacked",
            lambda dtype: L.RNN(
                L.StackedRNNCells(
                    [
                        L.LSTMCell(3, dropout=0.5, dtype=dtype),
                        L.GRUCell(2, recurrent_dropout=0.5, dtype=dtype),
                    ],
                    dtype=dtype,
                ),
                dtype=dtype,
            ),
        ),
    ],
)
def test_dropout(make):
    layer, _, inputs = _pair(make, "float64")
    assert _has_own_rule(layer)
    oracle.check_dropout(layer, inputs)


class Shared(keras.Model):
    """One cell in two layers, one of them called twice."""

    def __init__(self, dtype="float32"):
        super().__init__(dtype=dtype)
        cell = L.GRUCell(3, dtype=dtype)
        self.forward = L.RNN(cell, return_sequences=True, dtype=dtype)
        self.backward = L.RNN(cell, go_backwards=True, dtype=dtype)

    def call(self, x):
        return self.backward(self.forward(self.forward(x)))


def test_a_cell_that_several_layers_share():
    model, double, inputs = _pair(Shared, "float64")
    oracle.check(model, inputs, policy="float64", double=double)


def test_partly_frozen():
    layer, double, inputs = _pair(of(L.LSTM, 3), "float64")
    for one in (layer, double):
        one.cell.recurrent_kernel.trainable = False
    assert len(layer.trainable_variables) == 2
    oracle.check(layer, inputs, policy="float64", double=double)


@pytest.mark.parametrize("frozen", [(), ("kernel", "bias")])
def test_a_first_layer(frozen):
    """Nothing below is trained: the tape must find the layer all the same."""
    layer, double, inputs = _pair(of(L.GRU, 3))
    for one in (layer, double):
        for name in frozen:
            getattr(one.cell, name).trainable = False
    weights = oracle.weights_like(layer(inputs))
    units = per_example.find_units(layer)
    with per_example.record_calls(units) as calls, tf.GradientTape() as tape:
        loss = tf.reduce_sum(oracle.losses_of(layer(inputs), weights))
    (call,) = calls
    found = {
        id(v): gradient.materialize()
        for v, gradient in call.rule.gradients(
            call, tape.gradient(loss, call.sources)
        )
    }
    truth = oracle.loop(double, oracle.as_double(inputs), weights)
    assert len(truth) == 3 - len(frozen)
    for variable, one in zip(layer.trainable_variables, truth, strict=True):
        np.testing.assert_allclose(found[id(variable)], one, atol=1e-5)


@pytest.mark.parametrize("length", [1, 7])
def test_unknown_length(length):
    layer, double, _ = _pair(of(L.GRU, 3, return_sequences=True))
    inputs = _inputs(shape=(4, length, 3))
    weights = oracle.weights_like(layer(inputs))

    @tf.function(
        input_signature=[tf.TensorSpec([None, None, 3])], autograph=False
    )
    def run(x):
        found = oracle.recorded(layer, x, weights)
        return [found[i].squared_norms() for i in sorted(found)]

    norms = run(inputs)
    truth = oracle.loop(double, oracle.as_double(inputs), weights)
    for norm, one in zip(norms, truth, strict=True):
        own = np.sum(one**2, axis=tuple(range(1, one.ndim)))
        np.testing.assert_allclose(norm, own, rtol=1e-3)


def test_empty_batch_and_batch_of_one():
    layer, _, inputs = _pair(of(L.LSTM, 3))
    weights = oracle.weights_like(layer(inputs))

    @tf.function(
        input_signature=[tf.TensorSpec([None, *SHAPE[1:]])], autograph=False
    )
    def run(x):
        found = oracle.recorded(layer, x, weights)
        ones = tf.ones(tf.shape(x)[0])
        return [
            (found[i].squared_norms(), found[i].weighted_sum(ones))
            for i in sorted(found)
        ]

    every = run(inputs)
    for size in (0, 1):
        few = run(inputs[:size])
        for variable, (all_norms, _), (norms, sums) in zip(
            layer.trainable_variables, every, few, strict=True
        ):
            assert norms.shape == (size,)
            assert sums.shape == variable.shape
            np.testing.assert_allclose(norms, all_norms[:size], rtol=1e-3)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("make", [*SHORT[:4], _case("wide", of(L.LSTM, 40))])
def test_norms_bound_what_is_summed(make, scale):
    """Steps that nearly cancel, tiny and huge inputs: never below the sum."""
    layer, _, inputs = _pair(make)
    inputs = tf.concat([inputs, -inputs], axis=1) * scale
    weights = oracle.weights_like(layer(inputs))
    found = oracle.recorded(layer, inputs, weights)
    for gradient in found.values():
        norms = np.sqrt(gradient.squared_norms().numpy().astype("float64"))
        for i in range(SHAPE[0]):
            alone = gradient.weighted_sum(tf.one_hot(i, SHAPE[0])).numpy()
            length = np.linalg.norm(alone.astype("float64"))
            assert length <= norms[i] * (1 + 3e-6) + 1e-17


def test_an_example_that_is_not_finite_stays_by_itself():
    layer, _, inputs = _pair(of(L.LSTM, 3))
    weights = oracle.weights_like(layer(inputs))
    bad = tf.concat([inputs[:1] * np.nan, inputs[1:]], axis=0)
    factors = tf.constant([0.0, 1.0, 1.0, 1.0])
    clean = oracle.recorded(layer, inputs, weights)
    found = oracle.recorded(layer, bad, weights)
    for i, gradient in found.items():
        assert not np.isfinite(gradient.squared_norms()[0])
        np.testing.assert_allclose(
            gradient.weighted_sum(factors),
            clean[i].weighted_sum(factors),
            atol=1e-6,
        )


class Doubled(L.LSTMCell):
    def call(self, inputs, states, training=False):
        h, new = super().call(inputs, states, training=training)
        return 2 * h, new


@pytest.mark.parametrize(
    "make",
    [
        _case("cell-of-ones-own", lambda: L.RNN(Doubled(3))),
        _case(
            "weights-in-the-activation", lambda: L.GRU(3, activation=L.PReLU())
        ),
        _case(
            "other-precision",
            lambda: L.RNN(L.GRUCell(3, dtype="float64"), dtype="float32"),
        ),
    ],
)
def test_others_take_the_generic_rule(make):
    layer = make()
    layer(_inputs())
    (unit,) = per_example.find_units(layer)
    assert isinstance(unit.rule, per_example.GenericRule)


def test_a_state_from_batch_to_batch_is_refused():
    layer = L.LSTM(3, stateful=True)
    layer.build(SHAPE)
    with (
        per_example.record_calls(per_example.find_units(layer)),
        pytest.raises(ValueError, match="stateful=False"),
    ):
        layer(_inputs())
