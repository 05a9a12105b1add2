"""Masks of random layers in private steps: fresh, and known to nobody."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tf_dpfp import representations

pytestmark = pytest.mark.usefixtures("without_trial")

# Example `i` has ones at places of its own: the gradient of the kernel shows
# its mask there.
PLACES, EXAMPLES = 24, 4
X = np.kron(np.eye(EXAMPLES), np.ones(PLACES)).astype(np.float32)
X = X.reshape(EXAMPLES, EXAMPLES, PLACES)
# One mask for each example, the same wherever its ones are.
NOISE_SHAPE = (None, 1, PLACES)
Y = np.full((EXAMPLES, 1), 1e4, np.float32)


def _compiled(random_layer=None, seed=None, microbatch_size=None, **kwargs):
    # As most scripts begin.
    keras.utils.set_random_seed(0)
    inputs = keras.Input((EXAMPLES, PLACES))
    dropped = (random_layer or layers.Dropout(0.5, NOISE_SHAPE, seed=7))(inputs)
    outputs = layers.Dense(1, use_bias=False, name="head")(
        layers.Flatten()(dropped)
    )
    model = tf_dpfp.make_private(keras.Model(inputs, outputs))
    optimizer = tf_dpfp.DPSGD(
        1.0,
        l2_norm_clip=1e8,
        noise_multiplier=0.0,
        expected_batch_size=1,
        microbatch_size=microbatch_size,
        seed=seed,
    )
    kwargs.setdefault("jit_compile", False)
    model.compile(optimizer, "mse", **kwargs)
    return model


def _masks_of(change):
    """Returns a row of booleans for each example."""
    return np.reshape(np.abs(change) > 1.0, (EXAMPLES, PLACES))


def _updates(model, step, steps=2):
    """Returns the masks of several steps, and checks that states stay."""
    kernel = model.get_layer("head").kernel
    states = [v for v in model.variables if v.name == "seed_generator_state"]
    before = [v.numpy() for v in states]
    found = []
    for _ in range(steps):
        kernel.assign(tf.zeros_like(kernel))
        step(model)
        found.append(_masks_of(kernel.numpy()))
    for state, value in zip(states, before, strict=True):
        np.testing.assert_array_equal(state.numpy(), value)
    return found


def _fit(model):
    model.fit(X, Y, batch_size=EXAMPLES, shuffle=False, verbose=0)


def _train_on_batch(model):
    model.train_on_batch(X, Y)


def _loop(model):
    model.optimizer.apply(tf_dpfp.loops.clipped_gradients(model, X, Y))


def _compiled_loop(**kwargs):
    functions = {}

    def step(model):
        if model not in functions:
            functions[model] = tf.function(lambda: _loop(model), **kwargs)
        functions[model]()

    return step


WAYS = {
    "fit": (_fit, {}),
    "fit, pieces": (_fit, {"microbatch_size": 2}),
    "eager": (_train_on_batch, {"run_eagerly": True}),
    "train_on_batch": (_train_on_batch, {}),
    "XLA, pieces": (
        _train_on_batch,
        {"jit_compile": True, "microbatch_size": 2},
    ),
    "loop": (_loop, {}),
    "compiled loop": (_compiled_loop(), {}),
    "compiled loop, XLA": (_compiled_loop(jit_compile=True), {}),
}


@pytest.mark.parametrize("way", WAYS)
def test_no_mask_repeats_in_a_step_in_the_next_one_or_in_the_next_run(way):
    step, settings = WAYS[way]
    masks = [m for _ in range(2) for m in _updates(_compiled(**settings), step)]
    rows = np.concatenate(masks)
    assert 0.25 < np.mean(rows) < 0.75
    # 2 x 2 steps of 4 examples: 120 pairs, equal by chance once in 1e5 trials.
    assert len({row.tobytes() for row in rows}) == len(rows)


@pytest.mark.parametrize("pieces", [None, 2])
def test_the_seed_of_the_noise_repeats_masks_and_is_told(pieces):
    def run(seed):
        model = _compiled(seed=seed, microbatch_size=pieces)
        return model, np.concatenate(_updates(model, _fit))

    model, masks = run(3)
    assert all(entry.seeded for entry in tf_dpfp.ledger(model))
    np.testing.assert_array_equal(masks, run(3)[1])
    assert np.any(masks != run(4)[1])
    assert len({row.tobytes() for row in masks}) == len(masks)


def test_a_resumed_run_with_a_seed_has_the_masks_of_one_that_went_on(tmp_path):
    whole = _updates(_compiled(seed=3), _fit, steps=3)
    model = _compiled(seed=3)
    _updates(model, _fit, steps=2)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    tf_dpfp.make_private(loaded)
    np.testing.assert_array_equal(_updates(loaded, _fit, 1)[0], whole[2])


def test_no_file_tells_the_masks(tmp_path):
    model = _compiled()
    model.save(tmp_path / "before.keras")
    (masks,) = _updates(model, _fit, 1)
    for restored in range(2):
        again = keras.models.load_model(tmp_path / "before.keras")
        tf_dpfp.make_private(again)
        if restored:
            again.set_weights(model.get_weights())
        assert np.any(_updates(again, _fit, 1)[0] != masks)


class _Calls(layers.Layer):
    """Calls a function, in training."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.generator = keras.random.SeedGenerator(1)

    def call(self, inputs, training=False):
        return self.function(self, inputs) if training else inputs


def _by_own_generator(layer, x):
    return keras.random.dropout(x, 0.5, NOISE_SHAPE, seed=layer.generator)


def _by_no_seed(layer, x):  # noqa: ARG001
    return keras.random.dropout(x, 0.5, NOISE_SHAPE)


def _by_a_number(layer, x):  # noqa: ARG001
    return keras.random.dropout(x, 0.5, NOISE_SHAPE, seed=1)


def _by_the_state(layer, x):
    seed = tf.cast(layer.generator.state.value, tf.int32)
    return x * tf.random.stateless_normal(tf.shape(x), seed)


def _by_tensorflow(layer, x):  # noqa: ARG001
    return x * tf.random.normal(tf.shape(x))


def _by_one_mask_for_all(layer, x):  # noqa: ARG001
    return x * keras.random.normal((1, 1, PLACES), seed=1)


@pytest.mark.parametrize("draw", [_by_own_generator, _by_no_seed])
def test_layers_of_ones_own_draw_secret_masks(draw):
    runs = [_updates(_compiled(_Calls(draw)), _train_on_batch) for _ in "ab"]
    rows = np.concatenate([m for masks in runs for m in masks])
    assert len({row.tobytes() for row in rows}) == len(rows)


# `set_random_seed` fixes the seeds of TensorFlow's own generators, too.
@pytest.mark.parametrize("draw", [_by_a_number, _by_the_state, _by_tensorflow])
@pytest.mark.parametrize("eager", [True, False])
def test_masks_that_can_be_known_are_refused(draw, eager):
    model = _compiled(_Calls(draw), run_eagerly=eager)
    with pytest.raises(ValueError, match="from a seed that can be known"):
        _train_on_batch(model)
    assert tf_dpfp.ledger(model) == []


def test_what_xla_draws_without_a_seed_is_refused():
    model = _compiled(_Calls(_by_tensorflow), jit_compile=True)
    tf.random.set_seed(None)
    with pytest.raises(ValueError, match="from a seed that can be known"):
        _train_on_batch(model)


def test_what_is_random_and_safe_trains():
    model = _compiled(_Calls(_by_one_mask_for_all))
    _train_on_batch(model)
    model = _compiled(_Calls(_by_tensorflow))
    tf.random.set_seed(None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _train_on_batch(model)


def test_the_generic_rule_gives_every_example_a_secret_seed():
    class Scaled(layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=shape[1:], initializer="ones")
            self.dropout = layers.Dropout(0.5, NOISE_SHAPE, seed=1)

        def call(self, inputs, training=False):
            return self.dropout(inputs * self.scale, training=training)

    with warnings.catch_warnings():
        # That what is vectorised is not proved.
        warnings.simplefilter("ignore")
        runs = [_updates(_compiled(Scaled()), _train_on_batch) for _ in "ab"]
    rows = np.concatenate([m for masks in runs for m in masks])
    assert len({row.tobytes() for row in rows}) == len(rows)


@pytest.mark.parametrize("way", ["fit", "loop"])
def test_noised_representations_have_secret_masks_below(way):
    def released():
        keras.utils.set_random_seed(0)
        encoder = layers.Dropout(0.5, NOISE_SHAPE, seed=7)
        clip = tf_dpfp.DPRepresentationClip(1e8, 0.0, labels="public")
        head = layers.Dense(1, use_bias=False, kernel_initializer="zeros")
        model = keras.Sequential(
            [
                keras.Input((EXAMPLES, PLACES)),
                encoder,
                layers.Flatten(),
                clip,
                head,
            ]
        )
        tf_dpfp.make_private(model)
        batches = representations.stratified_batches(
            X,
            np.zeros(EXAMPLES, np.int32),
            draw_size=EXAMPLES,
            labels="public",
            map_fn=lambda x, y: (x, tf.fill([EXAMPLES, 1], 1e4)),  # noqa: ARG005
        )
        model.compile("sgd", "mse", jit_compile=False)
        state = encoder.seed_generator.state.numpy()
        if way == "fit":
            model.fit(batches, verbose=0)
        else:
            with tf_dpfp.loops.sampled_steps(model, batches):
                for x, _ in batches:
                    model(x, training=True)
                    released = clip(layers.Flatten()(encoder(x, training=True)))
                    head.kernel.assign(tf.reduce_sum(released, 0)[:, None])
        np.testing.assert_array_equal(
            encoder.seed_generator.state.numpy(), state
        )
        return _masks_of(head.kernel.numpy() * 2)

    rows = np.concatenate([released(), released()])
    assert len({row.tobytes() for row in rows}) == len(rows)
