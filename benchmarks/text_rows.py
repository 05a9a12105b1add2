"""What `benchmarks.text_table` trains, and the table of its rows."""

import dataclasses
import math
import statistics
from collections.abc import Iterator, Sequence

from examples.trainers import finetune_config

# Settings of a method that says "start" where the public training is.
PUBLIC = "public"
_COMMON = {
    "sequence_length": 40,
    "microbatch_size": 32,
    "delta": 1e-5,
    "levels": 4,
    "l2_norm_clip": 0.1,
    "batch_size": 1000,
    "decay": True,
}
_HEAD = {"method": "head", "epochs": 60, "learning_rate": 0.02}
# A part of the budget, here in parts of one, for the head alone; then 40 steps.
_HEAD_FIRST = {
    "head_epsilon": 0.5,
    "head_epochs": 60,
    "head_learning_rate": 0.02,
    "epochs": 5,
}
_FULL = {**_HEAD_FIRST, "method": "full", "learning_rate": 3e-4}
_FULL_1 = {**_FULL, "blocks": 1, "learning_rate": 1e-3}
_LORA_1 = {**_FULL_1, "method": "lora", "learning_rate": 2e-3}
_ORDINARY = {"epsilon": math.inf, "batch_size": 64, "epochs": 2}
_ORDINARY_HEAD = {"epochs": 15, "learning_rate": 3e-3}
_ORDINARY_LEARNING_RATES = {
    "full": 2e-4,
    "lora": 2e-3,
    "bias": 2e-3,
    "ffa_lora": 4e-3,
    "prefix": 1e-2,
}

METHODS = {
    "head": _HEAD,
    "full_1": _FULL_1,
    "adaptive_1": {**_FULL_1, "clipping": "adaptive"},
    "lora_1": _LORA_1,
    "rgp_1": {**_FULL_1, "method": "rgp"},
    "bias_1": {**_FULL_1, "method": "bias", "learning_rate": 3e-3},
    # Of LoRA's two factors the one that starts at 0: it may go faster.
    "ffa_lora_1": {**_LORA_1, "method": "ffa_lora", "learning_rate": 4e-3},
    "prefix_1": {**_FULL_1, "method": "prefix", "learning_rate": 1e-2},
    "full": _FULL,
    "public_head": {**_HEAD, "start": PUBLIC},
    "public_full_1": {**_FULL_1, "start": PUBLIC},
    "public_lora_1": {**_LORA_1, "start": PUBLIC},
    "public_full": {**_FULL, "start": PUBLIC},
}


def config(
    method: str, epsilon: float, seed: int | None, start: str | None
) -> finetune_config.Config:
    """The settings of one training.

    Args:
        method: A key of `METHODS`.
        epsilon: The budget, or infinity.
        seed: Of the training.
        start: The folder that the public training wrote, or several with
            commas between.

    Returns:
        What `examples.trainers.finetuning` takes.
    """
    changes = {**_COMMON, **METHODS[method], "epsilon": epsilon, "seed": seed}
    if math.isinf(epsilon):
        for name in _HEAD_FIRST:
            changes.pop(name, None)
        changes |= _ORDINARY
        if changes["method"] == "head":
            changes |= _ORDINARY_HEAD
        else:
            rate = _ORDINARY_LEARNING_RATES.get(changes["method"])
            changes["learning_rate"] = rate
    elif "head_epsilon" in changes:
        changes["head_epsilon"] = round(changes["head_epsilon"] * epsilon, 4)
    if changes.get("start") == PUBLIC:
        changes["start"] = start
    return finetune_config.Config(**changes)


def command(settings: finetune_config.Config) -> str:
    """The command that repeats a training.

    Args:
        settings: What was trained.

    Returns:
        A line for a shell.
    """
    words = ["python -m examples.trainers.finetune_text"]
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value == field.default:
            continue
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no'}{field.name}")
        elif value is not None:
            words.append(f"--{field.name}={value}")
    return " ".join(words)


def summary(rows: Sequence[dict]) -> Iterator[str]:
    """Lines of a Markdown table: mean and standard deviation by method.

    Args:
        rows: What `benchmarks.text_table` wrote.

    Yields:
        The lines.
    """
    epsilons = sorted({_epsilon(row) for row in rows})
    titles = [
        "without privacy" if math.isinf(e) else f"epsilon {e:g}"
        for e in epsilons
    ]
    titles += ["weights trained", "private step", "memory"]
    yield "| " + " | ".join(["method", *titles]) + " |"
    yield "|---" * (1 + len(titles)) + "|"
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        cells = [
            _cell([r["accuracy"] for r in mine if _epsilon(r) == epsilon])
            for epsilon in epsilons
        ]
        cells += _costs([r for r in mine if r["epsilon"] is not None])
        yield "| " + " | ".join([method, *cells]) + " |"


def _epsilon(row: dict) -> float:
    return math.inf if row["epsilon"] is None else row["epsilon"]


def _cell(accuracies: Sequence[float]) -> str:
    if not accuracies:
        return ""
    percent = [100.0 * accuracy for accuracy in accuracies]
    mean = f"{statistics.mean(percent):.2f}"
    if len(percent) == 1:
        return f"{mean} (1)"
    return f"{mean} ± {statistics.stdev(percent):.2f} ({len(percent)})"


def _costs(rows: Sequence[dict]) -> list[str]:
    """Number of weights, least time of a step, and peak memory.

    Of the trainings of a process the first has the least: others' graphs stay.
    """
    if not rows:
        return ["", "", ""]
    seconds = min(row["seconds_per_step"] for row in rows)
    return [
        f"{rows[0]['trainable']}",
        f"{1000.0 * seconds:.0f} ms",
        f"{min(row['peak_mib'] for row in rows):.0f} MiB",
    ]
