"""No private step runs with products that are coarser than float32."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_dpfp
from tf_dpfp import compilation
from tf_dpfp.compilation import precision

X = np.ones((4, 3), np.float32)
Y = np.array([0, 1, 0, 1])
enabled = tf.config.experimental.tensor_float_32_execution_enabled
enable = tf.config.experimental.enable_tensor_float_32_execution


@pytest.fixture(autouse=True)
def tf32():
    """TensorFlow's own setting, before and after."""
    before = enabled()
    enable(True)
    yield
    enable(before)


@pytest.fixture
def gpu(monkeypatch):
    """A list of devices that has a GPU; nothing is placed on it."""
    listed = tf.config.list_physical_devices()
    gpu = tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")
    monkeypatch.setattr(
        tf.config, "list_physical_devices", lambda *_: [*listed, gpu]
    )
    precision.has_accelerator.cache_clear()
    yield
    precision.has_accelerator.cache_clear()


@pytest.fixture(scope="module")
def model():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    tf_dpfp.make_private(model)
    model.compile(
        tf_dpfp.DPSGD(0.1, noise_multiplier=1.0, expected_batch_size=4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    model.train_on_batch(X, Y)
    return model


@pytest.fixture(scope="module")
def loop(model):
    @tf.function
    def step(x, y):
        model.optimizer.apply(tf_dpfp.loops.clipped_gradients(model, x, y))

    step(X, Y)
    return step


def test_nothing_is_switched_on_cpus(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.train_on_batch(X, Y)
    assert enabled()


@pytest.mark.parametrize("way", ["fit", "train_on_batch", "loop", "eager"])
def test_tf32_is_off_in_every_step_on_a_gpu(gpu, model, loop, way):
    step = {
        "fit": lambda: model.fit(X, Y, batch_size=4, verbose=0),
        "train_on_batch": lambda: model.train_on_batch(X, Y),
        "loop": lambda: loop(X, Y),
        "eager": lambda: tf_dpfp.loops.clipped_gradients(model, X, Y),
    }[way]
    with pytest.warns(UserWarning, match="TF32 was switched off"):
        step()
    assert not enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step()
    enable(True)  # The step is compiled already; it is off at the next call.
    with pytest.warns(UserWarning, match="TF32 was switched off"):
        step()
    assert not enabled()


def test_an_eager_step_has_it_off_before_it_multiplies(gpu, model, monkeypatch):
    seen = []
    matmul = tf.matmul

    def watched(*args, **kwargs):
        seen.append(enabled())
        return matmul(*args, **kwargs)

    monkeypatch.setattr(tf, "matmul", watched)
    weights = np.ones(len(X), np.float32)  # Batches of them are traced anew.
    with pytest.warns(UserWarning, match="TF32"):
        tf_dpfp.loops.clipped_gradients(model, X, Y, weights)
    assert seen and not any(seen)


def test_xla_is_asked_for_the_highest_precision_then():
    function = tf.function(lambda x, y: tf.matmul(x, y), jit_compile=True)
    program = function.experimental_get_compiler_ir(X, X.T)(stage="hlo")
    assert "highest" not in program
    enable(False)
    program = function.experimental_get_compiler_ir(X, X.T)(stage="hlo")
    assert "operand_precision={highest,highest}" in program


@pytest.mark.parametrize("name", precision._ONEDNN_MODES)
def test_a_coarse_mode_of_onednn_is_refused(model, monkeypatch, name):
    monkeypatch.setenv(name, "strict")
    compilation.refuse_coarse_products()
    monkeypatch.setenv(name, "BF16")
    with pytest.raises(RuntimeError, match=f"Received: {name}='BF16'"):
        tf_dpfp.loops.clipped_gradients(model, X, Y)


def test_rewriting_to_mixed_precision_is_refused(model):
    tf.config.optimizer.set_experimental_options(
        {"auto_mixed_precision_onednn_bfloat16": True}
    )
    try:
        with pytest.raises(RuntimeError, match="dtype policy"):
            tf_dpfp.loops.clipped_gradients(model, X, Y)
    finally:
        tf.config.optimizer.set_experimental_options(
            {"auto_mixed_precision_onednn_bfloat16": False}
        )
