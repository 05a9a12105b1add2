"""Abstract values: a proof's knowledge of one tensor.

A tensor is free of data, or the same number everywhere, or a function of one
example in each of its rows, or mixed. A rule turns the values of an
operation's inputs into those of its outputs.
"""

import dataclasses
import enum
from collections.abc import Hashable, Iterable, Sequence
from typing import Union

import numpy as np

from tf_dpfp.independence import findings
from tf_dpfp.independence import sizes as sizes_lib
from tf_dpfp.independence.sizes import MaybeSize
from tf_dpfp.independence.sizes import Size
from tf_dpfp.independence.sizes import Sizes


class Kind(enum.Enum):
    """What a tensor may depend on."""

    # On nothing in the batch.
    FREE = "free of data"
    # Likewise, and every element is the same number.
    UNIFORM = "uniform"
    # Each part on the example that owns it, by the same function for all.
    EXAMPLES = "per example"
    # On the one example that a loop over examples is at.
    SINGLE = "of the example that a loop is at"
    LIST = "a list of tensors"
    RESOURCE = "a variable or a table"
    MIXED = "mixed"


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """Position of the examples in a tensor.

    Index `i` along `axis` belongs to example `(i // after) % batch_size`; the
    axis has the size `before * batch_size * after`. So the axis may have been
    merged with others: `(batch, time)` becomes one axis with `after = time`.

    Attributes:
        axis: The axis.
        before: Size that was merged in front of the examples.
        after: Size that was merged behind them.
    """

    axis: int
    before: Size = sizes_lib.ONE
    after: Size = sizes_lib.ONE

    @property
    def is_plain(self) -> bool:
        """True for one row for each example, along the first axis."""
        return self.axis == 0 and self.before == 1 and self.after == 1

    def at(self, axis: int) -> "Layout":
        """Returns the same layout along another axis."""
        if axis == self.axis:
            return self
        return Layout(axis, self.before, self.after)


@dataclasses.dataclass(frozen=True, slots=True)
class Range:
    """Bounds of whole numbers, both included, for every value of the inputs.

    Attributes:
        low: Lower bound; `None` if there is none.
        high: Upper bound; `None` if there is none.
        step: The number of the example, times `step`, is added to a number
            within the bounds; zero for numbers that don't depend on it.
    """

    low: MaybeSize
    high: MaybeSize
    step: Size = sizes_lib.ZERO

    @property
    def numbers_examples(self) -> bool:
        """True if the number of the example is part of the values."""
        return self.step != 0

    @property
    def is_unbounded(self) -> bool:
        """True if nothing is known."""
        return self.low is None and self.high is None and self.step == 0

    def within(self, size: MaybeSize) -> bool:
        """Returns true if all numbers are indices of an axis of this size."""
        if self.low is None or self.high is None or size is None:
            return False
        return at_least(self.low, sizes_lib.ZERO) and at_least(
            size, self.high + 1
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Value:
    """What is known of a tensor.

    Attributes:
        kind: What it may depend on.
        sizes: Its sizes; `None` if not even their number is known.
        layout: Position of the examples, of `EXAMPLES`.
        numbers: Its elements, in row-major order, if they are few whole
            numbers that are known; an unknown one is `None`.
        on_batch_size: True if the elements may depend on the batch size; of
            `FREE` also the sizes.
        ranges: Bounds of whole numbers: one for all, or one for each index
            of the last axis.
        item: What the items of a `LIST` have in common.
        length: Number of the items, if known.
        by_item: True for a list whose item `i` is a function of example `i`.
        declared: Shape that a `LIST` was made for: sizes of its items, `None`
            where they are left open, or anything else that is equal for equal
            shapes only.
        counts_examples: True for the counter of a loop over examples, or for
            the condition that it is below the batch size.
        finding: The reason, of `MIXED`.
        name: Name of a `RESOURCE`.
        holds_data: True for a `RESOURCE` in which a metric keeps what it saw.
    """

    kind: Kind
    sizes: Sizes | None = None
    layout: Layout | None = None
    numbers: tuple[MaybeSize, ...] | None = None
    on_batch_size: bool = False
    ranges: tuple[Range, ...] | None = None
    item: Union["Value", None] = None
    length: MaybeSize = None
    by_item: bool = False
    declared: Hashable = None
    counts_examples: bool = False
    finding: findings.Finding | None = None
    name: str = ""
    holds_data: bool = False

    @property
    def is_free(self) -> bool:
        """True if no data are in it."""
        return self.kind in (Kind.FREE, Kind.UNIFORM)

    @property
    def is_examples(self) -> bool:
        """True if each part is a function of one example."""
        return self.kind is Kind.EXAMPLES

    @property
    def rank(self) -> int:
        """Number of axes.

        Raises:
            Refusal: If it is not known.
        """
        return len(self.shape)

    @property
    def shape(self) -> Sizes:
        """Sizes of a tensor of known rank.

        Raises:
            Refusal: If the rank is not known.
        """
        if self.sizes is None:
            raise findings.Refusal(
                "The number of its axes is not known.", is_definite=False
            )
        return self.sizes

    @property
    def hangs_on_batch(self) -> bool:
        """True if the elements are not the same for all batch sizes."""
        if not self.on_batch_size:
            return False
        return self.numbers is None or sizes_lib.hang_on_batch(self.numbers)

    @property
    def knows_sizes(self) -> bool:
        """True if all sizes are known, as far as a rule needs them."""
        if not self.is_free and not self.is_examples:
            return True
        return self.sizes is not None and None not in self.sizes

    @property
    def numbers_examples(self) -> bool:
        """True if the number of the example is part of the elements."""
        return bool(self.ranges) and any(
            r.numbers_examples for r in self.ranges or ()
        )

    @property
    def example_layout(self) -> Layout:
        """Layout of a per-example tensor."""
        assert self.layout is not None, self
        return self.layout

    def known(self, what: str = "argument") -> list[Size]:
        """Returns elements that are all known.

        Raises:
            Refusal: If one is not.
        """
        if self.numbers is None:
            raise findings.Refusal(
                f"Its {what} is not known.", is_definite=False
            )
        found = [n for n in self.numbers if n is not None]
        if len(found) < len(self.numbers):
            raise findings.Refusal(
                f"Its {what} is not known.", is_definite=False
            )
        return found

    def integers(self, what: str = "argument") -> list[int]:
        """Returns elements that are plain numbers.

        Raises:
            Refusal: If one is not.
        """
        found = self.known(what)
        if not all(n.is_number for n in found):
            raise findings.Refusal(
                f"Its {what} is not a known number.", is_definite=False
            )
        return [int(n) for n in found]

    def array(self) -> np.ndarray | None:
        """Returns the elements in their shape, if they are known."""
        if self.numbers is None:
            return None
        result = np.empty(len(self.numbers), object)
        result[:] = self.numbers
        return result.reshape([int(Size.of(s or 0)) for s in self.shape])


def free(
    sizes: Sizes | None,
    numbers: Iterable[MaybeSize] | None = None,
    on_batch_size: bool = False,
    ranges: tuple[Range, ...] | None = None,
) -> Value:
    """Describes a tensor that is free of data."""
    values = None if numbers is None else tuple(numbers)
    if values is not None and sizes_lib.hang_on_batch(values):
        on_batch_size = True
    alone = sizes is not None and all(s == 1 for s in sizes)
    if not alone and sizes is not None and sizes_lib.hang_on_batch(sizes):
        on_batch_size = True
    equal = values is not None and None not in values and len(set(values)) == 1
    kind = Kind.UNIFORM if alone or equal else Kind.FREE
    return Value(
        kind,
        sizes,
        numbers=values,
        on_batch_size=on_batch_size,
        ranges=ranges,
    )


def numbers_of(array: np.ndarray, on_batch_size: bool = False) -> Value:
    """Describes whole numbers that are known."""
    array = np.asarray(array, object)
    sizes = tuple(Size.of(s) for s in array.shape)
    return free(sizes, tuple(array.ravel()), on_batch_size)


def uniform(
    sizes: Sizes | None, on_batch_size: bool = False, number: MaybeSize = None
) -> Value:
    """Describes a tensor that is one number everywhere, free of data."""
    ranges = None if number is None else (Range(number, number),)
    return Value(
        Kind.UNIFORM, sizes, on_batch_size=on_batch_size, ranges=ranges
    )


def examples(
    sizes: Sizes,
    layout: Layout,
    ranges: tuple[Range, ...] | None = None,
) -> Value:
    """Describes a tensor whose parts are functions of one example each."""
    return Value(Kind.EXAMPLES, sizes, layout, ranges=ranges)


def like(value: Value, sizes: Sizes, layout: Layout | None = None) -> Value:
    """Describes elements of `value` in another arrangement.

    Args:
        value: Free of data or per example.
        sizes: Sizes of the arrangement.
        layout: Layout in it, of a per-example value.

    Returns:
        A `Value` of the same kind, with bounds that hold for all elements.
    """
    ranges = one_range(value)
    if value.is_examples:
        return examples(sizes, layout or value.example_layout, ranges)
    if value.kind is Kind.UNIFORM:
        return Value(
            Kind.UNIFORM,
            sizes,
            on_batch_size=value.on_batch_size,
            ranges=ranges,
        )
    return free(sizes, None, value.on_batch_size, ranges)


def one_range(value: Value) -> tuple[Range] | None:
    """Returns bounds of all elements as one range, if there are any.

    Raises:
        Refusal: If they number examples in different ways.
    """
    ranges = value.ranges
    if ranges is None and value.numbers and None not in value.numbers:
        ranges = tuple(Range(n, n) for n in value.numbers)
    if not ranges:
        return None
    return (ranges[0],) if len(ranges) == 1 else (hull(ranges),)


def mixed(
    finding: findings.Finding | None, sizes: Sizes | None = None
) -> Value:
    """Describes a tensor that is not proved."""
    return Value(Kind.MIXED, sizes, finding=finding)


def hull(ranges: Sequence[Range]) -> Range:
    """Returns bounds for all ranges.

    Raises:
        Refusal: If they number examples in different ways.
    """
    found = ranges[0]
    for other in ranges[1:]:
        if other.step != found.step:
            raise findings.Refusal(
                "It rearranges the examples' numbers.", findings.ROW_NUMBER
            )
        low = found.low and other.low and smaller(found.low, other.low)
        high = found.high and other.high and greater(found.high, other.high)
        found = Range(low, high, found.step)
    return found


def smaller(a: Size, b: Size) -> MaybeSize:
    """Returns the smaller size, or `None` if it is not known."""
    if at_least(b, a):
        return a
    return b if at_least(a, b) else None


def greater(a: Size, b: Size) -> MaybeSize:
    """Returns the greater size, or `None` if it is not known."""
    if at_least(b, a):
        return b
    return a if at_least(a, b) else None


def at_least(a: Size, b: Size) -> bool:
    """Returns true if `a >= b` for all unknown sizes."""
    least = (a - b).least()
    return least is not None and least >= 0
