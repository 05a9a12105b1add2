"""What a record guarantees at a delta, as fields of a card.

Every figure and every sentence comes from the paragraphs of the statement
(`accounting.paragraphs_of`); rates of attacks come from
`accounting.membership_attacks`.
"""

import math
from collections.abc import Sequence
from typing import Any

from tf_dpfp import accounting

_ADJACENCY = {
    accounting.Adjacency.ADD_OR_REMOVE_ONE: (
        "Neighbouring data sets differ by one {unit}, added or removed."
    ),
    accounting.Adjacency.REPLACE_ONE: (
        "Neighbouring data sets differ in what one {unit} is: it is replaced "
        "by another, in its place."
    ),
}
_RELEASED = {
    "Sums": "sums of clipped per-example gradients, with Gaussian noise",
    "PersonSums": "sums of clipped gradients of persons, with Gaussian noise",
    "ViewSums": (
        "sums of clipped mean gradients of the views of an example, with "
        "Gaussian noise"
    ),
    "BandedSums": (
        "sums of clipped per-example gradients, with Gaussian noise that is "
        "correlated over steps"
    ),
    "BandedPersonSums": (
        "sums of clipped gradients of persons, with Gaussian noise that is "
        "correlated over steps"
    ),
    "Representations": "clipped representations, with Gaussian noise",
    "PersonRepresentations": (
        "representations of persons, clipped jointly, with Gaussian noise"
    ),
    "Joint": (
        "clipped representations and, from the same examples, sums of clipped "
        "gradients, both with Gaussian noise"
    ),
    "EndToEnd": (
        "clipped representations with noise, and gradients of the layers "
        "below them without"
    ),
    "Labels": "labels, each randomised once",
    "Evaluation": "counts of evaluated examples, with Gaussian noise",
    "PersonEvaluation": "counts of evaluated persons, with Gaussian noise",
}
# Kinds of paragraphs.
_WARNINGS = ("no_privacy", "delta", "trained_before", "trained_apart", "seeded")
# Fields of their own have what these say; all others explain.
_APART = (*_WARNINGS, "training", "not_covered")

_BY_REPLACEMENT = (
    "Under replace-one adjacency everything is composed by RDP; the PLD of "
    "representations and labels is not computed."
)
_BY_DIVERGENCES = "Part of what ran is composed by RDP alone."
_SMALL_DELTA = (
    "Below a delta of {least:g} the PLD accountant is not exact; use RDP."
)
_LONG = (
    "The PLD of persons whose examples are sampled one by one takes a minute "
    "or more: tf_dpfp.compute_epsilon(model, delta, 'pld', "
    "examples_per_user={examples})."
)
# With more the PLD of each would take a minute together.
_MOST_KINDS = 8
_MANY = (
    "The PLD of {kinds} kinds of steps takes long: "
    "tf_dpfp.compute_epsilon(model, delta, 'pld')."
)
_NO_EPSILON = (
    "No epsilon is proved at this delta: batches that drop surplus examples "
    "spend more than all of it."
)
_ATTACKS = (
    "No attack that sees every release, knows all other data and chooses whom "
    "to ask about finds more of the members (true positives) than this, if it "
    "takes at most so many others for members (false positives)."
)
_SAMPLED_MU = (
    "Not exact: for attacks whose rates of false positives and of false "
    "negatives are both at least {least:g}. Of rarer errors it says nothing."
)


def number(value: float | None, reason: str | None = None) -> dict[str, Any]:
    """Makes a field of a number that may be infinite or missing.

    Args:
        value: The number.
        reason: Why it is infinite or missing.

    Returns:
        The field; strict JSON has no infinity.
    """
    infinite = value is not None and math.isinf(value)
    return {
        "value": None if infinite else value,
        "infinite": infinite,
        "reason": reason,
    }


def fields_of(
    record: accounting.Record, delta: float, examples_per_user: int | None
) -> dict[str, Any]:
    """Computes everything of a card that follows from a record and a delta.

    Args:
        record: What is known of the training.
        delta: Probability with which the guarantee may fail.
        examples_per_user: Bound on the examples of a person, or `None`.

    Returns:
        Fields.

    Raises:
        ValueError: If an argument is out of range, or nothing is proved for
            several examples of a person.
    """
    said = accounting.paragraphs_of(record, delta, "rdp", examples_per_user)
    why_no_pld = _why_no_pld(record, delta)
    by_pld: Sequence[accounting.Paragraph] = ()
    if why_no_pld is None:
        by_pld = accounting.paragraphs_of(record, delta, "pld")
    adjacency = accounting.adjacency_of(record.entries)
    unit = _unit(record)
    return {
        "delta": delta,
        "unit": unit,
        "adjacency": {
            "name": adjacency.value,
            "words": _ADJACENCY[adjacency].format(
                unit=unit["protects"].replace("_", " ")
            ),
        },
        "epsilon": _epsilons(said, by_pld, why_no_pld),
        "figures": _figures(said, by_pld, why_no_pld),
        **_attacks(record, said, None),
        "persons": _persons(record, said, delta, examples_per_user),
        "warnings": [
            {"about": p.kind, "words": p.words, "items": list(p.items)}
            for p in said
            if p.kind in _WARNINGS
        ],
        "explanations": [
            p.words for p in said if p.kind not in _APART and not p.figures
        ],
        "not_covered": [
            item for p in said if p.kind == "not_covered" for item in p.items
        ],
    }


def released(record: accounting.Record) -> list[str]:
    """Says what the steps of a record release, each kind once."""
    kinds = [type(entry.release).__name__ for entry in record.entries]
    return [_RELEASED.get(kind, kind) for kind in dict.fromkeys(kinds)]


def _unit(record: accounting.Record) -> dict[str, Any]:
    units = {entry.release.unit for entry in record.entries} or {"example"}
    counts = [
        getattr(entry.release, "max_examples", None) for entry in record.entries
    ]
    known = [count for count in counts if count is not None]
    return {
        "protects": units.pop() if len(units) == 1 else "example_or_person",
        "most_examples_in_a_step": max(known, default=None),
    }


def _why_no_pld(record: accounting.Record, delta: float) -> str | None:
    if len(record.entries) > _MOST_KINDS:
        return _MANY.format(kinds=len(record.entries))
    if delta < accounting.MIN_PLD_DELTA:
        return _SMALL_DELTA.format(least=accounting.MIN_PLD_DELTA)
    adjacency = accounting.adjacency_of(record.entries)
    if adjacency is accounting.Adjacency.REPLACE_ONE:
        return _BY_REPLACEMENT
    if not all(map(accounting.has_losses, record.entries)):
        return _BY_DIVERGENCES
    return None


def _why_infinite(said: Sequence[accounting.Paragraph]) -> str:
    for paragraph in said:
        if paragraph.kind == "no_privacy":
            return " ".join([paragraph.words, *paragraph.items])
    units = [
        p.words for p in said if p.kind == "unit" and "infinite" in p.words
    ]
    return " ".join(units) or _NO_EPSILON


def _epsilon_of(said: Sequence[accounting.Paragraph]) -> float:
    """Returns the epsilon that is proved for all that ran."""
    if any(p.kind == "no_privacy" for p in said):
        return math.inf
    # Its first figure is with the sampling that was performed.
    proved = [p.figures[0].epsilon for p in said if p.kind == "proved"]
    return proved[0] if proved else 0.0


def _epsilon(
    value: float, said: Sequence[accounting.Paragraph]
) -> dict[str, Any]:
    return number(value, _why_infinite(said) if math.isinf(value) else None)


def _epsilons(
    said: Sequence[accounting.Paragraph],
    by_pld: Sequence[accounting.Paragraph],
    why_no_pld: str | None,
) -> dict[str, Any]:
    by_rdp = _epsilon(_epsilon_of(said), said)
    if by_rdp["infinite"]:
        # Whatever accountant is asked.
        return {"rdp": by_rdp, "pld": dict(by_rdp)}
    if why_no_pld is not None:
        return {"rdp": by_rdp, "pld": number(None, why_no_pld)}
    return {"rdp": by_rdp, "pld": _epsilon(_epsilon_of(by_pld), by_pld)}


def _figures(
    said: Sequence[accounting.Paragraph],
    by_pld: Sequence[accounting.Paragraph],
    why_no_pld: str | None,
) -> list[dict[str, Any]]:
    """Lists the epsilons of the statement, by both accountants."""
    others = {f.label: f.epsilon for p in by_pld for f in p.figures}
    listed = []
    for paragraph in said:
        if paragraph.kind == "persons":
            continue
        for figure in paragraph.figures:
            other = others.get(figure.label)
            listed.append(
                {
                    "about": paragraph.kind,
                    "label": figure.label,
                    "epsilon": {
                        "rdp": number(figure.epsilon),
                        "pld": number(
                            other, why_no_pld if other is None else None
                        ),
                    },
                }
            )
    return listed


def _attacks(
    record: accounting.Record,
    said: Sequence[accounting.Paragraph],
    examples_per_user: int | None,
    accountant: str = "pld",
) -> dict[str, Any]:
    found = accounting.unlimited()
    if len(record.entries) > _MOST_KINDS:
        accountant = "rdp"
    if not record.objections:
        found = accounting.membership_attacks(
            record.entries, examples_per_user, accountant
        )
    reason = None
    if found.mu is None:
        reason = _why_infinite(said)
    elif not found.is_exact:
        reason = _SAMPLED_MU.format(least=found.least_error)
    return {
        "attacks": {
            "method": found.method,
            "words": _ATTACKS,
            "rates": [
                {"false_positive_rate": f, "true_positive_rate": t}
                for f, t in found.rates
            ],
        },
        "gaussian_dp": {
            "mu": found.mu,
            "exact": found.is_exact,
            "least_error_rate": found.least_error,
            "reason": reason,
        },
    }


def _persons(
    record: accounting.Record,
    said: Sequence[accounting.Paragraph],
    delta: float,
    examples_per_user: int | None,
) -> dict[str, Any] | None:
    if examples_per_user is None:
        return None
    figures = [p.figures[0] for p in said if p.kind == "persons"]
    by_rdp = figures[0].epsilon if figures else _epsilon_of(said)
    long = examples_per_user > 1 and any(
        entry.release.unit == "example"
        and isinstance(entry.sampling, accounting.PoissonSampling)
        for entry in record.entries
    )
    why_not = _why_no_pld(record, delta)
    if why_not is None and long:
        why_not = _LONG.format(examples=examples_per_user)
    by_pld = None
    if math.isinf(by_rdp):
        by_pld, why_not = math.inf, _why_infinite(said)
    elif why_not is None:
        by_pld = accounting.compute_epsilon(
            record.entries, delta, "pld", examples_per_user=examples_per_user
        )
    return {
        "most_examples": examples_per_user,
        "epsilon": {
            "rdp": _epsilon(by_rdp, said),
            "pld": number(by_pld, why_not),
        },
        **_attacks(record, said, examples_per_user, "rdp" if long else "pld"),
    }
