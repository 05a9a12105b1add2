import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import tf_dpfp
from tf_dpfp import layers as private_layers

X = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
Y = X.sum(axis=1, keepdims=True)


def _sequential(*middle):
    return keras.Sequential([keras.Input((4,)), *middle, layers.Dense(1)])


def _kinds(model):
    """Names of the classes of all layers, at any depth."""
    return {
        type(layer).__name__ for layer in model._flatten_layers(recursive=True)
    }


def _assert_trains(model, x, y):
    """The fixed model passes the trial and the proof, and takes a step."""
    assert "BatchNormalization" not in _kinds(model)
    assert tf_dpfp.validate(model) == []
    tf_dpfp.make_private(model)
    model.compile(tf_dpfp.DPSGD(0.1, noise_multiplier=1.0), loss="mse")
    model.fit(x, y, batch_size=len(y), verbose=0)
    assert [entry.steps for entry in tf_dpfp.ledger(model)] == [1]


def test_only_what_must_be_replaced_is():
    model = _sequential(
        layers.Dense(6, name="first"), layers.BatchNormalization(name="bn")
    )
    model.layers[0].trainable = False
    before = {layer.name: layer for layer in model.layers}
    weights = model.get_layer("first").get_weights()
    assert tf_dpfp.fix(model) is model
    assert {layer.name: layer for layer in model.layers} == before
    assert type(before["bn"]) is layers.LayerNormalization
    np.testing.assert_array_equal(
        model.get_layer("first").get_weights()[0], weights[0]
    )
    assert not model.get_layer("first").trainable
    assert [v.path.split("/")[-2:] for v in before["bn"].variables] == [
        ["bn", "gamma"],
        ["bn", "beta"],
    ]
    tf_dpfp.make_private(model)


def test_the_table_says_what_was_replaced():
    model = keras.Sequential(
        [
            keras.Input((4, 4, 3)),
            layers.Conv2D(16, 1, name="conv"),
            layers.BatchNormalization(name="first"),
            layers.Flatten(),
            layers.BatchNormalization(name="second"),
        ],
        name="net",
    )
    tables = []
    tf_dpfp.fix(model, print_fn=tables.append)
    lines = [line.split() for line in tables[0].splitlines()[2:]]
    assert lines == [
        ["net/first", "BatchNormalization", "GroupNormalization(groups=2)"],
        ["net/second", "BatchNormalization", "LayerNormalization"],
    ]
    tf_dpfp.fix(model, print_fn=tables.append)
    assert "nothing to replace" in tables[1]


def test_a_model_of_vectors_stays_alive(seeded):
    """Normalised in groups of one, every example would look the same."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 8)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] > 0).astype(np.int32)
    model = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(32),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Dense(2),
        ]
    )
    tf_dpfp.fix(model)
    assert np.ptp(model.predict(x, verbose=0), axis=0).min() > 0.5
    model.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(x, y, epochs=10, verbose=0)
    assert model.evaluate(x, y, verbose=0)[1] > 0.95


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(1, 1), (4, 1), (8, 1), (16, 2), (24, 3), (30, 3), (64, 8), (512, 32)],
)
def test_eight_channels_are_left_to_a_group(channels, groups):
    model = keras.Sequential(
        [keras.Input((4, 4, channels)), layers.BatchNormalization(name="bn")]
    )
    found = tf_dpfp.fix(model).get_layer("bn")
    assert isinstance(found, layers.GroupNormalization)
    assert found.groups == groups


@pytest.mark.parametrize("channels", [1, 2])
def test_what_would_have_nothing_left_is_refused(channels):
    model = keras.Sequential(
        [
            keras.Input((channels,)),
            layers.BatchNormalization(name="bn"),
            layers.Dense(4),
            layers.BatchNormalization(name="wide"),
        ]
    )
    narrow, wide = tf_dpfp.validate(model)
    assert (narrow.fixable, wide.fixable) == (False, True)
    with pytest.raises(ValueError, match="nothing would be left") as error:
        tf_dpfp.fix(model)
    assert "wide" not in str(error.value)
    # Nothing was replaced before it was refused.
    assert type(model.get_layer("wide")) is layers.BatchNormalization


def test_what_can_not_be_replaced_is_named():
    with pytest.raises(ValueError, match="writes to its weights"):
        tf_dpfp.fix(_sequential(layers.SpectralNormalization(layers.Dense(3))))
    with pytest.raises(TypeError, match="keras.Model. Received"):
        tf_dpfp.fix(layers.BatchNormalization())
    with pytest.raises(ValueError, match="keep_statistics"):
        tf_dpfp.fix(_sequential(), keep_statistics="yes")
    unbuilt = keras.Sequential([layers.BatchNormalization()])
    assert not tf_dpfp.validate(unbuilt)[0].fixable
    name = unbuilt.layers[0].name  # It has no path yet.
    with pytest.raises(ValueError, match=f"- {name}: .*once the model is bui"):
        tf_dpfp.fix(unbuilt)
    unbuilt(X)
    assert _kinds(tf_dpfp.fix(unbuilt)) >= {"LayerNormalization"}


class Block(layers.Layer):
    """Holds layers in every way that Keras tracks; has no config."""

    def __init__(self):
        super().__init__()
        self.conv = layers.Conv1D(4, 1)
        self.norm = layers.BatchNormalization()
        self.listed = [layers.BatchNormalization(), layers.Dense(4)]
        self.named = {"a": (layers.BatchNormalization(),)}
        self.nested = keras.Sequential(
            [layers.Dense(4), layers.BatchNormalization()]
        )

    def call(self, x, training=None):
        x = self.norm(self.conv(x), training=training)
        for layer in self.listed:
            x = layer(x)
        return self.nested(self.named["a"][0](x))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.block, self.out = Block(), layers.Dense(1)

    def call(self, x, training=None):
        return self.out(self.block(x, training=training))


@pytest.mark.parametrize("functional", [True, False])
def test_layers_within_layers_are_reached(functional):
    if functional:
        model = keras.Sequential(
            [keras.Input((5, 3)), Block(), layers.Dense(1)]
        )
        block = model.layers[0]
    else:
        model = Subclassed()
        block = model.block
    x = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32)
    model(x)
    kernel = block.conv.kernel
    tf_dpfp.fix(model)
    assert block.conv.kernel is kernel
    assert isinstance(block.named["a"][0], layers.GroupNormalization)
    assert "BatchNormalization" not in _kinds(model)
    if functional:
        _assert_trains(model, x, np.zeros((4, 5, 1)))


def _distance(pair):
    return ops.sum(ops.square(pair[0] - pair[1]), axis=1, keepdims=True)


def test_a_submodel_that_is_called_twice_is_replaced_once():
    a, b = keras.Input((4,)), keras.Input((4,))
    net = keras.Sequential([layers.Dense(4), layers.BatchNormalization()])
    model = keras.Model([a, b], layers.Lambda(_distance)([net(a), net(b)]))
    tables = []
    tf_dpfp.fix(model, print_fn=tables.append)
    assert len(tables[0].splitlines()) == 3
    _assert_trains(model, [X, X[::-1]], Y)


def test_a_functional_model_goes_on_through_the_new_layer():
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3)(inputs)
    x = layers.BatchNormalization(name="bn")(x, training=True)
    x = layers.Add()([x, layers.Conv2D(4, 3)(inputs)])
    model = keras.Model(inputs, layers.Dense(2)(x))
    images = np.random.default_rng(0).normal(size=(2, 6, 6, 2))
    within = keras.Model(model.input, model.get_layer("bn").output)
    kernel, bias = model.layers[1].get_weights()
    tf_dpfp.fix(model)
    # Its output, and whatever was made of it, is that of the new layer.
    again = keras.Model(model.input, model.get_layer("bn").output)
    convolved = model.layers[1](images)
    expected = layers.GroupNormalization(1)(convolved)
    for through in (within, again):
        np.testing.assert_allclose(through(images), expected, atol=1e-5)
    rebuilt = keras.Model.from_config(model.get_config())
    rebuilt.set_weights(model.get_weights())
    np.testing.assert_allclose(rebuilt(images), model(images), atol=1e-6)


def test_masks_go_past_the_new_layer():
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(7, 4, mask_zero=True)(inputs)
    x = layers.BatchNormalization()(x)
    model = keras.Model(inputs, layers.LSTM(2)(x))
    ids = np.array([[1, 2, 0, 0, 0]])
    tf_dpfp.fix(model)
    x = model.layers[-2](model.layers[1](ids))
    np.testing.assert_allclose(
        model(ids), model.layers[-1](x, mask=ids != 0), rtol=1e-6
    )


def test_a_fixed_model_comes_back_from_a_file(tmp_path):
    model = _sequential(layers.Dense(6), layers.BatchNormalization())
    model.layers[1].set_weights(_statistics(6))
    tf_dpfp.fix(model, keep_statistics=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(X), model(X), rtol=1e-6)
    assert "FrozenAffine" in _kinds(loaded)


def test_a_compiled_model_must_be_compiled_anew():
    model = _sequential(layers.Dense(6), layers.BatchNormalization())
    model.compile("sgd", "mse")
    model.fit(X, Y, verbose=0)
    tf_dpfp.fix(model)
    with pytest.raises(ValueError, match="compile"):
        model.fit(X, Y, verbose=0)
    # That it was trained is remembered.
    with pytest.warns(UserWarning, match="took 1 ordinary steps"):
        tf_dpfp.make_private(model)


@pytest.mark.usefixtures("without_trial")
def test_the_ledger_of_a_private_model_is_kept():
    model = _sequential(layers.Dense(6), layers.BatchNormalization())
    model.layers[1].trainable = False
    tf_dpfp.make_private(model)
    for steps in (1, 2):
        model.compile(tf_dpfp.DPSGD(0.1, noise_multiplier=1.0), loss="mse")
        model.fit(X, Y, verbose=0)
        assert [entry.steps for entry in tf_dpfp.ledger(model)] == [steps]
        model.layers[1].trainable = True
        tf_dpfp.fix(model)
        assert [entry.steps for entry in tf_dpfp.ledger(model)] == [steps]


def _statistics(channels):
    """Gamma, beta, mean and variance, as a training may leave them."""
    rng = np.random.default_rng(0)
    return [
        rng.normal(size=channels),
        rng.normal(size=channels),
        rng.normal(scale=3.0, size=channels),
        rng.gamma(1.0, size=channels),
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"axis": 1, "epsilon": 0.1},
        {"center": False},
        {"scale": False},
        {"dtype": "mixed_bfloat16"},
    ],
)
def test_kept_statistics_give_the_inference_of_the_original(arguments):
    model = keras.Sequential(
        [
            keras.Input((3, 3, 3)),
            layers.BatchNormalization(name="bn", **arguments),
        ]
    )
    bn = model.get_layer("bn")
    left_out = {"center": 1, "scale": 0}
    values = _statistics(3)
    for name, index in left_out.items():
        if not arguments.get(name, True):
            del values[index]
    bn.set_weights(values)
    x = np.random.default_rng(1).normal(size=(4, 3, 3, 3)).astype(np.float32)
    expected = np.asarray(model(x), np.float32)
    tf_dpfp.fix(model, keep_statistics=True)
    assert isinstance(bn, private_layers.FrozenAffine)
    tolerance = 1e-2 if "dtype" in arguments else 1e-5
    for training in (False, True):
        found = np.asarray(model(x, training=training), np.float32)
        np.testing.assert_allclose(found, expected, tolerance, tolerance)


def test_kept_statistics_are_frozen_for_good():
    model = _sequential(layers.Dense(6), layers.BatchNormalization())
    model.layers[1].set_weights(_statistics(6))
    tf_dpfp.fix(model, keep_statistics=True)
    model.trainable = True
    assert model.layers[1].trainable_variables == []
    before = model.layers[1].get_weights()
    _assert_trains(model, X, Y)
    for value, other in zip(before, model.layers[1].get_weights(), strict=True):
        np.testing.assert_array_equal(value, other)


def test_a_new_layer_has_no_statistics_to_keep():
    model = _sequential(
        layers.BatchNormalization(name="trained"),
        layers.Dense(6),
        layers.BatchNormalization(name="new"),
    )
    model.layers[0].set_weights(_statistics(4))
    tf_dpfp.fix(model, keep_statistics=True)
    assert isinstance(model.layers[0], private_layers.FrozenAffine)
    assert isinstance(model.layers[2], layers.LayerNormalization)


def test_narrow_vectors_can_keep_their_statistics():
    model = keras.Sequential([keras.Input((1,)), layers.BatchNormalization()])
    model.layers[0].set_weights(_statistics(1))
    tf_dpfp.fix(model, keep_statistics=True)
    assert isinstance(model.layers[0], private_layers.FrozenAffine)
