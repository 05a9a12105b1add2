"""Sparse tables on several replicas: the rows and the noise of one device."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from scipy import stats

import tf_dpfp
from tests import helpers
from tests.replicas import common
from tests.training import crossings
from tf_dpfp import clipping
from tf_dpfp import loops
from tf_dpfp import replicas as replicas_lib
from tf_dpfp.distribute import replicas
from tf_dpfp.noise import NoiseSource
from tf_dpfp.optimizers import release
from tf_dpfp.optimizers import row_release

pytestmark = pytest.mark.usefixtures("without_trial")

ROWS, WIDTH, LEAST_P = 24_000, 32, 1e-6
SPARSE = tf_dpfp.Sparse(
    "items", threshold=2.0, contribution_share=0.36, contribution_clip=0.5
)
# Of all replicas; of the others the count is 0.
COUNTS = {(0, 1000): 0.5, (1000, 2000): 1.5, (2000, 3000): 1.0}
MULTIPLIER = 1.2
# A multiplier of 2 for a sensitivity of 0.5, and what is left.
OF_COUNTS, OF_SUMS = 1.0, 1.5


def _dealt():
    """Row sums of two replicas, and of all after them none."""
    mine = replicas.index()
    first = tf.cast(tf.equal(mine, 0), tf.float64)
    second = tf.cast(tf.equal(mine, 1), tf.float64)
    rows = tf.concat([tf.range(3000), [-1, ROWS]], 0)
    contributions = tf.concat(
        [
            0.5 * first * tf.ones([2000], tf.float64),
            second * tf.ones([2000], tf.float64),
            tf.ones([2], tf.float64),  # Numbers of no row.
        ],
        axis=0,
    )
    # Row 1000 to 1999 is named by both.
    rows = tf.concat([rows[:2000], rows[1000:]], 0)
    values = tf.cast(contributions, tf.float32)[:, None] * tf.ones([1, WIDTH])
    return clipping.RowSums(tf.cast(rows, tf.int64), values, contributions)


def _released(count, sparse=SPARSE):
    """Releases a table once; returns what each replica has of it."""
    table = keras.Variable(np.zeros([ROWS, WIDTH], np.float32))
    with common.strategy(count).scope():
        source = NoiseSource()
        source.build()

    def of_replica():
        clipped = loops.ClippedGradients(
            sums=[_dealt()],
            variables=[table],
            groups=[clipping.Group("items", (0,), 1.0, ROWS * WIDTH)],
            regularization=[None],
            replicas=count,
        )
        rows = row_release.row_release_of(sparse, MULTIPLIER)
        found = release.add_noise(
            clipped,
            rows.noise_multiplier,
            "global",
            release.draws_of(source.next_step(), clipped),
            tables=rows,
        )
        (total,) = replicas.sum_over_all(found)
        return total.indices, total.values

    step = tf.function(
        lambda: common.strategy(count).run(of_replica), autograph=False
    )
    rows, values = step()
    return [
        (i.numpy(), v.numpy())
        for i, v in zip(
            common.local_results(count, rows),
            common.local_results(count, values),
            strict=True,
        )
    ]


def _assert_as_on_one_device(found):
    rows, values = found[0]
    for others, sums in found[1:]:
        np.testing.assert_array_equal(others, rows)
        np.testing.assert_array_equal(sums, values)
    assert np.all(np.diff(rows) > 0)
    passed = np.isin(np.arange(ROWS), rows)
    counts = np.zeros(ROWS)
    for (first, end), count in COUNTS.items():
        counts[first:end] = count
    for count in (0.0, 0.5, 1.0, 1.5):
        mine = passed[counts == count]
        chance = stats.norm.sf(SPARSE.threshold - count / OF_COUNTS)
        test = stats.binomtest(int(mine.sum()), len(mine), chance)
        assert test.pvalue > LEAST_P, count
    noise = values - counts[rows][:, None]
    helpers.assert_normal(noise, OF_SUMS, (0.9, 1.1))


@pytest.mark.parametrize("count", [2, 4])
def test_rows_and_noise_are_those_of_one_device(count):
    _assert_as_on_one_device(_released(count))


def _replaced(name, change, monkeypatch):
    ordinary = getattr(row_release.RowRelease, name)
    monkeypatch.setattr(
        row_release.RowRelease,
        name,
        lambda self, *args: change(lambda: ordinary(self, *args), *args),
    )


def _counts_with_the_whole_noise(monkeypatch):
    ordinary = row_release.RowRelease._noised_counts
    monkeypatch.setattr(
        row_release.RowRelease,
        "_noised_counts",
        lambda self, table, _: ordinary(self, table, 1.0),
    )


def _counts_noised_once_more(monkeypatch):
    """On every replica, after they are added up: other rows on each."""

    def passes(ordinary, counts):
        del ordinary
        noise = tf.random.normal(counts.shape)
        return counts + noise >= SPARSE.threshold * OF_COUNTS

    _replaced("_passes", passes, monkeypatch)


def _counts_noised_by_the_first(monkeypatch):
    ordinary = row_release.RowRelease._noised_counts
    monkeypatch.setattr(
        row_release.RowRelease,
        "_noised_counts",
        lambda self, table, share: ordinary(
            self,
            table,
            share * tf.cast(tf.equal(replicas.index(), 0), tf.float32),
        ),
    )


def _counts_of_one_replica(monkeypatch):
    ordinary = replicas.sum_over_all

    def alone(tensors):
        if tensors and getattr(tensors[0], "shape", None) == [ROWS]:
            root = tf.sqrt(tf.cast(replicas.count(), tf.float32))
            return [root * tensor for tensor in tensors]
        return ordinary(tensors)

    monkeypatch.setattr(replicas, "sum_over_all", alone)


def _sums_with_the_whole_noise(monkeypatch):
    ordinary = row_release._noised
    monkeypatch.setattr(
        row_release,
        "_noised",
        lambda table, *args: ordinary(
            table._replace(deviation=math.sqrt(2) * table.deviation), *args
        ),
    )


def _one_key(monkeypatch):
    monkeypatch.setattr(
        release.Draws,
        "key",
        lambda self, tensor: NoiseSource.key_of(self.step_key, tensor, 0),
    )


def _not_added_up(monkeypatch):
    """The sums of the first replica, with its share of the noise."""
    ordinary = row_release._noised_rows

    def of_first(table, passed):
        found = ordinary(table, passed)
        mine = tf.cast(tf.equal(replicas.index(), 0), tf.float32)
        return tf.IndexedSlices(
            mine * found.values, found.indices, found.dense_shape
        )

    monkeypatch.setattr(row_release, "_noised_rows", of_first)


@pytest.mark.parametrize(
    "plant",
    [
        _counts_with_the_whole_noise,
        _counts_noised_once_more,
        _counts_noised_by_the_first,
        _counts_of_one_replica,
        _sums_with_the_whole_noise,
        _one_key,
        _not_added_up,
    ],
)
def test_what_is_not_as_on_one_device_would_be_seen(plant, monkeypatch):
    plant(monkeypatch)
    with pytest.raises((AssertionError, tf.errors.InvalidArgumentError)):
        _assert_as_on_one_device(_released(4))


def _model(count, sparse, base=tf_dpfp.DPAdagrad, compiled=None, **kwargs):
    keras.utils.set_random_seed(1)
    kwargs = {"noise_multiplier": 0.0, "l2_norm_clip": 0.3} | kwargs
    with common.strategy(count).scope():
        model = keras.Sequential(
            [
                keras.Input((4,), dtype="int32"),
                layers.Embedding(60, 3, name="items"),
                layers.Flatten(),
                layers.Dense(4, "tanh"),
                layers.Dense(1),
            ]
        )
        tf_dpfp.make_private(model)
        model.compile(
            base(0.5, sparse_tables=sparse, **kwargs),
            loss="mse",
            **compiled or {},
        )
    return model


RNG = np.random.default_rng(0)
X = RNG.integers(0, 30, (16, 4)).astype("int32")
Y = RNG.normal(size=(16, 1)).astype("float32")


def _fit(model, **kwargs):
    data = tf_dpfp.poisson_batches(X, Y, expected_batch_size=8, seed=3)
    return model.fit(data, verbose=0, **kwargs)


@pytest.mark.parametrize(
    ("count", "base", "arguments", "compiled"),
    [
        (
            2,
            tf_dpfp.DPLazyAdam,
            {"clipping": "per_layer"},
            {"run_eagerly": True},
        ),
        (
            2,
            tf_dpfp.DPAdagrad,
            {"clipping": common.adaptive(), "microbatch_size": 2},
            {"jit_compile": True},
        ),
    ],
    ids=str,
)
def test_without_noise_it_is_the_training_of_one_device(
    count, base, arguments, compiled
):
    sparse = tf_dpfp.Sparse("items")
    one = _model(1, sparse, base, **arguments)
    several = _model(count, sparse, base, compiled, **arguments)
    before = one.get_weights()[0]
    _fit(one)
    one.train_on_batch(X, Y)
    one.train_on_batch(X, Y)
    assert np.abs(one.get_weights()[0] - before).max() > 1e-2
    _fit(several)
    several.train_on_batch(X, Y)
    loops.distributed_step(several, X, Y)
    common.assert_equal_weights(one, several, atol=1e-4)
    common.assert_same_bits(several, count)
    (drawn, other), found = tf_dpfp.ledger(one), tf_dpfp.ledger(several)
    assert len(found) == 2 and drawn in found and other in found


def test_noised_counts_and_sums_alone_leave_a_replica():
    model = _model(2, tf_dpfp.Sparse("items"), noise_multiplier=1.0)
    step = crossings.of_step(lambda: _fit(model, epochs=1, steps_per_epoch=1))
    sent = [
        crossing
        for crossing in step.crossings
        if crossing.source == "CPU:1"
        and crossing.to != crossing.source
        and crossing.shape != ()
    ]
    for crossing in sent:
        assert crossing.dtype == tf.float32, crossing
        assert crossing.noised, crossing
    # One number for each row of the table; then all sums, end to end.
    assert (60,) in [crossing.shape for crossing in sent]
    common.assert_same_bits(model, 2)


def test_replicas_of_other_machines_are_refused(monkeypatch):
    model = _model(2, tf_dpfp.Sparse("items"))
    monkeypatch.setattr(replicas_lib, "are_mirrored", lambda _: False)
    with pytest.raises(ValueError, match="add up tensors of one size"):
        _fit(model)
    assert tf_dpfp.ledger(model) == []
