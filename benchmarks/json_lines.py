"""Files with one JSON object in each line, to which benchmarks append."""

import json
import pathlib


def read(path: str | None) -> list[dict]:
    """Reads what earlier runs appended.

    Args:
        path: A file with one JSON object in each line, or none.

    Returns:
        The rows; a missing file has none.
    """
    if path is None:
        return []
    try:
        lines = pathlib.Path(path).read_text().splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.strip()]


def append(path: str | None, row: dict) -> None:
    """Prints a row, and appends it to a file.

    Args:
        path: The file; `None` prints only.
        row: The row.
    """
    line = json.dumps(row)
    print(line, flush=True)
    if path is not None:
        with open(path, "a", encoding="utf-8") as stream:
            stream.write(line + "\n")
