"""Epsilon of correlated noise, and how many bands are best."""

import dataclasses
import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld
from dp_accounting import rdp
from scipy import stats

from tf_dpfp import accounting
from tf_dpfp.accounting import banded
from tf_dpfp.accounting import bands
from tf_dpfp.accounting import sums
from tf_dpfp.accounting import table
from tf_dpfp.accounting import within

DELTA = 1e-5


def entry(steps, parts=4, number=None, rate=0.2, noise=1.3, blocks=1, **kwargs):
    return accounting.LedgerEntry(
        accounting.CyclicPoissonSampling(rate, parts=parts, **kwargs),
        noise,
        steps + blocks * (parts - 1),
        release=accounting.BandedSums(number or parts),
    )


def by_hand(accountant, rate, noise, rounds):
    event = dp_accounting.SelfComposedDpEvent(
        dp_accounting.PoissonSampledDpEvent(
            rate, dp_accounting.GaussianDpEvent(noise)
        ),
        rounds,
    )
    return accountant.compose(event).get_epsilon(DELTA)


@pytest.mark.parametrize("steps", [1, 4, 5, 39, 40, 41])
def test_epsilon_is_that_of_one_sampled_step_a_round(steps):
    rounds = math.ceil(steps / 4)
    ran = [entry(steps)]
    assert ran[0].rounds == rounds
    found = accounting.compute_epsilon(ran, DELTA)
    assert found == pytest.approx(
        by_hand(rdp.RdpAccountant(sums.orders()), 0.2, 1.3, rounds), rel=1e-6
    )
    tight = accounting.compute_epsilon(ran, DELTA, "pld")
    assert tight <= found
    assert tight == pytest.approx(
        by_hand(pld.PLDAccountant(), 0.2, 1.3, rounds), rel=1e-3
    )
    assert within.is_within(ran, found + 1e-6, DELTA)
    assert not within.is_within(ran, found - 1e-6, DELTA)


def test_as_many_bands_as_steps_are_one_full_step_of_the_gaussian():
    """One pass, each example in one step: epsilon of a single Gaussian."""
    ran = [entry(16, parts=16, rate=1.0, noise=3.0)]
    epsilon = accounting.compute_epsilon(ran, DELTA, "pld")
    mu = 1.0 / 3.0
    delta = stats.norm.cdf(mu / 2 - epsilon / mu) - math.exp(
        epsilon
    ) * stats.norm.cdf(-mu / 2 - epsilon / mu)
    assert delta == pytest.approx(DELTA, rel=0.02)


@pytest.mark.parametrize("lengths", [[1], [3, 2], [4, 4], [1] * 9, [7, 1, 12]])
def test_chains_that_begin_anew_count_at_least_what_an_example_is_in(lengths):
    counted = entry(sum(lengths), blocks=len(lengths)).rounds
    in_steps = sum(math.ceil(length / 4) for length in lengths)
    assert counted >= in_steps
    assert counted <= in_steps + len(lengths)


def test_steps_that_ran_are_never_free():
    """An entry made by hand may count steps alone, without a beginning."""
    assert dataclasses.replace(entry(1), steps=0).rounds == 0
    for steps in (1, 3, 4):
        made = dataclasses.replace(entry(1), steps=steps)
        assert made.rounds == 1
        for accountant in ("rdp", "pld"):
            assert accounting.compute_epsilon([made], DELTA, accountant) > 0.1


def test_rows_come_back_and_mean_nothing_to_earlier_versions():
    ran = entry(10, parts=8, number=5)
    row = table.encode(ran)
    assert table.decode(row, ran.steps) == ran
    # What the version before knew of a row: codes to 4, releases to 10.
    assert row[0] == 5.0 and row[5] == 11.0
    for column, value in ((0, 1.0), (7, 0.0), (7, 2.5), (5, 0.0), (6, 9.0)):
        broken = row.copy()
        broken[column] = value
        with pytest.raises(ValueError):
            table.decode(broken, ran.steps)


def of_persons(steps, max_examples=5):
    return dataclasses.replace(
        entry(steps), release=accounting.BandedPersonSums(4, max_examples)
    )


@pytest.mark.parametrize("max_examples", [1, 5, 2**20 - 1])
def test_rows_of_persons_keep_bands_and_examples_under_a_code_of_theirs(
    max_examples,
):
    ran = of_persons(10, max_examples)
    row = table.encode(ran)
    assert table.decode(row, ran.steps) == ran
    assert row[0] == 5.0 and row[5] == 13.0
    assert not np.array_equal(row, table.encode(entry(10)))
    # No bands, one band, no examples, and halves of them.
    for column, value in (
        (6, 0.0),
        (6, 2**20),
        (6, 2**20 + 1),
        (6, 4),
        (6, 0.5),
    ):
        broken = row.copy()
        broken[column] = value
        with pytest.raises(ValueError):
            table.decode(broken, ran.steps)


def test_rows_of_persons_have_room_for_numbers_below_a_limit():
    with pytest.raises(ValueError, match="numbers below"):
        table.encode(of_persons(10, 2**20))


def test_bands_of_persons_and_of_examples_are_never_added_up():
    ran = [entry(10), of_persons(10), of_persons(10, 6), of_persons(2)]
    assert [e.steps for e in table.merge(ran)] == [13, 18, 13]
    assert accounting.compute_epsilon(ran, DELTA) == math.inf


def test_a_person_with_any_number_of_examples_is_counted_as_one():
    expected = accounting.compute_epsilon([entry(40)], DELTA)
    for examples_per_user in (None, 1, 7):
        assert expected == accounting.compute_epsilon(
            [of_persons(40)], DELTA, examples_per_user=examples_per_user
        )
    # By another way: mixtures of one part are sampled Gaussians.
    assert accounting.compute_epsilon(
        [of_persons(40)], DELTA, "pld", examples_per_user=7
    ) == pytest.approx(accounting.compute_epsilon([entry(40)], DELTA, "pld"))
    plain = of_persons(10).without_sampling()
    assert plain.release == accounting.PersonSums(5)
    assert plain.noise_multiplier == pytest.approx(1.3 / 2)


def test_cyclic_sampling_and_correlated_noise_go_together():
    cyclic = accounting.CyclicPoissonSampling(0.1, parts=2)
    with pytest.raises(ValueError, match="can't be accounted for"):
        accounting.LedgerEntry(cyclic, 1.0, 1)
    with pytest.raises(ValueError, match="can't be accounted for"):
        accounting.LedgerEntry(
            accounting.PoissonSampling(0.1),
            1.0,
            1,
            release=accounting.BandedSums(2),
        )
    with pytest.raises(ValueError, match="as many parts as bands"):
        entry(1, parts=2, number=3)
    with pytest.raises(ValueError, match="parts"):
        accounting.CyclicPoissonSampling(0.1)


def test_without_the_sampling_every_step_counts_with_the_root_of_bands():
    plain = entry(10, parts=9, number=4, noise=2.0).without_sampling()
    assert plain == accounting.LedgerEntry(
        accounting.UnknownSampling(), 1.0, 18
    )
    said = accounting.privacy_statement([entry(400)], DELTA)
    said = " ".join(said.split())
    assert "noise correlated over 4 steps" in said
    assert "one of 4 parts after the other" in said


def test_overflow_counts_for_every_step():
    dropped = entry(100, overflow_probability=1e-9)
    assert accounting.compute_epsilon([dropped], DELTA) > (
        accounting.compute_epsilon([entry(100)], DELTA)
    )


def test_persons_with_several_examples_are_refused():
    with pytest.raises(ValueError, match="steps that share noise"):
        accounting.compute_epsilon([entry(4)], DELTA, examples_per_user=2)


def _generic(*arguments):
    """Errors with the coefficients that no search has changed."""
    epsilon, delta, population, size, steps = arguments
    return {
        count: accounting.least_noise(
            lambda noise, b=count: [
                bands.sampled_entry(b, noise, steps, population, size)
            ],
            epsilon,
            delta,
        )
        * banded.relative_error(banded.square_root(count), steps)
        for count in (1, 2, 4, 8, 16)
    }


def test_generic_coefficients_gain_what_was_computed_elsewhere():
    # A language model: 100,000 examples, batches of 1024, three passes.
    errors = _generic(3.0, DELTA, 100_000, 1024, 293)
    for count, known in ((2, 0.844), (4, 0.743), (8, 0.692), (16, 0.687)):
        assert errors[count] / errors[1] == pytest.approx(known, abs=0.02)


def test_bands_are_best_for_few_passes_and_one_for_many():
    few = accounting.compare_bands(3.0, DELTA, 100_000, 1024, 293)
    assert few[0].bands == 1 and few[0].relative_error == 1.0
    assert bands.best(few).bands == 8
    assert bands.best(few).relative_error < 0.65
    # MNIST, batches of 2048 and 45 epochs.
    many = accounting.compare_bands(2.93, DELTA, 60_000, 2048, 1318)
    assert bands.best(many).bands == 1
    assert min(each.relative_error for each in many) > 0.95


def test_every_choice_meets_the_same_budget():
    for each in accounting.compare_bands(3.0, DELTA, 20_000, 256, 240):
        ran = bands.sampled_entry(
            each.bands, each.noise_multiplier, 240, 20_000, 256
        )
        assert 2.95 < accounting.compute_epsilon([ran], DELTA) <= 3.0


def test_refuses_more_bands_than_there_are_batches_or_steps():
    for most in ({"steps": 5}, {"expected_batch_size": 190.0}):
        arguments = {
            "epsilon": 3.0,
            "delta": DELTA,
            "population": 1000,
            "expected_batch_size": 10.0,
            "steps": 50,
        } | most
        with pytest.raises(ValueError, match="bands"):
            accounting.compare_bands(**arguments, bands=[6])


def test_noise_in_sums_is_as_much_less_as_is_said():
    """By simulation, of noise made as a training makes it."""
    steps, count = 60, 4
    (plain, four) = accounting.compare_bands(
        3.0, DELTA, 5000, 250, steps, bands=[1, count]
    )
    rng = np.random.default_rng(0)
    normals = rng.normal(size=(steps, 4000))

    def error(strategy, noise):
        correlated = np.zeros_like(normals)
        for t in range(steps):
            correlated[t] = normals[t]
            for lag in range(1, min(len(strategy), t + 1)):
                correlated[t] -= strategy[lag] * correlated[t - lag]
            correlated[t] /= strategy[0]
        return noise * np.sqrt(np.mean(np.cumsum(correlated, axis=0) ** 2))

    found = error(banded.coefficients(count, steps), four.noise_multiplier)
    found /= error((1.0,), plain.noise_multiplier)
    assert found == pytest.approx(four.relative_error, rel=0.03)
