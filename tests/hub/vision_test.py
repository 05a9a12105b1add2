"""Image classifiers of KerasHub: clipped gradients against a loop."""

import keras
import numpy as np
import pytest

import tf_dpfp
from tests.hub import example_loop

keras_hub = pytest.importorskip(
    "keras_hub", reason="KerasHub is not installed (the extra `hub`)"
)

CLASSES = 3
SIZE = 8


def _vit():
    backbone = keras_hub.models.ViTBackbone(
        image_shape=(SIZE, SIZE, 3),
        patch_size=4,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        mlp_dim=6,
        dropout_rate=0.0,
        attention_dropout=0.0,
    )
    return keras_hub.models.ViTImageClassifier(
        backbone, num_classes=CLASSES, preprocessor=None
    )


def _deit():
    backbone = keras_hub.models.DeiTBackbone(
        image_shape=(SIZE, SIZE, 3),
        patch_size=4,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=6,
        dropout_rate=0.0,
        attention_dropout=0.0,
    )
    return keras_hub.models.DeiTImageClassifier(
        backbone, num_classes=CLASSES, preprocessor=None
    )


def _resnet():
    backbone = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64],
        stackwise_num_blocks=[1],
        stackwise_num_strides=[1],
        block_type="basic_block",
        image_shape=(SIZE, SIZE, 3),
    )
    return keras_hub.models.ResNetImageClassifier(
        backbone, num_classes=CLASSES, preprocessor=None
    )


def _resnet_with_frozen_statistics():
    model = _resnet()
    for layer in model.backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    return model


def _data():
    rng = np.random.default_rng(0)
    shape = (example_loop.EXAMPLES, SIZE, SIZE, 3)
    images = rng.uniform(size=shape).astype("float32")
    return images, rng.integers(0, CLASSES, len(images)), None


@pytest.mark.slow
@pytest.mark.parametrize("build", [_vit, _deit, _resnet_with_frozen_statistics])
def test_clipped_gradients_equal_a_loop(build):
    keras.utils.set_random_seed(0)
    model = build()
    for index, v in enumerate(model.trainable_variables):
        v.assign_add(keras.random.normal(v.shape, stddev=0.2, seed=index))
    example_loop.check_against_loop(model, _data())


@pytest.mark.slow
@pytest.mark.parametrize("build", [_vit, _resnet_with_frozen_statistics])
def test_fit_trains_all_but_what_is_frozen(build):
    model = build()
    images, labels, _ = _data()
    tf_dpfp.make_private(model)
    model.compile(
        optimizer=tf_dpfp.DPAdam(
            1e-2, l2_norm_clip=0.1, noise_multiplier=0.5, microbatch_size=3
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    batches = tf_dpfp.poisson_batches(
        images, labels, sampling_rate=0.5, steps_per_epoch=3
    )
    before = {v.path: v.numpy() for v in model.weights}
    model.fit(batches, validation_data=(images, labels), verbose=0)
    trained = {v.path for v in model.trainable_weights}
    for v in model.weights:
        assert np.all(np.isfinite(v.numpy()))
        changed = np.any(v.numpy() != before[v.path])
        assert changed == (v.path in trained), v.path
    (entry,) = tf_dpfp.ledger(model)
    assert (entry.steps, entry.sampling.sampling_rate) == (3, 0.5)


def test_trained_statistics_are_refused():
    with pytest.raises(ValueError, match="BatchNormalization"):
        tf_dpfp.make_private(_resnet())
