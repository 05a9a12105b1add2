"""Compilation of private models, and of those that come from files."""

from typing import Any

import keras

from tf_dpfp import clipping
from tf_dpfp import compilation
from tf_dpfp import mechanisms
from tf_dpfp import optimizers
from tf_dpfp import replicas
from tf_dpfp.keras_private import trainer as keras_trainer
from tf_dpfp.mechanisms import building
from tf_dpfp.mechanisms import clip_layers
from tf_dpfp.mechanisms import state as state_lib


def compile_private(model: keras.Model, args: tuple, kwargs: dict) -> None:
    """Compiles a private model and chooses its mechanism.

    Args:
        model: A private model.
        args: Positional arguments of `compile`.
        kwargs: Keyword arguments of `compile`.

    Raises:
        NotPrivateError: If neither the optimizer nor a layer adds noise.
        ValueError: If the model can't be trained so.
    """
    state = state_lib.state_of(model)
    before = getattr(model, "optimizer", None)
    ordinary = state_lib.ordinary(model, "compile")
    arguments = state_lib.bound(ordinary, args, kwargs)
    given = arguments.get("optimizer")
    # A `compile` of the model's own may have it among its `**kwargs` only.
    by_default = (
        "auto"
        == arguments.get("jit_compile", "auto")
        == kwargs.get("jit_compile", "auto")
    )
    if isinstance(given, optimizers.PrivateOptimizer):
        kwargs["auto_scale_loss"] = False
        if by_default and not _suits_xla(given):
            kwargs["jit_compile"] = False
    elif not clip_layers.layers_of(model):
        # Before anything is changed.
        raise _adds_no_noise(model, given)
    if before is not None and clip_layers.layers_of(model):
        mechanisms.choose(model, before).keep_uncounted()
    others = [before]
    if state.mechanism is not None:
        others.append(state.mechanism.optimizer)
    try:
        ordinary(*args, **kwargs)
        # A model's own `compile` may have put another optimizer in its place.
        if isinstance(model.optimizer, optimizers.PrivateOptimizer):
            building.check_same_model(model, model.optimizer)
            _check_xla(model)
        mechanism = mechanisms.choose(model, model.optimizer)
        # First, so that none of their steps is between the two ledgers.
        _close_ledgers(others, model.optimizer)
        _take_over(mechanism, state.mechanism, before)
    except BaseException:
        # The ledger of the earlier optimizer must be there for the next try.
        model.optimizer = before
        _close_ledgers(others, None)
        raise
    state.mechanism = mechanism
    _divide_xla(model, by_default)
    state.eager_passes = {}  # Of the loss and the metrics before.
    state.xla_by_default = by_default
    clip_layers.begin_with(model, before)
    for backup in state.backups.values():
        backup.watch()
    mechanism.check_compiled()


def _divide_xla(model: keras.Model, by_default: bool) -> None:
    """Has XLA compile the replicas' parts of a step, and not the step.

    Keras would have it compile the step of all replicas, which it can't. Where
    nobody asked for it, the step is taken without. On one device likewise with
    sparse tables: how many rows are released differs from step to step, and XLA
    compiles for one number.

    Args:
        model: A model that was just compiled.
        by_default: True if `compile` did not ask for XLA.
    """
    state = state_lib.state_of(model)
    state.compiles_pieces = False
    strategy = model.distribute_strategy
    is_sparse = getattr(model.optimizer, "sparse_tables", None) is not None
    divides = is_sparse or replicas.compiles_pieces(strategy)
    if not model.jit_compile or not divides:
        return
    if by_default:
        model.jit_compile = False
    elif type(state.mechanism) is mechanisms.Gradients:
        # Replicas of several devices each are left as they are, for a refusal.
        per_device = isinstance(model.optimizer.clipping, clipping.PerDevice)
        state.compiles_pieces = not per_device
        model.jit_compile = per_device


def _close_ledgers(optimizers_before: list[Any], optimizer: Any) -> None:
    """Has only the ledger of the compiled optimizer count steps.

    Steps that were compiled with an earlier optimizer go on updating the same
    weights, and would be counted where nobody looks.

    Args:
        optimizers_before: Optimizers before.
        optimizer: The optimizer that the model is compiled with; `None`: all
            of those before are as they were.
    """
    for each in (*optimizers_before, optimizer):
        if isinstance(each, optimizers.PrivateOptimizer):
            each.ledger.close(optimizer is not None and each is not optimizer)


def _take_over(
    mechanism: mechanisms.Mechanism,
    earlier: mechanisms.Mechanism | None,
    before: Any,
) -> None:
    """Keeps counted what the model released before this `compile`.

    Args:
        mechanism: The new mechanism.
        earlier: The one before; `None` if there was none.
        before: The optimizer before, which may not be that of `earlier`: it
            can be replaced without `compile`.
    """
    mechanism.take_over(before)
    if earlier is None:
        return
    if earlier.optimizer is not before:
        mechanism.take_over(earlier.optimizer)
    lost = clip_layers.left_out(earlier.layers, mechanism.layers)
    entries = [entry for layer in lost for entry in layer.ledger_entries]
    if entries:
        mechanism.absorb(entries)


def _adds_no_noise(
    model: keras.Model, optimizer: Any
) -> optimizers.NotPrivateError:
    shown = (
        optimizer if isinstance(optimizer, str) else type(optimizer).__name__
    )
    return optimizers.NotPrivateError(
        f"Model '{model.name}' is private and can't be compiled with "
        f"optimizer={shown!r}, which adds no noise. Use a private optimizer, "
        "for example optimizer=tf_dpfp.DPAdam(...)."
    )


def _suits_xla(optimizer: optimizers.PrivateOptimizer) -> bool:
    """Tells if XLA is left on where Keras itself turns it on."""
    # Private steps are slower with it on CPU, and it compiles for one device.
    per_device = isinstance(optimizer.clipping, clipping.PerDevice)
    return (
        compilation.has_accelerator()
        and not per_device
        and not optimizer.secure
        and optimizer.bands == 1
        and optimizer.sparse_tables is None
    )


def _check_xla(model: keras.Model) -> None:
    """Refuses secure noise in a step that XLA compiles."""
    if model.optimizer.secure and model.jit_compile:
        raise ValueError(
            "With `secure=True` Python draws the bits of the noise, and XLA "
            "can't compile that. Compile the model with jit_compile=False. "
            f"Received: jit_compile={model.jit_compile}"
        )


def leave_loss_unscaled(model: keras.Model) -> None:
    """Takes a private optimizer out of Keras's scaling of the loss.

    With the policy `mixed_float16` Keras wraps what it compiles, ordinary
    models and those from files, in a `LossScaleOptimizer`, which skips the
    steps in which one example overflows. Private steps scale the loss of each
    example.

    Args:
        model: A model, compiled or not.
    """
    outer = getattr(model, "optimizer", None)
    if not isinstance(outer, keras.optimizers.LossScaleOptimizer):
        return
    if isinstance(outer.inner_optimizer, optimizers.PrivateOptimizer):
        model.optimizer = outer.inner_optimizer


def compile_loaded(model: keras.Model, config: dict) -> bool:
    """Restores a loaded model's private optimizer, which holds the ledger.

    Args:
        model: A model with a `compile` of its own.
        config: Result of `get_compile_config`.

    Returns:
        Whether the file holds a private optimizer.

    Raises:
        ValueError: If it does, and the model's `compile` does not take it.
    """
    if not _names_private_optimizer(config.get("optimizer")):
        return False
    arguments = keras.saving.deserialize_keras_object(config)
    try:
        model.compile(**arguments)
    except TypeError as error:
        raise ValueError(
            f"{type(model).__name__} was saved with a private optimizer, "
            "which holds the ledger of what its training released, and can't "
            f"be compiled with it again ({error}). Load it with compile=False: "
            "its ledger is then lost, and adding up is your task."
        ) from error
    leave_loss_unscaled(model)
    # The state that follows in the file holds the ledger.
    building.build_optimizer(model, model.optimizer)
    return True


def _names_private_optimizer(config: Any) -> bool:
    if not isinstance(config, dict):
        return False
    return str(config.get("registered_name")).startswith("tf_dpfp>")


keras_trainer.on_compiling_loaded(compile_loaded, leave_loss_unscaled)
