"""Compares sparse tables with dense noise on MovieLens 100k, at one epsilon.

    python -m benchmarks.sparse_recommender
    python -m benchmarks.sparse_recommender --tune_sparse

The recommender of `benchmarks.persons_study`, private by rating: epsilon 3 at
delta 1e-5, 20 epochs. The two tables of movies are released where they are
touched, or with noise on every row, as all other weights are. Learning rates,
and for sparse tables the threshold and the share of the counts, are chosen on
a tenth of the training ratings (`--tune_sparse`). One JSON object for each
training.
"""

import dataclasses
import itertools
import time
from collections.abc import Iterator

import keras
import numpy as np
from absl import app
from absl import flags

import tf_dpfp
from benchmarks import json_lines
from benchmarks import persons_study
from examples.trainers import movielens

_SEEDS = flags.DEFINE_integer("sparse_seeds", 3, "Trainings of each kind.")
_TUNE = flags.DEFINE_boolean("tune_sparse", False, "Try settings.")
_EPSILON = flags.DEFINE_float("epsilon", 3.0, "Epsilon of a rating.")
_DELTA, _EPOCHS, _RATE = 1e-5, 20, 0.2
_TABLES = ("bias", "vector")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a training is made with.

    Attributes:
        optimizer: Name of the private optimizer.
        learning_rate: Its first learning rate.
        clip_norm: Bound on the gradient of a rating.
        threshold: That of sparse tables; `None` for noise on every row.
        contribution_share: Share of the counts in the budget.
    """

    optimizer: str
    learning_rate: float
    clip_norm: float = 1.0
    threshold: float | None = None
    contribution_share: float = 0.1


# Chosen with --tune_sparse.
SETTINGS = (
    Settings("DPAdam", 0.03),
    Settings("DPAdagrad", 0.1),
    Settings("DPAdagrad", 0.1, threshold=1.0),
)


def train(data: movielens.Ratings, settings: Settings, seed: int) -> dict:
    """Trains once, and returns the error on the test ratings."""
    keras.utils.set_random_seed(seed)
    batches = tf_dpfp.poisson_batches(data.x, data.y, sampling_rate=_RATE)
    steps = _EPOCHS * len(batches)
    sparse = None
    if settings.threshold is not None:
        sparse = tf_dpfp.Sparse(
            _TABLES,
            threshold=settings.threshold,
            contribution_share=settings.contribution_share,
        )
    model = persons_study.make_model(data.occupations)
    tf_dpfp.make_private(model)
    model.compile(
        getattr(tf_dpfp, settings.optimizer)(
            keras.optimizers.schedules.CosineDecay(
                settings.learning_rate, steps
            ),
            l2_norm_clip=settings.clip_norm,
            noise_multiplier=tf_dpfp.calibrate_noise_multiplier(
                _EPSILON.value, _DELTA, sampling_rate=_RATE, steps=steps
            ),
            sparse_tables=sparse,
        ),
        loss="mse",
    )
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
    for rate in (0.01, 0.03, 0.1):
        yield Settings("DPAdam", rate)
    for rate in (0.1, 0.3, 1.0):
        yield Settings("DPAdagrad", rate)
    for rate, threshold, share in itertools.product(
        (0.1, 0.3, 1.0), (0.5, 1.5), (0.02, 0.1)
    ):
        yield Settings("DPAdagrad", rate, 1.0, threshold, share)


def main(argv: list[str]) -> None:
    """Prints one JSON object for each training."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    data = movielens.load()
    if _TUNE.value:
        for settings in candidates():
            row = train(data.held_out(), settings, seed=0)
            json_lines.append(None, row)
        return
    for settings, seed in itertools.product(SETTINGS, range(_SEEDS.value)):
        json_lines.append(None, train(data, settings, seed))


if __name__ == "__main__":
    app.run(main)
