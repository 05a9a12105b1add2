"""What of a ledger was counted in this process, and what came from elsewhere.

A training that is resumed in a new process has taken the steps of the earlier
one over, from files. Steps that it took before it was told of them are others,
and are added: greater counts alone would take one for the other.
"""

import secrets
import threading
import weakref
from collections.abc import Iterable

from tf_dpfp import accounting


class Origin:
    """Origin of the counts of one ledger; never saved.

    Attributes:
        names: Names of this ledger and of those whose counts it goes on with,
            other ones in each process.
    """

    def __init__(self) -> None:
        self.names = frozenset([secrets.token_hex(8)])
        self._elsewhere: list[accounting.LedgerEntry] = []
        # Samplers by the number of steps after which they drew, in order.
        self._samplers: dict[int, list[weakref.ref[object]]] = {}
        self._lock = threading.Lock()

    def add_elsewhere(self, entries: Iterable[accounting.LedgerEntry]) -> None:
        """Keeps in mind counts that files brought.

        Args:
            entries: What they raised the counts by.
        """
        self._elsewhere = accounting.merge([*self._elsewhere, *entries])

    def steps_elsewhere(self) -> int:
        """Returns how many steps files brought."""
        return sum(entry.steps for entry in self._elsewhere)

    def here(
        self, entries: Iterable[accounting.LedgerEntry]
    ) -> list[accounting.LedgerEntry]:
        """Returns what was counted in this process.

        Args:
            entries: What the ledger holds.

        Returns:
            What no file brought.
        """
        return accounting.missing(entries, self._elsewhere)

    def go_on_with(self, earlier: "Origin") -> None:
        """Takes over the origin of a ledger whose counts are taken over."""
        self.names |= earlier.names
        self.add_elsewhere(earlier._elsewhere)
        for steps, found in list(earlier._samplers.items()):
            for sampler in filter(None, (each() for each in found)):
                self.number_of(sampler, steps)
        # A `fit` that began before goes on asking the earlier one.
        earlier._samplers, earlier._lock = self._samplers, self._lock

    def number_of(self, sampler: object, steps: int) -> int:
        """Numbers the samplers that draw after equally many steps.

        A `fit` that a callback begins before the first step of the `fit` around
        it draws after as many steps as that one will.

        Args:
            sampler: What draws.
            steps: Number of steps that it draws after.

        Returns:
            The number, the same whenever it is asked; the first has 0.
        """
        with self._lock:
            found = self._samplers.setdefault(steps, [])
            for number, known in enumerate(found):
                if known() is sampler:
                    return number
            found.append(weakref.ref(sampler))
            return len(found) - 1
