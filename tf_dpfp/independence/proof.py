"""Proves, on a traced graph, that every example stays by itself."""

import contextlib
import dataclasses
import enum
import gc
import time
from collections.abc import Collection, Iterator, Mapping, Sequence

import tensorflow as tf

from tf_dpfp.independence import findings
from tf_dpfp.independence import inferred
from tf_dpfp.independence import seed_origins
from tf_dpfp.independence import sizes as sizes_lib
from tf_dpfp.independence import state_rules
from tf_dpfp.independence import values as values_lib
from tf_dpfp.independence.findings import Category
from tf_dpfp.independence.findings import Finding
from tf_dpfp.independence.given import Given
from tf_dpfp.independence.prover import Walk
from tf_dpfp.independence.sizes import Size
from tf_dpfp.independence.values import Kind
from tf_dpfp.independence.values import Value
from tf_dpfp.keras_private import call_time as keras_call_time


class Dependence(enum.Enum):
    """Result of a proof for one tensor."""

    # Row `i` of the first axis is a function of example `i`, the same
    # function for all examples and batch sizes.
    PER_EXAMPLE = "per example"
    # It is the same for all batches.
    FREE = "free of data"
    # Neither is proved.
    UNPROVED = "not proved"


@dataclasses.dataclass(frozen=True)
class Released:
    """A tensor that leaves the proved part of a graph.

    Attributes:
        tensor: The tensor.
        name: Its name in messages, such as `"the gradient at 'dense'"`.
        may_be_free: True if it may be free of data instead of per example.
        may_be_examples: False if it must be free of data.
    """

    tensor: tf.Tensor
    name: str
    may_be_free: bool = True
    may_be_examples: bool = True


@dataclasses.dataclass(frozen=True)
class RandomDraw:
    """Random numbers that belong to rows by the number of the row.

    They keep examples apart only if their seed is secret and is used for one
    step: the caller must see to it.

    Attributes:
        layer: Path of the layer.
        operation: Type of the operation.
        name: Name of the operation.
        seeds: Names of the variables that the seed is read from; empty if it
            is written down in the graph, where everyone can read it.
        is_secret: True if it is made of a secret seed, or TensorFlow takes it
            from the operating system; `None` if that can't be told.
    """

    layer: str
    operation: str
    name: str
    seeds: tuple[str, ...]
    is_secret: bool | None


@dataclasses.dataclass(frozen=True)
class Capture:
    """A tensor or a variable that a graph takes from Python.

    Attributes:
        name: Its name.
        is_variable: True for variables and tables; false for the elements of
            a tensor, which Python code computed before.
        shape: Shape of the tensor.
    """

    name: str
    is_variable: bool
    shape: tf.TensorShape


@dataclasses.dataclass(frozen=True)
class Proof:
    """Everything that a proof found.

    Attributes:
        findings: What is not proved; empty if everything is.
        dependences: For each released tensor what it depends on.
        draws: Random numbers by row.
        captures: What the graph takes from Python.
        batch_size: The batch size for which the proof holds; `None` for all.
        operations: Number of operations that were interpreted.
        seconds: Time taken.
    """

    findings: tuple[Finding, ...]
    dependences: tuple[Dependence, ...]
    draws: tuple[RandomDraw, ...]
    captures: tuple[Capture, ...]
    batch_size: int | None
    operations: int
    seconds: float

    def refusals(
        self, allowed: Collection[Category] = ()
    ) -> tuple[Finding, ...]:
        """Returns the findings of categories that are not allowed."""
        return tuple(f for f in self.findings if f.category not in allowed)


def prove(
    graph: tf.Graph,
    examples: Sequence[tf.Tensor],
    released: Sequence[Released],
    operations: Sequence[tf.Operation] | None = None,
    layers: Collection[str] = (),
    variables: Mapping[str, tf.Variable] | None = None,
    least_rows: int = 1,
    secret_handles: Sequence[tf.Tensor] = (),
    data_handles: Sequence[tf.Tensor] = (),
    given: Given | None = None,
    follows_data: bool = False,
    kept_handles: Sequence[tf.Tensor] | None = None,
) -> Proof:
    """Proves that every example stays by itself.

    The batch size should be unknown to TensorFlow, `(None, ...)`: then what
    depends on it is found, too. With a known size, a number that was made
    from it can't be told from others, and the proof holds for batches of this
    size alone, padded ones for instance.

    The proof takes for granted that TensorFlow's kernels do what their rules
    say, that sizes of inputs are at least one and do not depend on the data,
    that seeds of random numbers are secret and fresh, and that constants and
    captured tensors hold no data.

    Args:
        graph: The graph in which the tensors are.
        examples: Tensors of the batch; row `i` of each is of example `i`.
        released: Tensors to judge.
        operations: Operations whose writes, prints and aborts are judged; by
            default all of the graph.
        layers: Names of the model's layers, for messages.
        variables: The model's variables by name, for messages.
        least_rows: Number of rows that every batch has at least, padding
            included. With 2, axes that are dropped if they have the size 1
            can't be the batch.
        secret_handles: Handles of the variables with the keys of secret seeds.
        data_handles: Handles of variables that hold data: those of metrics.
        given: Tensors that are taken for known.
        follows_data: True where examples are replaced and never left out: the
            batch size may then be written, and decide what is done.
        kept_handles: Given where many batches make one release: what is
            written once in each tells their number, and an example may be in
            another batch if one is left out. Handles of the variables that
            may be written to; `None`: every batch has a release of its own.

    Returns:
        A `Proof`.

    Raises:
        ValueError: If an example tensor has no first axis, or sizes of the
            batch differ.
    """
    started = time.thread_time()
    batch = _batch_size(examples)
    secrets = frozenset(map(id, secret_handles))
    walk = Walk(batch, layers, least_rows, given, follows_data)
    walk.counting = kept_handles is not None
    walk.kept = frozenset(map(id, kept_handles or ()))
    walk.released = frozenset(id(item.tensor) for item in released)
    names = {id(v.handle): name for name, v in (variables or {}).items()}
    with _without_collections():
        captures = _begin(walk, graph, examples, names)
        _assume_data(walk, graph, frozenset(map(id, data_handles)))
        values = [walk.value(item.tensor) for item in released]
        if operations is None:
            operations = graph.get_operations()
        walk.judge(operations)
    return Proof(
        findings=(*_findings(released, values, walk), *walk.findings.values()),
        dependences=tuple(_dependence(v, batch) for v in values),
        draws=tuple(_draw(op, layers, secrets) for op in walk.random.values()),
        captures=tuple(captures),
        batch_size=int(batch) if batch.is_number else None,
        operations=walk.operations,
        seconds=time.thread_time() - started,
    )


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Collects no garbage for a while.

    A walk makes many small objects that stay, and each collection looks at
    the whole graph in Python's memory: it took up to half of a proof.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def walk_of(graph: tf.Graph, examples: Sequence[tf.Tensor]) -> Walk:
    """Returns a walk that knows the examples and has not begun."""
    walk = Walk(_batch_size(examples))
    _begin(walk, graph, examples, {})
    return walk


def _begin(
    walk: Walk,
    graph: tf.Graph,
    examples: Sequence[tf.Tensor],
    names: Mapping[int, str],
) -> list[Capture]:
    """Tells a walk of the examples and of what the graph captures."""
    captures = _assume_captures(graph, walk, names)
    for i, tensor in enumerate(examples):
        walk.assume(tensor, _example(tensor, i, walk.batch))
    return captures


def _assume_data(
    walk: Walk, graph: tf.Graph, data_handles: Collection[int]
) -> None:
    """Tells a walk which captured variables hold data."""
    for _, inner in getattr(graph, "captures", ()):
        if inner.dtype != tf.resource:
            continue
        if id(seed_origins.outside(inner)) in data_handles:
            walk.assume(inner, state_rules.holding_data(inner.op.name))


def _batch_size(examples: Sequence[tf.Tensor]) -> Size:
    if not examples:
        raise ValueError(
            "A proof needs the tensors of a batch. Received: examples=[]"
        )
    known = set()
    for tensor in examples:
        shape = inferred.made_with(tensor)
        if not shape.rank:
            raise ValueError(
                "Tensors of a batch need a first axis with one row for each "
                f"example. Received: {tensor}"
            )
        known.add(shape[0])
    if None in known:
        return sizes_lib.BATCH
    if len(known) > 1:
        raise ValueError(
            "Tensors of a batch need equally many rows. Received: batch sizes "
            f"{sorted(known)}"
        )
    return Size.of(known.pop())


def _example(tensor: tf.Tensor, number: int, batch: Size) -> Value:
    sizes = [
        Size.symbol(f"size{number}_{axis}") if size is None else Size.of(size)
        for axis, size in enumerate(inferred.made_with(tensor))
    ]
    return values_lib.examples((batch, *sizes[1:]), values_lib.Layout(0))


def _assume_captures(
    graph: tf.Graph, walk: Walk, names: Mapping[int, str]
) -> list[Capture]:
    """Describes what the graph takes from Python and from outer graphs."""
    found = []
    outer = None
    for external, inner in getattr(graph, "captures", ()):
        if inner.dtype in (tf.resource, tf.variant):
            name = names.get(id(external), inner.name)
            found.append(Capture(name, True, inner.shape))
            walk.assume(inner, Value(Kind.RESOURCE, (), name=name))
        elif hasattr(external, "numpy"):
            found.append(Capture(inner.name, False, inner.shape))
            walk.assume(inner, state_rules.describe(external.numpy()))
        else:
            if outer is None:
                # No tensor of an outer graph is of the batch.
                outer = Walk(walk.batch, walk.layers, walk.least_rows)
                found += _assume_captures(external.graph, outer, names)
            walk.assume(inner, outer.value(external))
    for tensor in keras_call_time.captured_by(graph):
        found.append(Capture(tensor.name, False, tensor.shape))
        walk.assume(tensor, values_lib.free(inferred.sizes_of(tensor.shape)))
    for tensor in getattr(graph, "inputs", ()):
        if tensor.dtype == tf.resource:
            value = Value(Kind.RESOURCE, (), name=tensor.name)
            walk.assume_unless_known(tensor, value)
    return found


def _dependence(value: Value, batch: Size) -> Dependence:
    if value.is_examples and value.example_layout.is_plain:
        if not value.numbers_examples:
            return Dependence.PER_EXAMPLE
    if value.kind is Kind.UNIFORM and not value.hangs_on_batch:
        sizes = value.sizes
        if sizes and sizes[0] == batch and not batch.is_number:
            if not sizes_lib.hang_on_batch(sizes[1:]):
                return Dependence.PER_EXAMPLE
    if value.is_free and not value.hangs_on_batch:
        # Of a shape that is not known nothing is known, either.
        known = value.sizes is not None
        if known and not sizes_lib.hang_on_batch(value.sizes or ()):
            return Dependence.FREE
    return Dependence.UNPROVED


def _findings(
    released: Sequence[Released], values: Sequence[Value], walk: Walk
) -> list[Finding]:
    """Lists the tensors that are not proved."""
    found = [
        _finding(item, value, walk)
        for item, value in zip(released, values, strict=True)
    ]
    return [f for f in found if f is not None]


def _finding(item: Released, value: Value, walk: Walk) -> Finding | None:
    dependence = _dependence(value, walk.batch)
    if not item.may_be_examples and walk.no_data_in(item.tensor):
        return None
    right = (dependence is Dependence.PER_EXAMPLE and item.may_be_examples) or (
        dependence is Dependence.FREE and item.may_be_free
    )
    if right and not inferred.says_more(item.tensor.shape, value.sizes):
        return None
    if value.finding is not None:
        return dataclasses.replace(value.finding, subject=item.name)
    # Code that takes its norm may read its sizes while it is traced.
    words = inferred.UNPROVED_SHAPE
    if not right:
        words = _words(item, value, dependence)
    found = walk.finding(item.tensor.op, Category.MIXED, *words)
    return dataclasses.replace(found, subject=item.name, is_definite=not right)


def _words(
    item: Released, value: Value, dependence: Dependence
) -> tuple[str, str]:
    """Returns the reason and the way out for a value that is known."""
    if not item.may_be_examples:
        return (
            "The data of the examples are in it, without noise.",
            "Let everything that comes from the inputs go through the "
            "DPRepresentationClip.",
        )
    if dependence is Dependence.FREE:
        return (
            "It is the same for all examples, and has no row for each.",
            "Compute one number for each example from its own data.",
        )
    if value.is_examples and value.numbers_examples:
        return "It holds the number of the row.", findings.ROW_NUMBER
    if value.is_examples:
        return (
            "Its rows are not the examples: the batch is not the first axis, "
            "or was merged with another one.",
            "Keep the batch in the first axis, without merging others into it.",
        )
    if value.hangs_on_batch:
        return "It holds the batch size.", findings.BATCH_SIZE
    return "It is not a tensor with a row for each example.", findings.APART


def _draw(
    op: tf.Operation, layers: Collection[str], secret_handles: frozenset[int]
) -> RandomDraw:
    origin = seed_origins.origin_of(op, secret_handles)
    return RandomDraw(
        findings.layer_of(op.name, layers),
        op.type,
        op.name,
        origin.variables,
        origin.is_secret,
    )
