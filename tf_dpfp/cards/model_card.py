"""Model cards of the Hugging Face Hub: YAML above the card as markdown.

A string in JSON is one in YAML, too, so no other library is needed.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tf_dpfp.cards import markdown

# By which a file that this package wrote is known.
MARK = "<!-- A privacy card of tf_dpfp. -->"
_TAGS = ("differential-privacy", "tf_dpfp")


def write(
    fields: Mapping[str, Any],
    library_name: str,
    license: str | None,
    tags: Sequence[str],
) -> str:
    """Writes a model card.

    Args:
        fields: Fields of a privacy card.
        library_name: Library that loads the model.
        license: Licence of the model, or `None`.
        tags: More tags.

    Returns:
        The text of a `README.md`.
    """
    lines = ["---", f"library_name: {json.dumps(library_name)}"]
    if license is not None:
        lines.append(f"license: {json.dumps(license)}")
    lines += ["tags:", *(f"- {json.dumps(tag)}" for tag in (*_TAGS, *tags))]
    lines.append("differential_privacy:")
    for name, value in _guarantee(fields).items():
        lines.append(f"  {name}: {_scalar(value)}")
    return "\n".join([*lines, "---", "", MARK, "", markdown.write(fields)])


def _guarantee(fields: Mapping[str, Any]) -> dict[str, Any]:
    by_pld = fields["epsilon"]["pld"]
    is_known = by_pld["infinite"] or by_pld["value"] is not None
    epsilon = by_pld if is_known else fields["epsilon"]["rdp"]
    return {
        "epsilon": float("inf") if epsilon["infinite"] else epsilon["value"],
        "delta": fields["delta"],
        "accountant": "pld" if is_known else "rdp",
        "adjacency": fields["adjacency"]["name"],
        "unit": fields["unit"]["protects"],
        "mechanism": fields["mechanism"]["name"],
        "seeded": fields["seeds"]["seeded"],
    }


def _scalar(value: Any) -> str:
    if isinstance(value, float):
        # YAML reads 1e-05 as a text, and has an infinity.
        if value == float("inf"):
            return ".inf"
        text = repr(value)
        return text.replace("e", ".0e") if "." not in text else text
    return json.dumps(value)
