"""Compares proofs on random graphs with the influence that is measured.

python -m benchmarks.proof_fuzzer --graphs=20000

Some graphs make a kernel of TensorFlow end the process. So graphs are drawn in
processes of their own, and the one after it goes on with the next.
"""

import collections
import json
import subprocess
import sys
import time

import tensorflow as tf
from absl import app
from absl import flags
from absl import logging

from benchmarks import random_graphs
from tf_dpfp.independence import Dependence

GRAPHS = flags.DEFINE_integer("graphs", 20000, "Number of random graphs.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the first graph.")
STEPS = flags.DEFINE_integer("steps", 8, "Most operations of a graph.")
CHILD = flags.DEFINE_bool("child", False, "Internal: in this process.")


def compare(seed: int) -> dict:
    """Draws one graph, and compares its proof with what is measured."""
    drawn = random_graphs.draw_graph(seed, STEPS.value)
    if drawn is None:
        return {"verdict": "not drawn"}
    row = {"verdict": drawn.dependence.value}
    if drawn.measured is Dependence.UNPROVED:
        return row
    wrong = {}
    for kind in random_graphs.kinds(drawn, seed):
        found = random_graphs.measure(
            drawn.function, drawn.measured, seed, kind
        )
        if found is not None:
            wrong[kind] = found
    return row | {"operations": sorted(set(drawn.operations)), "wrong": wrong}


def compare_all() -> None:
    """Compares graph after graph, and prints a row for each."""
    logging.set_verbosity(logging.ERROR)
    # Graphs are small: to hand their operations on takes longer.
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    for seed in range(SEED.value, SEED.value + GRAPHS.value):
        print(json.dumps(compare(seed)), flush=True)


def rows_of_child(seed: int, graphs: int):
    """Yields the rows of a process, as far as it comes."""
    words = [sys.executable, "-m", "benchmarks.proof_fuzzer", "--child"]
    words += [f"--seed={seed}", f"--graphs={graphs}", f"--steps={STEPS.value}"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            yield json.loads(line)
    if child.returncode > 0:
        raise RuntimeError("A child failed; what it said is above.")


def main(argv):
    del argv
    if CHILD.value:
        compare_all()
        return
    started = time.time()
    counts = collections.Counter()
    operations = collections.Counter()
    seed, end = SEED.value, SEED.value + GRAPHS.value
    while seed < end:
        for row in rows_of_child(seed, end - seed):
            counts[row["verdict"]] += 1
            counts["measured"] += "wrong" in row
            operations.update(row.get("operations", ()))
            for kind, found in row.get("wrong", {}).items():
                counts["WRONG"] += 1
                print(f"WRONG: graph {seed}, {kind}: {found}", flush=True)
            seed += 1
            if (seed - SEED.value) % 100 == 0:
                seconds = time.time() - started
                print(f"{seconds:.0f} s: {dict(counts)}", flush=True)
        if seed < end:
            counts["ended the process"] += 1
            print(f"Graph {seed} ended its process.", flush=True)
            seed += 1
    print(f"Operations in measured graphs: {dict(operations.most_common())}")
    print(f"{time.time() - started:.0f} s: {dict(counts)}")
    if counts["WRONG"]:
        raise SystemExit(1)


if __name__ == "__main__":
    app.run(main)
