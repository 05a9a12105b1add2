"""Joint release: noised representations and noised sums in one step.

**Mechanism.** One release has two parts, of the same examples: a noised
representation for each example, from `DPRepresentationClip`, and, chosen by
what the representations are, noised sums of the clipped gradients of the
layers below. The layers above are trained by ordinary gradients, functions of
the representations and the labels: post-processing. Adjacency: one example
replaced. Sensitivity: twice the bound of each part. The noise multiplier of
both together is `accounting.joint_noise_multiplier`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_dpfp import counting
from tf_dpfp.distribute import replicas
from tf_dpfp.optimizers import settings as settings_lib


@dataclasses.dataclass(frozen=True)
class JointGradients:
    """Gradients of the layers above noised representations: post-processing.

    Attributes:
        representations: The release they are functions of.
        variables: The variables above, none of which is below as well.
        sums: Their gradients, added up over the batch; `None` where the loss
            does not depend on the variable.
        regularization: Gradients of the regularisation losses, or `None`.
        batch_size: Number of examples of the batch, on all replicas, `()`.
    """

    representations: counting.GaussianRelease
    variables: Sequence[keras.Variable]
    sums: Sequence[tf.Tensor | None]
    regularization: Sequence[tf.Tensor | None]
    batch_size: Any


def of_all_replicas(joint: JointGradients | None) -> JointGradients | None:
    """Adds gradients above up over all replicas: they have noise already.

    Args:
        joint: Those of this replica; `None` where there are none.
    """
    if joint is None:
        return None
    sums = replicas.sum_over_all(joint.sums)
    return dataclasses.replace(joint, sums=sums)


def check_joint(
    mine: counting.GaussianRelease | None, joint: JointGradients | None
) -> None:
    """Refuses a step unless it releases the representations that are counted.

    Args:
        mine: The representations that the optimizer's ledger counts.
        joint: The gradients above that came with clipped gradients.

    Raises:
        ValueError: If they are not of the same representations.
    """
    theirs = None if joint is None else joint.representations
    if mine != theirs:
        raise ValueError(
            "These clipped gradients and this optimizer differ in what is "
            "released beside the sums: "
            f"{_words(theirs)}, and {_words(mine)}. Compile the model that "
            "they are of with an optimizer of its own."
        )


def _words(representations: counting.GaussianRelease | None) -> str:
    if representations is None:
        return "nothing"
    return (
        "representations with noise multiplier "
        f"{representations.noise_multiplier:g} ({representations.kind}, "
        f"clip norm {representations.clip_norm:g})"
    )


def check_settings(settings: settings_lib.PrivacySettings) -> None:
    """Refuses settings under which nothing is released jointly.

    Args:
        settings: Settings of the optimizer.

    Raises:
        ValueError: If its noise is secure or correlated, or it has sparse
            tables.
    """
    if settings.secure:
        raise ValueError(
            "`secure=True` does not reach the noise of a "
            "DPRepresentationClip, which is part of the release. Leave "
            "`secure` out. Received: secure=True"
        )
    if settings.bands != 1:
        raise ValueError(
            "Nothing is proved of correlated noise with a "
            "DPRepresentationClip in the model. Leave `correlated_noise` "
            f"out. Received: correlated_noise={settings.correlated_noise}"
        )
    if settings.sparse_tables is not None:
        raise ValueError(
            "Tables above or below a DPRepresentationClip are not released "
            "row by row. Leave `sparse_tables` out. Received: "
            f"sparse_tables={settings.sparse_tables}"
        )
