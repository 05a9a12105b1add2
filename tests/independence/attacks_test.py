"""Ways to let one example move the others, each of which must be refused.

Every attack is a function of a batch `x`, `(batch, 3)` if nothing else is
said, that looks like a layer or a loss. `REFUSED` says which operation the
proof must name; `SOUND` holds functions that look alike and keep examples
apart.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from tests.independence import graphs

X, XT, IDS, LABELS = graphs.X, graphs.XT, graphs.IDS, graphs.LABELS
_gradient = graphs.gradient_of
R = tf.raw_ops


def _size(x):
    return tf.shape(x)[0]


def _rows(x):
    return tf.range(_size(x))


def _centered(x, axis=0):
    return x - tf.reduce_mean(x, axis, keepdims=True)


def _experts(x):
    """Routes at most 16 examples to each expert, in the order of the batch."""
    choice = tf.one_hot(tf.argmax(x, -1), 3)
    place = tf.cumsum(choice, 0)
    return (
        x * tf.reduce_sum(choice * tf.cast(place <= 16, x.dtype), -1)[:, None]
    )


def _ghost(x):
    groups = tf.reshape(x, [_size(x) // 4, 4, 3])
    return tf.reshape(_centered(groups, 1), [-1, 3])


def _ghost_of_all(x):
    return tf.reshape(_centered(tf.reshape(x, [4, -1, 3])), [-1, 3])


def _loop(x, body, rounds=None, carried=0.0):
    """A loop over the rows that writes one row a round."""
    rounds = _size(x) if rounds is None else rounds
    rows = tf.TensorArray(tf.float32, _size(x), element_shape=[3])

    def one(i, rows, carried):
        row, carried = body(i, carried)
        return i + 1, rows.write(i, row), carried

    found = tf.while_loop(lambda i, *_: i < rounds, one, (0, rows, carried))
    return found[1].stack()


def _pairs(x):
    """A loop over the examples, in a loop over the examples."""

    def body(i, carried):
        total = tf.while_loop(
            lambda j, s: j < _size(x),
            lambda j, s: (j + 1, s + x[j]),
            (0, tf.zeros([3])),
        )[1]
        return x[i] + total, carried

    return _loop(x, body)


def _every_other(x):
    """A loop that leaves out every second row."""
    rows = tf.TensorArray(tf.float32, _size(x), element_shape=[3])
    return tf.while_loop(
        lambda i, _: i < _size(x),
        lambda i, rows: (i + 2, rows.write(i, x[i])),
        (0, rows),
    )[1].stack()


def _halves(x):
    """As many rounds as half of the examples."""
    return tf.while_loop(
        lambda i, _: i < _size(x) // 2,
        lambda i, a: (i + 1, a / 2),
        (0, x),
    )[1]


def _masked_mean(x):
    """One mean over all positions of the batch that are not masked."""
    mask = tf.cast(x > 0, x.dtype)
    return x - tf.reduce_sum(x * mask) / tf.reduce_sum(mask)


def _sorted_by(x):
    return tf.gather(x, tf.argsort(x[:, 0]))


def _unique(x):
    return tf.gather(x, tf.unique(tf.reshape(x[:, 0], [-1]))[1])


def _boolean_mask(x):
    places = tf.cast(tf.where(x[:, 0] > 0), tf.int32)
    kept = tf.boolean_mask(x, x[:, 0] > 0)
    return tf.scatter_nd(places, kept, tf.shape(x))


def _flat_gather(x, index):
    """Positions looked up as `row * 3 + index`."""
    return tf.gather(tf.reshape(x, [-1]), _rows(x)[:, None] * 3 + index)


def _in_range(x):
    return tf.clip_by_value(tf.cast(x, tf.int32), 0, 2)


def _contrastive(x):
    logits = tf.matmul(x, x, transpose_b=True)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(_rows(x), logits)


def _triplet(x):
    return tf.reduce_max(tf.reduce_sum((x[:, None] - x[None]) ** 2, -1), 1)


def _queue(x):
    """The two halves of the batch, swapped."""
    half = _size(x) // 2
    return tf.concat([x[half:], x[:half]], 0)


def _mixup(x):
    return 0.9 * x + 0.1 * tf.reverse(x, [0])


def _shuffled_mixup(x):
    order = tf.argsort(tf.random.stateless_uniform([_size(x)], [1, 2]))
    return 0.9 * x + 0.1 * tf.gather(x, order)


def _time_major(x):
    """Forgets to turn the axes back."""
    return tf.reshape(tf.transpose(x, [1, 0, 2]), [-1, 4, 3])


def _tied_norm(x):
    return x / tf.norm(x)


def _global_norm(g):
    return tf.clip_by_global_norm([g], 1.0)[0][0]


def _covariance(x):
    return tf.matmul(x, tf.matmul(x, x, transpose_a=True))


def _fft_of_batch(x):
    return tf.abs(
        tf.transpose(tf.signal.fft(tf.transpose(tf.cast(x, tf.complex64))))
    )


def _conv_of_batch(x):
    """A convolution that runs along the examples, as if they were time."""
    return tf.nn.conv1d(x[None], tf.ones([3, 3, 3]), 1, "SAME")[0]


def _depth_of_batch(x):
    return tf.nn.max_pool1d(x[None], 2, 1, "SAME")[0]


def _batch_to_depth(x):
    return tf.batch_to_space(x, [2, 2], [[0, 0], [0, 0]])


def _einsum_trace(x):
    return tf.einsum("bc,bc,dc->dc", x, x, x)


def _row_seeded(x):
    seeds = tf.stack([_rows(x), _rows(x)], -1)
    return x + tf.map_fn(
        lambda s: tf.random.stateless_uniform([3], s),
        seeds,
        fn_output_signature=tf.float32,
    )


def _last_value(x):
    return x + x[-1]


def _padded(x):
    return tf.pad(x, [[1, 0], [0, 0]])[:-1]


def _segments_of_labels(x):
    means = tf.math.unsorted_segment_mean(x, tf.argmax(x, -1), 3)
    return x - tf.gather(means, tf.argmax(x, -1))


def _histogram(x):
    return x * tf.cast(tf.histogram_fixed_width(x, [0.0, 1.0])[0], x.dtype)


def _quantile(x):
    return tf.clip_by_value(x, 0.0, tf.sort(tf.reshape(x, [-1]))[-1])


def _ragged(x):
    ragged = tf.RaggedTensor.from_tensor(x, padding=0.0)
    return tf.pad(ragged.to_tensor(), [[0, 0], [0, 3]])[:, :3]


def _split_text(x):
    words = tf.strings.split(tf.strings.as_string(x[:, 0]))
    return tf.strings.length(words.to_tensor("padding"))


def _counts_in_parity(x):
    return tf.cond(tf.equal(_size(x) % 2, 0), lambda: x, lambda: -x)


def _log_of_size(x):
    return x * tf.math.log(tf.cast(tf.size(x), x.dtype))


def _size_of_ones(x):
    """The batch size, as a sum of ones."""
    return x / tf.reduce_sum(tf.ones_like(x[:, 0]))


def _size_by_product(x):
    return x / tf.matmul(tf.ones_like(x), tf.ones_like(x), transpose_a=True)[0]


def _size_by_shape_of_product(x):
    return x / tf.cast(tf.shape(tf.reshape(x, [-1]))[0] // 3, x.dtype)


def _size_by_cumsum(x):
    return x * tf.cumsum(tf.ones_like(x[:, :1]))


def _row_by_where(x):
    return tf.concat(
        [x, tf.cast(tf.where(tf.ones_like(x[:, 0]) > 0), x.dtype)], 1
    )


def _row_by_eye(x):
    return x + tf.reduce_sum(tf.eye(_size(x))[:, :1], 1)[:, None]


def _row_by_linspace(x):
    return x * tf.linspace(0.0, 1.0, _size(x))[:, None]


def _row_by_triangle(x):
    return tf.matmul(tf.linalg.band_part(tf.ones([_size(x)] * 2), -1, 0), x)


def _two_layouts(x):
    """Examples lie in front and behind: both halves have the same shape."""
    both = tf.stack([x, x], 0)
    return tf.reshape(both, [-1, 2, 3])


def _gate(x):
    return tf.cond(tf.reduce_any(tf.math.is_nan(x)), lambda: x * 0, lambda: x)


def _backtracking(x):
    """Halves the batch until it is small."""
    return tf.while_loop(
        lambda a: tf.reduce_max(a) > 1.0, lambda a: (a / 2,), (x,)
    )[0]


def _constant_of_rows(x):
    """A table with one row for each of 8 examples."""
    return x * tf.constant(np.arange(8.0, dtype="float32")[:, None])


def _jit_mean(x):
    return tf.function(_centered, jit_compile=True)(x)


def _vectorized(function):
    return lambda x: tf.vectorized_map(function, x)


def _map_with_other(x):
    return tf.map_fn(lambda r: r + tf.reduce_max(x), x)


def _vectorized_with_other(x):
    return tf.vectorized_map(lambda r: r + tf.reduce_max(x), x)


def _vectorized_wild_ids(x):
    ids = tf.cast(x, tf.int32)
    return tf.vectorized_map(
        lambda e: tf.math.unsorted_segment_sum(e[0], e[1], 3), (x, ids)
    )


def _vectorized_wild_gradient(x):
    def one(e):
        with tf.GradientTape() as tape:
            tape.watch(e)
            y = tf.reduce_sum(tf.gather(e, tf.cast(e, tf.int32)) ** 2)
        return tf.convert_to_tensor(tape.gradient(y, e))

    return tf.vectorized_map(one, x)


def _hinge(x):
    return keras.losses.Hinge(reduction=None)(x > 0, x)


REFUSED = {
    # Sums, and what is like them.
    "mean subtracted": (_centered, X, "Mean"),
    "mean of what is not masked": (_masked_mean, X, "Sum"),
    "largest of all": (
        lambda x: x / tf.maximum(1.0, tf.reduce_max(x)),
        X,
        "Max",
    ),
    "1e-4 of the sum": (lambda x: x + 1e-4 * tf.reduce_sum(x, 0), X, "Sum"),
    "centred logarithms": (lambda x: _centered(tf.math.log(x - 1)), X, "Mean"),
    "norm of all": (_tied_norm, X, "Sum"),
    "capacity of experts": (_experts, X, "Cumsum"),
    "cumulative sum": (lambda x: tf.cumsum(x), X, "Cumsum"),
    "softmax over the batch": (lambda x: tf.nn.softmax(x, 0), X, "Softmax"),
    "covariance": (_covariance, X, "MatMul"),
    "contrastive": (_contrastive, X, "MatMul"),
    "hardest of all": (_triplet, X, "Sub"),
    "trace": (_einsum_trace, X, None),
    "Fourier transform": (_fft_of_batch, X, "FFT"),
    "convolution along the batch": (_conv_of_batch, X, None),
    "pool along the batch": (_depth_of_batch, X, None),
    "batch to space": (_batch_to_depth, graphs.IMAGE, "BatchToSpaceND"),
    "mean of a class": (_segments_of_labels, X, None),
    "histogram": (_histogram, X, None),
    "quantile": (_quantile, X, "TopKV2"),
    "hinge": (_hinge, X, "StatelessIf"),
    "cosine over the batch": (
        lambda x: keras.losses.CosineSimilarity(axis=0, reduction=None)(
            x, 2 * x
        ),
        X,
        "Sum",
    ),
    # Places.
    "row before": (
        lambda x: x + tf.concat([x[:1] * 0, x[:-1]], 0),
        X,
        "StridedSlice",
    ),
    "row before, padded": (_padded, X, "Pad"),
    "last row": (_last_value, X, "StridedSlice"),
    "halves swapped": (_queue, X, "StridedSlice"),
    "turned around": (_mixup, X, "ReverseV2"),
    "shuffled": (lambda x: tf.random.shuffle(x), X, "RandomShuffle"),
    "shuffled by a sort": (_shuffled_mixup, X, None),
    "sorted": (_sorted_by, X, "TopKV2"),
    "turned around by the row": (
        lambda x: tf.reverse_sequence(x, np.arange(8) % 4, 1),
        tf.TensorSpec([8, 3]),
        "ReverseSequence",
    ),
    "crossed by the row": (
        lambda x: tf.linalg.cross(x, np.eye(8, 3, dtype="float32")),
        tf.TensorSpec([8, 3]),
        "Cross",
    ),
    "diagonals by the row": (
        lambda x: tf.linalg.set_diag(x, np.eye(8, 3, dtype="float32")),
        tf.TensorSpec([8, 3, 3]),
        "MatrixSetDiagV3",
    ),
    "diagonals of eight": (
        lambda x: tf.linalg.set_diag(x, tf.ones([8, 3])),
        graphs.MATRIX,
        "MatrixSetDiagV3",
    ),
    "distinct rows": (_unique, X, "Unique"),
    "boolean mask": (_boolean_mask, X, "Where"),
    "column by the batch size": (
        lambda x: tf.gather(x, _size(x) % 3, axis=1)[:, None],
        X,
        "GatherV2",
    ),
    "position by the row": (
        lambda x: tf.gather_nd(x, tf.stack([_rows(x), _rows(x)], 1)),
        X,
        "GatherNd",
    ),
    "looked up by own index": (
        lambda x: tf.gather(x, _in_range(x)[:, 0]),
        X,
        "GatherV2",
    ),
    "axes not turned back": (_time_major, XT, "Reshape"),
    "swapped by a reshape": (
        lambda x: tf.reshape(tf.transpose(x), tf.shape(x)),
        X,
        "Reshape",
    ),
    "ghost batches": (_ghost, X, "Reshape"),
    "ghost batches of a quarter": (_ghost_of_all, X, "Reshape"),
    "copies interleaved": (_two_layouts, X, "Reshape"),
    # Row numbers and batch sizes.
    "row number": (
        lambda x: x + tf.cast(_rows(x), x.dtype)[:, None],
        X,
        "Cast",
    ),
    "row number, counted": (_size_by_cumsum, X, None),
    "row number of a condition": (_row_by_where, X, None),
    "row of the unit matrix": (_row_by_eye, X, None),
    "row of a line": (_row_by_linspace, X, None),
    "triangle of ones": (_row_by_triangle, X, None),
    "row of a constant": (_constant_of_rows, tf.TensorSpec([8, 3]), "Mul"),
    "batch size": (lambda x: x / tf.cast(_size(x), x.dtype), X, "RealDiv"),
    "batch size of ones": (_size_of_ones, X, "RealDiv"),
    "batch size of a product": (_size_by_product, X, None),
    "batch size, reshaped": (_size_by_shape_of_product, X, "RealDiv"),
    "logarithm of the size": (_log_of_size, X, "Mul"),
    "parity of the batch size": (_counts_in_parity, X, "StatelessIf"),
    # Decisions.
    "all or nothing": (_gate, X, "StatelessIf"),
    "until all are small": (_backtracking, X, "StatelessWhile"),
    "seed of data": (
        lambda x: (
            x
            * tf.random.stateless_uniform(
                tf.shape(x), tf.cast(tf.reduce_sum(x, 0)[:2], tf.int32)
            )
        ),
        X,
        "Sum",
    ),
    "seed of the row": (_row_seeded, X, None),
    # Gradients.
    "gradient centred": (_gradient(lambda g: _centered(g)), X, "Mean"),
    "gradient by the batch's norm": (
        _gradient(lambda g: tf.clip_by_norm(g, 1.0)),
        X,
        "Sum",
    ),
    "gradient by the global norm": (_gradient(_global_norm), X, None),
    "gradient of another row": (
        _gradient(lambda g: tf.roll(g, 1, 0)),
        X,
        "Roll",
    ),
    "gradient over the batch size": (
        _gradient(lambda g: g / tf.cast(_size(g), g.dtype)),
        X,
        "RealDiv",
    ),
    # Functions of one example that are not.
    "mean in a compiled function": (_jit_mean, X, "Mean"),
    "map that sees the batch": (_map_with_other, X, "Max"),
    "vectorized map that sees the batch": (_vectorized_with_other, X, "Max"),
    "vectorized segment sum": (_vectorized_wild_ids, X, None),
    "vectorized gradient of a gather": (_vectorized_wild_gradient, X, None),
    "flat gather": (
        lambda x: _flat_gather(x, tf.cast(x, tf.int32)),
        X,
        "GatherV2",
    ),
    "flat gather, one too far": (
        lambda x: _flat_gather(x, _in_range(x) + 1),
        X,
        "GatherV2",
    ),
    "gather of a clipped NaN": (
        lambda x: tf.gather(
            x, tf.cast(tf.clip_by_value(x, 0.0, 2.0), tf.int32), batch_dims=1
        ),
        X,
        "GatherV2",
    ),
    "loop with a memory": (
        lambda x: _loop(x, lambda i, c: (x[i] + c, tf.reduce_sum(x[i]))),
        X,
        None,
    ),
    "loop that counts": (
        lambda x: _loop(x, lambda i, c: (x[i] + c, c + 1.0)),
        X,
        None,
    ),
    "loop by the row number": (
        lambda x: _loop(x, lambda i, c: (x[i] * tf.cast(i, x.dtype), c)),
        X,
        None,
    ),
    "loop that looks ahead": (
        lambda x: _loop(
            x, lambda i, c: (x[tf.minimum(i + 1, _size(x) - 1)], c)
        ),
        X,
        None,
    ),
    "loop of half as many": (_halves, X, "StatelessWhile"),
    "loop over every other one": (_every_other, X, None),
    "loop over three of them": (
        lambda x: _loop(x, lambda i, c: (x[i], c), 3),
        X,
        None,
    ),
    "loop that sees the first": (
        lambda x: _loop(x, lambda i, c: (x[0], c)),
        X,
        "StridedSlice",
    ),
    "loop of a table of rows": (
        lambda x: _loop(
            x,
            lambda i, c: (tf.gather(tf.reshape(tf.range(30.0), [10, 3]), i), c),
        ),
        X,
        None,
    ),
    "loop in a loop": (_pairs, X, None),
    # What nobody knows.
    "ragged": (_ragged, X, None),
    "text padded to the longest": (_split_text, X, None),
    "python": (
        lambda x: tf.ensure_shape(
            tf.numpy_function(lambda a: a - a.mean(0), [x], tf.float32),
            [None, 3],
        ),
        X,
        "PyFunc",
    ),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_attack_is_refused_by_name(name):
    function, spec, operation = REFUSED[name]
    finding = graphs.refused(function, spec)
    if operation is not None:
        assert finding.operation == operation, str(finding)
    assert finding.reason


def _vectorized_scatter(x):
    """TensorFlow has no vectorized form of it and runs a loop instead."""
    ids = tf.cast(x, tf.int32)
    return tf.vectorized_map(
        lambda e: tf.scatter_nd(e[1][:, None], e[0], [3]), (x, ids)
    )


def _cond_in_map(x):
    return tf.map_fn(lambda r: tf.cond(r[0] > 0, lambda: r, lambda: -r), x)


def _while_in_map(x):
    return tf.map_fn(
        lambda r: tf.while_loop(
            lambda s: tf.reduce_max(s) > 1.0, lambda s: (s / 2,), (r,)
        )[0],
        x,
    )


def _recurrent(x):
    """A loop along the time of `(batch, time, features)`."""
    steps = tf.transpose(x, [1, 0, 2])
    rows = tf.TensorArray(tf.float32, 4, element_shape=[None, 3])
    rows = rows.unstack(steps)

    def one(i, state):
        return i + 1, tf.tanh(state + rows.read(i))

    return tf.while_loop(lambda i, _: i < 4, one, (0, tf.zeros_like(x[:, 0])))[
        1
    ]


def _recurrent_gradient(x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = _recurrent(x)
    return tape.gradient(y, x)


def _vectorized_gradient(x):
    def one(e):
        with tf.GradientTape() as tape:
            tape.watch(e)
            y = tf.reduce_sum(tf.nn.softmax(e) ** 2)
        return tape.gradient(y, e)

    return tf.vectorized_map(one, x)


SOUND = {
    "identity": (lambda x: x, X),
    "a coin for all": (
        lambda x: (
            x * tf.cast(tf.random.stateless_uniform([], [1, 2]) < 0.5, x.dtype)
        ),
        X,
    ),
    "own gradient clipped": (
        _gradient(lambda g: tf.clip_by_norm(g, 1.0, axes=[1])),
        X,
    ),
    "time in front": (lambda x: tf.transpose(tf.cumsum(tf.transpose(x), 0)), X),
    "batch and time merged": (
        lambda x: tf.reshape(tf.reshape(x, [-1, 3]) * 2, [-1, 4, 3]),
        XT,
    ),
    "map": (lambda x: tf.map_fn(lambda r: r - tf.reduce_mean(r), x), X),
    "map with a branch": (_cond_in_map, X),
    "map with a loop": (_while_in_map, X),
    "vectorized map": (_vectorized(lambda r: r - tf.reduce_mean(r)), X),
    "vectorized gradient": (_vectorized_gradient, X),
    "vectorized scatter": (_vectorized_scatter, X),
    "sorted within": (lambda x: tf.sort(x, -1), X),
    "greatest within": (
        lambda x: tf.gather(x, tf.argmax(x, -1), batch_dims=1),
        X,
    ),
    "flat gather in range": (lambda x: _flat_gather(x, _in_range(x)), X),
    "compiled": (
        lambda x: tf.function(lambda t: _centered(t, 1), jit_compile=True)(x),
        X,
    ),
    "attention": (
        lambda x: tf.matmul(
            tf.nn.softmax(tf.matmul(x, x, transpose_b=True)), x
        ),
        XT,
    ),
    "loop over the examples": (
        lambda x: _loop(x, lambda i, c: (x[i] - tf.reduce_max(x[i]), c)),
        X,
    ),
    "recurrent": (_recurrent, XT),
    "gradient of a recurrent loop": (_recurrent_gradient, XT),
    "positions": (
        lambda x: x + tf.gather(tf.random.normal([9, 3]), tf.range(4))[None],
        XT,
    ),
    "two copies of the batch": (
        lambda x: tf.reduce_sum(
            tf.reshape(tf.concat([x, -x], 0), [2, -1, 3]), 0
        ),
        X,
    ),
    "noise": (lambda x: x + tf.random.normal(tf.shape(x)), X),
    "zeros for all": (lambda x: tf.zeros_like(x[:, 0]), X),
    "causal mask": (lambda x: x * ops.tril(ops.ones((4, 4)))[None, :, :3], XT),
    "count within": (
        lambda x: x / tf.reduce_sum(tf.ones_like(x), 1, keepdims=True),
        X,
    ),
}


@pytest.mark.parametrize("name", sorted(SOUND))
def test_sound_function_is_proved(name):
    function, spec = SOUND[name]
    graphs.proved(function, spec, allowed=[graphs.Category.ABORT])


def test_there_are_enough_attacks():
    assert len(REFUSED) >= 75
