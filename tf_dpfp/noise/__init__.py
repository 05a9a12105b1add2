"""Sensitivities, and Gaussian noise to match them."""

from tf_dpfp.noise.allocation import global_standard_deviations
from tf_dpfp.noise.allocation import sensitivity
from tf_dpfp.noise.gaussian import NoiseSource
from tf_dpfp.noise.gaussian import standard_normal

__all__ = [
    "NoiseSource",
    "global_standard_deviations",
    "sensitivity",
    "standard_normal",
]
