"""Private training on several devices and machines, by `tf.distribute`."""

from tf_dpfp.distribute.agreement import ReplicasDifferError
from tf_dpfp.distribute.copies import on_devices
from tf_dpfp.distribute.strategies import STRATEGIES
from tf_dpfp.distribute.strategies import make_strategy
from tf_dpfp.distribute.strategies import worker_index

__all__ = [
    "STRATEGIES",
    "ReplicasDifferError",
    "make_strategy",
    "on_devices",
    "worker_index",
]
