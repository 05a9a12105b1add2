"""Steps that `fit` itself takes: those on the batches of its data.

While `fit` runs, callbacks and other threads take steps of their own on what
they like, by the same training function. The claim that goes with the data of
`fit` is for the steps of its own loop: for calls of the training function that
come from Keras's loop in the thread, and below the `fit`, that announced it.
"""

import contextlib
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import keras

from tf_dpfp import counting
from tf_dpfp import optimizers
from tf_dpfp import replicas
from tf_dpfp.keras_private import datasets
from tf_dpfp.keras_private import trainer as keras_trainer

if TYPE_CHECKING:
    from tf_dpfp.mechanisms.state import State


def announced(
    state: "State",
    claims: Mapping[counting.Ledger, counting.Claim],
    data: Any,
) -> contextlib.AbstractContextManager[None]:
    """Announces the claims of the steps of a `fit` that begins.

    Args:
        state: State of the model.
        claims: Claim by ledger.
        data: What the claims are of; `None` if they are of any data.

    Returns:
        A context; the announcement ends with it.
    """
    loops = keras_trainer.fit_loops(sys._getframe(1)) + 1
    return _announced(state, claims, loops, data)


@contextlib.contextmanager
def _announced(
    state: "State",
    claims: Mapping[counting.Ledger, counting.Claim],
    loops: int,
    data: Any,
) -> Iterator[None]:
    before = state.handed
    state.handed = None
    if data is not None:
        state.handed = threading.get_ident(), loops, data
    try:
        with counting.announced((state, loops), claims):
            yield
    finally:
        state.handed = before


def _check_data(
    model: keras.Model, state: "State", loop: types.FrameType, loops: int
) -> None:
    """Refuses steps on other data than the claims of their `fit` are of.

    A class may have a `fit` of its own, which keeps batches, or draws others,
    and hands them on to Keras's. What tasks of KerasHub do to each batch is
    taken for what `map_fn` does.

    Args:
        model: The model.
        state: Its state.
        loop: Frame of Keras's loop.
        loops: Number of loops that it is in, itself included.
    """
    if state.handed is None:
        return
    *of_loop, data = state.handed
    if of_loop != [threading.get_ident(), loops]:
        return
    found = keras_trainer.data_of_loop(loop)
    if found is data or (
        keras_trainer.preprocesses(model)
        and datasets.is_derived_from(found, data)
    ):
        return
    raise ValueError(
        f"{type(model).__name__} has a `fit` of its own, which hands on other "
        "data than the batches that were drawn, and nothing is proved of how "
        "these are drawn. Change examples by `map_fn` of `poisson_batches`, "
        "give that `fit` the arrays, or write a custom loop. Received: "
        f"x of type {type(found)}"
    )


def with_claims(
    model: keras.Model, state: "State", train_function: Callable[..., Any]
) -> Callable[..., Any]:
    """Makes a training function whose calls by `fit` have the claim of `fit`.

    Args:
        model: A private model.
        state: Its state.
        train_function: Function that takes a step, or several, on the next
            batches of an iterator.

    Returns:
        The function.
    """
    strategy = model.distribute_strategy

    def check_dealt() -> None:
        # Here, too: a function that was traced for dealt batches takes others.
        if state.dealt_to == 1 and replicas.deals(strategy):
            with strategy.scope():
                optimizers.check_dealt(1)

    def take_steps(iterator: Any) -> Any:
        caller = sys._getframe(1)
        if not keras_trainer.is_fit_loop(caller):
            check_dealt()
            return train_function(iterator)
        loops = keras_trainer.fit_loops(caller)
        _check_data(model, state, caller, loops)
        owner = state, loops
        passed: contextlib.AbstractContextManager[None]
        passed = contextlib.nullcontext()
        if model.run_eagerly:
            passed = counting.passed_to_replicas()
        with counting.on_drawn_batch(owner), passed, state.dealing(loops):
            check_dealt()
            if state.data_may_end:
                return train_function([replicas.next_of(iterator)])
            return train_function(iterator)

    return take_steps
