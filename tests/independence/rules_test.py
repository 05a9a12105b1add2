"""Each rule is fed a graph that mixes examples and one that does not.

`MIXES` holds functions that the named operation must refuse; `KEEPS` those
that must be proved.
"""

import functools

import pytest
import tensorflow as tf

from tests.independence import graphs
from tf_dpfp.independence import rule_table

R = tf.raw_ops
X, XT, IMAGE, IDS = graphs.X, graphs.XT, graphs.IMAGE, graphs.IDS
STATIC = tf.TensorSpec([4, 4, 3], tf.float32)


def _swap(x):
    """Puts the examples into another axis than the first."""
    return tf.transpose(x, [1, 0, *range(2, x.shape.rank)])


def _rows(x):
    return tf.range(tf.shape(x)[0])


def _own(x):
    """Indices of the example, in range."""
    return tf.argmax(x, -1, tf.int32)


def _twice_added(x, *rows, places=1):
    """Adds up two batches, each at its row numbers."""
    both, index = tf.concat([x, -x], 0), tf.concat(rows, 0)
    batch_size = tf.shape(x)[0]
    added = tf.math.unsorted_segment_sum(both, index, batch_size * places)
    return tf.reshape(added, [batch_size, -1])


def _wild(x):
    """Indices of the example that may be out of range."""
    return tf.cast(x, tf.int32)


def _size(x):
    return tf.cast(tf.shape(x)[0], x.dtype)


def _projected(images, transforms):
    return R.ImageProjectiveTransformV3(
        images=images,
        transforms=transforms,
        output_shape=[6, 6],
        fill_value=0.0,
        interpolation="BILINEAR",
    )


def _counted(x):
    """Counts from one along an axis, in every row."""
    return tf.cumsum(tf.ones_like(x, tf.int32), 1)


def _wrapped(index):
    """Counts negative indices from the end, as Keras does."""
    return tf.where(index < 0, index + 3, index)


def _tiled(x, index):
    index = tf.tile(index[None], [tf.shape(x)[0], 1])
    return tf.gather(x, index, batch_dims=1)


def _gradient(function):
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        return tape.gradient(y, x)

    return gradient


@functools.cache
def _table():
    with tf.init_scope():
        keys, values = tf.constant([1]), tf.constant([5])
        return tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(keys, values), 0
        )


def _list_of(x):
    return R.TensorListFromTensor(
        tensor=x, element_shape=tf.constant([-1, 3], tf.int32)
    )


_FILTER = tf.constant
KERNEL = [[[[1.0] * 4] * 2] * 3] * 3
DEPTHWISE = [[[[1.0] * 2] * 2] * 3] * 3
VOLUME = tf.TensorSpec([None, 5, 5, 5, 2], tf.float32)
KERNEL3 = [[[[[1.0] * 4] * 2] * 3] * 3] * 3

KEEPS = [
    # Shapes.
    ("Shape", lambda x: tf.reshape(x, tf.shape(x)), X),
    ("ShapeN", lambda x: tf.reshape(x, tf.shape_n([x, x])[0]), X),
    ("Size", lambda x: tf.reshape(x, [tf.size(x) // 3, 3]), X),
    (
        "Reshape",
        lambda x: tf.reshape(tf.reshape(x, [-1, 3]) * 2, [-1, 4, 3]),
        XT,
    ),
    ("Reshape", lambda x: tf.reshape(x, [-1, 12]), XT),
    ("ExpandDims", lambda x: tf.expand_dims(x, -1), X),
    ("Squeeze", lambda x: tf.squeeze(x[:, None], 1), X),
    ("ZerosLike", lambda x: x + tf.zeros_like(x), X),
    ("OnesLike", lambda x: x * R.OnesLike(x=x), X),
    ("Fill", lambda x: x + tf.fill(tf.shape(x), 2.0), X),
    ("BroadcastTo", lambda x: tf.broadcast_to(x[:, :1], tf.shape(x)), X),
    ("Tile", lambda x: tf.tile(x, [1, 2]), X),
    ("Tile", lambda x: tf.tile([[1.0, 2.0]], [tf.shape(x)[0], 1]), X),
    ("BroadcastGradientArgs", _gradient(lambda x: x * x[:, :1]), X),
    (
        "BroadcastArgs",
        lambda x: tf.broadcast_to(
            x, tf.broadcast_dynamic_shape(tf.shape(x), tf.shape(x[:, :1]))
        ),
        X,
    ),
    ("Rank", lambda x: tf.reduce_sum(x, R.Rank(input=x) - 1), X),
    # Products.
    ("MatMul", lambda x: tf.matmul(x, [[1.0], [2.0], [3.0]]), X),
    ("MatMul", lambda x: tf.matmul(tf.ones_like(x), [[1.0], [2.0], [3.0]]), X),
    ("BatchMatMulV2", lambda x: tf.matmul(x, x, transpose_b=True), XT),
    ("BatchMatMulV2", lambda x: tf.matmul(x, tf.ones([3, 2])), XT),
    ("Einsum", lambda x: tf.einsum("btc,bsc->bts", x, x), XT),
    ("Einsum", lambda x: tf.einsum("...c,cd->...d", x, tf.eye(3)), XT),
    ("BiasAdd", lambda x: tf.nn.bias_add(x, [1.0, 2.0, 3.0]), X),
    # Images.
    ("Conv2D", lambda x: tf.nn.conv2d(x, KERNEL, 1, "SAME"), IMAGE),
    (
        "Conv2DBackpropInput",
        _gradient(lambda x: tf.nn.conv2d(x * x, KERNEL, 1, "SAME")),
        IMAGE,
    ),
    (
        "DepthwiseConv2dNative",
        lambda x: tf.nn.depthwise_conv2d(x, DEPTHWISE, [1, 1, 1, 1], "SAME"),
        IMAGE,
    ),
    (
        "DepthwiseConv2dNativeBackpropInput",
        _gradient(
            lambda x: tf.nn.depthwise_conv2d(
                x * x, DEPTHWISE, [1, 1, 1, 1], "SAME"
            )
        ),
        IMAGE,
    ),
    ("Conv3D", lambda x: tf.nn.conv3d(x, KERNEL3, [1] * 5, "SAME"), VOLUME),
    ("MaxPool", lambda x: tf.nn.max_pool2d(x, 2, 2, "SAME"), IMAGE),
    (
        "MaxPoolGrad",
        _gradient(lambda x: tf.nn.max_pool2d(x * x, 2, 2, "SAME")),
        IMAGE,
    ),
    ("AvgPool", lambda x: tf.nn.avg_pool2d(x, 2, 2, "SAME"), IMAGE),
    (
        "AvgPoolGrad",
        _gradient(lambda x: tf.nn.avg_pool2d(x * x, 2, 2, "SAME")),
        IMAGE,
    ),
    ("ResizeBilinear", lambda x: tf.image.resize(x, [3, 3]), IMAGE),
    (
        "ResizeNearestNeighbor",
        lambda x: tf.image.resize(x, [3, 3], "nearest"),
        IMAGE,
    ),
    ("SpaceToDepth", lambda x: tf.nn.space_to_depth(x, 2), IMAGE),
    (
        "ImageProjectiveTransformV3",
        lambda x: _projected(x, tf.reshape(x, [-1, 72])[:, :8]),
        IMAGE,
    ),
    (
        "ImageProjectiveTransformV3",
        lambda x: _projected(x, tf.range(8.0)[None]),
        IMAGE,
    ),
    (
        "SpaceToBatchND",
        lambda x: tf.batch_to_space(
            tf.space_to_batch(x, [2, 2], [[0, 0], [0, 0]]) * 2,
            [2, 2],
            [[0, 0], [0, 0]],
        ),
        IMAGE,
    ),
    (
        "ExtractImagePatches",
        lambda x: tf.image.extract_patches(
            x, [1, 2, 2, 1], [1, 2, 2, 1], [1] * 4, "SAME"
        ),
        IMAGE,
    ),
    (
        "FusedBatchNormV3",
        lambda x: tf.compat.v1.nn.fused_batch_norm(
            x, [1.0, 2.0], [0.0, 1.0], [0.0, 0.0], [1.0, 1.0], is_training=False
        )[0],
        IMAGE,
    ),
    # Reductions.
    ("Sum", lambda x: tf.reduce_sum(x, 1), X),
    ("Mean", lambda x: tf.reduce_mean(x, [1, 2], keepdims=True), XT),
    ("Max", lambda x: tf.reduce_max(x, -1), X),
    ("ArgMax", lambda x: tf.argmax(x, -1), X),
    ("Cumsum", lambda x: tf.cumsum(x, 1), X),
    # Free of data, with a row for each example.
    ("Cumsum", lambda x: x + tf.cumsum(tf.ones_like(x), 1), X),
    ("Cumsum", lambda x: tf.gather(x, _counted(x) - 1, batch_dims=1), X),
    ("Less", lambda x: tf.gather(x, _wrapped(_own(x)), batch_dims=1), XT),
    ("Tile", lambda x: _tiled(x, tf.range(4)), XT),
    ("ReverseV2", lambda x: tf.reverse(x, [1]), X),
    ("Roll", lambda x: tf.roll(x, 1, 1), X),
    ("Softmax", lambda x: tf.nn.softmax(x), X),
    ("TopKV2", lambda x: tf.math.top_k(x, 2).values, X),
    ("InTopKV2", lambda x: tf.math.in_top_k(_own(x), x, 1), X),
    (
        "ReverseSequence",
        lambda x: tf.reverse_sequence(x, _own(x[:, 0]), seq_axis=1),
        XT,
    ),
    ("Cholesky", lambda x: tf.linalg.cholesky(x), graphs.MATRIX),
    ("MatrixDiagV3", lambda x: tf.linalg.diag(x), X),
    ("MatrixDiagPartV3", lambda x: tf.linalg.diag_part(x), graphs.MATRIX),
    ("MatrixBandPart", lambda x: tf.linalg.band_part(x, 0, -1), graphs.MATRIX),
    ("RFFT", lambda x: tf.abs(tf.signal.rfft(x)), X),
    ("AdjustContrastv2", lambda x: tf.image.adjust_contrast(x, 2.0), IMAGE),
    # Movement.
    ("Transpose", lambda x: _swap(tf.cumsum(_swap(x), 0)), XT),
    ("ConcatV2", lambda x: tf.concat([x, -x], 1), X),
    ("ConcatV2", lambda x: tf.reshape(tf.concat([x, -x], 0), [2, -1, 3])[0], X),
    ("ConcatV2", lambda x: _twice_added(x, _rows(x), _rows(x)), X),
    (
        "ConcatV2",
        lambda x: _twice_added(x, _rows(x) * 4 + 1, _rows(x) * 4 + 1, places=4),
        X,
    ),
    ("Split", lambda x: tf.split(tf.concat([x, -x], 0), 2)[1], X),
    ("Pack", lambda x: tf.stack([x, x], 1), X),
    ("Unpack", lambda x: tf.unstack(x, axis=1)[0], X),
    ("SplitV", lambda x: tf.split(x, [1, 2], 1)[1], X),
    ("Pad", lambda x: tf.pad(x, [[0, 0], [1, 1]]), X),
    ("PadV2", lambda x: tf.pad(x, [[0, 0], [1, 1]], constant_values=2.0), X),
    ("MirrorPad", lambda x: tf.pad(x, [[0, 0], [1, 1]], "REFLECT"), X),
    ("StridedSlice", lambda x: x[:, 1:, None], X),
    ("StridedSlice", lambda x: tf.concat([x, -x], 0)[: tf.shape(x)[0]], X),
    ("StridedSliceGrad", _gradient(lambda x: x[:, 1:] ** 2), X),
    ("Slice", lambda x: tf.slice(x, [0, 1], [-1, 2]), X),
    ("ConcatOffset", _gradient(lambda x: tf.concat([x * x, x], 1)), X),
    # Lookups.
    ("GatherV2", lambda x: tf.gather(tf.range(9.0), _wild(x)), X),
    ("GatherV2", lambda x: tf.gather(x, [2, 0], axis=1), X),
    ("GatherV2", lambda x: tf.gather(x, _own(x), batch_dims=1), XT),
    (
        "GatherV2",
        lambda x: tf.gather(x, tf.clip_by_value(_wild(x), 0, 2), batch_dims=1),
        X,
    ),
    (
        "GatherV2",
        lambda x: tf.gather(x, tf.math.floormod(_wild(x), 3), batch_dims=1),
        X,
    ),
    ("GatherV2", lambda x: tf.gather(x, _rows(x)), X),
    ("GatherNd", lambda x: tf.gather_nd(x, _own(x)[:, None], batch_dims=1), X),
    (
        "UnsortedSegmentSum",
        _gradient(lambda x: tf.gather(x * x, _own(x), batch_dims=1)),
        XT,
    ),
    (
        "ScatterNd",
        _gradient(
            lambda x: tf.gather_nd(x * x, _own(x)[:, None], batch_dims=1)
        ),
        X,
    ),
    (
        "TensorScatterUpdate",
        lambda x: tf.tensor_scatter_nd_update(
            x, tf.stack([_rows(x), _own(x)], -1), tf.zeros_like(x[:, 0])
        ),
        X,
    ),
    ("OneHot", lambda x: tf.one_hot(_wild(x), 5), X),
    (
        "DenseBincount",
        lambda x: tf.math.bincount(x, minlength=5, maxlength=5, axis=-1),
        IDS,
    ),
    (
        "SparseSoftmaxCrossEntropyWithLogits",
        lambda x: tf.nn.sparse_softmax_cross_entropy_with_logits(_own(x), x),
        X,
    ),
    (
        "SoftmaxCrossEntropyWithLogits",
        lambda x: tf.nn.softmax_cross_entropy_with_logits(tf.nn.softmax(x), x),
        X,
    ),
    ("DynamicStitch", _gradient(lambda x: tf.reduce_prod(x, [1])), X),
    ("InvertPermutation", _gradient(lambda x: _swap(x) ** 2), XT),
    # Random numbers.
    (
        "StatelessRandomUniformV2",
        lambda x: x * tf.random.stateless_uniform(tf.shape(x), [1, 2]),
        X,
    ),
    ("RandomStandardNormal", lambda x: x + tf.random.normal(tf.shape(x)), X),
    (
        "StatelessRandomGammaV3",
        lambda x: tf.random.stateless_gamma(
            tf.shape(x), [1, 2], alpha=tf.abs(x)
        ),
        X,
    ),
    (
        "StatelessMultinomial",
        lambda x: tf.random.stateless_categorical(x, 2, [1, 2]),
        X,
    ),
    # Functions, branches, loops and lists.
    ("PartitionedCall", lambda x: tf.function(lambda t: t * 2)(x), X),
    (
        "StatelessIf",
        lambda x: tf.cond(
            tf.random.stateless_uniform([], [1, 2]) > 0.5, lambda: x, lambda: -x
        ),
        X,
    ),
    (
        "StatelessCase",
        lambda x: tf.switch_case(
            tf.random.stateless_uniform([], [1, 2], 0, 2, tf.int32),
            [lambda: x, lambda: -x, lambda: 2 * x],
        ),
        X,
    ),
    (
        "StatelessWhile",
        lambda x: tf.while_loop(
            lambda i, a: i < 3, lambda i, a: (i + 1, a * 2), (0, x)
        )[1],
        X,
    ),
    (
        "TensorListStack",
        lambda x: _swap(tf.map_fn(lambda t: t * 2, _swap(x))),
        XT,
    ),
    (
        "TensorListFromTensor",
        lambda x: R.TensorListGetItem(
            input_handle=_list_of(_swap(x)),
            index=1,
            element_shape=tf.constant([-1, 3], tf.int32),
            element_dtype=tf.float32,
        ),
        XT,
    ),
    (
        "TensorListPushBack",
        _gradient(
            lambda x: tf.while_loop(
                lambda i, a: i < 3, lambda i, a: (i + 1, tf.tanh(a)), (0, x)
            )[1]
        ),
        X,
    ),
    ("LookupTableFindV2", lambda x: _table().lookup(x), IDS),
]

MIXES = [
    ("Fill", lambda x: x + tf.fill([3], tf.reduce_sum(x[:, 0])), X, "Sum"),
    ("Reshape", lambda x: tf.reshape(tf.transpose(x), tf.shape(x)), X),
    ("Reshape", lambda x: tf.reshape(x, [4, -1, 3])[:, 0], XT),
    ("Reshape", lambda x: tf.reshape(x, [-1, 4]), STATIC),
    ("Squeeze", lambda x: tf.squeeze(x), tf.TensorSpec([None, None, 1])),
    (
        "BroadcastTo",
        lambda x: tf.broadcast_to(x[None], [2, tf.shape(x)[0] * 2, 3])[0],
        X,
    ),
    ("Tile", lambda x: tf.tile(x, [tf.shape(x)[0], 1]), X),
    ("MatMul", lambda x: tf.matmul(x, x, transpose_b=True), X),
    ("MatMul", lambda x: tf.matmul(x, x, transpose_a=True), X),
    (
        "MatMul",
        lambda x: tf.matmul(x, tf.random.normal([8, 3]), transpose_b=True),
        tf.TensorSpec([8, 3]),
        None,
    ),
    (
        "BatchMatMulV2",
        lambda x: tf.matmul(_swap(x), _swap(x), transpose_b=True),
        XT,
    ),
    ("Einsum", lambda x: tf.einsum("btc,dtc->bd", x, x), XT),
    ("Einsum", lambda x: tf.einsum("btc->tc", x), XT),
    ("Einsum", lambda x: tf.einsum("bb->b", x), tf.TensorSpec([4, 4])),
    ("BiasAdd", lambda x: tf.nn.bias_add(tf.transpose(x), x[:, 0]), X),
    ("Conv2D", lambda x: tf.nn.conv2d(_swap(x), KERNEL, 1, "SAME"), IMAGE),
    (
        "Conv2D",
        lambda x: tf.nn.conv2d(
            tf.ones([1, 6, 6, 6]), x[None, None, 0], 1, "SAME"
        ),
        tf.TensorSpec([6, 6, 4]),
        None,
    ),
    ("MaxPool", lambda x: tf.nn.max_pool2d(_swap(x), 2, 1, "SAME"), IMAGE),
    ("AvgPool", lambda x: tf.nn.avg_pool2d(_swap(x), 2, 1, "SAME"), IMAGE),
    ("ResizeBilinear", lambda x: tf.image.resize(_swap(x), [3, 3]), IMAGE),
    (
        "SpaceToBatchND",
        lambda x: tf.space_to_batch(_swap(x), [2, 2], [[0, 0], [0, 0]]),
        tf.TensorSpec([4, 4, 4, 1]),
    ),
    (
        "BatchToSpaceND",
        lambda x: tf.batch_to_space(x, [2, 2], [[0, 0], [0, 0]]),
        IMAGE,
    ),
    (  # Examples lie in blocks in one, and side by side in the other.
        "ImageProjectiveTransformV3",
        lambda x: _projected(
            tf.reshape(x, [-1, 3, 6, 2]),
            tf.concat([tf.reshape(x, [-1, 72])[:, :8]] * 2, 0),
        ),
        IMAGE,
    ),
    (
        "ImageProjectiveTransformV3",
        lambda x: _projected(_swap(x), tf.reshape(x, [-1, 72])[:, :8]),
        tf.TensorSpec([6, 6, 6, 2]),
    ),
    (
        "FusedBatchNormV3",
        lambda x: tf.compat.v1.nn.fused_batch_norm(
            x, [1.0, 2.0], [0.0, 1.0], is_training=True
        )[0],
        IMAGE,
    ),
    ("Sum", lambda x: x - tf.reduce_sum(x, 0), X),
    ("Max", lambda x: x - tf.reduce_max(x), X),
    ("ArgMax", lambda x: tf.argmax(x, 0), X),
    ("Cumsum", lambda x: tf.cumsum(x), X),
    ("AddV2", lambda x: x + tf.cumsum(tf.ones_like(x)), X),
    ("AddV2", lambda x: x + tf.cumsum(tf.ones_like(x) * _size(x), 1), X),
    ("GatherV2", lambda x: tf.gather(x, _counted(x), batch_dims=1), X),
    ("GatherV2", lambda x: tf.gather(x, _wrapped(_wild(x)), batch_dims=1), X),
    ("GatherV2", lambda x: _tiled(x, tf.range(1, 5)), XT),
    ("ReverseV2", lambda x: tf.reverse(x, [0]), X),
    ("Roll", lambda x: tf.roll(x, 1, 0), X),
    ("Softmax", lambda x: tf.nn.softmax(tf.transpose(x)), X),
    ("TopKV2", lambda x: tf.math.top_k(tf.transpose(x), 1).values, X),
    (
        "InTopKV2",
        lambda x: tf.math.in_top_k(tf.zeros([3], tf.int32), tf.transpose(x), 1),
        X,
    ),
    (
        "ReverseSequence",
        lambda x: tf.reverse_sequence(
            x, tf.zeros([4], tf.int32), seq_axis=0, batch_axis=1
        ),
        XT,
    ),
    (
        "Cholesky",
        lambda x: tf.linalg.cholesky(_swap(x)),
        tf.TensorSpec([3, 3, 3]),
    ),
    ("MatrixDiagV3", lambda x: tf.linalg.diag(tf.transpose(x)), X),
    (
        "MatrixDiagV3",
        lambda x: R.MatrixDiagV3(
            diagonal=x, k=[-1, 1], num_rows=3, num_cols=3, padding_value=0.0
        ),
        tf.TensorSpec([3, 3]),
    ),
    (
        "AdjustContrastv2",
        lambda x: tf.image.adjust_contrast(x, 2.0),
        tf.TensorSpec([None, 6, 2]),
    ),
    ("ConcatV2", lambda x: tf.concat([x[:, :1], tf.zeros([1, 1])], 0), X),
    ("ConcatV2", lambda x: _twice_added(x, _rows(x), _rows(x) * 2), X),
    ("ConcatV2", lambda x: _twice_added(x, _rows(x), _rows(x) + 1), X),
    (
        "UnsortedSegmentSum",
        lambda x: _twice_added(x, _rows(x) + 1, _rows(x) + 1),
        X,
    ),
    (
        "Pack",
        lambda x: tf.stack([x, tf.cast(tf.range(24), x.dtype)], 1),
        tf.TensorSpec([24]),
    ),
    ("Unpack", lambda x: tf.unstack(x)[0], STATIC),
    ("Split", lambda x: tf.split(x, 2)[0], STATIC),
    ("Pad", lambda x: tf.pad(x, [[1, 0], [0, 0]]), X),
    ("StridedSlice", lambda x: x[0], X),
    ("StridedSlice", lambda x: x[1:], X),
    ("StridedSlice", lambda x: x[::-1], X),
    ("StridedSlice", lambda x: tf.concat([x, -x], 0)[1:][: tf.shape(x)[0]], X),
    ("Slice", lambda x: tf.slice(x, [1, 0], [-1, 2]), X),
    (
        "StridedSliceGrad",
        lambda x: R.StridedSliceGrad(
            shape=[9, 3], begin=[1, 0], end=[5, 3], strides=[1, 1], dy=x
        ),
        tf.TensorSpec([4, 3]),
    ),
    ("GatherV2", lambda x: tf.gather(x, [0, 0]), X),
    ("GatherV2", lambda x: tf.gather(x, _own(x)), X),
    ("GatherV2", lambda x: tf.gather(x, _wild(x), batch_dims=1), X),
    (
        "GatherV2",
        lambda x: tf.gather(x, tf.minimum(_wild(x), 2), batch_dims=1),
        X,
    ),
    (
        "GatherV2",
        lambda x: tf.gather(x, tf.clip_by_value(_wild(x), 0, 3), batch_dims=1),
        X,
    ),
    (
        "GatherV2",
        lambda x: tf.gather(
            x, tf.cast(tf.clip_by_value(x, 0.0, 2.0), tf.int32), batch_dims=1
        ),
        X,
    ),
    ("GatherV2", lambda x: tf.gather(tf.range(9.0), _rows(x)), X),
    ("GatherV2", lambda x: tf.gather(x, tf.reverse(_rows(x), [0])), X, None),
    ("GatherNd", lambda x: tf.gather_nd(x, _wild(x)[:, :1], batch_dims=1), X),
    ("GatherNd", lambda x: tf.gather_nd(x, _own(x)[:, None]), X),
    (
        "UnsortedSegmentSum",
        lambda x: tf.math.unsorted_segment_sum(x, _own(x), 3),
        X,
    ),
    (
        "UnsortedSegmentSum",
        lambda x: tf.reshape(
            tf.math.unsorted_segment_sum(
                x[:, 0], _rows(x) * 4 + _wild(x)[:, 0], tf.shape(x)[0] * 4
            ),
            [-1, 4],
        ),
        X,
    ),
    ("ScatterNd", lambda x: tf.scatter_nd(_own(x)[:, None], x, [3, 3]), X),
    (
        "ScatterNd",
        lambda x: tf.scatter_nd(
            tf.stack([_rows(x), _wild(x)[:, 0]], -1), x[:, 0], tf.shape(x)
        ),
        X,
    ),
    (
        "TensorScatterAdd",
        lambda x: tf.tensor_scatter_nd_add(
            tf.zeros([3, 3]), _own(x)[:, None], x
        ),
        X,
    ),
    (
        "OneHot",
        lambda x: tf.one_hot([1, 2], 3, x[0, 0], 0.0),
        X,
        "StridedSlice",
    ),
    (
        "DenseBincount",
        lambda x: tf.math.bincount(
            tf.reshape(x, [-1]), minlength=5, maxlength=5
        ),
        IDS,
    ),
    (
        "SparseSoftmaxCrossEntropyWithLogits",
        lambda x: tf.nn.sparse_softmax_cross_entropy_with_logits(
            [0, 1, 2], tf.transpose(x)
        ),
        X,
    ),
    (
        "StatelessRandomUniformV2",
        lambda x: (
            x * tf.random.stateless_uniform([3], tf.cast(x[:2, 0], tf.int32))
        ),
        X,
        "StridedSlice",
    ),
    ("RandomShuffle", lambda x: tf.random.shuffle(x), X),
    (
        "StatelessRandomGammaV3",
        lambda x: tf.random.stateless_gamma(
            tf.shape(x), [1, 2], alpha=1.0 + tf.cast(_rows(x)[:, None], x.dtype)
        ),
        X,
        None,
    ),
    ("PartitionedCall", lambda x: tf.function(tf.cumsum)(x), X, "Cumsum"),
    (
        "StatelessIf",
        lambda x: tf.cond(tf.reduce_max(x) > 9, lambda: x, lambda: -x),
        X,
    ),
    (
        "StatelessIf",
        lambda x: tf.cond(tf.shape(x)[0] > 9, lambda: x, lambda: -x),
        X,
    ),
    (
        "StatelessCase",
        lambda x: tf.switch_case(_wild(x)[0, 0], [lambda: x, lambda: -x]),
        X,
        None,
    ),
    (
        "StatelessWhile",
        lambda x: tf.while_loop(
            lambda i, a: tf.reduce_max(a) > 1,
            lambda i, a: (i + 1, a / 2),
            (0, x),
        )[1],
        X,
    ),
    (
        "StatelessWhile",
        lambda x: tf.while_loop(
            lambda i, a: i < tf.shape(x)[0], lambda i, a: (i + 1, a / 2), (0, x)
        )[1],
        X,
    ),
    (
        "TensorListGetItem",
        lambda x: R.TensorListGetItem(
            input_handle=_list_of(x),
            index=1,
            element_shape=tf.constant([-1, 3], tf.int32),
            element_dtype=tf.float32,
        ),
        XT,
    ),
    ("Placeholder", lambda x: x + tf.compat.v1.placeholder(tf.float32, [3]), X),
    (
        "EagerPyFunc",
        lambda x: tf.ensure_shape(
            tf.py_function(lambda a: a, [x], tf.float32), [None, 3]
        ),
        X,
    ),
]


def _ids(cases):
    return [f"{name}-{i}" for i, (name, *_) in enumerate(cases)]


@pytest.mark.parametrize("case", KEEPS, ids=_ids(KEEPS))
def test_examples_that_stay_apart(case):
    name, function, spec = case
    types = graphs.proved(function, spec, allowed=[graphs.Category.ABORT])
    assert name in types
    assert rule_table.find(name) is not None


@pytest.mark.parametrize("case", MIXES, ids=_ids(MIXES))
def test_examples_that_meet(case):
    name, function, spec, *other = case
    finding = graphs.refused(function, spec, may_be_free=True)
    expected = other[0] if other else name
    if expected is not None:
        assert finding.operation == expected, str(finding)
    assert finding.reason.endswith(".") and finding.way_out.endswith(".")
