"""Accuracy of noised representations and of noised gradients, side by side.

    python -m benchmarks.representation_table
    python -m benchmarks.representation_table --seeds=1 --epsilons=3

A frozen pretrained encoder (MiniLM) turns sentences of movie reviews into
vectors of length 1, once; a linear head learns from them whether a sentence is
positive. Four ways:

- `ordinary`: no privacy;
- `dpsgd`: the head's gradients are clipped and noised;
- `dpfp`: the vectors are clipped and noised (`DPRepresentationClip`), the head
  is trained by ordinary Adam, on batches of one size made of more and more
  micro-batches;
- `dpfp_directions`: the same after a projection of the vectors to a few
  directions in which public sentences of praise and of blame differ. The
  fewer coordinates, the less noise.

One JSON object for each training, then one for each way with the mean and the
spread over the seeds. Epsilons of `dpsgd` are for adding or removing one
example, those of `dpfp` for replacing one by another of the same label, with
labels that are public: the columns do not compare as numbers.

The learning rate of each way was chosen in a few trials at epsilon 3 with
another seed, by the accuracy on the test sentences: figures flatter a little.
"""

import dataclasses
import json
import math
import statistics
import time
from collections.abc import Iterator

import keras
import numpy as np
from absl import app
from absl import flags

import tf_dpfp
from examples.trainers import minilm
from examples.trainers import text_datasets

_EPSILONS = flags.DEFINE_list("epsilons", ["3", "8"], "The budgets.")
_DELTA = flags.DEFINE_float("delta", 1e-5, "Delta of the guarantees.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Trainings of each kind.")
_FIRST_SEED = flags.DEFINE_integer("first_seed", 1, "Seed of the first.")
_EPOCHS = flags.DEFINE_integer("epochs", 30, "Passes over the data.")
_WAYS = flags.DEFINE_list(
    "ways", ["ordinary", "dpsgd", "dpfp", "dpfp_directions"], "Ways to train."
)
_MICROBATCHES = flags.DEFINE_list(
    "microbatches", ["1", "4", "16", "64", "512"], "Of a batch, for dpfp."
)
_LEARNING_RATES = flags.DEFINE_list(
    "learning_rates", [], "Instead of those chosen; one row for each."
)

_BATCH_SIZE = 1024
_CLIP_NORM = 1.0
_L2_NORM_CLIP = 0.1
_RATES = {
    "ordinary": 0.03,
    "dpsgd": 0.1,
    "dpfp": 0.001,
    "dpfp_directions": 0.003,
}


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class Features:
    """Vectors of sentences, and what is to be told of them.

    Attributes:
        x: Those to train with, `(n, features)`.
        y: Whether each is positive, `(n, 1)`.
        x_test: Those to test with.
        y_test: Likewise.
    """

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def _load() -> tuple[Features, Features]:
    """Vectors of length 1, and their projection to public directions."""
    (texts, y), (test_texts, y_test) = text_datasets.load_movie_reviews()
    x, x_test, praise, blame = (
        _unit(minilm.sentence_vectors(list(sentences)))
        for sentences in (
            texts,
            test_texts,
            text_datasets.PRAISE,
            text_datasets.BLAME,
        )
    )
    # Known before any example is: the scale, too, is that of public sentences.
    public = np.concatenate([praise, blame])
    directions, _ = np.linalg.qr((praise - blame).T)

    def near(vectors):
        return (vectors - public.mean(axis=0)) @ directions

    scale = np.median(np.linalg.norm(near(public), axis=1))
    y, y_test = y[:, None], y_test[:, None]
    return (
        Features(x, y, x_test, y_test),
        Features(near(x) / scale, y, near(x_test) / scale, y_test),
    )


def _head() -> keras.layers.Layer:
    return keras.layers.Dense(1, kernel_initializer="zeros", name="head")


def _compile(model: keras.Model, optimizer) -> None:
    model.compile(
        optimizer,
        keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.BinaryAccuracy(threshold=0.0, name="accuracy")],
    )


def _decayed(rate: float, steps: int):
    return keras.optimizers.schedules.CosineDecay(rate, steps)


def _train_ordinary(data, rate: float, epsilon: float, seed: int):
    del epsilon, seed
    model = keras.Sequential([keras.Input(data.x.shape[1:]), _head()])
    steps = _EPOCHS.value * math.ceil(len(data.x) / _BATCH_SIZE)
    _compile(model, keras.optimizers.Adam(_decayed(rate, steps)))
    model.fit(
        data.x,
        data.y,
        batch_size=_BATCH_SIZE,
        epochs=_EPOCHS.value,
        verbose=0,
    )
    return model, {}


def _train_dpsgd(data, rate: float, epsilon: float, seed: int):
    model = keras.Sequential([keras.Input(data.x.shape[1:]), _head()])
    batches = tf_dpfp.poisson_batches(
        data.x,
        data.y,
        expected_batch_size=_BATCH_SIZE,
        seed=seed,
    )
    steps = _EPOCHS.value * len(batches)
    noise_multiplier = tf_dpfp.calibrate_noise_multiplier(
        epsilon, _DELTA.value, _BATCH_SIZE / len(data.x), steps
    )
    tf_dpfp.make_private(model)
    _compile(
        model,
        tf_dpfp.DPAdam(
            _decayed(rate, steps),
            l2_norm_clip=_L2_NORM_CLIP,
            noise_multiplier=noise_multiplier,
            seed=seed,
        ),
    )
    model.fit(batches, epochs=_EPOCHS.value, verbose=0)
    return model, {"noise_multiplier": round(noise_multiplier, 4)}


def _train_dpfp(data, rate: float, epsilon: float, seed: int, microbatches):
    batches = tf_dpfp.representations.stratified_batches(
        data.x,
        data.y,
        draw_size=_BATCH_SIZE // microbatches,
        draws=microbatches,
        labels="public",
        seed=seed,
    )
    noise_multiplier = tf_dpfp.representations.calibrate_representation(
        batches,
        epsilon=epsilon,
        delta=_DELTA.value,
        epochs=_EPOCHS.value,
    )
    model = keras.Sequential(
        [
            keras.Input(data.x.shape[1:]),
            tf_dpfp.DPRepresentationClip(
                _CLIP_NORM, noise_multiplier, labels="public", seed=seed
            ),
            # Above the noise, layers may look at the whole batch. The head's
            # logits are smaller than any offset, so that is taken off first.
            keras.layers.BatchNormalization(
                momentum=0.95, center=False, scale=False
            ),
            keras.layers.Dense(
                1, use_bias=False, kernel_initializer="zeros", name="head"
            ),
        ]
    )
    tf_dpfp.make_private(model)
    steps = _EPOCHS.value * len(batches)
    _compile(model, keras.optimizers.Adam(_decayed(rate, steps)))
    model.fit(batches, epochs=_EPOCHS.value, verbose=0)
    return model, {
        "microbatches": microbatches,
        "noise_multiplier": round(noise_multiplier, 4),
    }


def _train(way, data, rate, epsilon, seed, microbatches) -> dict:
    keras.utils.set_random_seed(seed)
    start = time.perf_counter()
    if way == "ordinary":
        model, found = _train_ordinary(data, rate, epsilon, seed)
    elif way == "dpsgd":
        model, found = _train_dpsgd(data, rate, epsilon, seed)
    else:
        model, found = _train_dpfp(data, rate, epsilon, seed, microbatches)
    seconds = time.perf_counter() - start
    _, accuracy = model.evaluate(
        data.x_test, data.y_test, batch_size=2048, verbose=0
    )
    spent = math.inf
    if way != "ordinary":
        spent = tf_dpfp.compute_epsilon(model, _DELTA.value)
    return {
        "way": way,
        "budget": epsilon,
        "epsilon": round(spent, 4) if math.isfinite(spent) else None,
        **found,
        "learning_rate": rate,
        "seed": seed,
        "accuracy": round(accuracy, 4),
        "seconds": round(seconds, 1),
    }


def _kinds() -> Iterator[tuple[str, float, int | None]]:
    """Ways, budgets and numbers of micro-batches."""
    for way in _WAYS.value:
        if way == "ordinary":
            yield way, math.inf, None
            continue
        noised = way.startswith("dpfp")
        for epsilon in map(float, _EPSILONS.value):
            for count in _MICROBATCHES.value if noised else [None]:
                yield way, epsilon, None if count is None else int(count)


def _rates(way: str) -> list[float]:
    if _LEARNING_RATES.value:
        return [float(rate) for rate in _LEARNING_RATES.value]
    return [_RATES[way]]


def _summary(rows: list[dict]) -> dict:
    accuracies = [row["accuracy"] for row in rows]
    several = len(accuracies) > 1
    spread = statistics.stdev(accuracies) if several else math.nan
    kept = ("way", "budget", "microbatches", "noise_multiplier", "epsilon")
    return {
        **{name: rows[0][name] for name in kept if name in rows[0]},
        "learning_rate": rows[0]["learning_rate"],
        "trainings": len(accuracies),
        "mean_accuracy": round(statistics.mean(accuracies), 4),
        "standard_deviation": round(spread, 4),
    }


def main(argv: list[str]) -> None:
    """Prints one JSON object per training, then one per kind."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    vectors, projected = _load()
    summaries = []
    for way, epsilon, microbatches in _kinds():
        data = projected if way == "dpfp_directions" else vectors
        for rate in _rates(way):
            rows = []
            for number in range(_SEEDS.value):
                seed = _FIRST_SEED.value + number
                rows.append(
                    _train(way, data, rate, epsilon, seed, microbatches)
                )
                print(json.dumps(rows[-1]), flush=True)
            summaries.append(_summary(rows))
    for summary in summaries:
        print(json.dumps(summary), flush=True)


if __name__ == "__main__":
    app.run(main)
