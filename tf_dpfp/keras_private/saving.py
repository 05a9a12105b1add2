"""Loading and saving of Keras models, beyond the public API.

Keras restores an optimizer from a file where the model has one of the same
kind, and passes over its state in silence where it has none. The functions
here show what a file holds, whatever of it was restored.
"""

import functools
import inspect
import io
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import h5py
import keras
import numpy as np
from keras.src.legacy.saving import legacy_h5_format
from keras.src.legacy.saving import saving_utils
from keras.src.saving import saving_lib

Group: TypeAlias = Mapping[str, np.ndarray]
# Called with a model and groups of arrays that were in the file.
OnLoading: TypeAlias = Callable[[keras.Model, Sequence[Group]], None]

_VARIABLES = "/vars"


def on_loading(marker: str, table: str, loaded: OnLoading) -> None:
    """Calls a function after each way of loading state into a model.

    These ways are files of all formats of Keras, whole models and weights
    alone, and trees of state.

    Args:
        marker: Name of an array. Groups of a `.keras` or `.weights.h5` file
            that hold it are passed on, wherever they are.
        table: Last part of a variable's path. In files of the legacy format
            and in trees of state, such variables are passed on.
        loaded: Called with all groups or variables that are found, also if
            the loading fails.
    """
    _after(
        saving_lib,
        "_load_state",
        lambda given: _marked(given, marker),
        loaded,
    )
    _after(
        legacy_h5_format,
        "load_model_from_hdf5",
        lambda given: _of_legacy_path(given["filepath"], table),
        loaded,
    )
    for name in (
        "load_weights_from_hdf5_group",
        "load_weights_from_hdf5_group_by_name",
    ):
        _after(
            legacy_h5_format,
            name,
            lambda given: _of_legacy_file(given["group"].file, table),
            loaded,
        )
    _after(
        keras.Model,
        "set_state_tree",
        lambda given: _of_tree(given["state_tree"], table),
        loaded,
    )


def _after(
    owner: Any,
    name: str,
    find: Callable[[Mapping[str, Any]], Iterator[Group]],
    loaded: OnLoading,
) -> None:
    """Wraps a function that loads; its model is an argument or the result."""
    ordinary = getattr(owner, name)
    signature = inspect.signature(ordinary)
    parameters = list(signature.parameters)

    @functools.wraps(ordinary)
    def load(*args, **kwargs):
        # Called for every layer: look at the path before anything else.
        path = kwargs.get("inner_path", args[3] if len(args) > 3 else "")
        if name == "_load_state" and path:
            return ordinary(*args, **kwargs)
        given = signature.bind(*args, **kwargs).arguments
        model = given.get("model", given[parameters[0]])
        try:
            result = ordinary(*args, **kwargs)
            if isinstance(result, keras.Model):
                model = result
            return result
        finally:
            if isinstance(model, keras.Model):
                groups = list(find(given))
                if groups:
                    loaded(model, groups)

    setattr(owner, name, load)


def _marked(given: Mapping[str, Any], marker: str) -> Iterator[Group]:
    """Finds the groups of an open file that hold an array of a name."""
    store = given["weights_store"]
    if not store:
        return
    for path in _paths(store, marker):
        entry = store.get(path)
        if marker in entry.keys():
            yield {key: np.asarray(entry[key]) for key in entry.keys()}


def _paths(store: Any, marker: str) -> list[str]:
    """Lists the paths of an open file where a marker may be."""
    if hasattr(store, "sharding_config"):
        # All shards are listed in one map, a group at a time.
        groups = [str(p) for p in store.sharding_config["weight_map"]]
    elif hasattr(store, "h5_file"):
        names: list[str] = []
        store.h5_file.visit(names.append)
        ending = f"{_VARIABLES}/{marker}"
        groups = [
            f"/{n}".removesuffix(f"/{marker}")
            for n in names
            if f"/{n}".endswith(ending)
        ]
    else:
        return [p for p in store.contents if p.endswith("optimizer")]
    return [g.removesuffix(_VARIABLES).strip("/") for g in groups]


def marked_groups(path: Any, marker: str) -> list[Group]:
    """Finds the groups of a `.keras` file that hold an array of a name.

    Args:
        path: Path of the file.
        marker: Name of the array.

    Returns:
        The groups; none if the weights are not in one HDF5 file.
    """
    with zipfile.ZipFile(path) as archive:
        if saving_lib._VARS_FNAME_H5 not in archive.namelist():
            return []
        weights = io.BytesIO(archive.read(saving_lib._VARS_FNAME_H5))
    groups: list[Group] = []

    def look(name: str, item: Any) -> None:
        ending = f"{_VARIABLES}/{marker}"
        if f"/{name}".endswith(ending) and isinstance(item, h5py.Dataset):
            group = item.parent
            groups.append({key: np.asarray(group[key]) for key in group})

    with h5py.File(weights, "r") as file:
        file.visititems(look)
    return groups


def _of_legacy_path(path: Any, table: str) -> Iterator[Group]:
    if isinstance(path, h5py.File):
        yield from _of_legacy_file(path, table)
        return
    with h5py.File(path, "r") as file:
        yield from _of_legacy_file(file, table)


def _of_legacy_file(file: h5py.File, table: str) -> Iterator[Group]:
    """Finds variables of a name in a legacy file, of layers as well."""
    found: list[np.ndarray] = []

    def look(path: str, item: Any) -> None:
        if path.split("/")[-1] == table and isinstance(item, h5py.Dataset):
            found.append(np.asarray(item))

    file.visititems(look)
    for array in found:
        yield {table: array}


def _of_tree(tree: Mapping[str, Any], table: str) -> Iterator[Group]:
    """Finds the variables of a name in a tree of state."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _of_tree(value, table)
        elif name == table:
            yield {table: np.asarray(value)}


def on_saving(
    marker: str, array_of: Callable[[keras.Model], np.ndarray | None]
) -> None:
    """Adds one array to every `.keras` and `.weights.h5` file.

    Keras asks a file for the paths that it knows, so the file loads where this
    package is not installed.

    Args:
        marker: Name of the array.
        array_of: Called with the model that is saved; returns the array, or
            `None` for nothing.
    """
    ordinary = saving_lib._save_state

    @functools.wraps(ordinary)
    def save(saveable, weights_store, *args, **kwargs):
        ordinary(saveable, weights_store, *args, **kwargs)
        path = kwargs.get("inner_path", args[1] if len(args) > 1 else "")
        if path or not weights_store or not isinstance(saveable, keras.Model):
            return
        array = array_of(saveable)
        if array is not None:
            weights_store.make(marker)[marker] = array

    saving_lib._save_state = save


def keep_optimizers_in_configuration(
    chosen: Callable[[Any], bool],
) -> None:
    """Keeps a model's optimizer when the model is saved in the legacy format.

    Keras takes it out of the configuration that the model was compiled with,
    and a `.keras` file that is saved afterwards names no optimizer.

    Args:
        chosen: Called with an optimizer; tells if it is to be kept.
    """
    ordinary = saving_utils.model_metadata

    @functools.wraps(ordinary)
    def model_metadata(model, *args, **kwargs):
        compiled = getattr(model, "_compile_config", None)
        before = dict(compiled.config) if compiled is not None else {}
        try:
            return ordinary(model, *args, **kwargs)
        finally:
            if compiled is not None and chosen(before.get("optimizer")):
                compiled.config.update(before)

    saving_utils.model_metadata = model_metadata
