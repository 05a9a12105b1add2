"""Tutorials as notebooks and as pages.

A tutorial is a Python file in the manner of keras.io: it begins with a header
of titles and dates, strings at the top level are Markdown, and everything else
is code. So it runs as a script, and its cells are read from it.
"""

from __future__ import annotations

import ast
import dataclasses
import pathlib
from typing import Any

TUTORIALS = pathlib.Path(__file__).resolve().parent / "tutorials"


@dataclasses.dataclass(frozen=True)
class Cell:
    """Part of a tutorial.

    Attributes:
        is_code: Whether it is Python and not Markdown.
        text: Its text, without blank lines around it.
    """

    is_code: bool
    text: str


@dataclasses.dataclass(frozen=True)
class Tutorial:
    """A tutorial, read from its file.

    Attributes:
        header: Title, author, dates and description, by name.
        cells: Everything below the header.
    """

    header: dict[str, str]
    cells: tuple[Cell, ...]


def read(path: pathlib.Path) -> Tutorial:
    """Reads a tutorial.

    Args:
        path: The Python file.

    Returns:
        The tutorial.

    Raises:
        ValueError: If the file has no header.
    """
    text = path.read_text()
    body = ast.parse(text).body
    texts = [node for node in body if _is_text(node)]
    if not texts or texts[0] is not body[0]:
        raise ValueError(f"{path} does not begin with a header.")
    header = dict(
        line.split(": ", 1) for line in texts[0].value.value.strip().split("\n")
    )
    lines = text.split("\n")
    ends = [*(node.lineno - 1 for node in texts[1:]), len(lines)]
    cells = []
    for node, end in zip(texts, ends, strict=True):
        if node is not texts[0]:
            cells.append(Cell(False, node.value.value.strip()))
        code = "\n".join(lines[node.end_lineno : end]).strip("\n")
        if code.strip():
            cells.append(Cell(True, code))
    return Tutorial(header, tuple(cells))


def _is_text(node: ast.stmt) -> bool:
    value = getattr(node, "value", None)
    return (
        isinstance(node, ast.Expr)
        and isinstance(value, ast.Constant)
        and isinstance(value.value, str)
    )


def to_markdown(tutorial: Tutorial) -> str:
    """Writes a tutorial as a page."""
    header = tutorial.header
    parts = [
        f"# {header['Title']}",
        f"{header['Description']}",
        f"*{header['Author']}, {header['Last modified']}*",
    ]
    for cell in tutorial.cells:
        parts.append(
            f"```python\n{cell.text}\n```" if cell.is_code else cell.text
        )
    return "\n\n".join(parts) + "\n"


def to_notebook(tutorial: Tutorial) -> dict[str, Any]:
    """Writes a tutorial as a notebook, in the format of version 4."""
    header = tutorial.header
    title = Cell(False, f"# {header['Title']}\n\n{header['Description']}")
    return {
        "cells": [_notebook_cell(cell) for cell in (title, *tutorial.cells)],
        "metadata": {
            "kernelspec": {
                "display_name": "Python 3",
                "language": "python",
                "name": "python3",
            },
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 4,
    }


def _notebook_cell(cell: Cell) -> dict[str, Any]:
    source = cell.text.splitlines(keepends=True)
    if not cell.is_code:
        return {"cell_type": "markdown", "metadata": {}, "source": source}
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": {},
        "outputs": [],
        "source": source,
    }


def paths() -> list[pathlib.Path]:
    """Lists the files of the tutorials."""
    return sorted(TUTORIALS.glob("[!_]*.py"))
