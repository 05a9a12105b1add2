"""One view of everything that examples may be kept in.

A `Source` has a number of examples and fetches any of them, as flat numpy
arrays with a leading dimension over examples.
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
        size: number of examples.
        structure: the components `(x,)`, `(x, y)` or `(x, y, sample_weight)`,
            with anything as leaves.
        specs: shape (without the dimension over examples) and dtype per leaf.
        take: from indices to the leaves of those examples.
    """

    size: int
    structure: tuple[Any, ...]
    specs: tuple[tf.TensorSpec, ...]
    take: Callable[[np.ndarray], Leaves]


def every_nth(source: Source, first: int, step: int) -> Source:
    """The examples `first`, `first + step` and so on of a source.

    Args:
        source: all examples.
        first: the first one to take, below `step`.
        step: how far apart they are.

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
        source: the examples.
        key: at most 64 bytes. Without it the digest says nothing of them.

    Returns:
        The digest. Of other examples, of the same ones in another order, or
        under another key it is another one.
    """
    found = hashlib.blake2b(key=key)
    found.update(repr((source.size, source.structure, source.specs)).encode())
    for first in range(0, source.size, CHUNK):
        rows = np.arange(first, min(first + CHUNK, source.size))
        for leaf in source.take(rows):
            if leaf.dtype == object:
                # A list says where each of the strings ends.
                found.update(repr(leaf.tolist()).encode())
            else:
                found.update(np.ascontiguousarray(leaf).tobytes())
    return found.digest()


def as_components(element: Any) -> tuple[Any, ...]:
    """Reads an element as Keras does: (x,), (x, y) or (x, y, weight).

    Args:
        element: what a data set yields.

    Returns:
        A tuple of one to three components.

    Raises:
        ValueError: for a tuple of another length.
    """
    if not isinstance(element, (list, tuple)):
        return (element,)
    element = tuple(element)
    if not 1 <= len(element) <= 3:
        raise ValueError(
            "An example must be x, (x, y) or (x, y, sample_weight), got a "
            f"tuple of {len(element)}."
        )
    return element


def components_structure(components: tuple[Any, ...]) -> tuple[Any, ...]:
    """The nesting of `components` alone, holding on to no data."""
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
            "dense first (`.to_tensor()` or `tf.sparse.to_dense`)."
        )
    if not is_array(leaf):
        raise TypeError(
            "Every leaf of `x`, `y` and `sample_weight` must be an array, got "
            f"{leaf!r:.50} of type {type(leaf).__name__}. Convert lists with "
            "`np.asarray`."
        )
    array = leaf.numpy() if isinstance(leaf, tf.Tensor) else np.asarray(leaf)
    if array.ndim < 1:
        raise ValueError(
            "Every array needs a first dimension over examples, got the "
            f"scalar {array!r:.50}."
        )
    return tf_compatible(array)


def tf_compatible(array: np.ndarray) -> np.ndarray:
    """Strings become arrays of bytes objects; other objects are refused."""
    if array.dtype.kind in "OUS":
        flat = array.ravel().tolist()
        if not all(isinstance(item, (str, bytes)) for item in flat):
            raise ValueError(
                "An array of Python objects must hold strings only. Pad "
                "sequences of different lengths to one shape first."
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
            "it to numbers or strings first."
        ) from None
    return array


def fit_dtype(dtype: np.dtype) -> tf.DType:
    """The dtype `fit` gives to an array: floats become Keras's `floatx`."""
    dtype = tf.as_dtype(dtype)
    return tf.as_dtype(keras.config.floatx()) if dtype.is_floating else dtype
