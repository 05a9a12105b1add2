"""Wraps whatever a user keeps examples in as a `Source`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_dpfp.sampling import element_sources
from tf_dpfp.sampling import source as source_lib
from tf_dpfp.sampling.source import Leaves
from tf_dpfp.sampling.source import Source


def make_source(
    x: Any, y: Any = None, sample_weight: Any = None, cache: bool = False
) -> Source:
    """Recognises what `x` is and wraps it.

    Args:
        x: see `poisson_batches`, as for the others.
        y: targets, for arrays only.
        sample_weight: weights, for arrays only.
        cache: whether to keep what is read one by one in memory.

    Returns:
        The `Source`.

    Raises:
        ValueError: if the examples cannot be counted or cannot be addressed one
            by one.
        TypeError: if `x` is none of the supported kinds.
    """
    if x is None:
        raise ValueError("`x` is None. Pass the examples to draw from.")
    from_elements = _element_source(x)
    if from_elements is None:
        if sample_weight is not None and y is None:
            raise ValueError("`sample_weight` needs `y`, got y=None.")
        given = (x, y, sample_weight)
        source = _from_arrays(tuple(part for part in given if part is not None))
    else:
        if y is not None or sample_weight is not None:
            raise ValueError(
                f"`y` and `sample_weight` cannot be given beside a "
                f"{type(x).__name__}. Let it yield (x, y) or "
                "(x, y, sample_weight) itself."
            )
        source = from_elements(x)
    if source.size == 0:
        raise ValueError("The data set is empty: there is nothing to draw.")
    if cache and from_elements in (
        element_sources.from_random_access,
        element_sources.from_pydataset,
    ):
        leaves = source.take(np.arange(source.size))
        return dataclasses.replace(source, take=_taker(leaves))
    return source


def _element_source(x: Any) -> Callable[[Any], Source] | None:
    """The reader for objects that hold whole examples; None for arrays."""
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
        "`__getitem__`."
    )


def _from_arrays(components: tuple[Any, ...]) -> Source:
    components = keras.tree.lists_to_tuples(components)
    arrays = [
        source_lib.to_array(leaf) for leaf in keras.tree.flatten(components)
    ]
    if not arrays:
        raise ValueError("`x` holds no array at all.")
    sizes = [array.shape[0] for array in arrays]
    if len(set(sizes)) > 1:
        raise ValueError(
            "`x`, `y` and `sample_weight` need the same number of examples, "
            f"got arrays of {sizes}."
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


def _taker(arrays: Any) -> Callable[[np.ndarray], Leaves]:
    arrays = tuple(arrays)
    dtypes = tuple(source_lib.fit_dtype(a.dtype).as_numpy_dtype for a in arrays)

    def take(indices: np.ndarray) -> Leaves:
        return tuple(
            np.take(array, indices, axis=0).astype(dtype, copy=False)
            for array, dtype in zip(arrays, dtypes, strict=True)
        )

    return take
