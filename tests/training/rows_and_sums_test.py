"""Training below a DPRepresentationClip: rows and sums in one release."""

import math

import dp_accounting
import keras
import numpy as np
import pytest
import tensorflow as tf
from dp_accounting import rdp
from keras import layers

import tf_dpfp
from tests import helpers
from tests.oracles import reference
from tf_dpfp import accounting
from tf_dpfp import replicas

pytestmark = pytest.mark.usefixtures("without_trial")

N, FEATURES, WIDTH = 24, 5, 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, FEATURES)).astype(np.float32)
Y = np.arange(N) % 2
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
DELTA = 1e-5
UNKNOWN = accounting.UnknownSampling()
ROWS_CLIP, SUMS_CLIP = 0.6, 0.3


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(0)


def _clip(noise_multiplier=2.0, labels="public", **kwargs):
    return tf_dpfp.DPRepresentationClip(
        ROWS_CLIP, noise_multiplier, labels=labels, **kwargs
    )


def _model(clip=None, head=None, encoder=None):
    inputs = keras.Input((FEATURES,))
    h = (encoder or layers.Dense(WIDTH, activation="tanh"))(inputs)
    h = (clip or _clip())(h)
    return keras.Model(inputs, (head or layers.Dense(2))(h))


def _optimizer(noise_multiplier=3.0, learning_rate=1.0, **kwargs):
    return tf_dpfp.DPSGD(
        learning_rate,
        l2_norm_clip=SUMS_CLIP,
        noise_multiplier=noise_multiplier,
        **kwargs,
    )


def _private(model=None, optimizer=None, loss=LOSS, **kwargs):
    model = tf_dpfp.make_private(model or _model())
    model.compile(optimizer or _optimizer(), loss, **kwargs)
    return model


def _batches(draw_size=6, labels="public", y=Y, **kwargs):
    return tf_dpfp.representations.stratified_batches(
        X, y, draw_size=draw_size, labels=labels, **kwargs
    )


DRAWN = accounting.WithoutReplacement(N // 2, 3)
JOINT = accounting.joint_noise_multiplier(2.0, 3.0)
PUBLIC = accounting.Joint("public")


def _joint(sampling, steps, release=PUBLIC, noise_multiplier=JOINT):
    return accounting.LedgerEntry(
        sampling, noise_multiplier, steps, release=release
    )


def _values(model):
    return [v.numpy() for v in model.trainable_variables]


def _update(model, x, y):
    """What one step adds to each weight; the learning rate is 1."""
    before = _values(model)
    model.train_on_batch(x, y)
    return [b - a for a, b in zip(_values(model), before, strict=True)]


# --- what a step computes -----------------------------------------------------


def _bare(h):
    """What a `DPRepresentationClip` does to one row, but for noise."""
    return h * tf.minimum(1.0, ROWS_CLIP / tf.norm(h))


def _loop(model, forward, below, x, y):
    """The update by a loop over examples: what is below is clipped."""
    gradients = reference.gradients(
        lambda row, label: LOSS(label, forward(tf.cast(row, "float32"))),
        model.trainable_variables,
        x,
        y,
    )
    sums = reference.clipped_sums(gradients, [below], SUMS_CLIP)
    return gradients, [total / len(x) for total in sums]


def _forward(model, h):
    for layer in model.layers[1:]:
        clips = isinstance(layer, tf_dpfp.DPRepresentationClip)
        h = _bare(h) if clips else layer(h)
    return h


@pytest.mark.parametrize(
    ("microbatch_size", "jit_compile"), [(None, False), (4, True)]
)
def test_a_step_without_noise_is_that_of_a_loop(microbatch_size, jit_compile):
    # 10 is no multiple of 4: the last piece is padded.
    x, y = 3.0 * X[:10], Y[:10]
    model = _private(
        _model(_clip(0.0)),
        _optimizer(0.0, microbatch_size=microbatch_size),
        jit_compile=jit_compile,
    )
    _, expected = _loop(model, lambda row: _forward(model, row), [0, 1], x, y)
    free = [np.linalg.norm(e) for e in expected]
    assert min(free) > 1e-3
    found = _update(model, x, y)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_what_is_used_below_and_above_is_clipped_whole():
    shared = layers.Dense(FEATURES, activation="tanh")
    inputs = keras.Input((FEATURES,))
    h = shared(_clip(0.0)(shared(inputs)))
    model = keras.Model(inputs, layers.Dense(2)(h))
    model = _private(model, _optimizer(0.0))
    x, y = X[:6], Y[:6]

    def forward(row):
        return model.layers[-1](shared(_bare(shared(row))))

    gradients, expected = _loop(model, forward, [0, 1], x, y)
    assert np.min(reference.norms(gradients, [[0, 1]])) > SUMS_CLIP
    for a, b in zip(_update(model, x, y), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def _regularized():
    return _model(
        _clip(0.0), head=layers.Dense(2, kernel_regularizer=_Everything())
    )


class _Everything(keras.regularizers.Regularizer):
    def __call__(self, x):
        return 5.0 * keras.ops.sum(x)


def test_regularisers_above_are_there_once():
    model, plain = _private(_regularized(), _optimizer(0.0)), _model(_clip(0.0))
    plain.set_weights(model.get_weights())
    plain = _private(plain, _optimizer(0.0))
    with_it, without = _update(model, X, Y), _update(plain, X, Y)
    np.testing.assert_allclose(with_it[2], without[2] + 5.0, rtol=1e-5)
    for i in (0, 1, 3):
        np.testing.assert_allclose(with_it[i], without[i], atol=1e-6)


# --- noise --------------------------------------------------------------------


def _agrees(sample, deviation):
    return helpers.p_value(sample, deviation) > 1e-4


def _wide(rows_noise, sums_noise, **kwargs):
    """Weights without gradient below; above, the gradient is the sum of rows.

    Examples are zero, and so are the rows but for noise.
    """
    inputs = keras.Input((3,))
    h = layers.Dense(4000, use_bias=False)(inputs)
    h = _clip(rows_noise)(h)
    out = layers.Dense(1, use_bias=False)(h)
    return _private(
        keras.Model(inputs, out),
        _optimizer(sums_noise, **kwargs),
        loss=lambda y, y_pred: y_pred[:, 0],
    )


@pytest.mark.parametrize("microbatch_size", [None, 2])
def test_noise_of_each_part(microbatch_size):
    model = _wide(2.0, 3.0, microbatch_size=microbatch_size)
    x, y = np.zeros((5, 3), np.float32), np.zeros(5)
    steps = [_update(model, x, y) for _ in range(2)]
    sums, rows = 3.0 * SUMS_CLIP / 5, 2.0 * ROWS_CLIP * math.sqrt(5) / 5
    for below, above in steps:
        assert _agrees(below, sums)
        assert _agrees(above, rows)
        for factor in (0.5, math.sqrt(2.0), 2.0):
            assert not _agrees(below, sums * factor)
            assert not _agrees(above, rows * factor)
    # Every step, and every piece of one, has noise of its own: were that of
    # the pieces the same, the deviation above would be greater.
    for one, two in zip(*steps, strict=True):
        assert _agrees(one - two, math.sqrt(2.0) * np.std(one))
        assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.1


def test_without_noise_of_its_own_each_part_is_bare():
    x, y = np.zeros((5, 3), np.float32), np.zeros(5)
    for rows, sums in ((2.0, 0.0), (0.0, 3.0)):
        model = _wide(rows, sums)
        below, above = _update(model, x, y)
        assert np.any(below) == bool(sums)
        assert np.any(above) == bool(rows)
        assert math.isinf(tf_dpfp.compute_epsilon(model, DELTA))
        assert "NO PRIVACY" in tf_dpfp.privacy_statement(model, DELTA)


# --- sensitivity, and what it costs -------------------------------------------


def test_what_a_replaced_example_moves_is_what_is_counted():
    """The worst replacement there is, by both parts, in units of the noise."""
    inputs = keras.Input((1,))
    below = layers.Dense(1, use_bias=False, kernel_initializer="ones")
    above = layers.Dense(1, use_bias=False, kernel_initializer="ones")
    rows = _clip(0.0)
    model = keras.Model(inputs, above(rows(below(inputs))))
    # The gradient of the row is 1000 y: clipped wherever the row is not.
    model = _private(
        model, _optimizer(0.0), loss=lambda y, p: 1000.0 * y * p[:, 0]
    )
    weights = model.get_weights()

    def released(first):
        model.set_weights(weights)
        x = np.array([[first], [0.1]], np.float32)
        y = np.array([1.0, 0.0], np.float32)
        sums, mean_of_rows = _update(model, x, y)
        return 2.0 * sums.item(), 2.0 * mean_of_rows.item() / 1000.0

    # Rows just inside of the bound have a gradient, and one of either sign.
    one, two = released(0.999 * ROWS_CLIP), released(-0.999 * ROWS_CLIP)
    moved = (
        (one[0] - two[0]) / (3.0 * SUMS_CLIP),
        (one[1] - two[1]) / (2.0 * ROWS_CLIP),
    )
    assert 0.99 < math.hypot(*moved) * JOINT / 2.0 <= 1.0


@pytest.mark.parametrize("rows, sums", [(2.0, 3.0), (0.7, 0.7), (50.0, 1.0)])
def test_epsilon_without_sampling_is_that_of_two_gaussians(rows, sums):
    entry = _joint(
        UNKNOWN,
        7,
        noise_multiplier=accounting.joint_noise_multiplier(rows, sums),
    )
    accountant = rdp.RdpAccountant(
        neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE
    )
    for noise in (rows, sums):
        accountant.compose(dp_accounting.GaussianDpEvent(noise / 2.0), 7)
    expected = accountant.get_epsilon(DELTA)
    found = accounting.compute_epsilon([entry], DELTA)
    assert found == pytest.approx(expected, rel=1e-9)


def test_draws_of_rows_and_sums_are_not_composed_as_if_drawn_apart():
    joint = accounting.compute_epsilon([_joint(DRAWN, 50)], DELTA)
    rows = accounting.Representations("public")
    apart = accounting.compute_epsilon(
        [
            accounting.LedgerEntry(DRAWN, noise, 50, release=rows)
            for noise in (2.0, 3.0)
        ],
        DELTA,
    )
    # One draw for both costs more than two, one for each.
    assert joint > apart


@pytest.mark.parametrize("first, second", [(1.0, 2.0), (1e-3, 1e5), (3.0, 3.0)])
def test_noise_multipliers_of_both_and_of_the_other(first, second):
    joint = accounting.joint_noise_multiplier(first, second)
    assert joint < min(first, second) or second > 1e4 * first
    if second < 1e4 * first:
        other = accounting.other_noise_multiplier(joint, first)
        assert second <= other <= second * (1.0 + 1e-6)
    with pytest.raises(ValueError, match="spends the whole budget"):
        accounting.other_noise_multiplier(first, first)


def test_calibrated_noise_keeps_the_budget():
    batches = _batches(steps_per_epoch=4)
    noise = tf_dpfp.representations.calibrate_representation(
        batches,
        epsilon=3.0,
        delta=DELTA,
        epochs=2,
        gradient_noise_multiplier=9.0,
    )
    model = _private(_model(_clip(noise)), _optimizer(9.0))
    callback = tf_dpfp.PrivacyBudget(3.0, DELTA)
    history = model.fit(batches, epochs=5, verbose=0, callbacks=[callback])
    assert tf_dpfp.ledger(model)[0].steps == 8
    assert 2.9 < history.history["epsilon"][-1] <= 3.0
    assert (
        tf_dpfp.compute_epsilon(model, DELTA) == history.history["epsilon"][-1]
    )
    again = model.fit(batches, verbose=0, callbacks=[callback])
    assert again.history == {} and tf_dpfp.ledger(model)[0].steps == 8


def test_the_noise_of_sums_is_found_beside_that_of_representations(capsys):
    batches = _batches()
    optimizer = _optimizer("calibrate")
    model = _private(_model(_clip(9.0)), optimizer)
    budget = tf_dpfp.PrivacyBudget(3.0, DELTA)
    model.fit(batches, epochs=2, verbose=0, callbacks=[budget])
    assert 2.997 <= tf_dpfp.compute_epsilon(model, DELTA) <= 3.0
    noise = optimizer.noise_multiplier
    assert f"Noise multiplier {noise:.6g}" in capsys.readouterr().out
    (entry,) = [e for e in tf_dpfp.ledger(model) if e.steps]
    assert entry.noise_multiplier == pytest.approx(
        (9.0**-2 + noise**-2) ** -0.5
    )
    # Noise of the layer that spends the budget leaves nothing for sums.
    model = _private(_model(_clip(0.2)), _optimizer("calibrate"))
    with pytest.raises(ValueError, match="No noise multiplier up to"):
        model.fit(batches, verbose=0, callbacks=[budget])


# --- what is counted ----------------------------------------------------------


def test_steps_are_counted_by_how_they_were_drawn():
    model = _private(jit_compile=False, steps_per_execution=2)
    batches = _batches(steps_per_epoch=4)
    before = _values(model)
    model.fit(batches, epochs=2, verbose=0)
    assert tf_dpfp.ledger(model) == [_joint(DRAWN, 8)]
    for a, b in zip(before, _values(model), strict=True):
        assert np.any(a != b)
    model.fit(batches.map(lambda x, y: (x, y)), verbose=0)
    poisson = tf_dpfp.poisson_batches(X, Y, expected_batch_size=6)
    model.fit(poisson, verbose=0, steps_per_epoch=2)
    model.train_on_batch(X[:6], Y[:6])
    entries = {_joint(DRAWN, 8), _joint(UNKNOWN, 7)}
    assert set(tf_dpfp.ledger(model)) == entries
    model.evaluate(X, Y, verbose=0)
    model.predict(X, verbose=0)
    assert set(tf_dpfp.ledger(model)) == entries
    # A call outside of a step is a release of rows alone.
    model(X[:3], training=True)
    alone = accounting.Representations("public")
    assert accounting.LedgerEntry(
        UNKNOWN, 2.0, 1, release=alone
    ) in tf_dpfp.ledger(model)
    words = " ".join(tf_dpfp.privacy_statement(model, DELTA).split())
    for phrase in (
        "8 draws of representations and, from the same examples, sums of "
        "clipped gradients, with noise multiplier 1.6641 of both together",
        "replace-one adjacency",
        "were trained by DP-SGD, with noise of its own",
        "Public, and not protected: the labels",
    ):
        assert phrase in words, phrase
    assert "were not trained" not in words


def test_steps_that_xla_compiles_are_counted_as_well():
    model = _private(jit_compile=True, steps_per_execution=2)
    batches = _batches(steps_per_epoch=4)
    before = _values(model)
    model.fit(batches, epochs=2, verbose=0)
    for a, b in zip(before, _values(model), strict=True):
        assert np.any(a != b)
    model.fit(batches.map(lambda x, y: (x, y)), verbose=0)
    entries = {_joint(DRAWN, 8), _joint(UNKNOWN, 4)}
    assert set(tf_dpfp.ledger(model)) == entries
    model.evaluate(X, Y, verbose=0)
    assert set(tf_dpfp.ledger(model)) == entries


def test_custom_loops():
    model = _private(
        optimizer=_optimizer(expected_batch_size=6.0, learning_rate=0.1)
    )

    @tf.function
    def step(x, y):
        model.optimizer.apply(tf_dpfp.loops.clipped_gradients(model, x, y))

    step(X[:6], Y[:6])
    assert tf_dpfp.ledger(model) == [_joint(UNKNOWN, 1)]
    batches = _batches(steps_per_epoch=3)
    with tf_dpfp.loops.sampled_steps(model, batches):
        for x, y in batches:
            step(x, y)
        # Not what was drawn.
        step(X[:5], Y[:5])
    step(X[:6], Y[:6])
    assert tf_dpfp.ledger(model) == [_joint(UNKNOWN, 3), _joint(DRAWN, 3)]
    with pytest.raises(ValueError, match="another proves nothing"):
        with tf_dpfp.loops.sampled_steps(model, batches.take(2)):
            pass


def test_randomised_labels():
    y = tf_dpfp.representations.randomize_labels(Y, 1.0, 2)
    model = _private(_model(_clip(labels=None)))
    batches = _batches(y=y, labels=None, steps_per_epoch=2)
    model.fit(batches, verbose=0)
    model.fit(batches, verbose=0)
    entries = tf_dpfp.ledger(model)
    assert y.entry in entries
    joint = [e for e in entries if e != y.entry]
    kind = accounting.Joint("randomized")
    assert [e.release for e in joint] == [kind]
    alone = accounting.compute_epsilon(joint, DELTA)
    assert alone < tf_dpfp.compute_epsilon(model, DELTA) <= alone + 1.0 + 1e-6
    # Without the sampler's word nothing is declared of them.
    model.fit(X, Y, verbose=0)
    assert math.isinf(tf_dpfp.compute_epsilon(model, DELTA))
    statement = tf_dpfp.privacy_statement(model, DELTA)
    assert "neither declared public nor" in statement


def test_saved_and_loaded(tmp_path):
    model = _private()
    model.fit(_batches(steps_per_epoch=2), verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    with pytest.raises(tf_dpfp.errors.NotPrivateError):
        loaded.fit(X, Y, verbose=0)
    tf_dpfp.make_private(loaded)
    assert tf_dpfp.ledger(loaded) == [_joint(DRAWN, 2)]
    assert tf_dpfp.compute_epsilon(loaded, DELTA) == tf_dpfp.compute_epsilon(
        model, DELTA
    )
    loaded.fit(_batches(steps_per_epoch=3), verbose=0)
    assert tf_dpfp.ledger(loaded) == [_joint(DRAWN, 5)]


def test_another_optimizer_takes_the_ledger_over():
    model = _private()
    model.fit(_batches(steps_per_epoch=2), verbose=0)
    model.compile(_optimizer(5.0), LOSS)
    model.fit(_batches(steps_per_epoch=1), verbose=0)
    both = accounting.joint_noise_multiplier(2.0, 5.0)
    entries = [_joint(DRAWN, 2), _joint(DRAWN, 1, noise_multiplier=both)]
    assert tf_dpfp.ledger(model) == entries
    model.layers[1].trainable = False
    model.compile("adam", LOSS)
    assert tf_dpfp.ledger(model) == entries
    model.fit(_batches(steps_per_epoch=1), verbose=0)
    rows = accounting.Representations("public")
    alone = accounting.LedgerEntry(DRAWN, 2.0, 1, release=rows)
    assert sorted(map(str, tf_dpfp.ledger(model))) == sorted(
        map(str, [*entries, alone])
    )
    model.layers[1].trainable = True
    model.compile(_optimizer(), LOSS)
    model.fit(_batches(steps_per_epoch=1), verbose=0)
    assert sum(e.steps for e in tf_dpfp.ledger(model)) == 5


# --- what is refused ----------------------------------------------------------


class _Mixes(layers.Layer):
    def call(self, x):
        return x - keras.ops.mean(x, axis=0, keepdims=True)


def _twice():
    inputs = keras.Input((FEATURES,))
    clip, h = _clip(), layers.Dense(3)(inputs)
    return keras.Model(inputs, layers.Dense(2)(clip(h) + clip(h)))


def _two_layers():
    inputs = keras.Input((FEATURES,))
    h = layers.Dense(3)(inputs)
    return keras.Model(inputs, layers.Dense(2)(_clip()(h) + _clip()(h)))


def _around():
    inputs = keras.Input((FEATURES,))
    h = layers.Dense(2)(inputs)
    return keras.Model(inputs, _clip()(h) + h)


def _frozen():
    encoder = layers.Dense(3)
    encoder.trainable = False
    return _model(encoder=encoder)


def _reparametrized_above():
    head = layers.Dense(30)
    model = _model(head=head)
    tf_dpfp.reparametrize(head, rank=1)
    return model


@pytest.mark.parametrize(
    "build, message",
    [
        (_frozen, "nothing to train below"),
        (_twice, "called 2 times"),
        (_two_layers, "has 2 DPRepresentationClip"),
        (_around, "way around the layer"),
        (lambda: _model(_clip(end_to_end=True)), "end_to_end=True"),
        (lambda: _model(_clip(seed=1)), "seed=1"),
        (lambda: _model(head=_Mixes()), "depends on the other"),
        (lambda: _model(encoder=_Mixes()), "depends on the other"),
        (
            lambda: _model(
                encoder=keras.Sequential(
                    [layers.Dense(3), layers.BatchNormalization()]
                )
            ),
            "BatchNormalization|statistics",
        ),
        (_reparametrized_above, "reparametrised, and above"),
    ],
)
@pytest.mark.usefixtures("with_trial")
def test_what_can_not_be_counted_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        _private(build()).fit(_batches(), verbose=0)


def test_several_draws_of_a_batch_are_refused():
    with pytest.raises(ValueError, match="draws=1"):
        _private().fit(_batches(draws=2), verbose=0)


def test_an_ordinary_optimizer_is_told_of_the_way_out():
    model = tf_dpfp.make_private(_model())
    with pytest.raises(ValueError, match="compile the model with a private"):
        model.compile("adam", LOSS)


def test_clipped_gradients_of_other_models_are_refused():
    joint, plain = _private(), keras.Sequential([layers.Dense(2)])
    plain = _private(plain)
    plain.train_on_batch(X, Y)
    mine = tf_dpfp.loops.clipped_gradients(joint, X, Y)
    theirs = tf_dpfp.loops.clipped_gradients(plain, X, Y)
    joint.optimizer.set_expected_batch_size(N, "the test")
    with pytest.raises(ValueError, match="representations with noise mult"):
        plain.optimizer.apply(mine)
    with pytest.raises(ValueError, match="nothing, and representations"):
        joint.optimizer.apply(theirs)
    other = _private(_model(_clip(7.0)))
    other.optimizer.set_expected_batch_size(N, "the test")
    with pytest.raises(ValueError, match="noise multiplier 2 .* and .* 7"):
        other.optimizer.apply(mine)


def test_unfreezing_is_noticed():
    model = _private()
    model.train_on_batch(X, Y)
    model.layers[1].trainable = False
    with pytest.raises(ValueError, match="nothing to train below"):
        model.fit(X, Y, verbose=0)


@pytest.mark.parametrize(
    "train",
    [
        lambda model: model.fit(_batches(), verbose=0),
        lambda model: model.train_on_batch(X, Y),
        lambda model: tf_dpfp.loops.distributed_step(model, X, Y),
    ],
    ids=["fit", "train_on_batch", "distributed_step"],
)
def test_replicas_are_refused(monkeypatch, train):
    model = _private()
    monkeypatch.setattr(replicas, "deals", lambda strategy: True)
    with pytest.raises(ValueError, match="on the replicas of one machine"):
        train(model)
    assert tf_dpfp.ledger(model) == []


def _images(below):
    inputs = keras.Input((4, 4, 3))
    h = layers.Dense(WIDTH)(layers.Flatten()(below(inputs)))
    return keras.Model(inputs, layers.Dense(2)(_clip()(h)))


@pytest.mark.parametrize("optimizer", [_optimizer, keras.optimizers.Adam])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.usefixtures("with_trial")
def test_random_mixing_below_is_refused_whatever_the_draw(optimizer, seed):
    # In half of all calls MixUp mixes nothing, so a trial can miss it.
    with pytest.raises(ValueError, match="MixUp mixes the examples"):
        _private(_images(layers.MixUp(seed=seed)), optimizer())


def test_layers_are_checked_as_in_any_private_model():
    inputs = keras.Input((FEATURES,))
    h = _clip()(layers.Dense(WIDTH)(inputs))
    model = keras.Model(inputs, layers.Dense(2, activity_regularizer="l2")(h))
    with pytest.raises(ValueError, match="goes past the noise.*`loss` of"):
        _private(model).fit(X, Y, verbose=0)


def test_a_layer_that_is_made_while_the_model_is_built_is_told_of():
    class Late(keras.Model):
        def build(self, shape):
            self.encoder, self.clip = layers.Dense(WIDTH), _clip()
            self.head = layers.Dense(2)
            super().build(shape)

        def call(self, x, training=None):
            return self.head(self.clip(self.encoder(x), training=training))

    model = _private(Late())
    with pytest.raises(ValueError, match="call it on a batch, then"):
        model.fit(X, Y, verbose=0)
    assert not tf_dpfp.ledger(model)
