"""Models with a DPRepresentationClip: what is counted, found and refused."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tf_dpfp import accounting

N = 40
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 5)).astype(np.float32)
Y = np.arange(N) % 2
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
DELTA = 1e-5


def _clip(labels="public", **kwargs):
    return tf_dpfp.DPRepresentationClip(1.0, 2.0, labels=labels, **kwargs)


def _frozen(layer):
    layer.trainable = False
    return layer


def _model(clip=None, encoder=None, head=None):
    inputs = keras.Input((5,))
    h = (encoder or _frozen(layers.Dense(4, activation="tanh")))(inputs)
    h = (clip or _clip())(h)
    return keras.Model(inputs, (head or layers.Dense(2))(h))


def _batches(x=X, y=Y, labels="public", **kwargs):
    kwargs = {"draw_size": 4, "draws": 3, **kwargs}
    return tf_dpfp.representations.stratified_batches(
        x, y, labels=labels, **kwargs
    )


def _private(model=None, **kwargs):
    model = tf_dpfp.make_private(model or _model())
    model.compile("adam", LOSS, **kwargs)
    return model


def _counts(model):
    return {e.sampling: e.steps for e in tf_dpfp.ledger(model)}


DRAWN = accounting.WithoutReplacement(N // 2, 2)
UNKNOWN = accounting.UnknownSampling()


def test_draws_of_the_sampler_are_counted_and_nothing_else_is():
    model = _private(jit_compile=False, steps_per_execution=2)
    encoder = model.layers[1].get_weights()
    head = model.layers[3].get_weights()
    batches = _batches(steps_per_epoch=4)
    model.fit(batches, epochs=2, verbose=0)
    assert _counts(model) == {DRAWN: 8 * 3}
    model.fit(batches.map(lambda x, y: (x, y)), verbose=0)
    model.fit(X, Y, batch_size=10, verbose=0)
    model.train_on_batch(X[:12], Y[:12])
    # An example may be in a batch of three draws three times.
    assert _counts(model) == {DRAWN: 24, UNKNOWN: 4 * 3 + 4 + 1}
    model.evaluate(X, Y, verbose=0)
    model.predict(X, verbose=0)
    assert _counts(model) == {DRAWN: 24, UNKNOWN: 17}
    for before, after in zip(
        encoder, model.layers[1].get_weights(), strict=True
    ):
        np.testing.assert_array_equal(before, after)
    assert np.any(head[0] != model.layers[3].get_weights()[0])


def test_steps_that_xla_compiles_are_counted_as_well():
    model = _private(jit_compile=True, steps_per_execution=2)
    batches = _batches(steps_per_epoch=4)
    model.fit(batches, epochs=2, verbose=0)
    model.fit(batches.map(lambda x, y: (x, y)), verbose=0)
    assert _counts(model) == {DRAWN: 8 * 3, UNKNOWN: 4 * 3}
    model.evaluate(X, Y, verbose=0)
    assert _counts(model) == {DRAWN: 24, UNKNOWN: 12}


def test_epsilon_is_that_of_the_draws():
    model = _private()
    assert tf_dpfp.compute_epsilon(model, DELTA) == 0.0
    model.fit(_batches(steps_per_epoch=5), verbose=0)
    entry = accounting.LedgerEntry(
        DRAWN, 2.0, 15, release=accounting.Representations("public")
    )
    assert tf_dpfp.ledger(model) == [entry]
    expected = accounting.compute_epsilon([entry], DELTA)
    assert tf_dpfp.compute_epsilon(model, DELTA) == expected
    words = " ".join(tf_dpfp.privacy_statement(model, DELTA).split())
    for phrase in (
        f"DP-FP (noised representations) performed over {N} examples",
        "15 draws with noise multiplier 2, each without replacement, of at "
        "most 2 in 20 of the examples of one label",
        "replace-one adjacency",
        "can't be compared",
        "Public, and not protected: the labels",
        "The layers below the noise were not trained",
        "several draws where the sampler was given `draws`",
        "NOT proved for this training",
        f"Epsilon with the sampling above: {math.ceil(expected * 1e3) / 1e3}",
    ):
        assert phrase in words, phrase


def test_an_ordinary_model_counts_and_tells_once_it_is_private():
    model = _model()
    model.compile("adam", LOSS)
    model.fit(X, Y, batch_size=10, verbose=0)
    for report in (
        tf_dpfp.ledger,
        lambda m: tf_dpfp.compute_epsilon(m, DELTA),
        lambda m: tf_dpfp.privacy_statement(m, DELTA),
        lambda m: tf_dpfp.loops.sampled_steps(m, _batches()).__enter__(),
    ):
        with pytest.raises(
            tf_dpfp.errors.NotPrivateError, match="make_private"
        ):
            report(model)
    tf_dpfp.make_private(model)
    assert _counts(model) == {UNKNOWN: 4}
    assert math.isfinite(tf_dpfp.compute_epsilon(model, DELTA))


def test_steps_of_a_loop_are_counted_as_drawn_inside_alone():
    model = _private()
    batches = _batches(steps_per_epoch=4)
    for x, y in batches:
        model.train_on_batch(x, y)
    assert _counts(model) == {UNKNOWN: 4}
    with tf_dpfp.loops.sampled_steps(model, batches):
        for x, y in batches:
            model.train_on_batch(x, y)
    assert _counts(model) == {UNKNOWN: 4, DRAWN: 12}
    for x, y in batches:
        model.train_on_batch(x, y)
    assert _counts(model) == {UNKNOWN: 8, DRAWN: 12}
    assert "at most once in each" in tf_dpfp.privacy_statement(model, DELTA)
    for wrong in (batches.take(2), tf.data.Dataset.from_tensor_slices((X, Y))):
        with pytest.raises(ValueError, match="another proves nothing"):
            with tf_dpfp.loops.sampled_steps(model, wrong):
                pass


def test_sequential_models_that_were_never_called():
    model = keras.Sequential([keras.Input((5,)), _clip(), layers.Dense(2)])
    tf_dpfp.make_private(model)
    assert tf_dpfp.compute_epsilon(model, DELTA) == 0.0


def test_saved_and_loaded(tmp_path):
    model = _private()
    model.fit(_batches(steps_per_epoch=2), verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = tf_dpfp.make_private(keras.models.load_model(tmp_path / "m.keras"))
    assert tf_dpfp.ledger(loaded) == tf_dpfp.ledger(model)
    assert tf_dpfp.compute_epsilon(loaded, DELTA) == tf_dpfp.compute_epsilon(
        model, DELTA
    )
    loaded.fit(_batches(steps_per_epoch=2), verbose=0)
    assert _counts(loaded) == {DRAWN: 12}


def test_an_optimizer_that_compile_did_not_see_is_refused():
    model = _private()
    model.fit(X, Y, batch_size=20, verbose=0)
    model.optimizer = keras.optimizers.Adam()
    for use in (tf_dpfp.ledger, lambda m: m.fit(X, Y, verbose=0)):
        with pytest.raises(
            tf_dpfp.errors.NotPrivateError, match="was replaced after"
        ):
            use(model)
    model.compile("adam", LOSS)
    assert _counts(model) == {UNKNOWN: 2}


def test_randomised_labels_are_composed_once():
    y = tf_dpfp.representations.randomize_labels(Y, 1.0, 2)
    model = _private(_model(_clip(labels=None)))
    batches = _batches(y=y, labels=None, steps_per_epoch=2)
    model.fit(batches, verbose=0)
    model.fit(batches, verbose=0)
    labels = [
        e
        for e in tf_dpfp.ledger(model)
        if e.sampling.__class__ is (accounting.EveryLabel)
    ]
    assert labels == [y.entry]
    rows = [e for e in tf_dpfp.ledger(model) if e not in labels]
    assert rows[0].release == accounting.Representations("randomized")
    spent = tf_dpfp.compute_epsilon(model, DELTA)
    alone = accounting.compute_epsilon(rows, DELTA)
    assert alone < spent <= alone + 1.0 + 1e-6
    statement = tf_dpfp.privacy_statement(model, DELTA)
    assert "randomised once" in statement
    assert "Public, and not protected" not in statement


def test_undeclared_labels_make_epsilon_infinite_and_say_why():
    model = _private(_model(_clip(labels=None)))
    with pytest.warns(UserWarning, match="nothing is declared of them"):
        model.fit(X, Y, verbose=0)
    assert math.isinf(tf_dpfp.compute_epsilon(model, DELTA))
    statement = tf_dpfp.privacy_statement(model, DELTA)
    assert "NO PRIVACY" in statement
    assert "neither declared public nor" in statement


def test_end_to_end_is_infinite_with_the_claim_beside():
    model = _model(_clip(end_to_end=True), encoder=layers.Dense(4))
    before = model.layers[1].get_weights()[0]
    model = _private(model)
    model.fit(_batches(steps_per_epoch=3), verbose=0)
    assert np.any(before != model.layers[1].get_weights()[0])
    assert math.isinf(tf_dpfp.compute_epsilon(model, DELTA))
    statement = tf_dpfp.privacy_statement(model, DELTA)
    assert "end to end" in statement
    claimed = tf_dpfp.accounting.claimed_epsilon(2.0, 0.1, 9, DELTA)
    assert f"{math.ceil(claimed * 1e3) / 1e3}" in statement


def test_budget_stops_before_it_is_exceeded():
    model = _private()
    batches = _batches(steps_per_epoch=5)
    noise = tf_dpfp.representations.calibrate_representation(
        batches, epsilon=3.0, delta=DELTA, epochs=2
    )
    model = _private(
        _model(tf_dpfp.DPRepresentationClip(1.0, noise, labels="public"))
    )
    history = model.fit(
        batches,
        epochs=4,
        verbose=0,
        callbacks=[tf_dpfp.PrivacyBudget(3.0, DELTA)],
    )
    assert _counts(model) == {DRAWN: 2 * 5 * 3}
    assert 2.9 < history.history["epsilon"][-1] <= 3.0
    again = model.fit(
        batches,
        verbose=0,
        callbacks=[tf_dpfp.PrivacyBudget(3.0, DELTA)],
    )
    assert again.history == {} and _counts(model) == {DRAWN: 2 * 5 * 3}


# --- what is found, and refused ---------------------------------------------


class AddsLoss(layers.Layer):
    def call(self, x):
        self.add_loss(keras.ops.mean(x))
        return x


class Counts(layers.Layer):
    """Looks at how many examples there are, and at none of them."""

    def call(self, x):
        return x / tf.cast(tf.shape(x)[0], x.dtype)


class Mixes(layers.Layer):
    def call(self, x):
        return x - keras.ops.mean(x, axis=0, keepdims=True)


class Merges(layers.Layer):
    def call(self, x):
        return keras.ops.reshape(x, (-1, 1))


def _skip(scale=1.0):
    inputs = keras.Input((5,))
    h = _frozen(layers.Dense(2))(inputs)
    return keras.Model(inputs, _clip()(h) + scale * h)


def _product():
    inputs = keras.Input((5,))
    h = _frozen(layers.Dense(2))(inputs)
    return keras.Model(inputs, _clip()(h) * h)


def _mask_around():
    tokens = keras.Input((5,), dtype="int32")
    embedding = _frozen(layers.Embedding(4, 3, mask_zero=True))
    h = embedding(tokens)
    mask = embedding.compute_mask(tokens)
    h = layers.GlobalAveragePooling1D()(_clip()(h), mask=mask)
    return keras.Model(tokens, layers.Dense(2)(h))


class Remasks(layers.Layer):
    """Passes its first input on, with a mask made of its second."""

    supports_masking = True

    def call(self, inputs):
        return inputs[0]

    def compute_mask(self, inputs, mask=None):
        return inputs[1] > 0.5

    def compute_output_shape(self, shapes):
        return shapes[0]


def _mask_of_the_output():
    inputs = keras.Input((5,))
    h = _clip()(keras.ops.expand_dims(inputs, -1))
    return keras.Model(inputs, Remasks()([layers.Dense(2)(h), inputs]))


def _added_loss():
    return _model(encoder=AddsLoss())


def _activity():
    return _model(encoder=_frozen(layers.Dense(4, activity_regularizer="l2")))


def _below(layer):
    inputs = keras.Input((5,))
    h = _clip()(layer(inputs))
    return keras.Model(inputs, layers.Dense(2)(h))


@pytest.mark.parametrize(
    "build, message",
    [
        (_skip, "way around the layer"),
        (lambda: _skip(1e-4), "way around the layer"),
        (_product, "way around the layer"),
        (_mask_around, "way around the layer"),
        (_mask_of_the_output, "way around the layer"),
        (_added_loss, "way around the layer"),
        (_activity, "way around the layer"),
        (lambda: _below(Mixes()), "depends on the other examples"),
        (lambda: _below(Counts()), "depends on the other examples"),
        (
            lambda: _below(
                layers.BatchNormalization(center=False, scale=False)
            ),
            "keeps statistics",
        ),
        (lambda: _below(Merges()), "rows are not the examples"),
        (
            lambda: _model(encoder=layers.Dense(4, name="forgotten")),
            "'forgotten/kernel', 'forgotten/bias'",
        ),
    ],
)
def test_what_the_noise_does_not_protect_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        tf_dpfp.make_private(build()).compile("adam", LOSS)


def test_a_subclass_is_tried_at_the_first_step():
    class Skips(keras.Model):
        def __init__(self, scale):
            super().__init__()
            self.encoder = _frozen(layers.Dense(2))
            self.clip, self.scale = _clip(), scale
            self.head = layers.Dense(2)

        def call(self, x):
            h = self.encoder(x)
            return self.head(self.clip(h)) + self.scale * h

    model = _private(Skips(1.0))
    for data in ((X, Y), (_batches(),)):
        with pytest.raises(ValueError, match="way around"):
            model.fit(*data, verbose=0)
    assert not tf_dpfp.ledger(model)
    # A `call` without `training`: Keras says nothing of it to the layer.
    silent = Skips(0.0)
    silent.compile("adam", LOSS)
    silent.fit(X, Y, verbose=0)
    tf_dpfp.make_private(silent)
    assert math.isinf(tf_dpfp.compute_epsilon(silent, DELTA))
    statement = " ".join(tf_dpfp.privacy_statement(silent, DELTA).split())
    assert "took 2 steps and DPRepresentationClip counted 0" in statement
    with pytest.raises(ValueError, match="without `training=True`"):
        _private(Skips(0.0)).fit(X, Y, verbose=0)


def test_a_layer_that_is_told_not_to_train_is_found():
    class Silent(keras.Model):
        def __init__(self):
            super().__init__()
            self.clip, self.head = _clip(), layers.Dense(2)

        def call(self, x, training=None):
            return self.head(self.clip(x, training=False))

    with pytest.raises(ValueError, match="without `training=True`"):
        _private(Silent()).fit(X, Y, verbose=0)


def test_a_model_is_tried_again_when_layers_are_unfrozen():
    model = _private(_below(_frozen(layers.BatchNormalization())))
    model.fit(X, Y, verbose=0)
    model.layers[1].trainable = True
    with pytest.raises(ValueError, match="keeps statistics"):
        model.train_on_batch(X[:7], Y[:7])


def test_what_mixes_above_the_noise_is_fine():
    head = keras.Sequential(
        [
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.Dense(2, activity_regularizer="l2"),
        ]
    )
    model = _private(
        _model(head=head, encoder=keras.Sequential([layers.Dropout(0.3)]))
    )
    model.fit(_batches(), verbose=0)
    assert math.isfinite(tf_dpfp.compute_epsilon(model, DELTA))


def test_several_calls_of_a_step_are_not_amplified():
    inputs = keras.Input((5,))
    clip = _clip()
    h = layers.Add()([clip(inputs), clip(inputs)])
    model = _private(keras.Model(inputs, layers.Dense(2)(h)))
    model.fit(X, Y, batch_size=20, verbose=0)
    assert _counts(model) == {UNKNOWN: 4}
    with pytest.raises(ValueError, match="called 2 times"):
        model.fit(_batches(), verbose=0)
    # Of a loop with an optimizer of its own.
    model = tf_dpfp.make_private(keras.Model(model.inputs, model.outputs))
    with pytest.raises(ValueError, match="called 2 times"):
        with tf_dpfp.loops.sampled_steps(model, _batches()):
            pass


def test_optimizers_and_batches_that_do_not_belong_here():
    model = tf_dpfp.make_private(_model())
    with pytest.raises(ValueError, match="noise to what is noise already"):
        model.compile(tf_dpfp.DPSGD(0.1, noise_multiplier=1.0), LOSS)
    plain = keras.Sequential([keras.Input((5,)), layers.Dense(2)])
    tf_dpfp.make_private(plain)
    plain.compile(tf_dpfp.DPSGD(0.1, noise_multiplier=1.0), LOSS)
    with pytest.raises(ValueError, match="for models with a DPRepresent"):
        plain.fit(_batches(), verbose=0)
    # Poisson batches of rows: each example at most once, no amplification.
    model.compile("adam", LOSS)
    model.fit(
        tf_dpfp.poisson_batches(X, Y, expected_batch_size=8, steps_per_epoch=3),
        verbose=0,
    )
    assert _counts(model) == {UNKNOWN: 3}


def test_a_training_step_of_its_own_is_refused():
    class Own(keras.Model):
        def train_step(self, data):
            return super().train_step(data)

    inputs = keras.Input((5,))
    model = Own(inputs, layers.Dense(2)(_clip()(inputs)))
    with pytest.raises(ValueError, match="train_step of its own"):
        tf_dpfp.make_private(model)


def test_the_trial_neither_counts_nor_changes_anything():
    model = _model(head=keras.Sequential([layers.BatchNormalization()]))
    before = [w.copy() for w in model.get_weights()]
    tf_dpfp.make_private(model)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not tf_dpfp.ledger(model)


class _Underscored(keras.Model):
    def __init__(self, clip):
        super().__init__()
        self.clip = clip
        self.head = layers.Dense(2)

    def call(self, x, training=None):
        return self.head(self.clip(x, training=training))


@pytest.mark.parametrize("noised", [True, False])
def test_an_eager_model_may_have_any_name(noised):
    model = _Underscored(_clip() if noised else layers.Dropout(0.1))
    tf_dpfp.make_private(model)
    optimizer = "sgd" if noised else tf_dpfp.DPSGD(0.1, noise_multiplier=2.0)
    model.compile(optimizer, LOSS, run_eagerly=True)
    model.fit(X[:4], Y[:4], verbose=0)
    assert model.name.startswith("_")
    assert [e.steps for e in tf_dpfp.ledger(model)] == [1]
