"""Rates of membership attacks against closed forms and simulated attacks."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from tf_dpfp.accounting import entries as entries_lib
from tf_dpfp.accounting import releases
from tf_dpfp.accounting import samplings
from tf_dpfp.accounting import tradeoff

normal = stats.norm


def _poisson(noise=1.0, steps=1, rate=1.0, overflow=0.0, **kwargs):
    sampling = samplings.PoissonSampling(rate, overflow)
    return entries_lib.LedgerEntry(sampling, noise, steps, **kwargs)


def _unknown(noise, steps, **kwargs):
    sampling = samplings.UnknownSampling()
    return entries_lib.LedgerEntry(sampling, noise, steps, **kwargs)


def _drawn(rate=0.25, noise=2.0, steps=4, release=None):
    sampling = samplings.WithoutReplacement(1000, int(1000 * rate))
    release = release or releases.Representations("public")
    return entries_lib.LedgerEntry(sampling, noise, steps, release=release)


def _rates(entries, **kwargs):
    return dict(tradeoff.membership_attacks(entries, **kwargs).rates)


PUBLIC = releases.Representations("public")


@pytest.mark.parametrize(
    "entries, squared",
    [
        ([_poisson(1.7, 1000)], 1000 / 1.7**2),
        ([_poisson(0.3, 7), _poisson(11.0, 12_345)], 7 / 0.09 + 12_345 / 121),
        # Fixed batches: twice the clip norm.
        ([_unknown(3.0, 10)], 4 * 10 / 9),
        ([_drawn(1.0, 5.0, 3)], 4 * 3 / 25),
        ([_drawn(1.0, 5.0, 3, releases.Joint("public"))], 4 * 3 / 25),
        ([_unknown(5.0, 3, release=PUBLIC)], 4 * 3 / 25),
        # Under replace-one sums count without their sampling.
        ([_unknown(5.0, 1, release=PUBLIC), _poisson(2.0, 9, 0.1)], 0.16 + 9),
        ([_poisson(2.0, 5, release=releases.PersonSums(4))], 5 / 4),
        ([], 0.0),
    ],
)
def test_mu_of_gaussians_is_exact(entries, squared):
    found = tradeoff.membership_attacks(entries)
    assert found.is_exact and found.method == "gaussian"
    assert found.mu == pytest.approx(math.sqrt(squared), rel=1e-12, abs=1e-12)
    for at, rate in found.rates:
        expected = normal.cdf(normal.ppf(at) + math.sqrt(squared))
        assert rate == pytest.approx(expected, rel=1e-12)


def test_mu_of_a_person_is_that_of_all_their_examples():
    assert tradeoff.membership_attacks(
        [_poisson(6.0, 1)], 3
    ).mu == pytest.approx(0.5)
    # A step of persons has one part of each.
    step = _poisson(6.0, 1, release=releases.PersonSums(9))
    assert tradeoff.membership_attacks([step], 3).mu == pytest.approx(1 / 6)


def _sampled_step(at, rate, shift):
    """The best attack on one sampled step, in both directions."""
    there = (1 - rate) * at + rate * normal.cdf(normal.ppf(at) + shift)
    ends = np.linspace(-12.0, 12.0, 400_001)
    false = (1 - rate) * normal.cdf(ends) + rate * normal.cdf(ends - shift)
    away = normal.cdf(ends)
    return max(there, np.interp(at, false, away))


@pytest.mark.parametrize("rate, noise", [(0.5, 1.0), (0.05, 0.7), (0.9, 2.0)])
def test_rates_of_one_sampled_step_are_tight(rate, noise):
    for at, found in _rates([_poisson(noise, 1, rate)]).items():
        expected = _sampled_step(at, rate, 1 / noise)
        # What mixes both directions may be greater than either.
        assert expected <= found <= expected + 2e-3


def _shown(scores_in, scores_out, at):
    """Rates of an attack with a threshold that was chosen before."""
    threshold = np.quantile(scores_out[::2], 1 - at)
    return np.mean(scores_out[1::2] > threshold), np.mean(scores_in > threshold)


def _likelihood(sums, rate, shift):
    ratio = (1 - rate) + rate * np.exp(shift * sums - shift**2 / 2)
    return np.log(ratio).sum(axis=-1)


def test_the_best_attack_on_sampled_steps_reaches_the_rates_and_no_more():
    rng = np.random.default_rng(0)
    runs, steps, rate, noise = 200_000, 10, 0.3, 1.2
    shifts = (rng.random((runs, steps)) < rate) / noise
    with_it = rng.normal(size=(runs, steps)) + shifts
    without = rng.normal(size=(runs, steps))
    curve = tradeoff.curve_of([_poisson(noise, steps, rate)]).curve
    for at in tradeoff.RATES:
        false, true = _shown(
            _likelihood(with_it, rate, 1 / noise),
            _likelihood(without, rate, 1 / noise),
            at,
        )
        bound = curve(np.array([false + 3 * math.sqrt(at / runs * 2)]))[0]
        assert true <= bound + 3e-3
        # Sharp enough to see a rate that is a tenth too low.
        assert true > 0.85 * curve(np.array([false]))[0]


def test_renyi_divergences_give_greater_rates_than_the_losses():
    ran = [_poisson(1.1, 500, 0.01)]
    by_losses, by_rdp = _rates(ran), _rates(ran, accountant="rdp")
    for at in tradeoff.RATES:
        assert by_losses[at] < by_rdp[at] < 2 * by_losses[at]


def test_two_coins_are_bounded_by_their_own_divergence():
    # Randomised response of two classes: known for every attack.
    for epsilon in (0.1, 1.0, 5.0):
        sampling = samplings.EveryLabel(2, 1)
        labels = entries_lib.LedgerEntry(
            sampling, 1 / epsilon, 1, release=releases.Labels()
        )
        kept = 1 / (1 + math.exp(-epsilon))
        curve = tradeoff.curve_of([labels]).curve
        at = np.array([1e-4, 1e-3, 1 - kept, 0.3])
        exact = np.interp(at, [0.0, 1 - kept, 1.0], [0.0, kept, 1.0])
        assert np.all(curve(at) >= exact)
        # There, the attack is the coin itself.
        assert curve(at)[2] == pytest.approx(kept, abs=2e-3)


def test_representations_that_are_drawn_are_below_those_that_are_not():
    drawn, whole = _rates([_drawn(0.25)]), _rates([_drawn(1.0)])
    for at in tradeoff.RATES:
        assert at < drawn[at] < whole[at]


@pytest.mark.parametrize(
    "entries",
    [
        [_poisson(1.1, 14_062, 256 / 60_000)],
        [_poisson(0.7, 10, 0.1)],
        [_poisson(40.0, 5, 0.01)],
        [_drawn(0.25)],
        [_poisson(1.0, 100, 1.0, overflow=1e-9)],
    ],
)
def test_mu_of_sampled_steps_allows_all_that_they_allow(entries):
    found = tradeoff.membership_attacks(entries)
    assert not found.is_exact and found.least_error == 1e-6
    curve = tradeoff.curve_of(entries).curve
    at = normal.cdf(np.random.default_rng(0).uniform(-4.75, 4.75, 2000))
    rates = np.minimum(curve(at), 1 - 1e-6)
    assert np.all(rates <= normal.cdf(normal.ppf(at) + found.mu))
    # And not much more.
    less = max(found.mu - 0.05, 0.0)
    assert less == 0.0 or np.any(rates > normal.cdf(normal.ppf(at) + less))


@dataclasses.dataclass(frozen=True)
class _MoreIsSaid(entries_lib.LedgerEntry):
    more: int = 1


@pytest.mark.parametrize("rate", [1.0, 0.1])
def test_steps_of_which_more_is_said_are_left_to_the_accountant(rate):
    plain = _poisson(2.0, 5, rate)
    more = _MoreIsSaid(plain.sampling, 2.0, 5)
    found = tradeoff.membership_attacks([more])
    assert found.method == "rdp" and not found.is_exact
    assert found.mu > tradeoff.membership_attacks([plain]).mu


@pytest.mark.parametrize("rate", [1.0, 0.1])
def test_dropped_examples_add_to_the_rates(rate):
    kept = tradeoff.curve_of([_poisson(1.0, 100, rate)]).curve
    dropped = tradeoff.curve_of([_poisson(1.0, 100, rate, 1e-4)]).curve
    at = np.array([0.001, 0.01, 0.1])
    np.testing.assert_allclose(
        dropped(at), np.minimum(kept(at + 0.01) + 0.01, 1.0), rtol=1e-9
    )
    # Nor is any mu exact then.
    assert not tradeoff.membership_attacks(
        [_poisson(1.0, 100, rate, 1e-4)]
    ).is_exact


@pytest.mark.parametrize(
    "entries",
    [
        [_poisson(1.0, 9, 0.1), _poisson(0.0, 1, 0.1)],
        [_drawn(release=releases.Representations("undeclared"))],
        [_poisson(), _poisson(release=releases.PersonSums(2))],
    ],
)
def test_where_nothing_is_protected_attacks_may_do_all(entries):
    found = tradeoff.membership_attacks(entries)
    assert found.method == "none" and found.mu is None
    assert {rate for _, rate in found.rates} == {1.0}


def test_a_bound_on_persons_makes_one_unit_of_two():
    steps = [_poisson(9.0), _poisson(9.0, release=releases.PersonSums(2))]
    found = tradeoff.membership_attacks(steps, examples_per_user=2)
    assert found.mu == pytest.approx(math.sqrt(5.0) / 9.0)


def test_more_examples_of_a_person_are_easier_to_find():
    rates = [
        _rates([_poisson(2.0, 50, 0.1)], examples_per_user=k, accountant="rdp")
        for k in (1, 2, 4)
    ]
    for at in tradeoff.RATES:
        assert rates[0][at] < rates[1][at] < rates[2][at]


def test_persons_of_representations_are_refused():
    with pytest.raises(ValueError, match="examples_per_user"):
        tradeoff.membership_attacks([_drawn()], examples_per_user=2)


def test_many_kinds_of_steps_take_seconds():
    entries = [_poisson(1.0 + i / 100, 3, 0.01 + i / 1e4) for i in range(40)]
    assert tradeoff.membership_attacks(entries, accountant="rdp").mu < 1.0
