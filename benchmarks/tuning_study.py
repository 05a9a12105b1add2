"""Compares three ways to choose hyper-parameters, at one epsilon that is said.

python -m benchmarks.tuning_study --data=mnist
python -m benchmarks.tuning_study --data=text

- `single`: one training at the defaults of `DPAdam` (learning rate 1e-3, clip
  norm 1), which nobody tuned, on all training examples.
- `search`: `tf_dpfp.tuning.search`, ten runs expected, learning rates and clip
  norms from a grid of ten; every run has more noise, so that the whole has
  the epsilon that is said, scores on held-out examples included.
- `uncounted`: what is usual. Ten trainings, each at the epsilon that is said,
  the best by its accuracy on held-out examples. The row has what it spent.

MNIST with an MLP of one hidden layer, or movie-review sentences with a linear
head on frozen vectors of MiniLM. A tenth of the training examples is held out
where something is chosen. All three see the test examples once.
"""

import dataclasses
import itertools
import time

import keras
from absl import app
from absl import flags

import tf_dpfp
from benchmarks import json_lines
from benchmarks import tuning_tasks
from tf_dpfp import accounting

DATA = flags.DEFINE_enum("data", "mnist", ["mnist", "text"], "The data.")
EPSILON = flags.DEFINE_float("epsilon", 3.0, "The epsilon that is said.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Repetitions of each way.")
WAYS = flags.DEFINE_list(
    "ways",
    ["single", "uncounted", "logarithmic", "geometric", "poisson"],
    "Ways to choose; a law of the number of runs stands for a search.",
)
OUT = flags.DEFINE_string("out", None, "A file to append the rows to.")
DELTA = tuning_tasks.DELTA
RUNS = 10
SPACE = {
    "learning_rate": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2],
    "l2_norm_clip": [0.1, 1.0],
}
DEFAULTS = {"learning_rate": 1e-3, "l2_norm_clip": 1.0}


def compiled(task: tuning_tasks.Task, noise: float, **settings) -> keras.Model:
    """Makes a private model, ready to train."""
    model = task.model()
    tf_dpfp.make_private(model)
    model.compile(
        tf_dpfp.DPAdam(noise_multiplier=noise, **settings),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def single(task: tuning_tasks.Task, epsilon: float) -> dict:
    """Trains once, at the defaults."""
    noise = tuning_tasks.least_noise(lambda n: [task.entry(n)], epsilon)
    model = compiled(task, noise, **DEFAULTS)
    model.fit(task.batches(), epochs=task.epochs, verbose=0)
    return {"model": model, "noise_multiplier": noise, **DEFAULTS}


def uncounted(task: tuning_tasks.Task, epsilon: float, seed: int) -> dict:
    """Trains each candidate, and takes the best on held-out examples."""
    task, few = task.held_out(seed)
    noise = tuning_tasks.least_noise(lambda n: [task.entry(n)], epsilon)
    best = None
    for values in itertools.product(*SPACE.values()):
        settings = dict(zip(SPACE, values, strict=True))
        model = compiled(task, noise, **settings)
        model.fit(task.batches(), epochs=task.epochs, verbose=0)
        score = tuning_tasks.accuracy(model, few)
        if best is None or score > best[0]:
            best = score, model, settings
    entry = task.entry(noise)
    together = dataclasses.replace(entry, steps=RUNS * entry.steps)
    return {
        "model": best[1],
        "noise_multiplier": noise,
        "spent": accounting.compute_epsilon([together], DELTA),
        **best[2],
    }


def searched(
    task: tuning_tasks.Task, epsilon: float, seed: int, runs: str
) -> dict:
    """Searches at the price of the search."""
    task, few = task.held_out(seed)
    search = accounting.Search(runs, RUNS)
    score = accounting.LedgerEntry(
        accounting.EveryExample(),
        task.score_noise,
        1,
        release=accounting.Evaluation(),
        search=search,
    )
    noise = tuning_tasks.least_noise(
        lambda n: [task.entry(n, search), score], epsilon
    )
    batches = task.batches()
    found = tf_dpfp.tuning.search(
        lambda **settings: compiled(task, noise, **settings),
        SPACE,
        fit={"x": batches, "epochs": task.epochs, "verbose": 0},
        score=tf_dpfp.PrivateEvaluation(few, noise_multiplier=task.score_noise),
        runs=runs,
        expected_runs=RUNS,
    )
    return {
        "model": found.model,
        "noise_multiplier": noise,
        "spent": tf_dpfp.compute_epsilon(found.model, DELTA),
        **found.candidate,
    }


def choose(
    way: str, task: tuning_tasks.Task, epsilon: float, seed: int
) -> dict:
    """Trains in one of the ways."""
    if way == "single":
        return single(task, epsilon)
    if way == "uncounted":
        return uncounted(task, epsilon, seed)
    return searched(task, epsilon, seed, way)


def main(argv):
    del argv
    task = tuning_tasks.load(DATA.value)
    for seed, way in itertools.product(range(SEEDS.value), WAYS.value):
        started = time.monotonic()
        row = choose(way, task, EPSILON.value, seed)
        model = row.pop("model")
        row.setdefault("spent", tf_dpfp.compute_epsilon(model, DELTA))
        json_lines.append(
            OUT.value,
            {
                "data": DATA.value,
                "way": way,
                "seed": seed,
                **row,
                "test_accuracy": tuning_tasks.accuracy(model, task.test),
                "seconds": time.monotonic() - started,
            },
        )


if __name__ == "__main__":
    app.run(main)
