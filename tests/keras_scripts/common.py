"""Trainings of one model: an ordinary one, and a private one without noise."""

import keras
import numpy as np

import tf_dpfp

# No gradient of these small models is longer.
_NO_CLIPPING = 1e6


def _built(build, x):
    # A layer that a script calls on a constant is a constant of the model.
    keras.utils.set_random_seed(0)
    model = build()
    model(keras.tree.map_structure(lambda values: values[:1], x))
    return model


def _fit(model, optimizer, x, y, batch_size, epochs, compiled, fitted):
    model.compile(optimizer=optimizer, **compiled)
    # Equal batches: the same examples in the same order.
    history = model.fit(
        x,
        y,
        batch_size=batch_size,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        **fitted,
    )
    return np.array(history.history["loss"])


def assert_learns_as_ordinary(
    build,
    x,
    y,
    *,
    learning_rate=0.1,
    batch_size=8,
    epochs=4,
    tolerance=0.02,
    progress=0.1,
    fitted=None,
    **compiled,
):
    """Asserts that a private training has the losses of an ordinary one.

    Both start at the same weights and take the same batches by SGD, whose
    update has the size of the gradient, so that a wrong scale is seen. The
    private one adds no noise and clips nothing. Models should have no dropout:
    its masks differ.

    Args:
        build: Function that returns a model, not compiled and fit for private
            training; `tf_dpfp.fix` may be part of it.
        x: Array, or a structure of arrays.
        y: Array, or a structure of arrays.
        learning_rate: That of both.
        batch_size: Size of a batch, which divides the number of examples.
        epochs: Number of epochs.
        tolerance: Largest difference of the mean losses of an epoch, relative.
        progress: Share of the loss of the first epoch that the ordinary
            training must lose, or the comparison would say little.
        fitted: More arguments of `fit`, such as `sample_weight`.
        **compiled: More arguments of `compile`, such as `loss`.

    Returns:
        The model that was trained privately.
    """
    fitted = fitted or {}
    ordinary, private = _built(build, x), _built(build, x)
    private.set_weights(ordinary.get_weights())
    expected = _fit(
        ordinary,
        keras.optimizers.SGD(learning_rate),
        *(x, y, batch_size, epochs, compiled, fitted),
    )
    assert expected[-1] < (1 - progress) * expected[0], expected

    tf_dpfp.make_private(private)
    optimizer = tf_dpfp.DPSGD(
        learning_rate, l2_norm_clip=_NO_CLIPPING, noise_multiplier=0.0
    )
    losses = _fit(
        private, optimizer, x, y, batch_size, epochs, compiled, fitted
    )
    np.testing.assert_allclose(losses, expected, rtol=tolerance)
    return private
