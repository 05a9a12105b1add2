import keras
import numpy as np
import pytest

from tf_dpfp.keras_private import adapters


class _Numbers(keras.utils.PyDataset):
    def __init__(self, length=3, **kwargs):
        super().__init__(**kwargs)
        self.length, self.epochs = length, []

    @property
    def num_batches(self):
        return self.length

    def __getitem__(self, index):
        rows = np.full((index % 3 + 1, 2), index, np.float32)
        return rows, rows[:, 0]

    def on_epoch_begin(self):
        self.epochs.append("begin")

    def on_epoch_end(self):
        self.epochs.append("end")


@pytest.mark.parametrize("workers", [1, 2])
def test_every_pass_over_a_py_dataset_has_a_beginning_and_an_end(workers):
    numbers = _Numbers(workers=workers)
    batches = adapters.batches_of(numbers)
    assert int(batches.cardinality()) == 3
    assert [s.shape.as_list() for s in batches.element_spec] == [
        [None, 2],
        [None],
    ]
    for _ in range(2):
        numbers.epochs.clear()
        sizes = [len(x) for x, _ in batches.as_numpy_iterator()]
        assert sizes == [1, 2, 3]
        assert numbers.epochs == ["begin", "end"]


def test_a_py_dataset_may_be_infinite_or_shuffled():
    endless = adapters.batches_of(_Numbers(None), shuffle=True)
    assert [int(y[0]) for _, y in endless.take(5)] == [0, 1, 2, 3, 4]
    shuffled = adapters.batches_of(_Numbers(12), shuffle=True)
    orders = [[int(y[0]) for _, y in shuffled] for _ in range(3)]
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert len({tuple(order) for order in orders}) > 1


def test_a_generator_is_gone_through_once():
    batches = adapters.batches_of((*_Numbers()[i], None) for i in range(4))
    assert len(batches.element_spec) == 2
    assert int(batches.cardinality()) < 0
    assert [int(y[0]) for _, y in batches.repeat()] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="at least one batch"):
        adapters.batches_of(batch for batch in ())
