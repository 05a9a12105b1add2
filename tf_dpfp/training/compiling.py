"""What `compile` of a private model does and Keras's does not."""

from typing import Any

import keras
import tensorflow as tf

from tf_dpfp import clipping
from tf_dpfp import optimizers
from tf_dpfp.keras_private import trainer as keras_trainer
from tf_dpfp.training import preparation
from tf_dpfp.training import representations
from tf_dpfp.training import state as state_lib


def given_optimizer(model, args, kwargs, ordinary):
    """The argument of `compile`; refused before anything is changed."""
    optimizer = state_lib.bound(ordinary, args, kwargs).get("optimizer")
    if not isinstance(optimizer, optimizers.PrivateOptimizer):
        shown = (
            optimizer
            if isinstance(optimizer, str)
            else type(optimizer).__name__
        )
        raise optimizers.NotPrivateError(
            f"Model '{model.name}' is private and can't be compiled with "
            f"optimizer={shown!r}, which adds no noise. Use a private "
            "optimizer, for example optimizer=tf_dpfp.DPAdam(...)."
        )
    return optimizer


def suits_xla(optimizer) -> bool:
    """Whether XLA is left on where Keras itself turns it on."""
    # Private steps are slower with it on CPU, and it compiles for one device.
    per_device = isinstance(optimizer.clipping, clipping.PerDevice)
    return _has_accelerator() and not per_device


def _has_accelerator() -> bool:
    return any(
        device.device_type != "CPU"
        for device in tf.config.list_physical_devices()
    )


def compile_on_representations(model, args, kwargs, before) -> None:
    """`compile` with an ordinary optimizer, above noised representations."""
    state_lib.ordinary(model, "compile")(*args, **kwargs)
    if isinstance(before, optimizers.PrivateOptimizer):
        # What was released under the private optimizer stays released.
        if model.built and before.ledger_entries:
            representations.layers_of(model)[0].absorb_ledger(
                before.ledger_entries
            )
    if model.built and getattr(model, "inputs", None):
        preparation.try_representations(model, representations.inputs_of(model))


def compile_loaded(model: keras.Model, config: dict) -> bool:
    """Gives a loaded model its private optimizer back, for it has the ledger.

    Args:
        model: A model with a `compile` of its own.
        config: As `get_compile_config` returned it.

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
    # The state that follows in the file holds the ledger.
    preparation.build_optimizer(model, model.optimizer)
    return True


def _names_private_optimizer(config: Any) -> bool:
    if not isinstance(config, dict):
        return False
    return str(config.get("registered_name")).startswith("tf_dpfp>")


keras_trainer.on_loading_a_custom_compile(compile_loaded)
