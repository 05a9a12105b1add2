"""Ways to read the batch size off sizes that a proof could lose sight of.

Numbers that are the same everywhere tell the batch size by how many there are:
where a size is not known, or none is left, or a lookup goes beyond them; where
a list grows or a condition has no elements; and where one example, in a loop,
meets as many numbers as there are examples.
"""

import pytest
import tensorflow as tf

from tests.independence import graphs

X = graphs.X
raw = tf.raw_ops


def _size(x):
    return tf.shape(x)[0]


def _ones(x):
    return tf.ones([_size(x)])


def _float_size(x):
    return tf.cast(_size(x), tf.float32)


def _unknown():
    """One number, in a size that no graph knows, free of data."""
    return tf.unique(tf.constant([1.0])).y


def _list(tensor):
    return raw.TensorListFromTensor(
        tensor=tensor, element_shape=tf.constant([], tf.int32)
    )


def _reserved(count):
    return raw.TensorListReserve(
        element_shape=tf.constant([], tf.int32),
        num_elements=count,
        element_dtype=tf.float32,
    )


def _item(items, place):
    return raw.TensorListGetItem(
        input_handle=items,
        index=place,
        element_shape=tf.constant([], tf.int32),
        element_dtype=tf.float32,
    )


def _pushed(items, tensor):
    return raw.TensorListPushBack(input_handle=items, tensor=tensor)


def _popped(items):
    return raw.TensorListPopBack(
        input_handle=items,
        element_shape=tf.constant([], tf.int32),
        element_dtype=tf.float32,
    ).output_handle


def _resized(items, count):
    return raw.TensorListResize(input_handle=items, size=count)


def _length(items):
    return tf.cast(raw.TensorListLength(input_handle=items), tf.float32)


def _grown(x):
    return tf.while_loop(
        lambda i, _: i < _size(x),
        lambda i, h: (
            i + 1,
            _resized(h, raw.TensorListLength(input_handle=h) + 1),
        ),
        (0, _reserved(0)),
    )[1]


def _if(condition, x, first, second):
    branches = [
        tf.function(f, autograph=False).get_concrete_function(X)
        for f in (first, second)
    ]
    return raw.If(
        cond=condition,
        input=[x],
        Tout=[tf.float32],
        then_branch=branches[0],
        else_branch=branches[1],
    )[0]


def _mapped_beside(x):
    beside = tf.ones([1, _size(x)])
    return tf.map_fn(lambda r: tf.reduce_sum(r[:, None] * beside, 1), x)


def _mapped_constant(x):
    beside = tf.ones([_size(x)])
    rows = tf.map_fn(
        lambda r: beside, x, fn_output_signature=tf.TensorSpec([None])
    )
    return tf.reduce_sum(rows, 1)


def _gathered(x):
    pair = raw.TensorListFromTensor(
        tensor=tf.stack([x, x]), element_shape=tf.constant([-1, 3], tf.int32)
    )
    found = raw.TensorListGather(
        input_handle=pair,
        indices=tf.zeros([_size(x)], tf.int32),
        element_shape=tf.constant([-1, 3], tf.int32),
        element_dtype=tf.float32,
    )
    return tf.reduce_sum(found, 0)


def _pooled(x):
    gradient = raw.AvgPoolGrad(
        orig_input_shape=tf.stack([1, _size(x), 1, 1]),
        grad=tf.ones([1, 1, 1, 1]),
        ksize=[1, 99, 1, 1],
        strides=[1, 99, 1, 1],
        padding="SAME",
    )
    return tf.reduce_sum(tf.ones_like(gradient))


def _convolved(x):
    gradient = raw.Conv2DBackpropInput(
        input_sizes=tf.stack([1, _size(x), 1, 1]),
        filter=tf.ones([1, 1, 1, 1]),
        out_backprop=tf.ones([1, 1, 1, 1]),
        strides=[1, 99, 1, 1],
        padding="SAME",
    )
    return tf.reduce_sum(gradient * 0 + 1)


def _gradient_axes(x):
    axes = raw.BroadcastGradientArgs(s0=tf.stack([_size(x)]), s1=[1]).r0
    return tf.cast(tf.size(axes), tf.float32)


def _in_greatest(x):
    rows = tf.reshape(_unknown(), [1, -1, 1]) * tf.ones([_size(x), 1, _size(x)])
    rows = tf.reshape(rows, tf.stack([-1, _size(x)]))
    return tf.cast(tf.math.in_top_k(tf.argmax(x, -1), rows, 2), tf.float32)


REFUSED = {
    "greatest of none": lambda x: x * tf.reduce_max(tf.ones([_size(x) - 1])),
    "smallest of none": lambda x: x * tf.reduce_min(tf.ones([_size(x) - 1])),
    "any of none": lambda x: (
        x * tf.cast(tf.reduce_any(tf.fill([_size(x) - 1], True)), tf.float32)
    ),
    "padded by the batch size": lambda x: tf.pad(
        tf.ones_like(x), [[0, 0], [0, 1]], constant_values=_float_size(x)
    ),
    "ones resized": lambda x: tf.reduce_sum(
        tf.image.resize(tf.ones([_size(x), 4, 4, 1]), tf.stack([_size(x), 2])),
        [1, 2],
    ),
    "nearest ones": lambda x: tf.reduce_sum(
        raw.ResizeNearestNeighbor(
            images=tf.ones([_size(x), 4, 4, 1]), size=tf.stack([_size(x), 2])
        ),
        [1, 2],
    ),
    "limit of random numbers": lambda x: (
        x
        + tf.cast(
            tf.random.stateless_uniform(
                tf.shape(x), [1, 2], 0, _size(x) + 1, tf.int32
            ),
            tf.float32,
        )
    ),
    "limit of numbers from a state": lambda x: (
        x
        + tf.cast(
            tf.random.uniform(tf.shape(x), 0, _size(x) + 1, tf.int32),
            tf.float32,
        )
    ),
    "gamma": lambda x: (
        x + tf.random.stateless_gamma(tf.shape(x), [1, 2], alpha=_float_size(x))
    ),
    "stride": lambda x: x * tf.reduce_sum(tf.ones([5])[:: _size(x)]),
    "columns of a solution": lambda x: (
        x * tf.reduce_sum(tf.linalg.solve(tf.eye(3), tf.ones([3, _size(x)])))
    ),
    "columns of a triangle": lambda x: (
        x
        * tf.reduce_sum(
            tf.linalg.triangular_solve(tf.eye(3), tf.ones([3, _size(x)]))
        )
    ),
    "columns of examples": lambda x: tf.reduce_sum(
        raw.MatrixTriangularSolve(
            matrix=x[:, :, None] + tf.eye(3), rhs=tf.ones([1, 3, _size(x)])
        ),
        2,
    ),
    "one more axis": lambda x: (
        x
        + tf.reduce_sum(
            raw.MatrixTriangularSolve(
                matrix=x[:, :, None] + tf.eye(3), rhs=tf.ones([1, 1, 3, 1])
            ),
            1,
        )[:, :, 0]
    ),
    "image to shrink to": lambda x: tf.reduce_mean(
        raw.ResizeBilinearGrad(
            grads=x[:, :, None, None],
            original_image=tf.ones([1, _size(x), 4, 1]),
        ),
        [1, 2],
    ),
    "image to scale to": lambda x: tf.reduce_mean(
        raw.ScaleAndTranslateGrad(
            grads=x[:, :, None, None],
            original_image=tf.ones([1, _size(x), 4, 1]),
            scale=[1.0, 1.0],
            translation=[0.0, 0.0],
        ),
        [1, 2],
    ),
    "gradient of a pool": lambda x: x * _pooled(x),
    "gradient of a convolution": lambda x: x * _convolved(x),
    "joined to an unknown size": lambda x: (
        x * tf.reduce_sum(tf.concat([_unknown(), _ones(x)], 0))
    ),
    "broadcast to an unknown size": lambda x: (
        x * tf.reduce_sum(_unknown() * _ones(x))
    ),
    "classes drawn": lambda x: (
        x
        * tf.cast(
            tf.size(tf.random.categorical(tf.zeros([_size(x), 3]), 1)),
            tf.float32,
        )
    ),
    "axes of a gradient": lambda x: x * _gradient_axes(x),
    "unknown rows": _in_greatest,
    "list that was resized": lambda x: (
        x * _length(_resized(_reserved(2), _size(x)))
    ),
    "list of half": lambda x: x * _length(_reserved(_size(x) // 2)),
    "list that grows in a loop": lambda x: x * _length(_grown(x)),
    "list with one more": lambda x: x * _length(_pushed(_list(_ones(x)), 1.0)),
    "list with one less": lambda x: x * _length(_popped(_list(_ones(x)))),
    "item behind the last": lambda x: (
        x * _item(_pushed(_list(_ones(x)), 2.0), 3)
    ),
    "item that was never set": lambda x: (
        x * _item(_resized(_list(_ones(x)), 5), 3)
    ),
    "item set beyond the last": lambda x: (
        x
        * _item(
            raw.TensorListSetItem(
                input_handle=_list(_ones(x)),
                index=5,
                item=1.0,
                resize_if_index_out_of_bounds=True,
            ),
            3,
        )
    ),
    "items gathered": lambda x: (
        x
        * tf.reduce_sum(
            raw.TensorListGather(
                input_handle=_list(tf.ones([2])),
                indices=tf.zeros([_size(x)], tf.int32),
                element_shape=tf.constant([], tf.int32),
                element_dtype=tf.float32,
            )
        )
    ),
    "batches gathered": _gathered,
    "items scattered": lambda x: (
        x
        * _length(
            raw.TensorListScatterV2(
                tensor=tf.ones([1]),
                indices=[0],
                element_shape=tf.constant([], tf.int32),
                num_elements=_size(x),
            )
        )
    ),
    "if there are elements": lambda x: _if(
        tf.fill([_size(x) - 1], 1), x, tf.identity, tf.negative
    ),
    "if there is one element": lambda x: _if(
        tf.constant([0]), x, lambda t: t - tf.reduce_mean(t, 0), tf.identity
    ),
    "row beside ones": _mapped_beside,
    "ones for a row": _mapped_constant,
    "beyond the last": lambda x: x * tf.gather(_ones(x), 5),
    "beyond the last, by several": lambda x: x * tf.gather_nd(_ones(x), [[5]]),
    "beyond the last, by data": lambda x: tf.gather(
        _ones(x), tf.cast(x[:, 0], tf.int32)
    ),
    "beyond the last, by several of data": lambda x: tf.gather_nd(
        _ones(x), tf.cast(x[:, :1], tf.int32)
    ),
    "beyond an example's own": lambda x: tf.gather(
        tf.ones([3 * _size(x)]),
        tf.range(_size(x)) * 3 + tf.cast(x[:, 0], tf.int32),
    ),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_attack_is_refused(name):
    assert graphs.refused(REFUSED[name], X).reason


@pytest.mark.parametrize(
    "make",
    [
        lambda n: tf.fill([n, 2], 1.0),
        lambda n: tf.broadcast_to([1.0], tf.stack([n])),
        lambda n: tf.tile([1.0], tf.stack([n])),
        lambda n: tf.tile(_unknown(), tf.stack([n])),
    ],
)
@pytest.mark.parametrize(
    "number",
    [
        lambda x: tf.maximum(_size(x), 3),
        lambda x: tf.size(tf.unique(_ones(x) + x[0, 0] * 0.0).y),
        lambda x: tf.shape(tf.broadcast_to(_ones(x), [_size(x)]) + _unknown())[
            0
        ],
        lambda x: tf.shape(tf.concat([_ones(x), _unknown()], 0))[0],
    ],
)
def test_sizes_that_are_listed_hide_no_batch_size(make, number):
    assert graphs.refused(
        lambda x: x * tf.reduce_sum(tf.ones_like(make(number(x)))), X
    ).reason


def _doubled_list(x):
    """Looks up an example's own place, which is told wrongly by a list."""
    rows = raw.TensorListFromTensor(
        tensor=tf.ones([2, 1], tf.int32), element_shape=tf.constant([1])
    )
    summed = tf.add_n([rows, rows])
    place = raw.TensorListGetItem(
        input_handle=summed,
        index=0,
        element_shape=tf.constant([1]),
        element_dtype=tf.int32,
    )
    return tf.gather(x, tf.tile(place[None], [_size(x), 1]) + 1, batch_dims=1)


def _unset_item(x):
    """Looks up by an item that was never set, which is zero and not one."""
    items = raw.TensorListReserve(
        element_shape=tf.constant([], tf.int32),
        num_elements=2,
        element_dtype=tf.int32,
    )
    items = raw.TensorListSetItem(input_handle=items, index=0, item=1)
    place = raw.TensorListGetItem(
        input_handle=items,
        index=1,
        element_shape=tf.constant([], tf.int32),
        element_dtype=tf.int32,
    )
    places = tf.fill([_size(x), 1], place - 1)
    return tf.gather(x, places, batch_dims=1)


@pytest.mark.parametrize("function", [_doubled_list, _unset_item])
def test_numbers_in_lists_are_not_taken_for_others(function):
    assert graphs.refused(function, X).reason


def test_a_border_taken_off_makes_a_tensor_smaller():
    def places(x):
        ones = raw.MirrorPadGrad(
            input=tf.ones_like(x), paddings=[[0, 0], [1, 0]], mode="REFLECT"
        )
        return tf.gather(
            ones, tf.fill([_size(x), 1], tf.shape(ones)[1]), batch_dims=1
        )

    assert graphs.refused(places, X).reason


SOUND = {
    "greatest of ones": lambda x: x * tf.reduce_max(_ones(x)),
    "first of ones": lambda x: x * tf.gather(_ones(x), 0),
    "drawn for each": lambda x: (
        x + tf.random.stateless_normal(tf.shape(x), [1, 2])
    ),
    "ones resized to a known size": lambda x: tf.reduce_sum(
        tf.image.resize(tf.ones([_size(x), 4, 4, 1]), [2, 2]), [1, 2]
    ),
    "one for each row": lambda x: tf.map_fn(
        lambda r: r * tf.reduce_sum(tf.ones([3])), x
    ),
}


@pytest.mark.parametrize("name", sorted(SOUND))
def test_sound_function_is_proved(name):
    graphs.proved(SOUND[name], X)


class TestRowsOfGradients:
    """Some kernels have the rows of one operand, whatever the other has."""

    @staticmethod
    def _gradient(image, rows):
        return raw.ScaleAndTranslateGrad(
            grads=tf.ones([rows, 3, 5, 2]),
            original_image=image,
            scale=[1.0, 1.0],
            translation=[1.0, 1.0],
        )

    @pytest.mark.parametrize("rows", [1, 4])
    def test_another_number_of_rows_is_refused(self, rows):
        graphs.refused(lambda x: self._gradient(x, rows), graphs.IMAGE)

    def test_as_many_rows_as_examples_are_proved(self):
        graphs.proved(lambda x: self._gradient(x, _size(x)), graphs.IMAGE)
