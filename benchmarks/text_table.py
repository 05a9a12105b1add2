"""Accuracy, time and memory of private fine-tuning of a text encoder.

    python -m benchmarks.text_table --output=rows.jsonl --public_start=FOLDER
    python -m benchmarks.text_table --output=rows.jsonl --methods=head
    python -m benchmarks.text_table --summary=rows.jsonl

MiniLM on sentences of movie reviews, trained as `benchmarks.text_rows` says by
`examples.trainers.finetuning`, each method at each budget (`inf`: without
privacy), for several seeds. One JSON object for each training, as soon as it
is done, with the command that repeats it. Trainings that `--output` has
already, with the same settings, are left out, so that a run that was ended can
go on.

Methods `public_...` start from encoders that were trained without privacy on
public texts of other kinds, in the folders that this wrote; of several, with
commas between, from their mean:

    python -m examples.trainers.finetune_text \
        --dataset=public_snippets --epsilon=inf --output_dir=FOLDER [...]

A method's trainings run in a process of their own, and a row has its peak
memory until then, data and libraries included; the table has that of the first.
"""

import math
import subprocess
import sys

import keras
import tensorflow as tf
from absl import app
from absl import flags

import tf_dpfp
from benchmarks import json_lines
from benchmarks import memory
from benchmarks import text_rows
from examples.trainers import finetune_config
from examples.trainers import finetuning

_METHODS = flags.DEFINE_list(
    "methods", list(text_rows.METHODS), "Keys of text_rows.METHODS."
)
_EPSILONS = flags.DEFINE_list(
    "epsilons", ["3", "8", "1", "inf"], "The budgets."
)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Trainings of each kind.")
_FIRST_SEED = flags.DEFINE_integer("first_seed", 1, "Seed of the first.")
_PUBLIC_START = flags.DEFINE_string(
    "public_start", None, "Folders of the trainings on public texts."
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "File to append the rows to, besides printing them."
)
_SUMMARY = flags.DEFINE_string(
    "summary", None, "Only print the rows of this file as a Markdown table."
)
_CHILD = flags.DEFINE_bool("child", False, "Internal: train in this process.")


def _todo(method: str) -> list[finetune_config.Config]:
    """The trainings of a method that the output does not have."""
    done = json_lines.read(_OUTPUT.value)
    known = [row["command"] for row in done]
    seeds = range(_FIRST_SEED.value, _FIRST_SEED.value + _SEEDS.value)
    configs = [
        text_rows.config(method, float(epsilon), seed, _PUBLIC_START.value)
        for seed in seeds
        for epsilon in _EPSILONS.value
    ]
    return [c for c in configs if text_rows.command(c) not in known]


def _train(method: str, config: finetune_config.Config, data) -> dict:
    """Trains once."""
    keras.backend.clear_session()
    prepared = finetuning.prepare(config, data)
    result = finetuning.run(prepared)
    finite = math.isfinite(config.epsilon)
    return {
        "method": method,
        "epsilon": config.epsilon if finite else None,
        "seed": config.seed,
        "accuracy": round(result.accuracy, 4),
        "spent": round(result.epsilon, 4) if finite else None,
        "steps": prepared.steps,
        "trainable": result.trainable,
        "seconds_per_step": round(result.seconds_per_step, 3),
        "peak_mib": round(memory.peak_mebibytes()),
        "command": text_rows.command(config),
        "versions": {
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "tf_dpfp": tf_dpfp.__version__,
        },
    }


def _train_all(method: str) -> None:
    todo = _todo(method)
    # What is frozen depends on neither the budget nor the seed.
    data = finetuning.load(todo[0])
    # Private ones first: their memory is the row's.
    for config in sorted(todo, key=lambda c: not c.private):
        json_lines.append(_OUTPUT.value, _train(method, config, data))


def main(argv: list[str]) -> None:
    """Prints one JSON object per training, or a table of what was printed."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    if _SUMMARY.value:
        print("\n".join(text_rows.summary(json_lines.read(_SUMMARY.value))))
        return
    unknown = sorted(set(_METHODS.value) - set(text_rows.METHODS))
    if unknown:
        raise app.UsageError(
            f"--methods are of {sorted(text_rows.METHODS)}, not {unknown}"
        )
    if _PUBLIC_START.value is None and any(
        text_rows.METHODS[name].get("start") == text_rows.PUBLIC
        for name in _METHODS.value
    ):
        raise app.UsageError("--public_start is needed by methods public_...")
    for method in _METHODS.value:
        if _CHILD.value:
            _train_all(method)
        elif _todo(method):
            command = [sys.executable, "-m", "benchmarks.text_table"]
            command += [*sys.argv[1:], f"--methods={method}", "--child"]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    app.run(main)
