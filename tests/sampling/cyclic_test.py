"""Batches from one part of the data after the other."""

import numpy as np
import pytest
from scipy import stats

import tf_dpfp
from tf_dpfp import accounting
from tf_dpfp.sampling import cyclic
from tf_dpfp.sampling import registry

SIZE, PARTS = 60, 3
X = np.arange(SIZE)


def batches(**kwargs):
    arguments = {"expected_batch_size": 10, "steps_per_epoch": 7} | kwargs
    return tf_dpfp.cyclic_poisson_batches(X, **arguments)


def in_parts(dataset, parts=PARTS):
    return registry.sampling_of(dataset).cyclic.batches_of(parts)


def drawn(dataset, iterations=1):
    return [
        (int(element.part), element.batch.numpy())
        for _ in range(iterations)
        for element in dataset
    ]


def test_parts_come_in_turn_over_iterations_and_share_no_example():
    found = drawn(in_parts(batches()), iterations=60)
    # 7 batches an iteration: the next one goes on where it ended.
    assert [part for part, _ in found] == [t % PARTS for t in range(420)]
    members = [
        set(np.concatenate([b for part, b in found if part == p]).tolist())
        for p in range(PARTS)
    ]
    assert sum(map(len, members)) == SIZE == len(set.union(*members))
    for _, batch in found:
        assert len(set(batch.tolist())) == len(batch)


def test_each_example_of_a_part_is_drawn_by_a_coin_of_its_own():
    rounds = 1500
    found = drawn(in_parts(batches(steps_per_epoch=PARTS * rounds)))
    taken = np.zeros((rounds * PARTS, SIZE), bool)
    for row, (_, batch) in zip(taken, found, strict=True):
        row[batch] = True
    part_of = np.array([found[np.argmax(taken[:, i])][0] for i in range(SIZE)])
    own = np.stack([taken[part_of[i] :: PARTS, i] for i in range(SIZE)], axis=1)
    # At three times the rate of the whole, in every third step, in no other.
    assert taken.sum() == own.sum()
    count = stats.binom(rounds * SIZE, 0.5)
    assert 1e-6 < count.cdf(own.sum()) < 1 - 1e-6
    together = np.corrcoef(own.T)[np.triu_indices(SIZE, 1)]
    assert np.max(np.abs(together)) < 6 / np.sqrt(rounds)
    in_a_row = np.mean(own[1:] & own[:-1])
    assert abs(in_a_row - 0.25) < 6 * np.sqrt(0.1875 / own.size)


def test_an_example_left_out_moves_no_other_to_another_part():
    """Parts are coins: sizes vary, as those of equal parts would not."""
    sizes = np.array([len(cyclic.assign(90, 3, None)[0]) for _ in range(2000)])
    expected = stats.binom(90, 1 / 3)
    assert abs(sizes.mean() - 30) < 6 * expected.std() / np.sqrt(2000)
    assert sizes.std() == pytest.approx(expected.std(), rel=0.1)
    pairs = np.zeros((3, 3))
    for _ in range(3000):
        part = np.zeros(2, int)
        for number, members in enumerate(cyclic.assign(2, 3, None)):
            part[members] = number
        pairs[tuple(part)] += 1
    assert stats.chisquare(pairs.ravel()).pvalue > 1e-6


def test_the_sampling_of_a_step_is_that_of_its_part():
    info = registry.sampling_of(batches())
    assert info.sampling == accounting.PoissonSampling(1 / 6)
    assert info.cyclic.sampling_of(3) == accounting.CyclicPoissonSampling(
        0.5, parts=3
    )
    assert info.cyclic.sampling_of(1) == info.sampling
    assert info.cyclic.most_parts == 6
    assert info.expected_batch_size == 10


def test_elsewhere_it_is_the_data_set_of_poisson_batches():
    given = {"expected_batch_size": 10, "steps_per_epoch": 7, "seed": 3}
    mine = batches(bands=3, seed=3)
    theirs = tf_dpfp.poisson_batches(X, **given)
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_seed_repeats_parts_and_draws_and_each_call_is_another_without():
    one, two = (drawn(in_parts(batches(seed=5)), 2) for _ in range(2))
    assert all(
        np.array_equal(a[1], b[1]) for a, b in zip(one, two, strict=True)
    )
    assert not all(
        np.array_equal(a[1], b[1])
        for a, b in zip(one[:7], one[7:], strict=True)
    )
    dataset = batches()
    first, second = drawn(in_parts(dataset)), drawn(in_parts(dataset))
    assert any(
        not np.array_equal(a[1], b[1])
        for a, b in zip(first, second, strict=True)
    )


def test_trainings_on_one_seeded_data_set_draw_independently():
    """Else an example would be in the same steps of all of them, or of none."""
    dataset = batches(seed=5, sampling_rate=0.3, steps_per_epoch=30)
    plain = [batch.numpy() for batch in dataset]
    first, second = (drawn(in_parts(dataset)) for _ in range(2))
    parts = [
        [set().union(*(b for p, b in each if p == part)) for part in range(3)]
        for each in (first, second)
    ]
    assert parts[0] == parts[1]
    for one, other in (
        (first, second),
        (first, [(0, batch) for batch in plain]),
    ):
        same = [
            np.array_equal(np.sort(a), np.sort(b))
            for (_, a), (_, b) in zip(one, other, strict=True)
        ]
        assert not any(same)
    # Coins of a pair of steps: both show an example at the rate squared.
    both = [
        len(set(a) & set(b)) / len(parts[0][part])
        for (part, a), (_, b) in zip(first, second, strict=True)
    ]
    assert np.mean(both) == pytest.approx(0.9**2, abs=0.06)


def test_more_parts_than_examples_give_empty_batches():
    few = tf_dpfp.cyclic_poisson_batches(
        X[:2], sampling_rate=0.01, expected_batch_size=1, steps_per_epoch=50
    )
    sizes = [len(batch) for _, batch in drawn(in_parts(few, 50))]
    assert max(sizes) <= 2 and min(sizes) == 0


def test_batches_keep_their_structure_and_map_fn():
    dataset = tf_dpfp.cyclic_poisson_batches(
        {"a": X.astype("float32")},
        X,
        np.ones(SIZE, "float32"),
        expected_batch_size=20,
        map_fn=lambda x, y, w: ({"a": x["a"] * 2}, y, w),
    )
    for element in in_parts(dataset):
        x, y, weight = element.batch
        np.testing.assert_array_equal(x["a"], 2 * y.numpy().astype("float32"))
        assert weight.shape == y.shape


def test_nothing_is_claimed_of_what_is_derived():
    assert registry.sampling_of(batches().take(2)) is None
    with pytest.raises(ValueError, match="drawn batches"):
        tf_dpfp.cyclic_poisson_batches(batches(), expected_batch_size=2)


@pytest.mark.parametrize(
    "wrong", [{"bands": 0}, {"bands": 2.5}, {"bands": 7}, {"seed": -1}]
)
def test_refuses_wrong_arguments(wrong):
    with pytest.raises(ValueError, match="Received"):
        batches(**wrong)


def test_the_last_part_may_be_drawn_whole():
    assert registry.sampling_of(batches(bands=6)).cyclic.sampling_of(
        6
    ).sampling_rate == pytest.approx(1.0)
