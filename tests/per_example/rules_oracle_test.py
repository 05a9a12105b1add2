"""Every rule against a float64 loop over examples."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.per_example import oracle
from tf_dpfp import per_example
from tf_dpfp.per_example import convolution

L = keras.layers


def case(name, make, shape, kind="float", rule=None):
    return pytest.param(make, shape, kind, rule, id=name)


def _ids(shape, rng):
    # Repeated ids: their gradients must be added before the norm is taken.
    return tf.constant(rng.integers(0, 5, size=shape), tf.int32)


def _inputs(shape, kind, policy):
    rng = np.random.default_rng(1)
    if kind == "ids":
        return _ids(shape, rng)
    dtype = keras.DTypePolicy(policy).compute_dtype
    return tf.cast(rng.normal(size=shape), dtype)


def _randomize(layer):
    """Biases and scales away from zero and one, where errors hide."""
    rng = np.random.default_rng(2)
    for variable in layer.trainable_variables:
        noise = 0.3 * rng.normal(size=variable.shape)
        variable.assign(tf.cast(noise, variable.dtype) + variable)


def _build(make, shape, kind, policy="float32"):
    with_policy = keras.DTypePolicy(policy)
    layer = make(dtype=with_policy)
    inputs = _inputs(shape, kind, policy)
    layer(inputs)
    _randomize(layer)
    return layer, inputs


def of(layer_type, *args, **kwargs):
    def make(**more):
        return layer_type(*args, **kwargs, **more)

    return make


CASES = [
    case("dense-2d", of(L.Dense, 4, activation="tanh"), (5, 3)),
    case("dense-3d", of(L.Dense, 4), (5, 6, 3)),
    case("dense-4d", of(L.Dense, 4, use_bias=False), (3, 2, 4, 3)),
    case("dense-one-position", of(L.Dense, 4), (4, 1, 3)),
    case("dense-gram", of(L.Dense, 70), (3, 2, 80)),
    case("dense-wide-input", of(L.Dense, 3, activation="relu"), (3, 90, 20)),
    case("dense-many-positions", of(L.Dense, 5), (2, 400, 4)),
    case(
        "einsum-projection",
        of(L.EinsumDense, "abc,cde->abde", (None, 2, 5), bias_axes="de"),
        (3, 4, 6),
    ),
    case(
        "einsum-merge",
        of(L.EinsumDense, "abcd,cde->abe", (None, 5), bias_axes="e"),
        (3, 4, 2, 6),
    ),
    case(
        "einsum-ellipsis",
        of(L.EinsumDense, "...x,xy->...y", 5, bias_axes="y"),
        (3, 4, 6),
    ),
    case(
        "einsum-not-a-product",
        of(L.EinsumDense, "abc,bcd->abd", (4, 5), bias_axes="bd"),
        (3, 4, 6),
    ),
    case("embedding-2d", of(L.Embedding, 5, 3), (4, 7), "ids"),
    case("embedding-1d", of(L.Embedding, 5, 3), (4,), "ids"),
    case("embedding-3d", of(L.Embedding, 5, 3), (4, 2, 3), "ids"),
    case("conv1d", of(L.Conv1D, 4, 3, activation="tanh"), (4, 9, 3)),
    case(
        "conv1d-causal",
        of(L.Conv1D, 4, 3, padding="causal", dilation_rate=2),
        (4, 9, 3),
    ),
    case(
        "conv1d-causal-strided-wide",
        of(L.Conv1D, 40, 3, padding="causal", strides=2),
        (3, 7, 40),
    ),
    case("conv2d", of(L.Conv2D, 4, 3, activation="relu"), (4, 6, 7, 2)),
    case(
        "conv2d-same-strided",
        of(L.Conv2D, 6, (5, 4), strides=(2, 3), padding="same"),
        (3, 9, 8, 1),
    ),
    case(
        "conv2d-same-strided-slices",
        of(L.Conv2D, 4, (3, 2), strides=2, padding="same"),
        (3, 7, 6, 12),
    ),
    case(
        "conv2d-valid-leftover-rows",
        of(L.Conv2D, 4, 3, strides=3),
        (3, 11, 10, 9),
    ),
    case(
        "conv2d-dilated-slices",
        of(L.Conv2D, 4, 3, dilation_rate=2, padding="same"),
        (3, 7, 6, 12),
    ),
    case(
        "conv2d-dilated-identity",
        of(L.Conv2D, 4, 2, dilation_rate=(2, 3)),
        (3, 7, 6, 2),
    ),
    case("conv2d-one-by-one", of(L.Conv2D, 8, 1, strides=2), (3, 7, 6, 5)),
    case("conv2d-one-position", of(L.Conv2D, 8, 4), (3, 4, 4, 5)),
    case("conv2d-gram", of(L.Conv2D, 64, 3, padding="same"), (3, 4, 4, 32)),
    case("conv2d-gram-valid", of(L.Conv2D, 64, 3), (3, 4, 4, 32)),
    case(
        "conv2d-groups",
        of(L.Conv2D, 6, (3, 2), groups=3, padding="same"),
        (3, 6, 5, 6),
    ),
    case(
        "conv3d",
        of(L.Conv3D, 4, 2, strides=2, padding="same"),
        (3, 5, 4, 5, 2),
    ),
    case("conv3d-gram", of(L.Conv3D, 24, 2), (2, 3, 3, 3, 16)),
    case("conv1d-transpose", of(L.Conv1DTranspose, 3, 3), (3, 5, 2)),
    case(
        "conv1d-transpose-padded",
        of(L.Conv1DTranspose, 3, 4, strides=3, output_padding=1),
        (3, 5, 2),
    ),
    case(
        "conv2d-transpose",
        of(L.Conv2DTranspose, 3, 3, strides=2, padding="same"),
        (3, 4, 5, 2),
    ),
    case(
        "conv2d-transpose-valid",
        of(L.Conv2DTranspose, 3, (2, 3), strides=(3, 1), activation="tanh"),
        (3, 4, 5, 2),
    ),
    case(
        "conv2d-transpose-short-kernel",
        of(L.Conv2DTranspose, 12, 1, strides=2, use_bias=False),
        (3, 3, 4, 2),
    ),
    case(
        "conv2d-transpose-gram",
        of(L.Conv2DTranspose, 32, 3, strides=2, padding="same"),
        (2, 2, 3, 64),
    ),
    case(
        "conv3d-transpose",
        of(L.Conv3DTranspose, 2, 2, strides=2),
        (2, 2, 3, 2, 3),
    ),
    case(
        "depthwise2d",
        of(
            L.DepthwiseConv2D,
            3,
            depth_multiplier=2,
            strides=2,
            padding="same",
            activation="relu",
        ),
        (3, 6, 7, 4),
    ),
    case(
        "depthwise2d-dilated",
        of(L.DepthwiseConv2D, 2, dilation_rate=2, use_bias=False),
        (3, 6, 7, 4),
    ),
    case("depthwise1d", of(L.DepthwiseConv1D, 3), (3, 8, 4)),
    case(
        "separable2d",
        of(L.SeparableConv2D, 5, 3, depth_multiplier=2, activation="relu"),
        (3, 6, 7, 4),
    ),
    case(
        "separable1d",
        of(L.SeparableConv1D, 5, 3, strides=2, padding="same"),
        (3, 8, 4),
    ),
    case("layernorm", of(L.LayerNormalization), (3, 5, 6)),
    case("layernorm-2d", of(L.LayerNormalization, epsilon=1e-6), (3, 6)),
    case("layernorm-axes", of(L.LayerNormalization, axis=[1, 2]), (3, 5, 6)),
    case(
        "layernorm-inner-axis",
        of(L.LayerNormalization, axis=1, scale=False),
        (3, 5, 6),
    ),
    case(
        "layernorm-mixed-axes",
        of(L.LayerNormalization, axis=[-1, 1], center=False),
        (3, 5, 6, 4),
    ),
    case("groupnorm", of(L.GroupNormalization, 2), (3, 5, 6, 4)),
    case("instancenorm", of(L.GroupNormalization, -1), (3, 5, 6, 4)),
    case(
        "groupnorm-axis",
        of(L.GroupNormalization, 2, axis=1, scale=False),
        (3, 4, 5, 6),
    ),
    case("groupnorm-inner", of(L.GroupNormalization, 2, axis=-2), (3, 4, 6)),
    case("prelu", of(L.PReLU), (3, 5, 6)),
    case("prelu-shared", of(L.PReLU, shared_axes=[1, 2]), (3, 5, 6, 2)),
]
if hasattr(L, "RMSNormalization"):
    CASES += [
        case("rmsnorm", of(L.RMSNormalization), (3, 5, 6)),
        case("rmsnorm-axes", of(L.RMSNormalization, axis=[-2, -1]), (3, 5, 6)),
        case(
            "rmsnorm-other-axis",
            of(L.RMSNormalization, axis=1),
            (3, 6),
            rule=per_example.GenericRule,
        ),
    ]


COMPILED_NAMES = (
    "dense-2d",
    "dense-3d",
    "dense-gram",
    "einsum-projection",
    "embedding-2d",
    "conv1d-causal",
    "conv2d-same-strided",
    "conv2d-same-strided-slices",
    "conv2d-gram",
    "conv2d-groups",
    "conv2d-transpose",
    "depthwise2d",
    "separable2d",
    "layernorm",
    "groupnorm",
    "prelu-shared",
    "rmsnorm",
)
COMPILED = [c for c in CASES if c.id in COMPILED_NAMES]
# In generic_rule_test.py XLA compiles dense and one-dimensional convolutions, a
# table and projections, as parts of models.
WITHOUT_XLA = (
    "dense-2d",
    "dense-3d",
    "einsum-projection",
    "embedding-2d",
    "conv1d-causal",
)


@pytest.mark.parametrize(("make", "shape", "kind", "rule"), CASES)
def test_rule_is_exact(make, shape, kind, rule, request):
    layer, inputs = _build(make, shape, kind)
    (unit,) = per_example.find_units(layer)
    is_generic = isinstance(unit.rule, per_example.GenericRule)
    assert is_generic == (rule is per_example.GenericRule)
    modes, few, name = ["eager", "graph"], [], request.node.callspec.id
    if name in COMPILED_NAMES:
        # Outside of a graph other precisions run below, float64 among them.
        modes = ["graph"] if name in WITHOUT_XLA else ["graph", "xla"]
        # TensorFlow fails to fuse a convolution of no images.
        few = [1] if "Conv" in type(layer).__name__ else [0, 1]
    oracle.check(layer, inputs, modes=modes, few=few)
    _assert_same_output(layer, inputs)


def _assert_same_output(layer, inputs):
    """Recording leaves the output alone."""
    plain = layer(inputs)
    with per_example.record_calls(per_example.find_units(layer)) as calls:
        seen = layer(inputs)
    assert len(calls) == 1
    assert seen.dtype == plain.dtype
    np.testing.assert_allclose(seen, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("policy", ["float64", "mixed_float16"])
@pytest.mark.parametrize(("make", "shape", "kind", "rule"), COMPILED)
def test_other_precisions(make, shape, kind, rule, policy):
    del rule
    _check_precision(make, shape, kind, policy)


@pytest.mark.parametrize(
    ("make", "shape", "kind", "rule"),
    [
        c
        for c in COMPILED
        if c.id in ("dense-gram", "conv2d-same-strided", "layernorm")
    ],
)
def test_bfloat16(make, shape, kind, rule):
    del rule
    _check_precision(make, shape, kind, "mixed_bfloat16")


def _check_precision(make, shape, kind, policy):
    layer, inputs = _build(make, shape, kind, policy)
    if inputs.dtype.is_floating:
        # What the layer is given, exactly: the oracle sees the same numbers.
        inputs = tf.cast(inputs, layer.compute_dtype)
    oracle.check(layer, inputs, policy=policy)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        pytest.param(of(L.Conv1D, 4, 3, strides=2), (3, 2, 7), id="conv1d"),
        pytest.param(
            of(L.Conv2D, 4, 3, padding="same"), (3, 2, 5, 7), id="conv2d"
        ),
        pytest.param(
            of(L.DepthwiseConv2D, 3, depth_multiplier=2),
            (3, 2, 5, 7),
            id="depthwise",
        ),
        pytest.param(of(L.SeparableConv2D, 4, 3), (3, 2, 5, 7), id="separable"),
        pytest.param(
            of(L.Conv2DTranspose, 4, 3, strides=2),
            (3, 2, 5, 7),
            id="transposed",
        ),
    ],
)
def test_channels_first(make, shape):
    # No output is as wide as it has channels: there Keras itself adds the
    # bias along the wrong axis.
    layer = make(data_format="channels_first")
    inputs = _inputs(shape, "float", "float32")
    try:
        layer(inputs)
    except (tf.errors.UnimplementedError, tf.errors.InvalidArgumentError):
        pytest.skip("this CPU build has no such convolution")
    _randomize(layer)
    # Channels first is not defined in float64 on CPU: the oracle is the same
    # convolution, channels last.
    twin = make(data_format="channels_last", dtype="float64")
    rank = len(shape)
    last = [0, *range(2, rank), 1]
    first = [0, rank - 1, *range(1, rank - 1)]
    twin(tf.transpose(inputs, last))
    twin.set_weights([w.astype("float64") for w in layer.get_weights()])

    def call(m, x):
        if m is twin:
            return tf.transpose(m(tf.transpose(x, last)), first)
        return m(x)

    try:
        oracle.check(layer, inputs, call=call, double=twin)
    except tf.errors.UnimplementedError:  # Of one of two convolutions.
        pytest.skip("this CPU build has no such convolution")


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("channels", [2, 9])
def test_convolution_of_unknown_image_size(padding, channels):
    layer = L.Conv2D(4, 3, strides=2, padding=padding)
    inputs = _inputs((3, 8, 7, channels), "float", "float32")
    weights = oracle.weights_like(layer(inputs))
    truth = oracle.loop(
        oracle.in_double(layer, inputs), oracle.as_double(inputs), weights
    )

    @tf.function(
        input_signature=[tf.TensorSpec([None, None, None, channels])],
        autograph=False,
    )
    def run(x):
        (found, _) = oracle.recorded(layer, x, weights).values()
        return (
            found.materialize(),
            found.squared_norms(),
            found.weighted_sum(tf.ones(tf.shape(x)[0])),
        )

    gradients, norms, total = run(inputs)
    np.testing.assert_allclose(gradients, truth[0], atol=1e-4, rtol=1e-4)
    own = np.sum(truth[0] ** 2, axis=(1, 2, 3, 4))
    np.testing.assert_allclose(norms, own, rtol=1e-3)
    np.testing.assert_allclose(total, truth[0].sum(0), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("channels", [2, 16])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 3), (2, 4), (3, 5)])
def test_sums_are_of_what_norms_are_taken_of(channels, kernel, stride):
    """Of strides longer than the kernel TensorFlow's kernels disagree."""
    size = 2 * stride
    geometry = convolution.Geometry(
        (kernel,) * 3, (stride,) * 3, (1,) * 3, "same"
    )
    shape = (*geometry.kernel_size, channels, 200)
    rng = np.random.default_rng(0)
    inputs = tf.constant(
        rng.normal(size=(1, *[size] * 3, channels)), tf.float32
    )
    outputs = tf.constant(rng.normal(size=(1, 2, 2, 2, 200)), tf.float32)
    gradient = convolution._ConvolutionKernel(inputs, outputs, geometry, shape)
    assert not gradient.writes_matrix or kernel == 1
    total = gradient.weighted_sum(tf.ones([1]))
    np.testing.assert_allclose(
        total, gradient.materialize()[0], rtol=1e-3, atol=1e-3
    )
    np.testing.assert_allclose(
        tf.reduce_sum(tf.square(total)), gradient.squared_norms()[0], rtol=1e-3
    )


def test_normalization_across_the_batch_is_refused():
    layer = L.LayerNormalization(axis=0)
    layer.build((3, 4))
    units = per_example.find_units(layer)
    with (
        per_example.record_calls(units),
        pytest.raises(ValueError, match="mixes examples"),
    ):
        layer(tf.ones([3, 4]))


def test_statistics_of_half_precision_do_not_overflow():
    layer = L.LayerNormalization(dtype="mixed_float16")
    inputs = tf.constant([[300.0, -300.0, 500.0, 0.0]], tf.float16)
    layer(inputs)
    with per_example.record_calls(per_example.find_units(layer)):
        outputs = layer(inputs)
    assert np.all(np.isfinite(outputs))
    np.testing.assert_allclose(outputs, layer(inputs), atol=2e-3)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        pytest.param(
            of(L.Conv1DTranspose, 3, 3, dilation_rate=2, padding="same"),
            (2, 5, 3),
            id="1d",
        ),
        pytest.param(
            of(L.Conv2DTranspose, 3, (2, 3), dilation_rate=(2, 1)),
            (2, 4, 5, 3),
            id="2d",
        ),
        pytest.param(
            of(L.Conv3DTranspose, 2, 2, dilation_rate=2),
            (2, 3, 2, 3, 2),
            id="3d",
        ),
    ],
)
def test_dilated_transposed_convolutions(make, shape):
    """Without float64: TensorFlow has no kernels of it on a CPU."""
    layer = make()
    x = tf.constant(np.random.default_rng(0).normal(size=shape), "float32")
    try:
        outputs = layer(x)
    except tf.errors.InvalidArgumentError as error:
        # TensorFlow switches oneDNN on where it finds AVX-512 with VNNI.
        if "not yet support dilation" not in str(error):
            raise
        pytest.skip("TensorFlow runs without oneDNN on this processor")
    weights = oracle.weights_like(outputs)
    (unit,) = per_example.find_units(layer)
    assert isinstance(unit.rule, convolution.TransposedConvolutionRule)
    found = oracle.recorded(layer, x, weights)
    for i, expected in enumerate(oracle.loop(layer, x, weights)):
        np.testing.assert_allclose(
            found[i].materialize(), expected, rtol=1e-3, atol=1e-4
        )
