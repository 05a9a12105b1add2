"""What a program that XLA compiled does in one run, read off its text."""

import dataclasses
import math
import re

_BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2,
    "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8,
}  # fmt: skip
# They name, regroup or view what is there.
_FREE = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast",
    "bitcast-convert", "after-all", "partition-id", "replica-id",
}  # fmt: skip
# What they call runs by itself; the counts are those of its computation.
_CALLS = {"while", "call", "conditional"}
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?(%[\w.\-]+) = ((?:\([^=]*?\)|\S+)) ([a-z][\w\-]*)\((.*)$"
)
_COMPUTATION = re.compile(r"^(ENTRY )?(%[\w.\-]+) \(.*\{\s*$")
_CALLED = re.compile(
    r"(?:body|to_apply|true_computation|false_computation)=(%[\w.\-]+)"
)
_INNER = re.compile(r"calls=(%[\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# They read as much as they write, of whatever they are given.
_PARTS = {"slice", "dynamic-slice", "gather"}


@dataclasses.dataclass(frozen=True)
class Work:
    """What a program does in one run.

    Attributes:
        kernels: Operations that are launched.
        bytes: Sum of the sizes of what each kernel reads and writes.
        multiply_adds: Of products and convolutions.
    """

    kernels: int = 0
    bytes: int = 0
    multiply_adds: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.kernels + other.kernels,
            self.bytes + other.bytes,
            self.multiply_adds + other.multiply_adds,
        )

    def times(self, count: int) -> "Work":
        """The same work, `count` times over."""
        return Work(
            count * self.kernels,
            count * self.bytes,
            count * self.multiply_adds,
        )


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    operation: str
    rest: str

    @property
    def operands(self) -> list[str]:
        depth, end = 1, len(self.rest)
        for i, letter in enumerate(self.rest):
            depth += (letter == "(") - (letter == ")")
            if not depth:
                end = i
                break
        return re.findall(r"%[\w.\-]+", self.rest[:end])


def _elements(dimensions: str) -> int:
    return math.prod(int(d) for d in dimensions.split(",") if d)


def _size(shape: str) -> int:
    """Bytes of a shape, which may be a tuple."""
    return sum(
        _BYTES.get(dtype, 0) * _elements(dimensions)
        for dtype, dimensions in _SHAPE.findall(shape)
    )


def _dimensions(shape: str) -> list[int]:
    found = _SHAPE.search(shape)
    assert found is not None, shape
    return [int(d) for d in found[2].split(",") if d]


def _listed(attribute: str, text: str) -> list[int]:
    found = re.search(attribute + r"=\{([\d,]*)\}", text)
    return [int(d) for d in found[1].split(",") if d] if found else []


def _multiply_adds(instruction: _Instruction, shapes: dict[str, str]) -> int:
    """Those of one product or convolution."""
    size = math.prod(_dimensions(instruction.shape))
    left, right = (
        _dimensions(shapes[name]) for name in instruction.operands[:2]
    )
    if instruction.operation == "dot":
        contracted = _listed("lhs_contracting_dims", instruction.rest)
        return size * math.prod(left[d] for d in contracted)
    labels = re.search(r"dim_labels=\w+_(\w+)->", instruction.rest)
    assert labels is not None, instruction
    # All of the kernel but its output features meets each number of the output.
    return size * math.prod(
        length
        for label, length in zip(labels[1], right, strict=True)
        if label != "o"
    )


def _parse(text: str) -> tuple[str, dict[str, list[_Instruction]]]:
    """Returns the name of the entry and the instructions by computation."""
    entry, current = "", ""
    computations: dict[str, list[_Instruction]] = {}
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            current = header[2]
            computations[current] = []
            if header[1]:
                entry = current
            continue
        found = _INSTRUCTION.match(line)
        if found and current:
            computations[current].append(_Instruction(*found.groups()))
    if not entry:
        raise ValueError("There is no entry computation in the program.")
    return entry, computations


class _Reader:
    def __init__(self, text: str):
        self.entry, self._computations = _parse(text)
        self._known: dict[str, Work] = {}

    def _products(self, name: str) -> int:
        """Multiply-adds of a computation that is one kernel."""
        instructions = self._computations[name]
        shapes = {i.name: i.shape for i in instructions}
        total = 0
        for one in instructions:
            if one.operation in ("dot", "convolution"):
                total += _multiply_adds(one, shapes)
            for inner in _INNER.findall(one.rest):
                total += self._products(inner)
        return total

    def _of(self, one: _Instruction, shapes: dict[str, str]) -> Work:
        if one.operation in _FREE:
            return Work()
        if one.operation in _CALLS:
            trips = _TRIPS.search(one.rest)
            called = _CALLED.findall(one.rest)
            inside = sum((self.work(c) for c in called), Work())
            return inside.times(int(trips[1]) if trips else 1)
        inner = _INNER.findall(one.rest)
        read = [_size(shapes[name]) for name in one.operands if name in shapes]
        if inner:
            read = self._read(inner[0], read)
        moved = _size(one.shape) + sum(read)
        products = 0
        if one.operation in ("dot", "convolution"):
            products = _multiply_adds(one, shapes)
        products += sum(map(self._products, inner))
        return Work(1, moved, products)

    def _read(self, name: str, sizes: list[int]) -> list[int]:
        """Bytes that a kernel reads of its operands, of sizes in bytes."""
        instructions = self._computations[name]
        result = []
        for one in instructions:
            if one.operation != "parameter":
                continue
            size = sizes[int(one.rest.split(")")[0])]
            users = [i for i in instructions if one.name in i.operands]
            if all(user.operation in _PARTS for user in users):
                size = min(size, sum(_size(user.shape) for user in users))
            result.append(size)
        return result

    def work(self, name: str) -> Work:
        if name not in self._known:
            instructions = self._computations[name]
            shapes = {i.name: i.shape for i in instructions}
            self._known[name] = sum(
                (self._of(one, shapes) for one in instructions), Work()
            )
        return self._known[name]


def work(text: str) -> Work:
    """Reads what a program does in one run.

    Loops count as often as XLA knows them to run, and once where it does not;
    of the ways of a branch, all count.

    Args:
        text: Of an optimised program, as `experimental_get_compiler_ir` of a
            `tf.function` returns it for the stage `optimized_hlo`.

    Returns:
        The work.

    Raises:
        ValueError: If there is no entry computation.
    """
    reader = _Reader(text)
    return reader.work(reader.entry)
