"""Tables of a model that are released where they are touched."""

from collections.abc import Sequence

import keras

from tf_dpfp import clipping as clipping_lib
from tf_dpfp import low_rank
from tf_dpfp.keras_private import kernels
from tf_dpfp.optimizers import Sparse


def find(
    model: keras.Model,
    sparse: Sparse | None,
    owned: Sequence[clipping_lib.OwnedVariable],
) -> clipping_lib.SparseTables | None:
    """Finds the tables among the trainable variables of a model.

    Args:
        model: A built model.
        sparse: The setting; `None`: there are none.
        owned: The trainable variables, with their layers.

    Returns:
        The tables; `None` without the setting.

    Raises:
        ValueError: If a name is not that of one trainable Embedding layer, or
            its table can't be sparse.
    """
    if sparse is None:
        return None
    places = {id(each.variable): p for p, each in enumerate(owned)}
    tables = {
        id(each.layer): each.layer
        for each in owned
        if isinstance(each.layer, keras.layers.Embedding)
        # LoRA trains others in its place.
        and (
            each.layer.lora_enabled
            or id(kernels.table_of(each.layer)) in places
        )
    }
    positions = []
    for name in sparse.tables:
        found = [layer for layer in tables.values() if layer.name == name]
        if len(found) != 1:
            names = sorted(layer.name for layer in tables.values())
            raise ValueError(
                "`tables` must name Embedding layers of the model, each of a "
                "name of its own, with a trainable table. Model "
                f"'{model.name}' has {names}. Received: "
                f"tables={list(sparse.tables)}, of which '{name}' is the name "
                f"of {len(found)} trainable tables"
            )
        _check(found[0])
        positions.append(places[id(kernels.table_of(found[0]))])
    return clipping_lib.SparseTables(
        tuple(positions), sparse.contribution_clip, tuple(sparse.tables)
    )


def _check(layer: keras.layers.Embedding) -> None:
    """Refuses a table of which every row moves in every step."""
    variable = kernels.table_of(layer)
    assert variable is not None  # Since the model is built.
    reason = None
    if layer.lora_enabled:
        reason = "is trained by LoRA, one weight of which has no rows"
    elif low_rank.mark_of(variable) is not None:
        reason = "is reparametrised, and what is released of it has no rows"
    elif variable.regularizer is not None:
        reason = "has a regularizer, which moves every row in every step"
    elif variable.constraint is not None:
        reason = "has a constraint, which computes every row in every step"
    if reason is not None:
        raise ValueError(
            f"The table of layer '{layer.name}' {reason}. Leave that out, or "
            "leave the layer out of `sparse_tables`. Received: "
            f"'{variable.path}'"
        )
