"""The settings of a reparametrised kernel."""

import dataclasses
import operator

CARRIER_SOURCES = ("history", "weight", "random")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reparametrization:
    """How a kernel's gradient is carried by two thin matrices.

    Args:
        rank: Columns of each carrier. A kernel whose smaller dimension is not
            above it is trained as without reparametrisation.
        carrier_source: What the carriers are the leading directions of:
            `"history"` (the update since the first step; until `warmup_steps`
            have passed, and while there is none, the weight), `"weight"`, or
            `"random"` (of nothing: random directions).
        power_iterations: Rounds of the power method.
        recompute_every: Steps between two computations of the carriers.
        warmup_steps: Steps before `"history"` follows the history.
        left_only: Release one carrier, the one on the side of the outputs.
        seed: Of the power method's start and of random carriers. Public:
            carriers need no secrecy.

    Raises:
        ValueError: If an argument is out of its range.
    """

    rank: int
    carrier_source: str = "history"
    power_iterations: int = 1
    recompute_every: int = 1
    warmup_steps: int = 100
    left_only: bool = False
    seed: int = 0

    def __post_init__(self):
        for name in ("rank", "power_iterations", "recompute_every"):
            _set_integer(self, name, at_least=1)
        for name in ("warmup_steps", "seed"):
            _set_integer(self, name, at_least=0)
        if self.carrier_source not in CARRIER_SOURCES:
            raise ValueError(
                f"`carrier_source` is one of {list(CARRIER_SOURCES)}. "
                f"Received: carrier_source={self.carrier_source!r}"
            )
        if not isinstance(self.left_only, bool):
            raise ValueError(
                "`left_only` is True or False. Received: "
                f"left_only={self.left_only!r}"
            )


_GREATEST = 2**31 - 1


def _set_integer(config, name: str, at_least: int) -> None:
    value = getattr(config, name)
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if isinstance(value, bool) or not at_least <= number <= _GREATEST:
        raise ValueError(
            f"`{name}` is an integer from {at_least} to {_GREATEST}. "
            f"Received: {name}={value!r}"
        )
    object.__setattr__(config, name, number)
