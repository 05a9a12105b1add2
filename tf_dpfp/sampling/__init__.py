"""Random batches whose law is known, and the shapes they are given."""

from tf_dpfp.sampling.dealing import deal
from tf_dpfp.sampling.info import SamplingInfo
from tf_dpfp.sampling.info import sampled_shard
from tf_dpfp.sampling.info import sampling_of
from tf_dpfp.sampling.padding import pad_to_multiple
from tf_dpfp.sampling.padding import split_microbatches
from tf_dpfp.sampling.poisson import poisson_batches

__all__ = [
    "SamplingInfo",
    "deal",
    "pad_to_multiple",
    "poisson_batches",
    "sampled_shard",
    "sampling_of",
    "split_microbatches",
]
