"""Errors of Keras and TensorFlow whose words hide the way out.

An error is only said in other words, and only where what was given to `fit`
bears it out: nothing is refused here that would have trained.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf
from keras import tree

# In what Keras or TensorFlow says of text where numbers are needed.
_OF_TEXT = ("Cast string to", "Invalid dtype: str", "Cast of string")
_OF_SHAPES = (
    "Can not squeeze dim",
    "must have the same rank",
    "must have rank (ndim)",
    "must have the same shape",
    "Incompatible shapes",
)
# In what the proof says of targets that are broadcast along the outputs.
_OF_BROADCAST = ("the losses: operation", "meets one of size batch")


def check_split(arguments: dict[str, Any]) -> None:
    """Refuses `validation_split` of data that are no arrays.

    Args:
        arguments: The bound arguments of `fit`.

    Raises:
        ValueError: If so.
    """
    split = arguments.get("validation_split")
    is_dataset = isinstance(arguments["x"], tf.data.Dataset)
    if split and is_dataset and arguments.get("validation_data") is None:
        raise ValueError(
            "`validation_split` can't cut examples out of a data set. Split "
            "the arrays first: give one part to tf_dpfp.poisson_batches, and "
            "the other to `fit` as `validation_data`. Received: "
            f"validation_split={split}"
        )


@contextlib.contextmanager
def explained(model: keras.Model, arguments: dict[str, Any]) -> Iterator[None]:
    """Says errors inside in words that name the way out.

    Args:
        model: The model.
        arguments: The bound arguments of `fit`.
    """
    try:
        yield
    except (ValueError, TypeError, tf.errors.OpError) as error:
        said = _said(model, arguments, str(error))
        # A note tells the reason already.
        if said is None or hasattr(error, "__notes__"):
            raise
        raise ValueError(_with_origin(said, error)) from error


def _with_origin(said: str, error: Exception) -> str:
    return f"{said} Received: {error}"


def _said(
    model: keras.Model, arguments: dict[str, Any], text: str
) -> str | None:
    """Returns the sentence that goes with an error, if one is known."""
    x, y = _inputs_and_targets(arguments)
    if "None values not supported" in text and y is None:
        return (
            f"The loss of model '{model.name}' needs a target for every "
            "example, and the data have none. Give `y`, to "
            "tf_dpfp.poisson_batches as well; an autoencoder's targets are its "
            "inputs: poisson_batches(x, x, ...)."
        )
    if _is_text(x) and any(words in text for words in _OF_TEXT):
        return (
            f"The inputs are text, and model '{model.name}' calculates with "
            "them. Turn them into numbers first, with "
            "keras.layers.TextVectorization or keras.layers.StringLookup: "
            "before poisson_batches, or in its `map_fn`."
        )
    if y is not None and (
        any(words in text for words in _OF_SHAPES)
        # Of the loss, for what a graph of the model says sounds the same.
        or ("Dimensions must be equal" in text and "compile_loss" in text)
        or (
            all(words in text for words in _OF_BROADCAST)
            and _is_loss_of_keras(model.loss)
        )
    ):
        return (
            f"The loss of model '{model.name}' can't take these targets, of "
            f"shape {_shapes(y)}, beside what the model returns. Sparse losses "
            "take one class number for every example, others targets of the "
            "shape of the outputs, as (n, 1) for one number each."
        )
    return None


def _is_loss_of_keras(loss: Any) -> bool:
    """Tells losses that compare no examples, unless by a wrong shape."""
    return all(
        isinstance(leaf, str)
        or getattr(leaf, "__module__", "").startswith("keras.")
        for leaf in tree.flatten(loss)
        if leaf is not None
    )


def _inputs_and_targets(arguments: dict[str, Any]) -> tuple[Any, Any]:
    """Returns x and y, or their specifications; `None` where unknown."""
    x, y = arguments["x"], arguments.get("y")
    if isinstance(x, tf.data.Dataset):
        x, y, _ = keras.utils.unpack_x_y_sample_weight(x.element_spec)
    return x, y


def _is_text(x: Any) -> bool:
    found = []
    for leaf in tree.flatten(x):
        dtype = getattr(leaf, "dtype", None)
        kind = getattr(dtype, "kind", "")
        found.append(dtype == tf.string or kind in ("U", "S", "O"))
    return any(found)


def _shapes(y: Any) -> str:
    found = [
        str(tuple(leaf.shape)) for leaf in tree.flatten(y) if leaf is not None
    ]
    return found[0] if len(found) == 1 else f"[{', '.join(found)}]"
