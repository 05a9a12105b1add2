"""Gradient rules: what a layer type knows about its per-example gradients.

A rule sees one call of one layer. While the call runs it decides which
tensor's gradient it wants back from the single backward pass (`record`); when
that gradient has come it turns it into `PerExampleGradient`s, one for every
variable the call read (`gradients`). Everything after that (adding up shared
variables, norms, clipping) is the same for all layers.

A rule is found by the exact class, or for a subclass that overrides nothing
of what its base computes; any other layer that owns weights gets the generic
rule.
"""

import abc
import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tf_dpfp.keras_private import layers as keras_layers
from tf_dpfp.per_example import consecutive
from tf_dpfp.per_example import gradients


@dataclasses.dataclass
class LayerCall:
    """One recorded call of one layer.

    Attributes:
        layer: The layer.
        rule: The rule that recorded the call.
        inputs: The first positional argument of the call.
        sources: The tensors whose gradients the rule asks for.
        saved: Whatever else the rule needs to keep until then.
        is_spread: True if its arguments, the same for all examples, were given
            once for each.
        added: For each example, what the layer added to the loss by
            `add_loss` while it ran example by example; `None` if nothing.
        outputs: What the call returned, set by the recording.
        positions: Number of consecutive rows that are of one example, set by
            the recording.
    """

    layer: keras.layers.Layer
    rule: "GradientRule"
    inputs: Any
    sources: tuple[tf.Tensor, ...]
    saved: Any = None
    is_spread: bool = False
    added: tf.Tensor | None = None
    outputs: Any = None
    positions: tf.Tensor | int = 1

    @property
    def has_rows(self) -> bool:
        """True if each row is an example."""
        return isinstance(self.positions, int) and self.positions == 1

    def of_examples(
        self, output_gradients: tuple[tf.Tensor, ...]
    ) -> list[tuple[keras.Variable, gradients.PerExampleGradient]]:
        """Returns the gradients of the examples, as the rule those of rows."""
        found = self.rule.gradients(self, output_gradients)
        if self.has_rows:
            return found
        return [
            (v, consecutive.add_consecutive(gradient, self.positions))
            for v, gradient in found
        ]


class GradientRule(abc.ABC):
    """Per-example gradients of one layer type.

    Subclass it and decorate the subclass with
    `register_gradient_rule(LayerType)`.

    Attributes:
        holds_units: Whether the rule is for the layer's own variables alone,
            and the layers that it holds are recorded by themselves. If not,
            the rule must answer for all of them.

    Example:

    ```python
    class Scale(keras.layers.Layer):
        def build(self, input_shape):
            self.scale = self.add_weight(shape=(input_shape[-1],))

        def call(self, x):
            return x * self.scale

    @tf_dpfp.gradient_rules.register_gradient_rule(Scale)
    class ScaleRule(tf_dpfp.gradient_rules.GradientRule):
        def gradients(self, call, output_gradients):
            per_position = call.inputs * output_gradients[0]
            return [(call.layer.scale,
                     tf_dpfp.gradient_rules.PerExampleTensor(sum_positions(per_position)))]
    ```
    """

    holds_units: bool = False

    def variables(self, layer: keras.layers.Layer) -> list[keras.Variable]:
        """The trainable variables of a layer that this rule answers for."""
        if not self.holds_units:
            return keras_layers.trainable_variables(layer)
        return [v for v in keras_layers.own_variables(layer) if v.trainable]

    def supports(self, layer: keras.layers.Layer) -> bool:
        """Whether this instance is covered; if not, the generic rule is used.

        A rule must cover every trainable variable of the layer and, unless it
        `holds_units`, of its sublayers, or say `False` here.
        """
        del layer
        return True

    def record(
        self,
        layer: keras.layers.Layer,
        call: Callable[..., Any],
        args: tuple,
        kwargs: dict,
    ) -> tuple[Any, LayerCall]:
        """Runs the layer and says which tensor's gradient is wanted.

        Args:
            layer: The layer that is called.
            call: Its original `call` method.
            args: Positional arguments of this call.
            kwargs: Keyword arguments of this call.

        Returns:
            The layer's outputs, exactly what `call` would have returned, and
            the `LayerCall`. By default the wanted tensor is the output.
        """
        outputs = call(*args, **kwargs)
        return outputs, LayerCall(layer, self, first(args, kwargs), (outputs,))

    @abc.abstractmethod
    def gradients(
        self, call: LayerCall, output_gradients: tuple[tf.Tensor, ...]
    ) -> list[tuple[keras.Variable, gradients.PerExampleGradient]]:
        """Per-example gradients of the variables that the call read.

        Args:
            call: What `record` returned.
            output_gradients: Gradients of the sum of the per-example losses
                with respect to `call.sources`. Row `i` of each belongs to
                example `i`.

        Returns:
            Pairs of a variable and its `PerExampleGradient`. Variables that
            are not trainable may be included; they are left out later.
        """


def first(args: tuple, kwargs: dict) -> Any:
    """The first argument of a call, however it was passed."""
    return args[0] if args else next(iter(kwargs.values()))


# Swapping `activation` and calling the layer must not interleave with another
# thread that does the same: it would put back the wrong function.
_ACTIVATION_LOCK = threading.RLock()


def record_before_activation(
    rule: GradientRule,
    layer: keras.layers.Layer,
    call: Callable[..., Any],
    args: tuple,
    kwargs: dict,
) -> tuple[Any, LayerCall]:
    """Records the input of `layer.activation` instead of the output.

    The layer's own `call` runs unchanged; for its duration `activation` is a
    function that notes its argument.
    """
    if layer.activation is None:
        outputs = call(*args, **kwargs)
        return outputs, LayerCall(layer, rule, first(args, kwargs), (outputs,))
    seen = []
    recording_thread = threading.get_ident()

    with _ACTIVATION_LOCK:
        activation = layer.activation

        def note_and_activate(x):
            # A thread that does not record may call the layer meanwhile.
            if threading.get_ident() == recording_thread:
                seen.append(x)
            return activation(x)

        # Past Keras's attribute tracking: this is undone before anyone looks.
        object.__setattr__(layer, "activation", note_and_activate)
        try:
            outputs = call(*args, **kwargs)
        finally:
            object.__setattr__(layer, "activation", activation)
    if len(seen) != 1:
        raise RuntimeError(
            f"Layer '{layer.name}' applied its activation {len(seen)} times in "
            "one call; expected once. Register a gradient rule for "
            f"{type(layer).__name__} with `register_gradient_rule`."
        )
    return outputs, LayerCall(layer, rule, first(args, kwargs), (seen[0],))


_RULES: dict[type, GradientRule] = {}
# Of layers in packages that may not be installed.
_RULES_BY_NAME: dict[tuple[str, str], GradientRule] = {}


def register_gradient_rule(
    layer_type: type,
) -> Callable[[type[GradientRule]], type[GradientRule]]:
    """Registers the decorated rule for a layer type.

    A later registration replaces an earlier one. A rule that is wrong makes
    the guarantee wrong. Before the first step of a training its gradients are
    compared with automatic differentiation, on made-up inputs and in sum;
    compare its norms with a loop over examples yourself.

    Args:
        layer_type: Subclass of `keras.layers.Layer`.

    Returns:
        The decorator.

    Raises:
        TypeError: If `layer_type` is not a layer class, or what is decorated
            is not a `GradientRule` class.
    """
    if not (
        isinstance(layer_type, type)
        and issubclass(layer_type, keras.layers.Layer)
    ):
        raise TypeError(
            "`register_gradient_rule` takes a subclass of keras.layers.Layer. "
            f"Received: {layer_type!r}"
        )

    def decorate(rule_type: type[GradientRule]) -> type[GradientRule]:
        if not (
            isinstance(rule_type, type) and issubclass(rule_type, GradientRule)
        ):
            raise TypeError(
                "`register_gradient_rule` decorates a subclass of "
                f"GradientRule. Received: {rule_type!r}"
            )
        _RULES[layer_type] = rule_type()
        return rule_type

    return decorate


def register_by_name(
    package: str, name: str
) -> Callable[[type[GradientRule]], type[GradientRule]]:
    """Class decorator: a rule for a layer type that is not imported for it.

    A rule registered for the type itself comes first.

    Args:
        package: The package that defines the layer type.
        name: The name of the type.

    Returns:
        The decorator.
    """

    def decorate(rule_type: type[GradientRule]) -> type[GradientRule]:
        _RULES_BY_NAME[package, name] = rule_type()
        return rule_type

    return decorate


def _registered(layer_type: type) -> GradientRule | None:
    package = layer_type.__module__.partition(".")[0]
    by_name = _RULES_BY_NAME.get((package, layer_type.__name__))
    return _RULES.get(layer_type, by_name)


# A subclass may say these anew and still compute what its base computes.
_HARMLESS_OVERRIDES = frozenset(
    (
        "compute_output_shape",
        "compute_output_spec",
        "from_config",
        "get_build_config",
        "build_from_config",
        "get_config",
        "load_own_variables",
        "save_own_variables",
    )
)


def _computes_like(layer_type: type, base: type) -> bool:
    """Whether a subclass overrides nothing that its base's `call` may use."""
    for cls in layer_type.__mro__:
        if cls is base:
            return True
        for name in vars(cls):
            if (
                hasattr(base, name)
                and not name.startswith(("__", "_abc_", "_api_export"))
                and name not in _HARMLESS_OVERRIDES
            ):
                return False
    return False


def rule_for(layer: keras.layers.Layer) -> GradientRule | None:
    """The rule of a layer's type, or `None` if only the generic one fits."""
    for base in type(layer).__mro__:
        rule = _registered(base)
        if rule is None:
            continue
        inherits = _computes_like(type(layer), base)
        return rule if inherits and rule.supports(layer) else None
    return None
