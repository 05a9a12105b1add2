"""What a private step hands to a private optimizer."""

import dataclasses
from collections.abc import Sequence

import keras
import tensorflow as tf

from tf_dpfp import clipping as clipping_lib
from tf_dpfp import low_rank
from tf_dpfp.distribute import replicas
from tf_dpfp.optimizers import joint_release


class NotPrivateError(RuntimeError):
    """A private optimizer or model was used in a way that is not private."""


@dataclasses.dataclass(frozen=True)
class ClippedGradients:
    """Clipped sums on their way to a private optimizer. Not yet private.

    The numbers inside are exact sums over private examples: do not read,
    print or keep them. `optimizer.apply(clipped)` adds the noise.

    Attributes:
        sums: The clipped sum for each variable; `None` where the loss does
            not depend on the variable. Of a reparametrised kernel, those of
            its carriers, end to end.
        variables: The trainable variables.
        groups: The groups the sums were clipped in, with their thresholds.
        regularization: Gradients of the regularisation losses, which read no
            data; `None` where there is none.
        counts: The centred count of each group; `None` where no threshold
            adapts.
        carriers: The carriers that the sums were projected with; `None` for
            variables without. Empty: for all of them.
        replicas: Over how many replicas the batch was dealt, each example to
            exactly one of them.
        above: The gradients of what is above noised representations, which
            need no noise; `None` where there are no such representations.
    """

    sums: Sequence[tf.Tensor | None]
    variables: Sequence[keras.Variable]
    groups: Sequence[clipping_lib.Group]
    regularization: Sequence[tf.Tensor | None]
    counts: tf.Tensor | None = None
    carriers: Sequence[low_rank.Carriers | None] = ()
    replicas: int = 1
    above: joint_release.Above | None = None


def check_dealt(grads: ClippedGradients) -> None:
    """Refuses a batch that may be on several replicas, or on none."""
    count = replicas.count()
    if grads.replicas == count:
        return
    if grads.replicas == 1:
        raise NotPrivateError(
            f"A step on {count} replicas needs a batch that was dealt to "
            "them, each example to one: the same batch on every replica would "
            f"count each example {count} times. Use `model.fit` or "
            "`train_on_batch`, or tf_dpfp.dealt_step in a custom loop."
        )
    raise NotPrivateError(
        f"These clipped gradients are those of one of {grads.replicas} "
        f"replicas, and {count} step together here. Apply them where they "
        "were made."
    )
