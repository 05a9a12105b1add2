"""Rules of constants, variables and tables, and of whatever leaves the graph.

What a step writes, prints or hands to Python is released without noise. It
must be free of data and of the batch size.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow.python.ops import handle_data_util

from tf_dpfp.independence import findings
from tf_dpfp.independence import inferred
from tf_dpfp.independence import registry
from tf_dpfp.independence import seed_origins
from tf_dpfp.independence import sizes as sizes_lib
from tf_dpfp.independence import values as values_lib
from tf_dpfp.independence.findings import Category
from tf_dpfp.independence.registry import Walk
from tf_dpfp.independence.sizes import Size
from tf_dpfp.independence.values import Kind
from tf_dpfp.independence.values import Range
from tf_dpfp.independence.values import Value
from tf_dpfp.keras_private import graphs

# Larger constants are not looked at: only whether they are equal matters.
_MOST_ELEMENTS = 2**20
_MOST_NUMBERS = 64
# Tables of single keys.
_TABLES = ("HashTableV2", "MutableHashTableV2", "AnonymousHashTable")
# Of the property of `tf.distribute.ReplicaContext`; its constant is named so.
_REPLICA = "replica_id_in_sync_group"


@registry.rule("Const")
def constant(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Reads a constant."""
    del values, walk
    output = op.outputs[0]
    if _numbers_replica(op):
        raise findings.Refusal(
            "It is the number of the replica, which tells where in the batch "
            "an example is.",
            "Let the model do the same on all replicas.",
        )
    count = output.shape.num_elements()
    if count is not None and count <= _MOST_NUMBERS:
        return _described(op.get_attr("value").SerializeToString())
    sizes = inferred.sizes_of(output.shape)
    if sizes is None or count > _MOST_ELEMENTS:
        return values_lib.free(sizes)
    array = tf.get_static_value(output)
    return values_lib.free(sizes) if array is None else describe(array)


@functools.lru_cache(2**12)
def _described(written: bytes) -> Value:
    """Describes a constant of few elements; a graph repeats many."""
    return describe(tf.make_ndarray(tensor_pb2.TensorProto.FromString(written)))


def _numbers_replica(op: tf.Operation) -> bool:
    """Tells the constant that TensorFlow makes of the number of a replica."""
    if not op.name.rpartition("/")[2].startswith(_REPLICA):
        return False
    return tf.distribute.get_strategy().num_replicas_in_sync > 1


def describe(array: np.ndarray) -> Value:
    """Describes known elements."""
    array = np.asarray(array)  # The value of a string has no shape.
    sizes = tuple(Size.of(s) for s in array.shape)
    whole = array.dtype.kind in "iub"
    if whole and array.size <= _MOST_NUMBERS:
        return values_lib.free(sizes, [Size.of(n) for n in array.ravel()])
    if array.size == 1:
        return Value(Kind.UNIFORM, sizes)
    ranges = None
    if whole:
        ranges = (Range(Size.of(array.min()), Size.of(array.max())),)
    if array.dtype.kind in "iufcb" and array.size:
        # Of the same bytes: zeros of both signs are equal, their inverses not.
        first = array.ravel()[:1].tobytes()
        if array.tobytes() == first * array.size:
            return Value(Kind.UNIFORM, sizes, ranges=ranges)
    return values_lib.free(sizes, None, False, ranges)


@registry.rule("Placeholder")
def outside(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Reads an argument: a batch that is not the one of the proof."""
    del op, values, walk
    raise findings.Refusal(
        "It reads a tensor from outside of the step, which may hold data.",
        "Give it to the model as an input, with one row for each example.",
    )


@registry.rule(*_TABLES)
def handle(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Names a table; a variable that is found by name may have any shape."""
    del values, walk
    return Value(Kind.RESOURCE, (), name=op.name)


def holding_data(name: str) -> Value:
    """Describes a variable of a metric, which holds what it saw.

    Args:
        name: Name of its handle.
    """
    return Value(Kind.RESOURCE, (), name=name, holds_data=True)


@registry.rule("ReadVariableOp", takes_lists=True)
def read(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Reads a variable: free of data, for nothing else may be written."""
    check_read(values[0])
    return values_lib.free(walk.static(op.outputs[0]))


@registry.rule("RngReadAndSkip", takes_lists=True)
def read_and_skip(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> Value:
    """Reads the state of a generator, and moves it on by a number."""
    _check_resource(values[0])
    if not all(map(_is_harmless, values)):
        raise findings.Refusal("The data decide how far it skips.")
    return values_lib.free(walk.static(op.outputs[0]))


def check_read(value: Value) -> None:
    """Raises for a variable that may hold data.

    Args:
        value: Description of its handle.

    Raises:
        Refusal: If it is one of a metric, or data choose it.
    """
    _check_resource(value)
    if value.holds_data:
        raise findings.Refusal(
            "It reads a metric, which holds what it saw of earlier examples, "
            "without noise.",
            "Keep what the loss and the layers need in variables that nothing "
            "but the optimizer writes.",
        )


def _check_resource(value: Value) -> None:
    if value.kind is not Kind.RESOURCE:
        raise findings.Refusal("It reads a variable that data choose.")


@registry.rule("VariableShape", "VarIsInitializedOp", takes_lists=True)
def about_variable(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> Value:
    """Reads the shape of a variable, or that it has a value."""
    _check_resource(values[0])
    return values_lib.free(walk.static(op.outputs[0]))


@registry.rule("EagerPyFunc", "PyFunc", "PyFuncStateless", takes_lists=True)
def python(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Runs Python code, which may know anything."""
    del op, values, walk
    raise findings.Refusal(
        "It runs Python code, of which nothing can be proved.",
        "Compute it with operations of Keras or TensorFlow.",
    )


@registry.rule("LookupTableFindV2", takes_lists=True)
def look_up(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Looks keys up in a table that is never written to."""
    del walk
    table, keys, default = values
    _check_resource(table)
    if default.is_examples:
        raise findings.Refusal("The data decide its default.")
    if default.sizes != () or not _maps_single_keys(op):
        raise findings.Refusal(
            "It looks up a table that may hold vectors, or is looked up by "
            "them.",
            "Use a `tf.lookup.StaticHashTable`.",
            is_definite=False,
        )
    if keys.is_examples:
        return values_lib.examples(keys.shape, keys.example_layout)
    if keys.kind is Kind.UNIFORM:
        return values_lib.uniform(keys.sizes, keys.hangs_on_batch)
    return values_lib.free(keys.sizes, None, keys.hangs_on_batch)


@tf.autograph.experimental.do_not_convert
def _maps_single_keys(op: tf.Operation) -> bool:
    """Tells if the keys of a table are no vectors, by looking one up.

    Its values are none: a default that is one number would not fit.
    """
    table = seed_origins.outside(op.inputs[0])
    if not hasattr(table, "numpy"):
        return table.op.type in _TABLES
    with tf.init_scope():
        key, value = (
            tf.zeros([], tensor.dtype)
            for tensor in (op.inputs[1], op.outputs[0])
        )
        try:
            tf.raw_ops.LookupTableFindV2(
                table_handle=table, keys=key, default_value=value
            )
        except tf.errors.OpError:
            return False
    return True


@registry.rule("LookupTableSizeV2", takes_lists=True)
def table_size(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Counts a table's keys."""
    del op, walk
    _check_resource(values[0])
    return values_lib.free(())


# Operations with a state of their own that only read.
READS = frozenset(
    """
    AnonymousHashTable AnonymousSeedGenerator Empty HashTableV2
    LookupTableFindV2 LookupTableSizeV2 Multinomial MutableHashTableV2 NoOp
    Placeholder RandomStandardNormal RandomUniform RandomUniformInt
    ReadVariableOp ResourceGather ResourceGatherNd TruncatedNormal VarHandleOp
    VarIsInitializedOp VariableShape
    """.split()
)
# Beginnings of operations that write to the variable that comes first.
_WRITES = ("Assign", "Resource", "Rng")
_PRINTS = frozenset(
    """
    Print PrintV2 StringFormat WriteAudioSummary WriteHistogramSummary
    WriteImageSummary WriteRawProtoSummary WriteScalarSummary WriteSummary
    """.split()
)
_PYTHON = frozenset("EagerPyFunc NumpyFunction PyFunc PyFuncStateless".split())
# Operations that stop a step, and the input that makes them do so.
_ABORTS = {
    "Assert": 0,
    "CheckNumerics": 0,
    "CheckNumericsV2": 0,
    "StringToNumber": 0,
}


def effect(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> findings.Finding | None:
    """Judges what an operation does besides its outputs.

    Args:
        op: An operation.
        values: Its inputs.
        walk: The walk.

    Returns:
        A `Finding`, or `None` if nothing of the data leaves.
    """
    if op.type in READS:
        return None
    if op.type in _PYTHON:
        return walk.finding(
            op,
            Category.PYTHON,
            "It runs Python code, of which nothing can be proved.",
            "Compute it with operations of Keras or TensorFlow.",
        )
    if walk.counting and op.type not in _ABORTS and not _is_kept(op, walk):
        return walk.finding(
            op,
            Category.WRITE,
            "It writes something once for every example, micro-batch, or "
            "batch of an evaluation, which tells how many there are.",
            "Write outside of the loop over examples, only if `training` is "
            "true, and train without a `microbatch_size`.",
        )
    if op.type.startswith(_WRITES):
        if _writes_another_shape(op, values):
            return dataclasses.replace(
                walk.finding(op, Category.WRITE, *inferred.UNPROVED_SHAPE),
                is_definite=False,
            )
        if all(_is_harmless(v) for v in values):
            return None
        name = values[0].name or "a variable"
        return walk.finding(
            op,
            Category.WRITE,
            f"It writes to '{name}' what comes from the data, or from the "
            "batch size: statistics of the data would leave without noise.",
            "Replace the layer, or set `layer.trainable = False` if that "
            "stops it.",
        )
    if op.type in _ABORTS:
        stops = not _is_harmless(values[_ABORTS[op.type]])
        return abort(op, walk) if stops else None
    prints = op.type in _PRINTS
    if prints and all(_is_harmless(v) for v in values):
        return None
    found = walk.finding(
        op,
        Category.OUTPUT,
        "It writes, prints or keeps something outside of the model.",
        "Remove it while the model trains.",
    )
    # Of any other operation with state nothing is known.
    is_definite = prints or op.type.startswith("Write")
    return dataclasses.replace(found, is_definite=is_definite)


def _writes_another_shape(op: tf.Operation, values: Sequence[Value]) -> bool:
    """Tells if a variable may get a value of another shape than it has.

    No kernel compares the two, and what reads it is believed to have its shape.
    """
    if op.type != "AssignVariableOp" or values[1].kind is Kind.MIXED:
        return False
    known = handle_data_util.get_resource_handle_data(op.inputs[0])
    return any(
        inferred.says_more(tf.TensorShape(s.shape), values[1].sizes)
        for s in known.shape_and_type
    )


def _is_kept(op: tf.Operation, walk: Walk) -> bool:
    writes = op.type.startswith(_WRITES)
    return writes and id(seed_origins.outside(op.inputs[0])) in walk.kept


def _is_harmless(value: Value) -> bool:
    if value.kind is Kind.RESOURCE:
        return True
    if not value.is_free or value.hangs_on_batch:
        return False
    # A variable may have any shape: how many numbers there are is kept, too.
    unsure = value.sizes is None and value.kind is Kind.UNIFORM
    return not unsure and not sizes_lib.hang_on_batch(value.sizes or ())


def is_abort(op: tf.Operation) -> bool:
    """Returns true if all that an operation may do is to stop the step."""
    return op.type in _ABORTS


def abort(op: tf.Operation, walk: Walk) -> findings.Finding:
    """Describes an operation that some data let stop the step."""
    return walk.finding(
        op,
        Category.ABORT,
        "It stops the training for some data, which tells that they are there.",
        "Check the data before training.",
    )


def has_effect(op: tf.Operation) -> bool:
    """Returns true if an operation may do more than compute its outputs."""
    known = _effects.get(op.type)
    if known is None:
        keeps = op.op_def.is_stateful and op.type not in READS
        known = _effects[op.type] = keeps or op.type in _ABORTS or is_unruly(op)
    return known


_effects: dict[str, bool] = {}


def is_unruly(op: tf.Operation) -> bool:
    """Tells an operation that does more than its definition says.

    Some are defined as if they had no state, and change their inputs, write
    files, draw random numbers, share a batch with other calls, or call any.

    Args:
        op: An operation that is no function, branch or loop.
    """
    known = _unruly.get(op.type)
    if known is None:
        known = graphs.is_unruly(op.type, op.op_def)
        _unruly[op.type] = known
    return known


_unruly: dict[str, bool] = {}
