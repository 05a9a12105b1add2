"""Paragraph of a privacy statement about persons with several examples."""

import dataclasses
from collections.abc import Sequence

from tf_dpfp.accounting import entries as entries_lib
from tf_dpfp.accounting import epsilon as epsilon_lib
from tf_dpfp.accounting import paragraphs as text
from tf_dpfp.accounting import persons
from tf_dpfp.accounting import releases
from tf_dpfp.accounting import samplings


@dataclasses.dataclass(frozen=True)
class Unit:
    """Words for whom the guarantee protects.

    Attributes:
        level: Name of the guarantee.
        one: Noun.
        many: Its plural.
    """

    level: str
    one: str
    many: str


_EXAMPLES = Unit("Example-level DP", "example", "examples")
_PERSONS = Unit("User-level DP", "person", "persons")
_BOTH = Unit("DP", "example or person", "examples or persons")

_WITHOUT_BOUND = {
    _EXAMPLES: text.NO_USER_LEVEL,
    _PERSONS: (
        "Neighbours differ by one person with all of their examples, however "
        "many: those with the same id are one person's, as the ids say. In a "
        "step the gradients of up to so many of them are added up, and their "
        "sum is clipped. To change some examples of a person is to remove the "
        "person and to add another."
    ),
    _BOTH: (
        "Some of the steps protect one example, others one person with all "
        "examples. Nothing is proved of both together without a bound on the "
        "number of examples of a person (examples_per_user), so epsilon is "
        "infinite."
    ),
}


def unit_of(entries: Sequence[entries_lib.LedgerEntry]) -> Unit:
    """Returns whom all of the entries protect, in words."""
    if persons.units_differ(entries):
        return _BOTH
    by_person = any(entry.release.unit == "person" for entry in entries)
    return _PERSONS if by_person else _EXAMPLES


def words(entry: entries_lib.LedgerEntry) -> str:
    """Says how many examples of a person are in a step; else nothing."""
    release = entry.release
    kinds = (
        *(releases.PersonSums, releases.PersonRepresentations),
        releases.BandedPersonSums,
    )
    if not isinstance(release, kinds):
        return ""
    count = text.count(release.max_examples, "example")
    return f" of persons, up to {count} of each"


def describe(
    entries: Sequence[entries_lib.LedgerEntry],
    delta: float,
    accountant: str,
    examples_per_user: int | None,
) -> list[text.Paragraph]:
    """Says what a person with several examples is guaranteed.

    Args:
        entries: Everything that ran, merged.
        delta: Probability with which the guarantee may fail.
        accountant: `"rdp"` or `"pld"`.
        examples_per_user: Bound on the examples of a person; `None` if nobody
            gave one.

    Returns:
        Paragraphs.

    Raises:
        ValueError: If nothing is proved for several examples.
    """
    if examples_per_user is None:
        return [text.Paragraph("unit", _WITHOUT_BOUND[unit_of(entries)])]
    epsilon = epsilon_lib.compute_epsilon(
        entries,
        delta,
        accountant,
        releases.Adjacency.ADD_OR_REMOVE_ONE,
        examples_per_user,
    )
    method = _accounting(entries, accountant, examples_per_user)
    examples = text.count(examples_per_user, "example")
    head = (
        "User-level DP, for neighbours that differ by one person with all of "
        f"their examples, at delta = {delta} computed with {method}. It holds "
        f"if no person has more than {examples} in the data, which is given "
        "here and not checked:"
    )
    label = f"Epsilon of a person with up to {examples}:"
    figure = text.Figure(label, epsilon)
    return [
        text.Paragraph("persons", head, figures=(figure,)),
        text.Paragraph("unit", _reason(entries)),
    ]


def _accounting(
    entries: Sequence[entries_lib.LedgerEntry],
    accountant: str,
    examples_per_user: int,
) -> str:
    sampled = examples_per_user > 1 and _are_sampled(entries)
    if accountant == "pld" and sampled and not persons.has_mixtures():
        return (
            "RDP accounting, since this version of dp_accounting has no PLD "
            "of mixtures of Gaussians"
        )
    return f"{accountant.upper()} accounting"


def _reason(entries: Sequence[entries_lib.LedgerEntry]) -> str:
    reasons = []
    of_examples = [e for e in entries if e.release.unit == "example"]
    if _are_sampled(of_examples):
        reasons.append(
            "With Poisson sampling each example of a person is in a step by a "
            "coin of its own: a mixture of Gaussians, over how many are."
        )
    if any(e.sampling.by_position for e in of_examples):
        reasons.append(
            "With unknown sampling all of them may be in every step."
        )
    if len(of_examples) < len(entries):
        reasons.append("Where persons are drawn, the bound changes nothing.")
    return " ".join(reasons)


def _are_sampled(entries: Sequence[entries_lib.LedgerEntry]) -> bool:
    return any(
        isinstance(entry.sampling, samplings.PoissonSampling)
        for entry in entries
    )
