"""Small graphs to prove something about."""

import tensorflow as tf

from tf_dpfp import independence
from tf_dpfp.independence import Category

X = tf.TensorSpec([None, 3], tf.float32)
# A second axis of another size, and a third one.
XT = tf.TensorSpec([None, 4, 3], tf.float32)
IMAGE = tf.TensorSpec([None, 6, 6, 2], tf.float32)
IDS = tf.TensorSpec([None, 4], tf.int32)
LABELS = tf.TensorSpec([None], tf.int32)
BOOL = tf.TensorSpec([None, 3], tf.bool)
TEXT = tf.TensorSpec([None, 3], tf.string)
COMPLEX = tf.TensorSpec([None, 4], tf.complex64)
MATRIX = tf.TensorSpec([None, 3, 3], tf.float32)


def size(x):
    """The number of examples of a batch."""
    return tf.shape(x)[0]


def rows(x):
    """The numbers of the rows of a batch."""
    return tf.range(size(x))


def by_rows(x, of_row):
    """A loop over the examples of a batch, with the number of the row.

    Args:
        x: The batch.
        of_row: Maps the number of a row to three numbers.
    """
    found = tf.TensorArray(tf.float32, size(x), element_shape=[3])
    return tf.while_loop(
        lambda i, _: i < size(x),
        lambda i, found: (i + 1, found.write(i, of_row(i))),
        (0, found),
    )[1].stack()


def prove(function, *specs, wanted=None, may_be_free=False, **arguments):
    """Traces a function of a batch and proves its results.

    Args:
        function: Maps batches to a tensor, or to several.
        *specs: Specifications of the batches.
        wanted: Chooses the results to prove; all by default.
        may_be_free: See `Released`.
        **arguments: Further arguments of `independence.prove`.

    Returns:
        The `Proof`, and the types of all operations of the graph.
    """
    found = {}

    def traced(*batches):
        results = tf.nest.flatten(function(*batches))
        chosen = results if wanted is None else [results[i] for i in wanted]
        graph = tf.compat.v1.get_default_graph()
        found["types"] = types_of(graph)
        found["proof"] = independence.prove(
            graph,
            batches,
            [
                independence.Released(t, f"result {i}", may_be_free)
                for i, t in enumerate(chosen)
            ],
            **arguments,
        )
        return results

    tf.function(traced, autograph=False).get_concrete_function(*specs)
    return found["proof"], found["types"]


def types_of(graph):
    """Lists the types of a graph's operations, functions included."""
    types = set()
    for op in graph.get_operations():
        types.add(op.type)
    for name in list(getattr(graph, "_functions", {})):
        inner = getattr(graph._get_function(name), "graph", None)
        if inner is not None:
            types |= types_of(inner)
    return types


def proved(function, *specs, allowed=(), **kwargs):
    """Proves a function; returns the types of its operations."""
    proof, types = prove(function, *specs, **kwargs)
    refusals = proof.refusals(allowed)
    assert not refusals, "\n".join(str(f) for f in refusals)
    return types


def refused(function, *specs, allowed=(Category.ABORT,), **kwargs):
    """Returns the first finding about a function, which there must be."""
    proof, _ = prove(function, *specs, **kwargs)
    refusals = proof.refusals(allowed)
    assert refusals, "it was proved"
    return refusals[0]


def gradient_of(backward):
    """An identity with a gradient of its own, differentiated."""

    @tf.custom_gradient
    def same(t):
        return tf.identity(t), backward

    return differentiated(same)


def differentiated(function):
    """The gradient of the squares of what a function returns."""

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x) ** 2
        return tape.gradient(y, x)

    return gradient
