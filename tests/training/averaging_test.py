"""Averages of the weights: the mean of what was released, where it belongs."""

import keras
import numpy as np
import pytest
from keras import layers

import tf_dpfp
from tests.replicas import common

pytestmark = pytest.mark.usefixtures("without_trial")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 4)).astype(np.float32)
Y = (X[:, :1] > 0).astype(np.float32)
STEPS = 6


class Stopped(Exception):
    pass


class Recorder(keras.callbacks.Callback):
    """Keeps the weights after every call, as the training has them."""

    def __init__(self, stop_after=None):
        super().__init__()
        self.seen, self.stop_after = [], stop_after

    def on_train_begin(self, logs=None):
        self.seen.append(self.model.get_weights())

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(self.model.get_weights())

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.stop_after:
            raise Stopped


def _model(**compiled):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, "tanh"), layers.Dense(1)]
    )
    tf_dpfp.make_private(model)
    optimizer = tf_dpfp.DPAdam(
        0.1,
        l2_norm_clip=0.5,
        noise_multiplier=0.5,
        clipping=tf_dpfp.PerLayer(thresholds="adaptive"),
        seed=3,
    )
    model.compile(optimizer, "mse", metrics=["mae"], **compiled)
    return model


def _fit(model, callbacks, epochs=1, **kwargs):
    # Every example in every step: the same sums, whatever came before.
    batches = tf_dpfp.poisson_batches(
        X, Y, sampling_rate=1.0, steps_per_epoch=STEPS, seed=0
    )
    return model.fit(
        batches, epochs=epochs, callbacks=callbacks, verbose=0, **kwargs
    )


def _assert_weights(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def _averaged(seen, decay, warm_up=True, first=0):
    """The average in float64, from the weights before and after each step."""
    average = [w.astype(np.float64) for w in seen[first]]
    for t, weights in enumerate(seen[first + 1 :]):
        kept = decay
        if decay is None:
            kept = t / (t + 1)
        elif warm_up:
            kept = min(decay, (1 + t) / (10 + t))
        average = [
            kept * a + (1 - kept) * w
            for a, w in zip(average, weights, strict=True)
        ]
    return average


@pytest.fixture(scope="module")
def pair():
    """Two models that are traced once, wherever their weights are by now."""
    return _model(), _model()


@pytest.fixture(scope="module")
def plain():
    """Two epochs without an average, and the weights of every step."""
    model, recorder = _model(), Recorder()
    _fit(model, [recorder], 2)
    return model, recorder.seen


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"decay": 0.4}, {"decay": 0.4}),
        ({"decay": 0.4, "warm_up": False}, {"decay": 0.4, "warm_up": False}),
        (
            {"decay": None, "start_epoch": 1},
            {"decay": None, "first": STEPS},
        ),
    ],
)
def test_averages_are_those_of_the_steps(settings, expected, plain):
    recorder, averaging = (
        Recorder(),
        tf_dpfp.recipes.WeightAveraging(**settings),
    )
    model, (other, seen) = _model(), plain
    _fit(model, [recorder, averaging], 2, validation_data=(X, Y))
    average = _averaged(recorder.seen, **expected)
    _assert_weights(model.get_weights(), average)
    assert averaging.steps == 2 * STEPS - expected.get("first", 0)
    if settings["decay"] is None:
        # That is the mean of the last epoch's weights.
        tail = recorder.seen[STEPS + 1 :]
        means = [np.mean(w, axis=0) for w in zip(*tail, strict=True)]
        _assert_weights(average, means)
    # The training, its clip norms and its ledger are as without.
    for a, b in zip(recorder.seen, seen, strict=True):
        _assert_weights(a, b)
    assert tf_dpfp.ledger(model) == tf_dpfp.ledger(other)
    norms = [list(tf_dpfp.clip_norms(m).values()) for m in (model, other)]
    np.testing.assert_allclose(*norms, rtol=1e-5)
    with averaging.live():
        _assert_weights(model.get_weights(), recorder.seen[-1])


def test_evaluations_see_the_averages_wherever_they_stand(pair):
    model, copy = pair
    model.set_weights(_model().get_weights())
    recorder = Recorder()
    private = tf_dpfp.PrivateEvaluation(
        (X, Y), 1e-5, loss_bound=9.0, num_examples=24
    )
    after = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: logs.update(
            after=float(np.mean((model.predict(X, verbose=0) - Y) ** 2))
        )
    )
    averaging = tf_dpfp.recipes.WeightAveraging(0.9, warm_up=False)
    callbacks = [recorder, private, averaging, after]
    history = _fit(model, callbacks, 2, validation_data=(X, Y)).history
    live = []
    for epoch in (1, 2):
        seen = recorder.seen[: epoch * STEPS + 1]
        losses = []
        for weights in (_averaged(seen, 0.9, warm_up=False), seen[-1]):
            copy.set_weights(weights)
            losses.append(float(np.mean((copy.predict(X, verbose=0) - Y) ** 2)))
        expected, other = losses
        live.append(abs(other - expected))
        for name in ("val_loss", "after", "private_loss"):
            shown = history[name][epoch - 1]
            np.testing.assert_allclose(shown, expected, rtol=2e-3)
    assert min(live) > 0.01, live


def test_the_next_fit_goes_on_from_the_weights_of_the_training():
    once, twice = _model(), _model()
    averaging = tf_dpfp.recipes.WeightAveraging(0.6)
    _fit(once, [tf_dpfp.recipes.WeightAveraging(0.6)], 2)
    _fit(twice, [averaging])
    _fit(twice, [averaging])
    _assert_weights(twice.get_weights(), once.get_weights())
    # Weights that were loaded since are no averages: it begins anew.
    start = [0 * w for w in twice.get_weights()]
    twice.set_weights(start)
    recorder = Recorder()
    _fit(twice, [averaging, recorder])
    _assert_weights(recorder.seen[0], start)
    _assert_weights(twice.get_weights(), _averaged(recorder.seen, 0.6))


class Breaks(keras.callbacks.Callback):
    """Stops within an epoch, as an interrupt does."""

    def on_train_batch_end(self, batch, logs=None):
        if batch == 2:
            raise Stopped


@pytest.mark.parametrize("same_model", [False, True])
def test_nothing_of_a_training_that_broke_off_reaches_the_next(
    same_model, pair
):
    averaging, (first, second) = tf_dpfp.recipes.WeightAveraging(0.6), pair
    with pytest.raises(Stopped):
        _fit(first, [averaging, Breaks()])
    model = first if same_model else second
    # What is released here must come from these weights and its own steps.
    model.set_weights([0 * w for w in model.get_weights()])
    recorder = Recorder()
    _fit(model, [averaging, recorder])
    assert averaging.steps == STEPS
    _assert_weights(model.get_weights(), _averaged(recorder.seen, 0.6))


def test_a_copy_with_the_averages_begins_anew(pair):
    averaging, recorder = tf_dpfp.recipes.WeightAveraging(0.6), Recorder()
    first, model = pair
    _fit(first, [averaging])
    model.set_weights(first.get_weights())
    _fit(model, [averaging, recorder])
    _assert_weights(recorder.seen[0], first.get_weights())
    _assert_weights(model.get_weights(), _averaged(recorder.seen, 0.6))


def test_layers_frozen_in_between_keep_the_weights_of_the_training():
    averaging, model = tf_dpfp.recipes.WeightAveraging(0.6), _model()
    _fit(model, [averaging])
    with averaging.live():
        live = model.get_weights()
    model.layers[0].trainable = False
    model.compile(tf_dpfp.DPSGD(0.1, noise_multiplier=1.0), "mse")
    recorder = Recorder()
    _fit(model, [averaging, recorder])
    _assert_weights(model.layers[0].get_weights(), live[:2])
    _assert_weights(model.get_weights(), _averaged(recorder.seen, 0.6))


@pytest.fixture(scope="module")
def whole():
    """The averages of three epochs in one."""
    model = _model()
    _fit(model, [tf_dpfp.recipes.WeightAveraging(0.8)], 3)
    return model.get_weights()


@pytest.mark.parametrize("is_last", [False, True])
def test_a_backup_brings_the_averages_back(tmp_path, is_last, whole):
    def callbacks(*others):
        found = [
            tf_dpfp.BackupAndRestore(str(tmp_path / "backup")),
            tf_dpfp.recipes.WeightAveraging(0.8),
        ]
        return [*(found if is_last else found[::-1]), *others]

    broken, resumed = _model(), _model()
    with pytest.raises(Stopped):
        _fit(broken, callbacks(Recorder(stop_after=2)), 3)
    again = callbacks()
    _fit(resumed, again, 3)
    _assert_weights(resumed.get_weights(), whole)
    assert sum(e.steps for e in tf_dpfp.ledger(resumed)) == 3 * STEPS


def test_steps_in_one_call_are_counted_one_by_one():
    averaging, recorder = tf_dpfp.recipes.WeightAveraging(0.5), Recorder()
    _fit(_model(steps_per_execution=2), [recorder, averaging])
    assert averaging.steps == STEPS and len(recorder.seen) == STEPS // 2 + 1


def test_two_replicas_average_as_one():
    models = []
    for count in (1, 2):
        model = common.private(count, tf_dpfp.DPSGD)
        common.fit(
            model,
            common.batches(3.5),
            epochs=1,
            callbacks=[tf_dpfp.recipes.WeightAveraging(0.6)],
        )
        models.append(model)
    common.assert_equal_weights(*models)


def test_state_goes_into_checkpoints_of_your_own(pair):
    model, copy = pair
    first, second = (tf_dpfp.recipes.WeightAveraging(0.6) for _ in range(2))
    _fit(model, [first])
    with first.live():
        copy.set_weights(model.get_weights())
    second.set_state(first.get_state())
    recorder = Recorder()
    _fit(copy, [recorder, second])
    assert second.steps == 2 * STEPS
    wrong = tf_dpfp.recipes.WeightAveraging(0.6)
    wrong.set_state({"steps": np.int64(1), "0": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match="do not fit the trainable weights"):
        _fit(model, [wrong])


def test_refusals(pair):
    with pytest.raises(ValueError, match="decay=1"):
        tf_dpfp.recipes.WeightAveraging(1.0)
    with pytest.raises(ValueError, match="start_epoch=-1"):
        tf_dpfp.recipes.WeightAveraging(start_epoch=-1)
    model = _model()
    model.compile(tf_dpfp.DPSGD(0.1, noise_multiplier=1.0, use_ema=True), "mse")
    with pytest.raises(ValueError, match="averages the weights itself"):
        _fit(model, [tf_dpfp.recipes.WeightAveraging()])
    model, _ = pair
    with pytest.raises(ValueError, match="Two WeightAveraging callbacks"):
        _fit(
            model,
            [
                tf_dpfp.recipes.WeightAveraging(0.5),
                tf_dpfp.recipes.WeightAveraging(),
            ],
        )
    _fit(model, [tf_dpfp.recipes.WeightAveraging()])
