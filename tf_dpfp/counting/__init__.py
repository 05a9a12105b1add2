"""Counting what a compiled step releases, in a Keras variable."""

from tf_dpfp.counting.ledger import TABLE_SHAPE
from tf_dpfp.counting.ledger import Ledger
from tf_dpfp.counting.release import GaussianRelease
from tf_dpfp.counting.release import JointRelease
from tf_dpfp.counting.release import Release

__all__ = [
    "TABLE_SHAPE",
    "GaussianRelease",
    "JointRelease",
    "Ledger",
    "Release",
]
