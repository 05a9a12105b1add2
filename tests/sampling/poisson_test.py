"""The law of Poisson batches, their padding, and what proves them."""

import copy
import doctest
import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

import tf_dpfp
from tf_dpfp.accounting import PoissonSampling
from tf_dpfp.sampling import SamplingInfo
from tf_dpfp.sampling import capacities
from tf_dpfp.sampling import poisson as poisson_lib
from tf_dpfp.sampling import poisson_batches
from tf_dpfp.sampling import sampling_of
from tf_dpfp.sampling.binomial import BinomialCounts

# A true sampler fails one statistical check with this probability (the checks
# of `draw` itself are seeded, so they do not fail at random at all); the wrong
# samplers below must fail theirs with a p-value below it.
ERROR_RATE = 1e-7
POPULATION, RATE, STEPS = 400, 0.05, 20000


# --- the law of the draws -------------------------------------------------


def _membership(draws):
    """Steps x population: who was drawn when."""
    table = np.zeros((len(draws), POPULATION), bool)
    for step, indices in enumerate(draws):
        assert len(np.unique(indices)) == len(indices)
        table[step, indices] = True
    return table


def _size_p_value(table):
    """Chi-square of the batch sizes against the binomial law."""
    sizes = table.sum(axis=1)
    law = stats.binom(POPULATION, RATE)
    edges = np.unique(law.ppf(np.linspace(0, 1, 21)[1:-1]))
    probabilities = np.diff(np.concatenate([[0], law.cdf(edges), [1]]))
    observed = np.bincount(
        np.searchsorted(edges, sizes), minlength=len(probabilities)
    )
    return stats.chisquare(observed, probabilities * len(sizes)).pvalue


def _inclusion_p_value(table):
    """Worst example: how often it was drawn; and all examples together."""
    steps = len(table)
    counts = table.sum(axis=0)
    worst = min(
        stats.binomtest(int(count), steps, RATE).pvalue
        for count in (counts.min(), counts.max())
    )
    total = stats.binomtest(int(counts.sum()), steps * POPULATION, RATE).pvalue
    spread = ((counts - steps * RATE) ** 2).sum() / (steps * RATE * (1 - RATE))
    return min(
        worst * POPULATION,
        total,
        2 * stats.chi2.sf(spread, POPULATION),
        2 * stats.chi2.cdf(spread, POPULATION),
    )


def _pair_p_value(table):
    """Worst pair of examples: how often both were drawn (Bonferroni)."""
    together = table.astype(np.float32).T @ table
    pairs = together[np.triu_indices(POPULATION, 1)]
    worst = max(abs(pairs - len(table) * RATE**2)) + len(table) * RATE**2
    lowest, highest = int(pairs.min()), int(worst)
    return len(pairs) * min(
        stats.binom.cdf(lowest, len(table), RATE**2),
        stats.binom.sf(highest - 1, len(table), RATE**2),
    )


def _consecutive_p_value(table):
    """Overlap of each batch with the next: independent coins give rate^2."""
    # Disjoint pairs of steps, so that the overlaps are independent.
    overlap = int((table[0::2] & table[1::2]).sum())
    trials = len(table) // 2 * POPULATION
    return stats.binomtest(overlap, trials, RATE**2).pvalue


CHECKS = (
    _size_p_value,
    _inclusion_p_value,
    _pair_p_value,
    _consecutive_p_value,
)


def _poisson(rng, rate=RATE):
    counts = BinomialCounts(POPULATION, rate)
    for _ in range(STEPS):
        yield poisson_lib.draw(rng, counts)


def _shuffled(rng):
    size = round(POPULATION * RATE)
    for _ in range(STEPS * size // POPULATION):
        yield from rng.permutation(POPULATION).reshape(-1, size)


def _fixed_size(rng):
    for _ in range(STEPS):
        yield rng.choice(POPULATION, round(POPULATION * RATE), replace=False)


def _with_replacement(rng):
    for _ in range(STEPS):
        count = rng.binomial(POPULATION, RATE)
        yield np.unique(rng.choice(POPULATION, count))


def _neighbours_together(rng):
    for _ in range(STEPS):
        pairs = np.flatnonzero(rng.random(POPULATION // 2) < RATE)
        yield np.concatenate([2 * pairs, 2 * pairs + 1])


def _first_too_often(rng):
    for _ in range(STEPS):
        yield np.flatnonzero(
            rng.random(POPULATION)
            < RATE * (1 + 0.3 * (np.arange(POPULATION) == 0))
        )


def test_draws_are_independent_coins():
    table = _membership(list(_poisson(np.random.default_rng(1))))
    for check in CHECKS:
        assert check(table) > ERROR_RATE, check.__name__


@pytest.mark.parametrize(
    "sampler, checks",
    [
        (
            lambda rng: _poisson(rng, RATE * 1.02),
            [_size_p_value, _inclusion_p_value],
        ),
        (lambda rng: _poisson(rng, RATE * 0.98), [_inclusion_p_value]),
        (_shuffled, [_size_p_value, _consecutive_p_value]),
        (_fixed_size, [_size_p_value]),
        (_with_replacement, [_inclusion_p_value]),
        (_neighbours_together, [_pair_p_value, _size_p_value]),
        (_first_too_often, [_inclusion_p_value]),
    ],
)
def test_slightly_wrong_samplers_are_noticed(sampler, checks):
    table = _membership(list(sampler(np.random.default_rng(2))))
    for check in checks:
        assert check(table) < ERROR_RATE, check.__name__


def test_the_data_set_follows_the_law_with_system_randomness():
    batches = poisson_batches(
        np.arange(POPULATION), sampling_rate=RATE, steps_per_epoch=3000
    )
    table = _membership(list(batches.as_numpy_iterator()))
    for check in CHECKS:
        assert check(table) > ERROR_RATE, check.__name__


def test_rate_one_draws_everybody():
    batches = poisson_batches(np.arange(9), sampling_rate=1)
    (batch,) = batches.as_numpy_iterator()
    assert sorted(batch) == list(range(9))


def test_the_surplus_of_an_overflow_is_dropped_uniformly():
    rng = np.random.default_rng(3)
    capacity = 16
    law = BinomialCounts(POPULATION, RATE)
    counts = np.zeros(POPULATION)
    for _ in range(STEPS):
        drawn = poisson_lib.draw(rng, law, capacity)
        assert len(drawn) <= capacity
        counts[drawn] += 1
    total = counts.sum()
    sizes = stats.binom(POPULATION, RATE)
    mean = sizes.expect(lambda k: np.minimum(k, capacity))
    assert abs(total / STEPS - mean) < 6 * sizes.std() / np.sqrt(STEPS)
    assert stats.chisquare(counts).pvalue > ERROR_RATE
    # Cutting off the highest indices instead is what the check would notice.
    biased = np.zeros(POPULATION)
    for _ in range(STEPS):
        drawn = poisson_lib.draw(rng, law)
        biased[np.sort(drawn)[:capacity]] += 1
    assert stats.chisquare(biased).pvalue < ERROR_RATE


# --- epochs, iterators, seeds ---------------------------------------------


def _epoch(batches):
    return [tuple(batch.tolist()) for batch in batches.as_numpy_iterator()]


def _ids(seed=None):
    return poisson_batches(np.arange(500), expected_batch_size=50, seed=seed)


@pytest.mark.parametrize("seed", [None, 7])
def test_every_iteration_draws_anew(seed):
    batches = _ids(seed)
    epochs = [_epoch(batches) for _ in range(3)]
    assert len(set(map(tuple, epochs))) == 3
    first, second = iter(batches), iter(batches)
    pairs = list(zip(first, second, strict=True))
    assert len(pairs) == 10
    assert all(a.numpy().tolist() != b.numpy().tolist() for a, b in pairs)


def test_repeating_draws_anew():
    epochs = _epoch(_ids().repeat(2))
    assert len(epochs) == 20 and len(set(epochs)) == 20


def test_a_seed_reproduces_the_run():
    runs = [
        [_epoch(batches) for _ in range(2)] for batches in map(_ids, (7, 7, 8))
    ]
    assert runs[0] == runs[1] != runs[2]
    assert runs[0][0] != runs[0][1]
    assert sampling_of(_ids(7)).seeded and not sampling_of(_ids()).seeded


def test_global_seeds_change_nothing():
    epochs = []
    for _ in range(2):
        keras.utils.set_random_seed(1)
        epochs.append(_epoch(_ids()))
    assert epochs[0] != epochs[1]


# --- sizes and shapes -----------------------------------------------------


def test_empty_batches_keep_their_shape():
    batches = poisson_batches(
        np.ones((50, 3), np.float32),
        np.ones(50, np.int32),
        sampling_rate=1e-9,
        steps_per_epoch=5,
    )
    for x, y in batches:
        assert x.shape == (0, 3) and y.shape == (0,)
        assert x.dtype == tf.float32 and y.dtype == tf.int32


@pytest.mark.parametrize(
    "rate, steps", [(1.0, 1), (0.7, 1), (0.1, 10), (1 / 3, 3), (0.04, 25)]
)
def test_default_number_of_steps(rate, steps):
    batches = poisson_batches(np.arange(100), sampling_rate=rate)
    assert int(batches.cardinality()) == steps == len(list(batches))
    assert sampling_of(batches).steps_per_epoch == steps


def test_rows_of_all_components_stay_together():
    ids = np.arange(300)
    batches = poisson_batches(
        {"a": ids, "b": (ids * 2.0, [ids.astype(str)])},
        ids * 3,
        ids * 4,
        expected_batch_size=30,
    )
    for x, y, weight in batches.as_numpy_iterator():
        a, (b, (c,)) = x["a"], x["b"]
        np.testing.assert_array_equal(b, 2 * a)
        np.testing.assert_array_equal([int(item) for item in c], a)
        np.testing.assert_array_equal(y, 3 * a)
        np.testing.assert_array_equal(weight, 4 * a)
        assert b.dtype == np.float32


# --- static padding -------------------------------------------------------


def test_padded_batches_are_static_and_weigh_padding_zero():
    ids = np.arange(1, 201)
    batches = poisson_batches(
        {"id": ids, "text": ids.astype(str)},
        np.stack([ids, ids], 1),
        expected_batch_size=np.float32(20),
        padded="static",
        capacity=np.int64(56),
        steps_per_epoch=np.int32(30),
    )
    info = sampling_of(batches)
    for spec in tf.nest.flatten(batches.element_spec):
        assert spec.shape.is_fully_defined()
        assert spec.shape[0] == info.capacity
    sizes = []
    for x, y, weight in batches.as_numpy_iterator():
        count = int(weight.sum())
        sizes.append(count)
        np.testing.assert_array_equal(weight, np.arange(info.capacity) < count)
        assert np.all(x["id"][:count] > 0) and np.all(x["id"][count:] == 0)
        assert set(x["text"][count:]) <= {b""}
        np.testing.assert_array_equal(y[:, 0], x["id"])
        np.testing.assert_array_equal(y[:, 1], x["id"])
        assert weight.dtype == keras.config.floatx()
    assert len(set(sizes)) > 1


def test_padding_multiplies_into_the_users_weights():
    ids = np.arange(1, 101)
    weights = {"one": ids * 1.0, "many": np.repeat(ids[:, None], 3, 1)}
    batches = poisson_batches(
        ids, ids, weights, expected_batch_size=10, padded="static"
    )
    for x, _, weight in batches.as_numpy_iterator():
        np.testing.assert_array_equal(weight["one"], x)
        np.testing.assert_array_equal(
            weight["many"], np.repeat(x[:, None], 3, 1)
        )


def test_padded_empty_and_overflowing_batches():
    ids = np.arange(1, 101)
    batches = poisson_batches(
        ids, ids, sampling_rate=1e-9, steps_per_epoch=3, padded="static"
    )
    for x, _, weight in batches.as_numpy_iterator():
        assert len(x) == 8 and not x.any() and not weight.any()
    batches = poisson_batches(
        ids, ids, sampling_rate=0.9, padded="static", capacity=5
    )
    for x, _, weight in batches.as_numpy_iterator():
        assert len(set(x)) == 5 and weight.tolist() == [1.0] * 5
    assert sampling_of(batches).sampling.overflow_probability > 0.999


# --- map_fn ---------------------------------------------------------------


def test_map_fn_transforms_batches_and_keeps_the_proof():
    batches = poisson_batches(
        np.arange(100),
        np.arange(100),
        expected_batch_size=10,
        map_fn=lambda x, y: ({"twice": [2 * x]}, tf.one_hot(y, 100)),
    )
    assert sampling_of(batches).population == 100
    for x, y in batches.as_numpy_iterator():
        np.testing.assert_array_equal(x["twice"][0], 2 * y.argmax(1))


def test_map_fn_may_make_targets_and_cannot_weigh_padding():
    batches = poisson_batches(
        {"image": np.arange(1, 101), "label": np.arange(1, 101)},
        expected_batch_size=10,
        padded="static",
        map_fn=lambda d: (d["image"], d["label"], tf.fill([24], np.nan)),
        capacity=24,
    )
    for x, _, weight in batches.as_numpy_iterator():
        np.testing.assert_array_equal(np.isnan(weight), x > 0)
        np.testing.assert_array_equal(weight[x == 0], 0)


@pytest.mark.parametrize("padded", [None, "static"])
@pytest.mark.parametrize(
    "map_fn",
    [
        lambda x, y: (x[:-1], y[:-1]),
        lambda x, y: (x, tf.reduce_mean(y)),
        lambda x, y: (x, tf.concat([y, y], 0)),
        lambda x, y: (x, y, tf.ones([3])),
    ],
)
def test_map_fn_must_keep_the_rows(map_fn, padded):
    with pytest.raises(
        (ValueError, tf.errors.InvalidArgumentError),
        match="one entry per example",
    ):
        batches = poisson_batches(
            np.arange(100.0),
            np.arange(100.0),
            expected_batch_size=20,
            padded=padded,
            map_fn=map_fn,
        )
        list(batches)


def test_map_fn_must_return_dense_components():
    with pytest.raises(ValueError, match="RaggedTensor"):
        poisson_batches(
            np.arange(9),
            expected_batch_size=3,
            map_fn=lambda x: tf.RaggedTensor.from_row_lengths(
                x, tf.ones_like(x)
            ),
        )
    with pytest.raises(ValueError, match="unknown rank"):
        poisson_batches(
            np.arange(9),
            expected_batch_size=3,
            padded="static",
            map_fn=lambda x: (x, tf.py_function(lambda v: v, [x], tf.int64)),
        )
    with pytest.raises(ValueError, match="tuple of 4"):
        poisson_batches(
            np.arange(9), expected_batch_size=3, map_fn=lambda x: (x, x, x, x)
        )


# --- the proof ------------------------------------------------------------


def test_sampling_of_says_what_was_drawn():
    batches = poisson_batches(np.arange(1000), expected_batch_size=30)
    assert sampling_of(batches) == SamplingInfo(
        sampling=PoissonSampling(0.03),
        expected_batch_size=30.0,
        population=1000,
        steps_per_epoch=33,
        capacity=None,
        seeded=False,
    )
    padded = poisson_batches(
        np.arange(1000), np.arange(1000), sampling_rate=0.03, padded="static"
    )
    info = sampling_of(padded)
    assert info.capacity == capacities.default_capacity(1000, 0.03)
    assert 0 < info.sampling.overflow_probability <= 1e-15
    assert info.expected_batch_size == pytest.approx(30)


@pytest.mark.parametrize(
    "derive",
    [
        lambda d: d.map(lambda x: x),
        lambda d: d.take(2),
        lambda d: d.skip(1),
        lambda d: d.shuffle(10),
        lambda d: d.repeat(2),
        lambda d: d.repeat(1),
        lambda d: d.cache(),
        lambda d: d.unbatch().batch(10),
        lambda d: d.prefetch(1),
        lambda d: d.filter(lambda x: tf.size(x) > 0),
        lambda d: d.with_options(tf.data.Options()),
        lambda d: d.concatenate(d),
        lambda d: d.apply(lambda e: e.rebatch(2)),
        lambda d: tf.data.Dataset.zip((d, d)),
        lambda d: d.shard(2, 0),
        copy.copy,
        iter,
        list,
    ],
)
def test_what_is_derived_proves_nothing(derive):
    batches = poisson_batches(np.arange(100), expected_batch_size=10)
    assert sampling_of(derive(batches)) is None
    assert sampling_of(batches) is not None


@pytest.mark.parametrize("other", [None, 3, "x", np.arange(3), {"a": 1}, []])
def test_sampling_of_anything_else_is_none(other):
    assert sampling_of(other) is None
    assert sampling_of(tf.data.Dataset.range(3).batch(2)) is None


def test_the_proof_keeps_nothing_alive():
    batches = poisson_batches(np.arange(100), expected_batch_size=10)
    alive = weakref.ref(batches)
    del batches
    gc.collect()
    assert alive() is None


# --- Keras ----------------------------------------------------------------


def _model():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile(
        optimizer="sgd",
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=["accuracy"],
        jit_compile=False,
    )
    return model


def _xy():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4))
    return x, (x[:, 0] > 0).astype(int)


@pytest.mark.parametrize("class_weight", [None, {0: 1.0, 1: 2.0}])
def test_fit_takes_poisson_batches(class_weight):
    model = _model()
    batches = poisson_batches(*_xy(), expected_batch_size=40)
    history = model.fit(
        batches, epochs=2, class_weight=class_weight, verbose=0
    ).history
    assert np.all(np.isfinite(history["loss"]))
    assert int(model.optimizer.iterations) == 10


def test_fit_takes_padded_batches_and_several_steps_per_execution():
    model = _model()
    model.compile(
        optimizer="sgd",
        loss=model.loss,
        weighted_metrics=["accuracy"],
        jit_compile=True,
        steps_per_execution=3,
    )
    batches = poisson_batches(
        *_xy(), expected_batch_size=40, padded="static", steps_per_epoch=7
    )
    history = model.fit(batches, epochs=2, verbose=0).history
    assert np.all(np.isfinite(history["loss"]))
    assert int(model.optimizer.iterations) == 14


def test_fit_takes_unpadded_batches_several_steps_per_execution():
    model = _model()
    model.compile(
        optimizer="sgd",
        loss=model.loss,
        jit_compile=False,
        steps_per_execution=4,
    )
    model.fit(
        poisson_batches(*_xy(), expected_batch_size=40), epochs=2, verbose=0
    )
    assert int(model.optimizer.iterations) == 10


def test_padding_changes_no_weighted_loss():
    model, (x, y) = _model(), _xy()
    everybody = poisson_batches(
        x, y, sampling_rate=1.0, padded="static", capacity=256
    )
    padded = model.evaluate(everybody, verbose=0, return_dict=True)
    plain = model.evaluate(x, y, batch_size=200, verbose=0, return_dict=True)
    # Keras divides by the number of rows, padding included.
    assert padded["loss"] * 256 == pytest.approx(plain["loss"] * 200, rel=1e-4)
    assert padded["accuracy"] == pytest.approx(plain["accuracy"])


def test_a_tuple_of_inputs_is_not_taken_for_targets():
    a = np.ones((20, 2))
    batches = poisson_batches((a, 2 * a), expected_batch_size=10)
    (batch,) = next(iter(batches))
    assert isinstance(batch, tuple) and len(batch) == 2
    inputs = (keras.Input((2,)), keras.Input((2,)))
    model = keras.Model(inputs, keras.layers.Add()(inputs))
    predictions = model.predict(batches, verbose=0)
    np.testing.assert_array_equal(predictions, 3.0)


def test_a_preprocessing_task_takes_raw_strings():
    texts = np.array([f"text {i}" for i in range(60)])
    lookup = keras.layers.Hashing(num_bins=7)

    class Task(keras.Sequential):
        """Preprocesses data sets on their way into `fit`, as KerasHub does."""

        def fit(self, x, **kwargs):
            assert isinstance(x, tf.data.Dataset)
            return super().fit(
                x.map(lambda text, y: (lookup(text), y)), **kwargs
            )

    model = Task([keras.layers.Embedding(7, 2), keras.layers.Dense(1)])
    model.compile(loss="mse", jit_compile=False)
    batches = poisson_batches(texts, np.ones(60), expected_batch_size=20)
    history = model.fit(batches, verbose=0).history
    assert np.isfinite(history["loss"][0])


@pytest.mark.parametrize("size", [40, 41])
def test_rate_and_batch_size_may_both_be_public_numbers(size):
    batches = poisson_batches(
        np.arange(size), sampling_rate=0.25, expected_batch_size=60
    )
    info = sampling_of(batches)
    assert info.sampling.sampling_rate == 0.25
    assert info.expected_batch_size == 60.0


def test_the_example_of_the_docstring_is_true():
    parsed = doctest.DocTestParser().get_doctest(
        poisson_batches.__doc__,
        {"np": np, "tf_dpfp": tf_dpfp},
        "poisson_batches",
        None,
        None,
    )
    result = doctest.DocTestRunner().run(parsed)
    assert result.failed == 0 < result.attempted


# --- errors ---------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "`sampling_rate` or both must be given"),
        (
            {"expected_batch_size": 0, "sampling_rate": 0.1},
            "`expected_batch_size` must be",
        ),
        ({"expected_batch_size": 11}, "at most the number of examples, 10"),
        ({"expected_batch_size": 0}, "`expected_batch_size` must be"),
        ({"expected_batch_size": -1}, "`expected_batch_size` must be"),
        ({"expected_batch_size": np.nan}, "`expected_batch_size` must be"),
        ({"expected_batch_size": np.inf}, "`expected_batch_size` must be"),
        ({"expected_batch_size": True}, "`expected_batch_size` must be"),
        ({"expected_batch_size": "2"}, "`expected_batch_size` must be"),
        ({"sampling_rate": 1.01}, "number above 0 and at most 1"),
        ({"sampling_rate": 256}, "use `expected_batch_size`"),
        ({"sampling_rate": 0.0}, "`sampling_rate` must be"),
        ({"sampling_rate": -0.1}, "`sampling_rate` must be"),
        ({"sampling_rate": float("nan")}, "`sampling_rate` must be"),
        ({"sampling_rate": 0.1, "steps_per_epoch": 0}, "`steps_per_epoch`"),
        ({"sampling_rate": 0.1, "steps_per_epoch": 1.5}, "`steps_per_epoch`"),
        ({"sampling_rate": 0.1, "padded": "yes"}, "`padded` must be"),
        ({"sampling_rate": 0.1, "padded": True}, "`padded` must be"),
        ({"sampling_rate": 0.1, "capacity": 8}, "`capacity` is for padded"),
        (
            {"sampling_rate": 0.1, "padded": "static", "capacity": 0},
            "`capacity` must be",
        ),
        (
            {"sampling_rate": 0.1, "padded": "static", "capacity": True},
            "`capacity` must be",
        ),
        ({"sampling_rate": 0.1, "padded": "static"}, "needs targets"),
        ({"sampling_rate": "0.1"}, "`sampling_rate` must be"),
        ({"sampling_rate": True}, "`sampling_rate` must be"),
        ({"sampling_rate": 0.1, "cache": "yes"}, "`cache` must be True or"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        poisson_batches(np.arange(10), **options)


def test_poisson_batches_of_poisson_batches_are_refused():
    batches = poisson_batches(np.arange(10), sampling_rate=0.5)
    with pytest.raises(ValueError, match="already consists of drawn"):
        poisson_batches(batches, sampling_rate=0.5)
