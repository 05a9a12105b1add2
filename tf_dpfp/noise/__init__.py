"""Sensitivities, and Gaussian noise to match them."""

from tf_dpfp.noise.allocation import ALLOCATIONS
from tf_dpfp.noise.allocation import sensitivity
from tf_dpfp.noise.allocation import standard_deviations
from tf_dpfp.noise.chain import Change
from tf_dpfp.noise.chain import NoiseChain
from tf_dpfp.noise.chain import Turn
from tf_dpfp.noise.gaussian import add_gaussians
from tf_dpfp.noise.gaussian import gaussian as gaussian_noise
from tf_dpfp.noise.gaussian import gaussian_like as gaussian_noise_like
from tf_dpfp.noise.gaussian import noised
from tf_dpfp.noise.keys import NoiseSource
from tf_dpfp.noise.keys import SecureKey
from tf_dpfp.noise.passing import passes
from tf_dpfp.noise.passing import passing_of
from tf_dpfp.noise.passing import probability as passing_probability
from tf_dpfp.noise.secure import check_installed as check_secure
from tf_dpfp.noise.seeds import LayerSeeds
from tf_dpfp.noise.seeds import PassSeeds
from tf_dpfp.noise.seeds import mixed as mixed_seed

__all__ = [
    "ALLOCATIONS",
    "LayerSeeds",
    "NoiseChain",
    "NoiseSource",
    "PassSeeds",
    "SecureKey",
    "Turn",
    "add_gaussians",
    "check_secure",
    "gaussian_noise",
    "gaussian_noise_like",
    "mixed_seed",
    "noised",
    "passes",
    "passing_of",
    "passing_probability",
    "sensitivity",
    "standard_deviations",
]
