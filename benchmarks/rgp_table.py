"""Accuracy of low-rank carriers against ordinary clipping.

    python -m benchmarks.rgp_table --output=rows.jsonl
    python -m benchmarks.rgp_table --output=rows.jsonl --tasks=mlp --seeds=1
    python -m benchmarks.rgp_table --summary=rows.jsonl

`DPAdam` with flat clipping, with per-layer clipping, and with flat clipping of
low-rank carriers (RGP) of each source and rank, on every task of
`benchmarks.rgp_tasks`: the same first weights and batches, the same number of
epochs, the same epsilon. One JSON object for each training, as soon as it is
done. Trainings that `--output` has already, with the same settings, are left
out, so that a run that was ended can go on.

The learning rate is one for flat and per-layer clipping and one for all
carriers, see `benchmarks.rgp_tasks`; or each method gets its own, the best of
the same few on training examples that are held out:

    python -m benchmarks.rgp_table --output=trials.jsonl --held_out=1500 \
        --learning_rates=0.003,0.01,0.03,0.1 --seeds=1 --epsilons=3
    python -m benchmarks.rgp_table --output=rows.jsonl --choices=trials.jsonl

A step's time and memory are measured by
`benchmarks.step_time`.
"""

import dataclasses
import itertools
import time
from collections.abc import Iterator

import keras
import tensorflow as tf
from absl import app
from absl import flags

import tf_dpfp
from benchmarks import json_lines
from benchmarks import rgp_rows
from benchmarks import rgp_tasks
from benchmarks import rgp_training

_SOURCES = ("history", "weight", "random")
_PLAIN = ("flat", "per_layer")
_METHODS_OF_ALL = (*_PLAIN, "adaptive", rgp_training.HEAD_ONLY, *_SOURCES)

_TASKS = flags.DEFINE_list("tasks", list(rgp_tasks.TASKS), "What to train.")
_METHODS = flags.DEFINE_list(
    "methods",
    [*_PLAIN, *_SOURCES],
    f"How: {', '.join(_PLAIN)}, adaptive, {rgp_training.HEAD_ONLY} (text), or "
    f"a source of carriers: {', '.join(_SOURCES)}.",
)
_RANKS = flags.DEFINE_list("ranks", ["1", "4", "16"], "Of the carriers.")
_EPSILONS = flags.DEFINE_list("epsilons", ["3", "8"], "The budgets.")
_DELTA = flags.DEFINE_float("delta", 1e-5, "Delta of the guarantee.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Trainings of each kind.")
_FIRST_SEED = flags.DEFINE_integer("first_seed", 1, "Seed of the first.")
_EPOCHS = flags.DEFINE_integer(
    "epochs", None, "Passes over the data; default: by task."
)
_LEARNING_RATES = flags.DEFINE_list(
    "learning_rates", [], "Default: by task, one for carriers and one for all."
)
_CLIP = flags.DEFINE_float("l2_norm_clip", 0.1, "Clip norm.")
_WARMUP = flags.DEFINE_float(
    "warmup", 0.1, "Part of the steps before carriers follow the history."
)
_LEFT_ONLY = flags.DEFINE_bool("left_only", False, "Release one carrier.")
_KERNELS_ONLY = flags.DEFINE_bool(
    "kernels_only",
    False,
    "Freeze biases and scales below the head, as the method's authors do.",
)
_HELD_OUT = flags.DEFINE_integer(
    "held_out",
    0,
    "Training examples to test on, in place of the test set, and not to train "
    "with: for choosing learning rates.",
)
_CHOICES = flags.DEFINE_string(
    "choices",
    None,
    "File of rows with --held_out: each method gets the learning rate that was "
    "best for it there.",
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "File to append the rows to, besides printing them."
)
_SUMMARY = flags.DEFINE_string(
    "summary", None, "Only print the rows of this file as a Markdown table."
)


def _settings(task_name: str) -> Iterator[rgp_training.Settings]:
    task = rgp_tasks.TASKS[task_name]
    chosen = rgp_rows.best_rates(json_lines.read(_CHOICES.value))
    seeds = range(_FIRST_SEED.value, _FIRST_SEED.value + _SEEDS.value)
    for seed, epsilon, (method, rank) in itertools.product(
        seeds, map(float, _EPSILONS.value), list(_kinds())
    ):
        carried = rank is not None
        rate = task.rgp_learning_rate if carried else task.learning_rate
        if _CHOICES.value:
            rate = _chosen(chosen, task_name, method, rank)
        for learning_rate in map(float, _LEARNING_RATES.value or [rate]):
            yield rgp_training.Settings(
                task=task_name,
                method="rgp" if carried else method,
                source=method if carried else None,
                rank=rank,
                epsilon=epsilon,
                seed=seed,
                epochs=_EPOCHS.value or task.epochs,
                learning_rate=learning_rate,
                l2_norm_clip=_CLIP.value,
                warmup=_WARMUP.value if method == "history" else None,
                left_only=carried and _LEFT_ONLY.value,
                kernels_only=_KERNELS_ONLY.value,
                held_out=_HELD_OUT.value,
            )


def _chosen(
    rates: dict[tuple, float], task: str, method: str, rank: int | None
) -> float:
    if (task, method, rank) not in rates:
        raise app.UsageError(
            f"--choices={_CHOICES.value} has no trial of task {task}, method "
            f"{method}, rank {rank}"
        )
    return rates[task, method, rank]


def _kinds() -> Iterator[tuple[str, int | None]]:
    """Methods and ranks."""
    for method in _METHODS.value:
        if method not in _SOURCES:
            yield method, None
    for rank in map(int, _RANKS.value):
        for method in _METHODS.value:
            if method in _SOURCES:
                yield method, rank


def _train(settings: rgp_training.Settings, data) -> dict:
    """Trains once."""
    keras.backend.clear_session()
    data = rgp_training.split(settings, data)
    training = rgp_training.prepare(settings, data[0], _DELTA.value)
    start = time.perf_counter()
    training.fit(settings.epochs)
    seconds = time.perf_counter() - start
    _, accuracy = training.model.evaluate(*data[1], batch_size=512, verbose=0)
    return {
        **dataclasses.asdict(settings),
        "steps": training.steps,
        "noise_multiplier": round(training.noise_multiplier, 4),
        "spent": round(
            tf_dpfp.compute_epsilon(training.model, _DELTA.value), 4
        ),
        "accuracy": round(accuracy, 4),
        "seconds": round(seconds, 1),
        "versions": {
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "tf_dpfp": tf_dpfp.__version__,
        },
    }


def _key(row: dict) -> tuple:
    fields = dataclasses.fields(rgp_training.Settings)
    return tuple(row.get(field.name, field.default) for field in fields)


def main(argv: list[str]) -> None:
    """Prints one JSON object per training, or a table of what was printed."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    if _SUMMARY.value:
        print("\n".join(rgp_rows.summary(json_lines.read(_SUMMARY.value))))
        return
    unknown = sorted(set(_METHODS.value) - set(_METHODS_OF_ALL))
    if unknown:
        raise app.UsageError(
            f"--methods are of {sorted(_METHODS_OF_ALL)}, not {unknown}"
        )
    done = json_lines.read(_OUTPUT.value)
    known = set(map(_key, done))
    for task in _TASKS.value:
        todo = [
            settings
            for settings in _settings(task)
            if dataclasses.astuple(settings) not in known
        ]
        data = rgp_tasks.TASKS[task].load() if todo else None
        for settings in todo:
            json_lines.append(_OUTPUT.value, _train(settings, data))


if __name__ == "__main__":
    app.run(main)
