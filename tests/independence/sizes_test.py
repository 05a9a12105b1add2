import hypothesis
import pytest
from hypothesis import strategies as st

from tf_dpfp.independence import sizes
from tf_dpfp.independence.sizes import BATCH
from tf_dpfp.independence.sizes import ROW
from tf_dpfp.independence.sizes import Size

TIME = Size.symbol("time")
WIDTH = Size.symbol("width")

_terms = st.dictionaries(
    st.lists(st.sampled_from(["batch", "time", "width"]), max_size=2).map(
        lambda symbols: tuple(sorted(symbols))
    ),
    st.integers(-4, 4),
    max_size=3,
)
_polynomials = _terms.map(Size)


def _at(size, batch, time, width):
    values = {"batch": batch, "time": time, "width": width}
    total = 0
    for key, factor in size.terms.items():
        for symbol in key:
            factor *= values[symbol]
        total += factor
    return total


_values = st.tuples(*[st.integers(1, 5)] * 3)


@hypothesis.given(_polynomials, _polynomials, _values)
def test_arithmetic_is_that_of_numbers(a, b, values):
    assert _at(a + b, *values) == _at(a, *values) + _at(b, *values)
    assert _at(a - b, *values) == _at(a, *values) - _at(b, *values)
    assert _at(a * b, *values) == _at(a, *values) * _at(b, *values)
    least = a.least()
    assert least is None or least <= _at(a, *values)


@hypothesis.given(_polynomials, _polynomials)
def test_division_undoes_multiplication(a, b):
    hypothesis.assume(b.terms)
    assert (a * b).divided_by(b) == a


@hypothesis.given(_polynomials, _polynomials, _values)
def test_quotient_is_exact_or_none(a, b, values):
    quotient = a.divided_by(b)
    if quotient is not None:
        assert _at(quotient, *values) * _at(b, *values) == _at(a, *values)


def test_quotients():
    merged = BATCH * (TIME + 2)
    assert merged.divided_by(TIME + 2) == BATCH
    assert merged.divided_by(TIME) is None
    assert (BATCH * 6).divided_by(4) is None
    assert Size.of(0).divided_by(BATCH) == 0
    assert BATCH.divided_by(0) is None


def test_equality_and_hash():
    assert BATCH * 2 - BATCH == BATCH
    assert Size.of(3) == 3 and 3 == Size.of(3)
    assert hash(Size.of(3)) == hash(3)
    assert BATCH != TIME and BATCH != 1
    assert len({BATCH * TIME, TIME * BATCH, BATCH}) == 2


def test_numbers():
    assert int(Size.of(7)) == 7 and Size.of(7).is_number
    with pytest.raises(ValueError, match="not known"):
        int(BATCH)


def test_bounds():
    assert (BATCH * 2 + TIME).least() == 3
    assert (BATCH - 1).least() == 0
    assert (3 - BATCH).least() is None
    # The first row has the number 0.
    assert ROW.least() == 0


def test_batch():
    assert (TIME * BATCH + 1).hangs_on_batch
    assert ROW.hangs_on_batch and ROW.names_row
    assert not (TIME + 1).hangs_on_batch
    assert sizes.hang_on_batch([None, TIME, BATCH])
    assert not sizes.hang_on_batch([None, TIME])


def test_product():
    assert sizes.product([BATCH, Size.of(2), TIME]) == BATCH * TIME * 2
    assert sizes.product([]) == 1
    assert sizes.product([BATCH, None]) is None
