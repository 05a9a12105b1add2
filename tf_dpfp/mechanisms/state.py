"""State of a private model, and the methods it has as an ordinary one."""

import contextlib
import inspect
import threading
import types
from collections.abc import Callable, Hashable, Iterator
from typing import TYPE_CHECKING, Any

import keras

from tf_dpfp import optimizers
from tf_dpfp.independence.findings import Finding
from tf_dpfp.independence.representations import Findings

if TYPE_CHECKING:
    from tf_dpfp.mechanisms.mechanism import Mechanism

_STATE = "_tf_dpfp_state"


class State:
    """Memory of a private model; neither tracked nor saved by Keras.

    Attributes:
        mechanism: The mechanism chosen in `compile`; `None` before.
        loss: One loss per example, made of the compiled loss; `None` before
            the first step.
        tried_for: Weights, layers and settings for which the per-example
            gradients passed their trial; `None` before.
        traces: What is not proved of traces that never run, by the settings of
            the model and the kind of the batch.
        eager_passes: Functions of steps that run eagerly, by the settings of
            the model, then by the kinds of the batch and of the plan.
        evaluations: Functions of private evaluations, by the settings of the
            model and what they compute.
        findings: Result of the trial of a model with noised representations.
        tried_with: Trainability of all layers at that trial.
        populations: Numbers of examples of all data sets so far.
        has_released: True once it was trained or evaluated here; what came
            from a file was not.
        taken_before: Steps of ordinary optimizers before this one, and of this
            one before it was compiled into the model (second number).
        uncounted: Greatest number of steps so far that no layer with noised
            representations counted.
        dealt_to: Number of replicas that the batch of the step that is taken
            was dealt to; 1 outside of steps.
        fit_deals_to: The number for steps of the loop of `fit`.
        fit_deals_in: Thread of that loop, and number of loops that it is in,
            itself included.
        handed: What the `fit` that runs was given to draw from, with thread and
            number of loops as above.
        data_may_end: True while `fit` deals batches that Python makes.
        ordinary_steps: Number of ordinary steps that the model showed when it
            was made private.
        xla_by_default: True if XLA was not asked for in `compile`.
        compiles_pieces: True if XLA compiles what each replica computes of its
            piece of a batch, or one device with sparse tables of the whole,
            and not the step.
        ordinary_inside: Those among them of models inside of it.
        averaging: Callback of this `fit` that averages the weights, if any.
        averages: State of averages that a backup brought, for it.
        backups: Callbacks that note steps in a journal, by its place; those of
            a `fit` that an exception ended, too, whoever else forgets them.
        traced_releases: Steps of the replicas that are being traced, until all
            of them are.
        joined_for: Sums of persons or of views that the last `fit` was for.
    """

    def __init__(self) -> None:
        self.mechanism: Mechanism | None = None
        self.loss: Any = None
        self.tried_for: tuple[Hashable, ...] | None = None
        self.traces: dict[Hashable, tuple[Finding, ...]] = {}
        self.eager_passes: dict[Hashable, dict[Hashable, Callable]] = {}
        self.evaluations: dict[Hashable, Callable] = {}
        self.findings: Findings | None = None
        self.tried_with: tuple[bool, ...] = ()
        self.populations: set[int] = set()
        self.has_released = False
        self.taken_before = (0, 0)
        self.uncounted = 0
        self.dealt_to = 1
        self.fit_deals_to = 1
        self.fit_deals_in: tuple[int, int] | None = None
        self.handed: tuple[int, int, Any] | None = None
        self.data_may_end = False
        self.ordinary_steps = 0
        self.xla_by_default = False
        self.compiles_pieces = False
        self.ordinary_inside = 0
        self.averaging: Any = None
        self.averages: Any = None
        self.backups: dict[Hashable, Any] = {}
        self.traced_releases: list[Any] = []
        self.joined_for: Any = None

    @contextlib.contextmanager
    def dealing(self, loops: int = 0) -> Iterator[None]:
        """Says that the step inside is one of a loop of `fit`.

        Args:
            loops: Number of loops that this one is in, itself included: one
                that a callback runs by itself has batches that nobody dealt.
        """
        is_dealt = self.fit_deals_in == (threading.get_ident(), loops)
        before = self.dealt_to
        self.dealt_to = self.fit_deals_to if is_dealt else 1
        try:
            yield
        finally:
            self.dealt_to = before


def averaged(
    model: keras.Model,
) -> contextlib.AbstractContextManager[None]:
    """Opens a context in which a model has its averaged weights, if any.

    Args:
        model: A private model.
    """
    averaging = state_of(model).averaging
    return averaging.averaged() if averaging else contextlib.nullcontext()


def live(model: keras.Model) -> contextlib.AbstractContextManager[None]:
    """Opens a context in which a model has the weights of its training.

    Args:
        model: A private model.
    """
    averaging = state_of(model).averaging
    return averaging.live() if averaging else contextlib.nullcontext()


def is_private(model: keras.Model) -> bool:
    """Tells a model that trains privately."""
    return hasattr(model, _STATE)


def make_state(model: keras.Model) -> State:
    """Marks a model as private.

    Args:
        model: A model that is not private.

    Returns:
        Its new state.
    """
    state = State()
    # Past Keras, which would track it.
    object.__setattr__(model, _STATE, state)
    return state


def state_of(model: keras.Model) -> State:
    """Returns the state of a private model.

    Args:
        model: A model.

    Returns:
        Its state.

    Raises:
        NotPrivateError: If the model was not made private.
        TypeError: If it is no model.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"The first argument is a private model. Received: model={model!r}"
        )
    if not is_private(model):
        raise optimizers.NotPrivateError(
            f"Model '{model.name}' is not private. Call "
            "tf_dpfp.make_private(model) first."
        )
    return getattr(model, _STATE)


def ordinary(model: keras.Model, name: str) -> types.MethodType:
    """Returns a method of the model's class, past the private one.

    Args:
        model: A model.
        name: Name of the method.

    Returns:
        The method, bound to the model.
    """
    return types.MethodType(getattr(type(model), name), model)


def replaced(
    method, args: tuple, kwargs: dict, **changes: Any
) -> tuple[tuple, dict]:
    """Replaces some arguments of a call.

    Args:
        method: The method.
        args: Positional arguments.
        kwargs: Keyword arguments.
        **changes: New values, by the names of the arguments.

    Returns:
        The positional and the keyword arguments.
    """
    signature, args, kwargs = _named(method, args, kwargs)
    found = signature.bind(*args, **kwargs)
    rest = _rest(signature)
    for name, value in changes.items():
        if name in signature.parameters or rest is None:
            found.arguments[name] = value
        else:
            others = found.arguments.get(rest, {})
            found.arguments[rest] = {**others, name: value}
    return found.args, found.kwargs


def bound(method, args: tuple, kwargs: dict) -> dict[str, Any]:
    """Names the arguments of a call, defaults included.

    A model's own method may hand on what it does not name, as those of
    KerasHub's tasks do: such arguments are those of Keras's method.

    Args:
        method: The method.
        args: Positional arguments.
        kwargs: Keyword arguments.

    Returns:
        From names to arguments.
    """
    signature, args, kwargs = _named(method, args, kwargs)
    found = signature.bind(*args, **kwargs)
    found.apply_defaults()
    rest = _rest(signature)
    if rest is None:
        return found.arguments
    handed_on = found.arguments.pop(rest)
    defaults = {
        name: parameter.default
        for name, parameter in _of_keras(method).parameters.items()
        if parameter.default is not parameter.empty
    }
    return {**defaults, **found.arguments, **handed_on}


def _named(
    method, args: tuple, kwargs: dict
) -> tuple[inspect.Signature, tuple, dict]:
    """Names positional arguments that a method hands on as `*args`."""
    signature = inspect.signature(method)
    parameters = signature.parameters.values()
    if all(p.kind is not p.VAR_POSITIONAL for p in parameters):
        return signature, args, kwargs
    named = _of_keras(method).bind(*args, **kwargs).arguments
    return signature, (), dict(named)


def _of_keras(method) -> inspect.Signature:
    """Returns the signature of Keras's method in the place of a method."""
    model = method.__self__
    # Not its name: a decorator may have given it another one.
    name = next(
        name
        for name in ("fit", "train_on_batch", "compile")
        if getattr(type(model), name) is method.__func__
    )
    return inspect.signature(
        types.MethodType(getattr(keras.Model, name), model)
    )


def _rest(signature: inspect.Signature) -> str | None:
    """Returns the name of the parameter that takes all other arguments."""
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            return name
    return None
