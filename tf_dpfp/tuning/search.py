"""Hyper-parameter search by private selection; see `accounting.searches`."""

import dataclasses
import itertools
import secrets
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tf_dpfp import accounting
from tf_dpfp import arguments
from tf_dpfp import evaluation
from tf_dpfp import mechanisms
from tf_dpfp import training
from tf_dpfp.mechanisms import state as state_lib
from tf_dpfp.tuning import runs as runs_lib


@dataclasses.dataclass(frozen=True)
class Found:
    """Result of a search.

    Attributes:
        model: The best model; one that was not trained, if the number of runs
            was zero.
        candidate: Its hyper-parameters.
        score: What its score released: the `Evaluation`, or the number of a
            public score; `None` without a run.
    """

    model: keras.Model
    candidate: Mapping[str, Any]
    score: Any


def search(
    build: Callable[..., keras.Model],
    space: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]],
    *,
    fit: Mapping[str, Any] | Callable[..., Mapping[str, Any]],
    score: runs_lib.Score,
    runs: str = "logarithmic",
    expected_runs: int = 10,
    score_is_public: bool = False,
    budget: training.PrivacyBudget | None = None,
    seed: int | None = None,
) -> Found:
    """Searches hyper-parameters, and returns one model at the search's price.

    The number of runs is drawn at random. Each run draws a candidate, builds
    it, trains it and scores it with noise; the model with the best score is
    returned, and of all others nothing is kept or shown. The ledger of that
    model holds the whole search: `compute_epsilon`, `privacy_statement` and
    budgets give the epsilon of the search, which is less than that of its runs
    together, after saving and loading, too. Training may go on.

    Every run costs what the worst candidate would: the least noise, the
    greatest sampling rate and the most steps of all. What costs nothing is to
    search learning rates, clip norms, architectures. So that the cost is known
    before the first run, `build` is called once for each candidate.

    Example:

    ```python
    found = tf_dpfp.tuning.search(
        build,  # build(learning_rate, units): a private, compiled model
        {"learning_rate": [1e-3, 3e-3, 1e-2], "units": [64, 256]},
        fit={"x": batches, "epochs": 10},
        score=tf_dpfp.PrivateEvaluation((x_val, y_val), noise_multiplier=30.0),
        runs="logarithmic",
        expected_runs=10,
    )
    print(found.candidate, found.score.accuracy)
    print(tf_dpfp.compute_epsilon(found.model, delta=1e-5))
    ```

    Args:
        build: Called with the hyper-parameters of a candidate as keywords;
            returns a private, compiled, built model, made anew in every call.
            It must do the same in every call, and see no private data.
        space: The candidates: a list of dictionaries, or a dictionary of
            lists, of which all combinations are taken. Each run draws one, all
            equally likely.
        fit: Arguments of `fit`, or a function from the hyper-parameters to
            them. Of callbacks `PrivateEvaluation`, `LearningRateScheduler`,
            and those that stop by `private_accuracy` or `private_loss`.
        score: A `PrivateEvaluation`, by its accuracy or, where there is none,
            its loss. Or a function of the model, the greater the better, of
            data that are declared public.
        runs: Law of the number of runs: `"logarithmic"` costs least, and is
            one run most often; `"geometric"`; `"poisson"` costs most and is
            near its mean.
        expected_runs: Mean number of runs, an integer. The number of one search
            may be many times that.
        score_is_public: True declares that `score` sees public data alone.
        budget: A `PrivacyBudget` that the search must not exceed; checked
            before the first run.
        seed: Integer that makes the number of runs and the candidates
            reproducible; the statement then says SEEDED. `None` draws them
            from the operating system.

    Returns:
        An object with `model`, `candidate` and `score`. The optimizer of the
        model is as `build` made it: its state is not kept.

    Raises:
        ValueError: If an argument is out of its range, runs would not be
            independent, their cost can't be told before, or the score has no
            noise; at no time after the first run.
        RuntimeError: If a run fails. Nothing of the search is returned then.

    Reference:
        Papernot and Steinke, 2022, arXiv 2110.03620.
    """
    chosen = accounting.Search(runs, expected_runs, secrets.randbelow(2**30))
    candidates = _candidates(space)
    _check_score(score, score_is_public)
    if budget is not None and not isinstance(budget, training.PrivacyBudget):
        raise ValueError(
            "`budget` is tf_dpfp.PrivacyBudget(epsilon, delta), or None for no "
            f"check before the first run. Received: budget={budget!r}"
        )
    seed = arguments.seed(seed)
    rng = np.random.default_rng(secrets.randbits(128) if seed is None else seed)
    runner = runs_lib.Runner(build, fit, score)
    plan = runner.plan(candidates)
    entries = [
        dataclasses.replace(e, search=chosen, seeded=seed is not None)
        for e in plan.of_run
    ]
    if budget is not None:
        budget.check_delta(plan.populations)
        _check_budget(budget, [*plan.base, *plan.labels, *entries])
    best = _best_of(runner, plan, candidates, chosen.draw(rng), rng)
    candidate = _drawn(candidates, rng) if best is None else best.candidate
    model = runner.fresh(candidate)
    mechanism = mechanisms.mechanism_of(model)
    # Before the weights are there: whatever fails here releases nothing.
    mechanism.absorb(
        accounting.missing(
            [*plan.base, *plan.labels, *entries], mechanism.entries()
        )
    )
    state_lib.state_of(model).populations.update(plan.populations)
    runs_lib.put(model, None if best is None else best.weights)
    return Found(model, candidate, None if best is None else best.released)


def _best_of(
    runner: runs_lib.Runner,
    plan: runs_lib.Plan,
    candidates: Sequence[runs_lib.Candidate],
    count: int,
    rng: np.random.Generator,
) -> runs_lib.Outcome | None:
    """Returns the best of so many runs; keeps nothing of the others."""
    best: runs_lib.Outcome | None = None
    outcome: runs_lib.Outcome | None
    failed: BaseException | None
    for _ in range(count):
        try:
            outcome = runner.run(_drawn(candidates, rng), plan)
        except BaseException as error:
            # The frames hold models and scores.
            traceback.clear_frames(error.__traceback__)
            failed = error.with_traceback(None)
        else:
            if best is None or outcome.score > best.score:
                best = outcome
            continue
        # This frame as well, which goes with the error.
        best = outcome = None
        failed.__context__ = failed.__cause__ = None
        own = isinstance(failed, runs_lib.NotAsPlannedError)
        if own or not isinstance(failed, Exception):
            raise failed  # Or someone stops the search.
        kind, failed = type(failed).__name__, None
        # Its words may be of examples, and of a run that is not released.
        raise RuntimeError(
            "A run of the search failed, and nothing of the search is "
            "returned. That it failed may tell something of the data, which no "
            "ledger counts. What it said could tell more, and is not shown: "
            "train the candidates one by one, on made-up data, to read it. "
            f"Received: {kind}"
        )
    return best


def _drawn(
    candidates: Sequence[runs_lib.Candidate], rng: np.random.Generator
) -> runs_lib.Candidate:
    return candidates[int(rng.integers(len(candidates)))]


def _candidates(space: Any) -> list[runs_lib.Candidate]:
    """Lists the candidates of a space."""
    if isinstance(space, Mapping):
        names = list(space)
        found: list[Any] = [
            dict(zip(names, values, strict=True))
            for values in itertools.product(*space.values())
        ]
    else:
        found = list(space)
    if not found or not all(isinstance(each, Mapping) for each in found):
        raise ValueError(
            "`space` must be a list of dictionaries of hyper-parameters, or a "
            "dictionary of lists, and not empty. Received: "
            f"space={space!r:.100}"
        )
    return found


def _check_score(score: Any, is_public: bool) -> None:
    """Refuses a score that is released without noise."""
    is_public = arguments.boolean("score_is_public", is_public)
    if isinstance(score, evaluation.PrivateEvaluation):
        if not score.settings.noise_multiplier and not is_public:
            raise ValueError(
                "`score` adds no noise, and the choice of a model by it would "
                "release the data. Give it a noise multiplier above 0. "
                "Received: noise_multiplier=0.0"
            )
        return
    if not callable(score):
        raise ValueError(
            "`score` must be a tf_dpfp.PrivateEvaluation, or a function of the "
            f"model. Received: score={score!r:.100}"
        )
    if not is_public:
        raise ValueError(
            "`score` is a function, and the choice of a model by it would "
            "release the data that it sees, without noise. Use a "
            "tf_dpfp.PrivateEvaluation; or declare that it sees public data "
            "alone: score_is_public=True. Received: score_is_public=False"
        )


def _check_budget(
    budget: training.PrivacyBudget,
    entries: Sequence[accounting.LedgerEntry],
) -> None:
    epsilon = budget.epsilon_of(entries)
    if epsilon > budget.epsilon:
        raise ValueError(
            f"The search costs epsilon={epsilon:.4g} at delta="
            f"{budget.delta:g}, which the budget epsilon={budget.epsilon:g} "
            "does not allow. Raise the noise multiplier of the runs, lower "
            "`expected_runs`, or take runs='logarithmic'. Received: "
            f"budget={budget.epsilon:g}"
        )
