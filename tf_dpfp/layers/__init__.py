"""Layers that are private by themselves: forward-pass perturbation."""

from tf_dpfp.layers.calling import Trial
from tf_dpfp.layers.calling import joint_step
from tf_dpfp.layers.calling import trial
from tf_dpfp.layers.label_loss import DebiasedCrossentropy
from tf_dpfp.layers.representation import DPRepresentationClip

__all__ = [
    "DPRepresentationClip",
    "DebiasedCrossentropy",
    "Trial",
    "joint_step",
    "trial",
]
