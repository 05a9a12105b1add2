import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tf_dpfp import low_rank
from tf_dpfp import per_example

CASES = {
    "dense": (
        tf_dpfp.RGPDense,
        layers.Dense,
        dict(units=7, activation="tanh"),
        (6,),
    ),
}


def _model(layer, shape):
    return keras.Sequential(
        [keras.Input(shape), layer, layers.Flatten(), layers.Dense(2)]
    )


def _data(shape):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, *shape)).astype(np.float32)
    return x, rng.normal(size=(8, 2)).astype(np.float32)


@pytest.mark.parametrize("name", CASES)
def test_without_privacy_it_is_the_ordinary_layer(name, tmp_path):
    mine, base, arguments, shape = CASES[name]
    x, y = _data(shape)
    models = []
    for make, settings in ((mine, {"rank": 2}), (base, {})):
        keras.utils.set_random_seed(3)
        model = _model(make(**settings, **arguments), shape)
        model.compile("sgd", "mse")
        model.train_on_batch(x, y)
        models.append(model)
    for a, b in zip(*(m.get_weights() for m in models), strict=True):
        np.testing.assert_array_equal(a, b)
    # Files of weights fit both.
    for here, there in (models, reversed(models)):
        path = tmp_path / f"{type(here.layers[0]).__qualname__}.weights.h5"
        here.train_on_batch(x, y)
        here.save_weights(path)
        there.load_weights(path)
        np.testing.assert_array_equal(
            here.predict(x, verbose=0), there.predict(x, verbose=0)
        )


@pytest.mark.parametrize("name", CASES)
def test_a_file_of_the_model_keeps_the_settings(name, tmp_path):
    mine, base, arguments, shape = CASES[name]
    settings = dict(
        rank=2,
        carrier_source="weight",
        warmup_steps=4,
        left_only=True,
        seed=5,
    )
    model = _model(mine(**settings, **arguments), shape)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    layer = loaded.layers[0]
    assert type(layer) is mine
    config = low_rank.mark_of(layer._kernel).config
    assert config == low_rank.Reparametrization(**settings)
    assert layer.reparametrization == config
    x, _ = _data(shape)
    np.testing.assert_array_equal(
        model.predict(x, verbose=0), loaded.predict(x, verbose=0)
    )
    copy = mine.from_config(model.layers[0].get_config())
    assert copy.reparametrization == config


@pytest.mark.parametrize("name", CASES)
def test_it_has_the_gradient_rule_of_its_base(name):
    mine, base, arguments, shape = CASES[name]
    layer, plain = mine(rank=2, **arguments), base(**arguments)
    for each in (layer, plain):
        each.build((None, *shape))
    rule = per_example.rule_for(layer)
    assert type(rule) is type(per_example.rule_for(plain))
    assert rule.supports(layer)


def test_it_says_what_it_is():
    layer = tf_dpfp.RGPDense(4, rank=2, name="narrow")
    assert repr(layer) == (
        "<RGPDense name=narrow, built=False, rank=2 in private training, "
        "otherwise an ordinary Dense>"
    )


def test_wrong_arguments_are_refused():
    with pytest.raises(TypeError, match="rank"):
        tf_dpfp.RGPDense(4)
    with pytest.raises(ValueError, match="rank=0"):
        tf_dpfp.RGPDense(4, rank=0)
    with pytest.raises(ValueError, match="LoRA"):
        tf_dpfp.RGPDense(8, rank=2, lora_rank=2).build((None, 8))
    for name in ("power_iterations", "recompute_every"):
        with pytest.raises(ValueError, match=name):
            tf_dpfp.RGPDense(4, rank=2, **{name: 1})


def test_a_frozen_one_can_be_built_and_restored():
    layer = tf_dpfp.RGPDense(8, rank=2, trainable=False)
    layer.build((None, 8))
    assert layer.trainable_variables == []
    assert low_rank.mark_of(layer._kernel) is not None
    low_rank.remove_carriers(layer)
    assert low_rank.mark_of(layer._kernel) is None
    assert tf.reduce_all(tf.math.is_finite(layer(tf.ones([1, 8]))))


def _saved(name, path, change):
    """A file of an earlier version: `change` edits the layer's description."""
    model = _model(tf_dpfp.RGPDense(7, rank=2, name="mine"), (6,))
    config = json.loads(model.to_json())
    (layer,) = [
        c for c in config["config"]["layers"] if c["config"]["name"] == "mine"
    ]
    change(layer)
    path = path / f"{name}.json"
    path.write_text(json.dumps(config))
    return path.read_text()


def test_a_config_of_an_earlier_version_loads_at_its_defaults(tmp_path):
    def with_settings(value):
        def change(layer):
            layer["config"] |= {"power_iterations": 1, "recompute_every": value}

        return change

    text = _saved("defaults", tmp_path, with_settings(1))
    layer = keras.models.model_from_json(text).get_layer("mine")
    assert layer.reparametrization == low_rank.Reparametrization(rank=2)
    text = _saved("others", tmp_path, with_settings(3))
    with pytest.raises(ValueError, match="recompute_every=3"):
        keras.models.model_from_json(text)


@pytest.mark.parametrize("name", ["EinsumDense", "Conv1D", "Conv2D"])
def test_a_file_that_names_a_removed_layer_says_what_to_do(name, tmp_path):
    def change(layer):
        layer["class_name"] = name
        layer["registered_name"] = f"tf_dpfp>RGP{name}"

    text = _saved(name, tmp_path, change)
    with pytest.raises(ValueError, match=f"keras.layers.{name}, mark it by"):
        keras.models.model_from_json(text)
