"""Estimates as optimizer state: frozen, saved, loaded, started anew."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tests.oracles import reference
from tf_dpfp import clipping as clipping_lib

pytestmark = pytest.mark.usefixtures("without_trial")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 3)).astype(np.float32)
Y = X.sum(axis=1, keepdims=True)
ADAPTIVE = tf_dpfp.clipping.Adaptive(learning_rate=1.0, budget_share=0.3)


@keras.saving.register_keras_serializable("adaptation_test")
def first_or_not(layer):
    return "first" if layer.name == "first" else "others"


GROUPINGS = {
    "PerLayer": lambda thresholds: tf_dpfp.PerLayer(thresholds=thresholds),
    "PerBlock": lambda thresholds: tf_dpfp.clipping.PerBlock(
        pattern="first|second", thresholds=thresholds
    ),
    "ByFunction": lambda thresholds: tf_dpfp.clipping.ByFunction(
        function=first_or_not, thresholds=thresholds
    ),
}


def _optimizer(clipping=None, noise_multiplier=1.0, base=tf_dpfp.DPSGD):
    return base(
        0.01,
        noise_multiplier=noise_multiplier,
        clipping=clipping or tf_dpfp.PerLayer(thresholds=ADAPTIVE),
        expected_batch_size=8.0,
        seed=3,
    )


def _model(optimizer=None):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, "tanh", name="first"),
            layers.Dense(4, "tanh", name="second"),
            layers.Dense(1, name="third"),
        ]
    )
    tf_dpfp.make_private(model)
    # No graph to trace: what is tested here is not how steps run.
    model.compile(optimizer or _optimizer(), loss="mse", run_eagerly=True)
    return model


def _run(model, steps):
    """Estimates and weights after each of some steps on the same array."""
    found = []
    for _ in range(steps):
        model.train_on_batch(X, Y)
        parts = [v.numpy().ravel() for v in model.trainable_variables]
        if isinstance(
            model.optimizer.clipping.thresholds, tf_dpfp.clipping.Adaptive
        ):
            parts.insert(0, reference.estimates_of(model.optimizer))
        found.append(np.concatenate(parts))
    return np.array(found)


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_a_saved_model_goes_on_as_if_nothing_had_happened(tmp_path, grouping):
    model = _model(_optimizer(GROUPINGS[grouping](ADAPTIVE)))
    _run(model, 3)
    model.save(tmp_path / "model.keras")
    expected = _run(model, 3)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.clipping == model.optimizer.clipping
    tf_dpfp.make_private(loaded)
    # The seed is that of the run, and so is the noise, to the last bit.
    np.testing.assert_array_equal(_run(loaded, 3), expected)
    assert [e.steps for e in tf_dpfp.ledger(loaded)] == [6]


# Checkpoints of DPAdam are in carrier_state_test.py.
@pytest.mark.parametrize(
    ("kind", "base"),
    [("weights", tf_dpfp.DPAdam), ("checkpoint", tf_dpfp.DPSGD)],
)
def test_restored_state_goes_on_as_if_nothing_had_happened(
    tmp_path, kind, base
):
    model = _model(_optimizer(base=base))
    _run(model, 3)
    other = _model(_optimizer(base=base))
    other.optimizer.build(other.trainable_variables)
    if kind == "weights":
        model.save_weights(tmp_path / "model.weights.h5")
        other.load_weights(tmp_path / "model.weights.h5")
    else:
        path = tf.train.Checkpoint(model=model).save(str(tmp_path / "c"))
        tf.train.Checkpoint(model=other).restore(path).assert_consumed()
    np.testing.assert_array_equal(_run(other, 3), _run(model, 3))


@pytest.mark.parametrize("estimate", [1e-20, 1e20, float("inf")])
def test_estimates_of_files_leave_the_noise_as_it_is(estimate):
    thresholds = tf_dpfp.clipping.Adaptive(rescale=False)
    optimizer = tf_dpfp.DPSGD(
        1.0,
        noise_multiplier=1.0,
        clipping=tf_dpfp.PerLayer(thresholds=thresholds),
        expected_batch_size=8.0,
    )
    model = _model(optimizer)
    optimizer.build(model.trainable_variables)
    (stored,) = (v for v in optimizer.variables if "estimates" in v.path)

    def released():
        stored.assign(tf.fill(stored.shape, estimate))
        for variable in model.trainable_variables:
            variable.assign(tf.zeros(variable.shape))
        model.train_on_batch(X, Y)
        return np.concatenate(
            [v.numpy().ravel() for v in model.trainable_variables]
        )

    first, second = released(), released()
    assert np.all(np.isfinite(first) & np.isfinite(second))
    # The least and the greatest estimate, over the expected batch size.
    clip_norm = np.clip(estimate, 1e-10, 1e10)
    deviation = np.std(first - second) / np.sqrt(2.0) * 8.0
    assert 0.5 < deviation / (clip_norm * np.sqrt(3.0)) < 2.0


def test_a_compiled_step_finds_restored_estimates(tmp_path):
    model = _model()
    model.compile(model.optimizer, loss="mse", run_eagerly=False)
    _run(model, 2)
    checkpoint = tf.train.Checkpoint(model=model)
    path = checkpoint.save(str(tmp_path / "c"))
    saved = reference.estimates_of(model.optimizer)
    _run(model, 3)
    checkpoint.restore(path)
    np.testing.assert_array_equal(
        reference.estimates_of(model.optimizer), saved
    )
    # The ledger is not restored: the noise is that of the sixth step.
    assert [e.steps for e in tf_dpfp.ledger(model)] == [5]
    clipped = tf_dpfp.loops.clipped_gradients(model, X, Y)
    for group in clipped.groups:
        for member in group.members:
            assert float(group.estimate) == saved[member]


@pytest.mark.parametrize(
    ("from_adaptive", "base"),
    [(True, tf_dpfp.DPSGD), (False, tf_dpfp.DPAdam)],
)
def test_state_of_another_kind_of_thresholds_is_refused(
    tmp_path, from_adaptive, base
):
    adaptive = _model(_optimizer(base=base))
    fixed = _model(_optimizer("per_layer", base=base))
    source, target = (adaptive, fixed) if from_adaptive else (fixed, adaptive)
    _run(source, 2)
    _run(target, 1)
    before = reference.estimates_of(adaptive.optimizer)
    path = tmp_path / "model.weights.h5"
    source.save_weights(path)
    with pytest.raises(ValueError, match="ledger would be lost"):
        target.load_weights(path)
    # The weights of the layers are those of the file by then.
    assert [e.steps for e in tf_dpfp.ledger(target)] == [2]
    np.testing.assert_array_equal(
        reference.estimates_of(adaptive.optimizer), before
    )


def test_a_new_optimizer_begins_anew_and_keeps_the_ledger():
    model = _model()
    first = _run(model, 3)
    initial = first[:, :6]
    assert np.ptp(initial) > 0.1
    model.compile(_optimizer(), loss="mse", run_eagerly=True)
    clipped = tf_dpfp.loops.clipped_gradients(model, X, Y)
    assert {float(g.estimate) for g in clipped.groups} == {
        float(np.float32(1.0 / np.sqrt(3)))
    }
    _run(model, 1)
    assert [e.steps for e in tf_dpfp.ledger(model)] == [4]
    # The same optimizer compiled again goes on where it was.
    before = reference.estimates_of(model.optimizer)
    model.compile(model.optimizer, loss="mae", run_eagerly=True)
    clipped = tf_dpfp.loops.clipped_gradients(model, X, Y)
    found = [float(g.estimate) for g in clipped.groups]
    np.testing.assert_array_equal(found, before[::2])


@pytest.mark.parametrize("same_optimizer", [True, False])
def test_a_layer_that_is_frozen_half_way(same_optimizer):
    model = _model()
    _run(model, 2)
    before = reference.estimates_of(model.optimizer)
    model.get_layer("first").trainable = False
    optimizer = model.optimizer if same_optimizer else _optimizer()
    model.compile(optimizer, loss="mse", run_eagerly=True)
    weights = model.get_layer("first").get_weights()
    clipped = tf_dpfp.loops.clipped_gradients(model, X, Y)
    assert len(clipped.groups) == len(clipped.counts) == 2
    found = [float(g.estimate) for g in clipped.groups]
    if same_optimizer:
        np.testing.assert_array_equal(found, before[2::2])
    else:
        np.testing.assert_allclose(found, 0.5**0.5, rtol=1e-6)
    # Two groups now share the bound.
    thresholds = [float(g.clip_norm) for g in clipped.groups]
    assert np.linalg.norm(thresholds) == pytest.approx(1.0, rel=1e-5)
    _run(model, 2)
    after = reference.estimates_of(model.optimizer)
    if same_optimizer:
        np.testing.assert_array_equal(after[:2], before[:2])
    assert len(after) == (6 if same_optimizer else 4)
    for a, b in zip(
        weights, model.get_layer("first").get_weights(), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    if same_optimizer:
        # And back again: it is found where it was left.
        model.get_layer("first").trainable = True
        model.compile(optimizer, loss="mse", run_eagerly=True)
        clipped = tf_dpfp.loops.clipped_gradients(model, X, Y)
        assert float(clipped.groups[0].estimate) == before[0]
        _run(model, 1)
    total = 5 if same_optimizer else 4
    assert [e.steps for e in tf_dpfp.ledger(model)] == [total]


def test_a_variable_that_the_optimizer_does_not_know_is_named():
    model = _model()
    model.get_layer("first").trainable = False
    model.compile(_optimizer(), loss="mse", run_eagerly=True)
    _run(model, 1)
    model.get_layer("first").trainable = True
    model.compile(model.optimizer, loss="mse", run_eagerly=True)
    with pytest.raises(ValueError, match="no threshold for '.*first/kernel'"):
        model.train_on_batch(X, Y)
    assert [e.steps for e in tf_dpfp.ledger(model)] == [1]


def test_clipped_gradients_without_counts_are_refused():
    model = _model(_optimizer("per_layer"))
    clipped = tf_dpfp.loops.clipped_gradients(model, X, Y)
    assert clipped.counts is None
    other = _optimizer()
    other.build(model.trainable_variables)
    weights = model.get_weights()
    with pytest.raises(ValueError, match="carry no counts"):
        other.apply(clipped)
    for a, b in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_noise_belongs_to_the_thresholds_of_the_clipped_gradients():
    adaptive = tf_dpfp.clipping.Adaptive(
        rescale=False, initial=1e-3, learning_rate=9.0
    )
    optimizer = _optimizer(tf_dpfp.PerLayer(thresholds=adaptive), 1e-2)
    model = _model(optimizer)

    def nothing_clipped():
        clipped = tf_dpfp.loops.clipped_gradients(model, X, Y)
        return dataclasses.replace(
            clipped, sums=[tf.zeros_like(s) for s in clipped.sums]
        )

    def noise_of(clipped):
        before = np.concatenate([w.ravel() for w in model.get_weights()])
        optimizer.apply(clipped)
        after = np.concatenate([w.ravel() for w in model.get_weights()])
        return np.std(after - before) * 8 / 0.01 / 1e-2

    early = nothing_clipped()
    for _ in range(3):
        optimizer.apply(nothing_clipped())
    # The optimizer's thresholds have gone on when the early ones are applied.
    late = nothing_clipped()
    bounds = [
        np.linalg.norm([float(g.clip_norm) for g in clipped.groups])
        for clipped in (early, late)
    ]
    assert bounds[1] > 20 * bounds[0]
    assert noise_of(early) == pytest.approx(bounds[0], rel=0.4)
    assert noise_of(late) == pytest.approx(bounds[1], rel=0.4)


def test_estimates_are_kept_by_variable():
    variables = [
        keras.Variable(np.zeros(1, np.float32), name=f"v{i}") for i in range(4)
    ]
    optimizer = _optimizer()
    optimizer.build(variables)
    groups = [
        clipping_lib.Group("a", (0, 2), 1.0, 2, estimate=0.25),
        clipping_lib.Group("b", (1,), 1.0, 1, estimate=0.75),
    ]
    keeper = optimizer._adaptation

    def current(groups, variables):
        return [float(e) for e in keeper.current(groups, variables)]

    assert current(groups, variables) == [0.25, 0.75]
    keeper.write(groups, variables, tf.constant([3.0, 5.0]))
    np.testing.assert_array_equal(
        reference.estimates_of(optimizer), [3.0, 5.0, 3.0, 0.0]
    )
    # Fewer variables: the members count anew, the estimates stay.
    groups = [
        clipping_lib.Group("a", (0,), 1.0, 1, estimate=0.25),
        clipping_lib.Group("c", (1,), 1.0, 1, estimate=0.5),
    ]
    assert current(groups, [variables[2], variables[3]]) == [3.0, 0.5]
