import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

import tf_dpfp
from tf_dpfp import clipping
from tf_dpfp.clipping import adaptive as adaptive_lib

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("target_quantile", [0.0, 1.0, -0.5, 1.5, NAN, INF, "0.5", None, True]),
        ("budget_share", [0.0, 1.0, -0.5, 1.5, NAN, INF, "0.5", None, True]),
        ("learning_rate", [0.0, -0.1, NAN, INF, "0.2", None, True]),
        ("initial", [0.0, -1.0, NAN, INF, 1e-11, 1e11, True, None, "fair"]),
        ("initial", [{"a": 0.0}, {"a": "1"}, {"a": 1.0, "b": NAN}, {"a": INF}]),
    ],
)
def test_arguments_out_of_range_are_refused_with_their_value(name, values):
    for value in values:
        with pytest.raises(ValueError, match=f"`{name}` must be") as error:
            tf_dpfp.clipping.Adaptive(**{name: value})
        shown = value if not isinstance(value, dict) else [*value.values()][-1]
        assert f"Received: {name}={shown!r}" in str(error.value)


def test_shared_counts_and_rescaled_thresholds_exclude_each_other():
    with pytest.raises(ValueError, match="shared=True"):
        tf_dpfp.clipping.Adaptive(shared=True, rescale=True)


SETTINGS = [
    tf_dpfp.clipping.Adaptive(),
    tf_dpfp.clipping.Adaptive(initial=3, rescale=False, shared=True),
    tf_dpfp.clipping.Adaptive(initial=np.float32(0.1)),
    tf_dpfp.clipping.Adaptive(initial="by_dimension", budget_share=0.2),
    tf_dpfp.clipping.Adaptive(
        initial={"b": 1.0, "a": 2.5}, target_quantile=0.7
    ),
    # What Keras calls the parts of a serialized object.
    tf_dpfp.clipping.Adaptive(initial={"class_name": 1.0, "config": 2.5}),
]


@pytest.mark.parametrize("adaptive", SETTINGS, ids=str)
def test_serialization(adaptive):
    for config in (
        keras.saving.serialize_keras_object(adaptive),
        json.loads(json.dumps(keras.saving.serialize_keras_object(adaptive))),
    ):
        assert keras.saving.deserialize_keras_object(config) == adaptive
    again = tf_dpfp.clipping.Adaptive.from_config(adaptive.get_config())
    assert again == adaptive and hash(again) == hash(adaptive)


def test_a_dict_and_what_it_becomes_are_the_same_settings():
    given_ = {"b": 1.0, "a": 2.5}
    by_dict = tf_dpfp.clipping.Adaptive(initial=given_)
    given_["b"] = 7.0  # Frozen: nothing that happens to it later counts.
    assert by_dict == tf_dpfp.clipping.Adaptive(
        initial=(("a", 2.5), ("b", 1.0))
    )


def test_initial_estimates():
    def initial(value):
        settings = tf_dpfp.clipping.Adaptive(initial=value)
        return settings.initial_estimates(2.0, ["a", "b"], [1, 3])

    np.testing.assert_allclose(initial("equal"), [2**0.5, 2**0.5])
    np.testing.assert_allclose(initial("by_dimension"), [1.0, 3**0.5])
    assert initial(0.3) == (0.3, 0.3)
    assert initial({"b": 5.0, "a": 0.1}) == (0.1, 5.0)
    with pytest.raises(ValueError, match="`initial` gives one.*Missing.*'b'"):
        initial({"a": 1.0, "c": 1.0})


def _trajectory(adaptive, norms, initial, steps):
    """Estimates of one group, noise 0, everybody in every batch."""
    norms = np.asarray(norms, np.float32)
    estimates, found = tf.constant([initial], tf.float32), []
    for _ in range(steps):
        count = clipping.centred_count(
            tf.constant(np.square(norms)),
            estimates[0],
            tf.ones(norms.shape, tf.bool),
        )
        estimates = clipping.updated_estimates(
            estimates, count[None], tf.constant(float(len(norms))), adaptive
        )
        found.append(float(estimates[0]))
    return found


# Published trajectories of the geometric update; 0 and 1 are no quantiles
# here, but as near as wanted.
GOLDEN = [
    (1e-9, 16.0, [5.0, 2.5], [8.0, 4.0, 4.0 / 2**0.5, 2.0, 2.0]),
    (1.0 - 1e-9, 0.5, [1.5, 3.0], [1.0, 2.0, 2.0 * 2**0.5, 4.0, 4.0]),
]


@pytest.mark.parametrize(("target", "initial", "norms", "expected"), GOLDEN)
def test_golden_trajectories(target, initial, norms, expected):
    adaptive = tf_dpfp.clipping.Adaptive(
        target_quantile=target, learning_rate=math.log(2.0)
    )
    found = _trajectory(adaptive, norms, initial, len(expected))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("initial", [1.0, 10.0])
def test_the_median_of_evenly_spread_norms_is_found(initial):
    adaptive = tf_dpfp.clipping.Adaptive(target_quantile=0.5, learning_rate=1.0)
    found = _trajectory(adaptive, np.linspace(0, 10, 21), initial, 40)
    assert abs(found[-1] - 5.0) < 0.25


def test_the_fraction_is_of_the_expected_batch_size():
    adaptive = tf_dpfp.clipping.Adaptive(target_quantile=0.3, learning_rate=0.7)
    found = clipping.updated_estimates(
        tf.constant([1.0, 2.0, 3.0]),
        tf.constant([0.0, 1.5, -2.0]),
        tf.constant(10.0),
        adaptive,
    )
    fractions = np.array([0.5, 0.65, 0.3])
    expected = [1.0, 2.0, 3.0] * np.exp(-0.7 * (fractions - 0.3))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_shared_count_moves_all_estimates_by_one_factor():
    found = clipping.updated_estimates(
        tf.constant([1.0, 2.0, 5.0]),
        tf.constant([3.0]),
        tf.constant(10.0),
        tf_dpfp.clipping.Adaptive(shared=True, rescale=False),
    )
    np.testing.assert_allclose(found / found[0], [1.0, 2.0, 5.0], rtol=1e-6)
    assert found[0] < 1.0


@pytest.mark.parametrize("noise", [-1e30, -1e3, 1e3, 1e30])
def test_the_wildest_noise_moves_an_estimate_as_far_as_a_whole_batch(noise):
    adaptive = tf_dpfp.clipping.Adaptive(
        target_quantile=0.25, learning_rate=2.0
    )
    found = clipping.updated_estimates(
        tf.constant([1.0]), tf.constant([noise]), tf.constant(4.0), adaptive
    )
    fraction = 1.0 if noise > 0 else 0.0
    np.testing.assert_allclose(
        found, [math.exp(-2.0 * (fraction - 0.25))], rtol=1e-6
    )


@pytest.mark.parametrize(("estimate", "count"), [(1e-10, 9.0), (1e10, -9.0)])
def test_estimates_stay_where_float32_squares_them(estimate, count):
    adaptive = tf_dpfp.clipping.Adaptive(learning_rate=50.0)
    found = clipping.updated_estimates(
        tf.constant([estimate]),
        tf.constant([count]),
        tf.constant(1.0),
        adaptive,
    )
    np.testing.assert_allclose(found, [estimate], rtol=1e-6)


@given(
    st.lists(st.floats(-10.0, 10.0), min_size=1, max_size=30),
    st.sampled_from([1e-10, 1e-3, 1.0, 1e6]),
)
def test_rescaled_thresholds_keep_bound_and_proportions(exponents, bound):
    estimates = 10.0 ** np.array(exponents)
    thresholds = np.array(
        adaptive_lib.clip_norms_of(
            [tf.constant(e, tf.float32) for e in estimates], bound, True
        ),
        np.float64,
    )
    assert np.linalg.norm(thresholds) == pytest.approx(bound, rel=1e-3)
    # Noise is measured by the thresholds, so what matters is that none is so
    # small that float32 would lose what it bounds.
    assert np.all(thresholds >= 0.999e-14)
    expected = estimates * (bound / np.linalg.norm(estimates))
    kept = expected > 1e-13
    np.testing.assert_allclose(thresholds[kept], expected[kept], rtol=1e-3)


def test_thresholds_that_are_not_rescaled_are_the_estimates():
    estimates = [tf.constant(3.0), tf.constant(4.0)]
    assert adaptive_lib.clip_norms_of(estimates, 1.0, False) == estimates
