"""Private steps: from a batch to clipped sums."""

from tf_dpfp.step.batch import as_clipped_gradients
from tf_dpfp.step.batch import clipped_batch
from tf_dpfp.step.batch import regularization_gradients
from tf_dpfp.step.forward_pass import ForwardPass
from tf_dpfp.step.forward_pass import call_model
from tf_dpfp.step.forward_pass import forward
from tf_dpfp.step.microbatch import MicrobatchResult
from tf_dpfp.step.microbatch import clipped_microbatch
from tf_dpfp.step.plan import Below
from tf_dpfp.step.plan import Plan
from tf_dpfp.step.plan import make_plan
from tf_dpfp.step.plan import owned_variables
from tf_dpfp.step.traced import Traced
from tf_dpfp.step.traced import as_examples
from tf_dpfp.step.traced import count_operations

__all__ = [
    "ForwardPass",
    "MicrobatchResult",
    "Plan",
    "Below",
    "Traced",
    "as_clipped_gradients",
    "as_examples",
    "call_model",
    "clipped_batch",
    "clipped_microbatch",
    "count_operations",
    "forward",
    "make_plan",
    "owned_variables",
    "regularization_gradients",
]
