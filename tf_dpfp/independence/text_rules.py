"""Rule of texts that are split and padded to a fixed length.

The words of all examples come out as one list, of which nothing is proved: the
place of a word hangs on all texts before. They are examples again once they
were put into rows of a length that is the same for all batches.
"""

from collections.abc import Sequence

import tensorflow as tf

from tf_dpfp.independence import findings
from tf_dpfp.independence import functions
from tf_dpfp.independence import registry
from tf_dpfp.independence import values as values_lib
from tf_dpfp.independence import without_rules
from tf_dpfp.independence.registry import Walk
from tf_dpfp.independence.sizes import Size
from tf_dpfp.independence.values import Kind
from tf_dpfp.independence.values import Layout
from tf_dpfp.independence.values import Value

_OF_SPLIT_TEXT = "It puts together numbers of texts, not text by text."
_LONGEST = "Its rows are as long as the longest text of the batch."
_FIXED = (
    "Give the layer a length of its own, such as `output_sequence_length=`."
)
# Operations that make each word into something, by itself: their other inputs
# must be one number, or a table.
_WORD_BY_WORD = frozenset(
    """
    Cast Equal Identity LookupTableFindV2 NotEqual SelectV2 StaticRegexReplace
    StringLower StringToHashBucketFast StringToHashBucketStrong StringUpper
    """.split()
)


@registry.rule("RaggedTensorToTensor", takes_mixed=True)
def padded(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> Value | list[Value]:
    """Pads the words of each text, and cuts them off, at a fixed length."""
    if any(v.kind is Kind.SINGLE for v in values):
        return without_rules.of_one(op, values, walk)
    shape, default, *_ = values[0], values[2]
    kinds = [k.decode() for k in op.get_attr("row_partition_types")]
    if kinds != ["FIRST_DIM_SIZE", "VALUE_ROWIDS"]:
        raise findings.Refusal(_OF_SPLIT_TEXT, is_definite=False)
    split = _split_of_rows(op.inputs[4])
    counted = _split_of_count(op.inputs[3])
    if split is None or counted is None or counted.name != split.name:
        raise findings.Refusal(_OF_SPLIT_TEXT, is_definite=False)
    if not _is_word_by_word(op.inputs[1], split, walk):
        raise findings.Refusal(_OF_SPLIT_TEXT, is_definite=False)
    texts = walk.value(split.inputs[0])
    if not texts.is_examples or texts.example_layout != Layout(0):
        raise findings.Refusal(_OF_SPLIT_TEXT, is_definite=False)
    if texts.rank != 1 or not _is_one_number(default):
        raise findings.Refusal(_OF_SPLIT_TEXT, is_definite=False)
    sizes = shape.integers("length")
    if sizes in ([-1], [-1, -1]):
        raise findings.Refusal(_LONGEST, _FIXED)
    if len(sizes) != 2 or sizes[0] != -1:
        raise findings.Refusal(_OF_SPLIT_TEXT, is_definite=False)
    return values_lib.examples((texts.shape[0], Size.of(sizes[1])), Layout(0))


def _is_one_number(value: Value) -> bool:
    return value.is_free and value.sizes == () and not value.hangs_on_batch


def _split_of_rows(rows: tf.Tensor) -> tf.Operation | None:
    """Returns the split of which a tensor tells the text of every word."""
    if rows.op.type != "StridedSlice":
        return None
    source = rows.op.inputs[0]
    constants = map(functions.constant, rows.op.inputs[1:])
    bounds = [c for c in constants if c is not None]
    if source.op.type != "StringSplitV2" or source.value_index != 0:
        return None
    masks = [
        rows.op.get_attr(name)
        for name in (
            "begin_mask", "end_mask", "shrink_axis_mask",
            "new_axis_mask", "ellipsis_mask",
        )
    ]  # fmt: skip
    if masks != [1, 1, 2, 0, 0] or len(bounds) < 3:
        return None
    begin, _, strides = bounds
    first_column = begin[1] == 0 and list(strides) == [1, 1]
    return source.op if first_column else None


def _split_of_count(count: tf.Tensor) -> tf.Operation | None:
    """Returns the split of which a tensor is the number of texts."""
    if count.op.type != "StridedSlice":
        return None
    source = count.op.inputs[0]
    begin = functions.constant(count.op.inputs[1])
    if source.op.type != "StringSplitV2" or source.value_index != 2:
        return None
    shrinks = count.op.get_attr("shrink_axis_mask") == 1
    return (
        source.op if shrinks and begin is not None and begin[0] == 0 else None
    )


def _is_word_by_word(
    tensor: tf.Tensor, split: tf.Operation, walk: Walk
) -> bool:
    """Tells what is computed of each word of a split by itself."""
    if tensor.op is split:
        return tensor.value_index == 1
    if tensor.op.type not in _WORD_BY_WORD:
        return False
    is_table = tensor.op.type == "LookupTableFindV2"
    found = False
    for i, argument in enumerate(tensor.op.inputs):
        if is_table and i == 0:
            continue
        if _is_one_number(walk.value(argument)):
            continue
        if not _is_word_by_word(argument, split, walk):
            return False
        found = True
    return found
