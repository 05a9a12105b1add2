"""The end of the warm-up inside of `fit`: from the weight to the history."""

import inspect

import keras
import numpy as np
import pytest
from keras import layers

import tf_dpfp
from tests.low_rank import strong_carriers

ROWS, COLUMNS, RANK = 12, 9, 2


@pytest.fixture(autouse=True)
def _quick_and_strong(monkeypatch, without_trial):
    strong_carriers.patch(monkeypatch)


class _Follow(keras.callbacks.Callback):
    """Notes what the carriers of every step follow, before the step."""

    def __init__(self, start):
        super().__init__()
        self.start = start
        self.sources = []

    def on_train_batch_begin(self, batch, logs=None):
        kernel = self.model.get_layer("hidden").kernel.numpy()
        carriers = self.model.optimizer.carriers(
            self.model.trainable_variables
        )[0]
        for basis, size in zip(carriers, (ROWS, COLUMNS), strict=True):
            assert basis.shape == (size, RANK)
            gram = basis.numpy().T @ basis.numpy()
            np.testing.assert_allclose(gram, np.eye(RANK), atol=1e-5)
        overlaps = {
            "weight": _overlap(carriers, kernel),
            "history": _overlap(carriers, kernel - self.start),
        }
        found = [name for name, value in overlaps.items() if value > 0.999]
        assert found, overlaps
        self.sources.append("+".join(found))


def _overlap(carriers, matrix):
    """How much of a matrix's leading direction the carriers hold, at least."""
    left, _, right = np.linalg.svd(matrix)
    return min(
        np.linalg.norm(carriers.left.numpy().T @ left[:, 0]),
        np.linalg.norm(carriers.right.numpy().T @ right[0]),
    )


def _model(**settings):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((ROWS,)),
            layers.Dense(COLUMNS, activation="tanh", name="hidden"),
            layers.Dense(4),
        ]
    )
    tf_dpfp.reparametrize(model, RANK, include="hidden", **settings)
    return _compile(tf_dpfp.make_private(model))


def _compile(model):
    optimizer = tf_dpfp.DPAdam(
        0.01, l2_norm_clip=1.0, noise_multiplier=1.0, seed=1
    )
    model.compile(optimizer, loss="mse")
    return model


def _start():
    return _model().get_layer("hidden").kernel.numpy()


def _batches(steps):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8 * steps, ROWS)).astype("float32")
    y = rng.normal(size=(8 * steps, 4)).astype("float32")
    return tf_dpfp.poisson_batches(x, y, expected_batch_size=8, seed=3)


@pytest.mark.parametrize("warmup_steps", [0, 5, None])
def test_the_source_changes_at_the_end_of_the_warm_up(warmup_steps):
    default = (
        inspect.signature(tf_dpfp.reparametrize)
        .parameters["warmup_steps"]
        .default
    )
    settings = {} if warmup_steps is None else {"warmup_steps": warmup_steps}
    expected = default if warmup_steps is None else warmup_steps
    model = _model(**settings)
    follow = _Follow(_start())
    # Two calls of `fit`: the count goes on from one to the next.
    model.fit(_batches(2), callbacks=[follow], verbose=0)
    model.fit(_batches(expected + 2), callbacks=[follow], verbose=0)
    # There is no history before the first step.
    first = max(expected, 1)
    assert follow.sources[:first] == ["weight"] * first
    assert follow.sources[first:] == ["history"] * (expected + 4 - first)


@pytest.mark.parametrize("saved_after", [3, 6])
def test_a_run_resumed_around_the_end_changes_at_the_same_step(
    saved_after, tmp_path
):
    settings = {"warmup_steps": 5}
    start = _start()
    model = _model(**settings)
    model.fit(_batches(saved_after), verbose=0)
    model.save_weights(tmp_path / "saved.weights.h5")
    resumed = _model(**settings)
    resumed.optimizer.build(resumed.trainable_variables)
    resumed.load_weights(tmp_path / "saved.weights.h5")
    _assert_goes_on(resumed, start, steps_of_weight=max(0, 5 - saved_after))


def test_a_file_of_rgp_layers_goes_on_in_the_middle_of_the_warm_up(tmp_path):
    settings = {"warmup_steps": 5}
    start = _start()
    hidden = tf_dpfp.RGPDense(
        COLUMNS, rank=RANK, activation="tanh", name="hidden", **settings
    )
    model = keras.Sequential([keras.Input((ROWS,)), hidden, layers.Dense(4)])
    model.set_weights(_model(**settings).get_weights())
    _compile(tf_dpfp.make_private(model))
    model.fit(_batches(3), verbose=0)
    model.save(tmp_path / "saved.keras")
    resumed = keras.models.load_model(tmp_path / "saved.keras")
    _assert_goes_on(tf_dpfp.make_private(resumed), start, steps_of_weight=2)


def _assert_goes_on(model, start, steps_of_weight):
    follow = _Follow(start)
    model.fit(_batches(4), callbacks=[follow], verbose=0)
    steps_of_history = 4 - steps_of_weight
    assert follow.sources == (
        ["weight"] * steps_of_weight + ["history"] * steps_of_history
    )
