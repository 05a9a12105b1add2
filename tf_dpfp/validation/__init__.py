"""What can't be made private, and what can be done about it."""

from tf_dpfp.validation.checks import Problem
from tf_dpfp.validation.checks import model_problems
from tf_dpfp.validation.checks import raise_if_invalid
from tf_dpfp.validation.checks import validate
from tf_dpfp.validation.fixes import fix

__all__ = ["Problem", "fix", "model_problems", "raise_if_invalid", "validate"]
