"""Private training of a Keras model, in place.

`make_private` binds to one model the methods of `keras.Model` that private
training changes; the model's class stays what it was. Each method hands over to
the mechanism of the model (`mechanisms`).
"""

import types
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tf_dpfp import compilation
from tf_dpfp import evaluation
from tf_dpfp import mechanisms
from tf_dpfp import optimizers
from tf_dpfp import replicas
from tf_dpfp import validation
from tf_dpfp.independence import representations as trial
from tf_dpfp.mechanisms import building
from tf_dpfp.mechanisms import clip_layers
from tf_dpfp.mechanisms import fit_steps
from tf_dpfp.mechanisms import ordinary_steps
from tf_dpfp.mechanisms import state as state_lib
from tf_dpfp.mechanisms import trained_apart
from tf_dpfp.sampling import lengths
from tf_dpfp.sampling import pipelines
from tf_dpfp.training import calibrating
from tf_dpfp.training import callbacks as callbacks_lib
from tf_dpfp.training import compiling
from tf_dpfp.training import explained
from tf_dpfp.training import fallback


def _compile(self, *args, **kwargs) -> None:
    """Compiles as `keras.Model.compile`, for private optimizers only.

    With a `DPRepresentationClip` in the model, ordinary ones are taken as
    well: they train what is above it, private ones what is below, too.
    """
    compiling.compile_private(self, args, kwargs)


def _fit(self, *args, **kwargs) -> keras.callbacks.History:
    """Trains as `keras.Model.fit`, and counts how batches are drawn."""
    mechanism = _compiled_mechanism(self)
    ordinary = state_lib.ordinary(self, "fit")
    arguments = state_lib.bound(ordinary, args, kwargs)
    explained.check_split(arguments)
    given = arguments.get("callbacks")
    budgets = callbacks_lib.budgets_of(given)
    if budgets or evaluation.evaluations_of(given):
        in_epoch = None
        if lengths.is_cut_off(arguments):
            in_epoch = lengths.batches_of(arguments)
        callbacks = callbacks_lib.arranged(given, in_epoch)
        args, kwargs = state_lib.replaced(
            ordinary, args, kwargs, callbacks=callbacks
        )

    def calibrate(found, pipeline, arguments) -> None:
        planned = evaluation.planned(given, arguments)
        calibrating.calibrate(found, pipeline, arguments, budgets, planned)

    try:
        with explained.explained(self, arguments):
            return mechanism.fit(args, kwargs, calibrate)
    except calibrating.BudgetReachedError as reached:
        print(reached, flush=True)
        return callbacks_lib.empty_history(self)
    finally:
        state = state_lib.state_of(self)
        state.averaging = state.averages = None
        for budget in budgets:
            budget.on_train_end()  # Keras doesn't call it after an exception.


def _train_on_batch(self, *args, **kwargs) -> Any:
    """Trains as `keras.Model.train_on_batch`, without amplification."""
    return _compiled_mechanism(self).train_on_batch(args, kwargs)


def _evaluate(self, *args, **kwargs) -> Any:
    """Evaluates as `keras.Model.evaluate`, on batches of examples."""
    pipelines.refuse_persons(
        args[0] if args else kwargs.get("x"),
        "`evaluate`, and the validation of `fit`, take batches of examples. "
        "Pass the arrays, or a data set of their examples.",
    )
    return state_lib.ordinary(self, "evaluate")(*args, **kwargs)


def _compiled_mechanism(model: keras.Model) -> mechanisms.Mechanism:
    """Returns the mechanism of a model that is about to be trained."""
    if not getattr(model, "compiled", False):
        raise ValueError(
            f"Model '{model.name}' is not compiled. Call model.compile("
            "optimizer=tf_dpfp.DPAdam(...), loss=...) first."
        )
    state_lib.state_of(model).has_released = True
    return mechanisms.mechanism_of(model)


def _train_step(self, data: Any) -> dict[str, Any]:
    """Takes one private step; see `mechanisms`."""
    # A step that is called by hand, eagerly, runs kernels.
    under_xla = bool(self.jit_compile) and not tf.executing_eagerly()
    under_xla |= replicas.compiles(tf.distribute.get_strategy())
    target = compilation.Target.XLA if under_xla else compilation.Target.KERNELS
    with compilation.tracing_for(target):
        return mechanisms.mechanism_of(self).train_step(data)


def _make_train_function(self, force: bool = False) -> Any:
    """Makes Keras's training function, whose steps in `fit` have its claim."""
    before = None if force else self.train_function
    made = state_lib.ordinary(self, "make_train_function")(force)
    if self.train_function is not None and self.train_function is not before:
        self.train_function = fit_steps.with_claims(
            self,
            state_lib.state_of(self),
            fallback.guarded(self, self.train_function),
        )
    return made


_METHODS: dict[str, Callable[..., Any]] = {
    "compile": _compile,
    "evaluate": _evaluate,
    "fit": _fit,
    "make_train_function": _make_train_function,
    "train_on_batch": _train_on_batch,
    "train_step": _train_step,
}


def make_private(model: keras.Model) -> keras.Model:
    """Makes a Keras model train with differential privacy, in place.

    The model keeps its class, its weights, its `evaluate`, `predict` and
    `save`; a saved file loads as the ordinary model it was. Compile it with a
    private optimizer afterwards; or with an ordinary one, if it has a
    `DPRepresentationClip`: then the model is only checked and its batches
    accounted for.

    Example:

    ```python
    tf_dpfp.make_private(model)
    model.compile(
        optimizer=tf_dpfp.DPAdam(1e-3, l2_norm_clip=1.0, noise_multiplier=1.1),
        loss="sparse_categorical_crossentropy",
    )
    model.fit(tf_dpfp.poisson_batches(x, y, expected_batch_size=256))
    ```

    A model that is private already stays as it is.

    Warns of a model that an ordinary optimizer trained before: no epsilon
    counts its steps.

    Args:
        model: A Keras model: functional, sequential, subclassed or a KerasHub
            task, built or not.

    Returns:
        The same model.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If the model has a training step of its own, or holds
            layers that can't be trained privately; the message lists every
            problem and the way out.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"`make_private` takes a keras.Model. Received: {model!r}"
        )
    if state_lib.is_private(model):
        return model
    validation.raise_if_invalid(model)
    findings = None
    inputs = clip_layers.inputs_of(model)
    if clip_layers.layers_of(model) and inputs is not None:
        findings = trial.raise_if_unprotected(model, inputs)
    state = state_lib.make_state(model)
    state.findings = findings
    state.ordinary_steps = ordinary_steps.ordinary_steps(model)
    ordinary_steps.warn_of(model, state.ordinary_steps)
    trained_apart.remember(model)
    trained_apart.warn_of(model)
    state.tried_with = clip_layers.trained_layers(model)
    for name, function in _METHODS.items():
        object.__setattr__(model, name, types.MethodType(function, model))
    # A step that was compiled before is an ordinary one.
    model.train_function = None
    compiling.leave_loss_unscaled(model)
    optimizer = getattr(model, "optimizer", None)
    if isinstance(optimizer, optimizers.PrivateOptimizer):
        building.check_same_model(model, optimizer)
        # Remembered from here on, for the optimizer holds the ledger.
        mechanisms.mechanism_of(model)
    return model
