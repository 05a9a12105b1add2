"""Warnings that point at a line of the user's script."""

import contextlib
import sys
import threading
import types
import warnings
from collections.abc import Iterator

# Between a script and what warns.
_LIBRARIES = ("tf_dpfp", "keras", "keras_hub", "tensorflow")
_HELPERS = ("contextlib", "functools", "concurrent.futures.thread", "threading")
_OF_THREAD = threading.local()


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warns about what a user wrote, at the line that called the library.

    Args:
        message: What to say.
        category: The kind of warning.
    """
    frame = script_frame()
    if frame is None:
        warnings.warn(message, category, stacklevel=2)
        return
    names = frame.f_globals
    warnings.warn_explicit(
        message,
        category,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=names.get("__name__"),
        registry=names.setdefault("__warningregistry__", {}),
    )


def script_frame() -> types.FrameType | None:
    """Returns the frame of the script; `None` if nothing is known of one."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and _is_inside(frame):
        frame = frame.f_back
    # A thread of the library's own has no line of a script below it.
    return frame or getattr(_OF_THREAD, "frame", None)


@contextlib.contextmanager
def on_behalf_of(frame: types.FrameType | None) -> Iterator[None]:
    """Lets a thread of the library warn at the line that another came from.

    Args:
        frame: Result of `script_frame` in the thread that waits for this one.
    """
    _OF_THREAD.frame = frame
    try:
        yield
    finally:
        _OF_THREAD.frame = None


def _is_inside(frame: types.FrameType) -> bool:
    name = str(frame.f_globals.get("__name__", ""))
    return name.partition(".")[0] in _LIBRARIES or name in _HELPERS
