"""What is known of data sets, and of those derived from them."""

import pytest
import tensorflow as tf

from tf_dpfp import accounting
from tf_dpfp.sampling import registry


def _known(draws, multiplicity):
    dataset = tf.data.Dataset.range(3)
    info = registry.SamplingInfo(
        accounting.PoissonSampling(0.1),
        2.0,
        20,
        3,
        draws=draws,
        multiplicity=multiplicity,
    )
    shards = registry.Shards(lambda *given: given, lambda key: key)
    return registry.register(dataset, info, shards), info


def test_a_derived_data_set_inherits_no_claim_and_the_most_draws():
    few, info = _known(1, 5)
    many, _ = _known(4, 2)
    assert registry.sampling_of(few) is info
    assert (registry.draws_of(few), registry.multiplicity_of(few)) == (1, 5)
    zipped = tf.data.Dataset.zip(few, many)
    for derived in (
        zipped,
        zipped.map(lambda *x: x).take(2),
        few.concatenate(many),
    ):
        assert registry.sampling_of(derived) is None
        assert registry.draws_of(derived) == 4
        assert registry.multiplicity_of(derived) == 5
        assert registry.is_of_draws(derived)
        with pytest.raises(ValueError, match="was made of drawn batches"):
            registry.refuse_drawn(derived)
        with pytest.raises(ValueError, match="itself, can be drawn from"):
            registry.sampled_shard(derived, 0, 1)
        with pytest.raises(ValueError, match="itself, can be drawn from"):
            registry.examples_digest(derived, b"key")
    for unknown in (tf.data.Dataset.range(3), [1], None):
        assert registry.sampling_of(unknown) is None
        assert registry.draws_of(unknown) == 1
        assert registry.multiplicity_of(unknown) == 1
    with pytest.raises(ValueError, match="already consists of drawn"):
        registry.refuse_drawn(few)


def test_shards_are_of_one_worker_each():
    dataset, _ = _known(1, 1)
    assert registry.sampled_shard(dataset, 2, 3) == (2, 3)
    assert registry.examples_digest(dataset, b"key") == b"key"
    for index, count in ((3, 3), (-1, 3), (0, 0)):
        with pytest.raises(ValueError, match="index|count"):
            registry.sampled_shard(dataset, index, count)
