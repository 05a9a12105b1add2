"""Private evaluation of a model: noised counts of all examples, counted.

See `statistics` for the mechanism and its sensitivity. The order of things is
that of a step: everything that can be refused is refused first, the sum is
computed, the ledger counts, and only then is the sum released with noise.
"""

import math
import threading
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tf_dpfp import accounting
from tf_dpfp import counting
from tf_dpfp import mechanisms
from tf_dpfp import noise as noise_lib
from tf_dpfp.evaluation import data as data_lib
from tf_dpfp.evaluation import results
from tf_dpfp.evaluation import settings as settings_lib
from tf_dpfp.evaluation import statistics
from tf_dpfp.evaluation import values as values_lib
from tf_dpfp.independence import inputs
from tf_dpfp.keras_private import trainer as keras_trainer

_COUNTING = threading.RLock()


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
    batch_size: int = settings_lib.BATCH_SIZE,
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
    settings = settings_lib.checked(
        noise_multiplier=noise_multiplier,
        loss_bound=loss_bound,
        correct=correct,
        num_examples=num_examples,
        group_values=group_values,
        confidence=confidence,
        batch_size=batch_size,
        seed=seed,
    )
    return evaluate(
        model, data_lib.read(data, groups, users, settings), settings
    )


def evaluate(
    model: keras.Model, data: data_lib.Data, settings: settings_lib.Settings
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
    mechanism.state.has_released = True
    claim = counting.Claim(release, accounting.EveryExample())
    # Two threads must not find the same number: a seed makes noise of it.
    with _COUNTING:
        before = sum(entry.steps for entry in mechanism.entries())
        # Before anything is released: what fails here is counted.
        mechanism.count_now(claim)
    noise = _noise(mechanism, source, before, layout, release)
    return _result(
        layout.estimates(
            _released(total, noise, release.standard_deviation),
            release.standard_deviation,
            settings.confidence,
        ),
        wanted,
        settings,
    )


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


def _released(
    total: np.ndarray, noise: np.ndarray, standard_deviation: float
) -> np.ndarray:
    """Adds noise, and rounds off the digits behind its last one.

    Noise is a float32 number: the digits of a total behind it would be in
    clear. It is rounded after the sum, which moves no two totals further apart;
    and to a step of the noise, however great the total is. Ties all go up:
    steps then hold equally many numbers of the noise, whatever the total is.
    """
    released = total + noise
    if not standard_deviation:
        return released
    # Noise is below 8 deviations: its last digit is half a step, at most.
    step = 2.0 ** (math.ceil(math.log2(standard_deviation)) - 19)
    return np.floor(released / step + 0.5) * step


def _private_sum(
    function: Any,
    data: data_lib.Data,
    layout: statistics.Layout,
    batch_size: int,
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


def _wanted(
    model: keras.Model, settings: settings_lib.Settings
) -> values_lib.Wanted:
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
    settings: settings_lib.Settings,
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
