"""Auditing: attacks on trainings, and the bounds on epsilon that they prove."""

from tf_dpfp.auditing.audits import AuditPoint
from tf_dpfp.auditing.audits import AuditReport
from tf_dpfp.auditing.audits import audit
from tf_dpfp.auditing.audits import audit_scores
from tf_dpfp.auditing.bounds import epsilon_of_counts
from tf_dpfp.auditing.bounds import many_runs_epsilon
from tf_dpfp.auditing.canaries import insert_canaries
from tf_dpfp.auditing.canaries import unused_features
from tf_dpfp.auditing.dirac import dirac_audit
from tf_dpfp.auditing.membership import RocCurve
from tf_dpfp.auditing.membership import example_losses
from tf_dpfp.auditing.membership import membership_inference
from tf_dpfp.auditing.membership import roc_curve
from tf_dpfp.auditing.one_run import epsilon_of_guesses
from tf_dpfp.auditing.one_run import one_run_epsilon
from tf_dpfp.auditing.one_run import one_run_p_value
from tf_dpfp.auditing.plots import plot_audit
from tf_dpfp.auditing.plots import plot_roc
from tf_dpfp.auditing.releases import ReleaseRecorder
from tf_dpfp.auditing.releases import likelihood_scores
from tf_dpfp.auditing.releases import spread_scores

__all__ = [
    "AuditPoint",
    "AuditReport",
    "ReleaseRecorder",
    "RocCurve",
    "audit",
    "audit_scores",
    "dirac_audit",
    "epsilon_of_counts",
    "epsilon_of_guesses",
    "example_losses",
    "insert_canaries",
    "likelihood_scores",
    "many_runs_epsilon",
    "membership_inference",
    "one_run_epsilon",
    "one_run_p_value",
    "plot_audit",
    "plot_roc",
    "roc_curve",
    "spread_scores",
    "unused_features",
]
