"""Sources of objects that hold whole examples."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_dpfp.sampling import source as source_lib
from tf_dpfp.sampling.source import Leaves
from tf_dpfp.sampling.source import Source

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
_UNBATCHING = (
    "_UnbatchDataset",
    "_FlatMapDataset",
    "_InterleaveDataset",
    "_ParallelInterleaveDataset",
)


def from_dataset(dataset: tf.data.Dataset) -> Source:
    """Reads a data set of single examples into memory."""
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
    specs = tuple(
        keras.tree.flatten(source_lib.as_components(dataset.element_spec))
    )
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
    structure = source_lib.components_structure(
        source_lib.as_components(dataset.element_spec)
    )
    if size == 0:
        return Source(0, structure, specs, lambda indices: ())
    chunks = [
        tuple(keras.tree.flatten(source_lib.as_components(chunk)))
        for chunk in dataset.batch(source_lib.CHUNK).as_numpy_iterator()
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


def from_random_access(data: Any) -> Source:
    """Wraps an object with `__len__` and `__getitem__`."""
    size = len(data)
    if size == 0:
        return Source(0, (), (), lambda indices: ())
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


def from_pydataset(data: keras.utils.PyDataset) -> Source:
    """Wraps a PyDataset; single examples are cut out of its batches."""
    count = data.num_batches
    if count is None or count == float("inf"):
        raise ValueError(
            "The PyDataset has no length. Give it a finite `__len__`: its "
            "examples must be known to be drawn from."
        )
    count = int(count)
    if count == 0:
        return Source(0, (), (), lambda indices: ())
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


def _element_leaves(element: Any) -> tuple[tuple[Any, ...], Leaves]:
    components = source_lib.as_components(element)
    leaves = []
    for leaf in keras.tree.flatten(components):
        if leaf is None:
            raise ValueError(
                "A component of the examples is None. Leave it out."
            )
        if isinstance(leaf, (tf.RaggedTensor, tf.SparseTensor)):
            leaf = source_lib.to_array(leaf)
        if isinstance(leaf, tf.Tensor):
            leaf = leaf.numpy()
        leaf = np.asarray(leaf, np.float32 if type(leaf) is float else None)
        leaves.append(source_lib.tf_compatible(leaf))
    return source_lib.components_structure(components), tuple(leaves)
