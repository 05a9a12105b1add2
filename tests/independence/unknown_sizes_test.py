"""Sizes that are not known while a graph is traced, each taken for another.

An unknown size may be 1, and is broadcast then; it may be more than its type
holds; and data may decide it.
"""

import pytest
import tensorflow as tf

from tests.independence import graphs

X, IMAGE, MATRIX = graphs.X, graphs.IMAGE, graphs.MATRIX
# As many positions as there happen to be.
XT = tf.TensorSpec([None, None, 3], tf.float32)
WIDE = tf.TensorSpec([None, None], tf.float32)
raw = tf.raw_ops


def _first_numbers(y, x):
    """The first numbers of `y`, of all examples, in the shape of `x`."""
    flat = tf.reshape(y, [-1])
    return tf.reshape(flat[: tf.size(x)], tf.shape(x))


def _beside_unknown(x):
    """Of one position, the sum has five."""
    five = tf.unique([1.0, 2.0, 3.0, 4.0, 5.0]).y
    return _first_numbers(x + five, x)


def _product_beside_five(x):
    five = tf.ones([5, 3, 3])
    return _first_numbers(tf.matmul(x[:, :, None], five), x)


def _einsum_beside_five(x):
    five = tf.ones([5, 3, 3])
    return _first_numbers(
        tf.einsum("...ij,...jk->...ik", x[:, :, None], five), x
    )


def _two_sizes(x):
    """One size, or less than nothing if there are 2**23 positions."""
    count, length = tf.unstack(tf.shape(x))
    return x * tf.cast(count * length * 256 // (count * 256), x.dtype)


def _three_sizes(x, y):
    count, length = tf.unstack(tf.shape(x))
    other = tf.shape(y)[1]
    return x * tf.cast(count * length * other // (count * length), x.dtype)


def _divided(x):
    """Of 5 examples, one over zero, which no kernel of XLA stops at."""
    size = graphs.size(x) - 5
    return x * tf.cast(size // size, x.dtype)


def _row_over_itself(x):
    def one(i):
        return x[i] * tf.cast(i // i, x.dtype)

    rows = tf.TensorArray(tf.float32, graphs.size(x), element_shape=[3])
    return tf.while_loop(
        lambda i, _: i < graphs.size(x),
        lambda i, rows: (i + 1, rows.write(i, one(i))),
        (0, rows),
    )[1].stack()


def _looked_up(x):
    """The upper bound is below zero, and far above for three positions."""
    count, length = tf.unstack(tf.shape(x, out_type=tf.int64))
    bound = length - 1 - length * 2**62
    index = tf.maximum(tf.minimum(tf.cast(x, tf.int64), bound), 0)
    rows = tf.range(count)[:, None] * length
    return tf.gather(tf.reshape(x, [-1]), rows + index)


def _widened_rows(x):
    """The numbers of the first two rows, and of others something else."""
    rows = tf.range(graphs.size(x))
    wide = tf.cast(rows * 2**30, tf.int64)
    return tf.gather(x, wide - tf.cast(rows, tf.int64) * (2**30 - 1))


def _below_zero(x):
    """Of one example, the size is below zero, and its bits say otherwise."""
    size = tf.cast(graphs.size(x), tf.uint32) - 2
    found = tf.cast(size * 2 // 2, tf.int32) - graphs.size(x)
    return x * tf.cast(found + 3, x.dtype)


def _solved_beside_five(x, y):
    found = raw.MatrixTriangularSolve(
        matrix=x[:, :, None] * tf.ones([3, 1]), rhs=y[..., None]
    )
    return _first_numbers(found, x)


def _truth_of_none_beside(x):
    """Another tensor claims to be as large."""
    count = graphs.size(x) * 2**30
    other = tf.one_hot(0, count)
    total = tf.cast(tf.shape(other)[0] - count, x.dtype)
    return x * tf.cast(tf.reduce_any(tf.fill([count], True)), x.dtype) + total


def _diagonal(x):
    """Ones for the first example, and zeros for all others."""
    diagonal = raw.Einsum(inputs=[tf.ones([graphs.size(x)])], equation="b->bb")
    return x * diagonal[:, :1]


def _gradient_of_diagonal(x):
    ones = tf.ones([graphs.size(x), graphs.size(x)])
    with tf.GradientTape() as tape:
        tape.watch(ones)
        y = tf.reduce_sum(raw.Einsum(inputs=[ones], equation="bb->b"))
    return x * tape.gradient(y, ones)[:, :1]


def _mapped(function, shape=(3,)):
    spec = tf.TensorSpec(shape, tf.float32)
    return lambda x: tf.map_fn(function, x, fn_output_signature=spec)


def _batched_by_chance(row):
    """What rounds that run at the same time bring is put together."""
    found = raw.Batch(
        in_tensors=[row[None]],
        num_batch_threads=2,
        max_batch_size=2,
        batch_timeout_micros=1000,
        grad_timeout_micros=0,
    )
    return row + tf.reduce_sum(found.batched_tensors[0])


def _glimpse(row):
    """Noise, of a generator that nobody seeds, surrounds it."""
    found = raw.ExtractGlimpse(
        input=tf.reshape(row, [1, 3, 1, 1]),
        size=[5, 1],
        offsets=[[0.0, 0.0]],
        uniform_noise=True,
        noise="uniform",
    )
    return found[0, :3, 0, 0]


def _as_many_as_told(x):
    """As many zeros for each example as its first number says."""
    return _mapped(
        lambda row: tf.zeros([tf.cast(tf.abs(row[0]), tf.int32)]), [None]
    )(x)


def _tell_size(x):
    tf.print(tf.shape(_as_many_as_told(x))[1])
    return x


REFUSED = {
    "one position beside an unknown size": (_beside_unknown, WIDE),
    "product of one position and five": (_product_beside_five, XT),
    "einsum of one position and five": (_einsum_beside_five, XT),
    "product of two sizes": (_two_sizes, WIDE),
    "product of three sizes": (_three_sizes, WIDE, WIDE),
    "zero over zero": (_divided, X),
    "row over itself": (_row_over_itself, X),
    "size below zero": (_below_zero, X),
    "bound that wraps": (_looked_up, WIDE),
    "rows widened too late": (_widened_rows, X),
    "solved of one position and five": (_solved_beside_five, XT, XT),
    "truth of none": (
        lambda x: (
            x
            * tf.cast(
                tf.reduce_any(tf.fill([graphs.size(x) * 2**30], True)), x.dtype
            )
        ),
        X,
    ),
    "truth of none, beside as many": (_truth_of_none_beside, X),
    "diagonal": (_diagonal, X),
    "gradient of a diagonal": (_gradient_of_diagonal, X),
    "rounds that share a batch": (_mapped(_batched_by_chance), X),
    "noise around a glimpse": (_mapped(_glimpse), X),
    "size by the data": (_tell_size, X),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_attack_is_refused(name):
    function, *specs = REFUSED[name]
    assert graphs.refused(function, *specs).reason


def _convolved(x):
    return tf.nn.conv1d(x, tf.ones([3, 3, 3]), 1, "SAME")


SOUND = {
    "map": (_mapped(tf.nn.softmax, [None]), WIDE),
    "map beside what it reads": (
        lambda x: x + _mapped(lambda r: tf.tanh(r) @ r[:3], [None, 3])(x),
        XT,
    ),
    "map that turns axes": (
        _mapped(lambda r: tf.transpose(tf.cumsum(r)), [3, None]),
        XT,
    ),
    "map of as many as told, cut": (
        _mapped(
            lambda r: tf.ensure_shape(
                tf.pad(tf.boolean_mask(r, r > 0), [[0, 3]])[:3], [3]
            )
        ),
        X,
    ),
    "gradient of a mean": (
        graphs.differentiated(lambda x: tf.reduce_mean(x, 1)),
        tf.TensorSpec([None, None, 512]),
    ),
    "gradient of a mean of an image": (
        graphs.differentiated(lambda x: tf.reduce_mean(x, [1, 2])),
        tf.TensorSpec([None, None, None, 64]),
    ),
    "diagonals within": (
        graphs.differentiated(
            lambda x: raw.Einsum(inputs=[x], equation="bii->bi")
        ),
        MATRIX,
    ),
    "dense behind windows": (
        lambda x: tf.tensordot(_convolved(x), tf.ones([3, 2]), 1),
        XT,
    ),
    "windows beside what they read": (
        lambda x: tf.reshape(
            tf.reshape(x + _convolved(x), [-1, 3]), tf.shape(x)
        ),
        XT,
    ),
    "windows in channels in front": (
        lambda x: x + tf.nn.max_pool2d(x, 3, 1, "SAME", "NCHW"),
        tf.TensorSpec([None, 2, None, None]),
    ),
}


@pytest.mark.parametrize("name", sorted(SOUND))
def test_sound_function_is_proved(name):
    function, *specs = SOUND[name]
    graphs.proved(function, *specs, allowed=[graphs.Category.ABORT])
