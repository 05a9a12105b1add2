"""Trains every row of the table of accuracies, three times each.

    make accuracy
    make accuracy ARGS="--rows=fashion_linear --repetitions=1"
    make accuracy ARGS="--list"

Each row is a command of its own (`--list` shows them), run in a process of its
own. What is done is in the file `--out`, and is not done again: after an
interruption the same command goes on. Trainings are not seeded, as none should
be whose model is released. `--rows` takes some of the rows, with commas
between.
"""

import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata

from absl import app
from absl import flags

from benchmarks import accuracy_rows
from benchmarks import json_lines

_OUT = flags.DEFINE_string("out", "runs/accuracy.jsonl", "The results.")
_ROWS = flags.DEFINE_list("rows", None, "Rows to train; all by default.")
_REPETITIONS = flags.DEFINE_integer("repetitions", 3, "Trainings of a row.")
_LIST = flags.DEFINE_boolean("list", False, "Print the commands, train none.")


def train(name: str, repetition: int, folder: pathlib.Path) -> dict:
    """Trains a row in a process of its own.

    Args:
        name: Key of `ROWS`.
        repetition: Number of the training.
        folder: Folder for what the training writes.

    Returns:
        What is kept of it.

    Raises:
        RuntimeError: If the command fails.
    """
    words = accuracy_rows.ROWS[name].words
    own = folder / f"{name}-{repetition}"
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, *words, f"--output_dir={own}"],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(
            f"`{accuracy_rows.command(name)}` failed: {done.stdout[-2000:]}"
        )
    return {
        "row": name,
        "repetition": repetition,
        **accuracy_rows.result_of(done.stdout),
        "seconds": round(time.monotonic() - began, 1),
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Returns the versions that a result hangs on."""
    names = ("tensorflow", "keras", "dp-accounting")
    return {name: metadata.version(name) for name in names}


def main(argv: Sequence[str]) -> int:
    """Runs the accuracy_rows.command."""
    del argv
    names = list(accuracy_rows.ROWS) if _ROWS.value is None else _ROWS.value
    unknown = sorted(set(names) - set(accuracy_rows.ROWS))
    if unknown:
        print(
            f"error: --rows must be of {', '.join(accuracy_rows.ROWS)}. "
            f"Received: {', '.join(unknown)}.",
            file=sys.stderr,
        )
        return 2
    if _LIST.value:
        for name in names:
            print(f"{name}: {accuracy_rows.command(name)}")
        return 0
    path = pathlib.Path(_OUT.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    done = json_lines.read(str(path))
    seen = {(result["row"], result["repetition"]) for result in done}
    for repetition in range(_REPETITIONS.value):
        for name in names:
            if (name, repetition) in seen:
                continue
            result = train(name, repetition, path.parent / path.stem)
            json_lines.append(str(path), result)
            done.append(result)
    print("\n".join(accuracy_rows.table(done)))
    return 0


if __name__ == "__main__":
    app.run(main)
