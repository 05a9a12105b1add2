"""A ledger that a file holds is never restarted at zero."""

import copy
import functools

import h5py
import keras
import numpy as np
import pytest
from keras import layers

import tf_dpfp

pytestmark = pytest.mark.usefixtures("without_trial")

X = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
Y = X.sum(axis=1, keepdims=True)
# By name, Keras can't load it from a legacy file.
LOSS = keras.losses.MeanSquaredError()


def _optimizer(**kwargs):
    return tf_dpfp.DPSGD(
        0.01, noise_multiplier=1.0, expected_batch_size=8, **kwargs
    )


def _other():
    # Variables of another number: the state of `_optimizer` does not fit.
    return tf_dpfp.DPAdam(0.01, noise_multiplier=1.0, expected_batch_size=8)


@functools.cache
def _trained():
    model = _made_private(_ordinary())
    model.fit(
        tf_dpfp.poisson_batches(X, Y, expected_batch_size=8, steps_per_epoch=4),
        verbose=0,
    )
    return model


def _ordinary():
    return keras.Sequential([keras.Input((3,)), layers.Dense(1)])


def _made_private(model, optimizer=None):
    tf_dpfp.make_private(model)
    model.compile(optimizer or _optimizer(), loss=LOSS)
    return model


def _assert_kept(model):
    assert tf_dpfp.ledger(model) == tf_dpfp.ledger(_trained())
    # One step is not worth a graph.
    model.run_eagerly = True
    model.train_on_batch(X[:8], Y[:8])
    assert sum(e.steps for e in tf_dpfp.ledger(model)) == 5


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    paths = {}
    for kind in ("model.keras", "model.h5", "model.weights.h5"):
        paths[kind] = str(folder / kind)
        if kind == "model.weights.h5":
            _trained().save_weights(paths[kind])
        else:
            _trained().save(paths[kind])
    paths["sharded"] = str(folder / "shards.weights.json")
    _trained().save_weights(paths["sharded"], max_shard_size=1)
    return paths


def test_a_keras_file_written_after_a_legacy_one_has_the_optimizer(tmp_path):
    model = _made_private(_ordinary())
    model.train_on_batch(X[:8], Y[:8])
    model.save(tmp_path / "a.h5")
    model.save(tmp_path / "b.keras")
    loaded = keras.models.load_model(tmp_path / "b.keras")
    assert isinstance(loaded.optimizer, tf_dpfp.DPSGD)
    tf_dpfp.make_private(loaded)
    assert tf_dpfp.ledger(loaded) == tf_dpfp.ledger(model)


def test_an_ordinary_model_is_saved_in_the_legacy_format_as_before(tmp_path):
    model = _ordinary()
    model.compile("sgd", loss=LOSS)
    model.save(tmp_path / "a.h5")
    assert "optimizer" not in model.get_compile_config()
    loaded = keras.models.load_model(tmp_path / "a.h5")
    assert type(loaded.optimizer) is keras.optimizers.SGD


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", ["model.keras", "model.h5"])
def test_a_loaded_model_keeps_it(files, kind, compiled):
    model = keras.models.load_model(files[kind], compile=compiled)
    _assert_kept(_made_private(model, _other()))


def test_a_file_that_names_an_ordinary_optimizer_keeps_it(files, tmp_path):
    import json
    import zipfile

    path = tmp_path / "ordinary.keras"
    with (
        zipfile.ZipFile(files["model.keras"]) as old,
        zipfile.ZipFile(path, "w") as new,
    ):
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json":
                config = json.loads(content)
                del config["compile_config"]["optimizer"]
                content = json.dumps(config).encode()
            new.writestr(name, content)
    model = keras.models.load_model(path)
    assert not isinstance(model.optimizer, tf_dpfp.DPSGD)
    _assert_kept(_made_private(model))


@pytest.mark.parametrize(
    "kind", ["model.keras", "model.h5", "model.weights.h5", "sharded"]
)
@pytest.mark.parametrize("when", ["plain", "private", "ordinary optimizer"])
def test_weights_that_are_loaded_before_compile_keep_it(files, kind, when):
    model = _ordinary()
    if when == "private":
        tf_dpfp.make_private(model)
    elif when == "ordinary optimizer":
        model.compile("sgd", loss=LOSS)
    model.load_weights(files[kind])
    if when == "private":
        model.compile(_optimizer(), loss=LOSS)
        _assert_kept(model)
    else:
        _assert_kept(_made_private(model))


@pytest.mark.parametrize("kind", ["model.weights.h5", "sharded"])
def test_skipped_mismatches_keep_it(files, kind):
    model = _made_private(_ordinary(), _other())
    model.optimizer.build(model.trainable_variables)
    with pytest.warns(UserWarning, match="could not be loaded"):
        model.load_weights(files[kind], skip_mismatch=True)
    # Counted at once: not first when somebody asks.
    assert [e.steps for e in model.optimizer.ledger_entries] == [4]
    _assert_kept(model)


def _with_a_layer(units=3, private=False):
    clip = tf_dpfp.DPRepresentationClip(1.0, 2.0, labels="public")
    base = [layers.Dense(units, trainable=False)] if units != 3 else []
    model = keras.Sequential([keras.Input((3,)), *base, clip, layers.Dense(1)])
    if private:
        tf_dpfp.make_private(model)
        model.compile("sgd", loss=LOSS, run_eagerly=True)
    return model


@pytest.fixture(scope="module")
def of_a_layer(tmp_path_factory):
    """Files of a model whose ledger is a layer's."""
    folder = tmp_path_factory.mktemp("layer")
    model = _with_a_layer(private=True)
    model.train_on_batch(X[:8], Y[:8])
    model.train_on_batch(X[:8], Y[:8])
    model.save_weights(folder / "model.weights.h5")
    model.save(folder / "model.h5")
    model.save(folder / "model.keras")
    return folder


@pytest.mark.parametrize(
    "name", ["model.weights.h5", "model.h5", "model.keras"]
)
@pytest.mark.parametrize("private", [True, False])
def test_a_layer_that_is_skipped_keeps_it(of_a_layer, name, private):
    model = _with_a_layer(5, private)
    if name == "model.h5":
        # The legacy format wants as many layers as the file has.
        with pytest.raises(ValueError, match="Layer count mismatch"):
            model.load_weights(of_a_layer / name, skip_mismatch=True)
    else:
        skipped = {}
        if name == "model.weights.h5":
            skipped = {"objects_to_skip": [model.layers[-2]]}
        with pytest.warns(UserWarning, match="could not be loaded"):
            model.load_weights(of_a_layer / name, skip_mismatch=True, **skipped)
    if not private:
        tf_dpfp.make_private(model)
        model.compile("sgd", loss=LOSS, run_eagerly=True)
    assert [e.steps for e in tf_dpfp.ledger(model)] == [2]


@pytest.mark.parametrize("name", ["model.h5", "model.keras"])
def test_a_layer_that_is_loaded_counts_once(of_a_layer, name):
    model = keras.models.load_model(of_a_layer / name)
    tf_dpfp.make_private(model)
    model.load_weights(of_a_layer / "model.weights.h5")
    assert [e.steps for e in tf_dpfp.ledger(model)] == [2]
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    for other in (clone, copy.deepcopy(model)):
        tf_dpfp.make_private(other)
        assert tf_dpfp.ledger(other) == tf_dpfp.ledger(model)


def test_an_optimizer_that_is_skipped_keeps_it(files):
    model = _made_private(_ordinary())
    model.load_weights(
        files["model.weights.h5"], objects_to_skip=[model.optimizer]
    )
    _assert_kept(model)


def test_a_loading_that_fails_keeps_it(files):
    model = _made_private(_ordinary(), _other())
    model.optimizer.build(model.trainable_variables)
    with pytest.raises(ValueError, match="ledger would be lost"):
        model.load_weights(files["model.weights.h5"])
    # The weights came in before the optimizer was refused.
    np.testing.assert_array_equal(
        model.get_weights()[0], _trained().get_weights()[0]
    )
    _assert_kept(model)


def test_a_tree_of_state_keeps_it_for_an_optimizer_of_another_name():
    tree = _trained().get_state_tree(value_format="numpy_array")
    model = _made_private(_ordinary(), _optimizer(name="renamed"))
    model.set_state_tree(tree)
    _assert_kept(model)
    plain = _ordinary()
    plain.set_state_tree(tree)
    _assert_kept(_made_private(plain))


def test_a_file_saved_without_the_optimizer_keeps_it(files, tmp_path):
    plain = keras.models.load_model(files["model.keras"], compile=False)
    plain.save(tmp_path / "plain.keras")
    plain.save_weights(tmp_path / "plain.weights.h5")
    again = keras.models.load_model(tmp_path / "plain.keras")
    _assert_kept(_made_private(again))
    weights = _ordinary()
    weights.load_weights(tmp_path / "plain.weights.h5")
    _assert_kept(_made_private(weights))


def test_loading_twice_counts_once(files):
    model = _ordinary()
    for _ in range(2):
        model.load_weights(files["model.weights.h5"])
    _made_private(model)
    model.load_weights(files["model.weights.h5"], skip_mismatch=True)
    _assert_kept(model)


def test_a_part_of_another_model_keeps_it(files):
    inner = keras.models.load_model(files["model.keras"], compile=False)
    inner.trainable = False
    outer = keras.Sequential([keras.Input((3,)), inner, layers.Dense(1)])
    assert tf_dpfp.ledger(_made_private(outer)) == tf_dpfp.ledger(_trained())


@pytest.mark.parametrize("rows", [1024, 32])
def test_files_with_a_bare_marker_keep_it(files, tmp_path, rows):
    path = tmp_path / "old.weights.h5"
    path.write_bytes(open(files["model.weights.h5"], "rb").read())
    with h5py.File(path, "a") as file:
        group = file["optimizer/vars"]
        del group["tf_dpfp_ledger"]
        group["tf_dpfp_ledger"] = np.ones((), np.int64)
        (name,) = [n for n in group if group[n].shape == (1024, 9)]
        table = np.asarray(group[name])[:rows]
        del group[name]
        group[name] = table
    model = _ordinary()
    model.load_weights(path)
    _assert_kept(_made_private(model))


def test_a_damaged_ledger_is_refused(files, tmp_path):
    path = tmp_path / "damaged.weights.h5"
    path.write_bytes(open(files["model.weights.h5"], "rb").read())
    with h5py.File(path, "a") as file:
        file["optimizer/vars/tf_dpfp_ledger"][0, -1] = np.nan
    with pytest.raises(ValueError, match="Not a count of steps"):
        _ordinary().load_weights(path)


@pytest.fixture
def half_precision():
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.mark.usefixtures("half_precision")
@pytest.mark.parametrize("copied", [False, True])
def test_a_half_precision_model_goes_on_with_its_optimizer(tmp_path, copied):
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    tf_dpfp.make_private(model)
    model.compile(tf_dpfp.DPAdam(0.01, noise_multiplier=1.0), "mse")
    model.fit(x, x[:, :2], batch_size=4, verbose=0)
    if copied:
        loaded = copy.deepcopy(model)
    else:
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
    tf_dpfp.make_private(loaded)
    assert isinstance(loaded.optimizer, tf_dpfp.DPAdam)
    for mine, theirs in zip(
        model.optimizer.variables, loaded.optimizer.variables, strict=True
    ):
        if "ledger" not in mine.path:  # Rows of no steps are left out.
            np.testing.assert_array_equal(mine.numpy(), theirs.numpy())
    loaded.fit(x, x[:, :2], batch_size=4, verbose=0)
    assert [e.steps for e in tf_dpfp.ledger(loaded)] == [4]


@pytest.mark.usefixtures("half_precision")
def test_a_half_precision_model_that_was_compiled_first_trains():
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    model.compile(tf_dpfp.DPAdam(0.01, noise_multiplier=1.0), "mse")
    tf_dpfp.make_private(model)
    model.fit(x, x[:, :2], batch_size=4, verbose=0)
    assert [e.steps for e in tf_dpfp.ledger(model)] == [2]
