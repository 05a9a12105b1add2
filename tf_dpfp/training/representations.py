"""Models with a `DPRepresentationClip`: what must hold of them.

The layer's noise protects what goes through it. A trial on made-up inputs
looks for what does not: with the layer's output replaced by a constant,
nothing that the model computes may depend on the inputs any more. What reaches
the layer for one example must depend on that example alone.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import keras

from tf_dpfp import accounting
from tf_dpfp import counting
from tf_dpfp import layers as layers_lib
from tf_dpfp import optimizers
from tf_dpfp import sampling as sampling_lib
from tf_dpfp.independence.representations import Findings
from tf_dpfp.independence.representations import examine
from tf_dpfp.keras_private import layers as keras_layers


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
    counted = sum(
        e.steps for e in entries(model) if e.release.has_representations
    )
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
