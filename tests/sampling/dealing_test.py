import numpy as np
import pytest
import tensorflow as tf

from tf_dpfp import sampling


def _batches(sizes):
    """Batches of the given sizes; every example is a number of its own."""
    starts = np.cumsum([0, *sizes])

    def generate():
        for start, size in zip(starts, sizes, strict=False):
            rows = np.arange(start, start + size)
            yield {"a": rows, "b": np.stack([rows, -rows], 1)}, rows * 10

    spec = tf.TensorSpec([None], tf.int64)
    pair = tf.TensorSpec([None, 2], tf.int64)
    return tf.data.Dataset.from_generator(
        generate, output_signature=({"a": spec, "b": pair}, spec)
    )


@pytest.mark.parametrize("replicas", [1, 2, 3, 4, 7])
def test_every_example_reaches_exactly_one_replica(replicas):
    sizes = [5, 0, 1, 8, 2, 0, 13, 3]
    dealt = sampling.deal(_batches(sizes), replicas)
    assert dealt.cardinality() == tf.data.INFINITE_CARDINALITY
    pieces = iter(dealt.as_numpy_iterator())
    for _ in range(2):  # It begins anew.
        start = 0
        for size in sizes:
            batch = [next(pieces) for _ in range(replicas)]
            lengths = [len(y) for _, y in batch]
            assert max(lengths) - min(lengths) <= 1
            rows = np.concatenate([x["a"] for x, _ in batch])
            np.testing.assert_array_equal(rows, np.arange(start, start + size))
            for x, y in batch:
                np.testing.assert_array_equal(x["b"][:, 0], x["a"])
                np.testing.assert_array_equal(x["b"][:, 1], -x["a"])
                np.testing.assert_array_equal(y, x["a"] * 10)
            start += size


@pytest.mark.parametrize("replicas", [1, 2, 3, 4])
def test_static_batches_stay_static_and_whole(replicas):
    x = np.arange(40)
    batches = sampling.poisson_batches(
        x, x, sampling_rate=0.3, padded="static", capacity=32, seed=1
    )
    dealt = sampling.deal(batches, replicas, static=True)
    rows = -(-32 // replicas)
    assert [s.shape[0] for s in dealt.element_spec] == [rows] * 3
    pieces = iter(dealt.as_numpy_iterator())
    again = sampling.poisson_batches(
        x, x, sampling_rate=0.3, padded="static", capacity=32, seed=1
    )
    for x_whole, _, weight_whole in again.as_numpy_iterator():
        batch = [next(pieces) for _ in range(replicas)]
        present = [x[weight > 0] for x, _, weight in batch]
        np.testing.assert_array_equal(
            np.concatenate(present), x_whole[weight_whole > 0]
        )


def test_a_component_that_is_one_tensor_stays_one():
    data = tf.data.Dataset.range(6).batch(6)
    pieces = list(sampling.deal(data, 2).take(2).as_numpy_iterator())
    np.testing.assert_array_equal(pieces, [[0, 1, 2], [3, 4, 5]])


def test_what_has_no_axis_over_examples_is_refused():
    data = tf.data.Dataset.from_tensors((tf.zeros([4, 2]), 1.0))
    with pytest.raises(ValueError, match="no first axis over examples"):
        sampling.deal(data, 2)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_shards_are_disjoint_and_cover_everything(count):
    x = np.arange(20)
    batches = sampling.poisson_batches(x, sampling_rate=1.0)
    shards = [sampling.sampled_shard(batches, i, count) for i in range(count)]
    drawn = np.concatenate([next(iter(data)).numpy() for data, _ in shards])
    np.testing.assert_array_equal(np.sort(drawn), x)
    (law,) = {info for _, info in shards}
    assert law == sampling.sampling_of(batches)


def test_shards_together_sample_every_example_independently_at_the_rate():
    rate, count, steps, population = 0.2, 3, 3000, 25
    batches = sampling.poisson_batches(
        np.arange(population), sampling_rate=rate, steps_per_epoch=steps
    )
    drawn = np.zeros([steps, population], bool)
    for index in range(count):
        shard, _ = sampling.sampled_shard(batches, index, count)
        for step, rows in enumerate(shard.as_numpy_iterator()):
            assert len(set(rows)) == len(rows)
            assert set(rows % count) <= {index}
            drawn[step, rows] = True
    deviation = np.sqrt(rate * (1 - rate) / steps)
    assert np.abs(drawn.mean(0) - rate).max() < 5 * deviation
    # Of the same step, and of one step and the next, in any two shards.
    centred = (drawn - rate) / np.sqrt(rate * (1 - rate))
    for other in (centred, np.roll(centred, 1, axis=0)):
        products = centred.T @ other / steps
        if other is centred:
            np.fill_diagonal(products, 0.0)
        assert np.abs(products).max() < 5 / np.sqrt(steps)


def test_seeded_shards_repeat_and_differ():
    def rows(seed, index):
        batches = sampling.poisson_batches(
            np.arange(60), sampling_rate=0.5, seed=seed, steps_per_epoch=4
        )
        shard, info = sampling.sampled_shard(batches, index, 2)
        assert info.seeded
        return [tuple(sorted(b // 2)) for b in shard.as_numpy_iterator()]

    assert rows(4, 1) == rows(4, 1)
    assert not set(rows(4, 0)) & set(rows(4, 1))


def test_overflow_of_any_shard_is_accounted_for():
    def law(count, capacity=None):
        batches = sampling.poisson_batches(
            np.arange(101),
            np.arange(101),
            sampling_rate=0.3,
            padded="static",
            capacity=capacity,
        )
        shard, info = sampling.sampled_shard(batches, 0, count)
        assert shard.element_spec[0].shape[0] == info.capacity
        return info

    given = law(2, capacity=44)
    assert given.capacity == 22
    from scipy import stats

    # 51 examples in the larger shard, and one more next door.
    expected = 2 * stats.binom.sf(22, 52, 0.3)
    assert given.sampling.overflow_probability == pytest.approx(expected)
    assert law(2).sampling.overflow_probability <= 2e-15
    assert law(2).expected_batch_size == pytest.approx(0.3 * 101)
    assert law(200).capacity == 8  # Most shards hold one example, or none.


def test_only_a_data_set_made_here_has_shards():
    batches = sampling.poisson_batches(np.arange(9), sampling_rate=0.5)
    with pytest.raises(ValueError, match="poisson_batches"):
        sampling.sampled_shard(batches.take(1), 0, 2)
    with pytest.raises(ValueError, match="index=2"):
        sampling.sampled_shard(batches, 2, 2)
    empty, _ = sampling.sampled_shard(batches, 11, 12)
    assert [len(b) for b in empty.as_numpy_iterator()] == [0, 0]
