"""Copies of a batch, one behind the other or side by side, must not meet.

Both have the same sizes and the examples along the same axis: only the order
of the copies tells which row is of which example.
"""

import pytest
import tensorflow as tf

from tests.independence import graphs


def _behind(x):
    return tf.concat([x, x], 0)


def _beside(x):
    return tf.repeat(x, 2, axis=0)


def _own(x):
    """Indices of the example, in range."""
    return tf.argmax(x, -1, tf.int32)


def _rows(x):
    return tf.range(tf.shape(x)[0])


def _shape(x):
    return tf.shape(x)[0]


def _coin():
    return tf.random.stateless_uniform([], [1, 2]) < 0.5


def _loop(a, b):
    return tf.while_loop(lambda i, _: i < 3, lambda i, _: (i + 1, b), (0, a))[1]


def _gamma(x, order):
    sizes = tf.shape(_behind(x))
    return tf.random.stateless_gamma(sizes, [1, 2], order(x**2) + 1.0)


X, XT, MATRIX = graphs.X, graphs.XT, graphs.MATRIX
# Of a batch, and of what makes two copies of each operand.
TWO = {
    "AddV2": (lambda x, a, b: a(x) + b(x), X),
    "AddN": (lambda x, a, b: tf.raw_ops.AddN(inputs=[a(x), b(x)]), X),
    "SelectV2": (lambda x, a, b: tf.where(a(x) > 0, b(x), 1.0), X),
    "BatchMatMulV2": (
        lambda x, a, b: tf.matmul(a(x), b(x), transpose_b=True),
        XT,
    ),
    "Einsum": (lambda x, a, b: tf.einsum("bij,bkj->bik", a(x), b(x)), XT),
    "Cross": (lambda x, a, b: tf.linalg.cross(a(x), b(x)), X),
    "MatrixSolve": (lambda x, a, b: tf.linalg.solve(a(x), b(x)), MATRIX),
    "MatrixSetDiagV3": (
        lambda x, a, b: tf.linalg.set_diag(a(x), b(x[:, 0])),
        MATRIX,
    ),
    "ReverseSequence": (
        lambda x, a, b: tf.reverse_sequence(a(x), b(_own(x)), 1),
        X,
    ),
    "GatherV2": (
        lambda x, a, b: tf.gather(a(x), _own(b(x))[:, None], batch_dims=1),
        X,
    ),
    "ConcatV2": (lambda x, a, b: tf.concat([a(x), b(x)], 1), X),
    "Pack": (lambda x, a, b: tf.stack([a(x), b(x)], 1), X),
    "InTopKV2": (
        lambda x, a, b: tf.cast(
            tf.math.in_top_k(a(_own(x)), b(x), 2), tf.float32
        ),
        X,
    ),
    "SparseSoftmaxCrossEntropyWithLogits": (
        lambda x, a, b: tf.nn.sparse_softmax_cross_entropy_with_logits(
            a(_own(x)), b(x)
        ),
        X,
    ),
    "SoftmaxCrossEntropyWithLogits": (
        lambda x, a, b: tf.nn.softmax_cross_entropy_with_logits(a(x), b(x)),
        X,
    ),
    "UnsortedSegmentSum": (
        lambda x, a, b: tf.math.unsorted_segment_sum(
            a(x), b(_rows(x)), _shape(x)
        ),
        X,
    ),
    "ScatterNd": (
        lambda x, a, b: tf.scatter_nd(b(_rows(x))[:, None], a(x), tf.shape(x)),
        X,
    ),
    "TensorScatterAdd": (
        lambda x, a, b: tf.tensor_scatter_nd_add(x, b(_rows(x))[:, None], a(x)),
        X,
    ),
    "StatelessIf": (
        lambda x, a, b: tf.cond(_coin(), lambda: a(x), lambda: b(x)),
        X,
    ),
    "StatelessWhile": (lambda x, a, b: _loop(a(x), b(x)), X),
}


def _of_behind(x, found):
    """One row for each example, of copies that are behind each other."""
    return tf.reduce_sum(tf.reshape(found, [2, _shape(x), -1]), 0)


def _of_beside(x, found):
    return tf.reshape(found, [_shape(x), -1])


BOTH = ((_behind, _of_behind), (_beside, _of_beside))
# Their results have one row for each example already.
ADD_UP = ("UnsortedSegmentSum", "ScatterNd", "TensorScatterAdd")


@pytest.mark.parametrize("name", TWO)
def test_copies_that_lie_otherwise_are_other_examples(name):
    function, spec = TWO[name]

    def whole(first, second, rows):
        def one(x):
            found = function(x, first, second)
            return found if name in ADD_UP else rows(x, found)

        return one

    for copies, rows in BOTH:
        # If it were proved, its result could be used, by either order.
        for first, second in ((_behind, _beside), (_beside, _behind)):
            finding = graphs.refused(whole(first, second, rows), spec)
            assert finding.operation == name, str(finding)
        allowed = [graphs.Category.ABORT]
        graphs.proved(whole(copies, copies, rows), spec, allowed=allowed)


def test_numbers_are_drawn_in_the_order_of_the_rows():
    graphs.proved(lambda x: _of_beside(x, _gamma(x, _beside)), X)
    finding = graphs.refused(lambda x: _of_beside(x, _gamma(x, _behind)), X)
    assert finding.operation.startswith("StatelessRandomGamma")
