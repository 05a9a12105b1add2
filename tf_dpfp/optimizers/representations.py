"""Steps that release noised representations beside the noised sums.

**Mechanism.** One release has two parts, of the same examples: a noised row for
each example, from `DPRepresentationClip`, and, chosen by what the rows are,
noised sums of the clipped gradients of what makes the rows. What is above the
rows is trained by ordinary gradients, functions of the rows and the labels:
post-processing. Adjacency: one example replaced. Sensitivity: twice the bound
of each part. The noise multiplier of both together is
`accounting.joint_noise_multiplier`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_dpfp.accounting import Release


@dataclasses.dataclass(frozen=True)
class RowsBeside:
    """The rows that every step of an optimizer releases beside its sums.

    Attributes:
        noise_multiplier: Standard deviation of their noise over their bound.
        release: What they release, by what is declared of the labels.
    """

    noise_multiplier: float
    release: Release


@dataclasses.dataclass(frozen=True)
class Above:
    """Gradients of what is above noised representations: post-processing.

    Attributes:
        rows: The rows they are functions of.
        variables: The variables above, none of which is below as well.
        sums: Their gradients, added up over the batch; `None` where the loss
            does not depend on the variable.
        regularization: Gradients of the regularisation losses, or `None`.
        batch_size: Number of examples of the batch, `()`.
    """

    rows: RowsBeside
    variables: Sequence[keras.Variable]
    sums: Sequence[tf.Tensor | None]
    regularization: Sequence[tf.Tensor | None]
    batch_size: Any


def check_beside(mine: RowsBeside | None, above: Above | None) -> None:
    """Raises unless a step releases the rows that its ledger counts.

    Args:
        mine: What the optimizer's ledger counts beside sums.
        above: What came with clipped gradients.

    Raises:
        ValueError: If they are not of the same rows.
    """
    theirs = None if above is None else above.rows
    if mine is None and theirs is None:
        return
    if mine is None or theirs is None or mine != theirs:
        raise ValueError(
            "These clipped gradients and this optimizer differ in what is "
            "released beside the sums: "
            f"{_words(theirs)}, and {_words(mine)}. Compile the model that "
            "they are of with an optimizer of its own."
        )


def _words(rows: RowsBeside | None) -> str:
    if rows is None:
        return "nothing"
    return (
        "representations with noise multiplier "
        f"{rows.noise_multiplier:g} ({rows.release})"
    )
