"""`DPRepresentationClip` layers of a model, and the trial of such a model."""

from collections.abc import Sequence
from typing import Any

import keras

from tf_dpfp import layers as layers_lib
from tf_dpfp import validation
from tf_dpfp.independence import representations as trial
from tf_dpfp.keras_private import layers as keras_layers
from tf_dpfp.keras_private import optimizers as keras_optimizers
from tf_dpfp.mechanisms import state as state_lib


def layers_of(
    model: keras.Model,
) -> tuple[layers_lib.DPRepresentationClip, ...]:
    """Lists the `DPRepresentationClip` layers of a model, at any depth."""
    return tuple(
        layer
        for layer in keras_layers.all_layers(model)
        if isinstance(layer, layers_lib.DPRepresentationClip)
    )


def check_seeds(layers: Sequence[layers_lib.DPRepresentationClip]) -> None:
    """Refuses layers of one model that would draw the same noise.

    Parts of a model may hold layers of the same name.

    Args:
        layers: The layers of the model.

    Raises:
        ValueError: If two of them have the same seed and the same name.
    """
    seeded = [
        (each.seed, each.name) for each in layers if each.seed is not None
    ]
    for seed, name in seeded:
        if seeded.count((seed, name)) > 1:
            raise ValueError(
                f"Two DPRepresentationClip layers of the name '{name}' have "
                "the same seed, so both would draw the same noise, and what "
                "they release would differ by no noise at all. Give them other "
                f"names, or leave `seed` out. Received: seed={seed} in both"
            )


def left_out(
    before: Sequence[layers_lib.DPRepresentationClip],
    now: Sequence[layers_lib.DPRepresentationClip],
) -> list[layers_lib.DPRepresentationClip]:
    """Lists the layers that were taken out of a model.

    Args:
        before: The layers that it had.
        now: The layers that it has.

    Returns:
        Those of `before` that are not in `now`.
    """
    kept = {id(layer) for layer in now}
    return [layer for layer in before if id(layer) not in kept]


def inputs_of(model: keras.Model) -> Any:
    """Returns the symbolic inputs of a model, as they nest.

    Args:
        model: A model.

    Returns:
        The inputs of a functional or sequential model; `None` for others.
    """
    if not getattr(model, "inputs", None):
        return None
    if isinstance(model, keras.Sequential):
        # It has no `input` before it was called.
        return model.inputs[0]
    return model.input


def trained_layers(model: keras.Model) -> tuple[bool, ...]:
    """Returns `trainable` of every layer: what a trial holds for."""
    return tuple(layer.trainable for layer in keras_layers.all_layers(model))


def findings(
    model: keras.Model, x: Any, checks: Sequence[validation.LayerCheck]
) -> trial.Findings:
    """Tries a model with noised representations, once for what it trains.

    Args:
        model: A private model with such a layer.
        x: Inputs of a batch, or their specifications.
        checks: Checks that every layer must pass.

    Returns:
        The findings of the trial.

    Raises:
        ValueError: If the noise does not protect the examples, or a layer
            does not pass.
    """
    state = state_lib.state_of(model)
    found = state.findings
    if found is None or state.tried_with != trained_layers(model):
        found = trial.raise_if_unprotected(model, x)
        validation.raise_if_invalid(model, checks)
        state.findings = found
        # A model that is built on the way has more layers than before.
        state.tried_with = trained_layers(model)
        # Other weights have other per-example gradients.
        state.tried_for = None
    return found


def listed(paths: Sequence[str]) -> str:
    """Lists the first paths in words."""
    shown = ", ".join(f"'{path}'" for path in paths[:5])
    return shown + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")


def uncounted_steps(model: keras.Model, counted: int) -> list[str]:
    """Compares the steps of optimizers with the releases of layers.

    A step that was not counted once stays so, whichever optimizer comes next.

    Args:
        model: A model with such a layer.
        counted: Number of releases of representations in its ledgers.

    Returns:
        One sentence if more steps were taken than counted, else nothing.
    """
    state = state_lib.state_of(model)
    earlier, _ = state.taken_before
    taken = earlier + keras_optimizers.calls_of(
        getattr(model, "optimizer", None)
    )
    if taken <= counted:
        if not state.uncounted:
            return []
        return [
            f"An earlier optimizer took {state.uncounted} steps that "
            "DPRepresentationClip did not count: they were without its noise."
        ]
    return [
        f"The optimizer took {taken} steps and DPRepresentationClip counted "
        f"{counted} releases: some steps were without its noise."
    ]


def keep_uncounted(model: keras.Model, counted: int) -> None:
    """Keeps in mind what the optimizer did before another one is compiled.

    Args:
        model: A model with such a layer, and still its optimizer.
        counted: Number of releases of representations in its ledgers.
    """
    state = state_lib.state_of(model)
    earlier, at_first = state.taken_before
    now = keras_optimizers.calls_of(model.optimizer)
    # Steps that it took elsewhere, before, are no steps of this model.
    own = now - at_first
    uncounted = min(own, earlier + now - counted)
    state.uncounted = max(state.uncounted, uncounted)


def begin_with(model: keras.Model, before: Any) -> None:
    """Notes the steps of the optimizers when one is compiled.

    Args:
        model: A model with such a layer and its optimizer.
        before: The optimizer that it had before, or `None`.
    """
    state = state_lib.state_of(model)
    earlier, at_first = state.taken_before
    if before is not model.optimizer:
        earlier += keras_optimizers.calls_of(before) - at_first
        state.taken_before = earlier, keras_optimizers.calls_of(model.optimizer)
