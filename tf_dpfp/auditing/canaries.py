"""Canaries: examples that an audit adds to the data, to detect them later."""

from typing import Any

import numpy as np
from keras import tree

from tf_dpfp import arguments


def insert_canaries(
    x: Any, y: Any, canary_x: Any, canary_y: Any, included: np.ndarray
) -> tuple[Any, Any, np.ndarray]:
    """Appends canaries to the data, with weight zero for those left out.

    The number of examples does not depend on the coins, for the sampling rate
    and the expected batch size treat it as public. An example of weight zero
    contributes nothing to a private step, so weight zero removes the canary.

    Args:
        x: Inputs of the other examples: an array, or a nested structure.
        y: Labels of the other examples.
        canary_x: Inputs of the canaries, of the same structure as `x`.
        canary_y: Labels of the canaries, of the same structure as `y`.
        included: Booleans of shape `(canaries,)`, `True` for canaries that
            take part.

    Returns:
        Inputs, labels and sample weights, for `fit` or `poisson_batches`.

    Example:

    >>> x, y, weight = insert_canaries(
    ...     np.zeros((3, 2)), np.zeros(3), np.ones((2, 2)), np.ones(2),
    ...     included=[True, False],
    ... )
    >>> weight
    array([1., 1., 1., 1., 0.], dtype=float32)
    """
    included = np.asarray(included, bool)

    def behind(data, canaries):
        return np.concatenate([np.asarray(data), np.asarray(canaries)])

    inputs = tree.map_structure(behind, x, canary_x)
    labels = tree.map_structure(behind, y, canary_y)
    examples = len(tree.flatten(labels)[0])
    others = np.ones(examples - len(included), np.float32)
    return inputs, labels, np.append(others, included.astype(np.float32))


def unused_features(
    x: np.ndarray, canaries: int, scale: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Makes canaries that each use one input feature of their own.

    Widens the inputs by one feature per canary, which is zero for all other
    examples. In a first `Dense` layer, the weights of such a feature then move
    by the gradient of its canary and by noise, and by nothing else. An
    adversary who sees the weights can read the canary off them: these are the
    strongest canaries for that layer.

    Args:
        x: Inputs of the other examples, of shape `(examples, features)`.
        canaries: Number of canaries.
        scale: Value of a canary in its feature. Gradients grow with it, up to
            the clip norm.

    Returns:
        `(wide_x, canary_x)`: the inputs with `canaries` zero features more,
        and the canaries, of shape `(canaries, features + canaries)`.

    Raises:
        ValueError: If `canaries` is not a positive integer, or `scale` is not
            finite.

    Example:

    >>> wide_x, canary_x = unused_features(np.ones((3, 1)), canaries=2)
    >>> wide_x[0], canary_x[1]
    (array([1., 0., 0.]), array([0., 0., 1.]))
    """
    canaries = arguments.positive_integer("canaries", canaries)
    scale = arguments.number("scale", scale)
    x = np.asarray(x)
    widened = np.pad(x, ((0, 0), (0, canaries)))
    own = np.zeros((canaries, x.shape[1] + canaries), x.dtype)
    own[np.arange(canaries), x.shape[1] + np.arange(canaries)] = scale
    return widened, own
