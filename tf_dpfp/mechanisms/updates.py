"""What a step does with noised sums reads no data.

**Assumed of a step:** what follows the noise is post-processing. Regularisers,
constraints, schedules and optimizers are code of users in that place. They may
read weights, what was released, and variables of their own; a tensor of the
forward pass, or a metric, would bring data into the weights past the noise.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import keras
import tensorflow as tf

from tf_dpfp import step as step_lib
from tf_dpfp.independence import step_proof
from tf_dpfp.independence import update_flow
from tf_dpfp.keras_private import metrics as keras_metrics
from tf_dpfp.keras_private import variables as keras_variables

# Of a graph, names of what was released in it: replicas update with that of
# all. A graph that held its own tensors would not be collected well.
_RELEASED = "_tf_dpfp_released"


@dataclasses.dataclass(frozen=True)
class Update:
    """Watches the part of a step that follows the noise.

    Args:
        model: A private model.
    """

    model: keras.Model

    @contextlib.contextmanager
    def __call__(self, released: Sequence[tf.Tensor]) -> Iterator[None]:
        """Opens the context of an update.

        Args:
            released: Tensors with noise, which it may read.

        Yields:
            Nothing.

        Raises:
            ValueError: If something inside reads data: a tensor of the batch
                in a graph, or a metric, also eagerly.
        """
        metrics = keras_metrics.variables_of(self.model)
        handles = step_proof.handles([v.value for v in metrics])
        before = step_lib.count_operations()
        reader = f"The update of model '{self.model.name}'"
        may_be_read: set[str] = set()
        graph = tf.compat.v1.get_default_graph()
        if not tf.executing_eagerly():
            may_be_read = getattr(graph, _RELEASED, may_be_read)
            setattr(graph, _RELEASED, may_be_read)
            # Now, for another replica may be done before this one.
            may_be_read.update(tensor.name for tensor in released)
        with keras_variables.unread(metrics, reader):
            yield
        if tf.executing_eagerly():
            return  # A pass has a graph of its own, and none of its tensors.
        op = update_flow.first_with_data(
            graph.get_operations()[before:],
            may_be_read,
            frozenset(map(id, handles)),
        )
        if op is not None:
            raise ValueError(
                f"The update of model '{self.model.name}' reads data without "
                "noise: a regularizer, a constraint, a learning-rate schedule "
                "or the optimizer holds on to a tensor of the batch, or reads "
                "a metric. Let it read weights, and variables of its own. "
                f"Received: operation {op.type} ('{op.name}')"
            )
