"""Hyper-parameters: a search in the budget, and settings to start from."""

from tf_dpfp.tuning.search import Found
from tf_dpfp.tuning.search import search
from tf_dpfp.tuning.suggestions import Candidate
from tf_dpfp.tuning.suggestions import Suggestion
from tf_dpfp.tuning.suggestions import suggest

__all__ = ["Candidate", "Found", "Suggestion", "search", "suggest"]
