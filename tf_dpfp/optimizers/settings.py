"""Settings of a private optimizer: checked once, frozen, read by everyone."""

import dataclasses
import difflib
import inspect
import math
from typing import Any

import keras

from tf_dpfp import accounting
from tf_dpfp import arguments
from tf_dpfp import clipping as clipping_lib
from tf_dpfp import counting
from tf_dpfp import noise as noise_lib
from tf_dpfp.optimizers import sparse as sparse_lib
from tf_dpfp.optimizers.banded import Banded

# Squares of shorter gradients may vanish in float32, and with them the norm.
_LEAST_CLIP = 1e-10
# Noise multiplier that `fit` finds.
CALIBRATE = "calibrate"
# What other libraries call a setting, or what they need and this one does not.
_ELSEWHERE = {
    "clip_norm": "l2_norm_clip",
    "max_grad_norm": "l2_norm_clip",
    "max_norm": "l2_norm_clip",
    "l2_clip": "l2_norm_clip",
    "noise_mult": "noise_multiplier",
    "batch_size": "expected_batch_size",
    "micro_batch_size": "microbatch_size",
    "max_physical_batch_size": "microbatch_size",
}


@dataclasses.dataclass(frozen=True)
class PrivacySettings:
    """Arguments of a private optimizer, beside those of the Keras optimizer.

    The noise of a step and its row in the ledger both come from `release`.

    Attributes:
        release: The release of a step: of clipped sums, or of representations
            and clipped sums together.
        clipping: The groups, their clip norms and the split of the noise.
        expected_batch_size: Divisor of the noised sums; `None`: from the data.
        microbatch_size: Physical batch inside a step, or `None`.
        loss_scale_factor: Factor of the loss in the backward pass, or `None`.
        secure: True if noise is drawn from a cryptographic stream.
        calibrates: True if the noise multiplier is left to `fit`.
        correlated_noise: Bands of correlated noise; `None`: independent noise.
        sparse_tables: Tables released where they are touched; `None`: all
            rows of all tables are.
    """

    release: counting.Release
    clipping: clipping_lib.Clipping
    expected_batch_size: float | None
    microbatch_size: int | None
    loss_scale_factor: float | None
    secure: bool
    calibrates: bool = False
    correlated_noise: Banded | None = None
    sparse_tables: sparse_lib.Sparse | None = None

    @property
    def bands(self) -> int | None:
        """Number of bands of the noise, 1 if it is independent.

        `None`: `fit` is to find it.
        """
        given = self.correlated_noise
        return 1 if given is None else given.number

    @property
    def sums(self) -> counting.GaussianRelease:
        """The release of the clipped sums, by themselves."""
        if isinstance(self.release, counting.JointRelease):
            return self.release.sums
        return self.release

    @property
    def representations(self) -> counting.GaussianRelease | None:
        """The representations that are released jointly, or `None`."""
        if isinstance(self.release, counting.JointRelease):
            return self.release.representations
        return None

    @property
    def adaptive(self) -> clipping_lib.Adaptive | None:
        """Settings of adaptive clip norms; `None` where nothing adapts."""
        thresholds = self.clipping.thresholds
        if isinstance(thresholds, clipping_lib.Adaptive):
            return thresholds
        return None

    def release_of(self, kind: accounting.Release | None) -> counting.Release:
        """Returns the release of a step of another kind, of the same noise.

        Args:
            kind: The kind; `None`: that of the settings.
        """
        return self.release if kind is None else self.release.of_kind(kind)

    def with_noise(self, noise_multiplier: float) -> "PrivacySettings":
        """Returns the settings with another noise multiplier of the sums.

        Args:
            noise_multiplier: The noise multiplier, above 0.
        """
        noise_multiplier = arguments.number(
            "noise_multiplier", noise_multiplier, above=0.0
        )
        return dataclasses.replace(
            self, release=self.release.with_noise(noise_multiplier)
        )

    def joint_with(
        self, representations: counting.GaussianRelease
    ) -> "PrivacySettings":
        """Returns the settings of a joint release.

        Args:
            representations: The release of the representations.
        """
        return dataclasses.replace(
            self, release=counting.JointRelease(representations, self.sums)
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of `PrivateOptimizer`, for serialization."""
        return {
            "l2_norm_clip": self.sums.clip_norm,
            "noise_multiplier": self.sums.noise_multiplier
            if self.sums.is_calibrated
            else CALIBRATE,
            "clipping": keras.saving.serialize_keras_object(self.clipping),
            "expected_batch_size": self.expected_batch_size,
            "microbatch_size": self.microbatch_size,
            "seed": self.sums.seed,
            "loss_scale_factor": self.loss_scale_factor,
            "secure": self.secure,
            "correlated_noise": self.correlated_noise
            and keras.saving.serialize_keras_object(self.correlated_noise),
            "sparse_tables": self.sparse_tables
            and keras.saving.serialize_keras_object(self.sparse_tables),
        }


def checked_settings(
    *,
    l2_norm_clip: float,
    noise_multiplier: float | str | None,
    clipping: str | clipping_lib.Clipping,
    expected_batch_size: float | None,
    microbatch_size: int | None,
    seed: int | None,
    loss_scale_factor: float | None,
    secure: bool,
    correlated_noise: Banded | dict | None = None,
    sparse_tables: sparse_lib.Sparse | dict | None = None,
) -> PrivacySettings:
    """Checks the arguments of a private optimizer.

    Args:
        l2_norm_clip: See `PrivateOptimizer`, as for all the others.
        noise_multiplier: A number, or `"calibrate"`. `None` is refused: there
            is no good default.
        clipping: Name, object or serialized form.
        expected_batch_size: A positive number, or `None`.
        microbatch_size: A positive integer, or `None`.
        seed: An integer, or `None`.
        loss_scale_factor: A positive number, or `None`.
        secure: A boolean.
        correlated_noise: Bands, serialized or not, or `None`.
        sparse_tables: Tables, serialized or not, or `None`.

    Returns:
        The settings.

    Raises:
        ValueError: If an argument is out of its range.
        ImportError: If noise is to be secure and the package is missing.
    """
    if noise_multiplier is None:
        raise ValueError(
            "`noise_multiplier` must be given: it sets the privacy of the "
            "training. With noise_multiplier='calibrate' `fit` finds it for "
            "the epsilon of its PrivacyBudget. Received: noise_multiplier=None"
        )
    noise = _noise_multiplier(noise_multiplier)
    settings = PrivacySettings(
        release=counting.GaussianRelease(
            clip_norm=arguments.number(
                "l2_norm_clip", l2_norm_clip, least=_LEAST_CLIP
            ),
            noise_multiplier=noise,
            seed=arguments.seed(seed),
        ),
        clipping=clipping_lib.get(clipping),
        expected_batch_size=_positive(
            "expected_batch_size", expected_batch_size
        ),
        microbatch_size=None
        if microbatch_size is None
        else arguments.positive_integer(
            "microbatch_size", microbatch_size, hint="Or None: the whole batch."
        ),
        loss_scale_factor=_positive("loss_scale_factor", loss_scale_factor),
        secure=_checked_secure(secure, seed),
        calibrates=math.isnan(noise),
        correlated_noise=_banded(correlated_noise),
        sparse_tables=sparse_lib.checked(sparse_tables),
    )
    _check_correlated(settings)
    _check_sparse(settings)
    return settings


def _banded(value: Any) -> Banded | None:
    """Checks and deserializes `correlated_noise`."""
    if isinstance(value, dict):
        value = keras.saving.deserialize_keras_object(value)
    if value is None or isinstance(value, Banded):
        return value
    raise ValueError(
        "`correlated_noise` must be a tf_dpfp.Banded, or None for independent "
        f"noise. Received: correlated_noise={value!r}"
    )


def _check_correlated(settings: PrivacySettings) -> None:
    """Refuses settings that correlated noise is not made for."""
    if settings.bands == 1:
        return
    if settings.bands is None and not settings.calibrates:
        raise ValueError(
            "bands='best' depends on the budget, and is found together with "
            "the noise multiplier. Give noise_multiplier='calibrate', or a "
            "number of bands. Received: noise_multiplier="
            f"{settings.sums.noise_multiplier:g}"
        )


def _check_sparse(settings: PrivacySettings) -> None:
    """Refuses settings that sparse tables are not made for."""
    if settings.sparse_tables is None:
        return
    if settings.bands != 1:
        raise ValueError(
            "Correlated noise takes back noise of earlier steps, and of a row "
            "that was not released then there is none. Leave one of them out. "
            f"Received: correlated_noise={settings.correlated_noise}, "
            f"sparse_tables={settings.sparse_tables}"
        )
    if isinstance(settings.clipping, clipping_lib.PerDevice):
        raise ValueError(
            "Contributions to sparse tables are clipped together, on one "
            "device. Use clipping='flat' or 'per_layer'. Received: "
            f"clipping={settings.clipping}"
        )


def _noise_multiplier(value: Any) -> float:
    """Checks a noise multiplier; NaN for one that `fit` is to find."""
    if isinstance(value, str) and value == CALIBRATE:
        return math.nan
    return arguments.number(
        "noise_multiplier",
        value,
        least=0.0,
        hint="Or 'calibrate': `fit` finds it for its PrivacyBudget.",
    )


def _checked_secure(secure: bool, seed: int | None) -> bool:
    secure = arguments.boolean("secure", secure)
    if not secure:
        return False
    if seed is not None:
        raise ValueError(
            "`seed` makes noise that can be repeated, and `secure=True` noise "
            "that nobody can repeat. Leave one of them out. Received: "
            f"seed={seed}, secure=True"
        )
    noise_lib.check_secure()
    return True


def _positive(name: str, value: Any) -> float | None:
    return None if value is None else arguments.number(name, value, above=0.0)


def keras_arguments(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Splits off the argument that the Keras optimizer must not see.

    Args:
        args: Positional arguments of the private optimizer.
        kwargs: Keyword arguments that are not the private optimizer's own.

    Returns:
        The arguments of the Keras optimizer, and `loss_scale_factor`: the loss
        is scaled inside the private step, where one example's overflow stays
        that example's, and Keras must not divide once more.

    Raises:
        ValueError: If gradients are to be accumulated by Keras, the learning
            rate is not finite, or a name is nearly that of a setting.
    """
    own = list(inspect.signature(checked_settings).parameters)
    for name in kwargs:
        if name == "num_microbatches":
            raise ValueError(
                "`num_microbatches` is no argument of a private optimizer: "
                "every example is clipped by itself. Leave it out, or bound "
                "memory by `microbatch_size`, a number of examples. Received: "
                f"num_microbatches={kwargs[name]!r}"
            )
        near = difflib.get_close_matches(name, own, 1, 0.85)
        here = _ELSEWHERE.get(name) or (near[0] if near else None)
        if here and name not in own:
            raise ValueError(
                f"`{name}` is no argument of a private optimizer: it is spelt "
                f"`{here}`. Received: {name}={kwargs[name]!r}"
            )
    if kwargs.get("gradient_accumulation_steps"):
        raise ValueError(
            "`gradient_accumulation_steps` would add noise once per piece "
            "of a batch. Use `microbatch_size`, which adds it once per "
            "batch. Received: gradient_accumulation_steps="
            f"{kwargs['gradient_accumulation_steps']}"
        )
    kwargs = dict(kwargs)
    rate = args[0] if args else kwargs.get("learning_rate", 0.0)
    if isinstance(rate, (int, float)) and not math.isfinite(rate):
        raise ValueError(
            "`learning_rate` must be a finite number, or a schedule: any other "
            "turns every weight into NaN at the first step. Received: "
            f"learning_rate={rate}"
        )
    loss_scale = kwargs.pop("loss_scale_factor", None)
    # Keras would make an integer variable of an integer.
    if args and isinstance(args[0], int):
        args = (float(args[0]), *args[1:])
    if isinstance(kwargs.get("learning_rate"), int):
        kwargs["learning_rate"] = float(kwargs["learning_rate"])
    return args, kwargs, loss_scale
