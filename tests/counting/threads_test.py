"""Steps of several threads: each is counted, and has noise of its own."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_dpfp
from tests import helpers
from tf_dpfp import accounting
from tf_dpfp import counting
from tf_dpfp import noise

pytestmark = pytest.mark.usefixtures("without_trial")

THREADS, STEPS = 8, 1000
SUMS = counting.GaussianRelease(1.0, 1.0)
X = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
Y = X.sum(axis=1, keepdims=True)


def _in_threads(*functions):
    """Runs each function in a thread of its own; all start together."""
    start = threading.Barrier(len(functions))
    errors = []

    def run(function):
        try:
            start.wait(60)
            function()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [
        threading.Thread(target=run, args=(function,), daemon=True)
        for function in functions
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert not errors, errors
    assert not any(thread.is_alive() for thread in threads)


def _ledger():
    return counting.Ledger(
        keras.Variable(np.zeros(counting.TABLE_SHAPE), dtype="float64")
    )


def _compiled(function, way):
    if way == "eager":
        return function
    return tf.function(function, jit_compile=way == "xla", autograph=False)


WAYS = pytest.mark.parametrize("way", ["eager", "compiled", "xla"])


@WAYS
def test_no_count_of_a_thread_is_lost(way):
    ledger = _ledger()
    step = _compiled(lambda: ledger.count_step(SUMS), way)
    step()
    each = STEPS if way == "compiled" else STEPS // THREADS

    def steps():
        for _ in range(each):
            step()

    _in_threads(*[steps] * THREADS)
    (entry,) = ledger.entries()
    assert entry.steps == 1 + each * THREADS


def test_rows_are_written_beside_the_steps_of_other_threads():
    ledger = _ledger()
    step = _compiled(lambda: ledger.count_step(SUMS), "compiled")
    step()
    other = accounting.LedgerEntry(
        accounting.EveryLabel(10, 3), 1.0, 1, False, accounting.Labels()
    )

    def steps():
        for _ in range(STEPS // 4):
            step()

    def write():
        for rate in range(1, 21):
            ledger.locate(
                counting.Claim(SUMS, accounting.PoissonSampling(rate / 100))
            )
            ledger.add(other)
            ledger.keep_greater(ledger.entries())

    _in_threads(*[steps] * 4, write, write)
    entries = ledger.entries()
    assert other in entries
    assert sum(e.steps for e in entries if e != other) == 1 + STEPS
    # No kind has two rows.
    assert len(entries) == len({counting.rows.kind(e) for e in entries})


@WAYS
@pytest.mark.parametrize("seed", [None, 5])
def test_no_two_steps_draw_by_the_same_key(way, seed):
    source = noise.NoiseSource(seed)
    source.build()
    # With a seed steps that run at the same time say the same number.
    before = None if seed is None else tf.constant(0, tf.int64)
    next_step = _compiled(lambda: source.next_step(before), way)
    keys = []

    def steps():
        for _ in range(STEPS // THREADS):
            keys.append(int(next_step()))

    _in_threads(*[steps] * THREADS)
    assert len(set(keys)) == STEPS
    # One stride between neighbours: as many tensors and replicas as may be.
    base = min(keys, key=lambda k: (k - int(source._key)) % 2**64)
    offsets = sorted((k - base) % 2**64 for k in keys)
    assert offsets == [n * 2**32 for n in range(STEPS)]


def _model(expected_batch_size=20):
    return helpers.private_line(
        tf_dpfp.DPSGD(
            0.01,
            noise_multiplier=1.0,
            expected_batch_size=expected_batch_size,
        )
    )


def _step_of(model):
    @tf.function
    def step():
        model.optimizer.apply(tf_dpfp.loops.clipped_gradients(model, X, Y))

    step()
    return step


def _total(model):
    return sum(entry.steps for entry in tf_dpfp.ledger(model))


def test_one_model_trains_in_several_threads():
    model = _model()
    step = _step_of(model)

    def steps():
        for _ in range(100):
            step()

    _in_threads(*[steps] * THREADS)
    assert _total(model) == 1 + 100 * THREADS


def test_two_models_train_in_two_threads():
    models = [_model(5), _model(5)]

    def train(model):
        def run():
            model.fit(
                tf_dpfp.poisson_batches(
                    X, Y, expected_batch_size=5, steps_per_epoch=40
                ),
                verbose=0,
            )
            model.train_on_batch(X, Y)

        return run

    _in_threads(*map(train, models))
    for model in models:
        counts = {type(e.sampling): e.steps for e in tf_dpfp.ledger(model)}
        assert counts == {
            accounting.PoissonSampling: 40,
            accounting.UnknownSampling: 1,
        }
