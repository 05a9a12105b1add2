"""Privacy accounting: what ran, what it cost, what it may still cost."""

from tf_dpfp.accounting.calibration import calibrate
from tf_dpfp.accounting.calibration import least_noise
from tf_dpfp.accounting.claimed import claimed_epsilon
from tf_dpfp.accounting.entries import EveryLabel
from tf_dpfp.accounting.entries import LedgerEntry
from tf_dpfp.accounting.entries import PoissonSampling
from tf_dpfp.accounting.entries import Release
from tf_dpfp.accounting.entries import Sampling
from tf_dpfp.accounting.entries import UnknownSampling
from tf_dpfp.accounting.entries import WithoutReplacement
from tf_dpfp.accounting.entries import replaces_one
from tf_dpfp.accounting.epsilon import check_delta
from tf_dpfp.accounting.epsilon import check_epsilon
from tf_dpfp.accounting.epsilon import compute_epsilon
from tf_dpfp.accounting.epsilon import max_steps
from tf_dpfp.accounting.events import compose_events
from tf_dpfp.accounting.joint import BudgetSplit
from tf_dpfp.accounting.joint import joint_noise_multiplier
from tf_dpfp.accounting.joint import other_noise_multiplier
from tf_dpfp.accounting.joint import split_budget
from tf_dpfp.accounting.statement import statement as privacy_statement

__all__ = [
    "BudgetSplit",
    "EveryLabel",
    "LedgerEntry",
    "PoissonSampling",
    "Release",
    "Sampling",
    "UnknownSampling",
    "WithoutReplacement",
    "calibrate",
    "check_delta",
    "check_epsilon",
    "claimed_epsilon",
    "compose_events",
    "compute_epsilon",
    "joint_noise_multiplier",
    "least_noise",
    "max_steps",
    "other_noise_multiplier",
    "privacy_statement",
    "replaces_one",
    "split_budget",
]
