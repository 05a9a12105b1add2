"""Time of training by person where every person has one example.

    python -m benchmarks.person_step
    python -m benchmarks.person_step --workloads=transformer --rounds=10

Two trainings of one workload in one process, in turn: one draws examples, one
persons with one example each. A round is a `fit` of some Poisson batches at the
same rate; drawing them is part of it. Each row is one JSON object with medians
of the time of a step and of the ratios of rounds next to each other.
"""

import json
import statistics
import time
from collections.abc import Callable

import keras
import numpy as np
from absl import app
from absl import flags

import tf_dpfp
from benchmarks import workloads

_WORKLOADS = flags.DEFINE_list(
    "workloads", ["mlp_256", "transformer"], "Which workloads."
)
_ROUNDS = flags.DEFINE_integer("rounds", 12, "Pairs of rounds.")
_STEPS = flags.DEFINE_integer("steps", 100, "Steps of a round.")
# Batches in the data.
_BATCHES = 8


def _training(
    workload: workloads.Workload, by_person: bool
) -> Callable[[], None]:
    """Makes a function that trains for one round; traced by a first one."""
    length = () if workload.length is None else (workload.length,)
    x, y = workload.make_batch(_BATCHES * workload.batch_size, *length)
    model = workload.make_model()
    tf_dpfp.make_private(model)
    model.compile(
        tf_dpfp.DPAdam(1e-4, noise_multiplier=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    of_persons = {}
    if by_person:
        of_persons = {"users": np.arange(len(y)), "max_examples_per_user": 1}
    batches = tf_dpfp.poisson_batches(
        x,
        y,
        expected_batch_size=workload.batch_size,
        steps_per_epoch=_STEPS.value,
        seed=0,  # Batches of the same sizes on both sides.
        **of_persons,
    )

    def train() -> None:
        model.fit(batches, verbose=0)

    train()
    return train


def _timed(train: Callable[[], None]) -> tuple[float, float]:
    cpu, start = time.process_time(), time.perf_counter()
    train()
    return time.perf_counter() - start, time.process_time() - cpu


def row(workload: workloads.Workload) -> dict:
    """Compares trainings by person and by example.

    Args:
        workload: The workload.

    Returns:
        A row.
    """
    person, example = (_training(workload, by) for by in (True, False))
    pairs = []
    for number in range(_ROUNDS.value):
        if number % 2:
            one, two = _timed(person), _timed(example)
        else:
            two, one = _timed(example), _timed(person)
        pairs.append((one, two))
    found: dict = {"workload": workload.name, "rounds": _ROUNDS.value}
    for index, name in enumerate(("wall", "cpu")):
        times = [(one[index], two[index]) for one, two in pairs]
        for side, which in enumerate(("person", "example")):
            seconds = statistics.median(each[side] for each in times)
            found[f"{name}_ms_by_{which}"] = round(
                1e3 * seconds / _STEPS.value, 3
            )
        found[f"{name}_ratio"] = round(
            statistics.median(a / b for a, b in times), 4
        )
    return found


def main(argv: list[str]) -> None:
    """Prints one JSON object per row."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    for name in _WORKLOADS.value:
        print(json.dumps(row(workloads.WORKLOADS[name])), flush=True)


if __name__ == "__main__":
    app.run(main)
