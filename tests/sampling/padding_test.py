"""Padding and cutting of batches, in eager, graph and compiled code."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from tf_dpfp.sampling import pad_to_multiple
from tf_dpfp.sampling import split_microbatches


def _pad_and_split(tree, size):
    padded, mask = pad_to_multiple(tree, size)
    return split_microbatches((padded, mask), size)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 20), st.integers(1, 9))
def test_rows_are_kept_and_the_rest_is_zero(rows, size):
    x = np.arange(1, rows * 2 + 1, dtype=np.float32).reshape(rows, 2)
    padded, mask = pad_to_multiple(x, size)
    np.testing.assert_array_equal(padded[:rows], x)
    np.testing.assert_array_equal(padded[rows:], 0)
    assert len(padded) == max(-(-rows // size), 1) * size
    np.testing.assert_array_equal(mask, np.arange(len(padded)) < rows)
    pieces, masks = split_microbatches((padded, mask), size)
    assert pieces.shape == (len(padded) // size, size, 2)
    np.testing.assert_array_equal(np.reshape(pieces, (-1, 2)), padded)
    np.testing.assert_array_equal(np.reshape(masks, (-1,)), mask)


def test_structure_none_and_dtypes_survive():
    tree = {
        "f": tf.ones((3, 2), tf.bfloat16),
        "i": (tf.ones((3,), tf.uint8), None),
        "s": tf.constant(["a", "b", "c"]),
        "b": tf.constant([True, True, True]),
        "wide": tf.ones((3, 0)),
    }
    padded, mask = pad_to_multiple(tree, 4, 3)
    tf.nest.assert_same_structure(padded, tree)
    assert padded["i"][1] is None
    assert padded["f"].dtype == tf.bfloat16
    assert padded["i"][0].numpy().tolist() == [1, 1, 1, 0]
    assert padded["s"].numpy().tolist() == [b"a", b"b", b"c", b""]
    assert padded["b"].numpy().tolist() == [True, True, True, False]
    assert mask.numpy().tolist() == [True, True, True, False]
    pieces = split_microbatches(padded, 2)
    assert pieces["i"][1] is None
    assert pieces["s"].numpy().tolist() == [[b"a", b"b"], [b"c", b""]]
    assert pieces["wide"].shape == (2, 2, 0)


@pytest.mark.parametrize("rows", [0, 1, 4, 7])
def test_dynamic_batches_in_a_graph(rows):
    @tf.function(input_signature=[tf.TensorSpec([None, 3])])
    def step(x):
        (pieces, masks) = _pad_and_split(x, 4)
        assert pieces.shape.as_list() == [None, 4, 3]
        return pieces, masks

    x = tf.random.normal((rows, 3))
    pieces, masks = step(x)
    assert pieces.shape == (max(1, -(-rows // 4)), 4, 3)
    np.testing.assert_array_equal(tf.boolean_mask(pieces, masks), x)
    np.testing.assert_array_equal(tf.boolean_mask(pieces, ~masks), 0)


@pytest.mark.parametrize("rows", [0, 1, 4, 7])
def test_compiled_shapes_are_static(rows):
    @tf.function(jit_compile=True)
    def step(x, w):
        (x, w), masks = _pad_and_split((x, w), 4)
        assert x.shape.as_list() == [max(1, -(-rows // 4)), 4, 3]
        assert masks.shape.as_list() == x.shape.as_list()[:2]
        return x, w, masks

    x, w = tf.random.normal((rows, 3)), tf.ones((rows,), tf.int32)
    pieces, weights, masks = step(x, w)
    np.testing.assert_array_equal(tf.boolean_mask(pieces, masks), x)
    assert int(tf.reduce_sum(weights)) == rows


@pytest.mark.parametrize("rows", [0, 5])
def test_compiled_from_a_dynamic_signature(rows):
    @tf.function(input_signature=[tf.TensorSpec([None, 3])], jit_compile=True)
    def step(x):
        return _pad_and_split(x, 4)

    x = tf.random.normal((rows, 3))
    pieces, masks = step(x)
    np.testing.assert_array_equal(tf.boolean_mask(pieces, masks), x)


def test_batch_size_may_be_a_tensor():
    padded, mask = pad_to_multiple(tf.ones((3,)), 2, tf.constant(3))
    assert padded.shape == (4,) and mask.shape == (4,)

    @tf.function(
        input_signature=[tf.TensorSpec([None]), tf.TensorSpec([], tf.int64)]
    )
    def step(x, size):
        return pad_to_multiple(x, 2, size)

    padded, mask = step(tf.ones((3,)), 3)
    assert padded.numpy().tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize("multiple", [0, -1, 2.0, True, None])
def test_sizes_must_be_positive_integers(multiple):
    with pytest.raises(ValueError, match="must be an integer of at least 1"):
        pad_to_multiple(tf.ones((3,)), multiple)
    with pytest.raises(ValueError, match="must be an integer of at least 1"):
        split_microbatches(tf.ones((3,)), multiple)


def test_rows_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"the same number.*: \[2, 3\]"):
        pad_to_multiple((tf.ones((3,)), tf.ones((2,))), 4)
    with pytest.raises(ValueError, match=r"the same number.*: \[3, 4\]"):
        pad_to_multiple(tf.ones((3,)), 4, 4)

    @tf.function(input_signature=[tf.TensorSpec([None]), tf.TensorSpec([None])])
    def step(x, y):
        return pad_to_multiple((x, y), 4)

    with pytest.raises(tf.errors.InvalidArgumentError, match="same number"):
        step(tf.ones((3,)), tf.ones((2,)))


def test_what_has_no_rows_is_refused():
    with pytest.raises(ValueError, match="first axis over examples"):
        pad_to_multiple(tf.constant(1.0), 4)
    with pytest.raises(ValueError, match="no tensor"):
        pad_to_multiple((None, {}), 4)
    with pytest.raises(ValueError, match="RaggedTensor"):
        pad_to_multiple(tf.ragged.constant([[1], [1, 2]]), 4)


def test_incomplete_microbatches_are_refused():
    with pytest.raises(ValueError, match="5 examples cannot be cut"):
        split_microbatches(tf.ones((5,)), 2)

    @tf.function(input_signature=[tf.TensorSpec([None])])
    def step(x):
        return split_microbatches(x, 2)

    with pytest.raises(tf.errors.InvalidArgumentError):
        step(tf.ones((5,)))
