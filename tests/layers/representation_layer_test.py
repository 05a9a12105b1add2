import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as keras_layers
from scipy import stats

import tf_dpfp
from tests import helpers
from tf_dpfp import accounting
from tf_dpfp import clipping
from tf_dpfp import counting
from tf_dpfp import sampling

CLIP, NOISE = 2.0, 1.5


def _layer(clip_norm=CLIP, noise_multiplier=NOISE, labels="public", **kwargs):
    return tf_dpfp.DPRepresentationClip(
        clip_norm, noise_multiplier, labels=labels, **kwargs
    )


def _count(layer):
    return sum(entry.steps for entry in layer.ledger_entries)


def _calls(layer):
    """The ways to call a layer: eagerly, in a graph, and under XLA."""
    yield lambda x, **kw: layer(x, **kw)
    for jit in (False, True):
        yield tf.function(
            lambda x, training=None: layer(x, training=training),
            jit_compile=jit,
        )


@pytest.mark.parametrize("way", range(3))
def test_noise_is_the_stated_normal_around_clipped_rows(way):
    layer = _layer()
    call = next(itertools.islice(_calls(layer), way, None))
    rows = np.random.default_rng(0).normal(size=(500, 40)).astype(np.float32)
    clipped = clipping.clip_representations(tf.constant(rows), CLIP).numpy()
    np.testing.assert_allclose(call(rows), clipped, rtol=1e-6)
    noise = call(rows, training=True).numpy() - clipped
    helpers.assert_normal(noise, NOISE * CLIP, (0.9, 1.1, 0.5, 1 / CLIP))
    # Each row and each call has its own.
    assert abs(np.corrcoef(noise[0], noise[1])[0, 1]) < 0.7
    again = call(rows, training=True).numpy() - clipped
    assert abs(np.corrcoef(noise.ravel(), again.ravel())[0, 1]) < 0.05
    assert _count(layer) == 2


def test_a_batch_of_unknown_size_gets_noise_of_its_size():
    layer = _layer()

    @tf.function(input_signature=[tf.TensorSpec([None, 5])])
    def call(x):
        return layer(x, training=True)

    for rows in (0, 1, 7):
        assert call(tf.zeros([rows, 5])).shape == (rows, 5)
    noise = call(tf.zeros([4000, 5])).numpy().ravel()
    assert stats.kstest(noise, stats.norm(0, NOISE * CLIP).cdf).pvalue > 1e-6
    assert _count(layer) == 4


def test_rows_that_are_not_finite_are_noise_alone():
    layer = _layer(noise_multiplier=1e-6)
    rows = np.array([[np.nan, 1.0], [np.inf, 0.0], [1.0, 1.0]], np.float32)
    found = layer(rows, training=True).numpy()
    np.testing.assert_allclose(found, [[0, 0], [0, 0], [1, 1]], atol=1e-4)


def test_no_noise_and_no_count_without_training():
    layer = _layer()
    x = np.ones((3, 4), np.float32)
    for training in (None, False):
        np.testing.assert_array_equal(
            layer(x, training=training), layer(x, training=training)
        )
    assert not layer.ledger_entries


def test_configs_of_earlier_versions_load_unless_they_noise_predictions():
    config = _layer().get_config() | {"noise_at_inference": False}
    layer = tf_dpfp.DPRepresentationClip.from_config(config)
    assert layer.get_config() == _layer(name=layer.name).get_config()
    config["noise_at_inference"] = True
    with pytest.raises(ValueError, match="noise_at_inference=True"):
        tf_dpfp.DPRepresentationClip.from_config(config)


def test_what_needs_a_ledger_asks_for_a_built_layer():
    with pytest.raises(ValueError, match="is not built"):
        assert _layer().next_entry
    with pytest.raises(ValueError, match="is not built"):
        _layer().absorb_ledger([])


def test_the_gradient_stops_here_unless_asked():
    x = tf.Variable(np.ones((3, 4), np.float32))
    for layer, stops in ((_layer(), True), (_layer(end_to_end=True), False)):
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(layer(x, training=True))
        assert (tape.gradient(total, x) is None) == stops
        (entry,) = layer.ledger_entries
        end_to_end = entry.release == accounting.EndToEnd()
        assert end_to_end != stops


def test_masked_positions_are_zero_and_the_mask_ends():
    layer = _layer(clip_norm=100.0, noise_multiplier=0.0)
    x = np.ones((2, 3, 2), np.float32)
    mask = np.array([[True, False, True], [False, False, True]])
    found = layer(x, mask=mask)
    np.testing.assert_allclose(found, x * mask[..., None], rtol=1e-6)
    inputs = keras.Input((3,), dtype="int32")
    h = keras_layers.Embedding(5, 2, mask_zero=True)(inputs)
    assert h._keras_mask is not None
    assert getattr(layer(h), "_keras_mask", None) is None
    # Masked positions get noise as the others do.
    noisy = _layer()(np.zeros((2, 3, 2), np.float32), mask=mask, training=True)
    assert np.all(noisy.numpy() != 0.0)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_is_clipped_and_noised_in_float32(policy):
    layer = _layer(clip_norm=1.0, noise_multiplier=1e-3, dtype=policy)
    # A norm that overflows in half precision.
    x = np.full((200, 64), 300.0, np.float32)
    found = layer(x, training=True)
    assert found.dtype == layer.compute_dtype
    values = tf.cast(found, tf.float32).numpy()
    np.testing.assert_allclose(np.linalg.norm(values, axis=1), 1.0, atol=0.02)
    assert len(np.unique(values)) > 3


def test_no_digit_of_a_row_leaves_that_noise_does_not_reach():
    rows = np.random.default_rng(0).normal(size=(9, 4))
    found = _layer(dtype="float64")(rows, training=True)
    assert found.dtype == tf.float64
    np.testing.assert_array_equal(found, np.float32(found))


def test_declared_labels_are_part_of_the_ledger():
    x = np.ones((2, 3), np.float32)
    undeclared = _layer(labels=None)
    undeclared(x, training=True)
    (entry,) = undeclared.ledger_entries
    assert entry.release == accounting.Representations("undeclared")
    y = tf_dpfp.representations.randomize_labels(np.arange(2), 1.5, 3)
    randomized = _layer(labels=y)
    randomized(x, training=True)
    assert randomized.ledger_entries[0] == y.entry
    assert randomized.ledger_entries[1].release == (
        accounting.Representations("randomized")
    )
    copy = tf_dpfp.DPRepresentationClip.from_config(randomized.get_config())
    copy(x, training=True)
    kinds = {(e.sampling, e.release) for e in copy.ledger_entries}
    assert (y.entry.sampling, accounting.Labels()) in kinds


def _info(x, y, **kwargs):
    return sampling.sampling_of(
        tf_dpfp.representations.stratified_batches(
            x, y, labels="public", **kwargs
        )
    )


def test_draws_are_counted_for_batches_of_their_size_only():
    x, y = np.zeros((20, 3), np.float32), np.arange(20) % 2
    info = _info(x, y, draw_size=4, draws=3)
    layer = _layer()

    @tf.function(input_signature=[tf.TensorSpec([None, 3])])
    def call(x):
        return layer(x, training=True)

    call(tf.zeros([12, 3]))
    with counting.announced(None, layer.claims(info), drawn=True):
        call(tf.zeros([12, 3]))
        # Not a batch of the sampler: counted without its claim, and an example
        # may be in it once for every draw.
        call(tf.zeros([11, 3]))
    # Other batches may be made of several draws.
    for draws in (1, 5):
        claims = layer.claims(None, draws)
        with counting.announced(None, claims, drawn=True):
            call(tf.zeros([12, 3]))
    counts = {e.sampling: e.steps for e in layer.ledger_entries}
    assert counts == {
        accounting.UnknownSampling(): 1 + 3 + 1 + 5,
        accounting.WithoutReplacement(10, 2): 3,
    }
    with counting.announced(None, layer.claims(info), drawn=True):
        with pytest.raises(ValueError, match="called with 11 rows"):
            layer(tf.zeros([11, 3]), training=True)


def test_no_way_of_writing_weights_lowers_a_count(tmp_path):
    x = np.ones((4, 3), np.float32)
    model = keras.Sequential(
        [keras.Input((3,)), _layer(), keras_layers.Dense(1)]
    )
    layer = model.layers[0]
    model(x, training=True)
    weights = model.get_weights()
    model.save_weights(tmp_path / "w.weights.h5")
    checkpoint = tf.train.Checkpoint(model=model)
    saved = checkpoint.save(str(tmp_path / "c"))
    model(x, training=True)
    model(x, training=True)
    for restore in (
        lambda: model.set_weights(weights),
        lambda: model.set_weights([np.zeros_like(w) for w in weights]),
        lambda: model.load_weights(tmp_path / "w.weights.h5"),
        lambda: checkpoint.restore(saved),
        lambda: layer.set_weights([np.zeros(counting.TABLE_SHAPE)]),
        lambda: layer.build((None, 3)),
    ):
        restore()
        assert _count(layer) == 3
    model(x, training=True)
    assert _count(layer) == 4
    with pytest.raises(ValueError):
        layer.set_weights([np.full(counting.TABLE_SHAPE, 7.0)])
    assert _count(layer) == 4
    # A greater count comes back.
    fresh = keras.Sequential(
        [keras.Input((3,)), _layer(), keras_layers.Dense(1)]
    )
    fresh.load_weights(tmp_path / "w.weights.h5")
    assert _count(fresh.layers[0]) == 1
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert loaded.layers[0].ledger_entries == layer.ledger_entries
    assert loaded.layers[0].get_config() == layer.get_config()


def test_a_seed_repeats_the_noise_of_a_layer_and_of_no_other():
    x = np.zeros((4, 3), np.float32)

    def noise(name, calls=1):
        layer = _layer(seed=5, name=name)
        found = [layer(x, training=True).numpy() for _ in range(calls)]
        assert all(e.seeded for e in layer.ledger_entries)
        return found

    one, two = noise("a", 2)
    np.testing.assert_array_equal(one, noise("a")[0])
    assert np.all(one != two)
    assert np.all(one != noise("b")[0])


def test_layers_of_one_name_and_one_seed_are_refused_in_one_model():
    """Both would draw the same noise, and the difference would have none."""

    def model(name, other, seed=5):
        inputs = [keras.Input((3,)), keras.Input((3,))]
        parts = [
            keras.Sequential([keras.Input((3,)), _layer(seed=seed, name=each)])
            for each in (name, other)
        ]
        rows = [part(x) for part, x in zip(parts, inputs, strict=True)]
        found = keras.Model(inputs, keras.layers.Dense(1)(rows[0] - rows[1]))
        return tf_dpfp.make_private(found)

    with pytest.raises(ValueError, match="differ by no noise at all"):
        model("a", "a").compile("sgd", loss="mse")
    model("a", "b").compile("sgd", loss="mse")
    model("a", "a", seed=None).compile("sgd", loss="mse")


def test_refusals():
    for bad in (
        {"clip_norm": 0.0},
        {"clip_norm": np.inf},
        {"clip_norm": 1e31},
        {"clip_norm": True},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": np.nan},
        {"noise_multiplier": None},
        {"labels": "secret"},
        {"labels": 3},
        {"seed": 1.5},
        {"seed": True},
        {"seed": -1},
        {"seed": 1.0},
        {"clip_norm": "1.0"},
        {"noise_multiplier": "1.0"},
        {"end_to_end": "no"},
    ):
        with pytest.raises(ValueError, match=next(iter(bad))):
            _layer(**bad)
    with pytest.raises(ValueError, match="calibrate_representation finds one"):
        _layer(noise_multiplier="calibrate")
    with pytest.raises(ValueError, match="floating point"):
        _layer(dtype="int32")(np.ones((2, 3), np.int32))
