"""Registry of the rules: one for each type of operation.

A rule is trusted code. It must hold for every value of the inputs (not a
number, infinite, out of range) and on every device: an index that one kernel
rejects, another one clamps.
"""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import tensorflow as tf

from tf_dpfp.independence import findings
from tf_dpfp.independence.sizes import Size
from tf_dpfp.independence.sizes import Sizes
from tf_dpfp.independence.values import Value


class Notes:
    """What is noted of writes and draws while something is tried.

    Attributes:
        are_kept: True if they hold.
    """

    def __init__(self) -> None:
        self.are_kept = False

    def keep(self) -> None:
        """Says that they hold."""
        self.are_kept = True


class Walk(Protocol):
    """The part of a proof's walk that rules use.

    Attributes:
        batch: The batch size.
        least_rows: Smallest batch size that is spoken of.
        loops: Number of loops around the operation.
        counting: True within a loop over examples, or over batches that make
            one release.
        kept: Identities of handles that may be written to all the same.
        released: Identities of the tensors that the proof is asked about.
    """

    batch: Size
    least_rows: int
    loops: int
    counting: bool
    kept: frozenset[int]
    released: frozenset[int]

    def value(self, tensor: tf.Tensor) -> Value:
        """Returns what is known of a tensor."""

    def static(self, tensor: tf.Tensor) -> Sizes | None:
        """Returns the sizes that follow from those of the inputs."""

    def filled(self, sizes: Sizes, tensor: tf.Tensor) -> Sizes:
        """Fills in sizes that follow from those of the inputs."""

    def refined(self, value: Value, tensor: tf.Tensor) -> Value:
        """Fills in sizes of a value; see `filled`."""

    def join(self, op: tf.Operation, a: Value, b: Value) -> Value:
        """Returns what holds of both values."""

    def body(self, op: tf.Operation, name: str) -> tf.Graph:
        """Returns the graph of a function."""

    def call(
        self, op: tf.Operation, name: str, arguments: Sequence[Value]
    ) -> list[Value]:
        """Interprets a function of the graph."""

    def tentatively(self) -> AbstractContextManager[Notes]:
        """Interprets, and forgets what was noted, unless it is kept."""

    def unjudged(self) -> AbstractContextManager[None]:
        """Interprets without noting what is written."""

    def finding(
        self,
        op: tf.Operation,
        category: findings.Category,
        reason: str,
        way_out: str,
    ) -> findings.Finding:
        """Describes what an operation does wrong."""

    def refused(
        self,
        op: tf.Operation,
        output: tf.Tensor,
        reason: str,
        way_out: str = findings.APART,
    ) -> Value:
        """Describes an output that is not proved."""

    def has_effects(self, op: tf.Operation) -> bool:
        """Tells if a function writes, prints or hands something to Python."""

    def note_effects(self, op: tf.Operation) -> None:
        """Notes what a function writes that does not always run."""

    def note_random(self, op: tf.Operation) -> None:
        """Notes numbers that are drawn by the number of the row."""


Apply = Callable[[Any, Sequence[Value], Walk], Value | list[Value]]
_ApplyT = TypeVar("_ApplyT", bound=Apply)


@dataclasses.dataclass(frozen=True)
class Rule:
    """How one type of operation treats examples.

    Attributes:
        apply: Turns `(operation, values, walk)` into the outputs' values, or
            raises `Refusal`.
        shapes: Positions of inputs that only shape the output, and so may
            hold the batch size; from the end, if negative.
        lists_sizes: True if the numbers of these inputs are all that may make
            a size of the output unknown, beside unknown sizes of the others.
        takes_mixed: True for a rule that reads sizes alone.
        takes_numbers: True for a rule that knows about numbers of examples.
        takes_lists: True for a rule that knows about lists and loops.
        takes_batch_size: True for a rule that itself refuses to compute with
            the batch size.
        takes_single: True for a rule that knows about the one example that a
            loop is at.
    """

    apply: Apply
    shapes: tuple[int, ...] = ()
    lists_sizes: bool = False
    takes_mixed: bool = False
    takes_numbers: bool = False
    takes_lists: bool = False
    takes_batch_size: bool = False
    takes_single: bool = False


RULES: dict[str, Rule] = {}


def rule(
    *types: str,
    shapes: tuple[int, ...] = (),
    lists_sizes: bool = False,
    takes_mixed: bool = False,
    takes_numbers: bool = False,
    takes_lists: bool = False,
    takes_batch_size: bool = False,
    takes_single: bool = False,
) -> Callable[[_ApplyT], _ApplyT]:
    """Decorates the rule of some types of operations.

    Args:
        *types: Types of operations, such as `"MatMul"`.
        shapes: See `Rule`, as for the others.
        lists_sizes: See `Rule`.
        takes_mixed: See `Rule`.
        takes_numbers: See `Rule`.
        takes_lists: See `Rule`.
        takes_batch_size: See `Rule`.
        takes_single: See `Rule`.

    Returns:
        The decorator.
    """

    def decorate(apply: _ApplyT) -> _ApplyT:
        for name in types:
            assert name not in RULES, f"two rules for {name}"
            RULES[name] = Rule(
                apply,
                shapes,
                lists_sizes,
                takes_mixed,
                takes_numbers,
                takes_lists,
                takes_batch_size,
                takes_single,
            )
        return apply

    return decorate
