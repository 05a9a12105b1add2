"""Randomised response: labels that are released once."""

import dataclasses
import math
import secrets
from typing import Any

import numpy as np

from tf_dpfp import arguments
from tf_dpfp.accounting import EveryLabel
from tf_dpfp.accounting import Labels
from tf_dpfp.accounting import LedgerEntry

# Tells these coins from the draws of batches by the same seed.
_OF_LABELS = 3


@dataclasses.dataclass(frozen=True)
class RandomizedLabels:
    """Labels after randomised response, with the epsilon they cost.

    Made by `randomize_labels`. Pass it as `y` to `stratified_batches`;
    elsewhere use `values`.

    Attributes:
        values: Randomised labels, integers of the shape of the true ones.
        epsilon: Their cost: to replace one label changes the probability of no
            outcome by more than a factor of `exp(epsilon)`.
        num_classes: Number of classes.
        entry: Their ledger entry.
    """

    values: np.ndarray = dataclasses.field(repr=False)
    epsilon: float
    num_classes: int
    entry: LedgerEntry = dataclasses.field(repr=False)

    @property
    def keep_probability(self) -> float:
        """Probability that a label was kept."""
        return keep_probability(self.epsilon, self.num_classes)


def keep_probability(epsilon: float, num_classes: int) -> float:
    """Computes the probability that randomised response keeps a label."""
    return 1.0 / (1.0 + (num_classes - 1) * math.exp(-epsilon))


def randomize_labels(
    y: Any, epsilon: float, num_classes: int, seed: int | None = None
) -> RandomizedLabels:
    """Randomises labels once, before training, by randomised response.

    Each label is kept with probability `e^epsilon / (e^epsilon + K - 1)` and
    otherwise becomes one of the other `K - 1` classes, all equally likely. The
    result may be used, and shown, any number of times: it is counted once.
    A second call for the same labels is a second release.

    Args:
        y: Labels, integers from 0 to `num_classes - 1`, of shape `(n,)` or
            `(n, 1)`.
        epsilon: Budget of the labels, above 0 and below 700.
        num_classes: Number of classes K, a public number: it must not be
            computed from the labels.
        seed: Integer from 0 to 2^63 - 1 that makes the result reproducible.
            Anyone who has it can undo the response. `None` takes the
            randomness from the operating system.

    Returns:
        `RandomizedLabels`.

    Raises:
        ValueError: If an argument is outside its range.

    Reference:
        Warner, 1965, "Randomized response".
    """
    labels = class_labels(y)
    # Above 700 `exp(epsilon)` overflows.
    epsilon = arguments.number("epsilon", epsilon, above=0, below=700)
    num_classes = arguments.integer("num_classes", num_classes, least=2)
    seed = arguments.seed(seed)
    if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(
            f"Labels must be integers from 0 to {num_classes - 1}. Map them to "
            "that range first. Received: labels from "
            f"{labels.min()} to {labels.max()}"
        )
    entropy = None if seed is None else (seed, 0, 0, _OF_LABELS)
    rng = np.random.default_rng(entropy)
    # By the probability of a change, not by its complement: that would be
    # rounded to 1 for an epsilon above 37, and no label would ever change.
    # `random` is a multiple of 2^-53, so the comparison rounds up.
    change = 1.0 / (1.0 + math.exp(epsilon) / (num_classes - 1))
    changed = rng.random(labels.size) < change
    # One of the others: a step of 1 to K - 1 around the circle of classes.
    away = rng.integers(1, num_classes, labels.size)
    # Labels of a small type may have no number for the last class.
    dtype = np.result_type(labels, np.min_scalar_type(num_classes - 1))
    values = np.where(changed, (labels + away) % num_classes, labels)
    entry = LedgerEntry(
        EveryLabel(num_classes, secrets.randbits(52)),
        1.0 / epsilon,
        1,
        seed is not None,
        Labels(),
    )
    return RandomizedLabels(
        values.astype(dtype).reshape(np.shape(y)),
        epsilon,
        num_classes,
        entry,
    )


def class_labels(y: Any) -> np.ndarray:
    """Converts labels to one integer for each example.

    Args:
        y: Integers of shape `(n,)` or `(n, 1)`.

    Returns:
        Integers of shape `(n,)`.

    Raises:
        ValueError: If `y` has another shape or dtype.
    """
    labels = np.asarray(y)
    one_each = labels.ndim == 1 or (labels.ndim == 2 and labels.shape[1] == 1)
    if not one_each or labels.dtype.kind not in "iu":
        raise ValueError(
            "Labels must be integers of shape (n,) or (n, 1), one class for "
            "each example. Convert one-hot labels with "
            "`np.argmax(y, axis=-1)`, and names with `names, y = np.unique(y, "
            "return_inverse=True)`, where names are public. Received: "
            f"{labels.dtype} of shape {labels.shape}"
        )
    return labels.reshape(-1)
