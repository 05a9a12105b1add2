"""Checks of models before training, and replacements for layers."""

from tf_dpfp.validation.checks import LAYER_CHECKS
from tf_dpfp.validation.checks import RANDOM_MIXING_CHECKS
from tf_dpfp.validation.checks import LayerCheck
from tf_dpfp.validation.checks import Problem
from tf_dpfp.validation.checks import raise_if_invalid
from tf_dpfp.validation.checks import validate
from tf_dpfp.validation.fixes import fix

__all__ = [
    "LAYER_CHECKS",
    "RANDOM_MIXING_CHECKS",
    "LayerCheck",
    "Problem",
    "fix",
    "raise_if_invalid",
    "validate",
]
