"""One release, two readers: the noise of a step, and its row in the ledger."""

import dataclasses

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tf_dpfp import accounting
from tf_dpfp import counting
from tf_dpfp.counting import agreement

CLIP, NOISE, OTHER = 0.5, 1.3, 0.2
UNKNOWN = accounting.UnknownSampling()
SUMS = counting.GaussianRelease(CLIP, NOISE)
ROWS = counting.GaussianRelease(
    2.0, 3.0, kind=accounting.Representations("public")
)


def _ledger():
    return counting.Ledger(
        keras.Variable(np.zeros(counting.TABLE_SHAPE), dtype="float64")
    )


def _counts(ledger):
    return {(e.sampling, e.noise_multiplier): e.steps for e in ledger.entries()}


# --- what is written ----------------------------------------------------------


@pytest.mark.parametrize(
    ("clip", "noise", "seed"),
    [(0.3, 1.1, None), (1e-10, 1e7, 0), (1e10, 0.0, None), (7.0, 1e-9, 3)],
)
def test_noise_and_row_are_functions_of_one_object(clip, noise, seed):
    release = counting.GaussianRelease(clip, noise, seed)
    ledger = _ledger()
    before = ledger.next_entry(release)
    ledger.count_step(release)
    (entry,) = ledger.entries()
    assert entry == before == ledger.next_entry(release)
    assert entry.noise_multiplier * clip == release.standard_deviation
    assert entry.seeded == (seed is not None)
    assert entry.release == accounting.Sums()


@pytest.mark.parametrize("seeded", ["sums", "representations", None])
def test_a_joint_release_is_counted_as_both_parts(seeded):
    parts = {"sums": SUMS, "representations": ROWS}
    if seeded:
        parts[seeded] = dataclasses.replace(parts[seeded], seed=1)
    ledger = _ledger()
    ledger.count_step(counting.JointRelease(**parts))
    (entry,) = ledger.entries()
    assert entry == accounting.LedgerEntry(
        UNKNOWN,
        accounting.joint_noise_multiplier(3.0, NOISE),
        1,
        seeded is not None,
        accounting.Joint("public"),
    )


def test_only_the_noise_of_sums_is_calibrated():
    joint = counting.JointRelease(ROWS, SUMS)
    for release in (SUMS, joint):
        assert release.is_calibrated
        assert not release.with_noise(float("nan")).is_calibrated
    assert SUMS.with_noise(OTHER).noise == (CLIP, OTHER, None)
    assert joint.with_noise(OTHER) == counting.JointRelease(
        ROWS, SUMS.with_noise(OTHER)
    )
    # What both parts draw is told apart, and their labels are not drawn.
    assert joint.with_noise(OTHER).noise != joint.noise
    randomized = accounting.Representations("randomized")
    assert joint.of_kind(randomized).noise == joint.noise
    assert joint.of_kind(randomized).kind == accounting.Joint("randomized")


# --- a planted difference -----------------------------------------------------


@pytest.mark.parametrize(
    "drawn",
    [
        dataclasses.replace(SUMS, noise_multiplier=OTHER),
        dataclasses.replace(SUMS, clip_norm=2.0),
        dataclasses.replace(SUMS, seed=1),
        counting.JointRelease(ROWS, SUMS),
    ],
    ids=["noise multiplier", "clip norm", "seed", "joint"],
)
def test_a_step_that_draws_by_another_release_is_refused(drawn):
    ledger = _ledger()
    ledger.count_step(SUMS)
    with pytest.raises(RuntimeError, match="must come from the same release"):
        ledger.count_step(drawn)
    with pytest.raises(RuntimeError, match="must come from the same release"):
        ledger.next_entry(drawn)
    # Nor can anything be claimed of what the steps do not draw.
    with pytest.raises(RuntimeError, match="must come from the same release"):
        with counting.announced(None, {ledger: counting.Claim(drawn)}):
            pass
    assert _counts(ledger) == {(UNKNOWN, NOISE): 1}


@pytest.mark.parametrize(
    ("released", "claimed", "words"),
    [
        (accounting.Sums(), accounting.ViewSums(3), "several times"),
        (accounting.ViewSums(2), accounting.ViewSums(3), "several times"),
        (accounting.ViewSums(3), accounting.Sums(), "several times"),
        (accounting.Sums(), accounting.PersonSums(3), "every example"),
        (accounting.PersonSums(3), accounting.Sums(), "every person"),
    ],
)
def test_rows_are_joined_as_their_batches_are_claimed(released, claimed, words):
    released, claimed = SUMS.of_kind(released), SUMS.of_kind(claimed)
    agreement.require_same_unit(claimed, claimed)
    with pytest.raises(RuntimeError, match=words):
        agreement.require_same_unit(released, claimed)


def test_another_declaration_of_labels_is_not_another_noise():
    ledger = _ledger()
    randomized = accounting.Representations("randomized")
    claim = counting.Claim(ROWS.of_kind(randomized))
    with counting.announced(None, {ledger: claim}, drawn=True):
        ledger.count_step(ROWS, ledger.stamp(ROWS))
    (entry,) = ledger.entries()
    assert entry.release == randomized


X = np.zeros((6, 300), np.float32)
Y = np.zeros((6, 300), np.float32)


def _sums_model(run_eagerly=True):
    model = tf_dpfp.make_private(
        keras.Sequential(
            [
                keras.Input((300,)),
                layers.Dense(300, kernel_initializer="zeros", use_bias=False),
            ]
        )
    )
    model.compile(
        tf_dpfp.DPSGD(
            1.0,
            l2_norm_clip=CLIP,
            noise_multiplier=NOISE,
            expected_batch_size=1,
        ),
        # No gradient, and a path to the weights: what moves is noise.
        loss=lambda y_true, y_pred: tf.reduce_sum(0.0 * y_pred),
        run_eagerly=run_eagerly,
    )
    return model


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_the_optimizer_draws_what_it_counts(run_eagerly):
    model = _sums_model(run_eagerly)
    model.train_on_batch(X, Y)
    moved = model.get_weights()[0].std() / CLIP
    (entry,) = tf_dpfp.ledger(model)
    # 90 000 numbers: their deviation is known to a quarter of a percent.
    assert moved == pytest.approx(entry.noise_multiplier, rel=0.02)
    planted = model.optimizer._settings
    model.optimizer._settings = dataclasses.replace(
        planted,
        release=dataclasses.replace(planted.release, noise_multiplier=OTHER),
    )
    before = model.get_weights()[0]
    with pytest.raises(RuntimeError, match="must come from the same release"):
        model.train_on_batch(X, Y)
    np.testing.assert_array_equal(model.get_weights()[0], before)
    assert tf_dpfp.ledger(model) == [entry]


def test_the_layer_draws_what_it_counts():
    layer = tf_dpfp.DPRepresentationClip(CLIP, NOISE, labels="public")
    drawn = layer(X, training=True).numpy().std() / CLIP
    (entry,) = layer.ledger_entries
    # 1800 numbers: to 1.7 percent.
    assert drawn == pytest.approx(entry.noise_multiplier, rel=0.12)
    layer._release = dataclasses.replace(layer.release, noise_multiplier=OTHER)
    with pytest.raises(RuntimeError, match="must come from the same release"):
        layer(X, training=True)
    assert layer.ledger_entries == [entry]


def test_both_parts_of_a_joint_step_draw_what_is_counted():
    inputs = keras.Input((300,))
    layer = tf_dpfp.DPRepresentationClip(CLIP, 2.0, labels="public")
    below = layers.Dense(300, kernel_initializer="zeros", use_bias=False)
    model = keras.Model(inputs, layer(below(inputs)))
    tf_dpfp.make_private(model)
    optimizer = tf_dpfp.DPSGD(
        1.0, l2_norm_clip=CLIP, noise_multiplier=3.0, expected_batch_size=1
    )
    model.compile(
        optimizer,
        loss=lambda y_true, y_pred: 0.0 * tf.reduce_sum(y_pred, axis=-1),
        metrics=[lambda y_true, y_pred: tf.math.reduce_std(y_pred)],
        run_eagerly=True,
    )
    _, drawn = model.train_on_batch(X, Y)
    rows = drawn / CLIP
    sums = below.kernel.numpy().std() / CLIP
    assert rows == pytest.approx(2.0, rel=0.12)
    assert sums == pytest.approx(3.0, rel=0.02)
    (entry,) = tf_dpfp.ledger(model)
    assert entry.noise_multiplier == accounting.joint_noise_multiplier(2.0, 3.0)
    layer._release = dataclasses.replace(layer.release, noise_multiplier=OTHER)
    with pytest.raises(ValueError, match="counts representations of another"):
        model.train_on_batch(X, Y)
    assert tf_dpfp.ledger(model) == [entry]


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("clip_norm", 100.0),
        ("noise_multiplier", OTHER),
        ("end_to_end", True),
        ("labels", None),
        ("seed", 3),
    ],
)
def test_settings_of_a_layer_can_not_be_changed(name, value, built):
    layer = tf_dpfp.DPRepresentationClip(CLIP, NOISE, labels="public")
    if built:
        layer.build((None, 3))
    before = layer.get_config()
    with pytest.raises(AttributeError, match=f"`{name}`.*Make a new layer"):
        setattr(layer, name, value)
    assert layer.get_config() == before
    layer.trainable = False
    assert getattr(layer, name) == before[name]


# --- ways of writing a ledger -------------------------------------------------


def _checkpoint(variable, value, path):
    """Restores a variable from a checkpoint that holds another value."""
    saved = keras.Variable(value, dtype="float64")
    written = tf.train.Checkpoint(table=saved).save(str(path / "c"))
    return lambda: tf.train.Checkpoint(table=variable).restore(written)


def _assign(variable, value, path):
    del path
    return lambda: variable.assign(value)


WAYS = pytest.mark.parametrize("way", [_assign, _checkpoint])


def _counted(steps):
    variable = keras.Variable(np.zeros(counting.TABLE_SHAPE), dtype="float64")
    ledger = counting.Ledger(variable)
    for _ in range(steps):
        ledger.count_step(SUMS)
    return variable, ledger


@WAYS
def test_older_counts_never_come_back(way, tmp_path):
    older, _ = _counted(2)
    variable, ledger = _counted(5)
    way(variable, older.numpy(), tmp_path)()
    assert _counts(ledger) == {(UNKNOWN, NOISE): 5}
    way(variable, np.zeros(counting.TABLE_SHAPE), tmp_path)()
    assert _counts(ledger) == {(UNKNOWN, NOISE): 5}
    newer, _ = _counted(9)
    way(variable, newer.numpy(), tmp_path)()
    assert _counts(ledger) == {(UNKNOWN, NOISE): 9}


@WAYS
def test_what_is_no_ledger_is_refused_and_undone(way, tmp_path):
    variable, ledger = _counted(3)
    for wrong in (7.0, np.nan):
        table = np.full(counting.TABLE_SHAPE, wrong)
        with pytest.raises(ValueError):
            way(variable, table, tmp_path)()
        assert _counts(ledger) == {(UNKNOWN, NOISE): 3}
    ledger.count_step(SUMS)
    assert _counts(ledger) == {(UNKNOWN, NOISE): 4}


@WAYS
def test_a_table_of_32_rows_is_read(way, tmp_path):
    """Of files that earlier versions wrote."""
    older, _ = _counted(2)
    other, ledger = _counted(0)
    sampling = accounting.PoissonSampling(0.5)
    with counting.announced(None, {ledger: counting.Claim(SUMS, sampling)}):
        pass
    way(other, older.numpy()[:32], tmp_path)()
    assert _counts(ledger) == {(UNKNOWN, NOISE): 2}
    for rows in (31, 33):
        with pytest.raises(ValueError, match="ledger"):
            way(other, older.numpy()[:rows], tmp_path)()
    assert _counts(ledger) == {(UNKNOWN, NOISE): 2}


@WAYS
def test_a_thousand_kinds_come_back(way, tmp_path):
    variable, ledger = _counted(3)
    ledger.absorb(
        accounting.LedgerEntry(
            accounting.PoissonSampling(kind / 2000), NOISE, kind
        )
        for kind in range(1, 1001)
    )
    other, restored = _counted(1)
    way(other, variable.numpy(), tmp_path)()
    assert len(restored.entries()) == 1001
    assert _counts(restored) == _counts(ledger)


def _shortened(path):
    """Turns a file into one of an earlier version, with tables of 32 rows."""
    found = []
    with h5py.File(path, "r+") as file:
        file.visit(
            lambda name: (
                found.append(name)
                if getattr(file[name], "shape", ()) == counting.TABLE_SHAPE
                else None
            )
        )
        for name in found:
            table = file[name][()]
            del file[name]
            file[name] = table[:32]
    return len(found)


def test_files_of_earlier_versions_are_read(tmp_path):
    file = tmp_path / "earlier.weights.h5"
    inputs = keras.Input((300,))
    clip = tf_dpfp.DPRepresentationClip(CLIP, NOISE, labels="public")
    model = keras.Model(inputs, clip(inputs))
    model(X, training=True)
    model.save_weights(file)
    assert _shortened(file) == 1
    model = keras.models.clone_model(model)
    model.load_weights(file)
    assert [e.steps for e in model.layers[-1].ledger_entries] == [1]
    model = _sums_model()
    model.train_on_batch(X, Y)
    model.save_weights(file)
    assert _shortened(file) == 1
    model = _sums_model()
    model.optimizer.build(model.trainable_variables)
    model.load_weights(file)
    assert [e.steps for e in tf_dpfp.ledger(model)] == [1]


def test_an_optimizer_keeps_counts_that_are_written_past_assign(tmp_path):
    """Keras promises nothing about how it writes what it loads."""

    class Direct(keras.optimizers.SGD):
        def load_own_variables(self, store):
            for i, variable in enumerate(self.variables):
                variable.value.assign(store[str(i)])

    model = _sums_model()
    optimizer = tf_dpfp.private_optimizer_class(Direct)(
        1.0, noise_multiplier=NOISE, expected_batch_size=1
    )
    model.compile(optimizer, loss="mse", run_eagerly=True)
    model.train_on_batch(X, Y)
    model.save_weights(tmp_path / "older.weights.h5")
    model.train_on_batch(X, Y)
    model.load_weights(tmp_path / "older.weights.h5")
    assert [entry.steps for entry in tf_dpfp.ledger(model)] == [2]
