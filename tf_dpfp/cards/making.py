"""The card of a model: everything that is asked of the model itself."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from tf_dpfp import accounting
from tf_dpfp import mechanisms
from tf_dpfp import optimizers
from tf_dpfp.cards import assembling
from tf_dpfp.cards import card as card_lib
from tf_dpfp.cards import digests
from tf_dpfp.cards import guarantees
from tf_dpfp.mechanisms import state as state_lib
from tf_dpfp.training import reports

_MECHANISMS = {
    "Gradients": (
        "DP-SGD: the gradient of every {unit} is clipped, and what a step "
        "releases is their sum with Gaussian noise."
    ),
    "Representations": (
        "DP-FP: every {unit}'s representation is clipped and gets Gaussian "
        "noise in the forward pass. What is above is trained on it by ordinary "
        "gradients, and nothing below is trained."
    ),
    "Joint": (
        "DP-FP with DP-SGD: every example's representation is clipped and gets "
        "Gaussian noise, and the layers below it are trained by clipped "
        "gradients with noise of their own. Both are one release."
    ),
}


def privacy_card(
    model: keras.Model,
    delta: float,
    *,
    examples_per_user: int | None = None,
    audit: Any = None,
    data: Mapping[str, Any] | None = None,
    data_key: bytes | None = None,
    sources: Sequence[str | os.PathLike] = (),
) -> card_lib.PrivacyCard:
    """Makes the privacy card of a model: what a reviewer asks, on one card.

    It has the unit of privacy and the adjacency, the mechanism and what it
    releases, every kind of step with its sampling and noise, clip norms,
    epsilon by both accountants, Gaussian DP and the greatest true positive
    rates of membership attacks, what is not covered, hazards one by one,
    versions and digests. The figures and words are those of
    `privacy_statement`.

    Example:

    ```python
    card = tf_dpfp.privacy_card(model, delta=1e-5)
    print(card)
    model.save("model.keras")
    card.write("model.keras")  # `python -m tf_dpfp card model.keras` reads it.
    ```

    Args:
        model: A private, compiled model.
        delta: Probability with which the guarantee may fail, in (0, 1); below
            one over the number of examples to mean anything.
        examples_per_user: Greatest number of examples that one person has in
            the data, a promise of yours, for figures of whole persons; see
            `compute_epsilon`.
        audit: `tf_dpfp.auditing.AuditReport` of an audit of this training, if
            one was run.
        data: From names to arrays of which the card is to have a digest. It
            confirms a guess of the data, which no epsilon covers; see
            `data_key`.
        data_key: At least 16 secret bytes. Whoever has them and the data can
            check the digests, nobody else can.
        sources: Files of which the card is to have a digest, such as the
            script of the training.

    Returns:
        A `PrivacyCard`. `print` writes it as markdown.

    Raises:
        NotPrivateError: If the model or its optimizer is not private.
        ValueError: If an argument is out of range, or nothing is proved for
            several examples of a person.

    Reference:
        - Near et al., 2025, NIST SP 800-226.
        - Dong, Roth and Su, 2022, arXiv 1905.02383 (Gaussian DP).
        - Mitchell et al., 2019, arXiv 1810.03993 (model cards).
    """
    if not state_lib.is_private(model):
        raise optimizers.NotPrivateError(
            f"Model '{model.name}' was never private, and has nothing to put "
            "on a privacy card. Train it after tf_dpfp.make_private(model); "
            "call that on a model from a file, too, before you ask."
        )
    record = reports.record_of(model)
    mechanism = mechanisms.mechanism_of(model)
    kept = {
        "model": _model(model),
        "mechanism": _mechanism(mechanism, record),
        "clip_norms": _clip_norms(model, mechanism),
        "noise": {"secure": bool(getattr(mechanism.optimizer, "secure", 0))},
        "audit": None if audit is None else _audit(audit),
        "data": None if data is None else digests.of_data(data, data_key),
        "code": digests.of_code(sources),
    }
    return card_lib.PrivacyCard(
        assembling.assemble(kept, record, delta, examples_per_user)
    )


def _model(model: keras.Model) -> dict[str, Any]:
    if not model.built:
        return {
            "name": model.name,
            "class": type(model).__name__,
            "weights": None,
            "trainable_weights": None,
        }
    return {
        "name": model.name,
        "class": type(model).__name__,
        "weights": _count(model.weights),
        "trainable_weights": _count(model.trainable_weights),
    }


def _count(variables: Sequence[keras.Variable]) -> int:
    return sum(math.prod(variable.shape) for variable in variables)


def _mechanism(
    mechanism: mechanisms.Mechanism, record: accounting.Record
) -> dict[str, str]:
    kind = type(mechanism).__name__
    units = {entry.release.unit for entry in record.entries}
    unit = "person" if units == {"person"} else "example"
    words = _MECHANISMS.get(kind, kind).format(unit=unit)
    return {"name": kind.lower(), "words": words}


def _clip_norms(
    model: keras.Model, mechanism: mechanisms.Mechanism
) -> dict[str, Any]:
    """Lists the clip norms of gradients and of representations."""
    gradients, reason = None, None
    if isinstance(mechanism, mechanisms.Gradients):
        if model.built:
            gradients = reports.clip_norms(model)
        else:
            reason = "The model is not built, and has no groups of weights yet."
    return {
        "gradients": gradients,
        "representations": {
            layer.name: float(layer.clip_norm) for layer in mechanism.layers
        }
        or None,
        "reason": reason,
    }


def _audit(audit: Any) -> dict[str, Any]:
    """Writes the report of an audit as fields."""
    try:
        return {
            "method": str(audit.method),
            "adjacency": str(audit.adjacency),
            "unit": str(audit.unit),
            "confidence": float(audit.confidence),
            "scores": len(audit.scores),
            "points": [
                {
                    "delta": float(point.delta),
                    "lower_bound": guarantees.number(float(point.lower_bound)),
                }
                for point in audit.points
            ],
        }
    except AttributeError as error:
        raise ValueError(
            "`audit` must be what tf_dpfp.auditing.audit, audit_scores or "
            f"dirac_audit returned. Received: audit of type {type(audit)}"
        ) from error
