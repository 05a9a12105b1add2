"""Private training of Keras models."""

from tf_dpfp.mechanisms.state import is_private
from tf_dpfp.training.averaging import WeightAveraging
from tf_dpfp.training.backups import BackupAndRestore
from tf_dpfp.training.callbacks import PrivacyBudget
from tf_dpfp.training.custom_loops import clipped_gradients
from tf_dpfp.training.custom_loops import distributed_step
from tf_dpfp.training.custom_loops import sampled_steps
from tf_dpfp.training.private_model import make_private
from tf_dpfp.training.reports import clip_norms
from tf_dpfp.training.reports import compute_epsilon
from tf_dpfp.training.reports import ledger
from tf_dpfp.training.reports import privacy_statement
from tf_dpfp.training.validating import validate

__all__ = [
    "BackupAndRestore",
    "PrivacyBudget",
    "WeightAveraging",
    "clipped_gradients",
    "distributed_step",
    "compute_epsilon",
    "is_private",
    "ledger",
    "make_private",
    "privacy_statement",
    "sampled_steps",
    "clip_norms",
    "validate",
]
