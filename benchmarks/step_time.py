"""Time and memory of a private step against an ordinary one.

    python -m benchmarks.step_time
    python -m benchmarks.step_time --workloads=transformer --rounds=40

Times are taken in one process, ordinary and private steps in turn, noise
included, with everything `fit` compiles (loss, optimizer, metrics). Each row
is one JSON object: the minimum wall time and the median CPU time of a step,
and their ratios to the ordinary step's. Medians of wall time are not given:
on a shared machine they measure the neighbours.

Peak memory is the resident set of a process of its own that takes a few
steps; the row also says what that process held before its first step.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import keras
import tensorflow as tf
from absl import app
from absl import flags

import tf_dpfp
from benchmarks import workloads

_WORKLOADS = flags.DEFINE_list(
    "workloads", list(workloads.WORKLOADS), "Which workloads to run."
)
_MODES = flags.DEFINE_list(
    "modes",
    ["flat", "per_layer"],
    "Which clippings to time; rgp: flat, with low-rank carriers.",
)
_RANK = flags.DEFINE_integer("rank", 4, "Of the carriers of the mode rgp.")
_CARRIER_SOURCE = flags.DEFINE_enum(
    "carrier_source",
    "weight",
    ["history", "weight", "random"],
    "Of the mode rgp; found anew in every step.",
)
_ROUNDS = flags.DEFINE_integer("rounds", 30, "Steps timed of each kind.")
_JIT_COMPILE = flags.DEFINE_enum(
    "jit_compile", "default", ["default", "true", "false"], "XLA."
)
_MEMORY = flags.DEFINE_bool("memory", True, "Also measure peak memory.")
_MICROBATCH = flags.DEFINE_integer(
    "microbatch_size", None, "Physical batch of the private step."
)
_BATCH = flags.DEFINE_integer(
    "batch_size", None, "Instead of the workload's own."
)
_MEMORY_CHILD = flags.DEFINE_string(
    "memory_child", None, "Internal: measure this mode's memory and exit."
)
_ORDINARY = "non_private"
_LOW_RANK = "rgp"


def _batch_size(workload: workloads.Workload) -> int:
    return _BATCH.value or workload.batch_size


def _compiled_model(workload: workloads.Workload, mode: str) -> keras.Model:
    model = workload.make_model()
    optimizer = keras.optimizers.Adam(1e-4)
    if mode == _LOW_RANK:
        tf_dpfp.reparametrize(
            model,
            _RANK.value,
            carrier_source=_CARRIER_SOURCE.value,
            warmup_steps=2,
        )
    if mode != _ORDINARY:
        tf_dpfp.make_private(model)
        optimizer = tf_dpfp.DPAdam(
            1e-4,
            l2_norm_clip=1.0,
            noise_multiplier=1.0,
            clipping="flat" if mode == _LOW_RANK else mode,
            expected_batch_size=_batch_size(workload),
            microbatch_size=_MICROBATCH.value,
        )
    arguments = {}
    if _JIT_COMPILE.value != "default":
        arguments["jit_compile"] = _JIT_COMPILE.value == "true"
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **arguments,
    )
    return model


def _iterator(workload: workloads.Workload) -> Iterator:
    batch = workload.make_batch(_batch_size(workload))
    data = tf.data.Dataset.from_tensors(batch).repeat()
    return iter(data)


def _stepper(workload: workloads.Workload, mode: str):
    """A function that takes one compiled step."""
    model = _compiled_model(workload, mode)
    iterator = _iterator(workload)
    model.make_train_function()

    def step() -> None:
        logs = model.train_function(iterator)
        float(logs["loss"])

    return step


def _time(workload: workloads.Workload, modes: list[str]) -> list[dict]:
    steppers = {mode: _stepper(workload, mode) for mode in modes}
    for step in steppers.values():
        for _ in range(3):
            step()
    wall = {mode: [] for mode in modes}
    cpu = {mode: [] for mode in modes}
    for _ in range(_ROUNDS.value):
        for mode, step in steppers.items():
            cpu_start, start = time.process_time(), time.perf_counter()
            step()
            wall[mode].append(time.perf_counter() - start)
            cpu[mode].append(time.process_time() - cpu_start)
    best = {mode: min(times) for mode, times in wall.items()}
    middle = {mode: statistics.median(times) for mode, times in cpu.items()}
    return [
        {
            "workload": workload.name,
            "batch_size": _batch_size(workload),
            "mode": mode,
            "min_wall_ms": round(1e3 * best[mode], 2),
            "median_cpu_ms": round(1e3 * middle[mode], 2),
            "wall_ratio": round(best[mode] / best[_ORDINARY], 3),
            "cpu_ratio": round(middle[mode] / middle[_ORDINARY], 3),
        }
        for mode in modes
    ]


def _peak_mebibytes() -> float:
    # Not `getrusage`: its maximum is inherited from the parent process.
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    raise RuntimeError("the kernel does not tell this process's peak memory")


def _memory_child(workload: workloads.Workload, mode: str) -> None:
    step = _stepper(workload, mode)
    before = _peak_mebibytes()
    for _ in range(5):
        step()
    print(json.dumps({"before": before, "peak": _peak_mebibytes()}))


def _memory(workload: workloads.Workload, mode: str) -> dict:
    command = [
        sys.executable,
        "-m",
        "benchmarks.step_time",
        f"--workloads={workload.name}",
        f"--memory_child={mode}",
        f"--jit_compile={_JIT_COMPILE.value}",
        f"--rank={_RANK.value}",
        f"--carrier_source={_CARRIER_SOURCE.value}",
    ]
    for flag in (_MICROBATCH, _BATCH):
        if flag.value is not None:
            command.append(f"--{flag.name}={flag.value}")
    printed = subprocess.run(
        command, capture_output=True, text=True, check=True
    ).stdout
    return json.loads(printed.strip().splitlines()[-1])


def main(argv: list[str]) -> None:
    """Prints one JSON object per workload and mode."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    chosen = [workloads.WORKLOADS[name] for name in _WORKLOADS.value]
    if _MEMORY_CHILD.value:
        _memory_child(chosen[0], _MEMORY_CHILD.value)
        return
    modes = [_ORDINARY, *_MODES.value]
    for workload in chosen:
        rows = _time(workload, modes)
        if _MEMORY.value:
            for row in rows:
                memory = _memory(workload, row["mode"])
                row["peak_mib"] = round(memory["peak"], 1)
                row["before_mib"] = round(memory["before"], 1)
            for row in rows:
                row["peak_ratio"] = round(
                    row["peak_mib"] / rows[0]["peak_mib"], 3
                )
        for row in rows:
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    app.run(main)
