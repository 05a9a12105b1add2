"""Private fine-tuning of a pretrained text encoder, with everything around it.

`load` computes what is frozen, once, `prepare` builds the model, `run` trains
it, and `report` says what came of it. `examples.trainers.finetune_text` is the
command.
"""

from __future__ import annotations

import dataclasses
import math
import time

import keras
import numpy as np
import tensorflow as tf

import tf_dpfp
from examples.trainers import clippings
from examples.trainers import datasets
from examples.trainers import feature_cache
from examples.trainers import finetune_config
from examples.trainers import finetune_starts
from examples.trainers import text_datasets
from examples.trainers import text_encoders
from tf_dpfp import accounting

_LEARNING_RATES = {
    "head": 1e-2,
    "lora": 2e-3,
    "ffa_lora": 2e-3,
    "full": 5e-4,
    "rgp": 5e-4,
    "bias": 2e-3,
    "prefix": 1e-2,
    "dpfp": 1e-3,
}
_ENCODED_TOGETHER = 128
_OTHER_SEEDS = 2**20
_LENGTH_OF_VECTORS = 1.0  # Of those that are noised.


@dataclasses.dataclass(frozen=True)
class Data:
    """Sentences, as the part of the encoder that is trained takes them.

    Attributes:
        train: Tokens, or what the frozen part made of them; and labels.
        test: The same, to test with.
    """

    train: tuple
    test: tuple


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A model that is ready to train, and its data.

    Attributes:
        config: The settings.
        backbone: The encoder.
        model: From tokens to logits.
        head: Its last layer.
        upper: From the input of `trained` to the input of `head`.
        trained: What `fit` is called on: `model`, or the part of it above
            what is frozen.
        train: Inputs of `trained` and labels.
        batches: What `fit` is given.
        test: The same, to test with.
        steps: Steps of the training.
    """

    config: finetune_config.Config
    backbone: keras.Model
    model: keras.Model
    head: keras.layers.Layer
    upper: keras.Model
    trained: keras.Model
    train: tuple
    batches: tf.data.Dataset
    test: tuple
    steps: int


@dataclasses.dataclass(frozen=True)
class Result:
    """What a training came to.

    Attributes:
        accuracy: On the test set.
        epsilon: Of everything that was released; infinity without privacy.
        statement: The privacy statement.
        trainable: Number of weights that were trained.
        seconds_per_step: Mean over the steps after the first, which is
            traced; not a number if there is one.
    """

    accuracy: float
    epsilon: float
    statement: str
    trainable: int
    seconds_per_step: float


def load(config: finetune_config.Config) -> Data:
    """Loads the data, and runs what is frozen of the encoder over them.

    Args:
        config: The settings. Trainings that have `preset`, `start`, `dataset`,
            `blocks`, `levels`, `sequence_length` and `held_out` in common may
            share what is returned, if none has the method `head` or `dpfp`,
            or all have the same of these.

    Returns:
        The `Data`.

    Raises:
        DatasetUnavailableError: If data or encoder can't be had.
    """
    backbone, preprocessor = text_encoders.load_encoder(config)
    lower, _ = text_encoders.split_encoder(backbone, config)
    return _encoded(config, preprocessor, lower)


def _encoded(
    config: finetune_config.Config,
    preprocessor: keras.layers.Layer,
    lower: keras.Model | None,
) -> Data:
    kept_as = f"text-{config.method}-{config.levels}"

    def vectors(tokens):
        return lower.predict(tokens, _ENCODED_TOGETHER, verbose=0)

    def encoded(texts, labels):
        tokens = text_encoders.tokens_of(preprocessor, texts)
        if lower is None:
            return tokens, labels
        # Each sentence by itself, and nothing of it changes: once is enough.
        if config.method in finetune_config.ON_VECTORS:
            found = feature_cache.features(kept_as, lower, tokens, vectors)
            return found, labels
        states = vectors(tokens)
        states["hidden"] = states["hidden"].astype("float16")
        return states, labels

    train, test = datasets.hold_out(
        text_datasets.load(config.dataset), config.held_out
    )
    return Data(encoded(*train), encoded(*test))


def prepare(
    config: finetune_config.Config, data: Data | None = None
) -> Prepared:
    """Loads the encoder, and builds the model to train.

    Args:
        config: The settings.
        data: What `load` returned, where several trainings share it.

    Returns:
        What `run` takes.

    Raises:
        DatasetUnavailableError: If data or encoder can't be had.
        ValueError: If the encoder does not have so many blocks or levels, or
            the start was trained on the same data.
    """
    finetune_starts.check(config)
    if config.seed is not None:
        keras.utils.set_random_seed(config.seed)
    backbone, preprocessor = text_encoders.load_encoder(config)
    lower, upper = text_encoders.split_encoder(backbone, config)
    if data is None:
        # Of this very encoder: another one takes seconds to build.
        data = _encoded(config, preprocessor, lower)

    def vectors_of(texts):
        tokens = text_encoders.tokens_of(preprocessor, texts)
        return text_encoders.sentence_encoder(backbone, config).predict(
            tokens, verbose=0
        )

    labels = data.train[1]
    head = text_encoders.make_head(
        config, upper.output.shape[-1], int(np.max(labels)) + 1, vectors_of
    )
    text_encoders.choose_weights(config, backbone, lower)
    trained = keras.Model(upper.input, head(upper.output))
    model = trained
    if lower is not None:
        model = keras.Model(backbone.input, trained(lower.output))
    if config.method == "rgp":
        # The few weights of the last layer learn from nothing.
        tf_dpfp.reparametrize(
            trained, config.rank, exclude="logits", warmup_steps=0
        )
    steps = _steps(config.epochs, config, len(labels))
    if config.steps is not None:
        steps = min(steps, config.steps)
    batches = _batches(config, data.train, steps)
    if config.method == "dpfp":
        trained = _with_noise(config, trained, batches)
    _compile(config, trained, len(labels), steps)
    return Prepared(
        config=config,
        backbone=backbone,
        model=model,
        head=head,
        upper=upper,
        trained=trained,
        train=data.train,
        batches=batches,
        test=data.test,
        steps=steps,
    )


def _rate(config: finetune_config.Config, count: int) -> float:
    return min(1.0, config.batch_size / count)


def _steps(epochs: int, config: finetune_config.Config, count: int) -> int:
    return max(1, round(epochs * count / config.batch_size))


def _head_entries(
    config: finetune_config.Config, count: int
) -> list[accounting.LedgerEntry]:
    """What training the head alone, before the rest, will release."""
    if not config.head_epsilon:
        return []
    rate = _rate(config, count)
    steps = _steps(config.head_epochs, config, count)
    noise = tf_dpfp.calibrate_noise_multiplier(
        config.head_epsilon, config.delta, rate, steps
    )
    return [
        accounting.LedgerEntry(accounting.PoissonSampling(rate), noise, steps)
    ]


def _noise_multiplier(
    config: finetune_config.Config, count: int, steps: int
) -> float:
    """The least noise with which everything together keeps to the budget."""
    before = _head_entries(config, count)
    sampling = accounting.PoissonSampling(_rate(config, count))
    return accounting.least_noise(
        lambda noise: [
            *before,
            accounting.LedgerEntry(sampling, noise, steps),
        ],
        config.epsilon,
        config.delta,
    )


def _optimizer(
    config: finetune_config.Config, steps: int, noise: float | None, **settings
) -> keras.optimizers.Optimizer:
    """Adam, private where there is noise."""
    learning_rate = settings.pop("learning_rate", None)
    if learning_rate is None:
        learning_rate = config.learning_rate or _LEARNING_RATES[config.method]
    if config.decay:
        learning_rate = keras.optimizers.schedules.CosineDecay(
            learning_rate, steps
        )
    if noise is None:
        return keras.optimizers.Adam(learning_rate, **settings)
    return tf_dpfp.DPAdam(
        learning_rate,
        l2_norm_clip=config.l2_norm_clip,
        noise_multiplier=noise,
        seed=config.seed,
        **settings,
    )


def _batches(
    config: finetune_config.Config, train: tuple, steps: int
) -> tf.data.Dataset:
    x, y = train
    if config.method == "dpfp":
        return tf_dpfp.representations.stratified_batches(
            x,
            y,
            draw_size=max(1, config.batch_size // config.microbatches),
            draws=config.microbatches,
            labels="public",
            steps_per_epoch=steps,
            seed=config.seed,
        )
    if config.private:
        return tf_dpfp.poisson_batches(
            x,
            y,
            sampling_rate=_rate(config, len(y)),
            steps_per_epoch=steps,
            seed=config.seed,
        )
    # Without privacy, every example in every epoch.
    batches = tf.data.Dataset.from_tensor_slices(train)
    batches = batches.shuffle(len(y), seed=config.seed)
    return batches.batch(min(config.batch_size, len(y))).repeat().take(steps)


def _with_noise(
    config: finetune_config.Config,
    trained: keras.Model,
    batches: tf.data.Dataset,
) -> keras.Model:
    """The same layers, with noise below them."""
    noise = tf_dpfp.DPRepresentationClip(
        _LENGTH_OF_VECTORS,
        tf_dpfp.representations.calibrate_representation(
            batches, epsilon=config.epsilon, delta=config.delta, epochs=1
        ),
        labels="public",
        seed=config.seed,
    )
    inputs = keras.Input(trained.input_shape[1:])
    return keras.Model(inputs, trained(noise(inputs)))


def _compile(
    config: finetune_config.Config, model: keras.Model, count: int, steps: int
):
    settings = {}
    if config.ema:
        settings = {"use_ema": True, "ema_momentum": config.ema}
    noise = None
    if config.private:
        tf_dpfp.make_private(model)
    # Of dpfp the noise is in the model.
    if config.private and config.method != "dpfp":
        noise = _noise_multiplier(config, count, steps)
        settings["clipping"] = clippings.CLIPPINGS[config.clipping]
        if config.method != "head":
            settings["microbatch_size"] = config.microbatch_size
    model.compile(
        optimizer=_optimizer(config, steps, noise, **settings),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )


class _Clock(keras.callbacks.Callback):
    """Notes when each step ended."""

    def __init__(self):
        super().__init__()
        self.ends = []

    def on_train_batch_end(self, batch, logs=None):  # noqa: ARG002
        self.ends.append(time.monotonic())


def run(prepared: Prepared) -> Result:
    """Trains, and writes the results if there is an `output_dir`.

    Args:
        prepared: What `prepare` returned.

    Returns:
        The `Result`.
    """
    config, model = prepared.config, prepared.trained
    clock = _Clock()
    callbacks = [clock]
    if config.private:
        budget = tf_dpfp.PrivacyBudget(config.epsilon, config.delta)
        callbacks = [budget, clock]
    if config.head_epsilon:
        _train_head(prepared)
    model.fit(prepared.batches, shuffle=False, callbacks=callbacks, verbose=0)
    # The first step is traced and tried.
    waits = np.diff(clock.ends)
    x, y = prepared.test
    logits = model.predict(x, batch_size=128, verbose=0)
    spent, statement = math.inf, "Trained without privacy.\n"
    if config.private:
        spent = tf_dpfp.compute_epsilon(model, config.delta)
        statement = tf_dpfp.privacy_statement(model, delta=config.delta)
    if config.output_dir is not None:
        finetune_starts.write(
            config,
            prepared.backbone,
            text_encoders.head_weights(prepared.head),
            statement,
            text_encoders.prefix_of(prepared.upper),
        )
    return Result(
        accuracy=float(np.mean(np.argmax(logits, axis=1) == y)),
        epsilon=spent,
        statement=statement,
        trainable=sum(int(np.prod(v.shape)) for v in model.trainable_variables),
        seconds_per_step=float(np.mean(waits)) if len(waits) else float("nan"),
    )


def _train_head(prepared: Prepared) -> None:
    """Trains the head alone, on the vectors of the encoder as it is.

    Nothing below the head moves, so the vectors are computed once, and a step
    takes milliseconds. What this releases is in the ledger of the whole.
    """
    config, encoder = prepared.config, prepared.upper
    x, y = prepared.train
    vectors = encoder.predict(x, _ENCODED_TOGETHER, verbose=0)
    model = keras.Sequential([keras.Input(vectors.shape[1:]), prepared.head])
    tf_dpfp.make_private(model)
    (entry,) = _head_entries(config, len(y))
    model.compile(
        optimizer=_optimizer(
            config,
            entry.steps,
            entry.noise_multiplier,
            learning_rate=config.head_learning_rate,
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    batches = tf_dpfp.poisson_batches(
        vectors,
        y,
        sampling_rate=entry.sampling.sampling_rate,
        steps_per_epoch=entry.steps,
        # Other draws than those that follow.
        seed=None if config.seed is None else config.seed + _OTHER_SEEDS,
    )
    model.fit(batches, verbose=0)
    prepared.trained.optimizer.absorb_ledger(tf_dpfp.ledger(model))


def report(result: Result, config: finetune_config.Config) -> str:
    """Says what came of a training.

    Args:
        result: What `run` returned.
        config: The settings.

    Returns:
        A few lines.
    """
    return (
        f"{result.statement}\n\n"
        f"{config.method} on {config.dataset}: {result.accuracy:.2%} correct, "
        f"epsilon {result.epsilon:.3f} at delta {config.delta:g}, "
        f"{result.trainable} weights trained, "
        f"{result.seconds_per_step:.2f} s per step."
    )
