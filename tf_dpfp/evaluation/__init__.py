"""Evaluation of private models, by noised counts that their ledgers count."""

from tf_dpfp.evaluation.callback import PrivateEvaluation
from tf_dpfp.evaluation.callback import evaluations_of
from tf_dpfp.evaluation.callback import planned
from tf_dpfp.evaluation.evaluate import evaluate_privately
from tf_dpfp.evaluation.results import Estimate
from tf_dpfp.evaluation.results import Evaluation

__all__ = [
    "Estimate",
    "Evaluation",
    "PrivateEvaluation",
    "evaluate_privately",
    "evaluations_of",
    "planned",
]
