"""Restores of a private optimizer's saved state.

A store without the marker was written by an ordinary optimizer, and Keras
decides what to do with it. State of a private optimizer holds a privacy
ledger, so whatever would drop it in silence is refused.

The marker is the ledger once more, under a name of its own. So a file tells
what its weights cost also where the optimizer is not restored from it: loaded
with `compile=False`, with an ordinary optimizer in its configuration, or with
`skip_mismatch=True`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np

from tf_dpfp import accounting
from tf_dpfp import counting
from tf_dpfp.accounting import table
from tf_dpfp.optimizers.carrier_state import CarrierState


def mark(store: Any, entries: Iterable[accounting.LedgerEntry]) -> None:
    """Marks a store as a private optimizer's.

    Args:
        store: The store that `save_own_variables` fills.
        entries: Entries of the optimizer's ledger.
    """
    store[counting.MARKER] = accounting.encode_rows(entries)


def marked_entries(store: Mapping[str, Any]) -> list[accounting.LedgerEntry]:
    """Reads the ledger of a marked store.

    Args:
        store: A store with a marker.

    Returns:
        The entries.

    Raises:
        ValueError: If the store holds no ledger that can be read.
    """
    rows = np.asarray(store[counting.MARKER])
    if rows.ndim == 2:
        return accounting.decode_rows(rows)
    # A bare marker: the first variable of this shape, for those of the
    # weights come later.
    shapes = [(count, table.WIDTH + 1) for count in table.KNOWN_ROWS]
    for key in sorted((k for k in store if k.isdigit()), key=int):
        values = np.asarray(store[key])
        if values.dtype == np.float64 and values.shape in shapes:
            return accounting.decode_rows(values)
    raise ValueError(
        "The saved state is marked as a private optimizer's and holds no "
        "privacy ledger."
    )


def checked_variables(
    store: Mapping[str, Any],
    optimizer: keras.optimizers.Optimizer,
    carrier_state: CarrierState,
) -> dict[str, Any]:
    """Checks that saved state fits an optimizer, so that no ledger is lost.

    Args:
        store: The store that `load_own_variables` reads.
        optimizer: The optimizer to restore.
        carrier_state: Its carriers.

    Returns:
        The store without the marker, for the Keras optimizer.

    Raises:
        ValueError: If the state is a private optimizer's and does not fit.
    """
    variables = {k: store[k] for k in store.keys() if k != counting.MARKER}
    if counting.MARKER not in store.keys():
        return variables
    mine = optimizer.variables
    position = [id(v) for v in mine].index(id(carrier_state.variable))
    if optimizer.built and str(position) in variables:
        carrier_state.check_saved(int(variables[str(position)][()]))
    if len(variables) != len(mine):
        raise ValueError(
            "The saved state belongs to a private optimizer with "
            f"{len(variables)} variables and this one has {len(mine)}: its "
            "privacy ledger would be lost. Compile the model as it was when "
            "it was saved, and build it and its optimizer "
            "(`optimizer.build(model.trainable_variables)`) before loading."
        )
    return variables
