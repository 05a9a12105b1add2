"""Gradient rule of `keras.layers.EinsumDense`."""

import dataclasses
import math
import re
import string

import keras
import tensorflow as tf

from tf_dpfp.keras_private import kernels
from tf_dpfp.keras_private import layers as keras_layers
from tf_dpfp.per_example import dense
from tf_dpfp.per_example import gradients
from tf_dpfp.per_example import rules


@dataclasses.dataclass(frozen=True)
class Contraction:
    """An einsum of a batch of inputs with one kernel, letter by letter.

    Attributes:
        inputs: Letters of the input; the first is the batch.
        kernel: Letters of the kernel.
        outputs: Letters of the output; the first is the batch.
    """

    inputs: str
    kernel: str
    outputs: str

    @property
    def contracted(self) -> str:
        """Kernel letters that are summed over."""
        return "".join(c for c in self.kernel if c not in self.outputs)

    @property
    def produced(self) -> str:
        """Kernel letters that appear in the output and not in the input."""
        return "".join(c for c in self.kernel if c not in self.inputs)

    @property
    def positions(self) -> str:
        """Letters between batch and features, shared by input and output."""
        return "".join(c for c in self.inputs[1:] if c not in self.kernel)

    def is_matrix_product(self) -> bool:
        """Whether one matrix multiplies every position alike."""
        return (
            set(self.contracted) | set(self.produced) == set(self.kernel)
            and set(self.outputs[1:])
            == set(self.positions) | set(self.produced)
            and bool(self.contracted)
            and bool(self.produced)
        )


def parse(equation: str, input_rank: int, output_rank: int) -> Contraction:
    """Reads an einsum equation, with every `...` spelled out as letters.

    Args:
        equation: As `keras.layers.EinsumDense` takes it.
        input_rank: Rank of the input, batch included.
        output_rank: Rank of the output, batch included.

    Returns:
        The `Contraction`.
    """
    left, outputs = equation.replace(" ", "").split("->")
    inputs, kernel = left.split(",")
    spare = [c for c in string.ascii_letters if c not in equation]

    def spell(letters: str, rank: int) -> str:
        return letters.replace(
            "...", "".join(spare[: rank - len(letters.replace("...", ""))])
        )

    return Contraction(
        spell(inputs, input_rank), kernel, spell(outputs, output_rank)
    )


def _transpose(tensor: tf.Tensor, have: str, want: str) -> tf.Tensor:
    if have == want:
        return tensor
    return tf.transpose(tensor, [have.index(c) for c in want])


@rules.register_gradient_rule(keras.layers.EinsumDense)
class EinsumDenseRule(rules.GradientRule):
    """Positions times contracted letters, positions times produced ones."""

    def supports(self, layer):
        if keras_layers.is_quantized(layer):
            return False
        # LoRA factors the last letter out: it must be summed over, or made.
        inputs, kernel, outputs = re.split(",|->", layer.equation)
        last = kernel.strip()[-1]
        return not layer.lora_enabled or (last in inputs) != (last in outputs)

    def record(self, layer, call, args, kwargs):
        return rules.record_before_activation(self, layer, call, args, kwargs)

    def gradients(self, call, output_gradients):
        layer, (gradient,) = call.layer, output_gradients
        inputs = call.inputs
        letters = parse(layer.equation, inputs.shape.rank, gradient.shape.rank)
        dtype = gradients.accumulation_dtype(inputs, gradient)
        inputs, gradient = tf.cast(inputs, dtype), tf.cast(gradient, dtype)
        if layer.lora_enabled:
            result = _lora_gradients(layer, letters, inputs, gradient)
        else:
            kernel = kernels.kernel_of(layer)
            result = [
                (kernel, _kernel_gradient(kernel, letters, inputs, gradient))
            ]
        if layer.bias is not None:
            bias = _bias_gradient(layer.bias.shape, gradient)
            result.append((layer.bias, bias))
        return result


def _lora_gradients(layer, letters, inputs, gradient):
    """Gradients of both factors of `A B scale`, never of the product.

    A has the letters of the kernel, with a letter for the rank in place of the
    last one; each factor is the kernel of an einsum of its own.
    """
    first, second = layer.lora_kernel_a, layer.lora_kernel_b
    a = tf.cast(first.value, gradient.dtype)
    b = tf.cast(second.value, gradient.dtype)
    gradient *= keras_layers.lora_scale(layer)
    last = letters.kernel[-1]
    used = letters.inputs + letters.kernel + letters.outputs
    rank = next(c for c in string.ascii_letters if c not in used)
    thin = letters.kernel[:-1] + rank
    if last in letters.outputs:
        # (x A) B: what A makes has the letters of the output, but for one.
        made = letters.outputs.replace(last, rank)
        through_a = tf.einsum(f"{letters.inputs},{thin}->{made}", inputs, a)
        through_b = tf.einsum(
            f"{letters.outputs},{rank + last}->{made}", gradient, b
        )
        of_a = Contraction(letters.inputs, thin, made), inputs, through_b
        of_b = (
            Contraction(made, rank + last, letters.outputs),
            through_a,
            gradient,
        )
    else:
        # (x B) A: what B makes has the letters of the input, but for one.
        made = letters.inputs.replace(last, rank)
        through_b = tf.einsum(
            f"{letters.inputs},{rank + last}->{made}", inputs, b
        )
        through_a = tf.einsum(f"{letters.outputs},{thin}->{made}", gradient, a)
        of_a = Contraction(made, thin, letters.outputs), through_b, gradient
        of_b = (
            Contraction(letters.inputs, rank + last, made),
            inputs,
            through_a,
        )
    return [
        (first, _kernel_gradient(first, *of_a)),
        (second, _kernel_gradient(second, *of_b)),
    ]


def _kernel_gradient(kernel, letters, inputs, gradient):
    if not letters.is_matrix_product():
        batch = letters.inputs[0]
        equation = f"{letters.inputs},{letters.outputs}->{batch}" + (
            letters.kernel
        )
        return gradients.PerExampleTensor(tf.einsum(equation, inputs, gradient))
    batch = letters.inputs[0]
    lead = batch + letters.positions
    left = _transpose(inputs, letters.inputs, lead + letters.contracted)
    right = _transpose(gradient, letters.outputs, lead + letters.produced)
    left = dense.rows(left, len(letters.contracted))
    right = dense.rows(right, len(letters.produced))
    sizes = dict(zip(letters.kernel, kernel.shape, strict=True))
    have = letters.contracted + letters.produced

    def to_variable(matrix):
        stack = matrix.shape.as_list()[:-2]
        lead_shape = [-1] if stack else []
        full = tf.reshape(matrix, lead_shape + [sizes[c] for c in have])
        marker = "." if stack else ""
        return _transpose(full, marker + have, marker + letters.kernel)

    return gradients.OuterProduct(
        left, right, to_variable, layout=(have, letters.kernel)
    )


def _bias_gradient(shape, gradient):
    """Sums the output gradient over all axes that the bias broadcasts over."""
    rank = len(shape)
    summed = dense.sum_positions(gradient, axes=rank)
    sizes = summed.shape.as_list()[1:]
    broadcast = [
        axis + 1
        for axis, (mine, theirs) in enumerate(zip(shape, sizes, strict=True))
        if mine == 1 and theirs != 1
    ]
    if broadcast:
        summed = tf.reduce_sum(summed, axis=broadcast, keepdims=True)
    if summed.shape.rank != rank + 1:
        raise ValueError(
            f"a bias of shape {tuple(shape)} does not fit an output of shape "
            f"{tuple(gradient.shape)}"
        )
    return gradients.PerExampleTensor(
        tf.reshape(summed, [-1, *shape]) if math.prod(shape) else summed
    )
