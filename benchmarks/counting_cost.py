"""Time that counting takes of a private step.

    python -m benchmarks.counting_cost
    python -m benchmarks.counting_cost --workloads=mlp_256 --rounds=2000

Two compiled steps of one workload in one process, in turn: one as it is, and
one traced without the ledger's count. Each row is one JSON object with medians
of wall and CPU time and the median of the ratios of steps next to each other.
The last two rows are what a step waits for the journal of `BackupAndRestore`:
16 bytes that are written before each call, and a reservation, once in 500 steps
or at a save, which waits for the disk.
"""

import contextlib
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from unittest import mock

import keras
import tensorflow as tf
from absl import app
from absl import flags

import tf_dpfp
from benchmarks import workloads
from tf_dpfp import accounting
from tf_dpfp import counting
from tf_dpfp.training import journal as journal_lib

_WORKLOADS = flags.DEFINE_list("workloads", ["mlp_256"], "Which workloads.")
_ROUNDS = flags.DEFINE_integer("rounds", 1000, "Pairs of steps.")


@contextlib.contextmanager
def _not_counted() -> Iterator[None]:
    """What is traced inside has no count in it."""
    with (
        mock.patch.object(counting.Ledger, "count_step"),
        mock.patch.object(counting.Ledger, "stamp", return_value=None),
    ):
        yield


def _step(workload: workloads.Workload) -> Callable[[], None]:
    """Makes a compiled private step, traced by its first call."""
    model = workload.make_model()
    tf_dpfp.make_private(model)
    model.compile(
        optimizer=tf_dpfp.DPAdam(
            1e-4,
            noise_multiplier=1.0,
            expected_batch_size=workload.batch_size,
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    batch = workload.make_batch(workload.batch_size)
    iterator = iter(tf.data.Dataset.from_tensors(batch).repeat())
    model.make_train_function()

    def step() -> None:
        float(model.train_function(iterator)["loss"])

    step()
    return step


def _timed(step: Callable[[], None]) -> tuple[float, float]:
    cpu, start = time.process_time(), time.perf_counter()
    step()
    return time.perf_counter() - start, time.process_time() - cpu


def step_row(workload: workloads.Workload, rounds: int) -> dict:
    """Compares steps with and without their count.

    Args:
        workload: The workload.
        rounds: Number of pairs.

    Returns:
        A row.
    """
    counted = _step(workload)
    with _not_counted():
        bare = _step(workload)
    for _ in range(5):
        counted(), bare()
    pairs = []
    for number in range(rounds):
        # Whichever comes second finds the caches as the first left them.
        if number % 2:
            one, two = _timed(counted), _timed(bare)
        else:
            two, one = _timed(bare), _timed(counted)
        pairs.append((one, two))
    row: dict = {"workload": workload.name, "rounds": rounds}
    for index, name in enumerate(("wall", "cpu")):
        times = [(one[index], two[index]) for one, two in pairs]
        row |= {
            f"{name}_ms": _milliseconds(a for a, _ in times),
            f"{name}_ms_uncounted": _milliseconds(b for _, b in times),
            f"{name}_ratio": round(
                statistics.median(a / b for a, b in times), 4
            ),
        }
    return row


def _milliseconds(seconds) -> float:
    return round(1e3 * statistics.median(seconds), 4)


def journal_rows(rounds: int) -> Iterator[dict]:
    """Times the journal.

    Args:
        rounds: Number of steps.

    Yields:
        One row for a step, and one for a reservation.
    """
    entry = accounting.LedgerEntry(accounting.PoissonSampling(0.01), 1.0, 1)
    with tempfile.TemporaryDirectory() as folder:
        journal = journal_lib.Journal(pathlib.Path(folder) / "ledger")
        reserved = [
            _timed(lambda: journal.reserve(lambda: [entry], [entry], rounds))
            for _ in range(20)
        ]
        begun = [_timed(lambda: journal.begin(1)) for _ in range(rounds)]
        journal.close(ended=True)
    for name, times in (("begin", begun), ("reserve", reserved)):
        yield {
            "journal": name,
            "wall_ms": _milliseconds(wall for wall, _ in times),
            "cpu_ms": _milliseconds(cpu for _, cpu in times),
        }


def main(argv: list[str]) -> None:
    """Prints one JSON object per row."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    for name in _WORKLOADS.value:
        row = step_row(workloads.WORKLOADS[name], _ROUNDS.value)
        print(json.dumps(row), flush=True)
    for row in journal_rows(_ROUNDS.value):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    app.run(main)
