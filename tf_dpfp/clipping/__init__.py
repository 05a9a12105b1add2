"""Groupings, thresholds, clip factors and clipped sums."""

from tf_dpfp.clipping.clipped_sum import clip_and_sum
from tf_dpfp.clipping.clipped_sum import gather_gradients
from tf_dpfp.clipping.factors import clip_factors
from tf_dpfp.clipping.groupings import Clipping
from tf_dpfp.clipping.groupings import Flat
from tf_dpfp.clipping.groupings import Group
from tf_dpfp.clipping.groupings import OwnedVariable
from tf_dpfp.clipping.groupings import PerBlock
from tf_dpfp.clipping.groupings import PerLayer
from tf_dpfp.clipping.groupings import get

__all__ = [
    "Clipping",
    "Flat",
    "Group",
    "OwnedVariable",
    "PerBlock",
    "PerLayer",
    "clip_and_sum",
    "clip_factors",
    "gather_gradients",
    "get",
]
