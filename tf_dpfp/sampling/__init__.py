"""Batch sampling with a known distribution, and static padding."""

from tf_dpfp.sampling.buckets import bucket_sizes
from tf_dpfp.sampling.buckets import in_buckets
from tf_dpfp.sampling.calibration import calibrate_representation
from tf_dpfp.sampling.class_weights import weigh
from tf_dpfp.sampling.class_weights import weights_of
from tf_dpfp.sampling.cyclic import cyclic_poisson_batches
from tf_dpfp.sampling.dealing import deal
from tf_dpfp.sampling.dealing import piece_of
from tf_dpfp.sampling.labels import RandomizedLabels
from tf_dpfp.sampling.labels import keep_probability
from tf_dpfp.sampling.labels import randomize_labels
from tf_dpfp.sampling.padding import pad_to_multiple
from tf_dpfp.sampling.padding import split_microbatches
from tf_dpfp.sampling.parts import PartBatch
from tf_dpfp.sampling.parts import split as split_part
from tf_dpfp.sampling.persons import PersonBatch
from tf_dpfp.sampling.persons import flat
from tf_dpfp.sampling.persons import max_examples_of
from tf_dpfp.sampling.poisson import poisson_batches
from tf_dpfp.sampling.registry import SamplingInfo
from tf_dpfp.sampling.registry import draw_after
from tf_dpfp.sampling.registry import draws_of
from tf_dpfp.sampling.registry import examples_digest
from tf_dpfp.sampling.registry import is_of_draws
from tf_dpfp.sampling.registry import sampled_shard
from tf_dpfp.sampling.registry import sampling_of
from tf_dpfp.sampling.shuffled import shuffled_batches
from tf_dpfp.sampling.stratified import stratified_batches
from tf_dpfp.sampling.views import ViewBatch
from tf_dpfp.sampling.views import kind_of

__all__ = [
    "PartBatch",
    "PersonBatch",
    "RandomizedLabels",
    "SamplingInfo",
    "ViewBatch",
    "bucket_sizes",
    "calibrate_representation",
    "cyclic_poisson_batches",
    "deal",
    "draw_after",
    "draws_of",
    "examples_digest",
    "flat",
    "in_buckets",
    "is_of_draws",
    "keep_probability",
    "kind_of",
    "max_examples_of",
    "pad_to_multiple",
    "piece_of",
    "poisson_batches",
    "randomize_labels",
    "sampled_shard",
    "sampling_of",
    "shuffled_batches",
    "split_microbatches",
    "split_part",
    "stratified_batches",
    "weigh",
    "weights_of",
]
