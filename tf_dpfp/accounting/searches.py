r"""Private selection: the best of a random number of runs, and its RDP.

A mechanism Q is run K times with independent randomness, each run gives an
outcome and a score, and only the best outcome is released. K is drawn, whatever
the data are, from one of

    Poisson(m):        Pr[K = k] = exp(-m) m^k / k!,            k >= 0,
    logarithmic:       Pr[K = k] = (1 - g)^k / (k log(1 / g)),  k >= 1,
    geometric:         Pr[K = k] = g (1 - g)^(k - 1),           k >= 1,

the last two of which are the truncated negative binomial with eta = 0 and 1.
Let m be the mean of K, and let Q be (o, e(o))-RDP at every order o > 1. Then
the search is (o, e'(o))-RDP with, for the truncated negative binomial and any
order p >= 1,

    e'(o) = e(o) + (1 + eta) ((1 - 1 / p) e(p) + log(1 / g) / p)
            + log(m) / (o - 1),

and for Poisson, if Q is (log(1 + 1 / (o - 1)), d)-DP as well, as it is by its
RDP (Canonne et al., 2020, proposition 12),

    e'(o) = e(o) + m d + log(m) / (o - 1).

A search of no runs gives an outcome that no data had a say in. Both
neighbours have it with the probability exp(-m), which adds exp(-m) to the
moment exp((o - 1) e'(o)) that the formula bounds; it is added here, so that
nothing hangs on how the proof treats it.

Ties are broken as if each score had a random number behind it: the first run
of several with the best score is any of them.

Reference:
    Papernot and Steinke, 2022, [Hyperparameter tuning with Renyi differential
    privacy](https://arxiv.org/abs/2110.03620), theorems 2 and 6.
    Canonne, Kamath and Steinke, 2020, [The discrete Gaussian for differential
    privacy](https://arxiv.org/abs/2004.00010)
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from tf_dpfp import arguments
from tf_dpfp.late_imports import dp_accounting

RUNS = ("poisson", "logarithmic", "geometric")
# Shape of the distribution of K, as dp_accounting has it.
_SHAPES = {"poisson": math.inf, "logarithmic": 0.0, "geometric": 1.0}

MOST_RUNS = 10_000
IDENTITIES = 2**30
# Places of the parts in one number, of 46 bits.
_RUNS_BASE, _EXPECTED_BASE = 4, 2**14
_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class Search:
    """Search that returned the best of several runs.

    Args:
        runs: Distribution of the number of runs: `"poisson"`, `"logarithmic"`
            or `"geometric"`.
        expected_runs: Its mean.
        identity: Number that tells this search from others.

    Raises:
        ValueError: If an argument is out of its range.
    """

    runs: str
    expected_runs: int
    identity: int = 0

    def __post_init__(self):
        arguments.one_of("runs", self.runs, RUNS)
        for name, most in (
            ("expected_runs", MOST_RUNS),
            ("identity", IDENTITIES - 1),
        ):
            least = 1 if name == "expected_runs" else 0
            value = arguments.integer(
                name, getattr(self, name), least=least, most=most
            )
            object.__setattr__(self, name, value)

    @functools.cached_property
    def halting(self) -> float:
        """The parameter g of a logarithmic or geometric number of runs."""
        if self.runs == "geometric" or self.expected_runs == 1:
            return 1.0 / self.expected_runs
        low, high = -60.0, -1e-12  # Of log(g).
        for _ in range(200):
            middle = (low + high) / 2.0
            if _logarithmic_mean(middle) < self.expected_runs:
                high = middle
            else:
                low = middle
        return math.exp(high)

    def draw(self, rng: np.random.Generator) -> int:
        """Draws the number of runs.

        Args:
            rng: A generator whose state is secret.
        """
        if self.runs == "poisson":
            return int(rng.poisson(self.expected_runs))
        if self.expected_runs == 1:
            return 1
        if self.runs == "geometric":
            return int(rng.geometric(self.halting))
        return int(rng.logseries(1.0 - self.halting))

    def rdp(self, orders: np.ndarray, of_run: np.ndarray) -> np.ndarray:
        """Bounds the RDP of the search.

        Args:
            orders: Orders above 1, ascending.
            of_run: RDP of one run at each of them.

        Returns:
            An upper bound at each order.
        """
        orders, of_run = np.asarray(orders), np.asarray(of_run)
        if self.runs == "poisson":
            found = self._poisson_rdp(orders, of_run)
        elif self.expected_runs == 1:
            return of_run
        else:
            shape = _SHAPES[self.runs]
            log_halting = math.log(self.halting) - _ROUNDING
            whole = (1.0 - 1.0 / orders) * of_run - log_halting / orders
            found = of_run + (1.0 + shape) * np.min(whole)
            found = found + math.log(self.expected_runs) / (orders - 1.0)
        # Divergences grow with their order.
        return np.minimum.accumulate(found[::-1])[::-1]

    def _poisson_rdp(
        self, orders: np.ndarray, of_run: np.ndarray
    ) -> np.ndarray:
        mean = float(self.expected_runs)
        is_finite = np.isfinite(of_run)
        if not is_finite.any():
            return of_run
        at = orders[is_finite]
        # A delta at each order here, by RDP at every order.
        hats = np.log1p(1.0 / (orders - 1.0))[:, None]
        log_deltas = (at - 1.0) * (
            of_run[is_finite] - hats + np.log1p(-1.0 / at)
        ) - np.log(at)
        deltas = np.exp(np.minimum(np.min(log_deltas, axis=1), 0.0))
        found = of_run + mean * deltas + math.log(mean) / (orders - 1.0)
        return np.logaddexp((orders - 1.0) * found, -mean) / (orders - 1.0)

    def event(self, of_run: dp_accounting.DpEvent) -> dp_accounting.DpEvent:
        """Converts the search to an event of dp_accounting.

        Args:
            of_run: The event of one run.
        """
        return dp_accounting.dp_event.RepeatAndSelectDpEvent(
            of_run, self.expected_runs, _SHAPES[self.runs]
        )

    def packed(self) -> int:
        """Returns all of it as one number below 2^46."""
        number = self.identity * _EXPECTED_BASE + self.expected_runs
        return number * _RUNS_BASE + RUNS.index(self.runs) + 1

    @classmethod
    def unpacked(cls, number: float) -> Search | None:
        """Returns the search that a number stands for; `None` for 0.

        Args:
            number: Result of `packed`.

        Raises:
            ValueError: If it is none.
        """
        if number == 0:
            return None
        if number < 0 or not float(number).is_integer():
            raise ValueError(f"Not a search: {number}.")
        rest, runs = divmod(int(number), _RUNS_BASE)
        identity, expected_runs = divmod(rest, _EXPECTED_BASE)
        if not runs:
            raise ValueError(f"Not a search: {number}.")
        return cls(RUNS[runs - 1], expected_runs, identity)


def _logarithmic_mean(log_halting: float) -> float:
    """Returns the mean of the logarithmic distribution of a given log(g)."""
    return math.expm1(-log_halting) / -log_halting
