"""Which diagonals are replaced is nothing for the data to decide."""

import numpy as np
import tensorflow as tf

from tests.independence import graphs

TABLE = np.ones((9, 9), np.float32)


def test_the_data_decide_no_diagonal():
    def function(x):
        own = tf.argmax(x, -1, tf.int32)
        found = tf.raw_ops.MatrixSetDiagV3(
            input=TABLE, diagonal=np.zeros((3, 9), np.float32), k=own
        )
        return x * tf.reduce_sum(found)

    finding = graphs.refused(function, tf.TensorSpec([2, 3]))
    assert finding.operation == "MatrixSetDiagV3"
