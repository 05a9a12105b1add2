"""Private evaluation of a model: noised counts of all examples, counted.

See `statistics` for the mechanism and its sensitivity. The order of things is
that of a step: everything that can be refused is refused first, the sum is
computed, the ledger counts, and only then is the sum released with noise.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tf_dpfp import accounting
from tf_dpfp import arguments
from tf_dpfp import counting
from tf_dpfp import mechanisms
from tf_dpfp import noise as noise_lib
from tf_dpfp import sampling as sampling_lib
from tf_dpfp.evaluation import results
from tf_dpfp.evaluation import statistics
from tf_dpfp.evaluation import values as values_lib
from tf_dpfp.independence import inputs
from tf_dpfp.keras_private import trainer as keras_trainer
from tf_dpfp.sampling import sources

_BATCH_SIZE = 256


@dataclasses.dataclass(frozen=True)
class Settings:
    """Checked arguments of a private evaluation.

    Attributes:
        noise_multiplier: Standard deviation of the noise; the sensitivity is
            1.
        loss_bound: Bound of the loss of an example; `None`: no loss.
        correct: See `values.Wanted`.
        num_examples: Public number of examples, or `None`.
        group_values: Values of the groups.
        confidence: Probability of an interval.
        batch_size: Number of examples that the model sees at once.
        seed: Seed of the noise, or `None`.
    """

    noise_multiplier: float
    loss_bound: float | None = None
    correct: values_lib.Correct | None = None
    num_examples: int | None = None
    group_values: tuple[Any, ...] = ()
    confidence: float = 0.95
    batch_size: int = _BATCH_SIZE
    seed: int | None = None

    def release(self, by_person: bool) -> counting.GaussianRelease:
        """Returns the release, which noise and ledger are read from."""
        return counting.GaussianRelease(
            clip_norm=1.0,
            noise_multiplier=self.noise_multiplier,
            seed=self.seed,
            kind=accounting.PersonEvaluation()
            if by_person
            else accounting.Evaluation(),
        )


def checked_settings(**given: Any) -> Settings:
    """Checks the settings of a private evaluation.

    Args:
        **given: As for `evaluate_privately`.

    Returns:
        `Settings`.

    Raises:
        ValueError: If one is out of its range.
    """
    found = Settings(**given)
    values = tuple(found.group_values)
    if len(set(values)) != len(values):
        raise ValueError(
            "`group_values` must list each group once. Received: "
            f"group_values={list(values)}"
        )
    if found.correct is not None and not callable(found.correct):
        raise ValueError(
            "`correct` must be a function of the labels and predictions of "
            "one example, which returns a number between 0 and 1. Received: "
            f"correct={found.correct!r}"
        )

    def optional(check, name: str, value: Any, **limits: Any) -> Any:
        return None if value is None else check(name, value, **limits)

    return dataclasses.replace(
        found,
        noise_multiplier=arguments.number(
            "noise_multiplier", found.noise_multiplier, least=0.0, most=1e7
        ),
        loss_bound=optional(
            arguments.number, "loss_bound", found.loss_bound, above=0.0
        ),
        num_examples=optional(
            arguments.positive_integer, "num_examples", found.num_examples
        ),
        group_values=values,
        confidence=arguments.number(
            "confidence", found.confidence, above=0.0, below=1.0
        ),
        batch_size=arguments.positive_integer("batch_size", found.batch_size),
        seed=arguments.seed(found.seed),
    )


def evaluate_privately(
    model: keras.Model,
    data: Any,
    *,
    noise_multiplier: float,
    loss_bound: float | None = None,
    correct: values_lib.Correct | None = None,
    num_examples: int | None = None,
    groups: Any = None,
    group_values: Sequence[Any] = (),
    users: Any = None,
    confidence: float = 0.95,
    batch_size: int = _BATCH_SIZE,
    seed: int | None = None,
) -> results.Evaluation:
    """Evaluates a private model by noised counts, which its ledger counts.

    The accuracy, the loss, and both for each group of examples are made of one
    sum over all examples, released once with Gaussian noise. The model's
    `compute_epsilon` and `privacy_statement` hold the release from then on, at
    its full price, whether the data are those of the training or others.

    An example that is added or removed moves the sum by at most 1, so the
    standard deviation of an accuracy of n examples is at most
    `noise_multiplier / n` (more by a factor of the root of 2 if a loss is
    released beside it, and once more with groups).

    Example:

    ```python
    found = tf_dpfp.evaluate_privately(
        model, (x_test, y_test), noise_multiplier=20.0, loss_bound=5.0
    )
    print(found.accuracy)  # 0.9312 [0.9278, 0.9347]
    ```

    Args:
        model: A private, compiled model.
        data: `(x, y)` or `(x, y, sample_weight)` of arrays, nested as for
            `fit`; or a data set of single examples. An example of weight 0 is
            none; other weights have a say in the loss alone, and in the
            accuracy within one example.
        noise_multiplier: Standard deviation of the noise over the
            sensitivity. 0 adds none; epsilon is then infinite.
        loss_bound: The compiled loss of each example is clipped to between 0
            and this bound. `None`: no loss is released.
        correct: Function of the labels and the predictions of a batch of one
            example; returns a number between 0 and 1: how far it is correct.
            `None`: the share of correct classes, where the compiled loss is a
            crossentropy.
        num_examples: Number of examples, if it is public: it is not released
            then, and the figures divide by it. `None`: private.
        groups: Group of each example, an array, where `data` are arrays.
        group_values: Values of the groups, which must be public. An example
            with any other value is in no group.
        users: Id of the person of each example, where `data` are arrays; each
            person adds the mean of what the examples would add. For models
            that were trained on `poisson_batches(users=...)`.
        confidence: Probability with which each interval holds the figure that
            there would be without noise.
        batch_size: Number of examples that the model sees at once.
        seed: Integer that makes the noise reproducible, only for reproducing
            a run. `None` draws its key from the operating system.

    Returns:
        An object with `accuracy`, `loss`, `num_examples`, each with `value`,
        `low` and `high` (`None` for what is not released), and `groups`.

    An example whose predictions or loss are not finite counts as wrong, with
    the greatest loss.

    Raises:
        NotPrivateError: If the model or its optimizer is not private.
        ValueError: If an argument is out of its range, or it is not proved
            that examples are evaluated independently of each other.
    """
    settings = checked_settings(
        noise_multiplier=noise_multiplier,
        loss_bound=loss_bound,
        correct=correct,
        num_examples=num_examples,
        group_values=group_values,
        confidence=confidence,
        batch_size=batch_size,
        seed=seed,
    )
    return evaluate(model, read(data, groups, users, settings), settings)


@dataclasses.dataclass(frozen=True)
class Data:
    """Examples to evaluate.

    Attributes:
        source: The examples.
        groups: Number of the group of each; -1: in none.
        users: Number of the person of each, or `None`.
    """

    source: Any
    groups: np.ndarray
    users: np.ndarray | None


def read(data: Any, groups: Any, users: Any, settings: Settings) -> Data:
    """Reads data to evaluate.

    Args:
        data: See `evaluate_privately`.
        groups: See there.
        users: See there.
        settings: The settings.

    Returns:
        `Data`.

    Raises:
        ValueError: If they can't be evaluated privately.
    """
    if sampling_lib.sampling_of(data) is not None:
        raise ValueError(
            "`data` are batches that were drawn at random, in which an example "
            "may be any number of times. Give the arrays or the data set that "
            f"they were drawn from. Received: data={data!r}"
        )
    are_arrays = isinstance(data, (tuple, list))
    if not are_arrays and (groups is not None or users is not None):
        raise ValueError(
            "`groups` and `users` name the examples of arrays, in their order. "
            "Give `data` as (x, y). Received: data of type "
            f"{type(data).__name__}"
        )
    source = sources.make_source(*data) if are_arrays else _of_dataset(data)
    if not 2 <= len(source.structure) <= 3:
        raise ValueError(
            "`data` needs labels: (x, y) or (x, y, sample_weight). Received: "
            f"{len(source.structure)} component(s)"
        )
    if bool(settings.group_values) != (groups is not None):
        raise ValueError(
            "`groups` needs `group_values`, and the reverse: which groups "
            "there are must not be read from the data. Received: "
            f"group_values={list(settings.group_values)}, groups of type "
            f"{type(groups).__name__}"
        )
    size = source.size
    of_groups = np.full(size, -1)
    if groups is not None:
        ids = _ids("groups", groups, size)
        for number, value in enumerate(settings.group_values):
            of_groups[ids == value] = number
    of_users = None
    if users is not None:
        _, of_users = np.unique(_ids("users", users, size), return_inverse=True)
    return Data(source, of_groups, of_users)


def _of_dataset(data: Any) -> Any:
    return sources.make_source(data)


def _ids(name: str, ids: Any, size: int) -> np.ndarray:
    found = np.asarray(ids)
    if found.shape != (size,):
        raise ValueError(
            f"`{name}` must have one entry for each of the {size} examples. "
            f"Received: {name} of shape {found.shape}"
        )
    return found


def evaluate(
    model: keras.Model, data: Data, settings: Settings
) -> results.Evaluation:
    """Evaluates a model; see `evaluate_privately`.

    Args:
        model: A private, compiled model.
        data: The data.
        settings: The settings.

    Returns:
        What was released.
    """
    mechanism = mechanisms.mechanism_of(model)
    _check_unit(mechanism, by_person=data.users is not None)
    wanted = _wanted(model, settings)
    specs = tree.pack_sequence_as(
        data.source.structure,
        [
            tf.TensorSpec([None, *spec.shape], spec.dtype)
            for spec in data.source.specs
        ],
    )
    specs = (*specs, None)[:3]
    if not model.built:
        inputs.build(model, specs[0])
    function = values_lib.function_of(model, wanted, specs)
    layout = statistics.Layout(
        len(wanted.names), len(settings.group_values), settings.num_examples
    )
    release = settings.release(by_person=data.users is not None)
    source = noise_lib.NoiseSource(
        None
        if settings.seed is None
        else noise_lib.mixed_seed(settings.seed, "evaluation")
    )
    total = _private_sum(function, data, layout, settings.batch_size)
    before = sum(entry.steps for entry in mechanism.entries())
    # Before anything is released: an evaluation that fails here is counted.
    mechanism.count_now(counting.Claim(release, accounting.EveryExample()))
    noise = _noise(mechanism, source, before, layout, release)
    return _result(
        layout.estimates(
            total + noise, release.standard_deviation, settings.confidence
        ),
        wanted,
        settings,
    )


def next_entry(settings: Settings, by_person: bool) -> accounting.LedgerEntry:
    """Returns the ledger entry that one evaluation adds.

    Args:
        settings: Its settings.
        by_person: True if persons add to it, and not examples.
    """
    release = settings.release(by_person)
    return counting.Claim(release, accounting.EveryExample()).entry(1)


def _noise(
    mechanism: mechanisms.Mechanism,
    source: noise_lib.NoiseSource,
    steps_before: int,
    layout: statistics.Layout,
    release: counting.GaussianRelease,
) -> np.ndarray:
    """Draws the noise; with a seed that of no other release of the ledger."""
    secure = bool(getattr(mechanism.optimizer, "secure", False))
    key: Any = noise_lib.SecureKey()
    if not secure:
        step_key = source.next_step(tf.constant(steps_before, tf.int64))
        key = noise_lib.NoiseSource.key_of(step_key, 0)
    drawn = noise_lib.gaussian_noise(
        list(layout.shape), release.standard_deviation, key
    )
    return drawn.numpy().astype(np.float64)


def _private_sum(
    function: Any, data: Data, layout: statistics.Layout, batch_size: int
) -> np.ndarray:
    """Adds up the vectors of all examples; private until noise is added."""
    size = data.source.size
    found = []
    for first in range(0, size, batch_size):
        indices = np.arange(first, first + batch_size)
        # All batches have one size; what fills the last one up is dropped.
        leaves = data.source.take(np.minimum(indices, size - 1))
        found.append(function(*map(tf.constant, leaves)).numpy())
    values = np.concatenate(found)[:size].astype(np.float64)
    present, fractions = values[:, 0] > 0.0, values[:, 1:]
    vectors = layout.vectors(fractions)[present]
    groups = data.groups[present]
    if data.users is None:
        return layout.sums(vectors, groups)
    users = data.users[present]
    counts = np.bincount(users, minlength=len(data.users))
    return layout.sums(vectors / counts[users][:, None], groups)


def _wanted(model: keras.Model, settings: Settings) -> values_lib.Wanted:
    """Decides what is evaluated."""
    correct: Any = settings.correct
    if correct is None and values_lib.only_loss(model) is None:
        correct = False
    has_loss = keras_trainer.has_compiled_loss(model)
    if settings.loss_bound is not None and not has_loss:
        raise ValueError(
            f"Model '{model.name}' is compiled without a loss, and "
            "`loss_bound` asks for it. Give `loss=` to `compile`, or leave "
            f"`loss_bound` out. Received: loss_bound={settings.loss_bound}"
        )
    wanted = values_lib.Wanted(correct, settings.loss_bound)
    if not wanted.names:
        raise ValueError(
            f"Nothing says what model '{model.name}' should be evaluated by: "
            "its compiled loss is no crossentropy of one output. Give "
            "`correct=`, a function of the labels and predictions of one "
            "example, or `loss_bound=`. Received: correct=None, "
            "loss_bound=None"
        )
    return wanted


def _check_unit(mechanism: mechanisms.Mechanism, by_person: bool) -> None:
    """Refuses to count persons beside examples: nothing is proved of both."""
    units = {e.release.unit for e in mechanism.entries() if e.steps}
    wanted = "person" if by_person else "example"
    if units and units != {wanted}:
        raise ValueError(
            f"The ledger of model '{mechanism.model.name}' protects each "
            f"{'example' if by_person else 'person'}, and this evaluation each "
            f"{wanted}: nothing is proved of both together. "
            + (
                "Leave `users` out."
                if by_person
                else "Give `users=`, the id of the person of each example."
            )
            + f" Received: users={'given' if by_person else None}"
        )


def _result(
    blocks: list[list[results.Estimate]],
    wanted: values_lib.Wanted,
    settings: Settings,
) -> results.Evaluation:
    def of_block(
        block: list[results.Estimate], **groups: Any
    ) -> results.Evaluation:
        number, *means = block
        named = dict(zip(wanted.names, means, strict=True))
        loss = named.get("loss")
        if loss is not None:
            loss = loss.times(float(settings.loss_bound or 0.0))
        return results.Evaluation(
            number, named.get("accuracy"), loss, settings.confidence, **groups
        )

    whole, *rest = blocks
    groups = {
        value: of_block(block)
        for value, block in zip(settings.group_values, rest, strict=True)
    }
    return of_block(whole, groups=groups)
