"""Training with sparse tables, end to end."""

import keras
import numpy as np
import pytest
from keras import layers
from scipy import stats

import tf_dpfp
from tests import helpers
from tf_dpfp import compilation
from tf_dpfp import loops
from tf_dpfp.mechanisms import eager_passes
from tf_dpfp.mechanisms import state as state_lib

pytestmark = pytest.mark.usefixtures("without_trial")

ROWS, WIDTH, IDS, COUNT = 60, 3, 4, 16
RNG = np.random.default_rng(0)
X = RNG.integers(0, ROWS // 2, (COUNT, IDS)).astype("int32")
Y = RNG.normal(size=(COUNT, 1)).astype("float32")
ALL = tf_dpfp.Sparse("items", threshold=-40.0)


def _model(optimizer, private=True, rows=ROWS, jit_compile="auto", **table):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((IDS,), dtype="int32"),
            layers.Embedding(rows, WIDTH, name="items", **table),
            layers.Flatten(),
            layers.Dense(4, "tanh"),
            layers.Dense(1),
        ]
    )
    if private:
        tf_dpfp.make_private(model)
    model.compile(optimizer, loss="mse", jit_compile=jit_compile)
    return model


def _optimizer(sparse=ALL, base=tf_dpfp.DPSGD, noise_multiplier=0.0, **kwargs):
    kwargs.setdefault("expected_batch_size", COUNT)
    kwargs.setdefault("l2_norm_clip", 0.3)
    return base(
        0.5, noise_multiplier=noise_multiplier, sparse_tables=sparse, **kwargs
    )


def _moved(model, x=X, y=Y, steps=1):
    before = [w.copy() for w in model.get_weights()]
    for _ in range(steps):
        model.train_on_batch(x, y)
    after = model.get_weights()
    return [b - a for a, b in zip(before, after, strict=True)]


@pytest.mark.parametrize(
    ("base", "clipping", "microbatch_size"),
    [
        (tf_dpfp.DPSGD, "flat", 5),
        (tf_dpfp.DPAdagrad, "per_layer", None),
        (tf_dpfp.DPAdagrad, "flat", COUNT),
    ],
)
def test_without_noise_it_is_dp_sgd(base, clipping, microbatch_size):
    dense, sparse = (
        _moved(
            _model(
                _optimizer(
                    setting,
                    base,
                    clipping=clipping,
                    microbatch_size=microbatch_size,
                )
            ),
            steps=2,
        )
        for setting in (None, tf_dpfp.Sparse("items"))
    )
    assert np.any(dense[0])
    for a, b in zip(dense, sparse, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(
    ("base", "first"), [(tf_dpfp.DPAdagrad, 0.1), (tf_dpfp.DPLazyAdam, 0.0)]
)
def test_rows_that_are_not_released_stay_bit_for_bit(base, first):
    setting = tf_dpfp.Sparse("items", threshold=4.0, contribution_clip=2.0)
    optimizer = _optimizer(setting, base, 0.01)
    model = _model(optimizer, rows=5000)
    moved = _moved(model, steps=3)[0]
    slots = optimizer.variables
    *_, slot = (v for v in slots if tuple(v.shape) == (5000, WIDTH))
    released = np.any(moved != 0.0, axis=1)
    # All that are touched, with so little noise, and hardly any other.
    np.testing.assert_array_equal(
        released[: ROWS // 2], np.isin(np.arange(ROWS // 2), X)
    )
    assert released.sum() <= ROWS // 2 + 10
    assert np.all(slot.numpy()[~released] == np.float32(first))
    touched = slot.numpy()[np.unique(X)]
    assert np.all(np.any(touched > first, axis=1))


def test_where_every_row_passes_all_have_the_noise_that_is_left():
    share, multiplier, clip = 0.36, 2.0, 0.3
    setting = tf_dpfp.Sparse("items", threshold=-40.0, contribution_share=share)
    optimizer = _optimizer(setting, noise_multiplier=multiplier)
    model = _model(optimizer, rows=20_000)
    moved = _moved(model)
    # Rate and divisor.
    noise = moved[0][ROWS:] * COUNT / 0.5
    deviation = multiplier * clip / np.sqrt(1 - share)
    helpers.assert_normal(noise, deviation, (0.94, 1.06, np.sqrt(1 - share)))
    kernel = moved[1] * COUNT / 0.5
    assert np.std(kernel) < 2.5 * deviation


def test_of_a_threshold_shares_of_the_noise_decide():
    # Each of a thousand rows is touched by 3 examples, alone in each.
    rows, of_each, share, multiplier = 1000, 3, 0.25, 1.0
    x = np.tile(np.arange(rows)[:, None], (of_each, IDS)).astype("int32")
    y = np.ones((len(x), 1), "float32")
    setting = tf_dpfp.Sparse(
        "items", threshold=2.0, contribution_share=share, contribution_clip=0.5
    )
    model = _model(
        _optimizer(setting, noise_multiplier=multiplier, l2_norm_clip=1.0),
        rows=10 * rows,
    )
    released = np.any(_moved(model, x, y)[0] != 0.0, axis=1)
    # A count of 3 * 0.5, noise of 0.5 / sqrt(0.25).
    chance = stats.norm.sf(2.0 - 1.5 / 1.0)
    passed = int(released[:rows].sum())
    assert stats.binomtest(passed, rows, chance).pvalue > 1e-6
    passed = int(released[rows:].sum())
    assert stats.binomtest(passed, 9 * rows, stats.norm.sf(2.0)).pvalue > 1e-6


def test_adaptive_clip_norms_share_what_is_left():
    thresholds = tf_dpfp.clipping.Adaptive(budget_share=0.19, rescale=False)
    setting = tf_dpfp.Sparse("items", threshold=-40.0, contribution_share=0.36)
    optimizer = _optimizer(
        setting,
        noise_multiplier=2.0,
        clipping=tf_dpfp.Flat(thresholds=thresholds),
    )
    noise = _moved(_model(optimizer, rows=20_000))[0][ROWS:] * COUNT / 0.5
    deviation = 2.0 * 0.3 / np.sqrt(0.64) / np.sqrt(0.81)
    helpers.assert_normal(noise, deviation, (0.94, 1.06))


def test_epsilon_and_ledger_are_those_without_sparse_tables():
    entries, said = [], []
    for setting in (None, tf_dpfp.Sparse("items", contribution_share=0.9)):
        model = _model(
            _optimizer(setting, noise_multiplier=1.1, expected_batch_size=None)
        )
        batches = tf_dpfp.poisson_batches(X, Y, sampling_rate=0.5)
        model.fit(batches, epochs=2, verbose=0)
        entries.append(tf_dpfp.ledger(model))
        said.append(tf_dpfp.privacy_statement(model, 1e-5))
    assert entries[0] == entries[1]
    assert said[0] == said[1]
    (entry,) = entries[0]
    assert entry.noise_multiplier == 1.1


def test_persons_touch_a_row_once():
    users = np.repeat(np.arange(4), 4)
    setting = tf_dpfp.Sparse("items", threshold=-40.0)
    moved = []
    for sparse in (None, setting):
        model = _model(_optimizer(sparse, expected_batch_size=None, seed=1))
        before = model.get_weights()
        batches = tf_dpfp.poisson_batches(
            X,
            Y,
            sampling_rate=1.0,
            users=users,
            max_examples_per_user=4,
        )
        model.fit(batches, verbose=0)
        after = model.get_weights()
        moved.append([b - a for a, b in zip(before, after, strict=True)])
    for a, b in zip(*moved, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_contributions_of_a_person_and_of_views_are_joined():
    # Twelve rows of a batch touch four of the table. A count of 1 is half of
    # the deviation of its noise, and one of 12 is six of them.
    setting = tf_dpfp.Sparse(
        "items", threshold=3.0, contribution_share=0.25, contribution_clip=2.0
    )
    x = np.tile(np.arange(IDS, dtype="int32"), (12, 1))
    y = np.ones((12, 1), "float32")
    passed = []
    for size, joined in (
        (12, {"users": np.zeros(12, int), "max_examples_per_user": 12}),
        (1, {"multiplicity": 12}),
        (12, {}),
    ):
        optimizer = _optimizer(
            setting, noise_multiplier=0.5, expected_batch_size=None, seed=2
        )
        model = _model(optimizer)
        before = model.get_weights()[0]
        batches = tf_dpfp.poisson_batches(
            x[:size], y[:size], sampling_rate=1.0, **joined
        )
        model.fit(batches, verbose=0)
        moved = model.get_weights()[0] - before
        passed.append(np.any(moved[:IDS] != 0.0, axis=1))
    assert not np.any(passed[:2]) and np.all(passed[2])


def test_eager_steps_and_steps_in_a_graph_agree():
    found = []
    for eagerly in (False, True):
        model = _model(
            _optimizer(tf_dpfp.Sparse("items"), noise_multiplier=0.7, seed=3)
        )
        model.run_eagerly = eagerly
        found.append(_moved(model, steps=2))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_saved_model_goes_on(tmp_path):
    model = _model(_optimizer(tf_dpfp.Sparse("items"), noise_multiplier=0.7))
    model.train_on_batch(X, Y)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.sparse_tables == tf_dpfp.Sparse("items")
    tf_dpfp.make_private(loaded)
    loaded.train_on_batch(X, Y)
    assert sum(e.steps for e in tf_dpfp.ledger(loaded)) == 2


def test_secure_noise_is_drawn_for_rows():
    pytest.importorskip("cryptography")
    optimizer = _optimizer(noise_multiplier=2.0, secure=True)
    noise = _moved(_model(optimizer, rows=20_000))[0][ROWS:] * COUNT / 0.5
    helpers.assert_normal(noise, 2.0 * 0.3 / np.sqrt(0.9), (0.94, 1.06))


@pytest.mark.parametrize(
    ("table", "match"),
    [
        ({"embeddings_regularizer": "l2"}, "regularizer"),
        ({"embeddings_constraint": "max_norm"}, "constraint"),
    ],
)
def test_tables_whose_every_row_moves_are_refused(table, match):
    with pytest.raises(ValueError, match=match):
        _moved(_model(_optimizer(), **table))


def test_names_of_no_table_are_refused():
    with pytest.raises(ValueError, match="'dense'.*0 trainable"):
        _moved(_model(_optimizer(tf_dpfp.Sparse("dense"))))


def test_two_layers_of_one_name_are_refused():
    inputs = keras.Input((IDS,), dtype="int32")
    inner = keras.Sequential(
        [inputs, layers.Embedding(ROWS, WIDTH, name="items")]
    )
    outer = layers.Embedding(ROWS, WIDTH, name="items")(inputs)
    model = keras.Model(inputs, layers.Add()([inner(inputs), outer]))
    tf_dpfp.make_private(model)
    model.compile(_optimizer(), loss="mse")
    with pytest.raises(ValueError, match="a name of its own.*2 trainable"):
        model.train_on_batch(X, np.zeros((COUNT, IDS, WIDTH), "float32"))


def test_a_table_under_lora_is_refused():
    model = _model(_optimizer())
    model.get_layer("items").enable_lora(2)
    model.compile(_optimizer(), loss="mse")
    with pytest.raises(ValueError, match="LoRA.*Leave that out"):
        model.train_on_batch(X, Y)


class Scaled(layers.Embedding):
    def call(self, inputs):
        return 2.0 * super().call(inputs)


@pytest.mark.parametrize("wrap", [tf_dpfp.PerExample, None])
def test_a_table_whose_lookups_are_not_seen_is_refused(wrap):
    base = layers.Embedding if wrap else Scaled
    table = base(ROWS, WIDTH, name="items")
    model = keras.Sequential(
        [
            keras.Input((IDS, 1), dtype="int32"),
            wrap(table) if wrap else table,
            layers.Flatten(),
            layers.Dense(1),
        ]
    )
    tf_dpfp.make_private(model)
    model.compile(_optimizer(), loss="mse")
    with pytest.raises(ValueError, match="'items'.*call the Embedding itself"):
        model.train_on_batch(X[:, :, None], Y)


class Reversing(keras.Model):
    def __init__(self, tie_weights):
        super().__init__()
        self.table = layers.ReversibleEmbedding(
            ROWS, WIDTH, tie_weights, name="items"
        )

    def call(self, x):
        return self.table(self.table(x)[:, 0], reverse=True)


@pytest.mark.skipif(
    not hasattr(layers, "ReversibleEmbedding"), reason="keras is too old"
)
def test_a_table_is_refused_if_it_is_tied():
    moved = []
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for sparse in (None, ALL):
        keras.utils.set_random_seed(1)
        model = Reversing(tie_weights=False)
        model(X)
        tf_dpfp.make_private(model)
        model.compile(_optimizer(sparse), loss=loss)
        moved.append(_moved(model, y=X[:, 0]))
    for a, b in zip(*moved, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    model = Reversing(tie_weights=True)
    model(X)
    tf_dpfp.make_private(model)
    model.compile(_optimizer(), loss=loss)
    with pytest.raises(ValueError, match="used otherwise"):
        model.train_on_batch(X, X[:, 0])


def test_xla_compiles_all_but_the_release(monkeypatch):
    found, compiled, ordinary = [], [], eager_passes.compiled

    def noted(model):
        compiled.append(model)
        return ordinary(model)

    monkeypatch.setattr(eager_passes, "compiled", noted)
    for compiles in (False, True):
        setting = tf_dpfp.Sparse("items")
        model = _model(
            _optimizer(
                setting,
                noise_multiplier=0.7,
                expected_batch_size=8.0,
                seed=3,
                microbatch_size=8,
            ),
            jit_compile=compiles,
        )
        batches = tf_dpfp.poisson_batches(X, Y, sampling_rate=0.5, seed=1)
        model.fit(batches, verbose=0, steps_per_epoch=2)
        found.append([*_moved(model), *model.get_weights()])
        assert bool(compiled) == compiles
        # Not in every step of an eager loop.
        count = len(compiled)
        loops.clipped_gradients(model, X, Y)
        assert len(compiled) == count
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_xla_is_off_unless_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(compilation, "has_accelerator", lambda: True)
    model = _model(_optimizer())
    state = state_lib.state_of(model)
    assert not model.jit_compile and not state.compiles_pieces


def test_one_table_may_be_looked_up_twice_beside_another():
    keras.utils.set_random_seed(1)
    first, second = (keras.Input((), dtype="int32") for _ in range(2))
    items, persons = (
        layers.Embedding(ROWS, WIDTH, name=name)
        for name in ("items", "persons")
    )
    out = layers.Dense(1)(
        layers.Concatenate()([items(first), items(second), persons(first)])
    )
    model = keras.Model([first, second], out)
    weights = model.get_weights()
    moved = []
    for names in (None, ["persons", "items"]):
        twin = keras.models.clone_model(model)
        twin.set_weights(weights)
        tf_dpfp.make_private(twin)
        setting = names and tf_dpfp.Sparse(names)
        twin.compile(_optimizer(setting), loss="mse")
        moved.append(_moved(twin, [X[:, 0], X[:, 1]]))
    for a, b in zip(*moved, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
