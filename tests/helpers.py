"""Small things that tests of several folders share."""

import keras
import numpy as np
from keras import layers
from scipy import special
from scipy import stats

import tf_dpfp


def private_line(optimizer, **kwargs):
    """A private linear model of three features, compiled."""
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    tf_dpfp.make_private(model)
    model.compile(optimizer, loss="mse", **kwargs)
    return model


def p_value(sample, deviation):
    """Of a Kolmogorov-Smirnov test for a normal distribution of mean zero."""
    # By the law of large samples: `stats.kstest` takes twenty times as long.
    sample = np.sort(np.ravel(np.asarray(sample, np.float64)), kind="stable")
    expected = special.ndtr(sample / deviation)
    steps = np.arange(len(sample) + 1) / len(sample)
    distance = max(np.max(steps[1:] - expected), np.max(expected - steps[:-1]))
    return stats.kstwobign.sf(distance * np.sqrt(len(sample)))


def assert_normal(sample, deviation, wrong):
    """Asserts that noise has its deviation, and that others would not do.

    Args:
        sample: The noise.
        deviation: Its standard deviation.
        wrong: Factors of other deviations, which the sample must tell apart.
    """
    sample = np.sort(np.ravel(np.asarray(sample, np.float64)))
    assert p_value(sample, deviation) > 1e-6, np.std(sample)
    for factor in wrong:
        assert p_value(sample, deviation * factor) < 1e-6, factor
