"""Warnings that point at a line of the user's script."""

import sys
import types
import warnings

# Between a script and what warns.
_LIBRARIES = ("tf_dpfp", "keras", "keras_hub", "tensorflow")
_HELPERS = ("contextlib", "functools")


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warns about what a user wrote, at the line that called the library.

    Args:
        message: What to say.
        category: The kind of warning.
    """
    level = 2
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and _is_inside(frame):
        frame, level = frame.f_back, level + 1
    # A thread of the library's own has no line of a script below it.
    warnings.warn(message, category, stacklevel=2 if frame is None else level)


def _is_inside(frame: types.FrameType) -> bool:
    name = str(frame.f_globals.get("__name__", ""))
    return name.partition(".")[0] in _LIBRARIES or name in _HELPERS
