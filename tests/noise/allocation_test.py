import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tf_dpfp import noise

thresholds = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20)


@given(thresholds)
def test_sensitivity_is_the_norm_of_the_thresholds(values):
    np.testing.assert_allclose(
        noise.sensitivity(values), np.linalg.norm(values), rtol=1e-12
    )


@given(thresholds, st.floats(0.0, 100.0))
def test_every_group_gets_the_noise_of_the_whole(values, multiplier):
    # One Gaussian mechanism: the shift of any neighbour, measured in the
    # noise of each coordinate, is at most 1 / multiplier.
    deviations = noise.global_standard_deviations(values, multiplier)
    assert len(deviations) == len(values)
    if multiplier == 0.0:
        assert set(deviations) == {0.0}
        return
    if multiplier > 1e-6:
        shift = math.sqrt(
            sum((c / s) ** 2 for c, s in zip(values, deviations, strict=True))
        )
        assert shift == pytest.approx(1 / multiplier, rel=1e-9)
