"""What carriers depend on, and that a resumed run goes on with the same."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tests.low_rank import strong_carriers
from tf_dpfp import low_rank

ROWS, COLUMNS = 12, 9


# The trial of a model takes most of the time, and is tested elsewhere.
pytestmark = pytest.mark.usefixtures("without_trial")


def _model(optimizer=None, mark=True, noise_multiplier=0.5, **settings):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((ROWS,)),
            layers.Dense(COLUMNS, activation="tanh", name="hidden"),
            layers.Dense(4, name="head"),
        ]
    )
    if mark:
        tf_dpfp.reparametrize(model, 2, include="hidden", **settings)
    tf_dpfp.make_private(model)
    _compile(model, optimizer or tf_dpfp.DPSGD, noise_multiplier)
    return model


def _compile(model, optimizer=tf_dpfp.DPSGD, noise_multiplier=0.5):
    model.compile(
        optimizer(
            0.1,
            l2_norm_clip=1.0,
            noise_multiplier=noise_multiplier,
            expected_batch_size=8,
            seed=1,
        ),
        loss="mse",
        run_eagerly=True,
    )
    model.optimizer.build(model.trainable_variables)


def _data(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(8, ROWS)).astype(np.float32)
    return x, rng.normal(size=(8, 4)).astype(np.float32)


def _step(model, data=None):
    model.train_on_batch(*(data or _data()))


def _carriers(model):
    """The carriers of the next step, those of the hidden kernel."""
    first, *others = model.optimizer.carriers(model.trainable_variables)
    assert others == [None] * 3
    _assert_orthonormal(first)
    return first


def _assert_orthonormal(carriers):
    for basis, size in zip(carriers, (ROWS, COLUMNS), strict=True):
        basis = basis.numpy()
        assert basis.shape == (size, 2)
        np.testing.assert_allclose(basis.T @ basis, np.eye(2), atol=1e-5)


def _same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def _overlap(basis, matrix):
    """How much of the leading direction of a matrix a basis holds."""
    leading = np.linalg.svd(matrix)[0][:, 0]
    return np.linalg.norm(basis.numpy().T @ leading)


def test_the_source_says_what_the_carriers_follow(monkeypatch):
    strong_carriers.patch(monkeypatch)
    history = _model(warmup_steps=2)
    weight = _model(carrier_source="weight")
    kernels = {
        model: model.get_layer("hidden").kernel for model in (history, weight)
    }
    start = kernels[history].numpy()
    for step in range(4):
        for model, kernel in kernels.items():
            now = kernel.numpy()
            follows = now
            if model is history and step >= 2:
                follows = now - start
            left, right = _carriers(model)
            assert _overlap(left, follows) > 0.99
            assert _overlap(right, follows.T) > 0.99
            _step(model)
    # The two targets are told apart by this.
    left, _ = _carriers(history)
    assert _overlap(left, kernels[history].numpy()) < 0.97


def test_the_history_begins_at_the_first_step_not_before(monkeypatch):
    strong_carriers.patch(monkeypatch)
    model = _model(warmup_steps=0)
    kernel = model.get_layer("hidden").kernel
    # Weights loaded after the optimizer was built.
    kernel.assign(kernel * 3.0 + 1.0)
    start = kernel.numpy()
    # No history yet: the weight.
    left, _ = _carriers(model)
    assert _overlap(left, start) > 0.99
    _step(model)
    left, _ = _carriers(model)
    assert _overlap(left, kernel.numpy() - start) > 0.99
    # Back at the start, the history is zero.
    kernel.assign(start)
    left, _ = _carriers(model)
    assert _overlap(left, start) > 0.99
    # And a weight of zero without history: random carriers.
    model = _model(warmup_steps=0)
    model.get_layer("hidden").kernel.assign(tf.zeros([ROWS, COLUMNS]))
    _carriers(model)
    _step(model)


@pytest.mark.parametrize("source", low_rank.configuration.CARRIER_SOURCES)
def test_carriers_are_found_anew_in_every_step(source):
    model = _model(carrier_source=source, warmup_steps=1)
    seen = []
    for _ in range(4):
        seen.append(_carriers(model))
        # Asking changes nothing.
        assert _same(seen[-1], _carriers(model))
        _step(model)
    changes = [not _same(a, b) for a, b in zip(seen, seen[1:], strict=False)]
    assert changes == [True] * 3


def test_every_kernel_and_seed_has_random_carriers_of_its_own():
    def of(**settings):
        model = _model(mark=False)
        low_rank.remove_carriers(model)
        tf_dpfp.reparametrize(model, 2, carrier_source="random", **settings)
        _compile(model)
        return model.optimizer.carriers(model.trainable_variables)

    first, again, other = of(), of(), of(seed=1)
    assert _same(first[0], again[0]) and not _same(first[0], other[0])
    # Both kernels have nine numbers on one side: hidden's right, head's left.
    assert not np.allclose(first[0].right, first[2].left)


@pytest.mark.parametrize("source", low_rank.configuration.CARRIER_SOURCES)
def test_carriers_depend_on_noised_values_only(source):
    """They are a function of the released weights and of public things.

    One run has another example in its batches. If its weights are made equal
    to those of the other run, so are the carriers: nothing else of the data
    got into them.
    """
    settings = dict(carrier_source=source, warmup_steps=1)
    one, other = _model(**settings), _model(**settings)
    x, y = _data()
    changed = x.copy()
    changed[0] = 50.0
    weights = []
    for step in range(4):
        weights.append(one.get_weights())
        other.set_weights(weights[-1])
        assert _same(_carriers(one), _carriers(other)), step
        # Also after the gradients of the step were computed.
        for model, batch in ((one, x), (other, changed)):
            before = _carriers(model)
            clipped = tf_dpfp.loops.clipped_gradients(model, batch, y)
            assert _same(before, _carriers(model))
            assert _same(clipped.carriers[0], before)
            model.optimizer.apply(clipped)
    # The runs do differ where the data does.
    assert not np.array_equal(one.get_weights()[0], other.get_weights()[0])


def _train_and_save(model, path, steps=3):
    for _ in range(steps):
        _step(model)
    if path.suffix == ".ckpt":
        return tf.train.Checkpoint(model=model).save(str(path))
    model.save_weights(path)
    return path


def _load(model, path):
    if "ckpt" in str(path):
        tf.train.Checkpoint(model=model).restore(path)
    else:
        model.load_weights(path)


KINDS = ["state.weights.h5", "state.ckpt"]


# Of the history there is more to keep than of the others.
@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("history", KINDS[0]),
        ("history", KINDS[1]),
        ("weight", KINDS[0]),
        ("random", KINDS[1]),
    ],
)
def test_a_resumed_run_goes_on_with_the_same_carriers(source, kind, tmp_path):
    settings = dict(carrier_source=source, warmup_steps=2)
    through = _model(tf_dpfp.DPAdam, **settings)
    path = _train_and_save(through, tmp_path / kind)
    resumed = _model(tf_dpfp.DPAdam, **settings)
    _load(resumed, path)
    for step in range(3):
        assert _same(_carriers(through), _carriers(resumed)), step
        for model in (through, resumed):
            _step(model)
        for a, b in zip(
            through.get_weights(), resumed.get_weights(), strict=True
        ):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "saved, loadings",
    [
        (
            dict(carrier_source="weight"),
            [dict(mark=False), dict(carrier_source="random")],
        ),
        (dict(mark=False), [dict(carrier_source="weight")]),
        (dict(), [dict(left_only=True), dict(mark=False)]),
    ],
    ids=str,
)
def test_state_of_other_marks_is_refused(saved, loadings, tmp_path):
    trained = _model(**saved)
    for kind in KINDS:
        path = _train_and_save(trained, tmp_path / kind, steps=1)
        for loading in loadings:
            model = _model(**loading)
            with pytest.raises(
                ValueError, match="reparametrised otherwise|as it was"
            ):
                _load(model, path)
            # What it knew of itself is not overwritten.
            model.optimizer.carriers(model.trainable_variables)


def test_a_file_of_the_whole_model_is_refused_without_its_marks(tmp_path):
    model = _model(carrier_source="weight")
    _step(model)
    model.save(tmp_path / "model.keras")
    # Loaded, the model is ordinary and its optimizer private.
    with pytest.raises(ValueError, match="reparametrised otherwise") as error:
        keras.models.load_model(tmp_path / "model.keras")
    assert "load_model(path, compile=False)" in str(error.value)
    # One way out.
    plain = keras.models.load_model(tmp_path / "model.keras", compile=False)
    tf_dpfp.reparametrize(plain, 2, include="hidden", carrier_source="weight")
    tf_dpfp.make_private(plain)
    plain.compile(tf_dpfp.DPSGD(0.1, noise_multiplier=1.0), "mse")
    assert tf_dpfp.ledger(plain) == tf_dpfp.ledger(model)
    # The other.
    again = _model(carrier_source="weight")
    again.load_weights(tmp_path / "model.keras")
    assert _same(_carriers(model), _carriers(again))
    assert tf_dpfp.ledger(again) == tf_dpfp.ledger(model)


def test_a_file_of_a_model_of_rgp_layers_holds_everything(tmp_path):
    model = tf_dpfp.make_private(
        keras.Sequential(
            [
                keras.Input((ROWS,)),
                tf_dpfp.RGPDense(COLUMNS, rank=2, warmup_steps=1),
                layers.Dense(4),
            ]
        )
    )
    _compile(model, tf_dpfp.DPAdam)
    for _ in range(3):
        _step(model)
    model.save(tmp_path / "model.keras")
    loaded = tf_dpfp.make_private(
        keras.models.load_model(tmp_path / "model.keras")
    )
    loaded.run_eagerly = True
    assert _same(_carriers(model), _carriers(loaded))
    assert tf_dpfp.ledger(loaded) == tf_dpfp.ledger(model)
    for each in (model, loaded):
        _step(each)
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_marks_that_change_after_the_optimizer_was_built_are_refused():
    for before, change in (
        (False, lambda m: tf_dpfp.reparametrize(m, 2)),
        (True, low_rank.remove_carriers),
        (True, lambda m: tf_dpfp.reparametrize(m, 3, include="hidden")),
    ):
        model = _model(mark=before)
        _step(model)
        change(model)
        for train in (
            lambda model=model: _step(model),
            lambda model=model: model.fit(*_data(), verbose=0),
            lambda model=model: tf_dpfp.loops.clipped_gradients(
                model, *_data()
            ),
        ):
            with pytest.raises(ValueError, match="after the optimizer was"):
                train()
        steps = tf_dpfp.ledger(model)[0].steps
        _compile(model)
        _step(model)
        # What the old optimizer released is still counted.
        assert tf_dpfp.ledger(model)[0].steps == steps + 1


def test_gradients_made_under_other_marks_are_refused():
    model = _model(mark=False)
    clipped = tf_dpfp.loops.clipped_gradients(model, *_data())
    tf_dpfp.reparametrize(model, 2, include="hidden")
    _compile(model)
    with pytest.raises(tf_dpfp.errors.NotPrivateError, match="make them anew"):
        model.optimizer.apply(clipped)
    # The marks are checked for themselves, too.
    clipped = dataclasses.replace(clipped, owner=None)
    with pytest.raises(ValueError, match="Make them anew"):
        model.optimizer.apply(clipped)
    assert tf_dpfp.ledger(model) == []


def test_a_frozen_kernel_is_left_alone():
    model = _model()
    _step(model)
    model.get_layer("hidden").trainable = False
    before = model.get_layer("hidden").kernel.numpy()
    _step(model)
    np.testing.assert_array_equal(model.get_layer("hidden").kernel, before)
