"""Ledger entries: sampling, release and number of the steps that ran.

A `LedgerEntry` describes a number of equal steps. It answers two questions:
how the examples of each step were chosen (`samplings`), and what left each
step with noise (`releases`). All are frozen and without state: optimizers and
layers count, the classes here describe.

Rules for changes:
    - One frozen class per kind of sampling and per kind of release. A new
      mechanism is a new class, never a new meaning of an old one.
    - A release names its adjacency, its sensitivity and the kinds of sampling
      that a proof covers. No other module asks for its class to learn these.
    - The sensitivity of a step is that of its entry: it depends on the
      release and on the sampling.
    - Numbers that stand for classes exist in `table` only, and are part of
      saved models.
"""

import dataclasses
import math
from collections.abc import Iterable

from tf_dpfp import arguments
from tf_dpfp.accounting import releases
from tf_dpfp.accounting import samplings
from tf_dpfp.accounting import searches


@dataclasses.dataclass(frozen=True)
class LedgerEntry:
    """Number of equal steps, with their sampling and release.

    Args:
        sampling: Choice of the examples of each step.
        noise_multiplier: Standard deviation of the noise over the clip norm.
            For a joint release, the `joint_noise_multiplier` of its parts. For
            randomised labels, one over their epsilon. 0 means no noise.
        steps: Number of releases: optimizer updates, not physical pieces of a
            batch; for representations, the number of draws. Of correlated
            noise, and for each time that it began anew, one less than there
            are parts more; see `CyclicPoissonSampling`.
        seeded: True if noise or sampling came from a seed that the user chose.
            It changes no epsilon; the privacy statement reports it.
        release: What each step releases, `Sums` by default.
        search: The search that ran these steps in each of its runs, and
            returned the best; `None` for steps of no search.

    Raises:
        ValueError: If an argument is of a wrong type or outside its range, or
            no proof covers this release with this sampling.

    Example:

    >>> sampling = samplings.PoissonSampling(0.01)
    >>> entry = LedgerEntry(sampling, noise_multiplier=1.1, steps=500)
    >>> entry.release
    Sums()
    """

    sampling: samplings.Sampling
    noise_multiplier: float
    steps: int
    seeded: bool = False
    release: releases.Release = releases.Sums()
    search: searches.Search | None = None

    def __post_init__(self):
        if not isinstance(self.sampling, samplings.Sampling):
            raise ValueError(
                "`sampling` must be a PoissonSampling, an UnknownSampling, a "
                "WithoutReplacement, an EveryLabel or an EveryExample. "
                f"Received: sampling={self.sampling!r}"
            )
        if not isinstance(self.release, releases.Release):
            raise ValueError(
                "`release` must be a Sums, a Representations, a Joint, an "
                "EndToEnd, a Labels or an Evaluation. Received: "
                f"release={self.release!r}"
            )
        if not isinstance(self.search, (searches.Search, type(None))):
            raise ValueError(
                "`search` must be a Search or None. Received: "
                f"search={self.search!r}"
            )
        if self.search and isinstance(self.release, releases.Labels):
            raise ValueError(
                "Labels are randomised once, and in no run of a search. "
                f"Received: search={self.search!r}"
            )
        parts = getattr(self.sampling, "parts", None)
        bands = getattr(self.release, "bands", None)
        covered = isinstance(self.sampling, self.release.samplings)
        if parts is not None and bands is not None:
            self._check_parts(parts, bands)
        if not covered or (parts is None) != (bands is None):
            names = [kind.__name__ for kind in self.release.samplings]
            raise ValueError(
                f"{self.release!r} can't be accounted for with this sampling, "
                f"only with one of {names}. Received: "
                f"sampling={self.sampling!r}"
            )
        noise = arguments.number(
            "noise_multiplier",
            self.noise_multiplier,
            least=0.0,
            hint="0 trains without privacy.",
        )
        object.__setattr__(self, "noise_multiplier", noise)
        steps = arguments.integer("steps", self.steps)
        object.__setattr__(self, "steps", steps)
        seeded = arguments.boolean("seeded", self.seeded)
        object.__setattr__(self, "seeded", seeded)

    @staticmethod
    def _check_parts(parts: int, bands: int) -> None:
        if parts < bands:
            raise ValueError(
                "Noise that is correlated over more steps than examples are "
                "apart is not accounted for. Use at least as many parts as "
                f"bands. Received: parts={parts}, bands={bands}"
            )

    @property
    def rounds(self) -> int:
        """Greatest number of the steps that one example may be in."""
        if isinstance(self.sampling, samplings.CyclicPoissonSampling):
            # An entry made by hand may lack what its beginning counts as.
            return max(self.steps // self.sampling.parts, min(self.steps, 1))
        return self.steps

    def without_sampling(self) -> "LedgerEntry":
        """Returns an entry that counts every example in every step.

        Correlated noise of b bands: a row of C has length at most root b,
        summed up, for it has the numbers of a column. So a step moves by at
        most so many times what it would with independent noise.

        Returns:
            The entry; itself where nothing is proved without the sampling.
        """
        unknown = samplings.UnknownSampling()
        release = self.release
        if isinstance(release, releases.BandedSums):
            plain = releases.Sums()
            if isinstance(release, releases.BandedPersonSums):
                plain = releases.PersonSums(release.max_examples)
            return dataclasses.replace(
                self,
                sampling=unknown,
                noise_multiplier=self.noise_multiplier
                / math.sqrt(release.bands),
                release=plain,
            )
        if samplings.UnknownSampling not in release.samplings:
            return self
        return dataclasses.replace(self, sampling=unknown)

    @property
    def is_bare(self) -> bool:
        """True if the entry protects nothing: epsilon is infinite."""
        return self.noise_multiplier == 0.0 or not self.release.is_private

    def sensitivity(self, adjacency: releases.Adjacency) -> float:
        """Returns how far one example moves the release of a step.

        The noise multiplier of an entry is relative to the clip norm.
        Division by the sensitivity gives the noise multiplier of a mechanism
        of sensitivity 1.

        An example removed from an ordered list moves each later one by one
        place, so a batch formed by position loses one example and gains
        another: to the batch, one example is replaced.

        Args:
            adjacency: Adjacency of the guarantee.

        Returns:
            The sensitivity in clip norms.

        Raises:
            ValueError: If nothing is proved under this adjacency.
        """
        own = self.release.sensitivity(adjacency)
        added = adjacency is releases.Adjacency.ADD_OR_REMOVE_ONE
        if added and self.sampling.by_position:
            return self.release.sensitivity(releases.Adjacency.REPLACE_ONE)
        return own


def adjacency_of(entries: Iterable[LedgerEntry]) -> releases.Adjacency:
    """Returns the one adjacency that covers all entries.

    Adjacencies do not mix. One release of representations or labels makes
    replace-one the adjacency of everything that ran, and sums then count with
    twice their sensitivity and without amplification by sampling.

    Args:
        entries: Everything that ran. Entries of zero steps have no say.

    Returns:
        `ADD_OR_REMOVE_ONE`, or `REPLACE_ONE` if any release needs it.
    """
    found = {entry.release.adjacency for entry in entries if entry.steps}
    if releases.Adjacency.REPLACE_ONE in found:
        return releases.Adjacency.REPLACE_ONE
    return releases.Adjacency.ADD_OR_REMOVE_ONE
