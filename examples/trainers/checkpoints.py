"""Checkpoints that a kill at any moment leaves whole.

A checkpoint is a folder that appears under its name only once everything in
it is written: the weights, the optimizer's state with the privacy ledger, and
the history of the training so far.
"""

import csv
import dataclasses
import os
import pathlib
import shutil
from collections.abc import Sequence

import keras
import numpy as np

import tf_dpfp

_FOLDER = "epoch-{:05d}"
_STATE = "training.weights.h5"
_HISTORY = "history.csv"
_AVERAGES = "averages.npz"
_KEPT = 2

Row = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A state of a training at the end of an epoch.

    Attributes:
        path: Its folder.
        epoch: Number of epochs done.
        history: One row of logs for each of them.
    """

    path: pathlib.Path
    epoch: int
    history: tuple[Row, ...]

    def restore(self, model: keras.Model) -> None:
        """Loads weights, optimizer state and privacy ledger into a model.

        Args:
            model: The model as it was when it was saved, compiled alike.
        """
        # Keras skips the state of an optimizer that has no variables yet.
        model.optimizer.build(model.trainable_variables)
        model.load_weights(self.path / _STATE)

    def restore_averages(
        self,
        averaging: tf_dpfp.recipes.WeightAveraging,
        model: keras.Model | None,
    ) -> None:
        """Loads averages of the weights.

        Args:
            averaging: The callback that goes on with them.
            model: A model that gets them for weights, at the end of its
                training; `None` if it goes on.
        """
        with np.load(self.path / _AVERAGES) as file:
            state = dict(file)
        averaging.set_state(state)
        if model is not None and len(state) > 1:
            for index, variable in enumerate(model.trainable_variables):
                variable.assign(state[str(index)])


def latest(folder: pathlib.Path) -> Checkpoint | None:
    """Finds the last checkpoint.

    Args:
        folder: The folder of all checkpoints; it need not exist.

    Returns:
        The checkpoint, or `None` if there is none yet.
    """
    paths = _complete(folder)
    if not paths:
        return None
    history = tuple(read_history(paths[-1] / _HISTORY))
    return Checkpoint(paths[-1], _epoch(paths[-1]), history)


def save(
    folder: pathlib.Path,
    model: keras.Model,
    history: Sequence[Row],
    averaging: tf_dpfp.recipes.WeightAveraging | None = None,
) -> Checkpoint:
    """Saves a checkpoint and removes old ones.

    Args:
        folder: The folder of all checkpoints.
        model: A compiled model.
        history: One row of logs for each epoch done.
        averaging: The callback that averages the weights, if any.

    Returns:
        The new checkpoint.
    """
    target = folder / _FOLDER.format(len(history))
    unfinished = folder / f".{target.name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    if averaging is None:
        model.save_weights(unfinished / _STATE)
    else:
        with averaging.live():
            model.save_weights(unfinished / _STATE)
        np.savez(unfinished / _AVERAGES, **averaging.get_state())
    write_history(unfinished / _HISTORY, history)
    for path in (*unfinished.iterdir(), unfinished):
        _flush(path)
    os.replace(unfinished, target)
    for old in _complete(folder)[:-_KEPT]:
        shutil.rmtree(old)
    return Checkpoint(target, len(history), tuple(history))


class SaveEveryEpoch(keras.callbacks.Callback):
    """Saves a checkpoint after every epoch.

    Args:
        folder: The folder of all checkpoints.
        history: The rows of epochs that were done before this training.
        averaging: The callback that averages the weights, if any.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        history: Sequence[Row] = (),
        averaging: tf_dpfp.recipes.WeightAveraging | None = None,
    ):
        super().__init__()
        self._folder = folder
        self._averaging = averaging
        self.history = list(history)

    def on_epoch_end(self, epoch, logs=None):
        row = {name: float(value) for name, value in (logs or {}).items()}
        self.history.append({"epoch": epoch + 1, **row})
        save(self._folder, self.model, self.history, self._averaging)


def write_history(path: pathlib.Path, history: Sequence[Row]) -> None:
    """Writes rows of logs as CSV, in full precision.

    Args:
        path: Where to.
        history: The rows; all have the same columns.
    """
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, history[0])
        writer.writeheader()
        writer.writerows(history)


def read_history(path: pathlib.Path) -> list[Row]:
    """Reads what `write_history` wrote.

    Args:
        path: Where from.

    Returns:
        The rows, as numbers.
    """
    with path.open(newline="") as stream:
        return [
            {name: float(value) for name, value in row.items()}
            for row in csv.DictReader(stream)
        ]


def _complete(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(folder.glob("epoch-*"), key=_epoch)


def _epoch(path: pathlib.Path) -> int:
    return int(path.name.removeprefix("epoch-"))


def _flush(path: pathlib.Path) -> None:
    """Brings a file or a folder's entries to the disk before the rename."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
