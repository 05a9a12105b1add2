"""One step's clipped sums of a model, against a loop over the examples."""

import keras
import numpy as np
import tensorflow as tf

import tf_dpfp
from tests.oracles import reference

EXAMPLES = 4


def _loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def clipped(model, data, bound: float) -> list[np.ndarray]:
    """Clipped sums without noise, by the package."""
    model.compile(
        optimizer=tf_dpfp.DPSGD(1.0, l2_norm_clip=bound, noise_multiplier=0.0),
        loss=_loss(),
    )
    gradients = tf_dpfp.loops.clipped_gradients(model, *data)
    return [
        np.zeros(v.shape) if s is None else tf.convert_to_tensor(s).numpy()
        for v, s in zip(model.trainable_variables, gradients.sums, strict=True)
    ]


def check_against_loop(model, data) -> None:
    """Compares one step's clipped sums with a loop over the examples."""

    def loss(x, y, weights=None):
        values = _loss().call(y, model(x, training=True))
        values = tf.cast(values, tf.float32)
        if weights is not None:
            values *= tf.cast(weights, tf.float32)
        return tf.reduce_mean(values)

    groups = reference.flat_group(model)
    found = reference.gradients(loss, model.trainable_variables, *data)
    # Between the norms: some examples are clipped and some are not.
    bound = float(np.median(reference.norms(found, groups)))
    expected = reference.clipped_sums(found, groups, bound)
    found = clipped(tf_dpfp.make_private(model), data, bound)
    scale = max(np.max(np.abs(e)) for e in expected)
    for v, a, e in zip(model.trainable_variables, found, expected, strict=True):
        np.testing.assert_allclose(
            a, e, rtol=2e-3, atol=2e-5 * scale, err_msg=v.path
        )
