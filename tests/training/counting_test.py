"""The ledger counts what ran, whatever happens around it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_dpfp
from tests import helpers
from tests import programs
from tf_dpfp import counting

pytestmark = pytest.mark.usefixtures("without_trial")

X = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
Y = X.sum(axis=1, keepdims=True)
RATE = 8 / 64


def _optimizer(noise_multiplier=1.0, **kwargs):
    return tf_dpfp.DPSGD(0.01, noise_multiplier=noise_multiplier, **kwargs)


def _model(optimizer=None, **kwargs):
    return helpers.private_line(optimizer or _optimizer(), **kwargs)


def _poisson(steps=4):
    return tf_dpfp.poisson_batches(
        X, Y, expected_batch_size=8, steps_per_epoch=steps
    )


def _counts(model):
    """Steps by kind: (poisson, others)."""
    poisson = others = 0
    for entry in tf_dpfp.ledger(model):
        if hasattr(entry.sampling, "sampling_rate"):
            assert entry.sampling.sampling_rate == RATE
            poisson += entry.steps
        else:
            others += entry.steps
    return poisson, others


def test_fit_on_the_tagged_data_set_is_poisson_and_nothing_else_is():
    model = _model()
    batches = _poisson(3)
    model.fit(batches, epochs=2, verbose=0)
    assert _counts(model) == (6, 0)
    # Outside `fit`, its claim is over.
    for x, y in batches:
        model.optimizer.apply(tf_dpfp.loops.clipped_gradients(model, x, y))
    assert _counts(model) == (6, 3)
    # Derived data sets prove nothing.
    model.fit(batches.map(lambda x, y: (x, y)), verbose=0)
    assert _counts(model) == (6, 6)
    model.fit(X, Y, batch_size=32, verbose=0)
    assert _counts(model) == (6, 8)
    model.train_on_batch(X[:4], Y[:4])
    assert _counts(model) == (6, 9)
    model.fit(batches, verbose=0)
    assert _counts(model) == (9, 9)
    # Inside `sampled_steps`, the caller makes the claim.
    with tf_dpfp.loops.sampled_steps(model, batches):
        for x, y in batches:
            model.optimizer.apply(tf_dpfp.loops.clipped_gradients(model, x, y))
    assert _counts(model) == (12, 9)
    with pytest.raises(ValueError, match="proves nothing"):
        with tf_dpfp.loops.sampled_steps(model, batches.take(2)):
            pass


def test_steps_per_execution_and_microbatches_count_updates():
    model = _model(_optimizer(microbatch_size=3), steps_per_execution=3)
    model.fit(_poisson(7), verbose=0)
    assert _counts(model) == (7, 0)
    assert int(model.optimizer.iterations) == 7


def test_empty_batches_count():
    batches = tf_dpfp.poisson_batches(
        X, Y, sampling_rate=1e-9, steps_per_epoch=5
    )
    model = _model(_optimizer(expected_batch_size=None))
    model.fit(batches, verbose=0)
    assert [e.steps for e in tf_dpfp.ledger(model)] == [5]
    assert np.all(np.isfinite(model.get_weights()[0]))


def test_an_exception_in_the_middle_of_fit_keeps_the_steps():
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 1:
                raise KeyboardInterrupt

    model = _model()
    with pytest.raises(KeyboardInterrupt):
        model.fit(_poisson(), verbose=0, callbacks=[Stop()])
    assert _counts(model) == (2, 0)
    model.train_on_batch(X[:4], Y[:4])
    assert _counts(model) == (2, 1)


@pytest.mark.parametrize("kind", ["model.keras", "model.weights.h5"])
def test_saving_and_loading(tmp_path, kind):
    model = _model()
    model.fit(_poisson(), verbose=0)
    path = tmp_path / kind
    if kind == "model.keras":
        model.save(path)
        loaded = keras.models.load_model(path)
        # An ordinary model with a private optimizer: it refuses to train.
        assert not tf_dpfp.loops.is_private(loaded)
        with pytest.raises(
            tf_dpfp.errors.NotPrivateError, match="make_private"
        ):
            loaded.fit(X, Y, verbose=0)
        tf_dpfp.make_private(loaded)
    else:
        model.save_weights(path)
        loaded = _model()
        loaded.optimizer.build(loaded.trainable_variables)
        loaded.load_weights(path)
    assert tf_dpfp.ledger(loaded) == tf_dpfp.ledger(model)
    loaded.fit(_poisson(2), verbose=0)
    assert _counts(loaded) == (6, 0)
    # Without a data set that says it: the batch size was saved.
    loaded.fit(X, Y, batch_size=32, verbose=0)
    assert _counts(loaded) == (6, 2)


def test_a_seeded_sampling_is_told_after_loading(tmp_path):
    model = _model()
    batches = tf_dpfp.poisson_batches(X, Y, expected_batch_size=8, seed=1)
    model.fit(batches, verbose=0)
    assert "SEEDED" in tf_dpfp.privacy_statement(model, 1e-5)
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = tf_dpfp.make_private(keras.models.load_model(path))
    assert "SEEDED" in tf_dpfp.privacy_statement(loaded, 1e-5)
    fresh = _model()
    fresh.fit(_poisson(), verbose=0)
    assert "SEEDED" not in tf_dpfp.privacy_statement(fresh, 1e-5)


def _load_weights(model, tmp_path):
    path = tmp_path / "w.weights.h5"
    model.save_weights(path)
    return lambda: model.load_weights(path)


def _load_checkpoint(model, tmp_path):
    checkpoint = tf.train.Checkpoint(model=model)
    path = checkpoint.save(str(tmp_path / "c"))
    return lambda: checkpoint.restore(path)


@pytest.mark.parametrize("saved_by", [_load_weights, _load_checkpoint])
def test_an_older_checkpoint_never_lowers_the_count(tmp_path, saved_by):
    model = _model()
    model.fit(_poisson(), verbose=0)
    weights = model.get_weights()
    restore = saved_by(model, tmp_path)
    model.fit(_poisson(), epochs=2, verbose=0)
    model.train_on_batch(X[:4], Y[:4])
    assert _counts(model) == (12, 1)
    restore()
    np.testing.assert_array_equal(model.get_weights()[0], weights[0])
    assert _counts(model) == (12, 1)
    # The step is compiled already, and must find its row again.
    model.fit(_poisson(3), verbose=0)
    assert _counts(model) == (15, 1)


@pytest.mark.parametrize("saved_by", [_load_weights, _load_checkpoint])
def test_loading_between_the_steps_of_a_loop_loses_nothing(tmp_path, saved_by):
    model = _model(_optimizer(expected_batch_size=8))

    @tf.function
    def step(x, y):
        model.optimizer.apply(tf_dpfp.loops.clipped_gradients(model, x, y))

    x, y = tf.constant(X[:8]), tf.constant(Y[:8])
    for _ in range(3):
        step(x, y)
    restore = saved_by(model, tmp_path)
    for _ in range(2):
        step(x, y)
    restore()
    for _ in range(4):
        step(x, y)
    assert _counts(model) == (0, 9)


def test_a_checkpoint_of_another_history_joins_the_ledger(tmp_path):
    first = _model()
    first.fit(_poisson(), verbose=0)
    first.train_on_batch(X[:4], Y[:4])
    tf.train.Checkpoint(model=first).save(str(tmp_path / "c"))
    # Its rows are in another order.
    second = _model()
    second.train_on_batch(X[:4], Y[:4])
    second.train_on_batch(X[:4], Y[:4])
    tf.train.Checkpoint(model=second).restore(
        tf.train.latest_checkpoint(str(tmp_path))
    )
    assert _counts(second) == (4, 2)
    second.train_on_batch(X[:4], Y[:4])
    second.fit(_poisson(2), verbose=0)
    assert _counts(second) == (6, 3)


def test_restoring_at_the_start_of_fit_keeps_the_proof(tmp_path):
    path = tmp_path / "model.weights.h5"
    model = _model()
    model.fit(
        _poisson(),
        verbose=0,
        callbacks=[
            keras.callbacks.ModelCheckpoint(path, save_weights_only=True)
        ],
    )

    class Restore(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.model.load_weights(path)

    again = _model()
    again.fit(_poisson(2), verbose=0, callbacks=[Restore()])
    assert _counts(again) == (6, 0)


def test_recompiling_with_a_new_optimizer_adds_up():
    model = _model()
    model.fit(_poisson(), verbose=0)
    model.compile(
        tf_dpfp.DPAdam(0.01, noise_multiplier=2.0, l2_norm_clip=0.1),
        loss="mse",
    )
    assert _counts(model) == (4, 0)
    model.fit(_poisson(), verbose=0)
    assert sorted(
        (e.noise_multiplier, e.steps) for e in tf_dpfp.ledger(model)
    ) == [(1.0, 4), (2.0, 4)]
    # The same optimizer again counts nothing twice.
    model.compile(model.optimizer, loss="mae")
    assert _counts(model) == (8, 0)


def test_an_optimizer_of_another_model_is_refused():
    optimizer = _optimizer()
    first, late = _model(optimizer), _model(optimizer)
    first.fit(X, Y, verbose=0)
    counts = _counts(first)
    with pytest.raises(ValueError, match="built for another model"):
        _model(optimizer)
    # Compiled before the optimizer was built.
    with pytest.raises(ValueError, match="built for another model"):
        late.fit(X, Y, verbose=0)
    assert _counts(first) == counts


def test_state_that_does_not_fit_is_refused(tmp_path):
    model = _model(tf_dpfp.DPAdam(0.01, noise_multiplier=1.0))
    model.fit(_poisson(), verbose=0)
    model.save_weights(tmp_path / "w.weights.h5")
    other = _model(_optimizer())
    other.optimizer.build(other.trainable_variables)
    with pytest.raises(ValueError, match="ledger would be lost"):
        other.load_weights(tmp_path / "w.weights.h5")


@pytest.mark.parametrize("copy", ["clone", "copy", "deepcopy"])
def test_a_copy_is_not_private_and_refuses(copy):
    import copy as copy_lib

    model = _model()
    model.fit(_poisson(), verbose=0)
    if copy == "clone":
        twin = keras.models.clone_model(model)
        twin.compile(_optimizer(), loss="mse")
    else:
        twin = getattr(copy_lib, copy)(model)
    assert not tf_dpfp.loops.is_private(twin)
    with pytest.raises(tf_dpfp.errors.NotPrivateError):
        twin.fit(X, Y, verbose=0)
    # The original does not notice.
    model.fit(_poisson(), verbose=0)
    assert _counts(model) == (8, 0)


class _Killed(BaseException):
    """Ends a training as a kill does: nothing is tidied up."""


def test_backup_and_restore_after_a_kill(tmp_path):
    """With Keras's callback, which knows of no ledger."""

    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise _Killed

    def train(*callbacks):
        model = _model(tf_dpfp.DPAdam(0.01, noise_multiplier=1.0))
        budget = tf_dpfp.PrivacyBudget(None, 1e-3)
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        # The budget looks at the ledger first, the backup restores it second.
        history = model.fit(
            _poisson(),
            epochs=4,
            verbose=0,
            callbacks=[budget, backup, *callbacks],
        )
        return model, history

    with pytest.raises(_Killed):
        train(Kill())
    model, history = train()
    (entry,) = tf_dpfp.ledger(model)
    assert entry.steps == 16 and model.optimizer.iterations == 16
    assert isinstance(entry.sampling, tf_dpfp.accounting.PoissonSampling)
    spent = tf_dpfp.compute_epsilon(model, 1e-3)
    assert history.history["epsilon"][-1] == spent


_PLAIN = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "tf_dpfp":
            raise ImportError("blocked")
sys.meta_path.insert(0, Blocked())
import keras, numpy as np
model = keras.models.load_model(sys.argv[1], compile=False)
assert "tf_dpfp" not in sys.modules
assert type(model) is keras.Sequential
np.save(sys.argv[2], model.predict(np.load(sys.argv[3]), verbose=0))
"""


def test_a_saved_model_needs_nothing_of_this_package(tmp_path):
    model = _model()
    model.fit(_poisson(), verbose=0)
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", X)
    files = [tmp_path / name for name in ("model.keras", "y.npy", "x.npy")]
    programs.run(["-c", _PLAIN, *files], tmp_path, check=True)
    np.testing.assert_allclose(
        np.load(tmp_path / "y.npy"), model.predict(X, verbose=0), atol=1e-6
    )


def _claim(model, rate):
    """A claim of the optimizer, announced."""
    sampling = tf_dpfp.accounting.PoissonSampling(rate)
    claims = model.optimizer.claims(sampling)
    return counting.announced(None, claims, drawn=True)


def test_the_ledger_holds_1024_kinds_and_refuses_the_next():
    model = _model(_optimizer(expected_batch_size=8))
    for kind in range(1, 1024):
        with _claim(model, kind / 2000):
            pass
    # And unknown sampling makes 1024.
    model.train_on_batch(X[:8], Y[:8])
    with pytest.raises(ValueError, match="is full"):
        with _claim(model, 0.9):
            pass
    assert _counts(model)[1] == 1
