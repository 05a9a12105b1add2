"""Batches that are drawn by person: who, which examples, in what form."""

import datetime

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

import tf_dpfp
from tf_dpfp import sampling
from tf_dpfp.sampling import persons as persons_lib
from tf_dpfp.sampling import source as source_lib
from tf_dpfp.sampling import sources

# Persons a, b, c, d with 1, 2, 3 and 6 examples, in any order.
IDS = np.array(list("dcbdadcdbcdd"))
X = np.arange(12.0, dtype=np.float32)
Y = np.arange(12) % 3


def _batches(ids=IDS, most=3, rate=0.5, steps=40, seed=0, **kwargs):
    return tf_dpfp.poisson_batches(
        X,
        Y,
        sampling_rate=rate,
        expected_batch_size=2,
        steps_per_epoch=steps,
        users=ids,
        max_examples_per_user=most,
        seed=seed,
        **kwargs,
    )


def _persons_of(batch):
    """For each person of a batch, the id and the examples."""
    found = []
    for x, y, weight in zip(*map(np.asarray, batch), strict=True):
        used = weight > 0
        assert (x[~used] == 0).all() and (y[~used] == 0).all()
        examples = x[used].astype(int)
        np.testing.assert_array_equal(y[used], Y[examples])
        ids = set(IDS[examples])
        assert len(ids) == 1 and len(set(examples)) == len(examples)
        found.append((ids.pop(), frozenset(examples.tolist())))
    return found


def test_each_person_comes_once_with_examples_of_their_own():
    drawn = [_persons_of(batch) for batch in _batches()]
    for batch in drawn:
        assert len({person for person, _ in batch}) == len(batch)
        for person, examples in batch:
            assert len(examples) == min(3, np.sum(person == IDS))
    # Every subset of three of d's six examples comes.
    of_d = {e for batch in drawn for person, e in batch if person == "d"}
    assert len(of_d) > 8


def test_persons_are_drawn_by_coins_and_examples_uniformly():
    grouped = persons_lib.group(sources.make_source(X, Y), IDS, 2)
    rng = np.random.default_rng(1)
    (d,) = np.flatnonzero(grouped.counts == 6)
    pairs = [
        tuple(sorted(grouped.draw_examples(rng, np.array([d]))[0]))
        for _ in range(3000)
    ]
    counts = list({p: pairs.count(p) for p in set(pairs)}.values())
    assert len(counts) == 15 and stats.chisquare(counts).pvalue > 1e-4
    # Who is there does not hang on the number of examples.
    drawn = [_persons_of(b) for b in _batches(steps=600, rate=0.3)]
    for person in "abcd":
        hits = sum(person in dict(batch) for batch in drawn)
        assert stats.binomtest(hits, 600, 0.3).pvalue > 1e-4
    both = sum({"a", "d"} <= set(dict(batch)) for batch in drawn)
    assert stats.binomtest(both, 600, 0.09).pvalue > 1e-4


def test_one_example_a_person_is_the_draw_of_examples():
    by_example = tf_dpfp.poisson_batches(
        X, Y, expected_batch_size=4, steps_per_epoch=9, seed=3
    )
    by_person = tf_dpfp.poisson_batches(
        X,
        Y,
        expected_batch_size=4,
        steps_per_epoch=9,
        seed=3,
        users=np.arange(12) * 7,
        max_examples_per_user=1,
    )
    for (x, y), batch in zip(by_example, by_person, strict=True):
        np.testing.assert_array_equal(x, batch.x[:, 0])
        np.testing.assert_array_equal(y, batch.y[:, 0])
        assert (batch.sample_weight.numpy() == 1).all()


@pytest.mark.parametrize(
    "ids",
    [
        [ord(i) for i in IDS],
        np.array([ord(i) for i in IDS], np.float64),
        np.array([i.encode() for i in IDS], object),
        [datetime.date(2000, 1, ord(i) - 96) for i in IDS],
        [(i, 1) for i in IDS],
        tf.constant(IDS),
        lambda x, y: IDS[x.astype(int)],  # noqa: ARG005
    ],
)
def test_ids_of_any_type_name_the_same_persons(ids):
    found = persons_lib.group(sources.make_source(X, Y), ids, 3)
    expected = persons_lib.group(sources.make_source(X, Y), IDS, 3)
    for name in ("examples", "starts", "counts"):
        np.testing.assert_array_equal(
            getattr(found, name), getattr(expected, name)
        )
    # In the order in which they come: d, c, b, a.
    np.testing.assert_array_equal(found.counts, [6, 3, 2, 1])


def test_ids_stay_apart_across_parts_and_types(monkeypatch):
    monkeypatch.setattr(source_lib, "CHUNK", 6)
    source = sources.make_source(X, Y)

    def ids(x, y):  # noqa: ARG001
        # Together they would be floats, and all alike.
        first = x[0] == 0
        kind = np.uint64 if first else np.int64
        return x.astype(kind) + kind(2**63 if first else 2**62)

    assert persons_lib.group(source, ids, 3).size == 12
    names = [np.str_("a"), "a", *"abbbbbbbbb"]
    assert persons_lib.group(source, names, 3).size == 2
    yes = [np.bool_(True), True, 1, *[0] * 9]
    assert persons_lib.group(source, yes, 3).size == 2
    exact = (np.arange(12) + 2**24 - 12).astype(np.float32)
    assert persons_lib.group(source, exact, 3).size == 12


class _RandomAccess:
    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return X[index], Y[index]


class _PyDataset(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        part = slice(index * 4, index * 4 + 4)
        return X[part], Y[part]


@pytest.mark.parametrize(
    "source",
    [
        lambda: tf.data.Dataset.from_tensor_slices((X, Y)),
        _RandomAccess,
        lambda: _PyDataset(workers=1),
    ],
)
@pytest.mark.parametrize("as_function", [False, True])
def test_sources_of_any_kind(source, as_function):
    users = (lambda x, y: IDS[x.astype(int)]) if as_function else IDS  # noqa: ARG005
    found = tf_dpfp.poisson_batches(
        source(),
        sampling_rate=0.5,
        steps_per_epoch=5,
        users=users,
        max_examples_per_user=3,
        seed=0,
    )
    for one, other in zip(found, _batches(steps=5), strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_static_shapes_weights_and_functions_of_batches():
    seen = []

    def map_fn(x, y, weight):
        seen.append(x.shape)
        return {"x": x + 100.0}, y, weight

    weights = np.full(12, 2.0, np.float32)
    weights[0] = 0.0
    batches = tf_dpfp.poisson_batches(
        X,
        Y,
        weights,
        sampling_rate=0.5,
        users=IDS,
        max_examples_per_user=3,
        padded="static",
        capacity=4,
        steps_per_epoch=20,
        map_fn=map_fn,
        seed=0,
    )
    spec = batches.element_spec
    assert isinstance(spec, sampling.PersonBatch)
    assert spec.x["x"].shape == (4, 3) and spec.sample_weight.shape == (4, 3)
    assert seen[0] == (12,)
    for batch in batches:
        x, weight = batch.x["x"].numpy(), batch.sample_weight.numpy()
        assert set(np.unique(weight)) <= {0.0, 2.0}
        assert (weight[x == 100.0] == 0).all()
    info = sampling.sampling_of(batches)
    assert info.population == 4 and info.capacity == 4
    assert info.max_examples_per_user == 3
    tail = stats.binom.sf(4, 5, 0.5)
    assert info.sampling.overflow_probability == pytest.approx(tail)


def test_strings_are_filled_up_with_empty_ones():
    words = np.array([f"word {i}" for i in range(12)])
    batches = tf_dpfp.poisson_batches(
        words,
        Y,
        sampling_rate=1.0,
        users=IDS,
        max_examples_per_user=3,
        seed=0,
    )
    (batch,) = batches
    weight = batch.sample_weight.numpy()
    assert weight.sum() == 1 + 2 + 3 + 3
    assert ((batch.x.numpy() == b"") == (weight == 0)).all()


def test_an_empty_draw_has_no_persons():
    (batch,) = _batches(rate=1e-9, steps=1)
    assert batch.x.shape == (0, 3) and batch.sample_weight.shape == (0, 3)


def test_workers_draw_from_persons_of_their_own():
    batches = _batches(rate=1.0, steps=1)
    shards = []
    for index in range(3):
        mine, info = sampling.sampled_shard(batches, index, 3)
        (batch,) = mine
        shards.append({person for person, _ in _persons_of(batch)})
        assert info.population == 4
    assert [len(s) for s in shards] == [2, 1, 1]
    assert set().union(*shards) == set("abcd")
    digests = {
        sampling.examples_digest(b, b"key")
        for b in (
            batches,
            _batches(ids=IDS[::-1]),
            _batches(most=2),
            tf_dpfp.poisson_batches(X, Y, sampling_rate=1.0),
        )
    }
    assert len(digests) == 4
    assert sampling.examples_digest(_batches(seed=8), b"key") in digests


@pytest.mark.parametrize(
    "ids, error, match",
    [
        (IDS[:5], ValueError, "one id for each of the 12 examples"),
        (IDS[:, None], ValueError, "one id for each of the 12 examples"),
        ([None, *IDS[1:]], ValueError, "missing ids"),
        ([float("nan"), *range(11)], ValueError, "missing ids"),
        (np.array([np.nan, *range(11)]), ValueError, "missing ids"),
        ([1, "1", *range(10)], TypeError, "of one type"),
        ([b"a", *IDS[1:]], TypeError, "of one type"),
        (np.array([1j] * 12), TypeError, "Ids of `users` must be"),
        ([{}] * 12, TypeError, "must be hashable"),
        (lambda x, y: X[:2], ValueError, "must return one id"),  # noqa: ARG005
        (lambda x, y: [1, "1"] * 6, TypeError, "of one type"),  # noqa: ARG005
        (np.ma.masked_equal(np.arange(12), 3), ValueError, "missing ids"),
        # Two persons, before they were rounded.
        (np.arange(12, dtype=np.float32) + 2**24, ValueError, "were rounded"),
        (np.arange(12) + 2.0**53, ValueError, "were rounded"),
        ([2.0**53, *range(11)], ValueError, "were rounded"),
        ([np.float32(2**24), *range(11)], ValueError, "were rounded"),
    ],
)
def test_refuses_ids(ids, error, match):
    with pytest.raises(error, match=match):
        _batches(ids=ids)


@pytest.mark.parametrize("most", [0, -1, 1.5, True])
def test_refuses_numbers_of_examples(most):
    with pytest.raises(ValueError, match="`max_examples_per_user` must be"):
        _batches(most=most)


def test_refuses_other_misuse():
    for given in (
        {"users": IDS},
        {"max_examples_per_user": 3},
    ):
        with pytest.raises(ValueError, match="must be given together"):
            tf_dpfp.poisson_batches(X, Y, expected_batch_size=2, **given)
    both = {"users": IDS, "max_examples_per_user": 3}
    with pytest.raises(ValueError, match="needs targets"):
        tf_dpfp.poisson_batches(X, expected_batch_size=2, **both)
    with pytest.raises(ValueError, match="number of persons, 4"):
        tf_dpfp.poisson_batches(X, Y, expected_batch_size=5, **both)
