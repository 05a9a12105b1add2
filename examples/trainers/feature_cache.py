"""What a frozen network makes of a data set, computed once for all trainings.

The features of examples are as private as the examples: they are kept where
these are, in the cache of this machine, and in no file that is given away.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from examples.trainers import packages

_COMPARED = 8
_TOLERANCE = 2e-3


def features(
    name: str,
    network: keras.Model,
    inputs: Any,
    compute: Callable[[Any], np.ndarray],
    dtype: str = "float32",
) -> np.ndarray:
    """Returns features from the cache, or computes and keeps them.

    They are found by the network's weights and by the inputs. Those of the
    first examples are made anew and compared: if anything else was changed
    since, all are computed again.

    Args:
        name: What the network is, for the file's name.
        network: It is not trained.
        inputs: What it is given: an array, or a structure of arrays.
        compute: Computes features of such inputs.
        dtype: Type of what is kept and returned.

    Returns:
        The features, an array.
    """
    digest = _digest([network.get_weights(), inputs])
    path = packages.cache() / "features" / f"{name}-{digest}-{dtype}.npy"
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError):  # Not there, or cut short.
        pass
    else:
        if _agree(found, inputs, compute, dtype):
            return found
    found = np.asarray(compute(inputs)).astype(dtype)
    stream = io.BytesIO()
    np.save(stream, found)
    packages.write_atomically(path, stream.getvalue())
    return found


def _agree(found: np.ndarray, inputs: Any, compute, dtype: str) -> bool:
    """Whether these are the features that the network makes today."""
    few = keras.tree.map_structure(lambda array: array[:_COMPARED], inputs)
    expected = np.asarray(compute(few)).astype(dtype)
    return (
        found.dtype == expected.dtype
        and found.shape[1:] == expected.shape[1:]
        and np.allclose(found[:_COMPARED], expected, _TOLERANCE, _TOLERANCE)
    )


def _digest(arrays: Any) -> str:
    digest = hashlib.sha256()
    for array in map(np.ascontiguousarray, keras.tree.flatten(arrays)):
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()[:32]
