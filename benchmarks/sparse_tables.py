"""What a large embedding table costs a step: ordinary, sparse and dense.

    python -m benchmarks.sparse_tables
    python -m benchmarks.sparse_tables --optimizer=Adagrad --rounds=5
    python -m benchmarks.sparse_tables --memory=sparse

Three trainings of one model in one process, in turn: by the Keras optimizer, by
its private version with a sparse table, and with noise on every row. A round is
a `fit` of some steps. One JSON object: medians of the time of a step, and of
its ratio to the ordinary one of the same round. With `--memory` one training
runs, and the most memory that the process held is printed: compare processes.
"""

import json
import statistics
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from absl import app
from absl import flags
from keras import layers

import tf_dpfp
from benchmarks import memory

_ROWS = flags.DEFINE_integer("rows", 10**6, "Of the table.")
_WIDTH = flags.DEFINE_integer("width", 16, "Of the table.")
_BATCH = flags.DEFINE_integer("batch_size", 256, "Examples.")
_IDS = flags.DEFINE_integer("ids", 8, "Ids of an example.")
_ROUNDS = flags.DEFINE_integer("rounds", 9, "Rounds.")
_STEPS = flags.DEFINE_integer("steps", 20, "Steps of a round.")
_OPTIMIZER = flags.DEFINE_enum(
    "optimizer", "SGD", ["SGD", "Adagrad"], "Keras optimizer."
)
_THRESHOLD = flags.DEFINE_float("threshold", 3.0, "See `tf_dpfp.Sparse`.")
KINDS = ("ordinary", "sparse", "dense")
_MEMORY = flags.DEFINE_enum("memory", None, KINDS, "Measure this one's memory.")


def _optimizer(kind: str) -> keras.optimizers.Optimizer:
    if kind == "ordinary":
        return getattr(keras.optimizers, _OPTIMIZER.value)(0.1)
    tables = None
    if kind == "sparse":
        tables = tf_dpfp.Sparse("items", threshold=_THRESHOLD.value)
    private = getattr(tf_dpfp, f"DP{_OPTIMIZER.value}")
    return private(0.1, noise_multiplier=1.0, sparse_tables=tables)


def _training(kind: str) -> Callable[[], None]:
    """Makes a function that trains for one round; traced by a first one."""
    model = keras.Sequential(
        [
            keras.Input((_IDS.value,), dtype="int32"),
            layers.Embedding(_ROWS.value, _WIDTH.value, name="items"),
            layers.Flatten(),
            layers.Dense(1),
        ]
    )
    if kind != "ordinary":
        tf_dpfp.make_private(model)
    model.compile(_optimizer(kind), loss="mse")
    rng = np.random.default_rng(0)
    count = _STEPS.value * _BATCH.value
    x = rng.integers(0, _ROWS.value, (count, _IDS.value)).astype("int32")
    y = rng.normal(size=(count, 1)).astype("float32")
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(_BATCH.value)

    def train() -> None:
        model.fit(batches, verbose=0)

    train()
    return train


def _timed(train: Callable[[], None]) -> tuple[float, float]:
    cpu, start = time.process_time(), time.perf_counter()
    train()
    return time.perf_counter() - start, time.process_time() - cpu


def row() -> dict:
    """Compares the three, in turn."""
    trainings = {kind: _training(kind) for kind in KINDS}
    times: dict[str, list] = {kind: [] for kind in KINDS}
    for _ in range(_ROUNDS.value):
        for kind, train in trainings.items():
            times[kind].append(_timed(train))
    found: dict = {"optimizer": _OPTIMIZER.value, "rows": _ROWS.value}
    for index, clock in enumerate(("wall", "cpu")):
        for kind in KINDS:
            of_kind = [each[index] for each in times[kind]]
            of_ordinary = [each[index] for each in times["ordinary"]]
            milliseconds = 1e3 * statistics.median(of_kind) / _STEPS.value
            found[f"{kind}_{clock}_ms"] = round(milliseconds, 2)
            ratios = map(float.__truediv__, of_kind, of_ordinary)
            found[f"{kind}_{clock}_ratio"] = round(statistics.median(ratios), 2)
    return found


def main(argv: list[str]) -> None:
    """Prints one JSON object."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    if _MEMORY.value is None:
        print(json.dumps(row()), flush=True)
        return
    _training(_MEMORY.value)()
    peak = round(memory.peak_mebibytes())
    print(json.dumps({"kind": _MEMORY.value, "peak_mib": peak}), flush=True)


if __name__ == "__main__":
    app.run(main)
