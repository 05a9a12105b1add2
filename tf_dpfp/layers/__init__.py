"""Layers that are private by themselves: forward-pass perturbation."""

from tf_dpfp.layers.joint import joint_step
from tf_dpfp.layers.label_loss import DebiasedCrossentropy
from tf_dpfp.layers.representation import DPRepresentationClip
from tf_dpfp.layers.trial import Trial
from tf_dpfp.layers.trial import trial

__all__ = [
    "DPRepresentationClip",
    "DebiasedCrossentropy",
    "Trial",
    "joint_step",
    "trial",
]
