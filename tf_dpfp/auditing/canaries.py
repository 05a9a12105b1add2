"""Examples that are put into the data to be found again."""

from typing import Any

import numpy as np
from keras import tree


def insert_canaries(
    x: Any, y: Any, canary_x: Any, canary_y: Any, included: np.ndarray
) -> tuple[Any, Any, np.ndarray]:
    """Appends canaries to the data, those that are out with weight zero.

    The number of rows is the same whatever the coins say, for the sampling
    rate and the expected batch size treat it as public. An example of weight
    zero contributes nothing to a private step: to leave it out is to remove
    it.

    Args:
        x: Inputs of the other examples, arrays, nested or not.
        y: Their labels.
        canary_x: Inputs of the canaries, nested likewise.
        canary_y: Their labels.
        included: Boolean, `(canaries,)`: which are in.

    Returns:
        Inputs, labels and sample weights.
    """
    included = np.asarray(included, bool)

    def behind(data, canaries):
        return np.concatenate([np.asarray(data), np.asarray(canaries)])

    inputs = tree.map_structure(behind, x, canary_x)
    labels = tree.map_structure(behind, y, canary_y)
    rows = len(tree.flatten(labels)[0])
    others = np.ones(rows - len(included), np.float32)
    return inputs, labels, np.append(others, included.astype(np.float32))


def unused_features(
    x: np.ndarray, canaries: int, scale: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Gives every canary an input feature that no other example has.

    The weights of that feature then move by the canary's gradient and noise
    alone: the white-box canary for a first layer that is dense.

    Args:
        x: Inputs of the other examples, `(examples, features)`.
        canaries: How many.
        scale: The canary's value of its feature. Gradients grow with it, up to
            the clip norm.

    Returns:
        The inputs with `canaries` more features, all zero, and those of the
        canaries, `(canaries, features + canaries)`.
    """
    x = np.asarray(x)
    widened = np.pad(x, ((0, 0), (0, canaries)))
    own = np.zeros((canaries, x.shape[1] + canaries), x.dtype)
    own[np.arange(canaries), x.shape[1] + np.arange(canaries)] = scale
    return widened, own
