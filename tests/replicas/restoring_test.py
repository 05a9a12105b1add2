"""State of several replicas, saved and restored."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tests.replicas import common

SETTINGS = dict(
    noise_multiplier=1.0,
    clipping=common.adaptive(),
    marks={"rank": 2},
)


def _write_checkpoint(model, path):
    tf.train.Checkpoint(model=model).write(path)


def _read_checkpoint(model, path):
    tf.train.Checkpoint(model=model).read(path)


@pytest.mark.parametrize(
    "save, restore, name",
    [
        (
            keras.Model.save_weights,
            keras.Model.load_weights,
            "model.weights.h5",
        ),
        (_write_checkpoint, _read_checkpoint, "checkpoint"),
    ],
    ids=["keras", "tensorflow"],
)
def test_checkpoints_of_several_replicas_keep_everything(
    tmp_path, save, restore, name
):
    model, again = (common.private(2, **SETTINGS) for _ in range(2))
    common.fit(model, epochs=1)
    common.assert_same_bits(model, 2)
    save(model, str(tmp_path / name))
    with common.strategy(2).scope():
        again.optimizer.build(again.trainable_variables)
    restore(again, str(tmp_path / name))
    common.assert_equal_weights(model, again, atol=0)
    assert tf_dpfp.ledger(again) == tf_dpfp.ledger(model)
    for mine, theirs in zip(
        again.optimizer.variables, model.optimizer.variables, strict=True
    ):
        if "ledger" not in mine.path:
            value = theirs.numpy()
            for copy in common.local_results(2, mine.value):
                np.testing.assert_array_equal(copy.numpy(), value)
    common.fit(again, epochs=1)
    (entry,) = tf_dpfp.ledger(again)
    assert entry.steps == 2 * len(common.batches())


def _carried():
    return keras.Sequential(
        [
            keras.Input((common.FEATURES,)),
            tf_dpfp.RGPDense(19, rank=2),
            layers.Dense(common.CLASSES),
        ]
    )


def test_a_model_checkpoint_is_loaded_with_and_without_replicas(tmp_path):
    model = common.private(
        2, make=_carried, noise_multiplier=1.0, clipping=common.adaptive()
    )
    path = tmp_path / "model.keras"
    save = keras.callbacks.ModelCheckpoint(path)
    common.fit(model, epochs=1, callbacks=[save])
    for count in (1, 2):
        with common.strategy(count).scope():
            again = tf_dpfp.make_private(keras.models.load_model(path))
        assert tf_dpfp.ledger(again) == tf_dpfp.ledger(model)
        assert again.optimizer.clipping == model.optimizer.clipping
        # A loaded layer's path may lack the name of the model.
        found = [tf_dpfp.clip_norms(m).values() for m in (again, model)]
        assert list(found[0]) == list(found[1]), found
        names = " ".join(v.path for v in again.optimizer.variables)
        for name in ("first_weight", "clip_estimates"):
            assert name in names, names
        for mine, theirs in zip(
            *[[*m.variables, *m.optimizer.variables] for m in (again, model)],
            strict=True,
        ):
            if "ledger" not in mine.path:  # Whose rows may move.
                np.testing.assert_array_equal(mine.numpy(), theirs.numpy())
        common.fit(again, epochs=1)
        (entry,) = tf_dpfp.ledger(again)
        assert entry.steps == 2 * len(common.batches())
    common.assert_same_bits(again, 2)
