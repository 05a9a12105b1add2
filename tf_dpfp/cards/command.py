"""The command `python -m tf_dpfp card FILE.keras`: prints a file's card."""

import sys
from collections.abc import Sequence

from absl import flags

from tf_dpfp.cards import card as card_lib

FORMATS = ("markdown", "json", "model_card", "statement")
_USAGE = "python -m tf_dpfp card FILE.keras [--delta=1e-6] [--format=json]"


def report(path: str, delta: float | None, format: str) -> str:
    """Writes the output of the command.

    Args:
        path: Path of a file with a card.
        delta: Delta of the figures; `None`: that of the card.
        format: One of `FORMATS`.

    Returns:
        The text.

    Raises:
        ValueError: If the file has no card, or changed after it was written.
    """
    card = card_lib.read_card(path)
    if delta is not None:
        card = card.at_delta(delta)
    return {
        "markdown": card.to_markdown,
        "json": card.to_json,
        "model_card": card.to_model_card,
        "statement": card.statement,
    }[format]()


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_float("delta", None, "Another delta than the card's.")
    flags.DEFINE_enum("format", "markdown", FORMATS, "What is printed.")


def run(argv: Sequence[str]) -> int:
    """Runs the command.

    Args:
        argv: Name of the program, `card`, and the path.

    Returns:
        The exit status.
    """
    if len(argv) != 3 or argv[1] != "card":
        print(f"usage: {_USAGE}", file=sys.stderr)
        return 2
    try:
        text = report(argv[2], flags.FLAGS.delta, flags.FLAGS.format)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text, end="")
    return 0
