"""Descriptions of the data that `fit` is given."""

import warnings

import numpy as np
import pytest
import tensorflow as tf

from tf_dpfp import accounting
from tf_dpfp.sampling import pipelines
from tf_dpfp.sampling import poisson_batches
from tf_dpfp.sampling import registry
from tf_dpfp.sampling import stratified_batches

X, Y = np.zeros((24, 2), "float32"), np.arange(24) % 2


def _poisson():
    return poisson_batches(X, Y, expected_batch_size=8)


@pytest.mark.parametrize(
    "derive",
    [
        lambda d: d.prefetch(1),
        lambda d: d.map(lambda x, y: (x, y)).take(2),
        lambda d: tf.data.Dataset.zip(d, d),
    ],
)
def test_lost_proofs_are_warned_of(derive):
    # Epsilon would be many times what was planned, and nobody would say so.
    derived = derive(_poisson())
    assert registry.is_derived(derived)
    with pytest.warns(UserWarning, match="nothing is proved of how such"):
        found = pipelines.describe({"x": derived}, need_batch_size=False)
    assert found.sampling == accounting.UnknownSampling()


def test_lost_draws_of_representations_are_warned_of():
    drawn = stratified_batches(X, Y, draw_size=4, labels="public")
    with pytest.warns(UserWarning, match="nothing is proved of how such"):
        pipelines.describe_representations({"x": drawn.prefetch(1)})


def test_other_data_are_not_warned_of():
    ordinary = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8).prefetch(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for x in (_poisson(), ordinary):
            assert not registry.is_derived(x)
            pipelines.describe({"x": x}, need_batch_size=False)
        drawn = stratified_batches(X, Y, draw_size=4, labels="public")
        pipelines.describe_representations({"x": drawn})
