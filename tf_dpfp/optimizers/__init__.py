"""Keras optimizers that take clipped sums and release noised ones."""

from tf_dpfp.optimizers.banded import Banded
from tf_dpfp.optimizers.classes import DPSGD
from tf_dpfp.optimizers.classes import DPAdagrad
from tf_dpfp.optimizers.classes import DPAdam
from tf_dpfp.optimizers.classes import DPAdamW
from tf_dpfp.optimizers.classes import DPLazyAdam
from tf_dpfp.optimizers.classes import DPLion
from tf_dpfp.optimizers.classes import DPRMSprop
from tf_dpfp.optimizers.classes import private_optimizer_class
from tf_dpfp.optimizers.clipped_gradients import ClippedGradients
from tf_dpfp.optimizers.clipped_gradients import NotPrivateError
from tf_dpfp.optimizers.clipped_gradients import check_dealt
from tf_dpfp.optimizers.joint_release import JointGradients
from tf_dpfp.optimizers.private_optimizer import PrivateOptimizer
from tf_dpfp.optimizers.restoring import marked_entries
from tf_dpfp.optimizers.sparse import Sparse

__all__ = [
    "Banded",
    "ClippedGradients",
    "DPAdagrad",
    "DPAdam",
    "DPAdamW",
    "DPLazyAdam",
    "DPLion",
    "DPRMSprop",
    "DPSGD",
    "JointGradients",
    "NotPrivateError",
    "PrivateOptimizer",
    "Sparse",
    "check_dealt",
    "marked_entries",
    "private_optimizer_class",
]
