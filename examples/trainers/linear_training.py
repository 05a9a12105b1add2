"""A private training of a linear model, with everything around it.

`load` makes features that look at no private data, `train` trains, and writes
the results; `report` says what came of it. `examples.trainers.train_linear` is
the command.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib

import keras
import numpy as np
import tensorflow as tf

import tf_dpfp
from examples.trainers import census
from examples.trainers import commands
from examples.trainers import datasets
from examples.trainers import encoded_texts
from examples.trainers import hashed_words
from examples.trainers import text_datasets
from tf_dpfp import accounting

ADULT = "adult"
DATASETS = (ADULT, *text_datasets.LOADERS)
_PUBLIC = "public_snippets"
_PUBLIC_TEXTS = 1000  # So many are enough for a mean.
_ORDINARY = "Trained without privacy.\n"


@dataclasses.dataclass(frozen=True)
class Config:
    """How to train; a flag for each field.

    Attributes:
        dataset: `adult`, or a key of `text_datasets.LOADERS`.
        places: Length of the vectors of words that texts are turned into; 0
            for none beside an `encoder`.
        encoder: A key of `encoded_texts.ENCODERS`: texts are turned into
            vectors of this frozen public encoder, too. `None` for none.
        levels: Of how many of its blocks, from the top.
        sequence_length: Tokens that it reads at once.
        windows: How often it reads so many, in a long text.
        rare_words: Whether words weigh more, the rarer they are in public
            texts: `text_datasets.load_public_snippets`.
        epsilon: The budget, from which the noise follows. Infinity trains
            without privacy, on shuffled batches.
        delta: Probability with which the guarantee may fail.
        l2_norm_clip: Clip norm of one example's gradient.
        batch_size: Expected number of examples of a Poisson batch.
        epochs: Passes over the data, as expected.
        learning_rate: Of SGD.
        momentum: Of SGD.
        weight_averaging: Decay of the averages of the weights, which are
            tested and saved in their place. `None` for none.
        held_out: Number of training examples to test on, in place of the test
            set, and not to train with; for choosing settings.
        seed: Makes a run repeatable, and its noise known to whoever knows the
            seed. `None` for a release.
        output_dir: Where the model and the privacy statement go.
    """

    dataset: str = ADULT
    places: int = 2048
    encoder: str | None = None
    levels: int = 4
    sequence_length: int = 48
    windows: int = 1
    rare_words: bool = False
    epsilon: float = 3.0
    delta: float = 1e-5
    l2_norm_clip: float = 0.5
    batch_size: int = 4096
    epochs: int = 60
    learning_rate: float = 16.0
    momentum: float = 0.9
    weight_averaging: float | None = 0.98
    held_out: int = 0
    seed: int | None = None
    output_dir: str | None = None

    def __post_init__(self):
        if self.private:
            accounting.check_epsilon(self.epsilon)
        accounting.check_delta(self.delta, "rdp")
        counts = ("batch_size", "epochs", "levels", "sequence_length")
        commands.check_at_least_one(self, (*counts, "windows"))
        self._check_features()
        commands.check_clip_norm(self)
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(
                "--momentum must be at least 0 and below 1. Received: "
                f"{self.momentum:g}."
            )
        if self.dataset not in DATASETS:
            raise ValueError(
                f"--dataset is one of {', '.join(DATASETS)}. Received: "
                f"{self.dataset!r}."
            )

    def _check_features(self) -> None:
        if self.encoder is None:
            commands.check_at_least_one(self, ("places",))
        elif self.encoder not in encoded_texts.ENCODERS:
            raise ValueError(
                f"--encoder is one of {', '.join(encoded_texts.ENCODERS)}. "
                f"Received: {self.encoder!r}."
            )
        if self.places < 0:
            raise ValueError(
                f"--places must be at least 0. Received: {self.places}."
            )
        if self.dataset not in (ADULT, _PUBLIC):
            return
        if self.rare_words:
            raise ValueError(
                "--rare_words are those of texts, and not of the public ones "
                f"themselves. Received: --dataset={self.dataset}."
            )
        if self.encoder is not None:
            raise ValueError(
                "--encoder reads texts, and not the public ones, whose mean "
                f"it takes off. Received: --dataset={self.dataset}."
            )

    @property
    def private(self) -> bool:
        """Whether there is a budget to keep to."""
        return self.epsilon != math.inf


@dataclasses.dataclass(frozen=True)
class Result:
    """What a training came to.

    Attributes:
        accuracy: On the examples to test with.
        epsilon: Of everything that was released; infinity without privacy.
        statement: The privacy statement.
        model: What was trained.
    """

    accuracy: float
    epsilon: float
    statement: str
    model: keras.Model


def load(config: Config) -> datasets.Dataset:
    """Loads the data, as features.

    Args:
        config: The settings.

    Returns:
        `((x, y), (x, y))`, to train with and to test with.

    Raises:
        ValueError: If so many examples can't be held out.
        DatasetUnavailableError: If the data can't be had.
    """
    if config.dataset == ADULT:
        return datasets.hold_out(census.load(), config.held_out)
    public = np.array([], dtype=object)
    if config.rare_words or config.encoder is not None:
        (public, _), _ = text_datasets.load(_PUBLIC)
    train, test = (
        (_text_features(config, texts, public), labels)
        for texts, labels in text_datasets.load(config.dataset)
    )
    # Only now: an encoder reads all texts once, whatever is held out.
    return datasets.hold_out((train, test), config.held_out)


def _text_features(
    config: Config, texts: np.ndarray, public: np.ndarray
) -> np.ndarray:
    """Words, vectors of an encoder, or both side by side."""
    found = []
    if config.places:
        options = {}
        if config.rare_words:
            options["weight"] = hashed_words.rarity(public)
        found.append(hashed_words.encode(texts, config.places, **options))
    if config.encoder is not None:
        vectors, middle = (
            encoded_texts.encode(
                some,
                config.encoder,
                config.levels,
                config.sequence_length,
                config.windows,
            )
            for some in (texts, public[:_PUBLIC_TEXTS])
        )
        found.append(encoded_texts.scaled(vectors, middle))
    # Together as long as either.
    return np.concatenate(found, axis=1) * np.float32(len(found) ** -0.5)


def train(config: Config) -> Result:
    """Trains, and writes the results if there is an `output_dir`.

    Args:
        config: The settings.

    Returns:
        The `Result`.

    Raises:
        ValueError: If the settings do not fit the data.
        DatasetUnavailableError: If the data can't be had.
    """
    (x, y), (x_test, y_test) = load(config)
    if config.seed is not None:
        keras.utils.set_random_seed(config.seed)
    batches = _batches(config, x, y)
    model = keras.Sequential(
        [keras.Input(x.shape[1:]), keras.layers.Dense(1 + int(y.max()))]
    )
    if config.private:
        tf_dpfp.make_private(model)
    model.compile(
        optimizer=_optimizer(config, len(x), len(batches)),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(
        batches, epochs=config.epochs, callbacks=_callbacks(config), verbose=0
    )
    logits = model.predict(x_test, batch_size=2048, verbose=0)
    spent, statement = math.inf, _ORDINARY
    if config.private:
        spent = tf_dpfp.compute_epsilon(model, config.delta)
        statement = tf_dpfp.privacy_statement(model, delta=config.delta)
    if config.output_dir is not None:
        folder = pathlib.Path(config.output_dir).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        _ordinary_copy(model).save(folder / "model.keras")
        (folder / "privacy_statement.txt").write_text(statement)
    accuracy = float(np.mean(np.argmax(logits, axis=1) == y_test))
    return Result(accuracy, spent, statement, model)


def report(result: Result, config: Config) -> str:
    """Says what a training came to.

    Args:
        result: What `train` returned.
        config: The settings.

    Returns:
        A few lines.
    """
    return (
        f"{result.statement}\n\n"
        f"{config.dataset}: {result.accuracy:.2%} correct, "
        f"epsilon {result.epsilon:.3f} at delta {config.delta:g}."
    )


def _batches(config: Config, x: np.ndarray, y: np.ndarray) -> tf.data.Dataset:
    if config.private:
        return tf_dpfp.poisson_batches(
            x, y, expected_batch_size=config.batch_size, seed=config.seed
        )
    batches = tf.data.Dataset.from_tensor_slices((x, y))
    batches = batches.shuffle(len(y), seed=config.seed)
    return batches.batch(config.batch_size)


def _optimizer(
    config: Config, count: int, steps_per_epoch: int
) -> keras.optimizers.Optimizer:
    """SGD, private where there is a budget."""
    settings = (config.learning_rate, config.momentum)
    if not config.private:
        return keras.optimizers.SGD(*settings)
    return tf_dpfp.DPSGD(
        *settings,
        l2_norm_clip=config.l2_norm_clip,
        noise_multiplier=tf_dpfp.calibrate_noise_multiplier(
            config.epsilon,
            config.delta,
            config.batch_size / count,
            config.epochs * steps_per_epoch,
        ),
        seed=config.seed,
    )


def _callbacks(config: Config) -> list[keras.callbacks.Callback]:
    found: list[keras.callbacks.Callback] = []
    if config.private:
        found.append(tf_dpfp.PrivacyBudget(config.epsilon, config.delta))
    if config.weight_averaging is not None:
        found.append(tf_dpfp.recipes.WeightAveraging(config.weight_averaging))
    return found


def _ordinary_copy(model: keras.Model) -> keras.Model:
    """The same model, not compiled: its file needs Keras alone."""
    copy = keras.Sequential.from_config(model.get_config())
    copy.set_weights(model.get_weights())
    return copy
