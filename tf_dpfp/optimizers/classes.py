"""Private versions of Keras optimizer classes."""

import inspect
import textwrap
from typing import Any

import keras

from tf_dpfp.keras_private import lazy_adam
from tf_dpfp.optimizers.private_optimizer import PrivateOptimizer

_CLASSES: dict[type, type] = {}


def private_optimizer_class(
    base: type[keras.optimizers.Optimizer],
) -> type[keras.optimizers.Optimizer]:
    """Returns the private version of a Keras optimizer class.

    Args:
        base: A subclass of `keras.optimizers.Optimizer`.

    Returns:
        A subclass of `base`, named with "DP" in front, that takes the
        arguments of `PrivateOptimizer` beside the base's own. The same class
        every time.

    Raises:
        TypeError: If `base` is not an optimizer class, or is a wrapper that
            changes gradients before an inner optimizer sees them.
    """
    if not (
        isinstance(base, type) and issubclass(base, keras.optimizers.Optimizer)
    ):
        raise TypeError(
            "`private_optimizer_class` takes a subclass of "
            f"keras.optimizers.Optimizer. Received: {base!r}"
        )
    if issubclass(base, PrivateOptimizer):
        return base
    if issubclass(base, keras.optimizers.LossScaleOptimizer):
        raise TypeError(
            "LossScaleOptimizer skips steps when one example overflows, which "
            "tells about that example. Make the inner optimizer private; it "
            "scales the loss itself (`loss_scale_factor=`)."
        )
    if base not in _CLASSES:
        name = f"DP{base.__name__}"
        cls: Any = type(name, (PrivateOptimizer, base), {})
        cls.__module__ = __name__
        cls.__doc__ = _class_doc(base)
        cls.__signature__ = _class_signature(base)
        keras.saving.register_keras_serializable(package="tf_dpfp")(cls)
        _CLASSES[base] = cls
    return _CLASSES[base]


def _class_signature(base: type) -> inspect.Signature:
    own = [
        p
        for p in inspect.signature(
            PrivateOptimizer.__init__
        ).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    ]
    theirs = list(inspect.signature(base).parameters.values())
    positional = [p for p in theirs if p.kind is not p.VAR_KEYWORD]
    rest = [p for p in theirs if p.kind is p.VAR_KEYWORD]
    return inspect.Signature(positional + own + rest)


def _class_doc(base: type) -> str:
    own = inspect.cleandoc(PrivateOptimizer.__doc__ or "")
    arguments = own[own.index("Args:\n") :]
    is_of_keras = getattr(keras.optimizers, base.__name__, None) is base
    path = f"keras.optimizers.{base.__name__}" if is_of_keras else base.__name__
    return (
        textwrap.dedent(f"""\
        Private {base.__name__}: clipped, noised, counted.

        `{path}` with the gradient of every example clipped and
        Gaussian noise added before the update. All arguments of
        `{path}` except
        `gradient_accumulation_steps`, and:

        """)
        + arguments
    )


DPSGD = private_optimizer_class(keras.optimizers.SGD)
DPAdam = private_optimizer_class(keras.optimizers.Adam)
# Adam on the rows of sparse tables that were released.
DPLazyAdam = private_optimizer_class(lazy_adam.LazyAdam)
DPAdamW = private_optimizer_class(keras.optimizers.AdamW)
DPAdagrad = private_optimizer_class(keras.optimizers.Adagrad)
DPRMSprop = private_optimizer_class(keras.optimizers.RMSprop)
DPLion = private_optimizer_class(keras.optimizers.Lion)
