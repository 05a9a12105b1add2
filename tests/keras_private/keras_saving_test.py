"""What the package relies on in Keras's saving and loading."""

import inspect
import zipfile

import keras
import numpy as np
import pytest
from keras.src.legacy.saving import legacy_h5_format
from keras.src.legacy.saving import saving_utils
from keras.src.saving import saving_lib

from tf_dpfp.keras_private import saving

MARKER, TABLE = "marker", "table"


@pytest.fixture
def loaded(monkeypatch):
    """Groups that were found; the wrapped functions are put back after."""
    for owner, name in (
        (saving_lib, "_load_state"),
        (saving_lib, "_save_state"),
        (saving_utils, "model_metadata"),
        (legacy_h5_format, "load_model_from_hdf5"),
        (legacy_h5_format, "load_weights_from_hdf5_group"),
        (legacy_h5_format, "load_weights_from_hdf5_group_by_name"),
        (keras.Model, "set_state_tree"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    found = []
    saving.on_loading(MARKER, TABLE, lambda *args: found.append(args))
    return found


class _Marked(keras.optimizers.SGD):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_variable((2,), initializer="ones", name=TABLE)

    def save_own_variables(self, store):
        super().save_own_variables(store)
        store[MARKER] = np.ones(3)


def _model(optimizer=None):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    if optimizer is not None:
        model.compile(optimizer, loss=keras.losses.MeanSquaredError())
        optimizer.build(model.trainable_variables)
    return model


def _save_shards(model, path):
    model.save_weights(path, max_shard_size=1)


@pytest.mark.parametrize(
    "name, save",
    [
        ("a.keras", keras.Model.save),
        ("a.weights.h5", keras.Model.save_weights),
        ("a.weights.json", _save_shards),
    ],
)
def test_groups_with_a_marker_are_found(loaded, tmp_path, name, save):
    save(_model(_Marked()), str(tmp_path / name))
    model = _model()
    model.load_weights(str(tmp_path / name))
    [(owner, [group])] = loaded
    assert owner is model
    np.testing.assert_array_equal(group[MARKER], np.ones(3))
    assert {"0", "1", "2"} <= set(group)


def test_groups_of_a_file_are_found_without_a_model(loaded, tmp_path):
    saving.on_saving(MARKER, lambda model: np.arange(2.0))
    path = tmp_path / "a.keras"
    _model(_Marked()).save(path)
    beside, of_optimizer = sorted(saving.marked_groups(path, MARKER), key=len)
    np.testing.assert_array_equal(beside[MARKER], np.arange(2.0))
    np.testing.assert_array_equal(of_optimizer[MARKER], np.ones(3))
    assert {"0", "1", "2"} <= set(of_optimizer)
    assert loaded == []
    # What Keras itself hands over when the file is loaded.
    keras.models.load_model(path, compile=False)
    [(_, groups)] = loaded
    assert [sorted(g) for g in sorted(groups, key=len)] == [
        sorted(beside),
        sorted(of_optimizer),
    ]


def test_a_file_without_weights_has_no_groups(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    assert saving.marked_groups(tmp_path / "a.keras", MARKER) == []


@pytest.mark.parametrize("by_name", [False, True])
def test_variables_of_legacy_files_are_found(loaded, tmp_path, by_name):
    path = str(tmp_path / "a.h5")
    _model(_Marked()).save(path)
    model = _model()
    if by_name:
        model.load_weights(path, by_name=True)
    else:
        model.load_weights(path)
    [(owner, [group])] = loaded
    assert owner is model
    np.testing.assert_array_equal(group[TABLE], np.ones(2))


def test_whole_models_are_the_result(loaded, tmp_path):
    saved = _model(_Marked())
    for name in ("a.keras", "a.h5"):
        loaded.clear()
        saved.save(str(tmp_path / name))
        model = keras.models.load_model(tmp_path / name, compile=False)
        # The legacy format loads the weights by a function of their own.
        assert {id(owner) for owner, _ in loaded} == {id(model)}


def test_variables_of_trees_are_found(loaded):
    tree = _model(_Marked()).get_state_tree(value_format="numpy_array")
    model = _model()
    model.set_state_tree(tree)
    [(owner, [group])] = loaded
    assert owner is model
    np.testing.assert_array_equal(group[TABLE], np.ones(2))


def test_an_array_is_added_to_files(loaded, tmp_path):
    saving.on_saving(MARKER, lambda model: np.arange(3.0))
    _model().save_weights(tmp_path / "a.weights.h5")
    _model().load_weights(tmp_path / "a.weights.h5")
    [(_, [group])] = loaded
    assert list(group) == [MARKER]
    np.testing.assert_array_equal(group[MARKER], np.arange(3.0))


def test_keras_drops_the_optimizer_and_it_is_kept(loaded, tmp_path):
    kept, dropped = _model(_Marked()), _model(keras.optimizers.SGD())
    saving.keep_optimizers_in_configuration(lambda o: isinstance(o, _Marked))
    for model in (kept, dropped):
        model.save(str(tmp_path / "a.h5"))
    assert "optimizer" in kept.get_compile_config()
    # The day that Keras mends it, the wrapper can go.
    assert "optimizer" not in dropped.get_compile_config()


def test_the_arguments_are_where_they_are_looked_for():
    assert list(inspect.signature(saving_lib._load_state).parameters)[:4] == [
        "saveable",
        "weights_store",
        "assets_store",
        "inner_path",
    ]
    assert list(inspect.signature(saving_lib._save_state).parameters)[:4] == [
        "saveable",
        "weights_store",
        "assets_store",
        "inner_path",
    ]
