"""Scripts on time series, condensed."""

import keras
import numpy as np
from keras import layers

import tf_dpfp
from tests.keras_scripts import common


def _series(length, channels=1, count=16):
    """Waves of one of two periods."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, count)
    time = np.arange(length) + rng.uniform(0, 3, (count, 1))
    time = time[..., None] + np.arange(channels)
    x = np.sin(time * (0.3 + 0.5 * y[:, None, None]))
    return x.astype("float32"), y


def test_timeseries_classification_from_scratch():
    def build():
        inputs = keras.Input((24, 1))
        x = inputs
        for _ in range(3):
            x = layers.Conv1D(8, kernel_size=3, padding="same")(x)
            x = layers.BatchNormalization()(x)
            x = layers.ReLU()(x)
        x = layers.GlobalAveragePooling1D()(x)
        outputs = layers.Dense(2, activation="softmax")(x)
        model = keras.Model(inputs, outputs)
        return tf_dpfp.fix(model, print_fn=lambda _: None)

    common.assert_learns_as_ordinary(
        build,
        *_series(24),
        loss="sparse_categorical_crossentropy",
        learning_rate=0.03,
    )


def test_timeseries_transformer():
    def build():
        inputs = keras.Input((24, 4))
        x = inputs
        for _ in range(2):
            h = layers.MultiHeadAttention(key_dim=4, num_heads=2)(x, x)
            h = layers.LayerNormalization(epsilon=1e-6)(h)
            residual = h + x
            h = layers.Conv1D(4, kernel_size=1, activation="relu")(residual)
            h = layers.Conv1D(4, kernel_size=1)(h)
            x = layers.LayerNormalization(epsilon=1e-6)(h) + residual
        x = layers.GlobalAveragePooling1D(data_format="channels_last")(x)
        x = layers.Dense(8, activation="relu")(x)
        return keras.Model(inputs, layers.Dense(2, activation="softmax")(x))

    common.assert_learns_as_ordinary(
        build,
        *_series(24, channels=4),
        loss="sparse_categorical_crossentropy",
        # Norms of four channels: larger steps amplify the margin of clipping.
        learning_rate=0.003,
        epochs=8,
    )


def test_timeseries_anomaly_detection():
    def build():
        return keras.Sequential(
            [
                keras.Input((24, 1)),
                layers.Conv1D(
                    8, 7, padding="same", strides=2, activation="relu"
                ),
                layers.Conv1D(
                    4, 7, padding="same", strides=2, activation="relu"
                ),
                layers.Conv1DTranspose(
                    4, 7, padding="same", strides=2, activation="relu"
                ),
                layers.Conv1DTranspose(
                    8, 7, padding="same", strides=2, activation="relu"
                ),
                layers.Conv1DTranspose(1, 7, padding="same"),
            ]
        )

    x, _ = _series(24)
    common.assert_learns_as_ordinary(
        build, x, x, loss="mse", learning_rate=0.3, epochs=8
    )
