"""Time of a `fit` on Poisson batches under XLA, against one on fixed batches.

    python -m benchmarks.padded_fit
    python -m benchmarks.padded_fit --workloads=dropout --batch_sizes=32 \
        --steps=50,200,1000

XLA compiles a step anew for every size of a batch. Each `fit` is of a new
private model, first compilation included: on batches of one size, on Poisson
batches that `fit` pads to sizes that are worth it for the number of steps, and
on batches that it pads as for a training without an end. Rows are JSON objects:
seconds of wall and CPU time, their ratios to fixed batches, and the number of
sizes.
"""

import gc
import json
import time
from unittest import mock

import keras
import tensorflow as tf
from absl import app
from absl import flags

import tf_dpfp
from benchmarks import workloads
from tf_dpfp import sampling

_WORKLOADS = flags.DEFINE_list(
    "workloads", ["mlp_256", "dropout"], "Which models."
)
_BATCH_SIZES = flags.DEFINE_list(
    "batch_sizes", ["32", "256"], "Expected numbers of examples."
)
_STEPS = flags.DEFINE_list("steps", ["200"], "Steps of each `fit`.")
_POPULATION = flags.DEFINE_integer("population", 20_000, "Examples.")
_KINDS = ("fixed", "planned", "endless")


def _compiled(workload: workloads.Workload, batch_size: int) -> keras.Model:
    sized = {} if workload.length is None else {"length": workload.length}
    model = tf_dpfp.make_private(workload.make_model(**sized))
    model.compile(
        tf_dpfp.DPAdam(
            1e-4,
            l2_norm_clip=1.0,
            noise_multiplier=1.0,
            expected_batch_size=batch_size,
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=True,
    )
    return model


def _data(
    workload: workloads.Workload, kind: str, batch_size: int, steps: int
) -> tf.data.Dataset:
    sized = {} if workload.length is None else {"length": workload.length}
    x, y = workload.make_batch(_POPULATION.value, **sized)
    if kind == "fixed":
        batches = tf.data.Dataset.from_tensor_slices((x, y)).repeat()
        return batches.batch(batch_size, drop_remainder=True).take(steps)
    return tf_dpfp.poisson_batches(
        x, y, expected_batch_size=batch_size, steps_per_epoch=steps
    )


def _timed(workload, kind: str, batch_size: int, steps: int) -> dict:
    """Times one `fit`."""
    seen: list[tuple[int, ...]] = []
    choose = sampling.bucket_sizes

    def chosen(population, rate, multiple=1, planned=None):
        planned = planned if kind == "planned" else None
        seen.append(choose(population, rate, multiple, planned))
        return seen[-1]

    model = _compiled(workload, batch_size)
    data = _data(workload, kind, batch_size, steps)
    gc.collect()
    with mock.patch.object(sampling.buckets, "bucket_sizes", chosen):
        cpu, wall = time.process_time(), time.perf_counter()
        model.fit(data, verbose=0)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall_s": wall, "cpu_s": cpu, "sizes": len(seen[0]) if seen else 1}


def main(argv: list[str]) -> None:
    """Prints one JSON object per row."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    for name in _WORKLOADS.value:
        workload = workloads.WORKLOADS[name]
        # What Python and TensorFlow load once is in no figure.
        _compiled(workload, 8).fit(_data(workload, "fixed", 8, 2), verbose=0)
        for batch_size in map(int, _BATCH_SIZES.value):
            for steps in map(int, _STEPS.value):
                fixed = None
                for kind in _KINDS:
                    found = _timed(workload, kind, batch_size, steps)
                    fixed = fixed or found
                    row = {
                        "workload": name,
                        "batch_size": batch_size,
                        "steps": steps,
                        "kind": kind,
                        "sizes": found["sizes"],
                    }
                    for each in ("wall_s", "cpu_s"):
                        row[each] = round(found[each], 2)
                        ratio = round(found[each] / fixed[each], 3)
                        row[each.replace("_s", "_ratio")] = ratio
                    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    app.run(main)
