"""Ledger entries as fields of a card, and back again, without loss."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tf_dpfp import accounting


def fields_of(entry: accounting.LedgerEntry) -> dict[str, Any]:
    """Writes a ledger entry as fields.

    Args:
        entry: The entry.

    Returns:
        Names of classes, and their numbers, which JSON keeps exactly.
    """
    return {
        "steps": entry.steps,
        "noise_multiplier": entry.noise_multiplier,
        "sampling": _fields(entry.sampling),
        "release": _fields(entry.release),
        "seeded": entry.seeded,
    }


def entry_of(fields: Mapping[str, Any]) -> accounting.LedgerEntry:
    """Reads a ledger entry back.

    Args:
        fields: Result of `fields_of`.

    Returns:
        The entry.

    Raises:
        ValueError: If the fields are those of no entry of this version.
    """
    try:
        return accounting.LedgerEntry(
            sampling=_object(fields["sampling"]),
            noise_multiplier=fields["noise_multiplier"],
            steps=fields["steps"],
            seeded=fields["seeded"],
            release=_object(fields["release"]),
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            "A privacy card describes steps that this version of tf_dpfp does "
            f"not know. Update it. Received: {dict(fields)}"
        ) from error


def _fields(described: Any) -> dict[str, Any]:
    return {"kind": type(described).__name__, **dataclasses.asdict(described)}


def _object(fields: Mapping[str, Any]) -> Any:
    values = dict(fields)
    kind = values.pop("kind")
    if kind not in accounting.__all__:
        raise KeyError(kind)
    return getattr(accounting, kind)(**values)
