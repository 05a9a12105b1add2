"""Placement of the operations of a group."""

import contextlib

import tensorflow as tf


def on(device: str | None) -> contextlib.AbstractContextManager:
    """Places the operations made inside.

    Args:
        device: A device's name; `None` leaves the placement as it is.

    Returns:
        A context manager.
    """
    # `tf.device(None)` would undo a placement around it.
    return contextlib.nullcontext() if device is None else tf.device(device)
