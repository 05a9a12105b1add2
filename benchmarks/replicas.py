"""Time and traffic of private steps on several replicas of one machine.

    python -m benchmarks.replicas
    python -m benchmarks.replicas --workload=transformer --replicas=1,2

The batch of all replicas together stays the same; the replicas are logical
CPUs, and each number of them has a process of its own. Each row is one JSON
object: the minimum wall time of a step, its ratio to the ordinary step's under
the same strategy, and the bytes that each replica hands to the all-reduce of a
step. Replicas share the cores of the machine here, so more of them are not
faster: the figures show what replicas cost, not what they gain.
"""

import json
import math
import subprocess
import sys
import time
from unittest import mock

import keras
import tensorflow as tf
from absl import app
from absl import flags

import tf_dpfp
from benchmarks import workloads
from examples.trainers import clippings

_WORKLOAD = flags.DEFINE_enum(
    "workload", "mlp_256", list(workloads.WORKLOADS), "What to train."
)
_REPLICAS = flags.DEFINE_list("replicas", ["1", "2", "4"], "How many replicas.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "How often each kind has its turn.")
_RANK = flags.DEFINE_integer("rank", 4, "Of the carriers of the mode rgp.")
_CHILD = flags.DEFINE_bool("child", False, "Internal: measure in this process.")
_ORDINARY, _LOW_RANK = "non_private", "rgp"
_MODES = (_ORDINARY, "flat", "per_layer", _LOW_RANK)
_STEPS = 4


class _Clock(keras.callbacks.Callback):
    """Takes the wall time of every step of a `fit`."""

    def __init__(self):
        super().__init__()
        self.times = []

    def on_train_batch_begin(self, batch, logs=None):  # noqa: ARG002
        self._start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):  # noqa: ARG002
        float(logs["loss"])  # The step may still be running.
        self.times.append(time.perf_counter() - self._start)


def _model(workload: workloads.Workload, mode: str) -> keras.Model:
    model = workload.make_model()
    optimizer = keras.optimizers.Adam(1e-4)
    if mode == _LOW_RANK:
        tf_dpfp.reparametrize(model, _RANK.value, carrier_source="random")
    if mode != _ORDINARY:
        tf_dpfp.make_private(model)
        optimizer = tf_dpfp.DPAdam(
            1e-4,
            l2_norm_clip=1.0,
            noise_multiplier=1.0,
            clipping=clippings.CLIPPINGS["flat" if mode == _LOW_RANK else mode],
            expected_batch_size=workload.batch_size,
        )
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def _fit(model: keras.Model, batches: tf.data.Dataset) -> list[float]:
    clock = _Clock()
    model.fit(
        batches,
        steps_per_epoch=_STEPS,
        shuffle=False,
        verbose=0,
        callbacks=[clock],
    )
    return clock.times


def _traced(model: keras.Model, batches: tf.data.Dataset) -> int:
    """Traces the step; returns the bytes of one replica's all-reduce."""
    sent = []
    all_reduce = tf.distribute.ReplicaContext.all_reduce

    def noted(context, operation, value, **kwargs):
        for tensor in tf.nest.flatten(value):
            numbers = math.prod(tensor.shape.as_list())
            sent.append(numbers * tensor.dtype.size)
        return all_reduce(context, operation, value, **kwargs)

    with mock.patch.object(tf.distribute.ReplicaContext, "all_reduce", noted):
        _fit(model, batches)
    replicas = model.distribute_strategy.num_replicas_in_sync
    # Every replica is traced, and all of them alike.
    return sum(sent) // replicas if replicas > 1 else 0


def _measure(workload: workloads.Workload, replicas: int) -> None:
    strategy = tf_dpfp.distribute.make_strategy(
        "mirrored", num_logical_cpus=replicas
    )
    with strategy.scope():
        models = {mode: _model(workload, mode) for mode in _MODES}
    batch = workload.make_batch(workload.batch_size)
    batches = tf.data.Dataset.from_tensors(batch).repeat()
    sent = {mode: _traced(model, batches) for mode, model in models.items()}
    times = {mode: [] for mode in _MODES}
    for _ in range(_ROUNDS.value):
        for mode, model in models.items():
            # The first step of a `fit` waits for its batch.
            times[mode] += _fit(model, batches)[1:]
    best = {mode: min(found) for mode, found in times.items()}
    for mode in _MODES:
        row = {
            "workload": workload.name,
            "batch_size": workload.batch_size,
            "replicas": replicas,
            "mode": mode,
            "min_wall_ms": round(1e3 * best[mode], 2),
            "wall_ratio": round(best[mode] / best[_ORDINARY], 3),
            "all_reduce_bytes": sent[mode],
        }
        print(json.dumps(row), flush=True)


def main(argv: list[str]) -> None:
    """Prints one JSON object per row."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    if _CHILD.value:
        workload = workloads.WORKLOADS[_WORKLOAD.value]
        _measure(workload, int(_REPLICAS.value[0]))
        return
    for count in _REPLICAS.value:
        subprocess.run(
            [
                sys.executable,
                "-m",
                "benchmarks.replicas",
                "--child",
                f"--workload={_WORKLOAD.value}",
                f"--replicas={count}",
                f"--rounds={_ROUNDS.value}",
                f"--rank={_RANK.value}",
            ],
            check=True,
        )


if __name__ == "__main__":
    app.run(main)
