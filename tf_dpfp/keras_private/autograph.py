"""AutoGraph: for the functions of users, not for the library's own.

`tf.data` and `tf.function` rewrite Python functions so that `if` and `while` on
tensors work. The library has none of these in what it hands to `tf.data`, and
rewriting takes a good part of the first step. So its functions are marked with
`tf.autograph.experimental.do_not_convert`, which holds for all that they call:
a function of a user must be converted in spite of that.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.python.autograph.core import ag_ctx


def of_user(function: Callable[..., Any]) -> Callable[..., Any]:
    """Converts a function as where it is handed over, not where it is called.

    Args:
        function: Function of a user, which may have `if` and `while` on
            tensors.

    Returns:
        The function for calls within functions that are not converted. It is
        as it was if it is handed over within such a function, or marked as one.
    """
    context = ag_ctx.control_status_ctx()
    if context.status == ag_ctx.Status.UNSPECIFIED:
        # Elsewhere it would mean: as the caller.
        context = ag_ctx.ControlStatusCtx(ag_ctx.Status.ENABLED)
    return tf.__internal__.autograph.tf_convert(function, context)
