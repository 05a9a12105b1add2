"""A private training of an image classifier, with everything around it.

`prepare` loads the data, builds the model and finds the last checkpoint; `run`
trains and writes the results; `report` says what came of it.
`examples.trainers.train` is the command.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import sys
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

import tf_dpfp
from examples.trainers import augmentation
from examples.trainers import checkpoints
from examples.trainers import clippings
from examples.trainers import commands
from examples.trainers import datasets
from examples.trainers import models
from examples.trainers import plots
from tf_dpfp import accounting
from tf_dpfp import distribute

_EVALUATION_BATCH_SIZE = 2048
_SETTINGS = "settings.json"

OPTIMIZERS = {
    "sgd": tf_dpfp.DPSGD,
    "adam": tf_dpfp.DPAdam,
    "adamw": tf_dpfp.DPAdamW,
    "adagrad": tf_dpfp.DPAdagrad,
    "rmsprop": tf_dpfp.DPRMSprop,
    "lion": tf_dpfp.DPLion,
}
_LEARNING_RATES = {"adagrad": 1e-2, "lion": 1e-4}
DEFAULT_EPSILON = 2.93


@dataclasses.dataclass(frozen=True)
class Config:
    """What to train, and how; a flag for each field.

    Attributes:
        dataset: `mnist`, `fashion_mnist` or `tfds:NAME`.
        model: One of `examples.trainers.models.NAMES`.
        clipping: One of `clippings.CLIPPINGS`: `flat`, or by layer with
            fixed (`per_layer`), `adaptive` or `automatic` thresholds.
        epsilon: The budget, from which the noise follows. `None` for 2.93,
            unless `noise_multiplier` is given.
        delta: Probability with which the guarantee may fail.
        noise_multiplier: The noise, from which epsilon follows.
        accountant: `rdp`, or `pld` for less noise at the same epsilon.
        l2_norm_clip: Clip norm of one example's gradient.
        batch_size: Expected number of examples of a Poisson batch. `None`, here
            and below, for what `models.RECIPES` has for the model.
        microbatch_size: Physical batch, to bound memory; it changes no result.
        multiplicity: Number of augmented views of each example, whose mean
            gradient is clipped.
        weight_averaging: Decay of the averages of the weights, which are
            evaluated and saved in their place. 0 for none.
        epochs: Passes over the data, as expected.
        learning_rate: `None` for the optimizer's default: for SGD the step of
            the recipe over `l2_norm_clip`, times one less `momentum`.
        optimizer: A private optimizer by the name of its base.
        momentum: Momentum of SGD.
        seed: Makes a run repeatable, and its noise known to whoever knows the
            seed. `None` for a release.
        strategy: One of `tf_dpfp.distribute.STRATEGIES`; it changes no result.
        num_logical_cpus: Into how many devices to split the CPU.
        tpu: Name or address of a TPU.
        held_out: Number of training examples to test on, in place of the test
            set, and not to train with; for choosing settings.
        output_dir: Where everything goes. `None` for a folder under `runs/`
            that belongs to these settings.
    """

    dataset: str = "mnist"
    model: str = "linear_scattering"
    clipping: str = "flat"
    epsilon: float | None = None
    delta: float = 1e-5
    noise_multiplier: float | None = None
    accountant: str = "rdp"
    l2_norm_clip: float = 0.1
    batch_size: int | None = None
    microbatch_size: int | None = None
    multiplicity: int = 1
    weight_averaging: float | None = None
    epochs: int | None = None
    learning_rate: float | None = None
    optimizer: str = "sgd"
    momentum: float | None = None
    seed: int | None = None
    strategy: str = "one_device"
    num_logical_cpus: int | None = None
    tpu: str | None = None
    held_out: int = 0
    output_dir: str | None = None

    def __post_init__(self):
        if self.epsilon is not None and self.noise_multiplier is not None:
            raise ValueError(
                "Give one of --epsilon and --noise_multiplier, not both: each "
                f"follows from the other. Received: {self.epsilon:g} and "
                f"{self.noise_multiplier:g}."
            )
        accounting.check_delta(self.delta, self.accountant)
        if self.budget is not None:
            accounting.check_epsilon(self.budget)
        _check_choice("model", self.model, models.NAMES)
        _check_choice("optimizer", self.optimizer, OPTIMIZERS)
        _check_choice("clipping", self.clipping, clippings.CLIPPINGS)
        _check_choice("strategy", self.strategy, distribute.STRATEGIES)
        self._fill()
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(
                "--momentum is of --optimizer=sgd. Received: "
                f"--momentum={self.momentum:g}, --optimizer={self.optimizer}."
            )
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(
                "--momentum must be at least 0 and below 1. Received: "
                f"{self.momentum:g}."
            )
        is_fixed = self.model in models.ON_FEATURES
        if is_fixed and self.strategy != "one_device":
            raise ValueError(
                f"--model={self.model} computes its features on one device. "
                "Use --strategy=one_device, or another model such as "
                f"--model=cnn. Received: --strategy={self.strategy}."
            )
        commands.check_at_least_one(
            self, ("batch_size", "epochs", "multiplicity")
        )
        if is_fixed and self.multiplicity > 1:
            raise ValueError(
                f"--model={self.model} computes the features of each image "
                "once, and views need theirs. Use --multiplicity=1, or another "
                "model such as --model=cnn. Received: "
                f"--multiplicity={self.multiplicity}."
            )
        commands.check_clip_norm(self)

    def _fill(self) -> None:
        """Takes what was not given from the recipe of the model."""
        recipe = models.RECIPES[self.model]
        if self.optimizer != "sgd":
            recipe = dataclasses.replace(recipe, momentum=0.0)
        for name in ("batch_size", "epochs", "momentum", "weight_averaging"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(recipe, name))

    @property
    def budget(self) -> float | None:
        """The epsilon not to exceed; `None` if the noise was given."""
        if self.epsilon is None and self.noise_multiplier is None:
            return DEFAULT_EPSILON
        return self.epsilon

    @property
    def settings(self) -> dict:
        """What decides the outcome; a resumed training must agree in it."""
        settings = dataclasses.asdict(self)
        for name in (
            "output_dir",
            "microbatch_size",
            "strategy",
            "num_logical_cpus",
            "tpu",
        ):
            del settings[name]
        return settings | {"epsilon": self.budget}

    @property
    def folder(self) -> pathlib.Path:
        """The output folder; each worker of several has one of its own."""
        folder = self._folder
        if self.strategy == "multi_worker":
            folder /= f"worker-{distribute.worker_index()}"
        return folder

    @property
    def _folder(self) -> pathlib.Path:
        if self.output_dir is not None:
            return pathlib.Path(self.output_dir).expanduser()
        digest = hashlib.sha256(json.dumps(self.settings).encode()).hexdigest()
        dataset = "".join(c if c.isalnum() else "_" for c in self.dataset)
        return pathlib.Path("runs", f"{dataset}-{self.model}-{digest[:8]}")


@dataclasses.dataclass(frozen=True)
class Result:
    """What a training came to.

    Attributes:
        accuracy: On the test set, after the last epoch.
        epsilon: Of everything that was released.
        statement: The privacy statement.
        history: One row of logs for each epoch.
        paths: What was written, by what it is.
    """

    accuracy: float
    epsilon: float
    statement: str
    history: tuple[checkpoints.Row, ...]
    paths: dict[str, pathlib.Path]


@dataclasses.dataclass(frozen=True)
class Training:
    """A training that is ready to begin or to go on.

    Attributes:
        config: The settings.
        network: What is trained; its classifier is private, compiled and, if
            resumed, restored.
        batches: Poisson batches of the training set.
        population: Number of training examples.
        test_data: Test features and labels.
        resumed: The checkpoint it goes on from, if any.
        averaging: The callback that averages the weights, if any.
    """

    config: Config
    network: models.Network
    batches: tf.data.Dataset
    population: int
    test_data: datasets.Arrays
    resumed: checkpoints.Checkpoint | None
    averaging: tf_dpfp.recipes.WeightAveraging | None

    @property
    def epochs_done(self) -> int:
        """Number of epochs before this one."""
        return self.resumed.epoch if self.resumed else 0

    @property
    def history(self) -> tuple[checkpoints.Row, ...]:
        """Their logs."""
        return self.resumed.history if self.resumed else ()


def prepare(config: Config) -> Training:
    """Loads the data, builds the model, and restores the last checkpoint.

    Args:
        config: What to train.

    Returns:
        A `Training`. Nothing has been trained, and no budget spent.

    Raises:
        ValueError: If the settings do not fit the data, or the output folder
            belongs to other settings.
        datasets.DatasetUnavailableError: If the data can't be loaded.
    """
    strategy = distribute.make_strategy(
        config.strategy,
        num_logical_cpus=config.num_logical_cpus,
        tpu=config.tpu,
    )
    resumed = _last_checkpoint(config)
    (x, y), (x_test, y_test) = datasets.hold_out(
        datasets.load(config.dataset), config.held_out
    )
    if config.delta >= 1.0 / len(x):
        raise ValueError(
            f"--delta={config.delta:g} is not below one over the number of "
            f"examples ({len(x)}): it would allow giving away one example "
            "whole. Choose a smaller one."
        )
    if config.seed is not None:
        keras.utils.set_random_seed(config.seed)
    num_classes = 1 + max(int(y.max()), int(y_test.max()))
    with strategy.scope():
        network = models.build(config.model, x.shape[1:], num_classes)
    if network.features is not None:
        count = len(x) + len(x_test)
        print(f"{config.model}: computing features of {count} images, once")
    batches = tf_dpfp.poisson_batches(
        # Features take more memory than images: half precision for the many.
        network.transform(x, "float16"),
        y,
        expected_batch_size=config.batch_size,
        seed=_sampling_seed(config.seed, resumed.epoch if resumed else 0),
        augment=(
            augmentation.for_dataset(config.dataset)
            if config.multiplicity > 1
            else None
        ),
        multiplicity=config.multiplicity,
        # XLA, which TPUs need, wants batches of one size.
        padded="static" if config.strategy == "tpu" else None,
    )
    model = network.classifier
    with strategy.scope():
        tf_dpfp.make_private(model)
        model.compile(
            optimizer=make_optimizer(config, len(x), len(batches)),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        if resumed:
            resumed.restore(model)
    if not resumed:
        _write_settings(config)
    averaging = None
    if config.weight_averaging:
        averaging = tf_dpfp.recipes.WeightAveraging(config.weight_averaging)
        if resumed:
            is_done = resumed.epoch >= config.epochs
            resumed.restore_averages(averaging, model if is_done else None)
    test_data = (network.transform(x_test), y_test)
    return Training(
        config, network, batches, len(x), test_data, resumed, averaging
    )


def run(training: Training) -> Result:
    """Trains to the end and writes what came of it.

    Args:
        training: From `prepare`.

    Returns:
        A `Result`.
    """
    config, model = training.config, training.network.classifier
    history = list(training.history)
    if training.epochs_done < config.epochs:
        averaging = training.averaging
        saver = checkpoints.SaveEveryEpoch(
            _checkpoints(config), history, averaging
        )
        model.fit(
            training.batches,
            epochs=config.epochs,
            initial_epoch=training.epochs_done,
            validation_data=training.test_data,
            validation_batch_size=_EVALUATION_BATCH_SIZE,
            callbacks=[
                tf_dpfp.PrivacyBudget(
                    config.budget, config.delta, config.accountant
                ),
                *([averaging] if averaging else []),
                # After the budget, which puts epsilon into the logs.
                saver,
            ],
            # A bar redraws itself, which a log file can't.
            verbose=1 if sys.stdout.isatty() else 2,
        )
        history = saver.history
    return _finish(training, history)


def _finish(training: Training, history: Sequence[checkpoints.Row]) -> Result:
    config, model = training.config, training.network.classifier
    epsilon = tf_dpfp.compute_epsilon(model, config.delta, config.accountant)
    # From the ledger, not `tf_dpfp.privacy_statement(model)`: a training that
    # was found finished has not seen its data in this process.
    statement = accounting.privacy_statement(
        tf_dpfp.ledger(model),
        config.delta,
        accountant=config.accountant,
        population=training.population,
        seeded=config.seed is not None,
    )
    accuracy = history[-1]["val_accuracy"]
    paths = {
        "model": config.folder / "model.keras",
        "statement": config.folder / "statement.txt",
        "history": config.folder / "history.csv",
        "plot": config.folder / "training.png",
        "checkpoints": _checkpoints(config),
    }
    training.network.for_images().save(paths["model"])
    paths["statement"].write_text(statement)
    checkpoints.write_history(paths["history"], history)
    plots.training_plot(
        paths["plot"],
        history,
        title=f"Private training on {config.dataset}, model {config.model}",
        subtitle=f"DP-SGD ({config.optimizer}, {config.clipping} clipping), "
        f"Poisson batches of {config.batch_size}, delta {config.delta:g}",
        budget=config.budget,
    )
    return Result(accuracy, epsilon, statement, tuple(history), paths)


def report(result: Result, config: Config) -> str:
    """Says what a training came to.

    Args:
        result: From `run`.
        config: Its settings.

    Returns:
        The statement, test accuracy, epsilon, and the paths.
    """
    lines = [
        f"Test accuracy  {100.0 * result.accuracy:.2f} % after "
        f"{len(result.history)} epochs",
        f"Epsilon        {_round_up(result.epsilon)} at delta {config.delta:g} "
        f"({config.accountant.upper()}, Poisson sampling)",
        *(
            f"{name.capitalize():<14} {path}"
            for name, path in result.paths.items()
        ),
    ]
    return "\n".join([result.statement, *lines])


def _round_up(epsilon: float) -> str:
    """Formats epsilon so that the printed figure is never below it."""
    if math.isinf(epsilon):
        return "infinite"
    return f"{math.ceil(epsilon * 1e4) / 1e4:.4f}"


def make_optimizer(config: Config, population: int, steps_per_epoch: int):
    """Makes the private optimizer of a training.

    Args:
        config: The settings.
        population: Number of training examples.
        steps_per_epoch: Number of batches of an epoch.

    Returns:
        The optimizer, with the noise that spends the budget.
    """
    noise_multiplier = config.noise_multiplier
    if noise_multiplier is None:
        noise_multiplier = tf_dpfp.calibrate_noise_multiplier(
            config.budget,
            config.delta,
            config.batch_size / population,
            config.epochs * steps_per_epoch,
            config.accountant,
        )
    rate = config.learning_rate
    if rate is None and config.optimizer == "sgd":
        step = models.RECIPES[config.model].step
        rate = step * (1.0 - config.momentum) / config.l2_norm_clip
    elif rate is None:
        rate = _LEARNING_RATES.get(config.optimizer, 1e-3)
    more = {"momentum": config.momentum} if config.momentum else {}
    return OPTIMIZERS[config.optimizer](
        rate,
        **more,
        l2_norm_clip=config.l2_norm_clip,
        noise_multiplier=noise_multiplier,
        clipping=clippings.CLIPPINGS[config.clipping],
        microbatch_size=config.microbatch_size,
        seed=config.seed,
    )


def _sampling_seed(seed: int | None, epochs_done: int) -> int | None:
    """A seed of its own for what is left: no batch may be drawn again."""
    if seed is None or epochs_done == 0:
        return seed
    sequence = np.random.SeedSequence([seed, epochs_done])
    # Seeds have 63 bits.
    return int(sequence.generate_state(1, np.uint64)[0]) >> 1


def _checkpoints(config: Config) -> pathlib.Path:
    return config.folder / "checkpoints"


def _last_checkpoint(config: Config) -> checkpoints.Checkpoint | None:
    """Finds what these settings have trained; refuses what others have."""
    checkpoint = checkpoints.latest(_checkpoints(config))
    if checkpoint is None:
        return None
    before = json.loads((config.folder / _SETTINGS).read_text())
    changed = [
        f"--{name} was {before.get(name)!r} and is {value!r}"
        for name, value in config.settings.items()
        if before.get(name) != value
    ]
    if changed:
        raise ValueError(
            f"{config.folder} holds a training with other settings: "
            f"{', '.join(changed)}. Choose another --output_dir."
        )
    return checkpoint


def _write_settings(config: Config) -> None:
    config.folder.mkdir(parents=True, exist_ok=True)
    unfinished = config.folder / f"{_SETTINGS}.unfinished"
    unfinished.write_text(json.dumps(config.settings, indent=2) + "\n")
    os.replace(unfinished, config.folder / _SETTINGS)


def _check_choice(name: str, value: str, choices) -> None:
    if value not in choices:
        raise ValueError(
            f"--{name} is one of {', '.join(choices)}. Received: {value!r}."
        )
