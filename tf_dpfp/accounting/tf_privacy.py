"""Statement of TensorFlow Privacy about a training, beside our own.

TF-Privacy describes one kind of training: steps of one noise multiplier, on
batches of one size out of one number of examples. Its last version, 0.9.0, was
made for dp_accounting 0.4.3, and knows no other event. Whatever else ran is
refused: a figure that leaves a release out would be wrong.
"""

import math
import sys
from collections.abc import Sequence
from typing import Any

from tf_dpfp.accounting import entries as entries_lib
from tf_dpfp.accounting import releases
from tf_dpfp.accounting import samplings

_VERSIONS = (
    "TF-Privacy 0.9.0 (dp_accounting 0.4.3) has no event for that; this "
    "package counts it by its own proofs, with dp_accounting 0.6 or later. "
    "Leave `style` out."
)
_HEADING = "The same by TensorFlow Privacy, which does not observe a training:"


def tf_privacy_statement(
    entries: Sequence[entries_lib.LedgerEntry],
    delta: float,
    accountant: str,
    population: int | None,
) -> str:
    """Returns what TF-Privacy says of the same training.

    Its first figure is for data of which each example is in one batch of every
    epoch, its second for Poisson sampling, both if nothing else of the data
    moves: read the statement of this package for what is proved.

    Args:
        entries: Ledger entries of the training.
        delta: Probability with which the guarantee may fail, in (0, 1).
        accountant: `"rdp"` or `"pld"`.
        population: Number of examples, if the entries don't know it.

    Returns:
        Plain text.

    Raises:
        ImportError: If TF-Privacy is not installed.
        ValueError: If TF-Privacy can't describe the training.
    """
    ran = [entry for entry in entries if entry.steps]
    if len(ran) != 1:
        raise ValueError(
            f"style='tf_privacy' describes steps of one kind. {_VERSIONS} "
            f"Received: {len(ran)} kinds of steps"
        )
    (entry,) = ran
    # Views change nothing of what it describes.
    known = type(entry.release) in (releases.Sums, releases.ViewSums)
    if not known or entry.is_bare:
        raise ValueError(
            f"style='tf_privacy' describes noised sums of gradients. "
            f"{_VERSIONS} Received: {entry}"
        )
    examples, batch_size = _sizes(entry, population)
    rate = batch_size / examples
    # Its number of steps is rounded up from that of epochs.
    epochs = entry.steps * rate
    while math.ceil(epochs / rate) > entry.steps:
        epochs = math.nextafter(epochs, 0.0)
    peer = _import()
    said = peer.compute_dp_sgd_privacy_statement(
        examples,
        int(batch_size) if float(batch_size).is_integer() else batch_size,
        epochs,
        entry.noise_multiplier,
        delta,
        used_microbatching=False,
        accountant_type=peer.AccountantType[accountant.upper()],
    )
    return f"{_HEADING}\n\n{said.strip()}\n"


def _sizes(
    entry: entries_lib.LedgerEntry, population: int | None
) -> tuple[int, float]:
    """Returns the number of examples, and that of a batch."""
    match entry.sampling:
        case samplings.UnknownSampling(int(examples), int(batch_size)):
            return examples, batch_size
        case samplings.PoissonSampling(rate, 0.0) if population is not None:
            size = rate * population
            near = round(size)
            return population, near if near / population == rate else size
    raise ValueError(
        "style='tf_privacy' needs the number of examples and the size of "
        f"batches that drop none. {_VERSIONS} Received: "
        f"sampling={entry.sampling}, population={population}"
    )


def _import() -> Any:
    # TF-Privacy's own switch: the rest of it needs Keras 2.
    sys.skip_tf_privacy_import = True  # type: ignore[attr-defined]
    try:
        from tensorflow_privacy.privacy.analysis import (
            compute_dp_sgd_privacy_lib,
        )
    except ImportError as error:
        raise ImportError(
            "style='tf_privacy' needs TensorFlow Privacy, on Python 3.11. It "
            "pins old versions, so install it without them: pip install "
            f"--no-deps tensorflow-privacy==0.9.0 ({error})"
        ) from error
    return compute_dp_sgd_privacy_lib
