"""Groupings, thresholds, clip factors and clipped sums."""

from tf_dpfp.clipping.adaptive import Adaptive
from tf_dpfp.clipping.adaptive import bounded as bounded_estimates
from tf_dpfp.clipping.adaptive import updated as updated_estimates
from tf_dpfp.clipping.automatic import Automatic
from tf_dpfp.clipping.clipped_sum import ClippedSums
from tf_dpfp.clipping.clipped_sum import clip_and_sum
from tf_dpfp.clipping.clipped_sum import gather_gradients
from tf_dpfp.clipping.clipping import Clipping
from tf_dpfp.clipping.contributions import RowSums
from tf_dpfp.clipping.contributions import SparseTables
from tf_dpfp.clipping.contributions import added_up
from tf_dpfp.clipping.factors import centred_count
from tf_dpfp.clipping.factors import clip_factors
from tf_dpfp.clipping.groupings import ByFunction
from tf_dpfp.clipping.groupings import Flat
from tf_dpfp.clipping.groupings import PerBlock
from tf_dpfp.clipping.groupings import PerLayer
from tf_dpfp.clipping.groupings import get
from tf_dpfp.clipping.groups import Group
from tf_dpfp.clipping.groups import OwnedVariable
from tf_dpfp.clipping.groups import with_estimates
from tf_dpfp.clipping.per_device import PerDevice
from tf_dpfp.clipping.placement import on as on_device
from tf_dpfp.clipping.representations import clip_representations

# Public. The other names are for the other folders of the package.
__all__ = [
    "Adaptive",
    "Automatic",
    "ByFunction",
    "Clipping",
    "Flat",
    "PerBlock",
    "PerDevice",
    "PerLayer",
]
