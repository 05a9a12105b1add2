"""What a step asks of the compiler, as a stand-in for accelerators.

There is no accelerator where the tests run, and TensorFlow tells of no
operation whether a TPU has it. What can be told: whether XLA has a kernel for
every operation of the step and for its types, on CPUs and, of a TensorFlow
that is built for them, on GPUs, whether every shape is known, and whether the
program that XLA is given, before it is fitted to a processor, calls anything
that is not XLA's own.
"""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tests import xla_kernels

pytestmark = pytest.mark.usefixtures("without_trial")

BATCH = 8
# XLA expands these itself, by a pass of its own on every backend.
EXPANDED = {"Qr", "ProductOfElementaryHouseholderReflectors"}


def _model():
    tokens = keras.Input((6,), dtype="int32")
    h = layers.Embedding(20, 16)(tokens)
    h = layers.LayerNormalization()(h)
    h = layers.MultiHeadAttention(2, 8)(h, h)
    h = layers.Conv1D(16, 3, activation="relu")(h)
    h = layers.EinsumDense("abc,cd->abd", (4, 16), bias_axes="d")(h)
    h = layers.GlobalAveragePooling1D()(h)
    return keras.Model(tokens, layers.Dense(3)(layers.Dropout(0.1)(h)))


def _step(clipping, rank=None, microbatch_size=None):
    """The compiled step, as a concrete function of one padded batch."""
    model = _model()
    if rank is not None:
        tf_dpfp.reparametrize(model, rank, carrier_source="history")
    tf_dpfp.make_private(model)
    model.compile(
        tf_dpfp.DPAdam(
            0.01,
            clipping=clipping,
            noise_multiplier=1.0,
            microbatch_size=microbatch_size,
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=True,
    )
    rng = np.random.default_rng(0)
    batches = tf_dpfp.poisson_batches(
        rng.integers(0, 20, (40, 6)).astype("int32"),
        rng.integers(0, 3, 40),
        sampling_rate=0.1,
        steps_per_epoch=1,
        padded="static",
        capacity=BATCH,
    )
    # All that comes before the first step, and that step without XLA's code.
    model.run_eagerly = True
    model.fit(batches, verbose=0)
    model.run_eagerly = False
    function = tf.function(
        lambda *data: model.train_step(data), jit_compile=True, autograph=False
    )
    return function, next(iter(batches))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"clipping": tf_dpfp.PerLayer(thresholds=tf_dpfp.clipping.Adaptive())},
        {"clipping": tf_dpfp.Flat(), "rank": 2},
        {"clipping": tf_dpfp.PerLayer(), "microbatch_size": 4},
    ],
    ids=["adaptive", "carriers", "microbatches"],
)
def test_the_step_is_xlas_own_from_end_to_end(kwargs):
    function, data = _step(**kwargs)
    xla_kernels.assert_compiles(function.get_concrete_function(*data).graph)
    program = function.experimental_get_compiler_ir(*data)(stage="hlo")
    called = set(re.findall(r'custom_call_target="([^"]+)"', program))
    assert called == (EXPANDED if "rank" in kwargs else set())
    # A bounded dynamic shape is written with "<=" before its size.
    assert not re.search(r"\[[^\]]*<=\d", program)


@pytest.mark.parametrize(
    ("operation", "argument"),
    [
        (tf.strings.as_string, tf.ones([2])),
        # There is a kernel, but for no numbers of this type.
        (tf.linalg.inv, tf.eye(2, dtype=tf.complex128)),
    ],
)
def test_an_operation_that_xla_lacks_would_be_seen(operation, argument):
    function = tf.function(lambda x: operation(x))
    graph = function.get_concrete_function(argument).graph
    with pytest.raises(AssertionError, match="XLA_.PU_JIT"):
        xla_kernels.assert_compiles(graph)
