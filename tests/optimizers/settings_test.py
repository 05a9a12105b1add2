"""Settings of a private optimizer: what noise, ledger and files read."""

import inspect
import math

import keras
import pytest

import tf_dpfp
from tf_dpfp import accounting
from tf_dpfp import counting
from tf_dpfp import noise as noise_lib
from tf_dpfp.optimizers import settings as settings_lib

ROWS = counting.GaussianRelease(
    2.0, 3.0, kind=accounting.Representations("public")
)
BANDS, TABLES = tf_dpfp.Banded(4), tf_dpfp.Sparse(["a", "b"], threshold=2.0)
ADAPTIVE = tf_dpfp.Flat(thresholds=tf_dpfp.clipping.Adaptive(rescale=False))


def _settings(**kwargs):
    given = {
        "l2_norm_clip": 0.5,
        "noise_multiplier": 1.5,
        "clipping": "flat",
        "expected_batch_size": None,
        "microbatch_size": None,
        "seed": None,
        "loss_scale_factor": None,
        "secure": False,
    }
    return settings_lib.checked_settings(**given | kwargs)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"seed": 3, "microbatch_size": 4, "expected_batch_size": 7.0},
        {"secure": True, "loss_scale_factor": 8.0},
        {"noise_multiplier": "calibrate", "clipping": ADAPTIVE},
        {"correlated_noise": BANDS},
        {"sparse_tables": TABLES},
    ],
    ids=lambda kwargs: ", ".join(kwargs),
)
def test_what_is_saved_is_what_is_loaded(kwargs):
    settings = _settings(**kwargs)
    again = settings_lib.checked_settings(**settings.get_config())
    # NaN, which is not known yet, equals nothing.
    known = {} if settings.calibrates else {"release": settings.release}
    for name, value in known.items():
        assert getattr(again, name) == value
    for name in ("clip_norm", "seed", "kind", "is_calibrated"):
        assert getattr(again.sums, name) == getattr(settings.sums, name)
    for name in (
        "clipping",
        "expected_batch_size",
        "microbatch_size",
        "loss_scale_factor",
        "secure",
        "calibrates",
        "bands",
        "correlated_noise",
        "sparse_tables",
    ):
        assert getattr(again, name) == getattr(settings, name), name
    assert settings.secure == kwargs.get("secure", False)
    assert settings.bands == (4 if "correlated_noise" in kwargs else 1)


def test_noise_and_ledger_are_of_the_release_that_was_asked_for():
    settings = _settings(seed=3)
    assert settings.release == counting.GaussianRelease(0.5, 1.5, 3)
    assert settings.sums == settings.release
    assert settings.representations is None
    persons = accounting.PersonSums(2)
    assert settings.release_of(persons).kind == persons
    assert settings.release_of(None) == settings.release
    joint = settings.joint_with(ROWS)
    assert joint.sums == settings.sums and joint.representations == ROWS
    assert joint.release == counting.JointRelease(ROWS, settings.sums)
    for before in (settings, joint):
        after = before.with_noise(0.25)
        assert after.sums.noise == (0.5, 0.25, 3)
        assert after.representations == before.representations
        with pytest.raises(ValueError, match="noise_multiplier"):
            before.with_noise(0.0)
    waits = _settings(noise_multiplier="calibrate")
    assert waits.calibrates and math.isnan(waits.sums.noise_multiplier)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"noise_multiplier": None}, "must be given"),
        ({"noise_multiplier": -1e-3}, "noise_multiplier"),
        ({"l2_norm_clip": 9e-11}, "l2_norm_clip"),
        ({"expected_batch_size": 0.0}, "expected_batch_size"),
        ({"loss_scale_factor": -1.0}, "loss_scale_factor"),
        ({"seed": 1, "secure": True}, "that nobody can repeat"),
        ({"correlated_noise": tf_dpfp.Banded("best")}, "on the budget"),
        ({"correlated_noise": 4}, "must be a tf_dpfp.Banded"),
        (
            {"correlated_noise": BANDS, "sparse_tables": TABLES},
            "there is none",
        ),
        (
            {"clipping": tf_dpfp.clipping.PerDevice(), "sparse_tables": TABLES},
            "clipped together",
        ),
    ],
)
def test_what_is_not_proved_is_refused(kwargs, words):
    with pytest.raises(ValueError, match=words):
        _settings(**kwargs)


def test_secure_noise_needs_its_package(monkeypatch):
    def missing():
        raise ImportError("cryptography")

    monkeypatch.setattr(noise_lib, "check_secure", missing)
    with pytest.raises(ImportError):
        _settings(secure=True)


def test_keras_must_not_add_up_batches_or_scale_losses():
    args, kwargs, scale = settings_lib.keras_arguments(
        (1,), {"loss_scale_factor": 4.0, "momentum": 0.5}
    )
    assert (args, kwargs, scale) == ((1.0,), {"momentum": 0.5}, 4.0)
    assert isinstance(args[0], float)
    with pytest.raises(ValueError, match="once per piece"):
        settings_lib.keras_arguments((), {"gradient_accumulation_steps": 2})
    for args, kwargs in (
        ((math.inf,), {}),
        ((), {"learning_rate": math.nan}),
    ):
        with pytest.raises(ValueError, match="finite number, or a schedule"):
            settings_lib.keras_arguments(args, kwargs)
    for misspelt, name in (
        ("noise_mutliplier", "noise_multiplier"),
        ("l2_norm_clp", "l2_norm_clip"),
        ("expected_batchsize", "expected_batch_size"),
        # What others call it: TensorFlow Privacy, Opacus, and guesses.
        ("max_grad_norm", "l2_norm_clip"),
        ("clip_norm", "l2_norm_clip"),
        ("noise_mult", "noise_multiplier"),
        ("batch_size", "expected_batch_size"),
    ):
        with pytest.raises(ValueError, match=f"spelt `{name}`. .*{misspelt}=1"):
            settings_lib.keras_arguments((), {misspelt: 1})
    with pytest.raises(ValueError, match="every example is clipped by itself"):
        settings_lib.keras_arguments((), {"num_microbatches": 8})
    # None of Keras's own is taken for one of these.
    for base in vars(keras.optimizers).values():
        if isinstance(base, type):
            names = inspect.signature(base).parameters
            known = dict.fromkeys(names.keys() - {"learning_rate"})
            settings_lib.keras_arguments((), known)
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    assert settings_lib.keras_arguments((schedule,), {})[0] == (schedule,)
