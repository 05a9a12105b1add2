"""Time of the first step of a training, and of those that follow.

    python -m benchmarks.first_step
    python -m benchmarks.first_step --workloads=lstm,gru --steps=200
    python -m benchmarks.first_step --workloads=minilm

An ordinary model and a private one in one process, by `train_on_batch`. Before
either, a small model of each kind has taken a step: what Python and TensorFlow
load once is in neither figure. The first step of a private model is made of the
trial, the trace with its proof, what an ordinary first step is made of, and the
step itself. Each row is a JSON object: seconds of both first steps, wall and
CPU, and the median CPU time of later steps, taken in turn.
"""

import gc
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
    "workloads", ["lstm", "gru", "bidirectional"], "Which models to run."
)
_STEPS = flags.DEFINE_integer("steps", 40, "Later steps of each kind.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "First steps of each kind.")
_TOKENS = 50
_LENGTH = 24
_BATCH = 16


def _over_tokens(*layers: Callable[[], keras.layers.Layer]) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((_LENGTH,), dtype="int32"),
            keras.layers.Embedding(_TOKENS, 8),
            *[layer() for layer in layers],
            keras.layers.Dense(10),
        ]
    )


def _lstm(units: int, **arguments) -> Callable[[], keras.layers.Layer]:
    return lambda: keras.layers.LSTM(units, **arguments)


def _gru(units: int) -> Callable[[], keras.layers.Layer]:
    return lambda: keras.layers.GRU(units)


def _both_ways(units: int, **arguments) -> Callable[[], keras.layers.Layer]:
    inner = _lstm(units, **arguments)
    return lambda: keras.layers.Bidirectional(inner())


def _sequences(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.integers(0, _TOKENS, (count, _LENGTH)).astype("int32")
    return x, rng.integers(0, 10, count)


_RECURRENT = {
    "lstm": (_lstm(8),),
    "gru": (_gru(8),),
    "lstm_64": (_lstm(64),),
    "gru_64": (_gru(64),),
    "bidirectional": (_both_ways(8, return_sequences=True), _both_ways(8)),
}


def _workload(name: str) -> workloads.Workload:
    if name in workloads.WORKLOADS:
        return workloads.WORKLOADS[name]
    return workloads.Workload(
        name, lambda: _over_tokens(*_RECURRENT[name]), _sequences, _BATCH
    )


def _compiled(workload: workloads.Workload, is_private: bool) -> keras.Model:
    sized = {} if workload.length is None else {"length": workload.length}
    model = workload.make_model(**sized)
    optimizer = keras.optimizers.Adam(1e-4)
    if is_private:
        tf_dpfp.make_private(model)
        optimizer = tf_dpfp.DPAdam(
            1e-4,
            l2_norm_clip=1.0,
            noise_multiplier=1.0,
            expected_batch_size=workload.batch_size,
        )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss)
    return model


def _timed(step: Callable[[], None]) -> tuple[float, float]:
    """Returns the wall and CPU time of a step, in seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    step()
    return time.perf_counter() - wall, time.process_time() - cpu


def _warm() -> None:
    for is_private in (False, True):
        small = workloads.Workload(
            "small", lambda: _over_tokens(keras.layers.Flatten), _sequences, 4
        )
        _compiled(small, is_private).train_on_batch(*_sequences(4))


def row(workload: workloads.Workload) -> dict:
    """Times first and later steps of an ordinary and a private model.

    Args:
        workload: The model and its batches.

    Returns:
        The least times of first steps, the median of later ones.
    """
    sized = {} if workload.length is None else {"length": workload.length}
    x, y = workload.make_batch(workload.batch_size, **sized)
    first: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for _ in range(_REPEATS.value):
        steps = {}
        for is_private in (False, True):
            gc.collect()
            model = _compiled(workload, is_private)

            def step(model=model):
                model.train_on_batch(x, y)

            first[is_private].append(_timed(step))
            steps[is_private] = step
    later: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(_STEPS.value):
        for is_private, step in steps.items():
            later[is_private].append(_timed(step)[1])
    (wall, cpu), (private_wall, private_cpu) = (
        [min(times) for times in zip(*first[key], strict=True)]
        for key in (False, True)
    )
    result = {
        "workload": workload.name,
        "first_wall_s": round(wall, 2),
        "first_cpu_s": round(cpu, 2),
        "private_first_wall_s": round(private_wall, 2),
        "private_first_cpu_s": round(private_cpu, 2),
        "first_wall_ratio": round(private_wall / wall, 2),
        "first_cpu_ratio": round(private_cpu / cpu, 2),
    }
    if _STEPS.value:
        ordinary, private = map(statistics.median, later.values())
        pairs = [p / o for o, p in zip(*later.values(), strict=True)]
        result |= {
            "step_cpu_ms": round(1e3 * ordinary, 2),
            "private_step_cpu_ms": round(1e3 * private, 2),
            "step_cpu_ratio": round(statistics.median(pairs), 2),
        }
    return result


def main(argv: list[str]) -> None:
    """Prints one JSON object for each workload."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    _warm()
    for name in _WORKLOADS.value:
        print(json.dumps(row(_workload(name))), flush=True)


if __name__ == "__main__":
    app.run(main)
