"""Sizes that are lost where operands meet."""

import tensorflow as tf

from tests.independence import graphs


def test_an_unknown_size_does_not_hide_the_batch_size():
    def function(x, rows):
        ones = tf.ones([1, rows])
        # One number, in a size that no graph knows.
        one = tf.unique(tf.constant([1.0])).y[None]
        return tf.reduce_sum(tf.where(x[:, :1] > 0, ones, one), 1)

    finding = graphs.refused(lambda x: function(x, tf.shape(x)[0]), graphs.X)
    assert finding.operation == "SelectV2", str(finding)
    graphs.proved(lambda x: function(x, 7), graphs.X)
