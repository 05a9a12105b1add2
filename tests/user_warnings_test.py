import threading
import warnings

import keras
import numpy as np
import pytest

import tf_dpfp
from tf_dpfp import user_warnings


def test_a_warning_of_fit_points_at_the_script():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    tf_dpfp.make_private(model)
    model.compile(tf_dpfp.DPSGD(0.1, noise_multiplier=1.0), loss="mse")
    batches = tf_dpfp.poisson_batches(
        np.ones((20, 2)), np.ones((20, 1)), expected_batch_size=5
    )
    with pytest.warns(UserWarning, match="made of batches") as caught:
        model.fit(batches.prefetch(1), verbose=0)
    (told,) = [w for w in caught if "made of batches" in str(w.message)]
    assert told.filename == __file__


def test_a_warning_of_an_argument_points_at_the_script():
    layer = keras.layers.Dense(1, name="only")
    model = keras.Sequential([keras.Input((2,)), layer])
    tf_dpfp.make_private(model)
    adaptive = tf_dpfp.PerLayer(thresholds=tf_dpfp.clipping.Adaptive())
    with pytest.warns(UserWarning, match="is the only group") as caught:
        model.compile(
            tf_dpfp.DPSGD(0.1, noise_multiplier=1.0, clipping=adaptive),
            loss="mse",
        )
        model.train_on_batch(np.ones((4, 2)), np.ones((4, 1)))
    assert [w.filename for w in caught if "only" in str(w.message)] == [
        __file__
    ]


def test_a_warning_of_the_trial_points_at_the_script():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    tf_dpfp.make_private(model)
    model.compile(
        tf_dpfp.DPSGD(0.1, noise_multiplier=1.0),
        loss=lambda y_true, y_pred: 0.0 * keras.ops.sum(y_pred, axis=-1),
    )
    with pytest.warns(UserWarning, match="noise alone") as caught:
        model.train_on_batch(np.ones((4, 2)), np.ones(4))
    (told,) = [w for w in caught if "noise alone" in str(w.message)]
    assert told.filename == __file__
    assert "from_logits=True" in str(told.message)


def test_a_thread_of_the_library_warns_all_the_same():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        thread = threading.Thread(target=user_warnings.warn, args=("said",))
        thread.start()
        thread.join()
    assert [str(w.message) for w in caught] == ["said"]
