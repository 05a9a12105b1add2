"""Suggested settings: the accountant's numbers, and the rule that is told."""

import dataclasses
import math
import re

import numpy as np
import pytest

import tf_dpfp
from tf_dpfp import accounting

SIZE, EPSILON, DELTA, EPOCHS = 2000, 4.0, 1e-4, 60


@pytest.fixture(scope="module")
def found():
    return tf_dpfp.tuning.suggest(
        SIZE, EPSILON, DELTA, epochs=EPOCHS, num_weights=10_000
    )


def _noise(batch_size, steps):
    """Noise of the mean gradient over all steps, per weight and clip norm."""
    noise = accounting.calibrate_noise_multiplier(
        EPSILON, DELTA, batch_size / SIZE, steps
    )
    return noise, noise / batch_size / math.sqrt(steps)


def test_the_numbers_are_the_accountants_and_keep_the_budget(found):
    assert found.sampling_rate == found.batch_size / SIZE
    assert found.steps == round(EPOCHS * SIZE / found.batch_size)
    noise, _ = _noise(found.batch_size, found.steps)
    assert found.noise_multiplier == noise
    entry = accounting.LedgerEntry(
        accounting.PoissonSampling(found.sampling_rate), noise, found.steps
    )
    spent = accounting.compute_epsilon([entry], DELTA)
    assert 0.999 * EPSILON < spent <= EPSILON
    assert found.learning_rate * found.l2_norm_clip == pytest.approx(2.0)
    # Whole epochs round: more steps would spend more, and it says so.
    batches = tf_dpfp.poisson_batches(
        np.zeros(SIZE), expected_batch_size=found.batch_size
    )
    for said in (
        f"epoch of its own choice has {len(batches)} steps",
        f"give `poisson_batches` steps_per_epoch={found.steps}",
    ):
        assert said in _words(found)


def test_it_is_the_smallest_batch_near_the_least_noise(found):
    sizes = [32, 64, 128, 256, 512, 1024, SIZE]
    assert [c.batch_size for c in found.considered] == sizes
    noise = {s: _noise(s, round(EPOCHS * SIZE / s))[1] for s in sizes}
    for candidate in found.considered:
        assert candidate.relative_noise == pytest.approx(
            noise[candidate.batch_size], rel=0.03
        )
    least = min(noise.values())
    near = [s for s in sizes if noise[s] <= 1.1 * least]
    assert found.batch_size == near[0] > 32
    assert "smallest of those within 10 %" in _words(found)


def _words(found):
    return " ".join(str(found).split())


def test_reasons_have_the_numbers_and_their_sources(found):
    words = _words(found)
    for said in (
        f"Batch size {found.batch_size}, {found.steps} steps in 60 epochs",
        f"Noise multiplier {found.noise_multiplier:.4g}",
        "within epsilon 4 at delta 0.0001",
        "Learning rate 20 of SGD",
        "Sander et al., 2023",
        "De et al., 2022",
        "Tramer and Boneh, 2021",
        "rule of thumb",
    ):
        assert said in words
    assert max(map(len, str(found).splitlines())) <= 80
    (ratio,) = re.findall(r"is ([\d.]+) times as long", words)
    expected = found.noise_multiplier * 100.0 / found.batch_size
    assert float(ratio) == pytest.approx(expected, rel=0.01)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.steps = 1


def test_bounds_of_steps_and_batches_are_told():
    few = tf_dpfp.tuning.suggest(SIZE, EPSILON, DELTA, epochs=8)
    assert few.steps >= 250 and few.batch_size < SIZE // 8
    assert "fewer than 250 steps" in _words(few)
    small = tf_dpfp.tuning.suggest(
        SIZE, EPSILON, DELTA, epochs=EPOCHS, largest_batch_size=48
    )
    assert small.batch_size <= 48 and len(small.considered) == 2
    assert "were considered" in _words(small)
    assert "times as long" not in _words(small)


def test_tuning_keeps_the_noise_and_the_steps(found):
    small = found.for_tuning(4)
    assert small.steps == found.steps
    assert small.batch_size == found.batch_size // 4
    assert small.noise_multiplier / small.batch_size == pytest.approx(
        found.noise_multiplier / found.batch_size
    )
    # On the private data it would spend more.
    entry = accounting.LedgerEntry(
        accounting.PoissonSampling(small.batch_size / SIZE),
        small.noise_multiplier,
        small.steps,
    )
    assert accounting.compute_epsilon([entry], DELTA) > 2 * EPSILON
    with pytest.raises(ValueError, match="at most the batch size"):
        found.for_tuning(10**6)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"delta": 1e-3}, "below one over the number"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"epochs": 0}, "epochs"),
        ({"num_examples": 0}, "num_examples"),
        ({"num_weights": -1, "largest_batch_size": 32}, "num_weights"),
        ({"largest_batch_size": 0}, "largest_batch_size"),
        ({"l2_norm_clip": 0.0}, "l2_norm_clip"),
    ],
)
def test_refusals(changed, message):
    given = {"num_examples": SIZE, "epsilon": EPSILON, "delta": DELTA}
    with pytest.raises(ValueError, match=message):
        tf_dpfp.tuning.suggest(**(given | changed))
