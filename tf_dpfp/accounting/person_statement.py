"""Paragraph of a privacy statement about persons with several examples."""

from collections.abc import Sequence

from tf_dpfp.accounting import entries as entries_lib
from tf_dpfp.accounting import epsilon as epsilon_lib
from tf_dpfp.accounting import paragraphs as text
from tf_dpfp.accounting import persons
from tf_dpfp.accounting import releases
from tf_dpfp.accounting import samplings


def describe(
    entries: Sequence[entries_lib.LedgerEntry],
    delta: float,
    accountant: str,
    examples_per_user: int | None,
) -> list[str]:
    """Says what a person with several examples is guaranteed.

    Args:
        entries: Everything that ran, merged.
        delta: Probability with which the guarantee may fail.
        accountant: `"rdp"` or `"pld"`.
        examples_per_user: Bound on the examples of a person; `None` if nobody
            gave one.

    Returns:
        A paragraph.

    Raises:
        ValueError: If nothing is proved for several examples.
    """
    if examples_per_user is None:
        return [text.fill(text.NO_USER_LEVEL)]
    epsilon = epsilon_lib.compute_epsilon(
        entries,
        delta,
        accountant,
        releases.Adjacency.ADD_OR_REMOVE_ONE,
        examples_per_user,
    )
    method = _accounting(entries, accountant, examples_per_user)
    examples = text.count(examples_per_user, "example")
    head = text.fill(
        "User-level DP, for neighbours that differ by one person with all of "
        f"their examples, at delta = {delta} computed with {method}. It holds "
        f"if no person has more than {examples} in the data, which is given "
        "here and not checked:"
    )
    label = f"Epsilon of a person with up to {examples}:"
    return ["\n".join([head, text.figure(label, epsilon)]), _reason(entries)]


def _accounting(
    entries: Sequence[entries_lib.LedgerEntry],
    accountant: str,
    examples_per_user: int,
) -> str:
    sampled = examples_per_user > 1 and _are_sampled(entries)
    if accountant == "pld" and sampled and not persons.HAS_MIXTURES:
        return (
            "RDP accounting, since this version of dp_accounting has no PLD "
            "of mixtures of Gaussians"
        )
    return f"{accountant.upper()} accounting"


def _reason(entries: Sequence[entries_lib.LedgerEntry]) -> str:
    reasons = []
    if _are_sampled(entries):
        reasons.append(
            "With Poisson sampling each example of a person is in a step by a "
            "coin of its own: a mixture of Gaussians, over how many are."
        )
    if any(e.sampling.by_position for e in entries):
        reasons.append(
            "With unknown sampling all of them may be in every step."
        )
    return text.fill(" ".join(reasons))


def _are_sampled(entries: Sequence[entries_lib.LedgerEntry]) -> bool:
    return any(
        isinstance(entry.sampling, samplings.PoissonSampling)
        for entry in entries
    )
