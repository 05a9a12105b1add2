"""Tasks on which `tuning_study` and others compare trainings."""

import dataclasses

import keras
import numpy as np
from keras import layers

import tf_dpfp
from examples.trainers import datasets
from examples.trainers import finetune_config
from examples.trainers import finetuning
from tf_dpfp import accounting

DELTA = 1e-5


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


def accuracy(model: keras.Model, data: tuple) -> float:
    """Returns the accuracy on data."""
    x, y = data
    logits = model.predict(x, batch_size=4096, verbose=0)
    return float(np.mean(np.argmax(logits, axis=-1) == y))
