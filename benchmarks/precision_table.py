"""Private fine-tuning in float32 and in mixed bfloat16, side by side.

    python -m benchmarks.precision_table
    python -m benchmarks.precision_table --sentences=10072 --seeds=5

MiniLM on sentences of movie reviews, by two methods: a linear head on vectors
that the frozen encoder made (`head`), and LoRA in its top block, with a new
head on the first token (`lora`). Each from end to end under either policy: what
is frozen computes in it, too. One JSON object for each training; then one for
each method and policy, with mean and spread of the accuracy, and the mean
difference to float32 of the same seed.

The same seeds give the same batches, noise and first weights under both
policies; what differs is rounding.
"""

import json
import statistics
import time

import keras
import numpy as np
from absl import app
from absl import flags

import tf_dpfp
from benchmarks import rgp_tasks
from examples.trainers import minilm
from examples.trainers import text_datasets

_SENTENCES = flags.DEFINE_integer(
    "sentences", 4000, "How many; three quarters of them to train with."
)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Trainings of each kind.")
_EPOCHS = flags.DEFINE_integer("epochs", 15, "Passes over the data.")
_EPSILON = flags.DEFINE_float("epsilon", 3.0, "The budget.")
_DELTA = flags.DEFINE_float("delta", 1e-5, "Delta of the guarantee.")

_POLICIES = ("float32", "mixed_bfloat16")
_SAMPLING_RATE = 1 / 8
_RANK = 8
_RATES = {"head": 3e-2, "lora": 1e-2}


def _sentences() -> tuple[tuple, tuple]:
    """The first of the sentences to train with, and of those to test with."""
    train, test = text_datasets.load_movie_reviews()
    count = _SENTENCES.value * 3 // 4
    return (
        tuple(part[:count] for part in train),
        tuple(part[: _SENTENCES.value - count] for part in test),
    )


def _inputs(sentences: tuple[tuple, tuple]) -> dict[str, tuple]:
    """What each method trains and tests on, under the current policy."""
    encoder = minilm.backbone()
    hidden = encoder.get_layer(f"transformer_layer_{rgp_tasks.BLOCKS - 2}")
    vectors = minilm.mean_over_tokens(
        encoder.output["sequence_output"], encoder.input["padding_mask"]
    )
    model = keras.Model(encoder.input, [hidden.output, vectors])
    found = {"head": [], "lora": []}
    for texts, _ in sentences:
        tokens = minilm.preprocess(texts, rgp_tasks.TOKENS)
        states, means = model.predict(tokens, batch_size=256, verbose=0)
        found["head"].append(np.asarray(means, "float32"))
        mask = np.asarray(tokens["padding_mask"], "int32")
        states = np.asarray(states, "float32")
        found["lora"].append({"hidden": states, "padding_mask": mask})
    return found


def _model(method: str) -> keras.Model:
    if method == "head":
        return keras.Sequential(
            [keras.Input((rgp_tasks.WIDTH,)), keras.layers.Dense(2)]
        )
    model = rgp_tasks.text_classifier()
    attention = next(
        layer
        for layer in model.layers
        if isinstance(layer, keras.layers.MultiHeadAttention)
    )
    for layer in model.layers[:-1]:
        layer.trainable = False
    attention.trainable = True
    for layer in attention._flatten_layers(include_self=False):
        layer.trainable = False
    for dense in (attention._query_dense, attention._value_dense):
        dense.trainable = True
        dense.enable_lora(_RANK)
        dense.bias.trainable = False
    return model


def _train(method, inputs, labels, seed: int) -> dict:
    keras.utils.set_random_seed(seed)
    (x, x_test), (y, y_test) = inputs, labels
    steps_per_epoch = round(1 / _SAMPLING_RATE)
    steps = _EPOCHS.value * steps_per_epoch
    noise_multiplier = tf_dpfp.calibrate_noise_multiplier(
        _EPSILON.value, _DELTA.value, _SAMPLING_RATE, steps
    )
    model = tf_dpfp.make_private(_model(method))
    model.compile(
        tf_dpfp.DPAdam(
            keras.optimizers.schedules.CosineDecay(_RATES[method], steps),
            l2_norm_clip=0.1,
            noise_multiplier=noise_multiplier,
            seed=seed,
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    batches = tf_dpfp.poisson_batches(
        x,
        y,
        sampling_rate=_SAMPLING_RATE,
        steps_per_epoch=steps_per_epoch,
        seed=seed,
    )
    start = time.process_time()
    model.fit(batches, epochs=_EPOCHS.value, verbose=0)
    seconds = time.process_time() - start
    logits = model.predict(x_test, batch_size=256, verbose=0)
    return {
        "seed": seed,
        "epsilon": round(tf_dpfp.compute_epsilon(model, _DELTA.value), 4),
        "accuracy": round(float(np.mean(np.argmax(logits, 1) == y_test)), 4),
        "cpu_seconds": round(seconds, 1),
    }


def _summary(method: str, found: dict[str, list[float]]) -> list[dict]:
    return [
        {
            "method": method,
            "policy": policy,
            "trainings": len(mine),
            "mean_accuracy": round(statistics.mean(mine), 4),
            "standard_deviation": round(statistics.stdev(mine), 4)
            if len(mine) > 1
            else None,
            "mean_difference": round(
                statistics.mean(mine) - statistics.mean(found[_POLICIES[0]]), 4
            ),
        }
        for policy, mine in found.items()
    ]


def main(argv: list[str]) -> None:
    """Prints one JSON object per training, then one per kind."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    sentences = _sentences()
    labels = [y for _, y in sentences]
    found = {method: {policy: [] for policy in _POLICIES} for method in _RATES}
    for policy in _POLICIES:
        keras.config.set_dtype_policy(policy)
        inputs = _inputs(sentences)
        for method in _RATES:
            for seed in range(1, _SEEDS.value + 1):
                row = _train(method, inputs[method], labels, seed)
                found[method][policy].append(row["accuracy"])
                row = {"method": method, "policy": policy, **row}
                print(json.dumps(row), flush=True)
    for method, accuracies in found.items():
        for row in _summary(method, accuracies):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    app.run(main)
