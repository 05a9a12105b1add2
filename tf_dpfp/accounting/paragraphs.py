"""Paragraphs of 80 columns, and figures that are never rounded down."""

import math
import textwrap

_WIDTH = 80
_LABEL_WIDTH = 61


def fill(text: str, indent: int = 0, hanging: int = 0) -> str:
    """Breaks a paragraph into lines.

    Args:
        text: The paragraph.
        indent: Columns before every line.
        hanging: Further columns before every line but the first.

    Returns:
        The lines.
    """
    return textwrap.fill(
        text,
        width=_WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + hanging),
    )


def row(label: str, epsilon: float) -> str:
    """A label and its epsilon, rounded up, in one line."""
    return f"    {label:<{_LABEL_WIDTH}}{round_up(epsilon):>15}"


def round_up(epsilon: float) -> str:
    """Formats epsilon so that the printed figure is never below it."""
    if math.isinf(epsilon):
        return "infinite"
    if epsilon >= 1e12:
        # More than the half unit by which the last digit may be rounded down.
        return f"{epsilon * 1.001:.3e}"
    rounded = math.ceil(epsilon * 1000.0) / 1000.0
    return f"{rounded:.3f}"


def count(number: int, one: str, many: str | None = None) -> str:
    """A number and what it is a number of."""
    return f"{number} {one if number == 1 else many or one + 's'}"
