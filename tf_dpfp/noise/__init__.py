"""Sensitivities, and Gaussian noise to match them."""

from tf_dpfp.noise.allocation import ALLOCATIONS
from tf_dpfp.noise.allocation import sensitivity
from tf_dpfp.noise.allocation import standard_deviations
from tf_dpfp.noise.gaussian import NoiseSource
from tf_dpfp.noise.gaussian import gaussian as gaussian_noise
from tf_dpfp.noise.gaussian import gaussian_like as gaussian_noise_like
from tf_dpfp.noise.gaussian import gaussians as gaussian_noises

__all__ = [
    "ALLOCATIONS",
    "NoiseSource",
    "gaussian_noise",
    "gaussian_noise_like",
    "gaussian_noises",
    "sensitivity",
    "standard_deviations",
]
