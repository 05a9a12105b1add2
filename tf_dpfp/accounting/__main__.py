"""Command: epsilon of a training's parameters, or the noise of a budget.

For example `python -m tf_dpfp.accounting --noise_multiplier=1.1
--num_examples=60000 --batch_size=256 --epochs=60 --delta=1e-5`, or
`--epsilon=3 --sampling_rate=0.004 --steps=14000 --delta=1e-5`.
"""

import math
import sys
from collections.abc import Sequence
from typing import Any

from absl import app
from absl import flags

from tf_dpfp.accounting import calibration
from tf_dpfp.accounting import entries as entries_lib
from tf_dpfp.accounting import epsilon as epsilon_lib
from tf_dpfp.accounting import samplings
from tf_dpfp.accounting import statement as statement_lib


def report(
    *,
    delta: float | None,
    noise_multiplier: float | None = None,
    epsilon: float | None = None,
    sampling_rate: float | None = None,
    num_examples: int | None = None,
    batch_size: int | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    accountant: str = "rdp",
    sampling: str = "poisson",
) -> str:
    """Writes the output of the command from the values of its flags.

    Args:
        delta: Probability with which the guarantee may fail.
        noise_multiplier: Noise multiplier, to compute epsilon.
        epsilon: Budget, to compute the noise multiplier.
        sampling_rate: Probability with which an example is in a step.
        num_examples: Number of examples.
        batch_size: Expected number of examples of a step.
        steps: Number of optimizer updates.
        epochs: Number of passes over the data, in place of `steps`.
        accountant: `"rdp"` or `"pld"`.
        sampling: `"poisson"` or `"unknown"`.

    Returns:
        The noise multiplier, if a budget was given, and the privacy statement.

    Raises:
        ValueError: If flags are missing, contradict each other or are out of
            range.
    """
    if delta is None:
        raise ValueError("--delta is required.")
    _exactly_one(noise_multiplier=noise_multiplier, epsilon=epsilon)
    _exactly_one(steps=steps, epochs=epochs)
    rate = _rate(sampling_rate, num_examples, batch_size, sampling)
    if steps is None:
        steps = _steps(epochs, rate)
    described = _sampling(sampling, rate, num_examples, batch_size)
    lines = []
    if epsilon is not None:
        noise_multiplier = calibration.least_noise(
            lambda noise: [entries_lib.LedgerEntry(described, noise, steps)],
            epsilon,
            delta,
            accountant,
        )
        # All digits: a rounded multiplier could miss the budget.
        lines = [f"Noise multiplier: {noise_multiplier!r}", ""]
    assert noise_multiplier is not None  # One of the two was given.
    entry = entries_lib.LedgerEntry(described, noise_multiplier, steps)
    text = statement_lib.statement(
        [entry],
        delta,
        accountant=accountant,
        population=num_examples,
        recorded=False,
    )
    return "\n".join([*lines, text])


def _exactly_one(**values: float | None) -> None:
    given = [name for name, value in values.items() if value is not None]
    if len(given) != 1:
        names = " and ".join(f"--{name}" for name in values)
        raise ValueError(
            f"Give exactly one of {names}. Received: "
            f"{'both' if given else 'neither'}."
        )


def _rate(
    sampling_rate: float | None,
    num_examples: int | None,
    batch_size: int | None,
    sampling: str,
) -> float | None:
    """Returns the sampling rate, or `None` if nothing needs it."""
    for name, value in (
        ("num_examples", num_examples),
        ("batch_size", batch_size),
    ):
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1. Received: {value}.")
    if batch_size is not None and num_examples is not None:
        if sampling_rate is not None:
            raise ValueError(
                "Give --sampling_rate, or --num_examples and --batch_size, "
                "not all three."
            )
        if batch_size > num_examples:
            raise ValueError(
                f"--batch_size={batch_size} is more than "
                f"--num_examples={num_examples}."
            )
        return batch_size / num_examples
    if sampling_rate is None and sampling == "poisson":
        raise ValueError(
            "Give --sampling_rate, or --num_examples and --batch_size."
        )
    return sampling_rate


def _steps(epochs: float | None, rate: float | None) -> int:
    if epochs is None or not 0.0 < epochs < math.inf:
        raise ValueError(f"--epochs must be above 0. Received: {epochs}.")
    if rate is None:
        raise ValueError(
            "--epochs needs --num_examples and --batch_size, or "
            "--sampling_rate. Give those, or --steps."
        )
    if not 0.0 < rate <= 1.0:
        raise ValueError(
            f"--sampling_rate must be in (0, 1]. Received: {rate}."
        )
    # Rounding of the quotient must not add a step to a whole number of them.
    return math.ceil(epochs / rate * (1.0 - 1e-12))


def _sampling(
    sampling: str,
    rate: float | None,
    num_examples: int | None,
    batch_size: int | None,
) -> samplings.Sampling:
    if sampling == "poisson" and rate is not None:
        return samplings.PoissonSampling(rate)
    return samplings.UnknownSampling(num_examples, batch_size)


def _define_flags() -> list[str]:
    """Defines the flags of `report` and returns their names."""
    flags.DEFINE_float("noise_multiplier", None, "Find epsilon for this noise.")
    flags.DEFINE_float("epsilon", None, "Find the noise for this budget.")
    flags.DEFINE_float("delta", None, "Delta of the guarantee. Required.")
    flags.DEFINE_float("sampling_rate", None, "Batch size over examples.")
    flags.DEFINE_integer("num_examples", None, "Number of examples.")
    flags.DEFINE_integer("batch_size", None, "Expected batch size.")
    flags.DEFINE_integer("steps", None, "Number of optimizer updates.")
    flags.DEFINE_float("epochs", None, "Passes over the data, not --steps.")
    flags.DEFINE_enum(
        "accountant", "rdp", epsilon_lib.ACCOUNTANTS, "PLD is tighter."
    )
    flags.DEFINE_enum(
        "sampling",
        "poisson",
        ["poisson", "unknown"],
        "unknown: an ordinary pipeline, nothing is proved about its batches.",
    )
    return [
        *("noise_multiplier", "epsilon", "delta", "sampling_rate"),
        *("num_examples", "batch_size", "steps", "epochs"),
        *("accountant", "sampling"),
    ]


def _run(names: Sequence[str], argv: Sequence[str]) -> int:
    if len(argv) > 1:
        print(f"error: not a flag: {argv[1]!r}.", file=sys.stderr)
        return 2
    try:
        values: dict[str, Any] = {
            name: flags.FLAGS[name].value for name in names
        }
        text = report(**values)
    except (TypeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text, end="")
    return 0


if __name__ == "__main__":
    flag_names = _define_flags()
    app.run(lambda argv: _run(flag_names, argv))
