"""Private training on several devices and machines, by `tf.distribute`."""

from tf_dpfp.distribute.agreement import ReplicasDifferError
from tf_dpfp.distribute.copies import on_devices
from tf_dpfp.distribute.strategies import STRATEGIES
from tf_dpfp.distribute.strategies import make_strategy
from tf_dpfp.distribute.strategies import worker_index

# Public. The other names are for the other folders of the package.
__all__ = [
    "ReplicasDifferError",
    "make_strategy",
    "on_devices",
]
