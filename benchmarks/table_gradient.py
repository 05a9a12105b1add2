"""What a trained embedding table costs a private step, piece by piece.

    python -m benchmarks.table_gradient
    python -m benchmarks.table_gradient --batch_size=64 --length=512

An ordinary backward pass leaves the gradient of a table as slices, one row for
each token, and the optimizer adds them up. A private step takes the norm of
every example's slices, adds them up times their clip factors, and adds noise
to every row, looked up or not: which rows those are is private.

The pieces run in turn in one process, each compiled by itself:

- `ordinary_sum`: the slices added up to a gradient of the table's shape;
- `clipped_sum`: norms, clip factors and the same sum, of clipped rows;
- `norms`: of that, the norms alone;
- `noise`: normals of the table's shape;
- `ordinary_update`: an update of the table by Keras's Adam, from slices;
- `private_update`: clipped sum, noise and that update, from the sum.

One JSON object for each: minimum and median wall time, and the median over
rounds of the ratio to `ordinary_sum` and to `ordinary_update` in the same
round: on a shared machine ratios are the steadiest. Then one for each length:
the most that TensorFlow's allocator had handed out while norms were taken,
inputs left out.
"""

import json
import statistics
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from absl import app
from absl import flags

from tf_dpfp import clipping
from tf_dpfp import noise
from tf_dpfp import per_example

_ROWS = flags.DEFINE_integer("rows", 30522, "Of the table.")
_WIDTH = flags.DEFINE_integer("width", 384, "Of the table.")
_BATCH = flags.DEFINE_integer("batch_size", 32, "Examples.")
_LENGTH = flags.DEFINE_integer("length", 128, "Tokens of an example.")
_LENGTHS = flags.DEFINE_list(
    "memory_lengths", ["128", "256", "512"], "Lengths to measure memory at."
)
_ROUNDS = flags.DEFINE_integer("rounds", 30, "Times that each piece runs.")

_REFERENCES = ("ordinary_sum", "ordinary_update")
_CLIP_NORM = 0.1


def _slices(length: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Token ids, and the gradient of what was looked up with them."""
    rng = np.random.default_rng(0)
    shape = (_BATCH.value, length)
    ids = rng.integers(0, _ROWS.value, shape).astype(np.int32)
    values = rng.normal(size=(*shape, _WIDTH.value)).astype(np.float32)
    return tf.constant(ids), tf.constant(values)


def _indexed(ids: tf.Tensor, values: tf.Tensor) -> tf.IndexedSlices:
    return tf.IndexedSlices(
        tf.reshape(values, [-1, _WIDTH.value]),
        tf.reshape(ids, [-1]),
        tf.constant([_ROWS.value, _WIDTH.value]),
    )


def _norms(ids: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    rows = per_example.EmbeddingRows(ids, values, _ROWS.value)
    return rows.squared_norms()


def _clipped_sum(ids: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    rows = per_example.EmbeddingRows(ids, values, _ROWS.value)
    present = tf.ones([_BATCH.value], tf.bool)
    factors = clipping.clip_factors(rows.squared_norms(), _CLIP_NORM, present)
    return rows.weighted_sum(factors)


def _adam() -> Callable[..., None]:
    """A function that updates a table of its own by a gradient."""
    table = keras.Variable(np.zeros((_ROWS.value, _WIDTH.value), np.float32))
    optimizer = keras.optimizers.Adam(1e-4)
    optimizer.build([table])

    def update(gradient) -> None:
        optimizer.apply([gradient], [table])

    return update


def _noise(counter: tf.Variable) -> tf.Tensor:
    key = tf.bitcast(counter.assign_add(1), tf.uint64)
    return noise.gaussian_noise([_ROWS.value, _WIDTH.value], 1.0, key)


def _pieces() -> dict[str, Callable[[], object]]:
    # Arguments, not constants: a graph would compute with those beforehand.
    slices = _slices(_LENGTH.value)
    counter = tf.Variable(0, dtype=tf.int64)
    ordinary, private = _adam(), _adam()

    def of(function, arguments=slices):
        compiled = tf.function(function, autograph=False)
        return lambda: compiled(*arguments)

    return {
        "ordinary_sum": of(lambda i, v: tf.convert_to_tensor(_indexed(i, v))),
        "clipped_sum": of(_clipped_sum),
        "norms": of(_norms),
        "noise": of(lambda: _noise(counter), ()),
        "ordinary_update": of(lambda i, v: ordinary(_indexed(i, v))),
        "private_update": of(
            lambda i, v: private(_clipped_sum(i, v) + _noise(counter))
        ),
    }


def _median_ratio(times: list[float], references: list[float]) -> float:
    ratios = (t / r for t, r in zip(times, references, strict=True))
    return round(statistics.median(ratios), 2)


def _times() -> list[dict]:
    pieces = _pieces()
    for piece in pieces.values():
        for _ in range(3):
            piece()
    times = {name: [] for name in pieces}
    for _ in range(_ROUNDS.value):
        for name, piece in pieces.items():
            start = time.perf_counter()
            piece()
            times[name].append(time.perf_counter() - start)
    return [
        {
            "piece": name,
            "batch_size": _BATCH.value,
            "length": _LENGTH.value,
            "min_ms": round(1e3 * min(mine), 2),
            "median_ms": round(1e3 * statistics.median(mine), 2),
            **{
                f"to_{reference}": _median_ratio(mine, times[reference])
                for reference in _REFERENCES
            },
        }
        for name, mine in times.items()
    ]


def _scratch(length: int) -> dict:
    """What the allocator handed out while norms were taken."""
    ids, values = _slices(length)
    compiled = tf.function(_norms, autograph=False)
    compiled(ids, values)
    before = tf.config.experimental.get_memory_info("CPU:0")["current"]
    tf.config.experimental.reset_memory_stats("CPU:0")
    # More than once: what is freed first depends on which thread was faster.
    for _ in range(_ROUNDS.value):
        compiled(ids, values)
    peak = tf.config.experimental.get_memory_info("CPU:0")["peak"]
    scratch = (peak - before) / _BATCH.value
    return {
        "norm_at_length": length,
        "batch_size": _BATCH.value,
        "scratch_kib_per_example": round(scratch / 2**10, 1),
        "gradient_kib_per_example": round(length * _WIDTH.value * 4 / 2**10, 1),
    }


def main(argv: list[str]) -> None:
    """Prints one JSON object per row."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    for row in _times():
        print(json.dumps(row), flush=True)
    for length in map(int, _LENGTHS.value):
        print(json.dumps(_scratch(length)), flush=True)


if __name__ == "__main__":
    app.run(main)
