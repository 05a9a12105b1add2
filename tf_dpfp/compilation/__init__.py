"""How the code that is being traced will run.

Some operations are fast in TensorFlow's own kernels and missing in XLA, or
the other way round, and a traced function can't see which of the two it is
traced for. The training step knows and says so here; code that picks between
two equal formulas asks. Where nobody said anything, what runs in both is
chosen.
"""

import contextlib
import enum
import threading
from collections.abc import Iterator

from tf_dpfp.compilation.precision import has_accelerator
from tf_dpfp.compilation.precision import keep_float32_products
from tf_dpfp.compilation.precision import refuse_coarse_products

__all__ = [
    "Target",
    "has_accelerator",
    "keep_float32_products",
    "refuse_coarse_products",
    "target",
    "tracing_for",
]


class Target(enum.Enum):
    """What the code being traced is traced for."""

    UNKNOWN = "unknown"
    KERNELS = "kernels"
    XLA = "xla"


class _Current(threading.local):
    target = Target.UNKNOWN


_CURRENT = _Current()


def target() -> Target:
    """What this thread traces for."""
    return _CURRENT.target


@contextlib.contextmanager
def tracing_for(new: Target) -> Iterator[None]:
    """Says what the code inside is traced for.

    Args:
        new: The target.
    """
    before, _CURRENT.target = _CURRENT.target, new
    try:
        yield
    finally:
        _CURRENT.target = before
