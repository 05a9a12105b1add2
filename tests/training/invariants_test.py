"""What one example can do to the sums, however adversarial it is."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from keras import layers

import tf_dpfp
from tf_dpfp import step as step_lib

pytestmark = pytest.mark.usefixtures("without_trial")

CLIP = 0.5
NASTY = [0.0, 1e-45, 1e-38, 3e-20, 1e-10, 1.0, 1e5, 1e10, 1e19, 1e30, 3e38]
NASTY = NASTY + [-v for v in NASTY] + [np.nan, np.inf, -np.inf]
FEATURES = 6


def _compiled(model, clipping="flat", **arguments):
    tf_dpfp.make_private(model)
    kwargs = dict(l2_norm_clip=CLIP, noise_multiplier=0.0, clipping=clipping)
    kwargs |= arguments
    loss = kwargs.pop("loss", "mse")
    model.compile(
        tf_dpfp.DPSGD(1.0, expected_batch_size=1.0, **kwargs), loss=loss
    )
    return model


def _model(clipping="flat", **arguments):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            layers.Reshape((3, 2)),
            layers.Conv1D(3, 2, activation="relu", use_bias=False),
            layers.LayerNormalization(),
            layers.Flatten(),
            layers.Dense(4, use_bias=False),
            layers.PReLU(),
            layers.Dense(2),
        ]
    )
    return _compiled(model, clipping, **arguments)


def _sums_of(model, features=FEATURES, outputs=2):
    """A compiled function of batches of any size, and the groups."""

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, features], tf.float32),
            tf.TensorSpec([None, outputs], tf.float32),
            tf.TensorSpec([None], tf.float32),
        ],
        autograph=False,
    )
    def sums(x, y, weights):
        clipped = tf_dpfp.loops.clipped_gradients(model, x, y, weights)
        return [tf.reshape(s, [-1]) for s in clipped.sums]

    def of(x, y, weights=None):
        if weights is None:
            weights = np.ones(len(x), np.float32)
        return [s.numpy().astype(np.float64) for s in sums(x, y, weights)]

    return of


def _length(sums):
    return np.sqrt(sum(np.sum(s**2) for s in sums))


def _difference(a, b):
    return [x - y for x, y in zip(a, b, strict=True)]


@pytest.fixture(scope="module", params=["flat", "per_layer"])
def subject(request):
    model = _model(request.param)
    groups = model.optimizer.groups(step_lib.owned_variables(model))
    return _sums_of(model), groups


def _batch(seed, count=4):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(count, FEATURES)).astype(np.float32),
        rng.normal(size=(count, 2)).astype(np.float32),
    )


nasty_rows = st.lists(
    st.sampled_from(NASTY), min_size=FEATURES + 2, max_size=FEATURES + 2
)


@settings(max_examples=150)
@given(
    row=nasty_rows,
    other=nasty_rows,
    position=st.integers(0, 3),
    weight=st.sampled_from([1.0, 1.0, 0.0, -2.0, 1e30, np.nan, np.inf]),
)
def test_one_example_moves_the_sums_by_at_most_the_bound(
    subject, row, other, position, weight
):
    sums, groups = subject
    x, y = _batch(1)
    # Another nasty example that stays, and a duplicate of an ordinary one.
    for index, values in (((position + 1) % 4, other), (position, row)):
        x[index], y[index] = values[:FEATURES], values[FEATURES:]
    x[(position + 2) % 4] = x[(position + 3) % 4]
    weights = np.ones(4, np.float32)
    weights[position] = weight
    # Padding in its place: kernels round the others in the same order.
    others = np.arange(4) != position
    emptied = tuple(
        np.where(np.reshape(others, (-1,) + (1,) * (v.ndim - 1)), v, 0.0)
        for v in (x, y, weights)
    )
    _check_moved(groups, sums(x, y, weights), sums(*emptied))


@settings(max_examples=75)
@given(
    row=nasty_rows,
    position=st.integers(0, 3),
    weight=st.sampled_from([1.0, 0.0, -2.0, 1e30, np.nan, np.inf]),
)
def test_one_example_left_out_moves_the_sums_by_at_most_the_bound(
    subject, row, position, weight
):
    sums, groups = subject
    x, y = _batch(1)
    x[position], y[position] = row[:FEATURES], row[FEATURES:]
    x[(position + 2) % 4] = x[(position + 3) % 4]
    weights = np.ones(4, np.float32)
    weights[position] = weight
    kept = np.arange(4) != position
    _check_moved(
        groups, sums(x, y, weights), sums(x[kept], y[kept], weights[kept])
    )


def _check_moved(groups, with_it, without):
    moved = _difference(with_it, without)
    assert all(np.all(np.isfinite(m)) for m in moved)
    assert _length(moved) <= CLIP * (1 + 1e-6)
    for group in groups:
        part = _length([moved[i] for i in group.members])
        assert part <= group.clip_norm * (1 + 1e-5), group.name


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["input", "label"])
def test_an_example_that_is_not_finite_is_as_good_as_absent(
    subject, bad, where
):
    sums, _ = subject
    x, y = _batch(2)
    without = sums(x[1:], y[1:])
    (x if where == "input" else y)[0, 0] = bad
    for a, b in zip(sums(x, y), without, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)
    # By itself: exactly nothing.
    assert all(np.all(s == 0.0) for s in sums(x[:1], y[:1]))


def test_an_example_contributes_the_same_in_any_company(subject):
    sums, _ = subject
    x, y = _batch(3, 8)
    alone = [sums(x[i : i + 1], y[i : i + 1]) for i in range(8)]
    for batch in ([0, 1], [0, 0, 0], list(range(8)), [7, 3, 5]):
        expected = [
            np.sum([alone[i][k] for i in batch], axis=0)
            for k in range(len(alone[0]))
        ]
        found = sums(x[batch], y[batch])
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_allclose(a, b, atol=3e-7)


def test_an_empty_batch_gives_zeros(subject):
    sums, _ = subject
    x, y = _batch(3, 0)
    assert all(np.all(s == 0.0) for s in sums(x, y))


def test_products_of_tiny_and_huge_numbers_do_not_hide_from_the_norm():
    # |x|^2 is below what float32 holds, |g|^2 is huge, x^T g is ordinary.
    model = _compiled(
        keras.Sequential(
            [keras.Input((784,)), layers.Dense(4, use_bias=False)]
        ),
        l2_norm_clip=1.0,
    )
    for value in (3e-20, 1e-20, 1e-19, 1e-21):
        x = np.full((1, 784), value, np.float32)
        y = np.full((1, 4), -8e18, np.float32)
        sums = [
            s.numpy().astype(np.float64)
            for s in tf_dpfp.loops.clipped_gradients(model, x, y).sums
        ]
        assert _length(sums) <= 1.0, value


@pytest.mark.parametrize("microbatch_size", [2, 4, 5])
def test_padding_contributes_nothing(microbatch_size):
    whole, cut = _model(), _model(microbatch_size=microbatch_size)
    x, y = _batch(4, 3)

    def sums(model, x, y):
        # Rows of padding are zeros, for which the biases make a gradient.
        for v in model.trainable_variables:
            v.assign(tf.fill(v.shape, 0.3))
        return [
            s.numpy() for s in tf_dpfp.loops.clipped_gradients(model, x, y).sums
        ]

    zeros = sums(whole, np.zeros_like(x[:1]), np.zeros_like(y[:1]))
    assert _length(zeros) > 0.1
    for a, b in zip(sums(whole, x, y), sums(cut, x, y), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-7)


def test_a_masked_token_count_does_not_couple_examples():
    model = _compiled(
        keras.Sequential(
            [
                keras.Input((4,), dtype="int32"),
                layers.Embedding(9, 3, mask_zero=True),
                layers.Dense(9),
            ]
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    ids = np.array([[3, 4, 0, 0], [1, 2, 3, 4], [5, 0, 0, 0]], np.int32)
    labels = np.array([[1, 2, 0, 0], [5, 6, 7, 8], [3, 0, 0, 0]])

    def sums(rows):
        clipped = tf_dpfp.loops.clipped_gradients(
            model, ids[rows], labels[rows]
        )
        return [s.numpy() for s in clipped.sums]

    together = sums([0, 1, 2])
    alone = [sums([i]) for i in range(3)]
    for k, total in enumerate(together):
        np.testing.assert_allclose(
            total, sum(part[k] for part in alone), atol=1e-6
        )


@pytest.mark.usefixtures("with_trial")
def test_rows_that_are_not_examples_are_refused():
    # With one example in the physical batch, clipping every row for itself
    # would have the right shapes.
    inputs = keras.Input((5, 3))
    merged = layers.Lambda(lambda t: tf.reshape(t, [-1, 3]))(inputs)
    outputs = layers.Lambda(lambda t: tf.reshape(t, [-1, 5]))(
        layers.Dense(1)(merged)
    )
    model = _compiled(keras.Model(inputs, outputs), microbatch_size=1)
    x, y = np.ones((2, 5, 3), np.float32), np.ones((2, 5), np.float32)
    with pytest.raises(ValueError, match="15 rows for a batch of 3"):
        model.fit(x, y, verbose=0)
    assert tf_dpfp.ledger(model) == []


def test_clip_and_sum_refuses_rows_that_are_not_examples():
    gradient = tf_dpfp.gradient_rules.PerExampleTensor(tf.ones([5, 2]))
    group = tf_dpfp.clipping.Group("all", (0,), 1.0, 2)
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        tf_dpfp.clipping.clip_and_sum([gradient], [group], tf.constant([True]))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_skips_no_step_for_one_example(policy):
    keras.config.set_dtype_policy(policy)
    model = _model(loss="mse")
    keras.config.set_dtype_policy("float32")
    sums = _sums_of(model)
    x, y = _batch(5)
    without = sums(x[1:], y[1:])
    x[0], y[0] = 6e4, 3e4
    both = sums(x, y)
    assert all(np.all(np.isfinite(s)) for s in both)
    assert _length(without) > 0.0
    assert _length(_difference(both, without)) <= CLIP * 1.01
    before = model.get_weights()
    model.fit(x, y, batch_size=4, verbose=0)
    assert any(
        np.any(a != b) for a, b in zip(before, model.get_weights(), strict=True)
    )
