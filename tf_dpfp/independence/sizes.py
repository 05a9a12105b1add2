"""Sizes of tensors, as polynomials in the batch size and unknown sizes.

The proof must tell a number from the batch size, and `batch * time` from
`batch`. So a size is a polynomial with whole coefficients; its symbols are the
batch size and the sizes that are not known while a graph is traced. Every
symbol stands for a size of at least one, but for the number of a row.
"""

from collections.abc import Iterable
from typing import Union

_BATCH = "batch"
_ROW = "row"

Monomial = tuple[str, ...]
SizeLike = Union["Size", int]

# A number that is computed of sizes may be larger than any tensor, and wraps
# around. Axes are taken to be shorter than 2**15.
_AXIS_BITS = 15

# Sizes of small numbers are made once.
_NUMBERS: dict[int, "Size"] = {}
_MOST_KNOWN = 2**12


class Size:
    """A polynomial with whole coefficients.

    Attributes:
        terms: Coefficient of every monomial, a sorted tuple of symbols.
        is_number: True if no symbol occurs.
        hangs_on_batch: True if the batch size occurs, or the number of a row.

    Example:

    >>> merged = BATCH * Size.symbol("time")
    >>> merged.divided_by(BATCH)
    time
    """

    __slots__ = ("_hash", "hangs_on_batch", "is_number", "terms")

    def __init__(self, terms: dict[Monomial, int]):
        found = {key: value for key, value in terms.items() if value}
        self.terms = found
        # Asked for much more often than sizes are made.
        self.is_number = not found or (len(found) == 1 and () in found)
        self.hangs_on_batch = not self.is_number and any(
            _BATCH in key or _ROW in key for key in found
        )
        self._hash: int | None = None

    @classmethod
    def of(cls, value: SizeLike) -> "Size":
        """Returns a size for a whole number; a size is returned as it is."""
        if isinstance(value, Size):
            return value
        number = int(value)
        known = _NUMBERS.get(number)
        if known is None:
            known = cls({(): number})
            if abs(number) <= _MOST_KNOWN:
                _NUMBERS[number] = known
        return known

    @classmethod
    def symbol(cls, name: str) -> "Size":
        """Returns an unknown size of at least one."""
        return cls({(name,): 1})

    def __int__(self) -> int:
        if not self.is_number:
            raise ValueError(f"The size {self} is not known.")
        return self.terms.get((), 0)

    @property
    def names_row(self) -> bool:
        """True if the number of a row occurs."""
        return any(_ROW in key for key in self.terms)

    def least(self) -> int | None:
        """Returns a lower bound, or `None` if none is known."""
        bound = 0
        for key, value in self.terms.items():
            if key and value < 0:
                return None
            # The first row has the number 0.
            bound += 0 if _ROW in key else value
        return bound

    def may_fit(self, bits: int) -> bool:
        """Tells if a tensor may be so large, in numbers of so many bits."""
        most = max(map(abs, self.terms.values()), default=0)
        return bits >= 32 and most < 2 ** (bits - 1)

    def surely_fits(self, bits: int) -> bool:
        """Tells if the number is below all that wraps around."""
        if not self.may_fit(bits):
            return False
        return all(_is_small(*item, bits) for item in self.terms.items())

    def divided_by(self, divisor: SizeLike) -> Union["Size", None]:
        """Returns the quotient, or `None` if the division is not exact."""
        other = Size.of(divisor)
        if not other.terms:
            return None
        if len(other.terms) == 1 and () in other.terms:
            return self._divided_by_number(other.terms[()])
        lead, factor = max(other.terms.items(), key=_order)
        quotient: dict[Monomial, int] = {}
        rest = self
        while rest.terms:
            key, value = max(rest.terms.items(), key=_order)
            ratio = _without(key, lead)
            if ratio is None or value % factor:
                return None
            quotient[ratio] = value // factor
            rest = rest - other * Size({ratio: value // factor})
        return Size(quotient)

    def _divided_by_number(self, divisor: int) -> Union["Size", None]:
        if any(value % divisor for value in self.terms.values()):
            return None
        return Size({k: value // divisor for k, value in self.terms.items()})

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Size):
            return self is other or self.terms == other.terms
        if isinstance(other, int):
            return self.is_number and self.terms.get((), 0) == other
        return False

    def __hash__(self) -> int:
        if self._hash is None:
            # A number and its size are equal, and so must be their hashes.
            number = self.is_number
            items = frozenset(self.terms.items())
            self._hash = hash(int(self)) if number else hash(items)
        return self._hash

    def __add__(self, other: SizeLike) -> "Size":
        other = Size.of(other)
        if not other.terms:
            return self
        terms = dict(self.terms)
        for key, value in other.terms.items():
            terms[key] = terms.get(key, 0) + value
        return Size(terms)

    __radd__ = __add__

    def __neg__(self) -> "Size":
        return Size({key: -value for key, value in self.terms.items()})

    def __sub__(self, other: SizeLike) -> "Size":
        return self + -Size.of(other)

    def __rsub__(self, other: SizeLike) -> "Size":
        return Size.of(other) - self

    def __mul__(self, other: SizeLike) -> "Size":
        other = Size.of(other)
        if self is ONE or other is ONE:
            return other if self is ONE else self
        if self.is_number and other.is_number:
            return Size.of(self.terms.get((), 0) * other.terms.get((), 0))
        terms: dict[Monomial, int] = {}
        for a, x in self.terms.items():
            for b, y in other.terms.items():
                key = tuple(sorted(a + b))
                terms[key] = terms.get(key, 0) + x * y
        return Size(terms)

    __rmul__ = __mul__

    def __repr__(self) -> str:
        words = []
        for key, value in sorted(self.terms.items(), key=_order, reverse=True):
            number = [str(value)] if value != 1 or not key else []
            words.append(" * ".join(number + list(key)))
        return " + ".join(words) or "0"


def _is_small(key: Monomial, value: int, bits: int) -> bool:
    # The square of the batch size is the size of nothing per example.
    if bits <= 32 and key.count(_BATCH) > 1:
        return False
    return abs(value) <= 2 ** (bits - 1 - _AXIS_BITS * len(key))


def _order(item: tuple[Monomial, int]) -> tuple[int, Monomial]:
    """Orders monomials in a way that multiplication keeps."""
    return len(item[0]), item[0]


def _without(key: Monomial, part: Monomial) -> Monomial | None:
    """Divides one monomial by another."""
    left = list(key)
    for symbol in part:
        if symbol not in left:
            return None
        left.remove(symbol)
    return tuple(left)


ZERO = Size.of(0)
ONE = Size.of(1)
BATCH = Size.symbol(_BATCH)
# Number of the example that a loop over examples is at.
ROW = Size.symbol(_ROW)

# `None`: a size that is not known, but free of data and of the batch size.
MaybeSize = Size | None
Sizes = tuple[MaybeSize, ...]


def product(sizes: Iterable[MaybeSize]) -> MaybeSize:
    """Multiplies sizes; `None` if one of them is not known."""
    total = ONE
    for size in sizes:
        if size is None:
            return None
        total = total * size
    return total


def hang_on_batch(sizes: Iterable[MaybeSize]) -> bool:
    """Returns true if the batch size occurs in one of the sizes."""
    return any(size is not None and size.hangs_on_batch for size in sizes)
