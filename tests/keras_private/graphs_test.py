"""Operations of traced functions, by TensorFlow's registry."""

import pytest
import tensorflow as tf

from tf_dpfp.keras_private import graphs


def test_operations_of_called_functions_are_listed():
    tf.random.set_seed(None)
    kept = tf.Variable(0.0)

    @tf.function
    def inner(x):
        return kept.assign_add(x)

    @tf.function
    def outer(x):
        x = tf.while_loop(lambda i: i < 3.0, lambda i: (i + inner(x),), [x])[0]
        return x + tf.random.uniform([], seed=4) + tf.random.normal([])

    spec = tf.TensorSpec([], tf.float32)
    found = graphs.operations(outer.get_concrete_function(spec))
    kinds = {node.kind: node for node in found}
    assert kinds["AssignAddVariableOp"].has_state
    assert not kinds["AddV2"].has_state and kinds["AddV2"].seed is None
    assert kinds["RandomUniform"].seed[1] == 4
    assert kinds["RandomStandardNormal"].seed == (0, 0)


def test_code_that_is_no_graph_has_state_whatever_it_says():
    @tf.function
    def python(x):
        return tf.numpy_function(lambda a: a, [x], tf.float32, stateful=False)

    spec = tf.TensorSpec([], tf.float32)
    found = graphs.operations(python.get_concrete_function(spec))
    (node,) = (node for node in found if node.kind == "PyFuncStateless")
    assert node.has_state
    with tf.Graph().as_default() as graph:
        tf.raw_ops.Assign(
            ref=tf.raw_ops.VariableV2(shape=[], dtype=tf.float32), value=1.0
        )
    (written,) = (n for n in graph.as_graph_def().node if n.op == "Assign")
    assert graphs._node(written).has_state


def test_operations_are_made_as_tensorflow_makes_them():
    with tf.Graph().as_default():
        x = tf.compat.v1.placeholder(tf.float32, [None, 3])
        stand_in = graphs.placeholder(x.dtype, x.shape)
        there = tf.linalg.matmul(x, x, transpose_a=True).op
        attributes = dict(there.node_def.attr)
        made = graphs.make(
            there.type, [stand_in, stand_in], [x.dtype], attributes
        )
        assert stand_in.shape.as_list() == [None, 3]
        assert made.outputs[0].shape == there.outputs[0].shape == [3, 3]
        assert dict(made.node_def.attr) == attributes
        with pytest.raises(ValueError, match="must be equal"):
            attributes["transpose_b"].b = True
            attributes["transpose_a"].b = False
            other = graphs.placeholder(x.dtype, tf.TensorShape([5, 4]))
            graphs.make(there.type, [stand_in, other], [x.dtype], attributes)
