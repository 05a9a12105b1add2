"""The noise multiplier that `fit` finds for its budget."""

import keras
import numpy as np
import pytest

import tf_dpfp
from tests import helpers
from tf_dpfp import accounting
from tf_dpfp import clipping

pytestmark = pytest.mark.usefixtures("without_trial")

X = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
Y = X.sum(axis=1, keepdims=True)
DELTA, EPSILON = 1e-3, 2.0


def _model(optimizer=None, compiled=None, **kwargs):
    optimizer = optimizer or tf_dpfp.DPSGD(
        0.01, noise_multiplier="calibrate", **kwargs
    )
    return helpers.private_line(optimizer, **(compiled or {}))


def _batches(steps=4):
    return tf_dpfp.poisson_batches(
        X, Y, expected_batch_size=20, steps_per_epoch=steps
    )


def _budget(epsilon=EPSILON, delta=DELTA, **kwargs):
    return tf_dpfp.PrivacyBudget(epsilon, delta, **kwargs)


def _fit(model, data=None, epochs=2, callbacks=None, **kwargs):
    data = (_batches(),) if data is None else data
    callbacks = [_budget()] if callbacks is None else callbacks
    return model.fit(
        *data, epochs=epochs, verbose=0, callbacks=callbacks, **kwargs
    )


def _steps(model):
    return [entry.steps for entry in tf_dpfp.ledger(model)]


def _assert_filled(model, steps, epsilon=EPSILON, accountant="rdp"):
    assert sum(_steps(model)) == steps
    found = tf_dpfp.compute_epsilon(model, DELTA, accountant)
    assert 0.999 * epsilon <= found <= epsilon


def test_the_noise_is_found_printed_once_and_fills_the_budget(capsys):
    model = _model()
    assert model.optimizer.noise_multiplier == "calibrate"
    assert tf_dpfp.compute_epsilon(model, DELTA) == 0.0
    _fit(model)
    _assert_filled(model, 8)
    noise = model.optimizer.noise_multiplier
    assert noise == pytest.approx(
        tf_dpfp.calibrate_noise_multiplier(EPSILON, DELTA, 0.1, 8), abs=1e-4
    )
    printed = capsys.readouterr().out
    assert printed.count("Noise multiplier") == 1
    assert f"{noise:.6g}" in printed and "8 steps" in printed
    assert [e.noise_multiplier for e in tf_dpfp.ledger(model)] == [noise]


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        (
            "momentum, per layer, micro-batches",
            {"momentum": 0.9, "clipping": "per_layer", "microbatch_size": 4},
        ),
        (
            "adaptive",
            {
                "clipping": clipping.PerLayer(
                    thresholds=clipping.Adaptive(budget_share=0.2)
                )
            },
        ),
    ],
)
def test_any_split_of_the_noise_has_the_same_total(name, kwargs):
    model = _model(**kwargs)
    _fit(model)
    _assert_filled(model, 8)


def test_carriers_are_counted_as_any_sum():
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(1)]
    )
    tf_dpfp.reparametrize(model, rank=1)
    tf_dpfp.make_private(model)
    model.compile(tf_dpfp.DPSGD(0.01, noise_multiplier="calibrate"), "mse")
    _fit(model)
    _assert_filled(model, 8)


@pytest.mark.slow
def test_pld_finds_less_noise():
    model = _model()
    _fit(model, callbacks=[_budget(accountant="pld")])
    _assert_filled(model, 8, accountant="pld")
    assert tf_dpfp.compute_epsilon(model, DELTA) > EPSILON


@pytest.mark.parametrize(
    ("data", "kwargs", "steps"),
    [
        ((X, Y), {"batch_size": 50}, 8),
        ((X, Y), {"batch_size": 64, "validation_split": 0.5}, 4),
        ((X, Y), {}, 14),
        ((lambda: _dataset(50).repeat(),), {"steps_per_epoch": 3}, 6),
        ((lambda: _dataset(50),), {}, 8),
    ],
    ids=["arrays", "split", "default", "repeated", "data set"],
)
def test_other_pipelines_get_the_noise_of_no_amplification(data, kwargs, steps):
    model = _model()
    data = tuple(part() if callable(part) else part for part in data)
    _fit(model, data, **kwargs)
    _assert_filled(model, steps)
    # Fixed batches: every example may be in all of them, with 2 clip norms.
    expected = tf_dpfp.calibrate_noise_multiplier(EPSILON, DELTA, 1.0, steps)
    assert model.optimizer.noise_multiplier == pytest.approx(
        2.0 * expected, rel=1e-3
    )


def _dataset(size):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(size)


@pytest.mark.parametrize("in_call", [3, 20])
def test_steps_per_execution_changes_nothing(in_call):
    model = _model(compiled={"steps_per_execution": in_call})
    _fit(model)
    _assert_filled(model, 8)


def test_a_second_fit_goes_on_with_the_same_noise_and_ends_as_done(capsys):
    model = _model()
    _fit(model)
    noise, weights = model.optimizer.noise_multiplier, model.get_weights()
    history = _fit(model, epochs=5)
    assert "reached its budget" in capsys.readouterr().out
    assert history.history == {} and _steps(model) == [8]
    np.testing.assert_equal(model.get_weights(), weights)
    _fit(model, epochs=1, callbacks=[_budget(2 * EPSILON)])
    assert _steps(model) == [12]
    assert model.optimizer.noise_multiplier == noise
    assert EPSILON < tf_dpfp.compute_epsilon(model, DELTA) < 2 * EPSILON


def test_a_cell_run_again_is_done(capsys):
    model = _model()
    _fit(model)
    assert tf_dpfp.make_private(model) is model
    model.compile(tf_dpfp.DPSGD(0.01, noise_multiplier="calibrate"), "mse")
    history = _fit(model)
    assert "reached its budget" in capsys.readouterr().out
    assert history.history == {} and _steps(model) == [8]
    # A greater budget leaves room, of which what ran is a part.
    _fit(model, callbacks=[_budget(2 * EPSILON)])
    assert sum(_steps(model)) == 16 and len(_steps(model)) == 2
    _assert_filled(model, 16, 2 * EPSILON)


def test_a_smaller_budget_than_what_ran_is_refused():
    model = _model()
    _fit(model)
    model.compile(tf_dpfp.DPSGD(0.01, noise_multiplier="calibrate"), "mse")
    with pytest.raises(ValueError, match="exceeded before the first step"):
        _fit(model, callbacks=[_budget(0.5)])
    assert _steps(model) == [8]


def test_until_a_step_is_traced_another_fit_finds_other_noise():
    class Stop(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            raise InterruptedError

    model = _model()
    with pytest.raises(InterruptedError):
        _fit(model, callbacks=[_budget(20.0), Stop()])
    assert model.optimizer.noise_multiplier < 0.6
    _fit(model)
    _assert_filled(model, 8)


def test_files_hold_the_number(tmp_path):
    model = _model()
    _fit(model, epochs=1, callbacks=[_budget(EPSILON)])
    model.save(tmp_path / "model.keras")
    again = tf_dpfp.make_private(
        keras.models.load_model(tmp_path / "model.keras")
    )
    noise = model.optimizer.noise_multiplier
    assert again.optimizer.noise_multiplier == noise
    _fit(again, epochs=1, callbacks=[_budget(2 * EPSILON)])
    assert _steps(again) == [8]
    assert again.optimizer.noise_multiplier == noise


def test_files_of_an_untrained_model_leave_it_open(tmp_path):
    model = _model()
    model.save(tmp_path / "model.keras")
    again = tf_dpfp.make_private(
        keras.models.load_model(tmp_path / "model.keras")
    )
    _fit(again)
    _assert_filled(again, 8)


def test_an_interrupted_training_goes_on_at_the_same_noise(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                raise InterruptedError

    def run(*more):
        model = _model()
        backup = tf_dpfp.BackupAndRestore(str(tmp_path / "backup"))
        _fit(model, epochs=4, callbacks=[_budget(), backup, *more])
        return model

    with pytest.raises(InterruptedError):
        run(Stop())
    _assert_filled(run(), 16)


@pytest.mark.parametrize(
    "attempt",
    [
        lambda m: m.train_on_batch(X, Y),
        lambda m: m.train_step((X, Y)),
        lambda m: m.optimizer.apply(tf_dpfp.loops.clipped_gradients(m, X, Y)),
        lambda m: m.optimizer.next_entry,
        lambda m: tf_dpfp.loops.sampled_steps(m, _batches()).__enter__(),
    ],
    ids=["train_on_batch", "train_step", "loop", "next_entry", "sampled"],
)
def test_no_step_without_a_noise_multiplier(attempt):
    model = _model(expected_batch_size=20)
    before = model.get_weights()
    with pytest.raises(ValueError, match="has no noise multiplier yet"):
        attempt(model)
    np.testing.assert_equal(model.get_weights(), before)
    assert _steps(model) == []


@pytest.mark.parametrize(
    ("callbacks", "kwargs", "message"),
    [
        ([], {}, "takes epsilon and delta from the one budget"),
        ([_budget(None)], {}, "takes epsilon and delta from the one budget"),
        ([_budget(), _budget(3.0)], {}, "2 callbacks with a finite budget"),
        ([_budget()], {"epochs": 0}, "number of steps must be"),
        ([_budget(delta=0.01)], {}, "not below one over the number"),
    ],
)
def test_what_fit_must_know(callbacks, kwargs, message):
    model = _model()
    with pytest.raises(ValueError, match=message):
        _fit(model, callbacks=callbacks, **kwargs)
    assert model.optimizer.noise_multiplier == "calibrate"


def test_a_generator_needs_the_number_of_steps():
    def pairs():
        while True:
            yield X[:20], Y[:20]

    model = _model(expected_batch_size=20)
    with pytest.raises(ValueError, match="Give `fit` `steps_per_epoch=`"):
        _fit(model, (pairs(),))
    _fit(model, (pairs(),), steps_per_epoch=4)
    _assert_filled(model, 8)


@pytest.mark.parametrize("value", ["Calibrate", "1.0", "auto", None])
def test_other_words_are_refused(value):
    with pytest.raises(ValueError, match="calibrate"):
        tf_dpfp.DPSGD(0.1, noise_multiplier=value)


def test_a_traced_step_keeps_its_noise():
    model = _model()
    _fit(model)
    with pytest.raises(RuntimeError, match="traced already"):
        model.optimizer.calibrate(1.0)


def test_released_noise_has_the_scale_that_was_found():
    # One update of no signal: the weights move by the noise alone.
    optimizer = tf_dpfp.DPSGD(
        1.0, noise_multiplier="calibrate", l2_norm_clip=0.5
    )
    model = keras.Sequential([keras.Input((400,)), keras.layers.Dense(50)])
    tf_dpfp.make_private(model)
    model.compile(optimizer, "mse")
    x, y = np.zeros((20, 400), "f"), np.zeros((20, 50), "f")
    kernel = model.layers[0].kernel
    before = kernel.numpy()
    _fit(
        model,
        (tf_dpfp.poisson_batches(x, y, expected_batch_size=20),),
        epochs=1,
        callbacks=[_budget(delta=1e-2)],
    )
    moved = 20.0 * (kernel.numpy() - before)
    expected = 0.5 * model.optimizer.noise_multiplier
    assert moved.std() == pytest.approx(expected, rel=0.03)
    entry = accounting.LedgerEntry(
        accounting.PoissonSampling(1.0), moved.std() / 0.5, 1
    )
    assert accounting.compute_epsilon([entry], 1e-2) == pytest.approx(
        EPSILON, rel=0.05
    )


class _HandsOn(keras.Model):
    """A model whose `fit` names few arguments, as a task of KerasHub."""

    def __init__(self):
        super().__init__(name="model")
        self.dense = keras.layers.Dense(1)

    def call(self, inputs):
        return self.dense(inputs)

    def fit(self, x=None, y=None, batch_size=None, **kwargs):
        return super().fit(x=x, y=y, batch_size=batch_size, **kwargs)


class _HandsOnAll(_HandsOn):
    """A model whose `fit` is decorated, and names no argument."""

    def _wrapper(self, *args, **kwargs):
        return super().fit(*args, **kwargs)

    fit = _wrapper


@pytest.mark.parametrize("kind", [_HandsOn, _HandsOnAll])
def test_a_fit_that_hands_on_its_arguments_is_understood(kind):
    model = kind()
    model(X[:1])
    tf_dpfp.make_private(model)
    model.compile(tf_dpfp.DPSGD(0.01, noise_multiplier="calibrate"), loss="mse")
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(logs["epsilon"])
    )
    # Before the budget: it is put first, or there would be no epsilon yet.
    _fit(model, callbacks=[watch, _budget()])
    _assert_filled(model, 8)
    assert len(seen) == 2 and seen[-1] == tf_dpfp.compute_epsilon(model, DELTA)
    # The batches are found where they are: as the first argument.
    (entry,) = tf_dpfp.ledger(model)
    assert entry.sampling == accounting.PoissonSampling(0.1)
