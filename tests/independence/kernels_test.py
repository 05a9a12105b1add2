"""What kernels do that a rule could forget, each of which must be refused.

Whole numbers wrap around in types of few bits; nothing has a greatest number
that is the least of its type; masks of a slice overrule its limits; memory is
not always written to, or is written in place; zeros have a sign; and some
operations have a state, and do not say so.
"""

import numpy as np
import pytest
import tensorflow as tf

from tests.independence import graphs

X = graphs.X
WIDE = tf.TensorSpec([None, 128], tf.float32)
LONG = tf.TensorSpec([None, 40000], tf.float32)
raw = tf.raw_ops


def _size(x):
    return tf.shape(x)[0]


def _rows(x):
    return tf.range(_size(x))


def _in_range(x):
    return tf.clip_by_value(tf.cast(x, tf.int32), 0, 2)


def _narrow(number, dtype=tf.uint8):
    return tf.cast(tf.cast(number, dtype), tf.int32)


def _unknown():
    """One number, in a size that no graph knows, free of data."""
    return tf.unique(tf.constant([1.0])).y


def _first_rows(count):
    """Adds the first rows: all of them, or one row to all."""
    return lambda x: x + x[: count(x)]


def _mapped(function):
    return lambda x: tf.map_fn(
        lambda r: tf.ensure_shape(r + function(r), [3]), x
    )


def _loop_to_the_end(x):
    """The row that a loop is at, and all behind it: the end is masked."""
    rows = tf.TensorArray(tf.float32, _size(x), element_shape=[3])

    def body(i, rows):
        behind = raw.StridedSlice(
            input=x, begin=[i], end=[i + 1], strides=[1], end_mask=1
        )
        return i + 1, rows.write(i, tf.reduce_sum(behind, 0))

    return tf.while_loop(lambda i, _: i < _size(x), body, (0, rows))[1].stack()


def _greatest_of_none(x):
    """The least number of int8, as a place before the example's own."""
    places = tf.cast(_in_range(x), tf.int8)[:, :0]
    greatest = tf.cast(tf.reduce_max(places, 1), tf.int32)
    return tf.gather(tf.reshape(x, [-1]), _rows(x) * 128 + greatest)


def _greatest_of_many(x):
    place = tf.argmax(x, 1, output_type=tf.int16)
    flat = tf.reshape(x, [-1])
    return tf.gather(flat, _rows(x) * 40000 + tf.cast(place, tf.int32))


def _signs_of_zeros(x):
    zeros = tf.tile(tf.constant([0.0, -0.0]), [_size(x)])
    signs = 1.0 / tf.reshape(zeros, [2, -1])[0]
    return tf.where((signs > 0)[:, None], x, -x)


def _axes(first, second):
    return raw.BroadcastGradientArgs(s0=first, s1=second).r0


def _axes_of_a_function(x):
    function = tf.function(_axes, autograph=False)
    found = function(tf.stack([_size(x), 3]), [1, 1])
    return x * tf.cast(raw.Size(input=found), tf.float32)


def _rank_behind_axes(x):
    axes = _axes(tf.stack([_size(x), 3, 7]), [1, 3, 1])
    summed = raw.Sum(input=x[:, :, None], axis=axes)
    return x * tf.cast(raw.Rank(input=summed), tf.float32)


def _in_place(x):
    y = x * 1.0
    update = raw.InplaceUpdate(x=y, i=_rows(x), v=tf.reverse(y, [0]))
    with tf.control_dependencies([update]):
        return tf.identity(y)


def _python(r):
    return tf.numpy_function(np.copy, [r], tf.float32, stateful=False)


def _python_beside(x):
    with tf.control_dependencies([_python(x)]):
        return tf.identity(x)


def _empty(r):
    shape = tf.cast(r[:1] > 9.0, tf.int32) + 3
    return tf.reduce_sum(raw.Empty(shape=shape, dtype=tf.float32))


def _seeded_classes(logits):
    return tf.cast(tf.random.categorical(logits, 3, seed=1)[0], tf.float32)


def _pooled(r):
    pooled = raw.FractionalMaxPool(
        value=tf.reshape(r, [1, 1, 3, 1]),
        pooling_ratio=[1.0, 1.0, 1.0, 1.0],
        deterministic=True,
        seed=1,
        seed2=1,
    )
    return tf.reshape(pooled.output, [3])


_TABLE = tf.lookup.experimental.MutableHashTable(
    tf.int64, tf.float32, tf.constant([0.0, 0.0, 0.0])
)


def _vectors_of_a_table(x):
    vectors = raw.LookupTableFindV2(
        table_handle=_TABLE.resource_handle,
        keys=tf.cast(x[:, 0], tf.int64),
        default_value=tf.constant([1.0, 2.0, 3.0]),
    )
    return raw.Sum(
        input=raw.Mul(x=x, y=raw.ExpandDims(input=vectors, axis=1)), axis=[1]
    )


REFUSED = {
    # Numbers that wrap around.
    "row in 8 bits": (lambda x: tf.gather(x, _narrow(_rows(x))), X),
    "row in 16 bits": (lambda x: tf.gather(x, _narrow(_rows(x), tf.int16)), X),
    "size in 8 bits": (_first_rows(lambda x: _narrow(_size(x))), X),
    "size in 32 bits": (
        _first_rows(
            lambda x: (_size(x) - 1) * 65536 * 65536 // 65536 // 65536 + 1
        ),
        X,
    ),
    "size that wraps in a batch of 4097": (
        _first_rows(lambda x: (_size(x) - 1) * 2**20 // 2**20 + 1),
        X,
    ),
    "end that wraps": (_first_rows(lambda x: _size(x) * 2**20 + 1), X),
    "widened too late": (
        _first_rows(
            lambda x: (
                tf.cast(
                    tf.cast((_size(x) - 1) * 65536 * 32767, tf.int64)
                    // (65536 * 32767),
                    tf.int32,
                )
                + 1
            )
        ),
        X,
    ),
    "product of sizes": (
        _first_rows(
            lambda x: (
                tf.reduce_prod(tf.stack([_size(x) - 1, 65536, 65536]))
                // 65536
                // 65536
                + 1
            )
        ),
        X,
    ),
    "power of the size": (
        _first_rows(
            lambda x: (
                tf.reduce_prod(tf.stack([_size(x)] * 4))
                // tf.reduce_prod(tf.stack([_size(x)] * 3))
            )
        ),
        X,
    ),
    "step that wraps": (
        lambda x: (
            x
            + tf.cast(
                tf.range(0, _size(x) * 2**20, 2**20)[:, None] * 0, x.dtype
            )
        ),
        X,
    ),
    "greatest of many in 16 bits": (_greatest_of_many, LONG),
    "greatest of none": (_greatest_of_none, WIDE),
    # Elements that a description loses.
    "signs of zeros": (_signs_of_zeros, X),
    "end of a slice is masked": (_loop_to_the_end, X),
    "copies of an unknown size": (
        lambda x: tf.reduce_sum(
            tf.tile(x[:, :1] * _unknown(), tf.stack([1, _size(x)])), 1
        ),
        X,
    ),
    "unknown size beside the batch size": (
        lambda x: tf.reduce_sum(
            (x[:, :1] * _unknown()) * tf.ones([1, _size(x)]), 1
        ),
        X,
    ),
    "broadcast to an unknown size": (
        lambda x: tf.reduce_sum(
            tf.broadcast_to(
                x[:, :1],
                tf.broadcast_dynamic_shape(
                    tf.shape(x[:, :1] * _unknown()), tf.stack([1, _size(x)])
                ),
            ),
            1,
        ),
        X,
    ),
    "axes that leave a function": (_axes_of_a_function, X),
    "axes that are left": (_rank_behind_axes, X),
    "vectors of a table": (_vectors_of_a_table, X),
    "row beyond the last of ones": (
        lambda x: x * tf.gather_nd(tf.ones([2]), _rows(x)[:, None])[:, None],
        X,
    ),
    "every second one of ones": (
        lambda x: (
            x
            * tf.gather_nd(tf.ones([_size(x)]), 2 * _rows(x)[:, None])[:, None]
        ),
        X,
    ),
    # Operations with a state that do not say so.
    "memory that is changed": (_in_place, X),
    "Python beside": (_python_beside, X),
    "Python in a map": (_mapped(_python), X),
    "memory of others": (_mapped(_empty), X),
    "places that are left out": (
        _mapped(lambda r: tf.dynamic_stitch([[0, 7]], [r[:2]])[:3]),
        X,
    ),
    "pool with a generator": (_mapped(_pooled), X),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_attack_is_refused(name):
    function, spec = REFUSED[name]
    assert graphs.refused(function, spec).reason


DRAWS = {
    "classes of a row": _mapped(lambda r: _seeded_classes(r[None])),
    "classes in a map": _mapped(lambda r: _seeded_classes(tf.zeros([1, 9]))),
    "normal numbers of a row": _mapped(
        lambda r: tf.random.truncated_normal(
            tf.cast(r[:1] > 99, tf.int32) + 3, seed=1
        )
    ),
}


@pytest.mark.parametrize("name", sorted(DRAWS))
def test_draws_of_a_loop_over_examples_are_noted(name):
    proof, _ = graphs.prove(DRAWS[name], X)
    assert [d.is_secret for d in proof.draws] == [False]


def test_a_variable_may_not_be_as_long_as_the_batch():
    variable = tf.Variable([1.0], shape=[None], trainable=False)

    def function(x):
        variable.assign(tf.ones([_size(x)]))
        size = raw.Size(input=variable.read_value())
        return x * tf.cast(size, tf.float32)

    assert graphs.refused(function, X).operation == "AssignVariableOp"


@pytest.mark.parametrize("kind", ["PartitionedCall", "MapDefun"])
def test_a_function_without_a_state_may_not_write(kind):
    variable = tf.Variable(tf.zeros([3]), trainable=False)
    body = tf.function(lambda row: variable.assign(row), autograph=False)
    body = body.get_concrete_function(tf.TensorSpec([3]))

    def function(x):
        if kind == "MapDefun":
            found = raw.MapDefun(
                arguments=[x],
                captured_inputs=[variable.handle],
                output_types=[tf.float32],
                output_shapes=[[3]],
                f=body,
            )
        else:
            found = raw.PartitionedCall(
                args=[x[0], variable.handle], Tout=[tf.float32], f=body
            )
        with tf.control_dependencies(found):
            return tf.identity(x)

    assert graphs.refused(function, X).reason


def test_a_metric_is_not_read_row_by_row():
    metric = tf.Variable([1.0, 2.0], trainable=False)

    def function(x):
        return tf.map_fn(
            lambda r: (
                r
                * raw.ResourceGather(
                    resource=metric.handle,
                    indices=tf.cast(r[0] > 0, tf.int32),
                    dtype=tf.float32,
                )
            ),
            x,
        )

    found = graphs.refused(function, X, data_handles=[metric.handle])
    assert "metric" in found.reason


def _own_diagonal(x, diagonal=None):
    products = tf.matmul(x, x, transpose_b=True)
    zeros = tf.zeros_like(products[..., 0])
    return tf.linalg.set_diag(products, zeros if diagonal is None else diagonal)


def test_diagonals_are_those_of_the_same_example():
    one = tf.TensorSpec([None, 4], tf.float32)
    graphs.proved(_own_diagonal, graphs.XT)
    graphs.proved(_own_diagonal, graphs.XT, one)
    graphs.refused(lambda x, y: _own_diagonal(x, y[::-1]), graphs.XT, one)
    graphs.refused(lambda x: tf.linalg.set_diag(x, x[0]), graphs.MATRIX)
    # One matrix of all examples.
    graphs.refused(lambda x: _own_diagonal(x, tf.zeros_like(x[:, 0])), graphs.X)


SOUND = {
    "sizes that are small": lambda x: (
        x + tf.ones([_size(x) * 6 // 2 // 3, 1], x.dtype)
    ),
    "sizes in 64 bits": lambda x: x[
        : tf.cast(tf.shape(x, tf.int64)[0] * 2**33 // 2**33, tf.int32)
    ],
    "greatest of some": lambda x: tf.gather(
        x, tf.reduce_max(_in_range(x), 1), batch_dims=1
    ),
    "rows of a table of vectors": lambda x: tf.gather(
        tf.reshape(tf.range(151936 * 2.0), [-1, 2]), _in_range(x)
    ),
    "all places of a row": _mapped(
        lambda r: tf.dynamic_stitch([[0, 2], [1]], [r[:2], r[2:]])
    ),
}


@pytest.mark.parametrize("name", sorted(SOUND))
def test_sound_function_is_proved(name):
    graphs.proved(SOUND[name], X)
