"""Settings of a private evaluation, and the release that they make."""

import dataclasses
from typing import Any

from tf_dpfp import accounting
from tf_dpfp import arguments
from tf_dpfp import counting
from tf_dpfp.evaluation import values as values_lib

BATCH_SIZE = 256


@dataclasses.dataclass(frozen=True)
class Settings:
    """Checked arguments of a private evaluation.

    Attributes:
        noise_multiplier: Standard deviation of the noise; the sensitivity is
            1.
        loss_bound: Bound of the loss of an example; `None`: no loss.
        correct: See `values.Wanted`.
        num_examples: Public number of examples, or `None`.
        group_values: Values of the groups.
        confidence: Probability of an interval.
        batch_size: Number of examples that the model sees at once.
        seed: Seed of the noise, or `None`.
    """

    noise_multiplier: float
    loss_bound: float | None = None
    correct: values_lib.Correct | None = None
    num_examples: int | None = None
    group_values: tuple[Any, ...] = ()
    confidence: float = 0.95
    batch_size: int = BATCH_SIZE
    seed: int | None = None

    def release(self, by_person: bool) -> counting.GaussianRelease:
        """Returns the release, which noise and ledger are read from."""
        return counting.GaussianRelease(
            clip_norm=1.0,
            noise_multiplier=self.noise_multiplier,
            seed=self.seed,
            kind=accounting.PersonEvaluation()
            if by_person
            else accounting.Evaluation(),
        )


def checked(**given: Any) -> Settings:
    """Checks the settings of a private evaluation.

    Args:
        **given: As for `evaluate_privately`.

    Returns:
        `Settings`.

    Raises:
        ValueError: If one is out of its range.
    """
    found = Settings(**given)
    values = tuple(found.group_values)
    if len(set(values)) != len(values):
        raise ValueError(
            "`group_values` must list each group once. Received: "
            f"group_values={list(values)}"
        )
    if found.correct is not None and not callable(found.correct):
        raise ValueError(
            "`correct` must be a function of the labels and predictions of "
            "one example, which returns a number between 0 and 1. Received: "
            f"correct={found.correct!r}"
        )

    def optional(check, name: str, value: Any, **limits: Any) -> Any:
        return None if value is None else check(name, value, **limits)

    return dataclasses.replace(
        found,
        noise_multiplier=arguments.number(
            "noise_multiplier", found.noise_multiplier, least=0.0, most=1e7
        ),
        loss_bound=optional(
            arguments.number, "loss_bound", found.loss_bound, above=0.0
        ),
        num_examples=optional(
            arguments.positive_integer, "num_examples", found.num_examples
        ),
        group_values=values,
        confidence=arguments.number(
            "confidence", found.confidence, above=0.0, below=1.0
        ),
        batch_size=arguments.positive_integer("batch_size", found.batch_size),
        seed=arguments.seed(found.seed),
    )


def next_entry(settings: Settings, by_person: bool) -> accounting.LedgerEntry:
    """Returns the ledger entry that one evaluation adds.

    Args:
        settings: Its settings.
        by_person: True if persons add to it, and not examples.
    """
    release = settings.release(by_person)
    return counting.Claim(release, accounting.EveryExample()).entry(1)
