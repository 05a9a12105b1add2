"""`fit` with correlated noise: what is released, and what is counted."""

import copy
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tests import helpers
from tests.training import banded_runs
from tests.training.banded_runs import CLIP
from tests.training.banded_runs import NOISE
from tests.training.banded_runs import SIZE
from tests.training.banded_runs import X
from tests.training.banded_runs import Y
from tests.training.banded_runs import assert_of_strategy as _assert_of_strategy
from tests.training.banded_runs import batches as _batches
from tests.training.banded_runs import fit as _fit
from tests.training.banded_runs import only as _only
from tests.training.banded_runs import optimizer as _optimizer
from tests.training.banded_runs import releases as _releases
from tests.training.banded_runs import silent as _silent
from tf_dpfp import accounting
from tf_dpfp import loops
from tf_dpfp.accounting import banded
from tf_dpfp.noise import chain as chain_lib
from tf_dpfp.optimizers import correlation
from tf_dpfp.training import journal

pytestmark = pytest.mark.usefixtures("without_trial")

DELTA = 1e-3


def _model(optimizer=None, **kwargs):
    return helpers.private_line(optimizer or _optimizer(), **kwargs)


@pytest.mark.parametrize(
    ("arguments", "compiled"),
    [
        ({}, {}),
        ({"clipping": "per_layer", "microbatch_size": 4}, {}),
        ({}, {"run_eagerly": True}),
        ({"secure": True}, {}),
    ],
    ids=str,
)
def test_noise_of_steps_has_the_covariance_of_the_strategy(arguments, compiled):
    """One kernel is drawn in pieces, the rest together."""
    if "secure" in arguments:
        pytest.importorskip("cryptography")
    model = _silent(_optimizer(**arguments), **compiled)
    found = _releases(model)
    assert found.shape == (10, 260 * 265)
    strategy = banded.coefficients(3, 10)
    _assert_of_strategy(found, strategy, CLIP * NOISE)


@pytest.mark.parametrize("rescale", [True, False])
def test_noise_is_correlated_in_the_deviations_of_adaptive_clip_norms(rescale):
    """The sums of every step are over the deviations that it draws with."""
    width = 160
    model = _silent(_optimizer(clipping=banded_runs.adaptive(rescale)), width)
    normals = banded_runs.adaptive_normals(model, width)
    strategy = banded.coefficients(3, 10)
    _assert_of_strategy(normals, strategy, 1.0)
    first, second = np.split(normals, [4 * width], axis=1)
    ratio = np.std(first, axis=1) / np.std(second, axis=1)
    np.testing.assert_allclose(ratio, 1.0, atol=6 / np.sqrt(8 * width))
    assert _only(model).noise_multiplier == NOISE


def test_every_fit_begins_with_noise_of_its_own():
    model = _silent(_optimizer(), width=120)
    first, second = _releases(model), _releases(model)
    size = first.shape[1]
    last, begin = first[-1], second[0]
    scale = np.std(last) * np.std(begin) / np.sqrt(size)
    assert abs(np.mean(last * begin)) < 6 * scale
    # As it is within one.
    assert abs(np.mean(first[-1] * first[-2])) > 10 * scale
    deviation = CLIP * NOISE / banded.coefficients(3, 10)[0]
    helpers.assert_normal(begin, deviation, [0.8, 1.2])


def test_noise_that_goes_on_from_one_fit_to_the_next_would_be_seen(monkeypatch):
    """Planted: what was kept of one training is in the next."""
    monkeypatch.setattr(chain_lib.NoiseChain, "_begin_anew", lambda _: None)
    monkeypatch.setattr(chain_lib.NoiseChain, "_forget", lambda _: None)
    # It would be out of turn, which is seen in three ways.
    monkeypatch.setattr(
        chain_lib.tf.debugging, "Assert", lambda *_: tf.constant(0)
    )
    monkeypatch.setattr(chain_lib.NoiseChain, "_check_turns", lambda _: None)
    monkeypatch.setattr(correlation.Turned, "guarded", lambda _, draws: draws)
    model = _silent(_optimizer(), width=40)
    first, second = _releases(model), _releases(model)
    scale = np.std(first[-1]) * np.std(second[0]) / np.sqrt(first.shape[1])
    assert abs(np.mean(first[-1] * second[0])) > 10 * scale


def test_one_band_trains_the_same_weights_as_no_bands():
    """Bit for bit, and with the same row of the ledger."""
    found = []
    for bands, make in (
        (None, tf_dpfp.poisson_batches),
        (1, tf_dpfp.cyclic_poisson_batches),
    ):
        keras.utils.set_random_seed(0)
        model = _model(_optimizer(bands, seed=3))
        _fit(model, make(X, Y, expected_batch_size=SIZE, seed=7), epochs=2)
        found.append((model.get_weights(), tf_dpfp.ledger(model)))
    for a, b in zip(found[0][0], found[1][0], strict=True):
        np.testing.assert_array_equal(a, b)
    assert found[0][1] == found[1][1]
    assert type(found[1][1][0].sampling) is accounting.PoissonSampling


@pytest.mark.parametrize(
    "compiled", [{"run_eagerly": True}, {"steps_per_execution": 2}], ids=str
)
def test_steps_are_counted_with_the_beginning_of_each_fit(compiled):
    model = _model(**compiled)
    _fit(model, epochs=2)
    assert _only(model) == accounting.LedgerEntry(
        accounting.CyclicPoissonSampling(3 * 0.05, parts=3),
        NOISE,
        10 + 2,
        release=accounting.BandedSums(3),
    )
    assert _only(model).rounds == 4
    _fit(model, epochs=1)
    assert _only(model).steps == 10 + 2 + 5 + 2
    by_hand = accounting.LedgerEntry(
        accounting.PoissonSampling(0.15), NOISE, steps=6
    )
    assert tf_dpfp.compute_epsilon(model, DELTA) == pytest.approx(
        accounting.compute_epsilon([by_hand], DELTA)
    )


def test_more_parts_than_bands_are_counted_by_parts():
    model = _model()
    _fit(model, _batches(bands=5))
    assert _only(model).sampling == accounting.CyclicPoissonSampling(
        0.25, parts=5
    )
    assert _only(model).rounds == 1


def test_a_fit_that_ends_early_or_is_cut_keeps_the_turn():
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):  # noqa: ARG002
            self.model.stop_training = batch == 1

    model = _model()
    _fit(model, callbacks=[Stop()])
    assert _only(model).steps == 2 + 2
    # Epochs that end amid an iteration, of 3 and 2 steps in turn.
    _fit(model, epochs=4, steps_per_epoch=3)
    assert _only(model).steps == 4 + 10 + 2


def test_no_file_copy_or_checkpoint_has_the_noise(tmp_path):
    model = _silent(_optimizer(), width=40)
    kept = []

    class Keep(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):  # noqa: ARG002
            chain = self.model.optimizer.correlation._chain
            for several in chain._kept.values():
                kept.extend(v.numpy().astype(np.float32) for v in several)
            if batch == 4:
                self.model.save(tmp_path / "m.keras")
                self.model.save_weights(tmp_path / "m.weights.h5")
                tf.train.Checkpoint(
                    model=self.model, optimizer=self.model.optimizer
                ).write(str(tmp_path / "c"))

    _fit(model, callbacks=[Keep()])
    kept = [noise for noise in kept if np.any(noise)]
    assert len(kept) > 3
    files = [path.read_bytes() for path in tmp_path.iterdir()]
    assert len(files) >= 4
    for noise in kept:
        assert not any(noise[:8].tobytes() in content for content in files)
    shapes = {noise.shape for noise in kept}
    variables = [*model.variables, *model.optimizer.variables]
    assert not shapes & {tuple(v.shape) for v in variables}
    twin = copy.deepcopy(model.optimizer)
    assert twin.correlated_noise == tf_dpfp.Banded(3)
    assert twin.correlation._chain is not model.optimizer.correlation._chain


def test_a_loaded_model_goes_on_with_its_bands_and_counts_a_new_beginning(
    tmp_path,
):
    model = _model()
    _fit(model)
    model.save(tmp_path / "m.keras")
    loaded = tf_dpfp.make_private(keras.saving.load_model(tmp_path / "m.keras"))
    assert loaded.optimizer.correlated_noise == tf_dpfp.Banded(3)
    assert _only(loaded).steps == 7
    _fit(loaded)
    assert _only(loaded).steps == 14


def test_a_new_optimizer_takes_over_the_count():
    model = _model()
    _fit(model)
    model.compile(_optimizer(2), "mse")
    _fit(model)
    assert [(e.release.bands, e.steps) for e in tf_dpfp.ledger(model)] == [
        (3, 7),
        (2, 6),
    ]


def test_steps_outside_of_fit_have_independent_noise_and_no_amplification():
    model = _silent(_optimizer(expected_batch_size=SIZE), width=100)
    x, y = np.zeros((6, 3)), np.zeros((6, 100))
    found = []
    for _ in range(4):
        before = np.concatenate([w.ravel() for w in model.get_weights()])
        model.train_on_batch(x, y)
        after = np.concatenate([w.ravel() for w in model.get_weights()])
        found.append((before - after) * SIZE)
    helpers.assert_normal(found, CLIP * NOISE, [0.9, 1.1])
    covariance = np.corrcoef(found)[np.triu_indices(4, 1)]
    assert np.max(np.abs(covariance)) < 6 / np.sqrt(found[0].size)
    assert _only(model) == accounting.LedgerEntry(
        accounting.UnknownSampling(), NOISE, 4
    )
    model.optimizer.apply(loops.clipped_gradients(model, x, y))
    assert _only(model).steps == 5


def test_a_callback_may_not_step_meanwhile():
    class Steps(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):  # noqa: ARG002
            self.model.train_on_batch(X[:4], Y[:4])

    with pytest.raises(RuntimeError, match="no other step"):
        _fit(_model(), callbacks=[Steps()])


def test_a_callback_may_evaluate_privately_meanwhile():
    """It is counted beside the steps, and leaves their noise as it is."""
    model = _silent(_optimizer())
    correct = tf_dpfp.PrivateEvaluation(
        (X, Y), 40.0, correct=lambda y, y_pred: y[0] < y_pred[0]
    )
    budget = tf_dpfp.PrivacyBudget(100.0, DELTA)
    found = _releases(model, callbacks=[budget, correct])
    _assert_of_strategy(found, banded.coefficients(3, 10), CLIP * NOISE)
    counted = {e.release: e.steps for e in tf_dpfp.ledger(model)}
    assert counted == {
        accounting.BandedSums(3): 10 + 2,
        accounting.Evaluation(): 2,
    }


def test_a_second_fit_of_another_thread_is_refused():
    model, errors = _model(), []

    class Fits(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):  # noqa: ARG002
            if errors:
                return

            def second():
                try:
                    model.fit(_batches(), verbose=0)
                except RuntimeError as error:
                    errors.append(str(error))

            thread = threading.Thread(target=second)
            thread.start()
            thread.join()

    _fit(model, callbacks=[Fits()])
    assert len(errors) == 1 and "Another `fit`" in errors[0]


def test_other_weights_amid_a_fit_are_refused():
    class Freeze(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):  # noqa: ARG002
            self.model.layers[0].trainable = False

    model = _silent(_optimizer(), width=40, run_eagerly=True)
    with pytest.raises(tf.errors.InvalidArgumentError, match="weights"):
        _fit(model, callbacks=[Freeze()])


def test_other_weights_of_the_same_shape_amid_a_fit_are_refused():
    class Swap(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):  # noqa: ARG002
            first, second = self.model.layers[:2]
            first.trainable, second.trainable = False, True

    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(3), layers.Dense(3), layers.Dense(1)]
    )
    tf_dpfp.make_private(model)
    model.compile(_optimizer(), loss="mse", run_eagerly=True)
    model.optimizer.build(model.trainable_variables)
    model.layers[1].trainable = False
    with pytest.raises(tf.errors.InvalidArgumentError, match="weights"):
        _fit(model, callbacks=[Swap()])


def test_an_order_that_is_not_the_schedules_is_refused():
    banded_runs.assert_one_part_over_and_over_is_refused(_model())


@pytest.mark.parametrize("bands", ["best", 3])
def test_noise_is_found_for_the_budget(bands, capsys):
    x = np.random.default_rng(1).normal(size=(3000, 3)).astype(np.float32)
    batches = tf_dpfp.cyclic_poisson_batches(
        x, x[:, :1], expected_batch_size=50
    )
    model = _model(_optimizer(bands, noise_multiplier="calibrate"))
    budget = tf_dpfp.PrivacyBudget(3.0, 1e-5)
    history = _fit(model, batches, epochs=2, callbacks=[budget])
    assert int(model.optimizer.iterations) == 120
    assert len(history.epoch) == 2
    found = tf_dpfp.compute_epsilon(model, 1e-5)
    assert 0.999 * 3.0 <= found <= 3.0
    said = capsys.readouterr().out
    entry = _only(model)
    chosen = entry.release.bands
    assert entry.steps == 120 + chosen - 1
    assert (
        f"120 steps of Poisson sampling at rate {50 * chosen / 3000:.4g}"
        in (said)
    )
    if bands == "best":
        assert chosen > 1 and f"Bands: {chosen}." in said
        assert model.optimizer.correlated_noise == tf_dpfp.Banded(chosen)
    # The budget is filled: nothing more is trained, and it says so.
    assert not _fit(model, batches, callbacks=[budget]).epoch
    assert tf_dpfp.compute_epsilon(model, 1e-5) == found


def test_one_band_is_best_for_many_passes(capsys):
    model = _model(_optimizer("best", noise_multiplier="calibrate"))
    batches = tf_dpfp.cyclic_poisson_batches(X, Y, expected_batch_size=50)
    _fit(
        model,
        batches,
        epochs=40,
        callbacks=[tf_dpfp.PrivacyBudget(1.0, 1e-4)],
    )
    assert "Bands: 1, which is independent noise" in capsys.readouterr().out
    assert _only(model).sampling == accounting.PoissonSampling(0.25)
    assert _only(model).steps == 160


def test_a_budget_stops_before_the_round_that_would_exceed_it():
    allowed = accounting.LedgerEntry(
        accounting.PoissonSampling(0.15), NOISE, steps=3
    )
    epsilon = accounting.compute_epsilon([allowed], DELTA) * 1.0001
    model = _model()
    budget = tf_dpfp.PrivacyBudget(epsilon, DELTA)
    _fit(model, epochs=5, callbacks=[budget])
    # Three rounds of three steps: the tenth would begin another.
    assert int(model.optimizer.iterations) == 9
    assert _only(model).rounds == 3
    assert tf_dpfp.compute_epsilon(model, DELTA) <= epsilon


class _KillAt(keras.callbacks.Callback):
    def __init__(self, steps=1):
        super().__init__()
        self.left = steps

    def on_train_batch_end(self, batch, logs=None):  # noqa: ARG002
        self.left -= 1
        if not self.left:
            raise InterruptedError


def test_a_killed_training_counts_the_beginning_too(tmp_path):
    """The first step is on the disk as what it counts, before it runs."""
    model = _model()
    backup = tf_dpfp.BackupAndRestore(str(tmp_path / "b"))
    with pytest.raises(InterruptedError):
        _fit(model, callbacks=[backup, _KillAt()])
    counted = _only(model)
    assert counted.steps == 3 and counted.rounds == 1
    resumed = _model()
    resumed.build((None, 3))
    with pytest.warns(UserWarning, match="They stay counted"):
        _fit(resumed, callbacks=[tf_dpfp.BackupAndRestore(str(tmp_path / "b"))])
    assert _only(resumed).steps >= counted.steps + 5 + 2


def test_a_later_fit_that_is_killed_counts_its_beginning_too(tmp_path):
    """After an interruption the journal notes the steps of any `fit`."""
    model = _model()
    backup = tf_dpfp.BackupAndRestore(str(tmp_path / "b"))
    for callbacks in ([backup, _KillAt()], [_KillAt()]):
        with pytest.raises(InterruptedError):
            _fit(model, callbacks=callbacks)
    assert _only(model).steps == 2 * 3
    # As another process finds it.
    (found,) = journal.Journal(tmp_path / "b.ledger").entries()
    assert found == _only(model)
    # Steps after the first count as one.
    with pytest.raises(InterruptedError):
        _fit(model, epochs=2, callbacks=[_KillAt(4)])
    (found,) = journal.Journal(tmp_path / "b.ledger").entries()
    assert found == _only(model) and found.steps == 2 * 3 + 4 + 2


class TestRefused:
    def test_other_data(self):
        for data in (
            (X, Y),
            (tf_dpfp.poisson_batches(X, Y, expected_batch_size=10),),
            (_batches().map(lambda x, y: (x, y)),),
        ):
            with pytest.raises(ValueError, match="far enough apart"):
                _model(_optimizer(expected_batch_size=SIZE)).fit(
                    *data, verbose=0
                )

    def test_fewer_parts_than_bands(self):
        with pytest.raises(ValueError, match="fewer parts than bands"):
            _fit(_model(), _batches(bands=2))

    def test_more_bands_than_batches(self):
        with pytest.raises(ValueError, match="fewer bands"):
            _fit(_model(_optimizer(30)))

    def test_class_weights(self):
        with pytest.raises(ValueError, match="class_weight"):
            _fit(_model(), class_weight={0: 1.0})

    def test_loops(self):
        model = _model()
        with pytest.raises(ValueError, match="in `fit` alone"):
            with loops.sampled_steps(model, _batches()):
                pass

    def test_representations(self):
        model = keras.Sequential(
            [
                keras.Input((3,)),
                layers.Dense(2),
                tf_dpfp.DPRepresentationClip(
                    1.0, noise_multiplier=1.0, labels="public"
                ),
                layers.Dense(1),
            ]
        )
        tf_dpfp.make_private(model)
        with pytest.raises(ValueError, match="DPRepresentationClip"):
            model.compile(_optimizer(), "mse")

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"bands": "best"}, "calibrate"),
            ({"bands": 0}, "bands"),
            ({"bands": 65}, "bands"),
            ({"bands": "most"}, "bands"),
        ],
    )
    def test_settings(self, arguments, words):
        with pytest.raises(ValueError, match=words):
            _optimizer(**arguments)

    def test_what_is_no_setting(self):
        with pytest.raises(ValueError, match="correlated_noise"):
            tf_dpfp.DPSGD(1.0, noise_multiplier=1.0, correlated_noise=4)
