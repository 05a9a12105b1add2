"""What goes from one device to another, from the graphs that really ran."""

import collections
import dataclasses
from collections.abc import Callable

import tensorflow as tf
from tensorflow.python.eager import context

from tf_dpfp.clipping import clipped_sum


@dataclasses.dataclass(frozen=True)
class Crossing:
    """A tensor that leaves a device.

    Attributes:
        source: The device it leaves.
        to: The device it goes to; "all" if it takes part in a collective
            operation.
        tensor: Its name.
        dtype: Its type.
        shape: Its static shape, or `None`.
        carries: What of the clipping is in it: "examples" for anything of
            single examples, "sum" for clipped sums, and what was made of
            them.
        noised: Whether random numbers are in it.
    """

    source: str
    to: str
    tensor: str
    dtype: tf.DType
    shape: tuple[int | None, ...] | None
    carries: frozenset[str]
    noised: bool


@dataclasses.dataclass(frozen=True)
class Step:
    """The graphs of one traced step.

    Attributes:
        crossings: What goes from device to device.
        operations: For each device, the names of operations by their type.
    """

    crossings: list[Crossing]
    operations: dict[str, dict[str, list[str]]]


def short(device: str) -> str:
    """`CPU:1` of a device's full name."""
    return device.rpartition("device:")[2]


def of_step(run: Callable[[], None]) -> Step:
    """Runs a step that was not traced before, and looks at its graphs.

    Args:
        run: Traces and runs a private step.

    Returns:
        A `Step`.
    """
    context.enable_graph_collection()
    try:
        run()
        metadata = context.export_run_metadata()
    finally:
        context.disable_graph_collection()
    crossings = []
    operations = collections.defaultdict(lambda: collections.defaultdict(list))
    graphs = [g for g in metadata.function_graphs if _clips(g)]
    assert graphs, "no step was traced"
    for graph in graphs:
        shapes = _shapes(graph.post_optimization_graph)
        for partition in graph.partition_graphs:
            crossings += _leaving(partition, shapes)
            for node in partition.node:
                operations[short(node.device)][node.op].append(node.name)
    return Step(crossings, operations)


def _clips(graph) -> bool:
    return any(
        clipped_sum.SUM_SCOPE in node.name
        for partition in graph.partition_graphs
        for node in partition.node
    )


def _shapes(graph_def) -> dict[str, tuple]:
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
    return {
        tensor.name: None if t is None else tuple(t)
        for operation in graph.get_operations()
        for tensor in operation.outputs
        for t in [_as_list(tensor.shape)]
    }


def _as_list(shape: tf.TensorShape):
    return None if shape.rank is None else shape.as_list()


def _leaving(partition, shapes) -> list[Crossing]:
    nodes = {node.name: node for node in partition.node}
    result = []
    for node in partition.node:
        collective = node.op.startswith("Collective")
        if not collective and node.op not in ("_Send", "_HostSend"):
            continue
        source, to = node.device, "all"
        if not collective:
            source = node.attr["send_device"].s.decode()
            to = short(node.attr["recv_device"].s.decode())
        for name, output in (
            _packed(nodes, node) if collective else [_source(node.input[0])]
        ):
            if nodes[name].op == "Const":  # What stands for a control edge.
                continue
            carries, noised = _carried(nodes, name)
            result.append(
                Crossing(
                    short(source),
                    to,
                    f"{name}:{output}",
                    tf.as_dtype(node.attr["T"].type),
                    shapes.get(f"{name}:{output}"),
                    carries,
                    noised,
                )
            )
    return result


def _source(edge: str) -> tuple[str, str]:
    name, _, output = edge.partition(":")
    return name, output or "0"


def _packed(nodes, node) -> list[tuple[str, str]]:
    """What a collective operation takes: tensors, or many laid end to end."""
    name, output = _source(node.input[0])
    if nodes[name].op != "ConcatV2":
        return [(name, output)]
    edges = [e for e in nodes[name].input if e[0] != "^"]
    return [_source(edge) for edge in edges[:-1]]  # The last is the axis.


def _carried(nodes, name: str) -> tuple[frozenset[str], bool]:
    """What is found on the ways back from a node: sums, or what precedes.

    And whether random numbers are, on a way that is not behind those.
    """
    carried, noised, seen, waiting = set(), False, set(), [name]
    while waiting:
        node = nodes[waiting.pop()]
        if node.name in seen or node.op == "Const":
            continue
        seen.add(node.name)
        if clipped_sum.SUM_SCOPE in node.name:
            carried.add("sum")
        elif clipped_sum.EXAMPLES_SCOPE in node.name:
            carried.add("examples")
        else:
            noised |= node.op.startswith("StatelessRandom")
            waiting += [i.partition(":")[0] for i in node.input if i[0] != "^"]
    return frozenset(carried), noised
