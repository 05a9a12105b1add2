"""A claim of sampling is for the batches that were drawn, and for no others."""

import threading
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tf_dpfp import accounting

N, STEPS = 40, 4
X = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)
Y = (np.arange(N) % 2).astype(np.int32)
UNKNOWN = "UnknownSampling"


def _loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _batches(count=N, **kwargs):
    return tf_dpfp.poisson_batches(
        *(X[:count], Y[:count]),
        expected_batch_size=8,
        steps_per_epoch=STEPS,
        **kwargs,
    )


def _counts(model):
    """Steps by the rate of their sampling; None: nothing is known of it."""
    return {
        getattr(e.sampling, "sampling_rate", None): e.steps
        for e in tf_dpfp.ledger(model)
    }


def _model(**kwargs):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    tf_dpfp.make_private(model)
    optimizer = tf_dpfp.DPSGD(0.1, noise_multiplier=1.0, expected_batch_size=8)
    model.compile(optimizer, _loss(), **kwargs)
    model.chosen = tf.function(lambda: _apply(model))
    return model


@pytest.fixture(scope="module")
def compiled():
    """One model for all ways of a kind: tracing is what takes the time."""
    return _model()


@pytest.fixture(scope="module")
def eager():
    return _model(run_eagerly=True)


def _apply(model):
    model.optimizer.apply(tf_dpfp.loops.clipped_gradients(model, X[:8], Y[:8]))


def _in_thread(function):
    def run(model):
        thread = threading.Thread(target=function, args=(model,))
        thread.start()
        thread.join()

    return run


def _train_function(model):
    data = tf.data.Dataset.from_tensor_slices((X[:8], Y[:8])).batch(8)
    model.train_function(iter(data))


class _At(keras.callbacks.Callback):
    """Does something at one call of one kind."""

    def __init__(self, when, do):
        super().__init__()
        self.do, self.done = do, False
        setattr(self, when, self.act)

    def act(self, *args, **kwargs):
        del args, kwargs
        if not self.done:
            self.done = True
            self.do(self.model)


# What a callback does on eight rows that nobody drew: one step each.
WAYS = {
    "apply": _apply,
    "compiled loop": lambda m: m.chosen(),
    "train_on_batch": lambda m: m.train_on_batch(X[:8], Y[:8]),
    "train_function": _train_function,
    "train_step": lambda m: m.train_step((X[:8], Y[:8])),
    "keras.Model.fit": lambda m: keras.Model.fit(m, X[:8], Y[:8], verbose=0),
    "thread": _in_thread(lambda m: m.chosen()),
    "train_on_batch in a thread": _in_thread(
        lambda m: m.train_on_batch(X[:8], Y[:8])
    ),
}


def _new(model, before):
    return {
        key: count - before.get(key, 0)
        for key, count in _counts(model).items()
        if count != before.get(key, 0)
    }


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("kind", "when"),
    [
        ("compiled", "on_train_batch_begin"),
        ("compiled", "on_train_batch_end"),
        ("eager", "on_train_batch_end"),
    ],
)
def test_steps_of_callbacks_claim_nothing(
    request, without_trial, way, kind, when
):
    del without_trial
    model = request.getfixturevalue(kind)
    before = _counts(model)
    # A claim before, or a step before, must not make a difference.
    with tf_dpfp.loops.sampled_steps(model, _batches()):
        pass
    model.fit(_batches(), verbose=0, callbacks=[_At(when, WAYS[way])])
    assert _new(model, before) == {8 / N: STEPS, None: 1}
    before = _counts(model)
    model.fit(_batches(), verbose=0)
    assert _new(model, before) == {8 / N: STEPS}


def test_a_fit_inside_of_a_fit_has_its_own_claim(compiled, without_trial):
    del without_trial
    before = _counts(compiled)
    inner = _At(
        "on_train_batch_end",
        lambda m: (m.fit(_batches(20), verbose=0), m.chosen()),
    )
    compiled.fit(_batches(), verbose=0, callbacks=[inner])
    assert _new(compiled, before) == {
        8 / N: STEPS,
        8 / 20: STEPS,
        None: 1,
    }


def test_two_threads_fit_one_model_on_two_data_sets(compiled, without_trial):
    del without_trial
    before = _counts(compiled)
    # Each at a time when the other is in the midst of its own.
    meet = threading.Barrier(2)

    class Meet(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            meet.wait(60)

        on_train_batch_end = on_train_batch_begin

    fits = [
        threading.Thread(
            target=compiled.fit,
            args=(_batches(count),),
            kwargs={"verbose": 0, "callbacks": [Meet()]},
        )
        for count in (N, 20)
    ]
    for fit in fits:
        fit.start()
    for fit in fits:
        fit.join()
    assert _new(compiled, before) == {8 / N: STEPS, 8 / 20: STEPS}


@pytest.mark.parametrize("kind", ["compiled", "eager"])
def test_sampled_steps_are_those_of_the_thread(request, without_trial, kind):
    del without_trial
    model = request.getfixturevalue(kind)

    def step(x, y):
        model.optimizer.apply(tf_dpfp.loops.clipped_gradients(model, x, y))

    if kind == "compiled":
        step = tf.function(step, reduce_retracing=True)
    before = _counts(model)
    batches = _batches()
    with tf_dpfp.loops.sampled_steps(model, batches):
        for x, y in batches:
            step(x, y)
            WAYS["thread"](model)
            model.train_on_batch(X[:8], Y[:8])
    step(X[:8], Y[:8])
    assert _new(model, before) == {8 / N: STEPS, None: 2 * STEPS + 1}


def test_loops_in_a_graph_ask_for_the_claim_of_their_call(
    compiled, without_trial
):
    del without_trial
    batches = _batches()

    @tf.function
    def step(x, y):
        compiled.optimizer.apply(
            tf_dpfp.loops.clipped_gradients(compiled, x, y)
        )

    step(X[:8], Y[:8])

    @tf.function
    def epoch():
        for x, y in batches:
            step(x, y)

    before = _counts(compiled)
    epoch()
    assert _new(compiled, before) == {None: STEPS}
    with tf_dpfp.loops.sampled_steps(compiled, batches):
        epoch()
    assert _new(compiled, before) == {None: STEPS, 8 / N: STEPS}


def test_gradients_keep_their_claim_for_one_step(eager, without_trial):
    del without_trial
    before = _counts(eager)
    made = []
    with tf_dpfp.loops.sampled_steps(eager, _batches()):
        made.append(tf_dpfp.loops.clipped_gradients(eager, X[:8], Y[:8]))
    eager.optimizer.apply(made[0])
    assert _new(eager, before) == {8 / N: 1}
    # The second release of one batch is not that of a second draw.
    eager.optimizer.apply(made[0])
    assert _new(eager, before) == {8 / N: 1, None: 1}


def test_a_budget_knows_what_the_next_step_of_its_fit_is(
    compiled, without_trial
):
    del without_trial
    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            seen.append(self.model.optimizer.next_entry)

    compiled.fit(_batches(), verbose=0, callbacks=[Look()])
    compiled.fit(X, Y, batch_size=20, verbose=0, callbacks=[Look()])
    assert [e.sampling for e in seen] == [
        accounting.PoissonSampling(8 / N),
        accounting.UnknownSampling(N, 20),
    ]
    assert compiled.optimizer.next_entry.sampling == (
        accounting.UnknownSampling()
    )


# --- representations ----------------------------------------------------------


def _drawn(draws=2):
    return tf_dpfp.representations.stratified_batches(
        X, Y, draw_size=4, draws=draws, labels="public", steps_per_epoch=STEPS
    )


@pytest.fixture(scope="module")
def forward():
    inputs = keras.Input((3,))
    clip = tf_dpfp.DPRepresentationClip(1.0, 1.0, labels="public")
    model = keras.Model(inputs, layers.Dense(2)(clip(inputs)))
    tf_dpfp.make_private(model)
    model.compile("sgd", _loss())
    model.clip = clip
    model.pass_on = tf.function(lambda: clip(tf.constant(X[:8]), training=True))
    return model


def _draws(model):
    counts = {}
    for entry in tf_dpfp.ledger(model):
        name = type(entry.sampling).__name__
        counts[name] = counts.get(name, 0) + entry.steps
    return counts


@pytest.mark.parametrize(
    "way",
    [
        lambda m: m(X[:8], training=True),
        lambda m: m.pass_on(),
        lambda m: m.train_on_batch(X[:8], Y[:8]),
        _train_function,
        _in_thread(lambda m: m.pass_on()),
        lambda m: keras.Model.fit(m, X[:8], Y[:8], verbose=0),
    ],
    ids=["call", "function", "batch", "train_function", "thread", "fit"],
)
def test_forward_passes_on_chosen_rows_claim_nothing(forward, way):
    before = _draws(forward)
    # As many rows as a batch of the sampler has.
    at = _At("on_train_batch_end", way)
    forward.fit(_drawn(), verbose=0, callbacks=[at])
    after = _draws(forward)
    assert after["WithoutReplacement"] == (
        before.get("WithoutReplacement", 0) + 2 * STEPS
    )
    assert after[UNKNOWN] == before.get(UNKNOWN, 0) + 1


@pytest.mark.parametrize(
    "derived",
    [
        lambda data: data.prefetch(1),
        lambda data: data.map(lambda x, y: (2.0 * x, y)).prefetch(1),
        lambda data: data.concatenate(data).take(STEPS),
    ],
    ids=["prefetch", "map", "concatenate"],
)
def test_what_is_made_of_several_draws_is_counted_for_each(forward, derived):
    before = _draws(forward)
    forward.fit(derived(_drawn(draws=2)), verbose=0)
    after = _draws(forward)
    assert after[UNKNOWN] - before.get(UNKNOWN, 0) == 2 * STEPS
    # Sums of such a batch are not within the clip norm.
    with pytest.raises(ValueError, match="must be one draw"):
        _model().fit(derived(_drawn(draws=2)), verbose=0)


def test_half_a_batch_of_several_draws_is_counted_for_each(forward):
    before = _draws(forward)
    batches = _drawn(draws=2)
    step = tf.function(
        lambda x: forward.clip(x, training=True), reduce_retracing=True
    )
    step(X[:8])
    step(X[:4])
    with tf_dpfp.loops.sampled_steps(forward, batches):
        for x, _ in batches:
            step(x[:4])
    after = _draws(forward)
    assert after[UNKNOWN] - before.get(UNKNOWN, 0) == 2 + 2 * STEPS


def test_uncounted_steps_stay_so_when_a_model_is_compiled_again():
    class Silent(keras.Model):
        """Keras says nothing of training to the layer of such a `call`."""

        def __init__(self):
            super().__init__()
            self.clip = tf_dpfp.DPRepresentationClip(1.0, 1.0, labels="public")
            self.head = layers.Dense(2)

        def call(self, x):
            return self.head(self.clip(x))

    model = Silent()
    model.compile("sgd", _loss())
    model.fit(X, Y, batch_size=20, verbose=0)
    tf_dpfp.make_private(model)
    model.compile("sgd", _loss())
    assert tf_dpfp.compute_epsilon(model, 1e-5) == np.inf
    # Not even if others are counted now.
    for _ in range(4):
        model.clip(X, training=True)
    assert tf_dpfp.compute_epsilon(model, 1e-5) == np.inf
    assert "2 steps that DPRepresentationClip did not count" in " ".join(
        tf_dpfp.privacy_statement(model, 1e-5).split()
    )


def test_steps_of_an_optimizer_elsewhere_are_not_those_of_a_model():
    optimizer = keras.optimizers.SGD()
    other = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    other.compile(optimizer, _loss())
    other.fit(X, Y, verbose=0)
    inputs = keras.Input((3,))
    clip = tf_dpfp.DPRepresentationClip(1.0, 1.0, labels="public")
    model = keras.Model(inputs, layers.Dense(2)(clip(inputs)))
    tf_dpfp.make_private(model)
    model.compile(optimizer, _loss())
    model.compile("sgd", _loss())
    assert tf_dpfp.compute_epsilon(model, 1e-5) == 0.0


class _HandsOn(keras.Sequential):
    """Hands on what its `fit` is given, twice."""

    def fit(self, x=None, **kwargs):
        for _ in range(2):
            found = super().fit(self.changed(x), **kwargs)
        return found

    def changed(self, x):
        return x


class _Repeats(_HandsOn):
    def changed(self, x):
        return x.map(lambda a, b: (tf.repeat(a, 3, 0), tf.repeat(b, 3, 0)))


class _Keeps(_HandsOn):
    """Draws once, and trains on that again and again."""

    def changed(self, x):
        if not hasattr(self, "kept"):
            self.kept = [*x]
        return (batch for batch in self.kept)


@pytest.mark.parametrize("kind", [_HandsOn, _Repeats, _Keeps])
@pytest.mark.parametrize("given", ["drawn", "arrays"])
def test_a_fit_of_its_own_hands_on_what_was_drawn_or_is_refused(kind, given):
    model = kind([keras.Input((3,)), layers.Dense(2)])
    tf_dpfp.make_private(model)
    optimizer = tf_dpfp.DPSGD(0.1, noise_multiplier=1.0, expected_batch_size=8)
    model.compile(optimizer, _loss())
    data = _batches()
    if given == "arrays":
        data = data.take(STEPS)
    if given == "drawn" and kind is not _HandsOn:
        with pytest.raises(ValueError, match="hands on other data than"):
            model.fit(data, verbose=0)
        assert _counts(model) == {}
        # A loop inside of it is another, of which nothing is claimed.
        nested = _At("on_train_begin", lambda m: keras.Model.fit(m, X, Y, 8))
        with pytest.raises(ValueError, match="hands on other data than"):
            model.fit(data, verbose=0, callbacks=[nested])
        assert _counts(model) == {None: N // 8}
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model.fit(data, verbose=0)
    # The call that finds a generator at its end counts, too.
    ends = 2 if kind is _Keeps else 0
    rate = 8 / N if given == "drawn" else None
    assert _counts(model) == {rate: 2 * STEPS + ends}


def test_what_a_task_of_keras_hub_makes_of_each_batch_is_taken():
    class Task(_Repeats):
        __module__ = "keras_hub.src"

        def fit(self, x=None, **kwargs):
            return super().fit(x, **kwargs)

    model = Task([keras.Input((3,)), layers.Dense(2)])
    tf_dpfp.make_private(model)
    optimizer = tf_dpfp.DPSGD(0.1, noise_multiplier=1.0, expected_batch_size=8)
    model.compile(optimizer, _loss())
    model.fit(_batches(), verbose=0)
    assert _counts(model) == {8 / N: 2 * STEPS}


def _examples_of_fit(model, **kwargs):
    """Trains on a new data set with a seed; returns who was in its steps."""
    seen = set()

    def see(x, y):
        def note(rows):
            seen.add(tuple(rows.tolist()))
            return rows

        row = tf.numpy_function(note, [x[:, 0]], tf.float32)
        return tf.concat([row[:, None], x[:, 1:]], axis=1), y

    data = tf_dpfp.poisson_batches(
        *(X, Y),
        expected_batch_size=8,
        steps_per_epoch=STEPS,
        seed=3,
        map_fn=lambda x, y: (tf.ensure_shape(see(x, y)[0], x.shape), y),
    )
    model.fit(data, verbose=0, **kwargs)
    return seen


def test_a_seed_draws_other_batches_where_a_training_goes_on(tmp_path):
    """Those that it drew before would be no draws that are independent."""
    first, again, other = (_model() for _ in range(3))
    begun = _examples_of_fit(first)
    assert begun == _examples_of_fit(again)
    first.save_weights(tmp_path / "m.weights.h5")
    gone_on = _examples_of_fit(first)
    assert len(begun) == len(gone_on) == STEPS and not begun & gone_on
    # In another process, which knows of the steps from a file.
    other.load_weights(tmp_path / "m.weights.h5")
    assert _examples_of_fit(other) == gone_on


class _First(keras.callbacks.Callback):
    """Trains on other batches of the same seed as a training begins."""

    def __init__(self, where, train):
        super().__init__()
        self._train = train
        setattr(self, where, self._begin)

    def _begin(self, *_, **__):
        if self._train is not None:
            train, self._train = self._train, None
            train(self.model)


@pytest.mark.parametrize(
    "where", ["on_train_begin", "on_epoch_begin", "on_train_batch_begin"]
)
def test_a_seed_draws_other_batches_in_a_fit_that_a_callback_begins(where):
    """Both begin after as many steps: none."""
    inner = []
    callback = _First(where, lambda m: inner.append(_examples_of_fit(m)))
    outer = _examples_of_fit(_model(), callbacks=[callback])
    assert len(outer) == len(inner[0]) == STEPS and not outer & inner[0]


def test_a_seed_draws_other_batches_for_a_loop_around_another():
    model = _model()
    first, second = (_batches(seed=3) for _ in range(2))
    with tf_dpfp.loops.sampled_steps(model, first):
        with tf_dpfp.loops.sampled_steps(model, second):
            inner = [x.numpy()[:, 0].tolist() for x, _ in second]
        outer = [x.numpy()[:, 0].tolist() for x, _ in first]
    assert not any(each in inner for each in outer)
