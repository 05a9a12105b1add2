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
import numpy as np
from absl import app
from absl import flags
from keras import layers

import tf_dpfp
from benchmarks import json_lines
from examples.trainers import datasets
from examples.trainers import finetune_config
from examples.trainers import finetuning
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
DELTA = 1e-5
RUNS = 10
SPACE = {
    "learning_rate": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2],
    "l2_norm_clip": [0.1, 1.0],
}
DEFAULTS = {"learning_rate": 1e-3, "l2_norm_clip": 1.0}


@dataclasses.dataclass(frozen=True)
class Task:
    """Data and what is trained on them.

    Attributes:
        train: Inputs and labels.
        test: Inputs and labels.
        hidden: Number of units between; 0 for a linear model.
        batch_size: Expected number of examples of a batch.
        epochs: Passes over the training examples.
        score_noise: Noise multiplier of the score of a run.
    """

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    hidden: int
    batch_size: int
    epochs: int
    score_noise: float

    def model(self) -> keras.Model:
        """Makes a model with new weights."""
        x, y = self.train
        between = [layers.Dense(self.hidden, "tanh")] if self.hidden else []
        return keras.Sequential(
            [
                keras.Input(x.shape[1:]),
                *between,
                layers.Dense(int(y.max()) + 1),
            ]
        )

    def held_out(self, seed: int) -> tuple["Task", tuple]:
        """Returns the task without a tenth of the examples, and this tenth."""
        x, y = self.train
        order = np.random.default_rng(seed).permutation(len(y))
        few, rest = np.split(order, [len(y) // 10])
        task = dataclasses.replace(self, train=(x[rest], y[rest]))
        return task, (x[few], y[few])

    def batches(self):
        """Returns Poisson-sampled batches of the training examples."""
        return tf_dpfp.poisson_batches(
            *self.train, expected_batch_size=self.batch_size
        )

    def entry(self, noise: float, search=None) -> accounting.LedgerEntry:
        """Returns what a training adds to the ledger."""
        batches = self.batches()
        return accounting.LedgerEntry(
            accounting.PoissonSampling(self.batch_size / len(self.train[1])),
            noise,
            self.epochs * int(batches.cardinality()),
            search=search,
        )


def load(name: str) -> Task:
    """Loads a task by name."""
    if name == "mnist":
        (x, y), (x_test, y_test) = datasets.load("mnist")
        return Task(
            (x.reshape(len(x), -1), y),
            (x_test.reshape(len(x_test), -1), y_test),
            hidden=128,
            batch_size=2048,
            epochs=15,
            score_noise=40.0,
        )
    config = finetune_config.Config(method="head", levels=4, sequence_length=40)
    data = finetuning.load(config)
    return Task(
        data.train, data.test, 0, batch_size=1000, epochs=40, score_noise=20.0
    )


def least_noise(entries_of, epsilon: float) -> float:
    """Finds the noise multiplier at which the entries have `epsilon`."""
    low, high = 0.3, 200.0
    while high / low > 1.0005:
        middle = (low * high) ** 0.5
        spent = accounting.compute_epsilon(entries_of(middle), DELTA)
        low, high = (low, middle) if spent <= epsilon else (middle, high)
    return high


def compiled(task: Task, noise: float, **settings) -> keras.Model:
    """Makes a private model, ready to train."""
    model = task.model()
    tf_dpfp.make_private(model)
    model.compile(
        tf_dpfp.DPAdam(noise_multiplier=noise, **settings),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def accuracy(model: keras.Model, data: tuple) -> float:
    """Returns the accuracy on data."""
    x, y = data
    logits = model.predict(x, batch_size=4096, verbose=0)
    return float(np.mean(np.argmax(logits, axis=-1) == y))


def single(task: Task, epsilon: float) -> dict:
    """Trains once, at the defaults."""
    noise = least_noise(lambda n: [task.entry(n)], epsilon)
    model = compiled(task, noise, **DEFAULTS)
    model.fit(task.batches(), epochs=task.epochs, verbose=0)
    return {"model": model, "noise_multiplier": noise, **DEFAULTS}


def uncounted(task: Task, epsilon: float, seed: int) -> dict:
    """Trains each candidate, and takes the best on held-out examples."""
    task, few = task.held_out(seed)
    noise = least_noise(lambda n: [task.entry(n)], epsilon)
    best = None
    for values in itertools.product(*SPACE.values()):
        settings = dict(zip(SPACE, values, strict=True))
        model = compiled(task, noise, **settings)
        model.fit(task.batches(), epochs=task.epochs, verbose=0)
        score = accuracy(model, few)
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


def searched(task: Task, epsilon: float, seed: int, runs: str) -> dict:
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
    noise = least_noise(lambda n: [task.entry(n, search), score], epsilon)
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


def choose(way: str, task: Task, epsilon: float, seed: int) -> dict:
    """Trains in one of the ways."""
    if way == "single":
        return single(task, epsilon)
    if way == "uncounted":
        return uncounted(task, epsilon, seed)
    return searched(task, epsilon, seed, way)


def main(argv):
    del argv
    task = load(DATA.value)
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
                "test_accuracy": accuracy(model, task.test),
                "seconds": time.monotonic() - started,
            },
        )


if __name__ == "__main__":
    app.run(main)
