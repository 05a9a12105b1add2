"""Finder of the arguments of a layer that have a row for each example."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from tf_dpfp import per_example
from tf_dpfp.independence import proof as proof_lib


class ArgumentFinder:
    """Reads in the graph of a step which arguments are of examples.

    Sizes alone don't tell: a mask of 8 positions for 8 positions looks like a
    batch of 8. What is found in a graph is kept for steps that run eagerly,
    which have none.
    """

    def __init__(self) -> None:
        self._known: dict[tuple, set[tuple[bool, ...]]] = {}

    def in_step(
        self, examples: Sequence[tf.Tensor]
    ) -> per_example.ArgumentsFinder:
        """Returns the finder for a forward pass.

        Args:
            examples: Tensors of the batch.
        """

        def find(
            layer: keras.layers.Layer,
            tensors: Sequence[tf.Tensor],
            alike: list[bool],
        ) -> list[bool]:
            kind = (id(layer), *((t.shape.rank, t.dtype) for t in tensors))
            if tf.executing_eagerly():
                return self._remembered(layer, kind, alike)
            found = list(alike)
            if alike.count(True) > 1:
                places = [i for i, is_alike in enumerate(alike) if is_alike]
                have = proof_lib.have_examples(
                    examples, [tensors[i] for i in places]
                )
                for place, has in zip(places, have, strict=True):
                    found[place] = has
            # A batch size that is known may be the size of anything.
            if examples[0].shape[0] is None:
                self._known.setdefault(kind, set()).add(tuple(found))
            return found

        return find

    def _remembered(
        self, layer: keras.layers.Layer, kind: tuple, alike: list[bool]
    ) -> list[bool]:
        found = self._known.get(kind)
        if found is None:
            return alike
        if len(found) > 1:
            raise ValueError(
                f"Layer '{layer.name}' is called on arguments of which some "
                "are one for each example in one call, and the same for all in "
                "another. In an eager step they can't be told apart. Compile "
                "the model with `run_eagerly=False`."
            )
        (only,) = found
        return list(only)
