"""Writes the tutorials as notebooks: `python -m examples.notebooks`."""

import json
import pathlib
from collections.abc import Sequence

from absl import app
from absl import flags

from examples import tutorial_files

_OUTPUT = flags.DEFINE_string(
    "output_dir", "build/notebooks", "Folder of the notebooks."
)


def main(argv: Sequence[str]) -> None:
    """Writes every tutorial as a notebook."""
    if len(argv) > 1:
        raise app.UsageError(f"Not a flag: {argv[1]!r}.")
    folder = pathlib.Path(_OUTPUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    for path in tutorial_files.paths():
        target = folder / f"{path.stem}.ipynb"
        notebook = tutorial_files.to_notebook(tutorial_files.read(path))
        target.write_text(json.dumps(notebook, indent=1))
        print(target)


if __name__ == "__main__":
    app.run(main)
