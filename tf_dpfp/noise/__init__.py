"""Sensitivities, and Gaussian noise to match them."""

from tf_dpfp.noise.allocation import global_standard_deviations
from tf_dpfp.noise.allocation import sensitivity
from tf_dpfp.noise.gaussian import NoiseSource
from tf_dpfp.noise.gaussian import gaussian as gaussian_noise

__all__ = [
    "NoiseSource",
    "gaussian_noise",
    "global_standard_deviations",
    "sensitivity",
]
