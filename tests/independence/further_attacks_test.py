"""Further ways to let examples meet, each of which must be refused.

Operations of many kinds, and above all ways to count: of numbers that are the
same everywhere, and of which there are as many as examples, a sum, a window or
a lookup must not tell how many there are.
"""

import pytest
import tensorflow as tf

from tests.independence import graphs

X, XT = graphs.X, graphs.XT
_gradient = graphs.gradient_of


def _size(x):
    return tf.shape(x)[0]


def _rows(x):
    return tf.range(_size(x))


def one(x):
    return tf.ones_like(x[:, 0])


def bb(x):
    return tf.fill([_size(x), _size(x)], 1.0)


REFUSED = {
    "target of equal rows": (
        lambda x: tf.cast(
            tf.math.in_top_k(tf.argmax(x, -1), bb(x), 2), "float32"
        ),
        X,
    ),
    "norm by matmul with ones": (
        lambda x: x - tf.matmul(tf.ones([_size(x), _size(x)]), x),
        X,
    ),
    "einsum with ones": (
        lambda x: x * tf.einsum("bi,ci->ci", tf.ones_like(x), x),
        X,
    ),
    "tensordot": (lambda x: x * tf.tensordot(x, x, [[0, 1], [0, 1]]), X),
    "l2 loss": (lambda x: x * tf.nn.l2_loss(x), X),
    "moments": (lambda x: x - tf.nn.moments(x, 0)[0], X),
    "logsumexp": (lambda x: x - tf.reduce_logsumexp(x, 0), X),
    "all": (lambda x: tf.cast(tf.reduce_all(x > 0, 0), x.dtype) * x, X),
    "product": (lambda x: x * tf.reduce_prod(x, 0), X),
    "cumprod": (lambda x: tf.math.cumprod(x, 0), X),
    "reversed cumsum": (
        lambda x: tf.cumsum(x, 0, reverse=True, exclusive=True),
        X,
    ),
    "roll": (lambda x: tf.roll(x, 1, 0), X),
    "tile and halve": (
        lambda x: (
            tf.reshape(tf.tile(x, [2, 1]), [2, -1, 3])[0]
            + tf.reshape(tf.transpose(tf.tile(x, [2, 1])), [-1, 3])[: _size(x)]
        ),
        X,
    ),
    "repeat": (lambda x: tf.repeat(x, 2, 0)[: _size(x)], X),
    "repeat by data": (
        lambda x: tf.repeat(x, tf.cast(x[:, 0] > 0, tf.int32), axis=0),
        X,
    ),
    "dynamic partition": (
        lambda x: tf.dynamic_partition(x, tf.cast(x[:, 0] > 0, tf.int32), 2)[0],
        X,
    ),
    "dynamic stitch": (lambda x: tf.dynamic_stitch([_rows(x)[::-1]], [x]), X),
    "scatter by data": (
        lambda x: tf.tensor_scatter_nd_update(
            x, tf.cast(x[:, :1], tf.int32), x
        ),
        X,
    ),
    "scatter by row": (
        lambda x: tf.tensor_scatter_nd_add(
            x, (_rows(x)[:, None] + 1) % _size(x), x
        ),
        X,
    ),
    "space to batch": (
        lambda x: tf.space_to_batch(x[None], [2], [[0, 0]])[0],
        X,
    ),
    "extract patches": (
        lambda x: tf.image.extract_patches(
            x[None, ..., None], [1, 3, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], "SAME"
        )[0, :, :, 0],
        X,
    ),
    "resize of the batch": (
        lambda x: tf.image.resize(x[None, ..., None], [4, 3])[0, ..., 0],
        X,
    ),
    "resize to its size": (
        lambda x: tf.image.resize(x[None, ..., None], tf.shape(x))[0, ..., 0],
        X,
    ),
    "map with stack": (
        lambda x: tf.map_fn(
            lambda i: tf.gather(x, (i + 1) % _size(x)),
            _rows(x),
            fn_output_signature=tf.float32,
        ),
        X,
    ),
    "scan": (lambda x: tf.scan(lambda a, r: a + r, x), X),
    "foldl": (lambda x: x + tf.foldl(lambda a, r: a + r, x), X),
    "qr": (lambda x: tf.linalg.qr(x)[0], X),
    "svd": (lambda x: x / tf.linalg.svd(x, compute_uv=False)[0], X),
    "pinv": (lambda x: tf.transpose(tf.linalg.pinv(x)), X),
    "solve": (
        lambda x: tf.transpose(
            tf.linalg.solve(
                tf.matmul(x, x, transpose_a=True) + tf.eye(3), tf.transpose(x)
            )
        ),
        X,
    ),
    "band part of rows": (lambda x: tf.linalg.band_part(x, 1, 1), X),
    "diagonal": (
        lambda x: (
            x * tf.linalg.diag_part(tf.matmul(x, x, transpose_b=True))[:, None]
        ),
        X,
    ),
    "bincount": (
        lambda x: (
            x
            * tf.cast(
                tf.math.bincount(tf.cast(x[:, 0] > 0, tf.int32), minlength=2)[
                    1
                ],
                x.dtype,
            )
        ),
        X,
    ),
    "in top k": (
        lambda x: (
            tf.cast(tf.math.in_top_k(_rows(x) % 3, x, 2), tf.float32)[:, None]
            * x
        ),
        X,
    ),
    "argmax over batch": (lambda x: x * tf.cast(tf.argmax(x, 0), x.dtype), X),
    "searchsorted in batch": (
        lambda x: (
            tf.cast(tf.searchsorted(tf.sort(x[:, 0]), x[:, 0]), tf.float32)[
                :, None
            ]
            * x
        ),
        X,
    ),
    "meshgrid": (lambda x: x + tf.meshgrid(x[:, 0], x[:, 0])[0][:, :1], X),
    "where of two rows": (lambda x: tf.where(x > x[:1], x, 0.0), X),
    "clip by the first": (lambda x: tf.minimum(x, x[:1]), X),
    "static unstack": (
        lambda x: tf.stack(tf.unstack(tf.ensure_shape(x, [4, 3]))[::-1]),
        tf.TensorSpec([4, 3]),
    ),
    "static split": (
        lambda x: tf.concat(tf.split(x, 2)[::-1], 0),
        tf.TensorSpec([4, 3]),
    ),
    "bitcast": (
        lambda x: tf.bitcast(
            tf.bitcast(x, tf.int32) + tf.reduce_max(tf.bitcast(x, tf.int32)),
            tf.float32,
        ),
        X,
    ),
    "rank of broadcast": (lambda x: x + tf.reshape(x, [-1])[:3], X),
    "reshape by width": (
        lambda x: tf.reshape(tf.reshape(x, [3, -1]), [-1, 3]),
        X,
    ),
    "transposed merge": (
        lambda x: tf.reshape(tf.transpose(x, [1, 0, 2]), tf.shape(x)),
        XT,
    ),
    "gradient times its mean sign": (
        _gradient(lambda g: g * tf.sign(tf.reduce_sum(g))),
        X,
    ),
    "gradient cumsum": (_gradient(lambda g: tf.cumsum(g)), X),
    "jvp of all": (
        lambda x: tf.vectorized_map(lambda r: r * tf.reduce_sum(x), x),
        X,
    ),
    "unsorted segments of a constant": (
        lambda x: tf.gather(
            tf.math.unsorted_segment_sum(x, tf.zeros([_size(x)], tf.int32), 1),
            tf.zeros([_size(x)], tf.int32),
        ),
        X,
    ),
    "hash of all text": (
        lambda x: (
            x
            * tf.cast(
                tf.strings.to_hash_bucket_fast(
                    tf.strings.reduce_join(tf.strings.as_string(x)), 7
                ),
                x.dtype,
            )
        ),
        X,
    ),
    "write to a file": (
        lambda x: (
            tf.io.write_file(
                "/dev/null", tf.strings.as_string(tf.reduce_sum(x))
            ),
            x,
        )[1],
        X,
    ),
    "summary of numerics": (
        lambda x: tf.debugging.check_numerics(x, "x") + 0 * tf.reduce_sum(x),
        X,
    ),
    "fake quantised by range": (
        lambda x: tf.quantization.fake_quant_with_min_max_vars(
            x, tf.reduce_min(x), tf.reduce_max(x)
        ),
        X,
    ),
    "depthwise over rows": (
        lambda x: tf.nn.depthwise_conv2d(
            x[None, ..., None], tf.ones([3, 1, 1, 1]), [1, 1, 1, 1], "SAME"
        )[0, ..., 0],
        X,
    ),
    "lrn over batch": (
        lambda x: tf.transpose(
            tf.nn.local_response_normalization(tf.transpose(x)[None, None])
        )[:, :, 0, 0],
        X,
    ),
    "sequence mask of rows": (
        lambda x: x * tf.cast(tf.sequence_mask(_rows(x), 3), x.dtype),
        X,
    ),
    "one hot of rows": (lambda x: x + tf.one_hot(_rows(x), 3), X),
    "dropout by counter": (
        lambda x: x * tf.cast(_rows(x) % 2 == 0, x.dtype)[:, None],
        X,
    ),
    "einsum of three": (
        lambda x: tf.einsum(
            "bi,bi,ci->ci", tf.ones_like(x), tf.ones_like(x), x
        ),
        X,
    ),
    "einsum own ones": (
        lambda x: tf.einsum("b,ci->ci", tf.ones([_size(x)]), x),
        X,
    ),
    "einsum zeros gradient": (
        lambda x: tf.einsum("bj,cj->c", tf.ones([_size(x), 3]), x),
        X,
    ),
    "conv taps": (
        lambda x: tf.nn.conv1d(
            x[..., None], tf.ones([_size(x), 1, 1]), 1, "SAME"
        )[..., 0],
        X,
    ),
    "conv channels": (
        lambda x: (
            tf.nn.conv1d(
                tf.ones([1, 3, _size(x)]), tf.ones([1, _size(x), 3]), 1, "SAME"
            )
            + x[:, None]
        ),
        X,
    ),
    "depthwise taps": (
        lambda x: tf.nn.depthwise_conv2d(
            x[:, None, :, None],
            tf.ones([1, _size(x), 1, 1]),
            [1, 1, 1, 1],
            "SAME",
        )[:, 0, :, 0],
        X,
    ),
    "conv transpose taps": (
        lambda x: tf.nn.conv1d_transpose(
            x[..., None], tf.ones([_size(x), 1, 1]), [_size(x), 3, 1], 1, "SAME"
        )[..., 0],
        X,
    ),
    "scatter of ones": (
        lambda x: (
            x * tf.scatter_nd(tf.zeros([_size(x), 1], tf.int32), one(x), [1])
        ),
        X,
    ),
    "segments of ones": (
        lambda x: (
            x
            * tf.math.unsorted_segment_sum(
                one(x), tf.zeros([_size(x)], tf.int32), 1
            )
        ),
        X,
    ),
    "count of zeros": (
        lambda x: (
            x
            * tf.cast(tf.math.bincount(tf.zeros([_size(x)], tf.int32)), x.dtype)
        ),
        X,
    ),
    "trace": (lambda x: x * tf.linalg.trace(tf.eye(_size(x))), X),
    "norm of ones": (lambda x: x / tf.norm(one(x)), X),
    "l2 loss of ones": (lambda x: x / tf.nn.l2_loss(one(x)), X),
    "softmax of ones": (lambda x: x * tf.nn.softmax(one(x))[:, None], X),
    "softmax of zeros": (
        lambda x: x * tf.nn.softmax(tf.zeros([1, _size(x)]))[0][:, None],
        X,
    ),
    "log softmax": (lambda x: x * tf.nn.log_softmax(one(x))[:, None], X),
    "cross entropy of zeros": (
        lambda x: (
            x
            * tf.nn.sparse_softmax_cross_entropy_with_logits(
                [0], tf.zeros([1, _size(x)])
            )
        ),
        X,
    ),
    "cross entropy of zeros 2": (
        lambda x: (
            x
            * tf.nn.softmax_cross_entropy_with_logits(
                tf.ones([1, _size(x)]), tf.zeros([1, _size(x)])
            )
        ),
        X,
    ),
    "logsumexp of zeros": (lambda x: x * tf.reduce_logsumexp(one(x)), X),
    "product of twos": (lambda x: x * tf.reduce_prod(2 * one(x)), X),
    "euclidean": (lambda x: x * tf.math.reduce_euclidean_norm(one(x)), X),
    "det": (lambda x: x * tf.linalg.det(2 * tf.eye(_size(x))), X),
    "matmul of ones then examples": (
        lambda x: tf.matmul(
            tf.matmul(tf.ones([1, _size(x)]), tf.ones([_size(x), 1])) * x,
            tf.eye(3),
        ),
        X,
    ),
    "batch matmul": (
        lambda x: tf.matmul(
            x[:, None],
            tf.matmul(tf.ones([3, _size(x)]), tf.ones([_size(x), 3])),
        )[:, 0],
        X,
    ),
    "tensordot of ones": (lambda x: x * tf.tensordot(one(x), one(x), 1), X),
    "padded": (
        lambda x: tf.reduce_sum(
            tf.pad(x, [[0, 0], [0, _size(x)]], constant_values=1.0), 1
        ),
        X,
    ),
    "broadcast and sum": (
        lambda x: tf.reduce_sum(x[:, None] * tf.ones([_size(x), 1]), 1),
        X,
    ),
    "broadcast to B and sum": (
        lambda x: tf.reduce_sum(
            tf.broadcast_to(x[:, None], [_size(x), _size(x), 3]), 1
        ),
        X,
    ),
    "tile within and sum": (
        lambda x: tf.reduce_sum(tf.tile(x, tf.stack([1, _size(x)])), 1),
        X,
    ),
    "repeat within": (
        lambda x: tf.reduce_sum(tf.repeat(x, _size(x), axis=1), 1),
        X,
    ),
    "concat of B": (
        lambda x: tf.reduce_sum(
            tf.concat([x, tf.ones([_size(x), _size(x)])], 1), 1
        ),
        X,
    ),
    "addn": (
        lambda x: tf.while_loop(
            lambda i, a: i < _size(x), lambda i, a: (i + 1, a + x), (0, x)
        )[1],
        X,
    ),
    "power loop": (
        lambda x: (
            x
            * tf.while_loop(
                lambda i, a: i < _size(x),
                lambda i, a: (i + 1, a + 1.0),
                (0, 0.0),
            )[1]
        ),
        X,
    ),
    "one hot depth": (
        lambda x: (
            x
            * tf.reduce_sum(
                tf.one_hot(0, _size(x), on_value=1.0, off_value=1.0)
            )
        ),
        X,
    ),
    "fill sum": (lambda x: x * tf.reduce_sum(tf.fill([_size(x)], 1.0)), X),
    "linspace end": (lambda x: x * tf.linspace(0.0, 1.0, _size(x))[1], X),
    "top k of uniform": (
        lambda x: (
            x * tf.cast(tf.math.top_k(tf.range(_size(x)), 1).values[0], x.dtype)
        ),
        X,
    ),
    "moments of ones": (
        lambda x: x * tf.math.reduce_std(tf.concat([one(x), tf.zeros([1])], 0)),
        X,
    ),
    "resize by B": (
        lambda x: tf.image.resize(x[:, None, :, None], tf.stack([1, _size(x)]))[
            :, 0, :1, 0
        ],
        X,
    ),
    "avg pool SAME": (
        lambda x: (
            tf.nn.avg_pool1d(tf.ones([1, _size(x), 1]), 3, 1, "VALID")[0]
            * x[: -2 or None]
        ),
        X,
    ),
    "outer ones": (lambda x: tf.matmul(x, x * 0 + 1, transpose_b=True), X),
    "cosine of ones": (
        lambda x: x * tf.reduce_sum(tf.math.l2_normalize(one(x))),
        X,
    ),
    "segment mean": (
        lambda x: (
            x * tf.math.segment_sum(one(x), tf.zeros([_size(x)], tf.int32))
        ),
        X,
    ),
    "string join": (
        lambda x: (
            x
            * tf.cast(
                tf.strings.length(
                    tf.strings.reduce_join(tf.fill([_size(x)], "a"))
                ),
                x.dtype,
            )
        ),
        X,
    ),
    "bits": (
        lambda x: x * tf.cast(tf.bitwise.left_shift(1, _size(x)), x.dtype),
        X,
    ),
    "gather size": (
        lambda x: x * tf.gather([1.0, 2.0, 3.0], tf.minimum(_size(x), 2)),
        X,
    ),
    "slice size": (lambda x: x * tf.reduce_sum(tf.ones([3])[: _size(x)]), X),
    "uniform range": (
        lambda x: (
            x
            + tf.random.stateless_uniform(
                tf.shape(x), [1, 2], maxval=tf.cast(_size(x), tf.float32)
            )
        ),
        X,
    ),
    "dilation taps": (
        lambda x: tf.nn.dilation2d(
            x[:, None, :, None],
            tf.ones([1, _size(x), 1]),
            [1, 1, 1, 1],
            "SAME",
            "NHWC",
            [1, 1, 1, 1],
        )[:, 0, :, 0],
        X,
    ),
    "searchsorted": (
        lambda x: x * tf.cast(tf.searchsorted(bb(x), x), x.dtype),
        X,
    ),
    "searchsorted T": (
        lambda x: (
            x
            * tf.transpose(
                tf.cast(
                    tf.searchsorted(tf.ones([3, _size(x)]), tf.transpose(x)),
                    x.dtype,
                )
            )
        ),
        X,
    ),
    "searchsorted raw T": (
        lambda x: tf.transpose(
            tf.cast(
                tf.raw_ops.UpperBound(
                    sorted_inputs=tf.ones([3, _size(x)]), values=tf.transpose(x)
                ),
                x.dtype,
            )
        ),
        X,
    ),
    "bucketize": (
        lambda x: tf.cast(
            tf.raw_ops.LowerBound(
                sorted_inputs=tf.ones([1, _size(x)]),
                values=tf.reshape(x, [1, -1]),
            ),
            x.dtype,
        ),
        X,
    ),
    "sparse ce BB": (
        lambda x: tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels=tf.argmax(x, -1), logits=bb(x)
        ),
        X,
    ),
    "ce BB broadcast": (
        lambda x: (
            tf.raw_ops.SoftmaxCrossEntropyWithLogits(
                features=bb(x), labels=x[:, :1]
            ).loss
        ),
        X,
    ),
    "ce of 1B": (
        lambda x: (
            tf.raw_ops.SoftmaxCrossEntropyWithLogits(
                features=tf.zeros([1, _size(x)]), labels=x[:, :1]
            ).loss
        ),
        X,
    ),
    "gather BB": (
        lambda x: tf.gather(bb(x), tf.argmax(x, -1), batch_dims=1),
        X,
    ),
    "top k": (
        lambda x: x * tf.cast(tf.math.top_k(bb(x), 1).indices, x.dtype),
        X,
    ),
    "argmax BB": (
        lambda x: (
            x
            * tf.cast(tf.argmax(bb(x), 1, output_type=tf.int32), x.dtype)[
                :, None
            ]
        ),
        X,
    ),
    "sum BB": (lambda x: x * tf.reduce_sum(bb(x), 1)[:, None], X),
    "select": (
        lambda x: tf.reduce_sum(tf.where(x[:, :1] > 0, bb(x), 0.0), 1),
        X,
    ),
    "mul BB": (lambda x: tf.reduce_sum(x[:, :1] * bb(x), 1), X),
    "batch matmul BB": (lambda x: tf.matmul(bb(x), x), X),
    "segments of uniform": (
        lambda x: (
            x
            * tf.math.unsorted_segment_sum(
                tf.ones([_size(x), _size(x)]), tf.zeros([_size(x)], tf.int32), 1
            )[0][:, None]
        ),
        X,
    ),
    "scatter uniform": (
        lambda x: tf.tensor_scatter_nd_add(
            tf.transpose(x),
            tf.zeros([_size(x), 1], tf.int32),
            tf.ones([_size(x), _size(x)]),
        ),
        X,
    ),
    "scatter within": (
        lambda x: tf.transpose(
            tf.tensor_scatter_nd_add(
                tf.transpose(x),
                tf.zeros([_size(x), 1], tf.int32),
                tf.ones([_size(x), 1]) * tf.ones_like(x[:, :1][:, 0]),
            )
        ),
        X,
    ),
    "reverse sequence": (
        lambda x: (
            tf.reverse_sequence(x, tf.zeros([_size(x)], tf.int32) + 2, 1)
            * tf.reduce_sum(bb(x))
        ),
        X,
    ),
    "any and count": (
        lambda x: (
            x * tf.cast(tf.math.count_nonzero(bb(x), 1), x.dtype)[:, None]
        ),
        X,
    ),
    "std": (lambda x: x * tf.math.reduce_std(bb(x), 1)[:, None], X),
    "softmax": (lambda x: x * tf.nn.softmax(bb(x))[:, :1], X),
    "lrn": (
        lambda x: (
            x * tf.nn.lrn(tf.ones([_size(x), 1, 1, _size(x)]))[:, 0, 0, :1]
        ),
        X,
    ),
    "matrix inverse": (
        lambda x: x * tf.linalg.inv(tf.eye(_size(x)) + bb(x))[:, :1],
        X,
    ),
    "cholesky": (
        lambda x: x * tf.linalg.cholesky(tf.eye(_size(x)) + bb(x))[:, :1],
        X,
    ),
    "norm": (lambda x: x * tf.norm(bb(x), axis=1, keepdims=True), X),
    "l2 normalize": (lambda x: x * tf.math.l2_normalize(bb(x), 1)[:, :1], X),
    "layer norm eps": (
        lambda x: (
            x
            * tf.raw_ops.FusedBatchNormV3(
                x=tf.ones([_size(x), 1, 1, 1]),
                scale=[1.0],
                offset=[0.0],
                mean=[],
                variance=[],
                is_training=True,
            )[3][:, None]
        ),
        X,
    ),
    "lse": (lambda x: x * tf.reduce_logsumexp(bb(x), 1, keepdims=True), X),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_attack_is_refused(name):
    function, spec = REFUSED[name]
    assert graphs.refused(function, spec).reason


SOUND = {
    "some of ones": lambda x: x * tf.cast(tf.reduce_any(one(x) > 0), x.dtype),
    "first of two copies": lambda x: tf.tile(x, [2, 1])[: _size(x)],
    "einsum with a matrix": lambda x: tf.einsum(
        "bi,ij->bj", x, tf.ones([3, 2])
    ),
    "einsum of equal rows": lambda x: tf.einsum("bi,bi->b", tf.ones_like(x), x),
}


@pytest.mark.parametrize("name", sorted(SOUND))
def test_sound_function_is_proved(name):
    graphs.proved(SOUND[name], X)
