"""Keras optimizers that take clipped sums and release noised ones."""

from tf_dpfp.optimizers.private_optimizer import DPSGD
from tf_dpfp.optimizers.private_optimizer import ClippedGradients
from tf_dpfp.optimizers.private_optimizer import DPAdagrad
from tf_dpfp.optimizers.private_optimizer import DPAdam
from tf_dpfp.optimizers.private_optimizer import DPAdamW
from tf_dpfp.optimizers.private_optimizer import DPLion
from tf_dpfp.optimizers.private_optimizer import DPRMSprop
from tf_dpfp.optimizers.private_optimizer import NotPrivateError
from tf_dpfp.optimizers.private_optimizer import PrivateOptimizer
from tf_dpfp.optimizers.private_optimizer import private_optimizer_class
from tf_dpfp.optimizers.representations import Above
from tf_dpfp.optimizers.representations import RowsBeside

__all__ = [
    "Above",
    "ClippedGradients",
    "DPAdagrad",
    "DPAdam",
    "DPAdamW",
    "DPLion",
    "DPRMSprop",
    "DPSGD",
    "NotPrivateError",
    "PrivateOptimizer",
    "RowsBeside",
    "private_optimizer_class",
]
