"""Gradients of carriers against float64 matrices."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from keras import layers

import tf_dpfp
from tf_dpfp import low_rank
from tf_dpfp import per_example

BATCH, RANK = 5, 3
FACTORS = np.array([0.5, 0.0, 2.0, 1.0, 0.25], np.float32)


def _built(layer, shape):
    layer.build((None, *shape))
    return layer


# A layer, the shape of its input, and whether its gradients are products.
LAYERS = {
    "dense": lambda: (_built(layers.Dense(7), (6,)), (6,), True),
    "sequence": lambda: (_built(layers.Dense(6), (4, 9)), (4, 9), True),
    "einsum to heads": lambda: (
        _built(layers.EinsumDense("...x,xhk->...hk", (3, 4)), (8,)),
        (8,),
        True,
    ),
    "einsum letters mixed": lambda: (
        _built(layers.EinsumDense("abcd,cedf->abfe", (5, 4, 2)), (5, 3, 4)),
        (5, 3, 4),
        True,
    ),
    "convolution": lambda: (
        _built(layers.Conv2D(5, 3, strides=2, padding="same"), (6, 5, 2)),
        (6, 5, 2),
        True,
    ),
    "grouped convolution": lambda: (
        _built(layers.Conv1D(6, 3, groups=2), (9, 4)),
        (9, 4),
        False,
    ),
}


def _carriers(view, left_only=False, rank=RANK, seed=0):
    rng = np.random.default_rng(seed)
    carriers = low_rank.random_carriers(
        low_rank.Carriers(
            tf.constant(rng.normal(size=(view.num_rows, rank)), tf.float32),
            tf.constant(rng.normal(size=(view.num_columns, rank)), tf.float32),
        )
    )
    return carriers._replace(right=None) if left_only else carriers


def _in_double(carriers):
    return [
        None if c is None else c.numpy().astype(np.float64) for c in carriers
    ]


def _projection(matrix, carriers):
    left, right = _in_double(carriers)
    of_left = left @ (left.T @ matrix)
    if right is None:
        return of_left
    outside = matrix - of_left
    return of_left + outside @ right @ right.T


def _problem(name):
    """A marked layer, its per-example gradients, and they again as arrays."""
    keras.utils.set_random_seed(1)
    layer, shape, is_product = LAYERS[name]()
    low_rank.reparametrize(layer, RANK)
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(size=(BATCH, *shape)), tf.float32)
    (unit,) = per_example.find_units(layer)
    with tf.GradientTape() as tape, per_example.record_calls([unit]) as calls:
        tape.watch(x)
        y = layer(x)
        weights = tf.constant(rng.normal(size=y.shape[1:]), tf.float32)
        total = tf.reduce_sum(y * weights + 0.1 * y**2)
    gradients = tape.gradient(total, calls[0].sources)
    found = dict(
        (id(variable), gradient)
        for variable, gradient in unit.rule.gradients(calls[0], gradients)
    )
    kernel = layer._kernel
    gradient = found[id(kernel)]
    assert isinstance(gradient, per_example.OuterProduct) == is_product
    every = gradient.materialize().numpy().astype(np.float64)
    return kernel, gradient, every


@pytest.mark.parametrize("left_only", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_carrier_gradients_are_those_of_the_kernel_projected(name, left_only):
    kernel, gradient, every = _problem(name)
    view = low_rank.mark_of(kernel).view
    carriers = _carriers(view, left_only)
    matrices = view.to_matrix(tf.constant(every)).numpy()
    left, right = _in_double(carriers)
    expected = [np.ravel(left.T @ matrix) for matrix in matrices]
    if not left_only:
        expected = [
            np.concatenate([np.ravel(matrix @ right), of_right])
            for matrix, of_right in zip(matrices, expected, strict=True)
        ]
    expected = np.stack(expected)
    projected = low_rank.project(gradient, carriers, view)
    scale = np.max(np.abs(expected))
    for found, wanted in (
        (projected.materialize(), expected),
        (projected.weighted_sum(tf.constant(FACTORS)), FACTORS @ expected),
    ):
        np.testing.assert_allclose(found, wanted, atol=1e-5 * scale)
    np.testing.assert_allclose(
        projected.squared_norms(), np.sum(expected**2, axis=1), rtol=2e-4
    )
    assert expected.shape[1] == (
        RANK * view.num_columns + (not left_only) * RANK * view.num_rows
    )


@pytest.mark.parametrize("left_only", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_reconstruction_is_the_projection_of_the_true_gradient(name, left_only):
    kernel, gradient, every = _problem(name)
    view = low_rank.mark_of(kernel).view
    carriers = _carriers(view, left_only)
    released = low_rank.project(gradient, carriers, view).weighted_sum(
        tf.ones([BATCH])
    )
    found = low_rank.reconstruct(released, carriers, view)
    assert found.shape == kernel.shape
    total = tf.constant(np.sum(every, axis=0))
    expected = _projection(view.to_matrix(total).numpy(), carriers)
    scale = np.linalg.norm(expected)
    distance = np.linalg.norm(view.to_matrix(found).numpy() - expected)
    assert distance <= 1e-5 * scale
    # The projection leaves something out: it is not the gradient itself.
    left_out = np.linalg.norm(view.to_matrix(total).numpy() - expected)
    assert left_out > 0.05 * scale


@pytest.mark.parametrize("name", LAYERS)
def test_kernels_go_to_matrices_and_back(name):
    layer, _, _ = LAYERS[name]()
    low_rank.reparametrize(layer, 1)
    view = low_rank.matrices.view_of(layer)
    shape = tuple(layer._kernel.shape)
    kernel = tf.reshape(tf.range(np.prod(shape)), shape)
    back = view.to_kernel(view.to_matrix(kernel))
    np.testing.assert_array_equal(back, kernel)


@pytest.mark.parametrize("left_only", [False, True])
def test_the_energy_of_the_noise_in_a_reconstruction(left_only):
    d, p, rank, draws = 30, 22, 4, 400
    view = low_rank.MatrixView((d, p), (0, 1), 1)
    carriers = _carriers(view, left_only, rank)
    size = rank * p + (not left_only) * rank * d
    rng = np.random.default_rng(0)
    energies = [
        np.sum(
            low_rank.reconstruct(
                tf.constant(rng.normal(size=size)), carriers, view
            ).numpy()
            ** 2
        )
        for _ in range(draws)
    ]
    expected = rank * p if left_only else rank * (d + p) - rank**2
    # Each draw is chi-squared with that many degrees of freedom.
    error = np.sqrt(2 * expected / draws)
    assert abs(np.mean(energies) - expected) < 4.5 * error
    # The published code's sign, 3 r^2 in place of -r^2, must show.
    assert 4 * rank**2 > 20 * error


def test_gradients_that_meet_in_one_kernel_are_added_before_the_projection():
    kernel, gradient, every = _problem("sequence")
    view = low_rank.mark_of(kernel).view
    carriers = _carriers(view)
    written_out = tf_dpfp.gradient_rules.PerExampleTensor(
        tf.constant(every, tf.float32)
    )
    for parts, times in (
        ([gradient, gradient], 2.0),
        ([gradient, written_out, gradient], 3.0),
    ):
        both = low_rank.project(per_example.add(parts), carriers, view)
        once = low_rank.project(gradient, carriers, view)
        np.testing.assert_allclose(
            both.squared_norms(), times**2 * once.squared_norms(), rtol=1e-4
        )


def test_products_laid_out_otherwise_are_written_out_first():
    # A rule of the user's own: the transposed matrix, of the same size.
    rng = np.random.default_rng(0)
    left, right = (
        tf.constant(rng.normal(size=(BATCH, 2, 6)), tf.float32)
        for _ in range(2)
    )
    gradient = tf_dpfp.gradient_rules.OuterProduct(
        left, right, tf.linalg.matrix_transpose
    )
    view = low_rank.MatrixView((6, 6), (0, 1), 1)
    carriers = _carriers(view)
    found = low_rank.project(gradient, carriers, view).materialize()
    expected = low_rank.project(
        tf_dpfp.gradient_rules.PerExampleTensor(gradient.materialize()),
        carriers,
        view,
    ).materialize()
    np.testing.assert_allclose(found, expected, atol=1e-5)


NASTY = [0.0, 1e-45, 1e-38, 3e-20, 1e-10, 1.0, 1e5, 1e10, 1e19, 1e30, 3e38]
NASTY = NASTY + [-v for v in NASTY] + [np.nan, np.inf, -np.inf]


@settings(max_examples=60)
@given(
    numbers=st.lists(st.sampled_from(NASTY), min_size=27, max_size=27),
    positions=st.sampled_from([1, 3]),
    left_only=st.booleans(),
    seed=st.integers(0, 3),
)
def test_no_example_adds_more_than_the_threshold(
    numbers, positions, left_only, seed
):
    view = low_rank.MatrixView((5, 4), (0, 1), 1)
    carriers = _carriers(view, left_only, rank=2, seed=seed)
    numbers = np.resize(np.array(numbers, np.float32), positions * 9)
    numbers = numbers.reshape(1, positions, 9)
    gradient = per_example.OuterProduct(
        tf.constant(numbers[..., :5]), tf.constant(numbers[..., 5:])
    )
    projected = low_rank.project(gradient, carriers, view)
    group = tf_dpfp.clipping.Group("all", (0,), 0.5, 18)
    sums = tf_dpfp.clipping.clip_and_sum(
        [projected], [group], tf.constant([True])
    ).sums[0]
    assert np.linalg.norm(sums.numpy().astype(np.float64)) <= 0.5


def test_examples_do_not_meet_in_the_projection():
    rng = np.random.default_rng(0)
    view = low_rank.MatrixView((5, 4), (0, 1), 1)
    carriers = _carriers(view, rank=2)
    left = rng.normal(size=(3, 2, 5)).astype(np.float32)
    right = rng.normal(size=(3, 2, 4)).astype(np.float32)

    def sums(left, right, factors):
        gradient = per_example.OuterProduct(
            tf.constant(left), tf.constant(right)
        )
        projected = low_rank.project(gradient, carriers, view)
        return projected.weighted_sum(tf.constant(factors)).numpy()

    alone = sums(left[:1], right[:1], [0.7])
    for bad in itertools.product([np.nan, 3e38], repeat=2):
        left[1], right[2] = bad
        found = sums(left, right, [0.7, 0.0, 0.0])
        np.testing.assert_allclose(found, alone, atol=1e-6)
