"""Shapes of the items of lists of tensors.

An item that was never set is zeros: of the shape that its list was made for,
or else of the shape that it is read with. No kernel compares either with the
shapes of other items, or of items of other lists.
"""

import dataclasses
from collections.abc import Hashable

from tf_dpfp.independence import findings
from tf_dpfp.independence import values as values_lib
from tf_dpfp.independence.sizes import Size
from tf_dpfp.independence.values import Kind
from tf_dpfp.independence.values import Value

# Of a shape that is left open.
OPEN = values_lib.free((), (Size.of(-1),))


@dataclasses.dataclass(frozen=True)
class As:
    """Tells the shape that a list was made for.

    Attributes:
        shape: What the list says of it.
    """

    shape: Hashable


def declared(shape: Value) -> Hashable:
    """Returns what a list says of the shape of its items.

    Args:
        shape: The shape that it is made with.
    """
    if isinstance(shape.declared, As):
        return shape.declared.shape
    if shape.numbers is None or None in shape.numbers:
        return object()
    if shape.sizes == ():
        return None
    return tuple(None if n == -1 else n for n in shape.numbers)


def item(items: Value, shape: Value) -> Value:
    """Returns an item; zeros, if none was ever set.

    Args:
        items: The list.
        shape: Shape of an item that was never set. No kernel compares it with
            that of an item that was.
    """
    if items.kind is not Kind.LIST:
        raise findings.Refusal(
            "It reads a list that is not known.", is_definite=False
        )
    found, asked = items.item, declared(shape)
    if found is None:
        wanted = asked if isinstance(asked, tuple) else items.declared
        if not isinstance(wanted, tuple) or None in wanted:
            return values_lib.uniform(None)
        return values_lib.uniform(wanted)
    if not _may_be_shape(asked, found):
        raise findings.Refusal(
            "It reads items of another shape than they have, or of one that "
            "is not known.",
            is_definite=False,
        )
    return found


def _may_be_shape(asked: Hashable, item: Value) -> bool:
    """Tells if zeros in the place of an item are of sizes that it has."""
    if asked is None or item.sizes is None or item.kind is Kind.MIXED:
        return True
    if not isinstance(asked, tuple):
        return False
    # Optimizers of graphs believe what is asked for.
    return fits(asked, item)


def made_alike(a: Value, b: Value) -> tuple[Value, Value]:
    """Describes two lists that are added: what both say of items holds.

    Args:
        a: A list.
        b: Another one.
    """
    both: Hashable = a.declared
    if a.declared is None:
        both = b.declared
    elif isinstance(a.declared, tuple) and isinstance(b.declared, tuple):
        both = tuple(
            t if s is None else s
            for s, t in zip(a.declared, b.declared, strict=True)
        )
    elif b.declared is not None:
        return a, b
    return (
        dataclasses.replace(a, declared=both),
        dataclasses.replace(b, declared=both),
    )


def fits(declared: Hashable, item: Value) -> bool:
    """Tells if items are of the sizes that a list was made for.

    Args:
        declared: What the list says of the shape of its items.
        item: What is known of the items.
    """
    if not isinstance(declared, tuple) or item.sizes is None:
        return True
    return len(declared) == len(item.sizes) and all(
        s is None or s == t for s, t in zip(declared, item.sizes, strict=True)
    )
