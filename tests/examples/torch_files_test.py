import io
import os
import pickle

import numpy as np
import pytest

from examples.trainers import packages
from examples.trainers import torch_files


def checkpoint(tensors, magic=torch_files._MAGIC, cut=0):
    """Writes tensors as PyTorch 1.5 did.

    Each is an array and the order of axes in which its numbers are laid down.
    """
    pickled = _pickle_tensors(tensors)
    stream = io.BytesIO()
    for value in (magic, torch_files._PROTOCOL, {"little_endian": True}):
        stream.write(pickle.dumps(value, protocol=2))
    stream.write(pickled)
    stream.write(pickle.dumps(list(tensors), protocol=2))
    for array, order in tensors.values():
        stream.write(array.size.to_bytes(8, "little"))
        stream.write(np.ascontiguousarray(array.transpose(order)).tobytes())
    return stream.getvalue()[: len(stream.getvalue()) - cut]


def _pickle_tensors(tensors):
    """Written opcode by opcode, for there is no PyTorch to pickle."""

    def text(value):
        encoded = value.encode()
        return b"X" + len(encoded).to_bytes(4, "little") + encoded

    def number(value):
        return b"J" + int(value).to_bytes(4, "little", signed=True)

    def row(*values):
        return b"(" + b"".join(values) + b"t"

    out = b"\x80\x02ccollections\nOrderedDict\n)R("
    for name, (array, order) in tensors.items():
        kind = "Long" if array.dtype == np.int64 else "Float"
        laid = np.ascontiguousarray(array.transpose(order))
        strides = laid.transpose(np.argsort(order)).strides
        storage = row(
            text("storage"),
            f"ctorch\n{kind}Storage\n".encode(),
            *(text(name), text("cpu"), number(array.size), b"N"),
        )
        out += text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n"
        out += row(
            storage + b"Q",
            number(0),
            row(*map(number, array.shape)),
            row(*(number(s // array.itemsize) for s in strides)),
            b"\x89",
            b"ccollections\nOrderedDict\n)R",
        )
        out += b"R"
    return out + b"u."


def test_tensors_come_in_whatever_order_their_numbers_lie():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(4, 3, 2, 2)).astype("float32")
    tensors = {
        "laid_otherwise": (kernel, (2, 3, 1, 0)),
        "plain": (kernel, (0, 1, 2, 3)),
        "steps": (np.array([7]), (0,)),
    }
    found = torch_files.read(checkpoint(tensors))
    assert list(found) == list(tensors)
    for name, (array, _) in tensors.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


class _Bomb:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_nothing_in_a_checkpoint_is_called(tmp_path):
    begin = b"".join(
        pickle.dumps(value, protocol=2)
        for value in (torch_files._MAGIC, torch_files._PROTOCOL, {})
    )
    bomb = pickle.dumps(_Bomb(tmp_path / "exploded"), protocol=2)
    for payload in (bomb, begin + bomb):
        with pytest.raises(packages.SourceError, match="not called"):
            torch_files.read(payload)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(magic=1), "no checkpoint of PyTorch"),
        (dict(cut=1), "damaged"),
    ],
)
def test_other_files_are_refused(changes, message):
    tensors = {"a": (np.ones((2, 2), "float32"), (0, 1))}
    with pytest.raises(packages.SourceError, match=message):
        torch_files.read(checkpoint(tensors, **changes))


def test_a_tensor_beyond_its_numbers_is_refused():
    storage = torch_files._Storage("a", np.dtype("<f4"))
    numbers = np.zeros(4, "float32")
    for shape, strides, offset in [
        ((2, 2), (2, 1), 1),
        ((5,), (1,), 0),
        ((2,), (-1,), 1),
    ]:
        tensor = torch_files._Tensor(storage, offset, shape, strides)
        with pytest.raises(packages.SourceError, match="beyond its numbers"):
            torch_files._array(numbers, tensor)
