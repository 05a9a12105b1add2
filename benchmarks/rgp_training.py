"""One training of `benchmarks.rgp_table` or `benchmarks.carrier_study`."""

import dataclasses
import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tf_dpfp
from benchmarks import rgp_tasks

# Of the text task: the pretrained block stays as it is.
HEAD_ONLY = "head_only"
_CLIPPING = {
    "per_layer": tf_dpfp.PerLayer(),
    "adaptive": tf_dpfp.PerLayer(thresholds=tf_dpfp.clipping.Adaptive()),
}

Arrays = tuple[Any, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Settings:
    """One training; two with the same settings have the same outcome.

    Attributes:
        task: A key of `rgp_tasks.TASKS`.
        method: `flat`, `per_layer`, `adaptive` (per layer), `head_only` or
            `rgp`.
        source: Of the carriers, `None` without.
        rank: Of the carriers, `None` without.
        epsilon: The budget.
        seed: Of weights, batches, noise and carriers.
        epochs: Passes over the data.
        learning_rate: Of Adam.
        l2_norm_clip: Clip norm.
        warmup: Part of the steps before `history` follows the history.
        left_only: Whether one carrier is released.
        kernels_only: Whether biases and scales below the head are frozen.
        held_out: Number of training examples, the last ones, that are tested
            in place of the test set, and not trained with.
    """

    task: str
    method: str
    source: str | None
    rank: int | None
    epsilon: float
    seed: int
    epochs: int
    learning_rate: float
    l2_norm_clip: float
    warmup: float | None
    left_only: bool
    kernels_only: bool
    held_out: int = 0


@dataclasses.dataclass
class Training:
    """A training that is ready to begin or to go on.

    Attributes:
        model: Private and compiled.
        batches: Poisson batches.
        steps: Of the whole training.
        noise_multiplier: What the budget allows for as many.
    """

    model: keras.Model
    batches: tf.data.Dataset
    steps: int
    noise_multiplier: float

    def fit(self, epochs: int) -> None:
        """Trains for a number of epochs more."""
        self.model.fit(self.batches, epochs=epochs, verbose=0)


def split(
    settings: Settings, data: tuple[Arrays, Arrays]
) -> tuple[Arrays, Arrays]:
    """Tells what to train with from what to test.

    Args:
        settings: Of the training.
        data: Of the task: `((x, y), (x_test, y_test))`.

    Returns:
        The same, or two parts of the training examples.
    """
    if not settings.held_out:
        return data
    x, y = data[0]
    count = len(y) - settings.held_out

    def part(where: slice) -> Arrays:
        return keras.tree.map_structure(lambda a: a[where], x), y[where]

    return part(slice(None, count)), part(slice(count, None))


def prepare(
    settings: Settings, train: tuple[Any, np.ndarray], delta: float
) -> Training:
    """Makes a training whose weights, batches and noise the seed decides.

    Args:
        settings: What to train, and how.
        train: Features and labels.
        delta: Of the guarantee.

    Returns:
        The `Training`.
    """
    keras.utils.set_random_seed(settings.seed)
    x, y = train
    batch_size = rgp_tasks.TASKS[settings.task].batch_size
    batches = tf_dpfp.poisson_batches(
        x, y, expected_batch_size=batch_size, seed=settings.seed
    )
    steps = settings.epochs * len(batches)
    noise_multiplier = tf_dpfp.calibrate_noise_multiplier(
        settings.epsilon, delta, batch_size / len(y), steps
    )
    model = _model(settings, steps)
    model.compile(
        tf_dpfp.DPAdam(
            settings.learning_rate,
            l2_norm_clip=settings.l2_norm_clip,
            noise_multiplier=noise_multiplier,
            clipping=_CLIPPING.get(settings.method, "flat"),
            expected_batch_size=batch_size,
            seed=settings.seed,
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return Training(model, batches, steps, noise_multiplier)


def _model(settings: Settings, steps: int) -> keras.Model:
    """The network, marked and with what is to be frozen frozen."""
    model = rgp_tasks.TASKS[settings.task].make_model()
    for layer in model.layers[:-1]:
        layer.trainable = settings.method != HEAD_ONLY
    if settings.kernels_only:
        rgp_tasks.freeze_all_but_kernels(model)
    if settings.rank is not None:
        tf_dpfp.reparametrize(
            model,
            settings.rank,
            exclude=rf"{rgp_tasks.HEAD}$",
            carrier_source=settings.source,
            warmup_steps=math.ceil((settings.warmup or 0.0) * steps),
            left_only=settings.left_only,
            seed=settings.seed,
        )
    return tf_dpfp.make_private(model)
