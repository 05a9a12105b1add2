"""Noise from a cryptographic stream: of the right scale, and no other."""

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tests import helpers
from tf_dpfp import compilation
from tf_dpfp import noise
from tf_dpfp.noise import gaussian as gaussian_lib
from tf_dpfp.noise import secure

pytest.importorskip("cryptography")

# A compiled piece of its own, and one that TensorFlow's kernels draw.
WIDTH = 300
KEY = noise.SecureKey()


@pytest.mark.parametrize("size", [3 * 2**16, 60_001])
@pytest.mark.parametrize("traced", [False, True])
def test_noise_is_normal_and_of_its_deviation(size, traced):
    def draw():
        return noise.gaussian_noise([size], 0.3, KEY)

    draw = tf.function(draw) if traced else draw
    first, second = draw().numpy(), draw().numpy()
    helpers.assert_normal(first, 0.3, (0.94, 1.06, 2.0, 0.5))
    # Next to each other, of one pair, and of two steps.
    half = size // 2
    for one, other in (
        (first[:-1], first[1:]),
        (first[:half], first[half : 2 * half]),
        (first, second),
    ):
        assert abs(np.corrcoef(one, other)[0, 1]) < 6 / np.sqrt(len(one))
    assert len(np.unique(np.concatenate([first, second]))) > 1.9 * size


def test_every_number_is_a_sum_of_four():
    # The greatest kurtosis and the tails tell nothing of it: count the words.
    drawn = []

    def words(count):
        drawn.append(int(count))
        return np.zeros(count, np.int32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(secure, "random_words", words)
        found = noise.gaussian_noise([10], 1.0, KEY).numpy()
    assert drawn == [4 * 10]
    # Of equal words each of the four is the same: their sum is twice one.
    bits = tf.zeros([2, 1], tf.int32)
    one, _ = secure.box_muller.by_kernels(bits, tf.constant(1.0))
    np.testing.assert_allclose(found[:5], 2 * one.numpy()[0], rtol=1e-6)


def test_words_are_uniform_bits_and_never_the_same():
    one, other = secure.random_words(20_000), secure.random_words(20_000)
    assert one.dtype == np.int32
    bits = np.unpackbits(one.view(np.uint8)).reshape(-1, 32)
    np.testing.assert_allclose(bits.mean(0), 0.5, atol=0.02)
    assert np.mean(one == other) < 1e-3


def _compiled(clipping="flat", **kwargs):
    model = keras.Sequential(
        [
            keras.Input((WIDTH,)),
            layers.Dense(WIDTH, kernel_initializer="zeros"),
        ]
    )
    tf_dpfp.make_private(model)
    optimizer = tf_dpfp.DPSGD(
        1.0,
        l2_norm_clip=0.5,
        noise_multiplier=1.7,
        expected_batch_size=2.0,
        clipping=clipping,
        secure=True,
    )
    model.compile(
        optimizer,
        loss=lambda y, y_pred: tf.reduce_sum(0.0 * y_pred + 0.0 * y),
        **{"jit_compile": False} | kwargs,
    )
    return model


def _noise_of_a_step(model):
    zeros = np.zeros((2, WIDTH), np.float32)
    before = [w.copy() for w in model.get_weights()]
    model.train_on_batch(zeros, zeros)
    changes = [
        np.ravel(a - b)
        for a, b in zip(model.get_weights(), before, strict=True)
    ]
    return np.concatenate(changes) * 2.0


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_a_step_draws_all_its_noise_from_the_stream(
    run_eagerly, monkeypatch, without_trial
):
    def no_other(*_):
        raise AssertionError("Noise of another generator.")

    monkeypatch.setattr(gaussian_lib, "_bits", no_other)
    model = _compiled(run_eagerly=run_eagerly)
    first, second = _noise_of_a_step(model), _noise_of_a_step(model)
    for found in (first, second):
        helpers.assert_normal(found, 0.85, (0.94, 1.06, 2.0, 0.5))
    assert np.abs(np.corrcoef(first, second)[0, 1]) < 6 / np.sqrt(len(first))


def test_adaptive_counts_get_noise_of_the_stream(monkeypatch, without_trial):
    def no_other(*_):
        raise AssertionError("Noise of another generator.")

    monkeypatch.setattr(gaussian_lib, "_bits", no_other)
    adaptive = tf_dpfp.clipping.Adaptive(learning_rate=0.2, target_quantile=0.5)
    model = _compiled(tf_dpfp.PerLayer(thresholds=adaptive))
    _noise_of_a_step(model)
    assert model.optimizer.ledger_entries[0].steps == 1


def test_the_option_is_kept_and_is_a_boolean():
    optimizer = tf_dpfp.DPSGD(0.1, noise_multiplier=1.0, secure=True)
    config = optimizer.get_config()
    assert tf_dpfp.DPSGD.from_config(config).secure
    del config["secure"]  # As earlier versions wrote it.
    assert not tf_dpfp.DPSGD.from_config(config).secure
    with pytest.raises(ValueError, match="`secure` must be True or False"):
        tf_dpfp.DPSGD(0.1, noise_multiplier=1.0, secure=1)


def test_what_it_can_not_do_is_refused():
    with pytest.raises(ValueError, match="`seed` makes noise that can be"):
        tf_dpfp.DPSGD(0.1, noise_multiplier=1.0, seed=1, secure=True)
    with pytest.raises(ValueError, match="jit_compile=False. Received"):
        _compiled(jit_compile=True)
    with compilation.tracing_for(compilation.Target.XLA):
        with pytest.raises(ValueError, match="XLA can't compile that"):
            noise.gaussian_noise([3], 1.0, KEY)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(3),
            tf_dpfp.DPRepresentationClip(1.0, 1.0, labels="public"),
            layers.Dense(2),
        ]
    )
    tf_dpfp.make_private(model)
    optimizer = tf_dpfp.DPSGD(0.1, noise_multiplier=1.0, secure=True)
    with pytest.raises(ValueError, match="does not reach the noise of a"):
        model.compile(optimizer, loss="mse", jit_compile=False)


def test_without_the_package_nothing_is_made(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    secure._cipher.cache_clear()
    try:
        with pytest.raises(ImportError, match="pip install tf_dpfp"):
            tf_dpfp.DPSGD(0.1, noise_multiplier=1.0, secure=True)
        tf_dpfp.DPSGD(0.1, noise_multiplier=1.0)
    finally:
        secure._cipher.cache_clear()
