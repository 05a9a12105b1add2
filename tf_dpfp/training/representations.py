"""Models with a `DPRepresentationClip`: what must hold of them.

The layer's noise protects what goes through it. A trial on made-up inputs
looks for what does not: with the layer's output replaced by a constant,
nothing that the model computes may depend on the inputs any more. What reaches
the layer for one example must depend on that example alone.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tf_dpfp import accounting
from tf_dpfp import counting
from tf_dpfp import layers as layers_lib
from tf_dpfp import optimizers
from tf_dpfp import sampling as sampling_lib
from tf_dpfp.per_example import keras_layers
from tf_dpfp.training import private_step
from tf_dpfp.training import probe


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a trial showed.

    Attributes:
        problems: Why the layer's noise does not protect the examples.
        trainable_below: Paths of the trainable weights below the layer.
        calls: How often such layers are called in a forward pass.
        positions: Which of the model's trainable weights those are.
    """

    problems: tuple[str, ...]
    trainable_below: tuple[str, ...]
    calls: int
    positions: tuple[int, ...] = ()


def layers_of(
    model: keras.Model,
) -> list[layers_lib.DPRepresentationClip]:
    """The `DPRepresentationClip` layers of a model, at any depth."""
    return [
        layer
        for layer in keras_layers.all_layers(model)
        if isinstance(layer, layers_lib.DPRepresentationClip)
    ]


def trainability(model: keras.Model) -> tuple[bool, ...]:
    """What a trial holds for: which layers are frozen."""
    return tuple(layer.trainable for layer in keras_layers.all_layers(model))


def beside_sums(model: keras.Model) -> bool:
    """Whether a model has such layers, and a private optimizer for the rest."""
    optimizer = getattr(model, "optimizer", None)
    private = isinstance(optimizer, optimizers.PrivateOptimizer)
    return private and bool(layers_of(model))


def alone(model: keras.Model) -> bool:
    """Whether the layers of a model are all that makes it private."""
    return bool(layers_of(model)) and not beside_sums(model)


def entries(model: keras.Model) -> list[accounting.LedgerEntry]:
    """What a model with such layers has released."""
    by_layers = [e for layer in layers_of(model) for e in layer.ledger_entries]
    if not beside_sums(model):
        return by_layers
    return [*by_layers, *model.optimizer.ledger_entries]


def next_step(model: keras.Model) -> list[accounting.LedgerEntry]:
    """What it releases in the next step."""
    if beside_sums(model):
        # Which counts the rows as well.
        announce(model)
        return [model.optimizer.next_entry]
    return [layer.next_entry for layer in layers_of(model) if layer.built]


def announce(model: keras.Model) -> counting.GaussianRelease:
    """Tells a model's private optimizer what is released beside its sums.

    Args:
        model: A model with such a layer, compiled with a private optimizer.

    Returns:
        What it was told.

    Raises:
        ValueError: If the layer's rows can't be counted with sums.
    """
    layers = layers_of(model)
    if len(layers) != 1:
        raise ValueError(
            f"Model '{model.name}' has {len(layers)} DPRepresentationClip "
            "layers and a private optimizer, which counts the rows of one. "
            "Keep one of them."
        )
    layer = layers[0]
    if layer.end_to_end:
        raise ValueError(
            f"Layer '{layer.name}' has end_to_end=True, with which nothing is "
            "proved, and a private optimizer noises the gradient of what is "
            "below it. Leave `end_to_end` out."
        )
    if layer.seed is not None:
        raise ValueError(
            f"Layer '{layer.name}' has seed={layer.seed}, and with a private "
            "optimizer its noise can't be repeated. Leave `seed` out."
        )
    released = layer.release.of_kind(layer.declared())
    model.optimizer.release_jointly(released)
    return released


def raise_if_unprotected(model: keras.Model, x: Any) -> Findings:
    """Tries a model and raises if its noise does not protect the examples.

    Args:
        model: A model with such a layer, built or not.
        x: Inputs, or their specifications: shapes and types are looked at.

    Returns:
        What the trial showed.

    Raises:
        ValueError: With every problem.
    """
    if not model.built:
        probe.build(model, x)
    found = examine(model, x)
    if found.problems:
        listed = "\n".join(f"  - {problem}" for problem in found.problems)
        raise ValueError(
            f"Model '{model.name}' is not protected by its "
            f"DPRepresentationClip:\n{listed}"
        )
    return found


def check_trained(model: keras.Model, found: Findings) -> None:
    """Raises if a model's optimizer is not for what is to be trained.

    Args:
        model: The model; compiled, or trained by the user's own loop.
        found: What a trial showed.

    Raises:
        ValueError: With the weights below its layer, if an ordinary optimizer
            is to train them; if a private one has none.
    """
    if beside_sums(model):
        _check_beside_sums(model, found)
        return
    end_to_end = any(layer.end_to_end for layer in layers_of(model))
    if found.trainable_below and not end_to_end:
        raise ValueError(
            "These weights are trainable and below a DPRepresentationClip, "
            f"where the gradient stops: {_listed(found.trainable_below)}. "
            "Freeze their layers (`layer.trainable = False`), or make the "
            "model private and compile it with a private optimizer, which "
            "noises their gradient."
        )


def _check_beside_sums(model: keras.Model, found: Findings) -> None:
    if not found.trainable_below:
        raise ValueError(
            f"Model '{model.name}' has a DPRepresentationClip and nothing to "
            f"train below it, and {type(model.optimizer).__name__} would add "
            "noise to what is noise already. Compile it with an ordinary "
            "optimizer, such as 'adam', or take the layer out."
        )
    if found.calls != 1:
        raise ValueError(
            f"The DPRepresentationClip is called {found.calls} times in a "
            "forward pass, and a private optimizer counts one release of rows "
            "with each sum. Call it once."
        )


def check_sampled(found: Findings) -> None:
    """Raises if a step is not one release of one draw.

    Args:
        found: What the trial showed.

    Raises:
        ValueError: If the layer is called more than once.
    """
    if found.calls != 1:
        raise ValueError(
            f"DPRepresentationClip layers are called {found.calls} times in a "
            "forward pass: several releases of one draw are not amplified as "
            "one. Use one layer once, or train on ordinary batches, which are "
            "counted without amplification."
        )


def drawn_rows(batches: Any) -> sampling_lib.SamplingInfo | None:
    """How `stratified_batches` draws a data set; `None` if it is not its."""
    info = sampling_lib.sampling_of(batches)
    if info is None or not isinstance(
        info.sampling, accounting.WithoutReplacement
    ):
        return None
    return info


@contextlib.contextmanager
def sampled(model: keras.Model, info: sampling_lib.SamplingInfo | None):
    """Tells the layers of a model how the steps inside draw their batches.

    Args:
        model: The model.
        info: What `drawn_rows` said.
    """
    layers = layers_of(model)
    for layer in layers:
        layer.open_ledger(info)
    try:
        yield
    finally:
        # Steps taken outside must not inherit the claim.
        for layer in layers:
            layer.open_ledger(None)


def inputs_of(model: keras.Model) -> Any:
    """The symbolic inputs of a functional or sequential model, as it nests."""
    if isinstance(model, keras.Sequential):
        # It has no `input` before it was called.
        return model.inputs[0]
    return model.input


def uncounted_steps(model: keras.Model) -> list[str]:
    """Says if a model was trained by more steps than its layers noised.

    Args:
        model: A model with such a layer.

    Returns:
        Why epsilon is infinite then; empty if it is not so.
    """
    taken = int(getattr(getattr(model, "optimizer", None), "iterations", 0))
    counted = sum(e.steps for e in entries(model) if e.release.is_rows)
    if taken <= counted:
        return []
    return [
        f"The optimizer took {taken} steps and DPRepresentationClip counted "
        f"{counted} releases: some steps were without its noise."
    ]


def objections(model: keras.Model) -> list[str]:
    """Why epsilon is infinite, whatever the ledger of the layers says.

    Args:
        model: A model with such a layer, not made private.

    Returns:
        The reasons; empty if there is none.
    """
    inputs = getattr(model, "inputs", None)
    if not inputs:
        return [
            "The model is not functional, and whether anything goes around "
            "its DPRepresentationClip was not tried. Call "
            "tf_dpfp.make_private(model) before training, which does."
        ]
    return list(examine(model, inputs_of(model)).problems)


def notes(model: keras.Model) -> list[str]:
    """What the statement says of a model that was not made private."""
    if not getattr(model, "inputs", None):
        return []
    found = examine(model, inputs_of(model))
    if not found.trainable_below:
        return []
    return [
        "These weights were to be trained and stayed as they were, for the "
        f"gradient stops above them: {_listed(found.trainable_below)}."
    ]


def _listed(paths: Sequence[str]) -> str:
    shown = ", ".join(f"'{path}'" for path in paths[:5])
    return shown + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")


def examine(model: keras.Model, x: Any) -> Findings:
    """Tries a built model on made-up inputs.

    Args:
        model: The model.
        x: Inputs, or their specifications: shapes and types are looked at.

    Returns:
        What the trial showed. Where it could not be made, that is a problem.
    """
    return probe.outside_of_graphs(_examine, model, x)


# Rows of the second trial, which are not as many as those of the first.
_COMPANY = 2 * probe.ROWS


@dataclasses.dataclass(frozen=True)
class _Pass:
    """One forward pass inside a trial."""

    outputs: list[tf.Tensor]
    state: list[tf.Tensor]
    given: list[tf.Tensor]
    training: list[bool]
    connected: list[bool]


def _forward(model: keras.Model, x: Any, variables: list) -> _Pass:
    trained = model.trainable_variables
    with probe.restored(model.non_trainable_variables):
        with tf.GradientTape() as tape, layers_lib.trial() as trial:
            y_pred = private_step.forward(model, x)
        found = [None] * len(trained)
        if trial.inputs and trained:
            found = tape.gradient(trial.inputs, [v.value for v in trained])
        flat = [t for t in tree.flatten(y_pred) if t is not None]
        masks = [keras_layers.mask_of(t) for t in flat]
        outputs = [*flat, *(m for m in masks if m is not None), *model.losses]
        return _Pass(
            [tf.convert_to_tensor(t) for t in outputs],
            [tf.identity(v.value) for v in variables],
            trial.inputs,
            trial.training,
            [gradient is not None for gradient in found],
        )


def _examine(model: keras.Model, x: Any) -> Findings:
    rng = np.random.default_rng(0)
    statistics = [
        v
        for v in model.non_trainable_variables
        if not keras_layers.is_seed_variable(v)
    ]
    connected, training = [], []

    def run(first, other):
        # The same first example in other, and more, company.
        company = tree.map_structure(
            lambda a, b: None if a is None else tf.concat([a[:1], b[1:], b], 0),
            first,
            other,
        )
        passes = [_forward(model, x, statistics) for x in (first, other)]
        beside = _forward(model, company, statistics)
        connected.extend(passes[0].connected)
        training.extend(beside.training)
        rows = [t.shape[0] for t in beside.given]
        if any(count != _COMPANY for count in rows):
            raise _OtherRows(rows)
        return (
            _differences(passes[0].outputs, passes[1].outputs),
            _differences(passes[0].state, passes[1].state),
            _differences(
                [t[:1] for t in passes[0].given], [t[:1] for t in beside.given]
            ),
        )

    try:
        first = tree.map_structure(lambda leaf: probe.made_up(leaf, rng), x)
        other = tree.map_structure(lambda leaf: probe.made_up(leaf, rng), x)
        result = tf.function(run, autograph=False)(first, other)
    except _OtherRows as error:
        return Findings(
            (
                f"It is called with {error.args[0]} rows for a batch of "
                f"{_COMPANY} examples, so its rows are not the examples. "
                "Keep the batch in the first axis, without merging others "
                "into it.",
            ),
            (),
            len(training),
        )
    except (probe.CannotProbe, tf.errors.OpError) as error:
        return Findings(
            (
                f"It could not be tried on made-up inputs ({error}). Put what "
                "can't be made up (lookups of strings, say) into the data "
                "pipeline.",
            ),
            (),
            0,
        )
    result = tree.map_structure(lambda t: t.numpy(), result)
    tolerance = probe.tolerance_of(model)
    around = not all(map(_is_same, result[0]))
    changed = [
        f"'{v.path}'"
        for v, d in zip(statistics, result[1], strict=True)
        if not _is_same(d)
    ]
    mixed = any(probe.far_apart([d], tolerance)[0] for d in result[2])
    problems = []
    if not training:
        problems.append("The layer is not called. Put it into the model.")
    elif around:
        problems.append(
            "The examples reach the outputs or the losses of the model on a "
            "way around the layer (a connection that skips it, a mask, "
            "`add_loss`, an `activity_regularizer`). Let everything that comes "
            "from the inputs go through it."
        )
    if not all(training):
        problems.append(
            "The layer is called without `training=True` in training, and adds "
            "no noise. Give the model's `call` an argument `training`, and "
            "pass it on."
        )
    if changed:
        problems.append(
            f"The forward pass keeps statistics of the data, without noise, in "
            f"{', '.join(changed)}. Set `layer.trainable = False`, or replace "
            "the layer."
        )
    if mixed:
        problems.append(
            "What reaches the layer for one example depends on the other "
            "examples of the batch. Replace what mixes them below it."
        )
    trained = model.trainable_variables
    below = [
        position
        for position, (_, is_below) in enumerate(
            zip(trained, connected, strict=True)
        )
        if is_below
    ]
    return Findings(
        tuple(problems),
        tuple(trained[i].path for i in below),
        len(training),
        tuple(below),
    )


def _is_same(difference: probe.Difference) -> bool:
    # From the same constant: nothing but the order of a sum may differ.
    return bool(difference.distance <= 1e-6 * difference.scale)


class _OtherRows(Exception):
    """The layer's rows are not the examples of the batch."""


def _differences(
    one: list[tf.Tensor], two: list[tf.Tensor]
) -> list[probe.Difference]:
    return [probe.difference(a, b) for a, b in zip(one, two, strict=True)]
