"""Steps that `fit` itself takes: those on the batches of its data.

While `fit` runs, callbacks and other threads take steps of their own on what
they like, by the same training function. The claim that goes with the data of
`fit` is for the steps of its own loop: for calls of the training function that
come from Keras's loop in the thread, and below the `fit`, that announced it.
"""

import contextlib
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import keras

from tf_dpfp import counting
from tf_dpfp import optimizers
from tf_dpfp import replicas
from tf_dpfp.keras_private import trainer as keras_trainer

if TYPE_CHECKING:
    from tf_dpfp.mechanisms.state import State


def announced(
    state: "State", claims: Mapping[counting.Ledger, counting.Claim]
) -> contextlib.AbstractContextManager[None]:
    """Announces the claims of the steps of a `fit` that begins.

    Args:
        state: State of the model.
        claims: Claim by ledger.

    Returns:
        A context; the announcement ends with it.
    """
    loops = keras_trainer.fit_loops(sys._getframe(1))
    return counting.announced((state, loops + 1), claims)


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
