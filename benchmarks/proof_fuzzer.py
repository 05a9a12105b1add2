"""Compares proofs on random graphs with the influence that is measured.

python -m benchmarks.proof_fuzzer --graphs=20000
"""

import collections
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


def main(argv):
    del argv
    logging.set_verbosity(logging.ERROR)
    # Graphs are small: to hand their operations on takes longer.
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    started = time.time()
    counts = collections.Counter()
    operations = collections.Counter()
    for seed in range(SEED.value, SEED.value + GRAPHS.value):
        drawn = random_graphs.draw_graph(seed, STEPS.value)
        if drawn is None:
            counts["not drawn"] += 1
            continue
        counts[drawn.dependence.value] += 1
        if drawn.measured is not Dependence.UNPROVED:
            counts["measured"] += 1
            operations.update(set(drawn.operations))
            for kind in random_graphs.kinds(drawn, seed):
                found = random_graphs.measure(
                    drawn.function, drawn.measured, seed, kind
                )
                if found is not None:
                    counts["WRONG"] += 1
                    print(f"WRONG: graph {seed}, {kind}: {found}", flush=True)
        if (seed + 1 - SEED.value) % 100 == 0:
            seconds = time.time() - started
            print(f"{seconds:.0f} s: {dict(counts)}", flush=True)
    print(f"Operations in proved graphs: {dict(operations.most_common())}")
    print(f"{time.time() - started:.0f} s: {dict(counts)}")
    if counts["WRONG"]:
        raise SystemExit(1)


if __name__ == "__main__":
    app.run(main)
