"""Ledgers of files, kept whichever part of a file is restored.

A file with the state of a private optimizer, or of a `DPRepresentationClip`,
holds the ledger of what its weights released. Keras restores it where the model
has the same optimizer or layer, built. In all other cases (`compile=False`, an
ordinary optimizer, `skip_mismatch=True`, optimizers or layers of another name,
a loading that fails half-way) the entries are kept beside the model, and added
to the first ledger that it gets.
"""

from collections.abc import Iterable, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from tf_dpfp import accounting
from tf_dpfp import counting
from tf_dpfp import optimizers
from tf_dpfp.keras_private import layers as keras_layers
from tf_dpfp.keras_private import saving as keras_saving
from tf_dpfp.mechanisms import state as state_lib
from tf_dpfp.mechanisms.mechanism import Mechanism

_LOADED = "_tf_dpfp_loaded"
# Last part of the path of every ledger's variable.
_TABLE = "privacy_ledger"


def loaded_entries(model: keras.Model) -> Sequence[accounting.LedgerEntry]:
    """Lists what the files that were loaded into a model hold.

    Args:
        model: A model.

    Returns:
        The entries that no ledger of the model was asked to hold yet.
    """
    return getattr(model, _LOADED, ())


def _remember(
    model: keras.Model, groups: Sequence[Mapping[str, np.ndarray]]
) -> None:
    """Keeps the entries of everything that was in one file."""
    entries = entries_of(groups)
    if not entries:
        return
    entries = accounting.greater(loaded_entries(model), entries)
    # Past Keras, which would track it.
    object.__setattr__(model, _LOADED, tuple(entries))
    if state_lib.is_private(model):
        mechanism = state_lib.state_of(model).mechanism
        if mechanism is not None and mechanism.optimizer is model.optimizer:
            # At once: a compiled step would count beside it.
            absorb_loaded(mechanism)


def entries_of(
    groups: Iterable[Mapping[str, np.ndarray]],
) -> list[accounting.LedgerEntry]:
    """Reads the ledger that one file holds.

    Args:
        groups: Groups of the file that hold a ledger.

    Returns:
        The entries.
    """
    entries: list[accounting.LedgerEntry] = []
    kept: list[accounting.LedgerEntry] = []
    for group in groups:
        if _TABLE in group:
            entries += accounting.decode_rows(group[_TABLE])
        elif len(group) == 1:
            # Kept beside a model, of which the optimizer may know already.
            kept += accounting.decode_rows(group[counting.MARKER])
        else:
            entries += optimizers.marked_entries(group)
    return accounting.greater(entries, kept)


def absorb_loaded(mechanism: Mechanism) -> None:
    """Adds what files hold to the ledger of a model, where it lacks it.

    Models that are layers of it bring theirs.

    Args:
        mechanism: Mechanism of a compiled model.

    Raises:
        ValueError: If the model has no ledger before it is built.
    """
    model = mechanism.model
    parts = keras_layers.all_layers(model)
    holders = [part for part in parts if loaded_entries(part)]
    if not holders:
        return
    wanted = [entry for part in holders for entry in loaded_entries(part)]
    with tf.init_scope():
        lacking = accounting.missing(wanted, mechanism.entries())
        if lacking:
            _require_built(model)
            mechanism.absorb(lacking, elsewhere=True)
    for part in holders:
        object.__setattr__(part, _LOADED, ())


def _require_built(model: keras.Model) -> None:
    if not model.built:
        raise ValueError(
            f"Model '{model.name}' is not built, and can't take over the "
            "privacy ledger of the file that was loaded into it. Call it on a "
            "batch first."
        )


def _rows_to_save(model: keras.Model) -> np.ndarray | None:
    entries = loaded_entries(model)
    return accounting.encode_rows(entries) if entries else None


def _is_private(optimizer) -> bool:
    return isinstance(optimizer, optimizers.PrivateOptimizer)


keras_saving.on_loading(counting.MARKER, _TABLE, _remember)
keras_saving.on_saving(counting.MARKER, _rows_to_save)
keras_saving.keep_optimizers_in_configuration(_is_private)
