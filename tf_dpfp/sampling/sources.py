"""One view of everything a user may keep examples in.

A `Source` knows how many examples there are and fetches any of them, as flat
numpy arrays with a leading dimension over examples.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

Leaves = tuple[np.ndarray, ...]

# Transformations after which an element is no longer one example, and those
# which undo them. Private class names: when TensorFlow renames one, only the
# early refusal is lost.
_BATCHING = (
    "_BatchDataset",
    "_ParallelBatchDataset",
    "_PaddedBatchDataset",
    "_DenseToRaggedDataset",
    "_DenseToSparseBatchDataset",
    "_RebatchDataset",
    "_LegacyRebatchDataset",
    "_WindowDataset",
    "_GroupByWindowDataset",
    "_MapAndBatchDataset",
)
_UNBATCHING = ("_UnbatchDataset", "_FlatMapDataset", "_InterleaveDataset")
_UNBATCHING += ("_ParallelInterleaveDataset",)
_CHUNK = 1024


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
    if cache and from_elements in (_from_random_access, _from_pydataset):
        leaves = source.take(np.arange(source.size))
        return dataclasses.replace(source, take=_taker(leaves))
    return source


def _element_source(x: Any) -> Callable[[Any], Source] | None:
    """The reader for objects that hold whole examples; None for arrays."""
    if isinstance(x, tf.data.Dataset):
        return _from_dataset
    if isinstance(x, keras.utils.PyDataset):
        return _from_pydataset
    if isinstance(x, (dict, list, tuple, str, bytes)) or _is_array(x):
        return None
    if hasattr(x, "__getitem__") and hasattr(x, "__len__"):
        return _from_random_access
    raise TypeError(
        f"Examples cannot be drawn from a {type(x).__name__}: that needs a "
        "length and access by index. Pass arrays, a tf.data.Dataset of single "
        "examples, a keras.utils.PyDataset, or an object with `__len__` and "
        "`__getitem__`."
    )


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
    for first in range(0, source.size, _CHUNK):
        rows = np.arange(first, min(first + _CHUNK, source.size))
        for leaf in source.take(rows):
            if leaf.dtype == object:
                # A list says where each of the strings ends.
                found.update(repr(leaf.tolist()).encode())
            else:
                found.update(np.ascontiguousarray(leaf).tobytes())
    return found.digest()


# --- arrays ---------------------------------------------------------------


def _from_arrays(components: tuple[Any, ...]) -> Source:
    components = keras.tree.lists_to_tuples(components)
    arrays = [_to_array(leaf) for leaf in keras.tree.flatten(components)]
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
        structure=components_structure(components),
        specs=tuple(
            tf.TensorSpec(array.shape[1:], _fit_dtype(array.dtype))
            for array in arrays
        ),
        take=_taker(arrays),
    )


def _taker(arrays: Any) -> Callable[[np.ndarray], Leaves]:
    arrays = tuple(arrays)
    dtypes = tuple(_fit_dtype(a.dtype).as_numpy_dtype for a in arrays)

    def take(indices: np.ndarray) -> Leaves:
        return tuple(
            np.take(array, indices, axis=0).astype(dtype, copy=False)
            for array, dtype in zip(arrays, dtypes, strict=True)
        )

    return take


def _fit_dtype(dtype: np.dtype) -> tf.DType:
    """The dtype `fit` gives to an array: floats become Keras's `floatx`."""
    dtype = tf.as_dtype(dtype)
    return tf.as_dtype(keras.config.floatx()) if dtype.is_floating else dtype


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "__array__") or isinstance(
        leaf, (tf.RaggedTensor, tf.SparseTensor)
    )


def _to_array(leaf: Any) -> np.ndarray:
    if isinstance(leaf, (tf.RaggedTensor, tf.SparseTensor)):
        raise ValueError(
            f"Examples cannot be drawn from a {type(leaf).__name__}. Make it "
            "dense first (`.to_tensor()` or `tf.sparse.to_dense`)."
        )
    if not _is_array(leaf):
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
    return _tf_compatible(array)


def _tf_compatible(array: np.ndarray) -> np.ndarray:
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


# --- objects that hold whole examples -------------------------------------


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


def _element_leaves(element: Any) -> tuple[tuple[Any, ...], Leaves]:
    components = as_components(element)
    leaves = []
    for leaf in keras.tree.flatten(components):
        if leaf is None:
            raise ValueError(
                "A component of the examples is None. Leave it out."
            )
        if isinstance(leaf, (tf.RaggedTensor, tf.SparseTensor)):
            leaf = _to_array(leaf)
        if isinstance(leaf, tf.Tensor):
            leaf = leaf.numpy()
        leaf = np.asarray(leaf, np.float32 if type(leaf) is float else None)
        leaves.append(_tf_compatible(leaf))
    return components_structure(components), tuple(leaves)


def _from_dataset(dataset: tf.data.Dataset) -> Source:
    size = int(dataset.cardinality())
    if size == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            "The data set is infinite (cardinality -1). Leave out `.repeat()`: "
            "every example must be in it exactly once."
        )
    _refuse_batched(dataset)
    if size == tf.data.UNKNOWN_CARDINALITY:
        raise ValueError(
            "The cardinality of the data set is unknown (-2). Declare it with "
            "`.apply(tf.data.experimental.assert_cardinality(n))`."
        )
    specs = tuple(keras.tree.flatten(as_components(dataset.element_spec)))
    for spec in specs:
        if not isinstance(spec, tf.TensorSpec):
            raise ValueError(
                f"Examples must be made of dense tensors, got a "
                f"{type(spec).__name__}. Make them dense first."
            )
        if spec.shape.rank is None or None in spec.shape.as_list():
            raise ValueError(
                f"An element has the unknown shape {spec.shape}: it is a batch "
                "or of varying length. Use `.unbatch()`, or pad to one shape "
                "and declare it with `tf.ensure_shape`."
            )
    structure = components_structure(as_components(dataset.element_spec))
    if size == 0:
        return Source(0, structure, specs, lambda _: ())
    chunks = [
        tuple(keras.tree.flatten(as_components(chunk)))
        for chunk in dataset.batch(_CHUNK).as_numpy_iterator()
    ]
    leaves = tuple(np.concatenate(parts) for parts in zip(*chunks, strict=True))
    if len(leaves[0]) != size:
        raise ValueError(
            f"The data set says it has {size} examples but yielded "
            f"{len(leaves[0])}."
        )
    return Source(
        size, structure, specs, lambda indices: _rows(leaves, indices)
    )


def _rows(leaves: Leaves, indices: np.ndarray) -> Leaves:
    return tuple(np.take(leaf, indices, axis=0) for leaf in leaves)


def _refuse_batched(dataset: tf.data.Dataset) -> None:
    pending = [(dataset, False)]
    while pending:
        node, unbatched = pending.pop()
        name = type(node).__name__
        if name == "_RepeatDataset":
            raise ValueError(
                "The data set repeats its examples, and the guarantee is for "
                "an example that is in it once. Leave out `.repeat()`."
            )
        if name in _BATCHING and not unbatched:
            raise ValueError(
                "The data set is batched already, but examples are drawn one "
                "by one. Leave out `.batch()`, or add `.unbatch()`."
            )
        unbatched = unbatched or name in _UNBATCHING
        inputs = getattr(node, "_inputs", lambda: ())()
        pending.extend((child, unbatched) for child in inputs)


def _from_random_access(data: Any) -> Source:
    size = len(data)
    if size == 0:
        return Source(0, (), (), lambda _: ())
    structure, first = _element_leaves(data[0])
    specs = tuple(_spec(leaf) for leaf in first)

    def take(indices: np.ndarray) -> Leaves:
        out = _allocate(specs, len(indices))
        indices = [int(index) for index in indices]
        if hasattr(data, "__getitems__") and indices:
            elements = data.__getitems__(indices)
        else:
            elements = (data[index] for index in indices)
        for row, (index, element) in enumerate(
            zip(indices, elements, strict=True)
        ):
            found, leaves = _element_leaves(element)
            _check_same(f"Example {index}", found, leaves, structure, specs)
            for column, leaf in zip(out, leaves, strict=True):
                # With the ellipsis a scalar string is copied, not nested.
                column[row, ...] = leaf
        return out

    return Source(size, structure, specs, take)


def _from_pydataset(data: keras.utils.PyDataset) -> Source:
    count = data.num_batches
    if count is None or count == float("inf"):
        raise ValueError(
            "The PyDataset has no length. Give it a finite `__len__`: its "
            "examples must be known to be drawn from."
        )
    count = int(count)
    if count == 0:
        return Source(0, (), (), lambda _: ())
    structure, first = _element_leaves(data[0])
    last = _element_leaves(data[count - 1])[1]
    full, rest = _batch_rows(first, 0), _batch_rows(last, count - 1)
    specs = tuple(_spec(leaf, skip=1) for leaf in first)

    def take(indices: np.ndarray) -> Leaves:
        out = _allocate(specs, len(indices))
        batches = indices // full
        for batch in np.unique(batches).tolist():
            found, leaves = _element_leaves(data[batch])
            rows = _batch_rows(leaves, batch)
            expected = rest if batch == count - 1 else full
            if rows != expected:
                raise ValueError(
                    f"Batch {batch} of the PyDataset has {rows} rows instead "
                    f"of {expected}: all but the last must have as many as "
                    "the first."
                )
            _check_same(
                f"Batch {batch}", found, leaves, structure, specs, skip=1
            )
            where = np.flatnonzero(batches == batch)
            for column, leaf in zip(out, leaves, strict=True):
                column[where] = leaf[indices[where] - batch * full]
        return out

    if rest > full:
        raise ValueError(
            f"The last batch of the PyDataset has {rest} rows and the first "
            f"{full}: all but the last must have as many as the first."
        )
    return Source((count - 1) * full + rest, structure, specs, take)


def _batch_rows(leaves: Leaves, batch: int) -> int:
    rows = {leaf.shape[0] if leaf.ndim else None for leaf in leaves}
    if len(rows) != 1 or None in rows:
        raise ValueError(
            f"The arrays of batch {batch} of the PyDataset have different "
            f"numbers of rows: {[leaf.shape for leaf in leaves]}."
        )
    return rows.pop()


def _spec(leaf: np.ndarray, skip: int = 0) -> tf.TensorSpec:
    return tf.TensorSpec(leaf.shape[skip:], tf.as_dtype(leaf.dtype))


def _allocate(specs: tuple[tf.TensorSpec, ...], rows: int) -> Leaves:
    return tuple(
        np.empty((rows, *spec.shape), spec.dtype.as_numpy_dtype)
        for spec in specs
    )


def _check_same(
    name: str,
    found: Any,
    leaves: Leaves,
    structure: Any,
    specs: tuple[tf.TensorSpec, ...],
    skip: int = 0,
) -> None:
    """Writing into an array would broadcast or cast in silence."""
    keras.tree.assert_same_structure(found, structure)
    got = tuple(_spec(leaf, skip) for leaf in leaves)
    if got != specs:
        raise ValueError(
            f"{name} has {got} where the first has {specs}. All examples need "
            "the same shapes and dtypes: pad or convert them first."
        )
