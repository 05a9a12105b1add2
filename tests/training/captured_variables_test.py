"""Variables that a compiled step captures, held against TensorFlow's rules.

TensorFlow places an operation where a kernel for its types is registered. It
registers none for int32 variables on a GPU, so these stay on the CPU, and XLA
refuses a step that it compiles for the GPU. No GPU is needed to see it: the
registry of a build with CUDA tells, and so do the types alone.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tensorflow.python.framework import kernels

import tf_dpfp
from tests import xla_kernels

pytestmark = pytest.mark.usefixtures("without_trial")

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
X = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
Y = np.arange(16) % 2
UNREACHABLE = {"int32", "bool", "string", "resource", "variant"}


def _model(noised=False, rank=None):
    inputs = keras.Input((6,))
    h = layers.Dropout(0.1)(layers.Dense(8, activation="relu")(inputs))
    if noised:
        h = tf_dpfp.DPRepresentationClip(1.0, 1.0, labels="public")(h)
    model = keras.Model(inputs, layers.Dense(2)(h))
    if rank is not None:
        tf_dpfp.reparametrize(model, rank, carrier_source="history")
    return tf_dpfp.make_private(model)


def _optimizer(**kwargs):
    return tf_dpfp.DPAdam(noise_multiplier=1.0, **kwargs)


def _encoder_frozen():
    model = _model(noised=True)
    model.layers[1].trainable = False
    model.compile("adam", LOSS, jit_compile=True)
    return model


def _compiled(optimizer, **kwargs):
    model = _model(**kwargs)
    model.compile(optimizer, LOSS, metrics=["accuracy"], jit_compile=True)
    return model


MODES = {
    "flat": lambda: _compiled(_optimizer()),
    "adaptive": lambda: _compiled(
        _optimizer(
            clipping=tf_dpfp.PerLayer(thresholds=tf_dpfp.clipping.Adaptive())
        )
    ),
    "automatic, microbatches": lambda: _compiled(
        _optimizer(
            clipping=tf_dpfp.PerLayer(thresholds=tf_dpfp.clipping.Automatic()),
            microbatch_size=4,
        )
    ),
    "carriers": lambda: _compiled(_optimizer(), rank=2),
    "representations": _encoder_frozen,
    "joint": lambda: _compiled(_optimizer(), noised=True),
}


def _keys(model):
    """Variables of noise keys and of secret seeds."""
    found = []
    for owner in [model.optimizer, *model.layers]:
        if hasattr(owner, "_noise_source"):
            found += [owner._noise_source, owner._layer_seeds._source]
    return [source._state for source in found if source._state is not None]


def _captured(model):
    """The graph of a model's step, and every variable that it reaches."""
    # All that comes before the first step, and no graph of it.
    model.run_eagerly = True
    model.fit(X[:8], Y[:8], batch_size=8, verbose=0)
    model.run_eagerly = False
    data = next(iter(tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)))
    step = tf.function(model.train_step, autograph=False, jit_compile=True)
    graph = step.get_concrete_function(data).graph
    # The graph lists what is read as a variable; noise keys and counts are
    # reached by their handles alone.
    known = {
        id(v.value.handle): v.value
        for v in [*model.variables, *model.optimizer.variables]
    } | {id(v.handle): v for v in [*graph.variables, *_keys(model)]}
    # A resource that no variable answers for would be unseen.
    return graph, [
        known[id(outer)]
        for outer, _ in graph.captures
        if outer.dtype == tf.resource
    ]


@pytest.mark.parametrize("mode", MODES)
def test_a_compiled_step_is_within_a_gpus_reach(mode):
    graph, found = _captured(MODES[mode]())
    xla_kernels.assert_compiles(graph)
    assert len(found) > 4
    # The ledger's counts are among them.
    assert any("privacy" in v.name for v in found), [v.name for v in found]
    assert not {v.name: v.dtype.name for v in found if _unreachable(v)}


def _unreachable(variable):
    return variable.dtype.name in UNREACHABLE


def test_a_variable_of_int32_would_be_seen():
    counter = tf.Variable(0, dtype=tf.int32)
    graph = tf.function(lambda: counter.assign_add(1)).get_concrete_function()
    assert any(_unreachable(v) for v in graph.graph.variables)


def test_the_rule_is_tensorflows_own():
    """Of a build with CUDA: what it registers for variables on a GPU."""
    registered = {
        tf.as_dtype(value).name
        for kernel in kernels.get_registered_kernels_for_op(
            "AssignAddVariableOp"
        ).kernel
        if kernel.device_type == "GPU"
        for constraint in kernel.constraint
        for value in constraint.allowed_values.list.type
    }
    if not registered:
        pytest.skip("This TensorFlow is built without kernels for GPUs.")
    assert not registered & UNREACHABLE
    assert {"float32", "float64", "int64"} <= registered
