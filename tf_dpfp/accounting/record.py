"""Record of a training: everything that its statement and card are made of."""

import dataclasses

from tf_dpfp import arguments
from tf_dpfp.accounting import entries as entries_lib
from tf_dpfp.accounting import table


@dataclasses.dataclass(frozen=True)
class Record:
    """What is known of a training, without any delta.

    Args:
        entries: Ledger entries of the training; kept merged, those of which
            no step ran left out.
        population: Number of examples, if it is known and may be told.
            Entries with `UnknownSampling` bring their own.
        seeded: True if noise or sampling came from a seed that the user chose;
            entries may say so themselves.
        observed: False for entries that somebody describes instead of a
            record. Nothing is then claimed about what ran.
        objections: Reasons why the entries do not cover all that was released,
            so that epsilon is infinite.
        ordinary_steps: Number of steps of ordinary training that the model
            took before, of which no entry knows.
        trained_apart: Other trainings of the same weights, in words, of which
            no entry knows.

    Raises:
        ValueError: If `population` is not a positive integer.
    """

    entries: tuple[entries_lib.LedgerEntry, ...]
    population: int | None = None
    seeded: bool = False
    observed: bool = True
    objections: tuple[str, ...] = ()
    ordinary_steps: int = 0
    trained_apart: tuple[str, ...] = ()

    def __post_init__(self):
        ran = [entry for entry in table.merge(self.entries) if entry.steps]
        object.__setattr__(self, "entries", tuple(ran))
        if self.population is not None:
            size = arguments.positive_integer("population", self.population)
            object.__setattr__(self, "population", size)
        seeded = self.seeded or any(entry.seeded for entry in ran)
        object.__setattr__(self, "seeded", seeded)
        object.__setattr__(self, "objections", tuple(self.objections))
        object.__setattr__(self, "trained_apart", tuple(self.trained_apart))
