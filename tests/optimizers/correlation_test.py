"""What steps of one chain of correlated noise must share."""

import dataclasses

import keras
import tensorflow as tf

from tf_dpfp import clipping
from tf_dpfp import optimizers
from tf_dpfp.optimizers import correlation


def test_other_clip_norms_are_another_layout():
    """Noise takes back that of earlier steps, so it must be as large."""
    variables = [keras.Variable(tf.zeros([3])) for _ in range(2)]
    clipped = optimizers.ClippedGradients(
        sums=[tf.zeros([3])] * 2,
        variables=variables,
        groups=(clipping.Group("both", (0, 1), 1.0, 6),),
        regularization=[None] * 2,
    )
    apart = dataclasses.replace(
        clipped,
        groups=tuple(
            clipping.Group(str(i), (i,), 0.5**0.5, 3) for i in range(2)
        ),
    )
    same = dataclasses.replace(clipped, sums=[tf.ones([3])] * 2)
    assert correlation._layout(clipped) == correlation._layout(same)
    assert correlation._layout(clipped) != correlation._layout(apart)
