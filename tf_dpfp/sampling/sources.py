"""Sources of everything that examples may be kept in."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_dpfp import arguments
from tf_dpfp.sampling import element_sources
from tf_dpfp.sampling import mapped_arrays
from tf_dpfp.sampling import source as source_lib
from tf_dpfp.sampling.source import Leaves
from tf_dpfp.sampling.source import Source


def make_source(
    x: Any, y: Any = None, sample_weight: Any = None, cache: bool = False
) -> Source:
    """Recognises what holds the examples, and wraps it.

    Args:
        x: Examples; see `poisson_batches`.
        y: Targets, for arrays only.
        sample_weight: Weights, for arrays only.
        cache: Boolean, whether to keep a PyDataset or random-access object in
            memory.

    Returns:
        The `Source`.

    Raises:
        ValueError: If the examples cannot be counted or addressed one by one.
        TypeError: If `x` is none of the supported kinds.
    """
    cache = arguments.boolean("cache", cache)
    if x is None:
        raise ValueError(
            "`x` is None. Pass the examples to draw from. Received: x=None"
        )
    for name, part in (("x", x), ("y", y), ("sample_weight", sample_weight)):
        _refuse_sparse(name, part)
    from_elements = _element_source(x)
    if from_elements is None:
        if sample_weight is not None and y is None:
            raise ValueError(
                "`sample_weight` needs `y`. Received: sample_weight of type "
                f"{type(sample_weight).__name__}, y=None"
            )
        given = (x, y, sample_weight)
        source = _from_arrays(tuple(part for part in given if part is not None))
    else:
        if y is not None or sample_weight is not None:
            raise ValueError(
                f"`y` and `sample_weight` cannot be given beside a "
                f"{type(x).__name__}. Let it yield (x, y) or "
                "(x, y, sample_weight) itself. Received: y of type "
                f"{type(y).__name__}, sample_weight of type "
                f"{type(sample_weight).__name__}"
            )
        source = from_elements(x)
    if source.size == 0:
        raise ValueError(
            "The data set is empty: there is nothing to draw. "
            f"Received: x of type {type(x).__name__} with 0 examples"
        )
    if cache and from_elements in (
        element_sources.from_random_access,
        element_sources.from_pydataset,
    ):
        leaves = source.take(np.arange(source.size))
        return dataclasses.replace(source, take=_taker(leaves))
    return source


def _refuse_sparse(name: str, value: Any) -> None:
    """Refuses matrices of scipy.sparse, which are no arrays to Keras."""
    if type(value).__module__.startswith("scipy.sparse"):
        raise ValueError(
            f"`{name}` is a {type(value).__name__} of scipy.sparse, and "
            "examples are drawn as dense arrays. Give its `.toarray()`, or, "
            "where that does not fit into memory, an object whose `__len__` is "
            "the number of rows and whose `__getitem__` returns one of them as "
            f"(x, y), made dense. Received: {name} of shape {value.shape}"
        )


def _element_source(x: Any) -> Callable[[Any], Source] | None:
    """Returns the reader of whole examples; `None` for arrays."""
    if isinstance(x, tf.data.Dataset):
        return element_sources.from_dataset
    if isinstance(x, keras.utils.PyDataset):
        return element_sources.from_pydataset
    if isinstance(x, (dict, list, tuple, str, bytes)) or source_lib.is_array(x):
        return None
    if hasattr(x, "__getitem__") and hasattr(x, "__len__"):
        return element_sources.from_random_access
    raise TypeError(
        f"Examples cannot be drawn from a {type(x).__name__}: that needs a "
        "length and access by index. Pass arrays, a tf.data.Dataset of single "
        "examples, a keras.utils.PyDataset, or an object with `__len__` and "
        f"`__getitem__`. Received: x={x!r:.50}"
    )


def _from_arrays(components: tuple[Any, ...]) -> Source:
    components = keras.tree.lists_to_tuples(components)
    arrays = [
        source_lib.to_array(leaf) for leaf in keras.tree.flatten(components)
    ]
    if not arrays:
        raise ValueError(
            f"`x` holds no array at all. Received: {components!r:.50}"
        )
    sizes = [array.shape[0] for array in arrays]
    if len(set(sizes)) > 1:
        raise ValueError(
            "`x`, `y` and `sample_weight` need the same number of examples. "
            f"Received: arrays of {sizes}"
        )
    return Source(
        size=sizes[0],
        structure=source_lib.components_structure(components),
        specs=tuple(
            tf.TensorSpec(array.shape[1:], source_lib.fit_dtype(array.dtype))
            for array in arrays
        ),
        take=_taker(arrays),
    )


def _taker(arrays: Sequence[np.ndarray]) -> Callable[[np.ndarray], Leaves]:
    """Returns the function from indices to the examples of arrays."""
    dtypes = [source_lib.fit_dtype(a.dtype).as_numpy_dtype for a in arrays]
    mappings = [mapped_arrays.mapping_of(array) for array in arrays]

    def take(indices: np.ndarray) -> Leaves:
        for array, mapping in zip(arrays, mappings, strict=True):
            if mapping is not None:
                mapped_arrays.read_ahead(array, mapping, indices)
        return tuple(
            np.take(array, indices, axis=0).astype(dtype, copy=False)
            for array, dtype in zip(arrays, dtypes, strict=True)
        )

    return take
