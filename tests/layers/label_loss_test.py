import keras
import numpy as np
import pytest

import tf_dpfp


@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize("epsilon, classes", [(0.5, 2), (3.0, 4)])
def test_its_mean_over_the_randomisation_is_the_loss_of_the_true_label(
    epsilon, classes, from_logits
):
    predictions = np.random.default_rng(0).normal(size=(5, classes))
    if not from_logits:
        predictions = np.exp(predictions)
        predictions /= predictions.sum(axis=1, keepdims=True)
    keep = np.exp(epsilon) / (np.exp(epsilon) + classes - 1)
    other = (1 - keep) / (classes - 1)
    debiased = tf_dpfp.representations.DebiasedCrossentropy(
        epsilon, classes, from_logits, reduction="none", dtype="float64"
    )
    by_label = np.stack(
        [
            debiased(np.full(5, label), predictions).numpy()
            for label in range(classes)
        ]
    )
    plain = keras.losses.SparseCategoricalCrossentropy(
        from_logits=from_logits, reduction="none", dtype="float64"
    )
    for true in range(classes):
        weights = np.full(classes, other)
        weights[true] = keep
        np.testing.assert_allclose(
            weights @ by_label,
            plain(np.full(5, true), predictions),
            rtol=1e-6,
        )


def test_labels_in_a_column_and_configuration():
    loss = tf_dpfp.representations.DebiasedCrossentropy(
        1.0, 3, reduction="none"
    )
    y, predictions = np.arange(3), np.eye(3, dtype=np.float32)
    np.testing.assert_array_equal(
        loss(y, predictions), loss(y[:, None], predictions)
    )
    copy = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(loss)
    )
    assert copy.get_config() == loss.get_config()
    with pytest.raises(ValueError, match="for 3 classes"):
        loss(y, np.eye(3, 4, dtype=np.float32))
    with pytest.raises(ValueError, match="above 0"):
        tf_dpfp.representations.DebiasedCrossentropy(0.0, 3)
