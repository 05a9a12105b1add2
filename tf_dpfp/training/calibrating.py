"""Calibration of the noise in `fit`, to the budget of its callbacks.

With `noise_multiplier="calibrate"` everything that epsilon depends on is known
once `fit` is called: how batches are drawn, how many steps follow, and what the
model released before. The noise multiplier is the least one with which all of
that stays within the budget, by the accountant of `compute_epsilon`.

It is found before the first step is traced, and is kept from then on: a later
`fit` goes on with the same noise, and its epsilon is that of all steps. The
budget does not rest on it: the ledger counts what runs, and `PrivacyBudget`
stops before a step that would exceed it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from tf_dpfp import accounting
from tf_dpfp import counting
from tf_dpfp import mechanisms
from tf_dpfp.sampling import lengths
from tf_dpfp.sampling import pipelines
from tf_dpfp.training import callbacks as callbacks_lib
from tf_dpfp.training import choosing_bands

# Epsilon of a calibrated training, over its budget, is at least 1 less this.
PRECISION = 1e-3


class BudgetReachedError(Exception):
    """Nothing of the budget is left: the training is done."""


def calibrate(
    mechanism: mechanisms.Gradients,
    pipeline: pipelines.Pipeline,
    arguments: dict[str, Any],
    budgets: Sequence[callbacks_lib.PrivacyBudget],
    planned: Sequence[accounting.LedgerEntry] = (),
) -> None:
    """Calibrates the optimizer of a mechanism, if that is left to `fit`.

    Args:
        mechanism: The mechanism.
        pipeline: Description of the data.
        arguments: The bound arguments of `fit`.
        budgets: The budgets among its callbacks.
        planned: What its evaluations will release.

    Raises:
        ValueError: If there is no budget, or the steps can't be counted, or no
            noise meets the budget.
        BudgetReachedError: If the budget is spent.
    """
    optimizer = mechanism.optimizer
    if not optimizer.calibrates:
        return
    budget = _budget_of(budgets)
    in_call = int(mechanism.model.steps_per_execution)
    steps = lengths.steps_of(arguments, in_call)
    if not steps:
        raise ValueError(
            "With noise_multiplier='calibrate' the number of steps must be "
            f"known before the first one. Give `fit` `steps_per_epoch=`, and "
            f"at least one epoch. Received: {pipeline.name}, epochs="
            f"{arguments['epochs']}, steps_per_epoch="
            f"{arguments.get('steps_per_epoch')}"
        )
    spent = mechanism.entries()
    budget.check_delta(mechanism.state.populations)
    _refuse_spent(budget, spent)
    if optimizer.bands is None:
        choosing_bands.choose(mechanism, pipeline, budget, steps)
    claim = mechanism.claims(pipeline)[optimizer.ledger]

    def released(noise_multiplier: float) -> list[accounting.LedgerEntry]:
        return _all_entries([*spent, *planned], claim, noise_multiplier, steps)

    noise_multiplier = accounting.noise_within(
        released, budget.epsilon, budget.delta, budget.accountant, PRECISION
    )
    optimizer.calibrate(noise_multiplier)
    _print_found(
        budget,
        noise_multiplier,
        released(noise_multiplier),
        claim.draws * steps,
    )


def _budget_of(
    budgets: Sequence[callbacks_lib.PrivacyBudget],
) -> callbacks_lib.PrivacyBudget:
    finite = [budget for budget in budgets if budget.is_finite]
    if len(finite) != 1:
        raise ValueError(
            "noise_multiplier='calibrate' takes epsilon and delta from the one "
            "budget of `fit`. Give it callbacks=[tf_dpfp.PrivacyBudget("
            "epsilon=3.0, delta=1e-5)]. Received: "
            f"{len(finite)} callbacks with a finite budget"
        )
    return finite[0]


def _refuse_spent(
    budget: callbacks_lib.PrivacyBudget,
    spent: Sequence[accounting.LedgerEntry],
) -> None:
    """Refuses a budget that earlier steps exceed; ends one that they fill."""
    epsilon = budget.epsilon_of(spent)
    if epsilon > budget.epsilon:
        raise ValueError(
            f"The budget epsilon={budget.epsilon:g} at delta={budget.delta:g} "
            f"is exceeded before the first step: {epsilon:.4g} is spent. Raise "
            "the budget, or train a new model."
        )
    if spent and epsilon >= (1.0 - PRECISION) * budget.epsilon:
        raise BudgetReachedError(budget.done(epsilon))


def _all_entries(
    spent: Sequence[accounting.LedgerEntry],
    claim: counting.Claim,
    noise_multiplier: float,
    steps: int,
) -> list[accounting.LedgerEntry]:
    """Lists what is released in all, if steps have a noise multiplier."""
    claim = dataclasses.replace(
        claim, release=claim.release.with_noise(noise_multiplier)
    )
    return [*spent, claim.entry(claim.steps_of_training(steps))]


def _print_found(
    budget: callbacks_lib.PrivacyBudget,
    noise_multiplier: float,
    entries: Sequence[accounting.LedgerEntry],
    steps: int,
) -> None:
    *spent, last = entries
    before = sum(entry.steps for entry in spent)
    after = f", and {before} earlier ones" if before else ""
    print(
        f"Noise multiplier {noise_multiplier:.6g}: epsilon is "
        f"{budget.epsilon_of(entries):.4f} at delta {budget.delta:g} after "
        f"{steps} steps of {_words(last.sampling)}{after}.",
        flush=True,
    )


def _words(sampling: accounting.Sampling) -> str:
    if isinstance(sampling, accounting.CyclicPoissonSampling):
        return (
            f"Poisson sampling at rate {sampling.sampling_rate:.4g} from one "
            f"of {sampling.parts} parts after the other"
        )
    if isinstance(sampling, accounting.PoissonSampling):
        return f"Poisson sampling at rate {sampling.sampling_rate:.4g}"
    if isinstance(sampling, accounting.WithoutReplacement):
        return (
            f"draws of {sampling.sample_size} out of {sampling.population} "
            "without replacement"
        )
    return "batches of unknown sampling: no amplification"
