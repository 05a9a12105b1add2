"""Names of version 0.1 that moved: they work until version 0.2."""

import importlib
import warnings
from typing import Any

from tf_dpfp.sampling import stratified_batches

_RENAMED = {
    "Adaptive": "clipping.Adaptive",
    "Automatic": "clipping.Automatic",
    "ByFunction": "clipping.ByFunction",
    "ClippedGradients": "loops.ClippedGradients",
    "Clipping": "clipping.Clipping",
    "DebiasedCrossentropy": "representations.DebiasedCrossentropy",
    "GenericRule": "gradient_rules.GenericRule",
    "GradientRule": "gradient_rules.GradientRule",
    "Materialized": "gradient_rules.PerExampleTensor",
    "NotPrivateError": "errors.NotPrivateError",
    "OuterProduct": "gradient_rules.OuterProduct",
    "PerBlock": "clipping.PerBlock",
    "PerDevice": "clipping.PerDevice",
    "Problem": "errors.Problem",
    "RandomizedLabels": "representations.RandomizedLabels",
    "RowGather": "gradient_rules.EmbeddingRows",
    "calibrate": "calibrate_noise_multiplier",
    "calibrate_representation": "representations.calibrate_representation",
    "claimed_epsilon": "accounting.claimed_epsilon",
    "clipped_gradients": "loops.clipped_gradients",
    "dealt_step": "loops.distributed_step",
    "epsilon": "compute_epsilon",
    "is_private": "loops.is_private",
    "microbatch_sampler": "representations.stratified_batches",
    "randomize_labels": "representations.randomize_labels",
    "register_gradient_rule": "gradient_rules.register_gradient_rule",
    "restore": "low_rank.remove_carriers",
    "sampled_steps": "loops.sampled_steps",
    "thresholds": "clip_norms",
}

_REMOVED = {
    "DPModel": "`tf_dpfp.make_private` makes any `keras.Model` private.",
    "DPSequential": "`tf_dpfp.make_private` makes any `keras.Sequential` "
    "private.",
    "RGPConv1D": "`tf_dpfp.reparametrize` takes models with `Conv1D` layers.",
    "RGPConv2D": "`tf_dpfp.reparametrize` takes models with `Conv2D` layers.",
    "RGPEinsumDense": "`tf_dpfp.reparametrize` takes models with `EinsumDense` "
    "layers.",
}


def _microbatch_sampler(
    x: Any, y: Any, *, microbatch_size: int, microbatches: int = 1, **kwargs
) -> Any:
    """Takes the old arguments of `stratified_batches`."""
    return stratified_batches(
        x, y, draw_size=microbatch_size, draws=microbatches, **kwargs
    )


# Where arguments were renamed, too.
_ADAPTED = {"microbatch_sampler": _microbatch_sampler}
_NEW_ARGUMENTS = {"microbatch_sampler": "(draw_size=, draws=)"}


def find(name: str) -> Any:
    """Finds what an old name of the package stands for, with a warning.

    Args:
        name: The name that was looked for in `tf_dpfp`.

    Returns:
        What the new name stands for.

    Raises:
        AttributeError: If there is and was no such name, or it was removed.
    """
    if name in _REMOVED:
        raise AttributeError(
            f"tf_dpfp.{name} was removed. {_REMOVED[name]}", name=name
        )
    if name not in _RENAMED:
        raise AttributeError(
            f"module 'tf_dpfp' has no attribute '{name}'", name=name
        )
    new = f"tf_dpfp.{_RENAMED[name]}"
    arguments = _NEW_ARGUMENTS.get(name, "")
    warnings.warn(
        f"tf_dpfp.{name} is deprecated and goes in version 0.2: use "
        f"{new}{arguments}.",
        DeprecationWarning,
        stacklevel=3,  # Where the name is used.
    )
    if name in _ADAPTED:
        return _ADAPTED[name]
    module, _, attribute = new.rpartition(".")
    return getattr(importlib.import_module(module), attribute)
