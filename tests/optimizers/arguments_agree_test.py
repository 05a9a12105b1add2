"""The same argument is refused alike, wherever it is given."""

import math

import pytest

import tf_dpfp
from tf_dpfp import low_rank

ENTRY_POINTS = {
    "seed": [
        lambda value: tf_dpfp.DPSGD(0.1, noise_multiplier=1.0, seed=value),
        lambda value: tf_dpfp.DPRepresentationClip(1.0, 1.0, seed=value),
        lambda value: low_rank.Reparametrization(rank=1, seed=value),
    ],
    "noise_multiplier": [
        lambda value: tf_dpfp.DPSGD(0.1, noise_multiplier=value),
        lambda value: tf_dpfp.DPRepresentationClip(1.0, value),
    ],
    "l2_norm_clip": [
        lambda value: tf_dpfp.DPSGD(
            0.1, noise_multiplier=1.0, l2_norm_clip=value
        ),
    ],
    "clip_norm": [lambda value: tf_dpfp.DPRepresentationClip(value, 1.0)],
    "expected_batch_size": [
        lambda value: tf_dpfp.DPSGD(
            0.1, noise_multiplier=1.0, expected_batch_size=value
        ),
    ],
    "microbatch_size": [
        lambda value: tf_dpfp.DPSGD(
            0.1, noise_multiplier=1.0, microbatch_size=value
        ),
    ],
    "rank": [lambda value: low_rank.Reparametrization(rank=value)],
    "learning_rate": [
        lambda value: tf_dpfp.clipping.Adaptive(learning_rate=value)
    ],
    "stability": [lambda value: tf_dpfp.clipping.Automatic(stability=value)],
}
NO_NUMBERS = ["1", "1.0", True, False, -1, math.nan, math.inf, 1j, [1.0], {}]
CASES = [
    (name, make, value)
    for name, several in ENTRY_POINTS.items()
    for make in several
    for value in NO_NUMBERS
]


@pytest.mark.parametrize(("name", "make", "value"), CASES)
def test_what_is_no_number_is_refused_with_its_name_and_value(
    name, make, value
):
    with pytest.raises(ValueError) as error:
        make(value)
    message = str(error.value)
    assert message.startswith(f"`{name}` must be ")
    assert message.endswith(f"Received: {name}={value!r}")


@pytest.mark.parametrize(
    "make",
    [
        lambda value: tf_dpfp.clipping.Adaptive(rescale=value),
        lambda value: tf_dpfp.clipping.Adaptive(shared=value, rescale=False),
        lambda value: tf_dpfp.DPRepresentationClip(1.0, 1.0, end_to_end=value),
        lambda value: low_rank.Reparametrization(rank=1, left_only=value),
    ],
)
@pytest.mark.parametrize("value", [0, 1, "False", None])
def test_what_is_no_boolean_is_refused(make, value):
    with pytest.raises(ValueError, match="must be True or False. Received"):
        make(value)
