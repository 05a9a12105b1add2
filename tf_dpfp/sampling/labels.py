"""Labels that are released once, by randomised response."""

from __future__ import annotations

import dataclasses
import math
import numbers
import secrets
from typing import Any

import numpy as np

from tf_dpfp.accounting import EveryLabel
from tf_dpfp.accounting import Labels
from tf_dpfp.accounting import LedgerEntry


@dataclasses.dataclass(frozen=True)
class RandomizedLabels:
    """Labels after randomised response: as private as their epsilon says.

    Made by `randomize_labels`. Pass it as `y` to `microbatch_sampler`;
    elsewhere use `values`.

    Attributes:
        values: the randomised labels, integers of the shape of the true ones.
        epsilon: what they cost: replacing one label changes the probability
            of no outcome by more than a factor of `exp(epsilon)`.
        num_classes: number of classes.
        entry: the same as the ledger takes it.
    """

    values: np.ndarray = dataclasses.field(repr=False)
    epsilon: float
    num_classes: int
    entry: LedgerEntry = dataclasses.field(repr=False)

    @property
    def keep_probability(self) -> float:
        """Probability with which a label was left as it is."""
        return keep_probability(self.epsilon, self.num_classes)


def keep_probability(epsilon: float, num_classes: int) -> float:
    """Probability with which randomised response leaves a label as it is."""
    return 1.0 / (1.0 + (num_classes - 1) * math.exp(-epsilon))


def randomize_labels(
    y: Any, epsilon: float, num_classes: int, seed: int | None = None
) -> RandomizedLabels:
    """Randomises labels once, before training: randomised response.

    Each label stays with probability `e^epsilon / (e^epsilon + K - 1)` and
    otherwise becomes one of the other `K - 1` classes, all equally likely. The
    result may be used, and shown, any number of times: it is counted once.
    Calling this again on the same labels is a second release.

    Args:
        y: labels, integers from 0 to `num_classes - 1`, of shape `(n,)` or
            `(n, 1)`.
        epsilon: what the labels may cost, above 0.
        num_classes: number of classes K, public: not read off the labels.
        seed: only to reproduce a run: who knows it can undo the response. By
            default the randomness comes from the operating system.

    Returns:
        `RandomizedLabels`.

    Raises:
        ValueError: if an argument is out of its range.

    Reference:
        Warner, 1965, "Randomized response".
    """
    labels = class_labels(y)
    real = isinstance(epsilon, numbers.Real) and not isinstance(epsilon, bool)
    if not real or not 0.0 < epsilon < 700.0:
        raise ValueError(
            f"`epsilon` must be a number above 0 and below 700, got "
            f"{epsilon!r}."
        )
    whole = isinstance(num_classes, numbers.Integral)
    if not whole or isinstance(num_classes, bool) or num_classes < 2:
        raise ValueError(
            f"`num_classes` must be an integer >= 2, got {num_classes!r}."
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(
            f"Labels must be integers from 0 to {num_classes - 1}: some are "
            "not. Map them to that range first."
        )
    rng = np.random.default_rng(seed)
    keep = rng.random(labels.size) < keep_probability(epsilon, num_classes)
    # One of the others: a step of 1 to K - 1 around the circle of classes.
    away = rng.integers(1, num_classes, labels.size)
    values = np.where(keep, labels, (labels + away) % num_classes)
    entry = LedgerEntry(
        EveryLabel(int(num_classes), secrets.randbits(52)),
        1.0 / float(epsilon),
        1,
        seed is not None,
        Labels(),
    )
    return RandomizedLabels(
        values.astype(labels.dtype).reshape(np.shape(y)),
        float(epsilon),
        int(num_classes),
        entry,
    )


def class_labels(y: Any) -> np.ndarray:
    """Reads labels as one integer for each example.

    Args:
        y: integers of shape `(n,)` or `(n, 1)`.

    Returns:
        Integers of shape `(n,)`.

    Raises:
        ValueError: if `y` is of another shape or type.
    """
    labels = np.asarray(y)
    one_each = labels.ndim == 1 or (labels.ndim == 2 and labels.shape[1] == 1)
    if not one_each or labels.dtype.kind not in "iu":
        raise ValueError(
            "Labels must be integers of shape (n,) or (n, 1), one class for "
            f"each example, got {labels.dtype} of shape {labels.shape}. "
            "Convert one-hot labels with `np.argmax(y, axis=-1)`."
        )
    return labels.reshape(-1)
