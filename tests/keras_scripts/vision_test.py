"""Scripts on images and on clouds of points, condensed."""

import functools

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import tf_dpfp
from tests.keras_scripts import common

_LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _images(size, channels=1, classes=3, count=16):
    """Images whose brightness in their upper half tells the class."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, classes, count)
    x = rng.normal(0, 0.3, size=(count, size, size, channels))
    x[:, : size // 2] += y[:, None, None, None]
    return x.astype("float32"), y


def _fixed(model, **arguments):
    return tf_dpfp.fix(model, print_fn=lambda _: None, **arguments)


def test_mnist_convnet():
    def build():
        return keras.Sequential(
            [
                keras.Input((10, 10, 1)),
                layers.Conv2D(4, 3, activation="relu"),
                layers.MaxPooling2D(2),
                layers.Conv2D(8, 3, activation="relu"),
                layers.MaxPooling2D(2),
                layers.Flatten(),
                layers.Dense(3),
            ]
        )

    common.assert_learns_as_ordinary(build, *_images(10), loss=_LOGITS)


def _small_xception():
    inputs = keras.Input((16, 16, 3))
    x = layers.Rescaling(1.0 / 255)(inputs)
    x = layers.Conv2D(8, 3, strides=2, padding="same")(x)
    x = layers.BatchNormalization()(x)
    previous = x = layers.Activation("relu")(x)
    for size in (8, 16):
        for _ in range(2):
            x = layers.Activation("relu")(x)
            x = layers.SeparableConv2D(size, 3, padding="same")(x)
            x = layers.BatchNormalization()(x)
        x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
        side = layers.Conv2D(size, 1, strides=2, padding="same")(previous)
        previous = x = layers.add([x, side])
    x = layers.GlobalAveragePooling2D()(x)
    return _fixed(keras.Model(inputs, layers.Dense(3)(x)))


def test_xception_from_scratch():
    x, y = _images(16, channels=3)
    common.assert_learns_as_ordinary(
        _small_xception, 100 * x, y, loss=_LOGITS, learning_rate=0.05
    )


@functools.cache
def _first_blocks():
    """Of the network, with statistics that fit the images."""
    base = keras.applications.MobileNetV2(
        (32, 32, 3), alpha=0.35, weights=None, include_top=False
    )
    for layer in base.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_variance.assign(layer.moving_variance * 0.15)
    return keras.Model(base.input, base.get_layer("block_2_add").output)


def _mobilenet():
    blocks = keras.models.clone_model(_first_blocks())
    blocks.set_weights(_first_blocks().get_weights())
    return blocks


@pytest.mark.parametrize(
    ("trained", "keep_statistics", "learning_rate"),
    [(False, False, 0.3), (True, True, 0.02)],
)
def test_mobilenet_transfer(trained, keep_statistics, learning_rate):
    def build():
        base = _mobilenet()
        base.trainable = trained
        inputs = keras.Input((32, 32, 3))
        x = layers.GlobalAveragePooling2D()(base(inputs, training=False))
        model = keras.Model(inputs, layers.Dense(3)(x))
        return _fixed(model, keep_statistics=keep_statistics)

    common.assert_learns_as_ordinary(
        build,
        *_images(32, channels=3),
        loss=_LOGITS,
        learning_rate=learning_rate,
        progress=0.02,
    )


class Patches(layers.Layer):
    def __init__(self, size):
        super().__init__()
        self.size = size

    def call(self, images):
        _, height, width, channels = images.shape
        patches = ops.image.extract_patches(images, size=self.size)
        count = (height // self.size) * (width // self.size)
        return ops.reshape(patches, (-1, count, self.size**2 * channels))


class PatchEncoder(layers.Layer):
    def __init__(self, count, width):
        super().__init__()
        self.count = count
        self.projection = layers.Dense(width)
        self.position_embedding = layers.Embedding(count, width)

    def call(self, patch):
        positions = ops.expand_dims(ops.arange(0, self.count, 1), axis=0)
        return self.projection(patch) + self.position_embedding(positions)


# Positions are tried in tests/examples/tutorials_test.py.
def test_vision_transformer(without_trial):
    def build():
        inputs = keras.Input((8, 8, 3))
        x = PatchEncoder(4, 8)(Patches(4)(inputs))
        h = layers.LayerNormalization(epsilon=1e-6)(x)
        h = layers.MultiHeadAttention(2, 4)(h, h)
        x = layers.Add()([h, x])
        h = layers.LayerNormalization(epsilon=1e-6)(x)
        h = layers.Dense(16, activation=keras.activations.gelu)(h)
        x = layers.Add()([layers.Dense(8)(h), x])
        x = layers.LayerNormalization(epsilon=1e-6)(x)
        x = layers.Flatten()(x)
        return keras.Model(inputs, layers.Dense(3)(x))

    common.assert_learns_as_ordinary(
        build, *_images(8, channels=3), loss=_LOGITS
    )


class MLPMixer(layers.Layer):
    def __init__(self, patches, hidden):
        super().__init__()
        self.mlp1 = keras.Sequential(
            [layers.Dense(patches, activation="gelu"), layers.Dense(patches)]
        )
        self.mlp2 = keras.Sequential(
            [layers.Dense(patches, activation="gelu"), layers.Dense(hidden)]
        )
        self.normalize = layers.LayerNormalization(epsilon=1e-6)

    def build(self, input_shape):
        self.built = True

    def call(self, inputs):
        x = self.normalize(inputs)
        channels = ops.transpose(x, axes=(0, 2, 1))
        x = ops.transpose(self.mlp1(channels), axes=(0, 2, 1)) + inputs
        return x + self.mlp2(self.normalize(x))


def test_mlp_mixer():
    def build():
        inputs = keras.Input((8, 8, 3))
        x = layers.Dense(8)(Patches(4)(inputs))
        x = x + layers.Embedding(4, 8)(ops.arange(4))
        for _ in range(2):
            x = MLPMixer(4, 8)(x)
        x = layers.GlobalAveragePooling1D()(x)
        return keras.Model(inputs, layers.Dense(3)(x))

    common.assert_learns_as_ordinary(
        build, *_images(8, channels=3), loss=_LOGITS
    )


def test_u_net():
    def build():
        inputs = keras.Input((16, 16, 3))
        x = layers.Conv2D(8, 3, strides=2, padding="same")(inputs)
        x = layers.BatchNormalization()(x)
        previous = x = layers.Activation("relu")(x)
        x = layers.SeparableConv2D(16, 3, padding="same")(x)
        x = layers.BatchNormalization()(x)
        x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
        side = layers.Conv2D(16, 1, strides=2, padding="same")(previous)
        previous = x = layers.add([x, side])
        for filters in (16, 8):
            x = layers.Activation("relu")(x)
            x = layers.Conv2DTranspose(filters, 3, padding="same")(x)
            x = layers.BatchNormalization()(x)
            x = layers.UpSampling2D(2)(x)
            side = layers.UpSampling2D(2)(previous)
            side = layers.Conv2D(filters, 1, padding="same")(side)
            previous = x = layers.add([x, side])
        outputs = layers.Conv2D(3, 3, activation="softmax", padding="same")(x)
        return _fixed(keras.Model(inputs, outputs))

    x, _ = _images(16, channels=3)
    masks = (x[..., 0] > 0.5).astype("int32") + (x[..., 0] > 1.5)
    common.assert_learns_as_ordinary(
        build,
        x,
        masks,
        loss="sparse_categorical_crossentropy",
        learning_rate=0.03,
    )


class PixelConvLayer(layers.Layer):
    def __init__(self, mask_type, **kwargs):
        super().__init__()
        self.mask_type = mask_type
        self.conv = layers.Conv2D(**kwargs)

    def build(self, input_shape):
        self.conv.build(input_shape)
        self.mask = np.zeros(ops.shape(self.conv.kernel))
        rows, columns = self.conv.kernel.shape[:2]
        self.mask[: rows // 2, ...] = 1.0
        self.mask[rows // 2, : columns // 2, ...] = 1.0
        if self.mask_type == "B":
            self.mask[rows // 2, columns // 2, ...] = 1.0

    def call(self, inputs):
        self.conv.kernel.assign(self.conv.kernel * self.mask)
        return self.conv(inputs)


def _pixel_cnn():
    inputs = keras.Input((8, 8, 1))
    x = PixelConvLayer(
        "A", filters=8, kernel_size=5, activation="relu", padding="same"
    )(inputs)
    h = layers.Conv2D(4, 1, activation="relu")(x)
    h = PixelConvLayer(
        "B", filters=4, kernel_size=3, activation="relu", padding="same"
    )(h)
    x = layers.add([x, layers.Conv2D(8, 1, activation="relu")(h)])
    outputs = layers.Conv2D(1, 1, activation="sigmoid")(x)
    return keras.Model(inputs, outputs)


def test_pixel_cnn():
    x, _ = _images(8)
    x = (x > 0.5).astype("float32")
    common.assert_learns_as_ordinary(
        _pixel_cnn, x, x, loss="binary_crossentropy", learning_rate=1.0
    )


def _conv_bn(x, filters):
    x = layers.Conv1D(filters, kernel_size=1, padding="valid")(x)
    x = layers.BatchNormalization(momentum=0.0)(x)
    return layers.Activation("relu")(x)


def _dense_bn(x, filters):
    x = layers.Dense(filters)(x)
    x = layers.BatchNormalization(momentum=0.0)(x)
    return layers.Activation("relu")(x)


def _tnet(inputs, features):
    x = _conv_bn(inputs, 8)
    x = layers.GlobalMaxPooling1D()(_conv_bn(x, 16))
    x = _dense_bn(x, 8)
    x = layers.Dense(
        features * features,
        kernel_initializer="zeros",
        bias_initializer=keras.initializers.Constant(
            np.eye(features).flatten()
        ),
    )(x)
    transform = layers.Reshape((features, features))(x)
    return layers.Dot(axes=(2, 1))([inputs, transform])


def test_point_net():
    def build():
        inputs = keras.Input((16, 3))
        x = _conv_bn(_tnet(inputs, 3), 8)
        x = _conv_bn(_tnet(x, 8), 16)
        x = layers.GlobalMaxPooling1D()(x)
        x = _dense_bn(x, 8)
        outputs = layers.Dense(3, activation="softmax")(x)
        return _fixed(keras.Model(inputs, outputs))

    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 16)
    x = rng.normal(size=(16, 16, 3)) * (1 + y)[:, None, None]
    common.assert_learns_as_ordinary(
        build, x, y, loss="sparse_categorical_crossentropy", learning_rate=0.3
    )


def _distance(pair):
    squares = ops.sum(ops.square(pair[0] - pair[1]), axis=1, keepdims=True)
    return ops.sqrt(ops.maximum(squares, keras.config.epsilon()))


def _contrastive(y_true, y_pred):
    margin = ops.square(ops.maximum(1 - y_pred, 0))
    return ops.mean((1 - y_true) * ops.square(y_pred) + y_true * margin)


def test_siamese_contrastive():
    def build():
        inputs = keras.Input((8, 8, 1))
        x = layers.BatchNormalization()(inputs)
        x = layers.Conv2D(4, 3, activation="tanh")(x)
        x = layers.AveragePooling2D(2)(x)
        x = layers.BatchNormalization()(layers.Flatten()(x))
        network = keras.Model(inputs, layers.Dense(4, activation="tanh")(x))
        pair = [keras.Input((8, 8, 1)), keras.Input((8, 8, 1))]
        merged = layers.Lambda(_distance, output_shape=(1,))(
            [network(one) for one in pair]
        )
        x = layers.BatchNormalization()(merged)
        outputs = layers.Dense(1, activation="sigmoid")(merged)
        return _fixed(keras.Model(pair, outputs))

    x, y = _images(8)
    other = np.roll(np.arange(16), 1)
    different = (y != y[other]).astype("float32")[:, None]
    common.assert_learns_as_ordinary(
        build, [x, x[other]], different, loss=_contrastive
    )
