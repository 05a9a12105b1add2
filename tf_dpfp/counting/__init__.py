"""Counting what a compiled step releases, in a Keras variable."""

from tf_dpfp.counting.ledger import TABLE_SHAPE
from tf_dpfp.counting.ledger import Ledger

__all__ = ["TABLE_SHAPE", "Ledger"]
