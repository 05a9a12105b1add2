"""Correlated noise of low-rank carriers, which turn every few steps."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tests import helpers
from tests.replicas import common
from tests.training import banded_runs as runs
from tf_dpfp import accounting
from tf_dpfp import low_rank
from tf_dpfp.accounting import banded

pytestmark = pytest.mark.usefixtures("without_trial")

BANDS, STEPS, ROWS, COLUMNS, RANK = 3, 16, 120, 90, 5
STRATEGY = banded.coefficients(BANDS, STEPS)
# Of carriers that turn in one space, and keep most of what they had.
_RNG = np.random.default_rng(3)
_WEIGHT = _RNG.normal(size=(ROWS, RANK)) @ _RNG.normal(size=(RANK, COLUMNS))


def _silent(count=1, compiled=None, marks=None, **kwargs):
    """A kernel without gradients, so that what is released of it is noise."""
    with common.strategy(count).scope():
        model = keras.Sequential(
            [keras.Input((ROWS,)), layers.Dense(COLUMNS, use_bias=False)]
        )
        model.set_weights([_WEIGHT])
        tf_dpfp.make_private(model)
        tf_dpfp.reparametrize(
            model, RANK, **({"carrier_source": "weight"} | (marks or {}))
        )
        model.compile(
            runs.optimizer(BANDS, learning_rate=0.01, **kwargs),
            loss=lambda _, y_pred: tf.reduce_sum(0.0 * y_pred),
            **compiled or {},
        )
    return model


def _data():
    x = np.zeros((100, ROWS), np.float32)
    return runs.batches(x, x[:, :1], steps=STEPS)


def _released(monkeypatch, **kwargs):
    """What every step releases of the kernel, and its carriers."""
    found, ordinary = [], low_rank.reconstruct

    def noted(total, carriers, view):
        found.append((total.numpy(), *[c.numpy() for c in carriers]))
        return ordinary(total, carriers, view)

    monkeypatch.setattr(low_rank, "reconstruct", noted)
    model = _silent(compiled={"run_eagerly": True}, **kwargs)
    runs.fit(model, _data())
    count = kwargs.get("count", 1)
    assert len(found) == count * STEPS
    # Of one replica: which releases what the others do.
    return [np.stack(numbers) for numbers in zip(*found[::count], strict=True)]


def _turned(numbers, left, right, left_now, right_now):
    of_left, of_right = np.split(numbers, [ROWS * RANK])
    of_left = of_left.reshape(ROWS, RANK) @ (right.T @ right_now)
    of_right = (left_now.T @ left) @ of_right.reshape(RANK, COLUMNS)
    return np.concatenate([of_left.ravel(), of_right.ravel()])


def _assert_as_proved(numbers, left, right):
    """What the proof takes for independent normals is that."""
    kept, normals = [], []
    for t, own in enumerate(numbers):
        if t:
            turn = left[t - 1], right[t - 1], left[t], right[t]
            kept = [_turned(earlier, *turn) for earlier in kept]
            for a, b in (turn[::2], turn[1::2]):
                assert np.linalg.norm(a.T @ b, 2) < 1 + 1e-5
        kept = [own, *kept][:BANDS]
        normals.append(
            sum(c * earlier for c, earlier in zip(STRATEGY, kept, strict=False))
        )
    normals = np.stack(normals) / (runs.CLIP * runs.NOISE)
    size = normals.shape[1]
    assert size == RANK * (ROWS + COLUMNS)
    covariance = normals @ normals.T / size
    np.testing.assert_allclose(
        covariance, np.eye(STEPS), atol=6 * np.sqrt(2 / size)
    )
    helpers.assert_normal(normals, 1.0, [0.9, 1.1])


@pytest.mark.parametrize("count", [1, 2])
def test_noise_is_that_of_the_proof_though_carriers_turn(count, monkeypatch):
    numbers, left, right = _released(monkeypatch, count=count)
    changes = [t for t in range(1, STEPS) if np.any(left[t] != left[t - 1])]
    # For two steps of every band.
    assert changes == [6, 12]
    _assert_as_proved(numbers, left, right)


def _not_turned(monkeypatch):
    """Takes back in new directions what was in others."""
    monkeypatch.setattr(low_rank, "turned", lambda numbers, *_: numbers)


def _longer(monkeypatch):
    ordinary = low_rank.turned
    monkeypatch.setattr(low_rank, "turned", lambda *args: 2.0 * ordinary(*args))


def _turned_twice(monkeypatch):
    ordinary = low_rank.turned
    monkeypatch.setattr(
        low_rank,
        "turned",
        lambda numbers, *args: ordinary(ordinary(numbers, *args), *args),
    )


@pytest.mark.parametrize("plant", [_not_turned, _longer, _turned_twice])
def test_noise_that_is_not_that_of_the_proof_would_be_seen(plant, monkeypatch):
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        _assert_as_proved(*_released(monkeypatch))


@pytest.mark.parametrize(
    ("count", "marks", "compiled", "arguments"),
    [
        (1, {"carrier_source": "random"}, {}, {"clipping": common.adaptive()}),
        (
            2,
            {"carrier_source": "history", "left_only": True, "warmup_steps": 3},
            {},
            {"clipping": "per_layer", "microbatch_size": 4},
        ),
    ],
    ids=str,
)
def test_it_trains_and_counts_as_without_carriers(
    count, marks, compiled, arguments
):
    model = _silent(count, compiled, marks, **arguments)
    before = model.get_weights()[0]
    runs.fit(model, _data())
    moved = model.get_weights()[0] - before
    assert np.all(np.isfinite(moved)) and np.any(moved)
    assert runs.only(model) == accounting.LedgerEntry(
        accounting.CyclicPoissonSampling(BANDS * 0.1, parts=BANDS),
        runs.NOISE,
        STEPS + BANDS - 1,
        release=accounting.BandedSums(BANDS),
    )
    if count > 1:
        common.assert_same_bits(model, count)


def test_noise_that_is_independent_has_new_carriers_in_every_step():
    """In turn: no state is made for what nothing needs."""
    optimizer = tf_dpfp.DPSGD(0.1, noise_multiplier=1.0)
    model = keras.Sequential([keras.Input((9,)), layers.Dense(8)])
    tf_dpfp.make_private(model)
    tf_dpfp.reparametrize(model, 2, carrier_source="random")
    model.compile(optimizer, "mse")
    x = np.zeros((8, 9), np.float32)
    kernel = model.trainable_variables[:1]
    found = []
    for _ in range(2):
        model.train_on_batch(x, x[:, :8])
        found.append(optimizer.carriers(kernel)[0].left.numpy())
    assert np.any(found[0] != found[1])
