"""The release of a step: one frozen object, read by noise and ledger.

The standard deviation of the noise and the row of the ledger are functions of
the same object, so that a step cannot draw one noise and count another.
"""

import dataclasses
import math

from tf_dpfp import accounting


@dataclasses.dataclass(frozen=True)
class GaussianRelease:
    """One Gaussian mechanism: clipped sums, or clipped representations.

    Attributes:
        clip_norm: L2 bound on one example's part of the release.
        noise_multiplier: Standard deviation of the noise over `clip_norm`.
            NaN until it is calibrated: nothing can be counted with it.
        seed: Seed of the noise; `None`: from the operating system.
        kind: Kind of the release.
    """

    clip_norm: float
    noise_multiplier: float
    seed: int | None = None
    kind: accounting.Release = accounting.Sums()

    @property
    def standard_deviation(self) -> float:
        """Standard deviation of the noise on every coordinate."""
        return self.noise_multiplier * self.clip_norm

    @property
    def seeded(self) -> bool:
        """True if the noise can be repeated."""
        return self.seed is not None

    @property
    def noise(self) -> tuple:
        """Everything that the noise depends on."""
        return self.clip_norm, self.noise_multiplier, self.seed

    @property
    def is_calibrated(self) -> bool:
        """True if the noise multiplier is known."""
        return not math.isnan(self.noise_multiplier)

    def with_noise(self, noise_multiplier: float) -> "GaussianRelease":
        """Returns the same release with another noise multiplier."""
        return dataclasses.replace(self, noise_multiplier=noise_multiplier)

    def of_kind(self, kind: accounting.Release) -> "GaussianRelease":
        """Returns the same release under another declaration of labels."""
        return dataclasses.replace(self, kind=kind)


@dataclasses.dataclass(frozen=True)
class JointRelease:
    """Representations and clipped sums of the same examples, as one release.

    Attributes:
        representations: The release of the representations.
        sums: The release of the clipped sums.
    """

    representations: GaussianRelease
    sums: GaussianRelease

    @property
    def noise_multiplier(self) -> float:
        """Noise multiplier of both parts together."""
        return accounting.joint_noise_multiplier(
            self.representations.noise_multiplier, self.sums.noise_multiplier
        )

    @property
    def seeded(self) -> bool:
        """True if the noise of a part can be repeated."""
        return self.representations.seeded or self.sums.seeded

    @property
    def kind(self) -> accounting.Release:
        """Kind of the release, with the declaration of the labels."""
        return self.representations.kind.joint

    @property
    def noise(self) -> tuple:
        """Everything that the noise depends on."""
        return self.representations.noise, self.sums.noise

    @property
    def is_calibrated(self) -> bool:
        """True if the noise multiplier of the sums is known."""
        return self.sums.is_calibrated

    def with_noise(self, noise_multiplier: float) -> "JointRelease":
        """Returns the same release with another noise multiplier of sums."""
        return dataclasses.replace(
            self, sums=self.sums.with_noise(noise_multiplier)
        )

    def of_kind(self, kind: accounting.Release) -> "JointRelease":
        """Returns the same release under another declaration of labels."""
        return dataclasses.replace(
            self, representations=self.representations.of_kind(kind)
        )


Release = GaussianRelease | JointRelease
