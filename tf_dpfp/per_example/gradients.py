"""Per-example gradients as algebra: what a gradient rule returns.

A batch of per-example gradients of one variable is rarely worth writing out.
A dense kernel's is a product of two thin matrices per example, an embedding
table's is a handful of rows. The classes here keep that structure and answer
three questions about it:

* `squared_norms()`: the squared L2 norm of every example's gradient;
* `weighted_sum(factors)`: the sum over examples, each times its factor;
* `materialize()`: the gradients themselves (tests, combinations).

**Numerical contract.** Clipping bounds the sensitivity only if the norm that
is computed is never below the norm of what is summed. A Gram-matrix ("ghost")
norm loses that by cancellation: with `|x| |g|` huge and `x^T g` small, rounding
makes the computed norm meaningless, and the rounding of the fused sum itself
is as large. `squared_norms()` therefore adds `SLACK * (sum_t |x_t| |g_t|)^2`
wherever the sum is not taken over the very numbers whose norm was taken. The
slack is 2^-20, about 16 units in the last place of float32: it changes an
ordinary norm by less than 1e-4 of itself and bounds every product that enters
the sum by 1024 clip norms.

Squares below 2^-126 are flushed to zero in float32, and a product with the
square of something huge would hide them: wherever sums of squares are
multiplied, what may have been flushed is added first (`squares.py`).

An example with a factor of exactly zero contributes exactly zero, whatever
its numbers are (NaN and infinity included).

Reference:
    Goodfellow, 2015, arXiv 1510.01799 (norms of outer products);
    Li et al., 2021, arXiv 2110.05679 (Gram matrices over positions);
    Bu et al., 2022, arXiv 2205.10683 (choosing the cheaper form by shape).
"""

import abc
import dataclasses
from collections.abc import Callable

import tensorflow as tf

from tf_dpfp import compilation
from tf_dpfp.per_example import squares

SLACK = 2.0**-20


@dataclasses.dataclass(frozen=True)
class Costs:
    """Costs that decide if gradients are written out.

    Attributes:
        memory_ratio: A gradient that is written out may take so many times
            the memory of the layer's own input and output gradient.
        matrix: Multiply-adds of a large matrix product that take the time of
            one number of a gradient that is written out: norm, selection and
            weighted sum.
        factor: The same for one number of the factors of a product: selection
            and scaling.
    """

    memory_ratio: float
    matrix: float
    factor: float


# Measured on AVX-512 cores.
CPU_COSTS = Costs(memory_ratio=2.0, matrix=40.0, factor=20.0)
# Computed, not measured, for an H200: three passes of 4 bytes over each number
# at 4.8 TB/s take the time of 84 multiply-adds at 33.5 T/s. The memory of a
# step is to be that of an ordinary one and a quarter.
ACCELERATOR_COSTS = Costs(memory_ratio=0.25, matrix=84.0, factor=84.0)


def _costs() -> Costs:
    """Returns the costs for the kind of device that steps run on."""
    return ACCELERATOR_COSTS if compilation.has_accelerator() else CPU_COSTS


def accumulation_dtype(*tensors: tf.Tensor) -> tf.DType:
    """float64 if any of the tensors is, else float32 (never half precision)."""
    if any(t.dtype == tf.float64 for t in tensors):
        return tf.float64
    return tf.float32


def scale_examples(values: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
    """`values * factors` per example; a zero factor gives zero, even of NaN."""
    factors = tf.cast(factors, values.dtype)
    factors = tf.reshape(factors, [-1] + [1] * (values.shape.rank - 1))
    return tf.math.multiply_no_nan(values, factors)


def _present_rows(values: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
    """The rows, with zeros for those whose factor is zero."""
    present = tf.not_equal(factors, 0.0)
    # Zeros of the whole shape would be large, and TensorFlow makes them a
    # constant that stays in memory between steps where it knows the shape.
    rows = tf.reshape(present, [-1] + [1] * (values.shape.rank - 1))
    return tf.where(rows, values, _zero(values))


def _zero(like: tf.Tensor) -> tf.Tensor:
    return tf.zeros([], like.dtype)


def _weighted_rows(values: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
    """`sum_i factors[i] * values[i]`, without rows whose factor is zero."""
    flat = _present_rows(squares.flattened(values), factors)
    total = tf.matmul(tf.cast(factors, flat.dtype)[None], flat)
    shape = values.shape[1:]
    return tf.reshape(
        total, shape if shape.is_fully_defined() else tf.shape(values)[1:]
    )


class PerExampleGradient(abc.ABC):
    """Gradients of one variable, one for each example of a batch."""

    @abc.abstractmethod
    def squared_norms(self) -> tf.Tensor:
        """Squared L2 norms, shape `(batch,)`; never below the true ones."""

    @abc.abstractmethod
    def weighted_sum(self, factors: tf.Tensor) -> tf.Tensor:
        """`sum_i factors[i] * gradient[i]`, of the variable's shape.

        Args:
            factors: Tensor of shape `(batch,)`, finite. A factor of zero
                removes the example even if its gradient is not finite.
        """

    @abc.abstractmethod
    def materialize(self) -> tf.Tensor:
        """The gradients, shape `(batch, *variable_shape)`."""


class PerExampleTensor(PerExampleGradient):
    """Per-example gradients as one tensor, written out.

    Args:
        values: Tensor of shape `(batch, *variable_shape)`.
    """

    def __init__(self, values: tf.Tensor):
        self.values = tf.cast(values, accumulation_dtype(values))

    def squared_norms(self) -> tf.Tensor:
        return squares.sum_squares(self.values)

    def weighted_sum(self, factors: tf.Tensor) -> tf.Tensor:
        return _weighted_rows(self.values, factors)

    def materialize(self) -> tf.Tensor:
        return self.values


def _as_it_is(matrix: tf.Tensor) -> tf.Tensor:
    return matrix


class OuterProduct(PerExampleGradient):
    """Per-example gradients `left^T right`, summed over positions.

    The gradient of anything that multiplies rows by a matrix: dense and
    einsum kernels (rows are positions), convolutions (rows are patches).

    Args:
        left: Tensor of shape `(batch, positions, d)`.
        right: Tensor of shape `(batch, positions, p)`.
        to_variable: Maps a tensor of shape `(..., d, p)` to
            `(..., *variable_shape)`; only reshapes and transposes.
        layout: Hashable that is equal for two products whose `to_variable`
            is the same map; such products can be added by concatenation.
    """

    def __init__(
        self,
        left: tf.Tensor,
        right: tf.Tensor,
        to_variable: Callable[[tf.Tensor], tf.Tensor] | None = None,
        layout: object = None,
    ):
        dtype = accumulation_dtype(left, right)
        self.left = tf.cast(left, dtype)
        self.right = tf.cast(right, dtype)
        self._to_variable = to_variable or _as_it_is
        self.layout = layout
        self._matrix = None

    def with_factors(self, left: tf.Tensor, right: tf.Tensor) -> "OuterProduct":
        """The gradients of the same variable with other factors."""
        return OuterProduct(left, right, self._to_variable, self.layout)

    @property
    def is_matrix(self) -> bool:
        """Whether the variable is the matrix itself, of shape `(d, p)`."""
        return self._to_variable is _as_it_is

    @property
    def _sizes(self) -> tuple[int | None, int, int]:
        return self.left.shape[1], self.left.shape[2], self.right.shape[2]

    def _is_rank_one(self) -> bool:
        return self._sizes[0] == 1

    def _prefers_matrix(self) -> bool:
        """Whether writing the products out is cheaper than Gram matrices."""
        positions, d, p = self._sizes
        if positions is None:
            return d * p <= 64 * (d + p)
        costs = _costs()
        if d * p > costs.memory_ratio * positions * (d + p):
            return False
        gram_cost = (positions**2 + costs.factor * positions) * (d + p)
        return costs.matrix * d * p <= gram_cost

    def _products(self) -> tf.Tensor:
        """The gradients, shape `(batch, min(d, p), max(d, p))`.

        A batched product with long rows is up to twice as fast as its
        transpose.
        """
        if self._matrix is None:
            _, d, p = self._sizes
            first, second = (
                (self.left, self.right) if d <= p else (self.right, self.left)
            )
            self._matrix = tf.matmul(first, second, transpose_a=True)
        return self._matrix

    def _shaped(self, products: tf.Tensor) -> tf.Tensor:
        """From the layout of `_products` to the variable's."""
        _, d, p = self._sizes
        if d > p:
            products = tf.linalg.matrix_transpose(products)
        return self._to_variable(products)

    @property
    def writes_matrix(self) -> bool:
        """True if norms and sums are taken of the products written out."""
        return not self._is_rank_one() and self._prefers_matrix()

    def lengths(self) -> tf.Tensor:
        """Adds up the lengths of the products, position by position."""
        left = tf.reduce_sum(tf.square(self.left), axis=2)
        right = tf.reduce_sum(tf.square(self.right), axis=2)
        return tf.reduce_sum(tf.sqrt(left * right), axis=1)

    def squared_norms(self) -> tf.Tensor:
        if self._is_rank_one():
            return squares.not_flushed(
                squares.sum_squares(self.left), self.left
            ) * squares.not_flushed(squares.sum_squares(self.right), self.right)
        if self._prefers_matrix():
            return squares.sum_squares(self._products())
        left = tf.matmul(self.left, self.left, transpose_b=True)
        right = tf.matmul(self.right, self.right, transpose_b=True)
        norms = tf.reduce_sum(left * right, axis=(1, 2))
        # Over the slack, for what flushing loses must survive it whole.
        lengths = squares.not_flushed(
            tf.linalg.diag_part(left), self.left, 1.0 / SLACK
        ) * squares.not_flushed(
            tf.linalg.diag_part(right), self.right, 1.0 / SLACK
        )
        bound = tf.reduce_sum(tf.sqrt(lengths), axis=1)
        return tf.maximum(norms, 0.0) + SLACK * tf.square(bound)

    def weighted_sum(self, factors: tf.Tensor) -> tf.Tensor:
        if self.writes_matrix:
            return self._shaped(_weighted_rows(self._products(), factors))
        _, d, p = self._sizes
        # The factor goes to the thinner side; both sides must be free of NaN.
        if d < p:
            left = scale_examples(self.left, factors)
            right = _present_rows(self.right, factors)
        else:
            left = _present_rows(self.left, factors)
            right = scale_examples(self.right, factors)
        matrix = tf.matmul(
            tf.reshape(left, [-1, d]),
            tf.reshape(right, [-1, p]),
            transpose_a=True,
        )
        return self._to_variable(matrix)

    def materialize(self) -> tf.Tensor:
        return self._shaped(self._products())


class EmbeddingRows(PerExampleGradient):
    """Per-example gradients of a lookup: a few rows of a table each.

    Args:
        ids: Integer tensor of shape `(batch, positions)`; may repeat.
        values: Tensor of shape `(batch, positions, width)`.
        num_rows: Rows of the table.
    """

    def __init__(self, ids: tf.Tensor, values: tf.Tensor, num_rows: int):
        self.ids = ids
        self.values = tf.cast(values, accumulation_dtype(values))
        self.num_rows = num_rows
        self._distinct: tuple[tf.Tensor, tf.Tensor] | None = None

    def distinct(self) -> tuple[tf.Tensor, tf.Tensor]:
        """The same rows, where no two that count have the same id.

        What an example has for one id is added up before norms are taken, and
        sums are taken of the same numbers: nothing is left to cancel.

        Returns:
            Ids, shape `(batch, positions)`, in ascending order, and the total
            of each at its first place there, zeros at the others, shape
            `(batch, positions, width)`.
        """
        if self.values.shape[1] == 1:
            return self.ids, self.values
        if self._distinct is None:
            ids = tf.sort(self.ids, axis=1)
            first = tf.searchsorted(ids, self.ids)
            shape = tf.shape(self.values)
            batch, positions, width = tf.unstack(shape)
            places = first + positions * tf.range(batch)[:, None]
            totals = tf.math.unsorted_segment_sum(
                tf.reshape(self.values, [-1, width]),
                tf.reshape(places, [-1]),
                batch * positions,
            )
            totals = tf.reshape(totals, shape)
            totals.set_shape(self.values.shape)
            self._distinct = ids, totals
        return self._distinct

    def squared_norms(self) -> tf.Tensor:
        _, values = self.distinct()
        return squares.sum_squares(values)

    def clipped_rows(self, factors: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The rows as in `distinct`, each example's times its factor."""
        ids, values = self.distinct()
        return ids, scale_examples(values, factors)

    def weighted_sum(self, factors: tf.Tensor) -> tf.Tensor:
        ids, values = self.clipped_rows(factors)
        return tf.math.unsorted_segment_sum(
            tf.reshape(values, [-1, tf.shape(values)[2]]),
            tf.reshape(ids, [-1]),
            self.num_rows,
        )

    def materialize(self) -> tf.Tensor:
        one_hot = tf.one_hot(self.ids, self.num_rows, dtype=self.values.dtype)
        return tf.matmul(one_hot, self.values, transpose_a=True)
