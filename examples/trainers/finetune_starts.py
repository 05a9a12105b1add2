"""What a fine-tuning leaves in a folder, and the next one may start from."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Sequence

import keras
import numpy as np

from examples.trainers import finetune_config

_HISTORY = "trained_on.json"
_PREFIX = "prefix.npz"


def folders(start: str | None) -> list[pathlib.Path]:
    """The folders to start from."""
    if start in (None, finetune_config.PROMPTS):
        return []
    return [folder_of(name) for name in start.split(",")]


def trained_on(start: str | None) -> set[str]:
    """The data sets that a start has seen.

    Raises:
        ValueError: If a folder does not say.
    """
    seen = set()
    for folder in folders(start):
        path = folder / _HISTORY
        try:
            seen.update(json.loads(path.read_text()))
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(
                "--start must be a folder that an earlier training wrote: what "
                f"it was trained on can't be read from {path} ({error})."
            ) from error
    return seen


def check(config: finetune_config.Config) -> None:
    """Raises if the guarantee would leave out what the start has released.

    Raises:
        ValueError: If the start saw the same data, or is an encoder with a
            prefix, without which its head does not work.
    """
    seen = trained_on(config.start)
    for folder in folders(config.start):
        if (folder / _PREFIX).exists():
            raise ValueError(
                "--start takes encoders without a prefix: a head that learned "
                "above a prefix does not fit without it. Received: "
                f"--start={config.start}."
            )
    if config.private and config.dataset in seen:
        raise ValueError(
            f"--start={config.start} saw {', '.join(sorted(seen))}: the "
            f"epsilon of a second training on {config.dataset} would leave out "
            "the first. Start from a training on other, public data."
        )


def means(weights: Iterable[Sequence]) -> list[np.ndarray]:
    """The mean of every weight over several models of the same kind.

    Reference:
        Wortsman et al., "Model soups: averaging weights of multiple
        fine-tuned models improves accuracy without increasing inference time",
        ICML 2022, arXiv 2203.05482.
    """
    return [np.mean(each, axis=0) for each in zip(*weights, strict=True)]


def saved_head(folder: pathlib.Path, features: int) -> Sequence[np.ndarray]:
    """Kernel and bias of a head that an earlier training wrote."""
    saved = np.load(folder / "head.npz")
    kernel = saved["kernel"]
    # Levels that it did not look at come before those that it did.
    missing = features - kernel.shape[0]
    return np.pad(kernel, ((missing, 0), (0, 0))), saved["bias"]


def folder_of(name: str) -> pathlib.Path:
    """A folder that a flag names, `~` understood."""
    return pathlib.Path(name).expanduser()


def write(
    config: finetune_config.Config,
    backbone: keras.Model,
    head: tuple[np.ndarray, np.ndarray],
    statement: str,
    prefix: np.ndarray | None = None,
) -> None:
    """Leaves what needs no tf_dpfp to be loaded: a preset, and a head.

    Args:
        config: The settings, which name the folder.
        backbone: The encoder.
        head: Kernel and bias from vectors to logits.
        statement: The privacy statement.
        prefix: Vectors in front of the tokens, if there are any.
    """
    folder = folder_of(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    backbone.save_to_preset(str(folder / "backbone"))
    kernel, bias = head
    np.savez(folder / "head.npz", kernel=kernel, bias=bias)
    (folder / _PREFIX).unlink(missing_ok=True)
    if prefix is not None:
        np.savez(folder / _PREFIX, vectors=prefix, blocks=config.blocks or 0)
    (folder / "privacy_statement.txt").write_text(statement)
    seen = trained_on(config.start) | {config.dataset}
    (folder / _HISTORY).write_text(json.dumps(sorted(seen)))
