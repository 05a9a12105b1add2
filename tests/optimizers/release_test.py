"""The noise that a release adds: of every size, and in shares."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import helpers
from tf_dpfp import clipping
from tf_dpfp import optimizers
from tf_dpfp.optimizers import release

# Both ways to draw noise: by itself, and together with others.
SHAPES = [(300, 300), (150, 20), (1000,)]
CLIP_NORMS = (0.3, 2.0)
KEY = tf.constant(123, tf.int64)


def _clipped(replicas=1):
    """Sums of zero in two groups: the second has the first and last."""
    return optimizers.ClippedGradients(
        sums=[tf.zeros(shape) for shape in SHAPES],
        variables=[keras.Variable(np.zeros(s, np.float32)) for s in SHAPES],
        groups=[
            clipping.Group("a", (1,), CLIP_NORMS[0], 3000),
            clipping.Group("b", (0, 2), CLIP_NORMS[1], 91000),
        ],
        regularization=[None] * 3,
        replicas=replicas,
    )


@pytest.mark.parametrize("share", [1.0, 0.5, 0.5**0.5])
@pytest.mark.parametrize("noise_multiplier", [1e-4, 0.05, 0.4, 1.0, 7.0])
def test_a_share_of_the_stated_noise_at_every_multiplier(
    noise_multiplier, share
):
    released = release.add_noise(
        _clipped(), noise_multiplier, "global", release.Draws(KEY, 0, share)
    )
    sensitivity = np.linalg.norm(CLIP_NORMS)
    for noise in released:
        helpers.assert_normal(
            noise, noise_multiplier * sensitivity * share, (0.7, 1.4)
        )


def test_only_a_multiplier_of_zero_adds_nothing():
    draws = release.Draws(KEY, 0, 1.0)
    for total in release.add_noise(_clipped(), 0.0, "global", draws):
        assert not np.any(total)
    for total in release.add_noise(_clipped(), 1e-6, "global", draws):
        assert np.all(total != 0.0)


@pytest.mark.parametrize("replicas", [1, 4])
def test_the_shares_of_all_replicas_are_the_whole_noise(replicas, monkeypatch):
    totals = [0.0] * len(SHAPES)
    for replica in range(replicas):
        monkeypatch.setattr(
            release.replicas, "index", lambda replica=replica: replica
        )
        draws = release.draws_of(KEY, _clipped(replicas))
        assert draws.share == pytest.approx(replicas**-0.5)
        released = release.add_noise(_clipped(replicas), 0.4, "global", draws)
        totals = [a + b for a, b in zip(totals, released, strict=True)]
    for total in totals:
        helpers.assert_normal(
            total, 0.4 * np.linalg.norm(CLIP_NORMS), (0.7, 1.4)
        )
