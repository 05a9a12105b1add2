"""Every kind of source yields its own examples, or says why it cannot."""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import sparse

from tf_dpfp.sampling import element_sources
from tf_dpfp.sampling import examples_digest
from tf_dpfp.sampling import poisson_batches
from tf_dpfp.sampling import sampling_of
from tf_dpfp.sampling import source as source_lib
from tf_dpfp.sampling import sources

N = 57
X = np.arange(N * 6, dtype=np.float32).reshape(N, 2, 3)
Y = np.arange(N) % 5


class Batches(keras.utils.PyDataset):
    """Rows 0, 1, 2, ... in batches of ten, the last one shorter."""

    def __init__(self, size=10, make=lambda rows: (X[rows], Y[rows])):
        super().__init__()
        self.size, self.make, self.reads = size, make, 0

    def __len__(self):
        return -(-N // self.size)

    def __getitem__(self, index):
        self.reads += 1
        return self.make(np.arange(N)[index * self.size :][: self.size])


class Items:
    """Random access, one example at a time."""

    def __init__(self, make=lambda i: (X[i], int(Y[i])), size=N):
        self.make, self.size, self.reads = make, size, 0

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        assert type(index) is int
        self.reads += 1
        return self.make(index)


class ManyItems(Items):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


Pair = collections.namedtuple("Pair", ["x", "y"])

SOURCES = {
    "numpy": lambda: (X, Y),
    "tensors": lambda: (tf.constant(X), tf.constant(Y)),
    "dataset": lambda: (tf.data.Dataset.from_tensor_slices((X, Y)),),
    "pipeline": lambda: (
        tf.data.Dataset.from_tensor_slices((X, Y))
        .batch(7)
        .map(lambda x, y: (x + 0, y))
        .unbatch()
        .apply(tf.data.experimental.assert_cardinality(N))
        .shuffle(10)
        .prefetch(2),
    ),
    "pydataset": lambda: (Batches(),),
    "pydataset of one": lambda: (Batches(size=1),),
    "pydataset of tensors": lambda: (
        Batches(make=lambda r: (tf.gather(X, r), tf.gather(Y, r))),
    ),
    "items": lambda: (Items(),),
    "items of lists": lambda: (Items(lambda i: [X[i], Y[i]]),),
    "items of named tuples": lambda: (Items(lambda i: Pair(X[i], Y[i])),),
    "many items": lambda: (ManyItems(),),
}


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("padded", [None, "static"])
def test_every_example_comes_once_and_whole(kind, padded):
    batches = poisson_batches(
        *SOURCES[kind](),
        sampling_rate=1.0,
        padded=padded,
        capacity=padded and 64,
    )
    assert sampling_of(batches).population == N
    x, y, *_ = next(batches.as_numpy_iterator())
    if padded:
        assert not x[N:].any() and not y[N:].any() and len(x) == 64
        x, y = x[:N], y[:N]
    order = np.argsort(x[:, 0, 0])
    np.testing.assert_array_equal(x[order], X)
    np.testing.assert_array_equal(y[order], Y)


@pytest.mark.parametrize("kind", SOURCES)
def test_parts_of_a_source(kind):
    batches = poisson_batches(
        *SOURCES[kind](), expected_batch_size=9, steps_per_epoch=8
    )
    for x, y in batches.as_numpy_iterator():
        rows = (x[:, 0, 0] / 6).astype(int)
        assert len(set(rows.tolist())) == len(rows)
        np.testing.assert_array_equal(x, X[rows])
        np.testing.assert_array_equal(y, Y[rows])


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("kind", SOURCES)
def test_examples_come_in_the_order_in_which_they_are_asked_for(kind, cache):
    """Places of a batch are those of persons, views and parts."""
    source = sources.make_source(*SOURCES[kind](), cache=cache)
    whole = source.take(np.arange(N))
    rows = (whole[0][:, 0, 0] / 6).astype(int)
    # A pipeline may shuffle once.
    assert sorted(rows) == list(range(N))
    asked = np.array([40, 3, N - 1, 3, 29, 0])
    x, y = source.take(asked)
    np.testing.assert_array_equal(x, X[rows[asked]])
    np.testing.assert_array_equal(y, Y[rows[asked]])


@pytest.mark.parametrize("source", [Batches(), Items(), ManyItems()])
def test_no_rows_are_read_for_an_empty_draw(source):
    batches = poisson_batches(source, sampling_rate=1e-12, steps_per_epoch=2)
    before = source.reads
    for x, y in batches:
        assert x.shape == (0, 2, 3) and y.shape == (0,)
    assert source.reads == before


@pytest.mark.parametrize("make", [Batches, Items, ManyItems])
def test_a_cached_source_is_read_once(make):
    source = make()
    batches = poisson_batches(source, expected_batch_size=20, cache=True)
    before = source.reads
    for x, y in batches.as_numpy_iterator():
        np.testing.assert_array_equal(y, Y[(x[:, 0, 0] / 6).astype(int)])
    assert source.reads == before


def test_a_pydataset_batch_is_read_once_per_draw():
    source = Batches()
    batches = poisson_batches(source, sampling_rate=1.0)
    before = source.reads
    next(iter(batches))
    assert source.reads == before + len(source)


@pytest.mark.parametrize(
    "source",
    [
        tf.data.Dataset.from_tensor_slices({"a": Y, "t": Y.astype(str)}),
        Items(lambda i: {"a": Y[i], "t": str(Y[i])}),
        Batches(make=lambda r: {"a": Y[r], "t": Y[r].astype(str)}),
        {"a": Y, "t": Y.astype(str)},
        {"a": tf.constant(Y), "t": Y.astype(str).astype(object)},
        {"a": Y, "t": Y.astype("S")},
    ],
)
def test_dicts_and_strings(source):
    batches = poisson_batches(source, expected_batch_size=20)
    assert batches.element_spec["t"].dtype == tf.string
    for batch in batches.as_numpy_iterator():
        np.testing.assert_array_equal(
            [int(text) for text in batch["t"]], batch["a"]
        )


@pytest.mark.parametrize(
    "source",
    [
        tf.data.Dataset.from_tensor_slices((X, Y, Y * 2.0)),
        Items(lambda i: (X[i], Y[i], float(2 * Y[i]))),
        Batches(make=lambda r: (X[r], Y[r], Y[r] * 2.0)),
    ],
)
def test_sources_may_bring_weights(source):
    batches = poisson_batches(source, expected_batch_size=20, padded="static")
    for _, y, weight in batches.as_numpy_iterator():
        np.testing.assert_array_equal(weight, 2 * y)


def test_floats_are_cast_as_in_fit_and_others_are_not():
    x = {"d": X.astype(np.float64), "h": X.astype(np.float16), "i": Y}
    x["u"] = Y.astype(np.uint8)
    spec = poisson_batches(x, expected_batch_size=5).element_spec
    assert spec["d"].dtype == spec["h"].dtype == tf.float32
    assert spec["i"].dtype == tf.int64 and spec["u"].dtype == tf.uint8


def test_memory_mapped_arrays_are_not_loaded(tmp_path):
    np.save(tmp_path / "x.npy", X)
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    batches = poisson_batches(x, Y, expected_batch_size=20)
    for rows, y in batches.as_numpy_iterator():
        np.testing.assert_array_equal(y, (rows[:, 0, 0] / 6).astype(int) % 5)


# --- what is refused ------------------------------------------------------

Dataset = tf.data.Dataset
RAGGED = tf.ragged.constant([[1], [2, 3]])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((None,), "`x` is None"),
        (
            (X, Y[:-1]),
            r"same number of examples. Received: arrays of \[57, 56\]",
        ),
        (({"a": X, "b": Y[:3]},), "same number of examples"),
        ((X, Y, Y[1:]), "same number of examples"),
        ((X, None, Y), "`sample_weight` needs `y`. Received: sample_weight"),
        ((np.zeros((0, 3)),), "is empty"),
        ((Dataset.range(0),), "is empty"),
        ((Items(size=0),), "is empty"),
        (({},), "no array"),
        (((),), "no array"),
        ((np.float32(3),), "first axis"),
        ((RAGGED,), "RaggedTensor"),
        ((X[:2], RAGGED), "RaggedTensor"),
        ((tf.sparse.eye(3),), "SparseTensor"),
        ((sparse.eye(3, format="csr"),), "`x` is a .* of scipy.sparse"),
        ((X[:3], sparse.eye(3)), "`y` is a .* of scipy.sparse"),
        ((np.array([[1], [1, 2]], object),), "strings only"),
        ((np.array(["2020-01-01"], "datetime64[D]"),), "no dtype"),
        ((Dataset.from_tensor_slices(X), Y), "cannot be given beside"),
        ((Items(), None, Y), "cannot be given beside"),
        ((Dataset.range(3).repeat(),), "infinite"),
        ((Dataset.range(3).repeat(2),), "repeats its examples"),
        ((Dataset.range(9).repeat(2).batch(3).unbatch(),), "repeats"),
        ((Dataset.range(9).batch(3).unbatch(),), "unknown"),
        ((Dataset.range(3).filter(lambda x: x > 0),), "unknown"),
        ((Dataset.range(9).batch(3, drop_remainder=True),), "drop_remainder"),
        ((Dataset.range(9).padded_batch(3),), "batched already"),
        ((Dataset.range(9).ragged_batch(3),), "batched already"),
        ((Dataset.range(8).batch(2).rebatch(4),), "batched already"),
        ((Dataset.range(9).batch(3).map(lambda x: x).prefetch(1),), "batched"),
        ((Dataset.from_tensor_slices(RAGGED),), "RaggedTensorSpec"),
        (
            (Dataset.range(9).map(lambda x: tf.range(x)),),
            "unknown shape",
        ),
        (
            (
                Dataset.range(9)
                .apply(tf.data.experimental.assert_cardinality(9))
                .map(lambda x: (x, x, x, x)),
            ),
            "tuple of 4",
        ),
        ((Items(lambda i: (1, 2, 3, 4)),), "tuple of 4"),
        ((Items(lambda i: (1, None)),), "is None"),
        ((Items(lambda i: RAGGED),), "RaggedTensor"),
        ((Batches(make=lambda r: (X[r], Y[r][1:])),), "different numbers"),
        ((Batches(make=lambda r: X[: len(r) + r[0]]),), "The last batch"),
    ],
)
def test_wrong_data_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        poisson_batches(*arguments, sampling_rate=0.1)


@pytest.mark.parametrize(
    "x",
    [
        (i for i in range(3)),
        {1, 2},
        3,
        "abc",
        [1, 2, 3],
        {"a": ["x", "y"]},
        iter(Dataset.range(3)),
    ],
)
def test_what_holds_no_examples_is_refused(x):
    with pytest.raises((TypeError, ValueError)) as error:
        poisson_batches(x, sampling_rate=0.1)
    assert "drawn from" in str(error.value) or "array" in str(error.value)


def test_a_cardinality_that_lies_is_refused():
    lying = Dataset.range(5).apply(tf.data.experimental.assert_cardinality(7))
    with pytest.raises((ValueError, tf.errors.FailedPreconditionError)):
        poisson_batches(lying, sampling_rate=0.1)


def test_a_pydataset_without_length_is_refused():
    class Endless(Batches):
        @property
        def num_batches(self):
            return None

    with pytest.raises(ValueError, match="finite `__len__`"):
        poisson_batches(Endless(), sampling_rate=0.1)


@pytest.mark.parametrize(
    "source, message",
    [
        (Items(lambda i: X[i][: 2 - i % 2]), "same shapes and dtypes"),
        (Items(lambda i: X[i] if i % 2 == 0 else Y[i]), "same shapes"),
        (Items(lambda i: 1.5 if i % 2 == 0 else 1), "same shapes and dtypes"),
        (Items(lambda i: (1, 2) if i % 2 == 0 else (1,)), "structure"),
        (
            Batches(make=lambda r: X[r][:, : 2 - r[0] // 10 % 2]),
            "same shapes and dtypes",
        ),
        (
            Batches(make=lambda r: X[r][: 10 - (r[0] == 20)]),
            "Batch 2 .* 9 examples",
        ),
    ],
)
def test_examples_unlike_the_first_are_refused(source, message):
    batches = poisson_batches(source, sampling_rate=1.0)
    with pytest.raises(tf.errors.OpError, match=message):
        list(batches)


def _digest(x, y=None, key=b"key", **kwargs):
    return examples_digest(
        poisson_batches(x, y, sampling_rate=0.5, **kwargs), key
    )


def _many():
    # More than are read at once.
    return np.arange(5000, dtype=np.float32).reshape(2500, 2), np.arange(2500)


def test_a_digest_is_of_the_examples_and_not_of_the_draws():
    x, y = _many()
    assert _digest(x, y) == _digest(x.copy(), y, seed=3, steps_per_epoch=7)
    data = tf.data.Dataset.from_tensor_slices((x, y))
    assert _digest(data) == _digest(x, y)
    assert _digest(x, y, key=b"other") != _digest(x, y)


@pytest.mark.parametrize("row", [0, 1500, 2499])
def test_a_digest_sees_every_example_and_its_place(row):
    x, y = _many()
    known = _digest(x, y)
    other = x.copy()
    other[row, 1] = np.nextafter(other[row, 1], np.float32(np.inf))
    assert _digest(other, y) != known
    labels = y.copy()
    labels[row] += 1
    assert _digest(x, labels) != known
    order = np.arange(2500)
    order[[row, row - 1]] = order[[row - 1, row]]
    assert _digest(x[order], y[order]) != known


def test_a_digest_sees_where_strings_end_and_what_is_named_how():
    pairs = [np.array(["ab", "c"]), np.array(["a", "bc"])]
    assert _digest(pairs[0]) != _digest(pairs[1])
    x = np.ones((4, 1), np.float32)
    assert _digest({"a": x, "b": x}) != _digest({"a": x, "c": x})
    assert _digest(x) != _digest(x[:, 0])


def test_only_poisson_batches_have_a_digest():
    batches = poisson_batches(_many()[0], sampling_rate=0.5)
    with pytest.raises(ValueError, match="itself"):
        examples_digest(batches.take(1), b"key")


def test_a_long_reading_shows_how_far_it_is(monkeypatch, capsys):
    data = tf.data.Dataset.range(7)
    monkeypatch.setattr(source_lib, "CHUNK", 3)
    element_sources.from_dataset(data)
    assert not capsys.readouterr().out
    monkeypatch.setattr(element_sources, "_PATIENCE", -1.0)
    source = element_sources.from_dataset(data)
    assert "7/7" in capsys.readouterr().out
    np.testing.assert_array_equal(source.take(np.arange(7))[0], np.arange(7))


def test_every_example_is_in_one_of_the_shards():
    whole = sources.make_source(np.arange(11))
    shards = [source_lib.every_nth(whole, first, 4) for first in range(4)]
    assert [shard.size for shard in shards] == [3, 3, 3, 2]
    taken = [shard.take(np.arange(shard.size))[0] for shard in shards]
    assert sorted(np.concatenate(taken)) == list(range(11))
    assert taken[1].tolist() == [1, 5, 9]
    assert source_lib.every_nth(whole, 0, 1) is whole


SECRET = 4711.25


@pytest.mark.parametrize(
    "x",
    [
        [SECRET] * 3,
        np.float64(SECRET),
        np.array([SECRET, "b", None], object),
        np.array([np.zeros(1) + SECRET, np.zeros(2)], object),
        (np.array([[SECRET]]), None, np.array([1.0])),
        np.array([4711], "M8[s]"),
    ],
    ids=["list", "scalar", "objects", "ragged", "none", "dates"],
)
def test_refusals_show_no_example(x):
    with pytest.raises((TypeError, ValueError)) as error:
        poisson_batches(x, expected_batch_size=1)
    assert "4711" not in str(error.value)


def test_a_table_of_several_types_is_told_to_come_by_columns():
    table = np.array([["a", 1.5], ["b", 2.5]], object)
    with pytest.raises(ValueError, match="dict of its columns.*float, str"):
        poisson_batches(table, expected_batch_size=1)
