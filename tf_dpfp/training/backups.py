"""Backup of a private training that a kill at any time leaves readable."""

import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import h5py
import keras

from tf_dpfp import accounting
from tf_dpfp import counting
from tf_dpfp import mechanisms
from tf_dpfp import user_warnings
from tf_dpfp.keras_private import trainer as keras_trainer
from tf_dpfp.mechanisms import state as state_lib
from tf_dpfp.training import durable_files
from tf_dpfp.training import journal as journal_lib

_PLACE = "tf_dpfp_backup"
_AVERAGES = "tf_dpfp_averages"
_LATEST, _PREVIOUS = "latest.weights.h5", "previous.weights.h5"
# Steps that the journal is ahead: what a crash of the machine counts at most,
# and how seldom a step waits for the disk.
_AHEAD = 500


class BackupAndRestore(keras.callbacks.Callback):
    """Backs up a private training, and resumes it after an interruption.

    Takes the place of `keras.callbacks.BackupAndRestore`, with two differences.
    A kill inside of a save leaves the last backup as it was. And no counted
    step is lost: a journal beside the folder counts every step before it runs.
    What ran since the last backup, or since a folder that is gone, stays
    counted; the call of the step that was interrupted is counted whole, and
    after a crash of the machine what was reserved: up to the end of the epoch,
    and 500 steps at most. Steps that a callback or another thread takes
    meanwhile are in the journal, too, each forced to the disk before it runs.
    Of a compiled function that takes several steps in one call, one is, until
    the next batch of `fit` begins.

    The training ends with `fit`: both are deleted then, and the next training
    counts from zero. Delete the journal, `<backup_dir>.ledger`, only if nobody
    has seen anything of its training.

    Example:

    ```python
    model.fit(batches, epochs=10,
              callbacks=[tf_dpfp.BackupAndRestore("backup"),
                         tf_dpfp.PrivacyBudget(epsilon=3.0, delta=1e-5)])
    ```

    Args:
        backup_dir: Folder of the backup, on a disk of this machine; one for
            each training, and for each worker.
        save_freq: `"epoch"`, a number of batches, or `False` for the journal
            alone.
        double_checkpoint: If true, keeps the backup before the last one as
            well, and falls back on it if the last one can't be read.
        delete_checkpoint: If true, deletes the backup and the journal at the
            end of the training.

    Raises:
        ValueError: If an argument is out of its range; at the start of the
            training, if the model is not built or a backup can't be read.
        NotPrivateError: At the start of the training, if the model is not
            private.
    """

    def __init__(
        self,
        backup_dir: str,
        save_freq: str | int = "epoch",
        double_checkpoint: bool = False,
        delete_checkpoint: bool = True,
    ):
        super().__init__()
        if not backup_dir or "://" in str(backup_dir):
            raise ValueError(
                "`backup_dir` must be a folder on a disk of this machine. "
                f"Received: backup_dir={backup_dir!r}"
            )
        is_count = isinstance(save_freq, int) and save_freq is not True
        if save_freq != "epoch" and not (is_count and int(save_freq) >= 0):
            raise ValueError(
                "`save_freq` must be 'epoch', a positive number of batches, or "
                f"False. Received: save_freq={save_freq!r}"
            )
        self.backup_dir = backup_dir
        self.save_freq = save_freq
        self.double_checkpoint = double_checkpoint
        self.delete_checkpoint = delete_checkpoint
        self._folder = pathlib.Path(backup_dir).absolute()
        self._journal = journal_lib.Journal(
            self._folder.with_name(f"{self._folder.name}.ledger")
        )
        self._epoch = 0
        self._batch = 0
        self._unsaved = 0
        self._announcement: object = None
        # True if the ledger holds steps that were not reserved.
        self._others = False
        self._stop_watching: list[Callable[[], None]] = []

    def on_train_begin(self, logs=None):  # noqa: ARG002
        if not self.model.built:
            raise ValueError(
                f"Model '{self.model.name}' is not built, and no backup can be "
                "restored into it. Call it on a batch, or "
                "`model.build(input_shape)`, first."
            )
        mechanism = mechanisms.mechanism_of(self.model)
        before, here = mechanism.entries(), mechanism.counted_here()
        found = self._restore()
        if found and not self._journal.exists():
            user_warnings.warn(
                f"There is a backup in '{self._folder}', and no journal beside "
                f"it, in '{self._journal.folder}': steps after the backup are "
                "not counted. If anything of them was seen, put the journal "
                "there, or add them.",
                UserWarning,
            )
        counted = self._journal.entries()
        if not self._journal.is_of(mechanism.names()):
            # Another process's: what this one did before is not among them.
            files = accounting.missing(before, here)
            others = accounting.greater(counted, files)
            counted = accounting.merge([*others, *here]) if counted else []
        lacking = accounting.missing(counted, mechanism.entries())
        if lacking:
            mechanism.absorb(lacking, elsewhere=True)
        if lacking and not found:
            user_warnings.warn(
                f"There is no backup in '{self._folder}', and the journal "
                f"beside it counts {sum(e.steps for e in lacking)} steps of a "
                "training that did not end. They stay counted.",
                UserWarning,
            )
        self._unsaved = self._batch = 0
        self._announcement = counting.announcement_of_fit()
        known = state_lib.state_of(self.model).backups
        earlier = known.get(self._folder, self)
        if earlier is not self:
            earlier._end_watching()
        known[self._folder] = self
        self._reserve(self._ahead())

    def watch(self) -> None:
        """Notes steps that are not those of this `fit`, from now on.

        Also after an exception has ended it: the journal is still there; and
        after a `compile`, which calls it, for the ledger is another one. What
        was clipped before is told to whoever began to watch since: a step that
        was noted, and is not taken yet, is noted again.
        """
        earlier, self._stop_watching = self._stop_watching, []

        def before_step(located: counting.Located) -> None:
            self._note(located.claim)

        for ledger in mechanisms.mechanism_of(self.model).ledgers():
            self._stop_watching.append(ledger.call_before(before_step))
        for stop in earlier:
            stop()

    def _end_watching(self) -> None:
        while self._stop_watching:
            self._stop_watching.pop()()

    def _note(self, claim: counting.Claim) -> None:
        step_of = counting.announcement_of_step()
        if step_of is not None and step_of is self._announcement:
            return
        steps = int(self.model.steps_per_execution)
        if claim.parts:
            # Of a later `fit`, whose noise begins with this step.
            pending = mechanisms.mechanism_of(self.model).pending()
            steps += sum(entry.steps for entry in pending)
        # Of which size its batch is can't be told.
        claim = claim.of_other_sizes()
        self._journal.note(claim.entry(claim.draws * steps))
        self._others = True

    def _restore(self) -> bool:
        """Restores the last backup that can be read; tells if there is one."""
        paths = [self._folder / _LATEST, self._folder / _PREVIOUS]
        paths = [path for path in paths if path.exists()]
        for path in paths:
            try:
                with h5py.File(path, "r") as file:
                    place = json.loads(file.attrs[_PLACE])
                    averages = _read(file.get(_AVERAGES, {}))
            except (OSError, KeyError, ValueError) as error:
                if path != paths[-1]:
                    continue
                raise ValueError(
                    f"The backup '{path}' can't be read ({error}). Delete the "
                    f"folder '{self._folder}' to train anew: the journal "
                    "beside it keeps the count."
                ) from error
            optimizer = self.model.optimizer
            if optimizer is not None and not optimizer.built:
                # Its variables must be there before the file is read.
                optimizer.build(self.model.trainable_variables)
            self.model.load_weights(path)
            state_lib.state_of(self.model).averages = averages or None
            self._epoch = place["epoch"]
            keras_trainer.start_at(self.model, self._epoch)
            return True
        return False

    def _ahead(self) -> int:
        """Returns how many steps to reserve at once."""
        if self._announcement is None:
            return 0  # In a loop of the user's: each step is noted.
        steps = (self.params or {}).get("steps")
        in_call = int(self.model.steps_per_execution)
        return max(in_call, min(_AHEAD, steps or _AHEAD))

    def _reserve(self, steps: int) -> None:
        """Writes the ledger to the journal, and the steps that may follow."""
        self._others = False
        # The journal forgets what was noted, for the ledger has it: but what
        # was clipped and not applied.
        self.watch()
        mechanism = mechanisms.mechanism_of(self.model)
        one_step = mechanism.next_entries()
        self._journal.reserve(
            mechanism.committed, one_step, steps, mechanism.names()
        )

    def on_epoch_begin(self, epoch, logs=None):  # noqa: ARG002
        self._epoch = epoch
        self._batch = 0

    def on_train_batch_begin(self, batch, logs=None):  # noqa: ARG002
        if self._announcement is None:
            return
        steps = int(self.model.steps_per_execution)
        if self._others or not self._journal.begin(steps):
            self._reserve(self._ahead())
            self._journal.begin(steps)

    def on_train_batch_end(self, batch, logs=None):  # noqa: ARG002
        self._unsaved += batch + 1 - self._batch
        self._batch = batch + 1
        if self.save_freq in ("epoch", False, 0):
            return
        if self._unsaved >= int(self.save_freq):
            self._save()

    def on_epoch_end(self, epoch, logs=None):  # noqa: ARG002
        self._epoch = epoch + 1
        self._batch = 0
        if self.save_freq == "epoch":
            self._save()

    def _save(self) -> None:
        """Puts a new backup in the place of the last one."""
        self._unsaved = 0
        # First: a backup never holds steps that the journal does not.
        self._reserve(self._ahead())
        durable_files.make_folder(self._folder)
        latest = self._folder / _LATEST
        if self.double_checkpoint and latest.exists():
            durable_files.replace(
                self._folder / _PREVIOUS,
                lambda path: shutil.copyfile(latest, path),
            )
        durable_files.replace(latest, self._write)

    def _write(self, path: pathlib.Path) -> None:
        place = {"epoch": self._epoch, "batch": self._batch}
        with state_lib.live(self.model):
            self.model.save_weights(path)
        averaging = state_lib.state_of(self.model).averaging
        # In the same file: one rename for all.
        with h5py.File(path, "a") as file:
            file.attrs[_PLACE] = json.dumps(place)
            if averaging is not None:
                for name, value in averaging.get_state().items():
                    file[f"{_AVERAGES}/{name}"] = value

    def on_train_end(self, logs: Any = None):  # noqa: ARG002
        if not self.delete_checkpoint:
            self._reserve(0)
        self._end_watching()
        state_lib.state_of(self.model).backups.pop(self._folder, None)
        if not self.delete_checkpoint:
            self._journal.close(ended=False)
            return
        # The count last: a kill in between must not lose it.
        if self._folder.is_dir():
            durable_files.remove(self._folder / _LATEST)
            shutil.rmtree(self._folder)
        self._journal.close(ended=True)


def _read(group: Any) -> dict[str, Any]:
    """Reads the averages of the weights, if the file has any."""
    return {name: group[name][()] for name in group}
