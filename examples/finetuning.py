"""Private fine-tuning of a pretrained text encoder, with everything around it.

`load` computes what is frozen, once, `prepare` builds the model, `run` trains
it, and `report` says what came of it. `examples.finetune_text` is the command.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Iterable, Sequence

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

METHODS = ("head", "lora", "full", "rgp", "bias", "dpfp")
# On vectors that the frozen encoder makes once.
_ON_VECTORS = ("head", "dpfp")
_LEARNING_RATES = {
    "head": 1e-2,
    "lora": 2e-3,
    "full": 5e-4,
    "rgp": 5e-4,
    "bias": 2e-3,
    "dpfp": 1e-3,
}
_MINILM = "minilm"
_PROMPTS = "prompts"
_HISTORY = "trained_on.json"
# Of the BERT-type encoders of KerasHub.
_BLOCK = "transformer_layer_{}"
_FROZEN_LEVELS = "frozen_levels"
_ENCODED_TOGETHER = 128
_OTHER_SEEDS = 2**20
_LENGTH_OF_VECTORS = 1.0  # Of those that are noised.


@dataclasses.dataclass(frozen=True)
class Config:
    """What to fine-tune, and how; a flag for each field.

    Attributes:
        preset: `minilm`, or a preset of a BERT-type backbone of KerasHub: a
            folder or a name.
        dataset: What `examples.text_datasets.load` takes.
        start: Folder that an earlier training wrote (`output_dir`), with whose
            encoder and head this one starts; several, with commas between,
            for the means of their weights; `prompts` for the preset's
            encoder, and a head that tells made-up sentences of praise from
            those of blame; `None` for a new head.
        method: `head` (a linear classifier on the frozen encoder), `lora`,
            `full` (everything), `rgp` (everything, through low-rank carriers),
            `bias` (biases, and the scales of norms) or `dpfp` (a linear
            classifier on noised vectors of the frozen encoder; epsilon is then
            for replacing an example).
        blocks: How many of the top blocks are trained. What is below is
            frozen and computed once. `None`: all, and the embeddings.
        levels: Of how many blocks, from the top, the token means are laid side
            by side for the classifier; of trained blocks and of frozen ones.
        rank: Of LoRA, or of the carriers.
        freeze_embeddings: Whether the tables stay as they are; for `full` and
            `rgp`.
        clipping: One of `examples.clippings.CLIPPINGS`.
        epsilon: The budget, from which the noise follows. Infinity trains
            without privacy: ordinary Adam on shuffled batches.
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
        decay: Whether the learning rate falls to 0, along a cosine.
        head_epsilon: A part of the budget, for training the head alone before
            the rest joins in; 0 for none. Such steps are cheap.
        head_epochs: Passes over the data of this training.
        head_learning_rate: Its learning rate.
        ema: Momentum of an average of the weights over the steps, which is
            what is tested and kept; 0 for the last weights.
        sequence_length: Tokens of an example; longer ones are cut.
        seed: Makes a run repeatable, and its noise known to whoever knows the
            seed. `None` for a release.
        output_dir: Where the fine-tuned model and the privacy statement go.
    """

    preset: str = _MINILM
    start: str | None = None
    dataset: str = "movie_reviews"
    method: str = "lora"
    blocks: int | None = None
    levels: int = 1
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
    decay: bool = False
    head_epsilon: float = 0.0
    head_epochs: int = 30
    head_learning_rate: float = 0.03
    ema: float = 0.0
    sequence_length: int = 48
    seed: int | None = None
    output_dir: str | None = None

    def __post_init__(self):
        if self.private:
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
            (
                "rank",
                "levels",
                "batch_size",
                "microbatches",
                "epochs",
                "head_epochs",
                "sequence_length",
            ),
        )
        if self.blocks is not None:
            commands.check_at_least_one(self, ("blocks",))
        if not 0.0 <= self.head_epsilon < self.epsilon:
            raise ValueError(
                "--head_epsilon is a part of --epsilon. Received: "
                f"{self.head_epsilon} of {self.epsilon}."
            )
        if not 0.0 <= self.ema < 1.0:
            raise ValueError(f"--ema is in [0, 1). Received: {self.ema}.")
        commands.check_clip_norm(self)
        if self.method == "dpfp":
            self._check_dpfp()

    def _check_dpfp(self) -> None:
        if not self.public_labels:
            raise ValueError(
                "--method=dpfp protects the texts and not their labels. "
                "Declare the labels public with --public_labels, or choose "
                "another method."
            )
        if not self.private or self.head_epsilon or self.start == _PROMPTS:
            raise ValueError(
                "--method=dpfp trains a new head at a finite --epsilon: leave "
                "out --epsilon=inf, --head_epsilon and --start=prompts, or "
                "choose another method."
            )

    @property
    def private(self) -> bool:
        """Whether there is a budget to keep to."""
        return self.epsilon != math.inf


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

    config: Config
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
    presets = [str(folder / "backbone") for folder in _starts(config.start)]
    # The noise of private training regularises enough.
    encoders = [
        backbone_class.from_preset(name, dropout=0.0)
        for name in presets or [preset]
    ]
    encoders[0].set_weights(_means(e.get_weights() for e in encoders))
    return encoders[0], preprocessor


def _means(weights: Iterable[Sequence]) -> list[np.ndarray]:
    """The mean of every weight over several models of the same kind.

    Reference:
        Wortsman et al., "Model soups: averaging weights of multiple
        fine-tuned models improves accuracy without increasing inference time",
        ICML 2022, arXiv 2203.05482.
    """
    return [np.mean(each, axis=0) for each in zip(*weights, strict=True)]


def _folder(name: str) -> pathlib.Path:
    return pathlib.Path(name).expanduser()


def _starts(start: str | None) -> list[pathlib.Path]:
    """The folders to start from."""
    if start in (None, _PROMPTS):
        return []
    return [_folder(name) for name in start.split(",")]


def _trained_on(start: str | None) -> set[str]:
    """The data sets that a start has seen.

    Raises:
        ValueError: If a folder does not say.
    """
    seen = set()
    for folder in _starts(start):
        path = folder / _HISTORY
        try:
            seen.update(json.loads(path.read_text()))
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(
                "--start must be a folder that an earlier training wrote: what "
                f"it was trained on can't be read from {path} ({error})."
            ) from error
    return seen


def _check_start(config: Config) -> None:
    """Raises if the guarantee would leave out what the start has released."""
    seen = _trained_on(config.start)
    if config.private and config.dataset in seen:
        raise ValueError(
            f"--start={config.start} saw {', '.join(sorted(seen))}: the "
            f"epsilon of a second training on {config.dataset} would leave out "
            "the first. Start from a training on other, public data."
        )


def _head(
    config: Config, features: int, classes: int, vectors_of
) -> keras.layers.Layer:
    """The last layer.

    Args:
        config: The settings.
        features: The length of what it takes.
        classes: How many logits it makes.
        vectors_of: Maps sentences to what it takes.

    Returns:
        The layer, where it is not new with its weights.
    """
    if config.method == "dpfp":
        return _head_above_noise(classes)
    head = keras.layers.Dense(classes, name="logits", dtype="float32")
    if config.start is None:
        return head
    if config.start == _PROMPTS:
        praise = vectors_of(text_datasets.PRAISE).mean(axis=0)
        blame = vectors_of(text_datasets.BLAME).mean(axis=0)
        # The logits differ by 1 and by -1 at the two means.
        direction = 2.0 * (praise - blame) / np.sum(np.square(praise - blame))
        offset = -direction @ (praise + blame) / 2.0
        kernel = np.stack([-direction / 2.0, direction / 2.0], axis=1)
        bias = np.array([-offset / 2.0, offset / 2.0])
    else:
        kernel, bias = _means(
            _saved_head(folder, features) for folder in _starts(config.start)
        )
    head.build((None, features))
    head.set_weights([kernel, bias])
    return head


def _saved_head(folder: pathlib.Path, features: int) -> Sequence[np.ndarray]:
    """Kernel and bias of a head that an earlier training wrote."""
    saved = np.load(folder / "head.npz")
    kernel = saved["kernel"]
    # Levels that it did not look at come before those that it did.
    missing = features - kernel.shape[0]
    return np.pad(kernel, ((missing, 0), (0, 0))), saved["bias"]


def _head_above_noise(classes: int) -> keras.layers.Layer:
    """What is above the encoder where its vectors are noised."""
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


def _tokens(preprocessor, texts: np.ndarray) -> dict[str, np.ndarray]:
    return {
        name: ops.convert_to_numpy(value)
        for name, value in preprocessor(list(texts)).items()
    }


def _sequence(backbone: keras.Model):
    output = backbone.output
    return output["sequence_output"] if isinstance(output, dict) else output


def _sentence(levels: Sequence, mask):
    """Vectors of sentences: the means of levels, side by side."""
    means = [minilm.mean_over_tokens(level, mask) for level in levels]
    return means[0] if len(means) == 1 else ops.concatenate(means, axis=-1)


def _outputs_of_blocks(backbone: keras.Model, first: int, last: int) -> list:
    """What blocks `first` to `last` - 1 make."""
    return [
        backbone.get_layer(_BLOCK.format(number)).output
        for number in range(first, last)
    ]


def _whole(backbone: keras.Model, config: Config) -> keras.Model:
    """The encoder from tokens to sentence vectors."""
    count = _blocks(backbone)
    between = _outputs_of_blocks(backbone, count - config.levels, count - 1)
    vectors = _sentence(
        [*between, _sequence(backbone)], backbone.input["padding_mask"]
    )
    if config.method == "dpfp":
        # Then the clip norm is known without a look at the data.
        vectors = keras.layers.UnitNormalization(dtype="float32")(vectors)
    return keras.Model(backbone.input, vectors)


def _blocks(backbone: keras.Model) -> int:
    return getattr(backbone, "num_layers", 0)


def _split(
    backbone: keras.Model, config: Config
) -> tuple[keras.Model | None, keras.Model]:
    """Cuts an encoder into what stays frozen and what is trained.

    Args:
        backbone: The encoder.
        config: The settings.

    Returns:
        The lower part, from tokens to what the upper part takes (`None` if
        there is none), and the upper part, from there to sentence vectors.

    Raises:
        ValueError: If the encoder does not have so many blocks or levels.
    """
    count = _blocks(backbone)
    for name, most in (("blocks", count), ("levels", count or 1)):
        if (getattr(config, name) or 1) > most:
            raise ValueError(
                f"--{name} must be at most {most}, for '{config.preset}' has "
                f"{count} blocks. Received: {getattr(config, name)}."
            )
    whole = _whole(backbone, config)
    if config.method in _ON_VECTORS:
        sentence = keras.Input(whole.output.shape[1:], name="sentence")
        same = keras.layers.Identity()(sentence)
        return whole, keras.Model(sentence, same)
    if config.blocks is None:
        return None, whole
    mask = backbone.input["padding_mask"]
    blocks = [
        backbone.get_layer(_BLOCK.format(number))
        for number in range(count - config.blocks, count)
    ]
    below, *_ = keras.tree.flatten(blocks[0].input)
    states = {"hidden": below, "padding_mask": mask}
    frozen = _outputs_of_blocks(
        backbone, count - config.levels, count - config.blocks - 1
    )
    if frozen:
        states[_FROZEN_LEVELS] = _sentence(frozen, mask)
    lower = keras.Model(backbone.input, states)
    inputs = {
        name: keras.Input(state.shape[1:], dtype=state.dtype, name=name)
        for name, state in states.items()
    }
    levels = [inputs["hidden"]]
    for block in blocks:
        levels.append(block(levels[-1], padding_mask=inputs["padding_mask"]))
    vectors = _sentence(levels[-config.levels :], inputs["padding_mask"])
    if frozen:
        vectors = ops.concatenate([inputs[_FROZEN_LEVELS], vectors], axis=-1)
    return lower, keras.Model(inputs, vectors)


def _choose_weights(
    config: Config,
    backbone: keras.Model,
    lower: keras.Model | None,
) -> None:
    """Freezes, or adds to, the encoder as the method says."""
    if config.method == "lora":
        # Freezes what it adds to, and whatever else there is.
        backbone.enable_lora(config.rank)
    elif config.method == "bias":
        for variable in backbone.trainable_variables:
            if len(variable.shape) > 1 and "bias" not in variable.path:
                variable.trainable = False
    if config.freeze_embeddings:
        for layer in backbone.layers:
            if "embedding" in layer.name:
                layer.trainable = False
    if lower is not None:
        lower.trainable = False


def load(config: Config) -> Data:
    """Loads the data, and runs what is frozen of the encoder over them.

    Args:
        config: The settings. Trainings that have `preset`, `start`, `dataset`,
            `blocks`, `levels` and `sequence_length` in common may share what
            is returned, if none has the method `head` or `dpfp`, or all have
            the same of these.

    Returns:
        The `Data`.

    Raises:
        DatasetUnavailableError: If data or encoder can't be had.
    """
    backbone, preprocessor = _encoder(config)
    lower, _ = _split(backbone, config)

    def encoded(texts, labels):
        tokens = _tokens(preprocessor, texts)
        if lower is None:
            return tokens, labels
        # Each sentence by itself, and nothing of it changes: once is enough.
        states = lower.predict(tokens, _ENCODED_TOGETHER, verbose=0)
        if config.method not in _ON_VECTORS:
            states["hidden"] = states["hidden"].astype("float16")
        return states, labels

    train, test = text_datasets.load(config.dataset)
    return Data(encoded(*train), encoded(*test))


def prepare(config: Config, data: Data | None = None) -> Prepared:
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
    _check_start(config)
    data = load(config) if data is None else data
    if config.seed is not None:
        keras.utils.set_random_seed(config.seed)
    backbone, preprocessor = _encoder(config)
    lower, upper = _split(backbone, config)

    def vectors_of(texts):
        tokens = _tokens(preprocessor, texts)
        return _whole(backbone, config).predict(tokens, verbose=0)

    labels = data.train[1]
    head = _head(
        config, upper.output.shape[-1], int(np.max(labels)) + 1, vectors_of
    )
    _choose_weights(config, backbone, lower)
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


def _rate(config: Config, count: int) -> float:
    return min(1.0, config.batch_size / count)


def _steps(epochs: int, config: Config, count: int) -> int:
    return max(1, round(epochs * count / config.batch_size))


def _head_entries(config: Config, count: int) -> list[accounting.LedgerEntry]:
    """What training the head alone, before the rest, will release."""
    if not config.head_epsilon:
        return []
    rate = _rate(config, count)
    steps = _steps(config.head_epochs, config, count)
    noise = tf_dpfp.calibrate(config.head_epsilon, config.delta, rate, steps)
    return [
        accounting.LedgerEntry(accounting.PoissonSampling(rate), noise, steps)
    ]


def _noise_multiplier(config: Config, count: int, steps: int) -> float:
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
    config: Config, steps: int, noise: float | None, **settings
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


def _batches(config: Config, train: tuple, steps: int) -> tf.data.Dataset:
    x, y = train
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


def _compile(config: Config, model: keras.Model, count: int, steps: int):
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
        spent = tf_dpfp.epsilon(model, config.delta)
        statement = tf_dpfp.privacy_statement(model, delta=config.delta)
    if config.output_dir is not None:
        _write(prepared, statement)
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


def _write(prepared: Prepared, statement: str) -> None:
    """Leaves what needs no tf_dpfp to be loaded: a preset, and a head."""
    folder = _folder(prepared.config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    prepared.backbone.save_to_preset(str(folder / "backbone"))
    kernel, bias = _head_weights(prepared.head)
    np.savez(folder / "head.npz", kernel=kernel, bias=bias)
    (folder / "privacy_statement.txt").write_text(statement)
    seen = _trained_on(prepared.config.start) | {prepared.config.dataset}
    (folder / _HISTORY).write_text(json.dumps(sorted(seen)))


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
