"""Privacy accounting: what ran, what it cost, what it may still cost."""

from tf_dpfp.accounting.calibration import calibrate
from tf_dpfp.accounting.epsilon import check_delta
from tf_dpfp.accounting.epsilon import check_epsilon
from tf_dpfp.accounting.epsilon import compute_epsilon
from tf_dpfp.accounting.epsilon import max_steps
from tf_dpfp.accounting.events import compose_events
from tf_dpfp.accounting.mechanisms import LedgerEntry
from tf_dpfp.accounting.mechanisms import PoissonSampling
from tf_dpfp.accounting.mechanisms import Sampling
from tf_dpfp.accounting.mechanisms import UnknownSampling
from tf_dpfp.accounting.statement import statement as privacy_statement

__all__ = [
    "LedgerEntry",
    "PoissonSampling",
    "Sampling",
    "UnknownSampling",
    "calibrate",
    "check_delta",
    "check_epsilon",
    "compose_events",
    "compute_epsilon",
    "max_steps",
    "privacy_statement",
]
