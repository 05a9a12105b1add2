"""What XLA has kernels for, on CPUs and on GPUs, of this TensorFlow."""

from collections.abc import Iterator

import tensorflow as tf
from tensorflow.python.framework import kernels

# Where a batch, and a variable, come into a graph.
GIVEN = {"Placeholder"}


def operations(graph: tf.Graph) -> Iterator:
    """Yields every operation of a graph, with those of its functions."""
    definition = graph.as_graph_def()
    yield from definition.node
    for inner in definition.library.function:
        yield from inner.node_def


def compilers() -> set[str]:
    """Returns the kinds of device that this TensorFlow's XLA compiles for."""
    tf.function(lambda: tf.zeros([]), jit_compile=True)()  # Registers them.
    found = kernels.get_registered_kernels_for_op("MatMul").kernel
    known = {kernel.device_type for kernel in found}
    # Without those for GPUs, TensorFlow is built without CUDA.
    return {"XLA_CPU_JIT"} | (known & {"XLA_GPU_JIT"})


def compiles(node, device: str) -> bool:
    """Tells if XLA has a kernel for an operation and its types."""
    return any(
        all(
            node.attr[constraint.name].type
            in constraint.allowed_values.list.type
            for constraint in kernel.constraint
            if node.attr[constraint.name].type
        )
        for kernel in kernels.get_registered_kernels_for_op(node.op).kernel
        if kernel.device_type == device
    )


def assert_compiles(graph: tf.Graph) -> None:
    """Asserts that XLA has a kernel for every operation of a graph.

    Args:
        graph: Of a step.
    """
    nodes = list(operations(graph))
    assert nodes
    for device in compilers():
        lacking = {n.op for n in nodes if not compiles(n, device)}
        assert lacking <= GIVEN, (device, lacking)
