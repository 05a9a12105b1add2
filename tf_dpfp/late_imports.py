"""Modules imported at their first use: what counts privacy, not what trains.

dp_accounting and SciPy's statistics take three quarters of a second to import,
which a script that builds a model should not wait for.
"""

import importlib
import types
import typing


class _LateModule(types.ModuleType):
    """Stands for a module until one of its names is asked for."""

    def __getattr__(self, name: str) -> typing.Any:
        return getattr(importlib.import_module(self.__name__), name)


if typing.TYPE_CHECKING:
    import dp_accounting
    from dp_accounting import pld
    from dp_accounting import rdp
    from scipy import optimize
    from scipy import signal
    from scipy import special
    from scipy import stats
else:
    dp_accounting = _LateModule("dp_accounting")
    pld = _LateModule("dp_accounting.pld")
    rdp = _LateModule("dp_accounting.rdp")
    optimize = _LateModule("scipy.optimize")
    signal = _LateModule("scipy.signal")
    special = _LateModule("scipy.special")
    stats = _LateModule("scipy.stats")

__all__ = [
    "dp_accounting",
    "optimize",
    "pld",
    "rdp",
    "signal",
    "special",
    "stats",
]
