"""Fields of a card: what was kept of a training, and what follows from it."""

import math
from collections.abc import Mapping
from typing import Any

from tf_dpfp import accounting
from tf_dpfp.cards import guarantees
from tf_dpfp.cards import hazards
from tf_dpfp.cards import steps

# Changes with the meaning of a field.
SCHEMA = "tf_dpfp/privacy_card/1"

_REFUTED = (
    "REFUTED: the lower bound of an audit is above what is proved. Either the "
    "audit was of another training, or there is a fault. Do not publish the "
    "model before it is found."
)
_PLAIN_DIGESTS = (
    "DIGESTS: this card has digests of the data without a secret key. They "
    "confirm a guess of the whole data, which no epsilon covers. If the data "
    "are private, keep this card with the reviewer, or make it with `data_key`."
)
_OF_OTHERS = "The audit is of other neighbours, and can't be compared."


def record_of(fields: Mapping[str, Any]) -> accounting.Record:
    """Reads the record of a training from the fields of a card.

    Args:
        fields: The fields.

    Returns:
        The record.

    Raises:
        ValueError: If its steps are of a newer version.
    """
    known = fields["record"]
    return accounting.Record(
        tuple(steps.entry_of(step) for step in fields["steps"]),
        population=fields["population"],
        seeded=known["seeded"],
        observed=known["observed"],
        objections=tuple(known["objections"]),
        ordinary_steps=known["ordinary_steps"],
        trained_apart=tuple(known["trained_apart"]),
    )


def assemble(
    kept: Mapping[str, Any],
    record: accounting.Record,
    delta: float,
    examples_per_user: int | None,
) -> dict[str, Any]:
    """Makes the fields of a card of what was kept of a training.

    Args:
        kept: Fields that depend on no delta: `"model"`, `"clip_norms"`,
            `"code"`, `"data"`, `"audit"` and others.
        record: What the figures are computed from.
        delta: Probability with which the guarantee may fail.
        examples_per_user: Bound on the examples of a person, or `None`.

    Returns:
        The fields.

    Raises:
        ValueError: If an argument is out of range.
    """
    found = guarantees.fields_of(record, delta, examples_per_user)
    audit = _judged(kept["audit"], record)
    found["warnings"] += _more_warnings(kept, audit)
    tuning = tuning_of(record)
    facts = hazards.Facts(
        record, found, kept["noise"]["secure"], audit, tuning, kept["data"]
    )
    return {
        "schema": SCHEMA,
        "model": kept["model"],
        "mechanism": kept["mechanism"],
        "released": guarantees.released(record),
        "steps": [steps.fields_of(entry) for entry in record.entries],
        "population": record.population,
        "clip_norms": kept["clip_norms"],
        "noise": kept["noise"],
        **found,
        "seeds": {"seeded": record.seeded},
        "audit": audit,
        "tuning": tuning,
        "hazards": hazards.hazards(facts),
        "data": kept["data"],
        "code": kept["code"],
        "record": {
            "seeded": record.seeded,
            "observed": record.observed,
            "objections": list(record.objections),
            "ordinary_steps": record.ordinary_steps,
            "trained_apart": list(record.trained_apart),
        },
    }


def tuning_of(record: accounting.Record) -> list[dict[str, Any]] | None:
    """Lists what a ledger holds of a search for settings; `None` if nothing.

    Args:
        record: What is known of the training.
    """
    found = dict.fromkeys(
        getattr(entry, "search", None) for entry in record.entries
    )
    return [steps.described(search) for search in found if search] or None


def _judged(
    audit: Mapping[str, Any] | None, record: accounting.Record
) -> dict[str, Any] | None:
    """Compares an audit with what is proved of the training."""
    if audit is None:
        return None
    adjacency = accounting.adjacency_of(record.entries)
    units = {entry.release.unit for entry in record.entries}
    of_others = audit["adjacency"] != adjacency.value or (
        audit["unit"] == "person" and units != {"person"}
    )
    points = []
    for point in audit["points"]:
        bound, proved = point["lower_bound"], None
        if record.objections:
            proved = math.inf
        elif not of_others and point["delta"] > 0.0:
            proved = accounting.compute_epsilon(record.entries, point["delta"])
        found = math.inf if bound["infinite"] else bound["value"]
        points.append(
            {
                "delta": point["delta"],
                "lower_bound": bound,
                "proved": guarantees.number(
                    proved, _OF_OTHERS if of_others else None
                ),
                "refuted": proved is not None and found > proved,
            }
        )
    refuted = any(point["refuted"] for point in points)
    return {**audit, "points": points, "refuted": refuted}


def _more_warnings(
    kept: Mapping[str, Any], audit: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """Warns of what the statement does not know."""
    found = []
    if audit is not None and audit["refuted"]:
        found.append(("audit", _REFUTED))
    if any(not digest["keyed"] for digest in kept["data"] or ()):
        found.append(("digests", _PLAIN_DIGESTS))
    return [
        {"about": about, "words": words, "items": []} for about, words in found
    ]
