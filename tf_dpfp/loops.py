"""Custom training loops: clipped gradients, and steps with known sampling."""

from tf_dpfp.optimizers import ClippedGradients
from tf_dpfp.training import clipped_gradients
from tf_dpfp.training import distributed_step
from tf_dpfp.training import is_private
from tf_dpfp.training import sampled_steps

__all__ = [
    "ClippedGradients",
    "clipped_gradients",
    "distributed_step",
    "is_private",
    "sampled_steps",
]
