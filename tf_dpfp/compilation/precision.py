"""Products of float32 numbers that are accurate to float32.

Norms are computed in another way than the sums that they bound. The slack
between the two is for the rounding of float32, of 24 bits. TF32 has 11 and
bfloat16 has 8: a sum may then be longer than the norm that it was clipped by.
"""

import functools
import os

import tensorflow as tf

from tf_dpfp import user_warnings

# Modes in which oneDNN computes float32 products more coarsely, on CPUs.
_ONEDNN_MODES = ("ONEDNN_DEFAULT_FPMATH_MODE", "TF_SET_ONEDNN_FPMATH_MODE")
_ACCURATE = ("", "STRICT", "FP32")


@functools.cache
def has_accelerator() -> bool:
    """Tells if TensorFlow sees any device but CPUs."""
    return any(
        device.device_type != "CPU"
        for device in tf.config.list_physical_devices()
    )


def keep_float32_products() -> None:
    """Switches TF32 off where there is an accelerator, with a warning.

    Kernels read the setting when they are launched, and XLA when it compiles;
    it then asks for products of the highest precision, on TPUs as well. So
    this is for every call of a step, before the step runs.
    """
    enabled = tf.config.experimental.tensor_float_32_execution_enabled
    if not enabled() or not has_accelerator():
        return
    tf.config.experimental.enable_tensor_float_32_execution(False)
    user_warnings.warn(
        "TF32 was switched off in this process (tf.config.experimental."
        "enable_tensor_float_32_execution(False)): with its products a clipped "
        "gradient may be longer than the clip norm.",
    )


def refuse_coarse_products() -> None:
    """Refuses settings with coarse products that can't be taken back.

    Raises:
        RuntimeError: If oneDNN, or TensorFlow's rewriting of graphs, is set to
            compute float32 products in a shorter format.
    """
    for name in _ONEDNN_MODES:
        if os.environ.get(name, "").upper() not in _ACCURATE:
            raise RuntimeError(
                "oneDNN is set to compute products of float32 numbers in a "
                "shorter format, in which a clipped gradient may be longer "
                "than the clip norm. Unset the variable and start again. "
                f"Received: {name}={os.environ[name]!r}"
            )
    options = tf.config.optimizer.get_experimental_options()
    coarse = [n for n, on in options.items() if "mixed_precision" in n and on]
    if coarse:
        raise RuntimeError(
            "TensorFlow is set to rewrite float32 products in a shorter "
            "format, in which a clipped gradient may be longer than the clip "
            "norm. Switch that off, and use a dtype policy of Keras (mixed_"
            "bfloat16) instead. Received: tf.config.optimizer options "
            f"{coarse}"
        )
