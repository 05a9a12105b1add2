"""Counting what a compiled step releases, in a Keras variable."""

from tf_dpfp.counting.claims import Claim
from tf_dpfp.counting.claims import Located
from tf_dpfp.counting.claims import Stamp
from tf_dpfp.counting.claims import announced
from tf_dpfp.counting.claims import announcement_of_fit
from tf_dpfp.counting.claims import announcement_of_step
from tf_dpfp.counting.claims import on_drawn_batch
from tf_dpfp.counting.claims import parts_of
from tf_dpfp.counting.claims import passed_to_replicas
from tf_dpfp.counting.claims import to_come
from tf_dpfp.counting.ledger import MARKER
from tf_dpfp.counting.ledger import Ledger
from tf_dpfp.counting.release import GaussianRelease
from tf_dpfp.counting.release import JointRelease
from tf_dpfp.counting.release import Release
from tf_dpfp.counting.rows import TABLE_SHAPE

__all__ = [
    "MARKER",
    "TABLE_SHAPE",
    "Claim",
    "GaussianRelease",
    "JointRelease",
    "Ledger",
    "Located",
    "Release",
    "Stamp",
    "announced",
    "announcement_of_fit",
    "announcement_of_step",
    "on_drawn_batch",
    "parts_of",
    "passed_to_replicas",
    "to_come",
]
