"""A network over the nodes of one graph: refused, and the way out."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import tf_dpfp
from tests.keras_scripts import common

NODES = 6
_LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class GraphAttention(layers.Layer):
    """Attention of each node to its neighbours, in one graph or in several."""

    def __init__(self, units):
        super().__init__()
        self.units = units

    def build(self, input_shape):
        features = input_shape[0][-1]
        self.kernel = self.add_weight(shape=(features, self.units))
        self.attention = self.add_weight(shape=(self.units * 2, 1))

    def call(self, inputs):
        states, adjacency = inputs
        states = ops.matmul(states, self.kernel)
        receiver, sender = ops.split(self.attention, 2)
        scores = ops.matmul(states, receiver) + ops.swapaxes(
            ops.matmul(states, sender), -1, -2
        )
        scores = ops.exp(ops.clip(ops.leaky_relu(scores), -2, 2)) * adjacency
        scores = scores / (ops.sum(scores, axis=-1, keepdims=True) + 1e-6)
        return ops.matmul(scores, states)


def _graph(rng, *batch):
    states = rng.normal(size=(*batch, NODES, 3)).astype("float32")
    adjacency = rng.integers(0, 2, (*batch, NODES, NODES)).astype("float32")
    return states, adjacency


class GraphAttentionNetwork(keras.Model):
    """Predicts labels of nodes, whose features are constants of the model."""

    def __init__(self, states, adjacency):
        super().__init__()
        self.states, self.adjacency = (
            ops.convert_to_tensor(states),
            ops.convert_to_tensor(adjacency),
        )
        self.attention = GraphAttention(4)
        self.out = layers.Dense(2)

    def call(self, nodes):
        states = self.attention([self.states, self.adjacency])
        return self.out(ops.take(states, nodes, axis=0))


def test_attention_over_one_graph_is_refused_with_the_reason():
    rng = np.random.default_rng(0)
    model = tf_dpfp.make_private(GraphAttentionNetwork(*_graph(rng)))
    model.compile(tf_dpfp.DPSGD(0.1, noise_multiplier=1.0), loss=_LOGITS)
    with pytest.raises(Exception, match="") as error:
        model.fit(np.arange(NODES), rng.integers(0, 2, NODES), verbose=0)
    reasons = " ".join(
        [str(error.value), *getattr(error.value, "__notes__", ())]
    )
    assert "reach the predictions of its neighbours" in reasons
    assert "a graph of its own" in reasons
    assert tf_dpfp.ledger(model) == []


def test_attention_over_a_graph_of_each_example():
    rng = np.random.default_rng(0)
    x = _graph(rng, 16)
    y = (x[0].mean(axis=(1, 2)) > 0).astype("int32")

    def build():
        inputs = [keras.Input((NODES, 3)), keras.Input((NODES, NODES))]
        h = GraphAttention(4)(inputs)
        h = layers.GlobalAveragePooling1D()(ops.relu(h))
        return keras.Model(inputs, layers.Dense(2)(h))

    common.assert_learns_as_ordinary(
        build, list(x), y, loss=_LOGITS, learning_rate=1.0
    )
