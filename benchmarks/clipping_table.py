"""Accuracy, time and memory of the ways to clip, side by side.

    python -m benchmarks.clipping_table
    python -m benchmarks.clipping_table --datasets=mnist --seeds=1 --epochs=5

A CNN on MNIST and Fashion-MNIST, by flat clipping and by per-layer clipping
with fixed, adaptive and automatic thresholds: the same network and first
weights, the same batches, the same number of epochs, the same epsilon. One JSON
object for each training, then one for each data set and clipping with the mean
and the spread over the seeds.

The learning rate is the same for every clipping, chosen in a few trials with
another seed and not tuned for each. The model that is evaluated is the moving
average of the weights (`use_ema`), which is computed from private weights
alone. Time and memory of a step are those that `benchmarks.step_time` measures
for a network of the same shapes and the same batch size.
"""

import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import keras
from absl import app
from absl import flags

import tf_dpfp
from examples.trainers import clippings
from examples.trainers import datasets
from examples.trainers import models

_DATASETS = flags.DEFINE_list(
    "datasets", ["mnist", "fashion_mnist"], "Data sets."
)
_CLIPPINGS = flags.DEFINE_list(
    "clippings", list(clippings.CLIPPINGS), "Ways to clip."
)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Trainings of each kind.")
_FIRST_SEED = flags.DEFINE_integer("first_seed", 1, "Seed of the first.")
_EPOCHS = flags.DEFINE_integer(
    "epochs", None, "Passes over the data; default: by data set."
)
_BATCH = flags.DEFINE_integer("batch_size", 2048, "Expected batch size.")
_EPSILON = flags.DEFINE_float("epsilon", 2.7, "The budget.")
_DELTA = flags.DEFINE_float("delta", 1e-5, "Delta of the guarantee.")
_STEP = flags.DEFINE_float(
    "step",
    5.0,
    "Learning rate times clip norm: how far a step goes whose clipped "
    "gradients all agree.",
)
_COSTS = flags.DEFINE_bool("costs", True, "Also measure time and memory.")

_L2_NORM_CLIP = 0.1
_EMA_MOMENTUM = 0.98
_DEFAULT_EPOCHS = {"mnist": 20, "fashion_mnist": 30}


def _train(dataset: str, clipping: str, seed: int) -> dict:
    """Trains once, from weights and batches that the seed decides."""
    keras.utils.set_random_seed(seed)
    epochs = _EPOCHS.value or _DEFAULT_EPOCHS.get(dataset, 20)
    (x, y), (x_test, y_test) = datasets.load(dataset)
    # Centred by constants: the mean of the data would have to be private.
    x, x_test = 2.0 * x - 1.0, 2.0 * x_test - 1.0
    model = models.build("cnn", x.shape[1:], 10).classifier
    batches = tf_dpfp.poisson_batches(
        x, y, expected_batch_size=_BATCH.value, seed=seed
    )
    noise_multiplier = tf_dpfp.calibrate_noise_multiplier(
        _EPSILON.value,
        _DELTA.value,
        _BATCH.value / len(x),
        epochs * len(batches),
    )
    tf_dpfp.make_private(model)
    model.compile(
        tf_dpfp.DPSGD(
            _STEP.value / _L2_NORM_CLIP,
            l2_norm_clip=_L2_NORM_CLIP,
            noise_multiplier=noise_multiplier,
            clipping=clippings.CLIPPINGS[clipping],
            seed=seed,
            use_ema=True,
            ema_momentum=_EMA_MOMENTUM,
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    start = time.perf_counter()
    model.fit(batches, epochs=epochs, verbose=0)
    seconds = time.perf_counter() - start
    _, accuracy = model.evaluate(x_test, y_test, batch_size=2048, verbose=0)
    return {
        "dataset": dataset,
        "clipping": clipping,
        "seed": seed,
        "step": _STEP.value,
        "epochs": epochs,
        "epsilon": round(tf_dpfp.compute_epsilon(model, _DELTA.value), 4),
        "accuracy": round(accuracy, 4),
        "seconds": round(seconds, 1),
    }


def _summary(rows: list[dict], costs: dict[str, dict]) -> Iterator[dict]:
    for dataset in _DATASETS.value:
        for clipping in _CLIPPINGS.value:
            accuracies = [
                row["accuracy"]
                for row in rows
                if (row["dataset"], row["clipping"]) == (dataset, clipping)
            ]
            spread = (
                statistics.stdev(accuracies)
                if len(accuracies) > 1
                else math.nan
            )
            yield {
                "dataset": dataset,
                "clipping": clipping,
                "trainings": len(accuracies),
                "mean_accuracy": round(statistics.mean(accuracies), 4),
                "standard_deviation": round(spread, 4),
                "least": min(accuracies),
                "greatest": max(accuracies),
                **costs.get(clipping, {}),
            }


def _measure_costs() -> dict[str, dict]:
    """Ratios to the ordinary step, by clipping."""
    printed = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.step_time",
            "--workloads=cnn_2048",
            f"--batch_size={_BATCH.value}",
            f"--modes={','.join(_CLIPPINGS.value)}",
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    rows = [json.loads(line) for line in printed.splitlines()]
    wanted = ("wall_ratio", "cpu_ratio", "peak_ratio")
    return {row["mode"]: {k: row[k] for k in wanted} for row in rows}


def main(argv: list[str]) -> None:
    """Prints one JSON object per training, then one per kind."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    rows = []
    for number in range(_SEEDS.value):
        for dataset in _DATASETS.value:
            for clipping in _CLIPPINGS.value:
                seed = _FIRST_SEED.value + number
                rows.append(_train(dataset, clipping, seed))
                print(json.dumps(rows[-1]), flush=True)
    costs = _measure_costs() if _COSTS.value else {}
    for row in _summary(rows, costs):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    app.run(main)
