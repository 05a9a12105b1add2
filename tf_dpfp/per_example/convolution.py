"""Gradient rules of convolutions.

A convolution multiplies every patch of its input by one matrix, so its
per-example gradient is an outer product whose positions are patches. What
this module adds is the patches, in the layout of the kernel, and a sum over
examples that needs none of them.
"""

import abc
import dataclasses
import itertools
import math
import operator
from typing import Any

import keras
import tensorflow as tf

from tf_dpfp.keras_private import kernels
from tf_dpfp.per_example import dense
from tf_dpfp.per_example import gradients
from tf_dpfp.per_example import rules

# By this name in classes with a method `gradients`.
_Gradient = gradients.PerExampleGradient
# Patches of fewer channels are cut along one axis after the other: one slice
# for each element of the kernel would copy so few numbers at a time that it
# takes up to three times as long.
_WIDE = 16


@dataclasses.dataclass(frozen=True)
class Geometry:
    """How a convolution walks over its input, channels last.

    Attributes:
        kernel_size: Of every spatial axis.
        strides: Of every spatial axis.
        dilation_rate: Of every spatial axis.
        padding: "valid", "same" or "causal".
    """

    kernel_size: tuple[int, ...]
    strides: tuple[int, ...]
    dilation_rate: tuple[int, ...]
    padding: str

    @property
    def extents(self) -> tuple[int, ...]:
        """How many inputs the kernel spans on every spatial axis."""
        return tuple(
            (size - 1) * rate + 1
            for size, rate in zip(
                self.kernel_size, self.dilation_rate, strict=True
            )
        )


def geometry_of(layer: keras.layers.Layer) -> Geometry:
    """The geometry of a Keras convolution layer."""
    return Geometry(
        tuple(layer.kernel_size),
        tuple(layer.strides),
        tuple(layer.dilation_rate),
        layer.padding,
    )


def channels_last(layer: keras.layers.Layer, tensor: tf.Tensor) -> tf.Tensor:
    """The layer's input or output with its channels as the last axis."""
    if layer.data_format == "channels_last":
        return tensor
    return tf.transpose(tensor, [0, *range(2, tensor.shape.rank), 1])


def _sizes(tensor: tf.Tensor) -> list:
    """Sizes of the spatial axes: integers where they are known."""
    static = tensor.shape.as_list()[1:-1]
    if None not in static:
        return static
    dynamic = tf.shape(tensor)
    return [
        dynamic[axis] if size is None else size
        for axis, size in enumerate(static, start=1)
    ]


def _at_least_zero(size):
    return tf.maximum(size, 0) if tf.is_tensor(size) else max(size, 0)


def _pad_before(geometry: Geometry, sizes: list, counts: list) -> list:
    """How many zeros the convolution sees before each spatial axis."""
    if geometry.padding == "valid":
        return [0] * len(sizes)
    if geometry.padding == "causal":
        return [extent - 1 for extent in geometry.extents]
    return [
        _at_least_zero((count - 1) * stride + extent - size) // 2
        for size, count, stride, extent in zip(
            sizes, counts, geometry.strides, geometry.extents, strict=True
        )
    ]


def _padded(
    inputs: tf.Tensor, geometry: Geometry, counts: list
) -> tuple[tf.Tensor, list]:
    """Pads the input, and cuts off what the convolution never sees.

    Returns:
        An input of which a convolution without padding gives the same, and how
        many strides it has on every spatial axis.
    """
    sizes = _sizes(inputs)
    before = _pad_before(geometry, sizes, counts)
    lengths = [
        count + (extent - 1) // stride
        for count, extent, stride in zip(
            counts, geometry.extents, geometry.strides, strict=True
        )
    ]
    ends = [
        length * stride - start
        for length, stride, start in zip(
            lengths, geometry.strides, before, strict=True
        )
    ]
    inputs = inputs[(slice(None), *(slice(0, end) for end in ends))]
    after = [
        _at_least_zero(end - size)
        for end, size in zip(ends, sizes, strict=True)
    ]
    if any(tf.is_tensor(n) or n for n in before + after):
        inputs = tf.pad(
            inputs, [[0, 0], *zip(before, after, strict=True), [0, 0]]
        )
    return inputs, lengths


def _phases(inputs: tf.Tensor, geometry: Geometry, counts: list) -> tf.Tensor:
    """Pads the input and splits every spatial axis by its stride.

    A slice with a stride is many times slower than one without; after this
    split every window is a slice without.

    Returns:
        Tensor of shape `(batch, n_1, stride_1, ..., n_r, stride_r, channels)`.
    """
    inputs, lengths = _padded(inputs, geometry, counts)
    split = itertools.chain(*zip(lengths, geometry.strides, strict=True))
    batch = inputs.shape[0]
    batch = tf.shape(inputs)[0] if batch is None else batch
    return tf.reshape(inputs, [batch, *split, inputs.shape[-1]])


def windows(
    inputs: tf.Tensor, geometry: Geometry, outputs: tf.Tensor
) -> list[tf.Tensor]:
    """What every element of the kernel is multiplied with.

    Args:
        inputs: Input of the convolution, channels last.
        geometry: Of the convolution.
        outputs: Anything of the shape of the output, channels last.

    Returns:
        For every kernel position, in row-major order, a tensor of shape
        `(batch, *output_positions, input_channels)`.
    """
    counts = _sizes(outputs)
    split = _phases(inputs, geometry, counts)
    walk = (counts, geometry.strides, geometry.dilation_rate)
    result = []
    for offsets in itertools.product(*map(range, geometry.kernel_size)):
        index: list[slice | int] = [slice(None)]
        for offset, count, stride, rate in zip(offsets, *walk, strict=True):
            start, phase = divmod(offset * rate, stride)
            index += [slice(start, start + count), phase]
        result.append(split[tuple(index)])
    return result


def convolve(
    inputs: tf.Tensor, kernel: tf.Tensor, geometry: Geometry
) -> tf.Tensor:
    """The convolution itself, without groups.

    Args:
        inputs: Tensor of shape `(batch, *positions, channels)`.
        kernel: Tensor of shape `(*kernel_size, channels, filters)`.
        geometry: How it walks over the inputs.
    """
    if geometry.padding == "causal":
        before = [[extent - 1, 0] for extent in geometry.extents]
        inputs = tf.pad(inputs, [[0, 0], *before, [0, 0]])
    return tf.nn.convolution(
        inputs,
        kernel,
        strides=geometry.strides,
        padding="SAME" if geometry.padding == "same" else "VALID",
        # Spelled out: Conv3D's gradient needs it in eager mode.
        data_format=("NWC", "NHWC", "NDHWC")[len(geometry.strides) - 1],
        dilations=geometry.dilation_rate,
    )


def _cut_along_axes(
    inputs: tf.Tensor, geometry: Geometry, outputs: tf.Tensor
) -> tf.Tensor:
    """Cuts patches along one axis after the other, the last one first."""
    counts = _sizes(outputs)
    cut = _phases(inputs, geometry, counts)
    for axis in reversed(range(len(counts))):
        count, stride = counts[axis], geometry.strides[axis]
        # What stands before this axis: examples, and axes that are still split.
        before = [slice(None)] * (1 + 2 * axis)
        slices = []
        for offset in range(geometry.kernel_size[axis]):
            start, phase = divmod(offset * geometry.dilation_rate[axis], stride)
            slices.append(cut[(*before, slice(start, start + count), phase)])
        cut = tf.concat(slices, axis=-1)
    return cut


def patches(
    inputs: tf.Tensor, geometry: Geometry, outputs: tf.Tensor
) -> tf.Tensor:
    """The patches that a convolution multiplies by its kernel.

    Args:
        inputs: Input of the convolution, channels last.
        geometry: Of the convolution.
        outputs: Anything of the shape of the output, channels last.

    Returns:
        Tensor of shape `(batch, positions, prod(kernel_size) * channels)`.
    """
    if inputs.shape[-1] < _WIDE:
        return dense.rows(_cut_along_axes(inputs, geometry, outputs))
    return dense.rows(tf.concat(windows(inputs, geometry, outputs), axis=-1))


class _ConvolutionKernel(gradients.OuterProduct):
    """Patches times output gradients, summed over examples without patches.

    Args:
        inputs: Input of the convolution, channels last.
        output_gradient: Gradient of its output, channels last.
        geometry: Of the convolution.
        kernel_shape: Of the kernel.
    """

    def __init__(self, inputs, output_gradient, geometry, kernel_shape):
        kernel_shape = tuple(kernel_shape)
        super().__init__(
            patches(inputs, geometry, output_gradient),
            dense.rows(output_gradient),
            lambda matrix: tf.reshape(
                matrix, [*([-1] * (matrix.shape.rank - 2)), *kernel_shape]
            ),
            layout=kernel_shape,
        )
        self._inputs = inputs
        self._output_gradient = output_gradient
        self._geometry = geometry
        self._kernel_shape = kernel_shape

    def weighted_sum(self, factors):
        if self._is_rank_one() or self._prefers_matrix():
            return super().weighted_sum(factors)
        present = tf.cast(tf.not_equal(factors, 0.0), factors.dtype)
        inputs = gradients.scale_examples(self._inputs, present)
        right = gradients.scale_examples(self._output_gradient, factors)
        kernel = tf.zeros(self._kernel_shape, inputs.dtype)
        geometry = self._geometry
        strides = geometry.strides
        if len(strides) == 3 and any(
            map(operator.gt, strides, geometry.extents)
        ):
            # With "same", some of TensorFlow's kernels begin amid the first
            # stride. Sums of other inputs than norms have no bound.
            inputs, _ = _padded(inputs, geometry, _sizes(right))
            geometry = dataclasses.replace(geometry, padding="valid")
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            outputs = convolve(inputs, kernel, geometry)
        return tape.gradient(outputs, kernel, output_gradients=right)


def _grouped_kernel(inputs, output_gradient, geometry, kernel_shape, groups):
    """Every group of channels has a kernel of its own, side by side."""
    left = patches(inputs, geometry, output_gradient)
    right = dense.rows(output_gradient)
    *kernel_size, channels, filters = kernel_shape
    positions = tf.shape(left)[1] if left.shape[1] is None else left.shape[1]
    batch = tf.shape(left)[0]
    area = math.prod(kernel_size)
    left = tf.reshape(left, [batch, positions, area, groups, channels])
    left = tf.transpose(left, [0, 3, 2, 4, 1])
    left = tf.reshape(left, [batch, groups, area * channels, positions])
    right = tf.reshape(right, [batch, positions, groups, filters // groups])
    products = tf.matmul(left, tf.transpose(right, [0, 2, 1, 3]))
    products = tf.transpose(products, [0, 2, 1, 3])
    return gradients.PerExampleTensor(
        tf.reshape(products, [batch, *kernel_size, channels, filters])
    )


class _KernelRule(rules.GradientRule):
    """A kernel, and a bias that is added at every position."""

    def record(self, layer, call, args, kwargs):
        return rules.record_before_activation(self, layer, call, args, kwargs)

    def gradients(self, call, output_gradients):
        layer, (gradient,) = call.layer, output_gradients
        dtype = gradients.accumulation_dtype(call.inputs, gradient)
        inputs = tf.cast(channels_last(layer, call.inputs), dtype)
        gradient = tf.cast(channels_last(layer, gradient), dtype)
        kernel = self.kernel(layer)
        result: list[tuple[keras.Variable, _Gradient]]
        result = [(kernel, self.product(layer, kernel, inputs, gradient))]
        if layer.bias is not None:
            bias = gradients.PerExampleTensor(dense.sum_positions(gradient))
            result.append((layer.bias, bias))
        return result

    def kernel(self, layer: Any) -> keras.Variable:
        """Returns the kernel of a layer."""
        return layer.kernel

    @abc.abstractmethod
    def product(
        self,
        layer: Any,
        kernel: keras.Variable,
        inputs: tf.Tensor,
        gradient: tf.Tensor,
    ) -> _Gradient:
        """Returns gradients of the kernel.

        Args:
            layer: The layer.
            kernel: Its kernel.
            inputs: Input of the layer, channels last.
            gradient: Gradient of the output, channels last.
        """


class ConvolutionRule(_KernelRule):
    """`patches W + b`, at every position of the output."""

    def supports(self, layer):
        return not getattr(layer, "lora_enabled", False)

    def kernel(self, layer):
        kernel = kernels.kernel_of(layer)
        assert kernel is not None  # The layer was called.
        return kernel

    def product(self, layer, kernel, inputs, gradient):
        geometry = geometry_of(layer)
        if layer.groups == 1:
            return _ConvolutionKernel(inputs, gradient, geometry, kernel.shape)
        return _grouped_kernel(
            inputs, gradient, geometry, kernel.shape, layer.groups
        )


class TransposedConvolutionRule(_KernelRule):
    """The kernel's gradient is that of a convolution the other way round.

    A transposed convolution takes its input to where a convolution with the
    same kernel would take its output from. So patches of the output's gradient
    meet the input.
    """

    def product(self, layer, kernel, inputs, gradient):
        return _ConvolutionKernel(
            gradient, inputs, geometry_of(layer), kernel.shape
        )


for _layer_type in (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
):
    rules.register_gradient_rule(_layer_type)(ConvolutionRule)
for _layer_type in (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
):
    rules.register_gradient_rule(_layer_type)(TransposedConvolutionRule)
