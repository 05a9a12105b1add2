"""Properties of Keras layers beyond the public API.

Keras has no public way to ask a layer for its direct sublayers or whether it
is quantized; the answers live here and nowhere else, with tests that fail
when Keras changes them.
"""

import contextlib
from collections.abc import Iterable, Iterator

import keras
import tensorflow as tf
from keras.src.models import functional


def sublayers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Returns the layers that a layer holds directly, each once."""
    return layer._flatten_layers(include_self=False, recursive=False)


def all_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Returns a layer and its sublayers at any depth, each once."""
    return layer._flatten_layers(include_self=True, recursive=True)


def root_scope(
    model: keras.Model,
) -> contextlib.AbstractContextManager[object]:
    """Opens a scope for a model whose name can't begin one in a graph.

    Keras names a model after its class. In a graph TensorFlow takes a name
    with `_` in front inside of another scope only; in an eager step, which is
    traced here, Keras takes any.

    Args:
        model: The model that is about to be called.
    """
    if model.name.startswith("_"):
        return tf.name_scope("model")
    return contextlib.nullcontext()


def has_unbuilt(layer: keras.layers.Layer) -> bool:
    """Tells if a layer or a sublayer may still make weights when called.

    A layer with a `build` and a `compute_output_shape` of its own counts as
    built before its `call` ever ran. What a functional model holds beside the
    layers of its graph is not called with it: the preprocessor of a KerasHub
    task.

    Args:
        layer: A layer or a model.
    """
    left, seen = [layer], {id(layer)}
    while left:
        each = left.pop()
        if not each.built:
            return True
        graph = type(each).call is functional.Functional.call
        below = each.layers if graph else sublayers(each)
        left += [sub for sub in below if id(sub) not in seen]
        seen.update(map(id, below))
    return False


def own_variables(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Returns the variables that a layer owns itself, without sublayers."""
    below = {id(v) for sub in sublayers(layer) for v in sub.variables}
    return [v for v in layer.variables if id(v) not in below]


def trainable_variables(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Returns the variables of a layer that its model trains.

    `layer.trainable_variables` is empty if the layer is frozen, even where
    layers that it holds were unfrozen afterwards: Keras's LoRA on a backbone
    does so. The model trains these all the same.
    """
    return [v for v in layer.variables if v.trainable]


def added_losses(layer: keras.layers.Layer) -> list:
    """Returns what a layer itself added to the loss in the latest call.

    Within a `keras.StatelessScope` that collects losses, in that scope.
    """
    return layer._get_own_losses()


@contextlib.contextmanager
def losses_apart(layer: keras.layers.Layer) -> Iterator[None]:
    """Keeps what is added to the loss in an inner scope out of `added_losses`.

    In a scope, Keras knows the losses of a layer by `id`, and goes on knowing
    those of an inner scope that is gone: a tensor of the outer scope may have
    one of these by then, and would be taken for a loss of this layer.

    Args:
        layer: The layer that is called in the inner scope.
    """
    known = [(each, set(each._loss_ids)) for each in all_layers(layer)]
    try:
        yield
    finally:
        for each, ids in known:
            each._loss_ids.intersection_update(ids)


@contextlib.contextmanager
def without_regularizers(variables: Iterable[keras.Variable]) -> Iterator[None]:
    """Leaves the penalties of weights out of the losses of layers.

    Args:
        variables: The weights.
    """
    removed = [(v, v.regularizer) for v in variables if v.regularizer]
    for variable, _ in removed:
        variable.regularizer = None
    try:
        yield
    finally:
        for variable, regularizer in removed:
            variable.regularizer = regularizer


def is_quantized(layer: keras.layers.Layer) -> bool:
    """Tells if `call` is bypassed in favour of quantized arithmetic."""
    return getattr(layer, "quantization_mode", None) is not None


def lora_scale(layer: keras.layers.Layer) -> float:
    """Returns the scale of the product of a layer's LoRA matrices."""
    # Keras had no `lora_alpha` at first, and did not scale.
    alpha = getattr(layer, "lora_alpha", None)
    return 1.0 if alpha is None else alpha / layer.lora_rank


def is_rematerialized(layer: keras.layers.Layer) -> bool:
    """Tells if the layer was built under a `keras.RematScope`."""
    return getattr(layer, "_remat_mode", None) is not None


@contextlib.contextmanager
def without_rematerialization(
    layers: Iterable[keras.layers.Layer],
) -> Iterator[None]:
    """Calls layers once, those of a `keras.RematScope`, too.

    A rematerialised layer runs inside a function of its own, and its tensors
    are out of reach.

    Args:
        layers: All layers that are called.
    """
    modes = [(one, one._remat_mode) for one in layers if is_rematerialized(one)]
    for layer, _ in modes:
        # Past Keras's attribute tracking: this is undone before anyone looks.
        object.__setattr__(layer, "_remat_mode", None)
    try:
        yield
    finally:
        for layer, mode in modes:
            object.__setattr__(layer, "_remat_mode", mode)


def is_seed_variable(variable: keras.Variable) -> bool:
    """Tells if a variable is the state of a `keras.random.SeedGenerator`."""
    return variable.name == "seed_generator_state"


def mask_of(tensor) -> object:
    """Returns the Keras mask that travels with a tensor, or `None`."""
    return getattr(tensor, "_keras_mask", None)


def with_mask(tensor, mask):
    """Attaches a Keras mask to a tensor, as layers do."""
    if mask is not None:
        tensor._keras_mask = mask
    return tensor


def loss_axis(loss: keras.losses.Loss) -> int:
    """Returns the axis that a Keras loss reduces over."""
    # `get_config` of some losses leaves the axis out.
    return getattr(loss, "_fn_kwargs", {}).get("axis", -1)


def takes(layer: keras.layers.Layer, argument: str) -> bool:
    """Tells if the `call` of a layer takes `mask` or `training`.

    Args:
        layer: The layer.
        argument: `"mask"` or `"training"`.
    """
    return bool(getattr(layer, f"_call_has_{argument}_arg"))
