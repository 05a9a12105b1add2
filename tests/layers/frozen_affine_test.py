import keras
import numpy as np
import pytest

from tf_dpfp import layers


@pytest.mark.parametrize("axis", [1, -1])
def test_each_channel_has_a_factor_and_an_offset(axis):
    layer = layers.FrozenAffine(axis)
    x = np.random.default_rng(0).normal(size=(2, 3, 3)).astype(np.float32)
    np.testing.assert_array_equal(layer(x), x)
    factor, offset = np.float32([2, 3, 4]), np.float32([5, 6, 7])
    layer.set_weights([factor, offset])
    turned = np.moveaxis(x, axis, -1)
    expected = np.moveaxis(turned * factor + offset, -1, axis)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-6)


def test_no_weight_is_trainable():
    layer = layers.FrozenAffine()
    layer.build((None, 3))
    layer.trainable = True
    assert layer.trainable_variables == []
    assert len(layer.non_trainable_variables) == 2


def test_other_channels_are_refused():
    layer = layers.FrozenAffine()
    layer.build((None, 3))
    with pytest.raises(ValueError, match="incompatible"):
        layer(np.ones((2, 4)))
    with pytest.raises(ValueError, match="axis"):
        layers.FrozenAffine(axis="last")


def test_it_is_saved():
    layer = layers.FrozenAffine(1, name="kept")
    again = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(layer)
    )
    assert (again.axis, again.name) == (1, "kept")
