"""The loop over time steps of Keras's recurrent layers, and a cell.

Keras does not export them. Masks, unrolled loops and outputs at masked steps
are its affair: recurrent layers and their gradient rules share it.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf
from keras.src import backend
from keras.src.layers.rnn import conv_lstm

ConvLSTMCell = conv_lstm.ConvLSTMCell


def scan(
    step: Callable,
    sequences: tf.Tensor,
    initial_states: Sequence[tf.Tensor],
    mask: tf.Tensor | None,
    unroll: bool,
    zero_output_for_mask: bool,
) -> tuple[tf.Tensor, tf.Tensor, Sequence[tf.Tensor]]:
    """Runs a function over the time steps of sequences.

    Args:
        step: Takes the input of one time step and the states; returns an
            output and the new states.
        sequences: Tensor of shape `(batch, time, features)`.
        initial_states: Tensors of shape `(batch, units)`.
        mask: Boolean, `(batch, time)`, or `None`: at a step that is masked,
            states stay as they are.
        unroll: Unrolls the loop.
        zero_output_for_mask: Makes masked outputs zero; otherwise each is the
            one before.

    Returns:
        The last output, all outputs, `(batch, time, ...)`, and the last
        states.
    """
    return backend.rnn(
        step,
        sequences,
        initial_states,
        mask=mask,
        unroll=unroll,
        input_length=sequences.shape[1],
        zero_output_for_mask=zero_output_for_mask,
        return_all_outputs=True,
    )
