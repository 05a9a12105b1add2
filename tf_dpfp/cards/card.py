"""The privacy card: fields, and the forms in which they are written."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from tf_dpfp import accounting
from tf_dpfp import arguments
from tf_dpfp.cards import assembling
from tf_dpfp.cards import files
from tf_dpfp.cards import markdown
from tf_dpfp.cards import model_card


@dataclasses.dataclass(frozen=True, eq=False)
class PrivacyCard:
    """Everything that a reviewer asks of a private training, on one card.

    Example:

    ```python
    card = tf_dpfp.privacy_card(model, delta=1e-5)
    print(card)  # Markdown.
    card.write("card.json")
    model.save("model.keras")
    card.write("model.keras")  # Into the file.
    ```

    Args:
        fields: The fields, as in the JSON schema of the package.

    Raises:
        ValueError: If the fields are not those of a card of this version.
    """

    fields: Mapping[str, Any]

    def __post_init__(self):
        found = dict(self.fields).get("schema")
        known = assembling.SCHEMA
        if found != known:
            raise ValueError(
                "This is no privacy card, or one of another version of "
                f"tf_dpfp. Received: schema={found!r}, not {known!r}"
            )

    @property
    def record(self) -> accounting.Record:
        """What is known of the training, without any delta."""
        return assembling.record_of(self.fields)

    def epsilon(self, accountant: str = "rdp") -> float | None:
        """Returns epsilon; infinite, or `None` where none is computed.

        Args:
            accountant: `"rdp"` or `"pld"`.
        """
        arguments.one_of("accountant", accountant, ["rdp", "pld"])
        found = self.fields["epsilon"][accountant]
        return float("inf") if found["infinite"] else found["value"]

    def statement(self, accountant: str = "rdp") -> str:
        """Writes the privacy statement, from the fields of the card.

        Args:
            accountant: `"rdp"` or `"pld"`.

        Returns:
            The text of `tf_dpfp.privacy_statement`.
        """
        persons = self.fields["persons"]
        return accounting.written(
            accounting.paragraphs_of(
                self.record,
                self.fields["delta"],
                accountant,
                persons and persons["most_examples"],
            )
        )

    def at_delta(self, delta: float) -> "PrivacyCard":
        """Returns the card of the same training at another delta.

        Args:
            delta: Probability with which the guarantee may fail, in (0, 1).

        Returns:
            A new card.

        Raises:
            ValueError: If delta is out of range.
        """
        persons = self.fields["persons"]
        return PrivacyCard(
            assembling.assemble(
                self.fields,
                self.record,
                delta,
                persons and persons["most_examples"],
            )
        )

    def to_json(self) -> str:
        """Writes strict JSON: no NaN, no infinity."""
        return json.dumps(self.fields, indent=2, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """Writes the card for people to read."""
        return markdown.write(self.fields)

    def to_model_card(
        self,
        *,
        library_name: str = "keras",
        license: str | None = None,
        tags: Sequence[str] = (),
    ) -> str:
        """Writes a model card of the Hugging Face Hub: a `README.md`.

        Args:
            library_name: `"keras"`, or `"keras-hub"` for a preset.
            license: Licence of the model, such as `"apache-2.0"`.
            tags: More tags.

        Returns:
            YAML between two lines of dashes, and the card as markdown.
        """
        return model_card.write(self.fields, library_name, license, tags)

    def write(self, path: str | os.PathLike) -> None:
        """Writes the card to a file, or into a `.keras` file.

        | path | what is written |
        |---|---|
        | `*.keras` | the JSON, as one more member of the file of the model |
        | `*.json` | the JSON |
        | `*.md` | the markdown |
        | a folder | `README.md`, a model card, as for a KerasHub preset |

        A kill at any time leaves the earlier file or the new one. Keras, with
        or without this package, loads a file with a card as before. The card
        is refused when the file is read, if its weights, its ledger or its
        configuration changed since; `model.save` writes a file without one.

        Args:
            path: The path. A `.keras` file and a folder must exist.

        Raises:
            ValueError: If the ending is another one, the file's ledger is not
                that of the card, or a folder has a `README.md` of others.
        """
        files.write(pathlib.Path(path), self)

    def __str__(self) -> str:
        return self.to_markdown()


def read_card(path: str | os.PathLike) -> PrivacyCard:
    """Reads the privacy card of a file.

    Args:
        path: Path of a `.keras` file with a card, or of a `.json` file.

    Returns:
        The card.

    Raises:
        ValueError: If the file has no card, or its weights, its ledger or its
            configuration changed after the card was written.
    """
    return PrivacyCard(files.read(pathlib.Path(path)))
