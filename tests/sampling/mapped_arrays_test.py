import mmap

import numpy as np
import pytest

import tf_dpfp
from tf_dpfp.sampling import mapped_arrays

N = 50
VALUES = np.arange(N * 700, dtype=np.float32).reshape(N, 700)


class _Mapping(mmap.mmap):
    """A mapped file that remembers what it was advised."""

    def madvise(self, option, start, length):
        assert option == mmap.MADV_WILLNEED
        self.advised = [*getattr(self, "advised", []), (start, length)]
        super().madvise(option, start, length)


@pytest.fixture
def mapped(tmp_path):
    """An array in a file, behind a header as `np.save` writes one."""
    path = tmp_path / "x.npy"
    path.write_bytes(b"h" * 128 + VALUES.tobytes())
    with path.open("rb") as file:
        mapping = _Mapping(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.ndarray(VALUES.shape, np.float32, mapping, offset=128)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x,
        lambda x: x[3:40],
        lambda x: x[::-1],
        lambda x: x[::3],
        lambda x: x.reshape(N, 7, 100),
        lambda x: x.reshape(-1),
        lambda x: np.asarray(x)[1:][2:],
    ],
)
def test_the_pages_of_all_examples_are_announced(mapped, view):
    array, indices = view(mapped), np.array([11, 0, 5])
    mapping = mapped_arrays.mapping_of(array)
    mapped_arrays.read_ahead(array, mapping, indices)
    origin = np.frombuffer(mapping, np.uint8).ctypes.data
    assert len(mapping.advised) == 3
    for index, (start, length) in zip(indices, mapping.advised, strict=True):
        example = np.atleast_1d(array[index : index + 1])
        first = example.ctypes.data - origin
        assert start % mmap.PAGESIZE == 0
        assert first - mmap.PAGESIZE < start <= first
        assert start + length == first + example.nbytes


def test_what_is_not_mapped_in_one_piece_is_left_alone(mapped):
    assert mapped_arrays.mapping_of(VALUES) is None
    assert mapped_arrays.mapping_of(mapped + 0) is None
    assert mapped_arrays.mapping_of(mapped[:, ::2]) is None
    assert mapped_arrays.mapping_of(mapped[:, :0]) is None


def test_drawing_announces_what_it_reads(mapped):
    batches = tf_dpfp.poisson_batches(
        mapped, np.arange(N), expected_batch_size=10, steps_per_epoch=6
    )
    drawn = 0
    for x, y in batches.as_numpy_iterator():
        np.testing.assert_array_equal(x, VALUES[y])
        drawn += len(y)
    assert len(mapped.base.advised) == drawn


def test_arrays_of_numpy_are_recognised(tmp_path):
    np.save(tmp_path / "x.npy", VALUES)
    loaded = np.load(tmp_path / "x.npy", mmap_mode="r")
    array = np.asarray(loaded)
    mapping = mapped_arrays.mapping_of(array)
    assert isinstance(mapping, mmap.mmap)
    mapped_arrays.read_ahead(array, mapping, np.array([N - 1, 0]))
    mapped_arrays.read_ahead(array, mapping, np.empty(0, np.int64))
