"""Gradient rules: how per-example gradients of your own layers are computed.

A rule is needed for speed only: a layer without one takes `GenericRule`, which
is exact. `register_gradient_rule(LayerType)` decorates a `GradientRule`, whose
`gradients` returns one of three forms: `PerExampleTensor`, `OuterProduct` or
`EmbeddingRows`.
"""

from tf_dpfp.per_example import EmbeddingRows
from tf_dpfp.per_example import GenericRule
from tf_dpfp.per_example import GradientRule
from tf_dpfp.per_example import LayerCall
from tf_dpfp.per_example import OuterProduct
from tf_dpfp.per_example import PerExampleGradient
from tf_dpfp.per_example import PerExampleTensor
from tf_dpfp.per_example import register_gradient_rule

__all__ = [
    "EmbeddingRows",
    "GenericRule",
    "GradientRule",
    "LayerCall",
    "OuterProduct",
    "PerExampleGradient",
    "PerExampleTensor",
    "register_gradient_rule",
]
