"""The algebra of per-example gradients, against plain numpy."""

import hypothesis
import hypothesis.strategies as st
import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.per_example import oracle
from tf_dpfp import compilation
from tf_dpfp import per_example
from tf_dpfp.per_example import convolution
from tf_dpfp.per_example import gradients
from tf_dpfp.per_example import sums

_SHAPES = st.tuples(
    st.integers(1, 4), st.integers(1, 6), st.integers(1, 9), st.integers(1, 9)
)
# Shapes that take each of the three forms: one position, written out, Gram.
_FORMS = [(5, 1, 7, 3), (5, 90, 3, 4), (5, 90, 7, 3), (5, 2, 60, 50)]


def _random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def _as_sums(gradient, factors):
    return gradient.weighted_sum(tf.constant(factors, tf.float32)).numpy()


def _conv(seed=0):
    """A kernel gradient in the fused form, and one that is written out."""
    found = []
    for channels, filters, size in ((32, 64, 4), (2, 3, 6)):
        x = tf.constant(_random(5, size, size, channels, seed=seed))
        g = tf.constant(_random(5, size - 2, size - 2, filters, seed=seed + 1))
        walk = convolution.Geometry((3, 3), (1, 1), (1, 1), "valid")
        found.append((x, g, walk, (3, 3, channels, filters)))
    return found


@hypothesis.given(shape=_SHAPES, seed=st.integers(0, 1000))
@hypothesis.settings(max_examples=40)
def test_outer_products(shape, seed):
    batch, positions, d, p = shape
    left = _random(batch, positions, d, seed=seed)
    right = _random(batch, positions, p, seed=seed + 1)
    truth = np.einsum("btd,btp->bdp", left, right)
    found = gradients.OuterProduct(tf.constant(left), tf.constant(right))
    factors = np.linspace(0.0, 1.0, batch)
    np.testing.assert_allclose(found.materialize(), truth, atol=1e-4)
    norms = np.sum(truth**2, axis=(1, 2))
    np.testing.assert_allclose(
        found.squared_norms(), norms, rtol=1e-3, atol=1e-3
    )
    np.testing.assert_allclose(
        _as_sums(found, factors),
        np.einsum("bdp,b->dp", truth, factors),
        atol=1e-4,
    )


@hypothesis.given(
    ids=st.lists(
        st.lists(st.integers(0, 3), min_size=3, max_size=3),
        min_size=1,
        max_size=4,
    ),
    seed=st.integers(0, 1000),
)
@hypothesis.settings(max_examples=30)
def test_lookups_with_repeated_ids(ids, seed):
    values = _random(len(ids), 3, 2, seed=seed)
    truth = np.zeros((len(ids), 4, 2))
    for i, row in enumerate(ids):
        for t, j in enumerate(row):
            truth[i, j] += values[i, t]
    found = gradients.EmbeddingRows(tf.constant(ids), tf.constant(values), 4)
    np.testing.assert_allclose(found.materialize(), truth, atol=1e-5)
    norms = np.sum(truth**2, axis=(1, 2))
    np.testing.assert_allclose(
        found.squared_norms(), norms, rtol=1e-3, atol=1e-3
    )
    np.testing.assert_allclose(
        _as_sums(found, np.ones(len(ids))), truth.sum(0), atol=1e-5
    )


def _forms(left_row=None, right_row=None):
    """(name, left, right) for each form, with one row replaced."""
    for shape in _FORMS:
        batch, positions, d, p = shape
        left = _random(batch, positions, d)
        right = _random(batch, positions, p, seed=1)
        if left_row is not None:
            left[1] = left_row
        if right_row is not None:
            right[1] = right_row
        yield left, right


_POISON = [np.nan, np.inf, -np.inf, 1e30, 3e38, 1e-42]


@pytest.mark.parametrize("poison", _POISON)
@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_an_example_left_out_leaves_no_trace(poison, side):
    rows = {
        "left_row": poison if side != "right" else None,
        "right_row": poison if side != "left" else None,
    }
    factors = np.array([0.5, 0.0, 1.0, 0.25, 1.0])
    for (left, right), (good_left, good_right) in zip(
        _forms(**rows), _forms(), strict=True
    ):
        bad = gradients.OuterProduct(tf.constant(left), tf.constant(right))
        good = gradients.OuterProduct(
            tf.constant(good_left), tf.constant(good_right)
        )
        # Bit for bit what the others give without the bad example.
        np.testing.assert_array_equal(
            _as_sums(bad, factors), _as_sums(good, factors)
        )
        others = np.array([0, 2, 3, 4])
        np.testing.assert_array_equal(
            bad.squared_norms().numpy()[others],
            good.squared_norms().numpy()[others],
        )


@pytest.mark.parametrize("poison", _POISON)
def test_an_image_left_out_leaves_no_trace(poison):
    factors = np.array([0.5, 0.0, 1.0, 0.25, 1.0])
    for x, g, walk, shape in _conv():
        mask = np.zeros((5, 1, 1, 1), bool)
        mask[1] = True
        bad_x, bad_g = tf.where(mask, poison, x), tf.where(mask, poison, g)
        good = convolution._ConvolutionKernel(x, g, walk, shape)
        bad = convolution._ConvolutionKernel(bad_x, bad_g, walk, shape)
        np.testing.assert_array_equal(
            _as_sums(bad, factors), _as_sums(good, factors)
        )


@pytest.mark.parametrize("poison", _POISON)
def test_other_forms_leave_no_trace(poison):
    factors = np.array([0.5, 0.0, 1.0])
    ids = tf.constant([[0, 1], [2, 2], [1, 1]])
    values = _random(3, 2, 4)
    bad_values = values.copy()
    bad_values[1] = poison
    for make in (
        lambda v: gradients.PerExampleTensor(tf.constant(v)),
        lambda v: gradients.EmbeddingRows(ids, tf.constant(v), 3),
    ):
        np.testing.assert_array_equal(
            _as_sums(make(bad_values), factors), _as_sums(make(values), factors)
        )


def test_a_non_finite_gradient_has_no_finite_norm():
    for value in (np.nan, np.inf):
        for left, right in _forms(left_row=value):
            found = gradients.OuterProduct(
                tf.constant(left), tf.constant(right)
            )
            norms = found.squared_norms().numpy()
            assert not np.isfinite(norms[1])
            assert np.all(np.isfinite(np.delete(norms, 1)))


def _clipped_contribution(make, clip=1.0):
    """Norm of what one example adds to the float32 sum, and its factor."""
    gradient = make()
    norm = np.sqrt(gradient.squared_norms().numpy().astype("float64"))
    factor = np.minimum(1.0, clip / norm).astype("float32")
    total = gradient.weighted_sum(tf.constant(factor)).numpy()
    return np.sqrt(np.sum(total.astype("float64") ** 2))


@pytest.mark.parametrize("scale", [1e6, 1e9, 1e12, 1e15])
@pytest.mark.parametrize("tiny", [0.0, 1e-7, 1e-6, 1e-4])
@pytest.mark.parametrize("seed", range(3))
def test_cancellation_cannot_hide_a_gradient(scale, tiny, seed):
    """Rows x, x with gradients g, -g (1 + tiny): huge, and almost nothing."""
    d, p = 60, 50
    x = _random(1, 1, d, seed=seed)
    g = scale * _random(1, 1, p, seed=seed + 1)
    left = np.concatenate([x, x], axis=1)
    right = np.concatenate([g, -g * np.float32(1 + tiny)], axis=1)

    def make():
        product = gradients.OuterProduct(tf.constant(left), tf.constant(right))
        assert not product._prefers_matrix()
        return product

    assert _clipped_contribution(make) <= 1.0 + 1e-5


@pytest.mark.parametrize("scale", [1e6, 1e12])
@pytest.mark.parametrize("seed", range(4))
def test_many_cancelling_positions(scale, seed):
    """Rounding of the sum adds up over positions; the bound covers it."""
    rng = np.random.default_rng(seed)
    x = np.repeat(rng.normal(size=(1, 1, 80)), 16, axis=1)
    g = rng.normal(size=(1, 16, 70)) * scale
    g -= g.mean(axis=1, keepdims=True)

    def make():
        product = gradients.OuterProduct(
            tf.constant(x, tf.float32), tf.constant(g, tf.float32)
        )
        assert not product._prefers_matrix()
        return product

    assert _clipped_contribution(make) <= 1.0 + 1e-5


@pytest.mark.parametrize("scale", [1e6, 1e12])
def test_cancelling_pixels(scale):
    x = np.ones((1, 4, 4, 32), "float32") * 0.7
    g = _random(1, 2, 2, 64) * np.float32(scale)
    g[0, 1] = -g[0, 0]
    walk = convolution.Geometry((3, 3), (1, 1), (1, 1), "valid")

    def make():
        kernel = convolution._ConvolutionKernel(
            tf.constant(x), tf.constant(g), walk, (3, 3, 32, 64)
        )
        assert not kernel._prefers_matrix()
        return kernel

    assert _clipped_contribution(make) <= 1.0 + 1e-5


@pytest.mark.parametrize("scale", [1e6, 1e12])
def test_cancelling_lookups(scale):
    g = _random(1, 1, 30) * np.float32(scale)
    values = np.concatenate([g, -g * np.float32(1 + 1e-7)], axis=1)

    def make():
        return gradients.EmbeddingRows(
            tf.constant([[1, 1]]), tf.constant(values), 3
        )

    assert _clipped_contribution(make) <= 1.0 + 1e-5


@pytest.mark.parametrize("scale", [1e3, 1e6, 1e12])
@pytest.mark.parametrize("seed", range(4))
def test_many_cancelling_lookups(scale, seed):
    """What is left of huge rows is released as it is, not as it rounds."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(1, 32, 40)) * scale
    ids = rng.integers(0, 5, (1, 32))
    for row in range(5):
        values[:, ids[0] == row] -= values[:, ids[0] == row].mean(axis=1)

    def make():
        return gradients.EmbeddingRows(
            tf.constant(ids), tf.constant(values, tf.float32), 7
        )

    assert _clipped_contribution(make) <= 1.0 + 1e-5


@pytest.mark.parametrize("jit_compile", [False, True])
def test_rows_of_one_id_are_one_row(jit_compile):
    @tf.function(jit_compile=jit_compile)
    def distinct(ids, values):
        return gradients.EmbeddingRows(ids, values, 9).distinct()

    ids, values = distinct(
        tf.constant([[7, 2, 7, 7], [3, 1, 0, 8]]),
        tf.reshape(tf.range(8.0), [2, 4, 1]),
    )
    np.testing.assert_array_equal(ids, [[2, 7, 7, 7], [0, 1, 3, 8]])
    np.testing.assert_array_equal(
        values[..., 0], [[1.0, 5.0, 0.0, 0.0], [6.0, 5.0, 4.0, 7.0]]
    )


def test_lookups_and_products_of_one_table():
    rows, width, batch = 6, 4, 3
    ids = np.array([[0, 2, 2], [5, 5, 5], [1, 2, 3]])
    values = _random(batch, 3, width)
    left = _random(batch, 2, rows, seed=1)
    right = _random(batch, 2, width, seed=2)
    # One example whose two uses of the table cancel.
    left[1], right[1] = 0.0, 0.0
    left[1, 0, 5] = -1.0
    right[1, 0] = values[1].sum(axis=0)
    found = per_example.add(
        [
            gradients.EmbeddingRows(
                tf.constant(ids), tf.constant(values), rows
            ),
            gradients.OuterProduct(
                tf.constant(left),
                tf.constant(right),
                layout=sums.TABLE_LAYOUT,
            ),
        ]
    )
    assert isinstance(found, sums.TiedTable)
    truth = np.einsum("btd,btp->bdp", left, right)
    for i in range(batch):
        for t in range(3):
            truth[i, ids[i, t]] += values[i, t]
    np.testing.assert_allclose(found.materialize(), truth, atol=1e-5)
    norms = np.sum(truth**2, axis=(1, 2))
    np.testing.assert_allclose(
        found.squared_norms(), norms, rtol=1e-3, atol=1e-3
    )
    factors = np.array([0.5, 1.0, 0.0])
    np.testing.assert_allclose(
        _as_sums(found, factors),
        np.einsum("bdp,b->dp", truth, factors),
        atol=1e-5,
    )


@pytest.mark.parametrize("transposed", [False, True])
def test_products_of_one_layout_are_added_exactly(transposed):
    d, p = (3, 5) if transposed else (5, 3)
    parts, truth = [], 0.0
    for seed in range(3):
        left = _random(4, 2, d, seed=seed)
        right = _random(4, 2, p, seed=seed + 10)
        truth = truth + np.einsum("btd,btp->bdp", left, right)
        parts.append(
            gradients.OuterProduct(tf.constant(left), tf.constant(right))
        )
    found = per_example.add(parts)
    np.testing.assert_allclose(found.materialize(), truth, atol=1e-5)
    norms = np.sum(truth**2, axis=(1, 2))
    np.testing.assert_allclose(found.squared_norms(), norms, rtol=1e-3)


def test_layouts_that_differ_are_written_out():
    left, right = _random(4, 2, 3), _random(4, 2, 3, seed=1)
    plain = gradients.OuterProduct(tf.constant(left), tf.constant(right))
    turned = gradients.OuterProduct(
        tf.constant(left),
        tf.constant(right),
        tf.linalg.matrix_transpose,
        layout="turned",
    )
    found = per_example.add([plain, turned])
    one = np.einsum("btd,btp->bdp", left, right)
    truth = one + one.transpose(0, 2, 1)
    np.testing.assert_allclose(found.materialize(), truth, atol=1e-5)


def test_both_forms_of_a_convolution_agree():
    fused, written = (
        convolution._ConvolutionKernel(*arguments) for arguments in _conv()
    )
    assert not fused._prefers_matrix()
    assert written._prefers_matrix()
    factors = np.array([0.5, 0.0, 1.0, 0.25, 1.0])
    for kernel in (fused, written):
        truth = np.einsum("b...,b->...", kernel.materialize(), factors)
        np.testing.assert_allclose(_as_sums(kernel, factors), truth, atol=1e-4)


def test_oracle_sees_a_wrong_gradient():
    """The comparison itself: a rule that is off by one percent is caught."""

    class Off(per_example.GradientRule):
        def gradients(self, call, output_gradients):
            rows = 1.01 * tf.reduce_sum(output_gradients[0], axis=1)
            return [(call.layer.bias, per_example.PerExampleTensor(rows))]

    class OnlyBias(keras.layers.Layer):
        def build(self, shape):
            self.bias = self.add_weight(shape=(shape[-1],))

        def call(self, x):
            return x + self.bias

    layer = OnlyBias()
    inputs = tf.constant(_random(3, 4, 2))
    layer(inputs)
    oracle.check(layer, inputs)
    per_example.register_gradient_rule(OnlyBias)(Off)
    with pytest.raises(AssertionError, match="gradients"):
        oracle.check(layer, inputs)


# Positions, width of the input and of the output; on a CPU, elsewhere.
@pytest.mark.parametrize(
    ("sizes", "on_cpu", "elsewhere"),
    [
        ((196, 64, 16), True, True),  # Patches of the tutorial's first layer.
        ((128, 256, 1024), True, False),  # A transformer's inner layer.
        ((8, 64, 64), False, False),
    ],
)
def test_what_is_written_out_is_chosen_by_the_device(
    sizes, on_cpu, elsewhere, monkeypatch
):
    positions, width, outputs = sizes
    rng = np.random.default_rng(0)
    left = tf.constant(rng.normal(size=(2, positions, width)), tf.float32)
    right = tf.constant(rng.normal(size=(2, positions, outputs)), tf.float32)
    found = []
    for accelerator, written in ((False, on_cpu), (True, elsewhere)):
        monkeypatch.setattr(
            compilation, "has_accelerator", lambda there=accelerator: there
        )
        product = gradients.OuterProduct(left, right)
        assert product._prefers_matrix() == written
        found.append(product.squared_norms())
    np.testing.assert_allclose(*found, rtol=2e-4)


# One position, and few: those whose norm is a product of lengths.
@pytest.mark.parametrize("shape", [(3, 1, 4, 3), (3, 2, 60, 50)])
@pytest.mark.parametrize("small_left", [True, False])
def test_squares_that_are_flushed_cannot_hide_a_gradient(shape, small_left):
    batch, positions, d, p = shape
    # Their squares are below all numbers of float32, their product is not.
    small, large = np.float32(1e-23), np.float32(1e17)
    left = np.full((batch, positions, d), small if small_left else large)
    right = np.full((batch, positions, p), large if small_left else small)
    truth = d * p * (positions * float(small) * float(large)) ** 2
    found = gradients.OuterProduct(tf.constant(left), tf.constant(right))
    assert np.all(found.squared_norms().numpy() >= truth * (1 - 1e-3))


@pytest.mark.parametrize("shape", [(2**18,), (2**9, 2**9)])
def test_nothing_of_the_size_of_a_batch_stays_in_memory(shape):
    values = tf.ones([4, *shape])
    factors = tf.ones([4])

    @tf.function
    def summed():
        # A batch of known size, whose zeros TensorFlow could keep.
        own = gradients.PerExampleTensor(tf.ensure_shape(values, [4, *shape]))
        return tf.reduce_sum(own.weighted_sum(factors))

    def held():
        return tf.config.experimental.get_memory_info("CPU:0")["current"]

    try:
        before = held()
    except ValueError:
        # The allocator that counts comes with oneDNN, which TensorFlow
        # switches on where it finds AVX-512 with VNNI.
        pytest.skip("TensorFlow runs without oneDNN on this processor")
    summed()
    assert held() - before < 2**20
