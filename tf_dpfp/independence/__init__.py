"""Independence: a proof that every example of a batch stays by itself.

The guarantee bounds the influence of one example by clipping its gradient.
That is worth nothing if a model mixes examples before. `prove` follows a
traced graph, operation by operation, from the batch to what is clipped, and
shows that each row is a function of its own example: of no other one, of no
row number, and not of the batch size.
"""

from tf_dpfp.independence.findings import Category
from tf_dpfp.independence.findings import Finding
from tf_dpfp.independence.proof import Capture
from tf_dpfp.independence.proof import Dependence
from tf_dpfp.independence.proof import Proof
from tf_dpfp.independence.proof import RandomDraw
from tf_dpfp.independence.proof import Released
from tf_dpfp.independence.proof import prove
