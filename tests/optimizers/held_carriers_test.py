"""Carriers that stay for some steps."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import tf_dpfp
from tf_dpfp import low_rank
from tf_dpfp.optimizers import held_carriers


def test_a_kernel_that_was_frozen_waits_for_no_carriers():
    model = keras.Sequential([keras.Input((6,)), *map(layers.Dense, (7, 8))])
    tf_dpfp.reparametrize(model, 2)
    first, second = (layer.kernel for layer in model.layers)
    held = held_carriers.HeldCarriers()
    computed = []

    def carriers(*kernels):
        def compute():
            computed.append(float(len(computed) + 1))
            return [
                low_rank.Carriers(
                    *[
                        tf.fill(shape, computed[-1])
                        for shape in low_rank.shapes_of_carriers(kernel)
                    ]
                )
                for kernel in kernels
            ]

        found = held.current(kernels, 4, compute)
        held.after_step()
        return [float(np.max(c.left)) for c in found]

    assert [carriers(first) for _ in range(2)] == [[1.0], [1.0]]
    # The second one trains from here on.
    assert [carriers(first, second) for _ in range(3)] == [
        [2.0, 2.0],
        [2.0, 2.0],
        [3.0, 3.0],
    ]
