"""Findings of a proof: what is not proved, where, why, and the way out."""

import dataclasses
import enum
from collections.abc import Collection


class Category(enum.Enum):
    """Kinds of findings; a caller decides which of them to allow."""

    # A number that leaves for clipping is not a function of one example.
    MIXED = "mixed"
    # A variable or a table is written from data.
    WRITE = "write"
    # Something is printed, or written outside of the model.
    OUTPUT = "output"
    # Python code runs on tensors.
    PYTHON = "python"
    # Data can stop the step, which tells that they are there.
    ABORT = "abort"
    # Random numbers go by the number of the row, from a seed that is known.
    SEED = "seed"


# Errors of a rule that met what it was not written for: nothing is proved.
RULE_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is not proved.

    Attributes:
        category: The kind.
        layer: Path of the layer, as far as the operation's name tells it.
        operation: Type of the operation.
        name: Name of the operation.
        reason: The reason, for a person who knows Keras.
        way_out: A remedy.
        subject: Name of the tensor that was to be proved.
        is_definite: True if a rule says that examples meet or that data
            leave; false if too little is known to say that they don't.
    """

    category: Category
    layer: str
    operation: str
    name: str
    reason: str
    way_out: str
    subject: str = ""
    is_definite: bool = True

    @property
    def described(self) -> str:
        """Description without the way out."""
        where = f"layer '{self.layer}', " if self.layer else ""
        subject = f"{self.subject}: " if self.subject else ""
        return (
            f"{subject}{where}operation {self.operation} ('{self.name}'): "
            f"{self.reason}"
        )

    def __str__(self) -> str:
        return f"{self.described} {self.way_out}"


class Refusal(Exception):
    """Raised by a rule that cannot show that examples stay apart.

    Args:
        reason: A sentence.
        way_out: A sentence; a general one if not given.
        is_definite: False if too little is known to tell.
    """

    def __init__(
        self, reason: str, way_out: str = "", is_definite: bool = True
    ):
        super().__init__(reason)
        self.reason = reason
        self.way_out = way_out or APART
        self.is_definite = is_definite


APART = (
    "Replace it by something that works on each example alone: along every "
    "axis but the first; or wrap its layer: `tf_dpfp.PerExample(layer)`."
)
ROW_NUMBER = "Use the examples' own values instead of their place in the batch."
BATCH_SIZE = (
    "Don't use the batch size as a number; `tf.shape(x)[0]` may only be used "
    "to shape tensors."
)
IN_RANGE = "Clip the indices before: `ops.clip(indices, 0, size - 1)`."
NO_RULE = (
    "Compute it with other operations, use a layer of Keras that does the "
    "same, or wrap the layer: `tf_dpfp.PerExample(layer)`."
)
RULE_OUT = "Decide by a number that is the same for all batches."


def layer_of(name: str, layers: Collection[str] = ()) -> str:
    """Reads the layer from an operation's name.

    Keras opens a name scope for every layer, and gradients repeat it.

    Args:
        name: Name of the operation, such as
            `gradient_tape/model_1/dense_1/MatMul`.
        layers: Names of the model's layers, if they are known.

    Returns:
        The path down to the innermost layer; empty if there is none.
    """
    scopes = [s for s in name.split("/")[:-1] if s != "gradient_tape"]
    if layers:
        known = [
            i
            for i, s in enumerate(scopes)
            if s in layers or _plain(s) in layers
        ]
        scopes = scopes[: known[-1] + 1] if known else []
    return "/".join(scopes)


def _plain(scope: str) -> str:
    """Removes the number that makes a scope's second use unique."""
    stem, _, number = scope.rpartition("_")
    return stem if number.isdigit() and stem else scope
