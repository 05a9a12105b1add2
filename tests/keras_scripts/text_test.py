"""Scripts on texts, condensed: each private training is the ordinary one."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import tf_dpfp
from tests.keras_scripts import common

COUNT, WORDS, LENGTH = 32, 12, 6


def _texts(seed=0):
    """Texts of as many words each, padding anywhere: their means agree."""
    rng = np.random.default_rng(seed)
    texts = rng.integers(1, WORDS, (COUNT, LENGTH)).astype("int32")
    for text in texts:
        text[rng.permutation(LENGTH)[:2]] = 0
    return texts


class TokenAndPosition(layers.Layer):
    def __init__(self, width):
        super().__init__()
        self.tokens = layers.Embedding(WORDS, width)
        self.positions = layers.Embedding(LENGTH, width)

    def call(self, inputs):
        positions = ops.arange(ops.shape(inputs)[-1])
        return self.tokens(inputs) + self.positions(positions)


class TransformerBlock(layers.Layer):
    def __init__(self, width):
        super().__init__()
        self.attention = layers.MultiHeadAttention(2, width // 2)
        self.feed = keras.Sequential(
            [layers.Dense(2 * width, activation="relu"), layers.Dense(width)]
        )
        self.norms = [layers.LayerNormalization() for _ in range(2)]

    def call(self, inputs):
        x = self.norms[0](inputs + self.attention(inputs, inputs))
        return self.norms[1](x + self.feed(x))


# The trial of such a model is a part of tests/examples/tutorials_test.py.
def test_text_classification_with_a_transformer(without_trial):
    def build():
        inputs = keras.Input((LENGTH,), dtype="int32")
        x = TransformerBlock(8)(TokenAndPosition(8)(inputs))
        x = layers.GlobalAveragePooling1D()(x)
        return keras.Model(inputs, layers.Dense(2)(x))

    x = _texts()
    common.assert_learns_as_ordinary(
        build,
        x,
        (x[:, 0] > WORDS // 2).astype("int32"),
        learning_rate=0.3,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )


def test_named_entities_under_masks():
    def build():
        inputs = keras.Input((LENGTH,), dtype="int32")
        x = layers.Embedding(WORDS, 8, mask_zero=True)(inputs)
        x = layers.Dense(8, activation="relu")(x)
        return keras.Model(inputs, layers.Dense(3)(x))

    x = _texts()
    model = common.assert_learns_as_ordinary(
        build,
        x,
        x % 3,
        learning_rate=1.0,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    assert model.evaluate(x, x % 3, verbose=0)[1] > 0.4


def test_translation_from_sequence_to_sequence():
    def build():
        source = keras.Input((LENGTH,), dtype="int32", name="source")
        target = keras.Input((LENGTH,), dtype="int32", name="target")
        x = layers.Embedding(WORDS, 6)(source)
        _, state = layers.GRU(6, return_state=True)(x)
        x = layers.Embedding(WORDS, 6)(target)
        x = layers.GRU(6, return_sequences=True)(x, initial_state=state)
        return keras.Model([source, target], layers.Dense(WORDS)(x))

    source, target = _texts(), _texts(1)
    common.assert_learns_as_ordinary(
        build,
        [source, target],
        target,
        learning_rate=1.0,
        progress=0.05,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )


def test_bidirectional_lstm():
    def build():
        return keras.Sequential(
            [
                keras.Input((LENGTH,), dtype="int32"),
                layers.Embedding(WORDS, 4),
                layers.Bidirectional(layers.LSTM(3, return_sequences=True)),
                layers.Bidirectional(layers.LSTM(3)),
                layers.Dense(1, activation="sigmoid"),
            ]
        )

    x = _texts()
    common.assert_learns_as_ordinary(
        build,
        x,
        (x[:, :1] > WORDS // 2).astype("float32"),
        learning_rate=4.0,
        progress=0.02,
        loss="binary_crossentropy",
        metrics=["accuracy"],
    )


def test_reading_of_captchas_by_ctc():
    def build():
        return keras.Sequential(
            [
                keras.Input((8, 3)),
                layers.Conv1D(6, 3, padding="same", activation="relu"),
                layers.Dense(5),
            ]
        )

    rng = np.random.default_rng(0)
    common.assert_learns_as_ordinary(
        build,
        rng.normal(size=(16, 8, 3)).astype("float32"),
        rng.integers(1, 5, (16, 3)).astype("int32"),
        learning_rate=0.1,
        epochs=2,
        loss=keras.losses.CTC(),
    )


class Router(layers.Layer):
    """Sends each token to an expert, and balances the loads of a batch."""

    def __init__(self, experts, **kwargs):
        super().__init__(**kwargs)
        self.gate = layers.Dense(experts)
        self.experts = [layers.Dense(4) for _ in range(experts)]

    def build(self, shape):
        for layer in (self.gate, *self.experts):
            layer.build(shape)

    def compute_output_shape(self, shape):
        return (*shape[:-1], 4)

    def call(self, inputs):
        chances = ops.softmax(self.gate(inputs), axis=-1)
        chosen = ops.one_hot(ops.argmax(chances, -1), len(self.experts))
        loads, means = (
            ops.mean(t, axis=tuple(range(len(t.shape) - 1)))
            for t in (chosen, chances)
        )
        self.add_loss(len(self.experts) * ops.sum(loads * means))
        gates = ops.sum(chances * chosen, -1, keepdims=True)
        found = [expert(inputs) for expert in self.experts]
        return gates * ops.sum(ops.stack(found, -1) * chosen[..., None, :], -1)


def _switch(wrap):
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(WORDS, 4)(inputs)
    x = layers.GlobalAveragePooling1D()(wrap(Router(2, name="router"))(x))
    return keras.Model(inputs, layers.Dense(2)(x))


def test_a_switch_transformer_balances_each_example_alone_or_not_at_all(
    request,
):
    x = _texts()
    y = (x[:, 0] > WORDS // 2).astype("int32")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    models = [
        tf_dpfp.make_private(_switch(wrap))
        for wrap in (lambda layer: layer, tf_dpfp.PerExample)
    ]
    for model in models:
        model.compile(tf_dpfp.DPSGD(0.1, noise_multiplier=1.0), loss)
    # The balance of a batch is made of all of its examples.
    with pytest.raises(ValueError, match="'router'.*PerExample"):
        models[0].fit(x, y, batch_size=8, verbose=0)
    # What it refused is what the trial was for.
    request.getfixturevalue("without_trial")
    history = models[1].fit(x, y, batch_size=8, verbose=0).history
    assert np.isfinite(history["loss"]).all()


def test_gpt2_with_lora():
    keras_hub = pytest.importorskip("keras_hub")

    def build():
        backbone = keras_hub.models.GPT2Backbone(
            vocabulary_size=WORDS,
            num_layers=1,
            num_heads=2,
            hidden_dim=8,
            intermediate_dim=16,
            dropout=0.0,
            max_sequence_length=LENGTH,
        )
        backbone.enable_lora(rank=2)
        return keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)

    tokens = _texts()
    model = common.assert_learns_as_ordinary(
        build,
        {"token_ids": tokens, "padding_mask": np.ones_like(tokens, bool)},
        np.roll(tokens, -1, 1),
        learning_rate=30.0,
        progress=0.001,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=["accuracy"],
    )
    trained = [v for v in model.trainable_variables if "lora" in v.path]
    assert len(trained) == 4
    # Half of them start at zero.
    assert all(np.abs(v.numpy()).max() > 1e-3 for v in trained)
