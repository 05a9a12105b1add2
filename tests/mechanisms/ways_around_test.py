"""Ways around the ledger: each is refused, or its steps are counted."""

import copy
import types
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tests import helpers

X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
Y = X.sum(axis=1, keepdims=True)
DELTA = 1e-3
NotPrivate = tf_dpfp.errors.NotPrivateError


def _optimizer(**kwargs):
    return tf_dpfp.DPSGD(
        0.01, noise_multiplier=1.0, expected_batch_size=8, **kwargs
    )


def _data():
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)


def _steps(model):
    return sum(e.steps for e in tf_dpfp.ledger(model))


@pytest.fixture
def model(monkeypatch):
    from tf_dpfp.independence import gradients as trial_lib

    monkeypatch.setattr(trial_lib, "check", lambda *_: None)
    made = helpers.private_line(_optimizer(), run_eagerly=True)
    made.optimizer.build(made.trainable_variables)
    return made


def _ordinary_step(self, data):
    """What a training step of one's own does."""
    x, y = data
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(self(x, training=True) - y))
    gradients = tape.gradient(loss, [v.value for v in self.trainable_variables])
    self.optimizer.apply(gradients, self.trainable_variables)
    return {"loss": loss}


def _replaced_step(model):
    model.train_step = types.MethodType(_ordinary_step, model)
    model.train_function = None
    model.fit(X, Y, batch_size=8, verbose=0)


def _deleted(name, call):
    def run(model):
        delattr(model, name)
        call(model)

    return run


def _compiled_past(optimizer, fit):
    def run(model):
        keras.Model.compile(model, optimizer(), "mse", run_eagerly=True)
        fit(model)

    return run


def _fit(model):
    model.fit(X, Y, batch_size=8, verbose=0)


def _fit_past(model):
    keras.Model.fit(model, X, Y, batch_size=8, verbose=0)


def _gradients(model):
    return [tf.ones(v.shape) for v in model.trainable_variables]


def _of_another(model):
    other = helpers.private_line(_optimizer(), run_eagerly=True)
    model.optimizer.apply(tf_dpfp.loops.clipped_gradients(other, X, Y))


def _set(name, value):
    return lambda model: setattr(model.optimizer, name, value)


REFUSED = {
    "a step of one's own": (_replaced_step, NotPrivate),
    "the step deleted": (_deleted("train_step", _fit), NotPrivate),
    "the mark deleted": (_deleted("_tf_dpfp_state", _fit), NotPrivate),
    "both deleted": (
        lambda m: (
            _deleted("_tf_dpfp_state", lambda _: None)(m),
            _deleted("train_step", _fit_past)(m),
        ),
        NotPrivate,
    ),
    "Keras's compile, ordinary": (
        _compiled_past(lambda: "sgd", _fit),
        NotPrivate,
    ),
    "Keras's compile and fit": (
        _compiled_past(lambda: "sgd", _fit_past),
        NotPrivate,
    ),
    "Keras's compile, private": (_compiled_past(_optimizer, _fit), NotPrivate),
    "Keras's step": (
        lambda m: keras.Model.train_step(m, (X, Y)),
        NotPrivate,
    ),
    "no optimizer": (
        lambda m: (setattr(m, "optimizer", None), _fit(m)),
        NotPrivate,
    ),
    "ordinary gradients": (
        lambda m: m.optimizer.apply(_gradients(m), m.trainable_variables),
        NotPrivate,
    ),
    "ordinary gradients in pairs": (
        lambda m: m.optimizer.apply_gradients(
            zip(_gradients(m), m.trainable_variables, strict=True)
        ),
        NotPrivate,
    ),
    "stateless": (
        lambda m: m.optimizer.stateless_apply(
            [v.value for v in m.optimizer.variables],
            _gradients(m),
            [v.value for v in m.trainable_variables],
        ),
        (NotPrivate, ValueError),
    ),
    "another model's sums": (_of_another, NotPrivate),
    "compile(ordinary)": (lambda m: m.compile("sgd", "mse"), NotPrivate),
    "loss scaling": (
        lambda m: m.compile(
            keras.optimizers.LossScaleOptimizer(_optimizer()), "mse"
        ),
        NotPrivate,
    ),
    "a multiplier": (_set("noise_multiplier", 9.0), AttributeError),
    "a clip norm": (_set("l2_norm_clip", 9.0), AttributeError),
    "a clipping": (_set("clipping", "per_layer"), AttributeError),
    "a seed": (_set("seed", 3), AttributeError),
    "an expected batch size": (_set("expected_batch_size", 99), AttributeError),
    "a ledger": (_set("ledger", None), AttributeError),
    "entries": (_set("ledger_entries", []), AttributeError),
}


@pytest.mark.parametrize("way", REFUSED)
def test_a_way_is_refused_and_nothing_moves(model, way):
    run, error = REFUSED[way]
    weights, optimizer = model.get_weights(), model.optimizer
    with pytest.raises(error):
        run(model)
    for before, now in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, now)
    assert optimizer.ledger_entries == []


def _with_zeros(model):
    model.optimizer.set_weights([np.zeros(v.shape) for v in _variables(model)])


def _variables(model):
    return model.optimizer.variables


def _assigned(model):
    for variable in _variables(model):
        variable.assign(tf.zeros(variable.shape, variable.dtype))


def _assigned_by_function(model):
    tf.function(_assigned, autograph=False)(model)


def _assigned_past_keras(model):
    for variable in _variables(model):
        variable.value.assign(tf.zeros(variable.shape, variable.dtype))


def _built_again(model):
    model.optimizer.build(model.trainable_variables)
    model.build((None, 3))


def _state_tree(model):
    tree = model.get_state_tree()
    zeros = keras.tree.map_structure(np.zeros_like, tree)
    model.set_state_tree(zeros)


def _failed_compile(model):
    with pytest.raises(ValueError):
        model.compile(_optimizer(), "mse", metrics="mae")


FORGETTING = {
    "set_weights": _with_zeros,
    "assign": _assigned,
    "assign in a function": _assigned_by_function,
    "assign past Keras": _assigned_past_keras,
    "iterations": lambda m: m.optimizer.iterations.assign(0),
    "load_own_variables": lambda m: m.optimizer.load_own_variables(
        {str(i): np.zeros(v.shape) for i, v in enumerate(_variables(m))}
    ),
    "build twice": _built_again,
    "a tree of state": _state_tree,
    "a compile that fails": _failed_compile,
    "compile(from_config)": lambda m: m.compile(
        type(m.optimizer).from_config(m.optimizer.get_config()),
        "mse",
        run_eagerly=True,
    ),
    "compile(the same)": lambda m: m.compile(m.optimizer, "mse"),
    "compile(copy)": lambda m: m.compile(copy.copy(m.optimizer), "mse"),
    "loss": lambda m: setattr(m, "loss", "mae"),
    "no step function": lambda m: setattr(m, "train_function", None),
}


@pytest.mark.parametrize("way", FORGETTING)
def test_nothing_makes_it_forget(model, way):
    model.train_on_batch(X, Y)
    FORGETTING[way](model)
    assert _steps(model) >= 1
    model.train_on_batch(X, Y)
    counted = _steps(model)
    # A copy brings what it knows; it may be counted twice.
    assert counted == 2 or (way == "compile(copy)" and counted == 3)


def _by_function(model):
    model.make_train_function()(iter(_data()))


def _by_keras_function(model):
    keras.Model.make_train_function(model, force=True)
    model.train_function(iter(_data()))


def _function_exchanged(model):
    made = types.MethodType(keras.Model.make_train_function, model)
    model.make_train_function = made
    model.train_function = None
    x, y = np.concatenate([X, X]), np.concatenate([Y, Y])
    drawn = tf_dpfp.poisson_batches(
        x, y, expected_batch_size=8, steps_per_epoch=1
    )
    model.fit(drawn, verbose=0)


COUNTED = {
    "make_train_function": _by_function,
    "Keras's make_train_function": _by_keras_function,
    "another make_train_function": _function_exchanged,
    "train_step": lambda m: m.train_step((X, Y)),
    "Keras's fit": _fit_past,
    "Keras's train_on_batch": lambda m: keras.Model.train_on_batch(m, X, Y),
    "apply_gradients": lambda m: m.optimizer.apply_gradients(
        tf_dpfp.loops.clipped_gradients(m, X, Y)
    ),
}


@pytest.mark.parametrize("way", COUNTED)
def test_a_way_claims_nothing_and_is_counted(model, way):
    model.train_on_batch(X, Y)
    COUNTED[way](model)
    (entry,) = tf_dpfp.ledger(model)
    assert entry.steps == 2
    assert isinstance(entry.sampling, tf_dpfp.accounting.UnknownSampling)


def test_a_clone_is_ordinary_until_it_is_made_private(model):
    model.train_on_batch(X, Y)
    clone = keras.models.clone_model(model)
    clone.compile(model.optimizer, "mse", run_eagerly=True)
    with pytest.raises(NotPrivate):
        clone.fit(X, Y, verbose=0)
    with pytest.raises(ValueError, match="another model"):
        tf_dpfp.make_private(clone)


def test_an_ordinary_training_of_a_part_is_told(model):
    inner = keras.Sequential([keras.Input((3,)), layers.Dense(3)])
    outer = keras.Sequential([keras.Input((3,)), inner, layers.Dense(1)])
    tf_dpfp.make_private(outer)
    outer.compile(_optimizer(), "mse", run_eagerly=True)
    outer.train_on_batch(X, Y)
    assert "TRAINED APART" not in tf_dpfp.privacy_statement(outer, DELTA)
    inner.compile("sgd", "mse", run_eagerly=True)
    inner.train_on_batch(X, X)
    statement = " ".join(tf_dpfp.privacy_statement(outer, DELTA).split())
    assert "TRAINED APART" in statement
    assert "models inside of it took 1 steps" in statement


def test_a_private_model_inside_of_another_is_told_of_at_once(model):
    nested = [keras.Input((3,)), model, layers.Dense(1)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tf_dpfp.make_private(keras.Sequential(nested))
    model.train_on_batch(X, Y)
    with pytest.warns(UserWarning, match="which its own ledger counts"):
        tf_dpfp.make_private(keras.Sequential(nested))


def test_private_models_that_share_weights_tell_of_each_other(model):
    model.train_on_batch(X, Y)
    other = keras.Sequential([keras.Input((3,)), *model.layers])
    with pytest.warns(UserWarning, match="took 1 steps.* epsilons add up"):
        tf_dpfp.make_private(other)
    other.compile(_optimizer(), "mse", run_eagerly=True)
    other.train_on_batch(X, Y)
    for one, two in (model, other), (other, model):
        statement = " ".join(tf_dpfp.privacy_statement(one, DELTA).split())
        assert f"'{two.name}', with which it shares weights" in statement
    apart = helpers.private_line(_optimizer(), run_eagerly=True)
    apart.train_on_batch(X, Y)
    assert "TRAINED APART" not in tf_dpfp.privacy_statement(apart, DELTA)


def test_a_private_model_is_told_of_that_is_frozen_inside_of_another(model):
    model.train_on_batch(X, Y)
    model.trainable = False
    nested = keras.Sequential([keras.Input((3,)), model, layers.Dense(1)])
    with pytest.warns(UserWarning, match="took 1 steps"):
        tf_dpfp.make_private(nested)
    # Weights that were frozen from the first were trained by nobody.
    encoder = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    encoder.trainable = False
    heads = []
    for _ in range(2):
        added = keras.Sequential([keras.Input((3,)), encoder, layers.Dense(1)])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tf_dpfp.make_private(added)
        added.compile(_optimizer(), "mse", run_eagerly=True)
        added.train_on_batch(X, Y)
        heads.append(added)
    for head in heads:
        statement = tf_dpfp.privacy_statement(head, DELTA)
        assert "TRAINED APART" not in statement


@pytest.fixture
def noised():
    clip = tf_dpfp.DPRepresentationClip(1.0, 2.0, labels="public")
    made = keras.Sequential([keras.Input((3,)), clip, layers.Dense(1)])
    tf_dpfp.make_private(made)
    made.compile("sgd", "mse", run_eagerly=True)
    return made, clip


@pytest.mark.parametrize(
    "name", ["release", "ledger", "ledger_entries", "clip_norm", "end_to_end"]
)
def test_a_built_layer_takes_no_settings(noised, name):
    _, clip = noised
    with pytest.raises(AttributeError):
        setattr(clip, name, 0.0)


def test_a_layer_that_is_built_again_forgets_nothing(noised):
    model, clip = noised
    model.train_on_batch(X, Y)
    clip.build((None, 3))
    model.train_on_batch(X, Y)
    assert _steps(model) == 2 and len(clip.weights) == 1


@pytest.mark.parametrize("past_keras", [False, True])
def test_a_layer_forgets_nothing_that_a_function_writes(noised, past_keras):
    model, clip = noised
    model.train_on_batch(X, Y)
    (table,) = clip.weights

    @tf.function(autograph=False)
    def write(value):
        (table.value if past_keras else table).assign(value)

    write(tf.zeros(table.shape, tf.float64))
    assert _steps(model) == 1
    # What it lacks is taken over, as from a file.
    more = table.numpy()
    more[more[:, -1] > 0.0, -1] += 2.0
    write(tf.constant(more))
    assert _steps(model) == 3
    other = tf_dpfp.DPRepresentationClip(1.0, 2.0, labels="public")
    other(X)
    write_to = tf.function(other.weights[0].assign, autograph=False)
    write_to(tf.constant(more))
    assert other.ledger_entries == clip.ledger_entries


@pytest.mark.parametrize("way", ["deleted", "replaced", "Keras's", "inference"])
def test_steps_of_a_layers_model_are_counted_or_objected_to(noised, way):
    model, _ = noised
    model.train_on_batch(X, Y)
    if way == "deleted":
        del model.train_step
        model.fit(X, Y, batch_size=8, verbose=0)
    elif way == "replaced":
        model.train_step = types.MethodType(_ordinary_step, model)
        model.train_function = None
        model.fit(X, Y, batch_size=8, verbose=0)
    elif way == "Keras's":
        keras.Model.train_step(model, (X, Y))
    else:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(X) - Y))
        variables = model.trainable_variables
        gradients = tape.gradient(loss, [v.value for v in variables])
        model.optimizer.apply(gradients, variables)
    if way == "inference":
        assert tf_dpfp.compute_epsilon(model, DELTA) == np.inf
    else:
        assert _steps(model) == 2
        assert tf_dpfp.compute_epsilon(model, DELTA) < np.inf
