"""Models and losses whose private steps are proved, and the proof of a step."""

import dataclasses
import time
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import layers as L
from keras import tree

from tf_dpfp import independence
from tf_dpfp import optimizers
from tf_dpfp import per_example
from tf_dpfp import step as step_lib
from tf_dpfp.independence import step_proof
from tf_dpfp.mechanisms import proved

Case = tuple[
    Callable[[], keras.Model], Callable[[int], tuple], keras.losses.Loss
]


def prove_step(model, loss, batch, batch_size=None) -> independence.Proof:
    """Traces forward and backward pass of a private step, and proves them.

    Args:
        model: A built model.
        loss: A Keras loss.
        batch: `(x, y)` or `(x, y, sample_weight)`; shapes and types are used.
        batch_size: Batch size of the trace; unknown by default.

    Returns:
        The `Proof` of the losses, of what the rules record, and of the
        gradients that they ask for.
    """
    optimizer = optimizers.DPSGD(
        1.0, l2_norm_clip=1.0, noise_multiplier=0.0, expected_batch_size=1.0
    )
    plan = step_lib.make_plan(
        model, optimizer, step_lib.losses.per_example(loss)
    )
    x, y, weight = batch if len(batch) == 3 else (*batch, None)
    specs = tree.map_structure(
        lambda a: (
            None
            if a is None
            else tf.TensorSpec([batch_size, *a.shape[1:]], tf.as_dtype(a.dtype))
        ),
        (x, y, weight),
    )
    found = []

    def traced(*leaves):
        x, y, weight = tree.pack_sequence_as(specs, leaves)
        with tf.GradientTape() as tape:
            with per_example.record_calls(plan.units) as calls:
                predicted = step_lib.call_model(model, x)
            losses = plan.loss(y, predicted, weight)
            total = tf.reduce_sum(losses)
        gradients = tape.gradient(total, [call.sources for call in calls])
        released = [independence.Released(losses, "the loss", False)]
        for call, its in zip(calls, gradients, strict=True):
            recorded = [call.inputs, call.saved, call.sources, its]
            if not call.has_rows:  # Those of each example, added up.
                recorded = [g.materialize() for _, g in call.of_examples(its)]
            released += [
                independence.Released(
                    tf.convert_to_tensor(t), f"layer '{call.layer.name}'"
                )
                for t in tree.flatten(recorded)
                if isinstance(t, tf.Tensor | tf.IndexedSlices)
            ]
        graph = tf.compat.v1.get_default_graph()
        examples = [t for t in leaves if t is not None]
        # Layers without a rule of their own are vectorized, where Keras drops
        # axes of size 1 that a batch of one has, too.
        found.append(
            independence.prove(graph, examples, released, least_rows=2)
        )
        return losses

    function = tf.function(traced, autograph=False)
    function.get_concrete_function(*tree.flatten(specs))
    return found[0]


class TracedStep(NamedTuple):
    """A private step that was traced and proved.

    Attributes:
        proof: The proof.
        findings: What is not proved.
        seconds: CPU time of the tracing, without the proof.
    """

    proof: independence.Proof
    findings: tuple[independence.Finding, ...]
    seconds: float

    @property
    def verdict(self) -> str:
        """What was found, in Markdown."""
        if not self.findings:
            return "proved"
        first = self.findings[0]
        return f"refused: `{first.operation}`. {first.reason}"


def trace_step(model, loss, batch) -> TracedStep:
    """Traces a whole private step for batches of unknown size.

    Args:
        model: A built model.
        loss: A Keras loss.
        batch: `(x, y)` or `(x, y, sample_weight)`; shapes and types are used.
    """
    optimizer = optimizers.DPSGD(
        1.0, l2_norm_clip=1.0, noise_multiplier=1.0, expected_batch_size=4
    )
    plan = step_lib.make_plan(
        model, optimizer, step_lib.losses.per_example(loss)
    )
    plan = proved.with_proof(model, plan)
    proofs = []
    plan = dataclasses.replace(
        plan, on_traced=lambda t: proofs.append(step_proof.prove_step(t))
    )

    def traced(x, y, weight=None):
        step_lib.clipped_batch(model, plan, x, y, weight, None, lambda *_: None)

    function = tf.function(traced, autograph=False)
    started = time.process_time()
    function.get_concrete_function(*proved.specs_of(tuple(batch)))
    seconds = time.process_time() - started
    (proof,) = proofs
    return TracedStep(
        proof, proof.refusals(step_proof.ALLOWED), seconds - proof.seconds
    )


def _floats(*shape):
    return np.zeros(shape, "float32")


def _ids(*shape, dtype="int32"):
    return np.zeros(shape, dtype)


def _stack(*layers, shape=(6, 3), dtype=None):
    """A sequential model of layers, or of functions that make them."""

    def build():
        made = [
            layer if isinstance(layer, L.Layer) else layer() for layer in layers
        ]
        return keras.Sequential(
            [keras.Input(shape, dtype=dtype), *made, L.Dense(2)]
        )

    return build


def _classes():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _over(inputs, layers) -> Case:
    """A case of layers over inputs of a shape."""
    shape, dtype = inputs
    return (
        lambda: _stack(*layers, shape=shape, dtype=dtype)(),
        lambda n: (np.zeros((n, *shape), dtype), _ids(n)),
        _classes(),
    )


_SEQUENCE = ((6, 3), "float32")
_IMAGE = ((8, 8, 3), "float32")
_VOLUME = ((6, 6, 6, 2), "float32")
_TOKENS = ((6,), "int32")


def _transformer():
    tokens = keras.Input((8,), dtype="int32")
    x = L.Embedding(50, 16)(tokens)
    for _ in range(2):
        normed = L.LayerNormalization()(x)
        x = x + L.Dropout(0.1)(
            L.MultiHeadAttention(2, 8, dropout=0.1)(normed, normed)
        )
        hidden = L.Dense(32, "gelu")(L.LayerNormalization()(x))
        x = x + L.Dense(16)(hidden)
    return keras.Model(tokens, L.Dense(2)(L.GlobalAveragePooling1D()(x)))


def _attention(layer):
    def build():
        x = keras.Input((6, 8))
        y = layer()([L.Dense(4)(x), L.Dense(4)(x)])
        return keras.Model(x, L.Dense(2)(L.GlobalAveragePooling1D()(y)))

    return build, lambda n: (_floats(n, 6, 8), _ids(n)), _classes()


def _merges():
    x = keras.Input((3,))
    parts = [
        merge([L.Dense(3)(x), L.Dense(3)(x)])
        for merge in (
            L.Add(),
            L.Multiply(),
            L.Maximum(),
            L.Minimum(),
            L.Average(),
            L.Subtract(),
            L.Dot(1),
        )  # fmt: skip
    ]
    return keras.Model(x, L.Dense(2)(L.Concatenate()(parts)))


def _pooled(*layers):
    return (*layers, L.GlobalAveragePooling1D())


def _pooled2(*layers):
    return (*layers, L.GlobalAveragePooling2D())


def _pooled3(*layers):
    return (*layers, L.GlobalAveragePooling3D())


def layer_cases() -> dict[str, Case]:
    """Layers of Keras that keep examples apart."""
    return {
        "Dense": _over(_SEQUENCE, [L.Flatten(), L.Dense(4, "relu")]),
        "EinsumDense": _over(
            _SEQUENCE, _pooled(L.EinsumDense("abc,cd->abd", (None, 4)))
        ),
        "Embedding": _over(_TOKENS, [L.Embedding(9, 4), L.Flatten()]),
        "transformer": (
            _transformer, lambda n: (_ids(n, 8), _ids(n)), _classes()
        ),
        "Attention": _attention(L.Attention),
        "AdditiveAttention": _attention(L.AdditiveAttention),
        "merging layers": (
            _merges, lambda n: (_floats(n, 3), _ids(n)), _classes()
        ),
        "LSTM": _over(_SEQUENCE, [L.LSTM(4)]),
        "GRU": _over(_SEQUENCE, [L.GRU(4)]),
        "SimpleRNN": _over(
            _SEQUENCE, [L.SimpleRNN(4, dropout=0.1, recurrent_dropout=0.1)]
        ),
        "LSTM, masked": _over(
            _TOKENS, [lambda: L.Embedding(9, 4, mask_zero=True), L.LSTM(4)]
        ),
        "Bidirectional": _over(_SEQUENCE, [L.Bidirectional(L.GRU(4))]),
        "ConvLSTM1D": _over(
            _IMAGE, [L.ConvLSTM1D(2, 3, return_sequences=True), L.Flatten()]
        ),
        "LSTM, frozen, above a Dense": _over(
            _SEQUENCE, [L.Dense(3), L.LSTM(4, trainable=False)]
        ),
        "TimeDistributed": _over(
            _SEQUENCE, _pooled(L.TimeDistributed(L.Dense(4)))
        ),
        "Conv1D": _over(
            _SEQUENCE,
            _pooled(L.Conv1D(4, 3, padding="causal", dilation_rate=2)),
        ),
        "Conv2D": _over(
            _IMAGE, _pooled2(L.Conv2D(6, 3, groups=3), L.Conv2D(4, 3, 2))
        ),
        "Conv2D, dilated": _over(
            _IMAGE, _pooled2(L.Conv2D(6, 3, dilation_rate=2))
        ),
        "Conv2DTranspose, dilated": _over(
            _IMAGE, _pooled2(L.Conv2DTranspose(4, 3, dilation_rate=2))
        ),
        "Conv3D": _over(_VOLUME, _pooled3(L.Conv3D(4, 3))),
        "SeparableConv": _over(
            _IMAGE,
            _pooled2(L.SeparableConv2D(4, 3), L.DepthwiseConv2D(3)),
        ),
        "pools": _over(
            _IMAGE,
            [L.Conv2D(2, 1), L.AveragePooling2D(2), L.MaxPooling2D(2),
             L.GlobalMaxPooling2D()],
        ),
        "shapes of images": _over(
            _IMAGE,
            _pooled2(
                L.Conv2D(2, 3), L.Cropping2D(1), L.ZeroPadding2D(1),
                L.UpSampling2D(2), L.UpSampling2D(2, interpolation="bilinear"),
                L.Resizing(5, 5), L.Conv2D(2, 3),
            ),
        ),
        "shapes of sequences": _over(
            _SEQUENCE,
            [L.Permute((2, 1)), L.Reshape((18,)), L.RepeatVector(3),
             L.Conv1D(4, 2), L.UpSampling1D(2), L.Flatten()],
        ),
        "normalizations": _over(
            _SEQUENCE,
            _pooled(
                L.LayerNormalization(), L.GroupNormalization(3),
                L.RMSNormalization(), L.UnitNormalization(),
            ),
        ),
        "BatchNormalization, frozen": _over(
            _SEQUENCE, _pooled(L.BatchNormalization(trainable=False))
        ),
        "activations": _over(
            _SEQUENCE,
            _pooled(
                L.Dense(8), L.LeakyReLU(), L.PReLU(), L.ELU(), L.ReLU(6.0),
                L.Softmax(),
                *[L.Dense(6, a) for a in ("gelu", "silu", "mish", "selu",
                                          "softplus", "sparsemax", "celu")],
            ),
        ),
        "noise and dropout": _over(
            _SEQUENCE,
            _pooled(
                L.GaussianNoise(0.1), L.GaussianDropout(0.1),
                L.AlphaDropout(0.1), L.SpatialDropout1D(0.1),
                L.Dropout(0.1), L.Dense(3),
            ),
        ),
        "preprocessing": _over(
            _TOKENS,
            [L.Hashing(7), lambda: L.Embedding(7, 3), L.Flatten()],
        ),
        "CategoryEncoding": _over(
            _TOKENS, [L.CategoryEncoding(5, "multi_hot")]
        ),
    }  # fmt: skip


def loss_cases() -> dict[str, Case]:
    """Losses of Keras that are sums over examples."""
    names = """
        BinaryCrossentropy BinaryFocalCrossentropy CategoricalCrossentropy
        CategoricalFocalCrossentropy CategoricalHinge CosineSimilarity Dice
        Hinge Huber KLDivergence LogCosh MeanAbsoluteError
        MeanAbsolutePercentageError MeanSquaredError
        MeanSquaredLogarithmicError Poisson SquaredHinge Tversky
    """.split()

    def build():
        return keras.Sequential([keras.Input((3,)), L.Dense(4, "softmax")])

    return {
        name: (
            build,
            lambda n: (_floats(n, 3), _floats(n, 4)),
            getattr(keras.losses, name)(),
        )
        for name in names
    }


def mixing_cases() -> dict[str, Case]:
    """Layers and losses of Keras that let examples meet."""
    return {
        "BatchNormalization": _over(
            _SEQUENCE,
            _pooled(L.BatchNormalization(center=False, scale=False)),
        ),
        "UnitNormalization over the batch": _over(
            _SEQUENCE, [L.Flatten(), L.UnitNormalization(axis=0)]
        ),
        "Softmax over the batch": _over(
            _SEQUENCE, [L.Flatten(), L.Softmax(axis=0)]
        ),
    }
