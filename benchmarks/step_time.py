"""Time and memory of a private step against an ordinary one.

    python -m benchmarks.step_time
    python -m benchmarks.step_time --workloads=transformer --rounds=40
    python -m benchmarks.step_time --memory_curve
    python -m benchmarks.step_time --workloads=bert_base --modes=per_layer
    python -m benchmarks.step_time --workloads=frozen --modes=dpfp
    python -m benchmarks.step_time --workloads=minilm,minilm_lora \
        --modes=per_layer,adaptive --rounds=10
    python -m benchmarks.step_time --device=gpu

Times are taken in one process, ordinary and private steps in turn, noise
included, with everything `fit` compiles (loss, optimizer, metrics). Each row
is one JSON object: the minimum wall time and the median CPU time of a step,
and their ratios to the ordinary step's. Medians of wall time are not given:
on a shared machine they measure the neighbours.

Peak memory is the resident set of a process of its own that takes a few
steps; the row also says what that process held before its first step. Half of
it is not the step's: libraries, graphs, and pages that an allocator keeps. So
there is a second column, the most that TensorFlow's allocator had handed out
at once in a step after the first (weights and optimizer included).
`--device=gpu` times the MLP and the CNN at batch 2048, the transformer at 64
and a BERT of base size at 32, each with XLA and without, and reads the memory
of the GPU's allocator. Every row says which device, versions and precision it
is of.
`--memory_curve` prints both for a transformer at growing batches and lengths,
and no times.
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
from benchmarks import memory
from benchmarks import workloads
from examples.trainers import clippings

_WORKLOADS = flags.DEFINE_list(
    "workloads",
    [n for n in workloads.WORKLOADS if n not in workloads.ASKED_FOR],
    f"Which workloads to run, of {', '.join(workloads.WORKLOADS)}.",
)
_MODES = flags.DEFINE_list(
    "modes",
    ["flat", "per_layer"],
    f"What to time, of {', '.join(clippings.CLIPPINGS)} and rgp (flat, with "
    "low-rank carriers; rgp_history_16 is rgp with another source and rank), "
    "dpfp (noise before the last layer, for workload frozen), and secure "
    "(flat, with secure=True).",
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
_LENGTH = flags.DEFINE_integer(
    "length", None, "Tokens of an example, instead of the workload's own."
)
_MEMORY_CURVE = flags.DEFINE_bool(
    "memory_curve", False, "Only the memory of larger and larger steps."
)
_DEVICE = flags.DEFINE_enum(
    "device",
    "any",
    ["any", "cpu", "gpu"],
    "`cpu` hides GPUs; `gpu` needs one, and runs the table for GPUs.",
)
_MEMORY_CHILD = flags.DEFINE_string(
    "memory_child", None, "Internal: measure this mode's memory and exit."
)
_ORDINARY = "non_private"
# Batch and length.
_CURVE = [(16, 128), (32, 128), (64, 128), (16, 256)]
_LOW_RANK = "rgp"
_REPRESENTATIONS = "dpfp"
_SECURE = "secure"


# Workload and batch size of the table for GPUs.
_GPU_TABLE = [
    ("mlp_2048", 2048),
    ("cnn_2048", 2048),
    ("transformer", 64),
    ("bert_base", 32),
]


def _device() -> str:
    """Name of the device that steps run on, for TensorFlow."""
    return "GPU:0" if tf.config.list_logical_devices("GPU") else "CPU:0"


def _environment() -> dict[str, str | bool]:
    """Returns the device, versions and precision that a row is of."""
    gpus = tf.config.list_physical_devices("GPU")
    name = "CPU"
    if gpus and _device() != "CPU:0":
        details = tf.config.experimental.get_device_details(gpus[0])
        name = details.get("device_name", "GPU")
    return {
        "device": name,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "tf_dpfp": tf_dpfp.__version__,
        "tf32": tf.config.experimental.tensor_float_32_execution_enabled(),
    }


def _choose_device() -> None:
    """Hides GPUs or asks for one, as `--device` says."""
    gpus = tf.config.list_physical_devices("GPU")
    if _DEVICE.value == "cpu":
        tf.config.set_visible_devices([], "GPU")
        return
    if _DEVICE.value == "gpu" and not gpus:
        raise app.UsageError("--device=gpu: TensorFlow sees no GPU here.")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if gpus:
        # Of the ordinary steps as well, or the ratios would compare precisions.
        tf.config.experimental.enable_tensor_float_32_execution(False)


def _gpu_commands() -> Iterator[list[str]]:
    """Yields the arguments of each process of the table for GPUs."""
    for name, batch_size in _GPU_TABLE:
        for jit_compile in ("true", "false"):
            modes = ["flat", "per_layer"]
            if name == "transformer":
                modes.append("rgp")
            yield [
                f"--workloads={name}",
                f"--batch_size={batch_size}",
                f"--jit_compile={jit_compile}",
                f"--modes={','.join(modes)}",
                f"--rounds={_ROUNDS.value}",
                f"--memory={_MEMORY.value}",
            ]


def _batch_size(workload: workloads.Workload) -> int:
    return _BATCH.value or workload.batch_size


def _sized(workload: workloads.Workload) -> dict[str, int]:
    if workload.length is None:
        return {}
    return {"length": _LENGTH.value or workload.length}


def _carriers(mode: str) -> tuple[str, int] | None:
    """Source and rank of the carriers of a mode, if it has any."""
    name, *settings = mode.split("_")
    if name != _LOW_RANK:
        return None
    if not settings:
        return _CARRIER_SOURCE.value, _RANK.value
    source, rank = settings
    return source, int(rank)


def _clipping(mode: str) -> str:
    flat = mode == _SECURE or _carriers(mode) is not None
    return "flat" if flat else mode


def _compiled_model(workload: workloads.Workload, mode: str) -> keras.Model:
    model = workload.make_model(**_sized(workload))
    optimizer = keras.optimizers.Adam(1e-4)
    carriers = _carriers(mode)
    if carriers is not None:
        source, rank = carriers
        tf_dpfp.reparametrize(
            model, rank, carrier_source=source, warmup_steps=2
        )
    if mode == _REPRESENTATIONS:
        model = tf_dpfp.make_private(_with_noise(model))
    elif mode != _ORDINARY:
        tf_dpfp.make_private(model)
        optimizer = tf_dpfp.DPAdam(
            1e-4,
            l2_norm_clip=1.0,
            noise_multiplier=1.0,
            clipping=clippings.CLIPPINGS[_clipping(mode)],
            expected_batch_size=_batch_size(workload),
            microbatch_size=_MICROBATCH.value,
            secure=mode == _SECURE,
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


def _with_noise(model: keras.Model) -> keras.Model:
    """The same layers, with noise on what the last one is given."""
    head = model.layers[-1]
    noise = tf_dpfp.DPRepresentationClip(1.0, 1.0, labels="public")
    return keras.Model(model.input, head(noise(head.input)))


def _iterator(workload: workloads.Workload) -> Iterator:
    batch = workload.make_batch(_batch_size(workload), **_sized(workload))
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
            **_sized(workload),
            "mode": mode,
            "jit_compile": _JIT_COMPILE.value,
            **_environment(),
            "min_wall_ms": round(1e3 * best[mode], 2),
            "median_cpu_ms": round(1e3 * middle[mode], 2),
            "wall_ratio": round(best[mode] / best[_ORDINARY], 3),
            "cpu_ratio": round(middle[mode] / middle[_ORDINARY], 3),
        }
        for mode in modes
    ]


def _memory_child(workload: workloads.Workload, mode: str) -> None:
    step = _stepper(workload, mode)
    before = memory.peak_mebibytes()
    step()
    # From here on without what is there for the trial and the compilation.
    tf.config.experimental.reset_memory_stats(_device())
    for _ in range(4):
        step()
    tensors = tf.config.experimental.get_memory_info(_device())["peak"]
    found = {
        "before_mib": before,
        "peak_mib": memory.peak_mebibytes(),
        "tensors_mib": tensors / 2**20,
    }
    print(json.dumps({k: round(v, 1) for k, v in found.items()}))


def _memory(
    workload: workloads.Workload, mode: str, batch_size: int, length: int | None
) -> dict:
    command = [
        sys.executable,
        "-m",
        "benchmarks.step_time",
        f"--workloads={workload.name}",
        f"--memory_child={mode}",
        f"--jit_compile={_JIT_COMPILE.value}",
        f"--device={'cpu' if _DEVICE.value == 'cpu' else 'any'}",
        f"--batch_size={batch_size}",
        f"--rank={_RANK.value}",
        f"--carrier_source={_CARRIER_SOURCE.value}",
    ]
    if length is not None:
        command.append(f"--length={length}")
    if _MICROBATCH.value is not None:
        command.append(f"--microbatch_size={_MICROBATCH.value}")
    printed = subprocess.run(
        command, capture_output=True, text=True, check=True
    ).stdout
    return json.loads(printed.strip().splitlines()[-1])


def _with_memory(
    workload: workloads.Workload,
    rows: list[dict],
    batch_size: int,
    length: int | None,
) -> list[dict]:
    """The rows with memory; the first is the ordinary step's."""
    found = [_memory(workload, row["mode"], batch_size, length) for row in rows]
    return [
        {
            **row,
            **used,
            "peak_ratio": round(used["peak_mib"] / found[0]["peak_mib"], 3),
            "tensors_ratio": round(
                used["tensors_mib"] / found[0]["tensors_mib"], 3
            ),
        }
        for row, used in zip(rows, found, strict=True)
    ]


def _memory_curve(
    workload: workloads.Workload, modes: list[str]
) -> Iterator[dict]:
    for batch_size, length in _CURVE:
        rows = [
            {
                "workload": workload.name,
                "batch_size": batch_size,
                "length": length,
                "mode": mode,
            }
            for mode in modes
        ]
        yield from _with_memory(workload, rows, batch_size, length)


def main(argv: list[str]) -> None:
    """Prints one JSON object per row."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    _choose_device()
    if _DEVICE.value == "gpu":
        for arguments in _gpu_commands():
            command = [sys.executable, "-m", "benchmarks.step_time"]
            subprocess.run([*command, *arguments], check=False)
        return
    chosen = [workloads.WORKLOADS[name] for name in _WORKLOADS.value]
    if _MEMORY_CHILD.value:
        _memory_child(chosen[0], _MEMORY_CHILD.value)
        return
    modes = [_ORDINARY, *_MODES.value]
    if _MEMORY_CURVE.value:
        for row in _memory_curve(workloads.WORKLOADS["transformer"], modes):
            print(json.dumps(row), flush=True)
        return
    for workload in chosen:
        rows = _time(workload, modes)
        if _MEMORY.value:
            length = _sized(workload).get("length")
            size = _batch_size(workload)
            rows = _with_memory(workload, rows, size, length)
        for row in rows:
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    app.run(main)
