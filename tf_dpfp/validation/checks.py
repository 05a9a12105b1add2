"""Checks of layers, which read no data: can they be trained privately?"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence, Set

import keras

from tf_dpfp import layers
from tf_dpfp import low_rank
from tf_dpfp.keras_private import layers as keras_layers
from tf_dpfp.validation import batch_normalizations


@dataclasses.dataclass(frozen=True)
class Problem:
    """Reason why a model can't be trained privately.

    Attributes:
        where: Path of the layer, or the model's name.
        reason: Fault of the layer.
        fix: Way out.
        fixable: True if `tf_dpfp.fix` mends it.
    """

    where: str
    reason: str
    fix: str
    fixable: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {self.reason} {self.fix}"


def _classes(*names: str) -> tuple[type[keras.layers.Layer], ...]:
    """Returns the layer classes of these names that this Keras has."""
    return tuple(
        getattr(keras.layers, name)
        for name in names
        if hasattr(keras.layers, name)
    )


_MIX_EXAMPLES = _classes("MixUp", "CutMix")
_REWRITE_WEIGHTS = _classes("SpectralNormalization")


def _batch_normalization(layer) -> Problem | None:
    if not batch_normalizations.is_trained(layer):
        return None
    obstacle = batch_normalizations.obstacle(layer)
    if obstacle is None or not layer.built:
        way_out = (
            "Replace it with GroupNormalization or LayerNormalization "
            "(`tf_dpfp.fix(model)` does, once the model is built), or set "
            "`layer.trainable = False` to use its statistics as they are."
        )
    else:
        way_out = f"`tf_dpfp.fix` can't replace it, for it {obstacle}"
    return Problem(
        layer.path or layer.name,
        "BatchNormalization mixes the examples of a batch and keeps "
        "statistics of the data without noise.",
        way_out,
        fixable=obstacle is None,
    )


def _mixing_layer(layer) -> Problem | None:
    if not isinstance(layer, _MIX_EXAMPLES):
        return None
    return Problem(
        layer.path or layer.name,
        f"{type(layer).__name__} mixes the examples of a batch.",
        "Remove it: an example's gradient must depend on that example alone.",
    )


def _rewriting_layer(layer) -> Problem | None:
    if not isinstance(layer, _REWRITE_WEIGHTS) or not layer.trainable:
        return None
    return Problem(
        layer.path or layer.name,
        f"{type(layer).__name__} writes to its weights during the forward "
        "pass, beside the optimizer.",
        "Use the wrapped layer by itself.",
    )


def _stateful(layer) -> Problem | None:
    if not getattr(layer, "stateful", False):
        return None
    if not isinstance(layer, keras.layers.RNN | keras.layers.Bidirectional):
        return None
    return Problem(
        layer.path or layer.name,
        "it hands its states from one batch to the next (stateful=True): "
        "examples of several batches would meet, and what it keeps would "
        "leave without noise.",
        "Set `stateful=False`.",
    )


def _quantized(layer) -> Problem | None:
    if not keras_layers.is_quantized(layer):
        return None
    if not any(v.trainable for v in keras_layers.own_variables(layer)):
        return None
    return Problem(
        layer.path or layer.name,
        "it is quantized and has trainable weights.",
        "Train in floating point and quantize afterwards, or set "
        "`layer.trainable = False`.",
    )


def _reparametrized(layer) -> Problem | None:
    reason = low_rank.broken_mark(layer)
    if reason is None:
        return None
    return Problem(
        layer.path or layer.name,
        f"it is reparametrised, and {reason}.",
        "Take the marks off with `tf_dpfp.low_rank.remove_carriers(layer)`, or "
        "undo that.",
    )


LayerCheck = Callable[[keras.layers.Layer], Problem | None]

# Of layers whose per-example gradients are clipped.
LAYER_CHECKS: tuple[LayerCheck, ...] = (
    _batch_normalization,
    _mixing_layer,
    _rewriting_layer,
    _stateful,
    _quantized,
    _reparametrized,
)
# Of layers in whose calls a trial might see no mixing.
RANDOM_MIXING_CHECKS: tuple[LayerCheck, ...] = (_mixing_layer,)


def _model_problems(model: keras.Model) -> Iterator[Problem]:
    cls = type(model)
    inherited = (keras.Model.train_step, keras.Sequential.train_step)
    if cls.train_step not in inherited:
        yield Problem(
            model.name,
            f"{cls.__name__} has a train_step of its own, which would be "
            "replaced.",
            "Write a custom loop with `tf_dpfp.loops.clipped_gradients`, or "
            "leave train_step to Keras and pass the loss to `compile`.",
        )
    if cls.make_train_function is not keras.Model.make_train_function:
        yield Problem(
            model.name,
            f"{cls.__name__} has a make_train_function of its own, which may "
            "take several steps on one batch.",
            "Write a custom loop with `tf_dpfp.loops.clipped_gradients`, or "
            "leave make_train_function to Keras.",
        )
    noised = _releases_representations(model)
    if noised and cls.compute_loss is not keras.Model.compute_loss:
        yield Problem(
            model.name,
            f"{cls.__name__} has a compute_loss of its own, which may go past "
            "the noise of its DPRepresentationClip.",
            "Pass a loss to `compile` instead.",
        )


def _releases_representations(model: keras.Model) -> bool:
    return any(
        isinstance(layer, layers.DPRepresentationClip)
        for layer in keras_layers.all_layers(model)
    )


def validate(model: keras.Model) -> list[Problem]:
    """Lists everything that keeps a model from being trained privately.

    Reads no data. Custom layers that mix examples or keep statistics show only
    when the model runs: they are checked once more, on made-up inputs, before
    the first step.

    Args:
        model: A Keras model, private or not.

    Returns:
        The problems, an empty list if there are none.
    """
    return _validate(model, default_checks(model))


def default_checks(model: keras.Model) -> tuple[LayerCheck, ...]:
    """Returns the checks of a model whose optimizer is not known.

    Args:
        model: A Keras model.

    Returns:
        `LAYER_CHECKS`; for a model with a `DPRepresentationClip`, under which
        an ordinary optimizer takes no gradient of single examples,
        `RANDOM_MIXING_CHECKS`.
    """
    if _releases_representations(model):
        return RANDOM_MIXING_CHECKS
    return LAYER_CHECKS


def _validate(
    model: keras.Model,
    checks: Sequence[LayerCheck],
    apart_from: Set[int] = frozenset(),
) -> list[Problem]:
    found = [
        check(layer)
        for layer in keras_layers.all_layers(model)
        if id(layer) not in apart_from
        for check in checks
    ]
    return [*_model_problems(model), *(p for p in found if p is not None)]


def raise_if_invalid(
    model: keras.Model,
    checks: Sequence[LayerCheck] | None = None,
    apart_from: Sequence[keras.layers.Layer] = (),
) -> None:
    """Refuses a model that can't be trained privately.

    Args:
        model: A Keras model.
        checks: Checks that every layer must pass; `None` for
            `default_checks`.
        apart_from: Layers that need not pass, for they are about to be
            replaced.

    Raises:
        ValueError: With every problem and the way out of each.
    """
    problems = _validate(
        model,
        default_checks(model) if checks is None else checks,
        {id(layer) for layer in apart_from},
    )
    if problems:
        # One line for all layers of one fault: a ResNet has fifty of them.
        alike: dict[tuple[str, str], list[str]] = {}
        for problem in problems:
            faults = alike.setdefault((problem.reason, problem.fix), [])
            faults.append(problem.where)
        listed = "\n".join(
            f"  - {', '.join(places)}: {reason} {fix}"
            for (reason, fix), places in alike.items()
        )
        raise ValueError(
            f"Model '{model.name}' can't be trained privately:\n{listed}"
        )
