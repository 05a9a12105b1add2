"""Rules of lists of tensors, which loops read and write.

Items have one description in common. A list whose items are the examples
may be read and written by the counter of a loop over examples only.
"""

import dataclasses
from collections.abc import Hashable, Sequence

import tensorflow as tf

from tf_dpfp.independence import findings
from tf_dpfp.independence import list_shapes
from tf_dpfp.independence import preconditions
from tf_dpfp.independence import registry
from tf_dpfp.independence import sizes as sizes_lib
from tf_dpfp.independence import values as values_lib
from tf_dpfp.independence.registry import Walk
from tf_dpfp.independence.sizes import MaybeSize
from tf_dpfp.independence.sizes import Size
from tf_dpfp.independence.sizes import Sizes
from tf_dpfp.independence.values import Kind
from tf_dpfp.independence.values import Layout
from tf_dpfp.independence.values import Value

# A list that is made in a loop over examples is one example's own.
_OF_ONE_ROUND = "of one round"
_TAKES_OUT = "It takes single examples out of a list."


def _list(
    item: Value | None,
    length: MaybeSize = None,
    by_item: bool = False,
    hangs: bool = False,
    name: str = "",
    declared: Hashable = None,
) -> Value:
    return Value(
        Kind.LIST,
        item=item,
        length=length,
        by_item=by_item,
        on_batch_size=hangs,
        name=name,
        declared=declared,
    )


def _name(walk: Walk) -> str:
    """Names a list that is made for one round of a loop."""
    return _OF_ONE_ROUND if walk.loops else ""


def _check_place(*values: Value) -> None:
    for value in values:
        if not value.is_free:
            raise findings.Refusal("The data decide the place in a list.")
        if value.hangs_on_batch and not value.counts_examples:
            raise findings.Refusal(
                "The batch size decides the place in a list."
            )


@registry.rule(
    "TensorListReserve", shapes=(0, 1), takes_lists=True, takes_single=True
)
def reserve(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Makes a list of a given length."""
    del op
    shape, count = values
    declared = list_shapes.declared(shape)
    if not count.is_free:
        raise findings.Refusal("The data decide the length of a list.")
    length = count.numbers[0] if count.numbers else None
    hangs = length is None and count.hangs_on_batch
    return _list(None, length, hangs=hangs, name=_name(walk), declared=declared)


@registry.rule(
    "EmptyTensorList", shapes=(0, 1), takes_lists=True, takes_single=True
)
def empty(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Makes a list without items."""
    del op
    declared = list_shapes.declared(values[0])
    return _list(None, name=_name(walk), declared=declared)


@registry.rule("TensorListLength", takes_lists=True, takes_single=True)
def length(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Counts items."""
    del op, walk
    (items,) = values
    if items.kind is not Kind.LIST:
        raise findings.Refusal(
            "It reads a list that is not known.", is_definite=False
        )
    if items.length is None:
        return values_lib.free((), None, items.on_batch_size)
    return values_lib.free((), (items.length,), items.on_batch_size)


@registry.rule("TensorListSetItem", takes_lists=True, takes_single=True)
def set_item(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Sets an item."""
    items, place, value = values[:3]
    _check_place(place)
    local = items.name == _OF_ONE_ROUND
    if (value.kind is not Kind.SINGLE or local) and not items.by_item:
        found = _with_item(op, items, _or_zero(value), walk)
        if not op.get_attr("resize_if_index_out_of_bounds"):
            return found
        _check_length(items)
        return dataclasses.replace(found, length=None)
    if not place.counts_examples or items.length != walk.batch:
        raise findings.Refusal("It puts one example at another one's place.")
    if not items.by_item and items.item is not None:
        raise findings.Refusal("It mixes examples in a list.")
    if value.kind is not Kind.SINGLE and (
        not value.is_free or preconditions.holds_batch_size(value)
    ):
        raise findings.Refusal("One example meets the whole batch.")
    return _list(
        Value(Kind.SINGLE, value.sizes),
        items.length,
        True,
        declared=items.declared,
    )


def _or_zero(value: Value) -> Value:
    """Describes items of a list in which some may never be set."""
    return dataclasses.replace(value, numbers=None, ranges=None, declared=None)


def _check_length(items: Value) -> None:
    """Refuses to change how long a list is whose length is the batch's."""
    if items.on_batch_size or sizes_lib.hang_on_batch([items.length]):
        raise findings.Refusal(
            "It adds items to a list with one item for each example, or takes "
            "some off.",
            findings.BATCH_SIZE,
        )


def _with_item(
    op: tf.Operation, items: Value, value: Value, walk: Walk
) -> Value:
    """Returns a list that holds one more kind of item."""
    item = value if items.item is None else walk.join(op, items.item, value)
    return dataclasses.replace(items, item=item)


@registry.rule("TensorListPushBack", takes_lists=True, takes_single=True)
def push(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Adds an item at the end."""
    items, value = values
    local = items.name == _OF_ONE_ROUND
    if items.by_item or (value.kind is Kind.SINGLE and not local):
        raise findings.Refusal("It puts one example at another one's place.")
    _check_length(items)
    found = _with_item(op, items, value, walk)
    return dataclasses.replace(found, length=None)


@registry.rule(
    "TensorListPopBack", shapes=(1,), takes_lists=True, takes_single=True
)
def pop(op: tf.Operation, values: Sequence[Value], walk: Walk) -> list[Value]:
    """Takes the last item."""
    del op, walk
    items = values[0]
    if items.by_item:
        raise findings.Refusal(_TAKES_OUT)
    _check_length(items)
    item = list_shapes.item(items, values[1])
    return [dataclasses.replace(items, length=None), item]


@registry.rule(
    "TensorListGetItem", shapes=(2,), takes_lists=True, takes_single=True
)
def get_item(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Reads an item."""
    del op, walk
    items, place = values[:2]
    _check_place(place)
    if items.by_item and not place.counts_examples:
        raise findings.Refusal(_TAKES_OUT)
    item = list_shapes.item(items, values[2])
    if items.by_item or not place.counts_examples:
        return item
    if not item.is_free:
        raise findings.Refusal(
            "It reads items by the number of the row.", findings.ROW_NUMBER
        )
    return dataclasses.replace(item, numbers=None, on_batch_size=True)


@registry.rule(
    "TensorListStack",
    "TensorListGather",
    shapes=(-1,),
    takes_lists=True,
    takes_single=True,
)
def stack(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Stacks items along a new first axis."""
    items = values[0]
    _check_place(*values[1:-1])
    gathers = op.type == "TensorListGather"
    count = values[1].shape[0] if gathers else items.length
    if items.on_batch_size:
        raise findings.Refusal("The length of a list hangs on the batch size.")
    item = list_shapes.item(items, values[-1])
    if items.by_item:
        return _stack_examples(op, item, walk)
    sizes = item.sizes
    if items.item is None:
        return values_lib.uniform(None if sizes is None else (count, *sizes))
    if item.kind is Kind.UNIFORM and sizes is None:
        return values_lib.uniform(None, item.hangs_on_batch)
    if sizes is None:
        raise findings.Refusal(
            "It stacks items of unknown sizes.", is_definite=False
        )
    return _stacked(item, (count, *sizes))


def _stacked(item: Value, sizes: Sizes) -> Value:
    if item.is_examples:
        own = item.example_layout
        return values_lib.examples(sizes, own.at(own.axis + 1))
    if item.kind is Kind.SINGLE:
        return Value(Kind.SINGLE, sizes)
    if not item.is_free:
        raise findings.Refusal(_TAKES_OUT)
    # Items are uniform each for itself, but not all the same.
    return values_lib.free(sizes, None, item.hangs_on_batch)


def _stack_examples(op: tf.Operation, item: Value, walk: Walk) -> Value:
    if op.type != "TensorListStack":
        raise findings.Refusal(_TAKES_OUT)
    if item.sizes is None or None in item.sizes:
        # Who reads the size of the result reads it.
        raise findings.Refusal(
            "Data may decide the size of what it gives for an example.",
            "Cut it, or pad it, to a size of its own.",
            is_definite=False,
        )
    return values_lib.examples((walk.batch, *item.sizes), Layout(0))


@registry.rule(
    "TensorListFromTensor", shapes=(1,), takes_lists=True, takes_single=True
)
def from_tensor(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Makes a list of the parts along the first axis."""
    del op
    value = values[0]
    if value.kind is Kind.SINGLE and value.sizes is None:
        raise findings.Refusal(
            "It makes a list of unknown sizes.", is_definite=False
        )
    count, declared = value.shape[0], list_shapes.declared(values[1])
    if value.is_examples and value.example_layout.axis == 0:
        if not value.example_layout.is_plain:
            raise findings.Refusal(_TAKES_OUT)
        item = Value(Kind.SINGLE, value.shape[1:])
        return _list(item, walk.batch, True, declared=declared)
    return _list(_part(value), count, name=_name(walk), declared=declared)


def _part(value: Value) -> Value:
    """Describes all parts along the first axis."""
    sizes = value.shape[1:]
    if value.kind is Kind.SINGLE:
        return Value(Kind.SINGLE, sizes)
    if value.is_examples:
        own = value.example_layout
        return values_lib.like(value, sizes, own.at(own.axis - 1))
    return values_lib.like(value, sizes)


@registry.rule(
    "TensorListScatter",
    "TensorListScatterV2",
    "TensorListScatterIntoExistingList",
    shapes=(2, 3),
    takes_lists=True,
    takes_single=True,
)
def scatter(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Makes items of the parts along the first axis, at given places."""
    existing = op.type == "TensorListScatterIntoExistingList"
    value, places = (values[1], values[2]) if existing else values[:2]
    _check_place(places)
    if value.is_examples and value.example_layout.axis == 0:
        raise findings.Refusal(_TAKES_OUT)
    decides = [places] if existing else [places, *values[3:]]
    if any(v.hangs_on_batch for v in decides):
        raise findings.Refusal("The length of a list hangs on the batch size.")
    item = _or_zero(_part(value))
    if not existing:
        declared = list_shapes.declared(values[2])
        return _list(item, name=_name(walk), declared=declared)
    items = values[0]
    if items.by_item:
        raise findings.Refusal(_TAKES_OUT)
    if item.kind is Kind.SINGLE and items.name != _OF_ONE_ROUND:
        raise findings.Refusal("It puts one example at another one's place.")
    return _with_item(op, items, item, walk)


@registry.rule("TensorListElementShape", takes_lists=True, takes_single=True)
def item_shape(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Reads the shape of the items."""
    del op, walk
    declared = values[0].declared
    if isinstance(declared, tuple) and None not in declared:
        return values_lib.free((Size.of(len(declared)),), declared)
    # Sizes that are left open may be told, or not, as the device likes. It
    # holds no data, but the batch size.
    found = values_lib.free(None, None, True)
    return dataclasses.replace(found, declared=list_shapes.As(declared))


@registry.rule(
    "TensorListResize", shapes=(1,), takes_lists=True, takes_single=True
)
def resize(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Changes the length."""
    del op, walk
    items, count = values
    if not count.is_free:
        raise findings.Refusal("The data decide the length of a list.")
    if items.by_item:
        raise findings.Refusal(_TAKES_OUT)
    item = None
    if items.item is not None:
        _check_length(items)
        item = _or_zero(items.item)
    hangs, name = count.hangs_on_batch, items.name
    return _list(item, hangs=hangs, name=name, declared=items.declared)


@registry.rule("OptionalNone", takes_lists=True, takes_single=True)
def no_value(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Makes a holder without a value."""
    del op, values, walk
    return _list(None)


@registry.rule("OptionalFromValue", takes_lists=True, takes_single=True)
def hold(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Puts a value into a holder."""
    del op, walk
    if len(values) != 1:
        raise findings.Refusal("It holds several tensors.")
    if values[0].kind is Kind.SINGLE:
        # A holder of one example's numbers is one example's, too.
        return Value(Kind.SINGLE, ())
    return _list(values[0])


@registry.rule("OptionalGetValue", takes_lists=True, takes_single=True)
def held(op: tf.Operation, values: Sequence[Value], walk: Walk) -> list[Value]:
    """Takes the value out of a holder."""
    if values[0].kind is Kind.SINGLE:
        return [Value(Kind.SINGLE, walk.static(o)) for o in op.outputs]
    return [list_shapes.item(values[0], list_shapes.OPEN) for _ in op.outputs]
