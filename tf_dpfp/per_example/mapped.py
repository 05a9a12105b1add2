"""Per-example gradients of a weight that a layer uses a function of.

With U = f(W) in the place of a kernel, the gradient of W is that of U, taken
through the derivative of f, which is the same linear map for all examples.
"""

from collections.abc import Callable

import tensorflow as tf

from tf_dpfp.per_example import gradients


class Mapped(gradients.PerExampleGradient):
    """Gradients that one linear map makes of others.

    Norms and sums are of the same numbers, written out: a map may take away
    nearly all of a gradient, and what is left would be rounding.

    Args:
        inner: The gradients that the map takes.
        linear: Maps `(batch, *shape)` to the like, example by example.
        of_product: The same of an `OuterProduct`, where its factors save
            passes over what is written out; `None` for `linear`.
    """

    def __init__(
        self,
        inner: gradients.PerExampleGradient,
        linear: Callable[[tf.Tensor], tf.Tensor],
        of_product: Callable[[gradients.OuterProduct], tf.Tensor] | None = None,
    ):
        self.inner = inner
        self.linear = linear
        self.of_product = of_product
        self._written: gradients.PerExampleTensor | None = None

    def _written_out(self) -> gradients.PerExampleTensor:
        if self._written is None:
            inner = self.inner
            if self.of_product and isinstance(inner, gradients.OuterProduct):
                values = self.of_product(inner)
            else:
                values = self.linear(inner.materialize())
            self._written = gradients.PerExampleTensor(values)
        return self._written

    def squared_norms(self) -> tf.Tensor:
        return self._written_out().squared_norms()

    def weighted_sum(self, factors: tf.Tensor) -> tf.Tensor:
        return self._written_out().weighted_sum(factors)

    def materialize(self) -> tf.Tensor:
        return self._written_out().materialize()
