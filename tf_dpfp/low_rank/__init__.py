"""Low-rank reparametrised kernels: carriers in place of weight gradients."""

from tf_dpfp.low_rank.carriers import Carriers
from tf_dpfp.low_rank.carriers import leading_carriers
from tf_dpfp.low_rank.carriers import normals
from tf_dpfp.low_rank.carriers import orthonormal
from tf_dpfp.low_rank.carriers import random_carriers
from tf_dpfp.low_rank.configuration import Reparametrization
from tf_dpfp.low_rank.layers import RGPDense
from tf_dpfp.low_rank.marks import Mark
from tf_dpfp.low_rank.marks import broken_mark
from tf_dpfp.low_rank.marks import fingerprint
from tf_dpfp.low_rank.marks import mark_of
from tf_dpfp.low_rank.marks import marked_view
from tf_dpfp.low_rank.marks import released_size
from tf_dpfp.low_rank.marks import remove_carriers
from tf_dpfp.low_rank.marks import reparametrize
from tf_dpfp.low_rank.marks import shapes_of_carriers
from tf_dpfp.low_rank.matrices import MatrixView
from tf_dpfp.low_rank.projection import CarrierGradient
from tf_dpfp.low_rank.projection import project
from tf_dpfp.low_rank.projection import project_all
from tf_dpfp.low_rank.projection import reconstruct
from tf_dpfp.low_rank.turning import contraction
from tf_dpfp.low_rank.turning import turned

# Public. The other names are for the other folders of the package.
__all__ = [
    "RGPDense",
    "remove_carriers",
    "reparametrize",
]
