"""Compares privacy of persons with that of ratings, at equal cost to a person.

python -m benchmarks.persons_study

MovieLens 100k: 943 persons, 20 to 737 ratings each. The model predicts a rating
from the movie and from what is known of the person (age, sex, occupation): a
number of the movie, and the product of a vector of the movie and one of the
person. One rating of ten, of every person, is for testing.

By person, a step draws persons and up to `m` ratings of each, and clips the
sum of a person's gradients. By rating, a step draws ratings of data in which
everybody keeps at most `m`, chosen at random beforehand, and the noise is such
that epsilon of a person with `m` ratings is the same. Learning rates, clip
norms and `m` are chosen for each on the first seed, by a tenth of the training
ratings (`--tune`).
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
from examples.trainers import movielens
from tf_dpfp import accounting

SEEDS = flags.DEFINE_integer("seeds", 3, "Trainings of each kind.")
EPSILONS = flags.DEFINE_list("epsilons", ["3", "8"], "Epsilon of a person.")
TUNE = flags.DEFINE_boolean("tune", False, "Try settings on held-out data.")
DELTA = 1e-5
EPOCHS = 20


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a training is made with.

    Attributes:
        unit: `"person"` or `"rating"`.
        most: Greatest number of ratings of a person, in a step or at all.
        clip_norm: Bound on the gradient of a unit.
        learning_rate: That of Adam.
    """

    unit: str
    most: int
    clip_norm: float
    learning_rate: float


# Chosen with --tune.
SETTINGS = {
    ("person", 3.0): Settings("person", 200, 1.0, 0.03),
    ("person", 8.0): Settings("person", 200, 1.0, 0.03),
    ("rating", 3.0): Settings("rating", 20, 0.3, 0.01),
    ("rating", 8.0): Settings("rating", 20, 0.1, 0.01),
}
RATE = 0.2


def make_model(occupations: int) -> keras.Model:
    """Makes the recommender."""
    movie = keras.Input((), dtype="int32", name="movie")
    person = keras.Input((3,), dtype="int32", name="person")
    bias = layers.Embedding(movielens.MOVIES, 1, "zeros")(movie)
    vector = layers.Embedding(movielens.MOVIES, 8)(movie)
    of_person = [
        layers.Embedding(size, 8)(person[:, i])
        for i, size in enumerate((movielens.AGES, 2, occupations))
    ]
    product = layers.Dot(axes=-1)([vector, layers.Add()(of_person)])
    return keras.Model((movie, person), 3.5 + bias + product)


def capped(users: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Selects at most so many ratings of everybody, at random."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(users))
    order = order[np.argsort(users[order], kind="stable")]
    _, starts = np.unique(users[order], return_index=True)
    rank = np.arange(len(order)) - np.repeat(
        starts, np.diff([*starts, len(order)])
    )
    return np.sort(order[rank < most])


def noise_for_person(epsilon: float, rate: float, steps: int, most: int):
    """Finds the noise by rating at which a person has `epsilon`."""

    def spent(noise: float) -> float:
        entry = accounting.LedgerEntry(
            accounting.PoissonSampling(rate), noise, steps
        )
        return accounting.compute_epsilon(
            [entry], DELTA, examples_per_user=most
        )

    low, high = 0.3, 0.6
    while spent(high) > epsilon:
        low, high = high, 2 * high
    while high / low > 1.001:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if spent(middle) < epsilon else (middle, high)
    return high


def train(data, settings: Settings, epsilon: float | None, seed: int) -> dict:
    """Trains once, and returns the error on the test ratings."""
    keras.utils.set_random_seed(seed)
    x, y, users = data.x, data.y, data.users
    steps_per_epoch = round(1 / RATE)
    steps = EPOCHS * steps_per_epoch
    arguments = {}
    noise = 0.0
    if settings.unit == "person":
        arguments = {"users": users, "max_examples_per_user": settings.most}
        units = len(np.unique(users))
        if epsilon:
            noise = tf_dpfp.calibrate_noise_multiplier(
                epsilon, DELTA, sampling_rate=RATE, steps=steps
            )
    else:
        kept = capped(users, settings.most, seed)
        x, y = {k: v[kept] for k, v in x.items()}, y[kept]
        units = len(y)
        if epsilon:
            noise = noise_for_person(epsilon, RATE, steps, settings.most)
    model = make_model(data.occupations)
    tf_dpfp.make_private(model)
    model.compile(
        optimizer=tf_dpfp.DPAdam(
            keras.optimizers.schedules.CosineDecay(
                settings.learning_rate, steps
            ),
            l2_norm_clip=settings.clip_norm,
            noise_multiplier=noise,
        ),
        loss="mse",
    )
    batches = tf_dpfp.poisson_batches(
        x,
        y,
        sampling_rate=RATE,
        expected_batch_size=RATE * units,
        steps_per_epoch=steps_per_epoch,
        **arguments,
    )
    started = time.process_time()
    model.fit(batches, epochs=EPOCHS, verbose=0)
    seconds = time.process_time() - started
    spent = None
    if epsilon:
        spent = tf_dpfp.compute_epsilon(
            model,
            DELTA,
            **(
                {"examples_per_user": settings.most}
                if settings.unit == "rating"
                else {}
            ),
        )
    predicted = model.predict(data.x_test, batch_size=4096, verbose=0)
    error = np.sqrt(
        np.mean((np.clip(predicted[:, 0], 1, 5) - data.y_test) ** 2)
    )
    return {
        **dataclasses.asdict(settings),
        "epsilon": spent,
        "seed": seed,
        "noise_multiplier": noise,
        "test_rmse": float(error),
        "cpu_s": seconds,
    }


def tune() -> None:
    """Prints the error of many settings on held-out training ratings."""
    data = movielens.load().held_out()
    for unit, epsilon in itertools.product(
        ("person", "rating"), map(float, EPSILONS.value)
    ):
        mosts = (50, 200) if unit == "person" else (5, 20, 50)
        clips = (0.3, 1.0, 3.0) if unit == "person" else (0.03, 0.1, 0.3)
        for most, clip, rate in itertools.product(mosts, clips, (0.01, 0.03)):
            settings = Settings(unit, most, clip, rate)
            row = train(data, settings, epsilon, seed=0)
            json_lines.append(None, row)


def main(argv):
    del argv
    if TUNE.value:
        tune()
        return
    data = movielens.load()
    for epsilon, unit, seed in itertools.product(
        map(float, EPSILONS.value), ("person", "rating"), range(SEEDS.value)
    ):
        row = train(data, SETTINGS[unit, epsilon], epsilon, seed)
        json_lines.append(None, row)


if __name__ == "__main__":
    app.run(main)
