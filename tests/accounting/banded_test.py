"""Strategies of correlated noise, against matrices written out."""

import itertools

import numpy as np
import pytest
from scipy import linalg
from scipy import optimize

from tf_dpfp.accounting import banded


def matrix(coefficients, steps):
    """C, written out."""
    column = np.zeros(steps)
    kept = min(len(coefficients), steps)
    column[:kept] = coefficients[:kept]
    return linalg.toeplitz(column, np.zeros(steps))


def dense_error(coefficients, steps):
    sums = np.tril(np.ones((steps, steps)))
    noise = sums @ np.linalg.inv(matrix(coefficients, steps))
    return np.sqrt(np.sum(noise**2) / steps)


def greatest_shift(c, parts):
    """The most that one example moves C x, in clip norms, by brute force.

    Over all sets of steps that are in one part, all signs of contributions of
    length one, and every number of them: rounds must add up by squares.
    """
    steps = len(c)
    worst = 0.0
    for first in range(parts):
        allowed = range(first, steps, parts)
        for count in range(1, len(allowed) + 1):
            for chosen in itertools.combinations(allowed, count):
                for signs in itertools.product([-1.0, 1.0], repeat=count):
                    moved = c[:, chosen] @ np.array(signs)
                    worst = max(worst, moved @ moved / count)
    return np.sqrt(worst)


@pytest.mark.parametrize("bands", [1, 2, 3, 8])
@pytest.mark.parametrize("steps", [1, 7, 40])
def test_the_error_is_that_of_the_matrix_written_out(bands, steps):
    for coefficients in (
        banded.square_root(bands),
        np.array(banded.coefficients(bands, steps)),
    ):
        assert banded.relative_error(coefficients, steps) == pytest.approx(
            dense_error(coefficients, steps), rel=1e-9
        )


@pytest.mark.parametrize(("bands", "steps"), [(2, 11), (3, 9), (4, 10)])
def test_one_example_moves_each_round_by_at_most_a_clip_norm(bands, steps):
    c = matrix(banded.coefficients(bands, steps), steps)
    assert np.all(np.linalg.norm(c, axis=0) <= 1.0 - 1e-7)
    assert greatest_shift(c, bands) <= 1.0
    # Not so loosely that noise is wasted.
    assert greatest_shift(c, bands) > 1.0 - 1e-5
    # Closer together, steps share noise, and an example moves them by more.
    assert greatest_shift(c, bands - 1) > 1.1


def test_all_examples_in_all_steps_move_a_row_by_at_most_the_root_of_bands():
    assert banded.coefficients(1, 40) == (1.0,)
    for bands in (2, 5, 16):
        row = matrix(banded.coefficients(bands, 40), 40)[-1]
        assert np.sum(np.abs(row)) <= np.sqrt(bands)


@pytest.mark.parametrize(("bands", "steps"), [(2, 30), (4, 25), (6, 60)])
def test_coefficients_are_the_best_by_another_search(bands, steps):
    def error(free):
        c = np.concatenate([[1.0], free])
        return np.log(dense_error(c, steps) * np.linalg.norm(c))

    found = optimize.minimize(
        error,
        banded.square_root(bands)[1:] / banded.square_root(bands)[0],
        method="Nelder-Mead",
        options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 20_000},
    )
    mine = banded.coefficients(bands, steps)
    assert dense_error(mine, steps) == pytest.approx(
        np.exp(found.fun), rel=2e-6
    )


@pytest.mark.parametrize(
    ("bands", "steps", "loss"),
    [
        # What `optimize_banded_toeplitz` of JAX-Privacy finds, in float64.
        (2, 293, 75.7000057207),
        (4, 293, 40.5162114293),
        (8, 293, 23.1966912761),
        (16, 293, 14.6140088678),
        (8, 1318, 90.3090494765),
    ],
)
def test_coefficients_are_as_good_as_those_of_jax_privacy(bands, steps, loss):
    found = np.array(banded.coefficients(bands, steps))
    found /= np.linalg.norm(found)
    assert banded.relative_error(found, steps) ** 2 == pytest.approx(
        loss, rel=1e-9
    )


def test_gradient_of_the_search_is_that_of_differences():
    c = banded.square_root(5) * 1.3
    _, gradient = banded._log_squared_error(c, 50)
    numeric = optimize.approx_fprime(
        c, lambda v: banded._log_squared_error(v, 50)[0], 1e-7
    )
    np.testing.assert_allclose(gradient, numeric, atol=1e-5)


def test_generic_coefficients_are_the_series_of_the_square_root():
    # (1 - x)^(-1/2) squared is 1 + x + x^2 + ...
    c = banded.square_root(12)
    np.testing.assert_allclose(np.convolve(c, c)[:12] / c[0] ** 2, 1.0)


def test_rounding_dies_out_in_long_trainings():
    for bands in (2, 8, 64):
        assert banded._decays(np.array(banded.coefficients(bands, 20_000)))


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_bands_that_no_step_reaches_are_zero(steps):
    found = np.array(banded.coefficients(6, steps))
    assert found.shape == (6,) and not np.any(found[steps:])
    assert 1.0 - 1e-5 < np.linalg.norm(found) < 1.0
    assert banded._decays(found)


@pytest.mark.parametrize("wrong", [{"bands": 0}, {"steps": 0}])
def test_refuses_numbers_that_are_not_positive(wrong):
    with pytest.raises(ValueError, match="Received"):
        banded.coefficients(**({"bands": 2, "steps": 5} | wrong))
