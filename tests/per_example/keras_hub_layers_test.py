"""Layers that KerasHub defines: the rules against a loop over examples."""

import importlib
import inspect
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.per_example import oracle
from tf_dpfp import per_example
from tf_dpfp.per_example import keras_hub_layers
from tf_dpfp.per_example import rules
from tf_dpfp.per_example import scale

keras_hub = pytest.importorskip(
    "keras_hub", reason="KerasHub is not installed (the extra `hub`)"
)
WIDTH = 6


def _layer_types(names) -> list[type]:
    """The classes of these names, wherever in KerasHub they are."""
    folder = pathlib.Path(inspect.getfile(keras_hub.models.Backbone)).parent
    found = set()
    for path in folder.glob("*/*.py"):
        if not any(f"class {name}(" in path.read_text() for name in names):
            continue
        if path.parent.name == "stable_diffusion_3":
            continue  # Stands in for a layer of Keras, and has no `dtype`.
        module = f"keras_hub.src.models.{path.parent.name}.{path.stem}"
        for cls in vars(importlib.import_module(module)).values():
            if inspect.isclass(cls) and cls.__name__ in names:
                found.add(cls)
    return sorted(found, key=lambda cls: (cls.__name__, cls.__module__))


NORMS = _layer_types(keras_hub_layers._SCALED_NORMS)


def _norm(cls, policy="float32"):
    arguments = {"dim": WIDTH} if cls.__name__ == "Gemma3nRMSNorm" else {}
    layer = cls(dtype=policy, **arguments)
    layer.build((None, 4, WIDTH))
    rng = np.random.default_rng(2)
    for variable in layer.trainable_variables:
        noise = tf.constant(0.4 * rng.normal(size=variable.shape))
        variable.assign(variable + tf.cast(noise, variable.dtype))
    return layer


def test_every_norm_was_found():
    assert {cls.__name__ for cls in NORMS} == set(
        keras_hub_layers._SCALED_NORMS
    )


def test_every_whole_layer_is_there():
    names = keras_hub_layers._WHOLE_LAYERS
    found = {cls.__name__ for cls in _layer_types(names)}
    assert found == set(names)


@pytest.mark.parametrize("cls", NORMS, ids=lambda c: c.__name__)
def test_norms_are_exact(cls):
    layer = _norm(cls)
    assert isinstance(rules.rule_for(layer), scale.BroadcastRule)
    inputs = tf.constant(
        np.random.default_rng(0).normal(size=(3, 4, WIDTH)), tf.float32
    )
    # Most of them compute in float32 whatever their policy is.
    oracle.check(layer, inputs, double=layer, call=_call_in_single)


def _call_in_single(layer, inputs):
    return layer(tf.cast(inputs, tf.float32))


@pytest.mark.parametrize("shape", [(3, WIDTH), (3, 2, 4, WIDTH), (1, 4, WIDTH)])
def test_norms_of_other_shapes(shape):
    layer = _norm(_layer_types(["LlamaLayerNorm"])[0])
    inputs = tf.constant(
        np.random.default_rng(0).normal(size=shape), tf.float32
    )
    oracle.check(
        layer,
        inputs,
        modes=["graph", "xla"],
        double=layer,
        call=_call_in_single,
    )


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_norms_in_half_precision(policy):
    layer = _norm(_layer_types(["T5LayerNorm"])[0], policy)
    double = _norm(type(layer), "float64")
    inputs = tf.constant(
        np.random.default_rng(0).normal(size=(3, 4, WIDTH)),
        layer.compute_dtype,
    )
    oracle.check(layer, inputs, policy=policy, double=double)


class Broadcast(keras.layers.Layer):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape

    def build(self, input_shape):
        self.scale = self.add_weight(shape=self.shape)

    def call(self, x):
        return x * self.scale


def test_broadcast_rule_takes_vectors_only():
    rule = scale.BroadcastRule()
    layer = Broadcast((WIDTH,))
    layer.build((None, WIDTH))
    assert rule.supports(layer)
    matrix = Broadcast((2, WIDTH))
    matrix.build((None, 2, WIDTH))
    assert not rule.supports(matrix)


class MaskedWords(keras.Model):
    """Words, a layer on them, and guesses of two words of each example."""

    def __init__(self, frozen=(), dtype=None):
        super().__init__(dtype=dtype)
        self.table = keras_hub.layers.ReversibleEmbedding(9, WIDTH, dtype=dtype)
        self.mix = keras.layers.Dense(5, activation="tanh", dtype=dtype)
        self.head = keras_hub.layers.MaskedLMHead(
            token_embedding=self.table,
            intermediate_activation="gelu",
            activation="tanh",
            dtype=dtype,
        )
        self.frozen = frozen

    def call(self, ids):
        positions = tf.constant([[0, 3], [2, 2], [4, 1]])[: tf.shape(ids)[0]]
        x = self.mix(self.table(ids))
        return self.head(x, mask_positions=positions)


def _masked_words(dtype="float32", batch=3):
    model = MaskedWords(dtype=dtype)
    ids = tf.constant([[1, 2, 1, 3, 0], [4, 4, 4, 4, 4], [8, 1, 2, 1, 0]])
    model(ids)
    rng = np.random.default_rng(2)
    for variable in model.trainable_variables:
        noise = tf.constant(0.4 * rng.normal(size=variable.shape))
        variable.assign(variable + tf.cast(noise, variable.dtype))
    return model, ids[:batch]


def _of_each(model, ids):
    """Calls the head with the positions of each example."""
    positions = tf.stack([ids[:, 0] % 5, ids[:, 1] % 5], axis=1)
    return model.head(model.mix(model.table(ids)), mask_positions=positions)


def _double_of(model, ids):
    double = MaskedWords(dtype="float64")
    double(ids)
    for mine, theirs in zip(double.variables, model.variables, strict=True):
        mine.assign(tf.cast(theirs.value, tf.float64))
    return double


def test_masked_head_is_exact():
    model, ids = _masked_words()
    units = per_example.find_units(model)
    kinds = {type(u.layer).__name__: u.rule for u in units}
    assert isinstance(kinds["MaskedLMHead"], keras_hub_layers.MaskedLMHeadRule)
    # Its layers are units of their own, and the table is there once.
    assert len(units) == 5
    for unit in units:
        assert not isinstance(unit.rule, per_example.GenericRule)
    oracle.check(
        model,
        ids,
        modes=["eager", "graph"],
        double=_double_of(model, ids),
        call=_of_each,
    )


@pytest.mark.parametrize("frozen", ["head", "table", "mix"])
def test_masked_head_beside_frozen_layers(frozen):
    model, ids = _masked_words()
    double = _double_of(model, ids)
    for one in (model, double):
        getattr(one, frozen).trainable = False
    oracle.check(model, ids, double=double, call=_of_each)


def test_head_with_a_kernel_of_its_own_is_exact():
    def made(dtype):
        head = keras_hub.layers.MaskedLMHead(vocabulary_size=7, dtype=dtype)
        _of_own_kernel(head, tf.zeros([2, 4, WIDTH], dtype))
        return head

    head, double = made("float32"), made("float64")
    rng = np.random.default_rng(2)
    for mine, theirs in zip(head.variables, double.variables, strict=True):
        mine.assign(0.4 * rng.normal(size=mine.shape))
        theirs.assign(tf.cast(mine.value, tf.float64))
    units = per_example.find_units(head)
    (own,) = [u for u in units if u.layer is head]
    assert {v.name for v in own.variables} == {"output_kernel", "output_bias"}
    x = tf.constant(rng.normal(size=(3, 4, WIDTH)), tf.float32)
    oracle.check(head, x, double=double, call=_of_own_kernel)


def _of_own_kernel(head, x):
    positions = tf.tile([[0, 2]], [tf.shape(x)[0], 1])
    return head(x, mask_positions=positions)


def test_rule_beside_units_answers_for_its_own_variables():
    model, _ = _masked_words()
    (unit,) = [
        u for u in per_example.find_units(model) if u.layer is model.head
    ]
    assert [v.name for v in unit.variables] == ["output_bias"]
