"""Shapes that are wrong: `set_shape`, and whatever else no kernel checks.

Every attack lets examples meet as soon as the proof believes the shape.
"""

import pytest
import tensorflow as tf

from tests.independence import graphs
from tf_dpfp.independence import inferred
from tf_dpfp.independence import preconditions
from tf_dpfp.independence import values as values_lib
from tf_dpfp.independence.prover import Walk

X = graphs.X
raw = tf.raw_ops
_FLOATS = {"element_dtype": tf.float32}


def _three():
    """Three numbers; no graph knows how many they are."""
    return tf.unique(tf.constant([1.0, 2.0, 3.0])).y


def _hidden(x):
    return raw.PlaceholderWithDefault(input=x, shape=tf.TensorShape(None))


def _said(tensor, shape):
    tensor = tf.identity(tensor)
    tensor.set_shape(shape)
    return tensor


def _first(tensor):
    return raw.Shape(input=tensor)[0]


def _apart_if_one(x, tensor):
    """Adds up as many rows as a tensor has, and hands the sum to each."""
    count = _first(tensor)
    rows = tf.reduce_sum(tf.reshape(x, [-1, count * 3]), 1)
    return tf.reshape(tf.tile(rows[:, None], [1, count]), [-1])


def _apart_if_all(x, tensor):
    """Adds to each row the sum of as many as a tensor has not."""
    rows = tf.reshape(x, [_first(tensor), -1])
    return x[:, 0] + tf.reduce_sum(rows, 1)


def _in_function(x):
    @tf.function(autograph=False)
    def inner(x, numbers):
        numbers.set_shape([1])
        return _apart_if_one(x, numbers)

    return inner(x, _three())


def _of_function(x):
    function = tf.function(lambda: _said(_three(), [1]), autograph=False)
    return _apart_if_one(x, function())


def _by_signature(x):
    @tf.function(
        autograph=False, input_signature=[X, tf.TensorSpec([1], tf.float32)]
    )
    def inner(x, numbers):
        return _apart_if_one(x, numbers)

    return inner(x, _three())


def _in_branch(x):
    found = tf.cond(
        _three()[0] > 0,
        lambda: _said(_three(), [1]),
        lambda: tf.constant([1.0]),
    )
    return _apart_if_one(x, found)


def _in_body(x):
    found = tf.while_loop(
        lambda i, _: i < 2,
        lambda i, _: (i + 1, _said(_three(), [1])),
        (0, tf.constant([1.0])),
    )[1]
    return _apart_if_one(x, found)


def _branches_of_all(x):
    """The optimizer of graphs believes what both branches say."""

    def branch():
        return _said(_hidden(x), [1, 3])

    return _apart_if_all(x, tf.cond(_three()[0] > 0, branch, branch))


def _raw_branches(x):
    branch = tf.function(lambda x: _said(_hidden(x), [1, 3]), autograph=False)
    branch = branch.get_concrete_function(X)
    found = raw.If(
        cond=_three()[0] > 0,
        input=[x],
        Tout=[tf.float32],
        then_branch=branch,
        else_branch=branch,
        output_shapes=[[1, 3]],
    )
    return _apart_if_all(x, found[0])


def _loop_of_all(x):
    found = tf.while_loop(
        lambda i, _: i < 2,
        lambda i, _: (i + 1, _said(_hidden(x), [1, 3])),
        (0, _said(_hidden(x), [1, 3])),
    )[1]
    return _apart_if_all(x, found)


def _narrow(x):
    """Three columns, said to be one."""
    wide = tf.tile(x[:, :1], [1, tf.cast(_three()[2], tf.int32)])
    wide = _said(_hidden(wide), [None, 1])
    return tf.reshape(wide, [-1])[: tf.shape(x)[0]]


def _backward(x):
    @tf.custom_gradient
    def same(t):
        return tf.identity(t), lambda g: _apart_if_one(x, _said(_three(), [1]))

    with tf.GradientTape() as tape:
        tape.watch(x)
        y = same(x[:, 0])
    return tape.gradient(y, x)


def _counted(x):
    step = _first(_said(_three(), [1]))
    return (
        x[:, 0]
        + tf.while_loop(
            lambda i, _: i < tf.shape(x)[0],
            lambda i, a: (i + step, a + 1.0),
            (0, 0.0),
        )[1]
    )


def _reserved(shape=-1):
    return raw.TensorListReserve(element_shape=shape, num_elements=2, **_FLOATS)


def _set(items, tensor, place=0):
    return raw.TensorListSetItem(input_handle=items, index=place, item=tensor)


def _item(items, place, shape=-1):
    return raw.TensorListGetItem(
        input_handle=items, index=place, element_shape=shape, **_FLOATS
    )


def _either(first, second):
    return tf.cond(_three()[0] < 0, first, second)


def _popped(x):
    items = raw.EmptyTensorList(element_shape=-1, max_num_elements=2, **_FLOATS)
    items = raw.TensorListPushBack(input_handle=items, tensor=x)
    items = raw.TensorListResize(input_handle=items, size=2)
    return raw.TensorListPopBack(
        input_handle=items, element_shape=[1, 3], **_FLOATS
    ).tensor


def _gathered(x):
    found = raw.TensorListGather(
        input_handle=_set(_reserved(), x),
        indices=[1],
        element_shape=[1, 3],
        **_FLOATS,
    )
    return found[0]


def _added(x):
    """A sum of lists takes the shape of either, and the items of either."""
    return raw.AddN(inputs=[_set(_reserved(), x), _reserved([1, 3])])


def _shape_of_items(x):
    items = _set(_reserved([-1, 3]), x)
    count = raw.TensorListElementShape(input_handle=items, shape_type=tf.int32)
    rows = tf.reshape(x, [tf.abs(count[0]), -1])
    return x[:, 0] + tf.reduce_sum(rows, 1)


ONE = tf.Variable([1.0])


def _written(x):
    """No kernel checks what a variable is assigned."""
    ONE.assign(_hidden(_three()))
    return _apart_if_one(x, ONE.read_value())


def _held(x):
    holder = raw.OptionalFromValue(components=[x])
    return raw.OptionalGetValue(
        optional=holder, output_types=[tf.float32], output_shapes=[[1, 3]]
    )[0]


def _compressed():
    return raw.UncompressElement(
        compressed=raw.CompressElement(components=[_three()]),
        output_types=[tf.float32],
        output_shapes=[[1]],
    )[0]


def _named():
    """Two variables of one name, of which one says a shape it has not."""
    handle = raw.VarHandleOp(dtype=tf.float32, shape=[1], shared_name="named")
    return raw.ReadVariableOp(resource=handle, dtype=tf.float32)


ATTACKS = {
    "held": lambda x: _apart_if_all(x, _held(x)),
    "added up": lambda x: _apart_if_one(
        x, raw.AccumulateNV2(inputs=[_three(), _three()], shape=[1])
    ),
    "never given": lambda x: _apart_if_one(
        x, raw.FakeParam(dtype=tf.float32, shape=[1])
    ),
    "compressed": lambda x: _apart_if_one(x, _compressed()),
    "variable by its name": lambda x: _apart_if_one(x, _named()),
    "set_shape": lambda x: _apart_if_one(x, _said(_three(), [1])),
    "placeholder with default": lambda x: _apart_if_one(
        x, raw.PlaceholderWithDefault(input=_three(), shape=[1])
    ),
    "placeholder with default, of all": lambda x: _apart_if_all(
        x, tf.compat.v1.placeholder_with_default(_hidden(x), [1, 3])
    ),
    "in a function": _in_function,
    "of a function": _of_function,
    "signature of a function": _by_signature,
    "in a branch": _in_branch,
    "in a body": _in_body,
    "branches, of all": _branches_of_all,
    "raw branches, of all": _raw_branches,
    "loop, of all": _loop_of_all,
    "columns": _narrow,
    "backward": _backward,
    "counter": _counted,
    "variable": _written,
    "item of unknown size": lambda x: _apart_if_one(
        x, _item(_set(_reserved(), _three()), 0, [1])
    ),
    "item never set": lambda x: _apart_if_all(
        x, _item(_set(_reserved(), x), 1, [1, 3])
    ),
    "item popped": lambda x: _apart_if_all(x, _popped(x)),
    "item gathered": lambda x: _apart_if_all(x, _gathered(x)),
    "item of either list": lambda x: _apart_if_all(
        x,
        _item(
            _either(lambda: _set(_reserved(), x), lambda: _reserved([1, 3])),
            0,
        ),
    ),
    "item of zeros": lambda x: _apart_if_all(
        x,
        _item(
            _either(
                lambda: _set(_reserved(), x),
                lambda: raw.ZerosLike(x=_set(_reserved(), tf.ones([1, 3]))),
            ),
            0,
        ),
    ),
    "item or not": lambda x: _apart_if_all(
        x, _either(lambda: x, lambda: _item(_reserved(), 0, [1, 3]))
    ),
    "item of a sum": lambda x: _apart_if_all(x, _item(_added(x), 1)),
    "shape of items": _shape_of_items,
}


@pytest.mark.parametrize("name", ATTACKS)
def test_shapes_that_no_kernel_checks_are_not_believed(name):
    graphs.refused(ATTACKS[name], X)


def _all_in_one_column(x):
    """Each row of the batch in its turn, if it has one column."""
    x.set_shape([None, 1])
    return tf.reshape(x, [-1])[: _first(x)]


def _times_their_number(x):
    """A number like any other, if the batch has always six rows."""
    x.set_shape([6, None])
    return x * tf.cast(_first(x), x.dtype)


@pytest.mark.parametrize("attack", [_all_in_one_column, _times_their_number])
def test_layers_say_nothing_of_the_batch_itself(attack):
    graphs.refused(attack, tf.TensorSpec([None, None], tf.float32))


def test_attacks_are_proved_by_who_believes_shapes(monkeypatch):
    """The attacks above are refused for nothing else."""
    monkeypatch.setattr(
        Walk,
        "static",
        lambda self, tensor: inferred.sizes_of(tensor.shape),
    )
    monkeypatch.setattr(
        preconditions, "without_claims", lambda op, found: found
    )
    for name in ("set_shape", "of a function", "raw branches, of all"):
        graphs.proved(ATTACKS[name], X)


def _kept(x):
    return tf.reduce_sum(x, 1)


SOUND = {
    "ensure_shape": lambda x: _kept(tf.ensure_shape(_hidden(x), [None, 3])),
    "ensured number": lambda x: _apart_if_one(
        x, tf.ensure_shape(_three(), [1])
    ),
    "right set_shape": lambda x: _kept(_said(_hidden(x), [None, 3])),
    "right in a body": lambda x: _kept(
        tf.while_loop(
            lambda i, _: i < 2,
            lambda i, t: (i + 1, _said(_hidden(t) + 1.0, [None, 3])),
            (0, x),
        )[1]
    ),
    "right signature": lambda x: tf.function(
        _kept, autograph=False, input_signature=[X]
    )(_hidden(x)),
    "array": lambda x: _kept(
        tf.TensorArray(tf.float32, 2, element_shape=[None, 3])
        .unstack(tf.stack([x, x]))
        .read(1)
    ),
    "resized": lambda x: tf.reduce_sum(
        tf.image.resize(tf.reshape(x, [-1, 3, 1, 1]), [6, 2]), [1, 2, 3]
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_right_shapes_are_proved(name):
    graphs.proved(SOUND[name], X)


def test_sizes_follow_from_those_that_are_known():
    """And not from those that TensorFlow took down as it traced."""
    found = []

    def traced(x):
        pool = tf.nn.max_pool2d(_said(x, [1, 2, 2, 1]), 2, 2, "VALID").op
        sizes = tuple(map(values_lib.Size.of, (1, 8, 4, 1)))
        known = values_lib.free(sizes)
        found.extend(inferred.Inference().sizes(pool, [known]))
        return x

    tf.function(traced, autograph=False).get_concrete_function(
        tf.TensorSpec(None)
    )
    assert found == [(1, 4, 2, 1)]
