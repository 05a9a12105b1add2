"""What the commands of the examples have in common: flags to settings."""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

from absl import flags

Config = TypeVar("Config")


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
