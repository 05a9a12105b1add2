"""Restores of a private optimizer's saved state.

A store without the marker was written by an ordinary optimizer, and Keras
decides what to do with it. State of a private optimizer holds a privacy
ledger, so whatever would drop it in silence is refused.
"""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tf_dpfp.optimizers.carrier_state import CarrierState

_MARKER = "tf_dpfp_ledger"


def mark(store: Any) -> None:
    """Marks a store as a private optimizer's.

    Args:
        store: The store that `save_own_variables` fills.
    """
    store[_MARKER] = np.ones((), np.int64)


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
    variables = {k: store[k] for k in store.keys() if k != _MARKER}
    if _MARKER not in store.keys():
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
