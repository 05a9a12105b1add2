"""Settings of a private optimizer as attributes, and its noise multiplier.

All are read-only, for a compiled step would not notice a change. With
`noise_multiplier="calibrate"` the noise multiplier is found by `fit`, before a
step is traced. Until then nothing can be released: who needs the release asks
`release()`, which refuses, and one of unknown noise fits into no ledger.
"""

import dataclasses

from tf_dpfp import clipping as clipping_lib
from tf_dpfp import counting
from tf_dpfp.optimizers import settings as settings_lib
from tf_dpfp.optimizers.banded import Banded
from tf_dpfp.optimizers.correlation import Correlation
from tf_dpfp.optimizers.sparse import Sparse


class ReadOnlySettings:
    """Mixin of `PrivateOptimizer`: what it was given."""

    _settings: settings_lib.PrivacySettings
    _ledger: counting.Ledger
    _correlation: Correlation

    @property
    def l2_norm_clip(self) -> float:
        """The bound C on one example's influence on the released sums."""
        return self._settings.sums.clip_norm

    @property
    def noise_multiplier(self) -> float | str:
        """Standard deviation of the noise over the bound.

        `"calibrate"` until `fit` has found it.
        """
        if not self._settings.sums.is_calibrated:
            return settings_lib.CALIBRATE
        return self._settings.sums.noise_multiplier

    @property
    def clipping(self) -> clipping_lib.Clipping:
        """Groups that are clipped together, with their clip norms."""
        return self._settings.clipping

    @property
    def microbatch_size(self) -> int | None:
        """Physical batch inside a step, or `None`."""
        return self._settings.microbatch_size

    @property
    def seed(self) -> int | None:
        """Seed of the noise, or `None` for the operating system's."""
        return self._settings.sums.seed

    @property
    def secure(self) -> bool:
        """True if noise is drawn from a cryptographic stream."""
        return self._settings.secure

    @property
    def correlated_noise(self) -> Banded | None:
        """Bands of correlated noise; `None`: independent noise."""
        return self._settings.correlated_noise

    @property
    def sparse_tables(self) -> Sparse | None:
        """Tables released where they are touched; `None`: there are none."""
        return self._settings.sparse_tables

    @property
    def bands(self) -> int | None:
        """Number of bands of the noise, 1 if it is independent.

        `None` until `fit` has found it.
        """
        return self._settings.bands

    @property
    def fixed_loss_scale(self) -> float | None:
        """The `loss_scale_factor` that was given."""
        return self._settings.loss_scale_factor

    @property
    def is_calibrated(self) -> bool:
        """True if the noise multiplier is known."""
        return self._settings.release.is_calibrated

    @property
    def calibrates(self) -> bool:
        """True if the noise multiplier may still be found by `fit`."""
        return self._settings.calibrates and not self._ledger.is_traced

    def calibrate(self, noise_multiplier: float) -> None:
        """Takes the noise multiplier that was found for a training.

        Args:
            noise_multiplier: The noise multiplier, above 0.

        Raises:
            RuntimeError: If a step was traced, which draws its noise for good.
            ValueError: If the noise multiplier is out of range.
        """
        if self._ledger.is_traced:
            raise RuntimeError(
                "A step was traced already, and its noise can't change. "
                "Compile the model with a new optimizer."
            )
        self._settings = self._settings.with_noise(noise_multiplier)

    def take_bands(self, bands: int) -> None:
        """Takes the number of bands that was found for a training.

        Args:
            bands: The number; 1 for independent noise.

        Raises:
            RuntimeError: If a step was traced, which draws its noise for good.
        """
        if self._ledger.is_traced:
            raise RuntimeError(
                "A step was traced already, and its noise can't change. "
                "Compile the model with a new optimizer."
            )
        self._settings = dataclasses.replace(
            self._settings, correlated_noise=Banded(bands)
        )
        self._correlation.take(bands)

    def release(self) -> counting.Release:
        """Returns the release of a step.

        Raises:
            ValueError: If its noise multiplier is not known yet.
        """
        self.check_calibrated()
        return self._settings.release

    def check_calibrated(self) -> None:
        """Refuses to go on without a noise multiplier.

        Raises:
            ValueError: If it is not known yet.
        """
        if not self.is_calibrated:
            raise ValueError(
                f"{type(self).__name__} has no noise multiplier yet: `fit` "
                "finds it, for its data, its epochs and its PrivacyBudget. "
                "Call model.fit(batches, epochs=..., callbacks=["
                "tf_dpfp.PrivacyBudget(epsilon=..., delta=...)]) first, or "
                "give the optimizer a number. Received: "
                "noise_multiplier='calibrate'"
            )
