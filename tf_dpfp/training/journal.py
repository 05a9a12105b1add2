"""Journal of a ledger, on the disk ahead of the steps that it counts.

Weights are saved now and then; steps between two saves are released as well,
and a kill loses whatever is in memory. So the journal says, before a step
runs, that it may have run:

* `journal.json` holds the ledger as it was, the entries of one step, and a
  number of steps that are reserved. It is forced to the disk. After a crash of
  the machine all reserved steps count.
* `steps` holds how many of them were begun, in one of two places: 16 bytes
  that are written before each call and not forced to the disk. They outlive a
  kill of the process, not a crash of the machine; the boot of the machine tells
  the two apart.

* `others` holds steps that were not reserved, one a line, each forced to the
  disk before it runs: those that a callback or another thread takes meanwhile.

So a kill adds at most the call that was interrupted, a crash of the machine at
most what was reserved, and neither takes anything away.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import struct
import threading
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from tf_dpfp import accounting
from tf_dpfp.training import durable_files

_BOOT = pathlib.Path("/proc/sys/kernel/random/boot_id")
_BEGUN = struct.Struct("<qq")


class Journal:
    """Record of one training's ledger in a folder of its own.

    Args:
        folder: Path of the folder.

    Attributes:
        folder: The same.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self._path = folder / "journal.json"
        self._begun_path = folder / "steps"
        self._others_path = folder / "others"
        # Names of the ledgers that what was read is of.
        self._names: frozenset[str] = frozenset()
        self._number = 0
        self._reserved = 0
        self._begun = 0
        self._descriptor: int | None = None
        # Steps of several threads are noted.
        self._lock = threading.Lock()
        # Rows of the last step that each of them noted: it may still run.
        self._last: dict[int, list] = {}

    def exists(self) -> bool:
        """Tells if there is a journal."""
        return self._path.exists()

    def entries(self) -> list[accounting.LedgerEntry]:
        """Reads what a training that did not end has counted, at most.

        Returns:
            The entries; none if there is no journal, or its training ended.

        Raises:
            ValueError: If the file is no journal.
        """
        if not self._path.exists():
            return []
        try:
            record = json.loads(self._path.read_text())
            ledger = _decoded(record["ledger"])
            one_step = _decoded(record["one_step"])
            reserved, self._number = record["reserved"], record["number"]
            boot = record["boot"]
            self._names = frozenset(record.get("ledgers", ()))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"The ledger's journal '{self._path}' can't be read, and with "
                "it the count of what a training released. Restore the file; "
                "or delete it, and count its training yourself. "
                f"Received: {error}"
            ) from error
        begun = min(self._read_begun(boot, reserved), reserved)
        run = [
            dataclasses.replace(entry, steps=entry.steps * begun)
            for entry in one_step
        ]
        return accounting.greater([], _sum(ledger, run, self._read_others()))

    def is_of(self, names: frozenset[str]) -> bool:
        """Tells if what was read was written for ledgers of this process.

        Args:
            names: Their names.
        """
        return bool(self._names) and self._names <= names

    def _read_others(self) -> list[accounting.LedgerEntry]:
        """Reads the steps beside those that were reserved."""
        found: list[accounting.LedgerEntry] = []
        if not self._others_path.exists():
            return found
        for line in self._others_path.read_text().splitlines():
            try:
                record = json.loads(line)
                number, rows = record["number"], record["rows"]
            except (ValueError, KeyError, TypeError):
                continue  # Cut off by a kill, before its step began.
            if number == self._number:
                found += _decoded(rows)
        return found

    def _read_begun(self, boot: str, reserved: int) -> int:
        """Reads the number of steps begun; all if it may be lost."""
        if not boot or boot != _boot():
            return reserved
        try:
            written = self._begun_path.read_bytes()
            number, begun = _BEGUN.unpack_from(written, self._place())
        except (OSError, struct.error):
            return reserved
        return begun if number == self._number else reserved

    def reserve(
        self,
        ledger: Callable[[], Iterable[accounting.LedgerEntry]],
        one_step: Sequence[accounting.LedgerEntry],
        steps: int,
        names: Iterable[str] = (),
    ) -> None:
        """Reserves steps; returns when they are on the disk.

        Args:
            ledger: Reads the entries of the ledger from the model.
            one_step: Entries that one step adds.
            steps: Number of steps that may follow.
            names: Names of the ledgers; see `is_of`.
        """
        with self._lock:
            # No step is noted meanwhile, so that each one is in what is read
            # here, or may still run.
            self._reserve(ledger(), one_step, steps, sorted(names))

    def _reserve(
        self,
        ledger: Iterable[accounting.LedgerEntry],
        one_step: Sequence[accounting.LedgerEntry],
        steps: int,
        names: list[str],
    ) -> None:
        durable_files.make_folder(self._path.parent)
        running = self._of_other_threads(self._number + 1)
        for line in running:
            # Lines of another number than the record's count nothing.
            durable_files.append(self._others_path, line)
        self._number += 1
        self._reserved, self._begun = steps, 0
        # In the other place: a kill before the record leaves the older one
        # with its own count.
        self._write_begun()
        record = {
            "number": self._number,
            "boot": _boot(),
            "ledger": _encoded(ledger),
            "one_step": _encoded(one_step),
            "reserved": steps,
            "ledgers": names,
        }
        text = json.dumps(record)
        durable_files.replace(self._path, lambda path: path.write_text(text))
        if not running:
            # The ledger holds them now.
            self._others_path.unlink(missing_ok=True)

    def _of_other_threads(self, number: int) -> list[str]:
        """Lists the last step of each other thread: the ledger may lack it.

        Args:
            number: Number of the record that they are to count beside.
        """
        alive = {t.ident for t in threading.enumerate()}
        alive.discard(threading.get_ident())
        self._last = {i: rows for i, rows in self._last.items() if i in alive}
        return [
            json.dumps({"number": number, "rows": rows})
            for rows in self._last.values()
        ]

    def begin(self, steps: int) -> bool:
        """Notes that steps begin.

        Args:
            steps: Number of steps in the next call.

        Returns:
            False if they are more than what is reserved: `reserve` first.
        """
        if self._begun + steps > self._reserved:
            return False
        self._begun += steps
        self._write_begun()
        return True

    def note(self, entry: accounting.LedgerEntry) -> None:
        """Notes a step that is not one of those reserved, before it begins.

        Args:
            entry: What it releases.
        """
        rows = _encoded([entry])
        with self._lock:
            self._last[threading.get_ident()] = rows
            record = {"number": self._number, "rows": rows}
            durable_files.append(self._others_path, json.dumps(record))

    def _write_begun(self) -> None:
        if self._descriptor is None:
            self._descriptor = os.open(
                self._begun_path, os.O_RDWR | os.O_CREAT, 0o644
            )
        os.pwrite(
            self._descriptor,
            _BEGUN.pack(self._number, self._begun),
            self._place(),
        )

    def _place(self) -> int:
        """Returns where the count of the current record is in the file."""
        return self._number % 2 * _BEGUN.size

    def close(self, ended: bool) -> None:
        """Ends the writing.

        Args:
            ended: True if the training ended, so that a new one counts from
                zero.
        """
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        if ended:
            durable_files.remove(self._path)
            shutil.rmtree(self._path.parent, ignore_errors=True)


def _sum(*ledgers: list[accounting.LedgerEntry]) -> list:
    return accounting.decode_rows(
        accounting.encode_rows(entry for one in ledgers for entry in one)
    )


def _boot() -> str:
    """Returns a name of the machine's last start; empty if there is none."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""


def _encoded(entries: Iterable[accounting.LedgerEntry]) -> list[list[float]]:
    return accounting.encode_rows(entries).tolist()


def _decoded(rows: list[list[float]]) -> list[accounting.LedgerEntry]:
    if not rows:
        return []
    return accounting.decode_rows(np.asarray(rows, np.float64))
