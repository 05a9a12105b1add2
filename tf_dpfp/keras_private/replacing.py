"""Turning a layer into another one, beyond the public API of Keras.

Keras has no way to replace a layer that attributes, lists, closures and graphs
of functional models hold; what it takes is here, with tests that fail when
Keras changes it.
"""

import inspect
from collections.abc import Sequence

import keras


def become(
    layer: keras.layers.Layer,
    other: keras.layers.Layer,
    input_shape: Sequence[int | None],
) -> None:
    """Turns a layer into another one, for everything that holds it.

    The object stays the same, so nothing that holds it needs to know; its
    class, weights and settings are those of the other layer from then on.

    Args:
        layer: A built layer, which has no sublayers.
        other: A layer that was never built nor called, of the same name. It
            shares its state with `layer` from then on: use it no more.
        input_shape: Shape of the input, to build `other` with.
    """
    # Its variables have the paths that the layer's own `build` would give.
    other._parent_path = layer._parent_path
    other.build(tuple(input_shape))
    state = vars(other)
    for name in ("_inbound_nodes", "_outbound_nodes"):
        state[name] = vars(layer)[name]
    # Past Keras's attribute tracking. The dictionary itself is shared: `build`
    # and the tracker in it refer to `other`.
    object.__setattr__(layer, "__class__", type(other))
    object.__setattr__(layer, "__dict__", state)
    for node in layer._inbound_nodes:
        _keep_known_arguments(node, inspect.signature(layer.call).parameters)


def _keep_known_arguments(node, known) -> None:
    """Takes keyword arguments off a call that the layer no longer has."""
    arguments = node.arguments
    kwargs = {k: v for k, v in arguments.kwargs.items() if k in known}
    node.arguments = type(arguments)(*arguments.args, **kwargs)


def forget_compiled(layer: keras.layers.Layer) -> None:
    """Makes a model ask for `compile` before it trains again.

    Its optimizer stays where it is, with the number of its steps.

    Args:
        layer: A layer; nothing happens if it is not a model.
    """
    if not isinstance(layer, keras.Model):
        return
    layer.train_function = None
    layer.test_function = None
    layer.predict_function = None
    layer.compiled = False
