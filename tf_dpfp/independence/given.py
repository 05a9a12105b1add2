"""Tensors that a proof takes for known, in whatever graph they are."""

from collections.abc import Mapping, Sequence

import tensorflow as tf

from tf_dpfp.independence import values as values_lib
from tf_dpfp.independence.sizes import Size
from tf_dpfp.independence.values import Value


class Given:
    """Knowledge that does not come from the graph.

    Args:
        public: Tensors that are free of data: what was released with noise,
            or what the guarantee leaves out.
        of_weights: Tensors made of weights alone, outside of the graph: free
            of data and of the batch size.
        noises: Pairs of noise, whose key is secret and new in every step, and
            a tensor of the same shape that it is added to.
    """

    def __init__(
        self,
        public: Sequence[tf.Tensor] = (),
        noises: Sequence[tuple[tf.Tensor, tf.Tensor]] = (),
        of_weights: Sequence[tf.Tensor] = (),
    ):
        self._public = {id(t): t for t in public}
        self._of_weights = {id(t): t for t in of_weights}
        self._noises = {id(noise): (noise, to) for noise, to in noises}
        self._known = {*self._public, *self._of_weights, *self._noises}

    def needs(self, tensor: tf.Tensor) -> Sequence[tf.Tensor] | None:
        """Lists what must be known before; `None` if nothing is given."""
        if id(tensor) not in self._known:
            return None  # Of nearly all that are asked for.
        if id(tensor) in self._public or id(tensor) in self._of_weights:
            return ()
        return self._noises[id(tensor)][1:]

    def value(
        self, tensor: tf.Tensor, known: Mapping[int, Value], batch: Size
    ) -> Value:
        """Describes a given tensor.

        Args:
            tensor: The tensor.
            known: What is known of the tensors that it needs.
            batch: The batch size.
        """
        if id(tensor) in self._public:
            return _free(tensor, batch)
        if id(tensor) in self._of_weights:
            return values_lib.free(
                tuple(map(Size.of, tensor.shape)), None, on_batch_size=False
            )
        added_to = known[id(self._noises[id(tensor)][1])]
        if added_to.is_examples:
            # Each example has numbers of its own.
            return values_lib.examples(added_to.shape, added_to.example_layout)
        if added_to.is_free:
            return values_lib.free(added_to.sizes, None, on_batch_size=True)
        return added_to


def _free(tensor: tf.Tensor, batch: Size) -> Value:
    if tensor.shape.rank is None:
        return values_lib.free(None, None, on_batch_size=True)
    sizes = [
        Size.symbol(f"public{id(tensor)}_{axis}")
        if size is None
        else Size.of(size)
        for axis, size in enumerate(tensor.shape)
    ]
    if sizes and tensor.shape[0] is None:
        sizes[0] = batch
    return values_lib.free(tuple(sizes), None, on_batch_size=True)
