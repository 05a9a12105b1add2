"""Compares proofs on random graphs with the influence that is measured.

python -m benchmarks.proof_fuzzer --graphs=20000
"""

import collections
import time

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
    started = time.time()
    counts = collections.Counter()
    operations = collections.Counter()
    for seed in range(SEED.value, SEED.value + GRAPHS.value):
        drawn = random_graphs.draw_graph(seed, STEPS.value)
        if drawn is None:
            counts["not drawn"] += 1
            continue
        counts[drawn.dependence.value] += 1
        if drawn.dependence is not Dependence.UNPROVED:
            operations.update(set(drawn.operations))
            for kind in ("plain", "ids", "wild"):
                found = random_graphs.measure(
                    drawn.function, drawn.dependence, seed, kind
                )
                if found is not None:
                    counts["WRONG"] += 1
                    print(f"WRONG: graph {seed}, {kind}: {found}", flush=True)
        if (seed + 1 - SEED.value) % 1000 == 0:
            seconds = time.time() - started
            print(f"{seconds:.0f} s: {dict(counts)}", flush=True)
    print(f"Operations in proved graphs: {dict(operations.most_common())}")
    print(f"{time.time() - started:.0f} s: {dict(counts)}")
    if counts["WRONG"]:
        raise SystemExit(1)


if __name__ == "__main__":
    app.run(main)
