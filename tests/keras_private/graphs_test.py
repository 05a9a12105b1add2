"""Operations of traced functions, by TensorFlow's registry."""

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
