"""The proof as a caller meets it: batches, results, messages."""

import pytest
import tensorflow as tf

from tests.independence import graphs
from tf_dpfp.independence import Dependence
from tf_dpfp.independence import findings

X, XT = graphs.X, graphs.XT


def test_dependences():
    table = [[1.0, 2.0, 3.0]]
    proof, _ = graphs.prove(
        lambda x: [
            x,
            tf.zeros_like(x),
            tf.constant(table),
            tf.transpose(x),
            tf.concat([x, x], 0),
            tf.shape(x)[0],
            tf.range(tf.shape(x)[0]),
            tf.ones_like(tf.concat([x, x], 0)),
            tf.ones([tf.shape(x)[0]] * 2),
            tf.reduce_sum(x),
        ],
        X,
        may_be_free=True,
    )
    kinds = [d.name for d in proof.dependences]
    assert kinds == ["PER_EXAMPLE", "PER_EXAMPLE", "FREE"] + ["UNPROVED"] * 7
    assert len(proof.findings) == 7
    assert {f.subject for f in proof.findings} == {
        f"result {i}" for i in range(3, 10)
    }


def test_free_results_only_where_they_may_be():
    def table(x):
        return tf.constant([[1.0, 2.0, 3.0]])

    free, _ = graphs.prove(table, X, may_be_free=True)
    assert not free.findings and free.dependences == (Dependence.FREE,)
    finding = graphs.refused(table, X, may_be_free=False)
    assert "no row for each" in finding.reason


def test_known_batch_size_is_told():
    spec = tf.TensorSpec([8, 3], tf.float32)
    proof, _ = graphs.prove(lambda x: tf.nn.softmax(x), spec)
    assert proof.batch_size == 8 and not proof.findings
    graphs.refused(lambda x: x - tf.reduce_mean(x, 0), spec)
    graphs.refused(lambda x: tf.matmul(x, x, transpose_b=True), spec)
    # Times as many as examples: told apart by where they lie.
    square = tf.TensorSpec([8, 8], tf.float32)
    graphs.proved(lambda x: tf.transpose(tf.cumsum(tf.transpose(x))), square)
    graphs.refused(lambda x: tf.cumsum(x), square)
    graphs.refused(lambda x: x + tf.transpose(x), square)


def test_a_result_is_not_proved_for_want_of_users():
    # Axes that nobody adds up over tell a batch of one; three ones that nobody
    # adds to a batch are three for every batch.
    def axes(x):
        shape = [graphs.size(x)]
        return tf.raw_ops.BroadcastGradientArgs(s0=shape, s1=[*shape, 1]).r1

    def repeated(x):
        return tf.broadcast_to(tf.ones([3]), tf.shape(x)[:1])

    proof, _ = graphs.prove(
        lambda x: [axes(x), repeated(x)], X, may_be_free=True
    )
    assert proof.dependences == (Dependence.UNPROVED,) * 2


def test_batch_of_one():
    spec = tf.TensorSpec([1, 3], tf.float32)
    graphs.proved(lambda x: tf.reshape(x, [1, 3, 1]) * 2, spec)
    graphs.refused(lambda x: tf.broadcast_to(x, [5, 3]), spec)


@pytest.mark.parametrize(
    "specs, words",
    [
        ([], "needs the tensors of a batch"),
        ([tf.TensorSpec([])], "first axis"),
        ([tf.TensorSpec(None)], "first axis"),
        ([tf.TensorSpec([3, 2]), tf.TensorSpec([4, 2])], "equally many"),
    ],
)
def test_batches_that_are_none(specs, words):
    with pytest.raises(ValueError, match=words):
        graphs.prove(lambda *x: [tf.zeros([2])], *specs)


def test_unknown_sizes():
    spec = tf.TensorSpec([None, None, 3], tf.float32)
    graphs.proved(lambda x: tf.nn.softmax(x) + x, spec)
    graphs.proved(lambda x: tf.reshape(x, [tf.shape(x)[0], -1]), spec)
    graphs.proved(
        lambda x: tf.reshape(tf.reshape(x, [-1, 3]) * 2, tf.shape(x)), spec
    )
    graphs.proved(lambda x: x / tf.cast(tf.shape(x)[1], x.dtype), spec)
    # A square by chance would be another matter.
    graphs.refused(lambda x: x + tf.transpose(x, [1, 0, 2]), spec)
    graphs.refused(lambda x: tf.reshape(x, [tf.shape(x)[1], -1, 3])[:, 0], spec)


def test_squeeze_of_a_batch_of_one():
    def squeezed(x):
        return tf.squeeze(x[:, None])

    finding = graphs.refused(squeezed, X)
    assert "axis" in finding.way_out
    graphs.proved(squeezed, X, least_rows=2)


def test_message_names_layer_operation_reason_and_way_out():
    def named(x):
        with tf.name_scope("model"), tf.name_scope("router_1"):
            return tf.cumsum(x, name="place")

    message = str(graphs.refused(named, X))
    assert "result 0: layer 'model/router_1', operation Cumsum" in message
    assert "later ones see earlier ones" in message
    assert "every axis but the first" in message


@pytest.mark.parametrize(
    "name, layers, expected",
    [
        ("model/dense_1/MatMul", (), "model/dense_1"),
        ("MatMul", (), ""),
        ("gradient_tape/model/dense/MatMul/Sum", ("dense",), "model/dense"),
        ("model/dense_1/a/b/c", ("dense",), "model/dense_1"),
        ("model/dense_1/a/b/c", ("dense_1",), "model/dense_1"),
        ("other/MatMul", ("dense",), ""),
    ],
)
def test_layer_of(name, layers, expected):
    assert findings.layer_of(name, layers) == expected


def test_time_is_told():
    proof, types = graphs.prove(lambda x: tf.nn.softmax(x) + 1, X)
    assert proof.seconds > 0
    assert 0 < proof.operations <= 6
