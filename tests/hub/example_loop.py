"""One step's clipped sums of a model, against a loop over the examples."""

import keras
import numpy as np
import tensorflow as tf

import tf_dpfp

EXAMPLES = 4


def _loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _row(tensors, i):
    return tf.nest.map_structure(
        lambda t: None if t is None else tf.constant(t[i : i + 1]), tensors
    )


def _loop(model, data) -> list[list[np.ndarray]]:
    """The gradient of every example, on a batch of that example alone."""
    variables = [v.value for v in model.trainable_variables]
    rows = []
    for i in range(len(tf.nest.flatten(data[0])[0])):
        x, y, weights = (_row(part, i) for part in data)
        with tf.GradientTape() as tape:
            values = _loss().call(y, model(x, training=True))
            values = tf.cast(values, tf.float32)
            if weights is not None:
                values *= weights
            loss = tf.reduce_mean(values)
        found = tape.gradient(
            loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        rows.append([tf.convert_to_tensor(g).numpy() for g in found])
    return rows


def _norm(gradient) -> float:
    squares = (np.sum(np.square(g.astype(np.float64))) for g in gradient)
    return float(np.sqrt(sum(squares)))


def _factor(gradient, bound: float) -> float:
    norm = _norm(gradient)
    return bound / norm if norm > bound else 1.0


def clipped(model, data, bound: float) -> list[np.ndarray]:
    """Clipped sums without noise, by the package."""
    model.compile(
        optimizer=tf_dpfp.DPSGD(1.0, l2_norm_clip=bound, noise_multiplier=0.0),
        loss=_loss(),
    )
    gradients = tf_dpfp.clipped_gradients(model, *data)
    return [
        np.zeros(v.shape) if s is None else tf.convert_to_tensor(s).numpy()
        for v, s in zip(model.trainable_variables, gradients.sums, strict=True)
    ]


def check_against_loop(model, data) -> None:
    """Compares one step's clipped sums with a loop over the examples."""
    rows = _loop(model, data)
    # Between the norms: some examples are clipped and some are not.
    bound = float(np.median([_norm(row) for row in rows]))
    expected = [
        sum(g * _factor(row, bound) for g, row in zip(parts, rows, strict=True))
        for parts in zip(*rows, strict=True)
    ]
    found = clipped(tf_dpfp.make_private(model), data, bound)
    scale = max(np.max(np.abs(e)) for e in expected)
    for v, a, e in zip(model.trainable_variables, found, expected, strict=True):
        np.testing.assert_allclose(
            a, e, rtol=2e-3, atol=2e-5 * scale, err_msg=v.path
        )
