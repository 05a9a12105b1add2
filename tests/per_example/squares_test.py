"""Sums of squares, held against float64."""

import numpy as np
import pytest
import tensorflow as tf

from tf_dpfp import compilation
from tf_dpfp.clipping import factors
from tf_dpfp.per_example import squares

# More than one loses, and less than the margin of the clip factor holds.
BOUND = 2.0**-17


def _under_xla(values, known=True):
    @tf.function(jit_compile=True, autograph=False)
    def summed(values):
        with compilation.tracing_for(compilation.Target.XLA):
            if not known:
                values = tf.reshape(values, [1, tf.size(values)])
            return squares.sum_squares(values)

    if not known:
        specs = [tf.TensorSpec([None, None])]
        return summed.get_concrete_function(*specs)(tf.constant(values))
    return summed(tf.constant(values))


# Roundings of equal addends all go the same way.
@pytest.mark.parametrize("constant", [1.22, 1.6180339])
@pytest.mark.parametrize("length", [2**14 - 1, 2**22, 2**22 + 127])
def test_long_rows_lose_no_addend_under_xla(length, constant):
    """Compiled for a CPU, float32 sums can be 1e-4 too low."""
    values = np.full((1, length), constant, np.float32)
    expected = length * float(np.float32(constant)) ** 2
    found = _under_xla(values).numpy().astype(np.float64)
    np.testing.assert_allclose(found, [expected], rtol=BOUND)


def test_a_piece_holds_the_margin_in_whatever_order_it_is_added():
    # Every addition but the first rounds by half a unit in the last place.
    lost = (squares._PIECE - 1) * 2.0**-24
    assert lost < (1.0 - factors.ROUNDING_MARGIN) / 4


def test_every_number_of_a_long_row_counts():
    # One large number at each end of a piece, and in the rest.
    length = 2**14 + 5
    for place in (0, 127, 128, 2**14 - 1, 2**14, length - 1):
        values = np.zeros((2, length), np.float32)
        values[1, place] = 3.0
        np.testing.assert_array_equal(_under_xla(values), [0.0, 9.0])


def test_rows_of_unknown_length_are_added_up_in_float64():
    values = np.full((1, 2**20), 1.6180339, np.float32)
    expected = 2**20 * float(np.float32(1.6180339)) ** 2
    found = _under_xla(values, known=False).numpy().astype(np.float64)
    np.testing.assert_allclose(found, [expected], rtol=2.0**-23)


def test_an_overflow_is_infinite():
    values = np.full((1, 2**14), 1e20, np.float32)
    assert np.isposinf(_under_xla(values).numpy()).all()
