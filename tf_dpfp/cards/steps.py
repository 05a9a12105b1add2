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
    named = {
        field.name: getattr(entry, field.name)
        for field in dataclasses.fields(entry)
    }
    return {
        name: described(value) if dataclasses.is_dataclass(value) else value
        for name, value in named.items()
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
            **{
                name: _object(value) if isinstance(value, dict) else value
                for name, value in fields.items()
            }
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            "A privacy card describes steps that this version of tf_dpfp does "
            f"not know. Update it. Received: {dict(fields)}"
        ) from error


def described(part: Any) -> dict[str, Any]:
    """Writes a part of an entry as the name of its class, and its numbers.

    Args:
        part: A sampling, a release or another frozen dataclass.
    """
    return {"kind": type(part).__name__, **dataclasses.asdict(part)}


def _object(fields: Mapping[str, Any]) -> Any:
    values = dict(fields)
    kind = values.pop("kind")
    make: Any = getattr(accounting, kind)
    if not (isinstance(make, type) and dataclasses.is_dataclass(make)):
        raise KeyError(kind)
    return make(**values)
