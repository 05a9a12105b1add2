"""Rules of operations that work on each element by itself.

Element `i` of the result depends on element `i` of every operand, after
broadcasting. So examples stay apart if they lie along one axis of all
operands, and if no operand has a number of its own for every row.
"""

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from tf_dpfp.independence import arithmetic
from tf_dpfp.independence import bounds as bounds_lib
from tf_dpfp.independence import findings
from tf_dpfp.independence import layouts
from tf_dpfp.independence import list_shapes
from tf_dpfp.independence import preconditions
from tf_dpfp.independence import registry
from tf_dpfp.independence import sizes as sizes_lib
from tf_dpfp.independence import values as values_lib
from tf_dpfp.independence.registry import Walk
from tf_dpfp.independence.sizes import Size
from tf_dpfp.independence.values import Kind
from tf_dpfp.independence.values import Value

_ELEMENTWISE = """
Abs Acos Acosh Add AddV2 Angle Asin Asinh Atan Atan2 Atanh BesselI0 BesselI0e
BesselI1 BesselI1e BesselJ0 BesselJ1 BesselK0 BesselK0e BesselK1 BesselK1e
BesselY0 BesselY1 Betainc BitwiseAnd BitwiseOr BitwiseXor Cast Ceil ClipByValue
Complex ComplexAbs Conj Cos Cosh Dawsn Digamma Div DivNoNan Elu EluGrad Equal
Erf Erfc Erfinv Exp Expint Expm1 FakeQuantWithMinMaxArgs
FakeQuantWithMinMaxArgsGradient FakeQuantWithMinMaxVars
FakeQuantWithMinMaxVarsPerChannel Floor FloorDiv FloorMod FresnelCos FresnelSin
Greater GreaterEqual Igamma IgammaGradA Igammac Imag Inv InvGrad Invert IsFinite
IsInf IsNan LeakyRelu LeakyReluGrad LeftShift Less LessEqual Lgamma Log Log1p
LogicalAnd LogicalNot LogicalOr Maximum Minimum Mod Mul MulNoNan Ndtri Neg
NextAfter NotEqual Polygamma PopulationCount Pow Real RealDiv Reciprocal
ReciprocalGrad Relu Relu6 Relu6Grad ReluGrad RightShift Rint Round Rsqrt
RsqrtGrad Selu SeluGrad Sigmoid SigmoidGrad Sign Sin Sinh Softplus SoftplusGrad
Softsign SoftsignGrad Spence Sqrt SqrtGrad Square SquaredDifference Sub Tan Tanh
TanhGrad TruncateDiv TruncateMod Xdivy Xlog1py Xlogy Zeta AsString Bucketize
RegexReplace StaticRegexFullMatch RegexFullMatch StaticRegexReplace StringJoin
StringLength StringLower StringStrip StringToHashBucket StringToHashBucketFast
StringToHashBucketStrong StringToNumber StringUpper Substr
""".split()

# Their number is 1 where the operand is read, and elsewhere: equal operands
# give equal results, as for all of the above.
_SAME = """
Identity StopGradient PreventGradient CheckNumerics CheckNumericsV2 Snapshot
PlaceholderWithDefault EnsureShape Copy DeepCopy OptimizationBarrier
DebugIdentityV2 DebugIdentityV3 DebugGradientIdentity
""".split()


# Row `i` holds `i`.
_ROW_NUMBER = values_lib.Range(sizes_lib.ZERO, sizes_lib.ZERO, sizes_lib.ONE)


@registry.rule(*_ELEMENTWISE, takes_numbers=True)
def elementwise(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Broadcasts the operands and works on each element."""
    if _is_below_batch(op, values, walk):
        below = values_lib.free((), (None,))
        return dataclasses.replace(below, counts_examples=True)
    known = arithmetic.calculate(op, values)
    if known is not None:
        return known
    return _broadcast(op, values, walk)


def _is_below_batch(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> bool:
    """Returns true if a loop's counter is compared with the batch size."""
    if op.type == "LogicalAnd":
        return all(v.counts_examples for v in values)
    if op.type != "Less" or not values[0].counts_examples:
        return False
    return values[1].numbers == (walk.batch,)


def _selects_own_number(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> bool:
    """Returns true for `where(batch_size > 1, row_number, 0)`.

    `tf.vectorized_map` writes it. The only row of a batch of one has the
    number 0, so it is the number of the row for all batch sizes.
    """
    own = values[1].ranges
    numbered = own is not None and len(own) == 1 and own[0] == _ROW_NUMBER
    condition = op.inputs[0].op
    if not numbered or values[2].numbers != (sizes_lib.ZERO,):
        return False
    if condition.type != "Greater" or values[0].shape != ():
        return False
    size, one = (walk.value(t) for t in condition.inputs)
    return size.numbers == (walk.batch,) and one.numbers == (sizes_lib.ONE,)


def _broadcast(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    sizes = layouts.broadcast([v.shape for v in values])
    sizes = walk.filled(sizes, op.outputs[0])
    bounds = bounds_lib.of_result(op, values)
    ranges = None if bounds.is_unbounded else (bounds,)
    if any(v.is_examples for v in values):
        layout = layouts.meet(values, len(sizes))
        return values_lib.examples(sizes, layout, ranges)
    found = layouts.combined(values, sizes, walk.batch, is_uniform=True)
    return Value(
        found.kind,
        found.sizes,
        found.layout,
        on_batch_size=found.on_batch_size,
        ranges=ranges,
    )


@registry.rule(
    "FakeQuantWithMinMaxVarsGradient",
    "FakeQuantWithMinMaxVarsPerChannelGradient",
)
def quantization_gradient(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> list[Value]:
    """Computes the gradient of each number, and those of the bounds."""
    result = _broadcast(op, values, walk)
    if not result.is_examples:
        hangs = any(preconditions.holds_batch_size(v) for v in values)
        return [result] + [
            values_lib.free(walk.static(o), None, hangs) for o in op.outputs[1:]
        ]
    # Those of the bounds are sums over the batch.
    return [result] + [
        walk.refused(op, o, "It adds a gradient up over the examples.")
        for o in op.outputs[1:]
    ]


@registry.rule(
    "QuantizeAndDequantizeV2",
    "QuantizeAndDequantizeV3",
    "QuantizeAndDequantizeV4",
)
def quantized(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Rounds numbers within a range that it is given."""
    value, *rest = values
    if not op.get_attr("range_given"):
        raise findings.Refusal(
            "It rounds to parts of the range of the whole batch.",
            "Give it a range: `range_given=True`.",
        )
    _check_range(op, rest)
    if value.is_examples:
        return values_lib.examples(value.shape, value.example_layout)
    hangs = any(map(preconditions.holds_batch_size, values))
    return values_lib.free(walk.static(op.outputs[0]), None, hangs)


@registry.rule("QuantizeAndDequantizeV4Grad")
def gradient_of_quantized(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> list[Value]:
    """Hands on the gradient of each number that is within the range."""
    pair, rest = values[:2], values[2:]
    _check_range(op, rest)
    if not any(v.is_examples for v in pair):
        hangs = any(map(preconditions.holds_batch_size, values))
        return [
            values_lib.free(walk.static(o), None, hangs) for o in op.outputs
        ]
    result = _broadcast(op, pair, walk)
    return [dataclasses.replace(result, ranges=None)] + [
        walk.refused(op, o, "It adds a gradient up over the examples.")
        for o in op.outputs[1:]
    ]


def _check_range(op: tf.Operation, rest: Sequence[Value]) -> None:
    """Checks that all numbers have the same range."""
    if any(v.is_examples for v in rest):
        raise findings.Refusal("The data decide its range.")
    if any(sizes_lib.hang_on_batch(v.shape) for v in rest):
        raise findings.Refusal(
            "The batch size is a size of its range.", findings.BATCH_SIZE
        )
    if op.get_attr("axis") != -1:
        raise findings.Refusal(
            "It has several ranges, one for each index of an axis.",
            is_definite=False,
        )


@registry.rule("SelectV2", takes_numbers=True, takes_batch_size=True)
def select_elements(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> Value:
    """Selects elements."""
    if _selects_own_number(op, values, walk):
        return values[1]
    hangs = any(v.hangs_on_batch for v in values)
    if hangs and any(v.is_examples for v in values):
        raise findings.Refusal(
            "It computes with the batch size.", findings.BATCH_SIZE
        )
    return elementwise(op, values, walk)


@registry.rule("Select")
def select(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Selects elements, or whole rows by a condition with one axis."""
    condition, *rest = values
    rank = rest[0].rank
    if condition.rank == 1 and rank > 1:
        sizes = condition.shape + (sizes_lib.ONE,) * (rank - 1)
        condition = values_lib.like(condition, sizes)
        return _broadcast_selected([condition, *rest], walk)
    return elementwise(op, values, walk)


def _broadcast_selected(values: Sequence[Value], walk: Walk) -> Value:
    sizes = layouts.broadcast([v.shape for v in values])
    if any(v.is_examples for v in values):
        return values_lib.examples(sizes, layouts.meet(values, len(sizes)))
    return layouts.combined(values, sizes, walk.batch, is_uniform=True)


@registry.rule("AddN", takes_lists=True)
def add_all(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Adds tensors of one shape, or lists of such tensors."""
    if any(v.kind is Kind.LIST for v in values):
        found = values[0]
        for value in values[1:]:
            alike = list_shapes.made_alike(found, value)
            found = _sum_of_lists(walk.join(op, *alike))
        return found
    return _broadcast(op, values, walk)


def _sum_of_lists(value: Value) -> Value:
    """Forgets which numbers the items are."""
    if value.kind is not Kind.LIST:
        return value
    if value.item is None:
        return value
    if value.item.numbers_examples:
        raise findings.Refusal(
            "It computes with the number of the row.", findings.ROW_NUMBER
        )
    if not list_shapes.fits(value.declared, value.item):
        # Zeros of an item that was never set.
        raise findings.Refusal("The shape of its items is not always the same.")
    item = dataclasses.replace(
        value.item, numbers=None, ranges=None, declared=None
    )
    return dataclasses.replace(value, item=item)


@registry.rule(*_SAME, takes_numbers=True, takes_lists=True, takes_single=True)
def same(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Hands its operand on."""
    (value,) = values
    if value.kind is Kind.SINGLE and value.sizes is None:
        # Its kernel may check how many axes there are.
        return Value(Kind.SINGLE, walk.static(op.outputs[0]))
    return walk.refined(value, op.outputs[0])


@registry.rule(
    "IdentityN", takes_numbers=True, takes_lists=True, takes_single=True
)
def same_all(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> list[Value]:
    """Hands its operands on."""
    return [
        walk.refined(value, tensor)
        for value, tensor in zip(values, op.outputs, strict=True)
    ]


@registry.rule("Bitcast")
def bitcast(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Reads bits as another type: elementwise if the width stays the same.

    If not, a last axis appears or disappears, whose elements are parts of one
    number.
    """
    del walk
    (value,) = values
    wide, narrow = op.inputs[0].dtype.size, op.outputs[0].dtype.size
    sizes = value.shape
    if wide > narrow:
        sizes = (*sizes, Size.of(wide // narrow))
    elif wide < narrow:
        sizes = sizes[:-1]
    if value.kind is Kind.UNIFORM and wide == narrow:
        return values_lib.uniform(sizes, value.on_batch_size)
    if not value.is_examples:
        return values_lib.free(sizes, None, value.on_batch_size)
    if value.example_layout.axis >= len(sizes):
        raise findings.Refusal("It puts several examples into one number.")
    return values_lib.examples(sizes, value.example_layout)
