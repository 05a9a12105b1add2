"""Data of a private evaluation: examples, groups and persons."""

import dataclasses
from typing import Any

import numpy as np

from tf_dpfp import sampling as sampling_lib
from tf_dpfp.evaluation.settings import Settings
from tf_dpfp.sampling import person_ids
from tf_dpfp.sampling import sources


@dataclasses.dataclass(frozen=True)
class Data:
    """Examples to evaluate.

    Attributes:
        source: The examples.
        groups: Number of the group of each; -1: in none.
        users: Number of the person of each, or `None`.
    """

    source: Any
    groups: np.ndarray
    users: np.ndarray | None


def read(data: Any, groups: Any, users: Any, settings: Settings) -> Data:
    """Reads data to evaluate.

    Args:
        data: See `evaluate_privately`.
        groups: See there.
        users: See there.
        settings: The settings.

    Returns:
        `Data`.

    Raises:
        ValueError: If they can't be evaluated privately.
        TypeError: If ids of persons can't be compared.
    """
    if sampling_lib.is_of_draws(data):
        raise ValueError(
            "`data` are batches that were drawn at random, or made of such, in "
            "which an example may be any number of times. Give the arrays or "
            "the data set that they were drawn from. "
            f"Received: data={data!r}"
        )
    are_arrays = isinstance(data, (tuple, list))
    if not are_arrays and (groups is not None or users is not None):
        raise ValueError(
            "`groups` and `users` name the examples of arrays, in their order. "
            "Give `data` as (x, y). Received: data of type "
            f"{type(data).__name__}"
        )
    source = sources.make_source(*(data if are_arrays else [data]))
    if not 2 <= len(source.structure) <= 3:
        raise ValueError(
            "`data` needs labels: (x, y) or (x, y, sample_weight). Received: "
            f"{len(source.structure)} component(s)"
        )
    if bool(settings.group_values) != (groups is not None):
        raise ValueError(
            "`groups` needs `group_values`, and the reverse: which groups "
            "there are must not be read from the data. Received: "
            f"group_values={list(settings.group_values)}, groups of type "
            f"{type(groups).__name__}"
        )
    size = source.size
    of_groups = np.full(size, -1)
    if groups is not None:
        ids = _groups(groups, size)
        for number, value in enumerate(settings.group_values):
            of_groups[ids == value] = number
    of_users = None
    if users is not None:
        of_users, _ = person_ids.numbered(source, users)
    return Data(source, of_groups, of_users)


def _groups(groups: Any, size: int) -> np.ndarray:
    found = np.asarray(groups)
    if found.shape != (size,):
        raise ValueError(
            f"`groups` must have one entry for each of the {size} examples. "
            f"Received: groups of shape {found.shape}"
        )
    return found
