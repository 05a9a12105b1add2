"""One bad id or label: its example takes no part, and nothing stops."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp

pytestmark = pytest.mark.usefixtures("without_trial")

IDS = np.array([[1, 2], [3, 1], [0, 4], [2, 2]], np.int32)
LABELS = np.array([0, 2, 1, 2])
CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _table(**kwargs):
    return [
        keras.Input((2,), dtype="int32"),
        layers.Embedding(6, 3, **kwargs),
        layers.Flatten(),
        layers.Dense(3),
    ]


def _tied():
    ids = keras.Input((2,), dtype="int32")
    table = layers.ReversibleEmbedding(6, 3)
    outputs = layers.Flatten()(table(table(ids), reverse=True))
    return [keras.Model(ids, outputs), layers.Dense(3)]


class Inside(layers.Layer):
    """Looks up in a table of its own, under the generic rule."""

    def __init__(self):
        super().__init__()
        self.table = layers.Embedding(6, 3)

    def build(self, shape):
        self.table.build()
        self.scale = self.add_weight(shape=(3,), initializer="ones")

    def call(self, ids):
        return self.table(ids) * self.scale


def _lora():
    model = keras.Sequential(_table())
    model.layers[0].enable_lora(2)
    model.layers[0].lora_embeddings_b.assign(tf.ones((2, 3)))
    return [model]


BUILDS = {
    "table": _table,
    "frozen table": lambda: _table(trainable=False),
    "masked": lambda: _table(mask_zero=True),
    "tied": _tied,
    "LoRA": _lora,
    "generic rule": lambda: [
        keras.Input((2,), dtype="int32"),
        Inside(),
        layers.Flatten(),
        layers.Dense(3),
    ],
}


def _compiled(build=_table, loss=CROSSENTROPY, clip=1e6, **kwargs):
    keras.utils.set_random_seed(0)
    model = tf_dpfp.make_private(keras.Sequential(build()))
    optimizer = tf_dpfp.DPSGD(
        0.1, l2_norm_clip=clip, noise_multiplier=0.0, expected_batch_size=4
    )
    kwargs.setdefault("jit_compile", False)
    model.compile(optimizer, loss, **kwargs)
    return model


def _sums(model, x, y):
    return tf_dpfp.loops.clipped_gradients(model, x, y).sums


def _assert_same(sums, expected):
    for one, other in zip(sums, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Model .* is not proved")
@pytest.mark.parametrize("name", BUILDS)
def test_an_example_with_an_id_out_of_range_adds_nothing(name):
    model = _compiled(BUILDS[name])
    others = np.array([0, 1, 3])
    expected = _sums(model, IDS[others], LABELS[others])
    for bad_id in (6, -7, 2**30):
        ids = IDS.copy()
        ids[2, 1] = bad_id
        _assert_same(_sums(model, ids, LABELS), expected)


@pytest.mark.filterwarnings("ignore:Model .* is not proved")
@pytest.mark.parametrize("name", BUILDS)
def test_an_id_below_zero_counts_from_the_end_as_in_keras(name):
    model = _compiled(BUILDS[name])
    wrapped = IDS.copy()
    wrapped[1] -= 6
    _assert_same(_sums(model, wrapped, LABELS), _sums(model, IDS, LABELS))
    with tf.GradientTape() as tape:
        losses = CROSSENTROPY(LABELS, model(wrapped, training=True)) * 4.0
    expected = tape.gradient(losses, [v.value for v in model.trainable_weights])
    expected = [tf.convert_to_tensor(g) for g in expected]
    _assert_same(_sums(model, wrapped, LABELS), expected)


def _of_ones_own(y, y_pred):
    return keras.ops.sparse_categorical_crossentropy(
        y, y_pred, from_logits=True
    )


@pytest.mark.filterwarnings("ignore:Model .* is not proved")
@pytest.mark.parametrize("loss", [CROSSENTROPY, _of_ones_own])
@pytest.mark.parametrize("label", [3, -1, np.nan])
def test_an_example_with_a_label_out_of_range_adds_nothing(loss, label):
    model = _compiled(loss=loss)
    others = np.array([0, 1, 3])
    expected = _sums(model, IDS[others], LABELS[others])
    labels = LABELS.astype(type(label))
    labels[2] = label
    _assert_same(_sums(model, IDS, labels), expected)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_training_goes_on(jit_compile):
    model = _compiled(jit_compile=jit_compile, metrics=["accuracy"])
    ids, labels = IDS.copy(), LABELS.astype(np.float32)
    ids[0, 0], labels[1], labels[2] = 9, 5, np.nan
    model.fit(ids, labels, batch_size=4, verbose=0)
    assert model.optimizer.iterations == 1
    assert all(np.all(np.isfinite(w)) for w in model.get_weights())


def test_each_of_two_outputs_may_have_a_bad_label():
    ids = keras.Input((2,), dtype="int32")
    h = layers.Flatten()(layers.Embedding(6, 3)(ids))
    outputs = [layers.Dense(3, name="a")(h), layers.Dense(3, name="b")(h)]
    model = tf_dpfp.make_private(keras.Model(ids, outputs))
    optimizer = tf_dpfp.DPSGD(0.1, noise_multiplier=0.0, expected_batch_size=4)
    model.compile(optimizer, [CROSSENTROPY, CROSSENTROPY], jit_compile=False)
    bad = LABELS.copy()
    bad[0] = 7
    model.train_on_batch(IDS, [LABELS, bad])
    assert all(np.all(np.isfinite(w)) for w in model.get_weights())


def test_above_noised_representations_a_bad_label_is_left_out():
    below = [*_table()[:-1], tf_dpfp.DPRepresentationClip(1.0, 1.0)]
    model = _compiled(lambda: [*below, layers.Dense(3)])
    labels = LABELS.copy()
    labels[2] = 5
    model.train_on_batch(IDS, labels)
    assert all(np.all(np.isfinite(w)) for w in model.get_weights())


def test_an_example_whose_loss_is_not_finite_adds_nothing():
    """Whatever its gradient: of this loss it is that of any example."""

    def added(y, y_pred):
        return keras.ops.sum(y_pred, axis=-1) + y[:, 0]

    targets = np.zeros((4, 3), np.float32)
    targets[2] = np.inf
    others = np.array([0, 1, 3])
    model = _compiled(loss=added)
    expected = _sums(model, IDS[others], targets[others])
    _assert_same(_sums(model, IDS, targets), expected)
    # Nor above noised representations, where nothing is clipped.
    targets[2] = 1e30
    below = [*_table()[:-1], tf_dpfp.DPRepresentationClip(1.0, 1.0)]
    model = _compiled(lambda: [*below, layers.Dense(3)], "mse")
    model.train_on_batch(IDS, targets)
    assert all(np.all(np.abs(w) < 1e3) for w in model.get_weights())


def test_below_noised_representations_a_bad_id_gives_zeros():
    below = [*_table(trainable=False)[:-1]]
    clip = tf_dpfp.DPRepresentationClip(1.0, 1.0, labels="public")
    model = keras.Sequential([*below, clip, layers.Dense(3)])
    tf_dpfp.make_private(model)
    model.compile("sgd", CROSSENTROPY, jit_compile=False)
    ids = IDS.copy()
    ids[2, 1] = 9
    model.fit(ids, LABELS, batch_size=4, verbose=0)
    assert all(np.all(np.isfinite(w)) for w in model.get_weights())


@pytest.mark.parametrize("label", [2, np.nan])
def test_a_class_without_a_weight_stops_nothing(label):
    labels = LABELS.astype(np.float32)
    labels[1] = label
    data = tf.data.Dataset.from_tensors((IDS, labels))
    model = _compiled()
    model.fit(data, class_weight={0: 0.5, 1: 2.0}, verbose=0)
    assert all(np.all(np.isfinite(w)) for w in model.get_weights())
    again = _compiled()
    weights = np.where(labels == 0, 0.5, np.where(labels == 1, 2.0, 1.0))
    again.fit(IDS, labels, sample_weight=weights, batch_size=4, verbose=0)
    for one, other in zip(
        model.get_weights(), again.get_weights(), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5)
