"""Origins of the seeds of random draws: secret, known, or not told."""

import dataclasses
from collections.abc import Collection, Iterator

import numpy as np
import tensorflow as tf

from tf_dpfp import compilation
from tf_dpfp.independence import functions

_READS = ("ReadVariableOp", "RngReadAndSkip")
# Operations whose result is as hard to know as what they are given.
_KEEPS = frozenset(
    """
    Add AddV2 Bitcast BitwiseOr BitwiseXor BroadcastTo Cast ConcatV2 ExpandDims
    FloorDiv FloorMod GatherV2 Identity IdentityN LeftShift Mul Neg Pack Reshape
    Slice Split SplitV Squeeze StatelessRandomGetKeyCounter
    StatelessRandomGetKeyCounterAlg StatelessRandomUniformFullInt
    StatelessRandomUniformFullIntV2 StatelessRandomUniformInt
    StatelessRandomUniformIntV2 StopGradient StridedSlice Sub Tile Transpose
    Unpack
    """.split()
)
_LOSES = ("BitwiseOr", "FloorDiv", "FloorMod", "LeftShift", "Mul")
# Fewer seeds than these can be tried one after the other.
_FEWEST = 2**30


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where the seed of a draw is from.

    Attributes:
        variables: Names of the variables that it is read from; empty if it is
            written down in the graph, where everyone can read it.
        is_secret: True if nobody can know it; `None` if it can't be told.
    """

    variables: tuple[str, ...]
    is_secret: bool | None


def origin_of(op: tf.Operation, secret_handles: Collection[int]) -> Origin:
    """Follows the seed of a draw back to where it is from.

    Args:
        op: An operation that draws random numbers.
        secret_handles: Identities of handles of variables with secret keys.

    Returns:
        The `Origin`. A seed that is made of a secret one is secret, unless
        operations lead there that may leave few of its bits.
    """
    names: set[str] = set()
    secrets = [_own_seed(op)] if _has_own_seed(op) else []
    for source in _sources([] if secrets else _seeds_of(op)):
        if _forgets(source.op):
            secrets.append(None)
        elif _has_own_seed(source.op):
            secrets.append(_own_seed(source.op))
        elif source.op.type in _READS:
            handle = source.op.inputs[0]
            names.add(handle.name)
            secrets.append(id(outside(handle)) in secret_handles)
        elif source.op.type == "Placeholder":
            names.add(source.name)
            # A tensor that Python code computed before; or a variable of a
            # loop, or an argument, of which nothing is known here.
            origin = outside(source)
            secrets.append(None if origin is source else False)
    return Origin(tuple(sorted(names)), _any_of(secrets))


def _seeds_of(op: tf.Operation) -> list[tf.Tensor]:
    """Returns the seed of a draw, or the key that was made of it."""
    place = 2 if op.type == "StatelessMultinomial" else 1
    return list(op.inputs[place : place + 1])


def _forgets(op: tf.Operation) -> bool:
    """Tells if few results may come of many seeds."""
    if not op.inputs or op.type in _READS or _has_own_seed(op):
        return False
    if op.type not in _KEEPS:
        return True
    if op.type == "Cast":
        return (
            not op.outputs[0].dtype.is_integer or op.outputs[0].dtype.size < 4
        )
    if op.type in ("BitwiseXor", "Sub") and op.inputs[0] is op.inputs[1]:
        return True
    if op.type not in _LOSES:
        return False
    known = [functions.constant(t) for t in op.inputs]
    most_shifted = 8 * op.outputs[0].dtype.size - _FEWEST.bit_length() + 1
    if op.type == "BitwiseOr":
        # As two halves are joined; a number may set all bits.
        return any(n is not None for n in known)
    if op.type == "Mul":
        return not any(
            n is not None and _keeps_bits(n, most_shifted) for n in known
        )
    by = known[1]
    if by is None:
        return True
    if op.type == "FloorMod":
        return bool(np.any(np.abs(by.astype(object)) < _FEWEST))
    if op.type == "LeftShift":
        return bool(np.any(by > most_shifted))
    return bool(np.any(np.abs(by.astype(object)) > _FEWEST))


def _keeps_bits(factor: np.ndarray, most_shifted: int) -> bool:
    """Tells if products differ, but for the first bits of what is multiplied.

    A product wraps around: what is 2**31 times something has one bit.
    """
    numbers = np.asarray(factor).astype(object).ravel()
    return all(n and n & -n <= 2**most_shifted for n in map(int, numbers))


def _any_of(secrets: Collection[bool | None]) -> bool | None:
    if True in secrets:
        return True
    return None if None in secrets else False


def _sources(waiting: list[tf.Tensor]) -> Iterator[tf.Tensor]:
    """Yields the tensors that are computed of nothing else in the graph."""
    seen: set[int] = set()
    kept = []
    while waiting:
        tensor = waiting.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        kept.append(tensor)  # Known by their identity, they must live on.
        outside = _captured(tensor)
        if outside is not None and not _is_eager(outside):
            waiting.append(outside)
            continue
        reads = tensor.op.type in _READS
        if reads or not tensor.op.inputs or _has_own_seed(tensor.op):
            yield tensor
        elif _forgets(tensor.op):
            yield tensor
        else:
            waiting += tensor.op.inputs


def _captured(tensor: tf.Tensor) -> tf.Tensor | None:
    """Returns what a placeholder of a function stands for, if it is known."""
    for external, inner in getattr(tensor.graph, "captures", ()):
        if inner is tensor:
            return external
    return None


def _is_eager(tensor: tf.Tensor) -> bool:
    return hasattr(tensor, "numpy")


def outside(tensor: tf.Tensor) -> tf.Tensor:
    """Follows a placeholder out of all functions."""
    while not _is_eager(tensor):
        found = _captured(tensor)
        if found is None:
            return tensor
        tensor = found
    return tensor


def _has_own_seed(op: tf.Operation) -> bool:
    """Tells if an operation draws from a generator of TensorFlow's own."""
    return op.op_def.is_stateful and "seed2" in op.node_def.attr


def _own_seed(op: tf.Operation) -> bool | None:
    """Tells if the seed of an operation of TensorFlow's own is secret.

    Without one its kernels take a seed from the operating system. XLA does not:
    its numbers are the same in every process.
    """
    if op.get_attr("seed") or op.get_attr("seed2"):
        return False
    if compilation.target() is compilation.Target.UNKNOWN:
        return None
    return compilation.target() is compilation.Target.KERNELS
