"""Membership inference: an attack on one trained model, by its losses.

Compares the loss of training examples with the loss of other examples. The
result is a measurement and no bound on epsilon, for no coins chose the
members. See `audit` for bounds.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tf_dpfp import arguments
from tf_dpfp.keras_private import trainer as keras_trainer
from tf_dpfp.step import losses as losses_lib


@dataclasses.dataclass(frozen=True, eq=False)
class RocCurve:
    """ROC curve of an attack by a threshold.

    Attributes:
        false_positive_rate: False positive rates, ascending from 0 to 1.
        true_positive_rate: True positive rate at each of them.
        members: Number of training examples.
        non_members: Number of other examples.
    """

    false_positive_rate: np.ndarray
    true_positive_rate: np.ndarray
    members: int
    non_members: int

    @property
    def area(self) -> float:
        """Area under the curve; 1/2 for guessing."""
        heights = self.true_positive_rate[1:] + self.true_positive_rate[:-1]
        return float(np.diff(self.false_positive_rate) @ heights / 2.0)

    @property
    def advantage(self) -> float:
        """Greatest true minus false positive rate; 0 for guessing."""
        return float(np.max(self.true_positive_rate - self.false_positive_rate))

    def true_positive_rate_at(self, false_positive_rate: float) -> float:
        """Returns the greatest true positive rate at a false positive rate.

        Args:
            false_positive_rate: Greatest false positive rate allowed, in
                [0, 1].

        Returns:
            The true positive rate of the best threshold.

        Raises:
            ValueError: If the rate is out of range.
        """
        false_positive_rate = arguments.number(
            "false_positive_rate", false_positive_rate, least=0.0, most=1.0
        )
        kept = self.false_positive_rate <= false_positive_rate
        return float(np.max(self.true_positive_rate[kept]))

    def __str__(self) -> str:
        rates = [
            f"{self.true_positive_rate_at(rate):.2%} at {100 * rate:g} %"
            for rate in (0.1, 0.01, 0.001)
            if rate * self.non_members >= 1.0
        ]
        return (
            f"Membership inference, {self.members} members and "
            f"{self.non_members} others: area {self.area:.4f}, advantage "
            f"{self.advantage:.4f}; true positives at false positives: "
            f"{', '.join(rates) or 'too few others'}."
        )


def roc_curve(
    member_scores: Sequence[float], other_scores: Sequence[float]
) -> RocCurve:
    """Computes the ROC curve of an attack that thresholds a score.

    Args:
        member_scores: Scores of training examples; greater scores suggest
            members.
        other_scores: Scores of other examples.

    Returns:
        A `RocCurve`.

    Raises:
        ValueError: If there are no scores of either kind, or a score is NaN.

    Example:

    >>> round(roc_curve([2.0, 3.0, 4.0], [1.0, 2.0]).area, 3)
    0.917
    """
    members = np.asarray(member_scores, np.float64).reshape(-1)
    others = np.asarray(other_scores, np.float64).reshape(-1)
    if not len(members) or not len(others):
        raise ValueError(
            "A curve needs members and others. Received: "
            f"{len(members)} members, {len(others)} others"
        )
    scores = np.concatenate([members, others])
    if np.any(np.isnan(scores)):
        raise ValueError(
            "Scores must be numbers: give other examples the least or the "
            f"greatest score. Received: {np.sum(np.isnan(scores))} of "
            f"{len(scores)} scores are NaN"
        )
    thresholds = np.unique(scores)[::-1]

    def rate(values):
        below = np.searchsorted(np.sort(values), thresholds, side="left")
        return np.concatenate([[0.0], 1.0 - below / len(values)])

    return RocCurve(rate(others), rate(members), len(members), len(others))


def example_losses(
    model: keras.Model,
    x: Any,
    y: Any,
    sample_weight: Any = None,
    batch_size: int = 256,
) -> np.ndarray:
    """Computes the compiled loss of each example, in inference mode.

    Args:
        model: Compiled model, private or not.
        x: Inputs: an array, or a nested structure of arrays.
        y: Labels.
        sample_weight: Sample weights, or `None`.
        batch_size: Number of examples per call of the model.

    Returns:
        Losses of shape `(examples,)`, as Keras computes them for batches of
        one.

    Raises:
        ValueError: If the model is not compiled with a loss, or `batch_size`
            is not a positive integer.
    """
    batch_size = arguments.positive_integer("batch_size", batch_size)
    if not getattr(model, "compiled", False) or not (
        keras_trainer.has_compiled_loss(model)
    ):
        raise ValueError(
            f"Model '{model.name}' is compiled without a loss, which the "
            "attack needs. Give `loss=` to `compile`."
        )
    loss, loss_weights = keras_trainer.compiled_loss_arguments(model)
    structured = keras_trainer.structured_loss(
        losses_lib.per_example(loss),
        loss_weights,
        getattr(model, "output_names", None),
    )
    takes_training = keras_trainer.takes_training(model)

    def of_batch(x, y, sample_weight):
        outputs = model(x, training=False) if takes_training else model(x)
        return structured(y, outputs, sample_weight)

    def cut(array, start):
        return tf.convert_to_tensor(
            np.asarray(array)[start : start + batch_size]
        )

    def batch(start):
        return tree.map_structure(
            lambda array: None if array is None else cut(array, start),
            (x, y, sample_weight),
        )

    count = len(tree.flatten(y)[0])
    return np.concatenate(
        [of_batch(*batch(i)).numpy() for i in range(0, count, batch_size)]
    )


def membership_inference(
    model: keras.Model, members: tuple, others: tuple, batch_size: int = 256
) -> RocCurve:
    """Attacks a model by membership inference on the losses of examples.

    Example:

    ```python
    curve = auditing.membership_inference(
        model, (x_train, y_train), (x_test, y_test)
    )
    print(curve.true_positive_rate_at(0.001))
    auditing.plot_roc("attack.png", {"DP-SGD": curve})
    ```

    Args:
        model: Compiled model, private or not.
        members: `(x, y)` or `(x, y, sample_weight)` of training examples.
        others: The same for examples from the same source that the model has
            not seen.
        batch_size: Number of examples per call of the model.

    Returns:
        A `RocCurve`. Low losses suggest members; NaN counts as infinite.

    Raises:
        ValueError: If the model is not compiled with a loss, or there are no
            examples.

    Reference:
        - Yeom et al., 2018, "Privacy risk in machine learning", arXiv
          1709.01604.
        - Carlini et al., 2022, "Membership inference attacks from first
          principles", arXiv 2112.03570 (the rate at few false positives).
    """

    def scores(data):
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        losses = example_losses(model, x, y, weight, batch_size)
        return -np.where(np.isnan(losses), np.inf, losses)

    return roc_curve(scores(members), scores(others))
