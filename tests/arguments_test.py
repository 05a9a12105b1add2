import math

import numpy as np
import pytest

from tf_dpfp import arguments


@pytest.mark.parametrize(
    "value",
    ["1.0", True, np.True_, None, math.nan, math.inf, 1j, [1.0], b"1", 10**400],
)
def test_a_number_is_real_and_finite(value):
    with pytest.raises(ValueError, match="`rate` must be a finite number"):
        arguments.number("rate", value)


@pytest.mark.parametrize(
    "value", [1, 1.0, np.float32(1), np.int64(1), np.array(1.0), np.array(1)]
)
def test_a_number_of_any_type_becomes_a_float(value):
    found = arguments.number("rate", value)
    assert found == 1.0 and type(found) is float


def test_minus_zero_becomes_zero():
    assert math.copysign(1.0, arguments.number("noise", -0.0)) == 1.0


@pytest.mark.parametrize(
    ("limits", "outside"),
    [
        ({"least": 0.0}, -1e-300),
        ({"most": 1.0}, 1.0000001),
        ({"above": 0.0}, 0.0),
        ({"below": 1.0}, 1.0),
    ],
)
def test_every_bound_is_kept(limits, outside):
    with pytest.raises(ValueError, match=r"Received: rate="):
        arguments.number("rate", outside, **limits)


def test_a_message_names_range_and_way_out():
    with pytest.raises(ValueError) as caught:
        arguments.number("rate", 2, above=0, most=1, hint="Lower it.")
    assert str(caught.value) == (
        "`rate` must be a finite number above 0 and at most 1. Lower it. "
        "Received: rate=2"
    )


@pytest.mark.parametrize(
    "value", ["8", 8.0, True, np.True_, None, 0, -1, 2**60]
)
def test_a_count_is_an_integer_of_at_least_one(value):
    with pytest.raises(ValueError, match="`steps` must be an integer"):
        arguments.positive_integer("steps", value)


def test_integers_of_any_type_become_python_ints():
    found = arguments.integer("steps", np.int32(7))
    assert found == 7 and type(found) is int


@pytest.mark.parametrize("value", [True, -1, 1.0, "1", 2**63, [1]])
def test_no_other_seed_is_taken(value):
    with pytest.raises(ValueError, match="`seed` must be None or an integer"):
        arguments.seed(value)


@pytest.mark.parametrize("value", [None, 0, 2**63 - 1, np.int64(3)])
def test_seeds_are_taken(value):
    assert arguments.seed(value) == value


@pytest.mark.parametrize("value", [0, 1, None, "True", np.zeros(2)])
def test_a_boolean_is_one(value):
    with pytest.raises(ValueError, match="must be True or False"):
        arguments.boolean("padded", value)
    assert arguments.boolean("padded", np.True_) is True


@pytest.mark.parametrize("value", ["a ", None, 1, np.array(["a", "b"])])
def test_a_choice_is_among_the_names(value):
    with pytest.raises(ValueError, match=r"one of \['a', 'b'\]"):
        arguments.one_of("kind", value, ["a", "b"])
    assert arguments.one_of("kind", "a", ["a", "b"]) == "a"
