"""Rules of random numbers.

The numbers of a row hang on the number of the row, for they are drawn in
order. They are like numbers that each example draws for itself only if nobody
knows the seed. So every such draw is noted, with the origin of its seed, and
the caller decides.
"""

from collections.abc import Sequence

import tensorflow as tf

from tf_dpfp.independence import findings
from tf_dpfp.independence import registry
from tf_dpfp.independence import values as values_lib
from tf_dpfp.independence import without_rules
from tf_dpfp.independence.registry import Walk
from tf_dpfp.independence.sizes import ONE
from tf_dpfp.independence.sizes import Sizes
from tf_dpfp.independence.values import Kind
from tf_dpfp.independence.values import Layout
from tf_dpfp.independence.values import Value

_SEEDED = """
StatelessRandomNormal StatelessRandomNormalV2 StatelessRandomUniform
StatelessRandomUniformFullInt StatelessRandomUniformFullIntV2
StatelessRandomUniformInt StatelessRandomUniformIntV2
StatelessRandomUniformV2 StatelessTruncatedNormal StatelessTruncatedNormalV2
""".split()
_STATEFUL = """
Empty RandomStandardNormal RandomUniform RandomUniformInt TruncatedNormal
""".split()


@registry.rule(*_SEEDED, *_STATEFUL, shapes=(0,), takes_batch_size=True)
def random(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Draws a tensor of random numbers, all from one distribution."""
    target, *rest = values
    if any(v.is_examples for v in rest):
        raise findings.Refusal(
            "The data decide its seed or its limits.",
            "Take the seed from a `keras.random.SeedGenerator`.",
        )
    sizes = target.numbers
    if sizes is None:
        sizes = None if target.hangs_on_batch else walk.static(op.outputs[0])
    if sizes is None:
        raise findings.Refusal(
            "It draws numbers of an unknown shape.", is_definite=False
        )
    # Memory that is not set holds anything at all, of other batches too.
    if op.type == "Empty" and not op.get_attr("init"):
        raise findings.Refusal(without_rules.UNWRITTEN)
    if op.type == "Empty":
        return values_lib.uniform(sizes)
    layout = rows_of(sizes, walk)
    seeds = 0 if op.type in _STATEFUL else 3 if op.type.endswith("V2") else 1
    if layout is not None:
        _check_limits(rest[seeds:])
    # In a loop over examples, each of them draws other numbers.
    if layout is not None or (walk.counting and op.type in _STATEFUL):
        walk.note_random(op)
    if layout is None:
        return values_lib.free(sizes, None, any(v.hangs_on_batch for v in rest))
    return values_lib.examples(sizes, layout)


def _check_limits(values: Sequence[Value]) -> None:
    """Refuses a distribution that hangs on the batch size; seeds may."""
    if any(v.hangs_on_batch for v in values):
        raise findings.Refusal(
            "It computes with the batch size.", findings.BATCH_SIZE
        )


def rows_of(sizes: Sizes, walk: Walk) -> Layout | None:
    """Returns the layout of numbers that are drawn in order, row by row.

    One layout only: if the same numbers belonged to example 0 in one place and
    to example 1 in another, no example would have numbers of its own.
    """
    first = sizes[0] if sizes else None
    if first is None:
        return None
    after = first.divided_by(walk.batch)
    if after is None or after.hangs_on_batch or after == 0:
        return None
    return Layout(0, ONE, after)


@registry.rule(
    "StatelessRandomGetKeyCounter", "StatelessRandomGetKeyCounterAlg"
)
def key_and_counter(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> list[Value]:
    """Makes the generator's state from a seed."""
    if values[0].is_examples:
        raise findings.Refusal(
            "The data decide its seed.",
            "Take the seed from a `keras.random.SeedGenerator`.",
        )
    hangs = values[0].hangs_on_batch
    return [values_lib.free(walk.static(o), None, hangs) for o in op.outputs]


@registry.rule(
    "StatelessRandomGammaV2",
    "StatelessRandomGammaV3",
    "StatelessRandomPoisson",
    "StatelessRandomBinomial",
    shapes=(0,),
    takes_batch_size=True,
)
def random_with_parameters(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> Value:
    """Draws numbers whose distributions are broadcast to the result."""
    target = values[0]
    sizes = target.numbers
    if sizes is None:
        raise findings.Refusal(
            "It draws numbers of an unknown shape.", is_definite=False
        )
    count = 2 if op.type == "StatelessRandomBinomial" else 1
    rest = values[-count:]
    if any(v.is_examples for v in values[1:-count]):
        raise findings.Refusal("The data decide its seed.")
    layout = rows_of(sizes, walk)
    owners = [v for v in rest if v.is_examples]
    if layout is None and owners:
        raise findings.Refusal("The examples are not along its first axis.")
    if layout is None:
        return values_lib.free(sizes, None, any(v.hangs_on_batch for v in rest))
    _check_limits(rest)
    for value in rest:
        axis = -1 if value.sizes is None else value.rank - len(sizes)
        if value.is_examples and (
            axis < 0 or value.example_layout != layout.at(axis)
        ):
            raise findings.Refusal("The examples are not along its first axis.")
        spread = axis >= 0 and value.shape[axis] != 1
        if not value.is_examples and spread and value.kind is not Kind.UNIFORM:
            raise findings.Refusal(
                "It has another distribution for every row.",
                findings.ROW_NUMBER,
            )
    walk.note_random(op)
    return values_lib.examples(sizes, layout)


@registry.rule("Multinomial", "StatelessMultinomial")
def categorical(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Draws classes for each row of logits."""
    logits, *rest = values
    if any(v.is_examples for v in rest):
        raise findings.Refusal("The data decide its seed.")
    static = walk.static(op.outputs[0])
    if static is None or not logits.is_examples:
        # In a loop over examples, each of them draws other numbers.
        if walk.counting and op.type == "Multinomial":
            walk.note_random(op)
        hangs = any(v.hangs_on_batch for v in values)
        return values_lib.free(static, None, hangs or logits.sizes is None)
    own = logits.example_layout
    if own.axis != 0:
        raise findings.Refusal("The examples are not along its first axis.")
    walk.note_random(op)
    return values_lib.examples((logits.shape[0], *static[1:]), own)
