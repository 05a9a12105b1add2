"""Proofs of whole private steps: `fit`, eager steps and custom loops."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tf_dpfp.independence import gradients as gradient_trial

MEET = "can't be trained privately"
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(8, 3)).astype("float32")
Y = RANDOM.normal(size=(8, 2)).astype("float32")


@pytest.fixture(autouse=True)
def _no_trial(monkeypatch):
    """Leaves everything to the proof."""
    monkeypatch.setattr(gradient_trial, "check", lambda *_: True)


class Calls(layers.Layer):
    """Calls a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, inputs):
        return self.function(inputs)


class Statistics(layers.Layer):
    """Keeps a mean in a variable that Keras does not know."""

    def build(self, input_shape):
        self.mean = tf.Variable(tf.zeros(input_shape[1:]), trainable=False)

    def call(self, inputs):
        self.mean.assign(tf.reduce_mean(inputs, 0))
        return inputs


class ForOneSize(layers.Layer):
    """Mixes batches of one size only, which no trial can guess."""

    def call(self, inputs):
        return tf.roll(inputs, 1, 0) if inputs.shape[0] == 8 else inputs


class Switch(layers.Layer):
    """Centres the batch once it is told to."""

    is_on = False

    def __init__(self):
        super().__init__()
        self.is_on = False

    def call(self, inputs):
        return inputs - tf.reduce_mean(inputs, 0) if self.is_on else inputs


def _route(x):
    """Drops what comes after the second example of each choice."""
    choice = tf.one_hot(tf.argmax(x, -1), 3)
    place = tf.reduce_sum(tf.cumsum(choice, 0) * choice, -1)
    return x * tf.cast(place <= 2.0, x.dtype)[:, None]


def _mix_up(x):
    return tf.cond(
        tf.random.uniform([]) < 0.5, lambda: (x + x[::-1]) / 2.0, lambda: x
    )


@tf.custom_gradient
def _clip_by_batch(x):
    return tf.identity(x), lambda g: g / (1e-3 + tf.norm(g))


def _print(x):
    with tf.control_dependencies([tf.print(x[0])]):
        return tf.identity(x)


def _python(x):
    found = tf.numpy_function(lambda a: a - a.mean(0), [x], tf.float32)
    return tf.ensure_shape(found, x.shape)


MIXING = {
    "routing": (lambda: Calls(_route), "Cumsum"),
    "cumulative sum": (lambda: Calls(lambda x: tf.cumsum(x, 0)), "Cumsum"),
    "previous row": (lambda: Calls(lambda x: x - tf.roll(x, 1, 0)), "Roll"),
    "row number": (
        lambda: Calls(
            lambda x: x * tf.cast(tf.range(tf.shape(x)[0]), x.dtype)[:, None]
        ),
        "number of the row",
    ),
    "mixing at random": (lambda: Calls(_mix_up), "by their place"),
    "clipping by the batch": (lambda: Calls(_clip_by_batch), "gradient of"),
    "statistics": (Statistics, "AssignVariableOp"),
    "printing": (lambda: Calls(_print), "PrintV2"),
    "Python": (lambda: Calls(_python), "Python code"),
    "no rule": (lambda: Calls(_without_a_rule), "Unique"),
    "a name of vectorised code": (lambda: _named("pfor"), "Roll"),
}


def _named(name):
    layer = Calls(lambda x: tf.roll(x, 1, 0))
    layer.name = name
    return layer


def _without_a_rule(x):
    number = tf.unique(tf.reshape(x, [-1])).idx[0]
    return x * tf.cast(number, x.dtype)


def _compiled(
    *inner, loss="mse", microbatch_size=None, noise_multiplier=1.0, **kwargs
):
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(3), *inner, layers.Dense(2)]
    )
    tf_dpfp.make_private(model)
    optimizer = tf_dpfp.DPSGD(
        0.1,
        l2_norm_clip=1.0,
        noise_multiplier=noise_multiplier,
        expected_batch_size=8,
        microbatch_size=microbatch_size,
    )
    model.compile(optimizer=optimizer, loss=loss, **kwargs)
    return model


def _fit(model, x=X, y=Y, sample_weight=None):
    model.fit(x, y, batch_size=8, verbose=0, sample_weight=sample_weight)


@pytest.mark.parametrize(
    ("name", "eager"),
    [(name, False) for name in MIXING]
    + [(name, True) for name in ("routing", "statistics", "Python")],
)
def test_a_layer_that_mixes_is_refused_before_a_step_is_counted(name, eager):
    layer, reason = MIXING[name]
    model = _compiled(layer(), run_eagerly=eager)
    with pytest.raises(ValueError, match=MEET) as refusal:
        _fit(model)
    assert reason in str(refusal.value)
    assert sum(e.steps for e in model.optimizer.ledger_entries) == 0


def test_a_layer_that_mixes_one_size_of_batch_never_sees_it():
    model, plain = _compiled(ForOneSize()), _compiled()
    plain.set_weights(model.get_weights())

    @tf.function
    def sums(of):
        return tf_dpfp.loops.clipped_gradients(of, X, Y).sums

    for found, expected in zip(sums(model), sums(plain), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


class Branches(layers.Layer):
    """Mixes examples where Python code lets it."""

    def __init__(self, condition):
        super().__init__()
        self.condition = condition

    def call(self, x):
        if self.condition(x):
            return x + tf.reduce_sum(x, axis=0, keepdims=True)
        return x

    def compute_output_shape(self, shape):
        return shape


@pytest.mark.parametrize("way", ["train_on_batch", "loop", "pieces"])
def test_an_eager_step_runs_what_was_proved(way):
    """A trace takes one branch, where the batch has no size; steps as well."""
    pieces = 4 if way == "pieces" else None
    mixes = Branches(lambda x: x.shape[0] is not None and x.shape[0] > 2)
    arguments = {
        "run_eagerly": True,
        "microbatch_size": pieces,
        "noise_multiplier": 0.0,
    }
    model, plain = _compiled(mixes, **arguments), _compiled(**arguments)
    plain.set_weights(model.get_weights())
    for one in (model, plain):
        for size in (8, 5, 8):
            if way == "loop":
                clipped = tf_dpfp.loops.clipped_gradients(
                    one, X[:size], Y[:size]
                )
                one.optimizer.apply(clipped)
            else:
                one.train_on_batch(X[:size], Y[:size])
    for mine, other in zip(model.weights, plain.weights, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-6)


class Counts(layers.Layer):
    """Counts its calls in a variable that Keras does not know."""

    def build(self, input_shape):
        del input_shape
        self.calls = tf.Variable(0.0, trainable=False)

    def call(self, x):
        self.calls.assign_add(1.0)
        return x * tf.sin(self.calls)


IN_PIECES = {
    "a count": Counts,
    "known numbers": lambda: Calls(lambda x: x * tf.random.normal([], seed=1)),
}


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("name", sorted(IN_PIECES))
def test_what_tells_the_number_of_a_piece_is_refused(name, eager):
    """Another piece, if an example before is left out, is another number."""
    make = IN_PIECES[name]
    _fit(_compiled(make(), run_eagerly=eager))
    model = _compiled(make(), microbatch_size=4, run_eagerly=eager)
    with pytest.raises(ValueError, match=MEET):
        _fit(model)
    assert sum(e.steps for e in model.optimizer.ledger_entries) == 0


def test_functions_that_run_eagerly_run_what_was_proved():
    """As `tf.config.run_functions_eagerly` makes them; see conftest."""
    mixes = Branches(lambda x: x.shape[0] is not None)
    model = _compiled(mixes, noise_multiplier=0.0)
    plain = _compiled(noise_multiplier=0.0)
    plain.set_weights(model.get_weights())
    tf.config.run_functions_eagerly(True)
    for one in (model, plain):
        one.train_on_batch(X, Y)
    for mine, other in zip(model.weights, plain.weights, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-6)
    with pytest.raises(ValueError, match=MEET):
        _compiled(Calls(_route)).train_on_batch(X, Y)


def test_an_eager_branch_on_data_is_refused():
    model = _compiled(
        Branches(lambda x: float(tf.reduce_max(x)) > 0.0), run_eagerly=True
    )
    with pytest.raises(ValueError, match="can't be trained"):
        model.train_on_batch(X, Y)
    assert sum(e.steps for e in model.optimizer.ledger_entries) == 0


@pytest.mark.parametrize("place", ["loss", "layer"])
@pytest.mark.parametrize("built", [False, True])
def test_what_reads_a_metric_is_refused(place, built):
    """A metric holds sums over earlier examples, which got no noise."""
    seen = keras.metrics.MeanSquaredError()
    loss = keras.losses.MeanSquaredError()

    def reads_it(y_true, y_pred):
        return loss(y_true, y_pred) * (1.0 + seen.result())

    layer = Calls(lambda x: x * (1.0 + seen.total.value))
    model = _compiled(
        *([layer] if place == "layer" else []),
        loss=reads_it if place == "loss" else "mse",
        metrics=[seen],
    )
    if built:
        model.evaluate(X, Y, verbose=0)
    with pytest.raises(ValueError, match="reads a metric"):
        _fit(model)
    assert sum(e.steps for e in model.optimizer.ledger_entries) == 0


def test_metrics_beside_a_loss_are_proved():
    model = _compiled(metrics=["mae"], weighted_metrics=["mse"])
    _fit(model)
    _fit(model)


def test_a_micro_batch_is_proved_like_a_batch():
    model = _compiled(Calls(_route), microbatch_size=4)
    with pytest.raises(ValueError, match="Cumsum"):
        _fit(model)


def test_a_running_mean_in_a_loss_is_refused():
    mean = tf.Variable(1.0, trainable=False)

    def loss(y_true, y_pred):
        values = tf.reduce_mean((y_true - y_pred) ** 2, -1)
        mean.assign(0.9 * mean + 0.1 * tf.reduce_mean(values))
        return values / mean

    with pytest.raises((ValueError, NotImplementedError)):
        _fit(_compiled(loss=loss))


def test_a_layer_unfrozen_after_the_first_step_is_refused():
    normalization = layers.BatchNormalization(
        center=False, scale=False, trainable=False
    )
    model = _compiled(normalization)
    tf_dpfp.loops.clipped_gradients(model, X, Y)
    normalization.trainable = True
    with pytest.raises(ValueError, match="BatchNormalization"):
        tf_dpfp.loops.clipped_gradients(model, X, Y)


def test_a_switch_turned_after_the_first_step_is_seen():
    switch = Switch()
    model = _compiled(switch)
    tf_dpfp.loops.clipped_gradients(model, X, Y)
    switch.is_on = True
    with pytest.raises(ValueError, match=MEET):
        tf_dpfp.loops.clipped_gradients(model, X, Y)


def _attention():
    ids = keras.Input((4,), dtype="int32")
    h = layers.Embedding(9, 4, mask_zero=True)(ids)
    h += layers.MultiHeadAttention(2, 2, dropout=0.1)(h, h)
    h = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(h))
    return keras.Model(ids, layers.Dense(2)(h))


def _convolution():
    return keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            layers.Conv2D(4, 3, activation="relu"),
            layers.GroupNormalization(2),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )


def _dense():
    return keras.Sequential(
        [keras.Input((3,)), layers.Dense(4, "relu"), layers.Dropout(0.3)]
        + [layers.Dense(2)]
    )


ORDINARY = {
    "dense": (_dense, X),
    "convolution": (
        _convolution,
        RANDOM.normal(size=(8, 4, 4, 2)).astype("float32"),
    ),
    "attention": (
        _attention,
        RANDOM.integers(0, 9, (8, 4)).astype("int32"),
    ),
}


@pytest.mark.parametrize(
    ("name", "way"),
    [("dense", w) for w in ("fit", "poisson", "pieces", "eager", "weights")]
    + [("convolution", "pieces")]
    + [("attention", "poisson"), ("attention", "pieces")],
)
def test_ordinary_models_are_proved_without_a_warning(name, way):
    build, x = ORDINARY[name]
    model = tf_dpfp.make_private(build())
    optimizer = tf_dpfp.DPSGD(
        0.1,
        l2_norm_clip=1.0,
        noise_multiplier=1.0,
        expected_batch_size=8,
        microbatch_size=4 if way == "pieces" else None,
    )
    model.compile(optimizer, loss="mse", run_eagerly=way == "eager")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not proved")
        if way == "poisson":
            batches = tf_dpfp.poisson_batches(x, Y, expected_batch_size=8)
            model.fit(batches, verbose=0, epochs=1)
        else:
            weights = np.ones(8, "float32") if way == "weights" else None
            _fit(model, x, sample_weight=weights)


class Table(layers.Layer):
    """A lookup of its own, under the generic rule."""

    def __init__(self, take):
        super().__init__()
        self.take = take

    def build(self, shape):
        self.table = self.add_weight(shape=(5, 2), initializer="ones")

    def call(self, ids):
        return self.take(self.table, ids)

    def compute_output_spec(self, ids):
        return keras.KerasTensor((*ids.shape, 2))


@pytest.mark.parametrize("is_safe", [False, True])
def test_a_lookup_of_its_own_lands_in_no_other_example(is_safe):
    def gather(table, ids):
        return tf.gather(tf.convert_to_tensor(table), ids)

    take = (lambda t, i: keras.ops.take(t, i, axis=0)) if is_safe else gather
    ids = keras.Input((3,), dtype="int32")
    h = layers.Flatten()(Table(take)(ids))
    model = tf_dpfp.make_private(keras.Model(ids, layers.Dense(2)(h)))
    model.compile(tf_dpfp.DPSGD(0.1, noise_multiplier=1.0), "mse")
    x = np.array([[0, 1, 2], [3, 4, 9], [5, 10, -9]])
    if is_safe:
        _fit(model, x, Y[:3])
    else:
        with pytest.raises(ValueError, match="out of range"):
            _fit(model, x, Y[:3])


class Masked(layers.Layer):
    """Takes a mask of positions beside the examples; of no rule's own."""

    def build(self, shape, mask_shape=None):
        self.query = self.add_weight(shape=(shape[-1], shape[-1]))

    def call(self, x, allowed):
        scores = keras.ops.matmul(
            keras.ops.matmul(x, self.query), keras.ops.transpose(x, (0, 2, 1))
        )
        scores = keras.ops.where(allowed, scores, -1e9)
        return keras.ops.matmul(keras.ops.softmax(scores), x)


class Causal(layers.Layer):
    """Lets each position see those before it."""

    def __init__(self):
        super().__init__()
        self.masked = Masked()

    def build(self, shape):
        self.masked.build(shape)

    def call(self, x):
        length = keras.ops.shape(x)[1]
        mask = keras.ops.tril(keras.ops.ones((length, length)))
        return self.masked(x, keras.ops.cast(mask, "bool"))


@pytest.mark.parametrize("way", ["graph", "unknown", "eager"])
def test_a_mask_of_as_many_positions_as_examples_is_the_same_for_all(way):
    x = RANDOM.normal(size=(4, 4, 2)).astype("float32")
    y = np.zeros((4, 2), "float32")
    model = keras.Sequential(
        [keras.Input((None, 2)), Causal(), layers.GlobalAveragePooling1D()]
    )
    losses = keras.losses.MeanSquaredError()
    variable = model.trainable_variables[0]
    want = 0.0
    for i in range(4):
        with tf.GradientTape() as tape:
            loss = losses(y[i : i + 1], model(x[i : i + 1]))
        want += np.asarray(tape.gradient(loss, variable.value))
    before = variable.numpy()
    tf_dpfp.make_private(model)
    optimizer = tf_dpfp.DPSGD(
        1.0, l2_norm_clip=1e6, noise_multiplier=0.0, expected_batch_size=1
    )
    model.compile(optimizer, "mse", run_eagerly=way == "eager")
    sizes = None if way == "unknown" else 4
    spec = tf.TensorSpec((sizes, sizes, 2)), tf.TensorSpec((sizes, 2))
    batches = tf.data.Dataset.from_generator(
        lambda: iter([(x, y)]), output_signature=spec
    )
    model.fit(batches, verbose=0)
    np.testing.assert_allclose(before - variable.numpy(), want, rtol=1e-3)


def _texts(**kwargs):
    words = layers.TextVectorization(vocabulary=list("abcdef"), **kwargs)
    texts = keras.Input((1,), dtype="string")
    h = layers.GlobalAveragePooling1D()(layers.Embedding(8, 2)(words(texts)))
    model = tf_dpfp.make_private(keras.Model(texts, layers.Dense(2)(h)))
    model.compile(tf_dpfp.DPSGD(0.1, noise_multiplier=1.0), "mse")
    return model


def test_texts_cut_at_a_fixed_length_are_proved():
    texts = tf.constant([["a b c d e f"], ["a"], [""], ["b b"]])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not proved")
        _fit(_texts(output_sequence_length=3), texts, Y[:4])


def test_texts_padded_to_the_longest_are_refused(monkeypatch):
    monkeypatch.setattr(gradient_trial, "check", lambda *_: None)
    texts = tf.constant([["a b c d e f"], ["a"]])
    with pytest.raises(ValueError, match="as long as the longest"):
        _fit(_texts(), texts, Y[:2])


def _branching(y_true, y_pred):
    ops = keras.ops
    return ops.cond(
        ops.all(y_true > 0.0),
        lambda: ops.mean(ops.square(y_true - y_pred), -1),
        lambda: ops.mean(ops.abs(y_true - y_pred), -1),
    )


# The script on captchas trains with `CTC`, which loops.
@pytest.mark.parametrize(
    ("loss", "labels"), [(_branching, Y), ("squared_hinge", np.sign(Y))]
)
def test_losses_that_branch_are_proved(loss, labels):
    model = _compiled(loss=loss)
    _fit(model, X, labels)
    assert [e.steps for e in tf_dpfp.ledger(model)] == [1]


def test_validate_lists_what_the_proof_finds():
    (problem,) = tf_dpfp.validate(_compiled(Calls(_route)), (X, Y))
    assert "Cumsum" in problem.reason
    assert tf_dpfp.validate(_compiled(), (X, Y)) == []
    specs = (tf.TensorSpec([None, 3]), tf.TensorSpec([None, 2]))
    assert tf_dpfp.validate(_compiled(), specs) == []
    batches = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
    assert tf_dpfp.validate(_compiled(), batches) == []


def test_a_name_like_that_of_a_loss_tracker_hides_no_statistic():
    total = tf.Variable(0.0)  # Of no layer, so that no trial sees it.

    class Keeps(keras.Model):
        def __init__(self):
            super().__init__(name="compile_loss")
            self.dense = keras.layers.Dense(2)

        def call(self, x):
            total.assign(tf.reduce_sum(x))
            return self.dense(x)

    model = tf_dpfp.make_private(Keeps())
    model.compile(tf_dpfp.DPSGD(0.1, noise_multiplier=1.0), "mse")
    with pytest.raises(ValueError, match="AssignVariableOp"):
        model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
