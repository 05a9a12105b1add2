"""Functions of one example in a loop over examples.

What an example gives can't depend on the others, whatever the function
computes. The backward pass is a loop of the same kind, which calls the function
once more: nothing is handed from one round to the next.
"""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from tf_dpfp.keras_private import graphs

# What TensorFlow does not vectorise where each example has weights of its own,
# or at all. Its loops hand numbers from round to round for their gradients, and
# can't be proved.
_NOT_VECTORISED = frozenset(
    """
    Conv2D Conv2DBackpropInput Conv3D Conv3DBackpropInputV2 Dilation2D
    ResizeArea ResizeBicubic ResizeBilinear ResizeNearestNeighbor
    ScaleAndTranslate
    """.split()
)


def needs_loop(
    call: Callable[[list], list[tf.Tensor]], examples: Sequence[tf.Tensor]
) -> bool:
    """Tells if a function of one example can't be vectorised.

    Args:
        call: Takes the tensors of one example.
        examples: Tensors, examples along the first axis.
    """
    specs = [tf.TensorSpec(t.shape[1:], t.dtype) for t in examples]
    # Traced and never run.
    traced = tf.function(call, autograph=False).get_concrete_function(specs)
    operations = graphs.operations(traced)
    return any(operation.kind in _NOT_VECTORISED for operation in operations)


def mapped(
    call: Callable[[list, list], list[tf.Tensor]],
    weights: list[tf.Tensor],
    has_copies: bool,
    examples: list[tf.Tensor],
    frozen: Sequence[keras.Variable] = (),
) -> list[tf.Tensor]:
    """Calls a function on each example, and differentiates it likewise.

    Args:
        call: Takes weights and the tensors of one example.
        weights: Weights, the same for all examples or one of each.
        has_copies: True if there are copies for each example.
        examples: Tensors, examples along the first axis.
        frozen: Variables that the function may read, and that don't train.

    Returns:
        What the function returns, for the whole batch.

    Raises:
        ValueError: If the function reads another variable.
    """
    count = len(weights)
    if has_copies:
        mapped = weights + examples
    else:
        mapped = examples

    def one(shared, example):
        if has_copies:
            return call(example[:count], example[count:])
        return call(shared, example)

    shared = [] if has_copies else weights
    signature = _signature(one, shared, mapped)
    floating = [t.dtype.is_floating for t in mapped]

    @tf.custom_gradient
    def run(*tensors):
        shared, mapped = _apart(tensors, len(tensors) - len(floating))
        outputs = tf.map_fn(
            lambda example: _ensured(one(shared, example), signature),
            mapped,
            fn_output_signature=signature,
        )

        def gradient(*output_gradients, variables=()):
            _check_frozen(variables, frozen)
            # What was looked up makes slices of its gradient.
            dense = [tf.convert_to_tensor(g) for g in output_gradients]
            found = iter(_gradients(one, shared, mapped, floating, dense))
            own = [
                None if g is None else tf.reduce_sum(g, axis=0)
                for g in (next(found) for _ in shared)
            ]
            own += [next(found) if f else None for f in floating]
            # TensorFlow asks for those of variables only where there are some.
            return (own, [None] * len(variables)) if variables else own

        return outputs, gradient

    return list(run(*shared, *mapped))


def _check_frozen(
    variables: Sequence[tf.Variable], frozen: Sequence[keras.Variable]
) -> None:
    """Checks that gradients of variables that are left out are not wanted."""
    known = {id(v.value) for v in frozen}
    for variable in variables:
        if id(variable) not in known:
            raise ValueError(
                f"Variable '{variable.name}' is read where examples are taken "
                "one after the other, and belongs to no layer that is called "
                "there: its gradient is out of reach. Make it a weight of the "
                "layer that reads it."
            )


def _gradients(
    one, shared, mapped, floating, output_gradients
) -> list[tf.Tensor | None]:
    """Gradients of each example: of the weights, and of what is floating.

    `None` for what nothing hangs on: zeros that no example makes would be the
    same for all of them.
    """
    watched = [m for m, f in zip(mapped, floating, strict=True) if f]
    kinds = [tf.TensorSpec(t.shape, t.dtype) for t in shared]
    kinds += [tf.TensorSpec(t.shape[1:], t.dtype) for t in watched]
    elements = [*mapped, *output_gradients]
    is_connected: list[bool] = []

    def backward(elements):
        example, gradients = _apart(elements, len(mapped))
        sources = [*shared]
        sources += [e for e, f in zip(example, floating, strict=True) if f]
        with tf.GradientTape() as tape:
            tape.watch(sources)
            outputs = one(shared, example)
        pairs = [
            (o, g)
            for o, g in zip(outputs, gradients, strict=True)
            if o.dtype.is_floating
        ]
        found = tape.gradient(
            [o for o, _ in pairs],
            sources,
            output_gradients=[g for _, g in pairs],
        )
        is_connected[:] = [g is not None for g in found]
        return _ensured(
            [g for g in found if g is not None],
            [k for g, k in zip(found, kinds, strict=True) if g is not None],
        )

    # Traced and never run: it tells what is connected.
    specs = [tf.TensorSpec(t.shape[1:], t.dtype) for t in elements]
    tf.function(backward, autograph=False).get_concrete_function(specs)
    known = [k for k, has in zip(kinds, is_connected, strict=True) if has]
    if not known:
        return [None] * len(is_connected)
    found = iter(tf.map_fn(backward, elements, fn_output_signature=known))
    return [next(found) if has else None for has in is_connected]


def _ensured(tensors, specs: Sequence[tf.TensorSpec]) -> list[tf.Tensor]:
    """Checks the shapes that a loop says its results have."""
    return [
        tf.ensure_shape(tf.convert_to_tensor(tensor), spec.shape)
        for tensor, spec in zip(tensors, specs, strict=True)
    ]


def _apart(tensors, count: int) -> tuple[list, list]:
    return list(tensors[:count]), list(tensors[count:])


def _signature(one, shared, mapped) -> list[tf.TensorSpec]:
    """Returns shapes and types of the outputs for one example."""
    specs = [tf.TensorSpec(t.shape, t.dtype) for t in shared]
    specs += [tf.TensorSpec(t.shape[1:], t.dtype) for t in mapped]
    # Traced and never run.
    traced = tf.function(
        lambda *tensors: one(*_apart(tensors, len(shared))), autograph=False
    ).get_concrete_function(*specs)
    return [tf.TensorSpec(t.shape, t.dtype) for t in traced.outputs]
