"""Noised representations (DP-FP): batches, labels and calibration.

What a `DPRepresentationClip` needs beside itself: batches stratified by label,
labels that are private, too, a loss for them, and its noise multiplier.
"""

from tf_dpfp.layers import DebiasedCrossentropy
from tf_dpfp.sampling import RandomizedLabels
from tf_dpfp.sampling import calibrate_representation
from tf_dpfp.sampling import randomize_labels
from tf_dpfp.sampling import stratified_batches

__all__ = [
    "DebiasedCrossentropy",
    "RandomizedLabels",
    "calibrate_representation",
    "randomize_labels",
    "stratified_batches",
]
