"""What a layer was told about its labels, as an entry and as config."""

from typing import Any

from tf_dpfp import accounting
from tf_dpfp import sampling as sampling_lib


def are_public(labels: Any) -> bool:
    """Tells if labels are declared public.

    Args:
        labels: Declaration, as `DPRepresentationClip` takes it.
    """
    return isinstance(labels, str) and labels == "public"


def entry(labels: Any) -> accounting.LedgerEntry | None:
    """Returns the release of randomised labels.

    Args:
        labels: Declaration, as `DPRepresentationClip` takes it.

    Returns:
        The release; `None` if they are not randomised.

    Raises:
        ValueError: If it is no declaration.
    """
    if labels is None or are_public(labels):
        return None
    if isinstance(labels, sampling_lib.RandomizedLabels):
        return labels.entry
    if isinstance(labels, dict):
        return accounting.LedgerEntry(
            accounting.EveryLabel(labels["num_classes"], labels["identity"]),
            1.0 / labels["epsilon"],
            1,
            labels["seeded"],
            accounting.Labels(),
        )
    raise ValueError(
        "`labels` must be 'public', what "
        "tf_dpfp.representations.randomize_labels returned, or None. "
        f"Received: labels={labels!r}"
    )


def config(labels: accounting.LedgerEntry | None, public: bool) -> Any:
    """Returns a declaration as a layer's config holds it.

    Args:
        labels: Release of randomised labels, or `None`.
        public: True if labels are declared public.
    """
    if labels is None:
        return "public" if public else None
    sampling = labels.sampling
    assert isinstance(sampling, accounting.EveryLabel)
    return {
        "epsilon": 1.0 / labels.noise_multiplier,
        "num_classes": sampling.num_classes,
        "identity": sampling.identity,
        "seeded": labels.seeded,
    }
