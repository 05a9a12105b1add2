"""Examples that can be counted and fetched by index.

A `Source` has a number of examples and fetches any of them, as flat numpy
arrays with a first axis over examples.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

Leaves = tuple[np.ndarray, ...]

# Examples that are read at once, where all of them are read.
CHUNK = 1024


@dataclasses.dataclass(frozen=True)
class Source:
    """A fixed set of examples.

    Attributes:
        size: Number of examples.
        structure: Components `(x,)`, `(x, y)` or `(x, y, sample_weight)`,
            with anything as leaves.
        specs: Shape, without the axis over examples, and dtype of each leaf.
        take: Function from indices to the leaves of those examples.
    """

    size: int
    structure: tuple[Any, ...]
    specs: tuple[tf.TensorSpec, ...]
    take: Callable[[np.ndarray], Leaves]


def every_nth(source: Source, first: int, step: int) -> Source:
    """Selects the examples `first`, `first + step` and so on of a source.

    Args:
        source: All examples.
        first: Index of the first one to take, below `step`.
        step: Distance between two.

    Returns:
        A `Source` of these alone.
    """
    if step == 1:
        return source
    return dataclasses.replace(
        source,
        size=len(range(first, source.size, step)),
        take=lambda indices: source.take(indices * step + first),
    )


def digest(source: Source, key: bytes) -> bytes:
    """Computes a digest of all examples in their order; reads each of them.

    Args:
        source: The examples.
        key: Secret key of at most 64 bytes. Without it the digest tells
            nothing about the examples.

    Returns:
        The digest. Other examples, another order or another key give another
        one.
    """
    found = hashlib.blake2b(key=key)
    found.update(repr((source.size, source.structure, source.specs)).encode())
    for first in range(0, source.size, CHUNK):
        indices = np.arange(first, min(first + CHUNK, source.size))
        for leaf in source.take(indices):
            if leaf.dtype == object:
                # A list shows where each of the strings ends.
                found.update(repr(leaf.tolist()).encode())
            else:
                found.update(np.ascontiguousarray(leaf).tobytes())
    return found.digest()


def as_components(element: Any) -> tuple[Any, ...]:
    """Reads an element as Keras does: (x,), (x, y) or (x, y, weight).

    Args:
        element: Element of a data set.

    Returns:
        A tuple of one to three components.

    Raises:
        ValueError: If it is a tuple of another length.
    """
    if not isinstance(element, (list, tuple)):
        return (element,)
    element = tuple(element)
    if not 1 <= len(element) <= 3:
        raise ValueError(
            "An example must be x, (x, y) or (x, y, sample_weight). "
            f"Received: a tuple of {len(element)}"
        )
    return element


def components_structure(components: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns the nesting of `components`, without their data."""
    components = keras.tree.lists_to_tuples(components)
    return keras.tree.map_structure(lambda _: 0, components)


def is_array(leaf: Any) -> bool:
    """Recognises arrays and tensors, ragged and sparse ones included."""
    return hasattr(leaf, "__array__") or isinstance(
        leaf, (tf.RaggedTensor, tf.SparseTensor)
    )


def to_array(leaf: Any) -> np.ndarray:
    """Converts a dense array or tensor with a first axis over examples."""
    if isinstance(leaf, (tf.RaggedTensor, tf.SparseTensor)):
        raise ValueError(
            f"Examples cannot be drawn from a {type(leaf).__name__}. Make it "
            "dense first (`.to_tensor()` or `tf.sparse.to_dense`). "
            f"Received: shape {leaf.shape}"
        )
    if not is_array(leaf):
        raise TypeError(
            "Every leaf of `x`, `y` and `sample_weight` must be an array. "
            "Convert lists with `np.asarray`. Received: a leaf of type "
            f"{type(leaf).__name__}"
        )
    array = leaf.numpy() if isinstance(leaf, tf.Tensor) else np.asarray(leaf)
    if array.ndim < 1:
        raise ValueError(
            "Every array needs a first axis over examples. Convert lists, "
            "whose items count as arrays, with `np.asarray`. "
            f"Received: a scalar of type {type(leaf).__name__}"
        )
    return tf_compatible(array)


def tf_compatible(array: np.ndarray) -> np.ndarray:
    """Converts strings to bytes objects, and refuses other objects."""
    if array.dtype.kind in "OUS":
        flat = array.ravel().tolist()
        if not all(isinstance(item, (str, bytes)) for item in flat):
            kinds = sorted({type(item).__name__ for item in flat})
            raise ValueError(
                "An array of Python objects must hold strings only. Pad "
                "sequences of different lengths to one shape first, and pass "
                "a table whose columns are of several types as a dict of its "
                f"columns. Received: shape {array.shape}, items of type "
                f"{', '.join(kinds)}"
            )
        encoded = [i.encode() if isinstance(i, str) else i for i in flat]
        result = np.empty(len(encoded), object)
        result[:] = encoded
        return result.reshape(array.shape)
    try:
        tf.as_dtype(array.dtype)
    except TypeError:
        raise ValueError(
            f"TensorFlow has no dtype for an array of {array.dtype}. Convert "
            f"it to numbers or strings first. Received: shape {array.shape}"
        ) from None
    return array


def fit_dtype(dtype: np.dtype) -> tf.DType:
    """Returns the dtype that `fit` casts to: Keras's `floatx` for floats."""
    given = tf.as_dtype(dtype)
    return tf.as_dtype(keras.config.floatx()) if given.is_floating else given
