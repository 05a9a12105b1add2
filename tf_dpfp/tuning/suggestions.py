"""Settings to start from: batch size, steps, noise and rate of a training.

With E epochs on N examples, batches of B give S = E N / B steps, and the noise
multiplier z follows from the budget. The mean gradient over all steps has noise
of z C / (B sqrt(S)) per weight. Where z is large this no longer hangs on B
(Sander et al., 2023): what a larger batch gains in each step, it loses in
steps. So the smallest batch that is near that limit is the one to start from.
"""

import dataclasses
import math
import textwrap

from tf_dpfp import accounting
from tf_dpfp import arguments

# More noise than with the best batch, as a factor: what larger batches and
# fewer steps would gain is left there.
_NEAR = 1.1
# Fewer steps than this seldom train a network, however little noise they have.
_LEAST_STEPS = 250
_LEAST_BATCH = 32
# Of noise multipliers that are compared only.
_COARSE = 1e-2
# A step's length if all clipped gradients agree; see `_RATE`.
_STEP_LENGTH = 2.0

_BATCH = (
    "Batch size {batch_size}, {steps} steps in {epochs:g} epochs: the noise "
    "of the mean gradient over all steps is {above:.0f} % above the least of "
    "all sizes that were considered. {limit} Where the noise multiplier is "
    "large, epsilon hangs on sampling rate * sqrt(steps) / noise multiplier "
    "alone (Sander et al., 2023, arXiv 2210.03403), so batches gain little "
    "from there on, and leave fewer steps. More epochs leave more steps at "
    "the same total noise (De et al., 2022, arXiv 2204.13650). Memory is no "
    "reason for a smaller batch: see `microbatch_size`."
)
_AT_NEAR = "It is the smallest of those within {near} %."
_AT_STEPS = (
    "Larger batches have less, and fewer than {least} steps: more epochs "
    "would help."
)
_AT_MOST = "Larger batches, which were not considered, may have less."
_NOISE = (
    "Noise multiplier {noise_multiplier:.4g}: the least that keeps Poisson "
    "sampling at rate {sampling_rate:.4g} within epsilon {epsilon:g} at delta "
    "{delta:g}, by this library's {accountant} accountant."
)
_STEPS = (
    "For exactly {steps} steps, give `poisson_batches` steps_per_epoch={steps} "
    "and `fit` one epoch; or stop by PrivacyBudget({epsilon:g}, {delta:g}). An "
    "epoch of its own choice has {rounded} steps, a rounded number, and steps "
    "beyond {steps} spend more than epsilon {epsilon:g}."
)
_RATE = (
    "Learning rate {learning_rate:g} of SGD without momentum, at clip norm "
    "{l2_norm_clip:g}: a step of length {length:g} if all clipped gradients "
    "agree. De et al. (2022) trained on CIFAR-10 so (rate 2, clip norm 1, "
    "batches of 4096), and the CNN of this library's MNIST example does (20 "
    "at 0.1). It is a rule of thumb, not more: try half and twice of it. With "
    "small clip norms only their product with the rate matters."
)
_LENGTH = (
    "The noise of a step on {num_weights} weights is {ratio:.3g} times as "
    "long as the longest mean gradient can be. It grows with the root of the "
    "number of weights: train fewer of them, on features that need no privacy "
    "(Tramer and Boneh, 2021, arXiv 2011.11660)."
)
_TUNING = (
    "Tune on public or synthetic data, by `for_tuning(k)`: batches and noise "
    "k times smaller, and the same steps and rate (Sander et al., 2023). On "
    "the private data such runs would spend far more than epsilon "
    "{epsilon:g}."
)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A batch size that was considered.

    Attributes:
        batch_size: Expected number of examples of a batch.
        steps: Number of steps.
        noise_multiplier: The noise multiplier that the budget asks for.
        relative_noise: Noise of the mean gradient over all steps, per weight
            and clip norm.
    """

    batch_size: int
    steps: int
    noise_multiplier: float
    relative_noise: float


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """Settings to start from; `print` shows them with the reasons.

    Attributes:
        batch_size: Expected number of examples of a Poisson batch.
        steps: Number of steps.
        sampling_rate: Probability of an example to be in a batch.
        noise_multiplier: Noise multiplier of the private optimizer.
        l2_norm_clip: Clip norm that the rate is for.
        learning_rate: Rate of `DPSGD` to start from.
        considered: All batch sizes that were considered, with their noise to
            two digits.
        reasons: Where each number comes from, with the source.
    """

    batch_size: int
    steps: int
    sampling_rate: float
    noise_multiplier: float
    l2_norm_clip: float
    learning_rate: float
    considered: tuple[Candidate, ...]
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        wrapped = [
            textwrap.fill(
                reason, 80, initial_indent="- ", subsequent_indent="  "
            )
            for reason in self.reasons
        ]
        return "\n".join(wrapped)

    def for_tuning(self, divisor: int) -> "Candidate":
        """Returns settings that behave alike and cost less to try.

        Noise of a step and number of steps stay, while batches are smaller.
        That is for public or synthetic data: noise so small protects little.

        Args:
            divisor: How many times smaller batches are.

        Returns:
            Batch size, steps and noise multiplier.

        Raises:
            ValueError: If the divisor is not from 1 to the batch size.
        """
        divisor = arguments.positive_integer("divisor", divisor)
        if divisor > self.batch_size:
            raise ValueError(
                "`divisor` must be at most the batch size, "
                f"{self.batch_size}. Received: divisor={divisor}"
            )
        batch_size = self.batch_size // divisor
        noise = self.noise_multiplier * batch_size / self.batch_size
        return _candidate(batch_size, self.steps, noise)


def suggest(
    num_examples: int,
    epsilon: float,
    delta: float,
    *,
    epochs: float = 50,
    num_weights: int | None = None,
    largest_batch_size: int | None = None,
    l2_norm_clip: float = 0.1,
    accountant: str = "rdp",
) -> Suggestion:
    """Suggests batch size, steps, noise and learning rate to start from.

    Reads no data, and knows no task: a place to start tuning from, with the
    reasons and their sources.

    Example:

    >>> found = suggest(60_000, epsilon=3.0, delta=1e-5, epochs=40)
    >>> found.batch_size, found.steps, round(found.noise_multiplier, 2)
    (4096, 586, 2.63)

    Args:
        num_examples: Number of examples to train on, which is public then.
        epsilon: Budget, above 0.
        delta: Probability with which the guarantee may fail; below one over
            the number of examples.
        epochs: Passes over the data that there is time for.
        num_weights: Number of trainable weights, for the length of the noise.
        largest_batch_size: Greatest batch size to consider.
        l2_norm_clip: Clip norm.
        accountant: `"rdp"`, or `"pld"` for less noise at the same budget.

    Returns:
        A `tf_dpfp.tuning.Suggestion`.

    Raises:
        ValueError: If an argument is out of range, or no noise meets the
            budget.

    Reference:
        - Sander et al., 2023, "TAN Without a Burn: Scaling Laws of DP-SGD",
            arXiv 2210.03403.
        - De et al., 2022, arXiv 2204.13650.
        - Tramer and Boneh, 2021, arXiv 2011.11660.
    """
    size = arguments.positive_integer("num_examples", num_examples)
    epochs = arguments.number("epochs", epochs, above=0.0)
    clip_norm = arguments.number("l2_norm_clip", l2_norm_clip, above=0.0)
    delta = accounting.check_delta(delta, accountant)
    if delta * size >= 1.0:
        raise ValueError(
            "`delta` must be below one over the number of examples, "
            f"{1.0 / size:g}: it would allow giving away one example whole. "
            f"Received: delta={delta:g}"
        )
    most = size
    if largest_batch_size is not None:
        largest_batch_size = arguments.positive_integer(
            "largest_batch_size", largest_batch_size
        )
        most = min(size, largest_batch_size)
    considered = _considered(size, most, epochs, epsilon, delta, accountant)
    chosen, limit = _choose(considered, most < size)
    rate = chosen.batch_size / size
    noise = accounting.calibrate_noise_multiplier(
        epsilon, delta, rate, chosen.steps, accountant
    )
    reasons = [
        _BATCH.format(
            batch_size=chosen.batch_size,
            steps=chosen.steps,
            epochs=epochs,
            above=_above_least(chosen, considered),
            limit=limit,
        ),
        *_of_noise(chosen.steps, rate, noise, epsilon, delta, accountant),
        _RATE.format(
            learning_rate=_STEP_LENGTH / clip_norm,
            l2_norm_clip=clip_norm,
            length=_STEP_LENGTH,
        ),
        *_length(chosen, num_weights),
        _TUNING.format(epsilon=epsilon),
    ]
    return Suggestion(
        chosen.batch_size,
        chosen.steps,
        rate,
        noise,
        clip_norm,
        _STEP_LENGTH / clip_norm,
        considered,
        tuple(reasons),
    )


def _above_least(chosen: Candidate, considered: tuple[Candidate, ...]) -> float:
    """Returns how much more noise is left than at best, in percent."""
    least = min(each.relative_noise for each in considered)
    return 100 * (chosen.relative_noise / least - 1)


def _of_noise(
    steps: int,
    rate: float,
    noise: float,
    epsilon: float,
    delta: float,
    accountant: str,
) -> list[str]:
    """Returns the reasons for the noise and the number of steps."""
    return [
        _NOISE.format(
            noise_multiplier=noise,
            sampling_rate=rate,
            epsilon=epsilon,
            delta=delta,
            accountant=accountant.upper(),
        ),
        _STEPS.format(
            steps=steps,
            epsilon=epsilon,
            delta=delta,
            rounded=max(1, round(1.0 / rate)),
        ),
    ]


def _considered(
    size: int,
    most: int,
    epochs: float,
    epsilon: float,
    delta: float,
    accountant: str,
) -> tuple[Candidate, ...]:
    """Lists batch sizes with the noise that the budget asks of them."""
    found = []
    for batch_size in _batch_sizes(most):
        rate = batch_size / size
        steps = max(1, round(epochs / rate))
        noise = accounting.calibrate_noise_multiplier(
            epsilon, delta, rate, steps, accountant, tolerance=_COARSE
        )
        found.append(_candidate(batch_size, steps, noise))
    return tuple(found)


def _choose(
    considered: tuple[Candidate, ...], is_bounded: bool
) -> tuple[Candidate, str]:
    """Chooses a batch size, and says what bounds it."""
    least = min(each.relative_noise for each in considered)
    enough = [c for c in considered if c.steps >= _LEAST_STEPS]
    enough = enough or list(considered[:1])
    for candidate in enough:
        if candidate.relative_noise <= _NEAR * least:
            near = round(100 * (_NEAR - 1))
            limit = _AT_NEAR.format(near=near)
            if is_bounded and candidate is considered[-1]:
                limit = _AT_MOST
            return candidate, limit
    return enough[-1], _AT_STEPS.format(least=_LEAST_STEPS)


def _batch_sizes(most: int) -> list[int]:
    """Lists powers of two up to `most`, and `most`."""
    powers = [2**k for k in range(most.bit_length()) if 2**k >= _LEAST_BATCH]
    return sorted({*(p for p in powers if p <= most), most})


def _candidate(batch_size: int, steps: int, noise: float) -> Candidate:
    relative = noise / (batch_size * math.sqrt(steps))
    return Candidate(batch_size, steps, noise, relative)


def _length(chosen: Candidate, num_weights: int | None) -> list[str]:
    if num_weights is None:
        return []
    count = arguments.positive_integer("num_weights", num_weights)
    ratio = chosen.noise_multiplier * math.sqrt(count) / chosen.batch_size
    return [_LENGTH.format(num_weights=count, ratio=ratio)]
