"""Clipped gradients: the one input of a private optimizer."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager as ContextManager
from typing import Any, NoReturn

import keras
import tensorflow as tf

from tf_dpfp import accounting
from tf_dpfp import clipping as clipping_lib
from tf_dpfp import counting
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
            not depend on the variable. For a reparametrised kernel: the sums
            of its carriers, end to end. For a sparse table: `RowSums`.
        variables: The trainable variables.
        groups: The groups the sums were clipped in, with their clip norms.
        regularization: Gradients of the regularisation losses, which read no
            data; `None` where there is none.
        counts: The centred count of each group; `None` where no clip norm
            adapts.
        carriers: The carriers that the sums were projected with; `None` for
            variables without. Empty: for all of them.
        replicas: Number of replicas the batch was dealt to, each example to
            exactly one of them.
        joint: The gradients of the layers above noised representations, which
            need no noise; `None` where there are no such representations.
        owner: The optimizer that the model of these gradients is compiled
            with, and whose ledger the step belongs to; `None` if there is no
            model.
        stamp: The claim of the batch, for one step; `None`: of unknown
            sampling.
        kind: What is released, where it is other than the optimizer's: sums
            of persons.
        update: Given the tensors that were released, opens the context of the
            update, which refuses to read data; `None` if there is no model.
        part: The part of the data that the batch was drawn from, where
            examples are drawn by parts; `None`: unknown.
    """

    sums: Sequence[Any]
    variables: Sequence[keras.Variable]
    groups: Sequence[clipping_lib.Group]
    regularization: Sequence[tf.Tensor | None]
    counts: tf.Tensor | None = None
    carriers: Sequence[low_rank.Carriers | None] = ()
    replicas: int = 1
    joint: joint_release.JointGradients | None = None
    owner: Any = None
    stamp: counting.Stamp | None = None
    kind: accounting.Release | None = None
    part: tf.Tensor | None = None
    update: Callable[[Sequence[tf.Tensor]], ContextManager] | None = None

    def __repr__(self) -> str:
        """Names the variables, and shows no number: none has noise yet."""
        paths = [v.path for v in self.variables]
        return f"ClippedGradients(variables={paths}, sums=<private>)"

    def __iter__(self) -> NoReturn:
        """Refuses to be paired with variables, or taken apart."""
        raise TypeError(
            "Clipped gradients go to the optimizer as they are, all at once "
            "and without variables: `optimizer.apply(clipped)`, or "
            "`optimizer.apply_gradients(clipped)`."
        )

    def updating(self, released: Sequence[Any]) -> ContextManager:
        """Opens the context of the update.

        Args:
            released: What was released with noise, which it may read.
        """
        if self.update is None:
            return contextlib.nullcontext()
        above = () if self.joint is None else self.joint.sums
        read = []
        for tensor in (*released, *above):
            if isinstance(tensor, tf.IndexedSlices):
                read += [tensor.values, tensor.indices]
            elif tensor is not None:
                read.append(tensor)
        return self.update(read)

    @property
    def all_variables(self) -> list[keras.Variable]:
        """Every variable that a step updates: clipped, then above."""
        above = [] if self.joint is None else self.joint.variables
        return [*self.variables, *above]

    @property
    def counted_batch_size(self) -> Any:
        """Batch size that the ledger compares; 0 if it need not know."""
        return 0 if self.joint is None else self.joint.batch_size


def checked(
    gradients: Any,
    trainable_variables: Sequence[keras.Variable] | None,
    optimizer_name: str,
) -> ClippedGradients:
    """Checks that an optimizer was given clipped gradients and nothing else.

    Args:
        gradients: Argument of `apply`.
        trainable_variables: Second argument: their variables, or `None`.
        optimizer_name: Class of the optimizer, for the message.

    Returns:
        The clipped gradients.

    Raises:
        NotPrivateError: If they are ordinary gradients.
        ValueError: If the variables are not theirs.
    """
    if not isinstance(gradients, ClippedGradients):
        raise NotPrivateError(
            f"{optimizer_name} takes clipped gradients only, and "
            "this step computed ordinary ones. Call "
            "tf_dpfp.make_private(model) before training, or in a custom "
            "loop pass the result of tf_dpfp.loops.clipped_gradients(...)."
        )
    if trainable_variables is not None and [
        id(v) for v in trainable_variables
    ] != [id(v) for v in gradients.variables]:
        raise ValueError(
            "`trainable_variables` are not the variables the clipped "
            "gradients belong to. Leave the argument out."
        )
    return gradients


def check_owner(gradients: ClippedGradients, optimizer: Any) -> None:
    """Refuses gradients of a model whose steps another optimizer counts.

    Args:
        gradients: Clipped gradients.
        optimizer: The optimizer that is to apply them.

    Raises:
        NotPrivateError: If their model is compiled with another optimizer.
    """
    if gradients.owner is not None and gradients.owner is not optimizer:
        raise NotPrivateError(
            "These clipped gradients belong to a model that is compiled with "
            "another optimizer, whose ledger would not count the step. Call "
            "`model.optimizer.apply(...)`. If the model was compiled again "
            "since, make them anew. Received: optimizer="
            f"'{optimizer.name}'"
        )


def check_dealt(dealt: int) -> None:
    """Refuses a batch that may be on several replicas, or on none.

    Args:
        dealt: Number of replicas that the batch was dealt to.

    Raises:
        NotPrivateError: If others step together here.
    """
    count = replicas.count()
    if dealt == count:
        return
    if dealt == 1:
        raise NotPrivateError(
            f"A step on {count} replicas needs a batch that was dealt to them, "
            "each example to one: the same batch on every replica would count "
            f"each example {count} times. Use `model.fit` or `train_on_batch`, "
            "or tf_dpfp.loops.distributed_step in a custom loop."
        )
    raise NotPrivateError(
        f"These clipped gradients are those of one of {dealt} "
        f"replicas, and {count} step together here. Apply them where they "
        "were made."
    )
