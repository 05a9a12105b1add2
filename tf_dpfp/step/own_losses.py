"""Losses that a model or its layers make by themselves, example by example.

Keras asks for one number of the batch: `compute_loss` returns one, `add_loss`
takes one. Here the number of example i is what the same code computes for a
batch that holds nothing but example i, and a step takes the mean over examples.

**Sensitivity.** The number of example i is a function of its own data, of what
layers gave in its row, of random numbers of its own and of the weights; its
gradient is clipped like that of any loss, whatever the code computes. Nothing
is taken on trust: the proof follows the losses through all of this.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras import tree

from tf_dpfp import per_example
from tf_dpfp.keras_private import layers as keras_layers
from tf_dpfp.keras_private import trainer as keras_trainer
from tf_dpfp.step import single_examples

# Calls a model on inputs, in training mode.
CallModel = Callable[[keras.Model, Any], Any]


class Found(NamedTuple):
    """Losses of a micro-batch.

    Attributes:
        losses: One loss per example.
        tracked: Variables of metrics, and what each example adds to them.
    """

    losses: tf.Tensor
    tracked: Sequence[tuple[keras.Variable, tf.Tensor]]


@dataclasses.dataclass(frozen=True)
class OwnLosses:
    """Losses of a model's own, after its forward pass on a micro-batch.

    Attributes:
        model: The model.
        units: Its units, which are recorded.
        data: `(x, y, sample_weight)`.
        where: What makes the loss, for messages.
        replaces_compiled: True for a `compute_loss` of the model's own, which
            stands in the place of the compiled loss.
        adds: True if layers add losses, so that the model is called once more.
        skipped: Number of recorded calls that are not played back.
    """

    model: keras.Model
    units: Sequence[per_example.Unit]
    data: tuple
    where: str
    replaces_compiled: bool
    adds: bool
    skipped: int = 0

    def with_calls_of_loss(
        self, y_pred: Any, calls: list, call_model: CallModel
    ) -> "OwnLosses":
        """Records the layers that `compute_loss` calls, if any.

        Args:
            y_pred: Predictions.
            calls: The recorded calls; further ones are added.
            call_model: Calls the model.

        Returns:
            These losses, with what to play back.
        """
        skipped = 0 if self.adds else len(calls)
        own = dataclasses.replace(self, skipped=skipped)
        if not self.replaces_compiled:
            return own
        try:
            own.trace(y_pred, calls, call_model)
        except per_example.NotRecordedError:
            # What it returns for the batch is of no use.
            with keras.StatelessScope(collect_losses=True):
                keras_trainer.compute_loss(
                    self.model, *_in_order(self.data, y_pred)
                )
        return own

    def losses(self, y_pred: Any, calls: list, call_model: CallModel) -> Found:
        """Computes the losses.

        Args:
            y_pred: Predictions.
            calls: The recorded calls.
            call_model: Calls the model.

        Returns:
            The losses, and what metrics see of each example.

        Raises:
            ValueError: If the loss of an example is not one number.
        """
        function, given = self._of_one(y_pred, calls, call_model)
        losses, *added = single_examples.mapped(function, given)
        return Found(losses, list(zip(function.tracked, added, strict=True)))

    def trace(self, y_pred: Any, calls: list, call_model: CallModel) -> None:
        """Traces the loss of one example, in a graph that never runs."""
        single_examples.trace(*self._of_one(y_pred, calls, call_model))

    def _of_one(self, y_pred, calls, call_model) -> tuple["_OfOne", dict]:
        x, y, sample_weight = self.data
        batch_size = tf.shape(_first(x))[0]
        seeds = [
            v
            for v in self.model.non_trainable_variables
            if keras_layers.is_seed_variable(v)
        ]
        played = [
            (id(call.layer), per_example.Played(call.outputs, call.added))
            for call in calls[self.skipped :]
            if call.has_rows  # Others are within one that plays back.
        ]
        given = {
            "x": x,
            "y": y,
            "y_pred": y_pred,
            "masks": tree.map_structure(_mask, y_pred),
            "sample_weight": sample_weight,
            "seeds": [per_example.example_seeds(v, batch_size) for v in seeds],
            "played": [[p.outputs, p.added] for _, p in played],
        }
        function = _OfOne(
            self, call_model, seeds, [layer for layer, _ in played], _any(x)
        )
        return function, given


class _OfOne:
    """Loss of one example, and what it adds to the metrics.

    Args:
        own: The losses.
        call_model: Calls the model.
        seeds: States of seed generators.
        layers: Identities of the layers whose calls are played back.
        any_of_batch: Zero, computed of the whole batch.
    """

    def __init__(self, own, call_model, seeds, layers, any_of_batch):
        self._own, self._call_model = own, call_model
        self._seeds, self._layers = seeds, layers
        self._any_of_batch = any_of_batch
        self.tracked: list[keras.Variable] = []

    def __call__(self, example: dict) -> list[tf.Tensor]:
        own, model = self._own, self._own.model
        played = [
            (layer, per_example.Played(outputs, _number(added)))
            for layer, (outputs, added) in zip(
                self._layers, example["played"], strict=True
            )
        ]
        mapping = [
            (v, tf.squeeze(seed, 0))
            for v, seed in zip(self._seeds, example["seeds"], strict=True)
        ]
        mapping += [(v, self._hidden(v)) for v in model.metrics_variables]
        data = example["x"], example["y"], example["sample_weight"]
        with (
            per_example.played_back(own.units, played),
            keras.StatelessScope(
                state_mapping=mapping, collect_losses=True
            ) as scope,
            keras_layers.without_regularizers(model.trainable_variables),
        ):
            before = {
                id(v): scope.get_current_value(v)
                for v in model.metrics_variables
            }
            if own.adds:
                self._call_model(model, data[0])
            if own.replaces_compiled:
                y_pred = tree.map_structure(
                    keras_layers.with_mask, example["y_pred"], example["masks"]
                )
                value = self._own_number(data, y_pred, bool(played))
            else:
                (value,) = per_example.added_losses(scope)
        _refuse_updates(model, scope)
        self.tracked = [
            v
            for v in model.metrics_variables
            if scope.get_current_value(v) is not before[id(v)]
        ]
        return [value, *(scope.get_current_value(v) for v in self.tracked)]

    def _own_number(self, data: tuple, y_pred, plays_back: bool) -> tf.Tensor:
        own = self._own
        try:
            value = keras_trainer.compute_loss(
                own.model, *_in_order(data, y_pred)
            )
        except per_example.NotRecordedError:
            raise
        except Exception as error:  # Of any code in it.
            if not plays_back:
                raise
            raise ValueError(
                f"{own.where} calls layers, and fails on one example, where "
                "they give what they gave for the batch "
                f"({type(error).__name__}: {error}). If it takes a gradient "
                "through a layer, as a gradient penalty does, that can't be "
                "done in compute_loss: compute it in the `call` of a layer "
                "that returns the loss of each example, and set "
                "`tf_dpfp.gradient_rules.register_gradient_rule(ThatLayer)"
                "(tf_dpfp.gradient_rules.GenericRule)`."
            ) from error
        return _one_number(value, own)

    def _hidden(self, variable: keras.Variable) -> tf.Tensor:
        """Zeros in place of a metric, which the losses must not read.

        What is in a metric was computed of examples, without noise. The zeros
        are those of the whole batch, so that the proof refuses a loss that
        reads them.
        """
        zero = tf.cast(self._any_of_batch, variable.dtype)
        return tf.zeros(variable.shape, variable.dtype) + zero


def of(
    model: keras.Model,
    units: Sequence[per_example.Unit],
    calls: Sequence[per_example.LayerCall],
    data: tuple,
) -> OwnLosses | None:
    """Finds the losses of a model's own, after its forward pass.

    Args:
        model: The model.
        units: Its units.
        calls: Recorded calls of the forward pass.
        data: `(x, y, sample_weight)`.

    Returns:
        The losses, or `None` if there is the compiled loss alone.
    """
    adding = [
        layer
        for layer in keras_layers.all_layers(model)
        if keras_layers.added_losses(layer)
    ] + [call.layer for call in calls if call.added is not None]
    has_own = keras_trainer.has_own_loss(model)
    if not adding and not has_own:
        return None
    maker = model if has_own else adding[0]
    where = f"Layer '{maker.name}' ({type(maker).__name__})"
    if has_own:
        where = f"The compute_loss of {type(model).__name__}"
    return OwnLosses(model, units, data, where, has_own, bool(adding))


def _in_order(data: tuple, y_pred: Any) -> tuple:
    x, y, sample_weight = data
    return x, y, y_pred, sample_weight


def _first(x: Any) -> tf.Tensor:
    return next(leaf for leaf in tree.flatten(x) if leaf is not None)


def _any(x: Any) -> tf.Tensor:
    """Zero, computed of every example."""
    equal = tf.equal(_first(x), _first(x))
    return tf.cast(tf.reduce_all(equal), tf.int32) * 0


def _mask(leaf: Any) -> Any:
    return None if leaf is None else keras_layers.mask_of(leaf)


def _number(added: tf.Tensor | None) -> tf.Tensor | None:
    return None if added is None else tf.squeeze(added, 0)


def _one_number(value: Any, own: OwnLosses) -> tf.Tensor:
    value = tf.convert_to_tensor(value)
    if value.shape.num_elements() != 1:
        raise ValueError(
            f"{own.where} must return one number. Reduce it, for example by "
            "`ops.mean(loss)`. For a batch of one example it returned a "
            f"tensor of shape {tuple(value.shape)}."
        )
    return tf.cast(tf.reshape(value, []), keras.config.floatx())


def _refuse_updates(model: keras.Model, scope: keras.StatelessScope) -> None:
    for variable in model.weights:
        if scope.get_current_value(variable) is not None:
            raise ValueError(
                f"The loss of model '{model.name}' updates "
                f"'{variable.path}': what it computes of the data would leave "
                "without noise. Compute it in a callback or from public data."
            )
