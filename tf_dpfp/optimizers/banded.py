"""Setting of correlated noise."""

import dataclasses
from typing import Any

import keras

from tf_dpfp import arguments
from tf_dpfp.accounting import bands as bands_lib

BEST = "best"


@keras.saving.register_keras_serializable(package="tf_dpfp")
@dataclasses.dataclass(frozen=True)
class Banded:
    """Noise correlated over the last steps: banded matrix factorisation.

    Every step takes back part of the noise of the steps before, so that less
    of it is left in weights, which are sums over steps. In exchange an example
    may be in one of `bands` steps in a row only, and is drawn more often there.
    That is a gain for few passes over many examples, and none for many passes.

    It needs batches of `tf_dpfp.cyclic_poisson_batches` in `fit`, and memory
    for `bands - 1` times the trainable weights.

    Example:

    ```python
    optimizer = tf_dpfp.DPAdam(
        1e-3,
        noise_multiplier="calibrate",
        correlated_noise=tf_dpfp.Banded(bands="best"),
    )
    model.compile(optimizer, loss="sparse_categorical_crossentropy")
    model.fit(
        tf_dpfp.cyclic_poisson_batches(x, y, expected_batch_size=1024),
        epochs=3,
        callbacks=[tf_dpfp.PrivacyBudget(epsilon=3.0, delta=1e-5)],
    )
    ```

    Args:
        bands: Number of steps over which noise is correlated. 1 is independent
            noise, as without this setting. `"best"`: `fit` finds the number
            of least error at equal epsilon, with the noise multiplier, and
            prints what it gains.

    Raises:
        ValueError: If `bands` is neither `"best"` nor an integer from 1 to 64.

    Reference:
        - [(Amplified) banded matrix factorization: a unified approach to
          private training](https://arxiv.org/abs/2306.08153)
    """

    bands: int | str = BEST

    def __post_init__(self):
        if isinstance(self.bands, str) and self.bands == BEST:
            return
        count = arguments.integer(
            "bands",
            self.bands,
            least=1,
            most=bands_lib.MOST_BANDS,
            hint="Or 'best': `fit` finds it.",
        )
        object.__setattr__(self, "bands", count)

    @property
    def number(self) -> int | None:
        """Number of bands; `None` if `fit` is to find it."""
        return None if isinstance(self.bands, str) else self.bands

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        return {"bands": self.bands}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Banded":
        """Makes it from its arguments."""
        return cls(**config)
