"""Errors, and the problems that `validate` lists."""

from tf_dpfp.distribute import ReplicasDifferError
from tf_dpfp.optimizers import NotPrivateError
from tf_dpfp.validation import Problem

__all__ = ["NotPrivateError", "Problem", "ReplicasDifferError"]
