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
