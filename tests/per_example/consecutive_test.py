"""Sums of consecutive gradients against written-out ones in float64."""

import numpy as np
import pytest
import tensorflow as tf

from tf_dpfp.per_example import consecutive
from tf_dpfp.per_example import gradients
from tf_dpfp.per_example import mapped
from tf_dpfp.per_example import side_by_side
from tf_dpfp.per_example import sums

RNG = np.random.default_rng(0)
EXAMPLES, COUNT = 6, 3


def _normal(*shape):
    return tf.constant(RNG.normal(size=shape).astype(np.float32))


def _product(positions=2, d=3, p=2, **kwargs):
    return gradients.OuterProduct(
        _normal(EXAMPLES, positions, d),
        _normal(EXAMPLES, positions, p),
        **kwargs,
    )


def _rows(positions=2):
    ids = tf.constant(RNG.integers(0, 3, (EXAMPLES, positions)))
    return gradients.EmbeddingRows(ids, _normal(EXAMPLES, positions, 4), 3)


CASES = {
    "tensor": lambda: gradients.PerExampleTensor(_normal(EXAMPLES, 3, 2)),
    "rank one": lambda: _product(1),
    "positions": lambda: _product(2),
    "many positions": lambda: _product(40, 2, 2),
    "wide": lambda: _product(2, 30, 40),
    "other layout": lambda: _product(
        2, to_variable=lambda t: tf.linalg.matrix_transpose(t), layout="t"
    ),
    "lookups": _rows,
    "one lookup": lambda: _rows(1),
    "tied": lambda: sums.add([_rows(), _product(2, 3, 4, layout="table")]),
    "mapped": lambda: mapped.Mapped(_product(), lambda t: 2.0 * t),
    "side by side": lambda: side_by_side.SideBySide([_product(), _product()]),
}


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_norms_and_sums_are_those_of_the_sum(case, graph):
    gradient = CASES[case]()
    present = np.array([True, True, True, True, False, True])
    each = gradient.materialize().numpy().astype(np.float64)
    each[~present] = 0.0
    whole = each.reshape(2, COUNT, *each.shape[1:]).sum(axis=1)
    factors = np.array([0.5, -2.0])

    def run():
        found = consecutive.add_consecutive(
            gradient, COUNT, tf.constant(present)
        )
        return (
            found.squared_norms(),
            found.weighted_sum(tf.constant(factors, tf.float32)),
            found.materialize(),
        )

    if graph:
        run = tf.function(run, autograph=False)
    squares, total, written = run()
    expected = (whole**2).reshape(2, -1).sum(axis=1)
    np.testing.assert_allclose(squares, expected, rtol=1e-4)
    assert (squares.numpy() >= expected * (1 - 1e-6)).all()
    np.testing.assert_allclose(
        total, np.tensordot(factors, whole, 1), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(written, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("case", CASES)
def test_an_absent_example_adds_nothing_whatever_it_is(case, bad):
    gradient = CASES[case]()
    spoiled = np.array([False, True, False, False, False, False])

    def spoil(part):
        for name in ("values", "left", "right"):
            if hasattr(part, name):
                value = getattr(part, name)
                rows = spoiled.reshape([-1] + [1] * (value.shape.rank - 1))
                setattr(part, name, tf.where(rows, np.float32(bad), value))
        for name in ("rows", "product", "inner"):
            if hasattr(part, name):
                spoil(getattr(part, name))
        for inner in getattr(part, "parts", ()):
            spoil(inner)

    spoil(gradient)
    found = consecutive.add_consecutive(gradient, COUNT, tf.constant(~spoiled))
    assert np.isfinite(found.squared_norms()).all()
    assert np.isfinite(found.weighted_sum(tf.ones([2]))).all()
    # One that is present spoils its own sum, and no other.
    found = consecutive.add_consecutive(gradient, COUNT, tf.ones([6], bool))
    finite = np.isfinite(found.squared_norms())
    np.testing.assert_array_equal(finite, [False, True])
    assert np.isfinite(found.weighted_sum(tf.constant([0.0, 1.0]))).all()


def test_the_norm_is_not_that_of_the_parts():
    values = np.array([[3.0, 0.0], [-3.0, 0.0], [0.0, 4.0], [0.0, 4.0]])
    gradient = gradients.PerExampleTensor(tf.constant(values, tf.float32))
    found = consecutive.add_consecutive(gradient, 2, tf.ones([4], tf.bool))
    np.testing.assert_allclose(found.squared_norms(), [0.0, 64.0])
