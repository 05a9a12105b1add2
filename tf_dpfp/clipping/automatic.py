"""Automatic clipping: gradients of (nearly) one length, not of at most one."""

import dataclasses
from collections.abc import Mapping

import keras

from tf_dpfp import arguments
from tf_dpfp.clipping import thresholds as thresholds_lib

# Float32 holds the square.
_GREATEST = 1e10


@keras.saving.register_keras_serializable(package="tf_dpfp")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Automatic:
    """Scales every example's gradient to (nearly) the clip norm.

    The factor of an example is `C_k / (norm + stability)`, for norms above
    and below the clip norm, so none has to be found: `l2_norm_clip`
    only scales the released sum, noise included. An example moves the sum of
    group k by less than C_k.

    Args:
        stability: Added to the norm, so that small gradients stay small.
        split: Split of the bound among K groups: `"equal"`,
            `"by_dimension"` or a dict, as in `Clipping`.

    Raises:
        ValueError: If an argument is out of its range.

    Reference:
        Bu et al., 2022, arXiv 2206.07136 (AUTO-S).
    """

    stability: float = 0.01
    split: str | Mapping[str, float] = "equal"

    def __post_init__(self):
        stability = arguments.number(
            "stability",
            self.stability,
            above=thresholds_lib.LEAST,
            below=_GREATEST,
        )
        object.__setattr__(self, "stability", stability)
        object.__setattr__(
            self, "split", thresholds_lib.as_split("split", self.split)
        )

    def get_config(self) -> dict:
        """Returns the fields, for Keras serialization."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: dict) -> "Automatic":
        """Makes the object from its fields; inverse of `get_config`."""
        return cls(**config)
