"""Layers: noised representations, and calls on one example at a time."""

from tf_dpfp.layers.calling import Release
from tf_dpfp.layers.calling import Trial
from tf_dpfp.layers.calling import joint_step
from tf_dpfp.layers.calling import trial
from tf_dpfp.layers.calling import watched
from tf_dpfp.layers.dealt_rows import dealt
from tf_dpfp.layers.dealt_rows import total
from tf_dpfp.layers.frozen_affine import FrozenAffine
from tf_dpfp.layers.label_loss import DebiasedCrossentropy
from tf_dpfp.layers.per_example import PerExample
from tf_dpfp.layers.person_rows import Persons
from tf_dpfp.layers.person_rows import of_persons
from tf_dpfp.layers.person_rows import of_places
from tf_dpfp.layers.representation import DPRepresentationClip
from tf_dpfp.layers.scattering import Scattering2D
from tf_dpfp.layers.weight_standardized import WSConv2D

__all__ = [
    "DPRepresentationClip",
    "DebiasedCrossentropy",
    "FrozenAffine",
    "PerExample",
    "Persons",
    "Release",
    "Scattering2D",
    "Trial",
    "WSConv2D",
    "dealt",
    "joint_step",
    "of_persons",
    "of_places",
    "total",
    "trial",
    "watched",
]
