"""Correlated noise where persons are drawn: parts, sums, ledger, refusals."""

import keras
import numpy as np
import pytest

import tf_dpfp
from tests.replicas import common
from tests.training import banded_runs as runs
from tests.training import joined_rows
from tf_dpfp import accounting
from tf_dpfp import loops
from tf_dpfp import sampling
from tf_dpfp.accounting import banded
from tf_dpfp.sampling import registry

pytestmark = pytest.mark.usefixtures("without_trial")

BANDS, PLACES, PERSONS, EXAMPLES, DELTA = 3, 2, 24, 90, 1e-3
OWN = np.sort(np.random.default_rng(3).integers(0, PERSONS, EXAMPLES))
USERS = np.random.default_rng(4).permutation(OWN)
RATE = 4 / PERSONS


def _data(seed=1):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(EXAMPLES, 5)).astype(np.float32)
    return x, rng.integers(0, joined_rows.CLASSES, EXAMPLES)


def _batches(data=None, users=USERS, **kwargs):
    arguments = {
        "expected_batch_size": 4,
        "users": users,
        "max_examples_per_user": PLACES,
        "steps_per_epoch": 5,
    }
    x, y = _data() if data is None else data
    return tf_dpfp.cyclic_poisson_batches(x, y, **(arguments | kwargs))


def _in_parts(dataset, parts=BANDS):
    return registry.sampling_of(dataset).cyclic.batches_of(parts)


def _model(**kwargs):
    arguments = {
        "noise_multiplier": runs.NOISE,
        "expected_batch_size": None,
        "correlated_noise": tf_dpfp.Banded(BANDS),
    }
    return joined_rows.make_model("dense", 4, **(arguments | kwargs))


def _rows(steps=300, **kwargs):
    """Batches whose inputs are the numbers of the examples, plus one."""
    numbers = np.arange(1, EXAMPLES + 1)
    dataset = _batches((numbers, numbers), steps_per_epoch=steps, **kwargs)
    return list(_in_parts(dataset))


def test_a_person_is_in_one_part_with_all_examples_by_one_coin():
    found, drawn = _rows(900), np.zeros((900, PERSONS), bool)
    part_of, seen = {}, set()
    for step, element in enumerate(found):
        assert int(element.part) == step % BANDS
        x, _, weight = (np.asarray(part) for part in element.batch)
        assert x.shape[1:] == (PLACES,)
        np.testing.assert_array_equal(x > 0, weight > 0)
        for row in x:
            own = row[row > 0]
            (person,) = set(USERS[own - 1])
            assert len(set(own)) == len(own)
            assert len(own) == min(PLACES, np.sum(USERS == person))
            # Once in a step, and never in a step of another part.
            assert not drawn[step, person]
            drawn[step, person] = True
            assert part_of.setdefault(person, step % BANDS) == step % BANDS
            seen.update(own)
    assert len(part_of) == PERSONS and len(seen) == EXAMPLES
    own = np.stack(
        [drawn[part_of[i] :: BANDS, i] for i in range(PERSONS)], axis=1
    )
    off = 6 * np.sqrt(0.25 / own.size)
    assert abs(own.mean() - BANDS * RATE) < off
    together = np.corrcoef(own.T)[np.triu_indices(PERSONS, 1)]
    assert np.max(np.abs(together)) < 6 / np.sqrt(300)


def test_examples_in_parts_of_their_own_would_be_seen(monkeypatch):
    """Planted: a person whose examples are in several parts."""
    ordinary = sampling.persons.group

    def group(source, users, places):
        return ordinary(source, np.arange(EXAMPLES), places)

    monkeypatch.setattr(sampling.persons, "group", group)
    with pytest.raises(AssertionError):
        test_a_person_is_in_one_part_with_all_examples_by_one_coin()


@pytest.mark.parametrize(
    ("clipping", "microbatch_size"), [("flat", None), ("per_layer", 3)]
)
def test_a_fit_steps_by_the_clipped_sums_of_an_oracle(
    clipping, microbatch_size
):
    """Of every step: sums over persons of clipped sums over their examples."""
    model = _model(
        noise_multiplier=0.0,
        clipping=clipping,
        microbatch_size=microbatch_size,
    )
    batches = _batches(seed=7)
    expected = []
    groups = [
        (group.members, float(group.clip_norm))
        for group in model.optimizer.groups(common.owned(model))
    ]
    seen = [tuple(map(np.asarray, e.batch)) for e in _in_parts(batches)]
    found = []

    class Note(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            of_step = sampling.PersonBatch(*seen[batch])
            gradients = joined_rows.summed_gradients(self.model, of_step)
            total, _ = joined_rows.clipped(gradients, groups)
            expected.append(total)
            self.before = self.model.get_weights()

        def on_train_batch_end(self, batch, logs=None):
            after = self.model.get_weights()
            found.append(
                [(b - a) * 4.0 for a, b in zip(after, self.before, strict=True)]
            )

    # The seed tells draws of the first fit; each iteration has its own.
    again = _batches(seed=7)
    assert registry.sampling_of(again).seeded
    model.fit(again, verbose=0, callbacks=[Note()])
    assert len(found) == 5 and any(len(x) > 1 for x, _, _ in seen)
    for of_step, sums in zip(found, expected, strict=True):
        for a, b in zip(of_step, sums, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("places", [1, PLACES])
def test_a_person_moves_sums_by_a_clip_norm_at_most_once_a_round(places):
    """A person more, with as many examples of one mind: same seed and draws."""
    x, y = _data()
    extra = 3 * places
    x = np.concatenate([x, np.full((extra, 5), 3.0, np.float32)])
    y = np.concatenate([y, np.zeros(extra, y.dtype)])
    users = np.concatenate([USERS, np.full(extra, PERSONS)])
    # The same persons, parts and draws: one has weight zero, or not.
    sums = []
    for weight in (1e4, 0.0):
        weights = np.ones(len(x), np.float32)
        weights[EXAMPLES:] = weight
        dataset = tf_dpfp.cyclic_poisson_batches(
            x,
            y,
            weights,
            sampling_rate=1.0 / BANDS,
            expected_batch_size=4,
            users=users,
            max_examples_per_user=places,
            steps_per_epoch=3 * BANDS,
            seed=2,
        )
        model = _model(noise_multiplier=0.0)
        of_steps = []
        for element in _in_parts(dataset):
            clipped, _ = joined_rows.sums(model, element.batch)
            of_steps.append(np.concatenate([np.ravel(s) for s in clipped]))
        sums.append(np.stack(of_steps))
    moved = np.linalg.norm(sums[0].astype(np.float64) - sums[1], axis=1)
    assert np.all(moved <= joined_rows.CLIP * (1 + 1e-4))
    # In every round once, for everybody of a part is drawn; to the full.
    by_round = moved.reshape(3, BANDS) > 0.5 * joined_rows.CLIP
    np.testing.assert_array_equal(by_round.sum(axis=1), 1)
    assert len({tuple(row) for row in by_round}) == 1
    assert np.max(moved) > 0.99 * joined_rows.CLIP


def test_fit_counts_persons_and_says_so():
    model = _model()
    model.fit(_batches(), epochs=2, verbose=0)
    (entry,) = tf_dpfp.ledger(model)
    assert entry == accounting.LedgerEntry(
        accounting.CyclicPoissonSampling(BANDS * RATE, parts=BANDS),
        runs.NOISE,
        10 + BANDS - 1,
        release=accounting.BandedPersonSums(BANDS, PLACES),
    )
    by_example = accounting.LedgerEntry(
        entry.sampling,
        runs.NOISE,
        entry.steps,
        release=accounting.BandedSums(BANDS),
    )
    epsilon = tf_dpfp.compute_epsilon(model, DELTA)
    assert epsilon == accounting.compute_epsilon([by_example], DELTA)
    # The bound changes nothing: a person has one part of a step.
    assert epsilon == tf_dpfp.compute_epsilon(model, DELTA, examples_per_user=9)
    words = " ".join(tf_dpfp.privacy_statement(model, DELTA).split())
    for said in (
        "noise correlated over 3 steps, one of 3 parts after the other, with "
        "Poisson sampling at rate 0.5 of persons, up to 2 examples of each",
        "each person belongs to one part, by a coin of its own",
        "User-level DP with add-or-remove-one adjacency",
        "Neighbours differ by one person with all of their examples",
    ):
        assert said in words, said
    assert "No user-level" not in words
    card = tf_dpfp.privacy_card(model, DELTA)
    assert "sums of clipped gradients of persons" in str(card.fields)
    assert card.fields["unit"]["protects"] == "person"


def test_epsilon_is_that_of_an_example_at_the_same_rate():
    """Independent of the numbers of examples, under both accountants."""
    sampled = accounting.CyclicPoissonSampling(0.3, parts=4)
    for accountant in ("rdp", "pld"):
        found = {
            accounting.compute_epsilon(
                [accounting.LedgerEntry(sampled, 1.2, 40, release=release)],
                DELTA,
                accountant,
            )
            for release in (
                accounting.BandedSums(4),
                accounting.BandedPersonSums(4, 1),
                accounting.BandedPersonSums(4, 9),
            )
        }
        assert len(found) == 1


def test_units_that_differ_have_no_epsilon_without_a_bound():
    model = _model(expected_batch_size=4.0)
    model.fit(_batches(), verbose=0)
    model.train_on_batch(*(leaf[:4] for leaf in _data()))
    assert tf_dpfp.compute_epsilon(model, DELTA) == np.inf
    assert tf_dpfp.compute_epsilon(model, DELTA, examples_per_user=4) < np.inf


def test_noise_is_correlated_and_replicas_share_it():
    """Inputs of zeros: no gradient but that of biases, which has none."""
    zeros = np.zeros((EXAMPLES, 3), np.float32)
    for count in (1, 2):
        with common.strategy(count).scope():
            model = runs.silent(runs.optimizer(BANDS), 200)
        data = _batches((zeros, zeros[:, :1]), steps_per_epoch=5)
        recorder = tf_dpfp.auditing.ReleaseRecorder()
        model.fit(data, epochs=2, verbose=0, callbacks=[recorder])
        strategy = banded.coefficients(BANDS, 10)
        runs.assert_of_strategy(
            recorder.releases, strategy, runs.CLIP * runs.NOISE
        )
        assert runs.only(model).release == accounting.BandedPersonSums(3, 2)


@pytest.mark.parametrize(
    "compiled", [{"jit_compile": True}, {"run_eagerly": True}], ids=str
)
def test_every_way_of_fitting_gives_the_same(compiled):
    models = []
    for how in ({}, compiled):
        model = _model(noise_multiplier=0.0)
        model.compile(model.optimizer, joined_rows.loss(), **how)
        model.fit(_batches(seed=3), epochs=2, verbose=0)
        models.append(model)
    common.assert_equal_weights(*models)
    assert tf_dpfp.ledger(models[0]) == tf_dpfp.ledger(models[1])


def test_noise_and_bands_are_found_for_persons():
    model = _model(
        noise_multiplier="calibrate", correlated_noise=tf_dpfp.Banded("best")
    )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, 5)).astype(np.float32)
    data = x, rng.integers(0, joined_rows.CLASSES, 3000)
    batches = _batches(
        data, np.arange(3000) // 2, expected_batch_size=25, steps_per_epoch=60
    )
    budget = tf_dpfp.PrivacyBudget(3.0, 1e-5)
    model.fit(batches, epochs=2, verbose=0, callbacks=[budget])
    assert 0.999 * 3.0 <= tf_dpfp.compute_epsilon(model, 1e-5) <= 3.0
    (entry,) = tf_dpfp.ledger(model)
    assert entry.release.bands > 1 and entry.release.max_examples == PLACES


def test_the_ledger_survives_saving(tmp_path):
    model = _model()
    model.fit(_batches(), verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = tf_dpfp.make_private(keras.saving.load_model(tmp_path / "m.keras"))
    assert tf_dpfp.ledger(loaded) == tf_dpfp.ledger(model)


def test_elsewhere_it_is_the_data_set_of_poisson_batches():
    x, y = _data()
    theirs = tf_dpfp.poisson_batches(
        x,
        y,
        expected_batch_size=4,
        users=USERS,
        max_examples_per_user=PLACES,
        steps_per_epoch=5,
        seed=6,
    )
    for mine, other in zip(_batches(seed=6), theirs, strict=True):
        for a, b in zip(mine, other, strict=True):
            np.testing.assert_array_equal(a, b)
    plain = _model(correlated_noise=None)
    plain.fit(_batches(), verbose=0)
    (entry,) = tf_dpfp.ledger(plain)
    assert entry.release == accounting.PersonSums(PLACES)


class TestRefused:
    def test_arguments(self):
        for wrong in (
            {"max_examples_per_user": None},
            {"max_examples_per_user": 0},
            {"users": None},
            {"users": USERS[1:]},
            {"bands": 7},
        ):
            with pytest.raises(ValueError):
                _batches(**wrong)
        with pytest.raises(ValueError, match="each person would have to be"):
            _batches(bands=7)

    def test_data(self):
        model = _model()
        for derived in (_batches().prefetch(1), _in_parts(_batches())):
            with pytest.raises(ValueError):
                model.fit(derived, verbose=0)
        x, y = _data()
        of_persons = tf_dpfp.poisson_batches(
            x,
            y,
            expected_batch_size=4,
            users=USERS,
            max_examples_per_user=PLACES,
        )
        with pytest.raises(ValueError, match="far enough apart"):
            model.fit(of_persons, verbose=0)
        with pytest.raises(ValueError, match="class_weight"):
            model.fit(_batches(), class_weight={0: 2.0}, verbose=0)
        with pytest.raises(ValueError, match="in `fit` alone"):
            with loops.sampled_steps(model, _batches()):
                pass
        assert tf_dpfp.ledger(model) == []

    def test_steps_on_examples_of_batches_that_are_claimed_for_persons(self):
        """The stamp is of persons: rows that are clipped alone have none."""
        model, dataset = _model(), _batches()
        cyclic = registry.sampling_of(dataset).cyclic
        ordinary = cyclic.batches_of

        def end_to_end(parts):
            def apart(found):
                x, y, weight = sampling.flat(found.batch)
                return sampling.PartBatch((x, y, weight), found.part)

            return ordinary(parts).map(apart)

        object.__setattr__(cyclic, "batches_of", end_to_end)
        with pytest.raises(RuntimeError, match="drawn by person"):
            model.fit(dataset, verbose=0)
