"""Places where a careless rule would let the batch size or a row number in."""

import pytest
import tensorflow as tf

from tests.independence import graphs

X, IDS = graphs.X, graphs.IDS
R = tf.raw_ops


def _size(x):
    return tf.shape(x)[0]


def _loop(x, read):
    """A loop over the examples that reads something by their number."""
    rows = tf.TensorArray(tf.float32, _size(x), element_shape=[3])
    return tf.while_loop(
        lambda i, _: i < _size(x),
        lambda i, rows: (i + 1, rows.write(i, x[i] + read(i))),
        (0, rows),
    )[1].stack()


def _table():
    return tf.reshape(tf.range(30.0), [10, 3])


def _list():
    return tf.TensorArray(tf.float32, 10).unstack(_table())


def _split(x):
    parts = tf.split(x, [_size(x), 1, 2 - _size(x)], 1, 3)
    return parts[1]


def _shaped(x):
    return tf.ensure_shape(x[:, _size(x) : _size(x) + 2], [None, 2])


def _slice_gradient(x):
    return R.StridedSliceGrad(
        shape=tf.shape(x),
        begin=tf.stack([0, _size(x)]),
        end=tf.stack([0, _size(x) + 1]),
        strides=[1, 1],
        dy=x[:, :1],
        begin_mask=1,
        end_mask=1,
    )


BY_SIZE = {
    "column": lambda x: x[:, _size(x) - 1],
    "columns": _shaped,
    "slice": lambda x: tf.slice(x, [0, _size(x)], [-1, 1]),
    "part": _split,
    "place of a gradient": _slice_gradient,
    "gathered column": lambda x: tf.gather(x, _size(x), axis=1),
    "rolled": lambda x: tf.roll(x, _size(x), 1),
    "padded": lambda x: tf.pad(x, [[0, 0], [_size(x), 0]])[:, :3],
    "times": lambda x: tf.tile(x, [1, _size(x)]),
    "exponent": lambda x: x ** tf.cast(_size(x), x.dtype),
    "kept": lambda x: tf.math.top_k(x, tf.minimum(_size(x), 3)).values[:, 0],
    "one hot": lambda x: tf.one_hot(tf.argmax(x, -1), _size(x)),
    "number of a round": lambda x: _loop(x, lambda i: tf.cast(i, x.dtype)),
    "row of a table": lambda x: _loop(x, lambda i: _table()[i]),
    "gathered row": lambda x: _loop(x, lambda i: tf.gather(_table(), i)),
    "item of a list": lambda x: _loop(x, lambda i: _list().read(i)),
    "slice of a table": lambda x: _loop(
        x, lambda i: tf.slice(_table(), [i, 0], [1, 3])[0]
    ),
    "random by the round": lambda x: _loop(
        x, lambda i: tf.random.stateless_uniform([3], tf.stack([i, i]))
    ),
}


@pytest.mark.parametrize("name", sorted(BY_SIZE))
def test_place_by_batch_size_or_row(name):
    graphs.refused(BY_SIZE[name], X)


def _picked(ids, bounded):
    return tf.gather(
        tf.ones([_size(ids), 5, 2]) * _marks(ids), bounded(ids), batch_dims=1
    )


def _marks(ids):
    return tf.cast(ids[:, :1, None], tf.float32)


OUT_OF_RANGE = {
    "as it is": lambda i: i,
    "a truth value": lambda i: (
        tf.clip_by_value(i, 2, 6) - tf.cast(tf.cast(2, tf.bool), i.dtype)
    ),
    "one too many": lambda i: tf.clip_by_value(i, 0, 5),
    "below": lambda i: tf.clip_by_value(i, -1, 4),
    "only above": lambda i: tf.minimum(i, 4),
    "only below": lambda i: tf.maximum(i, 0),
    "clipped the wrong way": lambda i: tf.clip_by_value(i, 6, 4),
    "clipped by an operation the wrong way": lambda i: R.ClipByValue(
        t=i, clip_value_min=7, clip_value_max=4
    ),
    "wraps around": lambda i: tf.minimum(
        tf.clip_by_value(i, 0, 2**31 - 1) * 3, 4
    ),
    "wraps around by a sum": lambda i: tf.minimum(tf.maximum(i, 0) + 1, 4),
    "wraps around by a size": lambda i: tf.minimum(
        tf.clip_by_value(i, 0, 2**31 - 1) * tf.shape(i)[1], 4
    ),
    "remainder of a negative": lambda i: R.TruncateMod(x=i, y=5),
    "remainder by what may be negative": lambda i: tf.math.floormod(
        i, tf.maximum(i, -5)
    ),
    "cast of a clipped float": lambda i: tf.cast(
        tf.clip_by_value(tf.cast(i, tf.float32), 0.0, 4.0), tf.int32
    ),
    "narrowed": lambda i: tf.cast(
        tf.cast(tf.clip_by_value(i, 0, 300), tf.uint8), tf.int32
    ),
    "clipped and moved": lambda i: tf.clip_by_value(i, 0, 4) + 1,
    "absolute value": lambda i: tf.minimum(tf.abs(i), 4),
    "difference": lambda i: (
        tf.clip_by_value(i, 1, 4) - tf.clip_by_value(-i, 0, 3)
    ),
}
IN_RANGE = {
    "clipped": lambda i: tf.clip_by_value(i, 0, 4),
    "clipped by an operation": lambda i: R.ClipByValue(
        t=i, clip_value_min=0, clip_value_max=4
    ),
    "maximum last": lambda i: tf.maximum(tf.minimum(i, 4), 0),
    "remainder": lambda i: tf.math.floormod(i, 5),
    "chosen": lambda i: tf.where(i > 2, tf.ones_like(i), 3 * tf.ones_like(i)),
    "greatest": lambda i: tf.argmax(tf.one_hot(i, 5), -1, tf.int32),
    "clipped and turned around": lambda i: 4 - tf.clip_by_value(i, 0, 4),
    "boolean": lambda i: tf.cast(i > 0, tf.int32) * 2,
    "sorted": lambda i: tf.math.top_k(tf.one_hot(i[:, 0], 5), 2).indices,
    "narrowed": lambda i: tf.cast(
        tf.cast(tf.clip_by_value(i, 0, 4), tf.uint8), tf.int32
    ),
}


@pytest.mark.parametrize("name", sorted(OUT_OF_RANGE))
def test_index_that_may_be_out_of_range(name):
    bounded = OUT_OF_RANGE[name]
    finding = graphs.refused(lambda ids: _picked(ids, bounded), IDS)
    assert finding.operation == "GatherV2"
    assert "out of range" in finding.reason and "clip" in finding.way_out


@pytest.mark.parametrize("name", sorted(IN_RANGE))
def test_index_in_range(name):
    bounded = IN_RANGE[name]
    graphs.proved(lambda ids: _picked(ids, bounded), IDS)


def test_one_example_in_a_loop_stays_one():
    """Operations that also take lists or variables see the example."""
    table = tf.Variable(tf.random.normal([9, 3]))

    def sees(x, function):
        seen = tf.map_fn(
            function, x, fn_output_signature=tf.TensorSpec([3], tf.float32)
        )
        # The first example's own number, had it been taken for data-free.
        return seen

    def summed(row):
        return tf.add_n([row, row])

    def looked_up(row):
        return tf.gather(table, tf.cast(row[0], tf.int32))

    for function in (summed, looked_up):
        types = graphs.proved(lambda x, f=function: sees(x, f), X)
        assert "StatelessWhile" in types or "While" in types

    def carried(x, function):
        """Hands one example on to the next."""
        rows = tf.TensorArray(tf.float32, _size(x), element_shape=[3])
        return tf.while_loop(
            lambda i, *_: i < _size(x),
            lambda i, rows, c: (i + 1, rows.write(i, c), function(x[i])),
            (0, rows, tf.zeros([3])),
        )[1].stack()

    for function in (summed, looked_up):
        graphs.refused(lambda x, f=function: carried(x, f), X)
