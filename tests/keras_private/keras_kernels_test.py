"""The private names of weights: these fail when Keras changes them."""

import keras
import numpy as np
import pytest
from keras import layers

from tf_dpfp.keras_private import kernels

KERNELS = {
    "dense": (lambda: layers.Dense(4), (None, 6)),
    "einsum": (lambda: layers.EinsumDense("ab,bc->ac", (4,)), (None, 6)),
    "conv1d": (lambda: layers.Conv1D(4, 3), (None, 6, 2)),
    "conv2d": (lambda: layers.Conv2D(4, 3), (None, 6, 6, 2)),
    "conv3d": (lambda: layers.Conv3D(4, 3), (None, 6, 6, 6, 2)),
}


@pytest.mark.parametrize("name", KERNELS)
def test_the_kernel_is_the_weight_that_training_updates(name):
    make, shape = KERNELS[name]
    layer = make()
    assert kernels.kernel_of(layer) is None
    layer.build(shape)
    kernel = kernels.kernel_of(layer)
    assert isinstance(kernel, keras.Variable)
    assert kernel is layer.trainable_variables[0]
    np.testing.assert_array_equal(kernel, layer.kernel)


@pytest.mark.parametrize("name", ["dense", "einsum"])
def test_under_lora_it_is_the_frozen_weight(name):
    make, shape = KERNELS[name]
    layer = make()
    layer.build(shape)
    kernel = kernels.kernel_of(layer)
    layer.enable_lora(2)
    assert kernels.kernel_of(layer) is kernel
    assert all(kernel is not v for v in layer.trainable_variables)


def test_the_table_is_the_weight_that_training_updates():
    layer = layers.Embedding(5, 3)
    assert kernels.table_of(layer) is None
    layer.build((None, 2))
    (table,) = layer.trainable_variables
    assert kernels.table_of(layer) is table
