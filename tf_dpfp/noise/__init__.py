"""Sensitivities, and Gaussian noise to match them."""

from tf_dpfp.noise.allocation import ALLOCATIONS
from tf_dpfp.noise.allocation import sensitivity
from tf_dpfp.noise.allocation import standard_deviations
from tf_dpfp.noise.gaussian import NoiseSource
from tf_dpfp.noise.gaussian import gaussian as gaussian_noise

__all__ = [
    "ALLOCATIONS",
    "NoiseSource",
    "gaussian_noise",
    "sensitivity",
    "standard_deviations",
]
