"""The ledger of a private optimizer, as those who count its steps see it.

Noise and ledger read the same frozen settings; see `counting.release`.
"""

from collections.abc import Sequence
from typing import Any

from tf_dpfp import accounting
from tf_dpfp import counting
from tf_dpfp import noise as noise_lib
from tf_dpfp.optimizers import joint_release
from tf_dpfp.optimizers import read_only
from tf_dpfp.optimizers import settings as settings_lib


class Counted(read_only.ReadOnlySettings):
    """Mixin of `PrivateOptimizer`: what it counts, and as what."""

    name: str
    _settings: settings_lib.PrivacySettings
    _ledger: counting.Ledger
    _noise_source: noise_lib.NoiseSource
    _layer_seeds: noise_lib.LayerSeeds

    @property
    def ledger_entries(self) -> list[accounting.LedgerEntry]:
        """Everything that ran so far, for the accountant."""
        return self._ledger.entries()

    @property
    def ledger(self) -> counting.Ledger:
        """The ledger that counts the steps."""
        return self._ledger

    @property
    def next_entry(self) -> accounting.LedgerEntry:
        """Entry that the next step adds to the ledger."""
        return self._ledger.next_entry(self.release())

    def absorb_ledger(
        self,
        entries: Sequence[accounting.LedgerEntry],
        elsewhere: bool = False,
    ) -> None:
        """Takes over the ledger of an earlier optimizer of the same model.

        Args:
            entries: Its entries.
            elsewhere: True if they were not counted in this process.
        """
        self._ledger.absorb(entries, elsewhere)

    def claims(
        self,
        sampling: accounting.Sampling,
        seeded: bool = False,
        kind: accounting.Release | None = None,
        batch_size: int | None = None,
    ) -> dict[counting.Ledger, counting.Claim]:
        """Returns the claim of steps on batches that are chosen in one way.

        Args:
            sampling: The sampling.
            seeded: True if it follows a seed.
            kind: Kind of the release, if other than the optimizer's: sums of
                persons, or representations that are released jointly.
            batch_size: The batch size for which that holds; `None`: any.

        Returns:
            The claim, by ledger; announce it (`counting.announced`).
        """
        self._renew_keys()
        released = self._settings.release_of(kind)
        claim = counting.Claim(released, sampling, seeded, 1, batch_size)
        return {self._ledger: claim}

    def _renew_keys(self, *_: Any) -> None:
        """Takes other keys after a fork: a compiled step only reads them."""
        self._noise_source.renew_after_fork()
        self._layer_seeds.renew_after_fork()

    def check_claimed(self, kind: accounting.Release | None) -> None:
        """Refuses a step for others than its batches are claimed for.

        Before the step is traced, whose shapes would not fit.

        Args:
            kind: Kind of the release, if other than the optimizer's.
        """
        self._ledger.check_claimed(self._settings.release_of(kind))

    def stamp(self, kind: accounting.Release | None = None) -> counting.Stamp:
        """Stamps a batch with the claim of the thread that steps on it.

        Args:
            kind: Kind of the release, if other than the optimizer's.
        """
        self.check_calibrated()
        return self._ledger.stamp(self._settings.release_of(kind))

    def release_jointly(
        self, representations: counting.GaussianRelease
    ) -> None:
        """Counts representations beside the sums of every step from now on.

        Args:
            representations: Their release, from which their noise is drawn.

        Raises:
            ValueError: If the optimizer counts others already, or its noise is
                secure: that of representations is not.
        """
        joint_release.check_settings(self._settings)
        known = self._settings.representations
        if known == representations:
            return
        if known is not None:
            raise ValueError(
                f"The optimizer '{self.name}' counts representations of "
                f"another kind: {known}. Make a new optimizer for each "
                "model: its ledger belongs to one."
            )
        self._settings = self._settings.joint_with(representations)
        self.ensure_ledger_open()

    def ensure_ledger_open(
        self, kind: accounting.Release | None = None
    ) -> None:
        """Gets ready to count steps inside a replica.

        Args:
            kind: Kind of the release, if other than the optimizer's.
        """
        if self.is_calibrated:
            self._ledger.ensure_open(self._settings.release_of(kind))
        self._layer_seeds.build()
