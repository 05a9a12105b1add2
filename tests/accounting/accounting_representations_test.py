"""Rows and labels: the accountant against numerical integration."""

import dataclasses
import itertools
import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting import rdp
from scipy import integrate
from scipy import stats

from tf_dpfp import accounting
from tf_dpfp.accounting import representations
from tf_dpfp.accounting import table

PUBLIC = accounting.Representations("public")
ORDERS = (1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 40.0)


def _drawn(
    noise=2.0, steps=100, population=200, sample=5, release=None, **kwargs
):
    return accounting.LedgerEntry(
        accounting.WithoutReplacement(population, sample),
        noise,
        steps,
        release=PUBLIC if release is None else release,
        **kwargs,
    )


def _labels(epsilon=1.0, classes=3, identity=7):
    return accounting.LedgerEntry(
        accounting.EveryLabel(classes, identity),
        1.0 / epsilon,
        1,
        release=accounting.Labels(),
    )


def _moment_by_quad(rate, shift, order):
    """The Renyi moment of the dominating pair, by adaptive quadrature."""

    def integrand(x):
        loss = np.log1p(rate * np.expm1(shift * x - shift * shift / 2))
        density = stats.norm.logpdf(x)
        # In this order: what is left of two near numbers, minus the like.
        above = math.exp(density + order * loss) * -math.expm1(
            (1 - order) * loss
        )
        below = math.exp(density) * math.expm1((1 - order) * loss)
        return above + below

    value, _ = integrate.quad(
        integrand,
        shift / 2,
        order * shift + 30,
        limit=1000,
        points=[order * shift],
        epsabs=0,
        epsrel=1e-11,
    )
    return math.log1p(value) / (order - 1)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.9])
@pytest.mark.parametrize("noise", [0.7, 2.0, 20.0])
def test_rdp_is_that_of_adaptive_quadrature(rate, noise):
    found = representations.sampled_rdp(rate, noise, ORDERS)
    for order, value in zip(ORDERS, found, strict=True):
        if order / noise > 20:
            continue
        expected = _moment_by_quad(rate, 1 / noise, order)
        expected = min(expected, order / noise**2 / 2)
        assert value == pytest.approx(expected, rel=1e-8)
        assert value >= expected * (1 - 1e-10)


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.9])
@pytest.mark.parametrize("shift", [0.2, 1.0])
@pytest.mark.parametrize("order", [2.0, 6.0])
@pytest.mark.parametrize("beyond", [0.0, 0.5, 2.0])
def test_the_end_of_the_quadrature_is_covered(rate, shift, order, beyond):
    # Near the peak of the integrand, so that the rest is no rounding error.
    end = max(order * shift + beyond, 0.6 * shift)
    exact = _moment_by_quad(rate, shift, order) * (order - 1)
    found = np.log1p(
        math.exp(representations._log_excess(rate, shift, order, end))
    )
    assert exact <= found * (1 + 1e-9)


def test_noise_that_halving_makes_zero_protects_nothing():
    least = 5e-324
    assert least / 2.0 == 0.0
    entry = _drawn(noise=least)
    assert math.isinf(accounting.compute_epsilon([entry], 1e-5))


LINE = np.linspace(-40, 40, 20_001)


def _renyi(p, q, order, cell=LINE[1] - LINE[0]):
    """Of two densities on a grid."""
    moment = np.sum(q * (p / q) ** order) * cell
    return math.log(moment) / (order - 1)


def _one_row(points, noise):
    """The density of one noised row of a random example, clip norm 1."""
    return np.mean([stats.norm.pdf(LINE, p, noise) for p in points], axis=0)


@pytest.mark.parametrize("noise", [1.5, 4.0])
@pytest.mark.parametrize(
    "points",
    [
        [1, -1],
        [1, 1],
        [1, -1, -1, -1],
        [1, -1, 0.5],
        [1, 1, 1, 1, 1],
    ],
)
def test_a_draw_of_one_row_is_within_the_bound(points, noise):
    n = len(points)
    one = _one_row(points, noise)
    two = _one_row([-1, *points[1:]], noise)
    bound = representations.sampled_rdp(1 / n, noise / 2, (2.0, 4.0, 8.0))
    for order, most in zip((2.0, 4.0, 8.0), bound, strict=True):
        assert _renyi(one, two, order) <= most
        assert _renyi(two, one, order) <= most


def test_two_points_come_near_the_bound():
    # All others where the replaced one goes: the worst case at losses above 0.
    n, noise, order = 10, 2.0, 8.0
    one = _one_row([1] + [-1] * (n - 1), noise)
    two = _one_row([-1] * n, noise)
    (bound,) = representations.sampled_rdp(1 / n, noise / 2, (order,))
    assert 0.6 * bound < _renyi(one, two, order) <= bound


def _two_rows(draws, noise):
    """The density of two rows, all of the draws being equally likely."""
    grid = np.linspace(-9, 9, 241)
    columns = {
        p: stats.norm.pdf(grid, p, noise) for draw in draws for p in draw
    }
    density = sum(np.outer(columns[a], columns[b]) for a, b in draws)
    return density / len(draws), (grid[1] - grid[0]) ** 2


def _worst(others, noise, order, draws_of):
    """The larger divergence of draws of two with 1 or -1 among the others."""
    one, cell = _two_rows(list(draws_of([1, *others], 2)), noise)
    two, _ = _two_rows(list(draws_of([-1, *others], 2)), noise)
    return max(_renyi(one, two, order, cell), _renyi(two, one, order, cell))


@pytest.mark.parametrize("others", [[-1, -1], [0.3, -1], [1, -1, -1], [0, 0]])
@pytest.mark.parametrize("order", [2.0, 6.0])
def test_a_draw_of_two_rows_is_within_the_bound(others, order):
    noise = 1.6
    rate = 2 / (1 + len(others))
    (bound,) = representations.sampled_rdp(rate, noise / 2, (order,))
    found = _worst(others, noise, order, itertools.permutations)
    assert found <= bound


def test_the_bound_needs_the_order_of_rows_to_be_random():
    noise, order = 1.6, 6.0
    others = [1, -1] * 3
    (bound,) = representations.sampled_rdp(2 / 7, noise / 2, (order,))
    shuffled = _worst(others, noise, order, itertools.permutations)
    by_index = _worst(others, noise, order, itertools.combinations)
    assert shuffled <= bound
    assert by_index > 1.5 * shuffled


def test_never_above_the_general_bound_of_dp_accounting():
    for rate, noise in ((0.01, 1.0), (0.1, 2.0), (0.5, 5.0)):
        accountant = rdp.RdpAccountant(
            orders=ORDERS,
            neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE,
        )
        accountant.compose(
            dp_accounting.SampledWithoutReplacementDpEvent(
                1000, int(1000 * rate), dp_accounting.GaussianDpEvent(noise)
            )
        )
        found = representations.sampled_rdp(rate, noise, ORDERS)
        assert np.all(found <= accountant.rdp * (1 + 1e-9))


def test_extremes_are_bounds():
    # All of a stratum in every draw; hardly any noise; a great deal of it.
    full = representations.sampled_rdp(1.0, 2.0, ORDERS)
    np.testing.assert_allclose(full, np.array(ORDERS) / 8.0)
    for rate, noise in ((0.3, 1e-6), (1e-9, 1e-3), (0.5, 1e9), (1e-9, 1e6)):
        found = representations.sampled_rdp(rate, noise, ORDERS)
        assert np.all(np.isfinite(found)) and np.all(found >= 0.0)
        assert np.all(found <= np.array(ORDERS) / 2 / noise**2 * (1 + 1e-12))
        if noise < 1e9:
            assert np.all(found > 0.0)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 5.0])
def test_randomised_response_is_that_of_its_probabilities(classes, epsilon):
    keep = math.exp(epsilon) / (math.exp(epsilon) + classes - 1)
    other = (1 - keep) / (classes - 1)
    p = np.array([keep] + [other] * (classes - 1))
    q = np.roll(p, 1)
    found = representations.randomized_response_rdp(
        1 / epsilon, classes, ORDERS
    )
    for order, value in zip(ORDERS, found, strict=True):
        exact = math.log(np.sum(p**order * q ** (1 - order))) / (order - 1)
        assert value == pytest.approx(exact, rel=1e-6)
        assert exact * (1 - 1e-12) <= value <= epsilon * (1 + 1e-8)


def test_the_noise_multiplier_is_halved_for_a_replaced_row():
    unsampled = accounting.LedgerEntry(
        accounting.UnknownSampling(),
        8.0,
        10,
        False,
        PUBLIC,
    )
    # Everyone in every step, and sensitivity 1: the plain Gaussian.
    sums = accounting.LedgerEntry(accounting.PoissonSampling(1.0), 4.0, 10)
    assert accounting.compute_epsilon(
        [unsampled], 1e-5
    ) == accounting.compute_epsilon([sums], 1e-5)


def test_labels_cost_no_more_than_their_epsilon():
    alone = accounting.compute_epsilon([_drawn()], 1e-5)
    both = accounting.compute_epsilon([_drawn(), _labels(1.0)], 1e-5)
    assert alone < both <= alone + 1.0 + 1e-6
    # The same randomisation is released once, another one again.
    again = [_drawn(), _labels(1.0), _labels(1.0)]
    assert accounting.compute_epsilon(again, 1e-5) == both
    other = [_drawn(), _labels(1.0), _labels(1.0, identity=8)]
    assert accounting.compute_epsilon(other, 1e-5) > both


def test_sums_beside_rows_are_accounted_for_by_replacement():
    poisson = accounting.LedgerEntry(accounting.PoissonSampling(0.01), 4.0, 50)
    as_rows = accounting.LedgerEntry(
        accounting.UnknownSampling(),
        4.0,
        50,
        False,
        PUBLIC,
    )
    for accountant in ("rdp", "pld"):
        mixed = accounting.compute_epsilon(
            [poisson, _drawn()], 1e-5, accountant
        )
        assert mixed == pytest.approx(
            accounting.compute_epsilon([as_rows, _drawn()], 1e-5), rel=1e-12
        )
    adjacency = accounting.Adjacency
    assert accounting.adjacency_of([poisson]) is adjacency.ADD_OR_REMOVE_ONE
    assert accounting.adjacency_of([poisson, _drawn()]) is adjacency.REPLACE_ONE
    unused = [poisson, _drawn(steps=0)]
    assert accounting.adjacency_of(unused) is adjacency.ADD_OR_REMOVE_ONE
    event = accounting.compose_events([poisson, _drawn()])
    gaussian = dp_accounting.GaussianDpEvent(2.0)
    assert event.events[0] == dp_accounting.SelfComposedDpEvent(gaussian, 50)


@pytest.mark.parametrize(
    "entry",
    [
        _drawn(noise=0.0),
        _drawn(release=accounting.Representations("undeclared")),
        _drawn(release=accounting.EndToEnd()),
    ],
)
def test_what_protects_nothing_makes_epsilon_infinite(entry):
    assert math.isinf(accounting.compute_epsilon([entry, _labels()], 1e-5))
    unused = dataclasses.replace(entry, steps=0)
    assert accounting.compute_epsilon([unused], 1e-5) == 0.0


def test_releases_and_samplings_that_no_proof_covers_are_refused():
    pairs = (
        (accounting.PoissonSampling(0.1), PUBLIC),
        (accounting.WithoutReplacement(9, 3), accounting.Sums()),
        (accounting.EveryLabel(3, 1), PUBLIC),
        (accounting.UnknownSampling(), accounting.Labels()),
    )
    for sampling, release in pairs:
        with pytest.raises(ValueError, match="can't be accounted"):
            accounting.LedgerEntry(sampling, 1.0, 1, False, release)


@pytest.mark.parametrize(
    "entry",
    [_drawn(seeded=True), _drawn(release=accounting.EndToEnd()), _labels()],
)
def test_entries_come_back_from_the_table(entry):
    row = table.encode(entry)
    assert table.decode(row, entry.steps) == entry
    row[5] = 9.0
    with pytest.raises(ValueError, match="Unknown release"):
        table.decode(row, 1)


def test_published_codes_do_not_change():
    assert list(table.encode(_drawn())) == [3, 2.0, 200, 5, 0, 1, 0, 0]
    assert list(table.encode(_labels(2.0))) == [4, 0.5, 3, 7, 0, 5, 0, 0]


def test_claimed_figure():
    claimed = accounting.claimed_epsilon(0.634, 1024 / 67349, 197, 7.4e-6)
    assert claimed == pytest.approx(3.0, abs=0.02)
    # Its delta at that epsilon is the one asked for.
    mu = 0.02 * math.sqrt(500 * math.expm1(1 / 1.5**2))
    found = accounting.claimed_epsilon(1.5, 0.02, 500, 1e-5)
    delta = stats.norm.cdf(-found / mu + mu / 2) - math.exp(
        found
    ) * stats.norm.cdf(-found / mu - mu / 2)
    assert delta == pytest.approx(1e-5, rel=1e-6)
    assert math.isinf(accounting.claimed_epsilon(0.01, 0.02, 5, 1e-5))
    # Squares that underflow, and sums that overflow.
    assert math.isinf(accounting.claimed_epsilon(1e-200, 0.02, 5, 1e-5))
    assert math.isinf(accounting.claimed_epsilon(0.03757, 1.0, 100, 1e-5))
    assert accounting.claimed_epsilon(1e4, 0.01, 1, 1e-5) == 0.0
    for bad in (
        (0.0, 0.1, 1),
        (1.0, 1.1, 1),
        (1.0, 0.1, 0),
        ("1.0", 0.1, 1),
        (1.0, True, 1),
        (math.inf, 0.1, 1),
        (1.0, 0.1, math.inf),
    ):
        with pytest.raises(ValueError):
            accounting.claimed_epsilon(*bad, 1e-5)


def _delta_of_shown(epsilon, rate, steps, mu):
    """Exact delta: Gaussians, of which there is a binomial number."""
    count = np.arange(1, steps + 1)
    far = mu * np.sqrt(count)
    deltas = stats.norm.sf(epsilon / far - far / 2) - np.exp(
        epsilon + stats.norm.logsf(epsilon / far + far / 2)
    )
    return np.sum(stats.binom.pmf(count, steps, rate) * deltas)


@pytest.mark.parametrize("rate", [1.0, 0.3, 0.01])
@pytest.mark.parametrize(
    "noise, steps", [(2.0, 1), (8.0, 100), (40.0, 2000), (0.5, 3)]
)
def test_shown_draws_of_persons_are_a_binomial_number_of_gaussians(
    rate, noise, steps
):
    entry = accounting.LedgerEntry(
        accounting.PoissonSampling(rate),
        noise,
        steps,
        release=accounting.PersonRepresentations("public", 5),
    )
    found = accounting.compute_epsilon([entry], 1e-3)
    assert _delta_of_shown(found, rate, steps, 2.0 / noise) <= 1e-3
    # No empty bound, unless hardly anybody is drawn.
    if rate * steps > 0.5:
        less = _delta_of_shown(0.7 * found, rate, steps, 2.0 / noise)
        assert less > 1e-3
    unknown = dataclasses.replace(entry, sampling=accounting.UnknownSampling())
    unsampled = accounting.compute_epsilon([unknown], 1e-3)
    gaussian = rdp.RdpAccountant(
        orders=None,
        neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE,
    )
    gaussian.compose(dp_accounting.GaussianDpEvent(noise / 2.0), steps)
    assert unsampled == pytest.approx(gaussian.get_epsilon(1e-3), rel=0.05)
    assert found <= unsampled * (1 + 1e-9)
    if rate == 1.0:
        assert found == pytest.approx(unsampled)


@pytest.mark.parametrize("rate", [1e-9, 0.5, 1.0])
@pytest.mark.parametrize("noise", [1e-200, 1e-3, 1.0, 1e9])
def test_divergences_of_shown_draws_are_numbers(rate, noise):
    found = representations.shown_rdp(rate, noise, ORDERS)
    assert not np.isnan(found).any() and (found >= 0).all()
    assert (np.diff(found[np.isfinite(found)]) >= -1e-15).all()
