"""Recurrences of Keras's cells, and per-example gradients of their weights.

Inputs are multiplied by the kernel for all time steps at once, before the
loop. The gradient of that product is the gradient `g` of the gates at every
step, and all weights follow from it:

* kernel: the sum over steps of `x_t^T g_t`;
* recurrent kernel: the sum over steps of `h_{t-1}^T g_t`;
* bias: the sum over steps of `g_t`;

but for the candidate gate of a GRU, which sees the state through a reset gate.
"""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tf_dpfp.per_example import dense
from tf_dpfp.per_example import gradients
from tf_dpfp.per_example import side_by_side

# Pairs of a variable and its per-example gradients.
Pairs = list[tuple[keras.Variable, gradients.PerExampleGradient]]


@dataclasses.dataclass(frozen=True)
class Run:
    """A cell that ran over all time steps.

    Attributes:
        cell: The cell.
        inputs: What the kernel was multiplied with, `(batch, time, ...,
            features)`: one tensor, or one for each gate.
        projected: The product, with the bias, `(batch, time, ..., gates *
            units)`.
        recurrent_masks: Dropout masks of the state, `(batch, ..., units)`:
            none, one, or one for each gate.
        states: The state `h` before each step, `(batch, time, ..., units)`.
        resets: The reset gate at each step, or `None`.
    """

    cell: keras.layers.Layer
    inputs: tuple[tf.Tensor, ...]
    projected: tf.Tensor
    recurrent_masks: tuple[tf.Tensor, ...]
    states: tf.Tensor
    resets: tf.Tensor | None

    @property
    def masked_states(self) -> tuple[tf.Tensor, ...]:
        """What the recurrent kernel was multiplied with, as `inputs`."""
        masks = self.recurrent_masks
        if not masks:
            return (self.states,)
        return tuple(self.states * mask[:, None] for mask in masks)


class Recurrence(abc.ABC):
    """One type of cell.

    Attributes:
        gates: How many blocks of columns the kernels have.
        saves_resets: True if steps return a reset gate, too.
    """

    gates: int
    saves_resets = False

    @abc.abstractmethod
    def step(
        self, cell: Any, masks: tuple[tf.Tensor, ...]
    ) -> Callable[..., tuple[tf.Tensor, list[tf.Tensor], list[tf.Tensor]]]:
        """Returns one step of the cell.

        Args:
            cell: The cell.
            masks: As `Run.recurrent_masks`.

        Returns:
            A function from the projected input of a step and the states to
            the output, the new states, and a list of the reset gate.
        """

    def input_bias(self, cell: Any) -> tf.Tensor | None:
        """Returns what is added to the product of inputs and kernel."""
        return _value(cell.bias) if cell.bias is not None else None

    def projected(self, cell: Any, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
        """Multiplies inputs by the kernel, and adds the bias.

        Args:
            cell: The cell.
            inputs: As `Run.inputs`.
        """
        projected = self.multiply_inputs(cell, inputs, _value(cell.kernel))
        bias = self.input_bias(cell)
        if bias is not None:
            projected += bias
        if any(v.trainable for v in (cell.kernel, cell.bias) if v is not None):
            return projected
        # A tape knows only what depends on a weight that is trained.
        weight = tf.reduce_sum(_value(cell.recurrent_kernel))
        return projected + 0 * weight

    def multiply_inputs(
        self, cell: Any, inputs: Sequence[tf.Tensor], kernel: tf.Tensor
    ) -> tf.Tensor:
        """Multiplies inputs of all time steps by the kernel."""
        del cell
        return project(inputs, kernel, self.gates)

    def multiply_states(
        self, cell: Any, states: Sequence[tf.Tensor], kernel: tf.Tensor
    ) -> tf.Tensor:
        """Multiplies the state before one step by the recurrent kernel."""
        del cell
        return project(states, kernel, self.gates)

    def input_products(
        self, cell: Any, inputs: Sequence[tf.Tensor], gradient: tf.Tensor
    ) -> gradients.PerExampleGradient:
        """Returns gradients of the kernel.

        Args:
            cell: The cell.
            inputs: As `Run.inputs`.
            gradient: Gradient of the product.
        """
        del cell
        return products(inputs, gradient, self.gates)

    def state_products(
        self, cell: Any, states: Sequence[tf.Tensor], gradient: tf.Tensor
    ) -> gradients.PerExampleGradient:
        """Returns gradients of the recurrent kernel.

        Args:
            cell: The cell.
            states: As `recurrent_inputs` gives them.
            gradient: Gradient of the product.
        """
        del cell
        return products(states, gradient, self.gates)

    def weight_gradients(self, run: Run, gradient: tf.Tensor) -> Pairs:
        """Returns per-example gradients of the weights of the cell.

        Args:
            run: A run of it.
            gradient: Gradient of `run.projected`.
        """
        cell = run.cell
        dtype = gradients.accumulation_dtype(gradient)
        gradient = tf.cast(gradient, dtype)
        recurrent = self.recurrent_gradient(run, gradient)
        result: Pairs = [
            (cell.kernel, self.input_products(cell, run.inputs, gradient)),
            (
                cell.recurrent_kernel,
                self.state_products(
                    cell, self.recurrent_inputs(run), recurrent
                ),
            ),
        ]
        if cell.bias is not None:
            bias = self.bias_gradient(gradient, recurrent)
            result.append((cell.bias, gradients.PerExampleTensor(bias)))
        return result

    def recurrent_gradient(self, run: Run, gradient: tf.Tensor) -> tf.Tensor:
        """Returns the gradient of the product of states and their kernel."""
        del run
        return gradient

    def recurrent_inputs(self, run: Run) -> tuple[tf.Tensor, ...]:
        """Returns what the recurrent kernel was multiplied with."""
        return run.masked_states

    def bias_gradient(
        self, gradient: tf.Tensor, recurrent: tf.Tensor
    ) -> tf.Tensor:
        """Returns the gradient of the bias."""
        del recurrent
        return dense.sum_positions(gradient)


def products(
    lefts: Sequence[tf.Tensor], gradient: tf.Tensor, gates: int
) -> gradients.PerExampleGradient:
    """Returns gradients of a kernel with a block of columns for each gate.

    Args:
        lefts: What the kernel was multiplied with: one tensor, or one for
            each block.
        gradient: Gradient of the product.
        gates: How many blocks there are.
    """
    if len(lefts) == 1:
        return gradients.OuterProduct(lefts[0], gradient)
    blocks = tf.split(gradient, gates, axis=-1)
    return side_by_side.SideBySide(
        [
            gradients.OuterProduct(left, block)
            for left, block in zip(lefts, blocks, strict=True)
        ]
    )


def project(
    inputs: Sequence[tf.Tensor], kernel: tf.Tensor, gates: int
) -> tf.Tensor:
    """Multiplies by a kernel: all of it, or each block by a tensor of its own.

    Args:
        inputs: One tensor, or one for each gate.
        kernel: The kernel.
        gates: How many blocks of columns it has.
    """
    if len(inputs) == 1:
        return ops.matmul(inputs[0], kernel)
    blocks = tf.split(kernel, gates, axis=1)
    pairs = zip(inputs, blocks, strict=True)
    return tf.concat([ops.matmul(x, block) for x, block in pairs], axis=-1)


def _value(variable: keras.Variable) -> tf.Tensor:
    return tf.convert_to_tensor(variable)


def _masked(h: tf.Tensor, masks: tuple[tf.Tensor, ...]) -> list[tf.Tensor]:
    return [h * mask for mask in masks] if masks else [h]


class SimpleRNN(Recurrence):
    """`h = activation(x W + b + h R)`."""

    gates = 1

    def step(self, cell, masks):
        kernel = _value(cell.recurrent_kernel)

        def step(projected, states):
            (h,) = states
            h = projected + project(_masked(h, masks), kernel, self.gates)
            if cell.activation is not None:
                h = cell.activation(h)
            return h, [h], []

        return step


class LSTM(Recurrence):
    """Gates in the order input, forget, candidate, output."""

    gates = 4

    def step(self, cell, masks):
        kernel = _value(cell.recurrent_kernel)

        def step(projected, states):
            h, c = states
            seen = _masked(h, masks)
            z = projected + self.multiply_states(cell, seen, kernel)
            i, f, candidate, o = tf.split(z, 4, axis=-1)
            i = cell.recurrent_activation(i)
            f = cell.recurrent_activation(f)
            c = f * c + i * cell.activation(candidate)
            h = cell.recurrent_activation(o) * cell.activation(c)
            return h, [h, c], []

        return step


class GRU(Recurrence):
    """Gates in the order update, reset, candidate."""

    gates = 3
    saves_resets = True

    def step(self, cell, masks):
        kernel = _value(cell.recurrent_kernel)
        units = cell.units
        bias = None
        if cell.reset_after and cell.bias is not None:
            bias = _value(cell.bias)[1]

        def step(projected, states):
            (h,) = states
            x_z, x_r, x_h = tf.split(projected, 3, axis=1)
            seen = _masked(h, masks)
            if cell.reset_after:
                inner = project(seen, kernel, 3)
                inner = inner if bias is None else inner + bias
                h_z, h_r, candidate = tf.split(inner, 3, axis=1)
                reset = cell.recurrent_activation(x_r + h_r)
                candidate = reset * candidate
            else:
                inner = project(seen[:2], kernel[:, : 2 * units], 2)
                h_z, h_r = tf.split(inner, 2, axis=1)
                reset = cell.recurrent_activation(x_r + h_r)
                candidate = tf.matmul(reset * seen[-1], kernel[:, 2 * units :])
            update = cell.recurrent_activation(x_z + h_z)
            candidate = cell.activation(x_h + candidate)
            h = update * h + (1 - update) * candidate
            return h, [h], [reset]

        return step

    def input_bias(self, cell):
        bias = super().input_bias(cell)
        return bias[0] if cell.reset_after and bias is not None else bias

    def recurrent_gradient(self, run, gradient):
        if not run.cell.reset_after:
            return gradient
        update, reset, candidate = tf.split(gradient, 3, axis=-1)
        candidate *= tf.cast(run.resets, candidate.dtype)
        return tf.concat([update, reset, candidate], axis=-1)

    def recurrent_inputs(self, run):
        seen = run.masked_states
        if run.cell.reset_after:
            return seen
        return seen[0], seen[min(1, len(seen) - 1)], run.resets * seen[-1]

    def bias_gradient(self, gradient, recurrent):
        own = dense.sum_positions(gradient)
        if recurrent is gradient:
            return own
        return tf.stack([own, dense.sum_positions(recurrent)], axis=1)


RECURRENCES: dict[type, Recurrence] = {
    keras.layers.SimpleRNNCell: SimpleRNN(),
    keras.layers.LSTMCell: LSTM(),
    keras.layers.GRUCell: GRU(),
}
