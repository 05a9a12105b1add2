"""Workarounds for faults of Keras's `fit` under `tf.distribute`.

Each function stands for one thing; the tests beside it fail when Keras mends
it, and then it can go.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf
from keras.src.losses import loss as loss_lib


@contextlib.contextmanager
def _instead(model: keras.Model, name: str, function: Callable):
    """Another method on one model, past Keras's tracking of attributes."""
    before = vars(model).get(name)
    object.__setattr__(model, name, function)
    try:
        yield
    finally:
        if before is None:
            object.__delattr__(model, name)
        else:
            object.__setattr__(model, name, before)


def strategy_of(model: keras.Model) -> tf.distribute.Strategy | None:
    """Returns the strategy that a model was made under, or `None`."""
    return model._distribute_strategy


def initial_epoch(model: keras.Model) -> int:
    """Returns the epoch that a callback restored; 0 if none did."""
    return model._initial_epoch


def symbolic_build(model: keras.Model, batch: Any) -> None:
    """Builds a model and its metrics from the shapes of a batch.

    Args:
        model: A compiled model.
        batch: `(x, y, sample_weight)`, of anything with shapes and types.
    """
    model._symbolic_build(data_batch=batch)


def without_symbolic_build(
    model: keras.Model,
) -> contextlib.AbstractContextManager[None]:
    """Keeps `fit` and `evaluate` from building a model once more.

    Before the first step they would average the batches of all replicas, which
    fails where the batches differ in size, and on several workers.
    """
    return _instead(
        model, "_maybe_symbolic_build", lambda *_args, **_kwargs: None
    )


def logs_of_all(model: keras.Model, as_dict: bool) -> Any:
    """Returns the logs of all replicas, in the form of `train_on_batch`.

    Which takes the mean of what each replica has, however many examples that
    is.

    Args:
        model: A model after a step.
        as_dict: Its argument `return_dict`.

    Returns:
        The logs.
    """
    logs = {name: float(v) for name, v in model.get_metrics_result().items()}
    return logs if as_dict else model._flatten_metrics_in_order(logs)


@contextlib.contextmanager
def reducible_logs(model: keras.Model) -> Iterator[None]:
    """Lets logs be averaged over several workers, over an axis of their own.

    Keras averages the scalars that a step returns over their first axis.
    """

    def with_axis(step: Callable) -> Callable:
        def run(data: Any) -> dict:
            return keras.tree.map_structure(
                lambda log: tf.reshape(log, [1]), step(data)
            )

        return run

    def forget_steps() -> None:
        # What was traced has logs of the other kind.
        model.train_function = model.test_function = None

    forget_steps()
    with (
        _instead(model, "train_step", with_axis(model.train_step)),
        _instead(model, "test_step", with_axis(model.test_step)),
    ):
        try:
            yield
        finally:
            forget_steps()


class _Losses(threading.local):
    """How the losses of Keras are reduced in this thread."""

    are_whole: bool = False
    share: tf.Tensor | None = None


_LOSSES = _Losses()


@contextlib.contextmanager
def whole_losses() -> Iterator[None]:
    """Leaves losses of this thread as they are on one replica.

    On several replicas Keras divides what a `keras.losses.Loss` returns by
    their number, for gradients that are added up over replicas. The loss of
    one example belongs to one replica, and is whole.
    """
    before, _LOSSES.are_whole = _LOSSES.are_whole, True
    try:
        yield
    finally:
        _LOSSES.are_whole = before


@contextlib.contextmanager
def mean_of_pieces(share: tf.Tensor) -> Iterator[None]:
    """Makes the losses of this thread those of a piece of a batch.

    Keras takes the mean over replicas of each one's mean, also where one has
    more examples than another, or none.

    Args:
        share: Share of the batch's examples that this replica has.
    """
    before, _LOSSES.share = _LOSSES.share, share
    try:
        yield
    finally:
        _LOSSES.share = before


def _replace(name: str, of_share: Callable[[Any, Any], Any]) -> None:
    """Replaces how Keras scales losses on several replicas."""
    ordinary = getattr(loss_lib, name)

    @functools.wraps(ordinary)
    def scale(value):
        if _LOSSES.are_whole:
            return value
        if _LOSSES.share is None:
            return ordinary(value)
        return of_share(value, tf.cast(_LOSSES.share, value.dtype))

    setattr(loss_lib, name, scale)


def _whole(value, share):
    # The mean over no example is no number.
    return tf.where(share > 0, value / share, tf.zeros_like(value))


_replace("scale_loss_for_distribution", lambda value, share: value * share)
_replace("unscale_loss_for_distribution", _whole)
