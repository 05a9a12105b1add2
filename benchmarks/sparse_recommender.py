"""Compares sparse tables with dense noise on MovieLens 100k, at one epsilon.

    python -m benchmarks.sparse_recommender
    python -m benchmarks.sparse_recommender --tune

Private by rating: epsilon 3 at delta 1e-5, 20 epochs of batches of a fifth of
the ratings. The model predicts a rating from the movie and from age, sex and
occupation of the person: a number of the movie, and the product of a vector of
the movie and one of the person. `crossed` adds a number of each pair of movie
and occupation, a table of 35,322 rows. Tables are released where they are
touched, or with noise on every row, as all other weights are. Learning rates,
and for sparse tables the threshold and the share of the counts, are chosen on
a tenth of the training ratings (`--tune`). One JSON object for each training.
"""

import dataclasses
import itertools
import time
from collections.abc import Iterator

import keras
import numpy as np
from absl import app
from absl import flags
from keras import layers

import tf_dpfp
from benchmarks import json_lines
from examples.trainers import movielens

_SEEDS = flags.DEFINE_integer("seeds", 3, "Trainings of each kind.")
_TUNE = flags.DEFINE_boolean("tune", False, "Try settings on held-out data.")
_EPSILON = flags.DEFINE_float("epsilon", 3.0, "Epsilon of a rating.")
_DELTA, _EPOCHS, _RATE = 1e-5, 20, 0.2


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a training is made with.

    Attributes:
        crossed: True for the model with the table of pairs.
        optimizer: Name of the private optimizer.
        learning_rate: Its first learning rate.
        tables: Sparse tables; none: noise is on every row.
        threshold: Their threshold.
        contribution_share: Share of the counts in the budget.
    """

    crossed: bool
    optimizer: str
    learning_rate: float
    tables: tuple[str, ...] = ()
    threshold: float = 2.0
    contribution_share: float = 0.03


# Chosen with --tune.
SETTINGS = (
    Settings(False, "DPAdam", 0.03),
    Settings(False, "DPAdagrad", 0.1),
    Settings(False, "DPAdagrad", 0.1, ("bias", "vector"), -1.0, 0.01),
    Settings(False, "DPLazyAdam", 0.03, ("bias", "vector"), -1.0, 0.01),
    Settings(True, "DPAdam", 0.01),
    Settings(True, "DPAdagrad", 0.03),
    Settings(True, "DPAdagrad", 0.1, ("crossed",)),
    Settings(True, "DPLazyAdam", 0.03, ("crossed",)),
)


def make_model(occupations: int, crossed: bool) -> keras.Model:
    """Makes the recommender."""
    movie = keras.Input((), dtype="int32", name="movie")
    person = keras.Input((3,), dtype="int32", name="person")
    rating = layers.Embedding(movielens.MOVIES, 1, "zeros", name="bias")(movie)
    if crossed:
        pair = movie * occupations + person[:, 2]
        size = movielens.MOVIES * occupations
        rating += layers.Embedding(size, 1, "zeros", name="crossed")(pair)
    vector = layers.Embedding(movielens.MOVIES, 8, name="vector")(movie)
    of_person = [
        layers.Embedding(size, 8)(person[:, i])
        for i, size in enumerate((movielens.AGES, 2, occupations))
    ]
    product = layers.Dot(axes=-1)([vector, layers.Add()(of_person)])
    return keras.Model((movie, person), 3.5 + rating + product)


def _optimizer(settings: Settings, steps: int) -> keras.optimizers.Optimizer:
    sparse = None
    if settings.tables:
        sparse = tf_dpfp.Sparse(
            settings.tables,
            threshold=settings.threshold,
            contribution_share=settings.contribution_share,
        )
    # Gradients are means over 18,000 ratings, most of which do not touch a row.
    small = {"initial_accumulator_value": 1e-8, "epsilon": 1e-9}
    return getattr(tf_dpfp, settings.optimizer)(
        keras.optimizers.schedules.CosineDecay(settings.learning_rate, steps),
        l2_norm_clip=1.0,
        noise_multiplier=tf_dpfp.calibrate_noise_multiplier(
            _EPSILON.value, _DELTA, sampling_rate=_RATE, steps=steps
        ),
        sparse_tables=sparse,
        **(small if settings.optimizer == "DPAdagrad" else {}),
    )


def train(data: movielens.Ratings, settings: Settings, seed: int) -> dict:
    """Trains once, and returns the error on the test ratings."""
    keras.utils.set_random_seed(seed)
    batches = tf_dpfp.poisson_batches(data.x, data.y, sampling_rate=_RATE)
    model = make_model(data.occupations, settings.crossed)
    tf_dpfp.make_private(model)
    model.compile(_optimizer(settings, _EPOCHS * len(batches)), loss="mse")
    started = time.process_time()
    model.fit(batches, epochs=_EPOCHS, verbose=0)
    seconds = time.process_time() - started
    predicted = model.predict(data.x_test, batch_size=4096, verbose=0)
    error = np.clip(predicted[:, 0], 1, 5) - data.y_test
    return {
        **dataclasses.asdict(settings),
        "epsilon": tf_dpfp.compute_epsilon(model, _DELTA),
        "seed": seed,
        "test_rmse": float(np.sqrt(np.mean(error**2))),
        "cpu_s": seconds,
    }


def candidates() -> Iterator[Settings]:
    """Lists the settings that are tried."""
    for crossed in (False, True):
        for rate in (0.01, 0.03, 0.1):
            yield Settings(crossed, "DPAdam", rate)
            yield Settings(crossed, "DPAdagrad", rate)
        tables = ("crossed",) if crossed else ("bias", "vector")
        for threshold, share in itertools.product(
            (-1.0, 0.0, 1.0, 2.0), (0.01, 0.03, 0.1)
        ):
            yield Settings(crossed, "DPAdagrad", 0.1, tables, threshold, share)


def main(argv: list[str]) -> None:
    """Prints one JSON object for each training."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    data = movielens.load()
    if _TUNE.value:
        for settings in candidates():
            json_lines.append(None, train(data.held_out(), settings, seed=0))
        return
    for seed, settings in itertools.product(range(_SEEDS.value), SETTINGS):
        json_lines.append(None, train(data, settings, seed))


if __name__ == "__main__":
    app.run(main)
