"""What the program that XLA compiles of a step does.

    python -m benchmarks.compiled_step
    python -m benchmarks.compiled_step --workloads=transformer --costs=gpu

A program that XLA compiled for a CPU is not the one that it would compile for
a GPU, but both are cut into kernels by like rules, and read and write the same
large arrays. So its kernels, the bytes that go in and out of them and the
multiply-adds of its products tell, before there is a GPU, whether a private
step asks for more than an ordinary one. Each row is a JSON object.
`--costs=gpu` chooses the forms of norms and sums as on a GPU; what only a CPU
does, for rows that are long, is left out with it.
"""

import dataclasses
import json
from unittest import mock

import keras
import tensorflow as tf
from absl import app
from absl import flags

import tf_dpfp
from benchmarks import compiled_program
from benchmarks import workloads
from examples.trainers import clippings
from tf_dpfp import compilation

_WORKLOADS = flags.DEFINE_list(
    "workloads", ["mlp_2048", "cnn_2048", "transformer"], "Which models."
)
_MODES = flags.DEFINE_list("modes", ["flat", "per_layer"], "How to clip.")
_COSTS = flags.DEFINE_enum("costs", "cpu", ["cpu", "gpu"], "Of which device.")


def _step(workload: workloads.Workload, mode: str) -> str:
    """Returns the program of one step."""
    sized = {} if workload.length is None else {"length": workload.length}
    model = workload.make_model(**sized)
    optimizer = keras.optimizers.Adam(1e-4)
    if mode != "ordinary":
        tf_dpfp.make_private(model)
        optimizer = tf_dpfp.DPAdam(
            1e-4,
            l2_norm_clip=1.0,
            noise_multiplier=1.0,
            clipping=clippings.CLIPPINGS[mode],
            expected_batch_size=workload.batch_size,
        )
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=True,
    )
    batch = workload.make_batch(workload.batch_size, **sized)
    # Variables, and the trial of a private model.
    model.run_eagerly = True
    model.train_on_batch(*tf.nest.map_structure(lambda part: part[:2], batch))
    model.run_eagerly = False
    step = tf.function(
        lambda *data: model.train_step(data), jit_compile=True, autograph=False
    )
    tensors = tf.nest.map_structure(tf.constant, batch)
    return step.experimental_get_compiler_ir(*tensors)(stage="optimized_hlo")


def main(argv: list[str]) -> None:
    """Prints one JSON object per row."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    on_gpu = mock.patch.object(
        compilation, "has_accelerator", lambda: _COSTS.value == "gpu"
    )
    for name in _WORKLOADS.value:
        ordinary = None
        for mode in ["ordinary", *_MODES.value]:
            with on_gpu:
                found = compiled_program.work(
                    _step(workloads.WORKLOADS[name], mode)
                )
            ordinary = ordinary or found
            row = {"workload": name, "mode": mode, "costs": _COSTS.value}
            for field in dataclasses.fields(found):
                value = getattr(found, field.name)
                ratio = value / getattr(ordinary, field.name)
                row |= {field.name: value, f"{field.name}_ratio": ratio}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    app.run(main)
