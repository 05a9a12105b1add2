"""Tables of a model that are released where they are touched."""

from collections.abc import Sequence

import keras

from tf_dpfp import clipping as clipping_lib
from tf_dpfp import low_rank
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
        ValueError: If a name is not that of one trainable Embedding layer, the
            table can't be sparse.
    """
    if sparse is None:
        return None
    tables = [
        (position, each)
        for position, each in enumerate(owned)
        if isinstance(each.layer, keras.layers.Embedding)
    ]
    positions = []
    for name in sparse.tables:
        found = [(p, each) for p, each in tables if each.layer.name == name]
        if len(found) != 1:
            names = sorted({each.layer.name for _, each in tables})
            raise ValueError(
                "`tables` must name Embedding layers of the model, each with "
                f"one trainable weight, its table. Model '{model.name}' has "
                f"{names}. Received: tables={list(sparse.tables)}, of which "
                f"'{name}' has {len(found)} trainable tables"
            )
        ((position, each),) = found
        _check(each)
        positions.append(position)
    return clipping_lib.SparseTables(tuple(positions), sparse.contribution_clip)


def _check(owned: clipping_lib.OwnedVariable) -> None:
    """Refuses a table of which every row moves in every step."""
    variable, layer = owned.variable, owned.layer
    reason = None
    if low_rank.mark_of(variable) is not None:
        reason = "is reparametrised, and what is released of it has no rows"
    elif layer.lora_enabled:
        reason = "is trained by LoRA, one weight of which has no rows"
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
