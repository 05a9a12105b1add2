"""Choice of the number of bands of correlated noise in `fit`.

With `bands="best"` numbers are compared as the training will count them: at the
budget of `fit`, for its steps, its data and what the model released before. It
depends on no data but their number, as the noise multiplier does.
"""

import dataclasses
from typing import Any

from tf_dpfp import accounting
from tf_dpfp import mechanisms
from tf_dpfp.accounting import bands as bands_lib
from tf_dpfp.mechanisms import correlated
from tf_dpfp.sampling import pipelines


def choose(
    mechanism: mechanisms.Gradients,
    pipeline: pipelines.Pipeline,
    budget: Any,
    steps: int,
) -> None:
    """Chooses the number of bands for a training, and prints what it gains.

    Args:
        mechanism: The mechanism.
        pipeline: Description of cyclic batches.
        budget: The `PrivacyBudget` of the training.
        steps: Number of its steps.
    """
    optimizer, cyclic = mechanism.optimizer, pipeline.cyclic
    assert cyclic is not None  # `fit` refuses other data before.
    spent = mechanism.entries()
    (plain,) = mechanism.claims(
        dataclasses.replace(pipeline, cyclic=None)
    ).values()

    def released(bands: int, noise: float) -> list[accounting.LedgerEntry]:
        claim = dataclasses.replace(
            plain, release=plain.release.with_noise(noise)
        )
        if bands > 1:
            claim = dataclasses.replace(
                claim,
                sampling=cyclic.sampling_of(cyclic.parts or bands),
                release=claim.release.of_kind(
                    correlated.released(bands, pipeline)
                ),
            )
        return [*spent, claim.entry(claim.steps_of_training(steps))]

    most = min(cyclic.parts or cyclic.most_parts, steps)
    found = bands_lib.compare(
        released,
        budget.epsilon,
        budget.delta,
        steps,
        bands_lib.powers(most),
    )
    chosen = bands_lib.best(found)
    optimizer.take_bands(chosen.bands)
    print(_said(found, chosen), flush=True)


def _said(
    found: list[bands_lib.BandsChoice], chosen: bands_lib.BandsChoice
) -> str:
    if chosen.bands > 1:
        return (
            f"Bands: {chosen.bands}. At the same epsilon the noise in sums "
            f"over steps is {chosen.relative_error:.3f} times that of "
            "independent noise."
        )
    least = min(each.relative_error for each in found)
    return (
        "Bands: 1, which is independent noise: for this budget and so many "
        f"passes others have at best {least:.3f} times its error."
    )
