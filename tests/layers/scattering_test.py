"""Scattering features: the definition, and a layer that looks at no data."""

import zipfile

import keras
import numpy as np
import pytest
from scipy import signal

import tf_dpfp
from examples.trainers import models


def _moduli(plane, scale, size):
    """One map for each angle, from the definition, in double precision."""
    half = size // 2
    row, column = np.mgrid[-half : half + 1, -half : half + 1]
    maps = []
    for turn in range(8):
        angle = np.pi * turn / 8
        along = row * np.cos(angle) + column * np.sin(angle)
        across = column * np.cos(angle) - row * np.sin(angle)
        deviation = 0.8 * 2**scale
        envelope = np.exp(-(along**2 + across**2 / 4) / (2 * deviation**2))
        carrier = np.exp(0.75j * np.pi * along / 2**scale)
        wave = envelope * (
            carrier - np.sum(envelope * carrier) / envelope.sum()
        )
        wave /= np.abs(wave).sum()
        # scipy's correlation conjugates the second argument; a modulus does
        # not mind, for the plane is real.
        maps.append(np.abs(signal.correlate2d(plane, wave, "same")))
    return np.stack(maps)


def _average(planes, spread):
    window = np.exp(-(np.asarray(spread) ** 2) / (2 * 1.6**2))
    window = np.outer(window, window) / window.sum() ** 2
    return np.stack(
        [signal.correlate2d(plane, window, "same") for plane in planes]
    )


def _normalised(planes, epsilon):
    return (planes - planes.mean()) / np.sqrt(planes.var() + epsilon)


def _oracle(image, groups=None, square_roots=False):
    fine, coarse = _moduli(image, 0, 7), _moduli(image, 1, 13)
    pieces = [
        (_average(planes, range(-4, 5))[:, 2::4, 2::4], epsilon)
        for planes, epsilon in (([image], 1e-4), (fine, 4e-6), (coarse, 6e-6))
    ]
    for plane in fine:
        second = _moduli(plane, 1, 13)[:, 1::2, 1::2]
        averages = _average(second, range(-4, 5, 2))[:, 1::2, 1::2]
        pieces.append((averages, 4e-7))
    if square_roots:
        pieces = [(np.sqrt(piece + 1e-4), 1e-3) for piece, _ in pieces]
    if groups is not None:
        epsilon = 1e-3 if square_roots else 1e-5
        together = np.concatenate([piece for piece, _ in pieces])
        pieces = [(p, epsilon) for p in np.split(together, groups)]
    pieces = [_normalised(piece, epsilon) for piece, epsilon in pieces]
    return np.moveaxis(np.concatenate(pieces), 0, -1)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(0, 1, (3, 12, 12, 1))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"groups": 27},
        {"square_roots": True},
        {"groups": 27, "square_roots": True},
    ],
)
def test_features_are_those_of_the_definition(images, arguments):
    expected = np.stack(
        [_oracle(image[..., 0], **arguments) for image in images]
    )
    layer = tf_dpfp.recipes.Scattering2D(**arguments)
    model = layer.as_model((12, 12, 1))
    np.testing.assert_allclose(
        model.predict(images, verbose=0), expected, atol=1e-3
    )
    found = layer.predict(images, batch_size=2)
    assert found.shape == (3, 3, 3, 81)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_nothing_is_learned_and_images_do_not_meet(images):
    layer = tf_dpfp.recipes.Scattering2D()
    together, alone = layer(images), layer(images[1:2])
    np.testing.assert_allclose(together[1:2], alone, atol=1e-4)
    assert layer.weights == []
    assert not layer.as_model((12, 12, 1)).trainable_weights


def test_colours_are_transformed_one_by_one(images):
    colours = np.concatenate(list(images), axis=-1)[None]
    found = tf_dpfp.recipes.Scattering2D()(colours).numpy()
    assert found.shape == (1, 3, 3, 243)
    fine = np.stack([_oracle(image[..., 0])[..., 1:9] for image in images])
    for colour in range(3):
        first = 3 + 8 * colour
        np.testing.assert_allclose(
            found[0, ..., first : first + 8], fine[colour], atol=1e-3
        )


def test_a_blank_image_has_finite_features():
    found = tf_dpfp.recipes.Scattering2D()(np.zeros((1, 12, 12, 1)))
    assert np.all(np.isfinite(found))


def test_the_whole_model_takes_images_and_loads_anywhere(tmp_path):
    images = np.random.default_rng(0).uniform(0, 1, (3, 16, 16, 1))
    network = models.build("scattering", (16, 16, 1), 10)
    tf_dpfp.make_private(network.classifier)
    optimizer = tf_dpfp.DPSGD(1.0, noise_multiplier=1.0)
    network.classifier.compile(optimizer=optimizer, loss="mse")
    expected = network.classifier.predict(network.transform(images), verbose=0)
    network.for_images().save(tmp_path / "whole.keras")
    with zipfile.ZipFile(tmp_path / "whole.keras") as archive:
        config = archive.read("config.json")
    assert b"tf_dpfp" not in config and b"examples" not in config
    # Safe mode is the default: standard layers only, no code in the file.
    whole = keras.models.load_model(tmp_path / "whole.keras")
    np.testing.assert_allclose(
        whole.predict(images, verbose=0), expected, atol=1e-5
    )


def test_groups_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match=r"81 channels.*groups=10"):
        tf_dpfp.recipes.Scattering2D(groups=10).as_model((12, 12, 1))
    with pytest.raises(ValueError, match="groups=0"):
        tf_dpfp.recipes.Scattering2D(groups=0)


def test_sides_that_are_not_divisible_by_four_are_refused():
    with pytest.raises(ValueError, match="divisible by 4.*12 x 30"):
        tf_dpfp.recipes.Scattering2D()(np.zeros((1, 12, 30, 1)))
    with pytest.raises(ValueError, match="angles=0"):
        tf_dpfp.recipes.Scattering2D(angles=0)
    with pytest.raises(ValueError, match="12 x 30.*Use the model 'cnn'"):
        models.build("scattering", (12, 30, 1), 10)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_a_model_with_the_layer_inside_trains_privately(policy, tmp_path):
    model = keras.Sequential(
        [
            keras.Input((12, 12, 1)),
            tf_dpfp.recipes.Scattering2D(angles=2, dtype=policy),
            keras.layers.Flatten(),
            keras.layers.Dense(2, dtype="float32"),
        ]
    )
    assert model.layers[0].output.shape == (None, 3, 3, 9)
    tf_dpfp.make_private(model)
    optimizer = tf_dpfp.DPSGD(1.0, noise_multiplier=1.0, expected_batch_size=8)
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(8, 12, 12, 1)).astype(np.float32)
    before = model.get_weights()
    model.fit(images, np.arange(8) % 2, batch_size=8, verbose=0)
    after = model.get_weights()
    assert len(before) == 2 and not np.array_equal(before[0], after[0])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(images), model(images), atol=1e-5)


def test_all_layers_made_trainable_train_no_wavelet():
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), tf_dpfp.recipes.Scattering2D()]
    )
    model.trainable = True
    assert model.trainable_weights == []
