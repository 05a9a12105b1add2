"""Persons with several examples: mpmath, convolutions and dp_accounting."""

import dataclasses
import math

import dp_accounting
import mpmath
import numpy as np
import pytest
from dp_accounting import pld
from scipy import optimize
from scipy import special
from scipy import stats

from tf_dpfp import accounting
from tf_dpfp.accounting import bands
from tf_dpfp.accounting import persons
from tf_dpfp.accounting import releases
from tf_dpfp.accounting import sums

ADDED = releases.Adjacency.ADD_OR_REMOVE_ONE
ZEROED = releases.Adjacency.ZERO_OUT


def _poisson(rate, noise, steps=1, overflow=0.0):
    return accounting.LedgerEntry(
        accounting.PoissonSampling(rate, overflow), noise, steps
    )


def _unknown(noise, steps=1):
    return accounting.LedgerEntry(accounting.UnknownSampling(), noise, steps)


def _log_moments(order, rate, noise, examples):
    """Logarithms of the Renyi moments of both directions, by trapezoids."""
    end = order * examples / noise + 14
    y, spacing = np.linspace(-end, end, 40_001, retstep=True)
    i = np.arange(examples + 1)
    log_ratio = special.logsumexp(
        stats.binom.logpmf(i, examples, rate)
        + i / noise * y[:, None]
        - (i / noise) ** 2 / 2,
        axis=1,
    )
    return [
        special.logsumexp(stats.norm.logpdf(y) + power * log_ratio)
        + math.log(spacing)
        for power in (order, 1 - order)
    ]


def test_oracle_of_moments_by_mpmath():
    rate, noise, order = 0.01, 1.0, 3.0
    mpmath.mp.dps = 20

    def moment(power):
        def integrand(y):
            ratio = (1 - rate) ** 2 + 2 * rate * (1 - rate) * mpmath.exp(
                y - 0.5
            )
            ratio += rate**2 * mpmath.exp(2 * y - 2)
            return mpmath.npdf(y) * ratio**power

        return mpmath.quad(integrand, range(-16, 21, 2))

    np.testing.assert_allclose(
        _log_moments(order, rate, noise, 2),
        [float(mpmath.log(moment(power))) for power in (order, 1 - order)],
        rtol=1e-9,
    )


@pytest.mark.parametrize(
    "rate, noise, examples, order",
    [
        (0.01, 1.0, 2, 3.0),
        (0.034, 2.3, 8, 4.5),
        (0.3, 0.7, 3, 1.25),
        (0.9, 1.5, 4, 2.0),
        (1e-4, 1.0, 20, 1.7),
        (0.2, 6.0, 5, 40.0),
        (0.999, 2.0, 3, 12.0),
    ],
)
def test_moments_are_those_of_the_mixture(rate, noise, examples, order):
    moments = _log_moments(order, rate, noise, examples)
    expected = max(moments) / (order - 1)
    found = persons._rdp_at(order, rate, noise, examples)
    assert expected <= found
    assert found == pytest.approx(expected, rel=1e-8, abs=2e-11)


def test_one_example_costs_what_it_did():
    orders = sums.orders()
    for rate, noise in ((0.01, 1.0), (0.3, 3.0)):
        found = [persons._rdp_at(o, rate, noise, 1) for o in orders]
        known = sums.sampled_rdp(rate, noise)
        computed = np.isfinite(found)
        assert computed.sum() > 60
        exact = computed & (orders % 1.0 == 0.0)
        np.testing.assert_allclose(
            np.array(found)[exact], known[exact], rtol=1e-3
        )
        # Between integers versions of dp_accounting round up more or less.
        ratios = np.array(found)[computed] / known[computed]
        assert np.all(ratios <= 1.001)
        assert np.all(ratios[orders[computed] >= 2.0] >= 0.9)
        entries = [_poisson(rate, noise, 100)]
        assert accounting.compute_epsilon(
            entries, 1e-5, examples_per_user=1
        ) == accounting.compute_epsilon(entries, 1e-5)


def _convolved_epsilon(rate, noise, examples, steps, delta):
    """Epsilon by FFT on a grid of losses that are not rounded up."""
    spacing, size = 1e-3, 2**17
    y = np.linspace(-30.0, 30.0, 200_001)
    weights = stats.binom.pmf(np.arange(examples + 1), examples, rate)
    centres = np.arange(examples + 1) / noise
    p = stats.norm.pdf(y[:, None] - centres) @ weights
    q = stats.norm.pdf(y)
    with np.errstate(divide="ignore", invalid="ignore"):
        loss = np.log(p) - np.log(q)
    inside = np.isfinite(loss)
    found = []
    for density, sign in ((p, 1.0), (q, -1.0)):
        places = np.rint(sign * loss[inside] / spacing).astype(int) % size
        masses = np.bincount(
            places, density[inside] * (y[1] - y[0]), minlength=size
        )
        total = np.fft.irfft(np.fft.rfft(masses) ** steps, size)
        values = np.fft.fftfreq(size, 1.0 / size) * spacing
        kept = np.abs(values) < 40.0
        total, values = total[kept], values[kept]

        def excess(epsilon, total=total, values=values):
            over = np.clip(-np.expm1(epsilon - values), 0.0, None)
            return np.sum(total * over) - delta

        found.append(optimize.brentq(excess, 0.0, 30.0))
    return max(found)


@pytest.mark.parametrize("rate, noise, examples", [(0.05, 1.5, 3)])
def test_whole_trainings_lie_just_above_the_exact_figure(rate, noise, examples):
    exact = _convolved_epsilon(rate, noise, examples, 50, 1e-5)
    found = accounting.compute_epsilon(
        [_poisson(rate, noise, 50)], 1e-5, examples_per_user=examples
    )
    assert 1.5 < exact < found < 1.15 * exact


@pytest.mark.parametrize(
    "examples, by_pld", [(2, 5.1447247), (4, 11.8810801), (8, 29.4447175)]
)
def test_figures_of_dp_accounting(examples, by_pld):
    # dp_accounting 0.6.0, PLD of MixtureOfGaussiansDpEvent.
    entries = [_poisson(2048 / 60_000, 2.3, 1305)]
    found = accounting.compute_epsilon(
        entries, 1e-5, examples_per_user=examples
    )
    assert by_pld < found < 1.09 * by_pld
    assert found < _of_a_group(entries, 1e-5, examples)


def _of_a_group(entries, delta, examples):
    """Group privacy: k epsilon at `delta (e^(k eps) - 1) / (e^eps - 1)`."""

    def spent(log_delta):
        one = accounting.compute_epsilon(entries, math.exp(log_delta))
        grown = math.expm1(examples * one) / math.expm1(one)
        return log_delta + math.log(grown) - math.log(delta)

    log_delta = optimize.brentq(spent, -300.0, math.log(delta))
    one = accounting.compute_epsilon(entries, math.exp(log_delta))
    return examples * one


@pytest.mark.skipif(
    not persons.has_mixtures(), reason="dp_accounting before 0.5"
)
def test_pld_is_that_of_dp_accounting():
    entries = [_poisson(0.05, 6.0, 4), _unknown(160.0, 5)]
    found = accounting.compute_epsilon(
        entries, 1e-5, "pld", examples_per_user=3
    )
    by_rdp = accounting.compute_epsilon(entries, 1e-5, examples_per_user=3)
    mixture = dp_accounting.dp_event.MixtureOfGaussiansDpEvent(
        6.0, range(4), stats.binom.pmf(range(4), 3, 0.05)
    )
    accountant = pld.PLDAccountant().compose(mixture, 4)
    accountant.compose(dp_accounting.GaussianDpEvent(160.0 / 6.0), 5)
    assert found == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-3)
    assert found < by_rdp


@pytest.mark.skipif(persons.has_mixtures(), reason="dp_accounting has mixtures")
def test_rdp_stands_in_for_pld():
    entries = [_poisson(0.05, 1.5, 20)]
    assert accounting.compute_epsilon(
        entries, 1e-5, "pld", examples_per_user=3
    ) == accounting.compute_epsilon(entries, 1e-5, examples_per_user=3)
    text = accounting.privacy_statement(
        entries, 1e-5, accountant="pld", examples_per_user=3
    )
    assert "RDP accounting, since this version of dp_accounting" in " ".join(
        text.split()
    )


def test_gradients_in_other_directions_cost_no_more():
    rate, noise, order = 0.2, 0.8, 3.0
    axis, spacing = np.linspace(-10.0, 15.0, 501, retstep=True)
    a, b = np.meshgrid(axis, axis)
    density = stats.norm.pdf(a) * stats.norm.pdf(b) * spacing**2

    def moment(vectors, power):
        ratio = 0.0
        for drawn in ((), (0,), (1,), (0, 1)):
            x = sum(vectors[i][0] for i in drawn) / noise
            y = sum(vectors[i][1] for i in drawn) / noise
            weight = rate ** len(drawn) * (1 - rate) ** (2 - len(drawn))
            ratio += weight * np.exp(a * x + b * y - (x * x + y * y) / 2)
        return np.sum(density * ratio**power)

    most = math.exp(persons._rdp_at(order, rate, noise, 2) * (order - 1))
    aligned = moment([(1, 0), (1, 0)], order)
    assert aligned == pytest.approx(most, rel=1e-6)
    for vectors in ([(1, 0), (0, 1)], [(1, 0), (-0.6, 0.8)]):
        for power in (order, 1 - order):
            assert 1.0 < moment(vectors, power) < aligned


def test_unknown_sampling_counts_all_examples_in_every_step():
    for adjacency, distance in ((ADDED, 10.0), (ZEROED, 5.0)):
        found = accounting.compute_epsilon(
            [_unknown(30.0, 7)],
            1e-5,
            adjacency=adjacency,
            examples_per_user=5,
        )
        single = _poisson(1.0, 30.0 / distance, 7)
        assert found == accounting.compute_epsilon([single], 1e-5)


@pytest.mark.parametrize("quick", [False, True])
def test_nearly_all_examples_in_every_step(quick):
    orders = sums.orders()
    whole = orders / 2.0 * (4 / 3.0) ** 2
    sure = persons.step_rdp(_poisson(1.0, 3.0), ADDED, 4, quick)
    np.testing.assert_allclose(sure, whole, rtol=1e-9)
    nearly = persons.step_rdp(_poisson(0.999, 3.0), ADDED, 4, quick)
    assert np.all(nearly <= sure)
    assert np.all(nearly >= 0.9 * whole)


def test_many_kinds_are_bounded_from_above():
    entries = [_poisson(0.01, 2.0 + 1e-9 * i, 3) for i in range(33)]
    found = accounting.compute_epsilon(entries, 1e-5, examples_per_user=2)
    exact = accounting.compute_epsilon(
        [_poisson(0.01, 2.0, 99)], 1e-5, examples_per_user=2
    )
    assert exact * (1 - 1e-6) <= found < 1.3 * exact


def test_more_examples_cost_more():
    found = [
        accounting.compute_epsilon(
            [_poisson(0.02, 1.0, 50)], 1e-5, examples_per_user=k
        )
        for k in (1, 2, 3, 10)
    ]
    assert sorted(found) == found
    assert len(set(found)) == 4
    # Never above all of them in every step.
    every = [_poisson(1.0, 0.1, 50)]
    assert found[-1] < accounting.compute_epsilon(every, 1e-5)


def test_without_noise_or_steps():
    assert accounting.compute_epsilon([], 1e-5, examples_per_user=3) == 0.0
    assert math.isinf(
        accounting.compute_epsilon(
            [_poisson(0.1, 0.0)], 1e-5, examples_per_user=3
        )
    )


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "2", 1001])
def test_refuses_other_bounds(wrong):
    for function in (accounting.compute_epsilon, accounting.privacy_statement):
        with pytest.raises(ValueError, match="`examples_per_user` must be"):
            function([_poisson(0.1, 1.0)], 1e-5, examples_per_user=wrong)


def test_refuses_what_is_not_proved():
    drawn = accounting.LedgerEntry(
        accounting.WithoutReplacement(200, 5),
        2.0,
        3,
        release=accounting.Representations("public"),
    )
    padded = _poisson(0.1, 1.0, 3, overflow=1e-15)
    banded = bands.sampled_entry(2, 1.0, 10, 1000, 10)
    for function in (accounting.compute_epsilon, accounting.privacy_statement):
        with pytest.raises(ValueError, match="steps that share noise"):
            function([banded], 1e-5, examples_per_user=2)
        with pytest.raises(ValueError, match="replace-one adjacency"):
            function([drawn], 1e-5, examples_per_user=2)
        with pytest.raises(ValueError, match="padded='static'"):
            function([padded], 1e-5, examples_per_user=2)
        function([drawn], 1e-5)
        function([padded], 1e-5)


def test_refuses_budgets_of_examples_and_persons():
    of_person = dataclasses.replace(
        _poisson(0.1, 1.0, 3), release=accounting.PersonSums(2)
    )
    both = [_poisson(0.1, 1.0), of_person]
    assert persons.units_differ(both)
    assert math.isinf(accounting.compute_epsilon(both, 1e-5))
    with pytest.raises(ValueError, match="protect examples, and others perso"):
        persons.refuse_mixed(both)
    persons.refuse_mixed([of_person, _poisson(0.1, 1.0, 0)])


def test_statement_of_persons():
    entries = [_poisson(0.01, 1.0, 1000), _unknown(200.0, 5)]
    words = " ".join(
        accounting.privacy_statement(entries, 1e-5, examples_per_user=4).split()
    )
    found = accounting.compute_epsilon(entries, 1e-5, examples_per_user=4)
    figure = math.ceil(found * 1000) / 1000
    assert f"Epsilon of a person with up to 4 examples: {figure:.3f}" in words
    assert "which is given here and not checked" in words
    assert "a mixture of Gaussians" in words
    assert "all of them may be in every step" in words
    assert "No user-level" not in words
    assert "No user-level" in accounting.privacy_statement(entries, 1e-5)
