"""Audits: trainings with and without canaries, and what they prove.

A guarantee says what no attack can do. An audit attacks, and what the attack
achieves is a lower bound on epsilon: if it is above the epsilon that is
claimed, the claim is wrong. If it is below, nothing is proved but that this
attack does not refute it.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from tf_dpfp.auditing import bounds
from tf_dpfp.auditing import one_run

# What the coin of a canary decides, in words.
ADJACENCIES = {
    "add_or_remove": "one example is added or removed",
    "replace_one": "one example is replaced by another",
}
_METHODS = {
    "many_runs": "runs with and without one canary, Clopper-Pearson",
    "one_run": "canaries in or out by fair coins, guesses counted",
}

Claim = float | Callable[[float], float]


@dataclasses.dataclass(frozen=True)
class AuditPoint:
    """Result of an audit at one delta: the bound and the claim.

    Attributes:
        delta: Delta.
        lower_bound: Epsilon is at least this, with the audit's confidence.
        claimed_epsilon: What was claimed at this delta; `None` for no claim.
    """

    delta: float
    lower_bound: float
    claimed_epsilon: float | None = None

    @property
    def refuted(self) -> bool:
        """Whether the bound is above the claim."""
        claim = self.claimed_epsilon
        return claim is not None and self.lower_bound > claim


@dataclasses.dataclass(frozen=True, eq=False)
class AuditReport:
    """Result of an audit: bounds, claims and scores; `print` shows them.

    Attributes:
        method: `"many_runs"` or `"one_run"`.
        adjacency: What the coin of a canary decides, a key of `ADJACENCIES`.
        confidence: Probability with which all bounds hold together.
        points: What was found at each delta.
        scores: The score of each canary in each run.
        included: Whether it was in.
    """

    method: str
    adjacency: str
    confidence: float
    points: tuple[AuditPoint, ...]
    scores: np.ndarray
    included: np.ndarray

    @property
    def lower_bound(self) -> float:
        """The bound on epsilon at the first delta."""
        return self.points[0].lower_bound

    @property
    def claimed_epsilon(self) -> float | None:
        """The claim at the first delta."""
        return self.points[0].claimed_epsilon

    @property
    def refuted(self) -> bool:
        """Whether a claim is refuted, at any delta."""
        return any(point.refuted for point in self.points)

    def __str__(self) -> str:
        lines = [
            f"Audit ({_METHODS[self.method]}): {len(self.scores)} scores, "
            f"{int(np.sum(self.included))} with the canary.",
            f"Neighbours: {ADJACENCIES[self.adjacency]}. Confidence "
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

    With one canary, half of the runs have it and half do not, in random
    order, and their error rates are bounded. With more, each canary is in each
    run or not by a fair coin of its own, and coins are guessed; one run is
    enough, and the coins of several runs count together, for each is read by
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

    The bound is on the epsilon of a whole run for the neighbours that
    `adjacency` names, provided that `train_fn` does what the coins say: with
    `"add_or_remove"` a canary is in the data or not, with `"replace_one"` its
    content is one of two. Anything that depends on the coins by another way
    (the number of steps, say) is audited with it.

    Args:
        train_fn: Trains once. Takes a boolean array of shape `(canaries,)`,
            which are in; returns a score for each, greater where it seems in,
            computed from what the training released. Runs must be
            independent of each other: no weights or seeds carried over.
        runs: How often to train: at least 4 with one canary.
        canaries: How many.
        delta: Delta, or several, in one of which a wrong claim may show
            better. Each gets its share of the error probability.
        claimed_epsilon: The epsilon that is claimed for one run, or a function
            from delta to it.
        adjacency: `"add_or_remove"` or `"replace_one"`: must be that of the
            claim.
        confidence: Probability with which the bounds hold, all together.
        rng: Of the coins: a numpy generator, a seed, or `None`.

    Returns:
        An `AuditReport`.

    Raises:
        ValueError: If an argument is outside its range, or `train_fn` returns
            something else than a finite score for each canary.

    Reference:
        - Nasr et al., 2021, "Adversary instantiation", arXiv 2101.04535.
        - Steinke et al., 2023, "Privacy auditing with one (1) training run",
          arXiv 2305.08846.
    """
    if runs < 1 or canaries < 1 or (canaries == 1 and runs < 4):
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
            f"`train_fn` returns one score for each of {coins.size} canaries. "
            f"It returned shape {scores.shape}."
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
        scores: A score for each canary in each run, greater where it seems in.
        included: Whether it was in.
        method: `"many_runs"` for independent runs with and without one canary;
            `"one_run"` for canaries that are in by independent fair coins.
        delta: As in `audit`.
        claimed_epsilon: Likewise.
        adjacency: Likewise.
        confidence: Likewise.

    Returns:
        An `AuditReport`.

    Raises:
        ValueError: If an argument is outside its range.
    """
    _check_name("method", method, _METHODS)
    _check_name("adjacency", adjacency, ADJACENCIES)
    bounds.check_confidence(confidence)
    deltas = [float(value) for value in np.atleast_1d(delta)]
    if not deltas:
        raise ValueError("`delta` is a number or several. Received none.")
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
            f"`claimed_epsilon` is at least 0. Received {value} at delta "
            f"{delta:g}."
        )
    return value


def _check_name(argument: str, value: str, known) -> None:
    if value not in known:
        raise ValueError(
            f"`{argument}` is one of {sorted(known)}. Received: "
            f"{argument}={value!r}"
        )
