"""Time that draws take from many examples, and from large files.

    python -m benchmarks.sampling_scale

Each row is one JSON object with the median of wall and CPU time of a batch of
256 expected examples: drawn (indices alone) from up to 10^8 examples, and read
from a memory-mapped array of 41 GB, ten million rows of 1024 float32. The file
is sparse: it takes no space, but its pages are read like those of any other.
The last rows read a `tf.data` source and a TFRecord file of a million examples
into memory, once.
"""

import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from absl import app
from absl import flags

import tf_dpfp
from tf_dpfp.sampling import poisson
from tf_dpfp.sampling.binomial import BinomialCounts

_BATCHES = flags.DEFINE_integer("batches", 30, "Batches of each row.")
_FOLDER = flags.DEFINE_string("folder", None, "Of the sparse file.")
_EXPECTED = 256
_ROWS, _WIDTH = 10**7, 1024


def _timed(call: Callable[[], object]) -> tuple[float, float]:
    cpu, start = time.process_time(), time.perf_counter()
    call()
    return time.perf_counter() - start, time.process_time() - cpu


def _row(name: str, times: list[tuple[float, float]], **more) -> dict:
    wall, cpu = (
        statistics.median(column) for column in zip(*times, strict=True)
    )
    return {
        "what": name,
        **more,
        "wall_ms": round(1e3 * wall, 3),
        "cpu_ms": round(1e3 * cpu, 3),
    }


def drawing(population: int, batches: int) -> dict:
    """Draws indices of batches.

    Args:
        population: Number of examples.
        batches: Number of batches.

    Returns:
        A row.
    """
    made = _timed(lambda: BinomialCounts(population, _EXPECTED / population))
    counts = BinomialCounts(population, _EXPECTED / population)
    generator = np.random.default_rng()
    times = [
        _timed(lambda: poisson.draw(generator, counts)) for _ in range(batches)
    ]
    once = round(1e3 * made[1], 1)
    return _row("draw", times, examples=population, once_cpu_ms=once)


def reading(folder: pathlib.Path, batches: int) -> dict:
    """Reads batches of a memory-mapped array of 41 GB.

    Args:
        folder: Folder of the file.
        batches: Number of batches.

    Returns:
        A row.
    """
    path = folder / "sparse.bin"
    with path.open("wb") as file:
        file.truncate(_ROWS * _WIDTH * 4)
    try:
        array = np.memmap(path, np.float32, "r", shape=(_ROWS, _WIDTH))
        data = tf_dpfp.poisson_batches(
            array, expected_batch_size=_EXPECTED, steps_per_epoch=batches + 3
        )
        iterator = iter(data)
        for _ in range(3):  # Two are drawn ahead.
            next(iterator)
        times = [_timed(lambda: next(iterator)) for _ in range(batches)]
        size = round(array.nbytes / 1e9, 1)
        return _row("memory-mapped", times, examples=_ROWS, gigabytes=size)
    finally:
        path.unlink()


def reading_once(examples: int) -> dict:
    """Reads a `tf.data` source into memory.

    Args:
        examples: Number of examples.

    Returns:
        A row.
    """
    data = tf.data.Dataset.range(examples).map(
        lambda i: (tf.fill([16], tf.cast(i, tf.float32)), i % 2)
    )
    times = [_timed(lambda: tf_dpfp.poisson_batches(data, sampling_rate=1e-4))]
    return _row("tf.data, read once", times, examples=examples)


def reading_records(folder: pathlib.Path, examples: int) -> dict:
    """Reads a TFRecord file into memory, each record parsed by itself.

    Args:
        folder: Folder of the file.
        examples: Number of examples, of 16 numbers and a label.

    Returns:
        A row.
    """
    path = folder / "examples.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for i in range(examples):
            features = {
                "x": tf.train.Feature(
                    float_list=tf.train.FloatList(value=[i] * 16)
                ),
                "y": tf.train.Feature(
                    int64_list=tf.train.Int64List(value=[i % 2])
                ),
            }
            example = tf.train.Example(
                features=tf.train.Features(feature=features)
            )
            writer.write(example.SerializeToString())

    def parse(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        found = tf.io.parse_single_example(
            record,
            {
                "x": tf.io.FixedLenFeature([16], tf.float32),
                "y": tf.io.FixedLenFeature([], tf.int64),
            },
        )
        return found["x"], found["y"]

    data = tf.data.TFRecordDataset(str(path)).map(parse)
    data = data.apply(tf.data.experimental.assert_cardinality(examples))
    times = [_timed(lambda: tf_dpfp.poisson_batches(data, sampling_rate=1e-4))]
    size = round(path.stat().st_size / 1e6)
    return _row("TFRecord, read once", times, examples=examples, megabytes=size)


def main(argv: list[str]) -> None:
    """Prints one JSON object per row."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    for population in (10**4, 10**6, 10**8):
        row = drawing(population, _BATCHES.value)
        print(json.dumps(row), flush=True)
    with tempfile.TemporaryDirectory(dir=_FOLDER.value) as folder:
        row = reading(pathlib.Path(folder), _BATCHES.value)
        print(json.dumps(row), flush=True)
        print(json.dumps(reading_once(10**6)), flush=True)
        row = reading_records(pathlib.Path(folder), 10**6)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    app.run(main)
