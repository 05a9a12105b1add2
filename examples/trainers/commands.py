"""Flags that the trainers share, and the way from flags to settings."""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

from absl import flags

from examples.trainers import clippings

Config = TypeVar("Config")


def define_shared_flags(default: Any) -> None:
    """Defines the flags of private training, for every trainer the same.

    Args:
        default: The settings to take defaults from: an object with an
            attribute for each flag.
    """
    flags.DEFINE_float(
        "epsilon",
        default.epsilon,
        "The budget; the noise follows. Without one, the trainer's own.",
    )
    flags.DEFINE_float("delta", default.delta, "Delta of the guarantee.")
    flags.DEFINE_float("l2_norm_clip", default.l2_norm_clip, "Clip norm.")
    flags.DEFINE_integer(
        "batch_size",
        default.batch_size,
        "Expected size of a Poisson batch. Without one, the trainer's own.",
    )
    flags.DEFINE_integer(
        "epochs",
        default.epochs,
        "Passes over the data. Without a number, the trainer's own.",
    )
    flags.DEFINE_float(
        "learning_rate",
        default.learning_rate,
        "Of the optimizer. Without one, the trainer's own.",
    )


def define_run_flags(default: Any) -> None:
    """Defines the flags of trainers that save what they train.

    Args:
        default: As for `define_shared_flags`.
    """
    flags.DEFINE_enum(
        "clipping",
        default.clipping,
        list(clippings.CLIPPINGS),
        "What is clipped, and at which thresholds.",
    )
    flags.DEFINE_integer(
        "microbatch_size",
        default.microbatch_size,
        "Physical batch; bounds memory.",
    )
    define_outcome_flags(default)


def define_outcome_flags(default: Any) -> None:
    """Defines the flags of where results come from and go to.

    Args:
        default: As for `define_shared_flags`.
    """
    flags.DEFINE_integer(
        "seed",
        default.seed,
        "Repeats a run; not for a model that is released.",
    )
    flags.DEFINE_string(
        "output_dir", default.output_dir, "Where the results go."
    )
    flags.DEFINE_integer(
        "held_out",
        default.held_out,
        "Test on so many of the training examples, to choose settings by.",
    )


def read_flags(argv: Sequence[str], config_class: type[Config]) -> Config:
    """Makes the settings of a command from its flags.

    Args:
        argv: The command line, flags taken out.
        config_class: A dataclass with one field for each flag.

    Returns:
        The settings.

    Raises:
        ValueError: If something on the command line is no flag, or the
            settings make no sense.
    """
    if len(argv) > 1:
        raise ValueError(f"Not a flag: {argv[1]!r}.")
    names = [field.name for field in dataclasses.fields(config_class)]
    return config_class(**{name: flags.FLAGS[name].value for name in names})


def check_at_least_one(config, names: Sequence[str]) -> None:
    """Raises `ValueError` if one of some counts is below 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(
                f"--{name} must be at least 1. Received: "
                f"{getattr(config, name)}."
            )


def check_clip_norm(config) -> None:
    """Raises `ValueError` unless the clip norm is above 0."""
    if not config.l2_norm_clip > 0.0:
        raise ValueError(
            f"--l2_norm_clip must be above 0. Received: {config.l2_norm_clip}."
        )
