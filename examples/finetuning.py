"""Private fine-tuning of a pretrained text encoder, with everything around it.

`prepare` loads data and encoder and builds the model, `run` trains it, and
`report` says what came of it. `examples.finetune_text` is the command.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time

import keras
import numpy as np
import tensorflow as tf
from keras import ops

import tf_dpfp
from examples import clippings
from examples import commands
from examples import minilm
from examples import text_datasets
from tf_dpfp import accounting

METHODS = ("head", "lora", "full", "rgp", "dpfp")
# On vectors that the frozen encoder makes once.
_ON_VECTORS = ("head", "dpfp")
_LEARNING_RATES = {
    "head": 1e-2,
    "lora": 2e-3,
    "full": 5e-4,
    "rgp": 5e-4,
    "dpfp": 1e-3,
}
_MINILM = "minilm"
_LENGTH_OF_VECTORS = 1.0  # Of those that are noised.


@dataclasses.dataclass(frozen=True)
class Config:
    """What to fine-tune, and how; a flag for each field.

    Attributes:
        preset: `minilm`, or a preset of a BERT-type backbone of KerasHub: a
            folder or a name.
        dataset: What `examples.text_datasets.load` takes.
        method: `head` (a linear classifier on the frozen encoder), `lora`,
            `full` (everything), `rgp` (everything, through low-rank
            carriers) or `dpfp` (a linear classifier on noised vectors of the
            frozen encoder; epsilon is then for replacing an example).
        rank: Of LoRA, or of the carriers.
        freeze_embeddings: Whether the tables stay as they are; for `full` and
            `rgp`.
        clipping: One of `examples.clippings.CLIPPINGS`.
        epsilon: The budget, from which the noise follows.
        delta: Probability with which the guarantee may fail.
        l2_norm_clip: Clip norm of one example's gradient.
        batch_size: Expected number of examples of a Poisson batch.
        microbatch_size: Physical batch, to bound memory; it changes no result.
        microbatches: Draws that a batch is made of; for `dpfp`.
        public_labels: Declares that the labels may be known to anyone; `dpfp`
            does not protect them.
        epochs: Passes over the data, as expected.
        steps: Stops earlier; the noise is then that of so many steps.
        learning_rate: Of Adam; `None` for the method's default.
        sequence_length: Tokens of an example; longer ones are cut.
        seed: Makes a run repeatable, and its noise known to whoever knows the
            seed. `None` for a release.
        output_dir: Where the fine-tuned model and the privacy statement go.
    """

    preset: str = _MINILM
    dataset: str = "movie_reviews"
    method: str = "lora"
    rank: int = 8
    freeze_embeddings: bool = False
    clipping: str = "flat"
    epsilon: float = 3.0
    delta: float = 1e-5
    l2_norm_clip: float = 0.1
    batch_size: int = 1000
    microbatch_size: int | None = 64
    microbatches: int = 64
    public_labels: bool = False
    epochs: int = 5
    steps: int | None = None
    learning_rate: float | None = None
    sequence_length: int = 48
    seed: int | None = None
    output_dir: str | None = None

    def __post_init__(self):
        accounting.check_epsilon(self.epsilon)
        accounting.check_delta(self.delta, "rdp")
        choices = {
            "method": METHODS,
            "clipping": clippings.CLIPPINGS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"--{name} is one of {', '.join(allowed)}. Received: "
                    f"{getattr(self, name)!r}."
                )
        text_datasets.check_name(self.dataset)
        commands.check_at_least_one(
            self,
            ("rank", "batch_size", "microbatches", "epochs", "sequence_length"),
        )
        commands.check_clip_norm(self)
        if self.method == "dpfp" and not self.public_labels:
            raise ValueError(
                "--method=dpfp protects the texts and not their labels. "
                "Declare the labels public with --public_labels, or choose "
                "another method."
            )


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A model that is ready to train, and its data.

    Attributes:
        config: The settings.
        backbone: The encoder.
        model: From tokens to logits.
        trained: What `fit` is called on: `model`, or for `head` and `dpfp`
            what is above the encoder, on vectors that it made once.
        batches: What `fit` is given.
        test: Inputs of `trained` and labels, to test with.
        steps: Steps of the training.
    """

    config: Config
    backbone: keras.Model
    model: keras.Model
    trained: keras.Model
    batches: tf.data.Dataset
    test: tuple
    steps: int


@dataclasses.dataclass(frozen=True)
class Result:
    """What a training came to.

    Attributes:
        accuracy: On the test set.
        epsilon: Of everything that was released.
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


def _encoder(config: Config) -> tuple[keras.Model, keras.layers.Layer]:
    """The backbone, without dropout, and the preprocessor of its tokens."""
    import keras_hub

    preset = config.preset
    if preset == _MINILM:
        preset = str(minilm.folder())
        backbone_class = keras_hub.models.BertBackbone
        preprocessor = keras_hub.models.BertTextClassifierPreprocessor(
            keras_hub.models.BertTokenizer.from_preset(preset),
            sequence_length=config.sequence_length,
        )
    else:
        backbone_class = keras_hub.models.Backbone
        preprocessor = keras_hub.models.TextClassifierPreprocessor.from_preset(
            preset, sequence_length=config.sequence_length
        )
    # The noise of private training regularises enough.
    return backbone_class.from_preset(preset, dropout=0.0), preprocessor


def _tokens(preprocessor, texts: np.ndarray) -> dict[str, np.ndarray]:
    return {
        name: ops.convert_to_numpy(value)
        for name, value in preprocessor(list(texts)).items()
    }


def _sequence(backbone: keras.Model):
    output = backbone.output
    return output["sequence_output"] if isinstance(output, dict) else output


def _choose_weights(config: Config, backbone: keras.Model) -> None:
    """Freezes, or adds to, the encoder as the method says."""
    if config.method in _ON_VECTORS:
        backbone.trainable = False
    elif config.method == "lora":
        backbone.enable_lora(config.rank)
    elif config.freeze_embeddings:
        for layer in backbone.layers:
            if "embedding" in layer.name:
                layer.trainable = False


def prepare(config: Config) -> Prepared:
    """Loads data and encoder, and builds the private model.

    Args:
        config: The settings.

    Returns:
        What `run` takes.

    Raises:
        DatasetUnavailableError: If data or encoder can't be had.
    """
    if config.seed is not None:
        keras.utils.set_random_seed(config.seed)
    (train, train_labels), (test, test_labels) = text_datasets.load(
        config.dataset
    )
    backbone, preprocessor = _encoder(config)
    _choose_weights(config, backbone)
    vectors = minilm.mean_over_tokens(
        _sequence(backbone), backbone.input["padding_mask"]
    )
    if config.method == "dpfp":
        # Then the clip norm is known without a look at the data.
        vectors = keras.layers.UnitNormalization(dtype="float32")(vectors)
    head = _head(config, int(np.max(train_labels)) + 1)
    model = keras.Model(backbone.input, head(vectors))
    train, test = _tokens(preprocessor, train), _tokens(preprocessor, test)
    trained = model
    if config.method in _ON_VECTORS:
        # The frozen encoder sees each sentence by itself: once is enough.
        encoder = keras.Model(backbone.input, vectors)
        train, test = (encoder.predict(x, verbose=0) for x in (train, test))
        trained = keras.Sequential([keras.Input(train.shape[1:]), head])
    if config.method == "rgp":
        # The few weights of the last layer learn from nothing.
        tf_dpfp.reparametrize(
            trained, config.rank, exclude="logits", warmup_steps=0
        )
    count = len(train_labels)
    steps = max(1, round(config.epochs * count / config.batch_size))
    if config.steps is not None:
        steps = min(steps, config.steps)
    batches = _batches(config, train, train_labels, steps)
    if config.method == "dpfp":
        trained = _with_noise(config, trained, batches)
        optimizer = keras.optimizers.Adam(_learning_rate(config))
    else:
        rate = min(1.0, config.batch_size / count)
        optimizer = _private_optimizer(config, rate, steps)
    tf_dpfp.make_private(trained)
    trained.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return Prepared(
        config=config,
        backbone=backbone,
        model=model,
        trained=trained,
        batches=batches,
        test=(test, test_labels),
        steps=steps,
    )


def _head(config: Config, classes: int) -> keras.layers.Layer:
    """What is above the encoder."""
    if config.method != "dpfp":
        return keras.layers.Dense(classes, name="logits", dtype="float32")
    # Above the noise, a layer may look at the whole batch. The logits of so
    # noisy vectors are smaller than any offset: that of the vectors is taken
    # off first, and there is none behind.
    return keras.Sequential(
        [
            keras.layers.BatchNormalization(
                momentum=0.95, center=False, scale=False, dtype="float32"
            ),
            keras.layers.Dense(
                classes,
                use_bias=False,
                kernel_initializer="zeros",
                name="logits",
                dtype="float32",
            ),
        ],
        name="head",
    )


def _batches(config: Config, x, y: np.ndarray, steps: int) -> tf.data.Dataset:
    if config.method == "dpfp":
        return tf_dpfp.microbatch_sampler(
            x,
            y,
            microbatch_size=max(1, config.batch_size // config.microbatches),
            microbatches=config.microbatches,
            labels="public",
            steps_per_epoch=steps,
            seed=config.seed,
        )
    return tf_dpfp.poisson_batches(
        x,
        y,
        sampling_rate=min(1.0, config.batch_size / len(y)),
        steps_per_epoch=steps,
        seed=config.seed,
    )


def _with_noise(
    config: Config, trained: keras.Model, batches: tf.data.Dataset
) -> keras.Model:
    """The same layers, with noise below them."""
    noise = tf_dpfp.DPRepresentationClip(
        _LENGTH_OF_VECTORS,
        tf_dpfp.calibrate_representation(
            batches, epsilon=config.epsilon, delta=config.delta, epochs=1
        ),
        labels="public",
        seed=config.seed,
    )
    inputs = keras.Input(trained.input_shape[1:])
    return keras.Model(inputs, trained(noise(inputs)))


def _learning_rate(config: Config) -> float:
    return config.learning_rate or _LEARNING_RATES[config.method]


def _private_optimizer(config: Config, rate: float, steps: int):
    noise = tf_dpfp.calibrate(config.epsilon, config.delta, rate, steps)
    microbatch_size = config.microbatch_size
    return tf_dpfp.DPAdam(
        _learning_rate(config),
        l2_norm_clip=config.l2_norm_clip,
        noise_multiplier=noise,
        clipping=clippings.CLIPPINGS[config.clipping],
        microbatch_size=None if config.method == "head" else microbatch_size,
        seed=config.seed,
    )


class _Clock(keras.callbacks.Callback):
    """Notes when each step ended."""

    def __init__(self):
        super().__init__()
        self.ends = []

    def on_train_batch_end(self, batch, logs=None):
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
    model.fit(
        prepared.batches,
        callbacks=[
            tf_dpfp.PrivacyBudget(config.epsilon, config.delta),
            clock,
        ],
        verbose=0,
    )
    # The first step is traced and tried.
    waits = np.diff(clock.ends)
    x, y = prepared.test
    logits = model.predict(x, batch_size=128, verbose=0)
    statement = tf_dpfp.privacy_statement(model, delta=config.delta)
    if config.output_dir is not None:
        _write(prepared, statement)
    return Result(
        accuracy=float(np.mean(np.argmax(logits, axis=1) == y)),
        epsilon=tf_dpfp.epsilon(model, config.delta),
        statement=statement,
        trainable=sum(int(np.prod(v.shape)) for v in model.trainable_variables),
        seconds_per_step=float(np.mean(waits)) if len(waits) else float("nan"),
    )


def _write(prepared: Prepared, statement: str) -> None:
    """Leaves what needs no tf_dpfp to be loaded: a preset, and a head."""
    folder = pathlib.Path(prepared.config.output_dir).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    prepared.backbone.save_to_preset(str(folder / "backbone"))
    kernel, bias = _head_weights(prepared.model.layers[-1])
    np.savez(folder / "head.npz", kernel=kernel, bias=bias)
    (folder / "privacy_statement.txt").write_text(statement)


def _head_weights(head: keras.layers.Layer) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias from vectors to logits."""
    if isinstance(head, keras.layers.Dense):
        return tuple(head.get_weights())
    norm, dense = head.layers
    (kernel,) = dense.get_weights()
    mean, variance = norm.get_weights()
    kernel /= np.sqrt(variance + norm.epsilon)[:, None]
    return kernel, -mean @ kernel


def report(result: Result, config: Config) -> str:
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
