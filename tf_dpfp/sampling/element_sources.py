"""Sources of objects that hold whole examples."""

import time
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_dpfp import user_warnings
from tf_dpfp.keras_private import datasets
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


# Seconds after which reading shows a progress bar.
_PATIENCE = 5.0


# What may come after a batch and leaves it as it is.
_KEEPING = (
    "_AssertCardinalityDataset",
    "_CacheDataset",
    "CacheDataset",
    "_OptionsDataset",
    "_PrefetchDataset",
    "_ShuffleDataset",
)


def from_dataset(dataset: tf.data.Dataset) -> Source:
    """Reads a data set of single examples, or of batches, into memory."""
    size = int(dataset.cardinality())
    if size != tf.data.INFINITE_CARDINALITY and _is_batched(dataset):
        dataset = _unbatched(dataset)
        size = int(dataset.cardinality())
    if size == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            "The data set is infinite. Leave out `.repeat()`: every example "
            "must be in it exactly once. Received: cardinality -1"
        )
    _refuse_batched(dataset)
    if size == tf.data.UNKNOWN_CARDINALITY:
        raise ValueError(
            "The cardinality of the data set is unknown. Declare it with "
            "`.apply(tf.data.experimental.assert_cardinality(n))`. "
            "Received: cardinality -2"
        )
    specs = tuple(
        keras.tree.flatten(source_lib.as_components(dataset.element_spec))
    )
    for spec in specs:
        if not isinstance(spec, tf.TensorSpec):
            raise ValueError(
                "Examples must be made of dense tensors. Make them dense "
                f"first. Received: {spec}"
            )
        if spec.shape.rank is None or None in spec.shape.as_list():
            raise ValueError(
                "An element has an unknown shape: it is a batch or of varying "
                "length. Use `.unbatch()`, or pad to one shape and declare it "
                f"with `tf.ensure_shape`. Received: {spec}"
            )
    structure = source_lib.components_structure(
        source_lib.as_components(dataset.element_spec)
    )
    if size == 0:
        return Source(0, structure, specs, lambda _: ())
    chunks = [
        tuple(keras.tree.flatten(source_lib.as_components(chunk)))
        for chunk in _with_progress(dataset, size)
    ]
    leaves = tuple(np.concatenate(parts) for parts in zip(*chunks, strict=True))
    if len(leaves[0]) != size:
        raise ValueError(
            f"The data set must have as many examples as its cardinality, "
            f"{size}. Received: {len(leaves[0])} examples"
        )

    def take(indices: np.ndarray) -> Leaves:
        return tuple(np.take(leaf, indices, axis=0) for leaf in leaves)

    return Source(size, structure, specs, take)


def _is_batched(dataset: tf.data.Dataset) -> bool:
    """Tells if a data set consists of batches that nothing has touched."""
    node = dataset
    while type(node).__name__ in _KEEPING:
        (node,) = datasets.made_of(node)
    specs = keras.tree.flatten(dataset.element_spec)
    if not all(isinstance(spec, tf.TensorSpec) for spec in specs):
        return False
    if type(node).__name__ not in ("_BatchDataset", "_ParallelBatchDataset"):
        return False
    # Batches of batches would hold examples that are batches.
    for below in datasets.made_of(node):
        _refuse_batched(below)
    return True


def _unbatched(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Takes the examples out of batches, and counts them.

    Raises:
        ValueError: If examples may have been left out: which ones would depend
            on how many there are.
    """
    for spec in keras.tree.flatten(dataset.element_spec):
        if spec.shape.rank and spec.shape[0] is not None:
            raise ValueError(
                "The data set is batched with drop_remainder=True, which "
                "leaves examples out by their number: one more would change "
                "which. Leave out `drop_remainder=True`, or `.batch()`. "
                f"Received: {dataset!r}"
            )
    size = 0
    for batch in dataset:
        size += int(tf.shape(keras.tree.flatten(batch)[0])[0])
    user_warnings.warn(
        f"The data set is batched. Its {size} examples are taken out of their "
        "batches, and drawn one by one; leave out `.batch()` to read them "
        "once only.",
        UserWarning,
    )
    return dataset.unbatch().apply(
        tf.data.experimental.assert_cardinality(size)
    )


def _with_progress(dataset: tf.data.Dataset, size: int) -> Iterator[Any]:
    """Reads chunks of examples; shows how far it is, if it takes long."""
    start, read, bar = time.monotonic(), 0, None
    for chunk in dataset.batch(source_lib.CHUNK).as_numpy_iterator():
        yield chunk
        read = min(read + source_lib.CHUNK, size)
        if bar is None and time.monotonic() - start > _PATIENCE:
            bar = keras.utils.Progbar(size, unit_name="example")
        if bar is not None:
            bar.update(read, finalize=read == size)


def _refuse_batched(dataset: tf.data.Dataset) -> None:
    """Refuses data sets whose elements are batches or come repeatedly."""
    pending = [(dataset, False)]
    while pending:
        node, unbatched = pending.pop()
        name = type(node).__name__
        if name == "_RepeatDataset":
            raise ValueError(
                "The data set repeats its examples, and the guarantee is for "
                "an example that is in it once. Leave out `.repeat()`. "
                f"Received: {dataset!r}"
            )
        if name in _BATCHING and not unbatched:
            raise ValueError(
                "The data set is batched already, but examples are drawn one "
                "by one. Leave out `.batch()`, or add `.unbatch()`. "
                f"Received: {dataset!r}"
            )
        unbatched = unbatched or name in _UNBATCHING
        inputs = getattr(node, "_inputs", lambda: ())()
        pending.extend((child, unbatched) for child in inputs)


def from_random_access(data: Any) -> Source:
    """Wraps an object with `__len__` and `__getitem__`."""
    size = len(data)
    if size == 0:
        return Source(0, (), (), lambda _: ())
    structure, first = _element_leaves(data[0])
    specs = tuple(_spec(leaf) for leaf in first)

    def take(indices: np.ndarray) -> Leaves:
        out = _allocate(specs, len(indices))
        wanted = indices.tolist()
        if hasattr(data, "__getitems__") and wanted:
            elements = data.__getitems__(wanted)
        else:
            elements = (data[index] for index in wanted)
        for place, (index, element) in enumerate(
            zip(wanted, elements, strict=True)
        ):
            found, leaves = _element_leaves(element)
            _check_same(f"Example {index}", found, leaves, structure, specs)
            for column, leaf in zip(out, leaves, strict=True):
                # With the ellipsis a scalar string is copied, not nested.
                column[place, ...] = leaf
        return out

    return Source(size, structure, specs, take)


def from_pydataset(data: keras.utils.PyDataset) -> Source:
    """Wraps a PyDataset; single examples are cut out of its batches."""
    count = data.num_batches
    if count is None or count == float("inf"):
        raise ValueError(
            "The PyDataset has no length. Give it a finite `__len__`: its "
            "examples must be known to be drawn from. "
            f"Received: num_batches={count}"
        )
    count = int(count)
    if count == 0:
        return Source(0, (), (), lambda _: ())
    structure, first = _element_leaves(data[0])
    last = _element_leaves(data[count - 1])[1]
    full, rest = _size_of(first, 0), _size_of(last, count - 1)
    specs = tuple(_spec(leaf, skip=1) for leaf in first)

    def take(indices: np.ndarray) -> Leaves:
        out = _allocate(specs, len(indices))
        batches = indices // full
        for batch in np.unique(batches).tolist():
            found, leaves = _element_leaves(data[batch])
            size = _size_of(leaves, batch)
            expected = rest if batch == count - 1 else full
            if size != expected:
                raise ValueError(
                    f"Batch {batch} of the PyDataset must have {expected} "
                    "examples: all batches but the last must have as many as "
                    f"the first. Received: {size} examples"
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
            "The last batch of the PyDataset must not be larger than the "
            f"first, of {full} examples. Received: {rest} examples"
        )
    return Source((count - 1) * full + rest, structure, specs, take)


def _size_of(leaves: Leaves, batch: int) -> int:
    """Returns the number of examples in a batch of a PyDataset."""
    sizes = {leaf.shape[0] if leaf.ndim else -1 for leaf in leaves}
    if len(sizes) != 1 or -1 in sizes:
        raise ValueError(
            f"The arrays of batch {batch} of the PyDataset must not have "
            "different numbers of examples. Received: shapes "
            f"{[leaf.shape for leaf in leaves]}"
        )
    return sizes.pop()


def _spec(leaf: np.ndarray, skip: int = 0) -> tf.TensorSpec:
    return tf.TensorSpec(leaf.shape[skip:], tf.as_dtype(leaf.dtype))


def _allocate(specs: tuple[tf.TensorSpec, ...], size: int) -> Leaves:
    return tuple(
        np.empty((size, *spec.shape), spec.dtype.as_numpy_dtype)
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
    """Refuses examples unlike the first one."""
    # Writing into an array would broadcast or cast in silence.
    keras.tree.assert_same_structure(found, structure)
    these = tuple(_spec(leaf, skip) for leaf in leaves)
    if these != specs:
        raise ValueError(
            f"{name} is unlike the first. All examples need the same shapes "
            "and dtypes: pad or convert them first. Received: "
            f"{these} instead of {specs}"
        )


def _element_leaves(element: Any) -> tuple[tuple[Any, ...], Leaves]:
    """Returns the structure and the arrays of one example or batch."""
    components = source_lib.as_components(element)
    leaves = []
    for leaf in keras.tree.flatten(components):
        if leaf is None:
            raise ValueError(
                "A component of the examples is None. Leave it out. "
                f"Received: {len(components)} components"
            )
        if isinstance(leaf, (tf.RaggedTensor, tf.SparseTensor)):
            leaf = source_lib.to_array(leaf)
        if isinstance(leaf, tf.Tensor):
            leaf = leaf.numpy()
        leaf = np.asarray(leaf, np.float32 if type(leaf) is float else None)
        leaves.append(source_lib.tf_compatible(leaf))
    return source_lib.components_structure(components), tuple(leaves)
