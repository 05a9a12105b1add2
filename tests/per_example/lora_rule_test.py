"""LoRA in every layer that has it: exact, and never through the product."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.per_example import oracle
from tf_dpfp import per_example
from tf_dpfp.keras_private import layers as keras_layers

L = keras.layers
NUM_ROWS, WIDTH, RANK = 11, 6, 2

# Equation, output shape, bias axes, input shape: the last letter of the
# kernel is made, is made among others, is summed over, or is neither.
EQUATIONS = {
    "query": ("abc,cde->abde", (None, 2, 3), "de", (4, 5, 6)),
    "output": ("abcd,cde->abe", (None, 6), "e", (4, 5, 2, 3)),
    "pooled": ("abc,bcd->ad", (4,), None, (4, 5, 6)),
    "summed": ("abc,dc->abd", (None, 3), "d", (4, 5, 6)),
    "summed_among": ("abcd,edc->abe", (None, 5), None, (4, 5, 2, 3)),
    "by_position": ("abc,bcd->abd", (5, 3), None, (4, 5, 6)),
    "by_position_summed": ("abc,bdc->abd", (5, 3), None, (4, 5, 6)),
    "elementwise": ("abc,c->abc", (None, 6), None, (4, 5, 6)),
}


def _floats(*shape, dtype="float32"):
    return tf.constant(np.random.default_rng(1).normal(size=shape), dtype)


def _ids(*shape):
    # Few ids: repeated within an example, and met in both uses of a table.
    ids = np.random.default_rng(0).integers(0, 4, shape)
    return tf.constant(ids, tf.int32)


def _with_lora(make, inputs, enable, alpha=3):
    """The layer twice: as it is, and in float64 with the same weights."""
    found = []
    for policy in (make.policy, "float64"):
        layer = make(policy)
        layer(inputs if policy != "float64" else oracle.as_double(inputs))
        for inner in enable(layer):
            try:
                inner.enable_lora(RANK, lora_alpha=alpha)
            except TypeError:  # Keras had no `lora_alpha` at first.
                inner.enable_lora(RANK)
        found.append(layer)
    layer, double = found
    rng = np.random.default_rng(2)
    for mine, wide in zip(layer.variables, double.variables, strict=True):
        # B starts at zero and would hide a wrong gradient of A.
        mine.assign(rng.normal(size=mine.shape) * 0.5)
        wide.assign(tf.cast(mine.value, wide.dtype))
    return layer, double


def _maker(function, policy="float32"):
    function.policy = policy
    return function


def _einsum(kind, policy="float32", activation=None):
    equation, output_shape, bias_axes, shape = EQUATIONS[kind]
    make = _maker(
        lambda policy: L.EinsumDense(
            equation,
            output_shape,
            activation=activation,
            bias_axes=bias_axes,
            dtype=policy,
        ),
        policy,
    )
    inputs = _floats(*shape, dtype=keras.DTypePolicy(policy).compute_dtype)
    return *_with_lora(make, inputs, lambda layer: [layer]), inputs


@pytest.mark.parametrize("kind", EQUATIONS)
def test_einsum_dense_is_exact(kind):
    layer, double, inputs = _einsum(kind)
    (unit,) = per_example.find_units(layer)
    generic = isinstance(unit.rule, per_example.GenericRule)
    assert generic == (kind == "elementwise")
    # The generic rule's kernels are not compiled by XLA.
    modes = ["eager", "graph", *([] if generic else ["xla"])]
    oracle.check(layer, inputs, modes=modes, double=double)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("kind", ["query", "output"])
def test_einsum_dense_in_half_precision(kind, policy):
    layer, double, inputs = _einsum(kind, policy, activation="tanh")
    oracle.check(layer, inputs, policy=policy, double=double)


def test_einsum_dense_norms_are_of_thin_factors():
    layer, _, inputs = _einsum("query")
    weights = oracle.weights_like(layer(inputs))
    found = oracle.recorded(layer, inputs, weights)
    products = [
        part
        for part in found.values()
        if isinstance(part, per_example.OuterProduct)
    ]
    sizes = [(p.left.shape[-1], p.right.shape[-1]) for p in products]
    # Six letters in; two heads of the rank out. Then the rank, and three.
    assert sorted(sizes) == [(RANK, 3), (6, 2 * RANK)]


class Tables(keras.layers.Layer):
    """Lookups in a table, a layer, and the table in reverse."""

    def __init__(self, dtype, reversible, **kwargs):
        super().__init__(dtype=dtype)
        table = L.ReversibleEmbedding if reversible else L.Embedding
        self.table = table(NUM_ROWS, WIDTH, dtype=dtype, **kwargs)
        self.mix = L.Dense(WIDTH, activation="tanh", dtype=dtype)
        self.reversible = reversible

    def call(self, ids):
        x = self.mix(self.table(ids))
        return self.table(x, reverse=True) if self.reversible else x


TABLES = {
    "embedding": {"reversible": False},
    "tied": {"reversible": True},
    "untied": {"reversible": True, "tie_weights": False},
    "soft_cap": {"reversible": True, "logit_soft_cap": 0.7},
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_are_exact(kind):
    if TABLES[kind]["reversible"] and not hasattr(L, "ReversibleEmbedding"):
        pytest.skip("this Keras has no ReversibleEmbedding")
    ids = _ids(4, 5)
    make = _maker(lambda policy: Tables(policy, **TABLES[kind]))
    layer, double = _with_lora(make, ids, lambda layer: [layer.table])
    for unit in per_example.find_units(layer):
        assert not isinstance(unit.rule, per_example.GenericRule)
    oracle.check(layer, ids, modes=["eager", "graph"], double=double)


def test_tables_in_half_precision():
    ids = _ids(4, 5)
    make = _maker(
        lambda policy: Tables(policy, reversible=False), "mixed_bfloat16"
    )
    layer, double = _with_lora(make, ids, lambda layer: [layer.table])
    oracle.check(layer, ids, policy="mixed_bfloat16", double=double)


def test_without_alpha_nothing_is_scaled():
    dense = L.Dense(3)
    dense.build((None, 4))
    dense.enable_lora(RANK)
    dense.lora_alpha = None
    assert keras_layers.lora_scale(dense) == 1.0
