"""Prints which layers and losses of Keras are proved, and what it takes.

python -m benchmarks.proof_table
"""

import warnings

from absl import app
from absl import logging

from benchmarks import proof_models


def row(name: str, case: proof_models.Case) -> str:
    """Proves a private step, and returns a row of the table.

    Args:
        name: Name of the case.
        case: A model, its data and a loss.

    Returns:
        The row, in Markdown.
    """
    build, data, loss = case
    model, batch = build(), data(4)
    if not model.built:
        model(batch[0])
    traced = proof_models.trace_step(model, loss, batch)
    proof = traced.proof
    return (
        f"| {name} | {proof.operations} | {traced.seconds * 1000:.0f} "
        f"| {proof.seconds * 1000:.1f} | {proof.seconds / traced.seconds:.3f} "
        f"| {traced.verdict} |"
    )


def main(argv):
    del argv
    logging.set_verbosity(logging.ERROR)
    warnings.simplefilter("ignore")
    print("| Model | Operations | Tracing, ms | Proof, ms | Share | Verdict |")
    print("| --- | ---: | ---: | ---: | ---: | --- |")
    cases = (
        proof_models.layer_cases()
        | proof_models.loss_cases()
        | proof_models.mixing_cases()
    )
    for name, case in cases.items():
        print(row(name, case), flush=True)


if __name__ == "__main__":
    app.run(main)
