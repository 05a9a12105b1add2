"""Private training on several replicas: strategies, dealt batches, checks."""

from tf_dpfp.replicas.dealt_batches import batches_of
from tf_dpfp.replicas.dealt_batches import build
from tf_dpfp.replicas.dealt_batches import dealt
from tf_dpfp.replicas.dealt_batches import fitting
from tf_dpfp.replicas.dealt_batches import next_of
from tf_dpfp.replicas.dealt_batches import pieces_of
from tf_dpfp.replicas.dealt_batches import pipeline_of
from tf_dpfp.replicas.dealt_batches import steps_per_epoch
from tf_dpfp.replicas.dealt_batches import whole_batch
from tf_dpfp.replicas.supported_strategies import are_mirrored
from tf_dpfp.replicas.supported_strategies import check_rows
from tf_dpfp.replicas.supported_strategies import compiles
from tf_dpfp.replicas.supported_strategies import compiles_pieces
from tf_dpfp.replicas.supported_strategies import deals
from tf_dpfp.replicas.supported_strategies import strategy_for
from tf_dpfp.replicas.worker_checks import check_examples
from tf_dpfp.replicas.worker_checks import check_workers
from tf_dpfp.replicas.worker_checks import with_check

__all__ = [
    "are_mirrored",
    "batches_of",
    "build",
    "check_examples",
    "check_rows",
    "check_workers",
    "compiles",
    "compiles_pieces",
    "deals",
    "dealt",
    "fitting",
    "next_of",
    "pieces_of",
    "pipeline_of",
    "steps_per_epoch",
    "strategy_for",
    "whole_batch",
    "with_check",
]
