"""Private selection against the formulas of the paper, and by simulation."""

import dataclasses
import math

import dp_accounting
import mpmath
import numpy as np
import pytest
from dp_accounting import rdp as rdp_lib
from scipy import integrate
from scipy import optimize
from scipy import stats

from tf_dpfp.accounting import composition
from tf_dpfp.accounting import entries as entries_lib
from tf_dpfp.accounting import epsilon as epsilon_lib
from tf_dpfp.accounting import events
from tf_dpfp.accounting import releases
from tf_dpfp.accounting import samplings
from tf_dpfp.accounting import searches
from tf_dpfp.accounting import statement
from tf_dpfp.accounting import sums
from tf_dpfp.accounting import table
from tf_dpfp.accounting import within

ORDERS = sums.orders()
SEARCHES = [
    searches.Search(runs, expected)
    for runs in searches.RUNS
    for expected in (2, 10, 100)
]
# One training of 2.70 at delta 1e-5, about.
RUN = entries_lib.LedgerEntry(samplings.PoissonSampling(0.02), 1.2, 500)
DELTA = 1e-5


def _of_search(search, entry=RUN):
    return dataclasses.replace(entry, search=search)


def _epsilon(*entries, **kwargs):
    return epsilon_lib.compute_epsilon(entries, DELTA, **kwargs)


def _of_the_paper(search, orders, of_run):
    """Theorems 2 and 6, written down in mpmath, apart from what is tested."""
    m = mpmath.mpf(search.expected_runs)
    found = []
    if search.runs == "poisson":
        for o, e in zip(orders, of_run, strict=True):
            hat = mpmath.log(1 + 1 / (mpmath.mpf(o) - 1))
            # Delta at `hat` of RDP: proposition 12 of Canonne et al., 2020.
            delta = min(
                mpmath.exp((p - 1) * (r - hat))
                / p
                * (1 - 1 / mpmath.mpf(p)) ** (p - 1)
                for p, r in zip(orders, of_run, strict=True)
            )
            found.append(e + m * min(delta, 1) + mpmath.log(m) / (o - 1))
        return np.array(found, float)
    if search.runs == "geometric":
        eta, halting = 1, 1 / m
    else:
        eta = 0
        halting = mpmath.findroot(
            lambda g: (1 / g - 1) / mpmath.log(1 / g) - m,
            (mpmath.mpf("1e-9"), mpmath.mpf("0.9999")),
            solver="anderson",
        )
    whole = min(
        (1 - 1 / mpmath.mpf(p)) * r + mpmath.log(1 / halting) / p
        for p, r in zip(orders, of_run, strict=True)
    )
    for o, e in zip(orders, of_run, strict=True):
        found.append(e + (1 + eta) * whole + mpmath.log(m) / (o - 1))
    return np.array(found, float)


@pytest.mark.parametrize("search", SEARCHES, ids=str)
@pytest.mark.parametrize("noise", [0.7, 5.0])
def test_the_rdp_is_that_of_the_paper(search, noise):
    of_run = ORDERS / (2.0 * noise**2)
    found = search.rdp(ORDERS, of_run)
    paper = _of_the_paper(search, ORDERS, of_run)
    if search.runs == "poisson":
        # And no runs at all, an outcome of both neighbours.
        paper = np.logaddexp(
            (ORDERS - 1.0) * paper, -float(search.expected_runs)
        ) / (ORDERS - 1.0)
    paper = np.minimum.accumulate(paper[::-1])[::-1]
    # From above, rounding of `halting` included.
    assert np.all(found >= paper * (1.0 - 1e-13))
    assert np.all(found <= paper + 1e-5 / (ORDERS - 1.0) * (1.0 + paper))
    assert np.all(np.isinf(search.rdp(ORDERS, np.full_like(ORDERS, np.inf))))


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_epsilon_is_that_of_dp_accounting(search):
    accountant = dp_accounting.rdp.RdpAccountant(ORDERS)
    accountant.compose(events.compose_events([_of_search(search)]))
    peer = accountant.get_epsilon(DELTA)
    np.testing.assert_allclose(_epsilon(_of_search(search)), peer, rtol=2e-4)


def test_the_anchors_of_the_field():
    """Best of ten trainings of 2.70, each way, and by composition."""
    entry = entries_lib.LedgerEntry(
        samplings.PoissonSampling(2048 / 60_000), 1.0, 1
    )

    def epsilon_of(noise):
        ran = dataclasses.replace(entry, noise_multiplier=noise, steps=1318)
        return _epsilon(ran) - 2.70

    noise = optimize.brentq(epsilon_of, 0.5, 10.0, xtol=1e-6)
    ran = dataclasses.replace(entry, noise_multiplier=noise, steps=1318)
    found = {
        runs: _epsilon(_of_search(searches.Search(runs, 10), ran))
        for runs in searches.RUNS
    }
    by_composition = _epsilon(dataclasses.replace(ran, steps=13_180))
    np.testing.assert_allclose(by_composition, 10.0, atol=0.02)
    for runs, anchor in (
        ("poisson", 5.96),
        ("logarithmic", 4.45),
        ("geometric", 5.22),
    ):
        np.testing.assert_allclose(found[runs], anchor, atol=0.02)


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_the_law_of_the_number_of_runs(search):
    rng = np.random.default_rng(1)
    drawn = np.array([search.draw(rng) for _ in range(20_000)])
    if search.expected_runs < 10:
        assert drawn.min() == (0 if search.runs == "poisson" else 1)
    k = np.arange(0, 20_000)
    m, g = search.expected_runs, search.halting
    if search.runs == "poisson":
        law = stats.poisson(m).pmf(k)
    elif search.runs == "geometric":
        law = np.where(k > 0, g * (1 - g) ** (k - 1.0), 0.0)
    else:
        law = np.where(
            k > 0, (1 - g) ** k / (np.maximum(k, 1) * -math.log(g)), 0
        )
    np.testing.assert_allclose(law.sum(), 1.0, atol=1e-6)
    np.testing.assert_allclose((k * law).sum(), m, rtol=1e-4)
    # Classes of about equal probability.
    edges = np.searchsorted(np.cumsum(law), np.linspace(0.0, 1.0, 16)[1:-1])
    edges = np.unique(edges)
    counts = np.bincount(
        np.searchsorted(edges, drawn), minlength=len(edges) + 1
    )
    expected = np.add.reduceat(law, np.concatenate([[0], edges + 1]))
    expected = expected / expected.sum() * len(drawn)
    assert stats.chisquare(counts, expected).pvalue > 1e-4


@pytest.mark.parametrize("runs", searches.RUNS)
@pytest.mark.parametrize("order", [1.5, 2.0, 4.0])
def test_the_bound_holds_for_searches_that_can_be_computed(runs, order):
    """Q releases its score: a normal, around 0 or 1. Divergence by quadrature.

    The density of the best of K is `f'(F(y)) q(y)`, where f is the generating
    function of K, and no run at all is an outcome by itself.
    """
    search = searches.Search(runs, 5)
    m, g = 5.0, search.halting
    slope, none = {
        "poisson": (lambda c: m * np.exp(m * (c - 1.0)), math.exp(-m)),
        "geometric": (lambda c: g / (1.0 - (1.0 - g) * c) ** 2, 0.0),
        "logarithmic": (
            lambda c: (1.0 - g) / (1.0 - (1.0 - g) * c) / -math.log(g),
            0.0,
        ),
    }[runs]
    deviation = 1.3
    bound = search.rdp(ORDERS, ORDERS / (2.0 * deviation**2))
    at = np.flatnonzero(ORDERS == order)[0]
    for here, there in ((0.0, 1.0), (1.0, 0.0)):
        p, q = stats.norm(here, deviation), stats.norm(there, deviation)

        def integrand(y, p=p, q=q):
            log_p = p.logpdf(y) + np.log(slope(p.cdf(y)))
            log_q = q.logpdf(y) + np.log(slope(q.cdf(y)))
            return np.exp(order * log_p + (1.0 - order) * log_q)

        moment, _ = integrate.quad(integrand, -25.0, 25.0, limit=500)
        exact = math.log(moment + none) / (order - 1.0)
        assert 0.0 < exact < bound[at]


def test_one_expected_run_of_a_truncated_number_is_one_run():
    for runs in ("logarithmic", "geometric"):
        search = searches.Search(runs, 1)
        assert _epsilon(_of_search(search)) == _epsilon(RUN)
        assert search.draw(np.random.default_rng(0)) == 1


def test_steps_of_a_search_and_others_compose():
    search, other = (
        searches.Search("geometric", 7),
        searches.Search("geometric", 7, identity=1),
    )
    score = entries_lib.LedgerEntry(
        samplings.EveryExample(), 30.0, 1, release=releases.Evaluation()
    )
    run = [_of_search(search), _of_search(search, score)]
    of_run = composition.composed_rdp(
        [RUN, score], releases.Adjacency.ADD_OR_REMOVE_ONE
    )
    whole = search.rdp(ORDERS, of_run)
    for ran, total in (
        (run, whole),
        ([*run, RUN], whole + composition.composed_rdp([RUN], _ADDED)),
        ([*run, *[_of_search(other, e) for e in (RUN, score)]], 2 * whole),
    ):
        exact = rdp_lib.compute_epsilon(ORDERS, total, DELTA)[0]
        np.testing.assert_allclose(_epsilon(*ran), exact)
        assert _epsilon(*ran, accountant="pld") == _epsilon(*ran)
        # The search for noise, and the steps that a budget allows.
        assert within.is_within(ran, exact + 1e-6, DELTA)
        assert not within.is_within(ran, exact - 1e-3, DELTA)
    allowed = epsilon_lib.max_steps(
        run, [dataclasses.replace(RUN, steps=1)], _epsilon(*run) + 0.5, DELTA
    )
    after = [*run, dataclasses.replace(RUN, steps=allowed)]
    assert 0 < allowed < 500 and _epsilon(*after) <= _epsilon(*run) + 0.5


_ADDED = releases.Adjacency.ADD_OR_REMOVE_ONE


def test_persons_and_other_adjacencies_take_the_search_of_their_run():
    search = searches.Search("logarithmic", 10)
    for kwargs in (
        {"examples_per_user": 3},
        {"adjacency": releases.Adjacency.REPLACE_ONE},
        {"adjacency": releases.Adjacency.ZERO_OUT},
    ):
        adjacency = kwargs.get("adjacency", _ADDED)
        of_run = composition.composed_rdp(
            [RUN], adjacency, kwargs.get("examples_per_user", 1)
        )
        exact = rdp_lib.compute_epsilon(
            ORDERS, search.rdp(ORDERS, of_run), DELTA
        )[0]
        np.testing.assert_allclose(
            _epsilon(_of_search(search), **kwargs), exact
        )


def test_dropped_examples_of_all_runs_count():
    sampling = samplings.PoissonSampling(0.02, 1e-12)
    entry = dataclasses.replace(RUN, sampling=sampling)
    search = searches.Search("poisson", 10)
    assert epsilon_lib.overflow_probability(_of_search(search, entry)) == (
        10 * epsilon_lib.overflow_probability(entry)
    )


@pytest.mark.parametrize("runs", searches.RUNS)
@pytest.mark.parametrize("expected", [1, 10, searches.MOST_RUNS])
@pytest.mark.parametrize("identity", [0, 77, searches.IDENTITIES - 1])
def test_rows_come_back_exactly(runs, expected, identity):
    search = searches.Search(runs, expected, identity)
    entry = _of_search(search)
    row = table.encode(entry)
    assert table.decode(row, entry.steps) == entry
    # Every reader before searches knows releases below 64 alone.
    assert row[5] >= 64.0 and row[5] == int(row[5]) < 2**53
    plain = table.encode(RUN)
    assert np.flatnonzero(row != plain).tolist() == [5]


def test_packed_numbers_do_not_change():
    rows = [
        table.encode(_of_search(searches.Search(runs, 10, 3)))
        for runs in ("poisson", "logarithmic", "geometric")
    ]
    packed = 4 * (3 * 2**14 + 10)
    assert [row[5] for row in rows] == [
        64 * (packed + 1 + i) + 0 for i in range(3)
    ]


@pytest.mark.parametrize(
    "number",
    [64.0, 64.0 * 4 * 10, 64.5, -64.0, 64.0 * (4 * 16000 + 1), 2.0**53],
)
def test_damaged_searches_are_refused(number):
    row = table.encode(RUN)
    row[5] = number
    with pytest.raises(ValueError, match="Unknown release"):
        table.decode(row, 1)


def test_bad_arguments_are_refused():
    for args in (
        ("fixed", 3),
        ("poisson", 0),
        ("poisson", 1.5),
        ("poisson", 3, -1),
        ("poisson", 3, searches.IDENTITIES),
    ):
        with pytest.raises(ValueError, match="Received"):
            searches.Search(*args)
    with pytest.raises(ValueError, match="randomised once"):
        entries_lib.LedgerEntry(
            samplings.EveryLabel(3, 7),
            0.5,
            1,
            False,
            releases.Labels(),
            searches.Search("poisson", 3),
        )
    with pytest.raises(ValueError, match="`search` must be"):
        dataclasses.replace(RUN, search="poisson")


def test_the_statement_says_it():
    said = statement.statement(
        [_of_search(searches.Search("poisson", 9))], DELTA
    )
    said = " ".join(said.split())
    assert "in each run of a search" in said
    assert "poisson distribution with mean 9" in said
    assert "SEARCH" not in statement.statement([RUN], DELTA)
