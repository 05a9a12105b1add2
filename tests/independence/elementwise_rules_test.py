import pytest
import tensorflow as tf
from tensorflow.python.framework import op_def_registry

from tests.independence import graphs
from tf_dpfp.independence import elementwise_rules

R = tf.raw_ops
INTEGER = (
    "BitwiseAnd BitwiseOr BitwiseXor LeftShift RightShift Invert "
    "PopulationCount TruncateMod TruncateDiv Mod FloorMod"
).split()
BOOLEAN = "LogicalAnd LogicalNot LogicalOr".split()
COMPLEX = "Angle ComplexAbs Conj Imag Real".split()
# Made of other arguments than tensors of one type; tested below.
OTHERS = (
    "AddN AsString Bucketize Cast Complex RegexFullMatch RegexReplace "
    "StaticRegexFullMatch StaticRegexReplace StringJoin StringLength "
    "StringLower StringStrip StringToHashBucket StringToHashBucketFast "
    "StringToHashBucketStrong StringToNumber StringUpper Substr Mod LeakyRelu "
    "LeakyReluGrad "
    "IgammaGradA FakeQuantWithMinMaxVars FakeQuantWithMinMaxVarsPerChannel"
).split()


def _arguments(name):
    op_def = op_def_registry.get(name)
    return [argument.name for argument in op_def.input_arg]


def _call(name, *values):
    names = _arguments(name)
    return getattr(R, name)(**dict(zip(names, values, strict=True)))


def _spec(name):
    if name in BOOLEAN:
        return graphs.BOOL
    if name in COMPLEX:
        return graphs.COMPLEX
    if name in INTEGER:
        return graphs.IDS
    return graphs.X


def _row_numbers(x):
    rows = tf.range(tf.shape(x)[0])[:, None]
    rows = tf.broadcast_to(rows, tf.shape(x))
    return rows > 1 if x.dtype == tf.bool else tf.cast(rows, x.dtype)


PLAIN = sorted(set(elementwise_rules._ELEMENTWISE) - set(OTHERS))


@pytest.mark.parametrize("name", PLAIN)
def test_each_element_by_itself(name):
    count = len(_arguments(name))
    spec = _spec(name)
    types = graphs.proved(lambda x: _call(name, *[x] * count), spec)
    assert name in types
    if count == 1:
        finding = graphs.refused(
            lambda x: _call(name, tf.reverse(x, [0])), spec
        )
        assert finding.operation == "ReverseV2"
        return
    # A number for every row.
    graphs.refused(
        lambda x: _call(name, x, *[_row_numbers(x)] * (count - 1)), spec
    )


@pytest.mark.parametrize(
    "name", ["AddV2", "Mul", "Maximum", "SelectV2", "Less"]
)
def test_operands_that_meet_across_examples(name):
    def crossed(x):
        other = tf.transpose(x[:, :1])  # (1, batch)
        first = [x[:, :1] > 0] if name == "SelectV2" else []
        return _call(name, *first, x[:, :1], other)

    finding = graphs.refused(crossed, graphs.X)
    assert finding.operation == name
    assert "meets the others" in finding.reason or "hang" in finding.reason


def test_the_batch_size_is_no_number():
    for combine in (tf.multiply, tf.add, tf.maximum):
        finding = graphs.refused(
            lambda x, f=combine: f(x, tf.cast(tf.shape(x)[0], x.dtype)),
            graphs.X,
        )
        assert "batch size" in finding.reason


SPECIAL = {
    "AsString": lambda x: tf.strings.length(tf.strings.as_string(x)),
    "Bucketize": lambda x: R.Bucketize(input=x, boundaries=[0.0, 1.0]),
    "Cast": lambda x: tf.cast(x, tf.int32),
    "Complex": lambda x: tf.complex(x, x),
    "LeakyRelu": lambda x: tf.nn.leaky_relu(x),
    "LeakyReluGrad": lambda x: R.LeakyReluGrad(gradients=x, features=x),
    "IgammaGradA": lambda x: R.IgammaGradA(a=x, x=x),
    "AddN": lambda x: tf.add_n([x, x, x]),
    "IdentityN": lambda x: tf.identity_n([x, x])[1],
    "Select": lambda x: R.Select(condition=x[:, 0] > 0, x=x, y=-x),
    "Bitcast": lambda x: tf.bitcast(x, tf.int32),
}
TEXTS = {
    "RegexFullMatch": lambda t: R.RegexFullMatch(
        input=t, pattern=tf.strings.join(["a", "b"])
    ),
    "RegexReplace": lambda t: R.RegexReplace(input=t, pattern="a", rewrite="b"),
    "StaticRegexReplace": lambda t: tf.strings.regex_replace(t, "a", "b"),
    "StringJoin": lambda t: tf.strings.join([t, t]),
    "StringLength": lambda t: tf.strings.length(t),
    "StringLower": lambda t: tf.strings.lower(t),
    "StringStrip": lambda t: tf.strings.strip(t),
    "StringToHashBucketFast": lambda t: tf.strings.to_hash_bucket_fast(t, 7),
    "StringToHashBucketStrong": lambda t: tf.strings.to_hash_bucket_strong(
        t, 7, [1, 2]
    ),
    "StringToNumber": lambda t: tf.strings.to_number(t),
    "StringUpper": lambda t: tf.strings.upper(t),
    "Substr": lambda t: tf.strings.substr(t, 0, 2),
}


@pytest.mark.parametrize("name", sorted(SPECIAL))
def test_other_arguments(name):
    types = graphs.proved(SPECIAL[name], graphs.X)
    assert name in types
    graphs.refused(lambda x: SPECIAL[name](tf.reverse(x, [0])), graphs.X)


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_text(name):
    abort = [graphs.Category.ABORT]
    types = graphs.proved(TEXTS[name], graphs.TEXT, allowed=abort)
    assert name in types
    graphs.refused(lambda x: TEXTS[name](tf.reverse(x, [0])), graphs.TEXT)


@pytest.mark.parametrize(
    "name",
    sorted(
        set(elementwise_rules._SAME)
        - {
            "CheckNumericsV2",
            "Copy",
            "DeepCopy",
            "DebugIdentityV2",
            "DebugIdentityV3",
            "OptimizationBarrier",
            "DebugGradientIdentity",
        }
    ),
)
def test_copies(name):
    more = {
        "CheckNumerics": {"message": ""},
        "EnsureShape": {"shape": [None, 3]},
        "PlaceholderWithDefault": {"shape": [None, 3]},
    }.get(name, {})
    (argument,) = _arguments(name)

    def copy(x):
        return getattr(R, name)(**{argument: x}, **more)

    types = graphs.proved(copy, graphs.X, allowed=[graphs.Category.ABORT])
    assert name in types
    graphs.refused(lambda x: copy(tf.reverse(x, [0])), graphs.X)


def test_bitcast_between_widths():
    bytes_of = tf.TensorSpec([None, 3, 4], tf.uint8)
    # The last axis disappears, or appears: the examples stay in front.
    graphs.proved(lambda x: tf.bitcast(x, tf.float32), bytes_of)
    graphs.proved(lambda x: tf.bitcast(x, tf.uint8), graphs.X)
    four = tf.TensorSpec([4, 3], tf.uint8)

    def across(x):
        # The last axis, of all four examples, becomes one number.
        return tf.bitcast(tf.transpose(x), tf.float32)

    finding = graphs.refused(across, four)
    assert "several examples into one number" in finding.reason


def test_legacy_select_of_rows():
    graphs.proved(
        lambda x: R.Select(condition=x[:, 0] > 0, x=x, y=-x), graphs.X
    )
    square = tf.TensorSpec([3, 3], tf.float32)
    # By a condition for every row, examples along the second axis.
    graphs.refused(
        lambda x: R.Select(
            condition=x[:, 0] > 0, x=tf.transpose(x), y=-tf.transpose(x)
        ),
        square,
    )
