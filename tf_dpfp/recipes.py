"""Recipes: layers and averages that raise accuracy at the same epsilon."""

from tf_dpfp.layers import Scattering2D
from tf_dpfp.layers import WSConv2D
from tf_dpfp.training import WeightAveraging

__all__ = ["Scattering2D", "WSConv2D", "WeightAveraging"]
