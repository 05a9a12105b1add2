"""Prints which layers and losses of Keras are proved, and what it takes.

python -m benchmarks.proof_table
"""

import time
import warnings

from absl import app
from absl import logging

from benchmarks import proof_models
from tf_dpfp.independence import Category


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
    started = time.process_time()
    proof = proof_models.prove_step(model, loss, batch)
    traced = time.process_time() - started - proof.seconds
    refusals = proof.refusals([Category.ABORT])
    verdict = "proved"
    if refusals:
        verdict = f"refused: `{refusals[0].operation}`. {refusals[0].reason}"
    return (
        f"| {name} | {proof.operations} | {traced:.2f} | {proof.seconds:.2f} "
        f"| {verdict} |"
    )


def main(argv):
    del argv
    logging.set_verbosity(logging.ERROR)
    warnings.simplefilter("ignore")
    print("| Model | Operations | Tracing, s | Proof, s | Verdict |")
    print("| --- | ---: | ---: | ---: | --- |")
    cases = (
        proof_models.layer_cases()
        | proof_models.loss_cases()
        | proof_models.mixing_cases()
    )
    for name, case in cases.items():
        print(row(name, case), flush=True)


if __name__ == "__main__":
    app.run(main)
