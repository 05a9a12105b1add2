"""Random graphs of operations on a batch, and the influence measured in them.

A proof says that row `i` of a tensor is a function of example `i` alone. Here
graphs are drawn at random, some of which mix examples; where a proof was
found, each example is put into several batches, at other places and among
other examples, and must get the same row.
"""

import dataclasses
import random
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from benchmarks import random_operations
from tf_dpfp import independence
from tf_dpfp.independence import Dependence

# More elements of one row would only take time.
_MOST_ELEMENTS = 256
_MOST_AXES = 4
# Batches to measure with: see `make_batch`.
KINDS = ("plain", "ids", "wild")
SPECS = (
    tf.TensorSpec([None, 4], tf.float32),
    tf.TensorSpec([None, 2, 3], tf.float32),
    tf.TensorSpec([None, 4], tf.int32),
    tf.TensorSpec([None], tf.int32),
)


class Pool:
    """Tensors to choose from while a graph is drawn.

    Args:
        draw: The random choices.
        tensors: Tensors to begin with.
    """

    def __init__(self, draw: random.Random, tensors):
        self.draw = draw
        self.tensors = list(tensors)
        self.batch = list(tensors)
        self.lists: list[tf.Tensor] = []

    def any(self, dtype=tf.float32, rank=None, least=0):
        """Chooses a tensor, the latest ones more often."""
        found = [
            t
            for t in self.tensors
            if t.dtype == dtype
            and t.shape.rank is not None
            and (rank is None or t.shape.rank == rank)
            and t.shape.rank >= least
        ]
        if not found:
            raise _Unlucky
        if self.draw.random() < 0.6:
            return found[-1 - min(len(found) - 1, self.draw.randrange(3))]
        return self.draw.choice(found)

    def axis(self, tensor, first=0.2):
        """Chooses an axis, seldom the first one."""
        if not tensor.shape.rank:
            raise _Unlucky
        if tensor.shape.rank == 1 or self.draw.random() < first:
            return 0
        return self.draw.randrange(1, tensor.shape.rank)

    def number(self):
        """Chooses a small whole number."""
        return self.draw.choice([1, 2, 2, 3, 4])


class _Unlucky(Exception):
    """A draw that no graph can be made of."""


def _unary(pool):
    function = pool.draw.choice(
        [tf.tanh, tf.abs, tf.square, tf.nn.relu, tf.negative, tf.sign]
    )
    return function(pool.any())


def _binary(pool):
    function = pool.draw.choice(
        [tf.add, tf.subtract, tf.multiply, tf.maximum, tf.minimum]
    )
    dtype = pool.draw.choice([tf.float32, tf.float32, tf.int32])
    return function(pool.any(dtype), pool.any(dtype))


def _select(pool):
    t = pool.any()
    return tf.where(pool.any() > 0, t, pool.any())


def _reduce(pool):
    function = pool.draw.choice(
        [tf.reduce_sum, tf.reduce_mean, tf.reduce_max, tf.reduce_min]
    )
    t = pool.any(pool.draw.choice([tf.float32, tf.int32]), least=1)
    keeps = pool.draw.random() < 0.5
    return function(t, pool.axis(t, 0.1), keepdims=keeps)


def _along(pool):
    t = pool.any(least=1)
    axis = pool.axis(t, 0.1)
    kind = pool.draw.randrange(4)
    if kind == 0:
        return tf.cumsum(t, axis)
    if kind == 1:
        return tf.reverse(t, [axis])
    if kind == 2:
        return tf.nn.softmax(t, axis)
    return tf.roll(t, 1, axis)


def _sort(pool):
    t = pool.any(least=1)
    return tf.sort(t, axis=pool.axis(t, 0.1))


def _argmax(pool):
    t = pool.any(least=2)
    return tf.argmax(t, pool.axis(t, 0.1), tf.int32)


def _transpose(pool):
    t = pool.any(pool.draw.choice([tf.float32, tf.float32, tf.int32]), least=2)
    order = list(range(t.shape.rank))
    pool.draw.shuffle(order)
    return tf.transpose(t, order)


def _merge(pool):
    t = pool.any(pool.draw.choice([tf.float32, tf.int32]), least=2)
    at = pool.draw.randrange(t.shape.rank - 1)
    shape = tf.shape(t)
    merged = [shape[at] * shape[at + 1]]
    sizes = tf.concat([shape[:at], merged, shape[at + 2 :]], 0)
    result = tf.reshape(t, sizes)
    return (
        result
        if result.shape.rank
        else tf.ensure_shape(result, [None] * (t.shape.rank - 1))
    )


def _divide(pool):
    """Divides an axis into two."""
    t = pool.any(pool.draw.choice([tf.float32, tf.int32]), least=1)
    at = pool.draw.randrange(t.shape.rank)
    size = pool.draw.choice([2, 3, 4, tf.shape(pool.any(least=1))[0]])
    parts = [size, tf.shape(t)[at] // size]
    if pool.draw.random() < 0.5:
        parts.reverse()
    shape = tf.shape(t)
    sizes = tf.concat([shape[:at], tf.stack(parts), shape[at + 1 :]], 0)
    return tf.ensure_shape(tf.reshape(t, sizes), [None] * (t.shape.rank + 1))


def _reshape_like(pool):
    t, other = pool.any(least=1), pool.any(least=1)
    sizes = tf.concat([tf.shape(other)[:1], [-1]], 0)
    return tf.reshape(t, sizes)


def _flatten(pool):
    t = pool.any(least=1)
    return tf.reshape(t, [-1, pool.number()])


def _expand(pool):
    t = pool.any(pool.draw.choice([tf.float32, tf.int32]))
    return tf.expand_dims(t, pool.draw.randrange(t.shape.rank + 1))


def _tile(pool):
    t = pool.any(least=1)
    times = [1] * t.shape.rank
    times[pool.axis(t, 0.4)] = pool.number()
    return tf.tile(t, times)


def _concat(pool):
    t = pool.any(least=1)
    others = [o for o in pool.tensors if o.shape.rank == t.shape.rank]
    other = pool.draw.choice([o for o in others if o.dtype == t.dtype])
    return tf.concat([t, other], pool.axis(t, 0.4))


def _stack(pool):
    t = pool.any()
    return tf.stack([t, -t], pool.draw.randrange(t.shape.rank + 1))


def _split(pool):
    t = pool.any(least=1)
    return tf.split(t, 2, pool.axis(t, 0.4))[pool.draw.randrange(2)]


def _slice(pool):
    t = pool.any(least=1)
    axis = pool.axis(t, 0.3)
    index = [slice(None)] * t.shape.rank
    half = tf.shape(t)[axis] // 2
    index[axis] = pool.draw.choice(
        [
            slice(1, None),
            slice(None, -1),
            slice(None, half),
            slice(half, None),
            0,
        ]
    )
    return t[tuple(index)]


def _slice_by_size(pool):
    """Cuts another axis by the batch size."""
    t = pool.any(least=2)
    size = tf.shape(t)[0]
    kind = pool.draw.randrange(5)
    if kind == 0:
        return t[:, size - 1]
    if kind == 1:
        cut = t[:, size - 1 : size + 1]
        return tf.ensure_shape(cut, [None, 2, *t.shape[2:]])
    if kind == 2:
        begin = [0, size - 1] + [0] * (t.shape.rank - 2)
        return tf.slice(t, begin, [-1, 1] + [-1] * (t.shape.rank - 2))
    if kind == 3:
        return tf.split(t, [size - 1, 1, tf.shape(t)[1] - size], 1, 3)[1]
    return tf.gather(t, [size - 1], axis=1)


def _pad(pool):
    t = pool.any(least=1)
    widths = [[0, 0] for _ in range(t.shape.rank)]
    widths[pool.axis(t, 0.1)] = [1, 0]
    return tf.pad(t, widths)


def _product(pool):
    a, b = pool.any(least=2), pool.any(least=2)
    return tf.matmul(
        a,
        b,
        transpose_a=pool.draw.random() < 0.5,
        transpose_b=pool.draw.random() < 0.5,
    )


def _einsum(pool):
    a, b = pool.any(rank=2), pool.any(rank=2)
    equation = pool.draw.choice(
        ["ab,ac->abc", "ab,ab->a", "ab,cb->ac", "ab,ab->b", "ab,ac->bc"]
    )
    return tf.einsum(equation, a, b)


def _dense(pool):
    t = pool.any(least=2)
    width = t.shape[-1]
    if width is None:
        raise _Unlucky
    weights = np.linspace(-1, 1, width * 2, dtype="float32")
    return tf.tensordot(t, weights.reshape([width, 2]), 1)


def _numbers(pool):
    """Row numbers, sizes and constants: what must not be mixed in."""
    t = pool.any(least=1)
    kind = pool.draw.randrange(6)
    if kind == 0:
        return tf.range(tf.shape(t)[0])
    if kind == 1:
        return tf.cast(tf.shape(t)[0], tf.float32)
    if kind == 2:
        return tf.ones_like(t)
    if kind == 3:
        return tf.constant([[0.5, -1.0, 2.0, 1.0]])
    if kind == 4:
        return tf.range(4)
    return tf.zeros_like(t, tf.int32)


def _cast(pool):
    dtype = pool.draw.choice([tf.float32, tf.int32])
    other = tf.int32 if dtype == tf.float32 else tf.float32
    tensor = pool.any(dtype)
    if dtype == tf.float32:
        # Away from whole numbers, where the last bit would decide.
        tensor += 0.37
    return tf.cast(tensor, other)


def _clip(pool):
    t = pool.any(tf.int32)
    low, high = pool.draw.choice([(0, 3), (0, 1), (0, 2), (-1, 3), (0, 9)])
    kind = pool.draw.randrange(3)
    if kind == 0:
        return tf.clip_by_value(t, low, high)
    if kind == 1:
        return tf.math.floormod(t, high + 1)
    return tf.minimum(t, high)


def _gather(pool):
    table, index = pool.any(least=1), pool.any(tf.int32)
    fronts = min(pool.draw.randrange(3), index.shape.rank, table.shape.rank - 1)
    axis = pool.draw.randrange(fronts, table.shape.rank)
    return tf.gather(table, index, axis=axis, batch_dims=fronts)


def _gather_flat(pool):
    """Looks up `row * width + index`, as vectorized code does."""
    table, index = pool.any(rank=2), pool.any(tf.int32, least=1)
    width = tf.shape(table)[1]
    rows = tf.range(tf.shape(index)[0]) * width
    rows = tf.reshape(rows, [-1] + [1] * (index.shape.rank - 1))
    return tf.gather(tf.reshape(table, [-1]), rows + index)


def _gather_nd(pool):
    table, index = pool.any(least=2), pool.any(tf.int32, least=1)
    return tf.gather_nd(table, index[..., None], batch_dims=1)


def _one_hot(pool):
    return tf.one_hot(pool.any(tf.int32), 3)


def _segments(pool):
    t, index = pool.any(rank=2), pool.any(tf.int32, rank=2)
    width = pool.draw.choice([3, 4])
    rows = tf.range(tf.shape(index)[0])[:, None] * width
    if pool.draw.random() < 0.2:
        rows *= 0
    total = tf.math.unsorted_segment_sum(
        t, index + rows, tf.shape(t)[0] * width
    )
    return tf.reshape(total, [-1, width])


def _scatter(pool):
    t, index = pool.any(rank=1), pool.any(tf.int32, rank=1)
    places = tf.stack([tf.range(tf.shape(t)[0]), index], 1)
    return tf.scatter_nd(places, t, tf.stack([tf.shape(t)[0], 4]))


def _where_row(pool):
    t = pool.any(least=1)
    return tf.where(pool.any(rank=1) > 0, t, -t)


def _space(pool):
    t = pool.any(rank=4)
    return tf.space_to_batch(t, [1, 1], [[0, 0], [0, 0]])


def _bitcast(pool):
    # Of whole numbers: the last bits of others hang on the kernel.
    return tf.bitcast(tf.bitcast(pool.any(tf.int32), tf.uint8), tf.int32)


def _mapped(pool):
    t = pool.any(least=2)
    function = pool.draw.choice(
        [
            lambda r: r - tf.reduce_max(r),
            lambda r: tf.cumsum(r, 0),
            lambda r: r * tf.cast(tf.size(r), r.dtype),
        ]
    )
    kind = pool.draw.choice([tf.map_fn, tf.vectorized_map, tf.vectorized_map])
    return kind(function, t)


def _mapped_gather(pool):
    t, index = pool.any(least=2), pool.any(tf.int32, least=1)
    kind = pool.draw.choice([tf.map_fn, tf.vectorized_map])
    function = lambda e: tf.gather(e[0], e[1])  # noqa: E731
    if kind is tf.map_fn:
        return tf.map_fn(function, (t, index), fn_output_signature=tf.float32)
    return tf.vectorized_map(function, (t, index))


def _loop(pool):
    t = pool.any(least=1)
    other = pool.any()
    kind = pool.draw.randrange(3)
    if kind == 0:
        return tf.while_loop(
            lambda i, _: i < 2, lambda i, a: (i + 1, tf.tanh(a)), (0, t)
        )[1]
    if kind == 1:
        step = tf.cast(tf.reduce_max(tf.zeros_like(other)), tf.int32)
        return tf.while_loop(
            lambda i, _: i < 2, lambda i, a: (i + 1, a + t), (step, t)
        )[1]
    return tf.while_loop(
        lambda a: tf.reduce_max(a) > 1.0, lambda a: (a / 2 - 0.1,), (t,)
    )[0]


def _loop_rows(pool):
    """A loop over rows that may remember, or look elsewhere."""
    t = pool.any(rank=2)
    count = tf.shape(t)[0]
    kind = pool.draw.randrange(5)
    rows = tf.TensorArray(tf.float32, count, element_shape=t.shape[1:])

    def one(i, rows, carried):
        row = t[i]
        if kind == 1:
            row, carried = row + carried, carried + tf.reduce_sum(row)
        if kind == 2:
            row += tf.cast(i, row.dtype)
        if kind == 3:
            row += t[tf.maximum(i - 1, 0)]
        return i + 1, rows.write(i, row), carried

    return tf.while_loop(lambda i, *_: i < count, one, (0, rows, 0.0))[
        1
    ].stack()


def _rows_of_list(pool):
    """A loop over rows that also reads a table row by row."""
    t = pool.any(rank=2)
    count = tf.shape(t)[0]
    kind = pool.draw.randrange(4)
    table = tf.reshape(tf.range(12.0), [12, 1])
    items = tf.TensorArray(tf.float32, 12).unstack(table)
    ids = tf.TensorArray(t.dtype, count).unstack(t)
    rows = tf.TensorArray(tf.float32, count, element_shape=t.shape[1:])

    def one(i, rows):
        row = ids.read(i)
        if kind == 1:
            row += items.read(i)
        if kind == 2:
            row += table[i]
        if kind == 3:
            row = tf.add_n([row, row * 2])
        return i + 1, rows.write(i, row)

    return tf.while_loop(lambda i, _: i < count, one, (0, rows))[1].stack()


def _over_time(pool):
    t = pool.any(rank=3)
    return tf.scan(lambda a, b: tf.tanh(a + b), tf.transpose(t, [1, 0, 2]))


def _branch(pool):
    t = pool.any(least=1)
    condition = pool.draw.choice(
        [
            tf.shape(t)[0] > 2,
            tf.reduce_max(t) > 0.5,
            tf.rank(t) > 1,
            tf.reduce_sum(tf.constant([1.0, 2.0])) > 2.0,
        ]
    )
    return tf.cond(condition, lambda: t, lambda: -t)


def _derivative(pool):
    """The gradient of a tensor of the pool with respect to another."""
    source = pool.any(least=1)
    with tf.GradientTape() as tape:
        tape.watch(source)
        inner = Pool(pool.draw, [*pool.tensors, source])
        result = source
        for _ in range(pool.draw.randrange(1, 4)):
            try:
                result = pool.draw.choice(SMOOTH)(inner)
                inner.tensors.append(result)
            except FAILURES:
                continue
    gradient = tape.gradient(result, source)
    if gradient is None:
        raise _Unlucky
    return tf.convert_to_tensor(gradient)


def _uniform(pool):
    """One number everywhere, with the batch size along any axis."""
    maker = random_operations.Call(pool.draw, pool.batch, pool.lists)
    return maker.uniform(pool.draw.choice([tf.float32, tf.int32]))


def _operation(pool):
    """One of the operations that have a rule, on whatever there is."""
    names = random_operations.names()
    for _ in range(6):
        name = pool.draw.choice(names)
        try:
            found = random_operations.call(
                pool.draw, [*pool.batch, *pool.tensors[-6:]], pool.lists, name
            )
        except FAILURES:
            continue
        pool.lists += [t for t in found if t.dtype == tf.variant]
        found = [t for t in found if t.dtype != tf.variant]
        if found:
            return pool.draw.choice(found)
    raise _Unlucky


def _mapped_beside(pool):
    """A loop over rows, each of which meets one number everywhere."""
    t, beside = pool.any(least=2), _uniform(pool)
    beside = tf.cast(beside, t.dtype)
    kind = pool.draw.choice([tf.map_fn, tf.vectorized_map])
    return kind(lambda r: r * tf.reduce_sum(tf.reshape(r, [-1])[0] * beside), t)


def _counted(pool):
    """Examples times what some tensor adds up to, or how large it is."""
    t = pool.draw.choice(pool.tensors[len(pool.batch) :][-3:] or [None])
    if t is None or t.dtype in (tf.string, tf.variant):
        raise _Unlucky
    if pool.draw.random() < 0.4:
        t = tf.ones_like(t)
    function = pool.draw.choice(
        [tf.reduce_sum, tf.reduce_sum, tf.reduce_max, lambda a: tf.size(a)]
    )
    if t.dtype == tf.bool:
        t = tf.cast(t, tf.float32)
    number = function(t)
    if number.dtype.is_complex:
        number = tf.math.real(number)
    return pool.batch[0] * tf.cast(number, tf.float32)


SMOOTH: list[Callable] = [
    _unary, _binary, _select, _reduce, _along, _sort, _transpose, _merge,
    _divide, _tile, _concat, _stack, _split, _slice, _pad, _product, _einsum,
    _dense, _gather, _gather_flat, _gather_nd, _segments, _scatter, _where_row,
    _mapped, _mapped_gather, _expand, _loop,
]  # fmt: skip
EVERY: list[Callable] = [
    *SMOOTH, _argmax, _reshape_like, _flatten, _numbers, _cast, _clip, _clip,
    _one_hot, _space, _slice_by_size, _rows_of_list, _bitcast, _loop_rows,
    _over_time, _branch, _derivative,
    _derivative, _derivative, _gather, _gather_flat, _argmax,
]  # fmt: skip
# For graphs that try above all to count the examples.
COUNTING: list[Callable] = [
    _operation, _operation, _operation, _operation, _uniform, _counted,
    _mapped_beside, _unary, _binary, _reduce, _transpose, _slice, _concat,
    _product, _gather, _expand,
]  # fmt: skip
FAILURES = (
    _Unlucky, random_operations.Unlucky, ValueError, TypeError, IndexError,
    LookupError, NotImplementedError, tf.errors.OpError, AttributeError,
)  # fmt: skip


@dataclasses.dataclass
class Drawn:
    """A random graph.

    Attributes:
        function: A concrete function from a batch to the last tensor that was
            proved; to the result if none was.
        measured: What was proved of that tensor.
        dependence: What was proved of the graph's result.
        operations: Types of the graph's operations.
    """

    function: Callable
    measured: Dependence
    dependence: Dependence
    operations: list[str]


def draw_graph(seed: int, steps: int = 8) -> Drawn | None:
    """Draws a graph, and proves its result.

    Where the result is not proved, one on the way to it may be: a rule that
    lets through what the next one stops is seen, too.

    Args:
        seed: Seed of all choices.
        steps: Number of operations to draw.

    Returns:
        A `Drawn`, or `None` if nothing came of the draw.
    """
    found = {}

    def traced(*batch):
        draw = random.Random(seed)
        pool = Pool(draw, batch)
        counts = draw.random() < 0.6
        for _ in range(draw.randrange(2, steps + 1)):
            try:
                result = draw.choice(COUNTING if counts else EVERY)(pool)
            except FAILURES:
                continue
            if _is_small(result):
                pool.tensors.append(result)
        if counts:
            pool.tensors.append(_counted(pool))
        results = _results(pool)
        graph = tf.compat.v1.get_default_graph()
        released = [
            independence.Released(result, f"result {i}", False)
            for i, result in enumerate(results)
        ]
        proof = independence.prove(graph, batch, released)
        found["dependence"] = proof.dependences[0]
        found["operations"] = [op.type for op in graph.get_operations()]
        for result, dependence in zip(results, proof.dependences, strict=True):
            if dependence is not Dependence.UNPROVED:
                found["measured"] = dependence
                return result
        found["measured"] = Dependence.UNPROVED
        return results[0]

    function = tf.function(traced, autograph=False)
    try:
        concrete = function.get_concrete_function(*SPECS)
    except FAILURES:
        return None
    return Drawn(concrete, **found)


def _is_small(tensor) -> bool:
    if tensor.shape.rank is None or tensor.shape.rank > _MOST_AXES:
        return False
    return int(np.prod([s or 1 for s in tensor.shape])) <= _MOST_ELEMENTS


def _results(pool: Pool):
    """Tensors that a graph could end in, the last one first."""
    found = [
        t
        for t in pool.tensors[len(SPECS) :]
        if t.shape.rank and t.dtype in (tf.float32, tf.int32)
    ]
    if not found:
        raise _Unlucky
    return found[::-1]


def kinds(drawn: Drawn, seed: int) -> tuple[str, ...]:
    """Lists the kinds of batches to measure a graph with.

    All of them for a result; one in turn for a tensor on the way to one, of
    which there are three times as many.
    """
    if drawn.dependence is Dependence.UNPROVED:
        return (KINDS[seed % len(KINDS)],)
    return KINDS


def make_batch(draw: np.random.Generator, size: int, kind: str) -> list:
    """Draws a batch, plain or with numbers that nobody expects."""
    batch = [
        draw.normal(size=(size, 4)).astype("float32"),
        draw.normal(size=(size, 2, 3)).astype("float32"),
        draw.integers(0, 4, (size, 4)).astype("int32"),
        draw.integers(0, 4, (size,)).astype("int32"),
    ]
    if kind == "wild":
        for number in (np.nan, np.inf, -np.inf, 1e6):
            for floats in batch[:2]:
                flat = floats.reshape(-1)
                flat[draw.integers(0, flat.size)] = number
    if kind in ("wild", "ids"):
        for ids in batch[2:]:
            flat = ids.reshape(-1)
            for number in (-1, 4, 5, 9, -7, 1000):
                flat[draw.integers(0, flat.size)] = number
    return batch


def rows_of(function: Callable, batch: list, places) -> np.ndarray | None:
    """Runs a graph on some examples of a batch, in a given order.

    Returns:
        The result; `None` if the graph can't be run on them.
    """
    chosen = [tf.constant(part[places]) for part in batch]
    try:
        return function(*chosen).numpy()
    except (tf.errors.OpError, tf.errors.InvalidArgumentError):
        return None


def measure(
    function: Callable, dependence: Dependence, seed: int, kind: str
) -> str | None:
    """Looks for an example whose row hangs on more than the example.

    Args:
        function: A function of a batch.
        dependence: What was proved of its result.
        seed: Seed of the batch.
        kind: `"plain"`, `"ids"` or `"wild"`; see `make_batch`.

    Returns:
        What was found, or `None` if nothing was.
    """
    batch = make_batch(np.random.default_rng(seed), 6, kind)
    orders = ([0, 1, 2, 3], [3, 0, 2, 1], [0, 4, 5], [5, 4, 0, 1, 2, 3], [0],
              [2, 0], [1, 2])  # fmt: skip
    known: dict[int, tuple[list, np.ndarray]] = {}
    for order in orders:
        result = rows_of(function, batch, order)
        if result is None:
            continue
        if dependence is Dependence.FREE:
            before = known.setdefault(0, (order, result))
            if not _alike(before[1], result):
                return f"not the same for {before[0]} and {order}"
            continue
        if len(result) != len(order):
            return f"{len(result)} rows for the examples {order}"
        for row, example in zip(result, order, strict=True):
            before = known.setdefault(example, (order, row))
            if not _alike(before[1], row):
                return (
                    f"example {example} gets {before[1].ravel()[:4]} in "
                    f"{before[0]} and {row.ravel()[:4]} in {order}"
                )
    return None


def _alike(a: np.ndarray, b: np.ndarray) -> bool:
    if a.shape != b.shape:
        return False
    if a.dtype.kind in "iu":
        return bool(np.array_equal(a, b))
    scale = np.max(np.abs(a[np.isfinite(a)]), initial=1.0)
    return bool(np.allclose(a, b, rtol=1e-3, atol=1e-4 * scale, equal_nan=True))
