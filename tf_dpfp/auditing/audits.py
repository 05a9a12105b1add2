"""Audits: attacks on trainings with and without canaries.

A guarantee limits every attack. The success of one attack is therefore a lower
bound on epsilon. A bound above the claimed epsilon refutes the claim. A bound
below it proves nothing more than that this attack does not refute the claim.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tf_dpfp import arguments
from tf_dpfp.auditing import bounds
from tf_dpfp.auditing import one_run

# Decision of a canary's coin, in words.
ADJACENCIES = {
    "add_or_remove": "one {unit} is added or removed",
    "replace_one": "one {unit} is replaced by another",
    "zero_out": "one {unit} is replaced by one that contributes nothing",
}
_METHODS = {
    "many_runs": "runs with and without one canary, Clopper-Pearson",
    "one_run": "canaries in or out by fair coins, guesses counted",
}

Claim = float | Callable[[float], float]


@dataclasses.dataclass(frozen=True)
class AuditPoint:
    """Result of an audit at one delta.

    Attributes:
        delta: Delta of the guarantee.
        lower_bound: Lower bound on epsilon, with the audit's confidence.
        claimed_epsilon: Claimed epsilon at this delta; `None` for no claim.
    """

    delta: float
    lower_bound: float
    claimed_epsilon: float | None = None

    @property
    def refuted(self) -> bool:
        """True if the bound is above the claim."""
        claim = self.claimed_epsilon
        return claim is not None and self.lower_bound > claim


@dataclasses.dataclass(frozen=True, eq=False)
class AuditReport:
    """Result of an audit. `print` writes it in words.

    Attributes:
        method: `"many_runs"` or `"one_run"`.
        adjacency: `"add_or_remove"`, `"replace_one"` or `"zero_out"`: the
            decision of a canary's coin.
        confidence: Least probability with which all bounds hold together.
        points: An `AuditPoint` for each delta.
        scores: Score of each canary in each run.
        included: Booleans, `True` where the canary was included.
        unit: `"example"`, or `"person"` for a person with all examples: what a
            canary is.
    """

    method: str
    adjacency: str
    confidence: float
    points: tuple[AuditPoint, ...]
    scores: np.ndarray
    included: np.ndarray
    unit: str = "example"

    @property
    def lower_bound(self) -> float:
        """Lower bound on epsilon at the first delta."""
        return self.points[0].lower_bound

    @property
    def claimed_epsilon(self) -> float | None:
        """Claimed epsilon at the first delta."""
        return self.points[0].claimed_epsilon

    @property
    def refuted(self) -> bool:
        """True if a claim is refuted, at any delta."""
        return any(point.refuted for point in self.points)

    def __str__(self) -> str:
        lines = [
            f"Audit ({_METHODS[self.method]}): {len(self.scores)} scores, "
            f"{int(np.sum(self.included))} with the canary.",
            f"Neighbours: {_neighbours(self.adjacency, self.unit)}. Confidence "
            f"{100.0 * self.confidence:g} %"
            + (" for all rows together." if len(self.points) > 1 else "."),
        ]
        lines += [_in_words(point) for point in self.points]
        if any(point.claimed_epsilon is not None for point in self.points):
            lines.append(
                "The claim is REFUTED."
                if self.refuted
                else "The claim is not refuted. That proves nothing more: a "
                "better attack may do better."
            )
        return "\n".join(lines)


def _neighbours(adjacency: str, unit: str) -> str:
    words = ADJACENCIES[adjacency].format(unit=unit)
    return words + (", with all examples" if unit == "person" else "")


def _in_words(point: AuditPoint) -> str:
    # Rounded down and up, so that words claim no more than numbers.
    bound = math.floor(point.lower_bound * 1000.0) / 1000.0
    words = f"At delta {point.delta:g}, epsilon is at least {bound:.3f}"
    if point.claimed_epsilon is None:
        return words + "."
    return words + (
        f"; claimed: {point.claimed_epsilon:.4g}"
        f"{' - too low' if point.refuted else ''}."
    )


def audit(
    train_fn: Callable[[np.ndarray], Sequence[float]],
    *,
    runs: int,
    canaries: int = 1,
    delta: float | Sequence[float],
    claimed_epsilon: Claim | None = None,
    adjacency: str = "add_or_remove",
    confidence: float = 0.95,
    rng: np.random.Generator | int | None = None,
) -> AuditReport:
    """Audits a training: any function from canaries to scores.

    With one canary, half of the runs include it, in random order, and the
    error rates of a threshold are bounded. With more canaries, a fair coin
    includes each canary in each run, and the audit guesses coins. One run is
    then enough; the coins of several runs count together, for each belongs to
    one run only.

    Example:

    ```python
    def train(included):
        model = make_model()
        model.fit(batches_with(canaries[included]), epochs=3)
        return -losses(model, canaries)  # A low loss: it seems in.

    claim = tf_dpfp.compute_epsilon(model, delta=1e-5)  # Of one such training.
    print(auditing.audit(train, runs=1, canaries=1000, delta=1e-5,
                         claimed_epsilon=claim, rng=0))
    ```

    The bound is on the epsilon of a whole run under the given adjacency,
    provided that `train_fn` follows the coins: with `"add_or_remove"` a canary
    is in the data or not, with `"replace_one"` its content is one of two, with
    `"zero_out"` it contributes something or nothing, in its place.
    Everything else that depends on the coins (the number of steps, for
    example) is audited as well.

    Args:
        train_fn: Function that trains once. Takes booleans of shape
            `(canaries,)`, `True` for canaries to include; returns one score
            per canary, greater if it seems included, computed from released
            values. Runs must be independent: no weights or seeds carried over.
        runs: Number of trainings, at least 4 with one canary.
        canaries: Number of canaries.
        delta: Delta, or several: a wrong claim may show better at one of them.
            Each gets its share of the error probability.
        claimed_epsilon: Claimed epsilon of one run, or a function from delta
            to it.
        adjacency: `"add_or_remove"`, `"replace_one"` or `"zero_out"`, as in
            the claim.
        confidence: Least probability with which all bounds hold together.
        rng: Randomness of the coins: a numpy generator, a seed, or `None`.

    Returns:
        An `AuditReport`.

    Raises:
        ValueError: If an argument is out of range, or `train_fn` returns
            anything but one finite score per canary.

    Reference:
        - Nasr et al., 2021, "Adversary instantiation", arXiv 2101.04535.
        - Steinke et al., 2023, "Privacy auditing with one (1) training run",
          arXiv 2305.08846.
    """
    runs = arguments.positive_integer("runs", runs)
    canaries = arguments.positive_integer("canaries", canaries)
    if canaries == 1 and runs < 4:
        raise ValueError(
            "An audit takes at least one run with several canaries, or four "
            f"with one. Received: runs={runs}, canaries={canaries}"
        )
    rng = np.random.default_rng(rng)
    if canaries == 1:
        included = rng.permutation(np.arange(runs) % 2 == 0)[:, None]
    else:
        included = rng.integers(0, 2, (runs, canaries)).astype(bool)
    scores = [_scores_of(train_fn, coins) for coins in included]
    return audit_scores(
        np.concatenate(scores),
        included.reshape(-1),
        method="many_runs" if canaries == 1 else "one_run",
        delta=delta,
        claimed_epsilon=claimed_epsilon,
        adjacency=adjacency,
        confidence=confidence,
    )


def _scores_of(train_fn, coins: np.ndarray) -> np.ndarray:
    # A copy: the coins that count are not the training's to change.
    scores = np.asarray(train_fn(coins.copy()), np.float64)
    if scores.shape != coins.shape and scores.size != coins.size:
        raise ValueError(
            "`train_fn` must return one score for each of "
            f"{coins.size} canaries. Received: scores of shape {scores.shape}"
        )
    return scores.reshape(-1)


def audit_scores(
    scores: Sequence[float] | np.ndarray,
    included: Sequence[bool] | np.ndarray,
    *,
    method: str,
    delta: float | Sequence[float],
    claimed_epsilon: Claim | None = None,
    adjacency: str = "add_or_remove",
    confidence: float = 0.95,
) -> AuditReport:
    """Audits trainings that have run, by their scores.

    Args:
        scores: One score per canary and run, greater if it seems included.
        included: Booleans, `True` where the canary was included.
        method: `"many_runs"` for independent runs with and without one canary;
            `"one_run"` for canaries that independent fair coins included.
        delta: Delta, or several. Each gets its share of the error probability.
        claimed_epsilon: Claimed epsilon of one run, or a function from delta
            to it.
        adjacency: `"add_or_remove"`, `"replace_one"` or `"zero_out"`, as in
            the claim.
        confidence: Least probability with which all bounds hold together.

    Returns:
        An `AuditReport`.

    Raises:
        ValueError: If an argument is out of range.
    """
    arguments.one_of("method", method, list(_METHODS))
    arguments.one_of("adjacency", adjacency, list(ADJACENCIES))
    confidence = bounds.check_confidence(confidence)
    given: Any = [delta] if np.ndim(delta) == 0 else delta
    deltas = [bounds.check_delta(value) for value in given]
    if not deltas:
        raise ValueError(
            f"`delta` must be a number or several. Received: delta={delta!r}"
        )
    bound_of = {
        "many_runs": bounds.many_runs_epsilon,
        "one_run": one_run.one_run_epsilon,
    }[method]
    each = 1.0 - (1.0 - confidence) / len(deltas)
    return AuditReport(
        method=method,
        adjacency=adjacency,
        confidence=confidence,
        points=tuple(
            AuditPoint(
                value,
                bound_of(scores, included, value, each),
                _claim_at(claimed_epsilon, value),
            )
            for value in deltas
        ),
        scores=np.array(scores, np.float64).reshape(-1),
        included=np.array(included).reshape(-1),
    )


def _claim_at(claim: Claim | None, delta: float) -> float | None:
    if claim is None:
        return None
    value = float(claim(delta) if callable(claim) else claim)
    if math.isnan(value) or value < 0.0:
        raise ValueError(
            "`claimed_epsilon` must be at least 0. Received: "
            f"claimed_epsilon={value} at delta={delta:g}"
        )
    return value
