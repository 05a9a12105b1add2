"""Counters of the names that Keras makes up: `dense`, `dense_1`, and so on.

They go on with everything that is made in a process, and the names are saved
with a model: they tell how much was made before it.
"""

import collections
from collections.abc import Mapping

from keras.src.backend.common import global_state

_COUNTERS = "object_name_uids"


def counters() -> dict[str, int]:
    """Returns the counters of this thread as they are."""
    return dict(global_state.get_global_attribute(_COUNTERS) or {})


def set_counters(counted: Mapping[str, int]) -> None:
    """Sets the counters of this thread.

    Args:
        counted: Result of `counters`.
    """
    found = collections.defaultdict(int, counted)
    global_state.set_global_attribute(_COUNTERS, found)
