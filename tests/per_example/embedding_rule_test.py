"""Tables that are read by rows, in reverse, by position, or all of these."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.per_example import oracle
from tf_dpfp import per_example
from tf_dpfp.per_example import embedding
from tf_dpfp.per_example import gradients
from tf_dpfp.per_example import sums

L = keras.layers
NUM_ROWS, WIDTH = 11, 6

needs_reversible = pytest.mark.skipif(
    not hasattr(L, "ReversibleEmbedding"),
    reason="this Keras has no ReversibleEmbedding",
)


def _hub():
    return pytest.importorskip("keras_hub", reason="KerasHub is not installed")


def _ids(*shape):
    # Few ids, and so repeated ones, zero (which may be masked) among them.
    ids = np.random.default_rng(0).integers(0, 4, shape)
    return tf.constant(ids, tf.int32)


def _randomize(model):
    rng = np.random.default_rng(2)
    for variable in model.trainable_variables:
        noise = 0.4 * rng.normal(size=variable.shape)
        variable.assign(tf.cast(noise, variable.dtype) + variable)


def _model(make, inputs, build=None):
    model = make()
    (build or model)(inputs)
    _randomize(model)
    return model


class LanguageModel(keras.Model):
    """Reads a table by rows, mixes the words, and projects onto the table."""

    def __init__(self, times=1, frozen=False, dtype=None, **kwargs):
        super().__init__(dtype=dtype)
        self.arguments = {"times": times, "frozen": frozen, **kwargs}
        self.table = L.ReversibleEmbedding(
            NUM_ROWS, WIDTH, dtype=dtype, **kwargs
        )
        self.table.trainable = not frozen
        self.mix = L.Dense(WIDTH, activation="tanh", dtype=dtype)
        self.times = times

    def call(self, ids):
        outputs = 0.0
        x = self.table(ids)
        for _ in range(self.times):
            x = self.mix(x)
            outputs += self.table(x, reverse=True)
        return outputs

    def get_config(self):
        return {**self.arguments, "dtype": self.dtype_policy.name}


KINDS = {
    "tied": {},
    "untied": {"tie_weights": False},
    "masked": {"mask_zero": True},
    "soft_cap": {"logit_soft_cap": 0.7},
    "untied_soft_cap": {"tie_weights": False, "logit_soft_cap": 0.7},
    "projected_twice": {"times": 2},
}
# XLA compiles these: what the other kinds do is a part of it.
COMPILED = ("untied_soft_cap", "projected_twice")


def _language_model(kind, shape=(4, 5), dtype="float32"):
    ids = _ids(*shape)
    make = lambda: LanguageModel(dtype=dtype, **KINDS[kind])  # noqa: E731
    return _model(make, ids), ids


@needs_reversible
@pytest.mark.parametrize("kind", KINDS)
def test_table_in_both_directions_is_exact(kind):
    model, ids = _language_model(kind)
    rules = {type(u.rule) for u in per_example.find_units(model)}
    assert embedding.ReversibleEmbeddingRule in rules
    assert per_example.GenericRule not in rules
    compiled = ["xla"] if kind in COMPILED else []
    oracle.check(model, ids, modes=["eager", "graph", *compiled])


@needs_reversible
@pytest.mark.parametrize(
    ("kind", "policy"),
    [(kind, "mixed_float16") for kind in KINDS]
    + [(k, "float64") for k in ("tied", "untied_soft_cap")]
    + [(k, "mixed_bfloat16") for k in ("tied", "untied_soft_cap")],
)
def test_other_precisions(kind, policy):
    model, ids = _language_model(kind, dtype=policy)
    oracle.check(model, ids, policy=policy)


@needs_reversible
def test_projection_in_a_type_of_its_own():
    ids = _ids(4, 5)
    make = lambda: LanguageModel(  # noqa: E731
        dtype="mixed_bfloat16", reverse_dtype="float32", logit_soft_cap=0.7
    )
    model = _model(make, ids)
    assert model(ids).dtype == tf.float32
    # In double precision everything is double.
    double = LanguageModel(dtype="float64", logit_soft_cap=0.7)
    double(ids)
    for mine, theirs in zip(double.variables, model.variables, strict=True):
        mine.assign(tf.cast(theirs.value, tf.float64))
    oracle.check(model, ids, policy="mixed_bfloat16", double=double)


@needs_reversible
def test_tied_table_is_not_written_out_for_each_example():
    model, ids = _language_model("tied")
    weights = oracle.weights_like(model(ids))
    found = oracle.recorded(model, ids, weights)
    assert isinstance(found[0], sums.TiedTable)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("scale", [1e6, 1e7])
def test_terms_of_a_tied_table_that_cancel_keep_the_norm(seed, scale):
    """Large products that cancel each other leave their rounding behind."""
    rng = np.random.default_rng(seed)
    rows, width = 20, 16
    values = rng.normal(size=(1, rows, width)).astype("float32")
    large = (scale * rng.normal(size=(rows, width))).astype("float32")
    # Of each row twice: what is looked up, taken away in two large steps.
    ids = np.arange(rows)[None]
    left = np.repeat(np.eye(rows, dtype="float32"), 2, axis=0)[None]
    right = np.stack([large, -values[0] - large], 1).reshape(1, -1, width)
    tied = sums.add(
        [
            gradients.EmbeddingRows(
                tf.constant(ids), tf.constant(values), rows
            ),
            gradients.OuterProduct(
                tf.constant(left), tf.constant(right), layout=sums.TABLE_LAYOUT
            ),
        ]
    )
    assert isinstance(tied, sums.TiedTable) and tied.product.writes_matrix
    norm = np.sqrt(tied.squared_norms().numpy()[0])
    released = np.asarray(tied.weighted_sum(tf.ones([1])), np.float64)
    assert np.linalg.norm(released) <= 1.0001 * norm


@needs_reversible
def test_table_larger_than_its_matrix_would_be():
    # So wide that the product keeps its factors, as for a real vocabulary.
    ids = _ids(3, 4)
    inputs = keras.Input((4,), dtype="int32")
    table = L.ReversibleEmbedding(400, 32)
    model = keras.Model(inputs, table(table(inputs), reverse=True))
    _randomize(model)
    weights = oracle.weights_like(model(ids))
    found = oracle.recorded(model, ids, weights)[0]
    assert not found.product._prefers_matrix()
    (truth,) = oracle.loop(oracle.in_double(model, ids), ids, weights)
    own = np.sum(truth**2, axis=(1, 2))
    assert np.all(found.squared_norms() >= own * (1 - 3e-6))
    np.testing.assert_allclose(found.squared_norms(), own, rtol=1e-3)
    factors = np.array([0.5, 0.0, 0.25], np.float32)
    total = np.tensordot(factors, truth, 1)
    np.testing.assert_allclose(
        found.weighted_sum(tf.constant(factors)), total, rtol=1e-3, atol=1e-3
    )


@needs_reversible
def test_frozen_table_is_left_out():
    ids = _ids(4, 5)
    model = _model(lambda: LanguageModel(frozen=True), ids)
    units = per_example.find_units(model)
    assert [type(u.layer) for u in units] == [L.Dense]
    oracle.check(model, ids)


@needs_reversible
def test_mask_goes_on():
    table = L.ReversibleEmbedding(NUM_ROWS, WIDTH, mask_zero=True)
    ids = _ids(4, 5)
    table(ids)
    with per_example.record_calls(per_example.find_units(table)):
        outputs = table(ids)
    assert outputs._keras_mask is not None
    np.testing.assert_array_equal(outputs._keras_mask, ids != 0)


@needs_reversible
def test_oracle_sees_a_wrong_soft_cap(monkeypatch):
    model, ids = _language_model("untied_soft_cap")
    original = embedding.ReversibleEmbeddingRule.gradients

    def wrong(rule, call, output_gradients):
        # Another bound than the layer computed with.
        monkeypatch.setattr(call.layer, "logit_soft_cap", 0.9)
        return original(rule, call, output_gradients)

    monkeypatch.setattr(embedding.ReversibleEmbeddingRule, "gradients", wrong)
    with pytest.raises(AssertionError, match="gradients"):
        oracle.check(model, ids)


def test_layer_of_the_hub_takes_the_rule():
    hub = _hub()
    layer = hub.layers.ReversibleEmbedding(NUM_ROWS, WIDTH)
    layer.build((None, 5))
    (unit,) = per_example.find_units(layer)
    assert isinstance(unit.rule, embedding.ReversibleEmbeddingRule)


class Positions(keras.Model):
    """Adds embedded positions, found in one of three ways, to projections."""

    def __init__(self, way="all", dtype=None):
        super().__init__(dtype=dtype)
        self.way = way
        self.project = L.Dense(WIDTH, dtype=dtype)
        self.positions = _hub().layers.PositionEmbedding(9, dtype=dtype)

    def call(self, x):
        x = self.project(x)
        arguments = {
            "all": {},
            "later": {"start_index": 3},
            "given": {"positions": tf.constant([4, 0, 4, 8])},
        }
        return x * self.positions(x, **arguments[self.way])

    def get_config(self):
        return {"way": self.way, "dtype": self.dtype_policy.name}


def _positions(way, shape=(3, 4, 5), dtype="float32"):
    _hub()
    inputs = np.random.default_rng(1).normal(size=shape)
    inputs = tf.cast(inputs, keras.DTypePolicy(dtype).compute_dtype)
    return _model(lambda: Positions(way, dtype), inputs), inputs


@pytest.mark.parametrize("way", ["all", "later", "given"])
def test_positions_are_exact(way):
    model, inputs = _positions(way)
    rules = {type(u.rule) for u in per_example.find_units(model)}
    assert embedding.PositionEmbeddingRule in rules
    # All positions are those from the first one.
    compiled = [] if way == "all" else ["xla"]
    oracle.check(model, inputs, modes=["eager", "graph", *compiled])


@pytest.mark.parametrize(
    "policy", ["float64", "mixed_float16", "mixed_bfloat16"]
)
def test_positions_in_other_precisions(policy):
    model, inputs = _positions("later", dtype=policy)
    oracle.check(model, inputs, policy=policy)


def test_positions_of_every_example():
    hub = _hub()
    layer = hub.layers.PositionEmbedding(9)
    inputs = tf.ones([3, 4, WIDTH])
    layer(inputs)
    _randomize(layer)
    positions = tf.constant([[0, 1, 2, 3], [8, 8, 8, 8], [2, 0, 2, 0]])
    with (
        per_example.record_calls(per_example.find_units(layer)) as calls,
        tf.GradientTape() as tape,
    ):
        loss = tf.reduce_sum(tf.square(layer(inputs, positions=positions)))
    gradient = tape.gradient(loss, calls[0].sources)
    ((_, found),) = calls[0].rule.gradients(calls[0], tuple(gradient))
    expected = np.zeros((3, 9, WIDTH))
    table = layer.position_embeddings.numpy()
    for i, row in enumerate(positions.numpy()):
        for position in row:
            expected[i, position] += 2.0 * table[position]
    np.testing.assert_allclose(found.materialize(), expected, atol=1e-5)
    own = np.sum(expected**2, axis=(1, 2))
    np.testing.assert_allclose(found.squared_norms(), own, rtol=1e-3)


def test_positions_of_more_axes():
    model, inputs = _positions("all", (3, 2, 4, 5))
    oracle.check(model, inputs)


@pytest.mark.parametrize("size", [0, 1])
def test_positions_of_few_examples(size):
    model, inputs = _positions("all", (size, 4, 5))
    weights = oracle.weights_like(model(inputs))
    found = oracle.recorded(model, inputs, weights)
    for index, variable in enumerate(model.trainable_variables):
        assert found[index].squared_norms().shape == (size,)
        total = found[index].weighted_sum(tf.ones([size]))
        assert total.shape == variable.shape
        assert np.any(total != 0) == bool(size)


def test_an_id_without_a_row_moves_none():
    """In the norm, and in the sum."""
    ids, gradient = tf.constant([[1, 7, -9]]), tf.ones([1, 3, 2])
    found = embedding._lookups(tf.Variable(tf.zeros([3, 2])), ids, gradient)
    assert found.squared_norms().numpy() == pytest.approx([2.0])
    np.testing.assert_array_equal(
        found.weighted_sum(tf.ones([1])), [[0, 0], [1, 1], [0, 0]]
    )


class EmbedReduce(L.Embedding):
    """Stands for KerasRS's layer of this name where that is not installed."""

    def __init__(self, *args, combiner="mean", **kwargs):
        super().__init__(*args, **kwargs)
        self.combiner = combiner

    def call(self, inputs, weights=None):
        rows = super().call(inputs)
        if weights is None:
            weights = tf.ones_like(inputs, rows.dtype)
        weights = tf.cast(weights, rows.dtype)[..., None]
        total = tf.reduce_sum(rows * weights, axis=-2)
        if self.combiner == "sum":
            return total
        return total / tf.reduce_sum(weights, axis=-2)


# Rules of other packages' layers are found by these two names.
EmbedReduce.__module__ = "keras_rs.stand_in"


class Reduced(keras.Model):
    """Rows of each example, added up with weights of its own."""

    def __init__(self, combiner, weighted, real=False, dtype=None):
        super().__init__(dtype=dtype)
        self.arguments = [combiner, weighted, real]
        layer = EmbedReduce
        if real:
            layer = pytest.importorskip("keras_rs").layers.EmbedReduce
        self.table = layer(NUM_ROWS, WIDTH, combiner=combiner, dtype=dtype)
        self.scale = L.Dense(5, activation="sigmoid", dtype=dtype)
        self.weighted = weighted

    def call(self, inputs):
        ids, features = inputs
        weights = self.scale(features)
        return self.table(ids, weights if self.weighted else None)

    def get_config(self):
        names = ["combiner", "weighted", "real"]
        config = dict(zip(names, self.arguments, strict=True))
        return {**config, "dtype": self.dtype_policy.name}


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize(
    ("combiner", "weighted"), [("mean", True), ("sum", True), ("mean", False)]
)
def test_rows_that_are_added_up_are_exact(combiner, weighted, real):
    features = np.random.default_rng(1).normal(size=(4, 3)).astype("float32")
    inputs = (_ids(4, 5), tf.constant(features))
    model = _model(lambda: Reduced(combiner, weighted, real), inputs)
    rules = {type(u.rule) for u in per_example.find_units(model)}
    assert embedding.EmbedReduceRule in rules
    oracle.check(model, inputs, modes=["eager", "graph"])
    weights = oracle.weights_like(model(inputs))
    found = oracle.recorded(model, inputs, weights)
    assert isinstance(found[0], gradients.EmbeddingRows)


def test_ragged_rows_to_add_up_are_refused():
    layer = EmbedReduce(NUM_ROWS, WIDTH)
    layer.build()
    rule, ids = embedding.EmbedReduceRule(), tf.ragged.constant([[1, 2], [3]])
    with pytest.raises(ValueError, match="ragged or sparse"):
        rule.record(layer, lambda i: L.Embedding.call(layer, i), (ids,), {})
