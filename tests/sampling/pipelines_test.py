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


CUT_ANEW = {
    "unbatch": lambda d: d.unbatch().batch(8),
    "unbatch and map": lambda d: d.unbatch().map(lambda x: x).batch(8).take(3),
    "rebatch": lambda d: d.rebatch(8),
    "flat_map": lambda d: d.flat_map(
        tf.data.Dataset.from_tensor_slices
    ).padded_batch(8),
    "interleave": lambda d: d.interleave(
        tf.data.Dataset.from_tensor_slices, cycle_length=2
    ).batch(8),
    "batch": lambda d: d.batch(2),
    "window": lambda d: d.window(2),
    "scan": lambda d: d.scan(0, lambda state, x: (state, x)),
    "concatenate": lambda d: d.concatenate(d.rebatch(4)),
}


@pytest.mark.parametrize("way", CUT_ANEW)
def test_batches_that_were_drawn_and_cut_anew_are_refused(way):
    """An example may be several times in one of them."""
    drawn = poisson_batches(np.arange(8.0), sampling_rate=0.9)
    derived = CUT_ANEW[way](drawn)
    with pytest.raises(ValueError, match="cuts batches that this package drew"):
        pipelines.describe({"x": derived}, False)
    with pytest.raises(ValueError, match="cuts batches that this package drew"):
        pipelines.describe_representations({"x": derived})
    examples = tf.data.Dataset.range(8)
    assert pipelines.describe(
        {"x": CUT_ANEW[way](examples.batch(4))}, False
    ).sampling == (accounting.UnknownSampling())


@pytest.mark.parametrize(
    "derive",
    [
        lambda d: d.prefetch(1).map(lambda x: x).take(2).repeat(2).cache(),
        lambda d: d.shuffle(3).filter(lambda x: tf.size(x) > 0).shard(2, 0),
        lambda d: tf.data.Dataset.sample_from_datasets([d, d]),
    ],
)
def test_drawn_batches_that_stay_whole_are_of_unknown_sampling(derive):
    drawn = poisson_batches(np.arange(8.0), sampling_rate=0.9)
    with pytest.warns(UserWarning, match="was made of batches that"):
        found = pipelines.describe({"x": derive(drawn)}, False)
    assert found.sampling == accounting.UnknownSampling()
