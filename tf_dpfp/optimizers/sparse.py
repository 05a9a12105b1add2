"""Setting of sparse tables, and the optimizers that they are for."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras

from tf_dpfp import arguments
from tf_dpfp.keras_private import lazy_adam

# Their updates leave rows without a gradient as they are.
_SKIPPING = (
    *(keras.optimizers.SGD, keras.optimizers.Adagrad),
    lazy_adam.LazyAdam,
)


@keras.saving.register_keras_serializable(package="tf_dpfp")
@dataclasses.dataclass(frozen=True)
class Sparse:
    """Embedding tables released where they are touched: DP-AdaFEST.

    Noise on every row of a large table takes most of the time of a step, and
    drowns the few rows that a batch touches. With this setting a step first
    finds the rows that enough examples touch, from counts with noise. Only
    these rows are released, with noise, and updated. The others stay as they
    are.

    Both parts share the noise multiplier, so epsilon is what it is without
    sparse tables. What is paid for the counts, gradients lack.

    Example:

    ```python
    optimizer = tf_dpfp.DPAdagrad(
        0.05,
        noise_multiplier=1.0,
        sparse_tables=tf_dpfp.Sparse(["users", "items"], threshold=3.0),
    )
    ```

    Args:
        tables: Name of a `keras.layers.Embedding`, or a sequence of names.
        threshold: Number of standard deviations, of the noise on a count, that
            a noised count must reach. A row that nobody touches passes in a
            step with probability 2.3 % at 2, 0.13 % at 3 and 0.003 % at 4, and
            every row passes at -40. A row with a count of `threshold`
            deviations passes in every other step.
        contribution_share: Share a of the counts in the privacy budget, in
            (0, 1): they get noise of standard deviation `noise_multiplier *
            contribution_clip / sqrt(a)`, and gradients get `noise_multiplier /
            sqrt(1 - a)`.
        contribution_clip: An example adds 1 to the count of each row that it
            touches, or less, so that the length of what it adds to all of
            them is at most this. With 1 an example that touches m rows adds
            `1 / sqrt(m)` to each.

    Raises:
        ValueError: If an argument is out of its range.

    Reference:
        - [Sparsity-preserving differentially private training of large
          embedding models](https://arxiv.org/abs/2311.08357)
    """

    tables: str | Sequence[str]
    threshold: float = dataclasses.field(default=3.0, kw_only=True)
    contribution_share: float = dataclasses.field(default=0.1, kw_only=True)
    contribution_clip: float = dataclasses.field(default=1.0, kw_only=True)

    def __post_init__(self):
        checked = {
            "tables": _names(self.tables),
            "threshold": arguments.number("threshold", self.threshold),
            "contribution_share": arguments.number(
                "contribution_share",
                self.contribution_share,
                above=0.0,
                below=1.0,
                hint=(
                    "Counts take this share of the privacy budget: 0 would "
                    "leave them without noise, 1 would leave nothing for the "
                    "gradients."
                ),
            ),
            "contribution_clip": arguments.number(
                "contribution_clip",
                self.contribution_clip,
                least=1e-6,
                most=1e6,
            ),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        return {**dataclasses.asdict(self), "tables": list(self.tables)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Sparse":
        """Makes it from its arguments."""
        return cls(**config)


def _names(tables: Any) -> tuple[str, ...]:
    """Checks names of tables."""
    names = (tables,) if isinstance(tables, str) else tables
    if isinstance(names, Sequence) and names:
        if all(isinstance(name, str) and name for name in names):
            if len(set(names)) == len(names):
                return tuple(names)
    raise ValueError(
        "`tables` must be the name of an Embedding layer, or a sequence of "
        f"different names. Received: tables={tables!r}"
    )


def checked(value: Any) -> Sparse | None:
    """Checks and deserializes `sparse_tables`.

    Args:
        value: A `Sparse`, serialized or not, or `None`.

    Returns:
        The setting; `None` without one.

    Raises:
        ValueError: If it is anything else.
    """
    if isinstance(value, dict):
        value = keras.saving.deserialize_keras_object(value)
    if value is None or isinstance(value, Sparse):
        return value
    raise ValueError(
        "`sparse_tables` must be a tf_dpfp.Sparse, or None for noise on every "
        f"row of every table. Received: sparse_tables={value!r}"
    )


def check_skips(optimizer: keras.optimizers.Optimizer, private: type) -> None:
    """Refuses an optimizer that moves rows without a gradient.

    Args:
        optimizer: A private optimizer.
        private: The class that stands before the Keras optimizer.

    Raises:
        ValueError: If it does, or reads and writes the whole table.
    """
    name = type(optimizer).__name__
    classes = type(optimizer).__mro__
    updates = next(
        cls
        for cls in classes[classes.index(private) + 1 :]
        if "update_step" in vars(cls)
    )
    ways_out = (
        "Use tf_dpfp.DPSGD without momentum, tf_dpfp.DPAdagrad or "
        "tf_dpfp.DPLazyAdam, or leave `sparse_tables` out."
    )
    if updates not in _SKIPPING:
        raise ValueError(
            "`sparse_tables` needs an optimizer that leaves rows without a "
            "gradient as they are. Momentum, and averages such as Adam's, go "
            "on moving every row that once had a gradient, at the cost of the "
            f"whole table in every step. {ways_out} Received: {name}"
        )
    if getattr(optimizer, "momentum", 0.0):
        raise ValueError(
            "`sparse_tables` is for optimizers that leave rows without a "
            "gradient as they are, and momentum goes on moving every row that "
            "once had one, at the cost of the whole table in every step. "
            f"{ways_out} Received: {name}(momentum={optimizer.momentum:g})"
        )
    for argument in ("weight_decay", "use_ema", "global_clipnorm"):
        given = getattr(optimizer, argument)
        if given not in (None, False):
            raise ValueError(
                f"`{argument}` moves, averages or scales every row of a table "
                "in every step, and `sparse_tables` leaves those without a "
                "gradient as they are. Leave one of them out. Received: "
                f"{name}({argument}={given})"
            )
