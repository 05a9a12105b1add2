"""Private training of Keras models."""

from tf_dpfp.mechanisms.state import is_private
from tf_dpfp.training.callbacks import PrivacyBudget
from tf_dpfp.training.custom_loops import clipped_gradients
from tf_dpfp.training.custom_loops import dealt_step
from tf_dpfp.training.custom_loops import sampled_steps
from tf_dpfp.training.private_model import make_private
from tf_dpfp.training.reports import epsilon
from tf_dpfp.training.reports import ledger
from tf_dpfp.training.reports import privacy_statement
from tf_dpfp.training.reports import thresholds

__all__ = [
    "PrivacyBudget",
    "clipped_gradients",
    "dealt_step",
    "epsilon",
    "is_private",
    "ledger",
    "make_private",
    "privacy_statement",
    "sampled_steps",
    "thresholds",
]
