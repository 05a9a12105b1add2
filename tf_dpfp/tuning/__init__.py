"""Hyper-parameter search inside of the privacy budget."""

from tf_dpfp.tuning.search import Found
from tf_dpfp.tuning.search import search

__all__ = ["Found", "search"]
