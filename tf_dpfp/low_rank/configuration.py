"""Settings of a reparametrised kernel."""

import dataclasses

from tf_dpfp import arguments

CARRIER_SOURCES = ("history", "weight", "random")

# Random bits are drawn from a pair of int32 numbers.
_GREATEST = 2**31 - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reparametrization:
    """Settings of a kernel whose gradient is carried by two thin matrices.

    Args:
        rank: Columns of each carrier. A kernel whose smaller dimension is not
            above it is trained as without reparametrisation.
        carrier_source: Matrix whose leading directions the carriers follow:
            `"history"` (the update since the first step; until `warmup_steps`
            have passed, and while there is none, the weight), `"weight"`, or
            `"random"` (of nothing: random directions).
        warmup_steps: Steps before `"history"` follows the history.
        left_only: Release one carrier, the one on the side of the outputs.
        seed: Seed of the power method's start and of random carriers. Public:
            carriers need no secrecy.

    Raises:
        ValueError: If an argument is out of its range.
    """

    rank: int
    carrier_source: str = "history"
    warmup_steps: int = 100
    left_only: bool = False
    seed: int = 0

    def __post_init__(self):
        for name, least in (("rank", 1), ("warmup_steps", 0)):
            value = arguments.integer(
                name, getattr(self, name), least=least, most=_GREATEST
            )
            object.__setattr__(self, name, value)
        seed = arguments.seed(self.seed, most=_GREATEST, is_optional=False)
        object.__setattr__(self, "seed", seed)
        arguments.one_of("carrier_source", self.carrier_source, CARRIER_SOURCES)
        left_only = arguments.boolean("left_only", self.left_only)
        object.__setattr__(self, "left_only", left_only)
