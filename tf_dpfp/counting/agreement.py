"""Agreement of the noise that is drawn with the row that is counted."""

from tf_dpfp.counting.release import Release


def require_same(drawn: Release | None, counted: Release) -> None:
    """Refuses to count another noise than is drawn.

    Args:
        drawn: Release that noise is drawn by; `None`: none was yet.
        counted: Release that is to be counted.

    Raises:
        RuntimeError: If their noise differs.
    """
    if drawn is not None and drawn.noise != counted.noise:
        raise RuntimeError(
            "The noise of a step and its row in the privacy ledger must come "
            "from the same release. Compile the model with a new optimizer, or "
            f"make a new layer. Received: noise={drawn}, ledger={counted}"
        )


def require_open(is_closed: bool) -> None:
    """Refuses a step that only a ledger of the past would count.

    Args:
        is_closed: True if another ledger goes on with its counts.

    Raises:
        RuntimeError: If so.
    """
    if is_closed:
        raise RuntimeError(
            "The model of this step was compiled with another optimizer since, "
            "whose ledger would not count it: a compiled function keeps the "
            "optimizer that it was traced with, and gradients that they were "
            "clipped for. Make the gradients, and the function, anew after "
            "`compile`."
        )


def require_same_unit(released: Release, claimed: Release) -> None:
    """Refuses to count a step of rows that are joined as of others.

    Examples are not persons, nor is a view an example.

    Args:
        released: Release of the step.
        claimed: Release that its batches are claimed for.

    Raises:
        RuntimeError: If they protect others.
    """
    if released.kind.views != claimed.kind.views:
        raise RuntimeError(
            "The batches are claimed to hold as many views of each example as "
            f"{claimed.kind.views}, and this step clips the mean gradient of "
            f"{released.kind.views}: a view that is clipped by itself would "
            "count each example several times. In a loop over batches of "
            "poisson_batches(multiplicity=...), call `clipped_gradients` or "
            "`distributed_step` with views=True, on whole batches. Received: "
            f"claimed={claimed.kind}, released={released.kind}"
        )
    if released.kind.unit != claimed.kind.unit:
        raise RuntimeError(
            f"The batches are claimed to be drawn by {claimed.kind.unit}, and "
            f"this step clips the gradient of every {released.kind.unit}. In "
            "a loop over batches of poisson_batches(users=...), call "
            "`clipped_gradients` or `distributed_step` with persons=True, on "
            f"whole batches. Received: claimed={claimed.kind}, "
            f"released={released.kind}"
        )
