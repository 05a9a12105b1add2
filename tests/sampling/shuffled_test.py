import numpy as np
import pytest

from tf_dpfp.sampling import sampling_of
from tf_dpfp.sampling import shuffled_batches


def _rows(batches):
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]


def test_every_iteration_holds_every_example_once():
    x, y = np.arange(23.0), np.arange(23)
    batches = shuffled_batches(x, y, batch_size=5)
    assert int(batches.cardinality()) == 5
    orders = []
    for _ in range(2):
        found = [[t.numpy() for t in batch] for batch in batches]
        assert [len(b[0]) for b in found] == [5, 5, 5, 5, 3]
        inputs, labels = _rows(found)
        assert inputs.dtype == np.float32
        np.testing.assert_array_equal(inputs, labels)
        np.testing.assert_array_equal(np.sort(labels), y)
        orders.append(labels.tolist())
    assert orders[0] != orders[1]
    assert y.tolist() not in orders


def test_without_shuffling_the_order_stays():
    batches = shuffled_batches(
        {"a": np.arange(7)}, None, None, batch_size=3, shuffle=False
    )
    found = [batch["a"].numpy().tolist() for batch in batches]
    assert found == [[0, 1, 2], [3, 4, 5], [6]]


def test_nothing_is_claimed_of_them():
    batches = shuffled_batches(np.arange(7), batch_size=3)
    assert sampling_of(batches) is None


def test_arrays_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="same number of examples"):
        shuffled_batches(np.arange(7), np.arange(6), batch_size=3)
