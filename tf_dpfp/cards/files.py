"""Files with a card: what is written where, and what is refused."""

import json
import pathlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tf_dpfp import accounting
from tf_dpfp import counting
from tf_dpfp.cards import keras_file
from tf_dpfp.cards import model_card
from tf_dpfp.keras_private import saving as keras_saving
from tf_dpfp.mechanisms import loaded
from tf_dpfp.training import durable_files

if TYPE_CHECKING:
    from tf_dpfp.cards.card import PrivacyCard

_README = "README.md"


def write(path: pathlib.Path, card: "PrivacyCard") -> None:
    """Writes a card; see `PrivacyCard.write`.

    Args:
        path: Path of the file or folder.
        card: The card.

    Raises:
        ValueError: If the card can't be written there.
    """
    if path.suffix == ".keras":
        _write_into(path, card)
    elif path.is_dir():
        _write_readme(path / _README, card)
    elif path.suffix == ".json":
        _write_text(path, card.to_json())
    elif path.suffix == ".md":
        _write_text(path, card.to_markdown())
    else:
        raise ValueError(
            "A privacy card is written into a .keras file, to a .json or .md "
            "file, or as README.md of a folder that exists. Received: "
            f"path='{path}'"
        )


def read(path: pathlib.Path) -> dict[str, Any]:
    """Reads the fields of a card.

    Args:
        path: Path of a `.keras` file with a card, or of a `.json` file.

    Returns:
        The fields.

    Raises:
        ValueError: If there is no card, or the file changed since it was
            written.
    """
    if path.suffix == ".json" and path.is_file():
        return _fields(path.read_text(encoding="utf-8"))
    keras_file.check(path)
    text = keras_file.take(path)
    if text is None:
        raise ValueError(
            f"'{path}' has no privacy card: it was saved without one, or anew "
            "since. Write it from the training: "
            "tf_dpfp.privacy_card(model, delta).write(path)."
        )
    stored = _fields(text)
    written_for = stored.pop("file", None)
    if written_for != keras_file.digests(path):
        raise ValueError(
            f"'{path}' was changed after its privacy card was written: the "
            "card is not that of these weights, ledger and configuration. "
            "Make a new one: tf_dpfp.privacy_card(model, delta).write(path)."
        )
    return stored


def _fields(text: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"This is no privacy card: {error}.") from error
    return fields if isinstance(fields, dict) else {}


def _write_text(path: pathlib.Path, text: str) -> None:
    def write_to(beside: pathlib.Path) -> None:
        beside.write_text(text, encoding="utf-8")

    durable_files.replace(path, write_to)


def _write_into(path: pathlib.Path, card: "PrivacyCard") -> None:
    keras_file.check(path)
    groups = keras_saving.marked_groups(path, counting.MARKER)
    if not _are_equal(loaded.entries_of(groups), card.record.entries):
        raise ValueError(
            f"'{path}' holds another privacy ledger than the card: it is of "
            "other steps than the model's so far, or was saved without the "
            "state of the optimizer. Save the model, and then write a new "
            "card: model.save(path); "
            "tf_dpfp.privacy_card(model, delta).write(path)."
        )
    fields = {**card.fields, "file": keras_file.digests(path)}
    keras_file.put(path, json.dumps(fields, indent=2, allow_nan=False))


def _are_equal(
    first: Iterable[accounting.LedgerEntry],
    second: Iterable[accounting.LedgerEntry],
) -> bool:
    first, second = list(first), list(second)
    lacking = accounting.missing(first, second)
    return not lacking and not accounting.missing(second, first)


def _write_readme(path: pathlib.Path, card: "PrivacyCard") -> None:
    if path.exists() and model_card.MARK not in path.read_text("utf-8"):
        raise ValueError(
            f"'{path}' was written by others and would be lost. Put the text "
            "of card.to_model_card() into it by hand, or move it away."
        )
    is_hub = (path.parent / "metadata.json").exists()
    name = "keras-hub" if is_hub else "keras"
    _write_text(path, card.to_model_card(library_name=name))
